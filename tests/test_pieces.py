"""What is drawn in pieces of a plate is what is drawn whole; where a piece would need to know others, it is whole."""

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.surrogate.steps import CompiledStep
from stochgraph.tensors import pieces as _pieces
from tests import problems
from tests.problems import BANDIT_THETA, F64
from tests.test_navigation import meta, parameters

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}


@pytest.fixture
def evaluated(monkeypatch):
    """The size of the largest plate of each evaluation of a gradient step: a list that grows."""
    sizes: list[int] = []
    whole = CompiledStep._step

    def noted(self, run, *args):
        sizes.append(max(run.sizes.values()))
        return whole(self, run, *args)

    monkeypatch.setattr(CompiledStep, "_step", noted)
    return sizes


def drawn(compiled: sg.Compiled, *inputs: Any, draws: int, monkeypatch: Any, **options: Any) -> sg.Trace:
    """A trace on a fixed seed, with at most so many draws in a piece."""
    monkeypatch.setitem(_pieces._DRAWS, "cpu", draws)
    return compiled.sample(*inputs, generator=torch.Generator().manual_seed(0), **options)


def assert_equal(one: sg.Trace, other: sg.Trace) -> None:
    for x, y in zip(pytree.tree_leaves(tuple(one)), pytree.tree_leaves(tuple(other)), strict=True):
        torch.testing.assert_close(x, y, **EXACT)


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO(), sg.LSF(control_variate=True), sg.FirstOrder()])
@pytest.mark.parametrize("draws", [1, 30, 60])
def test_navigation(estimator, draws, monkeypatch, evaluated):
    """Seven tasks: in pieces of one, and of a few, the last one being smaller."""
    compiled = meta(2).compile(estimator)
    pieces = drawn(compiled, parameters(), draws=draws, monkeypatch=monkeypatch, sizes={"task": 7})
    count = len(evaluated)
    whole = drawn(compiled, parameters(), draws=10**6, monkeypatch=monkeypatch, sizes={"task": 7})
    assert len(evaluated) - count < count
    assert_equal(pieces, whole)
    gradient = torch.func.grad(compiled.surrogate)
    for x, y in zip(gradient(parameters(), pieces).values(), gradient(parameters(), whole).values(), strict=True):
        torch.testing.assert_close(x, y, **EXACT)


def test_trajectories_of_one_task_are_scored_in_pieces(monkeypatch):
    """There is no task to cut: the plate of the trajectories is."""
    compiled = meta(0).compile(sg.SF())
    sizes = {"task": 1, "tau": 6}
    assert_equal(*(drawn(compiled, parameters(), draws=n, monkeypatch=monkeypatch, sizes=sizes) for n in (7, 10**6)))


def test_distributions(monkeypatch):
    compiled = problems.task_bandit(2).compile(sg.LOO())
    assert_equal(*(drawn(compiled, BANDIT_THETA, draws=n, monkeypatch=monkeypatch) for n in (1, 10**6)))


def test_plates_within_plates(monkeypatch, evaluated):
    """A piece of one group may still be too large: then its tasks are cut."""

    @sg.graph
    def objective(theta):
        group = sg.sample("group", Normal, 0.0, 1.0, n=2)
        task = sg.sample("task", Normal, group, 1.0, n=3)
        x = sg.sample("x", Bernoulli, logits=theta * task, n=4)
        return sg.mean(sg.ascend(theta, sg.mean(x * task, over="x"), 0.3) ** 2)

    compiled, theta = objective.compile(sg.SF()), torch.tensor(0.3, dtype=F64)
    traces = [drawn(compiled, theta, draws=n, monkeypatch=monkeypatch) for n in (4, 10**6)]
    assert_equal(*traces)
    assert evaluated.count(4) >= 6


def test_a_step_on_the_mean_over_tasks_is_taken_whole(monkeypatch, evaluated):
    """Copies for each task, moved by a mean over all of them: a piece would have another mean."""

    @sg.graph
    def objective(theta):
        task = sg.sample("task", Normal, 0.0, 1.0, n=6)
        x = sg.sample("x", Bernoulli, logits=theta * task, n=2)
        own = sg.ascend(theta, sg.mean(x * task, over="x"), 0.3)
        y = sg.sample("y", Bernoulli, logits=own, n=2)
        return sg.mean(sg.ascend(own, sg.mean(y) ** 2, 0.3) ** 2)

    compiled, theta = objective.compile(sg.SF()), torch.tensor(0.3, dtype=F64)
    assert_equal(*(drawn(compiled, theta, draws=n, monkeypatch=monkeypatch) for n in (1, 10**6)))
    assert evaluated == [2] * 6 + [6] + [6, 6]  # the first step for each task, the second one whole; and both whole


def test_pathwise_draws_in_an_update_are_taken_whole(monkeypatch):
    @sg.graph
    def objective(theta):
        task = sg.sample("task", Normal, theta, 1.0, n=6)
        x = sg.sample("x", Normal, theta * task, 1.0, n=2)
        return sg.mean(sg.ascend(theta, sg.mean(x * task, over="x"), 0.3) ** 2)

    compiled, theta = objective.compile(sg.PW()), torch.tensor(0.3, dtype=F64)
    assert_equal(*(drawn(compiled, theta, draws=n, monkeypatch=monkeypatch) for n in (1, 10**6)))


def test_gradients_are_not_cut(monkeypatch, evaluated):
    """What is differentiated is cut into chunks, which have a measure of their own: `tests/test_one_call.py`."""
    monkeypatch.setitem(_pieces._DRAWS, "cpu", 1)
    meta(1).compile(sg.SF()).value_and_grad(parameters(), sizes={"task": 7})
    assert len(evaluated) == 1
