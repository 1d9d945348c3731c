"""Linear systems with the negative Hessian: conjugate gradients, and a dense factorisation for few unknowns.

NOTE [flat directions]
A softmax over logits does not change when a constant is added to all of them: its Hessian has a null space. The
derivative of a function that does not change either needs the Hessian's inverse on the remaining directions only, and
both solvers stay within those: conjugate gradients from zero never leave the range of the matrix, and the dense solver
leaves out eigenvectors of no curvature. A right-hand side with a part in the null space has no solution, and is
refused; so is a direction along which the objective curves upwards. Hessian-vector products are as exact as what they
are computed from, which may be much larger than they are (a policy close to deterministic has hardly any curvature).
So a curvature counts as zero below `eps**0.75` times that of the matrix, and a part of a vector below `eps**0.25` times
the vector, `eps` being the precision of the numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors.checks import at_least, integer, require
from ..errors.exceptions import SolverError
from ._base import LinearSolver, worst

Product = Callable[[Tensor], Tensor]
_REMEDY = (
    "so it is no strict maximum, and its derivative does not exist. Add a strictly concave regulariser to the "
    "objective, or a damping to the linear solver"
)


class Conjugate(NamedTuple):
    """The end of conjugate gradients. Shapes `(*copies, P)` for vectors, `(*copies,)` for numbers."""

    solution: Tensor
    residual: Tensor  # its norm, relative to that of the right-hand side
    curvature: Tensor  # along the direction that stopped it, not being positive; infinite if none did
    rise: Tensor  # along that direction, as far as a positive curvature of that size would be worth going
    zero: Tensor  # what counts as no curvature


def conjugate_gradient(product: Product, rhs: Tensor, steps: int, tolerance: Tensor | float) -> Conjugate:
    """Conjugate gradients for all copies at once; each stops by itself (Hestenes and Stiefel, 1952)."""
    size = rhs.norm(dim=-1, keepdim=True)
    residual = rhs / torch.where(size > 0, size, 1.0)  # squares of small numbers must not underflow
    solution, direction = torch.zeros_like(rhs), residual
    square, zero = _dot(residual, residual), _size(product, rhs) * _precision(rhs) ** 0.75
    lowest, rise = torch.full_like(square, torch.inf), torch.zeros_like(rhs)
    for _ in range(steps):
        active = (square > tolerance**2) & (lowest > zero)
        if not bool(active.any()):
            break
        image = product(direction)
        length, curvature = _dot(direction, direction), _dot(direction, image)
        stopped = active & ~(curvature > zero * length)
        lowest, active = torch.where(stopped, curvature / length, lowest), active & ~stopped
        beyond = torch.where(stopped, square / torch.where(lowest < -zero, -curvature, square), 0.0)
        rise = rise + beyond.unsqueeze(-1) * direction
        length = torch.where(active, square / curvature, 0.0).unsqueeze(-1)
        solution, residual = solution + length * direction, residual - length * image
        before, square = square, torch.where(active, _dot(residual, residual), square)
        direction = torch.where(active.unsqueeze(-1), residual + (square / before).unsqueeze(-1) * direction, direction)
    return Conjugate(solution * size, square.sqrt(), lowest, rise * size, zero)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(-1)


def _size(product: Product, like: Tensor) -> Tensor:
    """The size of the matrix, judged by one vector that is like no other."""
    probe = torch.cos(torch.arange(like.shape[-1], dtype=like.dtype, device=like.device)).expand_as(like)
    return product(probe).norm(dim=-1) / probe.norm(dim=-1)


def _precision(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps


@dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    r"""Conjugate gradients on Hessian-vector products: :math:`(-H + \text{damping} \, I) \, u = v`.

    Without damping, and within its tolerance, exact; the Hessian may be singular in directions that :math:`v` does not
    have, as that of logits is.

    Args:
        steps: the largest number of steps, each one Hessian-vector product.
        tolerance: the largest norm of the residual, relative to that of `v`; `math.inf` takes what the steps reach.
        damping: added to the curvature in every direction (in the objective's unit over the unknown's squared). It
            biases the derivative.

    References:
        Rajeswaran et al. (2019), iMAML, algorithm 2.

    Example:
        >>> import torch, stochgraph as sg
        >>> curvature = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> sg.solvers.ConjugateGradient().solve(lambda v: v @ curvature, torch.tensor([3.0, 4.0]))
        tensor([1., 1.])
    """

    steps: int = 250
    tolerance: float = 1e-10
    damping: float = 0.0

    def __post_init__(self) -> None:
        require(integer(0), steps=self.steps)
        require(at_least(0), tolerance=self.tolerance, damping=self.damping)

    def solve(self, product: Product, rhs: Tensor) -> Tensor:
        goal = self.tolerance if self.tolerance < math.inf else 0.0
        found = conjugate_gradient(lambda v: product(v) + self.damping * v, rhs, self.steps, goal)
        flat, stray = found.curvature.abs() <= found.zero, found.residual > _precision(rhs) ** 0.25
        wrong = (found.curvature < -found.zero) | flat & stray
        if bool(wrong.any()):
            raise SolverError(
                "the solution's Hessian is not negative definite: conjugate gradients met a direction along which it "
                f"is {worst(wrong, -found.curvature)}; {_REMEDY}, ConjugateGradient(damping=...)"
            )
        open_ = ~((found.residual <= self.tolerance) | flat)
        if bool(open_.any()):
            raise SolverError(
                f"the linear solve for the derivative ended with a relative residual of {worst(open_, found.residual)} "
                f"after {self.steps} steps of conjugate gradients, tolerance {self.tolerance:.1e}: take more steps, "
                "state a larger tolerance, or add a damping, ConjugateGradient(steps=, tolerance=, damping=)"
            )
        return found.solution


@dataclass(frozen=True)
class Dense(LinearSolver):
    r"""The whole Hessian and its eigenvalues: :math:`(-H + \text{damping} \, I) \, u = v` for few unknowns.

    Takes one Hessian-vector product per unknown. Directions of no curvature are left out if `v` has no part in them.

    Args:
        damping: added to the curvature in every direction. It biases the derivative.

    Example:
        >>> import torch, stochgraph as sg
        >>> curvature = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> sg.solvers.Dense().solve(lambda v: v @ curvature, torch.tensor([3.0, 4.0]))
        tensor([1.0000, 1.0000])
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        require(at_least(0), damping=self.damping)

    def solve(self, product: Product, rhs: Tensor) -> Tensor:
        columns = [
            product(unit.expand_as(rhs)) for unit in torch.eye(rhs.shape[-1], dtype=rhs.dtype, device=rhs.device)
        ]
        values, vectors = torch.linalg.eigh(torch.stack(columns, -1))
        values, parts = values + self.damping, (vectors.mT @ rhs.unsqueeze(-1)).squeeze(-1)
        rounding = values.abs().amax(-1, keepdim=True) * _precision(rhs) ** 0.75
        flat = values.abs() <= rounding
        stray = torch.where(flat, parts, 0.0).norm(dim=-1) > rhs.norm(dim=-1) * _precision(rhs) ** 0.25
        wrong = (values < -rounding).any(-1) | stray
        if bool(wrong.any()):
            raise SolverError(
                "the solution's Hessian is not negative definite: its largest eigenvalue is "
                f"{worst(wrong, -values.amin(-1))}; {_REMEDY}, Dense(damping=...)"
            )
        parts = torch.where(flat, 0.0, parts / torch.where(flat, 1.0, values))
        return (vectors @ parts.unsqueeze(-1)).squeeze(-1)
