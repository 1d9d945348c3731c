"""Errors in print: each shown by enumeration, by quadrature that is exact, or by an example that needs no computer.

The page `docs/errata.md` lists them. What is right in their place is tested here and with the constants.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.bomrl import every_task
from stochgraph.algorithms.exact import optimality
from stochgraph.algorithms.exact import processes as exact
from stochgraph.algorithms.exact.convergence_constants import (
    SOFTMAX_TABLE,
    LSFConstants,
    SGMRLConstants,
    line_errors,
    toy_variances,
)
from stochgraph.algorithms.inner_steps.tabular_steps import improve_table
from tests.problems import DISCOUNT, F64, MDP_THETA, REWARD, mdp, mdp_value
from tests.test_exact import lakes, random_processes

# Fallah et al.


def constants(**changes: Any) -> SGMRLConstants:
    given: dict[str, Any] = {"reward": float(REWARD.max()), "score": 2**0.5, "curvature": 0.5, "discount": DISCOUNT}
    return SGMRLConstants(**given | {"third": SOFTMAX_TABLE.third, "last_time": 1, "inner": 2} | changes)


def test_exact_outer_returns_leave_variance():
    """With outer trajectories without number the printed bound is 0; what the inner ones leave is .665."""
    found = sg.verify(mdp().compile(sg.SF()), MDP_THETA).total_variance
    assert float(found) == pytest.approx(0.665, abs=5e-4)
    bound = constants().variance(tasks=1, outer=10**9)
    assert bound.printed < 1e-4 < found < bound.corrected


def test_outer_trajectories_of_a_task_are_not_independent_estimates():
    """Twice as many do not halve the variance, as the proof of the lemma has it."""
    one, two = (float(sg.verify(mdp(m=m).compile(sg.SF()), MDP_THETA).total_variance) for m in (1, 2))
    assert two > 0.8 * one


def test_returns_are_larger_than_the_largest_reward():
    bound = constants().return_bound
    assert bound.printed < float(mdp_value(MDP_THETA)) <= bound.corrected


@pytest.mark.parametrize("inner", [1, 2, 20])
def test_the_smoothness_for_one_step_does_not_follow_from_the_general_one(inner):
    """Proposition 4.7 is stated as a case of theorem E.1, as an upper bound of it; it is smaller."""
    theory = constants(inner=inner)
    assert theory.smoothness.printed < theory.general_smoothness.printed
    by_hand = theory.largest_inner_rate * theory.hessian_lipschitz * theory.gradient_bound + 4 * theory.hessian_bound
    spread = 2 * 0.5 + 3 * inner * 2 * 2
    by_hand += 2 * inner * 2 * (theory.reward * spread + 4 * theory.gradient_bound * 2**0.5)
    assert theory.general_smoothness.printed == pytest.approx(by_hand)


def test_small_steps_make_a_small_floor():
    """The floor falls with the rate, so that an accuracy asks for a rate of its square, not for one over its square."""
    theory, accuracy = constants(), 0.1
    for rate, enough in ((accuracy**2, True), (accuracy**-2, False)):
        size = rate * theory.largest_rate.corrected / (2 * theory.meta_gradient_bound.corrected**2)
        assert (theory.floor(size, tasks=1, outer=1).corrected <= accuracy**2 * 1.001) == enough


def test_the_printed_gaussian_density_is_none():
    """It integrates to 1 / sqrt(2); the derivatives printed beside it are those of the right density."""
    _, weights = np.polynomial.hermite.hermgauss(20)  # for exp(-x**2)
    std, mean = 0.3, 0.7
    total = float(sum(weights * std)) / (math.sqrt(2 * math.pi) * std)
    assert total == pytest.approx(1 / math.sqrt(2))
    action, slope = torch.tensor(1.1, dtype=F64), torch.tensor(mean, dtype=F64)
    right = torch.func.grad(lambda m: torch.distributions.Normal(m, std, validate_args=False).log_prob(action))(slope)
    printed = torch.func.grad(lambda m: -((action - m) ** 2) / std**2)(slope)
    assert float(right) == pytest.approx((1.1 - mean) / std**2)
    assert float(printed) == pytest.approx(2 * (1.1 - mean) / std**2)


def test_the_descent_inequality_has_half_the_constant_not_its_square():
    """A quadratic whose gradient is Lipschitz with constant .1: it moves by more than the printed remainder allows."""
    smooth, step = 0.1, 2.0
    remainder = 0.5 * smooth * step**2  # of smooth / 2 * x**2 at 0, exactly
    assert smooth**2 / 2 * step**2 < remainder <= smooth / 2 * step**2


# Tang


def normal_quadrature(dims: int, nodes: int = 12) -> tuple[Tensor, Tensor]:
    """Points and weights that are exact for polynomials of independent normal numbers, up to degree 23 in each."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    points = torch.tensor(list(itertools.product(x, repeat=dims)), dtype=F64)
    weights = torch.tensor(list(itertools.product(w / w.sum(), repeat=dims)), dtype=F64).prod(-1)
    return points, weights


