r"""The distance of adapted policies from the best of each task, and the bounds that theory has for it.

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
A task may have many best policies: any that choose among actions that are equally good, wherever an episode is or has
ended. The variance of the tasks takes the nearest of them, and with ties that is much nearer than any single one.

The best policies of a finite process never take other actions: `D1` and `D3` to them are infinite, and a gap to them
has a finite bound under `D2` only. For the others compare with policies that take the best actions with a probability
short of 1, the greed, and add what those lose.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import stochgraph as sg
from stochgraph.errors.checks import number, require, require_known

from .processes import Process, advantages, optimal_actions, optimal_policy, optimal_values, returns, visitation

DISTANCES = ("D1", "D2", "D3")
_SOLVER = sg.solvers.LBFGS(steps=500, tolerance=1e-5)
_GREED = 0.95  # short of 1 where distances to the best are infinite
_NEWTON_STEPS = 20


def optimality_gap(processes: Process, policies: Tensor) -> Tensor:
    """The task-expected optimality gap: what the best policy of each task earns more than these, on average.

    Args:
        processes: the tasks, stacked.
        policies: probabilities `(..., states, actions)`; one, or one for each task.

    References:
        Xu and Zhu (2024), section 3, where it is called TEOG.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.exact.optimality import optimality_gap
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
        >>> from stochgraph.algorithms.exact.optimality import nearly_optimal
        >>> paid = Dynamics(torch.ones(1, 2, 1), torch.eye(2)[:1].unsqueeze(-1), torch.tensor([False]))
        >>> nearly_optimal(process(paid, 0.5), greed=0.5).exp()
        tensor([[0.7500, 0.2500]])
    """
    if not 0 <= greed < 1:
        raise ValueError(f"greed must be at least 0 and below 1, got {greed}: at 1 the logits are infinite")
    best = optimal_policy(processes)
    return (greed * best + (1 - greed) / best.shape[-1]).log()


def nearest_optimal(processes: Process, table: Tensor, distance: str, greed: float | None = None) -> Tensor:
    r"""Of all best policies of each task the nearest to a table: logits `(tasks, states, actions)`.

    A policy counts as best if in every state it takes an action of `exact.optimal_actions` with a probability of at
    least `greed`, whichever of them. Where an episode has ended, or never comes, all are. With :math:`P` the
    probability of the best actions under the table, the squared distance in a state is that of two outcomes,

    .. math:: D_1: KL\big((P, 1 - P) \,\|\, (g, 1 - g)\big), \qquad D_2: KL\big((g, 1 - g) \,\|\, (P, 1 - P)\big),

    which with :math:`g = 1` is :math:`-\log P` under :math:`D_2`; and zero where :math:`P \ge g`. Under :math:`D_3` the
    logits are those at the least Euclidean distance. Nothing is differentiated.

    Args:
        processes: the tasks, stacked.
        table: logits of shape `(states, actions)`.
        distance: a word; see `squared_distance`.
        greed: :math:`g`; default: 1 for `"D2"`, 0.95 for the others.

    Raises:
        ValueError: a word that is not known; a greed outside `(0, 1]`, or of 1 where the distance is infinite then.

    References:
        Xu and Zhu (2024), section 3, the inner minimum of the task variance.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.exact.optimality import nearest_optimal
        >>> reward = torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 3, 1)
        >>> tasks = process(Dynamics(torch.ones(1, 1, 3, 1), reward, torch.tensor([[False]])), 0.5)
        >>> nearest_optimal(tasks, torch.tensor([[0.0, 1.0, 2.0]]), "D2").softmax(-1)
        tensor([[[0.2689, 0.7311, 0.0000]]])
    """
    greed = _greed(distance, greed)
    with torch.no_grad():
        best = optimal_actions(processes)
        free = ~processes.running | (visitation(processes, table.softmax(-1)) <= _unseen(table)) | best.all(-1)
        if distance == "D3":
            moved = _projected(table, best, math.log(greed) - math.log1p(-greed))
        else:
            moved = _reweighted(table, best, greed)
        return torch.where(free.unsqueeze(-1), table, moved)


def _reweighted(table: Tensor, best: Tensor, greed: float) -> Tensor:
    """As much more of the best actions as is missing, in their shares under the table, and as much less of others."""
    share = table.log_softmax(-1)
    good, bad = (torch.where(part, share, -torch.inf).logsumexp(-1, keepdim=True) for part in (best, ~best))
    wanted = torch.tensor([greed, 1 - greed], dtype=table.dtype, device=table.device).log()
    moved = share + torch.where(best, wanted[0] - good, wanted[1] - bad)
    return torch.where(good >= wanted[0], table, moved)


def _projected(table: Tensor, best: Tensor, margin: float) -> Tensor:
    r"""The nearest logits whose best actions are ahead by the margin.

    That is :math:`\log \sum_{best} e^\theta - \log \sum_{others} e^\theta`, the logarithm of their odds. The way to
    them is a multiple of the margin's slope there (Lagrange). Of equally good actions the one that leads already is the
    cheapest to raise, so Newton's method starts where it alone was raised.
    """
    x = table.expand(best.shape).clone()
    short = (_ahead(x, best)[0] < margin) & ~best.all(-1)  # of others there are some
    x[short] = _lagrange(x[short], best[short], margin)
    return x


def _lagrange(table: Tensor, best: Tensor, margin: float) -> Tensor:
    """Newton's method in the logits and the multiplier, `(problems, actions + 1)`."""
    size = table.shape[-1]
    lead = one_hot(table.masked_fill(~best, -torch.inf).argmax(-1), size).to(table)
    x, factor = table + lead * margin, torch.full_like(table[:, 0], max(margin, 1.0))
    alike = (best.unsqueeze(-1) == best.unsqueeze(-2)).to(table)
    for _ in range(_NEWTON_STEPS):
        ahead, slope = _ahead(x, best)
        outer = slope.unsqueeze(-1) * slope.unsqueeze(-2)
        bent = torch.diag_embed(slope) - torch.where(best, 1.0, -1.0).unsqueeze(-1) * alike * outer
        upper = torch.eye(size).to(table) - factor[:, None, None] * bent
        matrix = torch.cat([torch.cat([upper, -slope.unsqueeze(-1)], -1), _bordered(slope)], -2)
        amiss = torch.cat([x - table - factor.unsqueeze(-1) * slope, (ahead - margin).unsqueeze(-1)], -1)
        step = torch.linalg.solve(matrix, -amiss)
        x, factor = x + step[:, :size], factor + step[:, size]
    return x


