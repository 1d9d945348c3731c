"""From one draw to whole plates: alignment of leading dimensions, and functions of one draw mapped over them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .axes import Axes
from .trees import map_tensors, tensors


def align(value: Tensor, axes: Axes, target: Axes, rank: int = 0) -> Tensor:
    """View `value` so that it broadcasts against values with the axes `target`.

    Args:
        value: shape `(*axes, *event)`.
        axes: the axes of `value`, a subset of `target`.
        target: the axes wanted; those that `value` lacks become dimensions of size 1.
        rank: the least number of event dimensions wanted; missing ones are inserted in front of the event.
    """
    missing = max(rank - (value.dim() - len(axes)), 0)
    if axes == target and not missing:
        return value
    if len(target) == len(axes) + 1 and not missing:  # one operation, whose derivative is one too
        return value.unsqueeze(next(d for d, axis in enumerate(target) if axis not in axes))
    event = value.shape[len(axes) :]
    sizes = dict(zip(axes, value.shape[: len(axes)], strict=True))
    return value.reshape([sizes.get(axis, 1) for axis in target] + [1] * missing + list(event))


def align_tree(value: object, axes: Axes, target: Axes) -> Any:
    """`align` for every tensor of a pytree."""
    if axes == target:
        return value
    return map_tensors(lambda leaf: align(leaf, axes, target), value)


def broadcast(values: list[Any], axes: list[Axes], target: Axes) -> list[Any]:
    """Align tensors for an elementwise operation: axes with axes, event dimensions with event dimensions."""
    tensors = [isinstance(value, Tensor) for value in values]
    ranks = [value.dim() - len(a) for value, a, t in zip(values, axes, tensors, strict=True) if t]
    rank = max(ranks, default=0)
    if all(a == target or not a for a in axes) and len(set(ranks)) <= 1:
        return values
    # A value without axes and without plates in front of its event broadcasts from the right by itself.
    return [
        align(value, a, target, rank) if is_tensor and a else value
        for value, a, is_tensor in zip(values, axes, tensors, strict=True)
    ]


def vectorize(fn: Callable[..., Any], dims: int) -> Callable[..., Any]:
    """Map `fn`, written for one draw, over `dims` leading dimensions of all its tensor arguments.

    Every tensor argument has `dims` leading dimensions, each either the size of the axis or 1. Size 1 means that
    the argument does not vary along the axis: it is passed whole instead of being copied. Results have the full
    leading dimensions, of size 1 along axes on which no argument varies.
    """

    def mapped(*args: object) -> Any:
        leaves, spec = pytree.tree_flatten(args)
        varies = [_varying(leaf, dims) for leaf in leaves]
        levels = [d for d in range(dims) if any(v[d] for v in varies)]
        squeezed = [_squeeze(leaf, v) for leaf, v in zip(leaves, varies, strict=True)]

        def call(*flat: object) -> Any:
            return fn(*pytree.tree_unflatten(list(flat), spec))

        for d in reversed(levels):
            call = torch.vmap(call, in_dims=tuple(0 if v[d] else None for v in varies))
        return pytree.tree_map(lambda out: _unsqueeze(out, levels, dims), call(*squeezed))

    return fn if dims == 0 else mapped


def vectorize_shared(
    fn: Callable[..., Tensor],
    stacked: Callable[..., Tensor],
    value: object,
    parents: list[Any],
    parent_axes: list[Axes],
    axes: Axes,
) -> Tensor:
    """`fn(value, *parents)` for a function that takes batches of values with the same parents.

    Only axes along which a parent varies are mapped; in the others the value is handed over as a batch.

    Args:
        fn: a function of a value with any dimensions in front, and of its parents.
        stacked: the same mapped over one dimension in front of all of them.
        value: shape `(*axes, ...)`, of size 1 along axes that it does not have.
        parents: shape `(*parent_axes, ...)` each.
        parent_axes: the axes of each parent.
        axes: all axes, those of the result.
    """
    found = zip(parents, parent_axes, strict=True)
    varying = {a for v, own in found for leaf in tensors(v) for a, n in zip(own, leaf.shape, strict=False) if n != 1}
    mapped = tuple(axis for axis in axes if axis in varying)
    order = [*mapped, *(axis for axis in axes if axis not in varying)]
    alone = [_alone(v, own, mapped) for v, own in zip(parents, parent_axes, strict=True)]
    mapping = vectorize(stacked, len(mapped) - 1) if mapped else fn
    result = mapping(_reorder(value, [axes.index(axis) for axis in order]), *alone)
    return _reorder(result, [order.index(axis) for axis in axes])


def _alone(parent: object, axes: Axes, mapped: Axes) -> Any:
    """A parent with the mapped axes only; it is of size 1 along all others."""
    kept = tuple(axis for axis in axes if axis in mapped)
    if kept != axes:
        wanted = [axis in mapped for axis in axes]
        parent = map_tensors(lambda leaf: _squeeze(leaf, wanted), parent)
    return align_tree(parent, kept, mapped)


def _reorder(value: object, order: list[int]) -> Any:
    """The value with its leading dimensions in another order."""
    if order == sorted(order):
        return value
    return map_tensors(lambda leaf: leaf.movedim(order, tuple(range(len(order)))), value)


def _varying(leaf: object, dims: int) -> list[bool]:
    if not isinstance(leaf, Tensor):
        return [False] * dims
    return [size != 1 for size in leaf.shape[:dims]]


def _squeeze(leaf: object, varies: list[bool]) -> Any:
    if not isinstance(leaf, Tensor) or all(varies):
        return leaf
    dims = len(varies)
    if sum(varies) == dims - 1:  # one operation, whose derivative is one too
        return leaf.squeeze(varies.index(False))
    return leaf.reshape([n for n, v in zip(leaf.shape[:dims], varies, strict=True) if v] + list(leaf.shape[dims:]))


def _unsqueeze(out: object, levels: list[int], dims: int) -> Any:
    if not isinstance(out, Tensor):
        out = torch.as_tensor(out)
    for d in range(dims):
        if d not in levels:
            out = out.unsqueeze(d)
    return out
