"""How far adapted policies may be from the best: the nearest best policies, the variance of tasks, the bounds."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from stochgraph.algorithms.bomrl import every_task, exact_bomrl
from stochgraph.algorithms.environments.tabular import Dynamics
from stochgraph.algorithms.exact import optimality
from stochgraph.algorithms.exact import processes as exact
from stochgraph.algorithms.inner_steps.tabular_steps import SOLUTIONS
from tests.problems import F64
from tests.test_exact import lakes, random_processes

DISTANCES = optimality.DISTANCES


def table(states: int = 4, actions: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(states, actions, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tied(tasks: int = 4, seed: int = 0) -> exact.Process:
    """Random processes in which two actions of every state are the same: two, or one, are best."""
    processes = random_processes(tasks, states=3, actions=4, seed=seed)
    twins = torch.tensor([0, 1, 1, 2])
    return processes._replace(probability=processes.probability[..., twins, :], reward=processes.reward[..., twins])


def paying(holes: float, tasks: int = 20, seed: int = 0) -> exact.Process:
    """The lakes of the literature: no slipping, and a goal that pays."""
    pytest.importorskip("gymnasium")
    return lakes(tasks, holes, seed, slippery=False, goal="pays")


# All best actions


@pytest.mark.parametrize("processes", [tied(), random_processes()], ids=["tied", "random"])
def test_the_best_actions_are_those_of_all_best_policies(processes):
    """Every deterministic policy is tried: those that are best in all states take each best action, and no other."""
    states, actions = processes.reward.shape[-2:]
    choices = one_hot(torch.tensor(list(itertools.product(range(actions), repeat=states))), actions).to(F64)
    found = exact.optimal_actions(processes)
    for i in range(len(processes.start)):
        values = exact.state_values(processes.at(torch.tensor(i)), choices)
        best = choices[((values - values.max(0).values).abs() < 1e-12).all(-1)]
        assert torch.equal(best.amax(0) > 0, found[i])
    assert found.any(-1).all()


def test_all_actions_are_best_where_an_episode_has_ended():
    processes = random_processes()
    assert exact.optimal_actions(processes)[~processes.running].all()


def test_any_policy_of_best_actions_is_best():
    processes = paying(0.3)
    best = exact.optimal_actions(processes)
    assert 1.2 < float(best[processes.running].double().sum(-1).mean()) < 4  # there are ties
    logits = table(16, 4).masked_fill(~best, -torch.inf)
    found = exact.state_values(processes, logits.softmax(-1))
    torch.testing.assert_close(found, exact.optimal_values(processes), rtol=0.0, atol=1e-12)


# The nearest best policy


def free_states(processes: exact.Process, phi: Tensor) -> Tensor:
    """Where any policy is best: ended, never seen, or all actions alike."""
    seen = exact.visitation(processes, phi.softmax(-1)) > 1e-14
    return ~processes.running | ~seen | exact.optimal_actions(processes).all(-1)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_nearest_takes_best_actions_and_what_needs_not_move_stays(distance):
    processes, phi = tied(), table(3, 4)
    found = optimality.nearest_optimal(processes, phi, distance, 0.9)
    best, free = exact.optimal_actions(processes), free_states(tied(), phi)
    share = torch.where(best, found.softmax(-1), 0.0).sum(-1)
    before = torch.where(best, phi.softmax(-1), 0.0).sum(-1)
    torch.testing.assert_close(share[~free], before.clamp(min=0.9)[~free], rtol=0.0, atol=1e-10)
    assert torch.equal(found[free | (before >= 0.9)], phi.expand_as(found)[free | (before >= 0.9)])
    assert (~free).sum() > 5


def divergence(one: Tensor, other: Tensor) -> Tensor:
    return (one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum(-1)


APART: dict[str, Any] = {
    "D1": lambda phi, psi: divergence(phi, psi),
    "D2": lambda phi, psi: divergence(psi, phi),
    "D3": lambda phi, psi: (psi - phi).square().sum(-1),
}


def searched(phi: Tensor, best: Tensor, distance: str, greed: float, starts: int = 30) -> Tensor:
    """The least distance to any logits with that greed, by a search from many starts; rows are states."""
    margin = math.log(greed / (1 - greed))
    phi, best = phi.expand(starts, *phi.shape), best.expand(starts, *best.shape)
    y = (phi + 3 * torch.randn(phi.shape, generator=torch.Generator().manual_seed(0), dtype=F64)).requires_grad_()

    def apart() -> Tensor:
        good, bad = (y.masked_fill(~part, -torch.inf).logsumexp(-1) for part in (best, ~best))
        psi = y + (margin - good + bad).unsqueeze(-1) * best  # raised together until the margin is met
        found: Tensor = APART[distance](phi, psi)
        return found

    search = torch.optim.LBFGS([y], max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Tensor:
        search.zero_grad()
        total = apart().sum()
        total.backward()
        return total

    search.step(closure)
    return apart().detach().amin(0)


@pytest.mark.parametrize("greed", [0.5, 0.95])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("start", ["even", "random"])
def test_no_best_policy_is_nearer(start, distance, greed):
    """Ties among equal logits are the hard case: of twins one is raised, or both."""
    processes = tied(tasks=3)
    phi = torch.zeros(3, 4, dtype=F64) if start == "even" else 2 * table(3, 4, 1)
    found = APART[distance](phi, optimality.nearest_optimal(processes, phi, distance, greed))
    best = exact.optimal_actions(processes)
    moved = ~free_states(processes, phi) & (torch.where(best, phi.softmax(-1), 0.0).sum(-1) < greed)
    expected = searched(phi.expand(3, 3, 4)[moved], best[moved], distance, greed)
    assert moved.sum() >= 2
    torch.testing.assert_close(found[moved], expected, rtol=1e-6, atol=1e-8)


def test_the_divergence_to_the_best_is_minus_log_of_their_share():
    processes, phi = tied(), table(3, 4)
    found = optimality.squared_distance(processes, phi, optimality.nearest_optimal(processes, phi, "D2"), "D2")
    share = torch.where(exact.optimal_actions(processes), phi.softmax(-1), 0.0).sum(-1)
    visits = exact.visitation(processes, phi.softmax(-1))
    expected = torch.where(processes.running, -visits * share.log(), 0.0).sum(-1)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


# The variance of tasks


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_variance_is_the_least_over_all_best_policies(distance):
    """No choice of one best action per state and task comes lower; some come higher by far."""
    processes = tied(tasks=2)
    variance, centre = optimality.task_variance(processes, distance, 0.9)
    best = exact.optimal_actions(processes)
    choices = [[a.nonzero().flatten().tolist() for a in state] for state in best]
    single = []
    for picked in itertools.islice(itertools.product(*itertools.chain(*choices)), 0, None, 7):
        policy = one_hot(torch.tensor(picked).reshape(2, 3), 4)
        nearest = optimality.nearest_optimal(processes, centre, distance, 0.9)
        forced = torch.where(best & (policy == 0), nearest - 30.0, nearest)  # the others as good as never
        single.append(float(optimality.squared_distance(processes, centre, forced, distance).mean()))
    assert min(single) >= float(variance) - 1e-9
    assert max(single) > 1.5 * float(variance)
    nearest = optimality.nearest_optimal(processes, centre, distance, 0.9)
    attained = optimality.squared_distance(processes, centre, nearest, distance).mean()
    torch.testing.assert_close(attained, variance, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_variance_is_at_a_minimum(distance):
    processes = random_processes()
    variance, centre = optimality.task_variance(processes, distance)
    for seed in range(20):
        away = centre + 0.1 * table(seed=seed)
        nearest = optimality.nearest_optimal(processes, away, distance)
        assert optimality.squared_distance(processes, away, nearest, distance).mean() > variance


@pytest.mark.parametrize(("holes", "penalty", "least", "most"), [(0.3, 0.5, 0.75, 1.3), (0.1, 0.25, 0.1, 0.3)])
def test_the_bounds_drawn_for_lakes(holes, penalty, least, most):
    """The variance against a search of its own; the bound with the penalty in use is of the size of the figures."""
    processes = paying(holes, seed=1)
    variance, centre = optimality.task_variance(processes, "D2")
    best, logits = exact.optimal_actions(processes), torch.zeros(16, 4, dtype=F64, requires_grad=True)

    def spread() -> Tensor:
        visits = exact.visitation(processes, logits.softmax(-1))
        nearness = torch.where(best, logits.log_softmax(-1), -torch.inf).logsumexp(-1)
        return -torch.where(processes.running, visits * nearness, 0.0).sum(-1).mean()

    search = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        found = spread()
        found.backward()
        return found

    search.step(closure)
    assert float(variance) == pytest.approx(float(spread().detach()), rel=1e-3)
    nearest = optimality.nearest_optimal(processes, centre, "D2")
    bound = optimality.gap_bound(processes, centre, nearest, penalty, "D2")
    assert float(bound.drawn) == pytest.approx(9 * penalty * float(variance))
    assert least < float(bound.drawn) < most
    assert 5 < float(bound.advantage) < 6.01
    single = exact.optimal_policy(processes).log()
    assert float(optimality.squared_distance(processes, centre, single, "D2").mean()) > 1.5 * float(variance)


# The bounds and the penalties that they are for


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_penalties_of_the_theorems(distance):
    """By hand, from the advantages and the visits of the table."""
    processes, phi = random_processes(), table()
    others = optimality.nearest_optimal(processes, phi, distance)
    bound = optimality.gap_bound(processes, phi, others, 1.0, distance)
    policy = phi.softmax(-1)
    largest = exact.advantages(processes, policy)[processes.running].abs().max()
    least = exact.visitation(processes, policy)[processes.running].min()
    spread = optimality.squared_distance(processes, phi, others, distance).mean()
    theirs = (6 if distance == "D3" else 2) * largest / (0.2 * least)
    constant = 6 + 4 * 0.8 if distance == "D3" else 2 * 1.8
    expected = {
        "theorems_penalty": theirs,
        "published": constant * largest / (0.2**2 * least) * spread,
        "drawn": constant * largest / (0.2**2 * least) * spread / theirs,
        "advantage": largest,
        "visits": least,
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(bound, name), value, rtol=1e-12, atol=0.0)
    own = optimality.gap_bound(processes, phi, others, float(theirs), distance)
    torch.testing.assert_close(own.drawn, bound.published, rtol=1e-12, atol=0.0)
    if distance == "D3":
        assert own.sharper < own.published
    else:
        torch.testing.assert_close(own.sharper, own.published, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("distance", ["D1", "D2"])
@pytest.mark.parametrize("name", ["random", "lakes .3", "lakes .1"])
def test_the_gap_at_the_theorems_penalty_is_within_the_theorems_bound(name, distance):
    """At the table in the middle, whose gap a meta-trained table's is no larger than."""
    processes = random_processes() if name == "random" else paying(float(name[-2:]))
    _, centre = optimality.task_variance(processes, distance)
    nearest = optimality.nearest_optimal(processes, centre, distance)
    bound = optimality.gap_bound(processes, centre, nearest, 1.0, distance)
    penalty = float(bound.theorems_penalty)
    after = SOLUTIONS[distance](penalty, centre, exact.action_values(processes, centre.softmax(-1)))
    gap = optimality.optimality_gap(processes, after.softmax(-1))
    before = optimality.optimality_gap(processes, centre.softmax(-1))
    assert 0 <= gap <= before
    assert gap - bound.lost <= bound.published


