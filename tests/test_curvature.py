"""Expanded likelihood ratios: the factors of the literature, their derivatives, and the bias that the ledger claims."""

import pytest
import torch
from torch.distributions import Bernoulli

import stochgraph as sg
from stochgraph.surrogate.expansions import loaded, taylor
from tests import problems
from tests.problems import DISCOUNT, F64, MDP_THETA, TwoStateMDP

EXACT = 1e-12


def returns(horizon=3):
    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(horizon), theta, n=1)
        return sg.mean(sg.sum(data.reward, discount=DISCOUNT))

    return objective


def value_of_state(trace):
    return 0.4 + 0.3 * trace.draws["D"].state


def box(x):
    return torch.exp(x - x.detach())


def log_probs(theta, path):
    return theta.log_softmax(-1)[path.state, path.action]


def written_out(theta, path, decay, values):
    """Algorithm 1 of Farquhar et al. (2019), step by step."""
    steps, advantages = log_probs(theta, path)[0], problems.discounted_to_go(path.reward)[0]
    discounts = DISCOUNT ** torch.arange(len(steps), dtype=F64)
    weighted, total = torch.tensor(0.0, dtype=F64), torch.tensor(0.0, dtype=F64)
    for t, step in enumerate(steps):
        weighted = decay * weighted + step
        total = total + (box(weighted) - box(weighted - step)) * (advantages[t] - discounts[t] * values[t])
    return total


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_loaded_dice_on_the_same_samples(decay, with_values):
    """Gradient, Hessian and third derivative."""
    baseline = value_of_state if with_values else None
    compiled = returns().compile(sg.LoadedDiCE(decay, baseline=baseline))
    trace = compiled.sample(MDP_THETA, generator=torch.Generator().manual_seed(0))
    values = value_of_state(trace)[0] if with_values else torch.zeros(3, dtype=F64)

    def mine(theta):
        return compiled.surrogate(theta, trace)

    def theirs(theta):
        return written_out(theta, trace.draws["D"], decay, values)

    for derive in (torch.func.grad, torch.func.hessian, lambda f: torch.func.jacrev(torch.func.hessian(f))):
        found, expected = derive(mine)(MDP_THETA), derive(theirs)(MDP_THETA)
        assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("baseline", [None, value_of_state])
def test_without_decay_it_agrees_with_dice_in_expectation(baseline, order):
    found, dice = (
        sg.verify(returns().compile(e), MDP_THETA, order=order) for e in (sg.LoadedDiCE(1.0, baseline), sg.LSF())
    )
    assert found.expectation.flatten().tolist() == pytest.approx(dice.expectation.flatten().tolist(), abs=1e-13)
    assert found.relative_bias < EXACT
    if baseline is not None:
        assert found.total_variance < 0.5 * dice.total_variance


def test_lvc_is_loaded_dice_with_no_memory():
    compiled = [problems.mdp(3).compile(e) for e in (sg.LVC(), sg.LoadedDiCE(0.0))]
    trace = compiled[0].sample(MDP_THETA, generator=torch.Generator().manual_seed(1))
    for derive in (torch.func.grad, torch.func.hessian):
        first, second = (derive(c.surrogate)(MDP_THETA, trace) for c in compiled)
        assert first.flatten().tolist() == second.flatten().tolist()


def test_lvc_on_the_same_samples():
    """One ratio per step, times the rewards from that step on (Rothfuss et al. 2019, eq. 7)."""
    compiled = returns().compile(sg.LVC())
    trace = compiled.sample(MDP_THETA, generator=torch.Generator().manual_seed(2))
    path = trace.draws["D"]

    def theirs(theta):
        return (box(log_probs(theta, path)) * problems.discounted_to_go(path.reward)).sum()

    for derive in (torch.func.grad, torch.func.hessian):
        found, expected = derive(lambda t: compiled.surrogate(t, trace))(MDP_THETA), derive(theirs)(MDP_THETA)
        assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-12)


def test_taylor_is_the_likelihood_ratio_to_second_order():
    """Against the product of the steps' ratios, with every third-order term taken off."""
    log_ratio = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    a, b, c = log_ratio.expm1()
    expected = torch.stack([a, a + b + a * b, a + b + c + a * b + a * c + b * c])
    assert taylor(log_ratio).tolist() == pytest.approx(expected.tolist(), abs=1e-14)


