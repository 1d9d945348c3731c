"""Proofs by quadrature: exact on polynomials of Gaussians, honest about the rest, refused where there is no rule."""

import math
import re

import pytest
import torch
from torch.distributions import Bernoulli, Exponential, Gamma, Laplace, LogNormal, MultivariateNormal, Normal, Uniform

import stochgraph as sg
from tests.problems import F64

EXACT = 1e-10
SCALE, RATE = 0.5, 0.1


def real(*numbers):
    return torch.tensor(numbers if len(numbers) > 1 else numbers[0], dtype=F64)


@sg.graph
def cube(theta):
    return sg.mean(sg.sample("x", Normal, theta, 1.0, n=2)) ** 3


@sg.graph
def spread(theta):
    """Of a mean and a deviation."""
    x = sg.sample("x", Normal, theta[0], theta[1], n=2)
    return (sg.mean(x**2) - 1) ** 2


@sg.graph
def child(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=2)
    y = sg.sample("y", Normal, x, SCALE)
    return sg.mean(x) * sg.mean(x * y)


@sg.graph
def step(theta):
    """An inner update on two draws, and one draw from where it leads."""
    x = sg.sample("x", Normal, theta, 1.0, n=2)
    adapted = sg.ascend(theta, sg.mean(-((x - 1) ** 2)), RATE)
    return sg.sample("y", Normal, adapted, SCALE) ** 2


@sg.graph
def mixture(theta):
    """A discrete draw that a Gaussian one follows."""
    k = sg.sample("k", Bernoulli, logits=theta[0], n=2)
    return sg.mean(sg.sample("x", lambda k, mean: Normal(mean + k, 1.0), k, theta[1])) ** 2


def expected_cube(t):
    return t**3 + 3 * t / 2


def expected_spread(t):
    mean, deviation = t
    square = mean**2 + deviation**2
    return (2 * deviation**4 + 4 * mean**2 * deviation**2) / 2 + (square - 1) ** 2


def expected_child(t):
    return t**3 + 2 * t


def expected_step(t):
    """The direction is the mean of `-(x - 1)**2 (x - t)`."""
    away = t - 1
    return (t - 2 * RATE * away) ** 2 + RATE**2 * (15 + 14 * away**2 + away**4) / 2


def expected_step_along_the_draw(t):
    """The direction is the mean of `-2 (x - 1)`."""
    return (t - 2 * RATE * (t - 1)) ** 2


def expected_mixture(t):
    p = t[0].sigmoid()
    return (t[1] + p) ** 2 + (1 + p * (1 - p)) / 2


PROBLEMS = {
    "cube": (cube, real(0.3), expected_cube, expected_cube),
    "spread": (spread, real(0.3, 0.8), expected_spread, expected_spread),
    "child": (child, real(0.3), expected_child, expected_child),
    "step": (step, real(0.3), expected_step, expected_step_along_the_draw),
    "mixture": (mixture, real(0.3, -0.4), expected_mixture, expected_mixture),
}


def change(found: sg.Verification) -> float:
    assert found.quadrature is not None
    return found.quadrature.change


def disagreement(found: sg.Verification) -> float:
    assert found.quadrature is not None
    assert found.quadrature.disagreement is not None
    return found.quadrature.disagreement


def proved(graph, estimators, theta, expected, nodes=6, **options):
    """The verification, its truth compared with the closed form."""
    found = sg.verify(graph.compile(estimators), theta, quadrature=nodes, **options)
    truth = torch.func.grad(expected)(theta)
    assert (found.truth - truth).norm() < EXACT * truth.norm()
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_score_function_is_unbiased(name):
    graph, theta, expected, _ = PROBLEMS[name]
    found = proved(graph, sg.SF(), theta, expected)
    assert found.relative_bias < EXACT
    assert disagreement(found) < EXACT


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_pathwise_derivative_is_unbiased(name):
    graph, theta, _, expected = PROBLEMS[name]
    chosen = {s: sg.SF() if s == "k" else sg.PW() for s in graph.samples}
    assert proved(graph, chosen, theta, expected).relative_bias < EXACT


