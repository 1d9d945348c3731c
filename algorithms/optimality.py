r"""How far adapted policies are from the best of each task, and how far theory lets them be.

NOTE [why the bounds hold]
Let :math:`\pi` be the policy before adaptation, :math:`A` its advantages, :math:`\nu` its visits. By the performance
difference lemma and Pinsker's inequality every policy :math:`\pi'` earns

.. math:: J(\pi') = J(\pi) + \frac{1}{1 - \gamma} \Big( E_\nu \sum_a \pi' A \pm \lambda_0 D^2(\pi, \pi') \Big), \qquad
          \lambda_0 = \frac{2 \gamma A_{max}}{(1 - \gamma) \epsilon} \; (D_1, D_2), \quad
          \frac{\gamma A_{max}}{2 (1 - \gamma)} \; (D_3).

Adaptation with exact values maximises the bracket with :math:`-\lambda D^2`. So for :math:`\lambda \ge \lambda_0` it
ends at most :math:`(\lambda + \lambda_0) D^2(\pi, \pi^*) / (1 - \gamma)` below any policy :math:`\pi^*` that it is
compared with. With :math:`\lambda = 2 A_{max} / ((1 - \gamma) \epsilon)` that is the constant of theorem 3.

NOTE [what it is compared with]
The best policy of a finite process is deterministic: its logits are infinite, and so are `D1` and `D3` to it. A gap to
it has a finite bound under `D2` only. For the others compare with a policy close to the best, `nearly_optimal`, and add
what that one loses.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph._checks import require_known

from .exact import Process, advantages, optimal_policy, optimal_values, returns, visitation

DISTANCES = ("D1", "D2", "D3")
_SOLVER = sg.solvers.LBFGS(steps=500, tolerance=1e-5)


def optimality_gap(processes: Process, policies: Tensor) -> Tensor:
    """The task-expected optimality gap: what the best policy of each task earns more than these, on average.

    Args:
        processes: the tasks, stacked.
        policies: probabilities `(..., states, actions)`; one, or one for each task.

    References:
        Xu and Zhu (2024), where it is called TEOG.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.optimality import optimality_gap
        >>> paid = Dynamics(torch.ones(1, 1, 2, 1), torch.eye(2)[:1].reshape(1, 1, 2, 1), torch.tensor([[False]]))
        >>> optimality_gap(process(paid, 0.5), torch.tensor([[0.5, 0.5]]))
        tensor(1.)
    """
    best = (processes.start * optimal_values(processes)).sum(-1)
    return (best - returns(processes, policies)).mean()


def nearly_optimal(processes: Process, greed: float = 0.95) -> Tensor:
    """The logits of the best policy of each task, mixed with the uniform one: all distances to it are finite.

    Args:
        processes: the tasks, stacked.
        greed: the probability of the best action, besides its share of the rest; below 1.

    Raises:
        ValueError: a greed outside `[0, 1)`.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.optimality import nearly_optimal
        >>> paid = Dynamics(torch.ones(1, 2, 1), torch.eye(2)[:1].unsqueeze(-1), torch.tensor([False]))
        >>> nearly_optimal(process(paid, 0.5), greed=0.5).exp()
        tensor([[0.7500, 0.2500]])
    """
    if not 0 <= greed < 1:
        raise ValueError(f"greed must be at least 0 and below 1, got {greed}: at 1 the logits are infinite")
    best = optimal_policy(processes)
    return (greed * best + (1 - greed) / best.shape[-1]).log()


def squared_distance(processes: Process, table: Tensor, others: Tensor, distance: str) -> Tensor:
    r"""How far policies are from one: :math:`D_i^2(\phi, \psi)` in each task, shape `(tasks,)`.

    `"D1"` and `"D2"` are the divergences :math:`KL(\pi_\phi \| \pi_\psi)` and :math:`KL(\pi_\psi \| \pi_\phi)`, by the
    visits of :math:`\pi_\phi` to states in which an episode runs; `"D3"` is :math:`\|\phi - \psi\|^2`.

    Args:
        processes: the tasks, stacked.
        table: logits :math:`\phi` of shape `(states, actions)`.
        others: logits :math:`\psi` of shape `(tasks, states, actions)`; for `"D2"` minus infinity is allowed.
        distance: a word.

    Raises:
        ValueError: a word that is not known.

    References:
        Xu and Zhu (2024), eq. 1.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.optimality import squared_distance
        >>> paid = Dynamics(torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1), torch.tensor([[False]]))
        >>> best = torch.tensor([[[0.0, -torch.inf]]])
        >>> squared_distance(process(paid, 0.5), torch.zeros(1, 2), best, "D2")  # log 2
        tensor([0.6931])
    """
    require_known(DISTANCES, distance=distance)
    if distance == "D3":
        return (others - table).square().sum((-2, -1))
    old, new = table.log_softmax(-1), others.log_softmax(-1)
    before, after = (old, new) if distance == "D1" else (new, old)
    apart = torch.where(before > -torch.inf, before.exp() * (before - after), 0.0).sum(-1)
    return torch.where(processes.running, visitation(processes, old.exp()) * apart, 0.0).sum(-1)


def task_variance(processes: Process, others: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    r"""How different tasks are, :math:`Var_i = \min_\phi \frac1B \sum_b D_i^2(\phi, \psi_b)`, and that :math:`\phi`.

    The search is local, and starts at the mean policy (of `"D3"`, the mean logits, which are the answer).

    Args:
        processes: the tasks, stacked.
        others: what is good in each task, logits `(tasks, states, actions)`; see `squared_distance`.
        distance: a word; see `squared_distance`.

    Raises:
        ValueError: an infinite distance.
        SolverError: the search did not end within its tolerance.

    References:
        Xu and Zhu (2024), before theorem 3.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.optimality import task_variance
        >>> paid = Dynamics(torch.ones(2, 1, 2, 1), torch.ones(2, 1, 2, 1), torch.zeros(2, 1, dtype=torch.bool))
        >>> best = torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]])
        >>> task_variance(process(paid, 0.5), best, "D2")[0]  # log 2
        tensor(0.6931)
    """
    if distance != "D2" and not bool(others.isfinite().all()):
        raise ValueError(
            f"{distance} to a deterministic policy is infinite: compare with nearly_optimal(processes), or use D2"
        )
    if distance == "D3":
        centre = others.mean(0)
        return squared_distance(processes, centre, others, distance).mean(), centre
    start = others.softmax(-1).mean(0).clamp(min=1e-6).log()

    def closeness(x: Tensor) -> Tensor:
        return -squared_distance(processes, x.reshape(start.shape), others, distance).mean()

    problem = sg.solvers.Problem(closeness)
    found = _SOLVER.solve(problem, start.flatten())
    steep = float(problem.gradient(found).norm())
    if not steep <= _SOLVER.tolerance:
        raise sg.SolverError(
            f"the variance of the tasks under {distance} was not found: {_SOLVER.steps} steps ended where its gradient "
            f"has norm {steep:.1e}, tolerance {_SOLVER.tolerance:.1e}"
        )
    return -closeness(found), found.reshape(start.shape)


class Bound(NamedTuple):
    """What theory says of one step of adaptation with exact values; see `gap_bound`.

    Attributes:
        spread: the mean over tasks of the squared distance between the policies compared with and the one adapted.
        least_penalty: the penalty from which on `sharper` holds.
        published: the bound of theorem 3 (`"D1"`, `"D2"`) or 4 (`"D3"`), for the penalty of the theorem. It does not
            depend on the penalty, and a large one adapts little: it holds as far as `sharper` is no larger.
        sharper: the bound for the penalty itself; infinite if it is too small.
        lost: what the policies compared with earn less than the best; belongs to both bounds on a gap to the best.
        advantage: the largest advantage, in size.
        visits: the least visitation of a state that is visited at all.
    """

    spread: Tensor
    least_penalty: Tensor
    published: Tensor
    sharper: Tensor
    lost: Tensor
    advantage: Tensor
    visits: Tensor


def gap_bound(processes: Process, table: Tensor, others: Tensor, penalty: float, distance: str) -> Bound:
    r"""Bounds on the gap after one exact step of adaptation from a table of logits.

    .. math:: TEOG \le \frac{2 (1 + \gamma) A_{max}}{(1 - \gamma)^2 \epsilon} Var_{1, 2}, \qquad
              TEOG \le \frac{(6 + 4 \gamma) A_{max}}{(1 - \gamma)^2 \epsilon} Var_3

    :math:`\epsilon` is the least discounted visitation, over tasks and over the states that can be reached and in which
    an episode runs: elsewhere no policy matters. :math:`A_{max}` is the largest :math:`|A(s, a)|` there. Both are those
    of the table, where the publication has bounds for all tables; the note of this module says why that is enough. The
    variance is `task_variance` if the table is where it is attained, and the spread around the table elsewhere, which
    bounds the gap as well. Softmax tables have the constants :math:`L_1 = 1, L_2 = 0`.

    Args:
        processes: the tasks, stacked.
        table: logits :math:`\phi` of shape `(states, actions)`.
        others: the policies compared with, logits `(tasks, states, actions)`.
        penalty: :math:`\lambda` of the step.
        distance: a word; see `squared_distance`.

    References:
        Xu and Zhu (2024), theorems 3 and 4, as the number of meta-iterations grows.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.optimality import gap_bound, nearly_optimal
        >>> paid = Dynamics(torch.ones(1, 1, 2, 1), torch.eye(2)[:1].reshape(1, 1, 2, 1), torch.tensor([[False]]))
        >>> tasks = process(paid, 0.5)
        >>> gap_bound(tasks, torch.zeros(1, 2), nearly_optimal(tasks), penalty=2.0, distance="D2").least_penalty
        tensor(1.)
    """
    policy, discount = table.softmax(-1), processes.discount
    visits = visitation(processes, policy)
    counted = processes.running & (visits > 16 * torch.finfo(visits.dtype).eps)
    least = visits[counted].min()
    largest = advantages(processes, policy).abs().amax(-1)[counted].max()
    spread = squared_distance(processes, table, others, distance).mean()
    ahead = 1 - discount
    if distance == "D3":
        least_penalty, constant = discount * largest / (2 * ahead), 6 + 4 * discount
    else:
        least_penalty, constant = 2 * discount * largest / (ahead * least), 2 * (1 + discount)
    published = constant * largest / (ahead**2 * least) * spread
    sharper = (
        (penalty + least_penalty) / ahead * spread if penalty >= least_penalty else torch.full_like(spread, torch.inf)
    )
    lost = optimality_gap(processes, others.softmax(-1))
    return Bound(spread, least_penalty, published, sharper, lost, largest, least)
