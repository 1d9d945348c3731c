"""Rollouts: where episodes end, whose parameters act, and what does not fit together."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Uniform
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.algorithms.environments import Environment, Navigation, RandomMDP
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.policies import (
    CategoricalMLP,
    CategoricalModule,
    GaussianMLP,
    GaussianModule,
    Parameters,
    TabularSoftmax,
)
from stochgraph.algorithms.rollouts import Rollouts, Trajectory, acting
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}


class Countdown(Environment):
    """An episode lasts as many steps as its task says, rounded up. Rewards are the time, and nonsense after the end."""

    observation_size = 1
    action_size = 2
    horizon = 6

    def task_distribution(self) -> Distribution:
        return Uniform(torch.tensor(0.0), torch.tensor(6.0))

    def reset(self, task: Tensor) -> Tensor:
        self._left, self._steps = self._started(task, ()), 0
        return self._left.new_zeros(len(task), 1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._acted(action)
        self._steps += 1
        done = self._left <= self._steps
        reward = torch.where(self._left > self._steps - 1, float(self._steps), torch.nan)
        return torch.full_like(action[:, :1], self._steps), reward, done & (self._left > self._steps - 1)


POLICY = GaussianMLP(1, 2, hidden=(3,))


def parameters(number: int = 0) -> Parameters:
    return POLICY.initial(torch.Generator().manual_seed(number), dtype=F64)


def plated(theta: Parameters, plates: int) -> Parameters:
    return {name: leaf.reshape(*[1] * plates, *leaf.shape) for name, leaf in theta.items()}


def test_episodes_end_one_by_one():
    task = torch.tensor([[2.5], [0.5], [6.0]], dtype=F64)
    environment = Countdown()
    found = Rollouts(environment, POLICY).draw(torch.Size([3, 2]), plated(parameters(), 2), task)
    lengths = torch.tensor([[3, 3], [1, 1], [6, 6]])
    steps = torch.arange(6)
    mask = (steps < lengths.unsqueeze(-1)).double()
    assert torch.equal(found.mask, mask)
    assert torch.equal(found.reward, mask * (steps + 1))
    assert torch.equal(found.observation, (mask * steps).unsqueeze(-1))
    assert torch.equal((found.action != 0).all(-1), mask == 1)
    assert torch.equal(found.log_prob != 0, mask == 1)
    scored = Rollouts(environment, POLICY).log_prob(found, parameters(), task)
    torch.testing.assert_close(scored, found.log_prob, **EXACT)


class Reusing(Countdown):
    """It returns the same tensors at every step, and writes into them at the next."""

    def reset(self, task: Tensor) -> Tensor:
        self._observation = super().reset(task)
        self._reward = torch.zeros_like(task)
        return self._observation

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        observation, reward, done = super().step(action)
        return self._observation.copy_(observation), self._reward.copy_(reward), done


def test_an_environment_may_reuse_its_memory():
    task = torch.tensor([[2.5], [0.5], [6.0]], dtype=F64)
    drawn = []
    for environment in (Countdown(), Reusing()):
        torch.manual_seed(0)
        drawn.append(Rollouts(environment, POLICY).draw(torch.Size([3, 2]), plated(parameters(), 2), task))
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)


class Misshapen(Countdown):
    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        observation, reward, done = super().step(action)
        return observation, reward.unsqueeze(-1), done


def test_results_of_a_step_must_have_their_shapes():
    task = torch.tensor([[2.5], [0.5]], dtype=F64)
    with pytest.raises(ValueError, match=r"Misshapen.step: .*rewards \(4,\).*got \(4, 1\), \(4, 1\)"):
        Rollouts(Misshapen(), POLICY).draw(torch.Size([2, 2]), plated(parameters(), 2), task)


class Clipping(Countdown):
    """It clips actions in place."""

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(action.clamp_(-0.1, 0.1))


def test_what_an_environment_does_to_actions_is_its_own_affair():
    task = torch.tensor([[2.5], [0.5]], dtype=F64)
    rolls = Rollouts(Clipping(), POLICY)
    found = rolls.draw(torch.Size([2, 2]), plated(parameters(), 2), task)
    assert found.action.abs().max() > 0.1
    torch.testing.assert_close(rolls.log_prob(found, parameters(), task), found.log_prob, **EXACT)


class Breaking(Countdown):
    """Something is not a number from the third step on, in the second task."""

    def __init__(self, field: str) -> None:
        self.field = field

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        observation, reward, done = super().step(action)
        if self._steps >= 3:
            {"observation": observation, "reward": reward}[self.field][2] = torch.nan
        return observation, reward, done


@pytest.mark.parametrize(
    ("field", "words"),
    [("observation", r"the observation is \[nan\] at .*step 3$"), ("reward", "reward is nan .*step 2$")],
)
def test_the_first_thing_that_is_not_a_number_is_named(field, words):
    task = torch.full((2, 1), 6.0, dtype=F64)
    with pytest.raises(sg.SamplingError, match=rf"^Breaking: .*task 1, trajectory 0, {words[-7:]}") as caught:
        Rollouts(Breaking(field), POLICY).draw(torch.Size([2, 2]), plated(parameters(), 2), task)
    assert caught.match(words)


def test_parameters_that_are_not_finite_do_not_act():
    theta = parameters() | {"log_std": torch.full((2,), torch.inf, dtype=F64)}
    with pytest.raises(sg.SamplingError, match=r"Countdown: GaussianMLP .*not finite: \['log_std'\]\. .*inner step"):
        Rollouts(Countdown(), POLICY).draw(torch.Size([2, 2]), plated(theta, 2), torch.ones(2, 1, dtype=F64))


def test_actions_that_are_not_finite_are_the_policys():
    theta = {name: torch.full_like(leaf, 1e308) for name, leaf in parameters().items()}
    with pytest.raises(sg.SamplingError, match=r"Countdown: the policy's action is .*step 0; .*inner step size"):
        Rollouts(Countdown(), POLICY).draw(torch.Size([2, 2]), plated(theta, 2), torch.ones(2, 1, dtype=F64))


class Disagreeing(GaussianMLP):
    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        return super().log_prob(parameters, observation, action) + 1


class Forgetful(GaussianMLP):
    """Its noise grows with the observation, which is zero only at first, and it does not say so."""

    def sample(self, parameters: Parameters, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return super().sample(parameters, observation, noise * (1 + observation))

    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        scale = 1 + observation
        mean = self.mean(parameters, observation)
        return super().log_prob(parameters, observation, mean + (action - mean) / scale)


class Fivefold(Countdown):
    def step(self, action: Tensor) -> Any:
        return *super().step(action), False, {}


class Unsummed(GaussianMLP):
    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        return super().log_prob(parameters, observation, action).unsqueeze(-1).expand(*observation.shape[:-1], 2)


class Endless(Countdown):
    horizon = 0


class Numpy(Countdown):
    def step(self, action: Tensor) -> Any:
        observation, reward, done = super().step(action)
        return observation, reward.numpy(), done


class Wide(Countdown):
    def reset(self, task: Tensor) -> Tensor:
        return super().reset(task).expand(-1, 2)


@pytest.mark.parametrize(
    ("environment", "policy", "words"),
    [
        (Countdown(), Disagreeing(1, 2), r"Disagreeing: sample returns .* log_prob says .*: they must agree"),
        (Countdown(), Forgetful(1, 2), r"Forgetful: sample returns .*: they must agree \(step \d of an episode\)"),
        (Fivefold(), POLICY, r"Fivefold\.step: three tensors are expected, .*, got Tensor, Tensor, Tensor, bool, dict"),
        (Countdown(), Unsummed(1, 2), r"Unsummed: .*shape \(1,\), sample returns \(1,\) and log_prob \(1, 2\)"),
        (
            Countdown(),
            GaussianModule(torch.nn.Linear(1, 1), 2),
            r"the module returns means \(1, 1\), for actions of size 2",
        ),
        (Endless(), POLICY, r"Endless\.horizon must be at least 1 step, got 0"),
        (Numpy(), POLICY, r"Numpy\.step: three tensors are expected, .*, got Tensor, ndarray, Tensor"),
        (Wide(), POLICY, r"Wide\.reset: a tensor of observations \(4, 1\) is expected, got \(4, 2\)"),
    ],
)
def test_what_is_wrong_is_said_in_words(environment, policy, words):
    with pytest.raises(ValueError, match=words):
        Rollouts(environment, policy).draw(
            torch.Size([2, 2]), plated(parameters(), 2), torch.full((2, 1), 3.0, dtype=F64)
        )


@pytest.mark.parametrize("given", [(Countdown, POLICY), (Countdown(), GaussianMLP)])
def test_classes_in_place_of_what_they_make(given):
    with pytest.raises(TypeError, match=r"is the class \w+ itself: make one of it, \w+\(\.\.\.\)"):
        Rollouts(*given)


def test_no_step_is_made_once_all_episodes_have_ended():
    environment = Countdown()
    found = Rollouts(environment, POLICY).draw(
        torch.Size([2]), plated(parameters(), 1), torch.tensor([1.5, 2.0], dtype=F64)
    )
    assert environment._steps == 2
    assert found.mask.sum(-1).tolist() == [2, 2]
    assert found.reward.shape == (2, 6)


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.MAML()], ids=str)
def test_a_meta_gradient_over_ragged_episodes(estimator):
    """What stands behind the end of an episode does not matter: it gets noise there, and the gradient stays."""
    walks = Rollouts(Countdown(), POLICY)
    graph = adapted_return(walks, lambda: walks.environment.declare_tasks(3), inner_rate=0.1, inner=2, outer=2)
    compiled = graph.compile(estimator)
    trace = compiled.sample(parameters(), generator=torch.Generator().manual_seed(0))
    assert 0 < trace.draws["tau"].mask.mean() < 1
    assert float(compiled.surrogate(parameters(), trace)) == pytest.approx(float(trace.value), rel=1e-12)
    assert all(torch.equal(trace.log_probs[name] == 0, trace.draws[name].mask == 0) for name in ("D1", "tau"))

    def noisy(tau: Trajectory) -> Trajectory:
        ended = (tau.mask == 0).unsqueeze(-1)
        return tau._replace(
            observation=tau.observation + ended, action=torch.where(ended, torch.randn_like(tau.action), tau.action)
        )

    other = trace._replace(draws={n: noisy(d) if n != "task" else d for n, d in trace.draws.items()})
    gradient = torch.func.grad(compiled.surrogate)
    torch.testing.assert_close(gradient(parameters(), other), gradient(parameters(), trace), **EXACT)


@pytest.mark.parametrize("kind", ["network", "module", "table", "discrete module"])
@pytest.mark.parametrize("own", list(itertools.product([True, False], repeat=2)), ids=str)
def test_every_plate_can_have_parameters_of_its_own(own, kind):
    """One call for all plates gives what the parameters of each draw give alone, on the same noise."""
    linear = torch.nn.Linear(3, 2, dtype=F64)
    policy: Any = {
        "network": GaussianMLP(3, 2, hidden=(4, 5)),
        "module": GaussianModule(linear, 2),
        "table": TabularSoftmax(3, 4),
        "discrete module": CategoricalModule(linear, 2),
    }[kind]
    plates = torch.Size([2, 3])
    lead = [n if varies else 1 for n, varies in zip(plates, own, strict=True)]
    torch.manual_seed(0)
    theta = {name: torch.randn(*lead, *leaf.shape, dtype=F64) for name, leaf in policy.initial().items()}
    observation = torch.randn(6, 3, dtype=F64)
    noise = policy.noise((6,), observation)
    action, log_prob = acting(policy, theta, plates)(observation, noise)
    for i, j in itertools.product(range(2), range(3)):
        one = {name: leaf[i * own[0], j * own[1]] for name, leaf in theta.items()}
        k = 3 * i + j
        expected = policy.sample(one, observation[k], noise[k])
        torch.testing.assert_close((action[k], log_prob[k]), expected, **EXACT)


def test_noise_decides():
    """With the same noise and parameters, and no randomness elsewhere, trajectories are the same."""
    walks = Rollouts(Navigation(action_scale=0.1), GaussianMLP(2, 2, hidden=(3,)), horizon=4)
    theta = plated(walks.policy.initial(torch.Generator().manual_seed(0)), 1)
    drawn = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        drawn.append(walks.draw(torch.Size([5]), theta, torch.zeros(1, 2)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert all(torch.equal(one, same) for one, same in zip(*drawn, strict=True))


def test_draws_carry_no_gradient():
    theta = pytree.tree_map(lambda leaf: leaf.requires_grad_(), plated(parameters(), 1))
    found = Rollouts(Countdown(), POLICY).draw(torch.Size([2]), theta, torch.ones(2, dtype=F64))
    assert not any(leaf.requires_grad for leaf in found)


def test_threads_are_given_back_after_an_error():
    class Broken(Countdown):
        def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raise RuntimeError("broken")

    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match="broken"):
        Rollouts(Broken(), POLICY).draw(torch.Size([2]), plated(parameters(), 1), torch.ones(2, dtype=F64))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_errors_of_a_simulator_name_the_sample():
    class Broken(Countdown):
        def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raise RuntimeError("episode 1 diverged")

    walks = Rollouts(Broken(), POLICY)
    graph = adapted_return(walks, lambda: walks.environment.declare_tasks(3), inner_rate=0.1)
    with pytest.raises(sg.SamplingError, match=r"sample 'D1' .*episode 1 diverged"):
        graph.compile(sg.SF()).sample(parameters())


@pytest.mark.parametrize(
    ("environment", "policy", "message"),
    [
        (Navigation(), POLICY, "GaussianMLP does not take the observations of Navigation, vectors of 2"),
        (Navigation(), GaussianMLP(2, 3), r"an action of Navigation is a vector of 2, one of GaussianMLP .* \(3,\)"),
        (Navigation(), TabularSoftmax(2, 2), "choose a policy for such actions"),
        (
            RandomMDP(3, 2),
            GaussianMLP(3, 2),
            "is an integer, one of GaussianMLP .*choose a policy for discrete actions",
        ),
        (RandomMDP(3, 2), TabularSoftmax(4, 2), "does not take the observations of RandomMDP, vectors of 3"),
        (RandomMDP(3, 2), TabularSoftmax(3, 4), "RandomMDP has 2 actions, TabularSoftmax chooses among 4"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(environment, policy, message):
    with pytest.raises(ValueError, match=message):
        Rollouts(environment, policy)


@pytest.mark.parametrize("kind", ["network", "module", "table", "discrete network", "discrete module"])
@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO()], ids=str)
def test_trajectories_are_scored_in_batches_as_one_by_one(kind, estimator):
    """Parameters of all tasks, and one set for each; values, first derivatives, and second ones through the step."""
    linear = torch.nn.Linear(3, 2, dtype=F64)
    policies: dict[str, Any] = {
        "network": GaussianMLP(2, 2, hidden=(3,)),
        "module": GaussianModule(torch.nn.Linear(2, 2, dtype=F64), 2),
        "table": TabularSoftmax(3, 2),
        "discrete network": CategoricalMLP(3, 2, hidden=(3,)),
        "discrete module": CategoricalModule(linear, 2),
    }
    continuous = kind in ("network", "module")
    environment = Navigation(goal_size=0.3) if continuous else RandomMDP(3, 2)
    walks = Rollouts(environment, policies[kind], horizon=4)
    single = copy.copy(walks)
    single.batched = False
    graphs = [
        adapted_return(w, lambda: environment.declare_tasks(3), inner_rate=0.1, inner=2, outer=2)
        for w in (walks, single)
    ]
    batched, mapped = (graph.compile(estimator) for graph in graphs)
    theta = walks.policy.initial(torch.Generator().manual_seed(0), dtype=F64)
    trace = batched.sample(theta, generator=torch.Generator().manual_seed(0))
    other = mapped.sample(theta, generator=torch.Generator().manual_seed(0))
    for one, same in zip(pytree.tree_leaves(tuple(trace)), pytree.tree_leaves(tuple(other)), strict=True):
        torch.testing.assert_close(one, same, **EXACT)
    found, expected = (torch.func.grad(each.surrogate)(theta, trace) for each in (batched, mapped))
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(
        batched.value_and_grad(theta, generator=torch.Generator().manual_seed(0))[1], found, **EXACT
    )
