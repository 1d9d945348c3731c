"""Copies of torch's distributions with members of their own, so that they can be scored and moved.

NOTE [what is mended]
Discrete distributions that are given probabilities clamp them to an epsilon before they take logarithms, while their
draws do not: below it the score is zero, where it should be large. Two of them (`Geometric`, `Multinomial`) pick
elements by value, which cannot be mapped. A copy of such a distribution gets its own logarithms, or its own `log_prob`,
equal to torch's wherever torch has the right one. Others draw by their own `rsample`: torch's writes in place (`Gamma`,
`FisherSnedecor`), has a derivative that transforms do not know (`Dirichlet`), or takes every draw for a singular one,
warns, and draws again (`Wishart`). What a subclass has of its own stays.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    Dirichlet,
    Distribution,
    FisherSnedecor,
    Gamma,
    Geometric,
    Multinomial,
    NegativeBinomial,
    Wishart,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from ..tensors.axes import describe
from .families import copied, parts_of
from .interfaces import SampleNode

_ONE = torch.Size()


def is_plain(dist: Distribution) -> bool:
    """True if the distribution is fine as it is, and none is in it that may not be."""
    return not isinstance(dist, _FAMILIES) and not any(isinstance(part, Distribution) for part in vars(dist).values())


def mended(dist: Distribution, checks: bool = True) -> Distribution:
    """A copy whose log-probabilities are right at the edge and can be mapped, see the note; or the distribution.

    Without `checks`, draws that are scored are not looked at.
    """
    if checks and not any(isinstance(part, _FAMILIES) for part in parts_of(dist)):
        return dist
    return copied(dist, _mend if checks else _mend_unchecked)


def margins(dist: Distribution) -> list[Tensor]:
    """The distance from the edge of the probabilities that parts were given: 0 where an outcome is impossible.

    Relaxed and continuous families draw with the probability that they have clamped: for them the edge is there.
    """
    given = [(part, _given(part)) for part in parts_of(dist)]
    return [_margin(part, probs) for part, probs in given if probs is not None]


def _margin(dist: Distribution, probs: Tensor) -> Tensor:
    if isinstance(dist, _CLAMPED):
        eps = torch.finfo(probs.dtype).eps
        return probs.masked_fill((probs <= eps) | (probs >= 1 - eps), 0)
    return probs if isinstance(dist, Categorical) else probs * (1 - probs)


def at_edge(margins: Iterable[Tensor]) -> list[Tensor]:
    """Those of the margins that have a zero."""
    return [margin for margin in margins if bool((margin == 0).any())]


def edge_message(node: SampleNode) -> str:
    """Why a probability of exactly 0 or 1 that moves is refused."""
    return (
        f"sample {node.name!r} (axes: {describe(node.axes)}): {node.law.name} has a probability of exactly 0 or 1, "
        "or, of a relaxed draw, one that torch moves away from there, which depends on a differentiated input. What is "
        "never drawn has no score, though its probability may grow. Give logits=..., log-odds or log-probabilities, in "
        "place of probabilities; those of what is ruled out for good may be -inf, or stopped: sg.stop(...)"
    )


def _mend(dist: Distribution) -> None:
    for family, members in _MENDS.items():
        if isinstance(dist, family):
            dist.__dict__.update(members(dist))


def _mend_unchecked(dist: Distribution) -> None:
    _mend(dist)
    dist._validate_args = False


def _given(dist: Distribution) -> Tensor | None:
    """The probabilities that a discrete distribution was given, as opposed to log-odds."""
    known = vars(dist) if isinstance(dist, (*_BY_PROBABILITY, *_CLAMPED)) else {}
    probs = known.get("probs")
    # torch evaluates the other form when it checks arguments, and then tells by `_param` which one was given.
    return probs if "logits" not in known or known.get("_param") is probs else None


def _log_odds(dist: NegativeBinomial) -> dict[str, Any]:
    return {"logits": _log(dist.probs) - _log_complement(dist.probs)}


def _log_probabilities(dist: Categorical) -> dict[str, Any]:
    return {"logits": _log(dist.probs)}


def _log(probs: Tensor) -> Tensor:
    """The logarithm; of zero that of the smallest number that has a reciprocal."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def _log_complement(probs: Tensor) -> Tensor:
    """The logarithm of one minus the probabilities; for one that of the largest number below it."""
    return (-probs.clamp(max=1 - torch.finfo(probs.dtype).eps / 2)).log1p()


