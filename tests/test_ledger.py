"""The ledger: what it says, and that what it says is so."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

import stochgraph as sg
from tests import problems
from tests.problems import F64, GRAPHS

INNER = {
    "SF": (sg.SF(), "once"),
    "LOO": (sg.LOO(), "once"),
    "Enumerate": (sg.Enumerate(), "once"),
    "MVD": (sg.MVD(), "once"),
    "LSF": (sg.LSF(), "linearized"),
    "Loaded DiCE": (sg.LoadedDiCE(), "linearized"),
    "Taylor": (sg.Taylor(), "linearized"),
    "MAML": (sg.MAML(), "dropped"),
    "EMAML": (sg.EMAML(), "scaled"),
    "SGMRLPublished": (sg.SGMRLPublished(), "twice"),
    "log, mean": (sg.Estimator("log", "mean"), "dropped"),
    "dice, none": (sg.Estimator("dice", "none"), "linearized"),
    "dice, scaled": (sg.Estimator("dice", "scaled"), "scaled"),
    "first order": (sg.FirstOrder(), "dropped"),
    "first order, cost": (sg.FirstOrder("cost"), "once"),
}


def rows(compiled, sample):
    return [row for row in compiled.explain().ledger if row.sample == sample]


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("make", [problems.bandit, problems.task_bandit, lambda: problems.mdp(m=1)])
def test_inner_samples_are_counted_as_the_estimator_says(name, make):
    estimator, word = INNER[name]
    graph = make()
    compiled = graph.compile(estimator)
    inner = next(sample for sample in graph.samples if sample.startswith("D"))
    assert [row.counted for row in rows(compiled, inner)] == [word]
    assert {row.counted for row in rows(compiled, "tau")} == {"once"}


@pytest.mark.parametrize("name", INNER)
def test_two_steps_have_a_row_per_sample_and_path(name):
    estimator, word = INNER[name]
    compiled = problems.bandit(2).compile(estimator)
    paths = {(row.sample, row.path[:-2], row.counted) for row in compiled.explain().ledger if row.sample}
    landmarks = {"theta", "D1", "theta'", "D2", "theta''", "tau"}
    found = {(s, tuple(n for n in path if n in landmarks), counted) for s, path, counted in paths}
    assert found == {
        ("D1", ("theta", "D1", "theta'", "theta''", "tau"), word),
        ("D1", ("theta", "D1", "theta'", "D2", "theta''", "tau"), word),
        ("D2", ("theta", "theta'", "D2", "theta''", "tau"), word),
        ("tau", ("theta", "theta'", "theta''", "tau"), "once"),
    }


def test_mixed_estimators_are_told_apart():
    compiled = problems.bandit(2).compile({"D1": sg.SF(), "D2": sg.MAML(), "tau": sg.SF()})
    assert {row.counted for row in rows(compiled, "D1")} == {"once"}
    assert {row.counted for row in rows(compiled, "D2")} == {"dropped"}
    assert not compiled.explain().unbiased


def test_a_linearised_path_through_a_dropped_distribution_is_dropped():
    compiled = problems.bandit(2).compile({"D1": sg.LSF(), "D2": sg.MAML(), "tau": sg.SF()})
    counted = {("D2" in row.path): row.counted for row in rows(compiled, "D1")}
    assert counted == {False: "linearized", True: "dropped"}


def test_first_order_drops_the_value_path():
    explanation = problems.bandit().compile(sg.FirstOrder("cost")).explain()
    values = [row for row in explanation.ledger if row.kind == "value"]
    assert [(row.update, row.counted) for row in values] == [("theta'", "dropped")]
    assert not explanation.unbiased
    assert explanation.bias == "O(1)"


def test_direct_routes():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=10)
        return sg.mean(x) ** 2 + sg.mean(x)

    assert sorted(r.counted for r in rows(objective.compile(sg.LSF()), "x")) == ["linearized", "once"]
    both = rows(objective.compile(sg.SF()), "x")
    assert [(row.counted, row.paths, row.variance) for row in both] == [("once", 2, "O(N)")]
    pathwise = rows(objective.compile(sg.PW()), "x")
    assert {(row.counted, row.kind) for row in pathwise} == {("once", "pathwise")}
    assert objective.compile(sg.PW()).explain().unbiased


def test_linear_routes_coincide():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return 2.0 - sg.mean(torch.exp(x)) / 3.0

    theta = torch.tensor(0.4, dtype=F64)
    for estimator in (sg.SF(), sg.LSF()):
        compiled = objective.compile(estimator)
        assert compiled.explain().unbiased
        assert compiled.explain().variance == "O(1/N)"
    first, second = (sg.verify(objective.compile(e), theta) for e in (sg.SF(), sg.LSF()))
    assert float(first.variance) == pytest.approx(float(second.variance), rel=1e-12)


def test_stop_cuts_pathwise_routes_only():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.mean(x) + sg.stop(sg.mean(x)) ** 2

    assert {r.counted for r in rows(objective.compile(sg.PW()), "x")} == {"once", "dropped"}
    assert {r.counted for r in rows(objective.compile(sg.SF()), "x")} == {"once"}


def test_a_declared_stop_is_no_dropped_path():
    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", Bernoulli, logits=theta, n=2)
        adapted = sg.ascend(theta, sg.mean(pulls * 1.0), 0.7)
        return theta * sg.stop(adapted) ** 2

    compiled = objective.compile(sg.SF())
    assert compiled.explain().unbiased
    assert sg.verify(compiled, torch.tensor(0.3, dtype=F64)).relative_bias < 1e-12


def test_a_step_size_has_no_part_in_the_direction():
    @sg.graph
    def objective(theta, rate):
        pulls = sg.sample("D", Bernoulli, logits=theta, n=2)
        adapted = sg.ascend(theta, sg.mean(pulls * 1.0), rate)
        return sg.sample("tau", Bernoulli, logits=adapted) * 1.0

    inputs = torch.tensor(0.3, dtype=F64), torch.tensor(0.7, dtype=F64)
    compiled = objective.compile(sg.FirstOrder(), wrt="rate")
    assert {(row.sample, row.kind) for row in compiled.explain().ledger} == {("tau", "distribution")}
    assert compiled.explain().unbiased
    assert sg.verify(compiled, *inputs).relative_bias < 1e-12
    both = objective.compile(sg.FirstOrder(), wrt=("theta", "rate")).explain()
    assert {row.path[0] for row in both.ledger if row.sample == "tau"} == {"theta", "rate"}
    assert not both.unbiased


def test_values_have_a_row_of_their_own():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, 0.0, 1.0, n=3) * theta)

    (row,) = objective.compile(sg.SF()).explain().ledger
    assert (row.sample, row.kind, row.path[0], row.counted) == ("", "value", "theta", "once")


@pytest.mark.parametrize("name", ["EMAML", "dice, scaled", "SGMRLPublished", "LSF", "SF", "MAML"])
def test_weights_are_exact(name):
    """How often the path through the update is counted, measured: the outcome is linear, so nothing is lost."""

    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", Bernoulli, logits=theta, n=2)
        adapted = sg.ascend(theta, sg.mean(pulls * 1.0), 0.7)
        return sg.apply(lambda t: 3.0 * t, adapted)

    theta = torch.tensor(0.3, dtype=F64)
    verified = {key: sg.verify(objective.compile(INNER[key][0]), theta) for key in ("MAML", "SF", name)}
    none, once, found = (float(verified[key].expectation) for key in ("MAML", "SF", name))
    (row,) = rows(objective.compile(INNER[name][0]), "D")
    expected = {"0": 0, "1": 1, "2": 2, "1/N(D)": 0.5, "1 + 1/N(D)": 1.5}[row.weight]
    assert (found - none) / (once - none) == pytest.approx(expected, abs=1e-12)


def test_a_single_draw_is_linearised_without_remedy():
    """Without a plate inside the update there is no mean that could grow."""

    @sg.graph
    def objective(theta):
        pull = sg.sample("D", Bernoulli, logits=theta)
        return sg.ascend(theta, pull * 1.0, 0.7) ** 2

    explanation = objective.compile(sg.LSF()).explain()
    assert (explanation.bias, explanation.ledger[0].plates) == ("O(1)", ())
    assert "in a single draw" in str(explanation)
    assert "at the mean over D1" in str(problems.bandit().compile(sg.LSF()).explain())


def test_samples_that_do_not_depend_on_the_input_are_named():
    text = str(problems.task_bandit().compile(sg.SF()).explain())
    assert "task: its distribution depends on no differentiated input" in text


def test_words():
    text = str(problems.bandit(2).compile(sg.SGMRLPublished()).explain())
    assert "counted twice" in text
    assert "theta → D1 → theta' → D2 → theta'' → tau → objective" in text
    assert "biased, O(1)" in text
    assert "unbiased" in str(problems.bandit(2).compile(sg.SF()).explain())


def test_dense_graphs_have_a_short_ledger():
    @sg.graph
    def objective(theta):
        draws = [sg.sample("x0", Bernoulli, logits=theta, n=2)]
        for t in range(1, 14):
            total = draws[0]
            for draw in draws[1:]:
                total = total + draw
            draws.append(sg.sample(f"x{t}", Bernoulli, logits=theta * total))
        return sg.mean(draws[-1])

    explanation = objective.compile(sg.SF()).explain()
    assert explanation.unbiased
    assert sum(row.paths for row in explanation.ledger if row.sample == "x0") == 2**12
    assert len(str(explanation).splitlines()) < 80


# What the ledger claims, measured exactly. SF and LSF on every graph; the rest where there is an update.
REFUSED = {"extreme": set(INNER) - {"SF"}, "nested update": {"LOO"}}
CLAIMS = [(graph, name) for graph in GRAPHS for name in INNER if name not in REFUSED.get(graph, ())]


@pytest.mark.parametrize(("graph", "name"), CLAIMS)
def test_unbiased_means_unbiased(graph, name):
    """An estimator that the ledger calls unbiased has no bias."""
    make, theta = GRAPHS[graph]
    compiled = make().compile(INNER[name][0])
    if compiled.explain().unbiased:
        assert sg.verify(compiled, theta).relative_bias < 1e-12


@pytest.mark.parametrize("name", [name for name in INNER if name not in ("SF", "LOO", "Enumerate", "MVD")])
@pytest.mark.parametrize("make", [problems.bandit, problems.mdp])
def test_biased_means_biased(name, make):
    compiled = make().compile(INNER[name][0])
    theta = problems.BANDIT_THETA if make is problems.bandit else problems.MDP_THETA
    assert not compiled.explain().unbiased
    assert sg.verify(compiled, theta).relative_bias > 1e-3


@pytest.mark.parametrize("name", INNER)
def test_order_of_the_bias(name):
    """Between 2 and 8 draws an O(1) bias stays; a linearised one falls at least as fast as 1/sqrt(N)."""
    compiled = problems.bandit().compile(INNER[name][0])
    few, many = (sg.verify(compiled, problems.BANDIT_THETA, sizes={"D1": n}).relative_bias for n in (2, 8))
    claimed = compiled.explain().bias
    if claimed == "0":
        assert max(few, many) < 1e-12
    elif claimed == "O(1/sqrt(N))":
        assert many < few / 2
    else:
        assert many > 0.5 * few


@pytest.mark.parametrize("name", INNER)
def test_order_of_the_variance(name):
    """The exact variance, the outcome being exact: O(N) grows in proportion, O(1/N) falls in proportion."""
    compiled = problems.regularized().compile(INNER[name][0])
    few, many = (sg.verify(compiled, problems.BANDIT_THETA, sizes={"D": n}).total_variance for n in (3, 9))
    if compiled.explain().variance == "O(N)":
        assert 2 < many / few < 4
    else:
        assert 0.25 < many / few < 0.45


def test_variance_of_a_sample_without_a_plate():
    @sg.graph
    def objective(theta):
        return sg.sample("x", Bernoulli, logits=theta) * 1.0

    assert objective.compile(sg.SF()).explain().variance == "O(1)"


def test_variance_of_a_draw_that_is_not_scored():
    """It depends on no input but through another draw; the estimate varies with it all the same."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=4)
        return sg.sample("y", Bernoulli, logits=2 * sg.mean(x) - 1) * sg.mean(x)

    assert objective.compile(sg.LOO()).explain().variance == "O(1)"


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LOO()])
def test_variance_of_a_sum_over_a_plate(estimator):
    @sg.graph
    def objective(theta):
        return sg.sum(sg.sample("x", Bernoulli, logits=theta, n=3), over="x")

    compiled, theta = objective.compile(estimator), torch.tensor(0.3, dtype=F64)
    assert compiled.explain().variance == "O(N)"
    few, many = (sg.verify(compiled, theta, sizes={"x": n}).total_variance for n in (3, 9))
    assert many / few == pytest.approx(3.0)


