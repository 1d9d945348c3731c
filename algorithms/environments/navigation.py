"""Navigation: a point on a line or in the plane walks to a goal that it is not shown."""

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Bernoulli, Distribution, TransformedDistribution, Uniform

from ._protocol import Environment, ListedTasks, at_least_one, one_of


class Navigation(Environment):
    r"""A walk in the unit square around the origin, to a goal that is uniform on it.

    The state is the position :math:`s \in [-.5, .5]^2`, clipped; an episode starts at the origin. The action times
    `action_scale` is the velocity, clipped to :math:`\pm .1` per coordinate. The reward after each step is the
    negative squared distance to the goal, :math:`-|s' - g|^2`, or the negative distance.

    Args:
        reward: "squared distance" or "distance".
        action_scale: velocity per unit of action.
        goal_size: an episode ends when both coordinates are nearer than this to the goal's; `None`: it never does.
        horizon: the number of steps.

    References:
        Fallah et al. (2021), section 5 and Table 1 (squared distance). The code that goes with it has the distance,
        `action_scale=0.01` and `goal_size=0.01`.

    Example:
        >>> import torch
        >>> walk = Navigation()
        >>> walk.reset(torch.tensor([[0.5, 0.0]]))
        tensor([[0., 0.]])
        >>> walk.step(torch.tensor([[1.0, -0.05]]))[:2]
        (tensor([[ 0.1000, -0.0500]]), tensor([-0.1625]))
    """

    observation_size = 2
    action_size = 2

    def __init__(
        self,
        reward: Literal["squared distance", "distance"] = "squared distance",
        action_scale: float = 1.0,
        goal_size: float | None = None,
        horizon: int = 100,
    ) -> None:
        self.reward = one_of("reward", reward, ("squared distance", "distance"))
        if goal_size is not None and goal_size <= 0:
            raise ValueError(f"goal_size must be positive, or None for episodes that do not end; got {goal_size}")
        self.action_scale = action_scale
        self.goal_size = goal_size
        self.horizon = at_least_one(horizon)

    def task_distribution(self) -> Distribution:
        corner = torch.full((2,), 0.5)
        return Uniform(-corner, corner)

    def reset(self, task: Tensor) -> Tensor:
        self._goal = self._started(task, (2,))
        self._position = torch.zeros_like(task)
        return self._position

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        velocity = (self.action_scale * self._acted(action)).clamp(-0.1, 0.1)
        self._position = (self._position + velocity).clamp(-0.5, 0.5)
        away = self._position - self._goal
        squared = away.square().sum(-1)
        done = torch.zeros_like(squared, dtype=torch.bool)
        if self.goal_size is not None:
            done = (away.abs() < self.goal_size).all(-1)
        return self._position, -squared if self.reward == "squared distance" else -squared.sqrt(), done


