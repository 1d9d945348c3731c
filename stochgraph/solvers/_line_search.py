"""Line searches along a direction, for every copy by itself."""

import torch
from torch import Tensor

from ._base import Problem

_MOST_HALVINGS, _SUFFICIENT = 30, 1e-4


def bounded(x: Tensor, direction: Tensor) -> Tensor:
    """No step longer than the point's own norm and one.

    Longer ones may end where everything is flat, far from any maximum: a softmax over large logits is.
    """
    longest = (1 + x.norm(dim=-1)) / direction.norm(dim=-1).clamp(min=torch.finfo(x.dtype).tiny)
    return direction * longest.clamp(max=1.0).unsqueeze(-1)


def rising_step(problem: Problem, x: Tensor, direction: Tensor, slope: Tensor) -> Tensor:
    """Halve each copy's step until its value rises, up to rounding, by a fair share of what the slope promises."""
    value = problem.value(x)
    rounding = 16 * torch.finfo(x.dtype).eps * value.abs().clamp(min=1.0)
    step = torch.ones_like(value)
    for _ in range(_MOST_HALVINGS):
        short = ~(problem.value(x + step.unsqueeze(-1) * direction) >= value + _SUFFICIENT * step * slope - rounding)
        if not bool(short.any()):
            break
        step = torch.where(short, step / 2, step)
    return x + step.unsqueeze(-1) * direction
