"""Estimators proved on the library's own environments and policies: every trajectory of every task is enumerated."""

from typing import Any

import pytest
import torch

import stochgraph as sg
from stochgraph.algorithms.environments import FrozenLake, ListedTasks, Navigation, RandomMDP
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.policies import CategoricalMLP, GaussianMLP, TabularSoftmax
from stochgraph.algorithms.rollouts import Rollouts
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
PROCESS = RandomMDP(states=2, actions=2, reward_std=0.0, horizon=2)


def processes(count: int) -> torch.Tensor:
    """The same few tasks every time, in float64; rows of transitions sum to 1 exactly enough."""
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(count, 2, 2, 2, generator=generator, dtype=F64)
    mean = torch.randn(count, 2, 2, 1, generator=generator, dtype=F64)
    return torch.cat([chance / chance.sum(-1, keepdim=True), mean], -1)


LAKES = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=F64)


def parameters(policy: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(leaf.shape, generator=generator, dtype=F64) for name, leaf in policy.initial().items()}


def objective(walks: Rollouts, tasks: torch.Tensor, inner: int = 1) -> sg.Graph:
    return adapted_return(
        walks, lambda: walks.environment.declare_tasks(2, among=tasks), inner_rate=0.7, inner=inner, outer=1
    )


@pytest.mark.parametrize("policy", [TabularSoftmax(2, 2), CategoricalMLP(2, 2, hidden=(2,))], ids=["table", "network"])
@pytest.mark.parametrize("estimator", [sg.SF(), sg.MAML()], ids=["SF", "MAML"])
def test_random_processes(policy, estimator):
    """Two tasks drawn from two, two steps: the score function is exact, and MAML as first written is not."""
    walks = Rollouts(PROCESS, policy)
    found = sg.verify(objective(walks, processes(2)).compile(estimator), parameters(policy))
    assert (found.relative_bias < 1e-10) == (estimator == sg.SF())
    assert found.outcomes == 2**2 * 8**4


def test_leave_one_out_on_random_processes():
    walks = Rollouts(PROCESS, TabularSoftmax(2, 2), horizon=1)
    compiled = objective(walks, processes(2), inner=2).compile({"D1": sg.LOO(), "tau": sg.SF()})
    assert sg.verify(compiled, parameters(walks.policy)).relative_bias < 1e-10


@pytest.mark.parametrize("slippery", [True, False])
def test_frozen_lakes(slippery):
    """Two tiles a side, one lake with a hole: episodes end in it, or at the goal, after one step or two."""
    pytest.importorskip("gymnasium")
    walks = Rollouts(FrozenLake(size=2, slippery=slippery, horizon=2), TabularSoftmax(4, 4))
    graph = adapted_return(
        walks, lambda: walks.environment.declare_tasks(1, among=LAKES), inner_rate=0.7, inner=1, outer=1
    )
    found = sg.verify(graph.compile(sg.SF()), parameters(walks.policy))
    assert found.relative_bias < 1e-10
    assert float(found.total_variance) > 0


@pytest.mark.parametrize("kind", ["process", "lake"])
def test_enumerated_trajectories_are_those_that_are_drawn(kind):
    """Each drawn trajectory is one of the enumerated ones; a z-test of its frequency fails by chance in 1 of 3e4."""
    if kind == "lake":
        pytest.importorskip("gymnasium")
    environment: Any = PROCESS if kind == "process" else FrozenLake(size=2, horizon=2)
    task = processes(1) if kind == "process" else LAKES[1:]
    policy = TabularSoftmax(environment.observation_size, environment.action_size)
    walks, theta, n = Rollouts(environment, policy, horizon=2), parameters(policy), 4000
    outcomes = walks.enumerate(theta, task[0])
    probability = walks.log_prob(outcomes, theta, task[0]).sum(-1).exp()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0, dtype=F64), **EXACT)
    torch.manual_seed(0)
    drawn = walks.draw(torch.Size([n]), {name: leaf.unsqueeze(0) for name, leaf in theta.items()}, task)

    def described(tau: Any) -> torch.Tensor:
        """All that a trajectory is, as one vector."""
        fields = (tau.observation.flatten(1), tau.action, tau.reward, tau.mask, tau.log_prob)
        return torch.cat([field.to(F64) for field in fields], 1)

    possible = probability > 0
    same = (described(drawn)[:, None] - described(outcomes)[possible]).abs().amax(-1) < 1e-9
    assert same.any(1).all()
    # Trajectories that differ in what is not observed look the same: their probabilities count together.
    alike = (described(outcomes)[possible, None] - described(outcomes)[possible]).abs().amax(-1) < 1e-9
    share = alike.double() @ probability[possible]
    errors = (share * (1 - share) / n).sqrt()
    assert ((same.double().mean(0) - share).abs() / errors).max() < 5.2


