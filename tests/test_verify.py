"""Exact proofs by enumeration: bias, variance, second derivatives; and that the truth is the truth."""

from typing import Any

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Independent,
    Multinomial,
    Normal,
    OneHotCategorical,
    Poisson,
)

import stochgraph as sg
from tests import problems
from tests.problems import F64, GRAPHS

EXACT = 1e-12


@pytest.mark.parametrize("name", GRAPHS)
def test_score_function_is_unbiased(name):
    make, theta = GRAPHS[name]
    assert sg.verify(make().compile(sg.SF()), theta).relative_bias < EXACT


@pytest.mark.parametrize("name", ["additive", "bandit, 1 step", "bandit, 2 steps", "chain", "fork", "regularized"])
def test_second_derivatives_are_unbiased(name):
    make, theta = GRAPHS[name]
    assert sg.verify(make().compile(sg.SF()), theta, order=2).relative_bias < EXACT


@pytest.mark.parametrize("name", ["additive", "bandit, 1 step"])
def test_third_derivatives_are_unbiased(name):
    make, theta = GRAPHS[name]
    assert sg.verify(make().compile(sg.SF()), theta, order=3).relative_bias < EXACT


@pytest.mark.slow
def test_two_steps_under_two_tasks():
    result = sg.verify(problems.task_bandit(2, n=2).compile(sg.SF()), problems.BANDIT_THETA)
    assert result.outcomes == 4 * (9 * 9 * 3) ** 2
    assert result.relative_bias < EXACT


@pytest.mark.slow
def test_three_steps_under_two_tasks():
    compiled = problems.task_bandit(3, n=2, exact=True).compile(sg.SF())
    result = sg.verify(compiled, problems.BANDIT_THETA, max_outcomes=3_000_000)
    assert result.outcomes == 4 * 9**6
    assert result.relative_bias < EXACT


# Exact relative biases of two published meta-problems, from an independent enumeration.
TWO_STEP_BANDIT = {
    ("log", "none"): 0.22573809654190752,
    ("log", "scaled"): 0.11286904827095373,
    ("dice", "none"): 0.005908585079957608,
    ("dice", "cost"): 0.23209489553714482,
    ("dice", "scaled"): 0.11360571612450492,
    ("stop", "none"): 0.1567260476100635,
    ("stop", "cost"): 0.1281877344176332,
    ("stop", "scaled"): 0.08544976937730975,
}
TWO_STATE_MDP = {
    "LSF": 0.007365735324108216,
    "MAML": 0.17129061883970684,
    "EMAML": 0.08564530941985285,
    "SGMRLPublished": 0.17624493134061722,
}


@pytest.mark.parametrize("words", TWO_STEP_BANDIT)
def test_two_step_bandit(words):
    result = sg.verify(problems.bandit(2).compile(sg.Estimator(*words)), problems.BANDIT_THETA)
    assert result.relative_bias == pytest.approx(TWO_STEP_BANDIT[words], abs=1e-9)


def test_two_step_bandit_truth():
    truth = [-0.13119407665162616, 0.3230588499346162, -0.19186477328298984]
    result = sg.verify(problems.bandit(2).compile(sg.LSF()), problems.BANDIT_THETA)
    assert result.truth.tolist() == pytest.approx(truth, abs=1e-12)
    assert result.relative_bias == pytest.approx(TWO_STEP_BANDIT["dice", "none"], abs=1e-9)


@pytest.mark.parametrize("name", TWO_STATE_MDP)
def test_two_state_mdp(name):
    result = sg.verify(problems.mdp().compile(getattr(sg, name)()), problems.MDP_THETA)
    assert result.relative_bias == pytest.approx(TWO_STATE_MDP[name], abs=1e-9)
    truth = [0.05258747348163606, -0.05258747348163612, 0.07732422675644716, -0.07732422675644675]
    assert result.truth.flatten().tolist() == pytest.approx(truth, abs=1e-12)


def test_two_state_mdp_with_whole_trajectory_boxes():
    result = sg.verify(problems.mdp_whole_trajectory().compile(sg.LSF()), problems.MDP_THETA)
    assert result.relative_bias == pytest.approx(0.00841958186080511, abs=1e-9)


