"""Conjugate gradients that stop where they meet negative curvature, and say so."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.bomrl import fixed_sample_bomrl, practical_bomrl
from stochgraph.algorithms.environments import Navigation
from stochgraph.algorithms.inner_steps.proximal import NegativeCurvature, TruncatedConjugateGradient
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training import Configuration, Problem, RunFolder, train
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
STOPPED = "stopped there in {} of {} solutions"


def times(matrix: Tensor) -> Any:
    return lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)


def by_hand(matrix: Tensor, target: Tensor, steps: int) -> tuple[Tensor, bool]:
    """The method as Hestenes and Stiefel have it, left as soon as a direction does not curve; and whether it was."""
    solution, residual, direction = torch.zeros_like(target), target, target
    for _ in range(steps):
        curvature = direction @ matrix @ direction
        if curvature <= 0:
            return solution, True
        length = residual @ residual / curvature
        solution, after = solution + length * direction, residual - length * matrix @ direction
        direction = after + (after @ after) / (residual @ residual) * direction
        residual = after
    return solution, False


def symmetric(size: int, least: float, seed: int = 0) -> Tensor:
    """A matrix with evenly spaced eigenvalues from `least` to 3, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))
    return turn @ torch.diag(torch.linspace(least, 3.0, size, dtype=F64)) @ turn.mT


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_positive_definite_system_is_solved(damping):
    matrix, target = symmetric(6, 0.5), torch.arange(1.0, 7.0, dtype=F64)
    found = TruncatedConjugateGradient(steps=6, damping=damping).solve(times(matrix), target)
    torch.testing.assert_close(found, torch.linalg.solve(matrix + damping * torch.eye(6, dtype=F64), target), **EXACT)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_budget_is_what_it_reaches(steps):
    matrix, target = symmetric(6, 0.5), torch.arange(1.0, 7.0, dtype=F64)
    found = TruncatedConjugateGradient(steps=steps).solve(times(matrix), target)
    torch.testing.assert_close(found, by_hand(matrix, target, steps)[0], **EXACT)


@pytest.mark.parametrize("seed", range(4))
def test_it_stops_at_negative_curvature_and_says_so(seed):
    matrix, target = symmetric(6, -0.4, seed), torch.arange(1.0, 7.0, dtype=F64)
    expected, stopped = by_hand(matrix, target, 6)
    assert stopped
    assert expected.norm() > 0
    with pytest.warns(NegativeCurvature, match=STOPPED.format(1, 1)):
        found = TruncatedConjugateGradient(steps=6).solve(times(matrix), target)
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_damping_takes_the_negative_curvature_away():
    matrix, target = symmetric(6, -0.4), torch.arange(1.0, 7.0, dtype=F64)
    found = TruncatedConjugateGradient(steps=6, damping=0.6).solve(times(matrix), target)
    torch.testing.assert_close(found, torch.linalg.solve(matrix + 0.6 * torch.eye(6, dtype=F64), target), **EXACT)


def test_copies_stop_by_themselves():
    matrices = torch.stack([symmetric(6, least, seed) for least, seed in ((0.5, 0), (-0.4, 1), (0.2, 2), (-0.4, 3))])
    target = torch.arange(1.0, 7.0, dtype=F64).expand(4, 6)
    with pytest.warns(NegativeCurvature, match=STOPPED.format(2, 4)):
        found = TruncatedConjugateGradient(steps=6).solve(times(matrices), target)
    expected = torch.stack([by_hand(*each, 6)[0] for each in zip(matrices, target, strict=True)])
    torch.testing.assert_close(found, expected, **EXACT)


def test_where_the_first_direction_does_not_curve_nothing_is_known():
    with pytest.warns(NegativeCurvature, match=STOPPED.format(1, 1)):
        found = TruncatedConjugateGradient().solve(lambda v: -v, torch.ones(3, dtype=F64))
    assert torch.equal(found, torch.zeros(3, dtype=F64))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"steps": -1}, "steps=-1: must be an integer of at least 0"), ({"damping": -0.1}, r"damping=-0\.1: must be")],
)
def test_options_out_of_their_range(options, words):
    with pytest.raises(ValueError, match=words):
        TruncatedConjugateGradient(**options)


