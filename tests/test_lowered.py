"""Flat programs give the bits of the interpreter, in every graph of the tests under every estimator."""

from functools import partial
from typing import Any

import pytest
import torch

import stochgraph as sg
from stochgraph.lower.recording import record
from stochgraph.run.lowered import same_bits
from tests.golden import ESTIMATORS
from tests.problems import F64, GRAPHS

NOT_DRAWN = "a plate of one"  # a baseline that leaves one draw out, of one: the interpreter refuses as well
CHOSEN = {name: estimator for name, estimator in ESTIMATORS.items() if estimator is not None}
# How many estimators fit each graph and can estimate there: all of these are lowered. Their sampler not saying
# traceable = True, the draws of the MDPs are made apart.
LOWERED = {
    "additive": 15,
    "bandit, 1 step": 13,
    "bandit, 2 steps": 13,
    "bandit, 3 steps": 13,
    "two tasks, 1 step": 17,
    "MDP, horizon 2": 15,
    "MDP, horizon 2, sampled outcome": 13,
    "MDP, horizon 3": 15,
    "MDP, whole trajectories": 15,
    "chain": 15,
    "fork": 14,
    "centered": 14,
    "extreme": 7,
    "regularized": 15,
    "nonlinear inner objective": 14,
    "reused data": 15,
    "nested update": 13,
    "implicit update": 15,
}


def compiled(graph: str, estimator: Any, lowering: str = "never") -> sg.Compiled | None:
    """The graph under the estimator; `None` where the two do not fit."""
    try:
        return GRAPHS[graph][0]().compile(estimator, lowering=lowering)
    except sg.CompileError:
        return None


def seed(number: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def shifted(theta: torch.Tensor) -> torch.Tensor:
    return theta + 0.1 * torch.cos(torch.arange(theta.numel(), dtype=F64)).reshape(theta.shape)


def is_refused(compiled: sg.Compiled, theta: torch.Tensor) -> bool:
    """Whether the interpreter cannot estimate there either."""
    try:
        compiled.value_and_grad(theta)
    except sg.SamplingError as error:
        return NOT_DRAWN in str(error)
    return False


def same(found, expected) -> bool:
    return same_bits((found[0], [found[1]]), (expected[0], [expected[1]]))


@pytest.mark.parametrize("graph", GRAPHS)
def test_estimates_have_the_same_bits(graph):
    """Values, gradients and where the generator ends, on several seeds; no call falls back to the interpreter."""
    theta, counted = GRAPHS[graph][1], 0
    for estimator in CHOSEN.values():
        one, other = compiled(graph, estimator), compiled(graph, estimator, "flat")
        if one is None or other is None or is_refused(one, theta):
            continue
        for number in range(7):
            left, right = seed(number), seed(number)
            at = theta + 0.05 * number
            expected, found = one.value_and_grad(at, generator=left), other.value_and_grad(at, generator=right)
            assert same(found, expected)
            assert torch.equal(left.get_state(), right.get_state())
        assert other._lowering is not None
        (entry,) = (entry for entry in other._lowering._entries.values() if entry.program is not None)
        assert (entry.agreed, entry.hit, entry.missed, entry.refusal) == (2, 5, 0, None)
        counted += 1
    assert counted == LOWERED[graph]


@pytest.mark.parametrize("graph", GRAPHS)
def test_gradients_at_a_trace_have_the_same_bits(graph):
    """At the parameters that drew it and away from them, and on a trace that it was not lowered with."""
    theta, counted = GRAPHS[graph][1], 0
    for estimator in CHOSEN.values():
        one = compiled(graph, estimator)
        if one is None or is_refused(one, theta):
            continue
        traces = [one.sample(theta, generator=seed(number)) for number in range(2)]
        lowered = one.lower(theta, trace=traces[0])
        for trace in traces:
            for at in (theta, shifted(theta)):
                point = one._inputs.point("test", (at,))
                try:
                    value, gradient = one._estimates.at(point, trace)
                except sg.SolverError:  # the closed form holds where it was drawn alone: both refuse
                    with pytest.raises(sg.SolverError):
                        lowered.grad(at, trace)
                    continue
                assert same((lowered.surrogate(at, trace), lowered.grad(at, trace)), (value, gradient[0]))
        counted += 1
    assert counted == LOWERED[graph]


# Not of the implicit update: the interpreter itself has no second derivative of some estimators there by
# torch.autograd.grad, and refuses others away from the draws.
@pytest.mark.parametrize("graph", [name for name in GRAPHS if name != "implicit update"])
def test_second_derivatives_have_the_same_bits(graph):
    """A row of the Hessian of the surrogate, recorded as it is and replayed at other parameters."""
    theta, counted = GRAPHS[graph][1], 0
    for estimator in CHOSEN.values():
        one = compiled(graph, estimator)
        if one is None or is_refused(one, theta):
            continue
        trace = one.sample(theta, generator=seed())

        def row(at: torch.Tensor, one: sg.Compiled = one, trace: Any = trace) -> list[torch.Tensor]:
            loss = one.surrogate(at, trace)
            (first,) = torch.autograd.grad(loss, at, create_graph=True, allow_unused=True, materialize_grads=True)
            if not first.requires_grad:
                return [first.detach()]
            second = torch.autograd.grad(first.sum(), at, allow_unused=True, materialize_grads=True)
            return [first.detach(), *second]

        def leaf(at: torch.Tensor) -> torch.Tensor:
            return at.detach().clone().requires_grad_()

        start = leaf(theta)
        row(start)
        flat = record(partial(row, start), [start]).flat
        for at in (theta, shifted(theta)):
            found, expected = flat([at]), row(leaf(at))
            assert found is not None
            assert same_bits((found[0], found[1:]), (expected[0], expected[1:]))
        counted += 1
    assert counted == LOWERED[graph]
