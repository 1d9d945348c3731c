"""Graphs that were once compiled wrongly without a word, each against the same thing worked out by hand."""

import numpy as np
import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Exponential,
    Gumbel,
    Normal,
    TransformedDistribution,
    Uniform,
)

import stochgraph as sg
from tests import problems
from tests.problems import F64

THETA = torch.tensor(0.3, dtype=F64)


def seed(number=0):
    return torch.Generator().manual_seed(number)


def adapted_by(cost, estimator, rate=1.0, n=2):
    """theta after one step on the mean of a cost of Bernoulli draws; the trace, and the compiled graph."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=n)
        return 1.0 * sg.ascend(theta, sg.mean(cost(x, theta)), rate)

    compiled = objective.compile(estimator)
    return compiled, compiled.sample(THETA, generator=seed(3))


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.MAML()])
@pytest.mark.parametrize(
    ("cost", "scored"),
    [
        (lambda x, t: x * t, lambda x, t: x * t),
        (lambda x, t: t * (x + 2.0), lambda x, t: t * (x + 2.0)),
        (lambda x, t: (x + 1.0) / t, lambda x, t: (x + 1.0) / t),
        (lambda x, t: x * t + t**2 - x, lambda x, t: x * t - x),  # a summand without draws needs no score
        (lambda x, t: -(x * 3.0) * t / 2.0, lambda x, t: -1.5 * x * t),
    ],
)
def test_costs_times_parameters_in_an_inner_objective(cost, scored, estimator):
    """The direction is mean(score * cost + d cost / d theta), whatever the estimator."""
    compiled, trace = adapted_by(cost, estimator)
    x = trace.draws["x"]
    score = x - torch.sigmoid(THETA)
    slope = torch.func.jacrev(lambda t: cost(x, t))(THETA)
    expected = THETA + (score * scored(x, THETA) + slope).mean()
    assert float(trace.value) == pytest.approx(float(expected), abs=1e-12)
    assert float(compiled.value_and_grad(THETA, generator=seed(3))[0]) == pytest.approx(float(expected), abs=1e-12)


def test_the_gradient_through_such_an_update():
    """d theta' / d theta at fixed draws, plus theta' times the summed scores."""
    compiled, trace = adapted_by(lambda x, t: x * t, sg.SF())
    x = trace.draws["x"]

    def adapted(t):
        return t + ((x - torch.sigmoid(t)) * x * t + x).mean()

    expected = torch.func.grad(adapted)(THETA) + adapted(THETA) * (x - torch.sigmoid(THETA)).sum()
    assert float(torch.func.grad(compiled.surrogate)(THETA, trace)) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("name", problems.GRAPHS)
def test_every_estimator_draws_the_same(name):
    """The update is what the graph says; an estimator only changes how it is differentiated."""
    make, theta = problems.GRAPHS[name]
    found = []
    for estimator in (sg.SF(), sg.LSF(), sg.MAML(), sg.SGMRLPublished(), sg.FirstOrder()):
        if name == "extreme" and estimator == sg.LSF():
            continue
        compiled = make().compile(estimator)
        found.append(float(compiled.sample(theta, generator=seed()).value))
        found.append(float(compiled.value_and_grad(theta, generator=seed())[0]))
    assert found == pytest.approx([found[0]] * len(found), abs=1e-12)


@pytest.mark.parametrize("dist", [Bernoulli, lambda logits: Bernoulli(logits=logits)])
def test_updates_of_drawn_parameters(dist):
    """The start of the update is a draw: nothing that it depends on is an input, but its data are still scored."""

    @sg.graph
    def objective(theta):
        start = sg.sample("start", Bernoulli, logits=theta)
        x = sg.sample("x", lambda p: Bernoulli(logits=p), start, n=2)
        return 1.0 * sg.ascend(start, sg.mean(x), 1.0)

    for estimator in (sg.SF(), {"start": sg.SF()}):
        compiled = objective.compile(estimator)
        trace = compiled.sample(THETA, generator=seed(1))
        start, x = trace.draws["start"], trace.draws["x"]
        expected = start + ((x - torch.sigmoid(start)) * x).mean()
        assert float(trace.value) == pytest.approx(float(expected), abs=1e-6)
        assert sg.verify(compiled, THETA).relative_bias < 1e-12


def test_updates_of_stopped_parameters():
    @sg.graph
    def objective(theta):
        fixed = sg.stop(theta)
        x = sg.sample("x", Bernoulli, logits=fixed, n=2)
        return theta * sg.ascend(fixed, sg.mean(x), 1.0)

    trace = objective.compile(sg.SF()).sample(THETA, generator=seed(3))
    x = trace.draws["x"]
    expected = THETA * (THETA + ((x - torch.sigmoid(THETA)) * x).mean())
    assert float(trace.value) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("scored", [False, True])
def test_copies_of_the_parameters_must_not_mix(scored):
    def body(theta):
        task = sg.sample("task", Bernoulli, torch.tensor(0.5), n=2)
        draw = sg.sample("x", lambda p, _: Bernoulli(logits=p), theta, task)
        reward = task * (draw if scored else theta)
        return sg.mean(sg.ascend(theta, reward - sg.mean(reward, over="task") ** 2, 0.5))

    with pytest.raises(sg.DeclarationError, match=r"keeps the plate 'task', .* but .* reduces that plate"):
        sg.graph(lambda theta: body(theta))


def test_parameters_of_a_plate_must_not_mix_either():
    def body(theta):
        task = sg.sample("task", Bernoulli, torch.tensor(0.5), n=2)
        start = theta * (1 + task)
        return sg.mean(sg.ascend(start, start * sg.mean(start), 0.5))

    with pytest.raises(sg.DeclarationError, match=r"keeps the plate 'task', .* but .* reduces that plate"):
        sg.graph(lambda theta: body(theta))


@pytest.mark.parametrize(
    "cost",
    [
        lambda x, y: (x == 1) + (y == 1),
        lambda x, y: (x == 1).to(torch.uint8) - (y == 1).to(torch.uint8),
        lambda x, y: -(x > 0.5) * (y == 1) + 1.0,
    ],
)
def test_arithmetic_on_booleans_and_small_integers(cost):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta)
        y = sg.sample("y", Bernoulli, logits=theta * 2)
        return 1.0 * cost(x, y)

    compiled = objective.compile(sg.SF())
    assert sg.verify(compiled, THETA).relative_bias < 1e-12
    trace = compiled.sample(THETA, generator=seed())
    assert float(compiled.surrogate(THETA, trace)) == float(trace.value)


def test_an_integer_objective():
    @sg.graph
    def objective(theta):
        return sg.sum(sg.sample("k", torch.distributions.Categorical, logits=theta, n=3), over="k")

    compiled = objective.compile(sg.SF())
    assert compiled.sample(problems.BANDIT_THETA).value.dtype == F64
    assert sg.verify(compiled, problems.BANDIT_THETA).relative_bias < 1e-12


def test_a_box_for_each_draw_does_not_cover_a_mean_that_was_cut_off():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        return sg.mean(sg.stop(x * sg.mean(x)))

    compiled = objective.compile(sg.LSF())
    assert sg.verify(compiled, THETA).relative_bias > 0.1
    assert not compiled.explain().unbiased


@pytest.mark.parametrize(
    ("dist", "moves"),
    [
        (lambda t: TransformedDistribution(Uniform(0.0, 1.0), [AffineTransform(0.0, t)]), True),
        (lambda t: TransformedDistribution(Exponential(1.0), [AffineTransform(t, 1.0)]), True),
        (lambda t: TransformedDistribution(Normal(0.0, 1.0), [AffineTransform(t, 1.0)]), False),
        (lambda t: Gumbel(t, 1.0), False),
        (lambda t: torch.distributions.Weibull(t, 1.0), False),
    ],
)
def test_supports_that_move_behind_a_transform(dist, moves):
    compiled = sg.graph(lambda theta: sg.mean(sg.sample("x", dist, theta, n=3))).compile(sg.SF())
    if moves:
        with pytest.raises(sg.SamplingError, match="the support of lambda moves"):
            compiled.sample(torch.tensor(2.0))
    else:
        compiled.sample(torch.tensor(2.0))


@pytest.mark.parametrize("rates", [{"b": 0.0, "a": 1.0}, {"a": 1.0, "b": 0.0}])
def test_step_sizes_are_matched_by_name(rates):
    @sg.graph
    def objective(p):
        x = sg.sample("x", Normal, 0.0, 1.0, n=2)
        moved = sg.descend(p, sg.mean((p["a"] - x) ** 2 + (p["b"] - x) ** 2), rates)
        return moved["a"] + 10 * moved["b"]

    start = {"a": THETA, "b": 2 * THETA}
    trace = objective.compile(sg.SF()).sample(start, generator=seed())
    expected = THETA - 2 * (THETA - trace.draws["x"]).mean() + 20 * THETA
    assert float(trace.value) == pytest.approx(float(expected), abs=1e-6)


def test_a_step_size_per_task_for_one_leaf_only():
    @sg.graph
    def objective(p):
        task = sg.sample("task", Bernoulli, torch.tensor(0.5, dtype=F64), n=3)
        moved = sg.descend(p, p["a"] ** 2 + (p["b"] ** 2).sum(), {"a": task + 1.0, "b": 0.1})
        return sg.sum(moved["a"] + moved["b"].sum(), over="task")

    start = {"a": THETA, "b": torch.tensor([1.0, 2.0], dtype=F64)}
    trace = objective.compile(sg.SF()).sample(start, generator=seed())
    task = trace.draws["task"]
    expected = (THETA - (task + 1) * 2 * THETA + 0.8 * 3.0).sum()
    assert float(trace.value) == pytest.approx(float(expected), abs=1e-12)


def test_one_field_read_twice_is_one_node():
    @sg.graph
    def objective(p):
        x = sg.sample("x", Bernoulli, logits=p["a"], n=2)
        return sg.ascend(p["a"], sg.mean(sg.apply(torch.mul, x, p["a"])), 1.0)

    trace = objective.compile(sg.SF()).sample({"a": THETA}, generator=seed(3))
    x = trace.draws["x"]
    expected = THETA + ((x - torch.sigmoid(THETA)) * x * THETA + x).mean()
    assert float(trace.value) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.add_(5), lambda x: x.clamp_(0.0), torch.relu_, lambda x: torch.zeros(3).__setitem__(0, x)],
)
def test_nothing_works_in_place(change):
    with pytest.raises(sg.DeclarationError, match="works in place, but values of nodes must not change"):
        sg.graph(lambda theta: sg.mean(change(sg.sample("x", Normal, theta, 1.0, n=3))))


def test_arrays_are_constants_of_one_draw():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.mean((x * np.array([1.0, 2.0, 30.0])).sum())

    trace = objective.compile(sg.SF()).sample(THETA, generator=seed())
    assert float(trace.value) == pytest.approx(33 * float(trace.draws["x"].mean()), abs=1e-12)


def test_lists_as_indices():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        table = sg.apply(lambda v: v * torch.arange(24.0).reshape(2, 3, 4), x)
        return sg.mean(table[[0, 1], :, [0, 1]].sum())

    trace = objective.compile(sg.SF()).sample(THETA, generator=seed())
    one = torch.arange(24.0).reshape(2, 3, 4)[[0, 1], :, [0, 1]].sum()
    assert float(trace.value) == pytest.approx(float((trace.draws["x"] * one).mean()), abs=1e-5)


def test_trajectories_per_time_step_of_a_trajectory():
    @sg.graph
    def objective(theta):
        outer = sg.sample("D", problems.TwoStateMDP(2), theta, n=1)
        inner = sg.sample("E", problems.TwoStateMDP(2), sg.apply(lambda t, r: t * r, theta, outer.reward))
        return sg.mean(sg.sum(outer.reward * sg.sum(inner.reward, over="E.time")))

    compiled = objective.compile(sg.SF())
    trace = compiled.sample(problems.MDP_THETA, generator=seed())
    assert trace.draws["E"].reward.shape == (1, 2, 2)
    assert compiled.value_and_grad(problems.MDP_THETA)[1].shape == (2, 2)
    assert sg.verify(compiled, problems.MDP_THETA).relative_bias < 1e-12


def test_captured_and_foreign_nodes():
    with pytest.raises(sg.DeclarationError, match="captures the node 'theta'; pass it as an argument"):
        sg.graph(lambda theta: sg.mean(sg.apply(lambda a: a * theta, sg.sample("x", Normal, theta, 1.0, n=2))))
    kept = []

    @sg.graph
    def first(theta):
        kept.append(theta)
        return theta * 1.0

    with pytest.raises(sg.DeclarationError, match=r"outside a declaration|different declarations"):
        sg.graph(lambda theta: kept[0] * 1.0)


@pytest.mark.parametrize("theta", [0.3, np.float64(0.3), np.array(0.3), torch.tensor(0.3)])
def test_numbers_and_arrays_as_inputs(theta):
    compiled = sg.graph(lambda t: sg.mean(sg.sample("x", Normal, t, 1.0, n=3))).compile(sg.SF())
    assert compiled.value_and_grad(theta, generator=seed())[1].shape == ()


def test_inputs_without_a_gradient():
    compiled = sg.graph(lambda t: sg.mean(sg.sample("x", Normal, t * 1.0, 1.0, n=3))).compile(sg.SF())
    with pytest.raises(TypeError, match="no leaf of the input 't' is a floating-point tensor"):
        compiled.value_and_grad(torch.tensor(1))


def test_a_constant_direction_that_depends_on_the_input_through_a_score():
    """The update's parameters are a draw; its direction moves with theta through the distribution of its data."""

    @sg.graph
    def objective(theta):
        start = sg.sample("start", Bernoulli, logits=theta)
        x = sg.sample("x", lambda p, t: Bernoulli(logits=p * t), start, theta, n=2)
        return sg.ascend(start, sg.mean(x), 1.0) ** 2

    compiled = objective.compile(sg.FirstOrder("cost"))
    assert sg.verify(compiled, THETA).relative_bias > 1e-3
    assert not compiled.explain().unbiased
    assert sg.verify(objective.compile(sg.SF()), THETA).relative_bias < 1e-12
    assert objective.compile(sg.SF()).explain().unbiased


