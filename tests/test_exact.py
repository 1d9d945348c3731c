"""Finite decision processes: exact values against sums, brute force and finite differences."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from stochgraph.algorithms.environments import FrozenLake, RandomMDP
from stochgraph.algorithms.environments.tabular import Dynamics
from stochgraph.algorithms.exact import processes as exact
from tests.problems import F64

DISCOUNT = 0.8
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}


def random_processes(tasks=5, states=4, actions=3, discount=DISCOUNT, seed=0):
    """Some processes; the last state of every other one ends the episode."""
    torch.manual_seed(seed)
    environment = RandomMDP(states, actions)
    tables, _ = environment.dynamics(environment.task_distribution().sample((tasks,)).double())
    probability = tables.probability / tables.probability.sum(-1, keepdim=True)
    ends = tables.ends.clone()
    ends[::2, -1] = True
    return exact.process(Dynamics(probability, tables.reward, ends), discount)


def lakes(tasks=6, holes=0.3, seed=0, **options):
    torch.manual_seed(seed)
    lake = FrozenLake(holes=holes, **options)
    tables, which = lake.dynamics(lake.task_distribution().sample((tasks,)).double())
    return exact.process(Dynamics(*(field[which] for field in tables)), DISCOUNT)


def random_policy(processes, seed=1):
    shape = processes.reward.shape[-2:]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).softmax(-1)


def unrolled(processes, policy, steps=400):
    """Visits and returns by walking the chain, state by state, without a linear solve."""
    moves = torch.einsum("sa,...sat->...st", policy, processes.probability)
    earned = (policy * processes.reward).sum(-1)
    at, visits, total = processes.start, torch.zeros_like(processes.start), torch.zeros(len(processes.start), dtype=F64)
    for t in range(steps):
        weight = processes.discount**t
        visits, total = visits + (1 - processes.discount) * weight * at, total + weight * (at * earned).sum(-1)
        at = torch.einsum("...s,...st->...t", at, moves)
    return visits, total


PROCESSES: dict[str, Any] = {"random": random_processes, "frozen lakes": lakes}


@pytest.fixture(params=PROCESSES)
def processes(request):
    if request.param == "frozen lakes":
        pytest.importorskip("gymnasium")
    return PROCESSES[request.param]()


def test_visits_and_returns_are_those_of_the_chain(processes):
    policy = random_policy(processes)
    visits, total = unrolled(processes, policy)
    torch.testing.assert_close(exact.visitation(processes, policy), visits, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact.returns(processes, policy), total, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact.visitation(processes, policy).sum(-1), torch.ones(len(total), dtype=F64))


def test_bellman_equations(processes):
    policy = random_policy(processes)
    values, action_values = exact.state_values(processes, policy), exact.action_values(processes, policy)
    ahead = processes.discount * torch.einsum("...sat,...t->...sa", processes.probability, values)
    torch.testing.assert_close(action_values, processes.reward + ahead, rtol=0, atol=1e-12)
    torch.testing.assert_close((policy * action_values).sum(-1), values, rtol=0, atol=1e-12)
    centred = (policy * exact.advantages(processes, policy)).sum(-1)
    torch.testing.assert_close(centred, torch.zeros_like(centred), rtol=0, atol=1e-12)
    assert values[~processes.running].abs().max() < 1e-12


def test_the_policy_gradient_theorem(processes):
    """The derivative of returns in the logits is visits times probabilities times advantages."""
    logits = random_policy(processes).log()
    found = torch.func.jacrev(lambda z: exact.returns(processes, z.softmax(-1)))(logits)
    policy = logits.softmax(-1)
    visits = exact.visitation(processes, policy).unsqueeze(-1) / (1 - processes.discount)
    torch.testing.assert_close(found, visits * policy * exact.advantages(processes, policy), rtol=0, atol=1e-11)


def test_second_derivatives_against_differences():
    processes = random_processes(tasks=1)
    logits = random_policy(processes).log()

    def value(z):
        return exact.returns(processes, z.softmax(-1)).sum()

    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    ahead, behind = (torch.func.grad(value)(logits + step * direction) for step in (1e-5, -1e-5))
    found = torch.func.jacrev(lambda z: (torch.func.grad(value)(z) * direction).sum())(logits)
    torch.testing.assert_close(found, (ahead - behind) / 2e-5, rtol=1e-7, atol=1e-8)


def test_the_best_policy_is_the_best_of_all_deterministic_ones():
    processes = random_processes(states=4, actions=3)
    choices = torch.tensor(list(itertools.product(range(3), repeat=4)))
    everything = exact.state_values(processes.at(torch.arange(5).unsqueeze(1)), one_hot(choices, 3).double())
    best = everything.max(1).values  # in every state at once
    torch.testing.assert_close(exact.optimal_values(processes), best, rtol=0, atol=1e-12)
    policy = exact.optimal_policy(processes)
    torch.testing.assert_close(exact.state_values(processes, policy), best, rtol=0, atol=1e-12)
    assert exact.advantages(processes, policy).max() < 1e-12


def test_the_best_policy_of_frozen_lakes():
    pytest.importorskip("gymnasium")
    processes = lakes()
    values = torch.zeros_like(processes.start)
    for _ in range(300):  # value iteration
        ahead = torch.einsum("...sat,...t->...sa", processes.probability, values)
        values = (processes.reward + processes.discount * ahead).amax(-1)
    torch.testing.assert_close(exact.optimal_values(processes), values, rtol=0, atol=1e-12)


def test_the_returns_of_lakes_whose_goal_pays():
    """The best walk has six moves where the holes leave a way of that length, and arrives for good."""
    pytest.importorskip("gymnasium")
    for holes, uniform in ((0.3, -0.37), (0.1, -0.13)):
        processes = lakes(40, holes, slippery=False, goal="pays")
        best = (processes.start * exact.optimal_values(processes)).sum(-1)
        lengths = torch.log(best * (1 - DISCOUNT)) / math.log(DISCOUNT) + 1  # d**(moves - 1) / (1 - d)
        assert ((lengths - lengths.round()).abs() < 1e-9).all()
        assert float(lengths.min().round()) == 6
        assert float(best.max()) == pytest.approx(0.8**5 / 0.2)
        assert float((lengths.round() == 6).double().mean()) > 0.8
        found = float(exact.returns(processes, torch.full((16, 4), 0.25, dtype=F64)).mean())
        assert found == pytest.approx(uniform, abs=0.03)


def test_several_policies_of_one_process_and_the_other_way_round():
    processes = random_processes()
    policies = torch.stack([random_policy(processes, seed) for seed in range(5)])
    every = exact.returns(processes.at(torch.arange(5).unsqueeze(1)), policies)
    assert every.shape == (5, 5)
    torch.testing.assert_close(every.diagonal(), exact.returns(processes, policies))
    torch.testing.assert_close(every[2], exact.returns(processes.at(torch.tensor(2)), policies))


@pytest.mark.parametrize("discount", [1.0, 1.2, -0.1, float("nan")])
def test_a_discount_that_is_none_is_refused(discount):
    with pytest.raises(ValueError, match=r"discount must be at least 0 and below 1, got .* need not be finite"):
        random_processes(discount=discount)


def test_tables_that_are_none_are_refused():
    good = Dynamics(torch.full((2, 1, 2), 0.5), torch.zeros(2, 1, 2), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., states, actions, states\), got \(2, 1, 3\)"):
        exact.process(good._replace(probability=torch.full((2, 1, 3), 0.5)), 0.9)
    with pytest.raises(ValueError, match="transitions from some state and action have probabilities below 0, or that"):
        exact.process(good._replace(probability=torch.full((2, 1, 2), 0.4)), 0.9)
    with pytest.raises(ValueError, match="first states have probabilities"):
        exact.process(good, 0.9, start=torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match="below 0, or that sum to between nan"):
        exact.process(good._replace(probability=torch.full((2, 1, 2), torch.nan)), 0.9)
    with pytest.raises(ValueError, match=r"ends has the shape \(2,\), of booleans, got \(1,\) of torch.bool"):
        exact.process(good._replace(ends=torch.zeros(1, dtype=torch.bool)), 0.9)
    with pytest.raises(ValueError, match=r"start has the shape \(2,\) or \(2,\), got \(3,\)"):
        exact.process(good, 0.9, start=torch.tensor([0.5, 0.3, 0.2]))


def test_the_first_states_take_the_precision_of_the_tables():
    processes, policy = random_processes(), random_policy(random_processes())
    tables = Dynamics(processes.probability, torch.zeros_like(processes.probability), ~processes.running)
    started = exact.process(tables, DISCOUNT, start=torch.tensor([1, 0, 0, 0]))
    torch.testing.assert_close(exact.visitation(started, policy), exact.visitation(processes, policy), **EXACT)
