"""The parts of torch distributions: tensors, transforms, supports; and copies around other ones."""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Binomial,
    Chi2,
    Dirichlet,
    Distribution,
    FisherSnedecor,
    Gamma,
    Independent,
    InverseGamma,
    Multinomial,
    StudentT,
    TransformedDistribution,
    Wishart,
    constraints,
)
from torch.distributions.transforms import PowerTransform, StickBreakingTransform, Transform, _InverseTransform
from torch.nn.functional import logsigmoid

from ..errors.exceptions import DeclarationError

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
    """The number of dimensions that a parameter of one draw's distribution has once it has all batch dimensions."""
    return len(dist._batch_shape) + _UNBROADCAST[name] if name in _UNBROADCAST else 0


def _pad(value: Tensor, lead: int, rank: int) -> Tensor:
    """Insert dimensions of size 1 behind the `lead` plates until one draw's part has `rank` dimensions."""
    own = value.shape[lead:]
    return value.reshape(*value.shape[:lead], *[1] * max(rank - len(own), 0), *own)


def inverts(dist: Distribution) -> bool:
    """True if scoring a draw inverts transforms."""
    return any(isinstance(part, TransformedDistribution) for part in parts_of(dist))


def moving(dist: Distribution) -> Distribution:
    """A copy whose transforms remember what they mapped last, so that its own draw is scored without inverses."""
    return copied(dist, _remember)


def _remember(dist: Distribution) -> None:
    dist._validate_args = False
    if isinstance(dist, TransformedDistribution):
        dist.transforms = [_remembering(transform) for transform in dist.transforms]


def _remembering(thing: Any) -> Any:
    if isinstance(thing, list):
        return [_remembering(part) for part in thing]
    if not isinstance(thing, Transform):
        return thing
    made = copy.copy(thing)
    made.__dict__.update({name: _remembering(part) for name, part in _parts(thing)})
    made._cache_size, made._cached_x_y = 1, (None, None)
    if type(made) in _LOG_SLOPES:
        made.__dict__["log_abs_det_jacobian"] = functools.partial(_LOG_SLOPES[type(made)], made)
    return made


def _power(power: PowerTransform, x: Tensor, y: Tensor) -> Tensor:
    """The log-slope from what is raised: torch takes the power's own logarithm, which may be that of zero."""
    return power.exponent.abs().log() + (power.exponent - 1) * x.log()


def _stick_breaking(_: StickBreakingTransform, x: Tensor, y: Tensor) -> Tensor:
    """The log-determinant from what was broken: the pieces are clamped by torch, and have no derivative there."""
    x = x - (x.shape[-1] + 1 - x.new_ones(x.shape[-1]).cumsum(-1)).log()
    left = logsigmoid(-x).cumsum(-1)  # the logarithm of what is left of the stick after each break
    return (logsigmoid(x) + left).sum(-1)


_LOG_SLOPES: dict[type[Transform], Callable[..., Tensor]] = {
    PowerTransform: _power,
    StickBreakingTransform: _stick_breaking,
}
_NOISE_PARAMETERS: dict[type[Distribution], tuple[str, ...]] = {
    Beta: ("concentration1", "concentration0"),
    Chi2: ("df",),
    Dirichlet: ("concentration",),
    FisherSnedecor: ("df1", "df2"),
    Gamma: ("concentration",),
    InverseGamma: ("concentration",),
    StudentT: ("df",),
    Wishart: ("df",),
}


def noise_parameters(family: type[Distribution]) -> tuple[str, ...]:
    """The parameters of a family that the noise of its pathwise draws depends on."""
    return next((names for known, names in _NOISE_PARAMETERS.items() if issubclass(family, known)), ())


def named_families(factory: Any) -> list[type[Distribution]]:
    """The classes of distributions that a factory is, or that the code of a function names."""
    if isinstance(factory, functools.partial):
        return named_families(factory.func)
    found = [factory]
    if inspect.isroutine(factory) and hasattr(factory, "__code__"):
        seen = inspect.getclosurevars(factory)
        found = [*seen.nonlocals.values(), *seen.globals.values()]
        for owner in found:  # and what it names of modules, torch.distributions.Normal, one within the other
            inner = [getattr(owner, name, None) for name in seen.unbound if inspect.ismodule(owner)]
            found += [one for one in inner if not any(one is other for other in found)]
    return [one for one in found if isinstance(one, type) and issubclass(one, Distribution)]


def is_straight_through(dist: Distribution | type[Distribution]) -> bool:
    """True if draws are discrete and have a derivative all the same: that of something else."""
    parts = parts_of(dist) if isinstance(dist, Distribution) else [dist]
    return any(part.has_rsample is True and _is_discrete(part) for part in parts)


def _is_discrete(dist: Any) -> bool:
    try:
        return bool(dist.support.is_discrete)
    except (AttributeError, NotImplementedError):  # it does not say
        return False


def parts_of(dist: Distribution) -> Iterator[Distribution]:
    """The distribution, and those that its draws and log-probabilities are made of."""
    yield dist
    for _, part in _members(dist):
        yield from parts_of(part)


def _members(dist: Distribution) -> list[tuple[str, Distribution]]:
    # torch's Multinomial keeps a binomial for its entropy alone.
    parts = [(name, part) for name, part in vars(dist).items() if name != "_binomial"]
    return [(name, part) for name, part in parts if isinstance(part, Distribution)]


def copied(dist: Distribution, change: Callable[[Any], None]) -> Any:
    """A copy of the distribution, and of those that it is made of, each changed in place."""
    made = copy.copy(dist)
    for name, part in _members(dist):
        made.__dict__[name] = copied(part, change)
    change(made)
    return made


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
    """True if the support of a built distribution moves with what is being differentiated. Autograd alone can tell."""
    if not isinstance(type(dist).support, property):  # the same for all parameters
        return False
    if isinstance(dist, Independent):
        return moving_support(dist.base_dist)
    if isinstance(dist, TransformedDistribution):
        return moving_support(dist.base_dist) or _moves_a_bound(dist)
    return any(isinstance(bound, Tensor) and bound.requires_grad for bound in vars(dist.support).values())


def _moves_a_bound(dist: TransformedDistribution) -> bool:
    """True if a transform with differentiated parameters acts on a set that has bounds."""
    domain: Any = dist.base_dist.support
    for transform in dist.transforms:
        while isinstance(domain, constraints.independent):
            domain = domain.base_constraint
        if domain is not constraints.real and any(x.requires_grad for x in collect(transform)):
            return True
        domain = transform.codomain
    return False
