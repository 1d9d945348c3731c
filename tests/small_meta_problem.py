"""The smallest meta-problem that has all parts: tasks, trajectories of two steps, inner steps; few outcomes in all."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical

import stochgraph as sg
from stochgraph.algorithms.meta_sgd import LearnedRates
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.policies import TabularSoftmax

F64 = torch.float64
TASKS = torch.tensor([[[0.1, 1.0], [-0.6, 0.4]], [[0.7, -0.2], [0.3, 0.9]]], dtype=F64)  # (tasks, states, actions)
LOGITS = torch.tensor([[0.3, -0.2], [-0.5, 0.1]], dtype=F64)
POLICY = TabularSoftmax(2, 2)


class Steps(NamedTuple):
    """A trajectory."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    log_prob: Tensor


class Corridor(sg.Sampler):
    """Two states; an action leads to the state of its number, and is rewarded as the task says."""

    time = True

    def __init__(self, policy: Any = POLICY, horizon: int = 2) -> None:
        self.policy = policy
        self.horizon = horizon

    def draw(self, batch_shape: torch.Size, parameters: Any, task: Tensor) -> Steps:
        choose = sg.vectorize(lambda p, uniform: self._chosen(p, uniform), len(batch_shape))
        action = choose(parameters, torch.rand(*batch_shape, self.horizon, dtype=F64))
        return sg.vectorize(self._steps, len(batch_shape))(parameters, task, action)

    def log_prob(self, value: Steps, parameters: Any, task: Tensor) -> Tensor:
        found: Tensor = self.policy.log_prob(parameters, value.observation, value.action)
        return found

    def enumerate(self, parameters: Any, task: Tensor) -> Steps:
        action = torch.cartesian_prod(*[torch.arange(2)] * self.horizon).reshape(-1, self.horizon)
        return torch.vmap(lambda a: self._steps(parameters, task, a))(action)

    def _steps(self, parameters: Any, task: Tensor, action: Tensor) -> Steps:
        state = torch.cat([torch.zeros_like(action[:1]), action[:-1]])
        observation = torch.nn.functional.one_hot(state, 2).to(F64)
        log_prob = self.policy.log_prob(parameters, observation, action).detach()
        return Steps(observation, action, TASKS[task, state, action], torch.ones(self.horizon, dtype=F64), log_prob)

    def _chosen(self, parameters: Any, uniform: Tensor) -> Tensor:
        """Actions one after the other, as the policy has them in the state that the last one led to."""
        right = self.policy.log_prob(parameters, torch.eye(2, dtype=F64), torch.ones(2)).exp()
        action = [(uniform[0] < right[0]).long()]
        for t in range(1, self.horizon):
            action.append((uniform[t] < right[action[-1]]).long())
        return torch.stack(action)


def meta_problem(**changes: Any) -> MetaProblem:
    """One of two tasks, one inner step on two trajectories, one trajectory after it."""
    given: dict[str, Any] = {"trajectories": Corridor(), "tasks": declared_tasks, "policy": POLICY}
    given |= {"inner_rate": 0.7, "inner": 2, "outer": 1, "discount": 0.9}
    return MetaProblem(**given | changes)


def with_learned_rates(**changes: Any) -> MetaProblem:
    """The same with step sizes among the parameters."""
    policy = LearnedRates(POLICY, 0.7)
    return meta_problem(trajectories=Corridor(policy), policy=policy, **changes)


def declared_tasks() -> Any:
    return sg.sample("task", Categorical, torch.tensor([0.4, 0.6], dtype=F64), n=1)


THETA = {"logits": LOGITS}
THETA_AND_RATES = {"logits": LOGITS, "rate.logits": torch.tensor([[0.7, 0.2], [0.9, 0.5]], dtype=F64)}
