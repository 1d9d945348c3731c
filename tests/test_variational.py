"""Variational inference with one latent: evidence lower bounds with log q in the cost, for many families.

Nothing is estimated by drawing. Gradients are compared with formulas on the same samples; expectations and variances
come from Gauss-Hermite quadrature, exact for the polynomials at hand, and from the double exponential rule, which
converges to rounding for smooth densities. Plates and several latents are in test_latent_variables.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Normal, kl_divergence

import stochgraph as sg
from tests.distribution_cases import CASES, THETA, Case, transformed
from tests.problems import F64
from tests.variational_cases import (
    CONJUGATE,
    EVIDENCE,
    NOISE,
    OBSERVED,
    POSTERIOR,
    POSTERIOR_VARIANCE,
    ZERO,
    Conjugate,
    log_joint,
    real,
)

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
ELSEWHERE = real(0.3, -0.2)
PARTS = pytest.mark.parametrize("form", ["drawn", "path"])  # log q at the draws, or with its parameters held fixed


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def gradient(compiled, trace, theta):
    return torch.func.grad(compiled.surrogate)(theta, trace)


# A Gaussian latent: z ~ N(0, 1), x ~ N(z, NOISE^2), q = N(mean, scale^2)


def gaussian_bound(form: str, n: int) -> sg.Graph:
    """With log q "drawn", with a "path" of its draws alone, or with the divergence from the prior, "analytic"."""

    @sg.graph
    def bound(theta):
        loc, scale = theta[0], torch.exp(theta[1])
        z = sg.sample("z", Normal, loc, scale, n=n)
        if form == "analytic":
            divergence = sg.apply(lambda m, s: kl_divergence(Normal(m, s), Normal(ZERO, 1.0)), loc, scale)
            return sg.mean(sg.apply(lambda z: Normal(z, NOISE).log_prob(OBSERVED), z)) - divergence
        if form == "path":
            loc, scale = sg.stop(loc), sg.stop(scale)
        return sg.mean(sg.apply(lambda z, m, s: log_joint(z) - Normal(m, s).log_prob(z), z, loc, scale))

    return bound


def gaussian_gradient(theta):
    """Of the exact bound."""
    mean, variance = theta[0], torch.exp(2 * theta[1])
    return torch.stack([(OBSERVED - mean) / NOISE**2 - mean, 1 - variance / POSTERIOR_VARIANCE])


def gaussian_terms(theta, z):
    """Of each draw: its log-weight, its score, the derivative of the log-weight along it, and its own derivative."""
    mean, scale = theta[0], theta[1].exp()
    noise = (z - mean) / scale
    weight = log_joint(z) - Normal(mean, scale).log_prob(z)
    score = torch.stack([noise / scale, noise**2 - 1])
    slope = (OBSERVED - z) / NOISE**2 - z + noise / scale
    return weight, score, slope, torch.stack([torch.ones_like(z), z - mean])


@PARTS
@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("name", ["SF", "LSF", "PW"])
def test_gaussian_bound_on_the_same_samples(name, n, form):
    """Through values log q leaves minus the score, which has mean zero; holding its parameters fixed drops that."""
    compiled = gaussian_bound(form, n).compile(getattr(sg, name)())
    trace = compiled.sample(ELSEWHERE, generator=seed())
    weight, score, slope, moved = gaussian_terms(ELSEWHERE, trace.draws["z"])
    expected = (slope * moved if name == "PW" else weight * score) - (score if form == "drawn" else 0)
    torch.testing.assert_close(trace.value, weight.mean(), **EXACT)
    torch.testing.assert_close(gradient(compiled, trace, ELSEWHERE), expected.mean(1), **EXACT)


def gaussian_moments(compiled, theta, n):
    """Exact mean and variance of an estimate that is a polynomial of the noise, of degree up to seven."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    noise = torch.cartesian_prod(*[torch.tensor(nodes)] * n).reshape(-1, n)
    weight = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * n).reshape(-1, n).prod(1)
    draws = theta[0] + theta[1].exp() * noise
    recorded = Normal(theta[0], theta[1].exp()).log_prob(draws)

    def one(z, log_prob, z_noise):
        return gradient(compiled, sg.Trace(ZERO, {"z": z}, {"z": log_prob}, {"z": [z_noise]}), theta)

    estimates = torch.vmap(one)(draws, recorded, noise)
    mean = weight @ estimates
    return mean, weight @ (estimates - mean) ** 2


