"""Pytrees on the paths that run for every draw: torch's own functions cost more than a small tensor operation.

Tensors, dictionaries, lists, tuples and named tuples are walked here; any other type is left to torch's registry.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with `fn` applied to its tensors; other leaves stay."""
    if isinstance(tree, Tensor):
        return fn(tree)
    kind = type(tree)
    if kind is dict:
        return {key: map_tensors(fn, value) for key, value in tree.items()}
    if kind is tuple or kind is list:
        return kind([map_tensors(fn, value) for value in tree])
    if _is_named_tuple(kind):
        return kind._make([map_tensors(fn, value) for value in tree])
    return pytree.tree_map_only(Tensor, fn, tree)


def recordable(leaf: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode, which autograd refuses."""
    return leaf.clone() if leaf.is_inference() else leaf


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    kind = type(tree)
    if kind is dict:
        return [leaf for value in tree.values() for leaf in tensors(value)]
    if kind is tuple or kind is list or _is_named_tuple(kind):
        return [leaf for value in tree for leaf in tensors(value)]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
