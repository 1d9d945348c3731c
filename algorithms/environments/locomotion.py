r"""Robots that learn to run, in MuJoCo: Gymnasium's models, with a task in place of its forward reward.

With velocity `v` along the first axis, the reward of a step is the task's part plus the robot's:

- direction, :math:`d = \pm 1`: :math:`d \cdot v`;
- velocity, :math:`v^* \sim U(low, high)`: :math:`-|v - v^*|`;
- the robot's: minus `control_cost` :math:`|a|^2`, minus `contact_cost` times the squared contact forces, plus `bonus`
  while the robot is healthy. The episode ends when it is not.

Observations, the robot's part of the reward, velocities and ends are those of Gymnasium's environments (version 5) on
the same states and actions. Costs are of the action as it is; MuJoCo clamps the control to [-1, 1].

All episodes are simulations of one `mujoco.batch.Batch`: no Python object and no Python call per episode.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import AffineTransform, Bernoulli, Distribution, TransformedDistribution, Uniform

from ._protocol import Environment, at_least_one, one_of
from ._simulation import Array, Simulation, SimulationError

Goal = Literal["direction", "velocity"]
HERE: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # MuJoCo's numbers, wherever the tasks are


@dataclass(frozen=True)
class Robot:
    """The figures that tell one robot from another.

    Attributes:
        name: the function that makes its environment.
        model_file: among Gymnasium's models.
        frame_skip: substeps of the simulation per step.
        hidden: how many of the leading positions are not observed.
        control_cost: the cost of a unit of squared action.
        bonus: the reward per step of being healthy.
        healthy: bounds of the positions, by their index; those of a healthy robot are within all of them.
        torso_velocity: whether the velocity is that of the torso, and not of the first position.
        velocity_bound: velocities are observed clipped to this.
        noise: an episode's positions start this far from the model's, uniformly, and velocities likewise.
        normal_velocities: whether initial velocities are normal, with the standard deviation `noise`.
        contact_cost: the cost of a unit of squared contact force, of forces clipped to [-1, 1].
        contact: whether the clipped contact forces are observed and cost something.
    """

    name: str
    model_file: str
    frame_skip: int
    hidden: int
    control_cost: float
    noise: float
    bonus: float = 0.0
    healthy: tuple[tuple[int, float, float], ...] = ()
    torso_velocity: bool = False
    velocity_bound: float = math.inf
    normal_velocities: bool = False
    contact_cost: float = 0.0
    contact: bool = False


HALF_CHEETAH = Robot("half_cheetah", "half_cheetah.xml", 5, 1, 0.05, 0.1, normal_velocities=True)
ANT = Robot("ant", "ant.xml", 5, 2, 0.5, 0.1, 1.0, torso_velocity=True, normal_velocities=True, contact_cost=5e-4)
WALKER2D = Robot("walker2d", "walker2d_v5.xml", 4, 1, 1e-3, 5e-3, 1.0, velocity_bound=10.0)
SWIMMER = Robot("swimmer", "swimmer.xml", 4, 2, 1e-4, 0.1)


def half_cheetah(
    goal: Goal = "direction",
    velocities: tuple[float, float] = (0.0, 2.0),
    control_cost: float = 0.05,
    horizon: int = 100,
    threads: int | None = None,
) -> "Locomotion":
    """A two-legged runner in the plane: 17 observations, 6 actions. Episodes do not end before the horizon.

    Args:
        goal: "direction" or "velocity".
        velocities: the interval that wanted velocities are drawn from, in metres per second.
        control_cost: the cost of a unit of squared action. Gymnasium's own is .1.
        horizon: the number of steps, of .05 seconds.
        threads: threads that step the simulations; one per processor if `None`.

    References:
        Finn et al. (2017), section 5.3 (velocities in [0, 2], as Xu and Zhu (2024), appendix B); Rothfuss et al. (2019)
        have [0, 3].

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments import half_cheetah
        >>> cheetah = half_cheetah("velocity")
        >>> observation = cheetah.reset(cheetah.task_distribution().sample((2,)))
        >>> observation, reward, done = cheetah.step(torch.zeros(2, 6))
        >>> observation.shape
        torch.Size([2, 17])
    """
    return Locomotion(replace(HALF_CHEETAH, control_cost=control_cost), goal, velocities, horizon, threads)


def ant(
    goal: Goal = "direction",
    velocities: tuple[float, float] = (0.0, 3.0),
    heights: tuple[float, float] = (0.0, 1.0),
    contact_forces: bool = False,
    control_cost: float = 0.5,
    horizon: int = 100,
    threads: int | None = None,
) -> "Locomotion":
    """A four-legged walker: 27 observations, 8 actions. An episode ends when the torso leaves its heights.

    Args:
        goal: "direction" or "velocity".
        velocities: the interval that wanted velocities are drawn from, in metres per second.
        heights: the heights of a healthy torso, in metres. Gymnasium's own are (.2, 1).
        contact_forces: whether the forces of contacts are 78 more observations and cost 5e-4 a unit, as Gymnasium has
            it, exactly. They take about a sixth of the time of a step.
        control_cost: the cost of a unit of squared action.
        horizon: the number of steps, of .05 seconds.
        threads: threads that step the simulations; one per processor if `None`.

    References:
        Finn et al. (2017), section 5.3; Rothfuss et al. (2019) and its code (heights, velocities, as Xu and Zhu (2024),
        appendix B).

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments import ant
        >>> walker = ant()
        >>> walker.reset(torch.tensor([1.0, -1.0])).shape
        torch.Size([2, 27])
    """
    robot = replace(ANT, control_cost=control_cost, healthy=((2, *heights),), contact=contact_forces)
    return Locomotion(robot, goal, velocities, horizon, threads)


def walker2d(
    goal: Goal = "direction",
    velocities: tuple[float, float] = (0.0, 2.0),
    control_cost: float = 1e-3,
    horizon: int = 100,
    threads: int | None = None,
) -> "Locomotion":
    """A two-legged walker in the plane: 17 observations, 6 actions. An episode ends when it falls.

    Args:
        goal: "direction" or "velocity".
        velocities: the interval that wanted velocities are drawn from, in metres per second.
        control_cost: the cost of a unit of squared action.
        horizon: the number of steps, of .008 seconds.
        threads: threads that step the simulations; one per processor if `None`.

    References:
        Rothfuss et al. (2019) and its code (direction).

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments import walker2d
        >>> walker2d().reset(torch.tensor([1.0, -1.0])).shape
        torch.Size([2, 17])
    """
    robot = replace(WALKER2D, control_cost=control_cost, healthy=((1, 0.8, 2.0), (2, -1.0, 1.0)))
    return Locomotion(robot, goal, velocities, horizon, threads)


def swimmer(
    goal: Goal = "velocity",
    velocities: tuple[float, float] = (0.1, 0.2),
    control_cost: float = 1e-4,
    horizon: int = 100,
    threads: int | None = None,
) -> "Locomotion":
    """A three-link swimmer: 8 observations, 2 actions. Episodes do not end before the horizon.

    Args:
        goal: "direction" or "velocity".
        velocities: the interval that wanted velocities are drawn from, in metres per second.
        control_cost: the cost of a unit of squared action.
        horizon: the number of steps, of .04 seconds.
        threads: threads that step the simulations; one per processor if `None`.

    References:
        Rothfuss et al. (2019) and its code (velocity), which adds the control cost where it must be subtracted.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments import swimmer
        >>> swimmer().reset(torch.tensor([0.1, 0.15, 0.2])).shape
        torch.Size([3, 8])
    """
    return Locomotion(replace(SWIMMER, control_cost=control_cost), goal, velocities, horizon, threads)


class Locomotion(Environment):
    """Episodes of one robot: see `half_cheetah`, `ant`, `walker2d` and `swimmer`, which make them. A task is a number.

    Args:
        robot: the robot.
        goal: "direction" (tasks -1 and 1) or "velocity" (tasks uniform on `velocities`).
        velocities: the interval that wanted velocities are drawn from, in metres per second.
        horizon: the number of steps.
        threads: threads that step the simulations; one per processor if `None`.
    """

    def __init__(
        self, robot: Robot, goal: Goal, velocities: tuple[float, float], horizon: int, threads: int | None
    ) -> None:
        self.goal = one_of("goal", goal, ("direction", "velocity"))
        if not velocities[0] < velocities[1]:
            raise ValueError(f"velocities must be an interval (low, high) with low < high, got {velocities}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for one per processor; got {threads}")
        self.robot = robot
        self.velocities = velocities
        self.horizon = at_least_one(horizon)
        self.simulation = Simulation(robot.name, robot.model_file, robot.frame_skip, threads, robot.contact)
        model = self.simulation.model
        self.action_size = model.nu
        self.observation_size = model.nq + model.nv - robot.hidden + robot.contact * 6 * (model.nbody - 1)

    def task_distribution(self) -> Distribution:
        if self.goal == "velocity":
            low, high = torch.tensor(self.velocities)
            return Uniform(low, high)
        return TransformedDistribution(Bernoulli(torch.tensor(0.5)), AffineTransform(-1.0, 2.0))

    def reset(self, task: Tensor) -> Tensor:
        self._like = self._started(task, ()).new_empty(())
        self._dtype = self._like.numpy(force=True).dtype  # converted at once: between physics, every call is a cold one
        self._largest = float(np.finfo(self._dtype).max)
        self._task = task.double().numpy(force=True)
        self._done = torch.zeros(len(task), dtype=torch.bool, device=task.device)
        self._running: NDArray[np.int32] | None = None  # all
        self.simulation.start(*self._initial_state(len(task)))
        return self._observe()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        control = self._acted(action).double().numpy(force=True)
        before = self._where().copy()
        self.simulation.step(control, self._running)
        velocity = (self._where() - before) / self.simulation.step_time
        reward = self._task_reward(velocity) - self._costs(control)
        if self.robot.healthy:
            healthy = self._healthy()
            reward += self.robot.bonus * healthy
            self._end(~healthy)
        return self._observe(), self._tensor(self._finite(reward, control)), self._done

    def _finite(self, reward: Array, control: Array) -> NDArray[Any]:
        """The rewards, if they can be represented: MuJoCo clamps huge actions, but their costs are as they are."""
        fits = np.abs(reward) <= self._largest  # not what is not a number
        if fits.all():
            return reward.astype(self._dtype)
        wrong = np.flatnonzero(~fits & ~self._done.numpy(force=True))
        if wrong.size:
            largest = np.abs(control[wrong[0]]).max()
            raise SimulationError(
                f"{self.robot.name}: {wrong.size} of {len(reward)} episodes have rewards that are not finite, the "
                f"first with the index {wrong[0]} (task * trajectories + trajectory); its largest action is "
                f"{largest:.1e}: adapted parameters have left their scale (inner step size)"
            )
        return reward.clip(-self._largest, self._largest).astype(self._dtype)

    def _end(self, unhealthy: NDArray[np.bool_]) -> None:
        """End episodes. What has ended is not simulated any more."""
        if not unhealthy.any():
            return
        self._done = self._done | torch.from_numpy(unhealthy).to(self._done.device)
        self._running = np.flatnonzero(~self._done.numpy(force=True)).astype(np.int32)

    def _initial_state(self, episodes: int) -> tuple[Array, Array]:
        """Positions and velocities, `(episodes, nq)` and `(episodes, nv)`."""
        model, noise = self.simulation.model, self.robot.noise
        position = model.qpos0 + noise * (2 * torch.rand(episodes, model.nq, **HERE) - 1).numpy()
        if self.robot.normal_velocities:
            return position, noise * torch.randn(episodes, model.nv, **HERE).numpy()
        return position, noise * (2 * torch.rand(episodes, model.nv, **HERE) - 1).numpy()

    def _where(self) -> Array:
        """The way that each robot has come, in metres."""
        return self.simulation.torso[:, 0] if self.robot.torso_velocity else self.simulation.position[:, 0]

    def _task_reward(self, velocity: Array) -> Array:
        return self._task * velocity if self.goal == "direction" else -np.abs(velocity - self._task)

    def _costs(self, control: Array) -> Array:
        cost = self.robot.control_cost * np.einsum("ea,ea->e", control, control)
        if self.robot.contact:
            cost += self.robot.contact_cost * np.square(self._contact()).sum((1, 2))
        return cost

    def _healthy(self) -> NDArray[np.bool_]:
        state = self.simulation.position
        healthy = np.ones(len(state), dtype=bool)
        for index, low, high in self.robot.healthy:
            healthy &= (low <= state[:, index]) & (state[:, index] <= high)
        return healthy

    def _contact(self) -> Array:
        return self.simulation.contact.clip(-1, 1)

    def _observe(self) -> Tensor:
        robot, simulation = self.robot, self.simulation
        velocity = simulation.velocity
        if math.isfinite(robot.velocity_bound):
            velocity = velocity.clip(-robot.velocity_bound, robot.velocity_bound)
        parts = [simulation.position[:, robot.hidden :], velocity]
        if robot.contact:
            parts.append(self._contact()[:, 1:].reshape(len(velocity), -1))
        return self._tensor(np.concatenate(parts, axis=1, dtype=self._dtype))

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._like.device)
