"""Gymnasium's vector environments: tasks as arguments and as options, whatever is reset by itself."""

import os
import pickle
import signal
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Uniform

pytest.importorskip("gymnasium")

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from stochgraph.algorithms.environments import GymnasiumEnvironment
from stochgraph.algorithms.policies import CategoricalMLP
from stochgraph.algorithms.rollouts import Rollouts
from tests.problems import F64
from tests.training_cases import FORKS


class Stairs(gymnasium.Env[Any, Any]):
    """Up or down; an episode ends at the top, which an option says. The observation is the step, an integer."""

    observation_space: Any = gymnasium.spaces.Discrete(6, start=2)
    action_space = gymnasium.spaces.Discrete(2, start=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.top = 5 if options is None else options["top"]
        self.at = 2
        return self.at, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action in (1, 2)
        self.at = max(2, min(7, self.at + (1 if action == 2 else -1)))
        return self.at, float(self.top), self.at == self.top, False, {}


class Stepper:
    """Makes staircases, and counts how often."""

    def __init__(self, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> None:
        self.mode = mode
        self.made = 0

    def __call__(self, tasks: Tensor) -> Any:
        self.made += 1
        return SyncVectorEnv([Stairs] * len(tasks), autoreset_mode=self.mode)


TOPS = Uniform(torch.tensor(3.0), torch.tensor(7.0))


def stairs(make: Any = None, **options: Any) -> GymnasiumEnvironment:
    return GymnasiumEnvironment(
        make or Stepper(), TOPS, **{"horizon": 8, "reset_options": lambda task: {"top": round(float(task))}, **options}
    )


def make_pendulums(gravity: Tensor) -> Any:
    return SyncVectorEnv([partial(gymnasium.make, "Pendulum-v1", g=g) for g in gravity.tolist()])


def test_tasks_as_arguments():
    """The same as single environments with the same arguments, seeds and actions."""
    environment = GymnasiumEnvironment(make_pendulums, Uniform(torch.tensor(5.0), torch.tensor(15.0)), horizon=10)
    gravity = torch.tensor([6.0, 9.0, 12.0], dtype=F64)
    torch.manual_seed(3)
    first = int(torch.randint(2**31, ()))
    singles = [gymnasium.make("Pendulum-v1", g=float(g)) for g in gravity]
    torch.manual_seed(3)
    observation = environment.reset(gravity)
    for i, (seen, single) in enumerate(zip(observation, singles, strict=True)):
        assert torch.equal(seen, torch.from_numpy(single.reset(seed=first + i)[0]).double())
    for _ in range(5):
        action = torch.randn(3, 1, dtype=F64)
        observation, reward, done = environment.step(action)
        for i, single in enumerate(singles):
            seen, paid, *_ = single.step(action[i].numpy().astype(np.float32))
            assert torch.equal(observation[i], torch.from_numpy(seen).double())
            assert float(reward[i]) == float(paid)
        assert not done.any()


def test_an_environment_that_is_vectorised_by_itself():
    """CartPole's own vector environment takes one integer as its seed; the same torch seed, the same episodes."""
    poles = GymnasiumEnvironment(lambda task: gymnasium.make_vec("CartPole-v1", num_envs=len(task)), TOPS, horizon=5)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(poles.reset(torch.tensor([3.0, 4.0, 5.0])))
    assert found[0].shape == (3, 4)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])
    assert poles.step(torch.ones(3))[1].tolist() == [1, 1, 1]


def test_an_environment_that_is_vectorised_by_itself_has_one_set_of_options():
    with pytest.raises(ValueError, match=r'CartPoleVectorEnv is vectorised by itself .*vectorization_mode="sync"'):
        GymnasiumEnvironment(
            lambda task: gymnasium.make_vec("CartPole-v1", num_envs=len(task)),
            TOPS,
            horizon=5,
            reset_options=lambda task: {"low": -float(task), "high": float(task)},
        )


def test_tasks_as_options():
    environment = stairs()
    environment.reset(torch.tensor([5.0, 3.0, 5.0, 4.0]))
    up = torch.ones(4)
    ended = {}
    for t in range(1, 4):
        observation, reward, done = environment.step(up)
        ended.update({i: t for i in range(4) if done[i] and i not in ended})
    assert ended == {1: 1, 3: 2, 0: 3, 2: 3}
    assert observation.shape == (4, 6)
    assert observation[0].tolist() == [0, 0, 0, 1, 0, 0]
    assert reward[[0, 2]].tolist() == [5, 5]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_whatever_is_reset_by_itself(mode):
    """Trajectories are right in both modes of resetting."""
    walks = Rollouts(stairs(Stepper(mode)), CategoricalMLP(6, 2, hidden=(3,)))
    theta = {name: leaf.unsqueeze(0) for name, leaf in walks.policy.initial(torch.Generator().manual_seed(0)).items()}
    torch.manual_seed(0)
    found = walks.draw(torch.Size([40]), theta, torch.arange(40) % 3 + 3.0)
    lengths = found.mask.sum(-1)
    assert lengths.min() < 4
    assert lengths.max() == 8
    top = torch.arange(40) % 3 + 3
    for i, (action, length) in enumerate(zip(found.action, lengths.int().tolist(), strict=True)):
        at = 2
        for t in range(length):
            assert int(found.observation[i, t].argmax()) + 2 == at
            at = max(2, at + 2 * int(action[t]) - 1)
            assert (at == top[i]) <= (t == length - 1)
    assert torch.equal(found.reward, found.mask * top.unsqueeze(-1))


