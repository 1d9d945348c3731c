"""Measure-valued derivatives: the derivative of a distribution as a difference of two others.

NOTE [coupling]
Where the two distributions are not those of the draw itself, their draws are made of it, by quantiles: the draw's own
distribution function makes it uniform, and theirs make that a draw of theirs. So nothing is drawn besides, a trace
replays, and both move with the draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Independent,
    Normal,
    Poisson,
)

from ..derive.estimator import GradientEstimator, Site
from ..derive.papers import Paper
from ..derive.routes import Routes
from ..distributions.laws import DistributionLaw
from ..errors.exceptions import CompileError, SamplingError
from ..ir import nodes as nd
from ..surrogate.terms import Term
from ..tensors import vectorize as vz
from ..tensors.axes import describe
from .outcomes import Changes, outcomes_of
from .replaced import AtParents, Replaced

_HALVINGS = 64


@dataclass(frozen=True)
class Pair:
    """The derivative of a density with respect to one parameter, `c (p_plus - p_minus)`, sampled from a draw of p.

    Attributes:
        parameter: its name.
        constant: c, from the distribution.
        plus: a draw of p_plus, from the distribution and a draw of p.
        minus: a draw of p_minus.
    """

    parameter: str
    constant: Callable[[Any], Tensor | float]
    plus: Callable[[Any, Tensor], Tensor]
    minus: Callable[[Any, Tensor], Tensor]


def _itself(dist: object, draw: Tensor) -> Tensor:
    return draw


def _rayleigh(dist: Normal, draw: Tensor, sign: int) -> Tensor:
    size = ((draw - dist.loc) / dist.scale).abs()
    exceeded = torch.erfc(size / math.sqrt(2))  # as often as the Rayleigh draw is
    return dist.loc + sign * dist.scale * (-2 * exceeded.log()).sqrt()


def _maxwell(dist: Normal, draw: Tensor) -> Tensor:
    standard = (draw - dist.loc) / dist.scale
    return dist.loc + dist.scale * standard.sign() * _maxwell_quantile(standard.abs())


def _maxwell_quantile(size: Tensor) -> Tensor:
    """The size of a Maxwell draw that is exceeded as often as this size of a normal one."""

    def exceeded(m: Tensor) -> Tensor:
        return torch.erfc(m / math.sqrt(2)) + math.sqrt(2 / math.pi) * m * (-(m**2) / 2).exp()

    goal = torch.erfc(size / math.sqrt(2))
    return _bisected(lambda m: exceeded(m) > goal, size, size + 2)


def _gamma_of_two(dist: Exponential, draw: Tensor) -> Tensor:
    """The draw of Gamma(2, rate) that is exceeded as often: y with `(1 + y) exp(-y) = exp(-time)`."""
    time = dist.rate * draw
    return _bisected(lambda y: y - y.log1p() < time, time, 2 * time + 1) / dist.rate


def _bisected(below: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The point where `below` turns false between two bounds."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        under = below(middle)
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


PAIRS: dict[type[Distribution], tuple[Pair, ...]] = {
    Normal: (
        Pair(
            "loc",
            lambda dist: 1 / (dist.scale * math.sqrt(2 * math.pi)),
            partial(_rayleigh, sign=1),
            partial(_rayleigh, sign=-1),
        ),
        Pair("scale", lambda dist: 1 / dist.scale, _maxwell, _itself),
    ),
    Poisson: (Pair("rate", lambda dist: 1.0, lambda dist, draw: draw + 1, _itself),),
    Exponential: (Pair("rate", lambda dist: 1 / dist.rate, _itself, _gamma_of_two),),
}
_FINITE = (Bernoulli, Categorical)  # every outcome's probability times its indicator: enumeration
_NAMES = "Normal, Bernoulli, Categorical, Poisson, Exponential"

HEIDERGOTT_2008 = Paper(
    "heidergott2008measure",
    "Bernd Heidergott and Felisa J. Vázquez-Abad",
    "Measure-valued differentiation for {Markov} chains",
    "Journal of Optimization Theory and Applications",
    2008,
    in_journal=True,
)
MOHAMED_2020 = Paper(
    "mohamed2020monte",
    "Shakir Mohamed and Mihaela Rosca and Michael Figurnov and Andriy Mnih",
    "{Monte Carlo} gradient estimation in machine learning",
    "Journal of Machine Learning Research",
    2020,
    in_journal=True,
)


class MeasureValued(GradientEstimator):
    """Differences of terms with draws of two other distributions. Made by `MVD`."""

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (HEIDERGOTT_2008, MOHAMED_2020, *super().papers)

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        super().check(sample, routes)
        family = sample.law.family
        if family is not None and family not in (*PAIRS, *_FINITE):
            raise CompileError(_unknown(sample, sample.law.name))

    def orders(self, sample: nd.Sample) -> int:
        return 1

    def term(self, site: Site) -> Term:
        values = site.once(("pairs", site.sample), lambda: AtParents(site, "pairs", _pairs_of))
        changes = site.once(("pair changes", values), lambda: PairChanges(site, values))
        return Difference(site, changes, site.put(values, differentiable=False), own=True)

    def __repr__(self) -> str:
        return "MVD()"


class Difference(Replaced):
    """`term + sum over i and parameters q of c (q - stop q) ((term with x_i = plus) - (term with x_i = minus))`."""

    kind = "difference"

    def formula(self, term: str, sample: str) -> str:
        around = rf"\big({term}\big)_{{{sample}^{{+}}}} - \big({term}\big)_{{{sample}^{{-}}}}"
        return rf"\big({term} + \sum_{{q}} c_q \, (q - \mathrm{{stop}}(q)) \, \big({around}\big)\big)"


class PairChanges(Changes):
    """The factor of each alternative: `(alternatives, *plates)`, of value 0."""

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        built = _built(self.sample, values[1:], run)
        if type(built) not in PAIRS:
            return super().evaluate(run, values)
        sizes = [run.sizes[plate] for plate in self.sample.plates]
        changes = []
        for pair in _moved(self.sample, built):
            parameter = getattr(built, pair.parameter)
            change = torch.as_tensor(pair.constant(built)).detach() * (parameter - parameter.detach())
            change = vz.align(change, self.sample.parent_axes, self.sample.plates)
            entries = change.expand([*sizes, *change.shape[len(sizes) :]]).reshape([*sizes, -1]).movedim(-1, 0)
            changes += [entries, -entries]
        return torch.cat(changes)


def _pairs_of(sample: nd.Sample, drawn: Any, parents: Sequence[Any], run: nd.Pass) -> Any:
    """For every parameter and entry of a draw the draws of both distributions, `(alternatives, *plates, ...)`."""
    built = _built(sample, parents, run)
    if type(built) not in PAIRS:
        if isinstance(sample.law, DistributionLaw) and not isinstance(built, _FINITE):
            raise SamplingError(_unknown(sample, type(built).__name__))
        return outcomes_of(sample, drawn, parents, run)
    aligned = _detached(built, sample)
    own = drawn.shape[len(sample.plates) :]
    entries = torch.eye(prod(own), dtype=torch.bool, device=drawn.device).reshape(-1, *[1] * len(sample.plates), *own)
    found = []
    for pair in _moved(sample, built):
        for side in (pair.plus, pair.minus):
            found.append(torch.where(entries, side(aligned, drawn.double()).to(drawn.dtype), drawn))
    return torch.cat(found)


def _built(sample: nd.Sample, parents: Sequence[Any], run: nd.Pass) -> Any:
    """The distribution of single entries of the draws; `None` for a sampler."""
    if not isinstance(sample.law, DistributionLaw):
        return None
    built = sample.law.build(sample, sample.inputs, parents, sample.parent_axes, run, validate=False)
    while isinstance(built, Independent):
        built = built.base_dist
    return built


def _detached(built: Any, sample: nd.Sample) -> Any:
    """The distribution with constant parameters, in double precision, in line with the draws."""
    given = {name: getattr(built, name).detach().double() for name in built.arg_constraints}
    aligned = {name: vz.align(value, sample.parent_axes, sample.plates) for name, value in given.items()}
    return type(built)(**aligned, validate_args=False)


def _moved(sample: nd.Sample, built: Distribution) -> list[Pair]:
    """The pairs of the parameters that nodes give, as far as can be told."""
    law, pairs = sample.law, PAIRS[type(built)]
    if not (isinstance(law, DistributionLaw) and law.is_class and sample.arguments.flat):
        return list(pairs)
    names = law.parameters(sample.arguments)
    given = {names[place] for place in sample.arguments.places}
    return [pair for pair in pairs if pair.parameter in given]


def _unknown(sample: nd.Sample, name: str) -> str:
    return (
        f"MVD on sample {sample.name!r} (axes: {describe(sample.axes)}): no measure-valued derivative of {name} is "
        f"known here; it is for {_NAMES}. Use SF or PW for this node"
    )


def MVD() -> MeasureValued:
    r"""Measure-valued (weak) derivatives: unbiased first derivatives, for functions with jumps too.

    .. math:: \nabla_q E[F] = c_q \big(E[F(x^+)] - E[F(x^-)]\big), \qquad \nabla_q p = c_q (p^+ - p^-)

    for every parameter q of the draw's distribution, one draw at a time. F is evaluated and not differentiated, so it
    may have jumps, where `PW` is refused or wrong.

    ==================  ==========================  ==================================  ======================
    parameter           c                           plus                                minus
    ==================  ==========================  ==================================  ======================
    Normal, mean        1 / (sigma sqrt(2 pi))      mu + sigma W, W Rayleigh            mu - sigma W
    Normal, deviation   1 / sigma                   mu + sigma M, M two-sided Maxwell   the draw itself
    Poisson, rate       1                           the draw and 1                      the draw itself
    Exponential, rate   1 / rate                    the draw itself                     Gamma(2, rate)
    ==================  ==========================  ==================================  ======================

    For Bernoulli and categorical draws, and samplers that list their outcomes, it is `Enumerate` to first order. W, M
    and the Gamma draw are functions of the draw. A term behind the mean of N draws is evaluated 2 N times a parameter.
    A second derivative is refused. What a draw feeds directly must be discrete, as with `Enumerate`.

    Raises:
        CompileError: another distribution, or a direct child that cannot be reused.
        SamplingError: another distribution that a function builds; when differentiated twice, or in forward mode.

    References:
        Heidergott et al. (2008), Measure-valued differentiation for Markov chains; Mohamed et al. (2020), Monte Carlo
        gradient estimation in machine learning, section 6.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=1000)
        ...     return sg.mean(sg.apply(lambda one: (one > 0).double(), x))
        >>> compiled, theta = objective.compile(sg.MVD()), torch.tensor(0.0, dtype=torch.float64)
        >>> value, grad = compiled.value_and_grad(theta, generator=torch.Generator().manual_seed(0))
        >>> round(float(grad), 6)  # the density at the jump: no draw adds noise
        0.398942
    """
    return MeasureValued()
