"""Conjugate models for the tests: at the posterior the log-weight of every draw is the log-evidence."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Normal

from tests.problems import F64

ZERO, NOISE, OBSERVED = torch.tensor(0.0, dtype=F64), 0.5, torch.tensor(1.2, dtype=F64)
NO_PATH = "no differentiable path"


class Conjugate(NamedTuple):
    """A family with the posterior's parameters, the log-density of latent and data, and the evidence in closed form."""

    family: Callable[..., Any]
    posterior: list[Tensor]
    log_joint: Callable[[Tensor], Tensor]
    log_evidence: Tensor
    refused: str | None  # what PW says, if it says no
    atol: float = 1e-10


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


POSTERIOR_VARIANCE = NOISE**2 / (1 + NOISE**2)
POSTERIOR = real(float(OBSERVED) / (1 + NOISE**2), math.log(POSTERIOR_VARIANCE) / 2)  # mean and log scale
EVIDENCE = Normal(ZERO, math.sqrt(1 + NOISE**2)).log_prob(OBSERVED)
COUNTS = real(1, 4, 2)
VALUES = real(0.7, -1.3, 0.4)
FEATURES = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.1]], dtype=F64)


def log_joint(z):
    """One Gaussian latent with one noisy reading of it: z ~ N(0, 1), x ~ N(z, NOISE^2)."""
    return Normal(ZERO, 1.0).log_prob(z) + Normal(z, NOISE).log_prob(OBSERVED)


def normal() -> Conjugate:
    return Conjugate(Normal, [POSTERIOR[0], POSTERIOR[1].exp()], log_joint, EVIDENCE, None)


def log_normal() -> Conjugate:
    """The same on the scale of exponentials."""
    return normal()._replace(
        family=td.LogNormal,
        log_joint=lambda z: td.LogNormal(ZERO, 1.0).log_prob(z) + Normal(z.log(), NOISE).log_prob(OBSERVED),
    )


def independent_normals() -> Conjugate:
    """Two Gaussian latents of their own data as one vector."""
    data = real(1.2, -0.4)
    return Conjugate(
        lambda m, s: td.Independent(Normal(m, s), 1),
        [data / (1 + NOISE**2), POSTERIOR[1].exp().expand(2)],
        lambda z: (Normal(ZERO, 1.0).log_prob(z) + Normal(z, NOISE).log_prob(data)).sum(),
        Normal(ZERO, math.sqrt(1 + NOISE**2)).log_prob(data).sum(),
        None,
    )


def regression() -> Conjugate:
    """Weights of a linear regression; the factor of their covariance is a parameter."""
    covariance = torch.linalg.inv(torch.eye(2, dtype=F64) + FEATURES.T @ FEATURES / NOISE**2)
    total = torch.eye(3, dtype=F64) * NOISE**2 + FEATURES @ FEATURES.T
    return Conjugate(
        lambda m, factor: td.MultivariateNormal(m, scale_tril=factor),
        [covariance @ FEATURES.T @ VALUES / NOISE**2, torch.linalg.cholesky(covariance)],
        lambda w: Normal(ZERO, 1.0).log_prob(w).sum() + Normal(FEATURES @ w, NOISE).log_prob(VALUES).sum(),
        td.MultivariateNormal(torch.zeros(3, dtype=F64), total).log_prob(VALUES),
        None,
    )


def beta_binomial() -> Conjugate:
    """Three successes in five trials."""
    prior, after = real(2, 3), real(5, 5)
    return Conjugate(
        td.Beta,
        list(after),
        lambda z: td.Beta(*prior).log_prob(z) + 3 * z.log() + 2 * (1 - z).log() + math.log(10),
        math.log(10) + _log_beta(after) - _log_beta(prior),
        None,
    )


def dirichlet_categorical() -> Conjugate:
    """Five draws from three categories, the second never seen."""
    prior, seen = real(1, 2, 0.5), real(2, 0, 3)
    return Conjugate(
        td.Dirichlet,
        [prior + seen],
        lambda z: td.Dirichlet(prior).log_prob(z) + (seen * z.log()).sum(),
        _log_beta(prior + seen) - _log_beta(prior),
        None,
    )


def gamma_poisson() -> Conjugate:
    prior, after = real(2, 1.5), real(2 + float(COUNTS.sum()), 1.5 + 3)
    return Conjugate(
        td.Gamma,
        list(after),
        lambda z: td.Gamma(*prior).log_prob(z) + td.Poisson(z).log_prob(COUNTS).sum(),
        _log_gamma(prior) - _log_gamma(after) - torch.lgamma(COUNTS + 1).sum(),
        None,
    )


def inverse_gamma_normal() -> Conjugate:
    """The variance of centred Gaussian data."""
    prior, after = real(3, 2), real(3 + 1.5, 2 + float((VALUES**2).sum()) / 2)
    return Conjugate(
        td.InverseGamma,
        list(after),
        lambda z: td.InverseGamma(*prior).log_prob(z) + Normal(ZERO, z.sqrt()).log_prob(VALUES).sum(),
        _log_gamma(prior) - _log_gamma(after) - 1.5 * math.log(2 * math.pi),
        None,
    )


def von_mises() -> Conjugate:
    """A direction with one noisy reading of it. Torch approximates the Bessel function, to seven digits."""
    (at, prior), (reading, exact) = real(0.4, 1.5), real(-1.1, 2.0)
    east, north = prior * at.cos() + exact * reading.cos(), prior * at.sin() + exact * reading.sin()
    after, bessel = torch.hypot(east, north), torch.special.i0
    return Conjugate(
        td.VonMises,
        [torch.atan2(north, east), after],
        lambda z: td.VonMises(at, prior).log_prob(z) + td.VonMises(z, exact).log_prob(reading),
        (bessel(after) / bessel(prior) / bessel(exact) / (2 * math.pi)).log(),
        NO_PATH,
        atol=1e-7,
    )


def thinned_poisson() -> Conjugate:
    """Three of a Poisson number were seen, each with probability 0.3: how many were missed?"""
    rate, seen = real(4)[0], 3
    ways = lambda missed: torch.lgamma(missed + seen + 1) - torch.lgamma(missed + 1) - math.lgamma(seen + 1)  # noqa: E731
    return Conjugate(
        td.Poisson,
        [rate * 0.7],
        lambda z: td.Poisson(rate).log_prob(z + seen) + ways(z) + seen * math.log(0.3) + z * math.log(0.7),
        td.Poisson(rate * 0.3).log_prob(real(seen)[0]),
        NO_PATH,
    )


def responsibilities() -> Conjugate:
    """Which component of a mixture of three a value came from."""
    terms = real(0.5, 0.3, 0.2).log() + Normal(real(-1, 0, 2), NOISE).log_prob(OBSERVED)
    return Conjugate(td.Categorical, [terms.softmax(0)], lambda z: terms[z], terms.logsumexp(0), NO_PATH)


def _log_beta(a: Tensor) -> Tensor:
    return torch.lgamma(a).sum() - torch.lgamma(a.sum())


def _log_gamma(parameters: Tensor) -> Tensor:
    shape, rate = parameters
    return shape * rate.log() - torch.lgamma(shape)


CONJUGATE: dict[str, Callable[[], Conjugate]] = {
    "Beta": beta_binomial,
    "Categorical": responsibilities,
    "Dirichlet": dirichlet_categorical,
    "Gamma": gamma_poisson,
    "Independent": independent_normals,
    "InverseGamma": inverse_gamma_normal,
    "LogNormal": log_normal,
    "MultivariateNormal": regression,
    "Normal": normal,
    "Poisson": thinned_poisson,
    "VonMises": von_mises,
}