@pytest.mark.parametrize("total", [lambda x: sg.sum(x, over="x"), lambda x: sg.reduce(torch.sum, x)])
def test_variance_of_a_pathwise_sum_over_a_plate(total):
    """The derivative is a sum of N independent terms, so its variance is O(N); any other reduction may be a sum too."""

    @sg.graph
    def objective(scale):
        return total(sg.sample("x", Normal, 0.0, scale, n=5))

    compiled, scale = objective.compile(sg.PW()), torch.tensor(2.0, dtype=F64)
    trace = compiled.sample(scale)
    noise = trace.draws["x"] / scale
    assert torch.func.grad(compiled.surrogate)(scale, trace) == pytest.approx(float(noise.sum()), abs=1e-12)
    assert compiled.explain().variance == "O(N)"


@pytest.mark.parametrize("graph", GRAPHS)
def test_latex_is_balanced(graph):
    make, _ = GRAPHS[graph]
    text = make().compile(sg.SF()).explain().latex
    assert text.count("{") == text.count("}")
    assert text.count(r"\Big[") == text.count(r"\Big]")
    assert text.count("&") in (0, text.count(r"\\") + 1)


def test_latex_renders():
    """Every line of every formula is accepted by matplotlib's mathematics."""
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    for make in (problems.additive, problems.mdp, lambda: problems.bandit(2), problems.chain, problems.extreme):
        refused = make is problems.extreme
        others = [sg.LSF(control_variate=True), sg.LOO(), sg.LVC(), sg.LoadedDiCE(0.5, baseline=lambda trace: 0.1)]
        for estimator in [sg.SF(), sg.EMAML()] + ([] if refused else others):
            text = make().compile(estimator).explain().latex
            body = text.removeprefix(r"\begin{aligned}").removesuffix(r"\end{aligned}")
            for line in body.replace("&", "").split(r" \\ "):
                for missing, known in (
                    (r"\square", r"\Omega"),
                    (r"\Big[", "["),
                    (r"\Big]", "]"),
                    (r"\big", ""),
                    (r"\le ", r"\leq "),
                    (r"\ne ", r"\neq "),
                ):
                    line = line.replace(missing, known)
                parser.parse(f"${line}$")


def test_latex_of_the_two_ways():
    @sg.graph
    def objective(theta):
        return torch.exp(sg.mean(sg.sample("x", Normal, theta, 1.0, n=3)))

    box = r"\square\big("
    assert (
        rf"{box}\sum_{{i}} \log p(x_{{i}} \mid \theta)\big) \, \big(\exp(" in objective.compile(sg.SF()).explain().latex
    )
    assert (
        rf"\frac{{1}}{{N_{{i}}}}\sum_{{i}} {box}\log p(x_{{i}} \mid \theta)"
        in objective.compile(sg.LSF()).explain().latex
    )


def test_notebook_form():
    text = problems.bandit().compile(sg.MAML()).explain()._repr_markdown_()
    assert "| D1 |" in text
    assert "**dropped**" in text
    assert "$$" in text
