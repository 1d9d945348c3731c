"""Adam, for all copies at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors.checks import at_least, integer, more_than, require
from ._base import Problem, Solver

_DECAY, _SQUARE_DECAY, _LEAST = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Adam(Solver):
    """Adam's steps up the gradient. A copy stays where its gradient's norm has come below the tolerance.

    Args:
        steps: the largest number of steps.
        lr: the step size, in the unit of the unknown.
        tolerance: the largest Euclidean norm of the gradient at a solution. `math.inf` takes what the steps reach: the
            derivative is then that of a solution which the point only approximates.

    References:
        Kingma and Ba (2015), algorithm 1.

    Example:
        >>> import torch, stochgraph as sg
        >>> problem = sg.solvers.Problem(lambda x: -((x - 3.0) ** 2).sum(-1))
        >>> solution = sg.solvers.Adam(steps=1000, lr=0.1, tolerance=1e-4).solve(problem, torch.zeros(2, 1))
        >>> bool((solution - 3.0).abs().max() < 1e-4)
        True
    """

    steps: int = 1000
    lr: float = 0.1
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        require(integer(0), steps=self.steps)
        require(more_than(0), lr=self.lr)
        require(at_least(0), tolerance=self.tolerance)

    def solve(self, problem: Problem, start: Tensor) -> Tensor:
        x, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
        goal = self.tolerance if self.tolerance < math.inf else 0.0
        for t in range(1, self.steps + 1):
            gradient = problem.gradient(x)
            far = gradient.norm(dim=-1, keepdim=True) > goal
            if not bool(far.any()):
                break
            mean = _DECAY * mean + (1 - _DECAY) * gradient
            square = _SQUARE_DECAY * square + (1 - _SQUARE_DECAY) * gradient**2
            scale = (square / (1 - _SQUARE_DECAY**t)).sqrt() + _LEAST
            x = torch.where(far, x + self.lr * mean / (1 - _DECAY**t) / scale, x)
        return x
