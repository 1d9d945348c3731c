"""Tasks drawn pathwise from the meta-parameters, and parameters adapted to each of them: values carry all there is.

A pathwise graph is an ordinary function of its noise, so two things are known of every one of these: the difference
quotient of the objective on the same noise, and the derivative worked out by hand for one of them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Laplace, LogNormal, MultivariateNormal, Normal

import stochgraph as sg
from tests.problems import F64

THETA = torch.tensor([0.3, -0.2], dtype=F64)
STEP = 1e-5  # of the difference quotients: their error is of the order of its square, and of 1e-16 / STEP


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def to_task(theta: Any, task: Any) -> Any:
    """One step towards each task, all of the parameters."""
    return sg.ascend(theta, -((theta - task) ** 2).sum(), 0.1)


def outcome(theta: Any, task: Any, dist: Any = Normal) -> Any:
    y = sg.sample("y", dist, theta[1], 1.0, n=2)
    return sg.mean((y - task) ** 2)


def one_step(theta: Any) -> Any:
    task = sg.sample("task", Normal, theta[0], 1.0, n=3)
    return outcome(to_task(theta, task), task)


def own_data(theta: Any) -> Any:
    """Two steps, on data of the adapted parameters and of the task."""
    task = sg.sample("task", Normal, theta[0], 1.0, n=3)
    theta = to_task(theta, task)
    x = sg.sample("x", Normal, theta[1] + task, 1.0, n=4)
    theta = sg.ascend(theta, -sg.mean((x - theta[1] * task) ** 2, over="x"), 0.1)
    return outcome(theta, task)


def step_sizes(theta: Any) -> Any:
    task = sg.sample("task", Normal, theta[0], torch.exp(theta[1]), n=3)
    return outcome(sg.ascend(theta, -((theta - task) ** 2).sum(), torch.exp(theta)), task)


def groups(theta: Any) -> Any:
    """Tasks within groups, and a copy of the parameters for each."""
    group = sg.sample("group", Normal, theta[0], 1.0, n=2)
    task = sg.sample("task", Normal, theta[0] * group, 1.0, n=3)
    return outcome(to_task(theta, task), task)


def after_a_shared_step(theta: Any) -> Any:
    """The parameters that tasks are drawn from are adapted ones."""
    x = sg.sample("x", Normal, theta[0], 1.0, n=4)
    theta = sg.ascend(theta, -sg.mean(((theta - x) ** 2).sum()), 0.1)
    task = sg.sample("task", Normal, theta[1], 1.0, n=3)
    return outcome(to_task(theta, task), task)


def a_step_in_a_step(theta: Any) -> Any:
    task = sg.sample("task", Normal, theta[0], 1.0, n=3)
    inner = to_task(theta, task)
    return outcome(sg.ascend(theta, -((inner - task) ** 2).sum(), 0.1), task)


def over_the_tasks(theta: Any) -> Any:
    """A copy for each group: in its own step the plate of tasks is averaged."""
    group = sg.sample("group", Normal, theta[0], 1.0, n=2)
    task = sg.sample("task", Normal, theta[1], 1.0, n=3)
    theta = sg.ascend(theta, -sg.mean(((theta - task * group) ** 2).sum(), over="task"), 0.1)
    return outcome(theta, group)


def vectors(theta: Any) -> Any:
    task = sg.sample("task", lambda m: MultivariateNormal(m, torch.eye(2, dtype=F64)), theta, n=3)
    theta = to_task(theta, task)
    y = sg.sample("y", Normal, theta, 1.0, n=2)
    return sg.mean(((y - task) ** 2).sum())


def other_noise(theta: Any) -> Any:
    task = sg.sample("task", LogNormal, theta[0], 0.5, n=3)
    return outcome(to_task(theta, task), task, Laplace)


GRAPHS: list[Callable[[Any], Any]] = [
    one_step,
    own_data,
    step_sizes,
    groups,
    after_a_shared_step,
    a_step_in_a_step,
    over_the_tasks,
    vectors,
    other_noise,
]


@pytest.mark.parametrize("declare", GRAPHS, ids=lambda declare: declare.__name__)
def test_difference_quotients_on_the_same_noise(declare):
    compiled = sg.graph(declare).compile(sg.PW())
    trace = compiled.sample(THETA, generator=seed())
    ends = [
        [compiled.sample(THETA + sign * e, generator=seed()).value for sign in (1, -1)] for e in STEP * torch.eye(2)
    ]
    expected = torch.stack([(above - below) / (2 * STEP) for above, below in ends])
    found = [torch.func.grad(compiled.surrogate)(THETA, trace), compiled.value_and_grad(THETA, generator=seed())[1]]
    for gradient in found:
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(compiled.surrogate(THETA, trace), trace.value, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("others", [sg.PW(), sg.SF(), sg.LSF()], ids=str)
def test_by_hand(others):
    """After a step to a task the parameters are .8 theta + .2 task; the task moves with the first of them."""
    compiled = sg.graph(one_step).compile({"task": sg.PW(), "y": others})
    trace = compiled.sample(THETA, generator=seed())
    task, y = trace.draws["task"], trace.draws["y"]

    def by_hand(theta):
        moved = task + theta[0] - THETA[0]
        mean, before = (0.8 * theta[1] + 0.2 * moved)[:, None], (0.8 * THETA[1] + 0.2 * task)[:, None]
        if others == sg.PW():
            return ((y + mean - before - moved[:, None]) ** 2).mean()
        cost = (y - moved[:, None]) ** 2
        return (cost + cost.detach() * Normal(mean, 1.0).log_prob(y)).mean()

    expected = torch.func.grad(by_hand)(THETA)
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(THETA, trace), expected, rtol=0.0, atol=1e-12)
