"""Any Gymnasium vector environment as an `Environment`, each of its episodes with a task of its own."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from ._optional import installed
from ._protocol import Environment, ListedTasks, at_least_one

Options = Callable[[Tensor], dict[str, Any]]


class GymnasiumEnvironment(Environment):
    """Episodes of a Gymnasium vector environment; what a task changes is up to the caller.

    A task can be arguments of the environments' constructors: `make` gets all tasks and builds one environment each.
    Or it can be options of their `reset`: with `reset_options`, each task's episodes are reset by a call of their own,
    through Gymnasium's `reset_mask`. The vector environment is kept while tasks stay the same, or, with
    `reset_options`, their number. Every reset is seeded from torch's generator. A forked process leaves the workers of
    an `AsyncVectorEnv` to its parent, and builds its own at the next reset.

    Observations are boxes, flattened, or integers, as indicator vectors. Actions are boxes, passed on as they are,
    or integers; wrap environments (`gymnasium.wrappers`) for anything else. An episode ends when it is terminated or
    truncated; what the vector environment makes of it after that (`AutoresetMode.NEXT_STEP` or `SAME_STEP`) is masked.

    Args:
        make: builds the vector environment for tasks of shape `(episodes, *task)`. Where a task changes nothing, or
            `reset_options` says what it changes: `lambda task: gymnasium.make_vec(..., num_envs=len(task))`.
        tasks: the distribution of one task.
        horizon: the number of steps.
        reset_options: the options of `reset` for one task, a tensor.

    Example:
        >>> import torch
        >>> import gymnasium
        >>> from stochgraph.algorithms.environments import GymnasiumEnvironment
        >>> def make(gravity):
        ...     one = [lambda g=g: gymnasium.make("Pendulum-v1", g=g) for g in gravity.tolist()]
        ...     return gymnasium.vector.SyncVectorEnv(one)
        >>> earth_or_moon = torch.distributions.Uniform(torch.tensor(1.6), torch.tensor(9.8))
        >>> pendulum = GymnasiumEnvironment(make, earth_or_moon, horizon=200)
        >>> pendulum.observation_size, pendulum.action_size
        (3, 1)
        >>> pendulum.reset(torch.tensor([9.0, 10.0])).shape
        torch.Size([2, 3])
    """

    _vector: Any = None
    _built_for: Tensor | None = None
    _truncated: Tensor | None = None
    _process: int

    def __init__(
        self,
        make: Callable[[Tensor], Any],
        tasks: Distribution,
        horizon: int,
        reset_options: Options | None = None,
    ) -> None:
        installed("gymnasium", "GymnasiumEnvironment")
        _check(make, tasks)
        self.make = make
        self.tasks = tasks
        self.reset_options = reset_options
        with torch.random.fork_rng(devices=[]):
            self._build(tasks.sample(torch.Size([1])))
        self.observation_size = _size("observation", self._vector.single_observation_space)
        self.action_size = _size("action", self._vector.single_action_space)
        self.discrete = isinstance(self._vector.single_action_space, _spaces().Discrete)
        self.horizon = at_least_one(horizon)

    def task_distribution(self) -> Distribution:
        return self.tasks

    def reset(self, task: Tensor) -> Tensor:
        self._started(task, tuple(self.tasks.batch_shape + self.tasks.event_shape))
        self._like = task.new_empty(())
        if not self._serves(task):
            self._build(task)
        # One integer: environments that are vectorised by themselves take no list. The others count up from it.
        seed = int(torch.randint(2**31, ()))
        if self.reset_options is None:
            return self._observe(self._vector.reset(seed=seed)[0])
        tasks, which = task.unique(dim=0, return_inverse=True)
        observation, _ = self._vector.reset(seed=seed, options=self.reset_options(tasks[0]))
        for k, one in enumerate(tasks[1:], start=1):
            mask = (which == k).numpy(force=True)
            observation, _ = self._vector.reset(seed=seed, options={"reset_mask": mask, **self.reset_options(one)})
        return self._observe(observation)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        acted = self._acted(action).numpy(force=True)
        if self._has_parents_workers():
            raise ValueError(
                "GymnasiumEnvironment.step: a forked process cannot use its parent's workers; spawn it, or reset the "
                "environment"
            )
        space = self._vector.single_action_space
        acted = acted.astype(space.dtype).reshape(-1, *space.shape)
        if self.discrete:
            acted = acted + space.start
        observation, reward, terminated, truncated, info = self._vector.step(acted)
        self._truncated = torch.from_numpy(truncated & ~terminated).to(self._like.device)
        done = torch.from_numpy(terminated | truncated).to(self._like.device)
        seen = self._observe(_last(observation, info))
        return seen, torch.from_numpy(np.array(reward)).to(self._like), done

    @property
    def truncated(self) -> Tensor | None:  # type: ignore[override]  # it is read, never set
        """Which episodes the last step cut off by a limit of time."""
        return self._truncated

    def close(self) -> None:
        """End the vector environment's processes, if it has any."""
        if self._has_parents_workers():
            self._vector.unwrapped.closed = True  # here; the workers still serve the parent
        elif self._vector is not None:
            self._vector.close()
        self._vector = None

    def _has_parents_workers(self) -> bool:
        """True in a forked process, where the vector environment's processes are its parent's."""
        workers = getattr(getattr(self._vector, "unwrapped", None), "processes", None)
        return bool(workers) and self._process != os.getpid()

    def _build(self, task: Tensor) -> None:
        self.close()
        self._vector, self._built_for, self._process = self.make(task), task.clone(), os.getpid()
        if self._vector.num_envs != len(task):
            built = self._vector.num_envs
            raise ValueError(f"make must build one environment per task: {len(task)} tasks, {built} built")
        if getattr(self._vector.metadata.get("autoreset_mode"), "name", None) == "DISABLED":
            raise ValueError("AutoresetMode.DISABLED: ended episodes cannot be stepped; choose NEXT_STEP or SAME_STEP")
        if self.reset_options is not None and not _resets_apart(self._vector):
            kind = type(self._vector.unwrapped).__name__
            raise ValueError(
                f"{kind} is vectorised by itself and resets all episodes with the same options: with reset_options "
                'build it with vectorization_mode="sync", or put the task into make'
            )

    def _serves(self, task: Tensor) -> bool:
        """True if the vector environment at hand is one for these tasks."""
        if self._vector is None or self._built_for is None or len(task) != len(self._built_for):
            return False
        if self._has_parents_workers():
            return False
        return self.reset_options is not None or bool((task == self._built_for.to(task)).all())

    def _observe(self, observation: Any) -> Tensor:
        values = torch.from_numpy(np.array(observation))
        space = self._vector.single_observation_space
        if isinstance(space, _spaces().Discrete):
            return one_hot(values.long() - int(space.start), self.observation_size).to(self._like)
        return values.reshape(len(values), -1).to(self._like)