def moments(estimate: Tensor, weights: Tensor) -> tuple[float, float]:
    mean = (weights * estimate).sum()
    return float(mean), float((weights * (estimate - mean) ** 2).sum())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_variance_of_the_score_function_in_the_toy(n):
    """Lemma 14: 2 / N belongs to the linearised estimate, and 2 to the score function."""
    mean, std = 0.8, 1.5
    noise, weights = normal_quadrature(n, 8)
    x, score = mean + std * noise, noise / std
    score_function, linearized = x.mean(-1) * score.sum(-1), (x * score).mean(-1)
    expected = toy_variances(mean, std, n)
    for estimate, value in ((score_function, expected.score_function), (linearized, expected.linearized)):
        found = moments(estimate, weights)
        assert found[0] == pytest.approx(1.0)
        assert found[1] == pytest.approx(value.corrected)
    if n > 1:
        assert expected.score_function.printed < 0.8 * expected.score_function.corrected


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_factors_of_the_linear_noise_are_exchanged(n):
    """SF is (sum e)^2 / N + mu / s sum e, and LSF sum e^2 / N + mu / (N s) sum e; printed, the 1/N changes places."""
    mean, std = 0.8, 1.5
    noise, _ = normal_quadrature(n, 4)
    x, score = mean + std * noise, noise / std
    total = noise.sum(-1)
    torch.testing.assert_close(x.mean(-1) * score.sum(-1), total**2 / n + mean / std * total)
    torch.testing.assert_close((x * score).mean(-1), (noise**2).mean(-1) + mean / std * total / n)


