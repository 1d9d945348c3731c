"""What torch distributions are made of: their tensors, distributions around other tensors, and moving supports."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution, constraints
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
