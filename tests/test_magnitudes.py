"""How much every group of the ledger's rows gives: the vectors sum to the gradient, and each is what it says."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

import stochgraph as sg
from stochgraph.explain.magnitudes import _figures, _Moments
from stochgraph.run.contributions import Contributions
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, GRAPHS, LATENT_THETA

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
RATE = 0.7
ESTIMATORS = {
    "SF": sg.SF(),
    "SF, critic": sg.SF(baseline=lambda trace: torch.tensor(0.3, dtype=F64)),
    "LSF": sg.LSF(),
    "LOO": sg.LOO(),
    "LoadedDiCE": sg.LoadedDiCE(0.5),
    "Taylor": sg.Taylor(),
    "MAML": sg.MAML(),
    "EMAML": sg.EMAML(),
    "SGMRLPublished": sg.SGMRLPublished(),
    "FirstOrder": sg.FirstOrder(),
    "Enumerate": sg.Enumerate(),
    "MVD": sg.MVD(),
}
REFUSED = {"extreme": set(ESTIMATORS) - {"SF", "SF, critic", "Enumerate", "MVD"}, "nested update": {"LOO"}}
CASES = [(graph, name) for graph in GRAPHS for name in ESTIMATORS if name not in REFUSED.get(graph, ())]
# One inner step of a bandit, the problem of the page on choosing an estimator.
PAY = torch.tensor([0.1, 1.0, -0.6], dtype=F64)
PAY_THETA = torch.tensor([0.3, -0.2, 0.1], dtype=F64)


@sg.graph
def adapted_pay(theta):
    pulls = sg.sample("D", Categorical, logits=theta, n=2)
    adapted = sg.ascend(theta, sg.mean(sg.apply(lambda a: PAY[a], pulls)), lr=RATE)
    return sg.mean(sg.apply(lambda a: PAY[a], sg.sample("tau", Categorical, logits=adapted, n=2)))


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def vectors(compiled: sg.Compiled, theta: Tensor, trace: Any) -> dict[tuple[str, str], Tensor]:
    """What every source gives for one trace, by sample and update."""
    found = Contributions(compiled).of(lambda v: [v.reshape(theta.shape)], theta.flatten(), trace)
    return {(source.sample, source.update): vector for source, vector in found.items()}


@pytest.mark.parametrize(("graph", "name"), CASES)
def test_vectors_sum_to_the_gradient_on_every_trace(graph, name):
    make, theta = GRAPHS[graph]
    compiled = make().compile(ESTIMATORS[name])
    trace = compiled.sample(theta, generator=seed(1))
    gradient = torch.func.grad(compiled.surrogate)(theta, trace)
    found = vectors(compiled, theta, trace)
    torch.testing.assert_close(sum(found.values()), gradient.flatten(), **EXACT)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ["SF", "LSF"])
def test_expectations_sum_to_that_of_the_estimate(graph, name):
    make, theta = GRAPHS[graph]
    verified = sg.verify(make().compile(ESTIMATORS[name if graph != "extreme" else "SF"]), theta)
    rows: Any = verified.rows
    torch.testing.assert_close(sum(row.expectation for row in rows), verified.expectation, **EXACT)
    assert sum(row.variance_share for row in rows) == pytest.approx(1.0, abs=1e-10)
    if verified.relative_bias < 1e-12:
        along = sum((row.cosine or 0.0) * row.share for row in rows)
        assert along == pytest.approx(1.0, abs=1e-10)


def log_prob(theta: Tensor, draws: Tensor) -> Tensor:
    return theta.log_softmax(-1)[draws]


def step(theta: Tensor, pulls: Tensor) -> Tensor:
    """The direction of the inner step at fixed draws."""
    return torch.func.grad(lambda t: (log_prob(t, pulls) * BANDIT_REWARD[pulls]).mean())(theta)


def outer(theta: Tensor, pulls: Tensor, last: Tensor) -> Tensor:
    """The gradient with respect to the adapted parameters."""
    adapted = theta + RATE * step(theta, pulls)
    score = torch.func.grad(lambda t: log_prob(t, last).sum())(adapted)
    return BANDIT_REWARD[last].mean() * score


@pytest.mark.parametrize("seed_of_draws", range(3))
def test_a_bandits_groups_by_hand(seed_of_draws):
    """Both estimators differ in what the pulls give, and in nothing else."""
    theta, graph = BANDIT_THETA, problems.bandit(1, n=3)
    trace = graph.compile(sg.SF()).sample(theta, generator=seed(seed_of_draws))
    pulls, last = trace.draws["D1"], trace.draws["tau"]
    after = outer(theta, pulls, last)
    hessian = torch.func.jacrev(lambda t: step(t, pulls))(theta)
    scores = torch.stack([torch.func.grad(log_prob)(theta, pull) for pull in pulls])
    shared = {("tau", ""): after, ("", "theta'"): RATE * hessian @ after}
    sf = {("D1", ""): BANDIT_REWARD[last].mean() * scores.sum(0)}
    lsf = {("D1", ""): RATE * (BANDIT_REWARD[pulls][:, None] * scores * (scores @ after)[:, None]).mean(0)}
    for estimator, own in ((sg.SF(), sf), (sg.LSF(), lsf)):
        compiled = graph.compile({"D1": estimator, "tau": sg.SF()})
        found = vectors(compiled, theta, trace)
        for key, vector in {**shared, **own}.items():
            torch.testing.assert_close(found[key], vector, **EXACT)
        torch.testing.assert_close(found["", ""], torch.zeros(3, dtype=F64), **EXACT)


@pytest.mark.parametrize("seed_of_draws", range(3))
def test_a_chain_of_latents_by_hand(seed_of_draws):
    theta, graph = LATENT_THETA, problems.chain()
    compiled = graph.compile(sg.SF())
    trace = compiled.sample(theta, generator=seed(seed_of_draws))
    x, y, z = (trace.draws[name] for name in "xyz")

    def value(t: Tensor) -> Tensor:
        return ((x * y + z).mean() - t[1]) ** 2 + torch.exp(y * t[0]).mean() * z.mean()

    def scores(t: Tensor) -> dict[str, Tensor]:
        logits = {"x": t[0].expand(2), "y": t[1] * x + t[0], "z": t[2] * y - t[1] * x}
        return {s: Bernoulli(logits=logits[s]).log_prob(trace.draws[s]).sum() for s in "xyz"}

    found = vectors(compiled, theta, trace)
    torch.testing.assert_close(found["", ""], torch.func.grad(value)(theta), **EXACT)
    for s in "xyz":
        score = torch.func.grad(lambda t, s=s: scores(t)[s])(theta)
        torch.testing.assert_close(found[s, ""], value(theta) * score, **EXACT)


def test_a_pathwise_draw_in_an_update_by_hand():
    """The draw moves with the parameters in the inner objective too: its first derivative squared, and its second."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta[0], torch.exp(theta[1]), n=3)
        adapted = sg.ascend(theta, sg.mean(torch.sin(x)), RATE)
        return sg.apply(lambda t: torch.cos(t).sum(), adapted)

    theta = torch.tensor([0.4, -0.3], dtype=F64)
    compiled = objective.compile(sg.PW())
    trace = compiled.sample(theta, generator=seed())
    noise = (trace.draws["x"] - theta[0]) / theta[1].exp()
    x = trace.draws["x"]
    first = torch.stack([torch.ones(3, dtype=F64), theta[1].exp() * noise], 1)  # (draws, P)
    second = torch.zeros(3, 2, 2, dtype=F64)
    second[:, 1, 1] = theta[1].exp() * noise
    after = -torch.sin(theta + RATE * (torch.cos(x)[:, None] * first).mean(0))
    by_draw = RATE * (-torch.sin(x)[:, None] * first * (first @ after)[:, None]).mean(0)
    by_value = RATE * (torch.cos(x)[:, None] * (second @ after)).mean(0)
    found = vectors(compiled, theta, trace)
    for key, vector in {("x", ""): by_draw, ("", "theta'"): by_value, ("", ""): after}.items():
        torch.testing.assert_close(found[key], vector, **EXACT)