def published_sgmrl(transpose):
    """SG-MRL with the Hessian estimate of Fallah et al. (2021), eqs. 8 and 9, written by hand.

    The estimate is M = mean of (direction * score^T) plus the Hessian; eq. 13 multiplies the gradient at the adapted
    parameters with I + rate * M. The derivative of the adapted parameters is the transpose of that.
    """

    def log_prob(theta, data):
        return theta.log_softmax(-1)[data.state, data.action]

    def surrogate(theta, trace):
        data = trace.draws["D"]
        fixed = theta.detach()
        to_go = problems.discounted_to_go(data.reward)

        def direction(t):
            return torch.func.grad(lambda s: (log_prob(s, data) * to_go).sum(-1).mean())(t)

        adapted = direction(fixed) * problems.RATE + fixed
        outer = torch.func.grad(problems.mdp_value)(adapted)
        whole = log_prob(theta, data).sum(-1)
        per_path = (log_prob(theta, data) * to_go).sum(-1)
        each = torch.func.jacrev(lambda t: (log_prob(t, data) * to_go).sum(-1))(fixed)
        scores = torch.func.jacrev(lambda t: log_prob(t, data).sum(-1))(fixed)
        if transpose:
            product = (whole * (each * outer).sum((-1, -2))).mean()
        else:
            product = (per_path * (scores * outer).sum((-1, -2))).mean()
        curvature = (direction(theta) * outer).sum()
        influence = problems.mdp_value(adapted) * whole.sum()
        return (theta * outer).sum() + problems.RATE * (product + curvature) + influence

    return surrogate


@pytest.mark.parametrize(("transpose", "bias"), [(False, 0.17716485976624682), (True, 0.17688994239899)])
def test_sgmrl_with_the_printed_hessian(transpose, bias):
    """A surrogate written by hand can be verified too. Read literally, eq. 8 is not a Jacobian but its transpose."""
    compiled = problems.mdp().compile(sg.SF())
    result = sg.verify(compiled, problems.MDP_THETA, surrogate=published_sgmrl(transpose))
    assert result.relative_bias == pytest.approx(bias, abs=1e-9)


def test_printed_hessian_as_a_graph():
    """Transposed, eq. 8 is the graph whose inner terms are whole trajectories, counted twice."""
    result = sg.verify(problems.mdp_whole_trajectory().compile(sg.SGMRLPublished()), problems.MDP_THETA)
    assert result.relative_bias == pytest.approx(0.17688994239899, abs=1e-9)


@pytest.mark.parametrize(
    "name", ["additive", "bandit, 2 steps", "MDP, horizon 2", "fork", "regularized", "reused data"]
)
def test_truth_against_finite_differences(name):
    """The expected value itself, without any derivative of the library's: probability times value, summed."""
    make, theta = GRAPHS[name]
    compiled = make().compile(sg.SF())
    truth = sg.verify(compiled, theta).truth.flatten()
    step = 1e-5
    for i in range(theta.numel()):
        shift = torch.zeros(theta.numel(), dtype=F64)
        shift[i] = step
        shift = shift.reshape(theta.shape)
        slope = (expected_value(compiled, theta + shift) - expected_value(compiled, theta - shift)) / (2 * step)
        assert float(slope) == pytest.approx(float(truth[i]), abs=1e-8)


INNER_OBJECTIVES = {
    "cost times parameter": lambda x, y, t: sg.mean(x * t[0] - 2.0 * y),
    "cost over parameter": lambda x, y, t: sg.mean(x + y) / (1.0 + t[1] ** 2),
    "parameter times cost plus constant": lambda x, y, t: t[2] * (sg.mean(x * y) + 3.0),
    "function of means": lambda x, y, t: torch.exp(sg.mean(x) * t[0]) * sg.mean(y),
    "centred": lambda x, y, t: sg.mean((x - sg.mean(x)) ** 2) * t[1] + sg.mean(y),
    "maximum": lambda x, y, t: sg.reduce(lambda v: v.max(0).values, x + y * t[0]),
    "stopped": lambda x, y, t: sg.mean(sg.stop(x * t[0]) * y * t[1]),
}


