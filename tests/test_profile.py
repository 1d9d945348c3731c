"""Monte Carlo profiles: the figures against closed forms, what they refer to, and how they are shown.

Six comparisons here are random: z-tests at |z| < 5, each of which fails by chance with probability 5.8e-7 at most, so
3.5e-6 together. Seeds are fixed; the rate says how surprising a failure would be after a change of torch's streams.
"""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import stochgraph as sg
from stochgraph.prove.profile_picture import ERRORS, mse_at, times
from stochgraph.prove.profiling import Figures
from tests.problems import F64

MOST = 5.0
THETA = torch.tensor(0.3, dtype=F64)
N, SIGMA, REPEATS = 10, 0.7, 600


@sg.graph
def square(theta):
    """f(m) = -(m - 1)^2."""
    return -((sg.mean(sg.sample("x", Normal, theta, 1.0, n=N)) - 1.0) ** 2)


@sg.graph
def identity(theta):
    """f(m) = m behind a function that the compiler does not see through."""
    return sg.apply(lambda m: m, sg.mean(sg.sample("x", Normal, theta, SIGMA, n=3)))


def seed(number=0):
    return torch.Generator().manual_seed(number)


def estimators(graph, *names):
    return {name: graph.compile(getattr(sg, name)()) for name in names}


@pytest.fixture(scope="module")
def of_the_square():
    compiled = estimators(square, "SF", "LSF", "PW")
    truth = torch.tensor(-2 * (0.3 - 1), dtype=F64)
    return sg.profile(compiled, THETA, repeats=REPEATS, truth=truth, generator=seed())


@pytest.mark.parametrize(("name", "bias"), [("SF", 0.0), ("LSF", -2 * 0.3 / N), ("PW", 0.0)])
def test_means(of_the_square, name, bias):
    found = of_the_square[name]
    assert found.mean.shape == found.standard_error.shape == (1,)
    assert abs(float(found.mean) - (1.4 + bias)) < MOST * float(found.standard_error)


def test_the_variance_of_a_normal_estimate(of_the_square):
    """The pathwise estimate -2 (m - 1) is normal with variance 4/N, so its sample variance is chi-square."""
    found = of_the_square["PW"].variance / (4 / N)
    assert abs(found - 1) < MOST * math.sqrt(2 / (REPEATS - 1))
    assert float(of_the_square["PW"].standard_error) == pytest.approx(math.sqrt(of_the_square["PW"].variance / REPEATS))


@pytest.mark.parametrize("name", ["SF", "LSF"])
def test_variances(name):
    """The variance from theory; the error of a sample variance from exact fourth moments, by quadrature."""
    nodes, weights = (torch.tensor(each, dtype=F64) for each in np.polynomial.hermite_e.hermegauss(8))
    noise = torch.cartesian_prod(*[nodes] * 3)
    weight = torch.cartesian_prod(*[weights / weights.sum()] * 3).prod(1)
    x, score = THETA + SIGMA * noise, noise / SIGMA
    estimate = x.mean(1) * score.sum(1) if name == "SF" else (x * score).mean(1)
    second, fourth = ((weight * (estimate - 1) ** power).sum() for power in (2, 4))
    theory = {"SF": 0.3**2 * 3 / SIGMA**2 + 2, "LSF": 0.3**2 / (SIGMA**2 * 3) + 2 / 3}
    assert float(second) == pytest.approx(theory[name], abs=1e-12)
    error = float(torch.sqrt((fourth - second**2) / 1000))
    found = sg.profile(estimators(identity, name), THETA, repeats=1000, generator=seed(1))[name]
    assert abs(found.variance - float(second)) < MOST * error