@pytest.mark.parametrize("theta", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_errors_of_figure_1(n, theta):
    """What the text calls the bias of LSF there is its variance; its bias is -2 theta / N."""
    noise, weights = normal_quadrature(n, 8)
    x, truth = theta + noise, -2 * (theta - 1)
    mean = x.mean(-1)
    score_function = -((mean - 1) ** 2) * noise.sum(-1)
    linearized = -2 * (mean - 1) * (x * noise).mean(-1)
    errors = [float((weights * (estimate - truth) ** 2).sum()) for estimate in (score_function, linearized)]
    assert errors == pytest.approx(line_errors(theta, n))
    found, variance = moments(linearized, weights)
    assert found - truth == pytest.approx(-2 * theta / n)
    assert errors[1] == pytest.approx(variance + (2 * theta / n) ** 2)


def test_the_floor_of_the_score_function_grows_with_the_fourth_power():
    """The paper quotes Fallah et al. with the third."""
    floors = [constants(inner=n).floor(1e-9, tasks=1, outer=1).corrected for n in (10**6, 2 * 10**6)]
    assert floors[1] / floors[0] == pytest.approx(2**4, rel=1e-3)
    printed = [constants(inner=n).floor(1e-9, tasks=1, outer=1).printed for n in (10**6, 2 * 10**6)]
    assert printed[1] / printed[0] == pytest.approx(2**4, rel=1e-3)


def test_a_bound_of_the_gradient_is_no_lipschitz_constant_of_it():
    """Proposition 27, without an inner step: a steep policy of one parameter, and a Hessian above the printed bound."""
    steep = 20.0
    theory = LSFConstants(
        reward=1.0, score=steep, curvature=steep**2 / 4, third=steep**3, discount=0.0, horizon=1, inner_rate=0.0
    )

    def value(theta: Tensor) -> Tensor:
        return torch.sigmoid(steep * theta)

    places = torch.linspace(-0.3, 0.3, 601, dtype=F64)
    slopes = torch.func.vmap(torch.func.grad(value))(places)
    bends = torch.func.vmap(torch.func.grad(torch.func.grad(value)))(places)
    assert slopes.abs().max() <= theory.meta_gradient_bound
    assert theory.smoothness.printed < bends.abs().max() <= theory.smoothness.corrected


def test_the_variance_of_a_sum_is_not_below_the_sum_of_variances():
    """The proof of proposition 24: of R grad^2 log p and R u u^T, which move together; the factor 2 is missing."""
    p, reward = 0.3, torch.tensor([2.0, 1.0], dtype=F64)
    chance = torch.tensor([1 - p, p], dtype=F64)
    score = torch.tensor([-p, 1 - p], dtype=F64)
    parts = reward * -p * (1 - p), reward * score**2
    whole = moments(parts[0] + parts[1], chance)[1]
    apart = sum(moments(part, chance)[1] for part in parts)
    assert apart < whole <= 2 * apart


def bandit_gradients(rate: float) -> tuple[float, float]:
    """E |grad V(theta'_N) - grad V(theta')|^2 for one pull, and the variance of a policy gradient, both exact."""
    reward, theta = torch.tensor([0.1, 1.0, -0.6], dtype=F64), torch.tensor([0.3, -0.2, 0.1], dtype=F64)

    def slope(at: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda t: t.softmax(-1) @ reward)(at)
        return found

    chance = theta.softmax(-1)
    pulls = reward[:, None] * (torch.eye(3, dtype=F64) - chance)
    exactly = slope(theta + rate * slope(theta))
    away = torch.stack([slope(theta + rate * pull) - exactly for pull in pulls]).square().sum(-1)
    variance = (chance[:, None] * (pulls - slope(theta)).square()).sum()
    return float((chance * away).sum()), float(variance)


def test_the_parts_of_proposition_28():
    """Term (b) falls with the square of the inner rate, which is not in it; a policy gradient varies by sigma_1^2."""
    far, near = (bandit_gradients(rate)[0] for rate in (0.01, 0.001))
    assert far / near == pytest.approx(100, rel=0.05)
    theory = LSFConstants(reward=1.0, score=2**0.5, curvature=1.0, third=1.0, discount=0.0, horizon=1, inner_rate=0.001)
    term = (theory.hessian_bound * theory.gradient_deviation) ** 2
    assert near < term * 0.001**2 < 1e-4 * term
    small = LSFConstants(reward=0.01, score=2**0.5, curvature=1.0, third=1.0, discount=0.0, horizon=1, inner_rate=0.0)
    variance = bandit_gradients(0.0)[1] * 0.01**2
    assert (small.hessian_bound * small.gradient_deviation) ** 2 < variance <= small.gradient_deviation**2


# Xu and Zhu; lemma 5 is in test_optimality.py


def returns_after(processes: exact.Process, distance: str, held: bool) -> Any:
    """The mean return after one exact step, the visits in it differentiated or held."""

    @sg.graph
    def objective(phi: Any) -> Any:
        task = sg.sample("task", torch.distributions.Categorical, torch.ones(len(processes.start)), n=3)
        values = sg.apply(lambda i, t: exact.action_values(processes.at(i), t.softmax(-1)), task, phi)
        visits = sg.apply(lambda i, t: exact.visitation(processes.at(i), t.softmax(-1)), task, phi)
        after = improve_table(phi, values, sg.stop(visits) if held else visits, 0.5, distance)
        return sg.mean(sg.apply(lambda i, t: exact.returns(processes.at(i), t.softmax(-1)), task, after))

    compiled = objective.compile({})
    return lambda phi: compiled.surrogate(phi, every_task(processes))


@pytest.mark.parametrize(("distance", "apart"), [("D1", False), ("D2", False), ("D3", True)])
def test_proposition_2_lacks_the_derivative_of_the_visits(distance, apart):
    """It vanishes for tables under divergences, state by state; under D3 it does not. Against finite differences."""
    processes = random_processes(tasks=3)
    phi = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    whole, held = (torch.func.grad(returns_after(processes, distance, h))(phi) for h in (False, True))
    gap = float((whole - held).norm() / whole.norm())
    assert (gap > 1e-3) == apart
    if apart:
        value, way = returns_after(processes, distance, False), whole / whole.norm()
        step = 1e-4
        difference = (value(phi + step * way) - value(phi - step * way)) / (2 * step)
        assert abs(float(difference - whole.norm())) < 1e-5 * float(whole.norm())
        assert abs(float(difference - (held * way).sum())) > 1e-4 * float(whole.norm())


def test_the_minimum_of_equation_7_does_not_exist():
    """Soft ratios are bounded and a distance is not: far from the policy the bracket falls below any number."""
    values = [-0.5 * size**2 + 2 / (1 + math.exp(-2 * (math.exp(-size) - 1))) for size in (0.0, 1.0, 10.0, 1000.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < -1e5


def test_the_lakes_break_the_assumption_on_rewards():
    """Rewards from -1 to 1: the advantage exceeds r_max / (1 - discount), which bounds it for rewards in [0, r_max]."""
    pytest.importorskip("gymnasium")
    processes = lakes(20, 0.3, 0, slippery=False, goal="pays")
    _, centre = optimality.task_variance(processes, "D2")
    bound = optimality.gap_bound(processes, centre, optimality.nearest_optimal(processes, centre, "D2"), 0.5, "D2")
    assert 1 / (1 - processes.discount) < float(bound.advantage) <= 2 / (1 - processes.discount)
