"""The interface of solvers: what they are given and must return."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    r"""Maximise :math:`L(x)`, for every copy of the unknown at once. Handed to a `Solver`.

    Args:
        value: from points of shape `(*copies, P)` to values of shape `(*copies,)`; each depends on its own point only.

    Example:
        >>> import torch
        >>> from stochgraph.solvers import Problem
        >>> problem = Problem(lambda x: -(x**2).sum(-1))
        >>> problem.gradient(torch.tensor([[1.0, 2.0]]))
        tensor([[-2., -4.]])
        >>> problem.curvature(torch.tensor([[1.0, 2.0]]))(torch.tensor([[1.0, 0.0]]))
        tensor([[2., 0.]])
    """

    value: Callable[[Tensor], Tensor]

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient at `x`, `(*copies, P)`."""
        return self._gradient(x, again=False)[1].detach()

    def curvature(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The map `v -> -H v`, `H` the Hessian at `x`: positive definite at a strict maximum."""
        point, gradient = self._gradient(x, again=True)
        if not gradient.requires_grad:  # the objective is linear
            return torch.zeros_like

        def product(v: Tensor) -> Tensor:
            (pulled,) = torch.autograd.grad(gradient, point, -v, retain_graph=True, materialize_grads=True)
            return pulled

        return product

    def _gradient(self, x: Tensor, again: bool) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            total = self.value(point).sum()
            if not total.requires_grad:  # torch functions without a derivative
                return point, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(total, point, create_graph=again, materialize_grads=True)
        return point, gradient


class Solver(ABC):
    """Finds the maximum of a `Problem`. Where the gradient's norm stays above `tolerance`, an error is raised.

    Attributes:
        tolerance: the largest Euclidean norm of the gradient at a solution; `math.inf` accepts any point.

    Example:
        >>> import torch, stochgraph as sg
        >>> class Ascent(sg.solvers.Solver):
        ...     tolerance = 1e-3
        ...     def solve(self, problem, start):
        ...         for _ in range(100):
        ...             start = start + 0.1 * problem.gradient(start)
        ...         return start
        >>> problem = sg.solvers.Problem(lambda x: -(x**2).sum(-1))
        >>> bool(Ascent().solve(problem, torch.ones(3)).abs().max() < 1e-3)
        True
    """

    tolerance: float

    @abstractmethod
    def solve(self, problem: Problem, start: Tensor) -> Tensor:
        """The solutions, `(*copies, P)`, from starting points of that shape. Nothing is differentiated here."""


class LinearSolver(ABC):
    """Solves `A u = v` for a symmetric positive definite `A`, the negative Hessian at a solution.

    Example:
        >>> import torch, stochgraph as sg
        >>> class Diagonal(sg.solvers.LinearSolver):
        ...     def solve(self, product, rhs):
        ...         return rhs / product(torch.ones_like(rhs))
        >>> Diagonal().solve(lambda v: 4.0 * v, torch.tensor([2.0, 8.0]))
        tensor([0.5000, 2.0000])
    """

    @abstractmethod
    def solve(self, product: Callable[[Tensor], Tensor], rhs: Tensor) -> Tensor:
        """The solutions `u`, `(*copies, P)`.

        Args:
            product: `v -> A v` for all copies at once, `(*copies, P)` to the same.
            rhs: `v`, shape `(*copies, P)`.

        Raises:
            SolverError: `A` is not positive definite along a direction that `v` needs, or the solve did not converge.
        """


def worst(where: Tensor, size: Tensor) -> str:
    """Of the copies at which `where` holds, how many there are, and the figure of the worst."""
    count, copies = int(where.sum()), where.numel()
    figure = f"{float(size[where].nan_to_num(torch.inf).max()):.1e}"
    return figure if copies == 1 else f"{figure} (the largest of {count} such copies out of {copies})"
