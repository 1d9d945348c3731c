"""What is added to a cost changes no variance: graphs x estimators x ways to write it, all by enumeration."""

import functools
import random
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Categorical

import stochgraph as sg
from stochgraph.estimators.baselines import leave_one_out_fit, observation_features
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, MDP_THETA
from tests.test_baselines import ObservedMDP

SCALAR = torch.tensor(0.3, dtype=F64)
SAME = 1e-10

# A number, a constant node, or something whose gradient is the same whatever is drawn.
SPELLINGS = {
    "a number": lambda cost, theta: cost + 300,
    "from the left": lambda cost, theta: 300.0 + cost,
    "subtracted": lambda cost, theta: cost - 300,
    "subtracted from": lambda cost, theta: -(300 - cost),
    "torch.add": lambda cost, theta: torch.add(cost, 300.0),
    "torch.sub": lambda cost, theta: torch.sub(cost, 300.0),
    "a method": lambda cost, theta: cost.add(300.0),
    "a tensor": lambda cost, theta: cost + torch.tensor(300.0, dtype=F64),
    "a node": lambda cost, theta: cost + sg.apply(lambda t: 300.0 + 0.0 * t.sum(), theta),
    "a stopped node": lambda cost, theta: cost + sg.stop(sg.apply(lambda t: 300.0 * t.sum().exp(), theta)),
    "a regulariser": lambda cost, theta: cost - sg.apply(lambda t: 300.0 * (t**2).sum(), theta),
    "first in a list": lambda cost, theta: sum([300.0, cost]),
    "last of many": lambda cost, theta: sum([cost, *[50.0] * 6]),
    "in a scaled sum": lambda cost, theta: 2.0 * ((cost + 600.0) / 2.0),
    "inside a negation": lambda cost, theta: -(-cost - 300.0),
    "twice": lambda cost, theta: (cost + 100) - (0.5 - 200),
}


def plain(cost, theta):
    return cost


def per_draw(add):
    @sg.graph
    def objective(theta):
        return sg.mean(add(sg.sample("x", Bernoulli, logits=theta, n=4), theta))

    return objective


def after_the_mean(add):
    @sg.graph
    def objective(theta):
        return add(sg.mean(sg.sample("x", Bernoulli, logits=theta, n=4)), theta)

    return objective


def summed_plate(add):
    @sg.graph
    def objective(theta):
        return sg.sum(add(sg.sample("x", Bernoulli, logits=theta, n=4), theta), over="x")

    return objective


def squared_mean(add):
    @sg.graph
    def objective(theta):
        return add(sg.mean(sg.sample("x", Bernoulli, logits=theta, n=4)) ** 2, theta)

    return objective


def nested_plates(add):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        y = sg.sample("y", Bernoulli, logits=theta - x, n=2)
        return sg.mean(add(x * y - 0.3 * y, theta))

    return objective


def nested_and_squared(add):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        y = sg.sample("y", Bernoulli, logits=theta - x, n=2)
        return sg.mean(add((x - sg.mean(y, over="y")) ** 2, theta))

    return objective


def rewards(add):
    @sg.graph
    def objective(theta):
        reward = sg.sample("D", ObservedMDP(2), theta, n=3).reward
        return sg.mean(sg.sum(add(reward, theta), discount=0.9))

    return objective


def returns(add):
    @sg.graph
    def objective(theta):
        reward = sg.sample("D", ObservedMDP(2), theta, n=3).reward
        return sg.mean(add(sg.sum(reward, discount=0.9), theta))

    return objective


def behind_an_update(add):
    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", Categorical, logits=theta, n=2)
        adapted = sg.ascend(theta, sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), 0.7)
        last = sg.sample("tau", Categorical, logits=adapted, n=2)
        return sg.mean(add(sg.apply(lambda a: BANDIT_REWARD[a], last), theta))

    return objective


def values_after_two_steps(add):
    @sg.graph
    def objective(theta):
        steps = [theta]
        for name in ("D1", "D2"):
            pulls = sg.sample(name, Bernoulli, logits=steps[-1], n=2)
            steps.append(sg.ascend(steps[-1], sg.mean(pulls), 0.7))
        return add(torch.sin(steps[2]), theta) + torch.exp(steps[1])

    return objective


