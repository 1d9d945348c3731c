"""The logarithm of a mean of exponentials, in nodes that keep the mean in sight and never overflow.

NOTE [the scale of exponentials]
`log(mean(exp(x)))` is `log(mean(exp(x - c))) + c` for any number c, here the largest entry of the plate. No result
depends on c, so no path goes through it: it is not differentiated, no box is asked for it, and estimators see a mean
of `exp(x - c)` with a nonlinear function behind. With a draw left out, c is the largest entry of the others, and the
exponential of the draw is zero: it may be larger than theirs by any factor.
"""

from typing import Any

import torch
from torch import Tensor

from ..ir import nodes as nd
from ..tensors.axes import Axes, without
from ..tensors.left_out import LeftOut
from .operations import Linearity


class Scale(nd.Node):
    """The largest entry over some axes. A constant: the results in which it is used do not depend on it."""

    kind = "scale"
    linear = Linearity.NOWHERE
    carries = False

    def __init__(self, name: str, index: int, base: nd.Node, plates: Axes) -> None:
        self.plates = plates
        super().__init__(name, index, [base])

    def infer_axes(self) -> Axes:
        return without(self.inputs[0].axes, self.plates)

    @property
    def mixes(self) -> Axes:
        return self.plates

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        axes = self.input_axes[0]
        value = _real(values[0].detach(), run)
        left_out = _left_out(run, self.plates)
        if left_out is not None:
            value = left_out.replaced(value, axes, -torch.inf)
        largest = value.amax(tuple(i for i, axis in enumerate(axes) if axis in self.plates))
        return torch.where(largest.isfinite(), largest, 0.0)


class Exponential(nd.Node):
    """`exp(x - scale)`; zero for a draw that is left out."""

    kind = "exponential"
    linear = Linearity.NOWHERE

    def __init__(self, name: str, index: int, base: nd.Node, scale: nd.Node) -> None:
        self.plates = without(base.axes, scale.axes)
        super().__init__(name, index, [base, scale])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        value, scale = self.broadcast([_real(values[0], run), values[1]])
        exponential = torch.exp(value - scale)
        left_out = _left_out(run, self.plates)
        return left_out.replaced(exponential, self.axes, 0.0) if left_out else exponential


class Logarithm(nd.Node):
    """`log(mean) + scale`."""

    kind = "logarithm"
    linear = Linearity.NOWHERE

    def __init__(self, name: str, index: int, mean: nd.Node, scale: nd.Node) -> None:
        super().__init__(name, index, [mean, scale])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        mean, scale = self.broadcast(values)
        return mean.log() + scale


def _real(value: Tensor, run: nd.Pass) -> Tensor:
    return value if value.is_floating_point() else value.to(run.dtype)


def _left_out(run: nd.Pass, plates: Axes) -> LeftOut | None:
    return run.left_out if run.left_out is not None and run.left_out.plate in plates else None
