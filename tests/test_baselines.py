"""Baselines and control variates: no bias at any order, less variance, and the formulas on the same samples."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

import stochgraph as sg
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, DISCOUNT, F64, MDP_THETA, RATE, REWARD, TwoStateMDP

EXACT = 1e-12


def pulls(n=3):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Categorical, logits=theta, n=n)
        return sg.mean(sg.apply(lambda a, t: BANDIT_REWARD[a] + 3.0 + t[0] * a, x, theta))

    return objective


def walks(n=3, horizon=2):
    @sg.graph
    def objective(theta):
        data = sg.sample("D", ObservedMDP(horizon), theta, n=n)
        return sg.mean(sg.sum(data.reward, discount=DISCOUNT))

    return objective


class Walk(NamedTuple):
    observation: Tensor
    action: Tensor
    reward: Tensor


class ObservedMDP(sg.Sampler):
    """The two-state MDP, with states as observations."""

    time = True

    def __init__(self, horizon):
        self.mdp = TwoStateMDP(horizon)

    def draw(self, batch_shape, *parents):
        return self._observed(self.mdp.draw(batch_shape, *parents))

    def log_prob(self, value, *parents):
        state = value.observation.squeeze(-1).long()
        return self.mdp.log_prob(problems.Path(state, value.action, value.reward), *parents)

    def enumerate(self, *parents):
        return self._observed(self.mdp.enumerate(*parents))

    def _observed(self, path):
        return Walk(path.state.unsqueeze(-1).to(F64), path.action, path.reward)


def value_of_state(trace):
    """Any function of what is known before the action; a constant per state here."""
    draws = trace.draws["D"]
    state = draws.observation.squeeze(-1) if isinstance(draws, Walk) else draws.state
    return 0.4 + 0.3 * state


ELEMENTWISE: dict[str, Any] = {
    "mean": "mean",
    "loo": "loo",
    "number": lambda trace: 2.9,
    "tensor": lambda trace: torch.arange(3.0),
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_unbiased_for_draws(name, order):
    compiled = pulls().compile(sg.SF(baseline=ELEMENTWISE[name]))
    assert compiled.explain().unbiased
    assert sg.verify(compiled, BANDIT_THETA, order=order).relative_bias < EXACT


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("baseline", ["mean", "loo", "linear", value_of_state])
def test_unbiased_for_trajectories(baseline, order):
    compiled = walks().compile(sg.SF(baseline=baseline))
    assert sg.verify(compiled, MDP_THETA, order=order).relative_bias < EXACT


@pytest.mark.parametrize("order", [1, 2])
def test_unbiased_with_ancestors(order):
    """The baseline of z depends on y, z's parent: boxed by strict ancestors it adds nothing at any order."""

    @sg.graph
    def objective(theta):
        y = sg.sample("y", Bernoulli, logits=theta[0], n=2)
        z = sg.sample("z", Bernoulli, logits=theta[1] * y)
        return sg.mean(z * y + torch.exp(theta[0] * z))

    theta = torch.tensor([0.3, -0.5], dtype=F64)
    compiled = objective.compile({"y": sg.SF(), "z": sg.SF(baseline=lambda trace: 1.0 + trace.draws["y"])})
    assert sg.verify(compiled, theta, order=order).relative_bias < EXACT


@pytest.mark.parametrize("baseline", ["mean", "loo", lambda trace: 2.0])
def test_tasks_are_compared_with_tasks(baseline):
    """Data of an update have one cost per task, and are compared with the other tasks' costs."""
    compiled = problems.task_bandit(1, exact=True).compile({"D1": sg.SF(baseline=baseline), "task": sg.SF()})
    result = sg.verify(compiled, BANDIT_THETA)
    assert result.relative_bias < EXACT


def hermite(compiled, theta, n, order):
    """The exact expectation of a derivative over n standard normal draws around theta, by quadrature."""
    nodes, weights = (torch.tensor(each, dtype=F64) for each in np.polynomial.hermite_e.hermegauss(8))
    index = torch.cartesian_prod(*[torch.arange(8)] * n).reshape(-1, n)
    weight = (weights / weights.sum())[index].prod(1)
    draws = theta + nodes[index]
    derive = torch.func.hessian if order == 2 else torch.func.grad

    def one(x, log_prob):
        trace = sg.Trace(torch.tensor(0.0), {"x": x}, {"x": log_prob}, {})
        return derive(lambda t: compiled.surrogate(t, trace))(theta)

    return float((weight * torch.vmap(one)(draws, Normal(theta, 1.0).log_prob(draws))).sum())


