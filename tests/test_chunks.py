"""Gradients in chunks of a plate: equal to those of the whole trace, and refused where they would not be."""

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal
from torch.utils import _pytree as pytree

import stochgraph as sg
from tests import problems
from tests.problems import BANDIT_THETA, F64
from tests.test_navigation import meta, parameters

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
ESTIMATORS = {
    "SF": sg.SF(),
    "LSF": sg.LSF(),
    "LSF, compared": sg.LSF(control_variate=True),
    "LOO": sg.LOO(),
    "MAML": sg.MAML(),
    "EMAML": sg.EMAML(),
    "SGMRL": sg.SGMRLPublished(),
    "FO": sg.FirstOrder(),
    "LVC": sg.LVC(),
    "Loaded DiCE": sg.LoadedDiCE(0.9),
    "Taylor": sg.Taylor(),
}


def seed(number=0):
    return torch.Generator().manual_seed(number)


def assert_equal(found, expected):
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def check(compiled, *inputs, over, chunk, sizes=None):
    """On the same seed: drawn in one batch, differentiated whole and in chunks, also at other parameters."""
    expected = compiled.value_and_grad(*inputs, generator=seed(), sizes=sizes)
    assert_equal(sg.accumulate(compiled, *inputs, over=over, chunk=chunk, generator=seed(), sizes=sizes), expected)
    trace = compiled.sample(*inputs, generator=seed(), sizes=sizes)
    assert_equal(sg.accumulate(compiled, *inputs, over=over, chunk=chunk, trace=trace), expected)
    moved = pytree.tree_map(lambda leaf: leaf + 0.01 if leaf.is_floating_point() else leaf, inputs)
    found = sg.accumulate(compiled, *moved, over=over, chunk=chunk, trace=trace)[0]
    torch.testing.assert_close(found, compiled.surrogate(*moved, trace), **EXACT)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("steps", [1, 2])
def test_navigation(name, steps):
    """Seven tasks in chunks of three: the last chunk is smaller."""
    check(meta(steps).compile(ESTIMATORS[name]), parameters(), over="task", chunk=3, sizes={"task": 7})


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 9])
def test_chunk_sizes(chunk):
    check(problems.task_bandit(1).compile(sg.SF()), BANDIT_THETA, over="task", chunk=chunk, sizes={"task": 5})


@pytest.mark.parametrize("baseline", ["loo", lambda trace: 0.3])
def test_baselines_that_keep_to_the_task(baseline):
    estimators = {"D1": sg.SF(), "tau": sg.SF(baseline=baseline)}
    compiled = meta(1).compile(estimators)
    if callable(baseline):  # it may look at any task
        with pytest.raises(sg.CompileError, match="baseline"):
            sg.accumulate(compiled, parameters(), over="task", chunk=2)
    else:
        check(compiled, parameters(), over="task", chunk=2)


def test_the_linear_baseline_keeps_to_the_task():
    check(meta(1).compile({"D1": sg.SF(), "tau": sg.SF(baseline="linear")}), parameters(), over="task", chunk=2)


def test_a_plate_that_is_not_outermost():
    """Only linear operations follow the outcomes, so their own plate can be cut as well."""
    check(meta(1).compile(sg.LSF()), parameters(), over="tau", chunk=3)


def test_pathwise_draws_and_their_noise():
    @sg.graph
    def objective(theta):
        task = sg.sample("task", Normal, theta["mean"], 1.0, n=5)
        x = sg.sample("x", lambda m, s: Normal(m * torch.ones(2, dtype=F64), s), task, torch.exp(theta["scale"]), n=3)
        loss = sg.mean(sg.apply(lambda d, t: ((d - t) ** 2).sum(), x, task), over="x")
        adapted = sg.descend(theta["scale"], loss, 0.1)
        return 2.0 * sg.mean(adapted * task) / 3.0 - theta["scale"]

    theta = {"mean": torch.tensor(0.3, dtype=F64), "scale": torch.tensor(-0.2, dtype=F64)}
    for estimators in (sg.PW(), {"task": sg.SF(), "x": sg.PW()}, {"task": sg.PW(), "x": sg.SF()}):
        check(objective.compile(estimators), theta, over="task", chunk=2)