def test_shares_of_an_adapted_pay():
    """The figures of the specification: 12.5, 2.3 and 94.9 % of the truth."""
    rows: Any = sg.verify(adapted_pay.compile(sg.SF()), PAY_THETA).rows
    shares = {(row.sample, row.update): round(100 * row.share, 1) for row in rows}
    assert shares == {("D", ""): 12.5, ("tau", ""): 94.9, ("", "theta'"): 2.3}
    assert all(row.counted == "once" and row.missing is None and not row.errors for row in rows)


@pytest.mark.parametrize(
    ("estimator", "word"), [(sg.MAML(), "dropped"), (sg.EMAML(), "scaled"), (sg.SGMRLPublished(), "twice")]
)
def test_what_is_missing_is_the_bias(estimator, word):
    verified = sg.verify(adapted_pay.compile({"D": estimator, "tau": sg.SF()}), PAY_THETA)
    (row,) = [row for row in verified.rows if row.sample == "D"]
    assert row.counted == word
    torch.testing.assert_close(row.missing, -verified.bias, **EXACT)
    assert row.missing_share == pytest.approx(verified.relative_bias, abs=1e-12)


def test_a_constant_direction_is_missing():
    verified = sg.verify(adapted_pay.compile(sg.FirstOrder("cost")), PAY_THETA)
    rows: Any = verified.rows
    (row,) = [row for row in rows if row.update]
    assert (row.counted, row.share, row.cosine) == ("dropped", 0.0, None)
    assert round(100 * row.missing_share, 1) == 2.3


