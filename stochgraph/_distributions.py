"""What torch distributions are made of: their tensors, distributions around other tensors, and moving supports.

NOTE [what is mended]
Some of torch's log-probabilities are not what a surrogate needs. Discrete distributions that are given probabilities
clamp them to an epsilon before they take logarithms, while their draws do not: below it the score is zero, where it
should be large. And two of them (`Geometric`, `Multinomial`) pick elements by value, which cannot be mapped. A copy of
such a distribution gets its own logarithms, or its own `log_prob`, equal to torch's wherever torch has the right one.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Geometric,
    Independent,
    Multinomial,
    NegativeBinomial,
    TransformedDistribution,
    constraints,
)
from torch.distributions.transforms import Transform, _InverseTransform

from ._errors import DeclarationError

# Tensors that distributions hold without their batch dimensions, and the event dimensions of each.
_UNBROADCAST = {
    "_unbroadcasted_scale_tril": 2,
    "_unbroadcasted_cov_factor": 2,
    "_unbroadcasted_cov_diag": 1,
    "_capacitance_tril": 2,
    "temperature": 0,
}


def _parts(thing: Any) -> list[tuple[str, Any]]:
    """The attributes of a distribution or transform that hold parameters. The cache of an inverse is none of them."""
    forward = isinstance(thing, Transform) and not isinstance(thing, _InverseTransform)
    kept = [(name, part) for name, part in vars(thing).items() if not (forward and name == "_inv")]
    return [(name, part) for name, part in kept if isinstance(part, (Tensor, Distribution, Transform, list))]


def collect(thing: Any) -> list[Tensor]:
    """The tensors that a distribution is made of, in a fixed order."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, list):
        return [leaf for part in thing for leaf in collect(part)]
    if isinstance(thing, (Distribution, Transform)):
        return [leaf for _, part in _parts(thing) for leaf in collect(part)]
    raise DeclarationError(f"a distribution holds {type(thing).__name__}, which cannot be mapped; use a Sampler")


def rebuild(thing: Any, leaves: Iterator[tuple[Tensor, bool]], sizes: torch.Size, rank: int) -> Any:
    """The same distribution around other tensors, its batch shape extended in front by `sizes`.

    `rank` counts the dimensions of one draw: a transform's tensors broadcast against those.
    """
    if isinstance(thing, list):
        return [rebuild(part, leaves, sizes, rank) for part in thing]
    rebuilt = copy.copy(thing)
    for name, part in _parts(thing):
        if isinstance(part, Tensor):
            wanted = rank if isinstance(thing, Transform) else _least_rank(thing, name)
            leaf, varies = next(leaves)
            alone = name == "temperature" and not varies  # torch lines it up with the categories
            rebuilt.__dict__[name] = leaf[(0,) * len(sizes)] if alone else _pad(leaf, len(sizes), wanted)
        else:
            rebuilt.__dict__[name] = rebuild(part, leaves, sizes, rank)
    if isinstance(thing, Distribution):
        rebuilt._batch_shape = sizes + thing._batch_shape
    return rebuilt


def _least_rank(dist: Distribution, name: str) -> int:
    """How many dimensions a parameter of one draw's distribution has once it has all batch dimensions."""
    return len(dist._batch_shape) + _UNBROADCAST[name] if name in _UNBROADCAST else 0


def _pad(value: Tensor, lead: int, rank: int) -> Tensor:
    """Insert dimensions of size 1 behind the `lead` plates until one draw's part has `rank` dimensions."""
    own = value.shape[lead:]
    return value.reshape(*value.shape[:lead], *[1] * max(rank - len(own), 0), *own)


def parts_of(dist: Distribution) -> Iterator[Distribution]:
    """The distribution, and those that its draws and log-probabilities are made of."""
    yield dist
    for _, part in _members(dist):
        yield from parts_of(part)


def _members(dist: Distribution) -> list[tuple[str, Distribution]]:
    # torch's Multinomial keeps a binomial for its entropy alone.
    parts = [(name, part) for name, part in vars(dist).items() if name != "_binomial"]
    return [(name, part) for name, part in parts if isinstance(part, Distribution)]


def mended(dist: Distribution, checks: bool = True) -> Distribution:
    """The distribution, or a copy whose log-probabilities are right at the edge and can be mapped. See the note.

    Without `checks`, draws that are scored are not looked at.
    """
    if checks and not any(isinstance(part, tuple(_MENDS)) for part in parts_of(dist)):
        return dist
    return copied(dist, _mend if checks else _mend_unchecked)


def copied(dist: Distribution, change: Callable[[Any], None]) -> Any:
    """A copy of the distribution, and of those that it is made of, each changed in place."""
    made = copy.copy(dist)
    for name, part in _members(dist):
        made.__dict__[name] = copied(part, change)
    change(made)
    return made


def _mend(dist: Distribution) -> None:
    for family, members in _MENDS.items():
        if isinstance(dist, family):
            dist.__dict__.update(members(dist))


def _mend_unchecked(dist: Distribution) -> None:
    _mend(dist)
    dist._validate_args = False