@pytest.mark.parametrize("name", ["cube", "spread", "child", "mixture"])
def test_leave_one_out_is_unbiased_where_no_later_draw_is_reweighted(name):
    graph, theta, expected, _ = PROBLEMS[name]
    assert proved(graph, sg.LOO(), theta, expected).relative_bias < EXACT


@pytest.mark.parametrize("name", ["cube", "spread"])
def test_second_derivatives(name):
    graph, theta, expected, _ = PROBLEMS[name]
    found = sg.verify(graph.compile(sg.SF()), theta, quadrature=8, order=2)
    truth = torch.func.hessian(expected)(theta)
    assert (found.truth - truth).norm() < EXACT * truth.norm()
    assert found.relative_bias < EXACT


def test_a_score_function_before_a_draw_that_moves():
    """The scored inner data move in the truth; the update takes its direction at fixed ones."""
    found = proved(step, {"x": sg.SF(), "y": sg.PW()}, real(0.3), expected_step)
    assert found.relative_bias < EXACT


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_bias_of_linearising_the_square_of_a_mean(n):
    r"""`E[2 m mean(x s)] = 2 theta (1 + 1/n)`: one part in n too much."""

    @sg.graph
    def square(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=n)) ** 2

    found = proved(square, sg.LSF(), real(0.3), lambda t: t**2 + 1 / n, nodes=4)
    assert float(found.expectation) == pytest.approx(2 * 0.3 * (1 + 1 / n), rel=EXACT)
    assert found.relative_bias == pytest.approx(1 / n, rel=EXACT)


def test_half_the_nodes_are_enough_for_half_the_degree():
    """The cube times its score has degree 4: 3 nodes are exact, and 6 change nothing; 2 of 4 are not."""
    theta = real(0.3)
    assert change(sg.verify(cube.compile(sg.SF()), theta, quadrature=6)) < EXACT
    assert change(sg.verify(cube.compile(sg.SF()), theta, quadrature=4)) > 0.1
    assert sg.verify(cube.compile(sg.SF()), theta, quadrature=4).relative_bias < EXACT


def test_what_is_no_polynomial_says_how_far_it_moves():
    """The mean of `cos(2 x)` is `cos(2 theta) / e**2`: the error is below the change that is stated."""

    @sg.graph
    def wave(theta):
        return torch.cos(2 * sg.sample("x", Normal, theta, 1.0))

    theta, errors, changes = real(0.3), [], []
    for nodes in (4, 8, 16):
        found = sg.verify(wave.compile(sg.SF()), theta, quadrature=nodes)
        truth = -2 * math.sin(0.6) * math.exp(-2)
        errors.append(max(abs(float(found.truth) / truth - 1), abs(float(found.expectation) / truth - 1)))
        changes.append(change(found))
    assert all(error < change for error, change in zip(errors, changes, strict=True))
    assert errors[0] > 0.1 > errors[1] > 1e-4 > errors[2]
    assert changes[0] > changes[1] > 0.1 > changes[2]


def test_ratios_of_later_draws_are_approximated():
    """The replays of leave-one-out reweight y: no polynomial, and the change from K // 2 to K says so."""
    coarse = sg.verify(step.compile(sg.LOO()), real(0.3), quadrature=6)
    assert coarse.relative_bias > 1e-3
    assert change(coarse) > coarse.relative_bias
    assert disagreement(coarse) < EXACT


def test_a_jump_is_seen_by_the_nodes_that_are_held():
    """Moving nodes step over a jump, as the pathwise derivative does: truth and estimate are wrong together."""

    @sg.graph
    def jump(theta):
        return sg.apply(lambda x: x + (x > 0).to(x), sg.sample("x", Normal, theta, 1.0))

    found = sg.verify(jump.compile(sg.PW()), real(0.3), quadrature=8)
    assert found.relative_bias < EXACT
    assert change(found) < EXACT
    assert disagreement(found) > 0.1