def test_dropped_rows_are_a_group_of_their_own():
    compiled = problems.bandit(2).compile({"D1": sg.LSF(), "D2": sg.MAML(), "tau": sg.SF()})
    rows = [row for row in sg.verify(compiled, BANDIT_THETA).rows if row.sample == "D1"]
    assert [(row.counted, row.size > 0) for row in rows] == [("linearized", True), ("dropped", False)]
    torch.testing.assert_close(rows[0].missing, rows[1].missing, **EXACT)


def test_a_truth_of_zero_has_sizes():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        return sg.mean((x - 0.5) ** 2)

    (row,) = sg.verify(objective.compile(sg.SF()), torch.tensor(0.3, dtype=F64)).rows
    assert (row.share, row.cosine) == (None, None)
    assert row.size < 1e-15
    assert row.variance_share == pytest.approx(1.0)


def test_other_orders_and_hand_written_surrogates_have_no_rows():
    compiled = adapted_pay.compile(sg.SF())
    assert sg.verify(compiled, PAY_THETA, order=2).rows == ()
    assert sg.verify(compiled, PAY_THETA, surrogate=compiled.surrogate).rows == ()


def test_trees_and_several_inputs():
    @sg.graph
    def objective(theta, shift):
        x = sg.sample("x", Bernoulli, logits=theta["w"] + theta["b"], n=2)
        return sg.mean(x * shift) ** 2

    inputs = {"w": torch.tensor(0.3, dtype=F64), "b": torch.tensor(-0.1, dtype=F64)}, torch.tensor(0.7, dtype=F64)
    verified = sg.verify(objective.compile(sg.LSF(), wrt=("theta", "shift")), *inputs)
    draws, values = verified.rows
    assert draws.sample == "x"
    assert float(draws.expectation[1]) == 0.0
    torch.testing.assert_close(values.expectation[1], verified.truth[1], **EXACT)
    assert float(values.expectation[0]["w"]) == 0.0
    torch.testing.assert_close(draws.expectation[0]["w"], verified.expectation[0]["w"], **EXACT)


@pytest.mark.parametrize("estimator", [sg.LOO(), sg.MAML()], ids=["LOO", "MAML"])
def test_sampled_figures_agree_with_the_exact_ones(estimator):
    """Some 40 figures within 5 of their standard errors: with another seed it would fail once in 40,000 times."""
    compiled = adapted_pay.compile({"D": estimator, "tau": sg.SF()})
    exact = sg.verify(compiled, PAY_THETA).rows
    found = compiled.explain(PAY_THETA, repeats=60, generator=seed()).rows
    for one, other in zip(found, exact, strict=True):
        assert one.counted == other.counted
        for name in ("size", "share", "cosine", "variance_share", "missing_share"):
            sampled, true = getattr(one, name), getattr(other, name)
            assert (sampled is None) == (true is None)
            if true is not None:
                assert abs(sampled - true) <= 5 * one.errors[name] + 1e-12
        assert bool(((one.expectation - other.expectation).abs() <= 5 * one.errors["expectation"] + 1e-12).all())