@pytest.mark.parametrize("name", INNER_OBJECTIVES)
def test_the_mean_direction_of_an_update_is_the_gradient(name):
    """E[ascend(theta, J, 1)] = theta + gradient of E[J], both by enumeration, the latter without any update."""
    theta, weights = problems.LATENT_THETA, torch.tensor([1.0, -2.3, 0.7], dtype=F64)

    def inner(t):
        x = sg.sample("x", Bernoulli, logits=t[0], n=2)
        y = sg.sample("y", Bernoulli, logits=t[1] * x + t[2])
        return INNER_OBJECTIVES[name](x, y, t)

    objective = sg.graph(lambda t: inner(t) * 1.0).compile(sg.SF())
    update = sg.graph(lambda t: (sg.ascend(t, inner(t), 1.0) * weights).sum()).compile(sg.SF())
    gradient = sg.verify(objective, theta).truth
    assert float(expected_value(update, theta)) == pytest.approx(float((theta + gradient) @ weights), abs=1e-12)
    assert sg.verify(update, theta).relative_bias < EXACT


def expected_value(compiled, theta):
    from stochgraph.prove.enumeration import enumerated

    outcomes = enumerated(compiled, (theta,), {}, 10**6)
    return outcomes.map(lambda outcome: outcomes.weighted((theta,), outcome)).sum()


def test_variance_in_closed_form():
    """One Bernoulli draw: the estimate of d/dlogit E[x] is x (x - p), of variance p q^2 - (p q)^2."""

    @sg.graph
    def objective(logit):
        return sg.sample("x", Bernoulli, logits=logit) * 1.0

    logit = torch.tensor(0.3, dtype=F64)
    p = float(torch.sigmoid(logit))
    result = sg.verify(objective.compile(sg.SF()), logit)
    assert float(result.truth) == pytest.approx(p * (1 - p), abs=1e-14)
    assert float(result.variance) == pytest.approx(p * (1 - p) ** 2 - (p * (1 - p)) ** 2, abs=1e-14)
    assert result.outcomes == 2


def test_shapes_of_results():
    @sg.graph
    def objective(parameters, scale):
        x = sg.sample("x", Bernoulli, logits=parameters["a"])
        y = sg.sample("y", Bernoulli, logits=parameters["b"][0] * x)
        return x * y * scale

    inputs = {"a": torch.tensor(0.1, dtype=F64), "b": torch.tensor([0.2], dtype=F64)}, torch.tensor(2.0, dtype=F64)
    first = sg.verify(objective.compile(sg.SF()), *inputs)
    assert set(first.truth) == {"a", "b"}
    assert first.variance["b"].shape == (1,)
    both = sg.verify(objective.compile(sg.SF(), wrt=("parameters", "scale")), *inputs)
    assert both.truth[1].shape == ()
    assert both.relative_bias < EXACT
    assert sg.verify(objective.compile(sg.SF()), *inputs, order=2).truth.shape == (2, 2)


def test_draws_with_dimensions_of_their_own():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        y = sg.sample("y", Categorical, logits=theta + x.sum())
        return sg.mean((x * theta).sum() * y) ** 2

    result = sg.verify(objective.compile(sg.SF()), torch.tensor([0.2, -0.4], dtype=F64))
    assert result.outcomes == (4 * 2) ** 2
    assert result.relative_bias < EXACT


SHARE = torch.tensor(0.3, dtype=F64)
# What a number of trials is drawn from, given a probability, and the mean of Binomial(that number, p).
TRIALS = {
    "Binomial": (lambda p: sg.sample("x", Binomial, 10, p), lambda p: 10 * p**2),
    "Bernoulli": (lambda p: sg.sample("x", Bernoulli, p), lambda p: p**2),
    "Categorical": (
        lambda p: sg.sample("x", Categorical, sg.apply(lambda q: torch.stack([1 - q, q / 3, 2 * q / 3]), p)),
        lambda p: 5 / 3 * p**2,
    ),
    "a sum": (lambda p: 2 * sg.sample("x", Binomial, 3, p) + 1, lambda p: (6 * p + 1) * p),
}


