"""Leave-one-out: exact where it applies, the formula on the same samples, and what it refuses."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, Uniform

import stochgraph as sg
from stochgraph.derive import derivation, replays
from stochgraph.derive.derivation import Derivation
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, GRAPHS

EXACT = 1e-12
APPLIES = {name: GRAPHS[name] for name in GRAPHS if name not in ("extreme", "nested update")}
APPLIES["nested update"] = (lambda: problems.nested_update(2), BANDIT_THETA)


@pytest.mark.parametrize("name", APPLIES)
def test_unbiased(name):
    make, theta = APPLIES[name]
    compiled = make().compile(sg.LOO())
    assert compiled.explain().unbiased
    assert sg.verify(compiled, theta).relative_bias < EXACT


@pytest.mark.slow
def test_unbiased_two_steps_under_two_tasks():
    result = sg.verify(problems.task_bandit(2, n=2).compile(sg.LOO()), BANDIT_THETA)
    assert result.outcomes == 4 * (9 * 9 * 3) ** 2
    assert result.relative_bias < EXACT


@pytest.mark.parametrize("name", ["additive", "bandit, 1 step", "bandit, 2 steps", "chain", "fork", "regularized"])
def test_second_derivatives_are_unbiased(name):
    make, theta = GRAPHS[name]
    assert sg.verify(make().compile(sg.LOO()), theta, order=2).relative_bias < EXACT


@pytest.mark.parametrize("name", ["additive", "bandit, 2 steps", "chain"])
def test_replays_at_other_parameters_are_unbiased(name):
    """The expectation over traces drawn at one theta is the exact gradient at another one."""
    make, theta = GRAPHS[name]
    compiled = make().compile(sg.LOO())
    shift = torch.linspace(-0.3, 0.2, theta.numel(), dtype=F64).reshape(theta.shape)
    moved = sg.verify(compiled, theta, surrogate=lambda t, trace: compiled.surrogate(t + shift, trace))
    truth = sg.verify(compiled, theta + shift).truth
    assert moved.expectation.flatten().tolist() == pytest.approx(truth.flatten().tolist(), abs=1e-12)


def test_expectation_of_the_two_state_mdp():
    result = sg.verify(problems.mdp().compile(sg.LOO()), problems.MDP_THETA)
    truth = [0.05258747348163606, -0.05258747348163612, 0.07732422675644716, -0.07732422675644675]
    assert result.expectation.flatten().tolist() == pytest.approx(truth, abs=1e-12)


def test_the_formula_on_the_same_samples():
    """Through an update, with outer draws reused by importance ratios; every replay written out."""
    compiled = problems.bandit(1, n=5, m=3).compile(sg.LOO())
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(0))
    pulls, last = trace.draws["D1"], trace.draws["tau"]
    theta = BANDIT_THETA.clone().requires_grad_()

    def adapted(t, chosen):
        return t + 0.7 * (BANDIT_REWARD[chosen, None] * (torch.eye(3, dtype=F64)[chosen] - t.softmax(-1))).mean(0)

    after = adapted(theta, pulls)
    outer = (after.log_softmax(-1)[last] * BANDIT_REWARD[last]).mean()
    total = outer
    for i in range(5):
        others = adapted(theta, pulls[[j for j in range(5) if j != i]])
        ratio = (others.log_softmax(-1)[last] - after.log_softmax(-1)[last]).exp()
        gain = (BANDIT_REWARD[last] * (1 - ratio)).mean().detach()
        total = total + gain * theta.log_softmax(-1)[pulls[i]]
    (expected,) = torch.autograd.grad(total, theta)
    found = torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_pathwise_draws_downstream_move_with_the_replay():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=4)
        return sg.sample("y", Normal, sg.mean(x), 1.0) ** 2

    theta = torch.tensor(0.3, dtype=F64)
    compiled = objective.compile({"x": sg.LOO(), "y": sg.PW()})
    trace = compiled.sample(theta, generator=torch.Generator().manual_seed(1))
    x, noise = trace.draws["x"], trace.draws["y"] - trace.draws["x"].mean()
    left_out = (x.sum() - x) / 3
    scores = x - torch.sigmoid(theta)
    expected = (((x.mean() + noise) ** 2 - (left_out + noise) ** 2) * scores).sum()
    assert float(torch.func.grad(compiled.surrogate)(theta, trace)) == pytest.approx(float(expected), abs=1e-12)


def test_its_linearisation_is_the_linearised_score_function_with_a_control_variate():
    """For f(m) = m squared the two differ by sum of (x_i - m_-i)^2 / N^2 times the score, exactly."""

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=6)) ** 2

    theta = torch.tensor(0.3, dtype=F64)
    exact, linear = (objective.compile(e) for e in (sg.LOO(), sg.LSF(control_variate=True)))
    trace = exact.sample(theta, generator=torch.Generator().manual_seed(2))
    x = trace.draws["x"]
    left_out = (x.sum() - x) / 5
    difference = -(((x - left_out) ** 2 / 36) * (x - theta)).sum()
    grads = [float(torch.func.grad(one.surrogate)(theta, trace)) for one in (exact, linear)]
    assert grads[0] - grads[1] == pytest.approx(float(difference), abs=1e-12)
    assert grads[1] == pytest.approx(float((2 * x.mean() * (x - left_out) / 6 * (x - theta)).sum()), abs=1e-12)


def test_linear_routes_need_no_replay():
    """Where every term meets its own draw's score only, it is the score function."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return 2.0 - sg.mean(torch.exp(x)) / 3.0

    theta = torch.tensor(0.4, dtype=F64)
    first, second = (sg.verify(objective.compile(e), theta) for e in (sg.SF(), sg.LOO()))
    assert float(first.variance) == float(second.variance)


