"""Enumeration in part: the likeliest outcomes summed, one drawn for the rest, its draw enumerated with the others."""

import pytest
import torch
from torch.distributions import Categorical

import stochgraph as sg
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, GRAPHS

EXACT = 1e-12
SMALL = [
    "additive",
    "bandit, 1 step",
    "bandit, 2 steps",
    "MDP, horizon 2",
    "chain",
    "fork",
    "centered",
    "extreme",
    "regularized",
    "nonlinear inner objective",
    "reused data",
    "nested update",
    "implicit update",
]
SECOND = ["additive", "bandit, 1 step", "chain", "fork", "regularized"]


@sg.graph
def priced(theta):
    """Two draws of five outcomes."""
    prices = torch.tensor([0.1, 1.0, -0.6, 0.4, -2.0], dtype=F64)
    return torch.exp(sg.mean(sg.apply(lambda a: prices[a], sg.sample("x", Categorical, logits=theta, n=2))))


FIVE = torch.tensor([0.3, 1.2, -0.4, 0.1, -1.0], dtype=F64)


@pytest.mark.parametrize(("name", "order"), [*((name, 1) for name in SMALL), *((name, 2) for name in SECOND)])
def test_it_is_unbiased(name, order):
    make, theta = GRAPHS[name]
    assert sg.verify(make().compile(sg.Enumerate(top=1)), theta, order=order).relative_bias < EXACT


@pytest.mark.slow
def test_two_tasks_are_unbiased():
    compiled = problems.task_bandit(1).compile(sg.Enumerate(top=1))
    assert sg.verify(compiled, BANDIT_THETA).relative_bias < EXACT


@pytest.mark.parametrize("top", [1, 2, 3, 4, 5, 9])
def test_five_outcomes(top):
    found = sg.verify(priced.compile(sg.Enumerate(top=top)), FIVE)
    assert found.relative_bias < EXACT
    assert found.outcomes == 25 * (max(5 - top, 1)) ** 2


def test_the_variance_falls_with_the_outcomes_that_are_summed():
    found = [sg.verify(priced.compile(sg.Enumerate(top=top)), FIVE).total_variance for top in (1, 2, 3, 4)]
    assert found == sorted(found, reverse=True)
    whole = sg.verify(priced.compile(sg.Enumerate()), FIVE).total_variance
    assert found[-1] == pytest.approx(whole, rel=1e-12)  # the rest is one outcome


@pytest.mark.parametrize("name", ["additive", "bandit, 1 step", "chain", "fork"])
def test_it_is_unbiased_at_other_parameters(name):
    """Where other outcomes may be the likeliest: those of the parameters that drew stay."""
    make, theta = GRAPHS[name]
    compiled = make().compile(sg.Enumerate(top=1))
    there = theta + 0.9 * torch.cos(torch.arange(theta.numel(), dtype=F64)).reshape(theta.shape)
    found = sg.verify(compiled, theta, surrogate=lambda t, trace: compiled.surrogate(t - theta + there, trace))
    truth = sg.verify(compiled, there).truth
    assert (found.expectation - truth).norm() < EXACT * truth.norm()


@pytest.mark.parametrize("beside", [sg.SF("loo"), sg.LOO(), sg.Enumerate(), sg.Enumerate(top=2)])
def test_it_is_unbiased_beside_others(beside):
    graph = problems.bandit(1, n=2, m=2)
    for chosen in ({"D1": sg.Enumerate(top=1), "tau": beside}, {"D1": beside, "tau": sg.Enumerate(top=1)}):
        if chosen["D1"] != sg.SF("loo"):  # inner data have no costs of their own
            assert sg.verify(graph.compile(chosen), BANDIT_THETA).relative_bias < EXACT


def test_a_rest_of_impossible_outcomes():
    """Their probabilities are 0 and do not move: the draw for the rest adds nothing."""

    @sg.graph
    def objective(theta):
        possible = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf], dtype=F64)
        x = sg.sample("x", lambda t: Categorical(logits=torch.cat([t, t[:2]]) + possible), theta)
        return sg.apply(lambda a: BANDIT_REWARD[a % 3], x)

    found = sg.verify(objective.compile(sg.Enumerate(top=2)), BANDIT_THETA[:2])
    assert found.relative_bias < EXACT
    assert found.total_variance < 1e-30


def test_the_gradient_by_hand():
    """Of one draw: another outcome over its chance among the rest, compared with the likeliest one."""

    @sg.graph
    def objective(theta):
        return sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("x", Categorical, logits=theta))

    compiled = objective.compile(sg.Enumerate(top=1))
    p = BANDIT_THETA.softmax(-1)
    for seed in range(4):
        trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(seed))
        likeliest, other = trace.draws["x shortlist"].outcomes
        assert int(likeliest) == int(p.argmax())
        jacobian = torch.func.jacrev(lambda t: t.softmax(-1))(BANDIT_THETA)
        weight = (1 - p[likeliest]) / p[other]
        by_hand = weight * (BANDIT_REWARD[other] - BANDIT_REWARD[likeliest]) * jacobian[other]
        assert torch.allclose(torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace), by_hand, atol=1e-14)


def test_one_call_a_trace_chunks_and_a_flat_program_agree():
    compiled, flat = (problems.task_bandit(1).compile(sg.Enumerate(top=2), lowering=w) for w in ("never", "flat"))

    def seed():
        return torch.Generator().manual_seed(0)

    trace = compiled.sample(BANDIT_THETA, generator=seed(), sizes={"task": 6})
    _, grad = compiled.value_and_grad(BANDIT_THETA, generator=seed(), sizes={"task": 6})
    assert torch.allclose(torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace), grad, atol=1e-15)
    _, in_chunks = sg.accumulate(compiled, BANDIT_THETA, over="task", trace=trace, chunk=2)
    assert torch.allclose(in_chunks, grad, atol=1e-14)
    assert torch.equal(flat.value_and_grad(BANDIT_THETA, generator=seed(), sizes={"task": 6})[1], grad)


def test_many_samples_in_one_call():
    compiled = priced.compile(sg.Enumerate(top=2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        traces = torch.vmap(lambda _: compiled.sample(FIVE), randomness="different")(torch.arange(50))
    found = torch.vmap(torch.func.grad(compiled.surrogate), in_dims=(None, 0))(FIVE, traces)
    assert len({tuple(row.tolist()) for row in found}) > 10


def test_what_it_says():
    explained = priced.compile(sg.Enumerate(top=2)).explain()
    assert explained.unbiased
    assert {row.counted for row in explained.ledger} == {"once"}
    assert r"k \in T" in explained.latex
    assert repr(sg.Enumerate(top=2)) == "Enumerate(top=2)"
    with pytest.raises(ValueError, match="top=0: the number of outcomes"):
        sg.Enumerate(top=0)
