"""Robots: the same observations, rewards and ends as Gymnasium's environments, from the same states and actions."""

import gc
import math
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("mujoco")
pytest.importorskip("gymnasium")

import gymnasium
import mujoco

from stochgraph.algorithms.environments import Locomotion, SimulationError, ant, half_cheetah, swimmer, walker2d
from stochgraph.algorithms.environments._simulation import Quiet
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts
from tests.problems import F64
from tests.training_cases import FORKS

MAKE: dict[str, Callable[..., Locomotion]] = {
    "cheetah": half_cheetah,
    "ant": ant,
    "walker": walker2d,
    "swimmer": swimmer,
}
NO_CONTACT = {"contact_cost_weight": 0.0, "include_cfrc_ext_in_observation": False}
# Environment, what makes it Gymnasium's, Gymnasium's name and options.
PAIRS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "cheetah": ("cheetah", {"control_cost": 0.1}, "HalfCheetah-v5", {}),
    "cheetah, other cost": ("cheetah", {}, "HalfCheetah-v5", {"ctrl_cost_weight": 0.05}),
    "ant": ("ant", {"heights": (0.2, 1.0)}, "Ant-v5", NO_CONTACT),
    "ant, contact": ("ant", {"heights": (0.2, 1.0), "contact_forces": True}, "Ant-v5", {}),
    "ant, other heights": ("ant", {}, "Ant-v5", {**NO_CONTACT, "healthy_z_range": (0.0, 1.0)}),
    "walker": ("walker", {}, "Walker2d-v5", {}),
    "swimmer": ("swimmer", {}, "Swimmer-v5", {}),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes its log file into the working directory: there must be none."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def in_gymnasium(name: str, options: dict[str, Any]) -> Any:
    with Quiet(mujoco):
        return gymnasium.make(name, **options).unwrapped


def actions(environment: Locomotion, episodes: int, scale: float = 1.5) -> Tensor:
    """Some of them are beyond what MuJoCo lets through."""
    return scale * (2 * torch.rand(episodes, environment.action_size, dtype=F64) - 1)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_step_is_gymnasiums(pair):
    """Three episodes of 25 steps, each until it ends; forward is the direction +1."""
    robot, options, name, theirs = PAIRS[pair]
    environment = MAKE[robot]("direction", threads=2, **options)
    torch.manual_seed(0)
    observation = environment.reset(torch.ones(3, dtype=F64))
    others = [in_gymnasium(name, theirs) for _ in range(3)]
    for i, other in enumerate(others):
        other.reset(seed=0)
        other.set_state(environment.simulation.position[i], environment.simulation.velocity[i])
        torch.testing.assert_close(observation[i], torch.from_numpy(other._get_obs()), rtol=0.0, atol=1e-10)
    running = set(range(3))
    for _ in range(25):
        action = actions(environment, 3)
        observation, reward, done = environment.step(action)
        for i in sorted(running):
            seen, paid, ended, *_ = others[i].step(action[i].numpy())
            torch.testing.assert_close(observation[i], torch.from_numpy(seen), rtol=0.0, atol=1e-8)
            assert float(reward[i]) == pytest.approx(paid, abs=1e-8)
            assert bool(done[i]) == ended
            if ended:
                running.discard(i)


def test_falls_are_gymnasiums():
    """Episodes that end at different steps, the unhealthy last step without its bonus."""
    environment = walker2d()
    torch.manual_seed(1)
    environment.reset(torch.ones(4, dtype=F64))
    others = [in_gymnasium("Walker2d-v5", {}) for _ in range(4)]
    for i, other in enumerate(others):
        other.reset(seed=0)
        other.set_state(environment.simulation.position[i], environment.simulation.velocity[i])
    lengths = [0] * 4
    for t in range(80):
        action = actions(environment, 4, 0.2 + 0.3 * t)
        _, reward, done = environment.step(action)
        for i, other in enumerate(others):
            if not lengths[i]:
                _, paid, ended, *_ = other.step(action[i].numpy())
                assert float(reward[i]) == pytest.approx(paid, abs=1e-8)
                assert bool(done[i]) == ended
                lengths[i] = t + 1 if ended else 0
    assert min(lengths) > 0
    assert len(set(lengths)) > 1
    assert done.all()