@pytest.mark.parametrize("baseline", [None, "mean", "loo", lambda trace: 1.49, lambda trace: torch.tensor([0.5, 2.0])])
def test_the_hessian_of_a_square_is_two(baseline):
    @sg.graph
    def objective(theta):
        return sg.mean((sg.sample("x", Normal, theta, 1.0, n=2) - 1.0) ** 2)

    theta = torch.tensor(0.3, dtype=F64)
    compiled = objective.compile(sg.SF(baseline=baseline))
    assert hermite(compiled, theta, 2, order=1) == pytest.approx(2 * (0.3 - 1.0), abs=1e-10)
    assert hermite(compiled, theta, 2, order=2) == pytest.approx(2.0, abs=1e-10)


def test_the_hessian_of_one_draw():
    @sg.graph
    def objective(theta):
        return (sg.sample("x", Normal, theta, 1.0) - 1.0) ** 2

    theta = torch.tensor(0.3, dtype=F64)
    compiled = objective.compile(sg.SF(baseline=lambda trace: 1.49))
    nodes, weights = (torch.tensor(each, dtype=F64) for each in np.polynomial.hermite_e.hermegauss(8))
    found = 0.0
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        trace = sg.Trace(torch.tensor(0.0), {"x": theta + node}, {"x": Normal(theta, 1.0).log_prob(theta + node)}, {})
        found += float(weight * torch.func.hessian(compiled.surrogate)(theta, trace))
    assert found == pytest.approx(2.0, abs=1e-10)


@pytest.mark.parametrize("baseline", ["loo", "mean", lambda trace: 3.2])
def test_less_variance(baseline):
    """Exactly, for the gradient and the Hessian."""
    for order, ratio in ((1, 0.2), (2, 0.7)):
        with_baseline, without = (
            sg.verify(pulls().compile(sg.SF(baseline=b)), BANDIT_THETA, order=order) for b in (baseline, None)
        )
        assert with_baseline.total_variance < ratio * without.total_variance


def test_less_variance_of_trajectories_with_a_value_per_step():
    for order in (1, 2):
        with_baseline, without = (
            sg.verify(walks().compile(sg.SF(baseline=b)), MDP_THETA, order=order) for b in (value_of_state, None)
        )
        assert with_baseline.total_variance < 0.6 * without.total_variance


def test_the_mean_of_the_others_on_the_same_samples():
    compiled = pulls(5).compile(sg.SF(baseline="loo"))
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(0))
    x = trace.draws["x"]
    cost = BANDIT_REWARD[x] + 3.0 + BANDIT_THETA[0] * x
    others = (cost.sum() - cost) / 4
    scores = torch.eye(3, dtype=F64)[x] - BANDIT_THETA.softmax(-1)
    expected = ((cost - others)[:, None] * scores).mean(0) + torch.tensor([1.0, 0, 0], dtype=F64) * x.double().mean()
    found = torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_mean_spans_all_plates_and_loo_the_innermost():
    @sg.graph
    def objective(theta):
        task = sg.sample("task", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=2)
        x = sg.sample("x", lambda t, i: Categorical(logits=t * (1 + i)), theta, task, n=3)
        return sg.mean(sg.apply(lambda a, i: BANDIT_REWARD[a] + 5.0 * i, x, task))

    compiled = {name: objective.compile({"task": sg.SF(), "x": sg.SF(baseline=name)}) for name in ("loo", "mean")}
    trace = compiled["loo"].sample(BANDIT_THETA, generator=torch.Generator().manual_seed(5))
    x, task = trace.draws["x"], trace.draws["task"][:, None]
    cost = BANDIT_REWARD[x] + 5.0 * task
    logits = BANDIT_THETA * (1 + task)[..., None]
    scores = (torch.eye(3, dtype=F64)[x] - logits.softmax(-1)) * (1 + task)[..., None]
    for name, others in (("loo", (cost.sum(1, keepdim=True) - cost) / 2), ("mean", (cost.sum() - cost) / 5)):
        found = torch.func.grad(compiled[name].surrogate)(BANDIT_THETA, trace)
        expected = ((cost - others)[..., None] * scores).mean((0, 1))
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-12), name