def test_sums_over_a_plate():
    @sg.graph
    def objective(theta):
        return torch.sin(sg.sum(sg.sample("x", Bernoulli, logits=theta, n=3), over="x"))

    theta = torch.tensor(0.4, dtype=F64)
    assert sg.verify(objective.compile(sg.LOO()), theta).relative_bias < EXACT


def test_the_variance_falls_with_the_plate():
    """Exactly, the outcome being exact: at most 1/3 from 3 draws to 9, and below that of the score function."""
    graph = problems.regularized()
    loo, score = graph.compile(sg.LOO()), graph.compile(sg.SF())
    few, many = (sg.verify(loo, BANDIT_THETA, sizes={"D": n}).total_variance for n in (3, 9))
    assert many / few < 0.4
    assert many < 0.03 * sg.verify(score, BANDIT_THETA, sizes={"D": 9}).total_variance


def test_the_variance_falls_with_the_plates_of_two_steps():
    """A replay of the first step reuses the whole plate of the second; that plate's replays are compared with it."""

    @sg.graph
    def objective(theta):
        for name in ("D1", "D2"):
            pulls = sg.sample(name, Categorical, logits=theta, n=2)
            theta = sg.ascend(theta, sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), 0.7)
        return sg.apply(lambda t: (t.softmax(-1) * BANDIT_REWARD).sum(), theta)

    variances = {}
    for name, estimator in (("LOO", sg.LOO()), ("LSF", sg.LSF(control_variate=True)), ("SF", sg.SF())):
        compiled = objective.compile(estimator)
        found = (sg.verify(compiled, BANDIT_THETA, sizes={"D1": n, "D2": n}) for n in (2, 5))
        variances[name] = [result.total_variance for result in found]
    assert variances["SF"][1] > 1.5 * variances["SF"][0]
    assert variances["LOO"][1] < 0.5 * variances["LOO"][0]
    assert variances["LOO"][1] == pytest.approx(variances["LSF"][1], rel=0.02)  # its linearisation


def test_chunks_change_nothing(monkeypatch):
    compiled = problems.bandit(2, n=5, m=3).compile(sg.LOO())
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(3))
    whole = torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace)
    monkeypatch.setattr(replays, "_CELLS", 10)
    chunked = torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace)
    assert chunked.tolist() == pytest.approx(whole.tolist(), abs=1e-14)


def test_one_pass_equals_sampling_and_replaying():
    compiled = problems.task_bandit(2, n=4).compile(sg.LOO())
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(4))
    value, grad = compiled.value_and_grad(BANDIT_THETA, generator=torch.Generator().manual_seed(4))
    assert float(value) == float(trace.value)
    assert grad.tolist() == pytest.approx(torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace).tolist(), abs=1e-13)


def test_beside_other_estimators_a_replay_weights_everything():
    """The control variate of D1 has zero mean whatever the estimator of D2 drops from its own path."""
    graph = problems.bandit(2)
    for other in (sg.SF(), sg.MAML(), sg.LSF(), sg.EMAML()):
        loo, plain = (graph.compile({"D1": first, "D2": other, "tau": sg.SF()}) for first in (sg.LOO(), sg.SF()))
        found, expected = sg.verify(loo, BANDIT_THETA), sg.verify(plain, BANDIT_THETA)
        assert found.expectation.tolist() == pytest.approx(expected.expectation.tolist(), abs=1e-13)


def test_single_precision():
    compiled = problems.bandit(1, n=4).compile(sg.LOO())
    _, grad = compiled.value_and_grad(BANDIT_THETA.float())
    assert grad.dtype == torch.float32


