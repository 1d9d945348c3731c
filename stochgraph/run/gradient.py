"""A gradient at given inputs: copies of them that are watched, and what is found there in the shape of the inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..tensors.trees import map_tensors
from .cuts import entries_at_once


class Point:
    """The inputs at which a gradient is taken.

    Attributes:
        named: copies of the inputs by name, detached from whatever they came from.
        wanted: for every leaf of the differentiated inputs, whether it is watched.
        watched: the leaves among them that the gradient is taken with respect to, in order.

    Args:
        given: the inputs by name, pytrees.
        wrt: the names of the differentiated ones.
        is_wanted: whether a leaf of those is differentiated.
    """

    def __init__(self, given: Mapping[str, Any], wrt: Sequence[str], is_wanted: Callable[[Any], bool]) -> None:
        leaves, self._spec = pytree.tree_flatten([given[name] for name in wrt])
        self.wanted = [is_wanted(leaf) for leaf in leaves]
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.watched = [leaf.requires_grad_() for leaf, wanted in zip(leaves, self.wanted, strict=True) if wanted]
        self.named = {name: map_tensors(Tensor.detach, value) for name, value in given.items() if name not in wrt}
        self.named.update(zip(wrt, pytree.tree_unflatten(leaves, self._spec), strict=True))

    @cached_property
    def entries(self) -> int:
        """The number of entries of the largest node of a chunk here."""
        return entries_at_once(self.watched[0].device, max(map(Tensor.numel, self.watched)))

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """The gradient of a number that was computed here: one tensor for every watched leaf."""
        if not loss.requires_grad:  # an estimator may drop every path
            return [torch.zeros_like(leaf) for leaf in self.watched]
        return list(torch.autograd.grad(loss, self.watched, allow_unused=True, materialize_grads=True))

    def shaped(self, gradient: Iterable[Tensor]) -> Any:
        """A gradient as a pytree like the differentiated input, or a tuple of them; other leaves are `None`."""
        found = iter(gradient)
        leaves = [next(found) if wanted else None for wanted in self.wanted]
        result = pytree.tree_unflatten(leaves, self._spec)
        return result[0] if len(result) == 1 else tuple(result)
