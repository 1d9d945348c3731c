"""Pytrees of parameters as vectors: one flat vector for methods that solve linear systems, and sums of several."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Vector:
    """The floating-point leaves of a pytree, flat, and the way back.

    Attributes:
        flat: all entries, shape `(size,)`; no gradients attached.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.optimizers.vectors import Vector
        >>> vector = Vector({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)})
        >>> vector.flat
        tensor([1., 2., 3.])
        >>> vector.moved(torch.ones(3))
        {'a': tensor([2., 3.]), 'b': tensor(4.)}
    """

    def __init__(self, tree: Any) -> None:
        self._leaves, self._spec = pytree.tree_flatten(tree)
        self._floats = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in self._leaves]
        parts = [leaf.detach().reshape(-1) for leaf, f in zip(self._leaves, self._floats, strict=True) if f]
        self.flat: Tensor = torch.cat(parts)

    def at(self, flat: Tensor) -> Any:
        """The pytree with other entries."""
        sizes = [leaf.numel() for leaf, f in zip(self._leaves, self._floats, strict=True) if f]
        parts = iter(flat.split(sizes))
        leaves = zip(self._leaves, self._floats, strict=True)
        return pytree.tree_unflatten([next(parts).view_as(leaf) if f else leaf for leaf, f in leaves], self._spec)

    def moved(self, step: Tensor) -> Any:
        """The pytree with a step added to all entries."""
        return self.at(self.flat + step)


def added(trees: Iterable[Any]) -> Any:
    """The sum of some pytrees of tensors, added one after the other in their order; at least one.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.optimizers.vectors import added
        >>> added({"a": torch.tensor([1.0, float(i)])} for i in range(3))
        {'a': tensor([3., 3.])}
    """
    each = iter(trees)
    total = next(each)
    for tree in each:
        total = pytree.tree_map(torch.add, total, tree)
    return total
