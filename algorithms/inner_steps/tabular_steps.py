r"""Implicit inner steps on tables of logits: the better policy, state by state, given the values of actions.

.. math:: \theta' = \arg\max_\psi \; \sum_s w_s \Big[ \sum_a \pi_\psi(a|s) Q(s, a)
          - \lambda D^2\big(\pi_\phi(\cdot|s), \pi_\psi(\cdot|s)\big) \Big]

`improve_table` is the step for values that are known, `tabular_step` for values estimated from trajectories.

NOTE [the mean logit]
A constant added to all logits of a state changes no policy and no divergence: the Hessian of either problem is flat
that way, and a derivative that should be zero, that of a divergence at its minimum say, is rounding in all directions,
the flat one included. So with `"D1"` and `"D2"` the mean logit of each state is held at zero by a term of its own. It
moves no policy, and there is a curvature in every direction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.errors.checks import integer, more_than, require, require_known

from .advantages import returns_to_go
from .policy_gradient import whole

_CONJUGATE_GRADIENT = sg.solvers.ConjugateGradient()
_KNOWN = ("D1", "D2", "D3")
_SECULAR_STEPS = 60


def improve_table(
    table: Any,
    values: Any,
    weight: Any,
    penalty: float,
    distance: str = "D2",
    *,
    solver: sg.solvers.Solver | None = None,
    linear_solver: sg.solvers.LinearSolver = _CONJUGATE_GRADIENT,
) -> Any:
    r"""Declare the better table of logits, given the values of actions.

    With divergences every state is a problem of its own, whose solution does not depend on how often it is visited:
    `"D1"`, :math:`\pi' = \lambda \pi_\phi / (\mu - Q)` with :math:`\mu` the number that normalises it; `"D2"`,
    :math:`\pi' \propto \pi_\phi e^{Q / \lambda}`. Both are known, so they are checked and not sought. `"D3"` is one
    problem in all logits, in which states count by `weight`, and needs a solver. With divergences the logits of each
    state have the mean zero.

    Args:
        table: a node, logits :math:`\phi` of shape `(states, actions)`.
        values: a node, :math:`Q`, the same shape; a constant per state changes nothing.
        weight: a node, the share of time in each state, `(states,)`; for `"D3"` only.
        penalty: :math:`\lambda`, positive.
        distance: `"D1"`, :math:`KL(\pi_\phi \| \pi_\psi)`; `"D2"`, :math:`KL(\pi_\psi \| \pi_\phi)`; `"D3"`,
            :math:`\|\phi - \psi\|^2`.
        solver: default: the closed form of `"D1"` and `"D2"`, Newton's method for `"D3"`.
        linear_solver: see `sg.argmax`; `StateByState` knows the structure of the problem.

    Raises:
        ValueError: a distance that is not known, a penalty that is not positive.

    References:
        Xu and Zhu (2024), eq. 1 and proposition 1.

    Example:
        >>> import torch, stochgraph as sg
        >>> from stochgraph.algorithms.inner_steps.tabular_steps import improve_table
        >>> values = torch.tensor([[0.0, 1.0]])
        >>> @sg.graph
        ... def objective(table):
        ...     return sg.apply(lambda t: t.softmax(-1)[0, 1], improve_table(table, values, torch.ones(1), 0.5))
        >>> objective.compile({}).sample(torch.zeros(1, 2)).value  # 1 / (1 + exp(-1 / 0.5))
        tensor(0.8808)
    """
    _check(distance, penalty)
    psi = sg.unknown(None, like=table)
    objective = sg.apply(partial(_OBJECTIVES[distance], penalty), psi, table, values, weight)
    if solver is None:
        solver = sg.solvers.Newton()
        if distance in SOLUTIONS:
            solver = sg.solvers.ClosedForm(partial(_centred_solution, distance, penalty), table, values, tolerance=1e-4)
    return sg.argmax(objective, over=psi, solver=solver, linear_solver=linear_solver)


@dataclass(frozen=True)
class StateByState(sg.solvers.LinearSolver):
    """Linear systems with the Hessian of an improved table, which no two states share: a dense block for each.

    It takes one Hessian-vector product per action, for all states at once. A greedy state hardly curves, and has hardly
    any part in what is solved for; conjugate gradients take many steps for such a mixture, and this is exact.
    Directions of no curvature are left out if the whole right-hand side has hardly a part in them.

    Args:
        actions: their number.

    Raises:
        SolverError: while running; the Hessian is not negative definite along a direction that matters.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.inner_steps.tabular_steps import StateByState
        >>> blocks = torch.block_diag(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), 4 * torch.eye(2))
        >>> StateByState(2).solve(lambda v: v @ blocks, torch.tensor([3.0, 4.0, 8.0, 4.0]))
        tensor([1.0000, 1.0000, 2.0000, 1.0000])
    """

    actions: int

    def __post_init__(self) -> None:
        require(integer(1), actions=self.actions)

    def solve(self, product: Callable[[Tensor], Tensor], rhs: Tensor) -> Tensor:
        blocks = rhs.unflatten(-1, (-1, self.actions))
        units = torch.eye(self.actions, dtype=rhs.dtype, device=rhs.device)
        columns = [product(unit.expand_as(blocks).flatten(-2)).unflatten(-1, (-1, self.actions)) for unit in units]
        values, vectors = torch.linalg.eigh(torch.stack(columns, -1))
        parts = (vectors.mT @ blocks.unsqueeze(-1)).squeeze(-1)
        precision = torch.finfo(rhs.dtype).eps
        zero = values.abs().amax((-2, -1), keepdim=True) * precision**0.75
        curved = values > zero
        stray = torch.where(curved, 0.0, parts).norm(dim=(-2, -1)) > rhs.norm(dim=-1) * precision**0.25
        wrong = (values < -zero).any(-1).any(-1) | stray
        if bool(wrong.any()):
            raise sg.SolverError(
                f"the better table is no strict maximum in {int(wrong.sum())} of {wrong.numel()} solutions: some state "
                "does not curve along a direction that the derivative needs. Take a larger penalty"
            )
        solved = torch.where(curved, parts / torch.where(curved, values, 1.0), 0.0)
        return (vectors @ solved.unsqueeze(-1)).squeeze(-1).flatten(-2)


def _toward_psi(penalty: float, psi: Tensor, phi: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    new, old = psi.log_softmax(-1), phi.log_softmax(-1)
    return (new.exp() * values).sum() - penalty * ((old.exp() * (old - new)).sum() + _off_centre(psi))


def _toward_phi(penalty: float, psi: Tensor, phi: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    new, old = psi.log_softmax(-1), phi.log_softmax(-1)
    return (new.exp() * (values - penalty * (new - old))).sum() - penalty * _off_centre(psi)


def _off_centre(psi: Tensor) -> Tensor:
    return 0.5 * psi.mean(-1).square().sum()


def _centred_solution(distance: str, penalty: float, phi: Tensor, values: Tensor) -> Tensor:
    table = SOLUTIONS[distance](penalty, phi, values)
    return table - table.mean(-1, keepdim=True)


def _parameters(penalty: float, psi: Tensor, phi: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    return ((psi.softmax(-1) * values).sum(-1) * weight).sum() - penalty * ((psi - phi) ** 2).sum()


def _soft_greedy(penalty: float, phi: Tensor, values: Tensor) -> Tensor:
    return phi + values / penalty


def _secular(penalty: float, phi: Tensor, values: Tensor) -> Tensor:
    r"""The logarithm of :math:`\lambda \pi_\phi / (\mu - Q)`, by Newton's method in :math:`\mu - \max Q`.

    The sum of the probabilities falls in :math:`\mu` and is convex. So Newton's steps from the left, where the largest
    single probability is 1 already, never pass the root.
    """
    share = (penalty * phi.softmax(-1)).clamp(min=torch.finfo(phi.dtype).tiny)
    behind = values.amax(-1, keepdim=True) - values
    above = (share - behind).amax(-1, keepdim=True)
    for _ in range(_SECULAR_STEPS):
        part = share / (above + behind)
        above = above + (part.sum(-1, keepdim=True) - 1) / (part / (above + behind)).sum(-1, keepdim=True)
    return (share / (above + behind)).log()


_OBJECTIVES: dict[str, Callable[..., Tensor]] = {"D1": _toward_psi, "D2": _toward_phi, "D3": _parameters}
SOLUTIONS: dict[str, Callable[..., Tensor]] = {"D1": _secular, "D2": _soft_greedy}


def _check(distance: str, penalty: Any) -> None:
    require_known(_KNOWN, distance=distance)
    require(more_than(0), penalty=penalty)


def tabular_step(
    parameters: Any, data: Any, plate: str, penalty: float, distance: str = "D2", *, discount: float, **solvers: Any
) -> Any:
    """Declare eq. 1 on a batch of trajectories, the values of actions estimated by the returns that followed them.

    An action that was not taken in a state counts as good as those that were; where nothing was seen nothing changes.

    Args:
        parameters: a node, those of a `TabularSoftmax`.
        data: the sample node of the trajectories; states are observed as indicators.
        plate: the name of that node.
        penalty: see `improve_table`.
        distance: see `improve_table`.
        discount: per time step.
        **solvers: `solver` and `linear_solver` of `improve_table`.

    References:
        Xu and Zhu (2024), eq. 1.

    Example:
        >>> import stochgraph as sg
        >>> from stochgraph.algorithms.inner_steps.tabular_steps import tabular_step
        >>> from stochgraph.algorithms.environments.tabular import RandomMDP
        >>> from stochgraph.algorithms.policies import TabularSoftmax
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(RandomMDP(3, 2), TabularSoftmax(3, 2), horizon=5)
        >>> @sg.graph
        ... def objective(theta):
        ...     data = sg.sample("D", walks, theta, walks.environment.declare_tasks(2), n=4)
        ...     adapted = tabular_step(theta, data, "D", 0.5, discount=0.8)
        ...     return sg.mean(adapted["logits"][0, 0])
        >>> objective.compile({"D": sg.MAML()}).sample(walks.policy.initial()).value.shape
        torch.Size([])
    """
    table = parameters["logits"]
    trajectories = whole(data, plate)
    seen = sg.apply(partial(_visits, discount), table, trajectories)
    total, count = sg.sum(seen[0], over=plate), sg.sum(seen[1], over=plate)
    values = sg.apply(_estimated_values, total, count)
    weight = sg.apply(lambda c: c.sum(-1) / c.sum(), count)
    better = improve_table(table, values, weight, penalty, distance, **solvers)
    return sg.apply(lambda t: {"logits": t}, better)


def _visits(discount: float, table: Tensor, trajectory: Any) -> tuple[Tensor, Tensor]:
    """The returns that followed each action in each state, summed, and their number: `(states, actions)` each."""
    actions = torch.arange(table.shape[-1], device=table.device)
    action = (trajectory.action.unsqueeze(-1) == actions).to(trajectory.mask)  # one_hot looks at values, mapped or not
    taken = trajectory.observation.mT @ (action * trajectory.mask.unsqueeze(-1))
    follows = returns_to_go(trajectory.reward, trajectory.mask, discount).unsqueeze(-1)
    return trajectory.observation.mT @ (action * follows), taken


def _estimated_values(total: Tensor, count: Tensor) -> Tensor:
    """Mean returns, less the mean return of the state."""
    state = total.sum(-1, keepdim=True) / count.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(count > 0, total / count.clamp(min=1) - state, 0.0)