LSF = {"lsf": sg.LSF(control_variate=True)}
MEANS = {"loo": sg.SF(baseline="loo"), "mean": sg.SF(baseline="mean"), **LSF}
REWARDS = {**MEANS, "linear": sg.SF(baseline="linear"), "loaded": sg.LoadedDiCE(0.5, "linear")}
NONLINEAR = {"LOO": sg.LOO(), **LSF}
NESTED = {"mixed": {"x": sg.SF(baseline="loo"), "y": sg.SF(baseline="mean")}}
PAIRS = {
    "LOO and loo": {"D": sg.LOO(), "tau": sg.SF(baseline="loo")},
    "LSF and mean": {"D": sg.LSF(control_variate=True), "tau": sg.SF(baseline="mean")},
}

TABLE: dict[str, tuple[Any, torch.Tensor, dict[str, Any]]] = {
    "per draw": (per_draw, SCALAR, {**MEANS, "loaded": sg.LoadedDiCE(1.0, "loo")}),
    "after the mean": (after_the_mean, SCALAR, MEANS),
    "summed plate": (summed_plate, SCALAR, MEANS),
    "squared mean": (squared_mean, SCALAR, NONLINEAR),
    "nested plates": (nested_plates, SCALAR, NESTED),
    "nested and squared": (nested_and_squared, SCALAR, {"LOO": {"x": sg.SF(baseline="loo"), "y": sg.LOO()}}),
    "rewards": (rewards, MDP_THETA, REWARDS),
    "returns": (returns, MDP_THETA, MEANS),
    "behind an update": (behind_an_update, BANDIT_THETA, PAIRS),
    "after two steps": (values_after_two_steps, SCALAR, NONLINEAR),
}
CASES = [(graph, name, spelling) for graph in TABLE for name in TABLE[graph][2] for spelling in SPELLINGS]


@pytest.mark.parametrize(("graph", "name", "spelling"), CASES)
def test_a_constant_changes_no_variance(graph, name, spelling):
    make, theta, estimators = TABLE[graph]
    without, added = (sg.verify(make(add).compile(estimators[name]), theta) for add in (plain, SPELLINGS[spelling]))
    assert added.total_variance == pytest.approx(without.total_variance, rel=SAME)


def two_terms(f, g):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        y = sg.sample("y", Bernoulli, logits=-2.0 * theta, n=3)
        return f(x, y) + g(x, y)

    return objective


TERMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "of two means": (lambda x, y: sg.mean(x), lambda x, y: 40.0 * sg.mean(y), MEANS),
    "of two squares": (lambda x, y: sg.mean(x) ** 2, lambda x, y: 40.0 * sg.mean(y) ** 2, NONLINEAR),
    "of a square and a mean": (lambda x, y: sg.mean(x) ** 2, lambda x, y: 40.0 * sg.mean(y), NONLINEAR),
}


@pytest.mark.parametrize(("terms", "name"), [(terms, name) for terms in TERMS for name in TERMS[terms][2]])
def test_terms_of_independent_draws_have_the_sum_of_their_variances(terms, name):
    """What one draw costs has no part in the control variate of another."""
    f, g, estimators = TERMS[terms]
    theta, estimator = SCALAR, estimators[name]
    both = sg.verify(two_terms(f, g).compile(estimator), theta).total_variance

    @sg.graph
    def first(theta):
        return f(sg.sample("x", Bernoulli, logits=theta, n=3), None)

    @sg.graph
    def second(theta):
        return g(None, sg.sample("y", Bernoulli, logits=-2.0 * theta, n=3))

    apart = sum(sg.verify(graph.compile(estimator), theta).total_variance for graph in (first, second))
    assert both == pytest.approx(apart, rel=SAME)