def test_a_plate_of_one_is_refused():
    with pytest.raises(sg.CompileError, match=r"'D1' .*leave-one-out on a plate of one"):
        problems.bandit(1, n=1).compile(sg.LOO())
    compiled = problems.bandit(1).compile(sg.LOO())
    with pytest.raises(sg.SamplingError, match="leave-one-out on a plate of one"):
        compiled.value_and_grad(BANDIT_THETA, sizes={"D1": 1})
    compiled.value_and_grad(BANDIT_THETA)


def test_a_plate_that_is_not_averaged_is_refused():
    with pytest.raises(sg.CompileError, match=r"'x' reaches .* \(axes reduced: \(x\)\).*use SF"):
        problems.extreme().compile(sg.LOO())


def test_a_later_draw_whose_support_moves_with_what_is_left_out_is_refused():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.sample("y", Uniform, 0.0, 1.0 + sg.mean(x)) ** 2

    with pytest.raises(sg.CompileError, match=r"'y' .*the support of Uniform moves with the draws .*use SF"):
        objective.compile(sg.LOO())
    objective.compile(sg.SF())

    @sg.graph
    def apart(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.mean(sg.sample("y", Uniform, 0.0, 1.0 + x)) ** 2

    apart.compile(sg.LOO())  # left out is y's own draw, whose support moves with no other


def test_a_draw_without_a_plate_is_scored_as_by_the_score_function():
    @sg.graph
    def objective(theta):
        return torch.exp(sg.sample("x", Categorical, logits=theta) * 1.0)

    first, second = (sg.verify(objective.compile(e), BANDIT_THETA) for e in (sg.SF(), sg.LOO()))
    assert first.variance.tolist() == second.variance.tolist()


@pytest.mark.parametrize(
    "through", [lambda x: sg.mean(x), lambda x: sg.mean(sg.stop(x)), lambda x: sg.sum(x, over="x")]
)
def test_later_draws_that_no_input_moves_are_weighted(through):
    """The distribution of y depends on the draws of x alone: held fixed it needs no score, left out it does."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        y = sg.sample("y", Bernoulli, logits=3.0 * through(x) - 1.0, n=2)
        return torch.exp(sg.mean(y) * sg.mean(x))

    compiled, theta = objective.compile(sg.LOO()), torch.tensor(0.3, dtype=F64)
    for order in (1, 2):
        assert sg.verify(compiled, theta, order=order).relative_bias < EXACT


def test_many_terms_share_one_derivation_of_their_replays(monkeypatch):
    made = []

    class Counted(Derivation):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(derivation, "Derivation", Counted)

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        total = sg.sample("y", Bernoulli, logits=sg.mean(x))
        for k in range(5):
            total = total + torch.sin(k + sg.mean(x)) + sg.mean(k * x)
        return total

    compiled = objective.compile(sg.LOO())
    assert len(made) == 1
    assert sg.verify(compiled, torch.tensor(0.3, dtype=F64)).relative_bias < EXACT


def test_the_baseline_of_a_later_sample_goes_into_the_replays():
    """A constant added to the outcome: the ratios of the outer draws are compared with it, as their scores are."""

    def graph(constant: float) -> sg.Graph:
        @sg.graph
        def objective(theta):
            pulls = sg.sample("D", Categorical, logits=theta, n=3)
            adapted = sg.ascend(theta, sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), 0.7)
            outcome = sg.sample("tau", Categorical, logits=adapted, n=3)
            return sg.mean(sg.apply(lambda a: BANDIT_REWARD[a] + constant, outcome))

        return objective

    found = [
        sg.verify(graph(constant).compile({"D": estimator, "tau": sg.SF(baseline="loo")}), BANDIT_THETA)
        for constant, estimator in [(0.0, sg.LOO()), (10.0, sg.LOO()), (10.0, sg.LSF())]
    ]
    assert all(each.relative_bias < 1e-12 for each in found[:2])
    plain, moved, linearised = (float(each.variance.sum()) for each in found)
    assert abs(moved - plain) < 0.1 * plain
    assert abs(moved - linearised) < 0.1 * linearised


def test_explain_says_where_it_is_the_score_function():
    """Behind linear operations it compares nothing, and the baseline that does is named."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        y = sg.sample("y", Bernoulli, logits=-theta, n=3)
        z = sg.sample("z", Bernoulli, logits=2.0 * theta)
        return 2.0 * sg.mean(torch.exp(x)) + sg.mean(y) ** 2 + z

    text = str(objective.compile(sg.LOO()).explain())
    assert "x: only linear operations follow its plate, where LOO is SF" in text
    assert "baseline=" in text
    assert "y: only" not in text
    assert "z: only" not in text  # it has no plate, and no other draws to be compared with
    for estimator in (sg.SF(), {"x": sg.SF(baseline="loo"), "y": sg.LOO(), "z": sg.SF()}):
        assert "only linear" not in str(objective.compile(estimator).explain())
    assert "only linear" not in str(problems.bandit(1).compile({"D1": sg.LOO(), "tau": sg.SF()}).explain())