@pytest.mark.parametrize(("holes", "penalty"), [(0.3, 0.5), (0.1, 0.25)])
def test_one_learned_step_is_below_the_bound_drawn_and_no_step_above(holes, penalty):
    """The figure, small: ten lakes, thirty meta-iterations, with D2 on the lakes trained on."""
    processes = paying(holes, tasks=10)
    value = exact_bomrl(processes, penalty, "D2").compile()
    table = torch.zeros(16, 4, dtype=F64, requires_grad=True)
    adam = torch.optim.Adam([table], lr=0.1, maximize=True)
    for _ in range(30):
        adam.zero_grad()
        value.surrogate(table, every_task(processes)).backward()
        adam.step()
    _, centre = optimality.task_variance(processes, "D2")
    nearest = optimality.nearest_optimal(processes, centre, "D2")
    drawn = optimality.gap_bound(processes, centre, nearest, penalty, "D2").drawn
    best = (processes.start * exact.optimal_values(processes)).sum(-1).mean()
    learned = table.detach()
    after = best - value.surrogate(learned, every_task(processes))
    assert 0 < after < 0.6 * drawn < drawn < optimality.optimality_gap(processes, learned.softmax(-1))
    assert after < best - value.surrogate(torch.zeros_like(learned), every_task(processes))


