"""The log-probability of a draw as part of a cost."""

import pytest
import torch
from torch.distributions import Categorical, Geometric, Normal

import stochgraph as sg
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, DISCOUNT, F64, MDP_THETA, TwoStateMDP

EXACT = 1e-12


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.PW()])
def test_it_is_the_density_written_out(estimator):
    @sg.graph
    def written(theta):
        z = sg.sample("z", Normal, theta[0], torch.exp(theta[1]), n=4)
        log_q = sg.apply(lambda z, t: Normal(t[0], t[1].exp()).log_prob(z), z, theta)
        return torch.exp(sg.mean(torch.sin(z) - log_q))

    @sg.graph
    def declared(theta):
        z = sg.sample("z", Normal, theta[0], torch.exp(theta[1]), n=4)
        return torch.exp(sg.mean(torch.sin(z) - sg.log_prob(z)))

    theta = torch.tensor([0.3, -0.2], dtype=F64)
    first, second = (graph.compile(estimator) for graph in (written, declared))
    trace = first.sample(theta, generator=torch.Generator().manual_seed(0))
    found, expected = (torch.func.grad(c.surrogate)(theta, trace) for c in (second, first))
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-13)


@pytest.mark.parametrize("order", [1, 2])
def test_a_variational_bound_is_exact(order):
    @sg.graph
    def bound(theta):
        z = sg.sample("z", Categorical, logits=theta, n=2)
        return sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], z) - sg.log_prob(z))

    for estimator in (sg.SF(), sg.LSF(), sg.SF(baseline="loo")):
        assert sg.verify(bound.compile(estimator), BANDIT_THETA, order=order).relative_bias < EXACT


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LOO()])
def test_an_entropy_bonus_inside_and_outside_an_update(estimator):
    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(2), theta, n=2)
        inner = sg.mean(sg.sum(data.reward - 0.1 * sg.log_prob(data), discount=DISCOUNT))
        adapted = sg.ascend(theta, inner, 0.7)
        return sg.apply(problems.mdp_value, adapted) - 0.1 * sg.mean(sg.sum(sg.log_prob(data)))

    assert sg.verify(objective.compile(estimator), MDP_THETA).relative_bias < EXACT


def test_families_that_cannot_be_scored_one_draw_at_a_time():
    """Torch's own log-probability of a Geometric picks elements by value, which cannot be mapped over a plate."""

    @sg.graph
    def entropy(theta):
        z = sg.sample("z", Normal, theta, 1.0, n=3)
        return -sg.mean(sg.log_prob(sg.sample("k", Geometric, torch.sigmoid(z))))

    value, grad = entropy.compile(sg.SF()).value_and_grad(torch.tensor(0.2, dtype=F64))
    assert torch.isfinite(value)
    assert torch.isfinite(grad)


def test_it_is_part_of_pictures_and_formulas():
    @sg.graph
    def entropy(theta):
        return -sg.mean(sg.log_prob(sg.sample("x", Normal, theta, 1.0, n=3)))

    assert r"\log p(x_{i})" in entropy.compile(sg.SF()).explain().latex
    assert entropy.networkx.nodes["log p(x)"]["kind"] == "log_prob"
    entropy.draw()


def test_only_draws_have_one():
    with pytest.raises(sg.DeclarationError, match=r"log_prob takes a sample node, got 'mean\(x\)'"):

        @sg.graph
        def objective(theta):
            return sg.log_prob(sg.mean(sg.sample("x", Normal, theta, 1.0, n=3)))


def test_an_error_in_a_function_of_one_draw_names_the_node():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.mean(sg.apply(lambda draw: draw if draw > 0 else -draw, x))

    with pytest.raises(RuntimeError) as caught:
        objective.compile(sg.SF()).value_and_grad(torch.tensor(0.3))
    assert any("node 'lambda' (axes: (x))" in note for note in caught.value.__notes__)
