"""The signature that a flat program was recorded for: another one is another program, never a wrong answer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from ..errors.exceptions import LoweringError
from ..tensors.indexing import in_transform

_VALUES = (bool, int, float, complex, str, type(None))


class Arguments:
    """Pytrees as the arguments of a flat program: their tensors, and the signature that they have.

    Attributes:
        tensors: those of the trees, in order.
        signature: all else: structure, shapes, strides, dtypes, numbers, and what torch's defaults are.

    Raises:
        LoweringError: there is something else than tensors on the CPU and numbers.
    """

    def __init__(self, trees: object, facts: Iterable[Any]) -> None:
        leaves, spec = pytree.tree_flatten(trees)
        self.tensors: list[Tensor] = []
        described = tuple(map(self._describe, leaves))
        self.signature = (spec, described, tuple(facts), torch.get_default_dtype(), Distribution._validate_args)

    def _describe(self, leaf: Any) -> Any:
        if isinstance(leaf, _VALUES):
            return repr(leaf)  # in which 0.0 is not -0.0, nor 1 True
        if type(leaf) not in (Tensor, Parameter):
            raise LoweringError(f"an input holds a {type(leaf).__name__}: flat programs are functions of tensors")
        if leaf.device.type != "cpu" or leaf.layout is not torch.strided or leaf.is_complex():
            raise LoweringError(f"an input holds a tensor of {leaf.dtype} on {leaf.device}: only real ones on the CPU")
        self.tensors.append(leaf)
        return leaf.shape, leaf.stride(), leaf.dtype


def in_mode() -> bool:
    """True if torch does something else than usual here: a transform, a mode, autocast. Programs know nothing of it."""
    return (
        in_transform()
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.is_autocast_enabled("cpu")
        or torch.is_anomaly_enabled()
    )
