"""Pathwise draws below a draw that an estimator replaces: they follow what it is replaced with."""

import pytest
import torch
from torch.distributions import Bernoulli, Gamma, Normal

import stochgraph as sg

F64 = torch.float64
THETA = torch.tensor([0.3, -0.4], dtype=F64)
REPLACING = {
    "Enumerate": (sg.Enumerate(), 1e-12),
    "shortlist": (sg.Enumerate(top=1), 1e-12),
    "DisARM": (sg.DisARM(), 1e-12),
    "MVD": (sg.MVD(), 1e-12),
    "REBAR": (sg.REBAR(), 1e-6),  # of the quadrature
}


@sg.graph
def child(theta):
    """A normal draw whose mean is a coin's."""
    x = sg.sample("x", Bernoulli, logits=theta[0], n=2)
    return sg.mean(sg.sample("y", Normal, x * theta[1], 1.0)) ** 2


@sg.graph
def built(theta):
    """The same, its distribution built by a function."""
    x = sg.sample("x", Bernoulli, logits=theta[0], n=2)
    return sg.mean(sg.sample("y", lambda x, t: Normal(x * t, 1.0), x, theta[1])) ** 2


@sg.graph
def grandchild(theta):
    """A scored normal draw whose mean is a pathwise one."""
    x = sg.sample("x", Bernoulli, logits=theta[0])
    y = sg.sample("y", Normal, x * theta[1], 1.0)
    return sg.sample("z", Normal, y, 1.0) ** 2


@sg.graph
def gamma(theta):
    """A draw whose noise depends on the coin."""
    x = sg.sample("x", Bernoulli, logits=theta[0])
    return sg.sample("y", Gamma, 1.0 + x, torch.exp(theta[1]))


@pytest.mark.parametrize("graph", [child, built], ids=["child", "built"])
@pytest.mark.parametrize("name", REPLACING)
def test_they_are_moved_with_the_draw_that_is_replaced(graph, name) -> None:
    estimator, tolerance = REPLACING[name]
    compiled = graph.compile({"x": estimator, "y": sg.PW()})
    assert compiled.explain().unbiased
    assert sg.verify(compiled, THETA, quadrature=6).relative_bias < tolerance


def test_scored_draws_below_them_are_refused_as_direct_children_are() -> None:
    with pytest.raises(sg.CompileError, match=r"'x' .* feeds sample 'z' \(Normal\) directly.* or PW for 'z'"):
        grandchild.compile({"x": sg.Enumerate(), "y": sg.PW(), "z": sg.SF()})
    compiled = grandchild.compile({"x": sg.Enumerate(), "y": sg.PW(), "z": sg.PW()})
    assert sg.verify(compiled, THETA, quadrature=6).relative_bias < 1e-12


def test_draws_whose_noise_depends_on_it_are_refused_without_advice_that_fails() -> None:
    with pytest.raises(sg.CompileError, match=r"use SF for 'x'$"):
        gamma.compile({"x": sg.Enumerate(), "y": sg.PW()})
