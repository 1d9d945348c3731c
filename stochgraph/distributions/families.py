"""The parts of torch distributions: tensors, transforms, supports; and copies around other ones."""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from functools import singledispatch, singledispatchmethod
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


Made = Distribution | Transform


def _parts(thing: Made) -> list[tuple[str, Any]]:
    """The attributes of a distribution or transform that hold parameters. The cache of an inverse is none of them."""
    forward = isinstance(thing, Transform) and not isinstance(thing, _InverseTransform)
    kept = [(name, part) for name, part in vars(thing).items() if not (forward and name == "_inv")]
    return [(name, part) for name, part in kept if isinstance(part, (Tensor, Distribution, Transform, list))]


@singledispatch
def collect(thing: object) -> list[Tensor]:
    """The tensors that a distribution is made of, in a fixed order."""
    raise DeclarationError(f"a distribution holds {type(thing).__name__}, which cannot be mapped; use a Sampler")


@collect.register
def _collect_tensor(thing: Tensor) -> list[Tensor]:
    return [thing]


@collect.register
def _collect_list(thing: list) -> list[Tensor]:  # type: ignore[type-arg]
    return [leaf for part in thing for leaf in collect(part)]


@collect.register
def _collect_made(thing: Made) -> list[Tensor]:
    return [leaf for _, part in _parts(thing) for leaf in collect(part)]


class Rebuilding:
    """A distribution made anew around other tensors, its batch shape extended in front by plates.

    Args:
        leaves: the tensors in the order of `collect`, each with whether it varies from draw to draw.
        sizes: the sizes of the plates.
        rank: the number of dimensions of one draw: a transform's tensors broadcast against those.
    """

    def __init__(self, leaves: Iterator[tuple[Tensor, bool]], sizes: torch.Size, rank: int) -> None:
        self.leaves, self.sizes, self.rank = leaves, sizes, rank

    @singledispatchmethod
    def rebuilt(self, part: object, name: str, least: int) -> object:
        """An attribute made anew; `least` is the number of dimensions that a tensor of this name has at least."""
        raise DeclarationError(f"a distribution holds {type(part).__name__}, which cannot be mapped; use a Sampler")

    @rebuilt.register
    def _(self, part: Tensor, name: str, least: int) -> Tensor:
        leaf, varies = next(self.leaves)
        alone = name == "temperature" and not varies  # torch lines it up with the categories
        return leaf[(0,) * len(self.sizes)] if alone else _pad(leaf, len(self.sizes), least)

    @rebuilt.register
    def _(self, part: list, name: str, least: int) -> list[object]:  # type: ignore[type-arg]
        return [self.rebuilt(one, name, least) for one in part]

    @rebuilt.register
    def _(self, part: Transform, name: str, least: int) -> Transform:
        made = copy.copy(part)
        made.__dict__.update({key: self.rebuilt(inner, key, self.rank) for key, inner in _parts(part)})
        return made

    @rebuilt.register
    def _(self, part: Distribution, name: str, least: int) -> Distribution:
        return self.distribution(part)

    def distribution(self, dist: Distribution) -> Distribution:
        """The distribution around the next tensors."""
        made = copy.copy(dist)
        batch = len(dist._batch_shape)
        for name, part in _parts(dist):
            least = batch + _UNBROADCAST[name] if name in _UNBROADCAST else 0
            made.__dict__[name] = self.rebuilt(part, name, least)
        made._batch_shape = self.sizes + dist._batch_shape
        return made


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


@singledispatch
def _remembering(thing: object) -> Any:
    return thing


@_remembering.register
def _remembering_list(thing: list) -> Any:  # type: ignore[type-arg]
    return [_remembering(part) for part in thing]


@_remembering.register
def _remembering_transform(thing: Transform) -> Transform:
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


def named_families(factory: Callable[..., object]) -> list[type[Distribution]]:
    """The classes of distributions that a factory is, or that the code of a function names."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    found: list[Any] = [factory]
    if inspect.isroutine(factory) and hasattr(factory, "__code__"):
        seen = inspect.getclosurevars(factory)
        found = [*seen.nonlocals.values(), *seen.globals.values()]
        for owner in found:  # and what it names of modules, torch.distributions.Normal, one within the other
            inner = [getattr(owner, name, None) for name in seen.unbound if inspect.ismodule(owner)]
            found += [one for one in inner if not any(one is other for other in found)]
    return [one for one in found if isinstance(one, type) and issubclass(one, Distribution)]


def is_straight_through(part: Distribution | type[Distribution]) -> bool:
    """True if its draws are discrete and have a derivative all the same: that of something else."""
    return part.has_rsample is True and _is_discrete(part)


def _is_discrete(part: Distribution | type[Distribution]) -> bool:
    try:
        return bool(part.support.is_discrete)  # type: ignore[union-attr]
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


@singledispatch
def finite_support(dist: Distribution, trials: int) -> tuple[Tensor, int]:
    """All outcomes of every entry of a batch, `(outcomes, *batch, ...)`, and the number of dimensions of the batch.

    Entries of `Independent` are listed apart: its batch is that of its base. Binomials have the outcomes of one with
    this many `trials`, some of which may be impossible.
    """
    if not dist.has_enumerate_support:
        raise NotImplementedError(f"{type(dist).__name__} has no finite support")
    return dist.enumerate_support(expand=True), len(dist.batch_shape)


@finite_support.register
def _support_of_entries(dist: Independent, trials: int) -> tuple[Tensor, int]:  # type: ignore[type-arg]
    return finite_support(dist.base_dist, trials)


@finite_support.register
def _support_of_trials(dist: Binomial, trials: int) -> tuple[Tensor, int]:
    found = torch.arange(trials + 1, dtype=dist.total_count.dtype, device=dist.total_count.device)
    return _in_all_entries(found, dist)


@finite_support.register
def _support_of_counts(dist: Multinomial, trials: int) -> tuple[Tensor, int]:
    kinds = torch.arange(dist.event_shape[0], device=dist.probs.device)
    picked = itertools.combinations_with_replacement(range(len(kinds)), dist.total_count)
    picks = torch.tensor(list(picked), device=kinds.device)
    return _in_all_entries((picks.unsqueeze(-1) == kinds).sum(1).to(dist.probs.dtype), dist)


def _in_all_entries(found: Tensor, dist: Distribution) -> tuple[Tensor, int]:
    """The same outcomes, `(outcomes, *event)`, for every entry of a batch."""
    batch = len(dist.batch_shape)
    found = found.reshape(-1, *[1] * batch, *dist.event_shape)
    return found.expand(-1, *dist.batch_shape, *dist.event_shape), batch


def moving_support(dist: Distribution) -> bool:
    """True if the support of a built distribution moves with what is being differentiated. Autograd alone can tell."""
    # One that is the same for all parameters is held by the class itself.
    return isinstance(type(dist).support, property) and _moves(dist)


@singledispatch
def _moves(dist: Distribution) -> bool:
    return any(isinstance(bound, Tensor) and bound.requires_grad for bound in vars(dist.support).values())


@_moves.register
def _entries_move(dist: Independent) -> bool:  # type: ignore[type-arg]
    return moving_support(dist.base_dist)


@_moves.register
def _transforms_move(dist: TransformedDistribution) -> bool:
    return moving_support(dist.base_dist) or _moves_a_bound(dist)


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