def _own(family: type[Distribution], member: str, fn: Callable[..., Tensor]) -> Callable[[Any], dict[str, Any]]:
    """Puts `fn` in the place of a method of the family, unless a subclass has done so."""
    method = getattr(family, member)
    return lambda dist: {member: partial(fn, dist)} if getattr(type(dist), member) is method else {}


def _checked(log_prob: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A log-probability that looks at its argument where its distribution is to."""

    def checked(dist: Distribution, value: Tensor) -> Tensor:
        if dist._validate_args:
            dist._validate_sample(value)
        return log_prob(dist, value)

    return checked


def _by_probability(members: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """The members of a distribution that was given probabilities; none of one that was given log-odds."""
    return lambda dist: {} if _given(dist) is None else members(dist)


def _dirichlet(dist: Dirichlet, sample_shape: torch.Size = _ONE) -> Tensor:
    return torch._sample_dirichlet(dist.concentration.expand(dist._extended_shape(sample_shape)))


def _gamma(dist: Gamma, sample_shape: torch.Size = _ONE) -> Tensor:
    shape = dist._extended_shape(sample_shape)
    return _positive(torch._standard_gamma(dist.concentration.expand(shape)) / dist.rate.expand(shape))


def _fisher_snedecor(dist: FisherSnedecor, sample_shape: torch.Size = _ONE) -> Tensor:
    ratio = dist._gamma1.rsample(sample_shape) / dist._gamma2.rsample(sample_shape)
    return ratio.clamp(min=torch.finfo(ratio.dtype).tiny)


class _Positive(torch.autograd.Function):
    """The smallest normal number in place of smaller ones, with the derivative of those, as torch's gamma has it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(draw: Tensor) -> Tensor:
        return draw.clamp(min=torch.finfo(draw.dtype).tiny)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, cotangent: Tensor) -> Tensor:
        return cotangent

    @staticmethod
    def jvp(ctx: object, tangent: Tensor) -> Tensor:
        return tangent.clone()


_positive: Callable[[Tensor], Tensor] = _Positive.apply


def _bernoulli(dist: Bernoulli, value: Tensor) -> Tensor:
    return value * _log(dist.probs) + (1 - value) * _log_complement(dist.probs)


def _binomial(dist: Binomial, value: Tensor) -> Tensor:
    failures = dist.total_count - value
    ways = torch.lgamma(dist.total_count + 1) - torch.lgamma(value + 1) - torch.lgamma(failures + 1)
    return ways + value * _log(dist.probs) + failures * _log_complement(dist.probs)


def _geometric(dist: Geometric, value: Tensor) -> Tensor:
    value, probs = torch.broadcast_tensors(value, dist.probs)
    return value * (-probs.masked_fill((probs == 1) & (value == 0), 0)).log1p() + dist.probs.log()


def _multinomial(dist: Multinomial, value: Tensor) -> Tensor:
    logits, value = torch.broadcast_tensors(dist.logits, value)
    ways = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
    return ways + (logits.masked_fill((value == 0) & (logits == -torch.inf), 0) * value).sum(-1)


_CLAMPED = (ContinuousBernoulli, LogitRelaxedBernoulli)
_BY_PROBABILITY = (Bernoulli, Binomial, Categorical, Geometric, NegativeBinomial)
_MENDS: dict[type[Distribution], Callable[[Any], dict[str, Any]]] = {
    Bernoulli: _by_probability(_own(Bernoulli, "log_prob", _checked(_bernoulli))),
    Binomial: _by_probability(_own(Binomial, "log_prob", _checked(_binomial))),
    Categorical: _by_probability(_log_probabilities),
    Dirichlet: _own(Dirichlet, "rsample", _dirichlet),
    FisherSnedecor: _own(FisherSnedecor, "rsample", _fisher_snedecor),
    Gamma: _own(Gamma, "rsample", _gamma),
    Geometric: _own(Geometric, "log_prob", _checked(_geometric)),
    Multinomial: _own(Multinomial, "log_prob", _checked(_multinomial)),
    NegativeBinomial: _by_probability(_log_odds),
    Wishart: _own(Wishart, "rsample", Wishart._bartlett_sampling),
}
_FAMILIES = (*_MENDS, *_CLAMPED)
