"""Algorithms without inner steps: their gradients by hand and by enumeration, their refusals, a task solved."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

import stochgraph as sg
from stochgraph.algorithms.a2c import a2c
from stochgraph.algorithms.environments import Navigation, RandomMDP, registered_environment
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.policies import ActorCritic, CategoricalMLP, GaussianMLP, HeteroscedasticMLP, TabularSoftmax
from stochgraph.algorithms.ppo import ppo
from stochgraph.algorithms.reinforce import reinforce
from stochgraph.algorithms.rollouts import Rollouts, Trajectory
from stochgraph.algorithms.training import Configuration, ConfigurationError, Problem
from tests.problems import F64
from tests.test_exact_rollouts import PROCESS, parameters, processes

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}


def asked(walks: Rollouts, **changes: Any) -> MetaProblem:
    given: dict[str, Any] = {"tasks": lambda: walks.environment.declare_tasks(2), "policy": walks.policy}
    given |= {"trajectories": walks, "steps": 0, "outer": 3, "discount": 0.9}
    return MetaProblem(**given | changes)


def cart_pole() -> Rollouts:
    """Episodes of eight to some twenty steps: ragged."""
    pytest.importorskip("gymnasium")
    return Rollouts(registered_environment("CartPole-v1"), ActorCritic(CategoricalMLP(4, 2, (5,)), 4, (6,)), 25)


def moved(theta: Any, scale: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(3)
    return {
        name: leaf + scale * torch.randn(leaf.shape, generator=generator, dtype=F64) for name, leaf in theta.items()
    }


def climbed(template: Any, theta: Any, anchor: Any, trace: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The value and the gradient of what an algorithm climbs, as the trainer has them."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
    value = template.replayed.compile({}).surrogate(leaves, anchor, trace)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value, dict(zip(leaves, found, strict=True))


# --- written by hand


def network(theta: Any, x: Tensor, prefix: str = "") -> Tensor:
    hidden = torch.tanh(x @ theta[f"{prefix}0.weight"].T + theta[f"{prefix}0.bias"])
    return hidden @ theta[f"{prefix}2.weight"].T + theta[f"{prefix}2.bias"]


def credits_by_hand(anchor: Any, tau: Trajectory, discount: float, decay: float) -> tuple[list[Tensor], list[Tensor]]:
    """The advantages and the targets of every episode, step by step from its end."""
    advantages, targets = [], []
    for observation, reward, mask in zip(*(field.flatten(0, 1) for field in (tau[0], tau[2], tau[3])), strict=True):
        length = int(mask.sum())
        value = network(anchor, observation[:length], "value.").squeeze(-1)
        found, after, later = torch.zeros(length, dtype=F64), torch.tensor(0.0), torch.tensor(0.0)
        for t in reversed(range(length)):
            later = reward[t] + discount * after - value[t] + discount * decay * later
            found[t], after = later, value[t]
        advantages.append(found.detach())
        targets.append((found + value).detach())
    return advantages, targets


def ppo_by_hand(theta: Any, anchor: Any, tau: Trajectory, clip: float | None, standardise: bool) -> Tensor:
    """The clipped objective as public code has it; without a clip, A2C's."""
    running = tau.mask.flatten(0, 1) > 0
    advantage, target = (torch.cat(parts) for parts in credits_by_hand(anchor, tau, 0.9, 0.8))
    if standardise:
        advantage = (advantage - advantage.mean()) / (advantage.var(correction=0) + 1e-8).sqrt()
    observation, action, old = (f.flatten(0, 1)[running] for f in (tau.observation, tau.action, tau.log_prob))
    chosen = Categorical(logits=network(theta, observation))
    new = chosen.log_prob(action)
    gain = new * advantage
    if clip is not None:
        ratio = (new - old).exp()
        gain = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    error = (network(theta, observation, "value.").squeeze(-1) - target).square()
    return (gain - 0.5 * 0.7 * error + 0.03 * chosen.entropy()).mean()


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_gradients_are_those_written_by_hand(algorithm, standardise):
    """Ragged episodes of two tasks, away from where they were drawn: many ratios are clipped."""
    walks = cart_pole()
    options: dict[str, Any] = {"value_weight": 0.7, "entropy_weight": 0.03, "decay": 0.8, "standardise": standardise}
    template = {"ppo": ppo, "a2c": a2c}[algorithm](asked(walks), **options)
    anchor = parameters(walks.policy)
    trace = template.compile().sample(anchor, generator=torch.Generator().manual_seed(0))
    tau = trace.draws["tau"]
    assert len(tau.mask.sum(-1).unique()) > 1
    theta = moved(anchor)
    value, found = climbed(template, theta, anchor, trace)
    leaves = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    clip = 0.2 if algorithm == "ppo" else None
    by_hand = ppo_by_hand(leaves, anchor, tau, clip, standardise)
    expected = torch.autograd.grad(by_hand, list(leaves.values()))
    for leaf, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(leaf, other, **EXACT)
    if clip is not None:
        torch.testing.assert_close(value, by_hand, **EXACT)
        ratio = (walks.policy.log_prob(theta, tau.observation, tau.action) - tau.log_prob).exp()[tau.mask > 0]
        assert ((ratio < 0.8) | (ratio > 1.2)).sum() > 10


