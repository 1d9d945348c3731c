"""A solution that the user knows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._base import Problem, Solver


@dataclass(frozen=True, init=False, eq=False)
class ClosedForm(Solver):
    """The solution as a function. It is checked, and differentiated implicitly like any other.

    Args:
        fn: the solution, a function of one draw of the nodes, as in `sg.apply(fn, *nodes)`.
        *nodes: what it is a function of: nodes, pytrees of nodes, constants. Default: the update's `init`.
        tolerance: the largest Euclidean norm of the gradient at the solution.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     mean = sg.mean(sg.sample("x", Normal, theta, 1.0, n=3))
        ...     psi = sg.unknown("psi", like=theta)
        ...     solution = sg.solvers.ClosedForm(lambda t, m: (t + m) / 2, theta, mean)
        ...     return sg.argmax(-((psi - mean) ** 2) - (psi - theta) ** 2, over=psi, solver=solution)
        >>> value, grad = objective.compile(sg.MAML()).value_and_grad(torch.tensor(1.0))
        >>> float(grad)
        0.5
    """

    fn: Callable[..., Any]
    nodes: tuple[Any, ...]
    tolerance: float

    def __init__(self, fn: Callable[..., Any], *nodes: Any, tolerance: float = 1e-6) -> None:
        for name, value in (("fn", fn), ("nodes", nodes), ("tolerance", tolerance)):
            object.__setattr__(self, name, value)

    def solve(self, problem: Problem, start: Tensor) -> Tensor:
        return start  # `argmax` has declared it as a node
