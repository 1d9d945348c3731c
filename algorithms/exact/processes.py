"""Finite decision processes solved exactly: values, visits and optimal policies, by linear solves.

Processes and policies carry any leading dimensions, and these broadcast: one policy in twenty tasks, twenty policies in
one. All functions of a policy are differentiable in its probabilities, to any order in reverse mode. An episode that
ends stays where it ended and earns nothing, so that its horizon is infinite like any other's.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..environments.tabular import Dynamics

_ROUNDING = 1e-5  # how far probabilities may be from summing to one
_MOST_SWEEPS = 1000


class Process(NamedTuple):
    """Discounted decision processes with an infinite horizon; make them with `process`.

    Attributes:
        probability: of the state that follows, `(..., states, actions, states)`; an ended episode stays.
        reward: expected, `(..., states, actions)`; 0 where the episode has ended.
        start: the probability of the first state, `(..., states)`.
        running: whether an episode goes on in a state, `(..., states)`, of booleans.
        discount: per time step, below 1.
    """

    probability: Tensor
    reward: Tensor
    start: Tensor
    running: Tensor
    discount: float

    def at(self, index: Tensor) -> "Process":
        """The process of that index, of several that are stacked."""
        return Process(
            self.probability[index], self.reward[index], self.start[index], self.running[index], self.discount
        )


def process(dynamics: Dynamics, discount: float, start: Tensor | None = None) -> Process:
    """Decision processes from the tables of an environment.

    Args:
        dynamics: of some tables, `(..., states, actions, states)`; `Tabular.dynamics` has them.
        discount: per time step, at least 0 and below 1.
        start: the probability of the first state, `(..., states)`; default: state 0, as in the environments.

    Raises:
        ValueError: a discount of 1 or more, for which values are infinite; tables whose shapes do not fit, or rows that
            are no probabilities.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import RandomMDP
        >>> from stochgraph.algorithms.exact import process, returns
        >>> environment = RandomMDP(states=3, actions=2)
        >>> tables, _ = environment.dynamics(environment.task_distribution().sample((4,)))
        >>> returns(process(tables, discount=0.9), torch.full((3, 2), 0.5)).shape
        torch.Size([4])
    """
    probability, reward, ends = dynamics
    if not 0 <= discount < 1:
        raise ValueError(
            f"the discount must be at least 0 and below 1, got {discount}: without one the values of an infinite "
            "horizon need not be finite"
        )
    states = probability.shape[-1]
    if probability.dim() < 3 or probability.shape[-3] != states or reward.shape != probability.shape:
        raise ValueError(
            "probability and reward have the shape (..., states, actions, states), got "
            f"{tuple(probability.shape)} and {tuple(reward.shape)}"
        )
    first = (one_hot(torch.tensor(0), states) if start is None else start).to(probability)
    lead = probability.shape[:-2]
    if ends.shape != lead or ends.dtype != torch.bool:
        raise ValueError(f"ends has the shape {tuple(lead)}, of booleans, got {tuple(ends.shape)} of {ends.dtype}")
    if first.shape not in (lead, lead[-1:]):
        raise ValueError(f"start has the shape ({states},) or {tuple(lead)}, got {tuple(first.shape)}")
    _check_rows("the transitions from some state and action", probability)
    _check_rows("the first states", first)
    stay = torch.eye(states, dtype=probability.dtype, device=probability.device).unsqueeze(-2)
    ended = ends[..., None, None]
    expected = (probability * reward).sum(-1).masked_fill(ends.unsqueeze(-1), 0)
    return Process(torch.where(ended, stay, probability), expected, first.expand(ends.shape), ~ends, float(discount))


def _check_rows(what: str, probability: Tensor) -> None:
    total = probability.sum(-1)
    if not bool((probability >= 0).all() & ((total - 1).abs() <= _ROUNDING).all()):  # not a number fails both
        raise ValueError(f"{what} have probabilities below 0, or that sum to between {total.min()} and {total.max()}")


def state_values(process: Process, policy: Tensor) -> Tensor:
    r"""The values of states under a policy: :math:`V = r_\pi + \gamma P_\pi V`, shape `(..., states)`.

    Args:
        process: one or several.
        policy: probabilities `(..., states, actions)`.

    References:
        Puterman (1994), theorem 6.1.1.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process, state_values
        >>> paid = process(Dynamics(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([False])), discount=0.5)
        >>> state_values(paid, torch.ones(1, 1))
        tensor([2.])
    """
    reward = (policy * process.reward).sum(-1)
    return torch.linalg.solve(_resolvent(process, policy), reward.unsqueeze(-1)).squeeze(-1)


def action_values(process: Process, policy: Tensor) -> Tensor:
    r"""The values of actions if the policy goes on: :math:`Q(s, a)`, shape `(..., states, actions)`.

    Args:
        process: see `state_values`.
        policy: see `state_values`.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import action_values, process
        >>> paid = process(Dynamics(torch.ones(1, 2, 1), torch.eye(2)[:1].unsqueeze(-1), torch.tensor([False])), 0.5)
        >>> action_values(paid, torch.tensor([[0.5, 0.5]]))
        tensor([[1.5000, 0.5000]])
    """
    return _backed_up(process, state_values(process, policy))


def advantages(process: Process, policy: Tensor) -> Tensor:
    r"""The advantages of actions over the policy: :math:`Q(s, a) - V(s)`, shape `(..., states, actions)`.

    Args:
        process: see `state_values`.
        policy: see `state_values`.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import advantages, process
        >>> paid = process(Dynamics(torch.ones(1, 2, 1), torch.eye(2)[:1].unsqueeze(-1), torch.tensor([False])), 0.5)
        >>> advantages(paid, torch.tensor([[0.5, 0.5]]))
        tensor([[ 0.5000, -0.5000]])
    """
    value = state_values(process, policy)
    return _backed_up(process, value) - value.unsqueeze(-1)


def returns(process: Process, policy: Tensor) -> Tensor:
    r"""The expected returns of a policy from the start: :math:`J = E \sum_t \gamma^t r_t`, shape `(...)`.

    Args:
        process: see `state_values`.
        policy: see `state_values`.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process, returns
        >>> paid = process(Dynamics(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([False])), discount=0.75)
        >>> returns(paid, torch.ones(1, 1))
        tensor(4.)
    """
    return (process.start * state_values(process, policy)).sum(-1)


def visitation(process: Process, policy: Tensor) -> Tensor:
    r"""The discounted share of time in each state: :math:`\nu(s) = (1 - \gamma) \sum_t \gamma^t P(s_t = s)`.

    It sums to one, the states where an episode has ended included. Shape `(..., states)`.

    Args:
        process: see `state_values`.
        policy: see `state_values`.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import process, visitation
        >>> forth = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])
        >>> walk = process(Dynamics(forth, torch.zeros(2, 1, 2), torch.tensor([False, True])), discount=0.75)
        >>> visitation(walk, torch.ones(2, 1))
        tensor([0.2500, 0.7500])
    """
    resolvent = _resolvent(process, policy)
    start = process.start.expand(resolvent.shape[:-1])
    return (1 - process.discount) * torch.linalg.solve(resolvent.mT, start.unsqueeze(-1)).squeeze(-1)


def optimal_policy(process: Process) -> Tensor:
    """The best policy of each process, by policy iteration: indicators `(..., states, actions)`.

    Of actions that are equally good one is taken. Nothing is differentiated.

    Args:
        process: one or several.

    References:
        Puterman (1994), section 6.4.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import optimal_policy, process
        >>> paid = process(Dynamics(torch.ones(1, 2, 1), torch.eye(2)[:1].unsqueeze(-1), torch.tensor([False])), 0.5)
        >>> optimal_policy(paid)
        tensor([[1., 0.]])
    """
    with torch.no_grad():
        choice = process.reward.argmax(-1)
        for _ in range(_MOST_SWEEPS):
            values = action_values(process, _indicator(choice, process))
            best, chosen = values.max(-1), values.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
            # Up to rounding: of two actions that are equally good, now one and now the other would look better.
            better = best.values > chosen + _rounding(values)
            if not bool(better.any()):
                break
            choice = torch.where(better, best.indices, choice)
        return _indicator(choice, process)


def optimal_actions(process: Process) -> Tensor:
    """All actions that are best in each state, up to rounding: booleans `(..., states, actions)`.

    Any policy that chooses among them is as good as `optimal_policy`. Where an episode has ended all actions are.

    Args:
        process: one or several.

    References:
        Puterman (1994), theorem 6.2.7.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import optimal_actions, process
        >>> reward = torch.tensor([1.0, 1.0, 0.0]).reshape(1, 3, 1)
        >>> optimal_actions(process(Dynamics(torch.ones(1, 3, 1), reward, torch.tensor([False])), 0.5))
        tensor([[ True,  True, False]])
    """
    with torch.no_grad():
        values = action_values(process, optimal_policy(process))
        return values >= values.amax(-1, keepdim=True) - _rounding(values)


def optimal_values(process: Process) -> Tensor:
    """The values of states under the best policy, shape `(..., states)`.

    Args:
        process: one or several.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.tabular import Dynamics
        >>> from stochgraph.algorithms.exact import optimal_values, process
        >>> paid = process(Dynamics(torch.ones(1, 2, 1), torch.eye(2)[:1].unsqueeze(-1), torch.tensor([False])), 0.5)
        >>> optimal_values(paid)
        tensor([2.])
    """
    return state_values(process, optimal_policy(process))


def _rounding(values: Tensor) -> Tensor:
    """By how much values that are equal may differ."""
    return 64 * torch.finfo(values.dtype).eps * values.abs().amax()


def _resolvent(process: Process, policy: Tensor) -> Tensor:
    moves = (policy.unsqueeze(-1) * process.probability).sum(-2)
    return torch.eye(moves.shape[-1], dtype=moves.dtype, device=moves.device) - process.discount * moves


def _backed_up(process: Process, value: Tensor) -> Tensor:
    return process.reward + process.discount * (process.probability * value[..., None, None, :]).sum(-1)


def _indicator(choice: Tensor, process: Process) -> Tensor:
    return one_hot(choice, process.reward.shape[-1]).to(process.reward)
