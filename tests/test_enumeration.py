"""Enumeration of one draw at a time: exact at every order, at other parameters, beside other estimators; or refused."""

import pytest
import torch
from torch.distributions import Bernoulli, Binomial, Categorical, Independent, Normal, Poisson

import stochgraph as sg
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, GRAPHS

EXACT = 1e-12
BESIDE = {"LOO": sg.LOO(), "SF": sg.SF()}


def elsewhere(theta):
    return theta + 0.3 * torch.cos(torch.arange(theta.numel(), dtype=F64)).reshape(theta.shape)


APART = [("MDP, horizon 3", 2), ("implicit update", 2)]  # takes 20 s; see below
ORDERS = [(name, order) for name in GRAPHS for order in (1, 2) if (name, order) not in APART]


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_it_is_unbiased(name, order):
    make, theta = GRAPHS[name]
    assert sg.verify(make().compile(sg.Enumerate()), theta, order=order).relative_bias < EXACT


def test_second_derivatives_of_an_implicit_update():
    """The Hessian of logits is singular: where a right-hand side is 0 but for rounding, the solver asks for damping."""
    compiled = problems.soft_greedy_bandit(damping=1e-3).compile(sg.Enumerate())
    assert sg.verify(compiled, BANDIT_THETA, order=2).relative_bias < EXACT


@pytest.mark.parametrize("name", ["additive", "bandit, 1 step", "bandit, 2 steps", "chain", "fork", "reused data"])
def test_it_is_unbiased_at_other_parameters(name):
    """The draws are weighted with their importance ratio."""
    make, theta = GRAPHS[name]
    compiled, there = make().compile(sg.Enumerate()), elsewhere(theta)
    found = sg.verify(compiled, theta, surrogate=lambda t, trace: compiled.surrogate(t - theta + there, trace))
    truth = sg.verify(compiled, there).truth
    assert (found.expectation - truth).norm() < EXACT * truth.norm()


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", ["additive", "bandit, 2 steps", "two tasks, 1 step", "chain", "fork", "reused data"])
@pytest.mark.parametrize("first", [True, False])
def test_it_is_unbiased_beside_others(name, beside, first):
    make, theta = GRAPHS[name]
    graph = make()
    chosen = {s: sg.Enumerate() if (i % 2 == 0) == first else BESIDE[beside] for i, s in enumerate(graph.samples)}
    for order in (1, 2):
        assert sg.verify(graph.compile(chosen), theta, order=order).relative_bias < EXACT


@pytest.mark.parametrize("baseline", ["loo", "mean"])
@pytest.mark.parametrize("enumerated", ["D1", "tau"])
def test_control_variates_of_others_keep_their_zero_mean(enumerated, baseline):
    """A replay of tau is multiplied with a probability that depends on D1: a control of D1 in it would have a mean."""
    graph = problems.task_bandit(1)
    chosen = dict.fromkeys(graph.samples, sg.SF(baseline)) | {enumerated: sg.Enumerate()}
    assert sg.verify(graph.compile(chosen), BANDIT_THETA, order=2).relative_bias < EXACT


def test_the_gradient_by_hand():
    """Two draws of three arms, the square of their mean pay: both sums written out."""

    @sg.graph
    def objective(theta):
        return sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("x", Categorical, logits=theta, n=2))) ** 2

    compiled = objective.compile(sg.Enumerate())
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(1))
    first, second = BANDIT_REWARD[trace.draws["x"]]

    def by_hand(theta):
        p = theta.softmax(-1)
        return p @ ((BANDIT_REWARD + second) / 2) ** 2 + p @ ((BANDIT_REWARD + first) / 2) ** 2

    expected = torch.func.grad(by_hand)(BANDIT_THETA)
    assert torch.allclose(torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace), expected, atol=1e-14)
    assert float(compiled.surrogate(BANDIT_THETA, trace)) == pytest.approx(float(((first + second) / 2) ** 2))


def test_draws_behind_a_linear_mean_do_not_vary():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("x", Categorical, logits=theta, n=2)))

    assert sg.verify(objective.compile(sg.Enumerate()), BANDIT_THETA).total_variance < 1e-30


def test_draws_of_several_entries():
    """A draw of three coins at once has eight outcomes."""
    theta = torch.tensor([0.3, -0.4, 0.9], dtype=F64)

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        return torch.exp(sg.mean(sg.apply(lambda one: (one * torch.tensor([1.0, 2.0, -0.5], dtype=F64)).prod(), x)))

    for order in (1, 2):
        assert sg.verify(objective.compile(sg.Enumerate()), theta, order=order).relative_bias < EXACT


@pytest.mark.parametrize("n", [2, 4])
def test_it_varies_less_than_the_score_function_through_an_update(n):
    """An inner step on n pulls: the figures of Enumerate, LOO and SF fall in this order."""

    def variance(estimator):
        return sg.verify(problems.bandit(1, n=n).compile({"D1": estimator, "tau": sg.SF()}), BANDIT_THETA)

    found = [variance(estimator).total_variance for estimator in (sg.Enumerate(), sg.SF())]
    assert found[0] < found[1]