@pytest.mark.parametrize("robot", MAKE)
def test_rewards_of_tasks(robot):
    """Direction and velocity differ in the task's part alone: d v against -|v - v*|."""
    direction, velocity = MAKE[robot]("direction"), MAKE[robot]("velocity", velocities=(0.1, 0.4))
    tasks = {direction: torch.tensor([1.0, -1.0, 1.0, -1.0]), velocity: torch.tensor([0.1, 0.2, 0.3, 0.4])}
    found = {}
    for environment, task in tasks.items():
        torch.manual_seed(0)
        environment.reset(task.double())
        found[environment] = [environment.step(actions(environment, 4)) for _ in range(4)]
    for one, other in zip(found[direction], found[velocity], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[2], other[2])
    # d v + rest and -|v - v*| + rest: solve for the rest with d = 1, check with all
    torch.manual_seed(0)
    direction.reset(torch.ones(4, dtype=F64))
    for one, other in zip(found[direction], found[velocity], strict=True):
        before = direction._where().copy()
        _, forward, _ = direction.step(actions(direction, 4))
        v = torch.from_numpy((direction._where() - before) / direction.simulation.step_time)
        torch.testing.assert_close(one[1], forward - v + tasks[direction] * v, rtol=0.0, atol=1e-10)
        torch.testing.assert_close(other[1], forward - v - (v - tasks[velocity]).abs(), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize(("robot", "normal"), [("cheetah", True), ("ant", True), ("walker", False), ("swimmer", False)])
def test_initial_states(robot, normal):
    environment = MAKE[robot]()
    torch.manual_seed(0)
    environment.reset(torch.ones(400, dtype=F64))
    scale = environment.robot.noise
    velocity = environment.simulation.velocity / scale
    moved = (environment.simulation.position - environment.simulation.model.qpos0)[:, [0, 1, -1]] / scale
    assert 0.98 < np.abs(moved).max() <= 1
    assert (np.abs(velocity).max() > 2) == normal
    assert velocity.std() == pytest.approx(1 if normal else 1 / math.sqrt(3), abs=0.05)


def test_tasks():
    direction, velocity = half_cheetah().task_distribution(), half_cheetah("velocity", (1.0, 2.5)).task_distribution()
    assert set(direction.sample(torch.Size([50])).tolist()) == {-1.0, 1.0}
    drawn = velocity.sample(torch.Size([500]))
    assert 1 <= drawn.min() < 1.05 < 2.45 < drawn.max() <= 2.5


@pytest.mark.parametrize("contact", [False, True])
def test_the_number_of_threads_does_not_matter(contact):
    found = []
    for threads in (1, 2, 3):
        environment = ant(threads=threads, contact_forces=contact)
        torch.manual_seed(0)
        environment.reset(torch.ones(5, dtype=F64))
        steps = [environment.step(actions(environment, 5)) for _ in range(5)]
        found.append(torch.cat([torch.cat([seen.flatten(), paid]) for seen, paid, _ in steps]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_divergence_names_the_episode_and_the_step():
    environment = half_cheetah()
    environment.reset(torch.ones(3, dtype=F64))
    environment.step(torch.zeros(3, 6))
    action = torch.zeros(3, 6)
    action[1, 2] = torch.nan
    message = (
        r"half_cheetah: 1 of 3 episodes diverged in step 2, with the indices 1 .*: an action is not finite, or huge"
    )
    with pytest.raises(SimulationError, match=message):
        environment.step(action)
    environment.reset(torch.ones(3, dtype=F64))  # and it can be used again
    environment.step(torch.zeros(3, 6))
    environment.simulation.velocity[[0, 2]] = 1e12
    with pytest.raises(SimulationError, match=r"2 of 3 .* step 2, with the indices 0, 2 .*: a velocity is not finite"):
        environment.step(torch.zeros(3, 6))


def test_divergence_in_a_rollout(monkeypatch):
    environment = half_cheetah()
    policy = GaussianMLP(17, 6, hidden=())
    theta = {name: leaf.unsqueeze(0) for name, leaf in policy.initial().items()}
    rollouts = Rollouts(environment, policy)
    monkeypatch.setattr(policy, "sample", lambda theta, seen, noise: (torch.full((2, 6), torch.nan), torch.zeros(2)))
    with pytest.raises(SimulationError, match="an action is not finite"):
        rollouts.draw(torch.Size([2]), theta, torch.ones(2))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e20), (F64, 1e160)])
