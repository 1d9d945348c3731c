"""Newton's method with directions from conjugate gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors.checks import at_least, integer, require
from ._base import Problem, Solver
from ._line_search import bounded, rising_step
from ._linear import conjugate_gradient

_MOST_PRODUCTS = 200


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

    def __post_init__(self) -> None:
        require(integer(0), steps=self.steps)
        require(at_least(0), tolerance=self.tolerance)

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
            x = rising_step(problem, x, direction, (gradient * direction).sum(-1))
        return x

    def _direction(self, problem: Problem, x: Tensor, gradient: Tensor, norm: Tensor) -> Tensor:
        accuracy = norm.sqrt().clamp(max=0.1)
        found = conjugate_gradient(problem.curvature(x), gradient, min(2 * x.shape[-1], _MOST_PRODUCTS), accuracy)
        return bounded(x, found.solution + found.rise)
