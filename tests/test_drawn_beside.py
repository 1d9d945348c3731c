"""What is drawn beside a sample, on graphs where boxes and what is added to them are easily misplaced."""

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli

import stochgraph as sg
from tests.problems import LATENT_THETA

EXACT = 1e-12


def coins(name: str, logit: Any, n: int = 2) -> Any:
    return sg.sample(name, Bernoulli, logits=logit, n=n)


def large_constant(t):
    x = coins("x", t[0])
    return sg.mean((x + 300) * sg.stop(sg.mean(x)))


def meeting_all_draws(t):
    x = coins("x", t[0])
    return sg.mean(torch.exp(x + sg.mean(x)))


def two_steps(t):
    """Costs after each of two updates, constants and parameters among the summands."""
    first = sg.ascend(t, sg.mean(coins("x", t[0]) * t[1]), 0.5)
    y = coins("y", first[0])
    second = sg.ascend(first, sg.mean(y * y * first[2] + y), 0.5)
    return 300 + (second**2).sum() + (first**3).sum() - t[1]


def children_of_a_plate(t):
    x = coins("x", t[0])
    y = sg.sample("y", lambda x, t: Bernoulli(logits=t[1] * x + t[2]), x, t, n=2)
    return sg.mean(sg.mean(y, over="y") ** 2 * (x + 1)) + sg.mean(x) ** 2


def data_used_twice(t):
    x = coins("x", t[0])
    adapted = sg.ascend(t, sg.mean((x - 0.3) ** 2 * t[1]), 0.5)
    return sg.mean(x * adapted[0]) + (adapted**2).sum()


def largest(t):
    return sg.reduce(lambda v: v.max(0).values, coins("x", t[0], 3) + 0.1) * t[1]


def two_plates(t):
    x, y = coins("x", t[0]), coins("y", t[1])
    return sg.mean(x) * sg.mean(y) + torch.sin(sg.mean(x) + sg.mean(y)) * t[2]


def costs_in_a_dict(t):
    x = coins("x", t[0])
    y = sg.sample("y", lambda x, t: Bernoulli(logits=t[1] * x), x, t)
    both = sg.apply(lambda x, y: {"product": x * y, "sum": x + y}, x, y)
    return sg.mean(both["product"]) + torch.exp(sg.mean(x * both["sum"]))


GRAPHS = [
    large_constant,
    meeting_all_draws,
    two_steps,
    children_of_a_plate,
    data_used_twice,
    largest,
    two_plates,
    costs_in_a_dict,
]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("estimator", [sg.DisARM(), sg.Enumerate(top=1)], ids=str)
@pytest.mark.parametrize("graph", GRAPHS)
def test_finite_draws_beside(graph, estimator, order):
    found = sg.verify(sg.graph(graph).compile(estimator), LATENT_THETA, order=order)
    assert found.relative_bias < EXACT


@pytest.mark.parametrize("graph", [graph for graph in GRAPHS if graph not in (large_constant, largest)])
def test_noise_of_relaxed_draws(graph):
    """Of a stop and a maximum there is no relaxation. Four nodes a number leave errors below the change from two."""
    declared = sg.graph(graph)
    chosen = {s: sg.REBAR(1.0) if i == 0 else sg.SF() for i, s in enumerate(declared.samples)}
    found = sg.verify(declared.compile(chosen), LATENT_THETA, quadrature=4)
    assert found.quadrature is not None
    assert found.relative_bias < min(1e-7, found.quadrature.change)
