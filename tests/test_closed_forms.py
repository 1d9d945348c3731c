"""Gaussian draws against closed forms: on the same samples, and in expectation by Gauss-Hermite quadrature.

Quadrature with 8 nodes per draw is exact for polynomials up to degree 15, so expectations here are exact too.
"""

import numpy as np
import pytest
import torch
from torch.distributions import LogNormal, MultivariateNormal, Normal

import stochgraph as sg
from tests.problems import F64

MEAN = torch.tensor(0.3, dtype=F64)


def square(n):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=n)
        return -((sg.mean(x) - 1.0) ** 2)

    return objective


def identity(n, sigma):
    """f(m) = m behind a function that the compiler does not see through."""

    @sg.graph
    def objective(mu):
        x = sg.sample("x", Normal, mu, sigma, n=n)
        return sg.apply(lambda m: m, sg.mean(x))

    return objective


def moments(compiled, theta, n, sigma=1.0):
    """Exact mean and variance of the estimator over n normal draws."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * n).reshape(-1, n)
    weight = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * n).reshape(-1, n).prod(1)
    draws = theta + sigma * grid
    recorded = Normal(theta, sigma).log_prob(draws)

    def one(x, log_prob):
        trace = sg.Trace(torch.tensor(0.0), {"x": x}, {"x": log_prob}, {})
        return torch.func.grad(lambda t: compiled.surrogate(t, trace))(theta)

    estimates = torch.vmap(one)(draws, recorded)
    mean = (weight * estimates).sum()
    return float(mean), float((weight * (estimates - mean) ** 2).sum())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_mean_of_the_square(n):
    theta = float(MEAN)
    assert moments(square(n).compile(sg.SF()), MEAN, n)[0] == pytest.approx(-2 * (theta - 1), abs=1e-12)
    expected = -2 * (theta - 1) - 2 * theta / n
    assert moments(square(n).compile(sg.LSF()), MEAN, n)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sigma", [1.0, 0.7])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_variance_of_the_identity(n, sigma):
    mu = float(MEAN)
    mean, variance = moments(identity(n, sigma).compile(sg.SF()), MEAN, n, sigma)
    assert mean == pytest.approx(1, abs=1e-12)
    assert variance == pytest.approx(mu**2 * n / sigma**2 + 2, abs=1e-12)
    mean, variance = moments(identity(n, sigma).compile(sg.LSF()), MEAN, n, sigma)
    assert mean == pytest.approx(1, abs=1e-12)
    assert variance == pytest.approx(mu**2 / (sigma**2 * n) + 2 / n, abs=1e-12)


def test_pathwise_variance_of_the_identity_is_zero():
    compiled = identity(5, 1.0).compile(sg.PW())
    estimates = [float(compiled.value_and_grad(MEAN)[1]) for _ in range(20)]
    assert estimates == pytest.approx([1.0] * 20, abs=1e-15)


@pytest.mark.parametrize("n", [1, 100])
def test_on_the_same_samples(n):
    generator = torch.Generator().manual_seed(0)
    trace = square(n).compile(sg.SF()).sample(MEAN, generator=generator)
    x = trace.draws["x"]
    m, score = x.mean(), x - MEAN
    expected = {
        "SF": -((m - 1) ** 2) * score.sum(),
        "LSF": -2 * (m - 1) * (x * score).mean(),
        "PW": -2 * (m - 1),
    }
    for name, value in expected.items():
        compiled = square(n).compile(getattr(sg, name)())
        generator = torch.Generator().manual_seed(0)
        _, estimate = compiled.value_and_grad(MEAN, generator=generator)
        assert float(estimate) == pytest.approx(float(value), abs=1e-10), name


def test_pathwise_second_derivative():
    compiled = square(4).compile(sg.PW())
    trace = compiled.sample(MEAN)
    assert float(torch.func.hessian(lambda t: compiled.surrogate(t, trace))(MEAN)) == pytest.approx(-2, abs=1e-12)


def test_pathwise_draws_move_with_the_parameters():
    compiled = square(4).compile(sg.PW())
    trace = compiled.sample(MEAN)
    moved = compiled.surrogate(MEAN + 0.5, trace)
    assert float(moved) == pytest.approx(float(-((trace.draws["x"].mean() + 0.5 - 1) ** 2)), abs=1e-12)


@pytest.mark.parametrize(
    ("dist", "parents"),
    [
        (Normal, (0.3, 0.7)),
        (LogNormal, (0.3, 0.7)),
        (torch.distributions.Laplace, (0.3, 0.7)),
        (torch.distributions.Gumbel, (0.3, 0.7)),
        (torch.distributions.Exponential, (0.7,)),
        (torch.distributions.Uniform, (0.3, 0.7)),
        (torch.distributions.HalfNormal, (0.7,)),
        (torch.distributions.Cauchy, (0.3, 0.7)),
        (torch.distributions.LogisticNormal, ([0.3, 0.1], [0.7, 0.2])),
        (torch.distributions.Kumaraswamy, (0.3, 0.7)),
        (torch.distributions.RelaxedBernoulli, (0.5, 0.7)),
        (torch.distributions.Weibull, (0.3, 0.7)),
    ],
)
def test_pathwise_equals_rsample(dist, parents):
    """The replayed draw has the gradient of the distribution's own rsample with the same noise."""

    @sg.graph
    def objective(parameters):
        return sg.mean(
            sg.apply(lambda x: (x**2).sum(), sg.sample("x", dist, *(parameters[i] for i in range(len(parents))), n=3))
        )

    values = [torch.tensor(p, dtype=F64) for p in parents]
    compiled = objective.compile(sg.PW())
    trace = compiled.sample(values, generator=torch.Generator().manual_seed(1))
    replayed = torch.func.grad(lambda v: compiled.surrogate(v, trace))(values)
    leaves = [v.clone().requires_grad_() for v in values]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    torch.random.set_rng_state(torch.Generator().manual_seed(1).get_state())
    own = dist(*leaves).rsample((3,))
    torch.random.set_rng_state(state)
    torch.testing.assert_close(own.detach(), trace.draws["x"])
    expected = torch.autograd.grad((own**2).reshape(3, -1).sum(1).mean(), leaves)
    torch.testing.assert_close(list(replayed), list(expected))