def test_a_value_per_step_on_the_same_samples():
    """Each action's score is multiplied with its return-to-go less the value of its state."""
    compiled = walks(n=2, horizon=3).compile(sg.SF(baseline=value_of_state))
    trace = compiled.sample(MDP_THETA, generator=torch.Generator().manual_seed(0))
    draws = trace.draws["D"]
    state = draws.observation.squeeze(-1).long()
    discounts = DISCOUNT ** torch.arange(3, dtype=F64)
    to_go = problems.discounted_to_go(draws.reward)  # discounted from the first step
    advantage = to_go - discounts * value_of_state(trace)
    theta = MDP_THETA.clone().requires_grad_()
    loss = (advantage * theta.log_softmax(-1)[state, draws.action]).sum(-1).mean()
    (expected,) = torch.autograd.grad(loss, theta)
    found = torch.func.grad(compiled.surrogate)(MDP_THETA, trace)
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-12)


def test_the_linear_baseline_is_a_fit_to_the_other_trajectories():
    n, horizon = 6, 3
    compiled = walks(n, horizon).compile(sg.SF(baseline="linear"))
    trace = compiled.sample(MDP_THETA, generator=torch.Generator().manual_seed(1))
    draws = trace.draws["D"]
    state = draws.observation.squeeze(-1)
    time = torch.arange(horizon, dtype=F64) / 100
    features = torch.stack([state, state**2, *(p.expand(n, -1) for p in (time, time**2, time**3, time**0))], -1)
    to_go = problems.discounted_to_go(draws.reward) / DISCOUNT ** torch.arange(horizon, dtype=F64)
    predicted = torch.zeros(n, horizon, dtype=F64)
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        rows, targets = features[rest].reshape(-1, 6), to_go[rest].reshape(-1)
        moments = rows.T @ rows + 1e-5 * torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 0], dtype=F64))  # not the intercept
        predicted[i] = features[i] @ torch.linalg.solve(moments, rows.T @ targets)
    reference = walks(n, horizon).compile(sg.SF(baseline=lambda _: predicted))
    found, expected = (torch.func.grad(c.surrogate)(MDP_THETA, trace) for c in (compiled, reference))
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-9)


class Ragged(NamedTuple):
    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor


class EndsEarly(sg.Sampler):
    """Coin tosses; the mask is 0 after the second step."""

    time = True

    def draw(self, batch_shape, logit):
        action = torch.bernoulli(torch.sigmoid(logit).unsqueeze(-1).expand(*batch_shape, 4))
        mask = (torch.arange(4) < 2).to(action).expand(action.shape)
        return Ragged(torch.randn(*batch_shape, 4, 3, dtype=action.dtype), action, action * mask, mask)

    def log_prob(self, value, logit):
        return Bernoulli(logits=logit.expand(4), validate_args=False).log_prob(value.action) * value.mask


def test_the_linear_baseline_learns_nothing_after_the_end():
    @sg.graph
    def objective(logit):
        return sg.mean(sg.sum(sg.sample("D", EndsEarly(), logit, n=5).reward))

    logit = torch.tensor(0.3, dtype=F64)
    compiled = objective.compile(sg.SF(baseline="linear"))
    trace = compiled.sample(logit, generator=torch.Generator().manual_seed(7))
    draws = trace.draws["D"]
    noise = torch.randn(draws.observation.shape, generator=torch.Generator().manual_seed(8), dtype=F64)
    for changed, same in ((1 - draws.mask, True), (draws.mask, False)):
        other = draws._replace(observation=draws.observation + noise * changed.unsqueeze(-1))
        found = torch.func.grad(compiled.surrogate)(logit, trace._replace(draws={"D": other}))
        assert (float(found) == float(torch.func.grad(compiled.surrogate)(logit, trace))) is same


def test_a_callable_sees_the_trace():
    seen = []

    def baseline(trace):
        seen.append(trace)
        return 0.0

    compiled = pulls().compile(sg.SF(baseline=baseline))
    trace = compiled.sample(BANDIT_THETA)
    compiled.surrogate(BANDIT_THETA + 0.1, trace)
    assert seen[-1].draws["x"].tolist() == trace.draws["x"].tolist()
    assert seen[-1].log_probs["x"].tolist() == trace.log_probs["x"].tolist()
    assert torch.isnan(seen[-1].value)