@pytest.mark.parametrize("hole_reward", [-1.0, 0.0])
@pytest.mark.parametrize("slippery", [True, False])
@pytest.mark.parametrize("size", [2, 4])
def test_lakes_are_gymnasiums(size, slippery, hole_reward):
    """Every entry of the tables of random maps."""
    toy_text = pytest.importorskip("gymnasium.envs.toy_text.frozen_lake")
    lake = FrozenLake(size=size, slippery=slippery, hole_reward=hole_reward)
    torch.manual_seed(0)
    for task in lake.task_distribution().sample((5,)).double():
        tiles = "S" + "".join("FH"[int(hole)] for hole in task[1:-1]) + "G"
        rows = [tiles[i : i + size] for i in range(0, size * size, size)]
        schedule = (1.0, hole_reward, 0.0)
        expected = toy_text.FrozenLakeEnv(desc=rows, is_slippery=slippery, reward_schedule=schedule).P
        found = lake.table(task)
        probability = torch.zeros_like(found.probability)
        for state, actions in expected.items():
            for action, branches in actions.items():
                for chance, after, paid, done in branches:
                    probability[state, action, after] += chance
                    assert float(found.reward[state, action, after]) == paid
                    assert bool(found.ends[after]) == done
        torch.testing.assert_close(found.probability, probability, **EXACT)


@pytest.mark.parametrize("slippery", [True, False])
def test_a_goal_that_pays_is_gymnasiums_lake_but_for_the_goal(slippery):
    """Holes and ice are as they were; the goal is left by no action, and every one of them earns 1."""
    pytest.importorskip("gymnasium")
    ends, pays = (FrozenLake(slippery=slippery, goal=goal) for goal in ("ends", "pays"))
    torch.manual_seed(0)
    for task in ends.task_distribution().sample((5,)).double():
        one, other = ends.table(task), pays.table(task)
        for before, after in zip(one, other, strict=True):
            assert torch.equal(before[:-1], after[:-1])
        stay = torch.zeros(4, 16, dtype=F64)
        stay[:, -1] = 1.0
        assert torch.equal(other.probability[-1], stay)
        assert torch.equal(other.reward[-1], stay)
        assert bool(one.ends[-1])
        assert not bool(other.ends[-1])


def test_walks_go_on_where_the_goal_pays():
    """Right and down past a lake of four tiles: the second step arrives, and all that follow are paid."""
    pytest.importorskip("gymnasium")
    lake = FrozenLake(size=2, slippery=False, goal="pays")
    lake.reset(LAKES[:1])
    found = [lake.step(torch.tensor([move])) for move in (2, 1, 0, 3, 2)]
    assert [float(reward) for _, reward, _ in found] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert not any(bool(done) for *_, done in found)
    assert all(int(state.argmax()) == 3 for state, *_ in found[1:])


def test_estimators_are_proved_on_lakes_whose_goal_pays():
    pytest.importorskip("gymnasium")
    walks = Rollouts(FrozenLake(size=2, slippery=False, goal="pays", horizon=2), TabularSoftmax(4, 4))
    graph = adapted_return(
        walks, lambda: walks.environment.declare_tasks(1, among=LAKES), inner_rate=0.7, inner=1, outer=1
    )
    assert sg.verify(graph.compile(sg.SF()), parameters(walks.policy)).relative_bias < 1e-10
    assert sg.verify(graph.compile(sg.MAML()), parameters(walks.policy)).relative_bias > 1e-3


def test_what_cannot_be_enumerated_says_so():
    theta = parameters(TabularSoftmax(2, 2))
    noisy = Rollouts(RandomMDP(2, 2, horizon=2), TabularSoftmax(2, 2))
    with pytest.raises(sg.VerificationError, match=r"take reward_std=0, not 1\.0"):
        sg.verify(objective(noisy, processes(2)).compile(sg.SF()), theta)
    long = Rollouts(PROCESS, TabularSoftmax(2, 2), horizon=30)
    with pytest.raises(sg.VerificationError, match=r"2 states, 2 actions and 30 steps has .* take fewer"):
        sg.verify(objective(long, processes(2)).compile(sg.SF()), theta)
    walks, goals = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=())), torch.eye(2, dtype=F64)
    with pytest.raises(sg.VerificationError, match="Navigation does not enumerate its episodes"):
        sg.verify(objective(walks, goals).compile(sg.SF()), parameters(walks.policy))


def test_listed_tasks():
    listed = ListedTasks(processes(3))
    torch.testing.assert_close(listed.log_prob(processes(3)).exp(), torch.full((3,), 1 / 3, dtype=F64), **EXACT)
    assert listed.log_prob(torch.zeros(2, 2, 3, dtype=F64)) == -torch.inf
    torch.manual_seed(0)
    assert len(listed.sample((60,)).unique(dim=0)) == 3
    numbers = ListedTasks(torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(numbers.log_prob(torch.tensor([1.0, 0.5])).exp(), torch.tensor([0.5, 0.5]))
    for tasks in (torch.zeros(0, 2), torch.zeros(2, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="at least one task is expected, all of them different"):
            ListedTasks(tasks)