def registered_environment(id: str = "CartPole-v1", horizon: int | None = None, **options: Any) -> GymnasiumEnvironment:
    """An environment that Gymnasium knows by name. It has one task, the number 0, which changes nothing.

    Args:
        id: its name in Gymnasium's registry.
        horizon: the number of steps; none: the time limit that it is registered with.
        **options: arguments of its constructor.

    Raises:
        ValueError: Gymnasium does not know it, or it has no time limit and no horizon is given.

    Example:
        >>> from stochgraph.algorithms.environments import registered_environment
        >>> cart = registered_environment("CartPole-v1")
        >>> cart.observation_size, cart.action_size, cart.discrete, cart.horizon
        (4, 2, True, 500)
    """
    gymnasium = installed("gymnasium", "registered_environment")
    try:
        spec = gymnasium.spec(id)
    except gymnasium.error.Error as error:
        raise ValueError(f"id={id!r}: {error}") from error
    limit = horizon or spec.max_episode_steps
    if limit is None:
        raise ValueError(f"id={id!r} is registered without a time limit: give the horizon")
    return GymnasiumEnvironment(partial(_of_spec, id, options), ListedTasks(torch.zeros(1)), limit)


def _of_spec(id: str, options: dict[str, Any], task: Tensor) -> Any:
    return installed("gymnasium", "registered_environment").make_vec(id, num_envs=len(task), **options)


def _last(observation: Any, info: dict[str, Any]) -> Any:
    """The observations after a step: of what was reset in the same step (`SAME_STEP`), those before the reset."""
    if "final_obs" not in info:
        return observation
    observation = np.array(observation)
    for i in np.flatnonzero(info["_final_obs"]):
        observation[i] = info["final_obs"][i]
    return observation


def _resets_apart(vector: Any) -> bool:
    """True if some of its episodes can be reset with options of their own."""
    kinds = installed("gymnasium.vector", "GymnasiumEnvironment")
    return isinstance(vector.unwrapped, kinds.SyncVectorEnv | kinds.AsyncVectorEnv)


def _check(make: Any, tasks: Any) -> None:
    if not callable(make):
        raise ValueError(
            f"make is a {type(make).__name__}: give a function that builds one environment per task, for instance "
            "lambda task: gymnasium.make_vec(..., num_envs=len(task))"
        )
    if not isinstance(tasks, Distribution):
        raise ValueError(
            f"tasks is a {type(tasks).__name__}: give the distribution of one task, for instance "
            "torch.distributions.Uniform(torch.tensor(1.6), torch.tensor(9.8))"
        )


def _spaces() -> Any:
    return installed("gymnasium", "GymnasiumEnvironment").spaces


def _size(what: str, space: Any) -> int:
    """The size of a flat observation or action, or the number of discrete ones."""
    if isinstance(space, _spaces().Discrete):
        return int(space.n)
    if isinstance(space, _spaces().Box):
        return int(np.prod(space.shape))
    raise ValueError(f"{what}s must be Box or Discrete, got {space}: wrap the environment, see gymnasium.wrappers")