# Divergences on a network: without a damping there is no strict maximum


def navigation(make: Any, **options: Any) -> tuple[sg.Compiled, Any]:
    walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=(6,)), horizon=8)
    tasks = partial(walks.environment.declare_tasks, 3)
    problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=6, outer=6, standardise=True)
    theta = walks.policy.initial(torch.Generator().manual_seed(0), dtype=F64)
    return make(problem, **options).compile(), theta


@pytest.mark.parametrize("distance", ["D1", "D2"])
@pytest.mark.parametrize("make", [practical_bomrl, fixed_sample_bomrl])
def test_divergences_have_a_derivative_on_a_network(make, distance):
    """By default damped, so that nothing stops; undamped it is said that something does."""
    compiled, theta = navigation(make, distance=distance)
    trace = compiled.sample(theta, generator=torch.Generator().manual_seed(0))
    found = torch.func.grad(compiled.surrogate)(theta, trace)
    assert all(bool(leaf.isfinite().all() & (leaf != 0).any()) for leaf in found.values())
    undamped, _ = navigation(make, distance=distance, damping=0.0, products=60)
    with pytest.warns(NegativeCurvature, match=r"of 3 solutions"):
        torch.func.grad(undamped.surrogate)(theta, trace)


@pytest.mark.parametrize("distance", ["D1", "D2", "D3"])
def test_the_damping_is_that_of_the_distance_unless_given(distance):
    own, theta = navigation(practical_bomrl, distance=distance)
    given, _ = navigation(practical_bomrl, distance=distance, damping=0.0 if distance == "D3" else 0.1)
    trace = own.sample(theta, generator=torch.Generator().manual_seed(0))
    one, other = (torch.func.grad(each.surrogate)(theta, trace) for each in (own, given))
    assert all(torch.equal(one[name], other[name]) for name in theta)


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["D1", "D2"])
def test_training_on_navigation(distance, tmp_path):
    """Adaptation pays from the start, and what it leads to is better after training, on the same goals and noise.

    Warnings are errors, so no linear solve stopped.
    """
    run = Configuration(
        output=str(tmp_path / "run"),
        algorithm="bomrl-practical",
        algorithm_options={"distance": distance},
        horizon=15,
        hidden=(16,),
        tasks=8,
        learning_rate=0.02,
        iterations=12,
        evaluate_every=12,
        evaluation_tasks=60,
        threads=1,
    )
    train(run, reporters=[])
    first, last = RunFolder(run.output).metrics("evaluation")
    assert first["returns"][1] > first["returns"][0] + 4 * first["errors"][0]
    assert last["returns"][1] > first["returns"][1] + 0.08


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::stochgraph.algorithms.inner_steps.proximal.NegativeCurvature")
@pytest.mark.parametrize("distance", ["D1", "D2"])
def test_training_on_a_robot(distance, tmp_path):
    """Few data for a network of seventeen inputs: some solves stop, and every meta-gradient is there all the same."""
    pytest.importorskip("mujoco")
    run = Configuration(
        output=str(tmp_path / "run"),
        environment="half-cheetah",
        algorithm="bomrl-practical",
        algorithm_options={"distance": distance},
        horizon=20,
        hidden=(16,),
        tasks=4,
        iterations=3,
        evaluate_every=3,
        evaluation_tasks=10,
        threads=1,
    )
    theta, start = train(run, reporters=[]).theta, Problem(run).initial()
    assert all(bool(leaf.isfinite().all() & (leaf != start[name]).any()) for name, leaf in theta.items())
    assert all(0 < each["gradient_norm"] < 1e4 for each in RunFolder(run.output).metrics("iteration"))
