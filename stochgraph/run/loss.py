"""A loss of torch whose gradient is known before it is asked for: the backward pass hands it over."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors.exceptions import SamplingError
from ..tensors.autograd import Context


def hand_over(name: str, value: Tensor, gradient: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
    """A value whose gradient with respect to the leaves is the given one, as often as it is asked for.

    Args:
        name: that of the graph.
        value: a number.
        gradient: one tensor for every leaf.
        leaves: tensors that require a gradient; it flows on to whatever they were made of.
    """
    return _Known.apply(name, value, gradient, *leaves)  # type: ignore[no-untyped-call]


def leaves_that_require_gradients(graph: str, given: Mapping[str, Any], wrt: Sequence[str]) -> list[Tensor]:
    """The leaves of the differentiated inputs that a backward pass fills.

    Raises:
        SamplingError: a leaf of another input requires a gradient, or one that is no real number.
    """
    watched = {name: list(filter(_requires_grad, pytree.tree_leaves(value))) for name, value in given.items()}
    others = [name for name in watched if watched[name] and name not in wrt]
    if others:
        raise SamplingError(
            f"loss of {graph!r}: leaves of the input{'s' * (len(others) > 1)} {', '.join(map(repr, others))} require a "
            f"gradient, and {graph} is differentiated with respect to {', '.join(wrt)}: compile it with "
            f"wrt={(*wrt, *others)!r}, or hand over detached tensors"
        )
    for name in wrt:
        _refuse_complex(graph, name, watched[name])
    return [leaf for name in wrt for leaf in watched[name]]


def _refuse_complex(graph: str, name: str, leaves: Sequence[Tensor]) -> None:
    for leaf in leaves:
        if leaf.is_complex():
            raise SamplingError(
                f"loss of {graph!r}: a leaf of the input {name!r} requires a gradient and is of dtype {leaf.dtype}; "
                "gradients are estimated for real numbers: hand over its real and its imaginary part"
            )


def _requires_grad(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


class _Gradient(Context, Protocol):
    """The context: what the gradient is of, and the gradient."""

    name: str
    gradient: Sequence[Tensor]


class _Known(torch.autograd.Function):
    """`(name, value, gradient, *leaves) -> value`.

    The gradient is kept on the context and not among its saved tensors, which a first backward pass frees.
    """

    @staticmethod
    def forward(ctx: _Gradient, name: str, value: Tensor, gradient: Sequence[Tensor], *leaves: Tensor) -> Tensor:
        ctx.name, ctx.gradient = name, gradient
        return value.clone()  # an input that is returned could not be changed in place, as in `loss /= 4`

    @staticmethod
    def backward(ctx: _Gradient, scale: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # a second derivative is to be taken: create_graph=True
            _refuse(ctx.name, "create_graph=True asks for the derivative of a gradient that is known as a number")
        return None, None, None, *[scale * leaf for leaf in ctx.gradient]

    @staticmethod
    def jvp(ctx: _Gradient, *tangents: object) -> NoReturn:
        _refuse(ctx.name, "an input carries a tangent, and forward derivatives are not estimated")


def _refuse(name: str, why: str) -> NoReturn:
    raise SamplingError(
        f"loss of {name!r}: {why}. For derivatives of other kinds and orders draw a trace, trace = "
        "compiled.sample(*inputs), and differentiate compiled.surrogate(*inputs, trace)"
    )
