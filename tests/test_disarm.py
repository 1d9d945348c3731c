"""DisARM: exact at every order, its partners enumerated with the draws; the paper's formula on the same draws."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal

import stochgraph as sg
from tests.problems import F64, GRAPHS, LATENT_THETA

EXACT = 1e-12
THETA = torch.tensor(0.4, dtype=F64)


def step(n=2, m=1):
    """An inner update on coins of its parameters, and a coin from where it leads."""

    @sg.graph
    def objective(logit):
        x = sg.sample("x", Bernoulli, logits=logit, n=n)
        adapted = sg.ascend(logit, sg.mean(x * x - 0.3 * x), 0.7)
        return sg.mean(sg.sample("y", Bernoulli, logits=adapted, n=m) * 1.0)

    return objective


def vectors(make):
    """Draws of three coins each."""

    @sg.graph
    def objective(theta):
        weights = torch.tensor([1.0, 2.0, -0.5], dtype=F64)
        return torch.exp(sg.mean(sg.apply(lambda one: (one * weights).prod(), sg.sample("x", make, theta, n=2))))

    return objective


def tasks():
    """One mean for each of the draws of another plate."""

    @sg.graph
    def objective(theta):
        task = sg.sample("task", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=2)
        x = sg.sample("x", lambda t, i: Bernoulli(logits=t[i]), theta, task, n=2)
        return sg.mean(sg.mean(x, over="x") ** 2 * (task + 1))

    return objective


def in_every_way(estimator):
    """The gradient of six tasks by one call, at its trace, in chunks of that, and by a flat program."""
    compiled, flat = (tasks().compile({"x": estimator}, lowering=word) for word in ("never", "flat"))
    theta, sizes = LATENT_THETA[:2], {"task": 6}

    def seed():
        return torch.Generator().manual_seed(0)

    trace = compiled.sample(theta, generator=seed(), sizes=sizes)
    at_trace = torch.func.grad(compiled.surrogate)(theta, trace)
    in_chunks = sg.accumulate(compiled, theta, over="task", trace=trace, chunk=2)[1]
    one, other = (each.value_and_grad(theta, generator=seed(), sizes=sizes)[1] for each in (compiled, flat))
    return one, at_trace, in_chunks, other


PROBLEMS = {name: GRAPHS[name] for name in ("additive", "chain", "fork", "centered")}
PROBLEMS |= {
    "inner update": (step, THETA),
    "entries": (lambda: vectors(lambda t: Bernoulli(logits=t)), LATENT_THETA),
    "independent": (lambda: vectors(lambda t: Independent(Bernoulli(logits=t), 1)), LATENT_THETA),
    "tasks": (tasks, LATENT_THETA[:2]),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_unbiased(name, order):
    make, theta = PROBLEMS[name]
    assert sg.verify(make().compile(sg.DisARM()), theta, order=order).relative_bias < EXACT


@pytest.mark.parametrize("name", ["additive", "chain", "inner update", "tasks"])
def test_it_is_unbiased_at_other_parameters(name):
    """On both sides of one half, where pairs are possible that never were."""
    make, theta = PROBLEMS[name]
    compiled, there = make().compile(sg.DisARM()), theta - 1.1
    found = sg.verify(compiled, theta, surrogate=lambda t, trace: compiled.surrogate(t - theta + there, trace))
    truth = sg.verify(compiled, there).truth
    assert (found.expectation - truth).norm() < EXACT * truth.norm()


BESIDE = [
    *({"x": sg.DisARM(), "y": other} for other in (sg.SF(), sg.SF("loo"), sg.LOO(), sg.Enumerate())),
    *({"x": other, "y": sg.DisARM()} for other in (sg.SF(), sg.LOO(), sg.Enumerate())),
]


@pytest.mark.parametrize("chosen", BESIDE, ids=str)
def test_it_is_unbiased_beside_others(chosen):
    for order in (1, 2):
        assert sg.verify(step(m=2).compile(chosen), THETA, order=order).relative_bias < EXACT


@pytest.mark.parametrize("logit", [0.4, -0.9])
def test_the_formula_of_the_paper_on_the_same_pairs(logit):
    """That of Dong et al. (2020) for several coins, the square of their mean."""

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Bernoulli, logits=theta, n=5)) ** 2

    theta = torch.tensor(logit, dtype=F64)
    compiled = objective.compile(sg.DisARM())
    for seed in range(5):
        trace = compiled.sample(theta, generator=torch.Generator().manual_seed(seed))
        b, partner = trace.draws["x"], trace.draws["x partner"]
        assert torch.allclose(partner.probability, theta.sigmoid())
        other = partner.other
        by_hand = 0.5 * (b.mean() ** 2 - other.mean() ** 2) * (-1.0) ** other * (b != other) * theta.abs().sigmoid()
        found = torch.func.grad(compiled.surrogate)(theta, trace)
        assert float(found) == pytest.approx(float(by_hand.sum()), abs=1e-14)


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_the_law_of_the_pair(p):
    """With one uniform u, [u < p] and [1 - u < p]: both are one if p > 1/2 with probability 2 p - 1, else never."""

    @sg.graph
    def objective(probability):
        return sg.sample("x", Bernoulli, probability) * 1.0

    compiled, probability = objective.compile(sg.DisARM()), torch.tensor(p, dtype=F64)
    many = torch.vmap(lambda _: compiled.sample(probability), randomness="different")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = many(torch.arange(20000)).draws
    both = float((draws["x"] * draws["x partner"].other).mean())
    mean = float(draws["x partner"].other.mean())
    five_errors = 5 * 0.5 / 20000**0.5  # fails once in 1.7e6
    assert abs(both - max(2 * p - 1, 0)) < five_errors
    assert abs(mean - p) < five_errors


def test_one_coin_by_hand():
    """A logit of phi: the estimate is the derivative times max(p, 1 - p) / max(p, 1 - p), where the pair differs."""

    @sg.graph
    def objective(logit):
        return 3 * sg.sample("x", Bernoulli, logits=logit)

    p = float(THETA.sigmoid())
    found = sg.verify(objective.compile(sg.DisARM()), THETA)
    # It is 3 p / 2 with probability 2 (1 - p), and else 0.
    assert float(found.expectation) == pytest.approx(3 * p * (1 - p), abs=1e-15)
    assert found.total_variance == pytest.approx((1.5 * p) ** 2 * 2 * (1 - p) - (3 * p * (1 - p)) ** 2, abs=1e-15)


def test_it_varies_less_than_the_score_function():
    for name in ("additive", "chain", "fork", "inner update"):
        make, theta = PROBLEMS[name]
        pair, score = (sg.verify(make().compile(e), theta).total_variance for e in (sg.DisARM(), sg.SF()))
        assert pair < score


def test_chunks_of_another_plate():
    compiled = tasks().compile(sg.DisARM())
    theta = LATENT_THETA[:2]
    trace = compiled.sample(theta, sizes={"task": 6}, generator=torch.Generator().manual_seed(0))
    whole = torch.func.grad(compiled.surrogate)(theta, trace)
    _, found = sg.accumulate(compiled, theta, over="task", trace=trace, chunk=2)
    assert torch.allclose(found, whole, atol=1e-14)
    with pytest.raises(sg.CompileError, match=r"cannot be cut into chunks of the plate 'x'"):
        sg.accumulate(compiled, theta, over="x", trace=trace, chunk=1)


def test_one_call_a_trace_and_a_flat_program_agree():
    compiled, flat = (tasks().compile(sg.DisARM(), lowering=word) for word in ("never", "flat"))
    theta = LATENT_THETA[:2]
    trace = compiled.sample(theta, generator=torch.Generator().manual_seed(0))
    value, grad = compiled.value_and_grad(theta, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.func.grad(compiled.surrogate)(theta, trace), grad)
    assert torch.equal(value, trace.value)
    for found, expected in zip(
        flat.value_and_grad(theta, generator=torch.Generator().manual_seed(0)), (value, grad), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_trace_without_partners_is_refused():
    graph = step()
    trace = graph.compile(sg.SF()).sample(THETA)
    with pytest.raises(sg.SamplingError, match="it has no draw of 'x partner'"):
        graph.compile(sg.DisARM()).surrogate(THETA, trace)


def test_what_it_says():
    explained = step().compile(sg.DisARM()).explain()
    assert explained.unbiased
    assert {row.counted for row in explained.ledger} == {"once"}
    assert r"_{x_{i}'}" in explained.latex
    assert repr(sg.DisARM()) == "DisARM()"


def test_what_is_refused():
    @sg.graph
    def arms(theta):
        return sg.sample("x", Categorical, logits=theta) * 1.0

    @sg.graph
    def late(theta):
        return sg.sample("x", lambda t: Categorical(logits=t), theta) * 1.0

    @sg.graph
    def child(logit):
        return sg.sample("y", Normal, sg.sample("x", Bernoulli, logits=logit), 1.0)

    with pytest.raises(sg.CompileError, match=r"DisARM on sample 'x' \(axes: none\): Categorical is not Bernoulli"):
        arms.compile(sg.DisARM())
    with pytest.raises(sg.SamplingError, match="Categorical is not Bernoulli"):
        late.compile(sg.DisARM()).sample(LATENT_THETA)
    with pytest.raises(sg.CompileError, match=r"'x' .* feeds sample 'y' .* directly"):
        child.compile({"x": sg.DisARM(), "y": sg.SF()})