@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
@pytest.mark.parametrize("name", TRIALS)
def test_a_number_of_trials_that_is_drawn(name, as_function):
    binomial = (lambda count, p: Binomial(count, p)) if as_function else Binomial
    trials, mean = TRIALS[name]
    compiled = sg.graph(lambda p: 1.0 * sg.sample("y", binomial, trials(p), p)).compile(sg.SF())
    for order in (1, 2):
        result = sg.verify(compiled, SHARE, order=order)
        derivative = torch.func.grad(mean) if order == 1 else torch.func.grad(torch.func.grad(mean))
        torch.testing.assert_close(result.truth, derivative(SHARE), rtol=1e-11, atol=1e-11)
        assert result.relative_bias < EXACT


def test_impossible_outcomes_of_a_drawn_number_of_trials_are_left_out():
    """Two draws of 0, 1 or 2 trials, each with one child: 1 + 2 + 3 outcomes for a pair, squared."""

    @sg.graph
    def objective(p):
        x = sg.sample("x", Binomial, 2, p, n=2)
        return sg.mean(torch.sin(sg.sample("y", Binomial, x, p)) * x) ** 2

    for estimator, exact in ((sg.SF(), True), (sg.LSF(), False)):
        result = sg.verify(objective.compile(estimator), SHARE)
        assert result.outcomes == 36
        assert (result.relative_bias < EXACT) == exact


@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
def test_different_numbers_of_trials_in_one_draw(as_function):
    """Two and three trials: 3 * 4 outcomes, and the variance of a binomial of five."""
    count = torch.tensor([2, 3])

    def objective(p):
        x = sg.sample("x", lambda q: Binomial(count, q), p) if as_function else sg.sample("x", Binomial, count, p)
        total = sg.apply(torch.sum, x)
        return (total - 5 * p) ** 2

    result = sg.verify(sg.graph(objective).compile(sg.SF()), SHARE)
    assert result.outcomes == 12
    torch.testing.assert_close(result.truth, 5 * (1 - 2 * SHARE), rtol=1e-11, atol=1e-11)
    assert result.relative_bias < EXACT


LISTED: dict[str, Any] = {
    "Independent": (lambda t: Independent(Bernoulli(logits=t), 1), 2**3),
    "Independent of some": (lambda t: Independent(Bernoulli(logits=t.expand(2, 3)), 1), 2**6),
    "Independent categoricals": (lambda t: Independent(Categorical(logits=t.expand(2, 3)), 1), 3**2),
    "Independent binomials": (lambda t: Independent(Binomial(torch.tensor([1, 2, 0]), logits=t), 1), 2 * 3),
    "Multinomial": (lambda t: Multinomial(3, logits=t), 10),
    "OneHotCategorical": (lambda t: OneHotCategorical(logits=t), 3),
}


@pytest.mark.parametrize("plate", [False, True], ids=["alone", "in a plate"])
@pytest.mark.parametrize("name", LISTED)
def test_finite_supports_that_torch_does_not_list(name, plate):
    """The outcomes, the truth by E[score * cost] summed by hand, and an unbiased estimator."""
    dist, count = LISTED[name]
    weights = torch.tensor([0.7, -1.3, 0.4], dtype=F64)
    theta = torch.tensor([0.2, -0.5, 0.9], dtype=F64)

    @sg.graph
    def objective(theta):
        shift = sg.sample("shift", Bernoulli, logits=theta[0], n=1) if plate else 0.0 * theta[0]
        x = sg.sample("x", dist, sg.apply(lambda t, b: t + b, theta, shift))
        cost = sg.apply(lambda v: torch.sin((v * (weights if v.shape[-1] == 3 else 1.0)).sum()), x)
        return sg.mean(cost) if plate else cost

    result = sg.verify(objective.compile(sg.SF()), theta)
    assert result.outcomes == (2 * count if plate else count)
    assert result.relative_bias < EXACT
    trace = objective.compile(sg.SF()).sample(theta)
    assert trace.draws["x"].shape == (*([1] if plate else []), *dist(theta).sample().shape)