def test_several_inputs_and_leaves_without_a_gradient():
    @sg.graph
    def objective(theta, rates, data):
        task = sg.sample("task", Bernoulli, probs=data, n=4)
        pulls = sg.sample("D", lambda p, _: Bernoulli(logits=p), theta["a"], task, n=2)
        adapted = sg.ascend(theta["a"], sg.mean(pulls * task, over="D"), rates)
        return -sg.mean(torch.exp(adapted) * task) + theta["count"] * 2.0

    theta = {"a": torch.tensor(0.3, dtype=F64), "count": torch.tensor(3)}
    compiled = objective.compile(sg.SF(), wrt=("theta", "rates"))
    inputs = theta, torch.tensor(0.4, dtype=F64), torch.tensor(0.6, dtype=F64)
    check(compiled, *inputs, over="task", chunk=3)
    gradient = sg.accumulate(compiled, *inputs, over="task", chunk=3)[1]
    assert isinstance(gradient, tuple)
    assert gradient[0]["count"] is None


def test_draws_without_the_plate_are_shared_by_all_chunks():
    @sg.graph
    def objective(theta):
        shared = sg.sample("shared", Normal, theta, 1.0, n=3)
        task = sg.sample("task", Normal, sg.mean(shared), 1.0, n=5)
        return sg.mean(task * theta) * sg.mean(shared) ** 2 + sg.mean(shared)

    compiled = objective.compile(sg.SF())
    check(compiled, torch.tensor(0.3, dtype=F64), over="task", chunk=2)
    with pytest.raises(sg.CompileError, match="shared"):
        sg.accumulate(compiled, torch.tensor(0.3, dtype=F64), over="shared", chunk=2)


def test_second_derivatives_are_the_weighted_sum_of_the_chunks():
    compiled = problems.task_bandit(1).compile(sg.SF())
    trace = compiled.sample(BANDIT_THETA, generator=seed(), sizes={"task": 5})
    whole = torch.func.hessian(lambda t: compiled.surrogate(t, trace))(BANDIT_THETA)
    parts = [
        weight * torch.func.hessian(lambda t, part=part: compiled.surrogate(t, part))(BANDIT_THETA)
        for weight, part in sg.chunks(compiled, trace, over="task", chunk=2)
    ]
    torch.testing.assert_close(sum(parts), whole, **EXACT)


def _memory(trace):
    return trace.draws["tau"].observation.untyped_storage().data_ptr()


