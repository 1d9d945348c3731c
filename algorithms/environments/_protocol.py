"""Environments: batches of episodes that are started together and stepped together."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

import stochgraph as sg
from stochgraph.errors.checks import shown


class Episodes(NamedTuple):
    """All episodes that a task can have, each field of shape `(outcomes, time, ...)`, zero from the end of one on."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor  # 1 while the episode runs, the step that ends it included
    transition: Tensor  # the log-probability of what the environment did in each step; minus infinity: impossible


class Environment(ABC):
    r"""A distribution over tasks, and the dynamics of `episodes` episodes at once, one task each.

    Everything happens in batches: `reset` starts as many episodes as it gets tasks, one call of `step` advances all of
    them. What `step` returns for an episode that has ended has no meaning; `stochgraph.algorithms.rollouts.Rollouts`
    masks it. All randomness comes from torch's default generators, so one seed gives one result, whatever the number
    of threads. Observations and rewards have the dtype and the device of the tasks, or are converted; `step` may write
    into the tensors that it gets, and into those that it returned before. An environment can be pickled between
    episodes, without the episodes.

    Attributes:
        observation_size: the size of an observation, a flat vector.
        action_size: the size of a continuous action, or the number of discrete actions.
        discrete: whether actions are integers below `action_size`.
        horizon: the number of steps of an episode that does not end before, unless a caller wants another.
        truncated: which of the episodes that the last step ended were cut off by a limit of time and not by what
            happened in them, `(episodes,)` of booleans; `None`: none of them. The observations of those are the last
            ones of their episodes.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments import Navigation
        >>> walk = Navigation()
        >>> observation = walk.reset(walk.task_distribution().sample((3,)))
        >>> observation, reward, done = walk.step(torch.ones(3, walk.action_size))
        >>> observation.shape, reward.shape, done.dtype
        (torch.Size([3, 2]), torch.Size([3]), torch.bool)
    """

    observation_size: int
    action_size: int
    horizon: int
    discrete: bool = False
    truncated: Tensor | None = None
    _episodes: int = 0

    @abstractmethod
    def task_distribution(self) -> Distribution:
        """The distribution of one task, a tensor."""

    @abstractmethod
    def reset(self, task: Tensor) -> Tensor:  # (episodes, *task) -> (episodes, observation)
        """Start one episode per task."""

    @abstractmethod
    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance all episodes by one step.

        Args:
            action: shape `(episodes, action_size)`, or `(episodes,)` of integers if actions are discrete.

        Returns:
            The observations after the step, `(episodes, observation_size)`; the rewards, `(episodes,)`; and whether
            the episodes have ended, `(episodes,)`, of booleans.
        """

    def enumerate(self, task: Tensor, horizon: int) -> Episodes:
        """All episodes of one task, under all actions; optional, for `stochgraph.verify`.

        Their number must not depend on the task. It is a function of torch operations, which `torch.vmap` can map.
        """
        raise NotImplementedError(f"{type(self).__name__} does not enumerate its episodes")

    def declare_tasks(self, n: int, among: Tensor | None = None) -> Any:
        """Declare a plate "task" of `n` tasks. For use inside a declaration.

        Args:
            n: the number of tasks.
            among: a few tasks `(count, *task)`, all different, that are drawn uniformly with replacement in place of
                those of `task_distribution`: what `stochgraph.verify` can enumerate.
        """
        if among is None:
            return sg.sample("task", self.task_distribution, n=n)
        listed = ListedTasks(among)
        return sg.sample("task", lambda: listed, n=n)

    def __getstate__(self) -> dict[str, Any]:
        """The settings, and not the episodes, which are in attributes that begin with `_`."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def _started(self, task: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tasks, whose shape must be `(episodes, *shape)`."""
        if task.shape[1:] != shape or task.dim() == 0 or not task.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.reset: one floating-point task of shape {shape} per episode is expected, that "
                f"is {('episodes', *shape)}; got {tuple(task.shape)} of {task.dtype}"
            )
        self._episodes = len(task)
        return task

    def _acted(self, action: Tensor) -> Tensor:
        """The actions, one for each episode that was started."""
        if not self._episodes:
            raise ValueError(f"{type(self).__name__}.step: no episodes are running; call reset with their tasks first")
        shape = (self._episodes,) if self.discrete else (self._episodes, self.action_size)
        if action.shape != shape:
            got = tuple(action.shape)
            raise ValueError(f"{type(self).__name__}.step: actions of shape {shape} are expected, got {got}")
        return action


class ListedTasks(Distribution):
    """The uniform distribution on a few tasks.

    Args:
        tasks: `(count, *task)`, all different.

    Raises:
        ValueError: there is none, or two are the same.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments import ListedTasks
        >>> goals = ListedTasks(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
        >>> goals.log_prob(torch.tensor([0.0, 0.5])).exp()
        tensor(0.5000)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real
    has_enumerate_support = True

    def __init__(self, tasks: Tensor) -> None:
        if not tasks.dim() or not len(tasks) or len(tasks.unique(dim=0)) < len(tasks):
            raise ValueError(f"at least one task is expected, all of them different; got {tasks}")
        self.tasks = tasks
        super().__init__(event_shape=tasks.shape[1:], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Tasks of shape `(*sample_shape, *task)`."""
        return self.tasks[torch.randint(len(self.tasks), tuple(sample_shape), device=self.tasks.device)]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of each task, `(*plates, *task)`: that of one in `count`, or of none."""
        same = value.unsqueeze(-1 - len(self.event_shape)) == self.tasks
        known = same.flatten(same.dim() - len(self.event_shape)).all(-1) if self.event_shape else same
        return (known.sum(-1).to(value.dtype) / len(self.tasks)).log()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The tasks, `(count, *task)`."""
        return self.tasks


def at_least_one(horizon: int) -> int:
    """The number of steps of an episode, which must be positive."""
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    return horizon


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """An option, which must be a known one."""
    if value not in known:
        choices = " or ".join(f'"{each}"' for each in known)
        raise ValueError(f"{name}={shown(value)} is not known: choose {choices}")
    return value