def test_sampled_figures_are_those_of_the_draws():
    """A group that is all of the gradient. Its size is that of the mean, less what the error of the mean explains."""

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=2)) ** 2

    compiled = objective.compile(sg.PW())
    theta = torch.tensor(2.0, dtype=F64)
    (row,) = compiled.explain(theta, repeats=20, generator=seed()).rows
    generator = seed()
    drawn = torch.stack([compiled.value_and_grad(theta, generator=generator)[1] for _ in range(20)])
    torch.testing.assert_close(row.expectation, drawn.mean(), **EXACT)
    assert float(row.errors["expectation"]) == pytest.approx(float(drawn.std()) / math.sqrt(20))
    assert row.size**2 == pytest.approx(float(drawn.mean() ** 2 - drawn.var() / 20))
    for figure in ("share", "cosine", "variance_share"):
        assert getattr(row, figure) == pytest.approx(1.0)
        assert row.errors[figure] == pytest.approx(0.0, abs=1e-12)


def test_noise_does_not_pass_for_size():
    """Over all pairs of draws the squares of the norms are those of the expectations."""
    probability = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    own, truth, missing = torch.randn(3, 3, 2, dtype=F64, generator=seed())
    exact = _figures(_Moments.of(own, own, truth, missing).weighted(probability), 0.0)
    found = {"size": 0.0, "norm": 0.0}
    for i, j in itertools.product(range(3), repeat=2):
        pair = _Moments.of(*(x[[i, j]] for x in (own, own, truth, missing)))
        figures = _figures(pair.weighted(torch.full((2,), 0.5, dtype=F64)), 0.5)
        found = {name: found[name] + float(probability[i] * probability[j] * figures[name]) for name in found}
    assert found == {name: pytest.approx(float(exact[name]), rel=1e-12) for name in found}


def test_what_cannot_be_listed_is_sampled():
    compiled = adapted_pay.compile(sg.SF())
    rows = compiled.explain(PAY_THETA, sizes={"D": 2}, max_outcomes=81).rows
    assert all(not row.errors for row in rows)
    with pytest.raises(ValueError, match="repeats=2, errors need at least three draws"):
        compiled.explain(PAY_THETA, repeats=2)


def test_a_profile_has_the_rows():
    compiled = adapted_pay.compile({"D": sg.MAML(), "tau": sg.SF()})
    truth = sg.verify(compiled, PAY_THETA).truth
    profile = sg.profile({"MAML": compiled}, PAY_THETA, repeats=10, truth=truth, generator=seed())
    rows = profile["MAML"].rows
    assert [(row.sample, row.counted) for row in rows] == [("D", "dropped"), ("tau", "once"), ("", "once")]
    assert rows[1].share == pytest.approx(rows[1].size / float(truth.norm()))
    assert rows[1].errors["share"] > 0.0


def test_the_ledger_shows_the_shares():
    text = str(adapted_pay.compile({"D": sg.MAML(), "tau": sg.SF()}).explain(PAY_THETA))
    assert "dropped  0.0 %   not counted: the estimate ignores this path; 12.5 % missing" in text
    assert "once     94.9 %  counted exactly once" in text
    assert "exact; as vectors they sum to the estimate's mean" in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_ledger_is_as_wide_as_the_terminal(width, monkeypatch):
    compiled = problems.bandit(3).compile({"D1": sg.LSF(), "D2": sg.MAML(), "D3": sg.SF(), "tau": sg.SF()})
    whole = str(compiled.explain())
    assert max(map(len, whole.splitlines())) > 120
    monkeypatch.setenv("COLUMNS", str(width))
    text = str(compiled.explain())
    assert max(map(len, text.splitlines())) <= width
    words = {word for word in text.split() if not word.startswith("--")}
    assert words == {word for word in whole.split() if not word.startswith("--")}