@pytest.mark.parametrize("theta", [ELSEWHERE, POSTERIOR], ids=["elsewhere", "at the posterior"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("form", ["drawn", "path", "analytic"])
@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.PW()], ids=["SF", "LSF", "PW"])
def test_gaussian_bound_in_expectation(estimator, form, n, theta):
    compiled = gaussian_bound(form, n).compile(estimator)
    torch.testing.assert_close(gaussian_moments(compiled, theta, n)[0], gaussian_gradient(theta), **EXACT)
    assert compiled.explain().unbiased


@pytest.mark.parametrize("n", [1, 2])
def test_variance_at_the_posterior(n):
    """There the log-weight is the log-evidence whatever is drawn: variances are those of scores, or zero."""
    information = real(1 / POSTERIOR_VARIANCE, 2)
    slope, bend = (OBSERVED - POSTERIOR[0]) / NOISE**2, POSTERIOR_VARIANCE / NOISE**2
    expected = {
        ("drawn", "SF"): (EVIDENCE - 1) ** 2 * information,
        ("path", "SF"): EVIDENCE**2 * information,
        ("drawn", "PW"): information,
        ("path", "PW"): real(0, 0),
        ("analytic", "PW"): real(bend / NOISE**2, float(slope**2) * POSTERIOR_VARIANCE + 2 * bend**2),
    }
    for (form, name), variance in expected.items():
        compiled = gaussian_bound(form, n).compile(getattr(sg, name)())
        torch.testing.assert_close(gaussian_moments(compiled, POSTERIOR, n)[1], variance / n, **EXACT)


def test_second_derivative_of_the_pathwise_bound():
    compiled = gaussian_bound("analytic", 7).compile(sg.PW())
    trace = compiled.sample(ELSEWHERE, generator=seed())
    z, variance = trace.draws["z"], float(torch.exp(2 * ELSEWHERE[1]))
    moved = z - ELSEWHERE[0]
    mixed = -float(moved.mean()) / NOISE**2
    spread = float(((OBSERVED - z) * moved - moved**2).mean()) / NOISE**2 - 2 * variance
    expected = torch.stack([real(-1 / NOISE**2 - 1, mixed), real(mixed, spread)])
    torch.testing.assert_close(torch.func.hessian(compiled.surrogate)(ELSEWHERE, trace), expected, **EXACT)


# Conjugate models, with q at the posterior


def conjugate_bound(model: Conjugate, form: str) -> sg.Graph:
    @sg.graph
    def bound(theta):
        parameters = [theta[i] for i in range(len(model.posterior))]
        z = sg.sample("z", model.family, *parameters, n=5)
        held = [sg.stop(p) for p in parameters] if form == "path" else parameters
        log_q = sg.apply(lambda z, *p: model.family(*p).log_prob(z), z, *held)
        return sg.mean(sg.apply(model.log_joint, z) - log_q)

    return bound


def mean_score(model: Conjugate, draws: Tensor) -> list[Tensor]:
    leaves = [p.clone().requires_grad_() for p in model.posterior]
    score = torch.autograd.grad(torch.stack([model.family(*leaves).log_prob(z) for z in draws]).mean(), leaves)
    assert all(float(s.abs().max()) > 1e-3 for s in score)
    return list(score)


@PARTS
@pytest.mark.parametrize("name", CONJUGATE)
def test_the_score_function_at_the_posterior(name, form):
    """The value of every draw is the log-evidence; the estimate is a multiple of the mean score."""
    model = CONJUGATE[name]()
    compiled = conjugate_bound(model, form).compile(sg.SF())
    trace = compiled.sample(model.posterior, generator=seed())
    torch.testing.assert_close(trace.value, model.log_evidence, rtol=0.0, atol=model.atol)
    factor = model.log_evidence - (1 if form == "drawn" else 0)
    expected = [factor * s for s in mean_score(model, trace.draws["z"])]
    torch.testing.assert_close(gradient(compiled, trace, model.posterior), expected, rtol=0.0, atol=model.atol)