def margins(dist: Distribution) -> list[Tensor]:
    """How far the probabilities that discrete parts were given are from the edge: 0 where an outcome is impossible."""
    given = [(part, _given(part)) for part in parts_of(dist)]
    return [p if isinstance(part, Categorical) else p * (1 - p) for part, p in given if p is not None]


def _given(dist: Distribution) -> Tensor | None:
    """The probabilities that a discrete distribution was given, as opposed to log-odds."""
    known = vars(dist) if isinstance(dist, _BY_PROBABILITY) else {}
    probs = known.get("probs")
    # torch evaluates the other form when it checks arguments, and then tells by `_param` which one was given.
    return probs if "logits" not in known or known.get("_param") is probs else None


def _log_odds(dist: Any) -> dict[str, Any]:
    probs = _given(dist)
    return {} if probs is None else {"logits": _log(probs) - _log_complement(probs)}


def _log_probabilities(dist: Any) -> dict[str, Any]:
    probs = _given(dist)
    return {} if probs is None else {"logits": _log(probs)}


def _log(probs: Tensor) -> Tensor:
    """The logarithm; of zero that of the smallest number that has a reciprocal."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def _log_complement(probs: Tensor) -> Tensor:
    """The logarithm of one minus the probabilities; for one that of the largest number below it."""
    return (-probs.clamp(max=1 - torch.finfo(probs.dtype).eps / 2)).log1p()


def _own_log_prob(
    family: Any, log_prob: Callable[[Any, Tensor], Tensor], by_probability: bool = False
) -> Callable[[Any], dict[str, Any]]:
    """Puts `log_prob` in the place of the family's, unless a subclass has done so."""

    def checked(dist: Any, value: Tensor) -> Tensor:
        if dist._validate_args:
            dist._validate_sample(value)
        return log_prob(dist, value)

    def members(dist: Any) -> dict[str, Any]:
        other = type(dist).log_prob is not family.log_prob or (by_probability and _given(dist) is None)
        return {} if other else {"log_prob": partial(checked, dist)}

    return members


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


_BY_PROBABILITY = (Bernoulli, Binomial, Categorical, Geometric, NegativeBinomial)
_MENDS: dict[type[Distribution], Callable[[Any], dict[str, Any]]] = {
    Bernoulli: _own_log_prob(Bernoulli, _bernoulli, by_probability=True),
    Binomial: _own_log_prob(Binomial, _binomial, by_probability=True),
    Categorical: _log_probabilities,
    Geometric: _own_log_prob(Geometric, _geometric),
    Multinomial: _own_log_prob(Multinomial, _multinomial),
    NegativeBinomial: _log_odds,
}


def most_trials(dist: Distribution) -> Tensor:
    """The largest number of trials of the binomials in a distribution, on which the number of its outcomes depends."""
    counts = [part.total_count.max() for part in parts_of(dist) if isinstance(part, Binomial)]
    return torch.stack(counts).max() if counts else torch.zeros(())


def finite_support(dist: Distribution, trials: int) -> tuple[Tensor, int]:
    """All outcomes of every entry of a batch, `(outcomes, *batch, ...)`, and the number of dimensions of the batch.

    Entries of `Independent` are listed apart: its batch is that of its base. Binomials have the outcomes of one with
    this many `trials`, some of which may be impossible.
    """
    if isinstance(dist, Independent):
        return finite_support(dist.base_dist, trials)
    batch = len(dist.batch_shape)
    if isinstance(dist, Binomial):
        found = torch.arange(trials + 1, dtype=dist.total_count.dtype, device=dist.total_count.device)
    elif isinstance(dist, Multinomial):
        kinds = torch.arange(dist.event_shape[0], device=dist.probs.device)
        picked = itertools.combinations_with_replacement(range(len(kinds)), dist.total_count)
        picks = torch.tensor(list(picked), device=kinds.device)
        found = (picks.unsqueeze(-1) == kinds).sum(1).to(dist.probs.dtype)
    elif dist.has_enumerate_support:
        return dist.enumerate_support(expand=True), batch
    else:
        raise NotImplementedError(f"{type(dist).__name__} has no finite support")
    found = found.reshape(-1, *[1] * batch, *dist.event_shape)
    return found.expand(-1, *dist.batch_shape, *dist.event_shape), batch


def moving_support(dist: Distribution) -> bool:
    """Whether the support of a built distribution moves with what is being differentiated. Autograd alone can tell."""
    if not isinstance(type(dist).support, property):  # the same for all parameters
        return False
    if isinstance(dist, Independent):
        return moving_support(dist.base_dist)
    if isinstance(dist, TransformedDistribution):
        return moving_support(dist.base_dist) or _moves_a_bound(dist)
    return any(isinstance(bound, Tensor) and bound.requires_grad for bound in vars(dist.support).values())


def _moves_a_bound(dist: TransformedDistribution) -> bool:
    """Whether a transform with differentiated parameters acts on a set that has bounds."""
    domain: Any = dist.base_dist.support
    for transform in dist.transforms:
        while isinstance(domain, constraints.independent):
            domain = domain.base_constraint
        if domain is not constraints.real and any(x.requires_grad for x in collect(transform)):
            return True
        domain = transform.codomain
    return False
