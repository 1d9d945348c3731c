"""Trees of tensors as one vector, and the way back."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..run.compiled import Compiled


def vector(tree: object) -> Tensor:
    """The tensors of a tree, one behind the other; what else is in it is left out."""
    return torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)])


def flattened(tree: object) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The numbers of a tree as one vector, and the way back."""
    leaves, spec = pytree.tree_flatten(tree)
    leaves = [torch.as_tensor(leaf) for leaf in leaves]
    sizes = [leaf.numel() for leaf in leaves]

    def restore(flat: Tensor) -> Any:
        parts = zip(flat.split(sizes), leaves, strict=True)
        return pytree.tree_unflatten([part.reshape(leaf.shape) for part, leaf in parts], spec)

    return torch.cat([leaf.detach().reshape(-1) for leaf in leaves]), restore


def differentiated(compiled: Compiled, inputs: Sequence[object]) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The differentiated inputs as one vector, and the way back to all inputs."""
    names = compiled.graph.inputs
    flat, restore = flattened([inputs[names.index(name)] for name in compiled.wrt])

    def all_inputs(flat: Tensor) -> Any:
        replaced = dict(zip(compiled.wrt, restore(flat), strict=True))
        return [replaced.get(name, value) for name, value in zip(names, inputs, strict=True)]

    return flat, all_inputs


def shaper(compiled: Compiled, inputs: Sequence[object], order: int) -> Callable[[Tensor], Any]:
    """The way from derivatives of the vector to the form that `Verification` describes."""
    names = compiled.graph.inputs
    chosen = [inputs[names.index(name)] for name in compiled.wrt]
    only = chosen[0] if len(chosen) == 1 else None
    if order == 1:
        restore = flattened(chosen)[1]
        return lambda flat: tuple(restore(flat)) if only is None else restore(flat)[0]
    if isinstance(only, Tensor):
        shape = only.shape * order
        return lambda tensor: tensor.reshape(shape)
    return lambda tensor: tensor