@PARTS
@pytest.mark.parametrize("name", [name for name, model in CONJUGATE.items() if not model().refused])
def test_the_pathwise_derivative_at_the_posterior(name, form):
    """Minus the mean score; without that part zero, whatever is drawn."""
    model = CONJUGATE[name]()
    compiled = conjugate_bound(model, form).compile(sg.PW())
    trace = compiled.sample(model.posterior, generator=seed())
    expected = [-s if form == "drawn" else 0 * s for s in mean_score(model, trace.draws["z"])]
    torch.testing.assert_close(gradient(compiled, trace, model.posterior), expected, **EXACT)


@pytest.mark.parametrize("name", [name for name, model in CONJUGATE.items() if model().refused])
def test_families_without_a_path_that_can_be_replayed_say_so(name):
    model = CONJUGATE[name]()
    with pytest.raises(sg.StochgraphError, match=rf"PW on sample 'z' \({name}\): .*{model.refused}.* use SF"):
        conjugate_bound(model, "drawn").compile(sg.PW()).sample(model.posterior)


def straight_through(base: Any) -> Any:
    """A discrete draw that claims the derivative of its mean."""

    def rsample(self, shape):
        return self.sample(shape) + self.mean - self.mean.detach()

    return type(f"{base.__name__}StraightThrough", (base,), {"has_rsample": True, "rsample": rsample})


class ThresholdedNoise(td.Distribution):
    """Noise against a threshold, which has no derivative, with another one added."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, probs, validate_args=None):
        self.probs = probs
        super().__init__(probs.shape, validate_args=False)

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(sample_shape)
        hard = (torch.rand(shape, dtype=self.probs.dtype) < self.probs).to(self.probs)
        return hard + self.probs - self.probs.detach()


class Chosen(ThresholdedNoise):
    """The same by a choice of torch's."""

    def rsample(self, sample_shape=()):
        return torch.bernoulli(self.probs.expand(self._extended_shape(sample_shape))) + 0 * self.probs


class Discrete(ThresholdedNoise):
    """The same, and its support says so."""

    support = td.constraints.boolean


STRAIGHT_THROUGH: dict[str, Any] = {
    "OneHotCategorical": td.OneHotCategoricalStraightThrough,
    "Bernoulli": straight_through(td.Bernoulli),
    "Poisson": straight_through(td.Poisson),
    "Binomial": lambda p: straight_through(td.Binomial)(5, p),
    "Independent": lambda p: td.Independent(straight_through(td.Bernoulli)(p), 1),
    "a map of one": lambda p: transformed(straight_through(td.Bernoulli)(p), td.transforms.AffineTransform(1.0, 2.0)),
    "a function": lambda p: td.OneHotCategoricalStraightThrough(p),
    "a function, by module": lambda p: torch.distributions.OneHotCategoricalStraightThrough(logits=p),
    "a partial function": functools.partial(td.OneHotCategoricalStraightThrough, logits=None),
    "a class of its own": ThresholdedNoise,
    "a class of its own that chooses": Chosen,
    "a class of its own that says it is discrete": Discrete,
}
BUILT_LATE = {"Binomial", "Independent", "a map of one", "a class of its own", "a class of its own that chooses"}


REFUSED = r"PW on sample 'z' \(.*\): a straight-through draw.* its gradient is biased; use SF"


@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
def test_straight_through_draws_are_no_paths(name, n):
    """The derivative that they claim is biased: refused before a ledger can be asked for, or at the first draw."""
    dist = STRAIGHT_THROUGH[name]

    @sg.graph
    def objective(theta):
        cost = sg.apply(lambda z: (z**2).sum(), sg.sample("z", dist, theta, n=n))
        return cost if n is None else sg.mean(cost)

    if name not in BUILT_LATE:
        with pytest.raises(sg.CompileError, match=REFUSED):
            objective.compile(sg.PW())
        return
    compiled = objective.compile(sg.PW())
    for call in (compiled.sample, compiled.value_and_grad):
        with pytest.raises(sg.SamplingError, match=REFUSED):
            call(real(0.2, 0.5, 0.3))
    assert "a straight-through draw is refused there" in str(compiled.explain())


