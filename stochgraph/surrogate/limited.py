"""Terms that are right up to their first derivative.

NOTE [one order only]
A term that holds to one order would have some second derivative all the same, 0 perhaps, and wrong without a word. So
its derivative is a function whose own derivative raises. It reads the term as well: a constant cotangent, the gradient
of a sum, would not lead back to it.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors.exceptions import SamplingError
from ..ir import nodes as nd
from ..tensors.autograd import Context
from ..tensors.axes import Axes
from ..tensors.trees import map_tensors
from .terms import Place, Term


class Limited(Term):
    """A term that is right up to its first derivative, which has no other."""

    kind = "limited"

    def __init__(self, site: Place, term: nd.Node) -> None:
        self.message = (
            f"sample {site.name!r} reaches {site.node.name!r} with an estimator that is right for first derivatives "
            f"only: a second derivative, or forward mode, is refused. Use SF for {site.name!r}"
        )
        self.weights, self.own_axes = (), term.axes
        nd.Node.__init__(self, term.name, term.index, [term])

    @property
    def mixes(self) -> Axes:
        return ()

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        return map_tensors(lambda leaf: _first(leaf, self.message), values[0])

    def formula(self, term: str, sample: str) -> str:
        return term


class _Context(Context, Protocol):
    message: str


class _First(torch.autograd.Function):
    """The identity, once differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, message: str) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: _Context, cotangent: Tensor) -> tuple[Tensor, None]:
        return _last(cotangent, *ctx.saved_tensors, ctx.message), None

    @staticmethod
    def jvp(ctx: _Context, tangent: Tensor, _: None) -> Tensor:
        raise SamplingError(ctx.message)


class _Last(torch.autograd.Function):
    """The cotangent as it is, whose derivative raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: Tensor, value: Tensor, message: str) -> Tensor:
        return cotangent.view_as(cotangent)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        ctx.message = inputs[2]

    @staticmethod
    def backward(ctx: _Context, cotangent: Tensor) -> Any:
        raise SamplingError(ctx.message)

    @staticmethod
    def jvp(ctx: _Context, *tangents: object) -> Any:
        raise SamplingError(ctx.message)


_first: Callable[..., Tensor] = _First.apply
_last: Callable[..., Tensor] = _Last.apply