def _bordered(slope: Tensor) -> Tensor:
    return torch.cat([slope, torch.zeros_like(slope[:, :1])], -1).unsqueeze(-2)


def _ahead(x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """The lead of the best actions over the others, in logits, and its slope."""
    good, bad = (x.masked_fill(~part, -torch.inf) for part in (best, ~best))
    return good.logsumexp(-1) - bad.logsumexp(-1), torch.where(best, good.softmax(-1), -bad.softmax(-1))


def _greed(distance: str, greed: float | None) -> float:
    require_known(DISTANCES, distance=distance)
    if greed is None:
        return 1.0 if distance == "D2" else _GREED
    require((lambda value: number(value) and 0 < value <= 1, "a number above 0 and at most 1"), greed=greed)
    if greed == 1 and distance != "D2":
        raise ValueError(
            f"{distance} to a policy that takes the best actions only is infinite: give a greed below 1, or use D2"
        )
    return float(greed)


def _unseen(like: Tensor) -> float:
    """The visitation of a state that is rounding of 0."""
    return 16 * torch.finfo(like.dtype).eps


def squared_distance(processes: Process, table: Tensor, others: Tensor, distance: str) -> Tensor:
    r"""The squared distances of policies from one: :math:`D_i^2(\phi, \psi)` in each task, shape `(tasks,)`.

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
        Xu and Zhu (2024), section 3.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.exact.optimality import squared_distance
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


def task_variance(processes: Process, distance: str, greed: float | None = None) -> tuple[Tensor, Tensor]:
    r"""The variance of tasks, and the table in the middle of them.

    .. math:: Var_i = \min_\phi \frac1B \sum_b \min_{\psi_b \in \Psi_b} D_i^2(\phi, \psi_b)

    with :math:`\Psi_b` all best policies of a task; see `nearest_optimal`, whose greed keeps `"D1"` and `"D3"` finite
    and belongs beside the figure. The search for :math:`\phi` is local, and starts where all best actions of all tasks
    are mixed.

    Args:
        processes: the tasks, stacked.
        distance: a word; see `squared_distance`.
        greed: see `nearest_optimal`.

    Returns:
        The variance, and the logits that attain it, `(states, actions)`.

    Raises:
        ValueError: see `nearest_optimal`.
        SolverError: the search did not end within its tolerance.

    References:
        Xu and Zhu (2024), section 3.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.exact.optimality import task_variance
        >>> reward = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]).reshape(2, 1, 3, 1)
        >>> tasks = process(Dynamics(torch.ones(2, 1, 3, 1), reward, torch.zeros(2, 1, dtype=torch.bool)), 0.5)
        >>> task_variance(tasks, "D2")[0]  # log 2: half for one action, half for the other two
        tensor(0.6931)
    """
    best = optimal_actions(processes).to(processes.reward)
    start = (best / best.sum(-1, keepdim=True)).mean(0).clamp(min=1e-3).log()

    def closeness(x: Tensor) -> Tensor:
        table = x.reshape(start.shape)
        nearest = nearest_optimal(processes, table.detach(), distance, greed)
        return -squared_distance(processes, table, nearest, distance).mean()

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
    """The bound of theory on one step of adaptation with exact values; see `gap_bound`.

    Attributes:
        spread: the mean over tasks of the squared distance between the policies compared with and the one adapted.
        theorems_penalty: the penalty that theorem 3 (`"D1"`, `"D2"`) or 4 (`"D3"`) prescribes.
        published: the bound of the theorem, for its own penalty.
        drawn: the same with the penalty in place of the theorem's, in proportion to it.
        least_penalty: the penalty from which on `sharper` holds.
        sharper: the bound for the penalty itself; infinite if it is too small.
        lost: what the policies compared with earn less than the best; belongs to all bounds on a gap to the best.
        advantage: the largest advantage, in size.
        visits: the least visitation of a state that is visited at all.
    """

    spread: Tensor
    theorems_penalty: Tensor
    published: Tensor
    drawn: Tensor
    least_penalty: Tensor
    sharper: Tensor
    lost: Tensor
    advantage: Tensor
    visits: Tensor


def gap_bound(processes: Process, table: Tensor, others: Tensor, penalty: float, distance: str) -> Bound:
    r"""Bounds on the gap after one exact step of adaptation from a table of logits.

    .. math:: TEOG \le \frac{2 (1 + \gamma) A_{max}}{(1 - \gamma)^2 \epsilon} Var_{1, 2}, \qquad
              TEOG \le \frac{(6 + 4 \gamma) A_{max}}{(1 - \gamma)^2 \epsilon} Var_3

    for steps with the penalties of the theorems, :math:`2 A_{max} / ((1 - \gamma) \epsilon)` and
    :math:`6 A_{max} / ((1 - \gamma) \epsilon)`. :math:`\epsilon` is the least discounted visitation, over tasks and
    over the states that can be reached and in which an episode runs: elsewhere no policy matters. :math:`A_{max}` is
    the largest :math:`|A(s, a)|` there. Both are those of the table, where the publication has bounds for all tables;
    the note of this module says why that is enough. Softmax tables have the constants :math:`L_1 = 1, L_2 = 0`.

    At the table of `task_variance`, with the policies of `nearest_optimal`, the spread is the variance, and
    :math:`A_{max}` what appendix N.3 calls :math:`A'_{max}`: the bound that its experiments use, on the gap of the
    table that meta-learning ends at. At another table it bounds the gap there.

    The published bounds are :math:`(1 + \gamma) / (1 - \gamma)` and :math:`(6 + 4 \gamma) / (6 (1 - \gamma))` times the
    theorem's penalty and the variance. `drawn` has the penalty that is used in its place; no theorem says that it
    holds, where that is smaller. It is what figures for penalties far below the theorem's can show.

    Args:
        processes: the tasks, stacked.
        table: logits :math:`\phi` of shape `(states, actions)`.
        others: the policies compared with, logits `(tasks, states, actions)`; `nearest_optimal` has the best.
        penalty: :math:`\lambda` of the step.
        distance: a word; see `squared_distance`.

    References:
        Xu and Zhu (2024), theorems 3 and 4, as the number of meta-iterations grows; appendices N.2 and N.3.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process
        >>> from stochgraph.algorithms.exact.optimality import gap_bound, nearest_optimal
        >>> paid = Dynamics(torch.ones(1, 1, 2, 1), torch.eye(2)[:1].reshape(1, 1, 2, 1), torch.tensor([[False]]))
        >>> tasks, table = process(paid, 0.5), torch.zeros(1, 2)
        >>> bound = gap_bound(tasks, table, nearest_optimal(tasks, table, "D2"), penalty=2.0, distance="D2")
        >>> bound.theorems_penalty, bound.least_penalty
        (tensor(2.), tensor(1.))
    """
    policy, discount = table.softmax(-1), processes.discount
    visits = visitation(processes, policy)
    counted = processes.running & (visits > _unseen(visits))
    least = visits[counted].min()
    largest = advantages(processes, policy).abs().amax(-1)[counted].max()
    spread = squared_distance(processes, table, others, distance).mean()
    ahead = 1 - discount
    if distance == "D3":
        theirs, least_penalty = 6 * largest / (ahead * least), discount * largest / (2 * ahead)
        share = (6 + 4 * discount) / (6 * ahead)
    else:
        theirs, least_penalty = 2 * largest / (ahead * least), 2 * discount * largest / (ahead * least)
        share = (1 + discount) / ahead
    enough = penalty >= least_penalty
    sharper = (penalty + least_penalty) / ahead * spread if enough else torch.full_like(spread, torch.inf)
    lost = optimality_gap(processes, others.softmax(-1))
    published, drawn = share * theirs * spread, share * penalty * spread
    return Bound(spread, theirs, published, drawn, least_penalty, sharper, lost, largest, least)
