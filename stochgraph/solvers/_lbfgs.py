"""L-BFGS: Newton's direction from the last few gradients, without Hessian-vector products."""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors.checks import at_least, integer, require
from ._base import Problem, Solver
from ._line_search import bounded, rising_step


class _Pair(NamedTuple):
    """A step, the fall of the gradient over it, and one over their product; zero for a copy without curvature."""

    step: Tensor
    fall: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class LBFGS(Solver):
    r"""Limited-memory BFGS: :math:`x \leftarrow x + t \, B \nabla L(x)`, the step halved until the value rises.

    :math:`B` approximates the inverse of the negative Hessian from the last few steps and the gradients at their ends.
    A step along which the gradient does not fall teaches nothing. No step is longer than the point's own norm and one.

    Args:
        steps: the largest number of steps.
        memory: from how many steps :math:`B` is made.
        tolerance: the largest Euclidean norm of the gradient at a solution.

    References:
        Nocedal and Wright (2006), algorithms 7.4 and 7.5.

    Example:
        >>> import torch, stochgraph as sg
        >>> problem = sg.solvers.Problem(lambda x: (x - x.exp()).sum(-1))
        >>> sg.solvers.LBFGS().solve(problem, torch.ones(2, 3)).abs().max() < 1e-6
        tensor(True)
    """

    steps: int = 200
    memory: int = 10
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        require(integer(0), steps=self.steps)
        require(integer(1), memory=self.memory)
        require(at_least(0), tolerance=self.tolerance)

    def solve(self, problem: Problem, start: Tensor) -> Tensor:
        x, gradient = start, problem.gradient(start)
        pairs: deque[_Pair] = deque(maxlen=self.memory)
        for _ in range(self.steps):
            far = gradient.norm(dim=-1) > self.tolerance
            if not bool(far.any()):
                break
            # A copy that is done stays where it is.
            direction = bounded(x, _direction(torch.where(far.unsqueeze(-1), gradient, 0.0), pairs))
            reached = rising_step(problem, x, direction, (gradient * direction).sum(-1))
            ahead = problem.gradient(reached)
            pairs.append(_pair(reached - x, gradient - ahead))
            x, gradient = reached, ahead
        return x


def _pair(step: Tensor, fall: Tensor) -> _Pair:
    product = (step * fall).sum(-1, keepdim=True)
    size = step.norm(dim=-1, keepdim=True) * fall.norm(dim=-1, keepdim=True)
    curved = product > torch.finfo(step.dtype).eps * size
    return _Pair(step, fall, torch.where(curved, 1 / torch.where(curved, product, 1.0), 0.0))


def _direction(gradient: Tensor, pairs: deque[_Pair]) -> Tensor:
    """The two loops over the pairs; a copy of which nothing is known yet goes up its gradient."""
    shares = []
    for pair in reversed(pairs):
        share = pair.inverse * (pair.step * gradient).sum(-1, keepdim=True)
        gradient = gradient - share * pair.fall
        shares.append(share)
    direction = gradient * _scale(gradient, pairs)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        direction = direction + pair.step * (share - pair.inverse * (pair.fall * direction).sum(-1, keepdim=True))
    return direction


def _scale(gradient: Tensor, pairs: deque[_Pair]) -> Tensor:
    """The curvature along each copy's last step that had any."""
    scale = torch.ones_like(gradient[..., :1])
    for pair in pairs:
        found = 1 / (pair.inverse * (pair.fall**2).sum(-1, keepdim=True))
        scale = torch.where(pair.inverse > 0, found, scale)
    return scale
