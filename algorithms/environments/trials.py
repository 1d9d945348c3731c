"""Trials: what a policy with a memory can learn in, and the bandit that it is first tried on."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform
from torch.nn.functional import one_hot

from stochgraph.errors.checks import integer, require

from ._protocol import Environment, at_least_one


class Bandit(Environment):
    r"""Arms that pay 1 with a probability of their own, :math:`p \sim U(0, 1)` each, or 0. Nothing is observed but 1.

    Args:
        arms: the number of arms.
        horizon: the number of pulls.

    References:
        Duan et al. (2016), RL², section 3.1.

    Example:
        >>> import torch
        >>> bandit = Bandit(arms=2)
        >>> bandit.reset(torch.tensor([[1.0, 0.0]]))
        tensor([[1.]])
        >>> bandit.step(torch.tensor([0]))[1]
        tensor([1.])
    """

    observation_size = 1
    discrete = True

    def __init__(self, arms: int = 5, horizon: int = 10) -> None:
        require(integer(1), arms=arms)
        self.action_size = arms
        self.horizon = at_least_one(horizon)

    def task_distribution(self) -> Distribution:
        return Independent(Uniform(torch.zeros(self.action_size), torch.ones(self.action_size)), 1)

    def reset(self, task: Tensor) -> Tensor:
        self._chance = self._started(task, (self.action_size,))
        return task.new_ones(len(task), 1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        arm = self._acted(action).unsqueeze(1)
        chance = self._chance.gather(1, arm).squeeze(1)
        reward = (torch.rand_like(chance) < chance).to(chance)
        return chance.new_ones(len(chance), 1), reward, torch.zeros_like(chance, dtype=torch.bool)


class Trials(Environment):
    r"""Several episodes of one task in a row, and in an observation what was done before and what came of it.

    The observation at a step is that of the environment, the action before it (an indicator vector, if actions are
    discrete), the reward that it gave, and 1 at the first step of an episode, where action and reward are zero at the
    first step of all. An episode that ends before its horizon waits there: its observations and rewards are zero until
    all begin anew. So a policy with a memory finds the task out in the first episodes, and uses it in the later ones;
    RL² is that.

    Args:
        environment: what the episodes are of.
        episodes: how many there are in a trial.

    References:
        Duan et al. (2016), RL², section 2.2.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.environments import Bandit, Trials
        >>> trials = Trials(Bandit(arms=2, horizon=10), episodes=3)
        >>> trials.horizon, trials.reset(torch.tensor([[1.0, 0.0]]))
        (30, tensor([[1., 0., 0., 0., 1.]]))
        >>> trials.step(torch.tensor([0]))[0]
        tensor([[1., 1., 0., 1., 0.]])
    """

    def __init__(self, environment: Environment, episodes: int = 1) -> None:
        require(integer(1), episodes=episodes)
        self.environment = environment
        self.episodes = episodes
        self.discrete = environment.discrete
        self.action_size = environment.action_size
        self.observation_size = environment.observation_size + environment.action_size + 2
        self.horizon = episodes * environment.horizon

    def task_distribution(self) -> Distribution:
        return self.environment.task_distribution()

    def reset(self, task: Tensor) -> Tensor:
        self._task, self._steps, self._episodes = task, 0, len(task)
        self._ended = torch.zeros(len(task), dtype=torch.bool, device=task.device)
        none = task.new_zeros(len(task), self.action_size + 1)
        return self._remembering(self.environment.reset(task), none)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        acted = self._acted(action)
        done_with = one_hot(acted.long(), self.action_size) if self.discrete else acted.clone()
        observation, reward, ends = self.environment.step(action)
        reward = reward.masked_fill(self._ended, 0)
        self._steps += 1
        self._ended = self._ended | ends
        if self._steps % self.environment.horizon == 0 and self._steps < self.horizon:
            observation, self._ended = self.environment.reset(self._task), torch.zeros_like(self._ended)
        observation = observation.masked_fill(self._ended.unsqueeze(1), 0)
        last = self._steps > self.horizon - self.environment.horizon
        over = self._ended if last else torch.zeros_like(self._ended)
        return self._remembering(observation, torch.cat([done_with.to(reward), reward.unsqueeze(1)], 1)), reward, over

    def _remembering(self, observation: Tensor, before: Tensor) -> Tensor:
        begins = float(self._steps % self.environment.horizon == 0)
        return torch.cat([observation.to(before), before, before.new_full((len(before), 1), begins)], 1)