def test_figures_fit_together(of_the_square):
    """Mean squared error = variance + squared bias, up to the divisor of the variance: exact on the same samples."""
    assert of_the_square.truth.tolist() == [1.4]
    for found in of_the_square.figures.values():
        assert found.bias == pytest.approx(abs(float(found.mean) - 1.4), abs=1e-15)
        assert found.bias_error == pytest.approx(float(found.standard_error), abs=1e-15)
        within = found.variance * (REPEATS - 1) / REPEATS
        assert found.mse == pytest.approx(within + found.bias**2, rel=1e-12)
        assert 1e-6 < found.seconds < 1
        squared_bias = max(found.mse - found.variance, 0)
        assert found.mse_per_second == pytest.approx(squared_bias + found.variance * found.seconds, rel=1e-12)
    assert of_the_square["SF"].variance > 10 * of_the_square["LSF"].variance > of_the_square["PW"].variance


def test_an_error_of_the_reference_is_no_bias(of_the_square):
    """A bias within its standard error, the reference's part included, does not count at one second."""
    found = replace(of_the_square["LSF"], unbiased=False)
    noisy = replace(found, bias=9.9, bias_error=10.0)
    assert noisy.mse_per_second == found.variance * found.seconds
    plain = replace(found, bias=10.0, bias_error=6.0)
    assert plain.mse_per_second == pytest.approx(64 + found.variance * found.seconds)


def test_how_well_a_squared_bias_is_known(of_the_square):
    """The variance of (b + s z)**2 for a normal z, whose moments are 1 and 3; nothing where the ledger says no bias."""
    found = replace(of_the_square["LSF"], unbiased=False, bias=10.0, bias_error=6.0)
    b, s = 8.0, 6.0
    variance = (b**4 + 6 * b**2 * s**2 + 3 * s**4) - (b**2 + s**2) ** 2
    assert found.mse_per_second_error == pytest.approx(variance**0.5, rel=1e-12)
    assert replace(found, unbiased=True).mse_per_second_error == 0.0
    assert f"| {found.mse_per_second_error:.2g} |" in replace(of_the_square, figures={"LSF": found}).to_markdown()


def test_every_estimate_is_one_of_value_and_grad():
    """Figures of ten estimates, from the estimates themselves: one call of each to begin with, then ten in turn."""
    compiled = estimators(square, "SF", "PW")
    found = sg.profile(compiled, THETA, repeats=10, truth=1.4, generator=seed(2), sizes={"x": 4})
    generator = seed(2)
    rounds = [
        [float(one.value_and_grad(THETA, generator=generator, sizes={"x": 4})[1]) for one in compiled.values()]
        for _ in range(11)
    ]
    for i, name in enumerate(compiled):
        estimates = torch.tensor([row[i] for row in rounds[1:]], dtype=F64)
        assert float(found[name].mean) == pytest.approx(float(estimates.mean()), abs=1e-14)
        assert found[name].variance == pytest.approx(float(estimates.var()), abs=1e-13)
        assert found[name].mse == pytest.approx(float(((estimates - 1.4) ** 2).mean()), abs=1e-13)


def test_estimates_may_be_pytrees():
    @sg.graph
    def objective(parameters):
        x = sg.sample("x", Normal, parameters["mean"], torch.exp(parameters["log_std"]), n=3)
        return sg.mean((x**2).sum())

    parameters = {"mean": torch.tensor([0.5, -0.2], dtype=F64), "log_std": torch.tensor(0.1, dtype=F64)}
    variance = math.exp(0.2)
    truth = {"mean": 2 * parameters["mean"], "log_std": torch.tensor(4 * variance, dtype=F64)}
    found = sg.profile(estimators(objective, "PW"), parameters, repeats=20, truth=truth, generator=seed())
    expected = torch.cat([leaf.reshape(-1) for leaf in torch.utils._pytree.tree_leaves(truth)])
    torch.testing.assert_close(found.truth, expected)
    assert found["PW"].mean.shape == found["PW"].standard_error.shape == (3,)
    assert found["PW"].bias == pytest.approx(float((found["PW"].mean - expected).norm()), abs=1e-14)
    assert found["PW"].bias_error == pytest.approx(float(found["PW"].standard_error.norm()), abs=1e-14)
    assert found["PW"].mse == pytest.approx(found["PW"].variance * 19 / 20 + found["PW"].bias ** 2, rel=1e-12)


