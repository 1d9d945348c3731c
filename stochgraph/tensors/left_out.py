"""One draw of a plate, left out of means and sums over it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .axes import Axes, Axis


@dataclass(frozen=True)
class LeftOut:
    """The draw that is left out: the one at `index` of a plate of `count`."""

    plate: Axis
    index: Tensor
    count: int

    def own(self, value: Tensor, axes: Axes) -> Tensor:
        """The part of a value `(*axes, ...)` that belongs to the draw left out, along a dimension of size 1."""
        dim = axes.index(self.plate)
        full = value.expand(*value.shape[:dim], self.count, *value.shape[dim + 1 :])
        return full.index_select(dim, self.index.reshape(1))

    def replaced(self, value: Tensor, axes: Axes, number: float) -> Tensor:
        """The value with a number in place of what belongs to the draw left out."""
        dim = axes.index(self.plate)
        own = torch.arange(self.count, device=value.device) == self.index
        filled = torch.full((), number, dtype=value.dtype, device=value.device)
        return torch.where(own.reshape([-1] + [1] * (value.dim() - dim - 1)), filled, value)

    def mean(self, value: Tensor, axes: Axes, dims: tuple[int, ...]) -> Tensor:
        """The mean over some dimensions, the plate's among them, without the draw left out."""
        scale = self.count / (self.count - 1)
        return scale * (value.mean(dims) - self.own(value, axes).mean(dims) / self.count)

    def sum(self, value: Tensor, axes: Axes, dims: tuple[int, ...]) -> Tensor:
        """The sum over some dimensions, the plate's among them, without the draw left out."""
        return value.sum(dims) - self.own(value, axes).sum(dims)