def test_loaded_factors_at_the_ends():
    log_ratio = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    assert loaded(log_ratio, 1.0).tolist() == pytest.approx(log_ratio.cumsum(0).expm1().tolist(), abs=1e-14)
    assert loaded(log_ratio, 0.0).tolist() == pytest.approx(log_ratio.expm1().cumsum(0).tolist(), abs=1e-14)


def test_taylor_has_dices_gradient_and_hessian_and_no_more():
    graph = returns()
    dice, expanded = graph.compile(sg.LSF()), graph.compile(sg.Taylor())
    trace = dice.sample(MDP_THETA, generator=torch.Generator().manual_seed(3))
    for derive in (torch.func.grad, torch.func.hessian):
        first, second = (derive(c.surrogate)(MDP_THETA, trace) for c in (dice, expanded))
        assert first.flatten().tolist() == pytest.approx(second.flatten().tolist(), abs=1e-12)
    assert sg.verify(expanded, MDP_THETA, order=3).relative_bias > 0.01


# Exact relative bias of the expected gradient, Hessian and third derivative of a plain return; all at horizon 3.
@pytest.mark.parametrize(
    ("estimator", "hessian"),
    [(sg.LVC(), 0.285), (sg.LoadedDiCE(0.5), 0.136), (sg.LoadedDiCE(0.9), 0.027), (sg.Taylor(), 0.0)],
)
def test_bias_of_a_plain_return(estimator, hessian):
    compiled = returns().compile(estimator)
    assert compiled.explain().unbiased
    assert sg.verify(compiled, MDP_THETA).relative_bias < EXACT
    assert sg.verify(compiled, MDP_THETA, order=2).relative_bias == pytest.approx(hessian, abs=1e-3)


@pytest.mark.parametrize(
    ("estimator", "words", "bias"),
    [
        (sg.LVC(), ["linearized", "dropped"], "O(1)"),
        (sg.LoadedDiCE(0.5), ["linearized", "scaled"], "O(1)"),
        (sg.LoadedDiCE(1.0), ["linearized"], "O(1/sqrt(N))"),
        (sg.Taylor(), ["linearized"], "O(1/sqrt(N))"),
    ],
)
def test_the_ledger_through_an_update(estimator, words, bias):
    compiled = problems.mdp(3).compile(estimator)
    explanation = compiled.explain()
    inner = [row for row in explanation.ledger if row.sample == "D"]
    assert [row.counted for row in inner] == words
    assert [row.part for row in inner[1:]] == ["across time steps"] * (len(words) - 1)
    assert explanation.bias == bias
    assert sg.verify(compiled, MDP_THETA).relative_bias > 1e-3


@pytest.mark.parametrize(
    ("estimator", "stays"),
    [(sg.LVC(), True), (sg.LoadedDiCE(0.5), True), (sg.LoadedDiCE(), False), (sg.Taylor(), False)],
)
def test_the_order_of_the_bias(estimator, stays):
    """A linear outcome takes the linearisation's bias away: what stays is that of the products of scores."""

    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(3), theta, n=2)
        adapted = sg.ascend(theta, sg.mean(sg.sum(data.reward, discount=DISCOUNT)), 0.7)
        return sg.apply(lambda t: (t * torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)).sum(), adapted)

    result = sg.verify(objective.compile(estimator), MDP_THETA)
    assert (result.relative_bias > 5e-3) if stays else (result.relative_bias < EXACT)


@pytest.mark.parametrize(
    "estimator", [sg.LVC(), sg.LoadedDiCE(0.5), sg.LoadedDiCE(0.7, value_of_state), sg.Taylor(), sg.LSF(), sg.LOO()]
)
def test_directions_are_the_graphs(estimator):
    """No estimator changes what an update does, baselines included."""
    graph = problems.mdp(3, n=3)
    trace = graph.compile(sg.SF()).sample(MDP_THETA, generator=torch.Generator().manual_seed(4))
    compiled = graph.compile(estimator)
    assert float(compiled.surrogate(MDP_THETA, trace)) == pytest.approx(float(trace.value), abs=1e-14)


def test_a_baseline_makes_the_direction_vary_less_around_its_mean_derivative():
    """Exactly: the variance of a linear function of the update's derivative falls, its mean stays."""

    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(2), theta, n=2)
        adapted = sg.ascend(theta, sg.mean(sg.sum(data.reward, discount=DISCOUNT)), 0.7)
        return sg.apply(lambda t: (t * torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)).sum(), adapted)

    plain, baseline = (sg.verify(objective.compile(sg.LoadedDiCE(1.0, b)), MDP_THETA) for b in (None, value_of_state))
    assert baseline.relative_bias < EXACT
    assert baseline.total_variance < 0.6 * plain.total_variance