def test_rewards_that_cannot_be_represented(dtype, size):
    """MuJoCo clamps the action, its cost is not finite."""
    environment = half_cheetah()
    environment.reset(torch.ones(3, dtype=dtype))
    action = torch.zeros(3, 6, dtype=dtype)
    action[2, 1] = size
    message = r"1 of 3 episodes have rewards that are not finite, the first with the index 2 .* largest action is 1.0e"
    with pytest.raises(SimulationError, match=message):
        environment.step(action)


def test_what_has_ended_is_not_simulated_any_more():
    """Nor can it diverge."""
    environment = walker2d()
    environment.reset(torch.ones(2, dtype=F64))
    environment.simulation.position[0, 1] = 0.5
    _, _, done = environment.step(torch.zeros(2, 6))
    assert done.tolist() == [True, False]
    before = environment.simulation.position.copy()
    action = torch.zeros(2, 6)
    action[0] = torch.nan
    _, _, done = environment.step(action)
    assert done.tolist() == [True, False]
    after = environment.simulation.position
    assert (after[0] == before[0]).all()
    assert (after[1] != before[1]).any()


def test_a_forked_process_is_told_to_be_spawned(monkeypatch):
    environment = swimmer()
    environment.reset(torch.ones(2, dtype=F64))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(
        SimulationError, match="swimmer: a forked process cannot use its parent's simulations; spawn it"
    ):
        environment.step(torch.zeros(2, 2))


def fork(use: str, threads: int, contact: bool) -> None:
    """Fork with simulations on threads. The child uses them, or does not, and ends as processes do."""
    environment = ant(threads=threads, contact_forces=contact)

    def steps(episodes: int) -> Tensor:
        torch.manual_seed(0)
        environment.reset(torch.ones(episodes, dtype=F64))
        return environment.step(torch.zeros(episodes, 8, dtype=F64))[0]

    expected = steps(4)
    child = os.fork()
    if not child:
        signal.alarm(40)  # one that hangs leaves nothing behind
        if use != "nothing":
            assert torch.equal(steps(4), expected)
            assert len(steps(6)) == 6
        if use == "then let go":
            del environment, steps
            gc.collect()
        raise SystemExit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert torch.equal(steps(4), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
@pytest.mark.parametrize(("threads", "contact"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("use", ["nothing", "reset", "then let go"])
def test_a_forked_process_makes_simulations_of_its_own(use, threads, contact):
    process = FORKS.Process(target=fork, args=(use, threads, contact))
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "speed"}, 'goal=\'speed\' is not known: choose "direction" or "velocity"'),
        ({"velocities": (2.0, 1.0)}, r"velocities must be an interval \(low, high\) with low < high, got \(2.0, 1.0\)"),
        ({"threads": 0}, "threads must be at least 1, or None for one per processor; got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        half_cheetah(**options)


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"ant needs mujoco: pip install 'stochgraph\[environments\]'"):
        ant()