@pytest.mark.parametrize("distance", ["D1", "D2"])
def test_steps_with_a_penalty_of_the_theorem_never_make_a_task_worse(distance):
    processes = random_processes()
    for seed in range(10):
        phi = table(seed=seed)
        least = float(optimality.gap_bound(processes, phi, phi.expand(5, 4, 3), 1.0, distance).least_penalty)
        after = SOLUTIONS[distance](least, phi, exact.action_values(processes, phi.softmax(-1)))
        gained = exact.returns(processes, after.softmax(-1)) - exact.returns(processes, phi.softmax(-1))
        assert (gained > 0).all()


def changed(processes: exact.Process, phi: Tensor, penalty: float) -> Tensor:
    """By what factor a step under D1 changes each probability."""
    after = SOLUTIONS["D1"](penalty, phi, exact.action_values(processes, phi.softmax(-1)))
    return after.exp() / phi.softmax(-1)


@pytest.mark.parametrize("times", [1.1, 2.0, 10.0])
def test_how_far_a_step_under_D1_changes_a_probability(times):
    """Lemma 5 of the appendix, its lower bound corrected: between l / (l + 2 A) and l / (l - A)."""
    processes = random_processes()
    for seed in range(10):
        phi = table(seed=seed)
        largest = exact.advantages(processes, phi.softmax(-1)).abs().max()
        penalty = times * float(largest)
        ratio = changed(processes, phi, penalty)
        assert (ratio >= penalty / (penalty + 2 * largest) - 1e-12).all()
        assert (ratio <= penalty / (penalty - largest) + 1e-12).all()