@pytest.mark.parametrize("dist", [Bernoulli, lambda logits: Bernoulli(logits=logits)])
def test_copies_of_the_parameters_for_every_pair_of_draws(dist):
    """Each copy is scored with the draws of its own row and column, the plate of the data being the second one."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", dist, logits=theta, n=2)
        y = sg.sample("y", dist, logits=theta, n=3)
        return sg.mean(sg.ascend(theta, x * y, 0.6) ** 2)

    compiled = objective.compile(sg.SF())
    trace = compiled.sample(THETA, generator=seed(3))
    x, y = trace.draws["x"][:, None], trace.draws["y"]
    adapted = THETA + 0.6 * x * y * (x + y - 2 * torch.sigmoid(THETA))
    assert float(trace.value) == pytest.approx(float((adapted**2).mean()), abs=1e-12)
    assert sg.verify(compiled, THETA).relative_bias < 1e-12


@pytest.mark.parametrize("dist", [Normal, lambda mean, scale: Normal(mean, scale)])
def test_pathwise_draws_of_copies_of_the_parameters(dist):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", dist, theta, 1.0, n=2)
        y = sg.sample("y", dist, theta, 1.0, n=3)
        return sg.mean(sg.ascend(theta, x**2 * y, 0.6) ** 2)

    compiled = objective.compile(sg.PW())
    trace = compiled.sample(THETA, generator=seed(3))

    def by_hand(theta):
        x, y = (trace.draws["x"] - THETA + theta)[:, None], trace.draws["y"] - THETA + theta
        return ((theta + 0.6 * (2 * x * y + x**2)) ** 2).mean()

    assert float(trace.value) == pytest.approx(float(by_hand(THETA)), abs=1e-12)
    expected = torch.func.grad(by_hand)(THETA)
    assert float(torch.func.grad(compiled.surrogate)(THETA, trace)) == pytest.approx(float(expected), abs=1e-12)


def test_an_update_inside_an_update_with_a_copy_for_each_task():
    """The inner step is one function of each task's own copy."""

    @sg.graph
    def objective(theta):
        task = sg.sample("task", Bernoulli, torch.tensor(0.5, dtype=F64), n=2)
        x = sg.sample("x", Bernoulli, logits=theta, n=2)
        inner = sg.ascend(theta, sg.mean(x) * theta, 0.5)
        return sg.mean(sg.ascend(theta, inner**2 * task, 0.5) ** 2)

    compiled = objective.compile(sg.SF())
    trace = compiled.sample(THETA, generator=seed(3))
    x, task = trace.draws["x"], trace.draws["task"]

    def cost(psi):
        """The scores of x stand in front of the product with the parameters, and of what comes of it."""
        score = (x - torch.sigmoid(psi)).sum()
        inner = psi + 0.5 * (score * x.mean() * psi + x.mean())
        scored = Bernoulli(logits=psi).log_prob(x).sum()
        return inner**2 + scored * (inner**2).detach()

    adapted = THETA + 0.5 * torch.func.grad(cost)(THETA) * task
    assert float(trace.value) == pytest.approx(float((adapted**2).mean()), abs=1e-12)
    assert sg.verify(compiled, THETA).relative_bias < 1e-12


def test_an_estimator_that_drops_every_path_has_a_gradient_of_zero():
    @sg.graph
    def objective(theta):
        return sg.stop(sg.mean(sg.sample("x", Bernoulli, logits=theta, n=2)))

    assert float(objective.compile(sg.LSF()).value_and_grad(THETA)[1]) == 0.0


def test_one_pathwise_draw_without_a_plate_is_replayed():
    compiled = sg.graph(lambda theta: sg.sample("x", Normal, theta, 1.0) ** 2).compile(sg.PW())
    trace = compiled.sample(THETA, generator=seed())
    expected = 2 * float(trace.draws["x"])
    assert float(torch.func.grad(compiled.surrogate)(THETA, trace)) == pytest.approx(expected, abs=1e-12)
