"""Functions of expectations: the truth of one draw, the bias of every estimator against it, and what is refused."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

import stochgraph as sg
from tests.problems import BANDIT_REWARD, BANDIT_THETA, DISCOUNT, F64, MDP_THETA, TASK_REWARD, TwoStateMDP

RATE = 0.7


def bandit(steps=1, n=2, word=sg.expect, sampled=False):
    """Inner steps on a softmax bandit, on its expected pay or on the mean of n pulls."""

    @sg.graph
    def objective(theta):
        for k in range(1, steps + 1):
            pulls = sg.sample(f"D{k}", Categorical, logits=theta, n=n)
            theta = sg.ascend(theta, word(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), RATE)
        if sampled:
            return sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("tau", Categorical, logits=theta, n=2)))
        return sg.apply(lambda t: t.softmax(-1) @ BANDIT_REWARD, theta)

    return objective


def adapted(theta, steps=1, reward=BANDIT_REWARD):
    """The same with exact steps, in plain torch."""
    for _ in range(steps):
        theta = theta + RATE * torch.func.grad(lambda t: t.softmax(-1) @ reward)(theta)
    return theta.softmax(-1) @ reward


def tasks(n=2):
    """An exact step for each of two tasks that are drawn."""

    @sg.graph
    def objective(theta):
        task = sg.sample("task", Categorical, torch.tensor([0.3, 0.7], dtype=F64), n=2)
        pulls = sg.sample("D", lambda logits, _: Categorical(logits=logits), theta, task, n=n)
        pay = sg.apply(lambda a, i: TASK_REWARD[i, a], pulls, task)
        moved = sg.ascend(theta, sg.expect(pay, over="D"), RATE)
        return sg.mean(sg.apply(lambda t, i: t.softmax(-1) @ TASK_REWARD[i], moved, task))

    return objective


def cube(n=2):
    @sg.graph
    def objective(logit):
        return sg.expect(sg.sample("x", Bernoulli, logits=logit, n=n)) ** 3

    return objective


# The truth


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("order", [1, 2])
def test_the_truth_of_exact_inner_steps(steps, order):
    derivative = torch.func.grad if order == 1 else torch.func.hessian
    expected = derivative(adapted)(BANDIT_THETA, steps)
    found = sg.verify(bandit(steps).compile(sg.Plugin()), BANDIT_THETA, order=order)
    assert torch.allclose(found.truth, expected, rtol=0, atol=1e-13)


def test_the_truth_does_not_depend_on_the_number_of_draws():
    compiled = cube().compile(sg.Plugin())
    logit = torch.tensor(0.3, dtype=F64)
    p = logit.sigmoid()
    for n in (1, 3, 6):
        found = sg.verify(compiled, logit, sizes={"x": n}).truth
        assert float(found) == pytest.approx(float(3 * p**3 * (1 - p)), rel=1e-13)


def test_the_truth_of_tasks():
    """Two tasks are enumerated, each with an exact step of its own."""
    found = sg.verify(tasks().compile(sg.Plugin()), BANDIT_THETA)
    expected = sum(
        p * torch.func.grad(adapted)(BANDIT_THETA, 1, reward) for p, reward in zip((0.3, 0.7), TASK_REWARD, strict=True)
    )
    assert torch.allclose(found.truth, expected, rtol=0, atol=1e-13)


def test_the_truth_of_trajectories():
    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(2), theta, n=2)
        return torch.exp(sg.expect(sg.sum(data.reward, discount=DISCOUNT)))

    @sg.graph
    def linear(theta):
        return sg.mean(sg.sum(sg.sample("D", TwoStateMDP(2), theta, n=1).reward, discount=DISCOUNT))

    inner = sg.verify(linear.compile(sg.SF()), MDP_THETA).truth
    compiled = linear.compile(sg.SF())
    outcomes = TwoStateMDP(2).enumerate()
    chance = TwoStateMDP(2).log_prob
    value = sum(
        float(chance(type(outcomes)(*(leaf[i] for leaf in outcomes)), MDP_THETA).sum().exp())
        * float(outcomes.reward[i] @ torch.tensor([1.0, DISCOUNT], dtype=F64))
        for i in range(len(outcomes.reward))
    )
    assert compiled.explain().unbiased
    found = sg.verify(objective.compile(sg.Plugin()), MDP_THETA)
    assert torch.allclose(found.truth, math.exp(value) * inner, rtol=1e-12)


# Bias


def test_plugin_is_the_linearised_score_function():
    first, second = (bandit(2, 3, word).compile(e) for word, e in ((sg.expect, sg.Plugin()), (sg.mean, sg.LSF())))
    trace = first.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(0))
    for theta in (BANDIT_THETA, BANDIT_THETA + 0.1):
        one, other = (torch.func.grad(c.surrogate)(theta, trace) for c in (first, second))
        assert torch.allclose(one, other, rtol=0, atol=1e-14)


CASES = {
    "one step": (lambda n: bandit(1, n), BANDIT_THETA, (4, 8)),
    "two steps": (lambda n: bandit(2, n), BANDIT_THETA, (2, 4)),
    "one step, a sampled outcome": (lambda n: bandit(1, n, sampled=True), BANDIT_THETA, (3, 6)),
    "tasks": (tasks, BANDIT_THETA, (2, 4)),
    "cube": (cube, torch.tensor(0.3, dtype=F64), (6, 12)),
}


def bias(name, estimator, n, order=1):
    make, theta, _ = CASES[name]
    graph = make(n)
    chosen = {s: sg.SF() if s in ("tau", "task") else estimator for s in graph.samples}
    return sg.verify(graph.compile(chosen), theta, order=order).relative_bias


@pytest.mark.parametrize("name", CASES)
def test_the_bias_of_the_plugin_is_halved_with_twice_the_draws(name):
    few, many = CASES[name][2]
    assert 1.8 < bias(name, sg.Plugin(), few) / bias(name, sg.Plugin(), many) < 2.3


@pytest.mark.parametrize("name", CASES)
def test_the_bias_of_the_jackknife_falls_four_times(name):
    few, many = CASES[name][2]
    first, second = bias(name, sg.Jackknife(), few), bias(name, sg.Jackknife(), many)
    assert 3.4 < first / second < 6
    assert second < bias(name, sg.Plugin(), many) / 8


def test_second_derivatives_of_the_jackknife():
    first, second = (bias("one step", sg.Jackknife(), n, order=2) for n in (3, 6))
    assert 3.4 < first / second < 6
    assert second < bias("one step", sg.Plugin(), 6, order=2) / 8


def test_the_jackknife_by_hand():
    """The formula with the plug-ins of smaller graphs on the same draws."""
    n, compiled = 4, bandit(1, 4).compile(sg.Jackknife())
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(1))
    plugin, draws = bandit(1, 3).compile(sg.Plugin()), trace.draws["D1"]

    def at(pulls):
        return torch.func.grad(plugin.surrogate)(BANDIT_THETA, sg.Trace(draws={"D1": pulls}))

    others = sum(at(torch.cat([draws[:i], draws[i + 1 :]])) for i in range(n)) / n
    expected = n * at(draws) - (n - 1) * others
    assert torch.allclose(torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace), expected, rtol=0, atol=1e-13)


def test_where_everything_is_linear_nothing_is_biased():
    @sg.graph
    def objective(theta):
        return 3.0 * sg.expect(sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("x", Categorical, logits=theta, n=2)))

    for estimator in (sg.Plugin(), sg.Jackknife()):
        compiled = objective.compile(estimator)
        assert compiled.explain().unbiased
        assert sg.verify(compiled, BANDIT_THETA).relative_bias < 1e-12


def test_the_value_is_that_of_the_draws():
    compiled = bandit(1, 4).compile(sg.Jackknife())
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(1))
    assert float(compiled.surrogate(BANDIT_THETA, trace)) == pytest.approx(float(trace.value), abs=1e-14)


def test_continuous_draws():
    """The mean of x squared, x normal with mean theta: the gradient of theta**2 is met exactly on average."""

    @sg.graph
    def objective(theta):
        return sg.expect(sg.sample("x", Normal, theta, 1.0, n=50)) ** 2

    theta, generator = torch.tensor(1.0, dtype=F64), torch.Generator().manual_seed(0)
    compiled = objective.compile(sg.Jackknife())
    found = torch.stack([compiled.value_and_grad(theta, generator=generator)[1] for _ in range(400)])
    error = float(found.std()) / 20
    assert abs(float(found.mean()) - 2.0) < 4 * error  # fails by chance in 1 of 16000


# The ledger


def test_the_ledger_says_the_target_and_the_correction():
    plain = bandit(1, 2, sg.mean).compile(sg.LSF()).explain()
    assert plain.target == ()
    assert "expectation" not in str(plain)
    plugin, jackknife = (bandit().compile(e).explain() for e in (sg.Plugin(), sg.Jackknife()))
    assert plugin.target == jackknife.target == ("D1",)
    assert "of D1 the expectation is meant, not the mean of N draws" in str(plugin)
    assert (plugin.bias, jackknife.bias) == ("O(1/sqrt(N))", "O(1/N^2)")
    row = next(row for row in jackknife.ledger if row.sample == "D1")
    assert (row.counted, row.correction, row.bias) == ("linearized", "less its bias by the jackknife", "O(1/N^2)")
    assert "less its bias by the jackknife" in str(jackknife)
    assert r"\frac{N - 1}{N}" in jackknife.latex


@pytest.mark.parametrize(
    ("estimator", "bias"),
    [({}, "O(1/sqrt(N))"), (sg.Plugin(), "O(1/sqrt(N))"), (sg.Jackknife(), "O(1/N^2)"), (sg.Multilevel(2), "0")],
)
def test_draws_that_are_not_scored_make_a_bias_too(estimator, bias):
    """The step size is learned: no score counts, and the mean of the pulls is bent all the same."""

    @sg.graph
    def objective(rate, theta):
        pulls = sg.sample("D", Categorical, logits=theta, n=3)
        moved = sg.ascend(theta, sg.expect(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), rate)
        return sg.apply(lambda t: t.softmax(-1) @ BANDIT_REWARD, moved)

    compiled = objective.compile(estimator)
    explained = compiled.explain()
    assert (explained.unbiased, explained.bias) == (bias == "0", bias)
    assert "D: the mean of its draws stands for an expectation where something nonlinear follows" in str(explained)
    if bias != "0":
        assert sg.verify(compiled, torch.tensor(RATE, dtype=F64), BANDIT_THETA).relative_bias > 1e-5


def test_unscored_draws_in_linear_places_make_none():
    @sg.graph
    def objective(scale, theta):
        x = sg.sample("x", Categorical, logits=theta, n=3)
        return 2.0 - scale * sg.expect(sg.apply(lambda a: BANDIT_REWARD[a], x))

    compiled = objective.compile({})
    assert compiled.explain().unbiased
    assert sg.verify(compiled, torch.tensor(RATE, dtype=F64), BANDIT_THETA).relative_bias < 1e-12


# Refusals


def test_estimators_of_the_mean_of_draws_are_refused():
    for estimator in (sg.SF(), sg.LOO(), sg.LSF(), sg.Enumerate(), sg.MAML()):
        with pytest.raises(sg.CompileError, match=r"on sample 'D1' \(axes: \(D1\)\): its plate is expected.*sg.Plugin"):
            bandit().compile(estimator)

    @sg.graph
    def objective(theta):
        return sg.expect(sg.sample("x", Normal, theta, 1.0, n=3)) ** 2

    with pytest.raises(sg.CompileError, match=r"Pathwise.*on sample 'x'.*its plate is expected"):
        objective.compile(sg.PW())


@pytest.mark.parametrize("estimator", [sg.Plugin(), sg.Jackknife()])
def test_estimators_of_expectations_are_refused_on_means(estimator):
    with pytest.raises(sg.CompileError, match=r"on sample 'D1'.*declares none over these draws: declare sg.expect"):
        bandit(word=sg.mean).compile(estimator)


def test_two_estimators_are_refused():
    with pytest.raises(sg.CompileError, match=r"samples 'D1' and 'D2' are expected, with Plugin.* and Jackknife"):
        bandit(2).compile({"D1": sg.Plugin(), "D2": sg.Jackknife()})


def test_a_plate_is_expected_or_averaged():
    @sg.graph
    def objective(logit):
        x = sg.sample("x", Bernoulli, logits=logit, n=2)
        return sg.expect(x) ** 2 + sg.mean(x)

    with pytest.raises(sg.CompileError, match=r"the plate 'x' is expected in 'expect\(x\)' and reduced in 'mean\(x\)'"):
        objective.compile(sg.Plugin())

    @sg.graph
    def largest(logit):
        x = sg.sample("x", Bernoulli, logits=logit, n=2)
        return sg.expect(x) ** 2 + sg.reduce(lambda draws: draws.max(), x)

    with pytest.raises(sg.CompileError, match=r"the plate 'x' is expected .* and reduced in"):
        largest.compile(sg.Plugin())


def test_plates_inside_an_expected_one_are_refused():
    @sg.graph
    def objective(logit):
        x = sg.sample("x", Bernoulli, logits=logit, n=2)
        y = sg.sample("y", Bernoulli, logits=x + logit, n=2)
        return sg.expect(sg.mean(y, over="y") ** 2)

    with pytest.raises(sg.CompileError, match=r"sample 'y' \(axes: \(x, y\)\): the plate 'x' is expected, and"):
        objective.compile({"x": sg.Plugin(), "y": sg.SF()})


def test_axes_without_draws_are_refused():
    with pytest.raises(sg.DeclarationError, match=r"sg.expect of 'mul'.*a plate of data.*use sg.mean"):

        @sg.graph
        def rows(theta, batch):
            return sg.expect(theta * sg.data("row", batch)) ** 2

    with pytest.raises(sg.DeclarationError, match=r"'D.time' is a time axis; use sg.sum"):

        @sg.graph
        def steps(theta):
            return sg.expect(sg.sample("D", TwoStateMDP(2), theta).reward, over="D.time")


def test_a_plate_of_one_has_no_others():
    compiled = bandit(1, 1).compile(sg.Jackknife())
    with pytest.raises(sg.SamplingError, match="Jackknife on the plate 'D1': it leaves draws out, and there is one"):
        compiled.value_and_grad(BANDIT_THETA)


def test_what_verify_cannot_lay_out():
    @sg.graph
    def pair(logit):
        x = sg.sample("x", Bernoulli, logits=logit, n=2)
        y = sg.sample("y", Bernoulli, logits=x + logit)
        return sg.expect(y * x) ** 2

    with pytest.raises(sg.VerificationError, match="samples 'x' and 'y' share the plate 'x', which is expected"):
        sg.verify(pair.compile(sg.Plugin()), torch.tensor(0.3, dtype=F64))

    @sg.graph
    def several(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        return sg.expect(sg.apply(torch.prod, x)) ** 2

    with pytest.raises(sg.VerificationError, match="a draw of its expected plate has several entries"):
        sg.verify(several.compile(sg.Plugin()), BANDIT_THETA)