def test_the_lower_bound_of_lemma_5_does_not_hold_as_printed():
    """One state, two actions, rewards 1 and 0: advantages of a half, a penalty of 1, and 1 / (1.207 + .5) < 1 / 1.5."""
    reward = torch.tensor([1.0, 0.0], dtype=F64).reshape(1, 1, 2, 1)
    paid = exact.process(Dynamics(torch.ones(1, 1, 2, 1, dtype=F64), reward, torch.tensor([[False]])), 0.5)
    phi = torch.zeros(1, 2, dtype=F64)
    largest = float(exact.advantages(paid, phi.softmax(-1)).abs().max())
    assert largest == pytest.approx(0.5)
    least = float(changed(paid, phi, 1.0).min())
    assert least == pytest.approx(1 / ((1 + math.sqrt(2)) / 2 + 0.5))
    assert 1 / (1 + 2 * largest) < least < 1 / (1 + largest) - 0.08


def test_refusals():
    processes = random_processes()
    for distance in ("D1", "D3"):
        with pytest.raises(ValueError, match=f"{distance} to a policy that takes the best actions only is infinite"):
            optimality.task_variance(processes, distance, 1.0)
    for greed in (0.0, 1.5, "all"):
        with pytest.raises(ValueError, match=rf"greed={greed!r}: must be a number above 0 and at most 1"):
            optimality.nearest_optimal(processes, table(), "D2", greed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="distance='D4' is not known"):
        optimality.nearest_optimal(processes, table(), "D4")


def test_a_single_task_has_no_variance():
    """Its own best policies are in the middle; those of finite distance are reached, the others in the limit."""
    reward = torch.tensor([1.0, 0.5], dtype=F64).reshape(1, 1, 2, 1)
    paid = exact.process(Dynamics(torch.ones(1, 1, 2, 1, dtype=F64), reward, torch.tensor([[False]])), 0.5)
    for distance in DISTANCES:
        assert float(optimality.task_variance(paid, distance)[0]) < 1e-4
