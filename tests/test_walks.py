"""Navigation in the plane and on the line, step by step against the definitions written out.

The one z-test here fails by chance with a probability of 2e-6.
"""

import math
from typing import Any

import pytest
import torch

from stochgraph.algorithms.environments import CornerNavigation, LineNavigation, Navigation
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}


def test_an_episode_ends_at_the_goal():
    """Both coordinates must be nearer than the goal's size."""
    walk = Navigation("distance", goal_size=0.03)
    goal = torch.tensor([[0.2, 0.0], [0.2, 0.04], [0.12, 0.02]], dtype=F64)
    walk.reset(goal)
    right = torch.tensor([[0.1, 0.0]], dtype=F64).expand(3, 2)
    ends = [walk.step(right)[2].tolist() for _ in range(2)]
    assert ends == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("reward", ["distance", "squared distance", "sparse"])
def test_corners(reward):
    torch.manual_seed(0)
    walk = CornerNavigation(reward)
    goal = walk.task_distribution().sample((200,)).double()
    assert {tuple(corner) for corner in goal.tolist()} == {(a, b) for a in (-2, 2) for b in (-2, 2)}
    position = walk.reset(goal)
    assert position.abs().max() <= 0.2
    assert position.abs().max() > 0.15
    paid = 0
    for _ in range(12):
        action = 0.3 * torch.randn(200, 2, dtype=F64) + 0.1
        found, rewards, done = walk.step(action)
        assert not done.any()
        for i in range(200):
            moved = [p + max(-0.2, min(0.2, a)) for p, a in zip(position[i].tolist(), action[i].tolist(), strict=True)]
            assert found[i].tolist() == pytest.approx(moved, abs=1e-12)
            expected = corner_reward(reward, position[i].tolist(), moved, goal[i].tolist())
            assert float(rewards[i]) == pytest.approx(expected, abs=1e-12)
            paid += expected != 0
        position = found
    assert paid == 2400 or (reward == "sparse" and 100 < paid < 2300)


def corner_reward(reward: str, before: list[float], after: list[float], goal: list[float]) -> float:
    distance = math.dist(after, goal)
    if reward != "sparse":
        return -distance if reward == "distance" else -(distance**2)
    nearest = min(math.dist(after, (a, b)) for a in (-2, 2) for b in (-2, 2))
    pays = sum(abs(x) for x in after) >= 0.5 and distance == nearest
    return math.dist(before, goal) - distance if pays else 0.0


def test_the_line_starts_on_a_grid_and_is_paid_where_it_stands():
    torch.manual_seed(0)
    walk = LineNavigation()
    goal = walk.task_distribution().sample((3000,)).double()
    assert 0.5 <= goal.min() < 0.51 < 0.99 < goal.max() <= 1
    start = walk.reset(goal).squeeze(-1)
    assert sorted({round(10 * x) for x in start.tolist()}) == list(range(-10, 11))
    after, reward, done = walk.step(torch.full((3000, 1), 0.05, dtype=F64))
    assert not done.any()
    torch.testing.assert_close(reward, 0.01 / (0.01 + (start - goal).abs()), **EXACT)
    after = after.squeeze(-1)
    stays = (reward >= 0.95) | (start + 0.05 > 1)
    assert torch.equal(after[stays], start[stays])
    assert (start[stays] == 1).any()
    moves = (after - start)[~stays]
    kinds = [(moves - by).abs() < 1e-9 for by in (0.05, -0.1, 0.1)]
    assert torch.stack(kinds).any(0).all()
    for kind, share in zip(kinds, (0.9, 0.05, 0.05), strict=True):
        z = (kind.double().mean() - share) / math.sqrt(share * (1 - share) / len(moves))
        assert abs(float(z)) < 5


def test_the_line_may_have_a_few_goals():
    torch.manual_seed(0)
    drawn = LineNavigation(goals=20).task_distribution().sample((400,))
    expected = [0.5 + 0.5 * k / 19 for k in range(20)]
    torch.testing.assert_close(drawn.unique(), torch.tensor(expected))
    with pytest.raises(ValueError, match="goals must be at least 2"):
        LineNavigation(goals=1)


def test_the_line_stays_where_the_reward_is_high():
    walk = LineNavigation()
    walk.reset(torch.tensor([0.7], dtype=F64))
    walk._position = torch.tensor([0.7004], dtype=F64)
    observation, reward, _ = walk.step(torch.tensor([[-0.5]], dtype=F64))
    assert float(reward) == pytest.approx(0.01 / 0.0104)
    assert float(observation) == 0.7004


def test_the_line_has_ends():
    walk = LineNavigation()
    walk.reset(torch.full((500,), 0.5, dtype=F64))
    walk._position = torch.full((500,), -1.1, dtype=F64)
    observation, _, _ = walk.step(torch.full((500, 1), 0.3, dtype=F64))
    assert {round(x, 6) for x in observation.flatten().tolist()} == {-0.8, -1.1, -1.0}


def test_the_line_is_walked_at_all_times_up_to_H():
    """Times 0, ..., H with H = 20: the return of standing still is the reward times a sum of 21 powers."""
    walks = Rollouts(LineNavigation(), GaussianMLP(1, 1, hidden=(), log_std=-30.0, least_log_std=-30.0))
    goal, still = torch.tensor([0.8], dtype=F64), {"0.weight": torch.zeros(1, 1, 1), "0.bias": torch.zeros(1, 1)}
    theta = {name: leaf.double() for name, leaf in (still | {"log_std": torch.full((1, 1), -30.0)}).items()}
    torch.manual_seed(0)
    found = walks.draw(torch.Size([50]), theta, goal)
    stood = (found.observation == found.observation[:, :1]).all(1).squeeze(-1)  # the others slipped
    reward = 0.01 / (0.01 + (found.observation[stood, 0, 0] - 0.8).abs())
    powers = 0.9 ** torch.arange(21, dtype=F64)
    assert stood.any()
    torch.testing.assert_close((found.reward[stood] * powers).sum(-1), reward * (1 - 0.9**21) / 0.1, **EXACT)