def test_ppo_starts_as_a2c():
    """Where the batch was drawn, clipping changes nothing."""
    walks = cart_pole()
    options: dict[str, Any] = {"entropy_weight": 0.01, "standardise": True}
    first, second = ppo(asked(walks), **options), a2c(asked(walks), **options)
    theta = parameters(walks.policy)
    trace = first.compile().sample(theta, generator=torch.Generator().manual_seed(0))
    one, other = (climbed(template, theta, theta, trace)[1] for template in (first, second))
    for name in theta:
        torch.testing.assert_close(one[name], other[name], **EXACT)


@pytest.mark.parametrize(
    "policy", [GaussianMLP(2, 3, (4,)), HeteroscedasticMLP(2, 3, (4,)), CategoricalMLP(2, 3, (4,))]
)
def test_entropies(policy):
    theta, observation = parameters(policy), torch.randn(5, 2, dtype=F64)
    if isinstance(policy, CategoricalMLP):
        expected = Categorical(logits=policy.logits(theta, observation)).entropy()
    else:
        mean, log_std = policy.moments(theta, observation)
        expected = Normal(mean, log_std.exp()).entropy().sum(-1)
    torch.testing.assert_close(policy.entropy(theta, observation), expected, **EXACT)


# --- by enumeration


@pytest.mark.parametrize("baseline", [None, "loo"])
def test_reinforce_is_unbiased(baseline):
    """Two processes, two steps, all trajectories of all tasks."""
    walks = Rollouts(PROCESS, TabularSoftmax(2, 2))
    tasks = lambda: walks.environment.declare_tasks(1, among=processes(2))  # noqa: E731
    problem = asked(walks, tasks=tasks, outer=2, baseline=baseline)
    compiled = reinforce(problem).compile()
    assert compiled.explain().unbiased
    found = sg.verify(compiled, parameters(walks.policy))
    assert found.relative_bias < 1e-10
    assert found.outcomes == 2 * 8**2


@pytest.mark.parametrize(("decay", "exact"), [(1.0, True), (0.5, False)])
def test_the_actor_of_a2c_is_unbiased_without_bootstrapping(decay, exact):
    """Every trajectory of a process, one a batch, weighed with its probability; the critic's values are random."""
    walks = Rollouts(PROCESS, ActorCritic(TabularSoftmax(2, 2), 2, hidden=()))
    task = processes(1)
    problem = asked(walks, tasks=lambda: walks.environment.declare_tasks(1, among=task), outer=1, discount=1.0)
    template = a2c(problem, value_weight=0.0, entropy_weight=0.0, decay=decay)
    theta = parameters(walks.policy)
    outcomes = walks.enumerate(theta, task[0])
    weights = (outcomes.log_prob + outcomes.transition).sum(-1).exp()
    found = torch.zeros(2, 2, dtype=F64)
    for i, weight in enumerate(weights):
        one = Trajectory(*(field[i].unsqueeze(0).unsqueeze(0) for field in outcomes[:5]))
        trace = sg.Trace(torch.tensor(0.0), {"task": task, "tau": one}, {}, {})
        found += weight * climbed(template, theta, theta, trace)[1]["logits"]
    truth = sg.verify(reinforce(problem).compile(), theta).truth["logits"] / walks.horizon  # a mean over steps
    assert torch.allclose(found, truth, **EXACT) == exact


# --- refused, and run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "ppo"}, "steps=1: ppo takes no inner step; give steps=0"),
        ({"algorithm": "reinforce"}, "steps=1: reinforce takes no inner step"),
        ({"algorithm": "ppo", "steps": 0, "algorithm_options": {"clip": 0}}, "clip=0"),
        ({"algorithm": "a2c", "steps": 0, "algorithm_options": {"decay": 2.0}}, "decay=2"),
        ({"environment": "gymnasium", "environment_options": {"id": "CartPole-v17"}}, "id='CartPole-v17'"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        Problem(Configuration(**options))


def test_a_policy_without_a_critic_is_refused():
    walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()))
    with pytest.raises(ValueError, match="GaussianMLP has no value network to bootstrap with: wrap it, ActorCritic"):
        ppo(asked(walks))


def test_a_policy_without_an_entropy_is_refused():
    class Bare(TabularSoftmax):
        entropy = property()

    walks = Rollouts(RandomMDP(2, 2), ActorCritic(Bare(2, 2), 2))
    with pytest.raises(ValueError, match=r"entropy_weight=0\.01: the policy has no entropy"):
        a2c(asked(walks))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "iterations"), [("ppo", 15), ("a2c", 40)])
def test_a_pole_is_balanced_for_longer(algorithm, iterations):
    """Untrained, some 20 steps; the seed is fixed."""
    pytest.importorskip("gymnasium")
    run = Configuration(algorithm=algorithm, environment="gymnasium", steps=0, tasks=1, outer=16, discount=0.99)
    problem = Problem(run.replace(learning_rate=3e-3, evaluation_tasks=4, threads=1))
    theta = problem.initial()
    before = float(problem.evaluate(theta).mean())
    learner = problem.learner(theta)
    for iteration in range(iterations):
        learner.step(theta, problem.draw(theta, iteration))
    assert before < 40
    assert float(problem.evaluate(theta).mean()) > 120