def test_what_a_function_draws_is_not_vouched_for():
    """A class of torch is known when a graph is compiled, what a function builds is not, nor a class of one's own."""
    known = sg.graph(lambda theta: sg.sample("z", Normal, theta, 1.0)).compile(sg.PW())
    built = sg.graph(lambda theta: sg.sample("z", lambda m: Normal(m, 1.0), theta)).compile(sg.PW())
    own = sg.graph(lambda theta: sg.sample("z", type("Own", (Normal,), {}), theta, 1.0)).compile(sg.PW())
    for compiled, said in ((known, False), (built, True), (own, True)):
        assert ("a straight-through draw is refused there" in str(compiled.explain())) == said


# Minus the divergence from a target in the same family, in expectation


class Grid(NamedTuple):
    """Points of a set and their weights under an integral over it."""

    points: Tensor
    weights: Tensor


def double_exponential(width: float) -> tuple[Tensor, Tensor]:
    """Where the rule puts its points, before they are mapped to a set, and their weights."""
    t = torch.linspace(-width, width, 401, dtype=F64)
    return math.pi / 2 * torch.sinh(t), math.pi / 2 * torch.cosh(t) * (t[1] - t[0])


def line() -> Grid:
    t, weight = double_exponential(4.0)
    return Grid(torch.sinh(t), torch.cosh(t) * weight)


def half_line() -> Grid:
    t, weight = double_exponential(4.0)
    return Grid(t.exp(), t.exp() * weight)


def unit() -> Grid:
    t, weight = double_exponential(3.0)
    return Grid(torch.sigmoid(2 * t), 2 * torch.sigmoid(2 * t) * torch.sigmoid(-2 * t) * weight)


def segment() -> Grid:
    """Two probabilities that sum to 1. Torch's densities are with respect to the first."""
    first, weight = unit()
    return Grid(torch.stack([first, 1 - first], 1), weight)


def circle() -> Grid:
    return Grid(torch.linspace(-math.pi, math.pi, 201, dtype=F64)[1:], torch.full((200,), math.pi / 100, dtype=F64))


def naturals() -> Grid:
    return Grid(torch.arange(100, dtype=F64), torch.ones(100, dtype=F64))


class Family(NamedTuple):
    """A family on a set, one member of it that is q, and one that is the target."""

    dist: Callable[..., td.Distribution]
    grid: Callable[[], Grid]
    theta: Tensor
    target: Tensor


# Torch has closed forms of the divergence for all but the last three, which are integrated.
FAMILIES = {
    "Beta": Family(td.Beta, unit, real(2.5, 3.1), real(4, 2)),
    "ContinuousBernoulli": Family(td.ContinuousBernoulli, unit, real(0.3), real(0.8)),
    "Dirichlet": Family(lambda a, b: td.Dirichlet(torch.stack([a, b])), segment, real(2.5, 3.1), real(4, 2)),
    "Exponential": Family(td.Exponential, half_line, real(0.7), real(1.3)),
    "Gamma": Family(td.Gamma, half_line, real(2.5, 1.3), real(1.7, 0.6)),
    "Gumbel": Family(td.Gumbel, line, real(0.3, 0.8), real(-0.4, 1.1)),
    "HalfNormal": Family(td.HalfNormal, half_line, real(0.7), real(1.3)),
    "LogNormal": Family(td.LogNormal, half_line, real(0.3, 0.8), real(-0.4, 1.1)),
    "Normal": Family(Normal, line, real(0.3, 0.8), real(-0.4, 1.1)),
    "Poisson": Family(td.Poisson, naturals, real(2.3), real(4.1)),
    "NegativeBinomial": Family(lambda p: td.NegativeBinomial(3, p), naturals, real(0.4), real(0.6)),
    "StudentT": Family(td.StudentT, line, real(2.5, 0.3, 0.8), real(4, -0.4, 1.1)),
    "VonMises": Family(td.VonMises, circle, real(0.3, 1.7), real(-0.9, 0.6)),
}


