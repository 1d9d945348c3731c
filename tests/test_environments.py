"""What every environment keeps, whatever it is: one table of environments, one test per property."""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.environments import (
    Bandit,
    CornerNavigation,
    Environment,
    FrozenLake,
    GymnasiumEnvironment,
    LineNavigation,
    Navigation,
    RandomMDP,
    Trials,
    ant,
    half_cheetah,
    swimmer,
    walker2d,
)
from stochgraph.algorithms.policies import CategoricalMLP, GaussianMLP, Policy
from stochgraph.algorithms.rollouts import Rollouts, Trajectory
from tests.problems import F64


def pendulums(gravity: Tensor) -> Any:
    import gymnasium

    return gymnasium.vector.SyncVectorEnv([partial(gymnasium.make, "Pendulum-v1", g=g) for g in gravity.tolist()])


def pendulum(**options: Any) -> GymnasiumEnvironment:
    gravity = torch.distributions.Uniform(torch.tensor(5.0), torch.tensor(15.0))
    return GymnasiumEnvironment(pendulums, gravity, **{"horizon": 20, **options})


# The environment, the modules that it needs, and the sizes of task, observation and action.
Row = tuple[Callable[..., Environment], str | None, tuple[int, ...], int, int]
ENVIRONMENTS: dict[str, Row] = {
    "navigation": (Navigation, None, (2,), 2, 2),
    "navigation with an end": (lambda **o: Navigation("distance", goal_size=0.1, **o), None, (2,), 2, 2),
    "corner": (CornerNavigation, None, (2,), 2, 2),
    "corner, sparse": (lambda **o: CornerNavigation("sparse", **o), None, (2,), 2, 2),
    "line": (LineNavigation, None, (), 1, 1),
    "random MDP": (lambda **o: RandomMDP(4, 3, **o), None, (4, 3, 5), 4, 3),
    "frozen lake": (FrozenLake, "gymnasium", (16,), 16, 4),
    "large frozen lake": (lambda **o: FrozenLake(0.1, slippery=False, size=5, **o), "gymnasium", (25,), 25, 4),
    "bandit": (lambda **o: Bandit(3, **o), None, (3,), 1, 3),
    "trial": (lambda horizon=10: Trials(Navigation(horizon=horizon)), None, (2,), 6, 2),
    "cheetah, direction": (half_cheetah, "mujoco", (), 17, 6),
    "cheetah, velocity": (lambda **o: half_cheetah("velocity", **o), "mujoco", (), 17, 6),
    "ant, direction": (ant, "mujoco", (), 27, 8),
    "ant, velocity, contact": (lambda **o: ant("velocity", contact_forces=True, **o), "mujoco", (), 105, 8),
    "walker, direction": (walker2d, "mujoco", (), 17, 6),
    "swimmer, velocity": (swimmer, "mujoco", (), 8, 2),
    "Gymnasium's pendulum": (pendulum, "gymnasium", (), 3, 1),
}
STEPS = 6


def made(name: str, **options: Any) -> Environment:
    make, needed, *_ = ENVIRONMENTS[name]
    if needed is not None:
        pytest.importorskip(needed)
    return make(**options)


@pytest.fixture(params=ENVIRONMENTS)
def name(request):
    return request.param


def tasks(environment: Environment, episodes: int, dtype: torch.dtype = F64) -> Tensor:
    return environment.task_distribution().sample(torch.Size([episodes])).to(dtype)


def actions(environment: Environment, episodes: int, dtype: torch.dtype = F64) -> Tensor:
    if environment.discrete:
        return torch.randint(environment.action_size, (episodes,))
    return torch.randn(episodes, environment.action_size, dtype=dtype)


def walked(environment: Environment, episodes: int, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Observation, reward and end of some steps, all from one seed."""
    torch.manual_seed(seed)
    observation = environment.reset(tasks(environment, episodes))
    steps: list[tuple[Tensor, ...]] = [(observation.clone(),)]
    for _ in range(STEPS):
        steps.append(tuple(part.clone() for part in environment.step(actions(environment, episodes))))
    return steps


def policy_for(environment: Environment) -> Policy:
    sizes = (environment.observation_size, environment.action_size, (4,))
    return CategoricalMLP(*sizes) if environment.discrete else GaussianMLP(*sizes)


def drawn(environment: Environment, plates: tuple[int, ...] = (2, 3), seed: int = 0, **options: Any) -> Trajectory:
    """Trajectories, with parameters of its own for every task."""
    policy = policy_for(environment)
    torch.manual_seed(seed)
    task = tasks(environment, plates[0])
    task = task.reshape(plates[0], *[1] * (len(plates) - 1), *task.shape[1:])
    each = [policy.initial(torch.Generator().manual_seed(i), dtype=F64) for i in range(plates[0])]
    parameters = {key: torch.stack([one[key] for one in each]) for key in each[0]}
    parameters = {k: v.reshape(plates[0], *[1] * (len(plates) - 1), *v.shape[1:]) for k, v in parameters.items()}
    return Rollouts(environment, policy, **{"horizon": 8, **options}).draw(torch.Size(plates), parameters, task)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_tasks_have_the_default_dtype(name, dtype):
    """As torch's distributions have it: policies and processes are made in that one too."""
    torch.set_default_dtype(dtype)
    assert made(name).task_distribution().sample(torch.Size([2])).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("episodes", [1, 3])
def test_shapes_and_dtypes(name, episodes, dtype):
    environment = made(name)
    _, _, task, observation_size, action_size = ENVIRONMENTS[name]
    assert (environment.observation_size, environment.action_size) == (observation_size, action_size)
    chosen = tasks(environment, episodes, dtype)
    assert chosen.shape == (episodes, *task)
    observation = environment.reset(chosen)
    for _ in range(STEPS):
        assert observation.shape == (episodes, observation_size)
        assert observation.dtype == dtype
        assert observation.isfinite().all()
        observation, reward, done = environment.step(actions(environment, episodes, dtype))
        assert reward.shape == done.shape == (episodes,)
        assert (reward.dtype, done.dtype) == (dtype, torch.bool)
        assert reward.isfinite().all()


def test_one_seed_gives_one_result(name):
    environment = made(name)
    first, again, other = walked(environment, 3), walked(environment, 3), walked(environment, 3, seed=1)
    assert all(
        torch.equal(a, b) for one, same in zip(first, again, strict=True) for a, b in zip(one, same, strict=True)
    )
    assert any(not torch.equal(a, b) for a, b in zip(first[-1][:2], other[-1][:2], strict=True))


def test_numbers_of_episodes_can_change(name):
    environment = made(name)
    first = walked(environment, 3)
    walked(environment, 5)
    walked(environment, 1)
    for one, same in zip(first, walked(environment, 3), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))