def test_the_mean_of_a_multinomial():
    weights = torch.tensor([0.7, -1.3, 0.4], dtype=F64)
    graph = sg.graph(lambda t: sg.apply(lambda x: x @ weights, sg.sample("x", Multinomial, 4, logits=t)))
    theta = torch.tensor([0.2, -0.5, 0.9], dtype=F64)
    expected = torch.func.grad(lambda t: 4 * t.softmax(0) @ weights)(theta)
    torch.testing.assert_close(sg.verify(graph.compile(sg.SF()), theta).truth, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("dist", "parameter", "message"),
    [
        (Geometric, 0.3, r"Geometric has no finite support.*\. Use a distribution with finitely many outcomes"),
        (lambda t: Independent(Normal(t.expand(3), 1.0), 1), 0.0, "Normal has no finite support"),
        (Poisson, 1.0, "cannot be enumerated exactly: Poisson has no finite support"),
        (lambda t: Normal(t, 1.0), 0.0, "cannot be enumerated exactly: Normal has no finite support"),
    ],
)
def test_refuses_what_cannot_be_enumerated(dist, parameter, message):
    @sg.graph
    def objective(theta):
        return sg.sample("x", dist, theta) * 1.0

    with pytest.raises(sg.VerificationError, match=message):
        sg.verify(objective.compile(sg.SF()), torch.tensor(parameter, dtype=F64))


def test_refuses_too_many_outcomes_before_it_makes_them():
    with pytest.raises(sg.VerificationError, match=r"'D1' .*1 \* 3\*\*40 joint outcomes"):
        sg.verify(problems.bandit(n=40).compile(sg.SF()), problems.BANDIT_THETA)


def test_refuses_pathwise_nodes():
    @sg.graph
    def objective(theta):
        return sg.sample("x", Normal, theta, 1.0)

    with pytest.raises(sg.VerificationError, match="'x' is pathwise"):
        sg.verify(objective.compile(sg.PW()), torch.tensor(0.0))


def test_refuses_an_incomplete_enumeration():
    class Half(problems.TwoStateMDP):
        def enumerate(self, *parents):
            return problems.Path(*(field[:3] for field in super().enumerate(*parents)))

    @sg.graph
    def objective(theta):
        return sg.sum(sg.sample("D", Half(2), theta).reward)

    with pytest.raises(sg.VerificationError, match=r"sum to 0\.\d+, not 1"):
        sg.verify(objective.compile(sg.SF()), problems.MDP_THETA)


def test_refuses_a_sampler_without_enumeration():
    class Silent(problems.TwoStateMDP):
        enumerate = sg.Sampler.enumerate

    @sg.graph
    def objective(theta):
        return sg.sum(sg.sample("D", Silent(2), theta).reward)

    with pytest.raises(sg.VerificationError, match="Silent does not enumerate its outcomes"):
        sg.verify(objective.compile(sg.SF()), problems.MDP_THETA)


def test_refuses_order_zero():
    with pytest.raises(ValueError, match="order must be at least 1"):
        sg.verify(problems.bandit().compile(sg.SF()), problems.BANDIT_THETA, order=0)


WITHOUT_DRAWS = {
    "values": lambda theta: (torch.sin(theta) ** 3).sum(),
    "an update": lambda theta: (sg.ascend(theta, -(torch.sin(theta) ** 2).sum(), 0.3) ** 3).sum(),
    "a solution": lambda theta: _solved(theta),
}


def _solved(theta):
    psi = sg.unknown("psi", like=theta)
    solver = sg.solvers.ClosedForm(lambda t: t / 2, theta)
    return (sg.argmax(-((psi - theta / 2) ** 2).sum(), over=psi, solver=solver) ** 3).sum()


