"""Newton's method with directions from conjugate gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._base import Problem, Solver
from ._linear import conjugate_gradient

_MOST_PRODUCTS, _MOST_HALVINGS, _SUFFICIENT = 200, 30, 1e-4


@dataclass(frozen=True)
class Newton(Solver):
    r"""Truncated Newton: :math:`x \leftarrow x - t \, H^{-1} \nabla L(x)`, the step halved until the value rises.

    The direction is found by conjugate gradients on Hessian-vector products, as exactly as the size of the gradient
    asks for. Where the Hessian is not negative definite they stop early, at a direction that still goes up. No step is
    longer than the point's own norm and one.

    Args:
        steps: the largest number of steps; close to a strict maximum four or five are enough.
        tolerance: the largest Euclidean norm of the gradient at a solution.

    References:
        Nocedal and Wright (2006), algorithm 7.1.

    Example:
        >>> import torch, stochgraph as sg
        >>> problem = sg.solvers.Problem(lambda x: (x - x.exp()).sum(-1))
        >>> sg.solvers.Newton().solve(problem, torch.ones(2, 3)).abs().max() < 1e-6
        tensor(True)
    """

    steps: int = 50
    tolerance: float = 1e-6

    def solve(self, problem: Problem, start: Tensor) -> Tensor:
        x = start
        for _ in range(self.steps):
            gradient = problem.gradient(x)
            norm = gradient.norm(dim=-1)
            far = norm > self.tolerance
            if not bool(far.any()):
                break
            # A copy that is done asks for nothing.
            direction = self._direction(problem, x, torch.where(far.unsqueeze(-1), gradient, 0.0), norm)
            x = _search(problem, x, direction, (gradient * direction).sum(-1))
        return x

    def _direction(self, problem: Problem, x: Tensor, gradient: Tensor, norm: Tensor) -> Tensor:
        accuracy = norm.sqrt().clamp(max=0.1)
        found = conjugate_gradient(problem.curvature(x), gradient, min(2 * x.shape[-1], _MOST_PRODUCTS), accuracy)
        direction = found.solution + found.rise
        # Longer steps may end where everything is flat, far from any maximum: a softmax over large logits is.
        longest = (1 + x.norm(dim=-1)) / direction.norm(dim=-1).clamp(min=torch.finfo(x.dtype).tiny)
        return direction * longest.clamp(max=1.0).unsqueeze(-1)


def _search(problem: Problem, x: Tensor, direction: Tensor, slope: Tensor) -> Tensor:
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