def test_pickling_keeps_the_settings_and_drops_the_episodes(name):
    environment = made(name)
    expected = walked(environment, 3)
    copied = pickle.loads(pickle.dumps(environment))
    with pytest.raises(ValueError, match="no episodes are running; call reset with their tasks first"):
        copied.step(actions(environment, 3))
    assert copied.horizon == environment.horizon
    for one, same in zip(expected, walked(copied, 3), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))


def test_masks(name):
    """The mask is 1 up to the end of the episode, and everything is zero after."""
    found = drawn(made(name), horizon=30)
    assert set(found.mask.unique().tolist()) <= {0.0, 1.0}
    assert (found.mask[..., 0] == 1).all()
    assert (found.mask.diff(dim=-1) <= 0).all()
    for field in found:
        assert field[found.mask == 0].eq(0).all()


@pytest.mark.parametrize("plates", [(2, 3), (1, 1), (3,), (2, 1, 2)])
def test_log_probs_are_those_of_the_policy(name, plates):
    environment = made(name)
    sampler = Rollouts(environment, policy_for(environment))
    found = drawn(environment, plates)
    each = [sampler.policy.initial(torch.Generator().manual_seed(i), dtype=F64) for i in range(plates[0])]
    for i, parameters in enumerate(each):
        one = Trajectory(*(field[i] for field in found))
        scored = sampler.log_prob(one, parameters, None)
        torch.testing.assert_close(scored, one.log_prob, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_likelihood_ratios_of_fresh_trajectories_are_one(name, dtype):
    environment = made(name)
    walks = Rollouts(environment, policy_for(environment), horizon=5)

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sum(sg.sample("tau", walks, theta, environment.declare_tasks(2), n=3).reward))

    theta = walks.policy.initial(torch.Generator().manual_seed(0), dtype=dtype)
    trace = objective.compile(sg.SF()).sample(theta, generator=torch.Generator().manual_seed(0))
    tau = trace.draws["tau"]
    assert tau.reward.dtype == dtype
    assert (trace.log_probs["tau"] - tau.log_prob).abs().max() < (1e-10 if dtype == F64 else 1e-6)
    again = objective.compile(sg.SF()).sample(theta, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(one, same) for one, same in zip(tau, again.draws["tau"], strict=True))


@pytest.mark.parametrize("environment", [Navigation(), half_cheetah()], ids=["navigation", "half_cheetah"])
def test_likelihood_ratios_of_many_fresh_steps_are_one(environment):
    """In single precision, with a policy of the usual size, for every one of 20 000 steps, with derivatives as well."""
    walks = Rollouts(environment, GaussianMLP(environment.observation_size, environment.action_size))
    theta = walks.policy.initial(torch.Generator().manual_seed(0), dtype=torch.float32)
    task = environment.task_distribution().sample((10, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = walks.draw(torch.Size([10, 20]), {name: leaf[None, None] for name, leaf in theta.items()}, task)
    theta = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    ratio = (walks.log_prob(found, theta, task) - found.log_prob).detach().exp()
    assert found.mask.sum() == 20_000
    assert (ratio - 1).abs().max() < 1e-6


def test_a_horizon_of_ones_own(name):
    environment = made(name, horizon=7)
    assert environment.horizon == 7
    assert Rollouts(environment, policy_for(environment)).horizon == 7
    assert drawn(environment, horizon=3).reward.shape == (2, 3, 3)
    with pytest.raises(ValueError, match="horizon must be at least 1 step, got 0"):
        made(name, horizon=0)
    with pytest.raises(ValueError, match="horizon must be at least 1 step, got 0"):
        Rollouts(environment, policy_for(environment), horizon=0)


def test_refusals(name):
    environment = made(name)
    task = ENVIRONMENTS[name][2]
    with pytest.raises(ValueError, match="no episodes are running"):
        environment.step(actions(environment, 3))
    for wrong in (torch.zeros(2, *task, 1), torch.zeros(2, *task, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"reset: one floating-point task of shape .* per episode is expected"):
            environment.reset(wrong)
    environment.reset(tasks(environment, 3))
    for wrong in (actions(environment, 2), actions(environment, 3).unsqueeze(-1)):
        with pytest.raises(ValueError, match=r"step: actions of shape \(3.* are expected, got"):
            environment.step(wrong)


def test_the_default_generator_alone_is_used(name):
    """Making an environment, or rollouts in it, moves no generator."""
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    environment = made(name)
    Rollouts(environment, policy_for(environment))
    assert torch.equal(torch.random.get_rng_state(), state)