@pytest.mark.parametrize("name", ["loo", "mean", "lsf"])
def test_another_draws_cost_in_the_same_sum(name):
    """`mean(x + 40 * y)` over both plates: each draw is compared with the others' own costs."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        y = sg.sample("y", Bernoulli, logits=-2.0 * theta, n=3)
        return sg.mean(x + 40.0 * y)

    f, g, _ = TERMS["of two means"]
    found, terms = (sg.verify(graph.compile(MEANS[name]), SCALAR) for graph in (objective, two_terms(f, g)))
    assert found.total_variance == pytest.approx(terms.total_variance, rel=SAME)
    assert found.relative_bias < 1e-12


def test_values_after_two_steps_are_compared_apart():
    """Replays of the first step have the control variates of the second, on what its draws reach and no more."""

    @sg.graph
    def objective(theta):
        steps = [theta]
        for name in ("D1", "D2"):
            pulls = sg.sample(name, Bernoulli, logits=steps[-1], n=2)
            steps.append(sg.ascend(steps[-1], sg.mean(pulls), 0.7))
        return torch.sin(steps[2]) + torch.exp(steps[1])

    compiled = objective.compile(sg.LOO())
    few, many = (sg.verify(compiled, SCALAR, sizes={"D1": n, "D2": n}) for n in (2, 4))
    assert few.relative_bias < 1e-12
    assert many.relative_bias < 1e-12
    assert many.total_variance < 0.35 * few.total_variance  # 1/N of it, and better


CRITICS = {
    "number": lambda trace: 299.6,
    "of the draw's own": lambda trace: torch.tensor([0.5, 301.0, 299.0], dtype=F64),
}
WORLD = torch.tensor([300.0, 299.0, 301.0], dtype=F64)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("estimator", ["SF", "loaded"])
def test_a_function_predicts_the_whole_sum(critic, order, estimator):
    """Written with operators or in one function: the same estimate for every draw, not only in the mean."""
    baseline = CRITICS[critic]
    chosen = sg.SF(baseline=baseline) if estimator == "SF" else sg.LoadedDiCE(1.0, baseline)

    @sg.graph
    def apart(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.mean(2.0 * (x * theta + sg.apply(lambda t: WORLD[0] * t, theta) - 0.5))

    @sg.graph
    def together(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.mean(sg.apply(lambda x, t: 2.0 * (x * t + WORLD[0] * t - 0.5), x, theta))

    found, expected = (graph.compile(chosen) for graph in (apart, together))
    for seed in range(3):
        trace = found.sample(SCALAR, generator=torch.Generator().manual_seed(seed))
        derivatives = []
        for compiled in (found, expected):
            derivative = torch.func.grad(compiled.surrogate)
            derivatives.append(float((torch.func.grad(derivative) if order == 2 else derivative)(SCALAR - 0.1, trace)))
        assert derivatives[0] == pytest.approx(derivatives[1], rel=1e-12)
    assert sg.verify(found, SCALAR, order=order).relative_bias < 1e-12 or order == 2


def test_a_critic_that_ignores_a_constant_is_punished():
    def objective(shift, critic):
        @sg.graph
        def graph(theta):
            return sg.mean(sg.sample("x", Bernoulli, logits=theta, n=4) + shift)

        return sg.verify(graph.compile(sg.SF(baseline=lambda trace: critic)), SCALAR).total_variance

    assert objective(300.0, 300.57) == pytest.approx(objective(0.0, 0.57), rel=SAME)
    assert objective(300.0, 0.57) > 1e5 * objective(0.0, 0.57)


def test_a_discounted_cost_is_predicted_undiscounted():
    """Behind a discounted sum a function predicts the cost of a step, and the sum discounts both."""

    def objective(baseline):
        @sg.graph
        def graph(theta):
            reward = sg.sample("D", ObservedMDP(2), theta, n=3).reward
            return sg.mean(sg.sum(reward + 300.0, discount=0.9))

        return sg.verify(graph.compile(sg.SF(baseline=baseline)), MDP_THETA)

    plain = torch.tensor([300.6, 300.3], dtype=F64)  # of a step's own and later costs, seen from that step
    to_go = torch.tensor([plain[0] + 0.9 * plain[1], plain[1]], dtype=F64)
    assert objective(lambda trace: to_go.expand(3, 2)).total_variance < 0.2 * objective(None).total_variance


def test_the_linear_baseline_predicts_a_constant_exactly():
    """Its intercept is not penalised: what is added to every return is added to every prediction."""
    generator = torch.Generator().manual_seed(0)
    features = observation_features(torch.randn(5, 4, 2, generator=generator, dtype=F64), 2)
    targets = torch.randn(5, 4, generator=generator, dtype=F64)
    found, raised = leave_one_out_fit(features, targets), leave_one_out_fit(features, targets + 300.0)
    assert (raised - found - 300.0).abs().max() < 1e-8
    masked = leave_one_out_fit(features * torch.tensor([1.0, 0, 0, 0, 0], dtype=F64)[:, None, None], targets)
    assert masked[0].abs().max() == 0.0  # no other trajectory has a step to fit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["loo", "mean", "lsf"])
def test_half_precision_has_means_whose_sums_overflow(dtype, name):
    """Four costs of 3e4: their sum is no number of half precision, and their comparison is 0."""

    @sg.graph
    def objective(theta):
        return sg.mean(3e4 * sg.sample("x", Bernoulli, logits=theta, n=4))

    compiled = objective.compile(MEANS[name])
    for drawn in ([1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]):
        found = []
        for kind in (dtype, F64):
            draws, theta = torch.tensor(drawn, dtype=kind), torch.tensor(0.25, dtype=kind)
            trace = sg.Trace(theta, {"x": draws}, {"x": Bernoulli(logits=theta).log_prob(draws)}, {})
            found.append(float(torch.func.grad(compiled.surrogate)(theta, trace)))
        assert found[0] == pytest.approx(found[1], abs=3e4 * torch.finfo(dtype).eps)


def random_cost(generator, leaves, depth):
    """A random expression of the leaves."""
    if depth == 0:
        return generator.choice(leaves)()
    one, other = (random_cost(generator, leaves, depth - 1) for _ in range(2))
    make = generator.choice(
        [
            lambda: one + other,
            lambda: one - other,
            lambda: one * other,
            lambda: torch.sin(one) + other,
            lambda: one * 0.5,
        ]
    )
    return make()


def random_objective(seed, shift):
    """A random cost of two plates, of their means and of theta; then a random nonlinear function beside it."""

    @sg.graph
    def objective(theta):
        generator = random.Random(seed)
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        y = sg.sample("y", Bernoulli, logits=theta - x if seed % 2 else -theta, n=2)
        leaves = [lambda: sg.mean(x), lambda: sg.mean(y), lambda: theta, lambda: 0.7 * sg.mean(x * y)]
        cost = random_cost(generator, leaves, 2) * 0.8 + sg.mean(x)
        return (cost + shift if generator.random() < 0.5 else shift + cost) + torch.exp(sg.mean(y))

    return objective


@pytest.mark.parametrize("seed", range(24))
def test_random_costs(seed):
    """Unbiased at two orders, and as variable with a constant as without."""
    for estimator in (sg.LOO(), {"x": sg.LOO(), "y": sg.SF(baseline=lambda trace: 0.4)}):
        plain_cost, shifted = (random_objective(seed, shift).compile(estimator) for shift in (0.0, 300.0))
        for order in (1, 2):
            assert sg.verify(shifted, SCALAR, order=order).relative_bias < 1e-9
        if not isinstance(estimator, dict):
            found, expected = (sg.verify(compiled, SCALAR).total_variance for compiled in (shifted, plain_cost))
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-20)


def test_a_summand_with_more_axes_is_left_aside():
    """A draw that is added to every reward of a trajectory counts once for each of its time steps."""

    def objective(chosen):
        @sg.graph
        def graph(theta):
            x = sg.sample("x", Bernoulli, logits=theta[0, 0], n=3)
            reward = sg.sample("D", ObservedMDP(2), theta, n=2).reward
            return chosen(x, reward)

        return graph

    def total(cost):
        return sg.mean(sg.sum(cost))

    both = objective(lambda x, reward: total(x + 0.0 * reward) ** 2 + total(x - reward))
    estimators = {"x": sg.SF(baseline=lambda trace: 0.3), "D": sg.SF(baseline="loo")}
    linear = objective(lambda x, reward: total(x - reward))
    apart = objective(lambda x, reward: 2.0 * sg.mean(x) - total(reward))
    found, expected = (
        sg.verify(graph.compile(sg.SF(baseline="loo")), MDP_THETA, sizes={"x": 2}) for graph in (linear, apart)
    )
    assert found.relative_bias < 1e-12
    assert found.total_variance == pytest.approx(expected.total_variance, rel=SAME)
    critic = linear.compile(estimators)
    assert sg.verify(critic, MDP_THETA, sizes={"x": 2}).relative_bias < 1e-12
    assert "- 0" not in critic.explain().latex
    assert sg.verify(both.compile(sg.LOO()), MDP_THETA, sizes={"x": 2}).relative_bias < 1e-12


EVERYWHERE = {**MEANS, "LOO": sg.LOO(), "linear": sg.SF(baseline="linear")}


def with_three_hundred(fn):
    """The declaration, with a number added to its objective."""

    @functools.wraps(fn)
    def added(*inputs):
        return fn(*inputs) + 300.0

    return added


def variance_of(make, theta, estimator):
    """The total variance, or the refusal."""
    try:
        return sg.verify(make().compile(estimator), theta).total_variance
    except (sg.CompileError, sg.SamplingError) as error:
        return type(error)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("graph", problems.GRAPHS)
def test_the_graphs_of_all_tests(graph, name, monkeypatch):
    """Every one of them is as variable with a number added to its objective, or is refused all the same."""
    make, theta = problems.GRAPHS[graph]
    without = variance_of(make, theta, EVERYWHERE[name])
    declare = sg.graph
    monkeypatch.setattr(sg, "graph", lambda fn: declare(with_three_hundred(fn)))
    added = variance_of(make, theta, EVERYWHERE[name])
    if isinstance(without, type):
        assert added is without
    else:
        assert added == pytest.approx(without, rel=1e-9)