def test_environments_are_made_anew_only_for_other_tasks():
    make = Stepper()
    with_options, with_arguments = stairs(make), stairs(make, reset_options=None)
    make.made = 0
    for environment, expected in ((with_options, [1, 1, 2]), (with_arguments, [3, 4, 5])):
        for task, count in zip(([3.0, 4.0], [5.0, 4.0], [5.0, 4.0, 3.0]), expected, strict=True):
            environment.reset(torch.tensor(task))
            environment.reset(torch.tensor(task))
            assert make.made == count


def test_a_closed_environment_is_made_anew():
    environment = stairs()
    environment.reset(torch.tensor([3.0]))
    environment.close()
    environment.close()
    assert environment.reset(torch.tensor([3.0])).shape == (1, 6)


@pytest.mark.slow
def test_processes():
    def make(gravity: Tensor) -> Any:
        one = [partial(gymnasium.make, "Pendulum-v1", g=g) for g in gravity.tolist()]
        return AsyncVectorEnv(one, context="spawn")

    found = []
    for each in (make, make_pendulums):
        environment = GymnasiumEnvironment(each, Uniform(torch.tensor(5.0), torch.tensor(15.0)), horizon=10)
        torch.manual_seed(0)
        environment.reset(torch.tensor([6.0, 9.0]))
        found.append(environment.step(torch.ones(2, 1))[0])
        environment.close()
    assert torch.equal(*found)


def test_refusals():
    with pytest.raises(
        ValueError, match=r"make is a SyncVectorEnv: give a function .*make_vec\(.*num_envs=len\(task\)"
    ):
        stairs(SyncVectorEnv([Stairs]))
    with pytest.raises(ValueError, match=r"tasks is a Tensor: give the distribution of one task, .*Uniform"):
        GymnasiumEnvironment(Stepper(), torch.ones(3), horizon=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"make must build one environment per task: 1 tasks, 2 built"):
        stairs(lambda tasks: SyncVectorEnv([Stairs] * 2))
    with pytest.raises(ValueError, match=r"DISABLED: ended episodes cannot be stepped; choose NEXT_STEP or SAME_STEP"):
        stairs(Stepper(AutoresetMode.DISABLED))

    class Odd(Stairs):
        observation_space: Any = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)])

    with pytest.raises(ValueError, match=r"observations must be Box or Discrete, got Tuple.*: wrap the environment"):
        stairs(lambda tasks: SyncVectorEnv([Odd]))


def test_pickling():
    environment = pickle.loads(pickle.dumps(GymnasiumEnvironment(Stepper(), TOPS, horizon=3)))
    assert environment.reset(torch.tensor([3.0, 4.0])).shape == (2, 6)


def fork(new: bool) -> None:
    """Fork with a vector environment that has workers. The child uses it, and the parent's episodes go on."""

    def make(gravity: Tensor) -> Any:
        one = [partial(gymnasium.make, "Pendulum-v1", g=g) for g in gravity.tolist()]
        return AsyncVectorEnv(one, context="fork")

    environment = GymnasiumEnvironment(make, Uniform(torch.tensor(5.0), torch.tensor(15.0)), horizon=10)
    gravity, push = torch.tensor([6.0, 9.0]), torch.ones(2, 1)

    def steps() -> list[Tensor]:
        torch.manual_seed(0)
        return [environment.reset(gravity), environment.step(push)[0]]

    expected = [*steps(), environment.step(push)[0]]
    steps()
    child = os.fork()
    if not child:
        signal.alarm(40)  # one that hangs leaves nothing behind
        with pytest.raises(ValueError, match="a forked process cannot use its parent's workers; spawn it, or reset"):
            environment.step(push)
        if new:
            environment.reset(gravity + 1)
        own = steps()
        environment.close()
        os._exit(7 if all(map(torch.equal, own, expected[:2])) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert torch.equal(environment.step(push)[0], expected[2])
    environment.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
@pytest.mark.parametrize("new", [False, True])
def test_a_forked_process_leaves_the_workers_to_its_parent(new):
    process = FORKS.Process(target=fork, args=(new,))
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == 0
