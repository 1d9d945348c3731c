"""Finite processes: their tables, and that they are stepped by them.

The z-tests here fail by chance with a probability of 6e-6 together.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from stochgraph.algorithms.environments import FrozenLake, RandomMDP
from stochgraph.algorithms.environments.tabular import random_map
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}


def largest_z(states: Tensor, probability: Tensor) -> float:
    """How far the frequencies of some indicator vectors are from their probabilities."""
    n = len(states)
    possible = probability > 0
    assert states[:, ~possible].sum() == 0
    share = probability[possible]
    return float(((states[:, possible].mean(0) - share) / (share * (1 - share) / n).sqrt()).abs().max())


def test_random_tasks_are_processes():
    torch.manual_seed(0)
    task = RandomMDP(4, 3).task_distribution().sample((2, 500)).double()
    assert task.shape == (2, 500, 4, 3, 5)
    torch.testing.assert_close(task[..., :-1].sum(-1), torch.ones(2, 500, 4, 3, dtype=F64), rtol=0.0, atol=1e-6)
    assert task[..., :-1].min() >= 0
    assert (task[..., :-1].mean((0, 1)) - 0.25).abs().max() < 0.03
    assert abs(float(task[..., -1].mean()) - 1) < 0.05
    assert abs(float(task[..., -1].std()) - 1) < 0.05


def test_a_random_process_follows_its_tables():
    torch.manual_seed(0)
    process = RandomMDP(4, 3, reward_std=0.0)
    task = process.task_distribution().sample().double()
    n = 4000
    state = process.reset(task.expand(n, 4, 3, 5))
    assert (state[:, 0] == 1).all()
    after, reward, done = process.step(torch.full((n,), 2))
    torch.testing.assert_close(reward, task[0, 2, -1].expand(n), **EXACT)
    assert largest_z(after, task[0, 2, :-1]) < 5
    before = after.argmax(-1)
    action = torch.randint(3, (n,))
    after, reward, done = process.step(action)
    torch.testing.assert_close(reward, task[before, action, -1], **EXACT)
    chosen = (before == 1) & (action == 0)
    assert largest_z(after[chosen], task[1, 0, :-1]) < 5
    assert not done.any()


def test_rewards_are_normal_around_their_means():
    torch.manual_seed(0)
    process = RandomMDP(4, 3, reward_std=0.5)
    task = process.task_distribution().sample().double()
    process.reset(task.expand(2000, 4, 3, 5))
    noise = process.step(torch.zeros(2000))[1] - task[0, 0, -1]
    assert abs(float(noise.mean())) < 5 * 0.5 / 2000**0.5
    assert abs(float(noise.std()) - 0.5) < 0.05


@pytest.mark.parametrize("options", [{"states": 0}, {"actions": 0}, {"reward_std": -1.0}])
def test_refusals_of_random_processes(options):
    with pytest.raises(ValueError, match="states and actions must be at least 1, and reward_std at least 0; got"):
        RandomMDP(**options)


def rows(lake: Tensor, size: int) -> list[str]:
    tiles = ["FH"[int(hole)] for hole in lake]
    text = "S" + "".join(tiles[1:-1]) + "G"
    return [text[i : i + size] for i in range(0, size * size, size)]


@pytest.mark.parametrize("hole_reward", [-1.0, 0.0])
def test_a_dry_lake_is_gymnasiums(hole_reward):
    """Without slipping nothing is random: the same walks as in Gymnasium's environment, one map each."""
    gymnasium = pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    lake = FrozenLake(slippery=False, hole_reward=hole_reward)
    task = lake.task_distribution().sample((12,)).double()
    schedule = (1, hole_reward, 0)
    others = [
        gymnasium.make("FrozenLake-v1", desc=rows(one, 4), is_slippery=False, reward_schedule=schedule) for one in task
    ]
    state = lake.reset(task)
    assert [int(one.reset(seed=0)[0]) for one in others] == state.argmax(-1).tolist() == [0] * 12
    running, ends = set(range(12)), []
    for _ in range(30):
        action = torch.randint(4, (12,))
        state, reward, done = lake.step(action)
        for i in sorted(running):
            expected = others[i].step(int(action[i]))[:3]
            assert (int(state[i].argmax()), float(reward[i]), bool(done[i])) == expected
            if expected[2]:
                running.discard(i)
                ends.append(expected[1])
    assert hole_reward in ends


def test_slippery_ice():
    """From the middle of an empty lake: where it should, and to both sides, a third each."""
    pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    lake, n = FrozenLake(), 3000
    lake.reset(torch.zeros(n, 16, dtype=F64))
    after, reward, done = lake.step(torch.full((n,), 1))  # down
    probability = torch.zeros(16, dtype=F64)
    probability[[0, 1, 4]] = 1 / 3
    assert largest_z(after, probability) < 5
    assert not reward.any()
    assert not done.any()


def test_holes_have_their_probability():
    """Of the maps that have a way to the goal, those without any hole and without many are the more frequent."""
    pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    few, many = (FrozenLake(p).task_distribution().sample((300,)).mean() for p in (0.1, 0.3))
    assert 0.05 < few < 0.09 < 0.15 < many < 0.25
    assert FrozenLake(0.0).task_distribution().sample((3,)).sum() == 0
    task = FrozenLake(0.3).task_distribution().sample((300,))
    assert not task[:, [0, -1]].any()
    assert set(task.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holes": 1.0}, "holes is a probability below 1, got 1.0"),
        ({"size": 1}, "size must be at least 2 tiles, got 1"),
        ({"goal": "stays"}, 'goal=\'stays\' is not known: choose "ends" or "pays"'),
    ],
)
def test_refusals_of_lakes(options, message):
    with pytest.raises(ValueError, match=message):
        FrozenLake(**options)


@pytest.mark.parametrize("tile", [(0, 1.0), (15, 1.0), (3, 0.5)])
def test_what_is_no_map_is_refused(tile):
    pytest.importorskip("gymnasium")
    task = torch.zeros(1, 16)
    task[0, tile[0]] = tile[1]
    with pytest.raises(ValueError, match="a task must be 1 where there is a hole and 0 elsewhere"):
        FrozenLake().reset(task)


@pytest.mark.parametrize(("size", "holes"), [(4, 0.3), (4, 0.1), (5, 0.6), (8, 0.2), (3, 0.8), (2, 0.0)])
def test_maps_are_those_of_gymnasiums_generator(size, holes):
    lakes = pytest.importorskip("gymnasium.envs.toy_text.frozen_lake")
    for seed in range(20):
        tiles = "".join(lakes.generate_random_map(size, 1 - holes, seed))
        assert random_map(size, holes, seed).tolist() == [float(tile == "H") for tile in tiles]


@pytest.mark.parametrize(("size", "holes"), [(4, 0.9999), (8, 0.9), (100, 0.7), (3, 1 - 1e-12)])
def test_a_lake_that_no_map_satisfies_is_refused(size, holes):
    """Gymnasium's generator would look for ever."""
    pytest.importorskip("gymnasium")
    with pytest.raises(
        ValueError, match=rf"^holes={holes}, size={size}: none of \d+ random maps has a way to the goal"
    ):
        FrozenLake(holes, size=size)


def test_no_search_for_a_map_lasts_for_ever():
    pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=r"none of 30 random maps has a way to the goal; choose fewer holes"):
        random_map(4, 0.9999, seed=0, tries=30)
