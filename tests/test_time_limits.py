"""Limits of time: what followed is recorded, and valued, where an episode is cut off and does not end by itself."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

import stochgraph as sg
from stochgraph.algorithms.a2c import a2c
from stochgraph.algorithms.environments import Environment, ListedTasks
from stochgraph.algorithms.inner_steps.advantages import gae
from stochgraph.algorithms.policies import ActorCritic, CategoricalMLP, TabularSoftmax
from stochgraph.algorithms.rollouts import CutTrajectory, Rollouts, Trajectory
from stochgraph.algorithms.training import Configuration, ConfigurationError, Problem
from tests.problems import F64
from tests.test_exact_rollouts import parameters
from tests.test_plain import asked, climbed, network

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
DISCOUNT, DECAY = 0.9, 0.8
TASKS = torch.tensor([[3.0, 9.0], [9.0, 4.0], [9.0, 9.0], [4.0, 4.0]])


class Clock(Environment):
    """The observation is the number of steps. The task says when an episode ends by itself, and when it is cut off."""

    observation_size, action_size, discrete, horizon = 1, 2, True, 6

    def task_distribution(self) -> Distribution:
        return ListedTasks(TASKS)

    def reset(self, task: Tensor) -> Tensor:
        self._task, self._time, self._episodes = task, task.new_zeros(len(task), 1), len(task)
        return self._time

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._time = self._time + 1
        ends, cut = (self._time >= self._task).T
        self.truncated = cut & ~ends
        return self._time, torch.ones_like(self._time[:, 0]), ends | cut


def drawn(policy: Any, bootstrap: bool = True) -> Any:
    """One episode of each task: ended, cut off by the environment, by the horizon, and both ended and cut off."""
    walks = Rollouts(Clock(), policy, bootstrap=bootstrap)
    torch.manual_seed(0)
    theta = {name: leaf[None] for name, leaf in parameters(policy).items()}
    return walks.draw(torch.Size([4]), theta, TASKS.to(F64))


def test_what_followed_is_recorded():
    policy = CategoricalMLP(1, 2, (3,))
    tau = drawn(policy)
    assert isinstance(tau, CutTrajectory)
    assert tau.mask.sum(-1).tolist() == [3, 4, 6, 4]
    assert tau.terminal.tolist() == [[0, 0, 1, 0, 0, 0], [0] * 6, [0] * 6, [0, 0, 0, 1, 0, 0]]
    steps = torch.arange(1.0, 7.0, dtype=F64)
    torch.testing.assert_close(tau.after[..., 0], steps * tau.mask, **EXACT)
    plain = drawn(policy, bootstrap=False)
    assert type(plain) is Trajectory
    for name in Trajectory._fields:
        assert torch.equal(getattr(plain, name), getattr(tau, name))


def test_values_of_what_follows():
    """By hand: backwards from the last step, on which the critic's value follows or nothing does."""
    policy = ActorCritic(CategoricalMLP(1, 2, (3,)), 1, (3,))
    theta, tau = parameters(policy), drawn(policy)
    value = network(theta, tau.observation, "value.").squeeze(-1)
    expected = torch.zeros(4, 6, dtype=F64)
    for i, (length, goes_on) in enumerate([(3, 0), (4, 1), (6, 1), (4, 0)]):
        later = torch.tensor(0.0, dtype=F64)
        follows = goes_on * network(theta, torch.full((1,), float(length), dtype=F64), "value.")[0]
        for t in reversed(range(length)):
            later = tau.reward[i, t] + DISCOUNT * follows - value[i, t] + DISCOUNT * DECAY * later
            expected[i, t], follows = later, value[i, t]
    after = policy.value(theta, tau.after) * (1 - tau.terminal)
    torch.testing.assert_close(gae(tau.reward, tau.mask, value, DISCOUNT, DECAY, after), expected, **EXACT)
    template = a2c(asked(Rollouts(Clock(), policy)), value_weight=0.0, entropy_weight=0.0, decay=DECAY)
    batch = CutTrajectory(*(field.unsqueeze(1) for field in tau))
    trace = sg.Trace(torch.tensor(0.0), {"task": TASKS, "tau": batch}, {}, {})
    leaves = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    gain = (policy.log_prob(leaves, tau.observation, tau.action) * expected.detach() * tau.mask).sum() / tau.mask.sum()
    by_hand = torch.autograd.grad(gain, [leaves[name] for name in ("0.weight", "2.bias")])
    found = climbed(template, theta, theta, trace)[1]
    for name, leaf in zip(("0.weight", "2.bias"), by_hand, strict=True):
        torch.testing.assert_close(found[name], leaf, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_an_endless_task_is_worth_the_same_at_its_limit(bootstrap):
    """1 a step for ever is worth 1 / (1 - discount): with a critic that says so, a limit of time is no bad news."""
    tau = drawn(TabularSoftmax(1, 2))
    value = torch.full((4, 6), 1 / (1 - DISCOUNT), dtype=F64)
    after = value * (1 - tau.terminal) if bootstrap else None
    advantage = gae(tau.reward, tau.mask, value, DISCOUNT, DECAY, after)
    assert bool((advantage[1:3].abs() < 1e-12).all()) == bootstrap
    assert (advantage[0, :3] < -1).all()  # it ends by itself


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_gymnasiums_limits(mode):
    """Poles, cut off after nine steps: some have fallen by then. What is recorded last tells which."""
    gymnasium = pytest.importorskip("gymnasium")
    from stochgraph.algorithms.environments import GymnasiumEnvironment

    def make(task: Tensor) -> Any:
        one = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=9)] * len(task)
        return gymnasium.vector.SyncVectorEnv(one, autoreset_mode=getattr(gymnasium.vector.AutoresetMode, mode))

    poles = GymnasiumEnvironment(make, ListedTasks(torch.zeros(1)), horizon=20)
    walks = Rollouts(poles, TabularSoftmax(4, 2), bootstrap=True)
    torch.manual_seed(0)
    theta = {"logits": torch.tensor([[[0.0, 0.0], [0.0, 8.0], [0.0, 0.0], [0.0, 0.0]]], dtype=F64)}
    tau = walks.draw(torch.Size([40]), theta, torch.zeros(40, dtype=F64))
    length = tau.mask.sum(-1)
    assert length.max() == 9
    fallen = tau.terminal.sum(-1) > 0
    assert fallen.any()
    assert not fallen.all()
    last = tau.after[torch.arange(40), length.long() - 1]
    tilted = last[:, 2].abs() > 0.2095  # twelve degrees: a pole counts as fallen
    assert torch.equal(tilted, fallen)


def test_runs():
    """An option of runs, for algorithms that have a critic."""
    run = Configuration(environment="navigation", horizon=4, hidden=(3,), tasks=2, outer=2, steps=0, evaluation_tasks=2)
    with pytest.raises(ConfigurationError, match="bootstrap: 'reinforce' has no critic; choose 'a2c' or 'ppo'"):
        Problem(run.replace(algorithm="reinforce", bootstrap=True))
    problem = Problem(run.replace(algorithm="ppo", bootstrap=True))
    theta = problem.initial()
    assert all(value == value for value in problem.learner(theta).step(theta, problem.draw(theta, 0)).values())