def test_two_fair_coins_vary_more():
    """4 m (1 - m) with the mean m of two fair coins: the scores' covariance cancels all that varies in SF and LOO."""

    @sg.graph
    def objective(logit):
        mean = sg.mean(sg.sample("x", Bernoulli, logits=logit, n=2))
        return 4 * mean * (1 - mean)

    def variance(estimator, logit):
        return sg.verify(objective.compile(estimator), torch.tensor(logit, dtype=F64)).total_variance

    # With respect to the logit: those with respect to p are 1/(p(1 - p))**2 = 16 times as large.
    assert variance(sg.Enumerate(), 0.0) == pytest.approx(0.125)
    assert variance(sg.SF(), 0.0) == pytest.approx(0.0, abs=1e-15)
    assert variance(sg.LOO(), 0.0) == pytest.approx(0.0, abs=1e-15)


def test_chunks_of_another_plate():
    compiled = problems.task_bandit(1).compile(sg.Enumerate())
    trace = compiled.sample(BANDIT_THETA, sizes={"task": 6}, generator=torch.Generator().manual_seed(0))
    whole = torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace)
    _, found = sg.accumulate(compiled, BANDIT_THETA, over="task", trace=trace, chunk=2)
    assert torch.allclose(found, whole, atol=1e-14)
    with pytest.raises(sg.CompileError, match=r"cannot be cut into chunks of the plate 'D1'"):
        sg.accumulate(compiled, BANDIT_THETA, over="D1", trace=trace, chunk=1)


def parents_of_children(child):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta)
        return sg.sample("y", *child(x)) ** 2

    return objective


@pytest.mark.parametrize(
    "child",
    [
        lambda x: (Normal, x, 0.2),
        lambda x: (Binomial, 2 * x + 1, torch.tensor(0.5, dtype=F64)),
        lambda x: (Poisson, x + 1.0),
    ],
)
def test_children_that_cannot_be_reused_are_refused(child):
    with pytest.raises(sg.CompileError, match=r"'x' \(axes: none\) feeds sample 'y' .* use SF for 'x'"):
        parents_of_children(child).compile({"x": sg.Enumerate(), "y": sg.SF()})


@pytest.mark.parametrize(
    ("child", "named"),
    [
        (lambda x: (lambda one: Normal(one, 0.2), x), "a Normal"),
        (lambda x: (lambda one: Binomial(2, 0.3 + 0.2 * one), x), "a Binomial"),
        (lambda x: (lambda one: Independent(Normal(one.expand(2), 0.2), 1), x), "a Normal"),
    ],
)
@pytest.mark.parametrize("estimator", [sg.Enumerate(), sg.MVD()], ids=["Enumerate", "MVD"])
def test_children_that_a_function_builds_are_refused_when_they_are_seen(child, named, estimator):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta)
        return sg.apply(torch.sum, sg.sample("y", *child(x)))

    compiled = objective.compile({"x": estimator, "y": sg.SF()})
    theta = torch.tensor(0.3, dtype=F64)
    with pytest.raises(sg.SamplingError, match=rf"'x' .* feeds sample 'y' \(lambda, {named}\) .* use SF"):
        compiled.value_and_grad(theta)
    trace = compiled.sample(theta)
    with pytest.raises(sg.SamplingError, match=named):
        torch.func.grad(compiled.surrogate)(theta, trace)


def test_discrete_children_that_a_function_builds_are_reused():
    graph = parents_of_children(lambda x: (lambda one: Categorical(torch.stack([0.3 + 0.4 * one, 0.7 - 0.4 * one])), x))
    compiled = graph.compile({"x": sg.Enumerate(), "y": sg.SF()})
    assert sg.verify(compiled, torch.tensor(0.3, dtype=F64)).relative_bias < EXACT


def test_children_with_impossible_outcomes_are_refused():
    rows = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=F64)
    graph = parents_of_children(lambda x: (lambda one: Categorical(rows[one.long()]), x))
    compiled = graph.compile({"x": sg.Enumerate(), "y": sg.SF()})
    theta, impossible = torch.tensor(0.3, dtype=F64, requires_grad=True), torch.tensor(1.0, dtype=F64)
    with pytest.raises(sg.SamplingError, match=r"'y' .* which it feeds, has outcomes of probability 0"):
        compiled.surrogate(theta, sg.Trace(draws={"x": impossible, "y": torch.tensor(0)}))


def test_infinite_supports_are_refused():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Poisson, theta.exp(), n=2)) ** 2

    with pytest.raises(sg.CompileError, match=r"'x' \(axes: \(x\)\): Poisson has no finite support; use SF"):
        objective.compile(sg.Enumerate())


def test_infinite_supports_behind_a_function_are_refused():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", lambda t: Normal(t, 1.0), theta, n=2)) ** 2

    with pytest.raises(sg.SamplingError, match=r"'x' .* Normal has no finite support; use SF"):
        objective.compile(sg.Enumerate()).value_and_grad(torch.tensor(0.3, dtype=F64))


def test_too_many_outcomes_are_refused_with_their_number():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        return sg.mean(sg.apply(lambda one: one.sum() ** 2, x))

    with pytest.raises(sg.SamplingError, match=r"2\*\*20 = 1048576 outcomes"):
        objective.compile(sg.Enumerate()).value_and_grad(torch.zeros(20, dtype=F64))