class CornerNavigation(Environment):
    r"""A walk in the plane to one of the four corners :math:`(\pm 2, \pm 2)`, all of them equally likely.

    An episode starts uniformly on :math:`[-.2, .2]^2`; an action is clipped to :math:`\pm .2` per coordinate and added
    to the position. The reward of a step from `s` to `s'` is

    - "distance": :math:`-|s' - g|`;
    - "squared distance": :math:`-|s' - g|^2`;
    - "sparse": the progress :math:`|s - g| - |s' - g|`, where `s'` is nearer to the goal than to the other corners and
      :math:`|s'_1| + |s'_2| \ge .5`; zero elsewhere.

    Args:
        reward: "distance", "squared distance" or "sparse".
        horizon: the number of steps.

    References:
        Rothfuss et al. (2019), ProMP, and its code.

    Example:
        >>> import torch
        >>> walk = CornerNavigation("sparse")
        >>> _ = walk.reset(torch.tensor([[2.0, 2.0]]))
        >>> walk.step(torch.tensor([[-0.2, -0.2]]))[1]
        tensor([0.])
    """

    observation_size = 2
    action_size = 2
    sparse_radius = 0.5

    def __init__(
        self, reward: Literal["distance", "squared distance", "sparse"] = "distance", horizon: int = 100
    ) -> None:
        self.reward = one_of("reward", reward, ("distance", "squared distance", "sparse"))
        self.horizon = at_least_one(horizon)

    def task_distribution(self) -> Distribution:
        return TransformedDistribution(Bernoulli(torch.full((2,), 0.5)), AffineTransform(-2.0, 4.0))

    def reset(self, task: Tensor) -> Tensor:
        self._goal = self._started(task, (2,))
        self._position = 0.4 * torch.rand_like(task) - 0.2
        return self._position

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = self._acted(action).clamp(-0.2, 0.2)
        before = self._position
        self._position = before + moved
        distance = (self._position - self._goal).norm(dim=-1)
        done = torch.zeros_like(distance, dtype=torch.bool)
        if self.reward == "distance":
            return self._position, -distance, done
        if self.reward == "squared distance":
            return self._position, -distance.square(), done
        progress = (before - self._goal).norm(dim=-1) - distance
        return self._position, torch.where(self._pays(), progress, torch.zeros_like(progress)), done

    def _pays(self) -> Tensor:
        """True where progress is rewarded: away from the start, where no other corner is nearer."""
        nearest = (self._position * self._goal >= 0).all(-1)
        return nearest & (self._position.abs().sum(-1) >= self.sparse_radius)


class LineNavigation(Environment):
    r"""A walk on the line, :math:`S = [-1.1, 1.1]`, to a goal `d` that is uniform on :math:`[.5, 1]`.

    An episode starts uniformly on :math:`\{-1, -.9, \dots, 1\}`. The reward of a step from `s` is
    :math:`r = .01 / (.01 + |s - d|)`. The point stays where it is if :math:`r \ge .95` or :math:`|s + a| > 1`; else it
    moves to `s + a` with probability .9, and to `s - .1` or `s + .1` with probability .05 each, clipped to `S`.

    Args:
        horizon: the number of steps. The paper's H = 20 is the last time, of 0, ..., H: there are 21.
        goals: so many goals, evenly from .5 to 1 and equally likely, in place of all of them.

    References:
        Fallah et al. (2020), section 5 and appendix G; eq. 2 for the times.

    Example:
        >>> import torch
        >>> walk = LineNavigation()
        >>> walk.reset(torch.tensor([0.5, 0.7])).shape
        torch.Size([2, 1])
    """

    observation_size = 1
    action_size = 1

    def __init__(self, horizon: int = 21, goals: int | None = None) -> None:
        if goals is not None and goals < 2:
            raise ValueError(f"goals must be at least 2, from .5 to 1, or None for all of them; got {goals}")
        self.horizon = at_least_one(horizon)
        self.goals = goals

    def task_distribution(self) -> Distribution:
        if self.goals is not None:
            return ListedTasks(torch.linspace(0.5, 1.0, self.goals))
        return Uniform(torch.tensor(0.5), torch.tensor(1.0))

    def reset(self, task: Tensor) -> Tensor:
        self._goal = self._started(task, ())
        tenths = torch.randint(-10, 11, task.shape, device=task.device)
        self._position = tenths.to(task.dtype) / 10
        return self._position.unsqueeze(-1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        acted = self._acted(action).squeeze(-1)
        moved = self._position + acted
        reward = 0.01 / (0.01 + (self._position - self._goal).abs())
        stays = (reward >= 0.95) | (moved.abs() > 1)
        chance = torch.rand_like(moved)
        slipped = torch.where(chance < 0.05, self._position - 0.1, self._position + 0.1)
        moved = torch.where(chance < 0.1, slipped.clamp(-1.1, 1.1), moved)
        self._position = torch.where(stays, self._position, moved)
        return self._position.unsqueeze(-1), reward, torch.zeros_like(stays)
