"""Measure-valued derivatives: exact by enumeration and by quadrature, right through jumps, of first order only."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Exponential, Gamma, Independent, Normal, Poisson

import stochgraph as sg
from tests.problems import BANDIT_REWARD, F64, GRAPHS

EXACT = 1e-12
THETA = torch.tensor([0.4, 1.3], dtype=F64)


@pytest.mark.parametrize("name", GRAPHS)
def test_it_is_unbiased(name):
    make, theta = GRAPHS[name]
    assert sg.verify(make().compile(sg.MVD()), theta).relative_bias < EXACT


@pytest.mark.parametrize("name", ["additive", "bandit, 2 steps", "chain", "fork", "reused data"])
def test_it_is_unbiased_at_other_parameters(name):
    make, theta = GRAPHS[name]
    there = theta + 0.3 * torch.cos(torch.arange(theta.numel(), dtype=F64)).reshape(theta.shape)
    compiled = make().compile(sg.MVD())
    found = sg.verify(compiled, theta, surrogate=lambda t, trace: compiled.surrogate(t - theta + there, trace))
    truth = sg.verify(compiled, there).truth
    assert (found.expectation - truth).norm() < EXACT * truth.norm()


@pytest.mark.parametrize("beside", [sg.LOO(), sg.SF(), sg.Enumerate()], ids=["LOO", "SF", "Enumerate"])
@pytest.mark.parametrize("name", ["bandit, 2 steps", "two tasks, 1 step", "chain", "fork", "reused data"])
@pytest.mark.parametrize("first", [True, False])
def test_it_is_unbiased_beside_others(name, beside, first):
    make, theta = GRAPHS[name]
    graph = make()
    chosen = {s: sg.MVD() if (i % 2 == 0) == first else beside for i, s in enumerate(graph.samples)}
    assert sg.verify(graph.compile(chosen), theta).relative_bias < EXACT


# Continuous draws, by quadrature. The draws of the pair have roots of the quantile in them: in s, the quantile being
# s**6, everything is smooth.


def nodes(count, end):
    """Gauss-Legendre nodes and weights on (0, end) for a size, in its sixth root."""
    s, weights = np.polynomial.legendre.leggauss(count)
    root = torch.tensor((s + 1) / 2) * end ** (1 / 6)
    return root**6, torch.tensor(weights) / 2 * end ** (1 / 6) * 6 * root**5


def normal_draws(theta, count=150):
    size, weights = nodes(count, 10.0)
    weights = weights * (-(size**2) / 2).exp() / math.sqrt(2 * math.pi)
    return theta[0] + theta[1] * torch.cat([size, -size]), weights.repeat(2)


def exponential_draws(theta, count=150):
    size, weights = nodes(count, 60.0)
    return size / theta[1], weights * (-size).exp()


def poisson_draws(theta):
    draws = torch.arange(80, dtype=F64)
    return draws, Poisson(theta[1]).log_prob(draws).exp()


def expectation(compiled, draws, weights):
    """Of the estimate, over draws of shape `(count, ...)`."""
    one = torch.func.grad(lambda theta, x: compiled.surrogate(theta, sg.Trace(draws={"x": x})))
    return weights @ torch.vmap(lambda x: one(THETA, x))(draws)


MOMENTS = {
    "mean and deviation, third": (Normal, (0, 1), normal_draws, 3, [3 * (0.4**2 + 1.3**2), 6 * 0.4 * 1.3]),
    "mean and deviation, fourth": (
        Normal,
        (0, 1),
        normal_draws,
        4,
        [4 * 0.4**3 + 12 * 0.4 * 1.3**2, 12 * 0.4**2 * 1.3 + 12 * 1.3**3],
    ),
    "exponential, second": (Exponential, (1,), exponential_draws, 2, [0.0, -4 / 1.3**3]),
    "exponential, third": (Exponential, (1,), exponential_draws, 3, [0.0, -18 / 1.3**4]),
    "Poisson, second": (Poisson, (1,), poisson_draws, 2, [0.0, 2 * 1.3 + 1]),
    "Poisson, third": (Poisson, (1,), poisson_draws, 3, [0.0, 3 * 1.3**2 + 6 * 1.3 + 1]),
}


def power_of_one_draw(family, places, power):
    @sg.graph
    def objective(theta):
        return sg.sample("x", family, *(theta[i] for i in places)) ** power

    return objective


@pytest.mark.parametrize("name", MOMENTS)
def test_moments(name):
    family, places, draws, power, expected = MOMENTS[name]
    compiled = power_of_one_draw(family, places, power).compile(sg.MVD())
    found = expectation(compiled, *draws(THETA))
    assert found.tolist() == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_a_function_of_a_mean():
    """Two draws, one replaced at a time: E[m**2] = mu**2 + sigma**2 / 2, and m**3 has a third moment."""
    draws, weights = normal_draws(THETA, 40)
    pairs = torch.cartesian_prod(draws, draws)

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta[0], theta[1], n=2)) ** 3

    found = expectation(objective.compile(sg.MVD()), pairs, torch.outer(weights, weights).flatten())
    mu, sigma = THETA.tolist()
    assert found.tolist() == pytest.approx([3 * mu**2 + 1.5 * sigma**2, 3 * mu * sigma], rel=1e-7)


def test_draws_of_several_entries():
    """A draw of three normal entries at once: each entry is replaced by itself."""
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=F64)

    @sg.graph
    def objective(theta):
        draw = sg.sample("x", lambda mean: Independent(Normal(mean, 1.0), 1), theta)
        return sg.apply(lambda x: (weight * x**2).sum(), draw)

    theta = torch.tensor([0.3, -0.4, 0.9], dtype=F64)
    draws, weights = normal_draws(torch.tensor([0.0, 1.0], dtype=F64), 60)
    grad = torch.func.grad(objective.compile(sg.MVD()).surrogate)
    # The function is a sum over entries, so that it is enough to move all of them along one line.
    found = weights @ torch.vmap(lambda z: grad(theta, sg.Trace(draws={"x": theta + z})))(draws)
    assert found.tolist() == pytest.approx((2 * weight * theta).tolist(), rel=1e-8)


def test_a_jump_where_the_pathwise_derivative_is_refused():
    """P(x > 0) moves with the mean by the density at 0. An estimate is of bounded variation in the draw's quantile:
    the midpoint rule with n points is then within (variation / n) of the expectation."""

    @sg.graph
    def objective(theta):
        return sg.apply(lambda x: torch.gt(x, 0.0).double(), sg.sample("x", Normal, theta[0], theta[1]))

    count = 20000
    quantiles = (torch.arange(count, dtype=F64) + 0.5) / count
    draws = Normal(THETA[0], THETA[1]).icdf(quantiles)
    found = expectation(objective.compile(sg.MVD()), draws, torch.full((count,), 1 / count, dtype=F64))
    density = Normal(THETA[0], THETA[1]).log_prob(torch.zeros((), dtype=F64)).exp()
    mean, deviation = density, -THETA[0] / THETA[1] * density
    assert abs(float(found[0] - mean)) < 4 * 0.4 / 1.3 / count
    assert abs(float(found[1] - deviation)) < 4 / 1.3 / count
    with pytest.raises(sg.CompileError, match="no differentiable path"):
        objective.compile(sg.PW()).value_and_grad(THETA)


def test_parameters_that_are_constant_are_not_replayed():
    compiled = power_of_one_draw(lambda mean: Normal(mean, 1.0), (0,), 2).compile(sg.MVD())
    plain = sg.graph(lambda theta: sg.sample("x", Normal, theta[0], 1.0) ** 2).compile(sg.MVD())
    trace = sg.Trace(draws={"x": torch.tensor(0.7, dtype=F64)})
    first, second = (torch.func.grad(c.surrogate)(THETA, trace) for c in (compiled, plain))
    assert torch.allclose(first, second)


SECOND = {
    "hessian": lambda f: torch.func.hessian(f)(THETA),
    "grad of grad": lambda f: torch.func.grad(lambda t: torch.func.grad(f)(t)[0])(THETA),
    "forward over reverse": lambda f: torch.func.jacfwd(torch.func.grad(f))(THETA),
    "forward mode": lambda f: torch.func.jacfwd(f)(THETA),
    "autograd": lambda f: twice(f, THETA.clone().requires_grad_()),
}


def twice(f, theta):
    (grad,) = torch.autograd.grad(f(theta), theta, create_graph=True)
    return torch.autograd.grad(grad.sum(), theta)


@pytest.mark.parametrize("how", SECOND)
@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_are_refused(how, power):
    compiled = power_of_one_draw(Normal, (0, 1), power).compile(sg.MVD())
    trace = sg.Trace(draws={"x": torch.tensor(0.7, dtype=F64)})
    with pytest.raises(sg.SamplingError, match=r"sample 'x' reaches .* first derivatives only.* Use SF for 'x'"):
        SECOND[how](lambda theta: compiled.surrogate(theta, trace))


def test_second_derivatives_through_enumeration_are_refused():
    make, theta = GRAPHS["bandit, 1 step"]
    with pytest.raises(sg.SamplingError, match=r"sample 'D1' reaches .* first derivatives only|sample 'tau' reaches"):
        sg.verify(make().compile(sg.MVD()), theta, order=2)


def test_other_distributions_are_refused():
    @sg.graph
    def known(theta):
        return sg.mean(sg.sample("x", Gamma, theta[1], 1.0, n=2)) ** 2

    with pytest.raises(sg.CompileError, match=r"'x' \(axes: \(x\)\): no measure-valued derivative of Gamma .* Use SF"):
        known.compile(sg.MVD())

    @sg.graph
    def built(theta):
        return sg.mean(sg.sample("x", lambda t: Gamma(t, 1.0), theta[1], n=2)) ** 2

    with pytest.raises(sg.SamplingError, match="no measure-valued derivative of Gamma"):
        built.compile(sg.MVD()).value_and_grad(THETA)


def test_continuous_children_are_refused():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta[0], theta[1])
        return sg.sample("y", Normal, x, 0.2) ** 2

    with pytest.raises(sg.CompileError, match=r"'x' \(axes: none\) feeds sample 'y' \(Normal\) directly"):
        objective.compile({"x": sg.MVD(), "y": sg.SF()})


def test_single_precision():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=5)) ** 2

    compiled, theta = objective.compile(sg.MVD()), torch.tensor(0.5)
    trace = compiled.sample(theta, generator=torch.Generator().manual_seed(0))
    wide = torch.func.grad(compiled.surrogate)(theta.double(), sg.Trace(draws={"x": trace.draws["x"].double()}))
    grad = torch.func.grad(compiled.surrogate)(theta, trace)
    assert grad.dtype == torch.float32
    assert float(grad) == pytest.approx(float(wide), rel=1e-5)


def test_the_ledger_counts_every_path_once():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta[0], theta[1], n=3)
        y = sg.sample("y", Bernoulli, logits=theta[0], n=2)
        return sg.mean(x) ** 2 * sg.mean(sg.apply(lambda one: BANDIT_REWARD[one.long()], y))

    explained = objective.compile(sg.MVD()).explain()
    assert {row.counted for row in explained.ledger} == {"once"}
    assert explained.unbiased
    assert explained.variance == "O(1/N)"