@pytest.mark.parametrize("by_hand", [False, True], ids=["derived", "by hand"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_graph_without_draws_has_one_outcome(name, order, by_hand):
    theta = torch.tensor([0.4, -1.1], dtype=F64)
    compiled = sg.graph(WITHOUT_DRAWS[name]).compile({})
    surrogate = (lambda t, _: compiled.surrogate(t, compiled.sample(t))) if by_hand else None
    result = sg.verify(compiled, theta, order=order, surrogate=surrogate)
    derivative = lambda t: compiled.surrogate(t, compiled.sample(t))  # noqa: E731
    for _ in range(order):
        derivative = torch.func.jacrev(derivative)
    torch.testing.assert_close(result.truth, derivative(theta), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.expectation, result.truth, rtol=1e-12, atol=1e-12)
    assert (result.outcomes, result.relative_bias, result.total_variance) == (1, 0.0, 0.0)


def test_a_surrogate_by_hand_of_a_graph_without_draws_may_be_wrong():
    compiled = sg.graph(WITHOUT_DRAWS["values"]).compile({})
    theta = torch.tensor([0.4, -1.1], dtype=F64)
    result = sg.verify(compiled, theta, surrogate=lambda t, _: 2 * (torch.sin(t) ** 3).sum())
    assert result.relative_bias == pytest.approx(1.0, abs=1e-12)


# Objectives whose expectation does not depend on the parameters, though every estimate does.
NO_TRUTH = {
    "a constant cost": lambda theta: sg.mean(
        sg.apply(lambda a: 3.0 + 0.0 * a, sg.sample("x", Categorical, logits=theta, n=3))
    ),
    "centred draws": lambda theta: sg.mean(
        sg.apply(lambda x, t: x - torch.sigmoid(t), sg.sample("x", Bernoulli, logits=theta[0], n=2), theta[0])
    ),
    "equal draws": lambda theta: (
        sg.sample("x", Bernoulli, logits=theta[1]) - sg.mean(sg.sample("y", Bernoulli, logits=theta[1], n=2))
    ),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", NO_TRUTH)
def test_where_the_truth_is_zero_the_error_is_that_of_an_estimate(name, order):
    """Rounding over rounding says nothing: 2.6 was printed for estimators that are exact."""
    theta = torch.tensor([0.3, -0.7, 1.2], dtype=F64)
    result = sg.verify(sg.graph(NO_TRUTH[name]).compile(sg.SF()), theta, order=order)
    assert float(result.truth.norm()) < 1e-14
    assert result.relative_to == "estimates"
    assert result.relative_bias < EXACT
    assert "relative bias" in str(result)
    assert "of the mean size of an estimate, the truth being 0" in str(result)
    assert "of the mean size of an estimate, the truth being 0" in result._repr_markdown_()


def test_the_mean_size_of_an_estimate_by_hand():
    """One draw whose cost is always 3, and half of the parameter added to the surrogate: a bias of 0.5."""
    theta = torch.tensor(0.3, dtype=F64)
    compiled = sg.graph(lambda t: sg.apply(lambda x: 3.0 + 0.0 * x, sg.sample("x", Bernoulli, logits=t))).compile(
        sg.SF()
    )
    p = float(torch.sigmoid(theta))

    def surrogate(t, trace):
        return compiled.surrogate(t, trace) + 0.5 * t

    result = sg.verify(compiled, theta, surrogate=surrogate)
    size = p * abs(3 * (1 - p) + 0.5) + (1 - p) * abs(-3 * p + 0.5)
    assert result.relative_to == "estimates"
    assert result.relative_bias == pytest.approx(0.5 / size, abs=1e-12)


def test_elsewhere_the_error_is_relative_to_the_truth():
    result = sg.verify(problems.bandit().compile(sg.MAML()), problems.BANDIT_THETA)
    assert result.relative_to == "truth"
    assert result.relative_bias == pytest.approx(float(result.bias.norm() / result.truth.norm()), rel=1e-12)
    assert "mean size of an estimate" not in str(result)


def test_no_estimate_and_no_truth():
    result = sg.verify(sg.graph(lambda t: (t * 0.0).sum()).compile({}), torch.ones(2, dtype=F64))
    assert (result.relative_bias, result.relative_to) == (0.0, "truth")


def test_prints_its_figures():
    result = sg.verify(problems.bandit().compile(sg.SF()), problems.BANDIT_THETA)
    assert "27 outcomes: relative bias" in str(result)
    assert "| 1 | 27 |" in result._repr_markdown_()