def test_pathwise_multivariate_normal_in_a_plate():
    scale = torch.tensor([[1.0, 0.0], [0.3, 0.5]], dtype=F64)

    @sg.graph
    def objective(theta):
        z = sg.sample("z", Normal, torch.tensor(0.0, dtype=F64), 1.0, n=4)
        x = sg.sample("x", MultivariateNormal, sg.apply(lambda t, c: t * c, theta, z), scale_tril=scale, n=3)
        return sg.mean(sg.apply(lambda v: v.sum() ** 2, x))

    theta = torch.tensor([0.2, -0.4], dtype=F64)
    compiled = objective.compile(sg.PW())
    trace = compiled.sample(theta)
    assert trace.draws["x"].shape == (4, 3, 2)
    x, z = trace.draws["x"], trace.draws["z"]
    expected = (2 * x.sum(-1) * z[:, None]).mean().expand(2)
    torch.testing.assert_close(torch.func.grad(lambda t: compiled.surrogate(t, trace))(theta), expected)


def test_mixed_score_function_and_pathwise():
    """z ~ N(theta, 1) pathwise, b ~ Bernoulli(sigmoid(z)) scored: E[b z] has a closed-form estimate given both."""

    @sg.graph
    def objective(theta):
        z = sg.sample("z", Normal, theta, 1.0, n=6)
        b = sg.sample("b", torch.distributions.Bernoulli, logits=z)
        return sg.mean(b * z)

    compiled = objective.compile({"z": sg.PW(), "b": sg.SF()})
    trace = compiled.sample(MEAN, generator=torch.Generator().manual_seed(2))
    z, b = trace.draws["z"], trace.draws["b"]
    expected = (b * z * (b - torch.sigmoid(z)) + b).mean()
    estimate = torch.func.grad(lambda t: compiled.surrogate(t, trace))(MEAN)
    assert float(estimate) == pytest.approx(float(expected), abs=1e-12)
    assert compiled.explain().unbiased
