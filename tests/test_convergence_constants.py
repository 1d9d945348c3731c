"""The constants of the theorems: check values, and that they bound what they are said to bound on small processes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.exact import optimality
from stochgraph.algorithms.exact import processes as exact
from stochgraph.algorithms.exact.convergence_constants import (
    SOFTMAX_TABLE,
    BOMRLConstants,
    Constant,
    LSFConstants,
    SGMRLConstants,
    line_errors,
    toy_variances,
)
from stochgraph.algorithms.inner_steps.tabular_steps import SOLUTIONS
from tests.problems import DISCOUNT, F64, MDP_THETA, REWARD, TwoStateMDP, mdp_value
from tests.test_exact import random_processes

REWARD_BOUND = float(REWARD.max())
GIVEN: dict[str, Any] = {
    "reward": REWARD_BOUND,
    "score": SOFTMAX_TABLE.score,
    "curvature": SOFTMAX_TABLE.curvature,
    "third": SOFTMAX_TABLE.third,
    "discount": DISCOUNT,
    "last_time": 1,
    "inner": 2,
}
SGMRL = SGMRLConstants(**GIVEN)


def to_four(value: float) -> Any:
    return pytest.approx(value, rel=5e-5)


# Check values


def test_check_values_of_sgmrl():
    theory = replace(SGMRL, reward=0.5813)
    assert theory.gradient_bound == to_four(82.208)
    assert theory.hessian_bound == to_four(261.585)
    assert theory.hessian_lipschitz == to_four(180.237)
    assert theory.largest_inner_rate == to_four(0.0038228)
    assert theory.meta_gradient_bound.printed == to_four(170.993)
    assert replace(theory, steps=2).meta_gradient_bound.printed == to_four(341.986)
    assert theory.general_smoothness.printed == to_four(4939.6)
    assert theory.smoothness.printed == to_four(1261.1)
    assert replace(theory, steps=2).smoothness.printed == to_four(19767)
    assert theory.return_bound == (0.5813, to_four(0.5813 * 1.9))


def test_check_values_of_the_corrections_of_sgmrl():
    """From the formulas, with the return in place of the reward where a return is bounded."""
    theory = replace(SGMRL, reward=0.5813)
    assert theory.meta_gradient_bound.corrected == to_four(2 * (82.208 + 2 * 2 * math.sqrt(2) * 1.10447))
    assert theory.smoothness.corrected == to_four(4939.6 + 2 * 2 * 2 * (1.10447 - 0.5813) * (1 + 3 * 4 * 2))
    assert theory.largest_rate.corrected == to_four(1 / 5044.2)
    assert theory.variance(5, 100) == (to_four(170.993**2 / 500), to_four(176.912**2 / 5))
    assert theory.floor(1e-4, 5, 100).printed == to_four(2 * 170.993**2 * 1261.1 * 1e-4 / 500)
    assert theory.floor(1e-4, 5, 100).corrected == to_four(2 * 176.912**2 * 5044.2 * 1e-4 / 5)
    assert theory.iterations(1e-4, 0.1, 5, 100).printed == to_four(0.5813 / 1e-4 * 2 / 14.7492)
    assert theory.tasks_for(10.0, 100) == (to_four(8 * 170.993**2 / 1e4), to_four(8 * 176.912**2 / 100))


def test_the_softmax_of_two_actions():
    """The constants are attained: by a search over the logits of two actions, whose difference alone matters."""
    difference = torch.linspace(-8, 8, 200_001, dtype=F64)
    p = torch.sigmoid(difference)
    assert float((p * math.sqrt(2)).max()) <= SOFTMAX_TABLE.score < 1.001 * float((p * math.sqrt(2)).max())
    assert float((2 * p * (1 - p)).max()) == pytest.approx(SOFTMAX_TABLE.curvature)
    third = 2 * math.sqrt(2) * p * (1 - p) * (1 - 2 * p)
    assert float(third.max()) == pytest.approx(SOFTMAX_TABLE.third, rel=1e-8)
    assert SOFTMAX_TABLE.third == to_four(0.27217)


@pytest.mark.parametrize("theta", [0.0, 1.5, 2.0])
def test_errors_on_the_line(theta):
    """The table of the experiments: for which N LSF is above SF, and five pairs."""
    table = {
        0.0: [(1, 30, 68), (2, 23.5, 16), (5, 22, 3.6), (10, 25.5, 1.5), (100, 114, 0.12)],
        1.5: [(1, 18.6, 121), (2, 11.1, 29.9), (5, 6.8, 6.1), (10, 5.6, 2.2), (100, 9.9, 0.15)],
        2.0: [(1, 30, 212), (2, 23.5, 60), (5, 22, 14.5), (10, 25.5, 5.8), (100, 114, 0.45)],
    }
    for n, score_function, linearized in table[theta]:
        assert line_errors(theta, n) == pytest.approx((score_function, linearized), rel=0.03)  # as rounded
    above = [n for n in range(1, 200) if line_errors(theta, n)[1] > line_errors(theta, n)[0]]
    assert above == {0.0: [1], 1.5: [1, 2, 3, 4], 2.0: [1, 2, 3]}[theta]


def test_check_values_of_lsf():
    theory = LSFConstants(
        reward=1.0, score=math.sqrt(2), curvature=0.5, third=1.0, discount=0.9, horizon=2, inner_rate=0.1
    )
    assert theory.hessian_bound == to_four(1.9 * (1 + 8))
    assert theory.gradient_deviation == to_four(1.9 * 2 * math.sqrt(2))
    assert theory.hessian_deviations == (to_four(1.9), to_four(15.2))
    assert theory.meta_gradient_bound == to_four(2.71 * 5.374)
    assert theory.smoothness == (to_four(2.71 * 5.37401), to_four(2.71**2 * 17.1 + 0.537401))
    parts = 1.9**2 + 15.2**2
    first, second = 2.71 * 17.1 * 0.1 * 5.37401 / 2, 17.1 * 0.01 * 5.37401 / 4
    expected = (first + math.sqrt(parts) * second, first + math.sqrt(2 * parts) * second)
    assert theory.bias(4) == (to_four(expected[0]), to_four(expected[1]))
    assert theory.rate(0.1, 1.0, 100.0) == (to_four(0.0055 / 14.5636), to_four(0.0055 / 126.12))


@pytest.mark.parametrize(
    ("distance", "values"),
    [
        ("D1", (100.0, 80.0, 900.0, 30.0, 40.0, 100.0)),
        ("D2", (100.0, 80.0, 900.0, 20.0, 20.0, 50.0)),
        ("D3", (300.0, 160.0, 2300.0, 10 * 308 / 294, 10 * 308 / 294, 5 * 308 / 294)),
    ],
)
def test_check_values_of_bomrl(distance, values):
    """With A = 1, discount .8, visits .1 and softmax tables."""
    theory = BOMRLConstants(distance=distance, reward=1.0, advantage=1.0, discount=0.8, visits=0.1)
    penalty, safe, factor, printed, corrected, slope = values
    assert theory.gap_penalty == to_four(penalty)
    assert theory.safe_penalty == to_four(safe)
    assert theory.gap_factor == to_four(factor)
    assert theory.first_derivative == (to_four(printed), to_four(corrected))
    assert theory.gradient_bound == to_four(slope)
    bent = {
        "D1": (16 / (100 * 0.008) + 120 + 0.12, 16 / (100 * 0.008) + 160 + 0.16),
        "D2": (16 / (100 * 0.008) + 450,) * 2,
        "D3": (160 * (308 / 294) ** 2 / 0.008,) * 2,
    }[distance]
    assert theory.second_derivative == (to_four(bent[0]), to_four(bent[1]))
    smooth = 25 * bent[0] + 1.6 * printed**2 / 0.008
    assert theory.smoothness.printed == to_four(smooth)
    assert theory.rate(100).printed == to_four(min(1 / smooth, 1 / (10 * slope)))
    size = (bent[0] + 2 * printed**2) / 0.2**4
    assert theory.squared_gradient(100).printed == to_four(size * (0.02 + slope / 10))
    assert theory.policy_gradient_rate == (to_four(1 / penalty), to_four(0.5 / penalty))


@pytest.mark.parametrize("distance", ["D1", "D2", "D3"])
def test_the_bound_of_a_table_is_that_of_its_constants(distance):
    processes = random_processes()
    _, centre = optimality.task_variance(processes, distance)
    bound = optimality.gap_bound(
        processes, centre, optimality.nearest_optimal(processes, centre, distance), 1, distance
    )
    theory = BOMRLConstants(
        distance=distance,
        reward=1.0,
        advantage=float(bound.advantage),
        discount=processes.discount,
        visits=float(bound.visits),
    )
    assert float(bound.theorems_penalty) == pytest.approx(theory.gap_penalty)
    assert float(bound.published) == pytest.approx(theory.gap_factor * float(bound.spread))
    if distance == "D3":
        assert theory.safe_penalty > float(bound.least_penalty)
    else:
        assert theory.safe_penalty == pytest.approx(float(bound.least_penalty))


# They bound what they are said to bound


def adapted(rate: float, inner: int = 2, outer: int | None = None) -> sg.Graph:
    @sg.graph
    def objective(theta: Any) -> Any:
        data = sg.sample("D", TwoStateMDP(2), theta, n=inner)
        theta = sg.ascend(theta, sg.mean(sg.sum(data.reward, discount=DISCOUNT)), rate)
        if outer is None:
            return sg.apply(lambda t: mdp_value(t, 2), theta)
        return sg.mean(sg.sum(sg.sample("tau", TwoStateMDP(2), theta, n=outer).reward, discount=DISCOUNT))

    return objective


def points(count: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(2, 2, generator=generator, dtype=F64) for _ in range(count)]


def meta_gradient(theta: Tensor, rate: float) -> Tensor:
    found: Tensor = sg.verify(adapted(rate).compile(sg.SF()), theta).truth
    return found


def test_the_meta_gradient_is_as_smooth_as_the_corrected_constant_says():
    rate = SGMRL.largest_inner_rate
    places = points(8) + [point + 1e-3 for point in points(3)]
    gradients = [meta_gradient(theta, rate) for theta in places]
    for i, j in [(0, 1), (2, 3), (4, 5), (6, 7), (0, 8), (1, 9), (2, 10)]:
        moved = (gradients[i] - gradients[j]).norm()
        assert moved <= SGMRL.smoothness.corrected * (places[i] - places[j]).norm()
        assert max(gradients[i].norm(), gradients[j].norm()) <= SGMRL.meta_gradient_bound.corrected


def test_the_variance_is_within_the_corrected_bound():
    for outer in (None, 1):
        found = sg.verify(adapted(SGMRL.largest_inner_rate, outer=outer).compile(sg.SF()), MDP_THETA)
        assert found.total_variance <= SGMRL.variance(tasks=1, outer=outer or 10**9).corrected


def test_the_bias_of_lsf_is_within_its_bound():
    """Against the gradient of the return after a step along the exact gradient."""
    for rate in (0.02, 0.1, 0.7):
        theory = LSFConstants(
            reward=REWARD_BOUND,
            score=SOFTMAX_TABLE.score,
            curvature=1 / math.sqrt(2),  # the Frobenius norm
            third=1.0,
            discount=DISCOUNT,
            horizon=2,
            inner_rate=rate,
        )

        def after(theta: Tensor, rate: float = rate) -> Tensor:
            return mdp_value(theta + rate * torch.func.grad(mdp_value)(theta))

        for inner in (1, 2, 3):
            mean = sg.verify(adapted(rate, inner).compile(sg.LSF()), MDP_THETA).expectation
            bias = (mean - torch.func.grad(after)(MDP_THETA)).norm()
            assert 0 < bias <= theory.bias(inner).printed
            bound = theory.variance(tasks=1, inner=inner, outer=10**9, parameters=4)
            variance = sg.verify(adapted(rate, inner).compile(sg.LSF()), MDP_THETA).total_variance
            assert variance <= min(bound)


@pytest.mark.parametrize("distance", ["D1", "D2"])
def test_adaptation_is_as_smooth_as_its_constants_say(distance):
    """The hypergradient and its Hessian, with exact values, rewards in [0, 1] and the theorem's penalty."""
    processes = random_processes(tasks=1, states=3)
    reward = processes.reward - processes.reward.amin()
    processes = processes._replace(reward=reward / reward.amax(), running=torch.ones_like(processes.running))
    advantage = 1 / (1 - processes.discount)
    theory = BOMRLConstants(distance=distance, reward=1.0, advantage=advantage, discount=processes.discount, visits=1.0)
    penalty = theory.least_penalty
    theory = replace(theory, penalty=penalty)

    def value(flat: Tensor) -> Tensor:
        phi = flat.reshape(3, 3)
        values = exact.action_values(processes, phi.softmax(-1))
        return exact.returns(processes, SOLUTIONS[distance](penalty, phi, values).softmax(-1)).sum()

    for seed in range(5):
        flat = 2 * torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=F64)
        assert torch.func.grad(value)(flat).norm() <= theory.gradient_bound
        assert torch.linalg.matrix_norm(torch.func.jacrev(torch.func.grad(value))(flat), 2) <= min(theory.smoothness)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"discount": 1.0}, r"discount=1\.0: must be at least 0 and below 1"),
        ({"reward": 0.0}, r"reward=0\.0: must be a number more than 0"),
        ({"inner": 0}, "inner=0: must be an integer of at least 1"),
        ({"last_time": -1}, "last_time=-1: must be an integer of at least 0"),
        ({"inner_rate": 0.1}, r"inner_rate=0\.1: must be above 0 and at most 1 / eta_H = 0\.00382"),
    ],
)
def test_refusals_of_sgmrl(changes, words):
    with pytest.raises(ValueError, match=words):
        SGMRLConstants(**GIVEN | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distance": "D4"}, "distance='D4' is not known"),
        ({"visits": 0.0}, r"visits=0\.0: must be above 0 and at most 1"),
        ({"penalty": 1.0}, r"penalty=1\.0: the convergence theorem under D1 is for penalties of at least 2"),
        ({"distance": "D3", "penalty": 6.0}, r"penalty=6\.0: .* under D3 is for penalties above 6"),
    ],
)
def test_refusals_of_bomrl(changes, words):
    with pytest.raises(ValueError, match=words):
        BOMRLConstants(**{"distance": "D1", "reward": 1.0, "advantage": 1.0, "discount": 0.8, "visits": 0.1} | changes)


def test_what_is_right_in_print_is_equal():
    assert toy_variances(1.0, 2.0, 5).linearized == Constant(0.25 / 5 + 0.4, 0.25 / 5 + 0.4)
    assert toy_variances(1.0, 2.0, 5).pathwise == Constant(0.0, 0.0)
    two = replace(SGMRL, steps=2)
    assert two.smoothness == two.general_smoothness