def test_without_a_time_axis_all_are_the_score_function_of_a_draw():
    graph = problems.bandit(1, n=3)
    trace = graph.compile(sg.LSF()).sample(problems.BANDIT_THETA, generator=torch.Generator().manual_seed(5))
    grads = [
        torch.func.grad(graph.compile(e).surrogate)(problems.BANDIT_THETA, trace).tolist()
        for e in (sg.LSF(), sg.LVC(), sg.LoadedDiCE(0.3), sg.Taylor())
    ]
    assert all(grad == grads[0] for grad in grads)


@pytest.mark.parametrize(
    "estimator", [sg.LSF(), sg.LSF(control_variate=True), sg.LVC(), sg.LoadedDiCE(0.5), sg.Taylor(), sg.LOO()]
)
def test_an_implicit_update_needs_first_derivatives_of_its_data_only(estimator):
    """Its data are weighted, not scored for a direction: no products of scores, so no expansion loses any."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)

    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(2), theta, n=2)
        psi = sg.unknown("psi", like=theta)
        gain = sg.apply(lambda p, s, a, r: r * p[s, a], psi, data.state, data.action, data.reward)
        penalty = sg.apply(lambda p, t: ((p - t) ** 2).sum(), psi, theta)
        solution = sg.argmax(sg.mean(sg.sum(gain)) - penalty, over=psi, init=theta)
        return sg.apply(lambda p: (p * weight).sum(), solution)

    compiled = objective.compile(estimator)
    assert {row.part for row in compiled.explain().ledger} == {""}
    assert sg.verify(compiled, MDP_THETA).relative_bias < EXACT


def test_plates_inside_a_nonlinear_inner_objective():
    """Draws that a term depends on all at once multiply their factors."""

    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(2), theta, n=2)
        inner = torch.exp(sg.mean(sg.sum(data.reward, discount=DISCOUNT)))
        return sg.apply(
            lambda t: (t * torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)).sum(), sg.ascend(theta, inner, 0.7)
        )

    dice, loaded_dice = (sg.verify(objective.compile(e), MDP_THETA) for e in (sg.LSF(), sg.LoadedDiCE()))
    assert loaded_dice.expectation.flatten().tolist() == pytest.approx(dice.expectation.flatten().tolist(), abs=1e-12)
    assert sg.verify(objective.compile(sg.LVC()), MDP_THETA).relative_bias > 1e-2


@pytest.mark.parametrize("estimator", [sg.LVC(), sg.LoadedDiCE(0.5), sg.LoadedDiCE(1.0, value_of_state), sg.Taylor()])
@pytest.mark.parametrize("make", [lambda: returns(2), lambda: problems.mdp(2, n=3, m=2)])
def test_one_pass_equals_sampling_and_replaying(make, estimator):
    """Without recorded log-probabilities the factors are taken at the scores' own values."""
    compiled = make().compile({name: estimator if name == "D" else sg.SF() for name in make().samples})
    trace = compiled.sample(MDP_THETA, generator=torch.Generator().manual_seed(4))
    value, grad = compiled.value_and_grad(MDP_THETA, generator=torch.Generator().manual_seed(4))
    expected = torch.func.grad(compiled.surrogate)(MDP_THETA, trace)
    assert float(value) == pytest.approx(float(trace.value), abs=1e-13)
    assert grad.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-12)


@pytest.mark.parametrize("baseline", [lambda trace: 0.7, "loo"])
def test_a_baseline_in_an_update_with_a_copy_of_the_parameters_for_each_task(baseline):
    """The data have no task, the copies that score them do: each task's step is that of a graph without tasks."""

    def objective(task_of):
        def body(theta):
            task = task_of()
            y = sg.sample("y", Bernoulli, logits=theta, n=3)
            adapted = sg.ascend(theta, sg.mean(torch.sin(y)) + 0 * task, 0.5)
            return adapted**2 if isinstance(task, float) else sg.mean(adapted**2)

        return sg.graph(body).compile({"y": sg.LoadedDiCE(1.0, baseline)})

    alone = objective(lambda: 1.0)
    tasks = objective(lambda: sg.sample("task", Bernoulli, torch.tensor(0.5, dtype=F64), n=2))
    found, expected = (sg.verify(c, torch.tensor(0.3, dtype=F64)) for c in (tasks, alone))
    assert float(found.expectation) == pytest.approx(float(expected.expectation), abs=1e-13)