def test_a_callable_sees_nothing_that_comes_after_the_cost():
    """The terms of both means are boxed where they are averaged, before the draws that depend on the means."""
    seen = []

    def baseline(trace):
        seen.append(tuple(trace.draws))
        return 0.5

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        u = sg.sample("u", Bernoulli, logits=-theta, n=2)
        y = sg.sample("y", Bernoulli, logits=sg.mean(x))
        z = sg.sample("z", Bernoulli, logits=sg.mean(u))
        return y * z

    theta = torch.tensor(0.3, dtype=F64)
    compiled = objective.compile({"x": sg.LoadedDiCE(1.0, baseline), "u": sg.LoadedDiCE(1.0, baseline), "y": sg.SF()})
    compiled.value_and_grad(theta)
    assert set(seen) <= {("x",), ("x", "u")}


@pytest.mark.parametrize(
    ("make", "estimator", "error", "message"),
    [
        (lambda: problems.bandit(1), sg.SF(baseline="loo"), sg.CompileError, r"'D1' .*no costs of their own.*LOO"),
        (lambda: problems.bandit(1), sg.SF(baseline="linear"), sg.CompileError, r"'tau' .*trajectories"),
        (lambda: pulls(1), sg.SF(baseline="loo"), sg.SamplingError, r"'x' \(axes: \(x\)\).*plate of one"),
        (lambda: problems.bandit(1), sg.LSF(control_variate=True), sg.SamplingError, r"'tau'.*plate of one"),
        (pulls, sg.SF(baseline=lambda _: torch.zeros(2)), sg.SamplingError, r"shape \(3,\); got shape \(2,\)"),
        (lambda: walks(1), sg.SF(baseline="linear"), sg.SamplingError, "'D' .*only one"),
    ],
)
def test_refusals(make, estimator, error, message):
    theta = MDP_THETA if make().samples == ("D",) else BANDIT_THETA
    with pytest.raises(error, match=message):
        make().compile(estimator).value_and_grad(theta)
    make().compile(sg.SF()).value_and_grad(theta)


def test_the_linear_baseline_needs_observations():
    compiled = problems.mdp(2).compile(sg.LoadedDiCE(baseline="linear"))
    with pytest.raises(sg.SamplingError, match=r"'D'.*field `observation`.*Path has none"):
        compiled.value_and_grad(MDP_THETA)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"baseline": "median"}, "'median' is not known"),
        ({"influence": "mean", "baseline": "loo"}, "needs costs"),
        ({"control_variate": True}, 'needs influence="mean"'),
        ({"decay": 0.5}, 'curvature="loaded" only'),
        ({"curvature": "loaded", "decay": 1.5}, "between 0 and 1"),
    ],
)
def test_options_that_mean_nothing(words, message):
    with pytest.raises(ValueError, match=message):
        sg.Estimator(**{"curvature": "log", "influence": "cost", **words})


@pytest.mark.parametrize(
    ("estimator", "baseline", "control_variate", "decay"),
    [
        (sg.SF(), None, False, 1.0),
        (sg.SF(baseline="loo"), "loo", False, 1.0),
        (sg.LSF(control_variate=True), None, True, 1.0),
        (sg.LoadedDiCE(0.9, baseline="mean"), "mean", False, 0.9),
        (sg.LVC(), None, False, 1.0),
    ],
    ids=str,
)
def test_options_are_said(estimator, baseline, control_variate, decay):
    found = estimator.baseline, estimator.control_variate, estimator.decay
    assert found == (baseline, control_variate, decay)


