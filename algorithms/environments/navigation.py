"""Two-dimensional navigation: a point walks to a goal that it is not shown."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import stochgraph as sg

from ..policies import GaussianMLP, Parameters


class Trajectory(NamedTuple):
    """A batch of trajectories; every field has shape `(*plates, time, ...)`."""

    observation: Tensor
    action: Tensor
    reward: Tensor


class Navigation(sg.Sampler):
    r"""Trajectories of a policy in the unit square around the origin, all of them stepped as one batch.

    The state is the position in :math:`[-.5, .5]^2`, clipped; a trajectory starts at the origin. The action times
    `action_scale` is the velocity, clipped to :math:`\pm .1` per coordinate. The reward after each step is the negative
    squared distance to the goal, or the negative distance. Parents of a sample node: the policy's parameters and the
    goal of the task, shape `(2,)`; draw goals uniformly from the square (`goals`).

    Args:
        policy: a policy with observations and actions of size 2.
        horizon: the number of steps.
        reward: "squared distance" or "distance".
        action_scale: velocity per unit of action.

    References:
        Fallah et al. (2021), section 5 and Table 1 (2-D navigation, squared distance).

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments.navigation import Navigation
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> walk = Navigation(GaussianMLP(2, 2, hidden=(8,)), horizon=5)
        >>> parameters = {name: leaf.unsqueeze(0) for name, leaf in walk.policy.initial().items()}
        >>> walk.draw(torch.Size([3]), parameters, torch.zeros(1, 2)).reward.shape
        torch.Size([3, 5])
    """

    time = True

    def __init__(
        self,
        policy: GaussianMLP,
        horizon: int = 100,
        reward: Literal["squared distance", "distance"] = "squared distance",
        action_scale: float = 1.0,
    ) -> None:
        if reward not in ("squared distance", "distance"):
            raise ValueError(f'reward={reward!r} is not known: choose "squared distance" or "distance"')
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        self.policy = policy
        self.horizon = horizon
        self.reward = reward
        self.action_scale = action_scale

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Trajectory:
        parameters, goal = parents
        noise = torch.randn(
            *batch_shape, self.horizon, 2, dtype=parameters["log_std"].dtype, device=parameters["log_std"].device
        )
        return sg.vectorize(self._walk, len(batch_shape))(parameters, goal, noise)

    def log_prob(self, value: Trajectory, *parents: Any) -> Tensor:
        return self.policy.log_prob(parents[0], value.observation, value.action)

    def _walk(self, parameters: Parameters, goal: Tensor, noise: Tensor) -> Trajectory:
        """One trajectory, driven by standard normal noise of shape `(time, 2)`."""
        std = self.policy.std(parameters)
        position = torch.zeros_like(noise[0])
        observations, actions, rewards = [], [], []
        for shock in noise.unbind(0):
            action = self.policy.mean(parameters, position) + std * shock
            observations.append(position)
            actions.append(action)
            position = (position + (self.action_scale * action).clamp(-0.1, 0.1)).clamp(-0.5, 0.5)
            squared = (position - goal).square().sum(-1)
            rewards.append(-squared if self.reward == "squared distance" else -squared.sqrt())
        return Trajectory(torch.stack(observations), torch.stack(actions), torch.stack(rewards))


def goals(n: int) -> Any:
    """Declare a plate "task" of `n` goals, uniform on the square. For use inside a declaration."""
    corner = torch.full((2,), 0.5)
    return sg.sample("task", torch.distributions.Uniform, -corner, corner, n=n)