FAMILIES = {
    "Uniform": (lambda t: Uniform(t, t + 2.0), lambda t: (t + 1) ** 2 + 1 / 3, True),
    "Exponential": (lambda t: Exponential(t), lambda t: 2 / t**2, False),
    "MultivariateNormal": (
        lambda t: MultivariateNormal(torch.stack([t, 2 * t]), torch.eye(2, dtype=F64)),
        lambda t: 5 * t**2 + 2,
        False,
    ),
    "function of no parameter": (lambda t: Uniform(real(0.0), real(1.0)), lambda t: t / 3, False),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_noise(name):
    make, expected, moves = FAMILIES[name]

    @sg.graph
    def square(theta):
        x = sg.sample("x", make, theta)
        scale = theta if name == "function of no parameter" else 1.0
        return scale * sg.apply(lambda x: (x**2).sum(), x)

    theta = real(0.7)
    pathwise = name != "function of no parameter"
    found = proved(square, sg.PW() if pathwise else sg.SF(), theta, expected)
    assert found.relative_bias < EXACT
    assert found.quadrature is not None
    assert (found.quadrature.disagreement is None) == moves
    assert moves or disagreement(found) < EXACT


@pytest.mark.parametrize("law", [LogNormal, Laplace])
def test_what_is_smooth_converges(law):
    @sg.graph
    def square(theta):
        return sg.sample("x", law, theta, 0.5) ** 2

    errors = [sg.verify(square.compile(sg.SF()), real(0.3), quadrature=k).relative_bias for k in (8, 16, 32)]
    assert errors[0] > errors[1] > errors[2]


def test_what_it_prints():
    text = str(sg.verify(cube.compile(sg.SF()), real(0.3), quadrature=4))
    pattern = r"16 outcomes: .*, total variance .* \(4 nodes: .* from 2, .* from nodes that are held\)"
    assert re.search(pattern, text)


def test_discrete_graphs_have_no_nodes():
    @sg.graph
    def coins(logit):
        return sg.mean(sg.sample("x", Bernoulli, logits=logit, n=2)) ** 2

    one = sg.verify(coins.compile(sg.SF()), real(0.3), quadrature=8)
    assert one.quadrature is None
    assert one == sg.verify(coins.compile(sg.SF()), real(0.3))


def test_the_state_of_the_generator_stays():
    before = torch.get_rng_state()
    sg.verify(cube.compile(sg.SF()), real(0.3), quadrature=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_refused():
    @sg.graph
    def gamma(theta):
        return sg.sample("x", Gamma, theta, 1.0)

    with pytest.raises(sg.VerificationError, match=r"sample 'x' \(axes: none\): Gamma draws with noise that depends"):
        sg.verify(gamma.compile(sg.SF()), real(0.7), quadrature=4)
    with pytest.raises(sg.VerificationError, match=r"100 nodes for each of its 2 draws: 1 \* 100\*\*2 .* max_outcomes"):
        sg.verify(cube.compile(sg.SF()), real(0.7), quadrature=100, max_outcomes=1000)
    with pytest.raises(sg.VerificationError, match=r"verify\(quadrature=8\)"):
        sg.verify(cube.compile(sg.SF()), real(0.7))
    with pytest.raises(sg.VerificationError, match=r"'x' is pathwise.*verify\(quadrature=8\)"):
        sg.verify(cube.compile(sg.PW()), real(0.7))
    with pytest.raises(ValueError, match="quadrature=1: the number of nodes"):
        sg.verify(cube.compile(sg.SF()), real(0.7), quadrature=1)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_figures_come_in_the_dtype_of_the_inputs(dtype):
    @sg.graph
    def objective(logit):
        x = sg.sample("x", Normal, logit, 1.0, n=1)
        return sg.mean(x) * sg.mean(sg.sample("coin", Bernoulli, logits=logit, n=1))

    logit = torch.tensor(0.3, dtype=dtype)
    found = sg.verify(objective.compile({"x": sg.SF(), "coin": sg.DisARM()}), logit, quadrature=4)
    assert {found.truth.dtype, found.expectation.dtype, found.variance.dtype} == {dtype}
