"""Policies with a memory: torch's cell, one step and all steps, one set of parameters and many, exact gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.environments import Bandit, Navigation, RandomMDP, Trials
from stochgraph.algorithms.meta_sgd import LearnedRates
from stochgraph.algorithms.policies import ActorCritic, CategoricalGRU, GaussianGRU
from stochgraph.algorithms.ppo import ppo
from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training import Configuration, Problem
from tests.problems import F64
from tests.test_exact_rollouts import PROCESS, objective, parameters, processes
from tests.test_plain import asked

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
MAKE = {"categorical": lambda: CategoricalGRU(3, 4, width=5), "gaussian": lambda: GaussianGRU(3, 4, width=5)}


@pytest.fixture(params=MAKE)
def policy(request: pytest.FixtureRequest) -> Any:
    return MAKE[request.param]()


def episodes(policy: Any, *shape: int) -> tuple[Tensor, Tensor]:
    """Observations and noise of these plates, the last of which is time."""
    torch.manual_seed(0)
    return torch.randn(*shape, 3, dtype=F64), policy.noise(shape, torch.zeros((), dtype=F64))


def stacked(policy: Any, sets: int) -> Any:
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(sets, *leaf.shape, generator=generator, dtype=F64) for name, leaf in policy.initial().items()
    }


def test_the_cell_is_torchs(policy):
    theta, (observation, _) = parameters(policy), episodes(policy, 6, 7)
    cell = torch.nn.GRU(3, 5, batch_first=True, dtype=F64)
    state = {f"{name}_l0": theta[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    cell.load_state_dict(state)
    expected = torch.nn.functional.linear(cell(observation)[0], theta["out.weight"], theta["out.bias"])
    torch.testing.assert_close(policy.cell.along(theta, observation), expected.detach(), **EXACT)


def test_step_by_step_is_all_at_once(policy):
    """What is sampled one step at a time has the log-probabilities that the whole episode is scored with."""
    theta, (observation, noise) = parameters(policy), episodes(policy, 6, 7)
    state, actions, scores = policy.start(theta, observation[:, 0]), [], []
    for t in range(7):
        state, action, score = policy.act(theta, state, observation[:, t], noise[:, t])
        actions.append(action)
        scores.append(score)
    whole = policy.sample(theta, observation, noise)
    torch.testing.assert_close(torch.stack(actions, 1), whole[0], **EXACT)
    torch.testing.assert_close(torch.stack(scores, 1), whole[1], **EXACT)
    torch.testing.assert_close(policy.log_prob(theta, observation, whole[0]), whole[1], **EXACT)
    torch.testing.assert_close(policy.kl(theta, theta, observation), torch.zeros(6, 7, dtype=F64), **EXACT)


def test_stacked_sets_are_the_sets_one_by_one(policy):
    """Batched products, `torch.vmap`, and one set after the other: the same scores, and the same derivatives."""
    theta, (observation, noise) = stacked(policy, 2), episodes(policy, 2, 6, 7)
    other = {name: 0.5 * leaf for name, leaf in theta.items()}
    action = policy.sample(theta, observation, noise)[0]
    each = [{name: leaf[i] for name, leaf in theta.items()} for i in range(2)]
    one_by_one = torch.stack([policy.log_prob(own, observation[i], action[i]) for i, own in enumerate(each)])
    torch.testing.assert_close(policy.log_prob(theta, observation, action), one_by_one, **EXACT)
    torch.testing.assert_close(torch.vmap(policy.log_prob)(theta, observation, action), one_by_one, **EXACT)
    mapped = torch.vmap(policy.kl)(theta, other, observation)
    torch.testing.assert_close(policy.kl(theta, other, observation), mapped, **EXACT)
    torch.testing.assert_close(
        policy.entropy(theta, observation), torch.vmap(policy.entropy)(theta, observation), **EXACT
    )

    def score(own: Any, seen: Tensor, done: Tensor) -> Tensor:
        return policy.log_prob(own, seen, done).sum()

    gradients = torch.vmap(torch.func.grad(score))(theta, observation, action)
    leaves = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    policy.log_prob(leaves, observation, action).sum().backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(gradients[name], leaf.grad, **EXACT)


def test_the_past_matters_and_the_future_does_not(policy):
    theta, (observation, noise) = parameters(policy), episodes(policy, 7)
    action, score = policy.sample(theta, observation, noise)
    changed = observation.clone()
    changed[3] += 1
    moved = (policy.log_prob(theta, changed, action) - score).abs() > 1e-6
    assert moved.tolist() == [False] * 3 + [True] * 4


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: LearnedRates(p, 0.5), lambda p: ActorCritic(p, 2, (3,))])
@pytest.mark.parametrize("per_task", [False, True])
def test_rollouts_score_what_they_drew(wrap, per_task):
    """One set of parameters, or one for each task; two plates of trajectories."""
    walks = Rollouts(Navigation(), wrap(GaussianGRU(2, 2, width=4)), horizon=5)
    torch.manual_seed(0)
    theta = {name: leaf.to(F64) for name, leaf in walks.policy.initial().items()}
    plates = [3 if per_task else 1, 1]
    theta = {name: leaf + 0.3 * torch.randn(*plates, *leaf.shape, dtype=F64) for name, leaf in theta.items()}
    task = torch.rand(3, 1, 2, dtype=F64)
    tau = walks.draw(torch.Size([3, 4]), theta, task)
    scored = sg.vectorize(walks.log_prob, 2)(tau, theta, task)
    torch.testing.assert_close(scored, tau.log_prob, **EXACT)
    outer = {name: leaf.squeeze(1) for name, leaf in theta.items()}
    torch.testing.assert_close(walks.log_prob_stacked(tau, outer, task.squeeze(1)), tau.log_prob, **EXACT)


# --- by enumeration


@pytest.mark.parametrize("estimator", [sg.SF(), sg.MAML()], ids=["SF", "MAML"])
def test_gradients_through_an_adapted_memory_are_exact(estimator):
    """A recurrent policy, one inner step, every trajectory of two tasks: only the score function is unbiased."""
    walks = Rollouts(PROCESS, CategoricalGRU(2, 2, width=2))
    found = sg.verify(objective(walks, processes(2)).compile(estimator), parameters(walks.policy))
    assert (found.relative_bias < 1e-10) == (estimator == sg.SF())


# --- trials


def test_a_trial_is_episodes_in_a_row():
    """Three episodes of two steps: what was done and got is in the next observation, and beginnings are marked."""
    trials = Trials(RandomMDP(2, 3, reward_std=0.0, horizon=2), episodes=3)
    torch.manual_seed(0)
    seen = [trials.reset(trials.task_distribution().sample((4,)))]
    rewards, actions = [], []
    for _ in range(6):
        actions.append(torch.randint(3, (4,)))
        observation, reward, done = trials.step(actions[-1])
        seen.append(observation)
        rewards.append(reward)
        assert not done.any()
    assert [bool((o[:, -1] == 1).all()) for o in seen[:-1]] == [True, False] * 3
    for t in range(1, 6):
        torch.testing.assert_close(seen[t][:, 2:5], torch.eye(3)[actions[t - 1]])
        torch.testing.assert_close(seen[t][:, 5], rewards[t - 1])
    for t in (0, 2, 4):
        torch.testing.assert_close(seen[t][:, :2], torch.tensor([[1.0, 0.0]] * 4))  # all begin in the first state


def test_an_episode_that_ends_waits_for_the_others():
    """To the right until the goal, which is nearer for the first of them."""
    walk = Navigation(goal_size=0.06, horizon=3)
    trials = Trials(walk, episodes=2)
    trials.reset(torch.tensor([[0.12, 0.0], [0.5, 0.5]]))
    steps = [trials.step(torch.tensor([[1.0, 0.0]] * 2)) for _ in range(6)]
    rewards = torch.stack([reward for _, reward, _ in steps], 1)
    assert (rewards[0] == 0).tolist() == [False, True, True] * 2
    assert (rewards[1] < 0).all()
    assert torch.stack([done for *_, done in steps], 1).tolist() == [[False] * 3 + [True] * 3, [False] * 6]
    assert (steps[0][0][0, :2] == 0).all()  # it waits
    assert (steps[2][0][:, -1] == 1).all()  # all begin anew


def test_pulls_pay_as_the_arm_says():
    bandit = Bandit(arms=2)
    torch.manual_seed(0)
    bandit.reset(torch.tensor([[0.0, 1.0]] * 8))
    arm = torch.tensor([0, 1] * 4)
    assert bandit.step(arm)[1].tolist() == arm.tolist()


def test_ppo_with_a_memory():
    walks = Rollouts(Trials(Bandit(3, 4)), ActorCritic(CategoricalGRU(6, 3, width=4), 6))
    template = ppo(asked(walks))
    theta = parameters(walks.policy)
    trace = template.compile().sample(theta, generator=torch.Generator().manual_seed(0))
    leaves = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    assert template.replayed is not None
    template.replayed.compile({}).surrogate(leaves, theta, trace).backward()
    assert all(leaf.grad.isfinite().all() and (leaf.grad != 0).any() for leaf in leaves.values())


def test_a_memory_is_adapted_on_advantages():
    """The inner step scores whole trajectories, of every task with parameters of its own."""
    options: dict[str, Any] = {
        "environment": "bandit",
        "policy": "recurrent",
        "policy_options": {"width": 4},
        "algorithm": "lsf",
    }
    problem = Problem(Configuration(**options, tasks=3, inner=4, outer=4, steps=2, evaluation_tasks=2))
    theta = problem.initial()
    batch = problem.draw(theta, 0)
    value, gradient = batch.value_and_grad(theta)
    assert value.isfinite()
    assert all((leaf != 0).any() for leaf in gradient.values())


# --- learned


def returns(policy: str, iterations: int) -> Tensor:
    """What REINFORCE reaches on a thousand held-out bandits of five arms, ten pulls: the mean of each."""
    options = {"width": 32} if policy == "recurrent" else {}
    run = Configuration(environment="bandit", algorithm="reinforce", steps=0, policy=policy, policy_options=options)
    run = run.replace(tasks=100, outer=10, outer_baseline="loo", discount=1.0, learning_rate=0.02, gradient_clip=None)
    problem = Problem(run.replace(evaluation_tasks=1000, threads=1))
    theta = problem.initial()
    learner = problem.learner(theta)
    for iteration in range(iterations):
        learner.step(theta, problem.draw(theta, iteration))
    return problem.evaluate(theta)[:, 0]


@pytest.mark.slow
def test_a_memory_learns_to_learn():
    """RL^2 in 100 iterations, by intervals of 4.9 standard errors: a false failure in a million, were the seeds not
    fixed. Without a memory every policy earns 5 on average, whatever it does; with the last pull and pay in sight,
    stay where it paid, it earns more. Duan et al. (2016), table 1, have 6.7 for RL^2, and 6.6 for the Gittins index.
    """
    remembering, reacting = returns("recurrent", 100), returns("network", 100)
    error = remembering.std() / len(remembering) ** 0.5
    assert remembering.mean() - 4.9 * error > 5 + 1
    apart = remembering - reacting  # on the same bandits
    assert apart.mean() - 4.9 * apart.std() / len(apart) ** 0.5 > 0.2
