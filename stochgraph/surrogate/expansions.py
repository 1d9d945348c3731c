"""The factors by which the terms of a mean are boxed, where they are not plain likelihood ratios.

With time steps t, the log-ratio of a step written l_t and its ratio less one r_t = exp(l_t) - 1, a term at time u is
multiplied with a factor of value 1 whose first derivative is the sum of the scores up to u. The factors differ in their
second derivatives, which an update brings in:

- dice: exp(sum of l_t), the likelihood ratio of the trajectory so far;
- loaded: 1 + sum of (exp(w_t) - exp(w_t - l_t)), w_t = decay * w_(t-1) + l_t: dice with `decay = 1`, lvc with 0;
- taylor: 1 + sum of r_t + sum over pairs of r_s r_t: the likelihood ratio to second order in the r_t.

Without a time axis all of them are the likelihood ratio.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors.axes import Axes, Axis
from ..tensors.left_out import LeftOut
from .terms import Box, Score, Weight


def loaded(log_ratio: Tensor, decay: float) -> Tensor:
    """The factor of Loaded DiCE less 1 (Farquhar et al. 2019, Algorithm 1), cumulated over the last dimension."""
    steps = torch.arange(log_ratio.shape[-1], dtype=log_ratio.dtype, device=log_ratio.device)
    behind = steps[:, None] - steps
    decayed = log_ratio @ torch.where(behind >= 0, decay ** behind.clamp(min=0), 0.0).T
    return (decayed.exp() - (decayed - log_ratio).exp()).cumsum(-1)


def taylor(log_ratio: Tensor) -> Tensor:
    """The likelihood ratio less 1, to second order in the ratios of the steps (Tang et al. 2021, section 3.2)."""
    ratio = log_ratio.expm1()
    return (ratio * (1 + ratio.cumsum(-1) - ratio)).cumsum(-1)


@dataclass(frozen=True)
class Curvature:
    """An expansion of the likelihood ratio of a trajectory."""

    name: str
    decay: float = 1.0

    def expand(self, log_ratio: Tensor) -> Tensor:
        """From log-ratios to the factors less 1, along the last dimension."""
        return taylor(log_ratio) if self.name == "taylor" else loaded(log_ratio, self.decay)

    @property
    def across_time(self) -> str:
        """The number of times that products of scores at two time steps k apart are counted."""
        return {0.0: "0", 1.0: "1"}.get(self.decay, f"{self.decay:g}^k")

    @property
    def label(self) -> str:
        """The subscript of its box in formulas."""
        return rf"\lambda={self.decay:g}" if self.name == "loaded" else rf"\mathrm{{{self.name}}}"


class Expansion(Weight):
    """In place of a summed log-ratio, an expanded likelihood ratio less 1."""

    kind = "expansion"

    def __init__(self, score: Score, aligned: Axes, curvature: Curvature, directs: bool) -> None:
        self.curvature = curvature
        self.directs = directs  # the scores make the direction of an update
        super().__init__(score, aligned, False)

    @property
    def label(self) -> str:  # type: ignore[override]
        return self.curvature.label

    @property
    def across_time(self) -> str:  # type: ignore[override]
        return self.curvature.across_time if self.directs else "1"

    @property
    def key(self) -> Any:
        return (self.inputs[0], self.aligned, self.curvature)

    def prepare(self) -> None:
        super().prepare()
        axes = self.input_axes[0]
        assert self.sample.time is not None
        self._time = axes.index(self.sample.time)
        self._keeps_time = self.sample.time in self.aligned
        self._plates = [d for d in self._gone if d != self._time]

    def _reduce(self, value: Tensor, left_out: LeftOut | None) -> Tensor:
        """Plates that are summed elsewhere are independent draws: their ratios are multiplied."""
        factor = self.curvature.expand(value.movedim(self._time, -1))
        factor = factor.movedim(-1, self._time) if self._keeps_time else factor[..., -1]
        places = [d if d < self._time or self._keeps_time else d - 1 for d in self._plates]
        for d in sorted(places, reverse=True):
            factor = (1 + factor).prod(d) - 1
        return factor

    def excess(self, value: Tensor) -> Tensor:
        return value


class ExpandedBox(Box):
    """`base * (1 + expansion)`."""

    def factor(self, value: Tensor) -> Tensor:
        return 1 + value


class OtherScores(nd.Node):
    """`- mean over the other draws of (box - 1)`: what a term's box is less with a leave-one-out control variate.

    NOTE [a control variate for the terms of an update]
    A term's part in the direction of an update is a vector, phi_j. The control variate of draw i is the mean of the
    others' phi_j times (box_i - 1); collected by j, it multiplies phi_j with 1 - mean over i of (box_i - 1). So no
    vector needs to be known. The boxes are taken at the parameters themselves: the direction does not change.
    """

    kind = "expansion"
    linear = Linearity.NOWHERE

    def __init__(self, weight: Weight, plate: Axis) -> None:
        self.weight, self.plate = weight, plate
        super().__init__(f"others({weight.name})", weight.index, [weight])

    @property
    def mixes(self) -> Axes:
        return (self.plate,)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        excess = self.weight.excess(values[0])
        dim = self.axes.index(self.plate)
        count = excess.shape[dim]
        if count < 2:
            return torch.zeros_like(excess)
        return (excess - excess.sum(dim, keepdim=True)) / (count - 1)