def test_parameters_without_a_gradient():
    """Integers among the parameters have none: neither estimates nor the truth say anything of them."""

    @sg.graph
    def objective(parameters):
        return sg.mean(sg.sample("x", Normal, parameters["mean"], 1.0, n=3) * parameters["count"])

    parameters = {"count": torch.tensor(2), "mean": torch.tensor(0.5, dtype=F64)}
    truth = {"count": None, "mean": torch.tensor(2.0, dtype=F64)}
    found = sg.profile(estimators(objective, "PW"), parameters, repeats=2, truth=truth)["PW"]
    assert found.mean.tolist() == [2.0]
    assert (found.bias, found.mse) == (0.0, 0.0)


def test_the_default_truth_is_the_steadiest_unbiased_estimator():
    found = sg.profile(estimators(square, "LSF", "SF", "PW"), THETA, repeats=20, generator=seed())
    assert found.reference == "the mean of PW, which is unbiased"
    torch.testing.assert_close(found.truth, found["PW"].mean, rtol=0.0, atol=0.0)
    assert found["PW"].bias == 0
    assert found["LSF"].bias == pytest.approx(abs(float(found["LSF"].mean - found["PW"].mean)), abs=1e-15)
    without = sg.profile(estimators(square, "SF", "LSF"), THETA, repeats=20, generator=seed())
    assert without.reference == "the mean of SF, which is unbiased"


def test_without_any_truth_there_is_no_bias():
    found = sg.profile(estimators(square, "LSF"), THETA, repeats=5, generator=seed())
    assert found.truth is None
    assert "no estimator is unbiased and no truth was given" in found.reference
    assert all(math.isnan(figure) for figure in (found["LSF"].bias, found["LSF"].mse))
    assert found["LSF"].variance > 0
    assert "nan" in found.to_markdown()
    found.plot().savefig(io.BytesIO(), format="png")