def divergence_bound(family: Family, form: str) -> sg.Graph:
    @sg.graph
    def bound(theta):
        parameters = [theta[i] for i in range(len(family.theta))]
        z = sg.sample("z", family.dist, *parameters)
        held = [sg.stop(p) for p in parameters] if form == "path" else parameters
        log_q = sg.apply(lambda z, *p: family.dist(*p).log_prob(z), z, *held)
        return sg.apply(lambda z: family.dist(*family.target).log_prob(z), z) - log_q

    return bound


def minus_divergence(family: Family, grid: Grid) -> Callable[[Tensor], Tensor]:
    def integrated(theta):
        q, p = (family.dist(*parameters).log_prob(grid.points) for parameters in (theta, family.target))
        return (grid.weights * q.exp() * (p - q)).sum()

    def closed(theta):
        return -kl_divergence(family.dist(*theta), family.dist(*family.target))

    return integrated if family in list(FAMILIES.values())[-3:] else closed


@PARTS
@pytest.mark.parametrize("name", FAMILIES)
def test_the_divergence_in_expectation(name, form):
    family = FAMILIES[name]
    density = family.dist(*family.theta).log_prob(family.grid().points).detach()
    kept = density + family.grid().weights.log() > -80
    grid, recorded = Grid(*(x[kept] for x in family.grid())), density[kept]
    compiled = divergence_bound(family, form).compile(sg.SF())

    def estimate(z, log_prob):
        return gradient(compiled, sg.Trace(ZERO, {"z": z}, {"z": log_prob}, {}), family.theta)

    expectation = (grid.weights * recorded.exp()) @ torch.vmap(estimate)(grid.points, recorded)
    truth = torch.func.grad(minus_divergence(family, grid))(family.theta)
    torch.testing.assert_close(expectation, truth, rtol=0.0, atol=1e-7)  # torch's Bessel function has seven digits
    assert float(truth.abs().max()) > 0.05


# Every family of the tests of distributions, with log q in the cost

# Torch's own log_prob of these indexes with a mask, which torch.vmap cannot map.
NOT_MAPPED = ("Geometric", "Multinomial")
ENTROPY = {name: case for name, case in CASES.items() if not name.startswith(NOT_MAPPED)}


def entropy_of(case: Case) -> sg.Graph:
    """The expectation of minus log q: its parameters are those of the distribution and of the cost."""
    places = [i for i, value in enumerate([*case.args, *case.kwargs.values()]) if callable(value)]

    def minus_log_q(z, *moving):
        filled = dict(zip(places, moving, strict=True))
        values = [filled.get(i, value) for i, value in enumerate([*case.args, *case.kwargs.values()])]
        split = len(case.args)
        return -case.dist(*values[:split], **dict(zip(case.kwargs, values[split:], strict=True))).log_prob(z).sum()

    @sg.graph
    def entropy(theta):
        args, kwargs = case.arguments(lambda fn, _: sg.apply(fn, theta))
        nodes = [*args, *kwargs.values()]
        z = sg.sample("z", case.dist, *args, n=4, **kwargs)
        return sg.mean(sg.apply(minus_log_q, z, *(nodes[i] for i in places)))

    return entropy


@pytest.mark.parametrize("name", ENTROPY)
def test_entropy_on_the_same_samples(name):
    case = ENTROPY[name]
    compiled = entropy_of(case).compile(sg.SF())
    trace = compiled.sample(THETA, generator=seed())
    theta = THETA.clone().requires_grad_()
    args, kwargs = case.arguments(lambda fn, _: fn(theta))
    log_q = torch.stack([case.dist(*args, **kwargs).log_prob(z).sum() for z in trace.draws["z"]])
    torch.testing.assert_close(trace.value, -log_q.mean().detach(), **EXACT)
    (expected,) = torch.autograd.grad((-log_q.detach() * log_q - log_q).mean(), theta)
    torch.testing.assert_close(gradient(compiled, trace, THETA), expected, **EXACT)
