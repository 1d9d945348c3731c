"""How samplers are scored: draw by draw, in batches, stacked; and no oftener than needed."""

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.algorithms.environments import Navigation
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-11}
POLICY = GaussianMLP(2, 2, hidden=(4,), log_std=-0.5)


class Counted(Rollouts):
    """One draw at a time, and how often that is."""

    def __init__(self):
        super().__init__(Navigation(action_scale=0.1), POLICY, horizon=5)
        self.calls = 0

    def log_prob(self, value, *parents):
        self.calls += 1
        return super().log_prob(value, *parents)


class Batched(Counted):
    batched = True


class Stacked(Batched):
    """Written out for several sets of parameters."""

    def log_prob_stacked(self, value, *parents):
        self.calls += 1
        theta = {name: leaf.expand(len(value.reward), *leaf.shape[1:]) for name, leaf in parents[0].items()}
        rows = [
            POLICY.log_prob({name: leaf[i] for name, leaf in theta.items()}, value.observation[i], value.action[i])
            for i in range(len(value.reward))
        ]
        return torch.stack(rows)


def meta(walk, steps=1):
    tasks = walk.environment.declare_tasks
    return adapted_return(walk, lambda: tasks(3), inner_rate=0.3, steps=steps, inner=2, outer=4, discount=0.9)


def theta():
    return POLICY.initial(torch.Generator().manual_seed(0), dtype=F64)


def seed():
    return torch.Generator().manual_seed(1)


def assert_equal(found, expected):
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO(), sg.FirstOrder(), sg.LVC()], ids=str)
@pytest.mark.parametrize("sampler", [Batched, Stacked])
def test_batches_are_scored_as_single_draws(sampler, estimator, tasks):
    plain, batched = (meta(kind(), steps=2).compile(estimator) for kind in (Counted, sampler))
    expected = plain.value_and_grad(theta(), generator=seed(), sizes={"task": tasks})
    assert_equal(batched.value_and_grad(theta(), generator=seed(), sizes={"task": tasks}), expected)
    trace = batched.sample(theta(), generator=seed(), sizes={"task": tasks})
    assert_equal(torch.func.grad(batched.surrogate)(theta(), trace), expected[1])


class Steps(sg.Sampler):
    """Three Gaussian steps around a centre; batched as it stands."""

    time = True

    def __init__(self, batched):
        self.batched = batched

    def draw(self, batch_shape, *parents):
        return parents[0].unsqueeze(-1) + torch.randn(*batch_shape, 3, dtype=F64)

    def log_prob(self, value, *parents):
        return -0.5 * (value - parents[0]) ** 2


@pytest.mark.parametrize("sizes", [{}, {"a": 1}, {"b": 1}, {"c": 1}, {"a": 1, "b": 1}])
def test_parents_may_vary_on_any_plates(sizes):
    """Plates a, b and c; the parent varies on a and b, or on b alone, or on none."""

    def declare(batched):
        @sg.graph
        def objective(centre):
            a = sg.sample("a", torch.distributions.Normal, centre, 1.0, n=2)
            b = sg.sample("b", torch.distributions.Normal, a * centre, 1.0, n=3)
            return sg.mean(sg.sum(sg.sample("c", Steps(batched), b, n=4) ** 2 * a))

        return objective.compile(sg.SF())

    point = torch.tensor(0.7, dtype=F64)
    results = [declare(b).value_and_grad(point, generator=seed(), sizes=sizes) for b in (False, True)]
    assert_equal(results[1], results[0])


@pytest.mark.parametrize(
    ("estimator", "calls"), [(sg.SF(), 3), (sg.LSF(), 3), (sg.SGMRLPublished(), 3), (sg.FirstOrder("cost"), 5)], ids=str
)
def test_scores_that_an_update_has_taken_are_not_taken_again(estimator, calls):
    """Two inner batches and the outer one; a constant direction has no scores to hand over."""
    walk = Counted()
    compiled = meta(walk, steps=2).compile(estimator)
    trace = compiled.sample(theta(), generator=seed())
    walk.calls = 0
    sg.accumulate(compiled, theta(), over="task", trace=trace, chunk=3)
    assert walk.calls == calls


def test_sampling_takes_each_score_once():
    walk = Counted()
    meta(walk, steps=2).compile(sg.SF()).sample(theta(), generator=seed())
    assert walk.calls == 3


def test_second_derivatives_through_shared_scores():
    """By reverse mode twice, where scores are shared, and by transforms, where they are not."""
    compiled = meta(Counted()).compile(sg.SF())
    trace = compiled.sample(theta(), generator=seed())
    full = theta()
    start = full["log_std"]

    def value(log_std):
        return compiled.surrogate({**full, "log_std": log_std}, trace)

    by_autograd = torch.autograd.functional.hessian(value, start)
    torch.testing.assert_close(by_autograd, torch.func.hessian(value)(start), **EXACT)