def test_the_table(of_the_square):
    lines = of_the_square.to_markdown().splitlines()
    assert lines[0].startswith("| estimator | bias | ± | refuted | variance | MSE |")
    columns = lines[0].count("|")
    assert [line.count("|") for line in lines[1:5]] == [columns] * 4
    assert set(lines[1]) == {"|", "-"}
    for line, (name, figures) in zip(lines[2:5], of_the_square.figures.items(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == name
        expected = [figures.bias, figures.bias_error, figures.variance, figures.mse, 1e3 * figures.seconds]
        assert [float(cell) for cell in (*cells[1:3], *cells[4:7])] == pytest.approx(expected, rel=0.05)
        assert cells[3] == "no" or cells[3] == f"after {figures.evidence.after}"
    assert lines[-1].startswith("600 estimates each; bias and MSE against the given truth. MSE at one second: ")
    assert str(of_the_square) == of_the_square._repr_markdown_() == of_the_square.to_markdown()


def test_the_error_of_the_variance():
    """From the estimates themselves."""
    values = [float(square.compile(sg.PW()).value_and_grad(THETA, generator=g)[1]) for g in [seed(3)] * 11][1:]
    measured = sg.profile(estimators(square, "PW"), THETA, repeats=10, truth=1.4, generator=seed(3))["PW"]
    squares = (torch.tensor(values, dtype=F64) - sum(values) / 10) ** 2
    assert measured.variance_error == pytest.approx(float(squares.std()) / math.sqrt(10), rel=1e-12)


def figures_of(bias=0.5, bias_error=0.1, variance=4.0, variance_error=0.1, seconds=1e-3, unbiased=False):
    some = torch.zeros(1)
    return Figures(some, some, variance, bias, bias_error, variance + bias**2, seconds, unbiased, variance_error)


def panels(**made):
    figure = sg.Profile(made, torch.zeros(1), "the given truth", 9).plot()
    figure.savefig(picture := io.BytesIO(), format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
    return figure.axes


def test_the_plot(of_the_square):
    figure = of_the_square.plot()
    assert isinstance(figure, pytest.importorskip("matplotlib.figure").Figure)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["mean squared error of the mean of all estimates", "bias", "variance"]
    names = list(of_the_square.figures)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == names
    for axes in figure.axes[1:]:
        assert [label.get_text() for label in axes.get_xticklabels()] == names


def test_the_error_falls_with_time_to_the_squared_bias():
    measured = figures_of(bias=0.5, bias_error=0.03, variance=4.0, variance_error=0.2)
    seconds = torch.tensor([0.0005, 0.001, 0.01, 100.0]).numpy()
    value, error = mse_at(measured, seconds)
    known = 0.5**2 - 0.03**2
    expected = [known + 4.0 / count for count in (1, 10, 100_000)]
    assert math.isnan(value[0])  # there is no time for one estimate
    assert list(value[1:]) == pytest.approx(expected, rel=1e-6)
    spread = measured.mse_per_second_error
    assert list(error[1:]) == pytest.approx([math.hypot(spread, 0.2 / count) for count in (1, 10, 100_000)], rel=1e-6)


def test_a_curve_stops_where_it_is_below_its_error():
    vague = figures_of(bias=0.1, bias_error=0.09)
    seconds = times({"vague": vague})
    value, error = mse_at(vague, seconds)
    known = ~torch.tensor(value).isnan().numpy()
    assert 0 < known.sum() < len(seconds)
    assert (ERRORS * error[known] < value[known]).all()
    assert known[: known.sum()].all()  # from the first estimate on, in one piece
    exact, _ = mse_at(figures_of(unbiased=True), seconds)
    assert list(exact) == pytest.approx(list(4.0 * 1e-3 / seconds), rel=1e-12)


def test_a_bias_below_its_error_is_a_bound():
    _, biases, _ = panels(clear=figures_of(), vague=figures_of(bias=0.1, bias_error=0.09), SF=figures_of(unbiased=True))
    texts = [text.get_text() for text in biases.texts]
    assert texts == ["at most", "0\n(ledger)"]
    markers = {line.get_marker(): line.get_ydata()[0] for line in biases.lines if line.get_marker() in "ov"}
    assert markers == {"o": 0.5, "v": pytest.approx(0.1 + 2 * 0.09)}


def test_without_a_truth_nothing_is_drawn_of_bias():
    nan = float("nan")
    curves, biases, variances = panels(LSF=figures_of(bias=nan, bias_error=0.1))
    assert [text.get_text() for text in curves.texts] == ["not known"]
    assert [text.get_text() for text in biases.texts] == ["not\nknown"]
    assert [len(line.get_ydata()) for line in curves.lines] == [0]
    assert not biases.lines
    assert variances.lines


def test_a_curve_that_is_nowhere_known_is_named() -> None:
    curves, _, _ = panels(SF=figures_of(unbiased=True), LSF=figures_of(bias=0.2, bias_error=0.09, variance=0.001))
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["SF", "LSF: not known"]


def test_small_variances_do_not_vanish():
    _, _, variances = panels(SF=figures_of(variance=40.0), LSF=figures_of(variance=1.0))
    assert variances.get_yscale() == "log"
    _, _, variances = panels(SF=figures_of(variance=40.0), LSF=figures_of(variance=0.0, variance_error=0.0))
    assert variances.get_yscale() == "linear"  # zero has no logarithm


@pytest.mark.parametrize("repeats", [1, 0, -1])
def test_too_few_repeats(repeats):
    with pytest.raises(ValueError, match=f"at least one estimator and two repeats, got 1 and {repeats}"):
        sg.profile(estimators(square, "SF"), THETA, repeats=repeats)


def test_no_estimators():
    with pytest.raises(ValueError, match="at least one estimator and two repeats, got 0 and 1000"):
        sg.profile({}, THETA)


def test_a_truth_of_another_size_is_refused():
    """It would be broadcast over the coordinates of the estimate."""

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=3).sum())

    with pytest.raises(ValueError, match="truth"):
        sg.profile(estimators(objective, "PW"), torch.zeros(3), repeats=2, truth=torch.tensor(1.0))