def test_chunks_are_views():
    compiled = meta(1).compile(sg.LSF())
    trace = compiled.sample(parameters(), generator=seed())
    for _, part in sg.chunks(compiled, trace, over="task", chunk=2):
        assert _memory(part) == _memory(trace)


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
def test_the_default_size_counts_transitions_and_never_threads(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    compiled = meta(1, inner=10, outer=50).compile(sg.LSF())  # 5 steps: 250 transitions per task
    trace = compiled.sample(parameters(), generator=seed())
    assert sg.chunk_size(compiled, trace, "task") == 32
    assert len(list(sg.chunks(compiled, trace, over="task"))) == 1  # three tasks


# --- refusals


def mean_squared(theta):
    return sg.mean(sg.sample("x", Normal, theta, 1.0, n=4)) ** 2


def product_of_means(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    return sg.mean(x) * sg.mean(x * x)


def summed(theta):
    return sg.sum(sg.sample("x", Normal, theta, 1.0, n=4), over="x")


def largest(theta):
    return sg.reduce(lambda x: x.max(0).values, theta * sg.sample("x", Normal, 0.0, 1.0, n=4))


def centred(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    return sg.mean((x - sg.mean(x)) ** 2)


def divided_by(theta):
    return theta / sg.mean(sg.sample("x", Normal, theta, 1.0, n=4))


def updated(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    return sg.ascend(theta, sg.mean(-(x**2)), 0.1) * 2.0


def mean_as_parent(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    return sg.mean(sg.sample("z", Normal, sg.mean(x), 1.0, n=3))


def mean_as_score(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    return sg.mean(sg.sample("z", Normal, sg.mean(x) * theta, 1.0, n=3))


def copies_with_one_objective(theta):
    """Every entry's copy of the parameters climbs the mean over all entries: its share is one in four."""
    x = sg.sample("x", Bernoulli, torch.tensor(0.5, dtype=F64), n=4)
    copies = theta + x
    return sg.mean(sg.ascend(copies, sg.mean(sg.apply(torch.sin, copies)), 0.1) ** 2)


def plain(theta):
    return sg.mean(sg.sample("x", Normal, theta, 1.0, n=4) ** 2)


def two_plates(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    return sg.mean(sg.sample("y", Normal, x * theta, 1.0, n=3) ** 2)


@pytest.mark.parametrize(
    ("declared", "estimators", "message"),
    [
        (mean_squared, sg.SF(), "'weight.x.' .axes: none. adds up the scores of all draws"),
        (mean_squared, sg.LSF(), r"pow.*\(axes: none\) is not linear in the plate's mean"),
        (mean_squared, sg.LOO(), "'weight.x.' .axes: none. adds up the scores of all draws"),
        (mean_squared, sg.EMAML(), "'weight.x.' .axes: none. adds up the scores of all draws"),
        (product_of_means, sg.LSF(), "is not linear in the plate's mean"),
        (summed, sg.SF(), r"'sum\(x\)' \(axes: none\) sums over the plate"),
        (largest, {}, "compares or combines entries of the plate"),
        (centred, sg.LSF(), "combines the plate's mean with single entries of the plate"),
        (mean_as_score, sg.LSF(), "'log p.z.' .axes: .z.. is not linear in the plate's mean"),
        (divided_by, sg.LSF(), "is not linear in the plate's mean"),
        (updated, sg.LSF(), "takes the gradient of a mean over the plate"),
        (updated, sg.SF(), "'weight.x.' .axes: none. adds up the scores of all draws"),
        (mean_as_parent, sg.SF(), "'weight.x.' .axes: none. adds up the scores of all draws"),
        (copies_with_one_objective, {}, "takes the gradient of a mean over the plate"),
        (plain, sg.SF(baseline="loo"), "'mean of the others.*compares or combines entries of the plate"),
        (plain, sg.SF(baseline=lambda trace: 1.0), "'baseline.x.'.*compares or combines"),
        (two_plates, {"x": sg.SF(), "y": sg.SF(baseline="mean")}, "'mean of the others.*compares or combines"),
    ],
)
def test_refusals(declared, estimators, message):
    compiled = sg.graph(declared).compile(estimators)
    with pytest.raises(sg.CompileError, match=message) as error:
        sg.accumulate(compiled, torch.tensor(0.7, dtype=F64), over="x", chunk=2)
    assert "cannot be cut into chunks of the plate 'x'" in str(error.value)
    assert "use value_and_grad" in str(error.value)


def test_a_refusal_comes_when_chunks_are_asked_for():
    compiled = sg.graph(mean_squared).compile(sg.SF())
    with pytest.raises(sg.CompileError):
        sg.chunks(compiled, compiled.sample(torch.tensor(0.7)), over="x", chunk=2)


def test_the_linear_baseline_combines_its_own_plate():
    compiled = meta(0).compile(sg.SF(baseline="linear"))
    with pytest.raises(sg.CompileError, match=r"'linear baseline.*compares or combines entries of the plate"):
        sg.accumulate(compiled, parameters(), over="tau", chunk=2)


def test_compared_terms_of_an_update():
    compiled = meta(1).compile(sg.LSF(control_variate=True))
    with pytest.raises(sg.CompileError, match="plate 'D1'"):
        sg.accumulate(compiled, parameters(), over="D1", chunk=1)


@pytest.mark.parametrize("over", ["tasks", "tau.time", "theta"])
def test_no_such_plate(over):
    with pytest.raises(
        sg.CompileError, match=f"over='{over}' is not a plate of objective; its plates are 'task', 'D1'"
    ):
        sg.accumulate(meta(1).compile(sg.LSF()), parameters(), over=over)


def test_a_graph_without_plates():
    @sg.graph
    def objective(theta):
        return sg.sample("x", Categorical, logits=theta) * 1.0

    with pytest.raises(sg.CompileError, match="it has none"):
        sg.accumulate(objective.compile(sg.SF()), BANDIT_THETA, over="x")


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True])
def test_a_chunk_has_an_entry(chunk):
    with pytest.raises(sg.SamplingError, match="needs at least one entry"):
        sg.accumulate(sg.graph(plain).compile(sg.SF()), torch.tensor(0.7), over="x", chunk=chunk)


def test_a_trace_and_a_generator():
    compiled = sg.graph(plain).compile(sg.SF())
    theta = torch.tensor(0.7)
    with pytest.raises(sg.SamplingError, match="with a trace leave them out"):
        sg.accumulate(compiled, theta, over="x", trace=compiled.sample(theta), generator=seed())
