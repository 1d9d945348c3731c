"""Finite Markov decision processes, one per task: random ones, and frozen lakes with random holes.

A state is observed as an indicator vector. A task holds its dynamics: the transitions, or the map that they follow
from. All episodes are stepped by looking up rows of one table of cumulated probabilities; the episodes of a small
process and a short horizon can be enumerated, so that `stochgraph.verify` proves estimators on it.
"""

from abc import ABC, abstractmethod
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from ._optional import installed
from ._protocol import Environment, Episodes, at_least_one, one_of

_MOST = 1_000_000  # episodes that are enumerated at most


class Dynamics(NamedTuple):
    """The consequences of each state and action, for one table or some. An episode starts in state 0."""

    probability: Tensor  # (*tables, states, actions, states)
    reward: Tensor  # (*tables, states, actions, states)
    ends: Tensor  # (*tables, states), of booleans: whether an episode ends on arrival


class Tabular(Environment, ABC):
    """Episodes in finite decision processes: what all subclasses share."""

    discrete = True
    paid_on_arrival = True  # whether a reward depends on the state that a step leads to

    @abstractmethod
    def table(self, task: Tensor) -> Dynamics:
        """The table of one task. `torch.vmap` maps it over some."""

    @abstractmethod
    def dynamics(self, task: Tensor) -> tuple[Dynamics, Tensor]:
        """The tables of some tasks `(episodes, *task)`, and which table each of them has, `(episodes,)`."""

    def reset(self, task: Tensor) -> Tensor:
        self._started(task, self._task_shape)
        tables, self._table = self.dynamics(task)
        cumulated = tables.probability.cumsum(-1)
        self._cumulated = cumulated / cumulated[..., -1:]  # exactly 1 from the last state that can follow on
        self._reward, self._ends = tables.reward, tables.ends
        self._state = torch.zeros_like(self._table)
        return self._observe()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        acted = self._acted(action).long()
        row = (self._table, self._state, acted)
        chance = torch.rand(len(action), 1, dtype=self._cumulated.dtype, device=self._cumulated.device)
        self._state = (chance >= self._cumulated[row]).sum(-1)
        return self._observe(), self._paid(self._reward[(*row, self._state)]), self._ends[self._table, self._state]

    def enumerate(self, task: Tensor, horizon: int) -> Episodes:
        """All episodes of one task: every action and every state that it leads to, `(actions * states) ** horizon`.

        After the end the first action and the first state stand for all. The state after the last step is not observed:
        where no reward depends on it, it is left out.
        """
        table, steps, after = self.table(task), *self._ways(horizon, task.device)
        state, running = torch.zeros_like(after[:, 0]), torch.ones_like(after[:, 0], dtype=torch.bool)
        fields: list[tuple[Tensor, ...]] = []
        for t in range(horizon):
            action, arrived = steps[:, t], after[:, t]
            seen = t < horizon - 1 or self.paid_on_arrival
            chance = table.probability[state, action, arrived].log() if seen else torch.zeros_like(task.sum())
            idle = torch.where((action == 0) & (arrived == 0), 0.0, -torch.inf).to(task.dtype)
            observed = one_hot(state, self.observation_size) * running.unsqueeze(-1)
            reward = table.reward[state, action, arrived]
            fields.append((observed, action, reward * running, running, torch.where(running, chance, idle)))
            state, running = arrived, running & ~table.ends[arrived]
        observation, action, reward, mask, transition = (torch.stack(each, 1) for each in zip(*fields, strict=True))
        return Episodes(observation.to(task.dtype), action, reward, mask.to(task.dtype), transition)

    def _ways(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """All sequences of actions and of the states that they lead to, `(outcomes, time)` each."""
        states, actions = self.observation_size, self.action_size
        last = states if self.paid_on_arrival else 1
        sizes = [n for t in range(horizon) for n in (actions, states if t < horizon - 1 else last)]
        if prod(sizes) > _MOST:
            raise NotImplementedError(
                f"{type(self).__name__} with {states} states, {actions} actions and {horizon} steps has {prod(sizes)} "
                f"episodes, more than {_MOST}: take fewer"
            )
        ways = torch.cartesian_prod(*(torch.arange(n, device=device) for n in sizes))
        return ways[:, ::2], ways[:, 1::2]

    @property
    @abstractmethod
    def _task_shape(self) -> tuple[int, ...]:
        """The shape of one task."""

    def _paid(self, reward: Tensor) -> Tensor:
        """The rewards, from their expectations."""
        return reward

    def _observe(self) -> Tensor:
        return one_hot(self._state, self.observation_size).to(self._cumulated.dtype)


class RandomMDP(Tabular):
    r"""Decision processes whose transitions are uniform on the simplex, and whose mean rewards are normal.

    For every state `s` and action `a`, :math:`p(\cdot \mid s, a) \sim \mathrm{Dirichlet}(1, \dots, 1)` and the mean
    reward is :math:`N(1, 1)`; rewards are normal around it. A task is a tensor `(states, actions, states + 1)`: the
    transition probabilities, and behind them the mean reward.

    Args:
        states: the number of states.
        actions: the number of actions.
        reward_std: the standard deviation of a reward around its mean.
        horizon: the number of steps.

    References:
        Duan et al. (2016), RL², section 3.2 (ten states, five actions, ten steps).

    Example:
        >>> import torch
        >>> process = RandomMDP(states=3, actions=2)
        >>> task = process.task_distribution().sample((4,))
        >>> task.shape, process.reset(task).shape
        (torch.Size([4, 3, 2, 4]), torch.Size([4, 3]))
    """

    paid_on_arrival = False

    def __init__(self, states: int = 10, actions: int = 5, reward_std: float = 1.0, horizon: int = 10) -> None:
        if states < 1 or actions < 1 or reward_std < 0:
            got = f"{states}, {actions}, {reward_std}"
            raise ValueError(f"states and actions must be at least 1, and reward_std at least 0; got {got}")
        self.observation_size = states
        self.action_size = actions
        self.reward_std = reward_std
        self.horizon = at_least_one(horizon)

    def task_distribution(self) -> Distribution:
        return RandomTables(self.observation_size, self.action_size)

    def table(self, task: Tensor) -> Dynamics:
        probability, mean = task[..., :-1], task[..., -1:]
        ends = torch.zeros(task.shape[:-2], dtype=torch.bool, device=task.device)
        return Dynamics(probability, mean.expand_as(probability), ends)

    def dynamics(self, task: Tensor) -> tuple[Dynamics, Tensor]:
        return self.table(task), torch.arange(len(task), device=task.device)

    def enumerate(self, task: Tensor, horizon: int) -> Episodes:
        if self.reward_std:
            raise NotImplementedError(
                f"rewards are normal around their means; take reward_std=0, not {self.reward_std}"
            )
        return super().enumerate(task, horizon)

    @property
    def _task_shape(self) -> tuple[int, ...]:
        return (self.observation_size, self.action_size, self.observation_size + 1)

    def _paid(self, reward: Tensor) -> Tensor:
        return reward + self.reward_std * torch.randn_like(reward) if self.reward_std else reward


class RandomTables(Distribution):
    """The distribution of the tasks of `RandomMDP`; it can be sampled, not scored."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, states: int, actions: int) -> None:
        self.states, self.actions = states, actions
        super().__init__(event_shape=torch.Size([states, actions, states + 1]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Tasks of shape `(*sample_shape, states, actions, states + 1)`."""
        weights = torch.empty(*sample_shape, self.states, self.actions, self.states).exponential_()
        mean = 1 + torch.randn(*sample_shape, self.states, self.actions, 1)
        return torch.cat([weights / weights.sum(-1, keepdim=True), mean], dim=-1)


class FrozenLake(Tabular):
    """Gymnasium's frozen lake with random holes: the maps of its generator, and its dynamics.

    The walk starts in the corner of a square of ice and ends at the goal in the opposite corner, with reward 1, or in a
    hole. On slippery ice a move goes where it should with probability 1/3, and to each side as often. A task is the
    map: a tensor `(size * size,)` that is 1 where there is a hole. Every map has a way to the goal.

    Where the goal pays, the walk does not end there: it stays, whatever it does, and every step is rewarded with 1, the
    one that arrives and all that follow. The best walk of six moves is then worth `d**5 / (1 - d)` at a discount d.

    Args:
        holes: the probability of a hole, for each tile alone.
        slippery: whether the ice is slippery.
        hole_reward: the reward of falling into a hole; Gymnasium's own is 0.
        size: the number of tiles along a side.
        horizon: the number of steps of a walk that does not end before.
        goal: "ends" or "pays": what the goal does.

    Raises:
        ValueError: an option out of its range, or so many holes that no map has a way to the goal.

    References:
        Gymnasium's FrozenLake-v1. Xu and Zhu (2024), appendix A, use 20 tasks, `holes=0.3` or `holes=0.1`, rewards 1
        and -1 and a discount of .8; returns as in their figures, up to 1.5, need `slippery=False, goal="pays"`.

    Example:
        >>> import torch
        >>> lake = FrozenLake(holes=0.1, slippery=False)
        >>> ice = torch.zeros(1, 16)
        >>> state = lake.reset(ice)
        >>> right, down = torch.tensor([2]), torch.tensor([1])
        >>> [lake.step(move)[1].item() for move in (right, right, right, down, down, down)]
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """

    action_size = 4

    def __init__(
        self,
        holes: float = 0.3,
        slippery: bool = True,
        hole_reward: float = -1.0,
        size: int = 4,
        horizon: int = 100,
        goal: Literal["ends", "pays"] = "ends",
    ) -> None:
        if not 0 <= holes < 1:
            raise ValueError(f"holes is a probability below 1, got {holes}")
        if size < 2:
            raise ValueError(f"size must be at least 2 tiles, got {size}")
        installed("gymnasium", "FrozenLake")
        self.holes = holes
        self.slippery = slippery
        self.hole_reward = hole_reward
        self.size = size
        self.goal = one_of("goal", goal, ("ends", "pays"))
        self.observation_size = size * size
        self.horizon = at_least_one(horizon)
        random_map(size, holes, seed=0, tries=min(100_000, max(100, 10**7 // size**2)))  # there are some

    def task_distribution(self) -> Distribution:
        return RandomMaps(self.size, self.holes)

    def table(self, task: Tensor) -> Dynamics:
        """The table of a map, or those of some maps `(*tables, size * size)`: Gymnasium's, but for a goal that pays."""
        goal = torch.arange(self.size**2, device=task.device) == self.size**2 - 1
        still = (task != 0) | goal
        ends = (task != 0) | (goal if self.goal == "ends" else torch.zeros_like(goal))
        moves = lake_moves(self.size, self.slippery).to(task)
        stays = torch.eye(self.size**2).to(task).unsqueeze(1).expand_as(moves)
        probability = torch.where(still[..., :, None, None], stays, moves)
        paid = torch.zeros_like(task).masked_fill(task != 0, self.hole_reward).masked_fill(goal, 1.0)
        reward = torch.where(ends[..., :, None, None] | (probability == 0), 0.0, paid[..., None, None, :])
        return Dynamics(probability, reward, ends)

    def dynamics(self, task: Tensor) -> tuple[Dynamics, Tensor]:
        maps, table = task.unique(dim=0, return_inverse=True)
        if not ((maps == 0) | (maps == 1)).all() or maps[:, [0, -1]].any():
            raise ValueError(
                "FrozenLake.reset: a task must be 1 where there is a hole and 0 elsewhere, with no hole at the start "
                "and at the goal; draw it from task_distribution()"
            )
        return self.table(maps), table

    @property
    def _task_shape(self) -> tuple[int, ...]:
        return (self.size * self.size,)


class RandomMaps(Distribution):
    """The distribution of the tasks of `FrozenLake`; it can be sampled, not scored."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, size: int, holes: float) -> None:
        self.size, self.holes = size, holes
        super().__init__(event_shape=torch.Size([size * size]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Maps of shape `(*sample_shape, size * size)`, from Gymnasium's generator, seeded with torch's."""
        shape = torch.Size(sample_shape)
        seeds = torch.randint(2**31, (shape.numel(),)).tolist()
        holes = torch.stack([random_map(self.size, self.holes, seed) for seed in seeds]) if seeds else torch.zeros(0)
        return holes.reshape(*shape, self.size * self.size)


def random_map(size: int, holes: float, seed: int, tries: int = 10**6) -> Tensor:
    """A map `(size * size,)` with a way to the goal, 1 where there is a hole: Gymnasium's `generate_random_map`.

    That one looks for ever for a map that there may not be.

    Raises:
        ValueError: none of so many maps has a way to the goal.
    """
    lakes = installed("gymnasium.envs.toy_text.frozen_lake", "FrozenLake")
    generator, _ = lakes.seeding.np_random(seed)
    ice = min(1, 1 - holes)
    for _ in range(tries):
        board = generator.choice(["F", "H"], (size, size), p=[ice, 1 - ice])
        board[0][0], board[-1][-1] = "S", "G"
        if lakes.is_valid(board, size):
            return torch.from_numpy(board == "H").flatten().to(torch.get_default_dtype())
    raise ValueError(
        f"holes={holes}, size={size}: none of {tries} random maps has a way to the goal; choose fewer holes, or a "
        "smaller lake"
    )


def lake_moves(size: int, slippery: bool) -> Tensor:
    """The probabilities of moves on ice without holes and goal, `(states, actions, states)`: left, down, right, up."""
    tiles = torch.arange(size * size)
    row, column = tiles // size, tiles % size
    left, right = (column - 1).clamp(min=0), (column + 1).clamp(max=size - 1)
    up, down = (row - 1).clamp(min=0), (row + 1).clamp(max=size - 1)
    after = torch.stack([row * size + left, down * size + column, row * size + right, up * size + column], 1)
    moves = one_hot(after, size * size).double()
    return (moves.roll(1, 1) + moves + moves.roll(-1, 1)) / 3 if slippery else moves