class TestControlVariateOfTheLinearisedScoreFunction:
    """`LSF(control_variate=True)`."""

    def test_on_the_same_samples_through_an_update(self):
        """Contributions to the direction less the mean of the others, times the score."""
        n = 5
        graph = problems.bandit(1, n=n, m=2)
        compiled = graph.compile({"D1": sg.LSF(control_variate=True), "tau": sg.SF()})
        plain = graph.compile({"D1": sg.MAML(), "tau": sg.SF()})
        trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(6))
        drawn = trace.draws["D1"]
        scores = torch.eye(3, dtype=F64)[drawn] - BANDIT_THETA.softmax(-1)
        terms = BANDIT_REWARD[drawn, None] * scores
        compared = terms - (terms.sum(0) - terms) / (n - 1)
        adapted = BANDIT_THETA + RATE * terms.mean(0)
        last = trace.draws["tau"]
        outer = torch.func.grad(lambda t: (t.log_softmax(-1)[last] * BANDIT_REWARD[last]).mean())(adapted)
        expected = RATE * (compared @ outer) @ scores / n
        found, dropped = (torch.func.grad(c.surrogate)(BANDIT_THETA, trace) for c in (compiled, plain))
        assert (found - dropped).tolist() == pytest.approx(expected.tolist(), abs=1e-12)

    def test_unbiased_where_the_objective_is_linear_in_the_mean(self):
        compiled = pulls().compile(sg.LSF(control_variate=True))
        for order in (1, 2):
            assert sg.verify(compiled, BANDIT_THETA, order=order).relative_bias < EXACT

    def test_less_variance_than_without(self):
        theta = torch.tensor([0.4, 0.7], dtype=F64)
        found, plain = (
            sg.verify(problems.additive(8).compile(sg.LSF(control_variate=cv)), theta) for cv in (True, False)
        )
        assert found.total_variance < 0.95 * plain.total_variance

    def test_the_variance_of_leave_one_out(self):
        """To first order in 1/N the two are one."""
        graph = problems.regularized()
        found, loo = (
            sg.verify(graph.compile(e), BANDIT_THETA, sizes={"D": 9}) for e in (sg.LSF(control_variate=True), sg.LOO())
        )
        assert found.total_variance == pytest.approx(loo.total_variance, rel=0.01)

    def test_its_ledger(self):
        explanation = problems.bandit(1, m=2).compile(sg.LSF(control_variate=True)).explain()
        assert [row.counted for row in explanation.ledger if row.sample == "D1"] == ["linearized"]
        assert (explanation.bias, explanation.variance) == ("O(1/sqrt(N))", "O(1/N)")


def test_reward_is_the_mdps():
    """The observed MDP is the two-state MDP: same exact value."""
    v = sg.verify(walks(1).compile(sg.SF()), MDP_THETA)
    truth = torch.func.grad(problems.mdp_value)(MDP_THETA)
    assert v.truth.flatten().tolist() == pytest.approx(truth.flatten().tolist(), abs=1e-12)
    assert REWARD.shape == (2, 2)


@pytest.mark.parametrize("estimator", [sg.LSF(control_variate=True), sg.LoadedDiCE(1.0, "loo"), sg.LoadedDiCE(1.0)])
@pytest.mark.parametrize("order", [1, 2])
def test_terms_that_meet_other_draws_at_a_mean_of_their_own(estimator, order):
    """In mean(x + mean(x)) the inner mean has boxes of its own: the outer terms are compared without it."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.mean(x + sg.mean(x))

    compiled = objective.compile(estimator)
    assert compiled.explain().unbiased
    assert sg.verify(compiled, torch.tensor(0.4, dtype=F64), order=order).relative_bias < EXACT


@pytest.mark.parametrize("baseline", [None, lambda trace: 0.7])
def test_below_a_factor_that_depends_on_the_draw_there_is_no_control_variate(baseline):
    """Here every term depends on all draws, so that there is nothing to compare it with; a number has zero mean."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.mean(x * sg.stop(sg.mean(x)))

    theta = torch.tensor(0.4, dtype=F64)
    compared = sg.LSF(control_variate=True) if baseline is None else sg.LoadedDiCE(1.0, baseline)
    found, plain = (float(sg.verify(objective.compile(e), theta).expectation) for e in (compared, sg.LSF()))
    assert found == pytest.approx(plain, abs=1e-13)
    with pytest.raises(sg.CompileError, match="no costs of their own"):
        objective.compile(sg.LoadedDiCE(1.0, "loo"))


def test_a_number_is_compared_with_every_field_of_a_cost():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.mean(sg.apply(lambda v: {"linear": v, "wave": torch.sin(v)}, x))["wave"]

    theta = torch.tensor(0.4, dtype=F64)
    found, plain = (sg.verify(objective.compile(e), theta) for e in (sg.LoadedDiCE(1.0, lambda _: 0.4), sg.LSF()))
    assert found.relative_bias < EXACT
    assert found.total_variance < 0.8 * plain.total_variance
