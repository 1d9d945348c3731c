"""One call for any number of tasks: `value_and_grad` of a large graph draws first, and then takes chunks of a plate."""

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.run import cuts as _cuts
from stochgraph.surrogate.steps import CompiledStep
from tests import problems
from tests.problems import BANDIT_THETA, F64
from tests.test_navigation import meta, parameters

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
WHOLE = 10**9
THETA = torch.tensor(0.3, dtype=F64)


def seed(number=0):
    return torch.Generator().manual_seed(number)


def same_bits(found, expected):
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    return all(one is other is None or torch.equal(one, other) for one, other in pairs)


def assert_close(found, expected):
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def accumulated(compiled, *inputs, trace, **options):
    """At the inputs that drew the trace, so that no log-probabilities need be recorded, and none round."""
    return sg.accumulate(compiled, *inputs, trace=trace._replace(log_probs={}), **options)


@pytest.fixture
def numbers(monkeypatch):
    """Sets how many numbers a layer of a chunk holds."""
    return lambda count: monkeypatch.setitem(_cuts._NUMBERS, "cpu", count)


@pytest.fixture
def cut(monkeypatch):
    """The plates that are cut, and the length of their chunks: a list that grows."""
    found: list[tuple[str, int]] = []
    parts = _cuts.Cuts.parts

    def noted(self, trace, plate, length, rows):
        found.append((plate.name, length))
        return parts(self, trace, plate, length, rows)

    monkeypatch.setattr(_cuts.Cuts, "parts", noted)
    return found


@pytest.fixture
def tasks_at_once(monkeypatch):
    """The tasks of every gradient step that is taken with derivatives: a list that grows."""
    sizes: list[int] = []
    whole = CompiledStep._step

    def noted(self, run, *args):
        if torch.is_grad_enabled():
            sizes.append(next(size for axis, size in run.sizes.items() if axis.name == "task"))
        return whole(self, run, *args)

    monkeypatch.setattr(CompiledStep, "_step", noted)
    return sizes


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO(), sg.MAML(), sg.FirstOrder()])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_large_graph_is_drawn_and_then_differentiated_in_chunks(estimator, steps, numbers):
    compiled, sizes = meta(steps).compile(estimator), {"task": 7}
    numbers(WHOLE)
    whole = compiled.value_and_grad(parameters(), generator=seed(), sizes=sizes)
    numbers(120)
    found = compiled.value_and_grad(parameters(), generator=seed(), sizes=sizes)
    trace = compiled.sample(parameters(), generator=seed(), sizes=sizes)
    assert sg.chunk_size(compiled, trace, "task", inputs=(parameters(),)) < 7
    assert same_bits(found, accumulated(compiled, parameters(), over="task", trace=trace))
    assert_close(found, sg.accumulate(compiled, parameters(), over="task", trace=trace))
    assert_close(found, whole)


def test_navigation_of_the_papers_is_cut_as_it_is(tasks_at_once):
    """N = M = 20 trajectories of H = 100 steps, layers of 64: chunks of four tasks; with 4 trajectories it is whole."""
    from stochgraph.algorithms.environments import Navigation
    from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
    from stochgraph.algorithms.policies import GaussianMLP
    from stochgraph.algorithms.rollouts import Rollouts

    walk = Rollouts(Navigation(), GaussianMLP(2, 2), horizon=100)
    graph = adapted_return(
        walk, lambda: walk.environment.declare_tasks(20), inner_rate=0.001, steps=1, inner=20, outer=20
    )
    compiled, theta = graph.compile(sg.LSF()), walk.policy.initial(seed())
    compiled.value_and_grad(theta, generator=seed(), sizes={"D1": 4, "tau": 4})
    assert tasks_at_once == [20]
    compiled.value_and_grad(theta, generator=seed(), sizes={"task": 9})
    assert tasks_at_once[1:] == [4, 4, 1]


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_chunks_follow_from_sizes_and_never_from_threads(threads, numbers, monkeypatch, tasks_at_once):
    compiled = meta(1).compile(sg.SF())
    numbers(120)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    compiled.value_and_grad(parameters(), sizes={"task": 7})
    assert tasks_at_once == [3, 3, 1]


def test_sizes_decide_at_every_call(numbers, tasks_at_once):
    """The sizes of this call, whatever came before; the lengths of trajectories are known once they are drawn."""
    compiled = meta(1).compile(sg.SF())
    numbers(120)
    for tasks in (2, 7, 2):
        compiled.value_and_grad(parameters(), sizes={"task": tasks})
    assert tasks_at_once == [2, 3, 3, 1, 2]


@pytest.mark.parametrize(("inner", "outer"), [(10, 2), (2, 10)])
def test_what_is_drawn_is_drawn_once(inner, outer, numbers, monkeypatch):
    """Draws that show how large the graph is are kept, and the generator ends where `sample` ends."""
    from stochgraph.algorithms.rollouts import Rollouts

    drawn: list[torch.Size] = []
    draw = Rollouts.draw

    def noted(self, batch_shape, *parents):
        drawn.append(batch_shape)
        return draw(self, batch_shape, *parents)

    compiled, one, other = meta(1, inner=inner, outer=outer).compile(sg.LSF()), seed(), seed()
    numbers(100)
    trace = compiled.sample(parameters(), generator=other)
    monkeypatch.setattr(Rollouts, "draw", noted)
    found = compiled.value_and_grad(parameters(), generator=one)
    assert drawn == [(3, inner), (3, outer)]
    assert torch.equal(one.get_state(), other.get_state())
    assert same_bits(found, accumulated(compiled, parameters(), over="task", trace=trace))


def pathwise(theta):
    task = sg.sample("task", Normal, theta, 1.0, n=6)
    walk = sg.sample("D", problems.TwoStateMDP(2), torch.zeros(2, 2, dtype=F64) + 0.0, n=2)
    x = sg.sample("x", lambda t: Normal(t * torch.ones(2, dtype=F64), 1.0), task, n=3)
    adapted = sg.descend(theta, sg.mean(sg.apply(lambda d, t: ((d - t) ** 2).sum(), x, task), over="x"), 0.1)
    return sg.mean(adapted * task) * sg.mean(sg.sum(walk.reward))


def test_pathwise_draws_before_a_trajectory_keep_their_noise(numbers):
    compiled = sg.graph(pathwise).compile({"task": sg.PW(), "x": sg.PW()})
    results = []
    for count in (WHOLE, 3):
        numbers(count)
        results.append(compiled.value_and_grad(THETA, generator=seed()))
    assert_close(*results)
    assert float(results[0][1].abs()) > 1e-3


def nested(theta):
    group = sg.sample("group", Normal, 0.0, 1.0, n=4)
    task = sg.sample("task", Normal, group, 1.0, n=3)
    data = sg.sample("data", Bernoulli, logits=theta * task, n=5)
    return sg.mean(sg.ascend(theta, sg.mean(data * task, over="data"), 0.3) * task)


def compared(theta):
    """A baseline compares the groups: only their tasks can be cut."""
    group = sg.sample("group", Normal, theta, 1.0, n=4)
    task = sg.sample("task", Normal, group, 1.0, n=3)
    return sg.mean(sg.mean(sg.apply(torch.sin, task) * theta, over="task") * 2.0, over="group")


def squared(theta):
    """No plate can be cut."""
    return sg.mean(sg.sample("x", Normal, theta, 1.0, n=40)) ** 2


@pytest.mark.parametrize(
    ("graph", "estimators", "sizes", "plate"),
    [
        (nested, sg.SF(), {}, "group"),
        (nested, sg.SF(), {"group": 1, "task": 9}, "task"),
        (nested, sg.SF(), {"group": 1, "task": 1, "data": 50}, None),
        (compared, {"group": sg.SF(baseline="mean"), "task": sg.SF()}, {}, None),
        (compared, sg.SF(), {"group": 1, "task": 40}, "task"),
        (squared, sg.LSF(), {}, None),
        (squared, sg.LOO(), {}, None),
    ],
)
def test_the_outermost_plate_that_can_be_cut(graph, estimators, sizes, plate, numbers, cut):
    """Where there is none the graph is whole, without an error, and keeps its bits."""
    compiled = sg.graph(graph).compile(estimators)
    numbers(WHOLE)
    whole = compiled.value_and_grad(THETA, generator=seed(), sizes=sizes)
    numbers(10)
    found = compiled.value_and_grad(THETA, generator=seed(), sizes=sizes)
    assert [name for name, _ in cut] == ([] if plate is None else [plate])
    assert_close(found, whole)
    assert plate is not None or same_bits(found, whole)


@pytest.mark.parametrize(
    ("graph", "estimator", "refused", "count"), [(squared, sg.LSF(), "x", 1), (nested, sg.SF(), "data", 2)]
)
def test_whether_a_plate_can_be_cut_is_asked_once(graph, estimator, refused, count, numbers, monkeypatch):
    """And not as long as nobody wants to know."""
    asked = []
    check = _cuts._Check

    def noted(*args):
        asked.append(args)
        return check(*args)

    monkeypatch.setattr(_cuts, "_Check", noted)
    compiled = sg.graph(graph).compile(estimator)
    compiled.value_and_grad(THETA)
    assert not asked
    numbers(10)
    for _ in range(3):
        compiled.value_and_grad(THETA)
        with pytest.raises(sg.CompileError, match=f"cannot be cut into chunks of the plate '{refused}'"):
            sg.chunks(compiled, compiled.sample(THETA), over=refused)
    assert len(asked) == count


def two_parts(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=30)
    y = sg.sample("y", Normal, theta, 1.0, n=30)
    return sg.mean(x**2) + sg.mean(y**3)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, []),
        ({"x": 200}, []),
        ({"y": 200}, []),
        ({"x": 200, "y": 20}, [("x", 20)]),
        ({"x": 9, "y": 21}, [("y", 20)]),
    ],
)
def test_what_has_not_the_plate_is_not_computed_again_for_every_chunk(sizes, expected, numbers, cut):
    """Two large plates side by side: chunks of one would each have the whole of the other."""
    compiled = sg.graph(two_parts).compile(sg.SF())
    numbers(WHOLE)
    whole = compiled.value_and_grad(THETA, generator=seed(), sizes=sizes)
    numbers(20)
    assert_close(compiled.value_and_grad(THETA, generator=seed(), sizes=sizes), whole)
    assert cut == expected


def crossed(theta):
    x = sg.sample("x", Normal, theta, 1.0, n=30)
    y = sg.sample("y", Normal, 0.0, 1.0, n=30, within=())
    return sg.mean(sg.apply(lambda a, b: torch.sin(a * b), x, y))


def test_functions_of_draws_of_several_plates_count(numbers):
    """30 draws each are 900 values."""
    compiled = sg.graph(crossed).compile(sg.SF())
    numbers(90)
    trace = compiled.sample(THETA, generator=seed())
    assert sg.chunk_size(compiled, trace, "x", inputs=(THETA,)) == 3
    found = compiled.value_and_grad(THETA, generator=seed())
    assert same_bits(found, accumulated(compiled, THETA, over="x", trace=trace, chunk=3))


@pytest.mark.parametrize(("leaf", "size"), [((), 640), ((64, 64), 10), ((128, 32), 10), ((256, 256), 2)])
def test_a_chunk_has_fewer_draws_where_layers_are_wider(leaf, size, numbers):
    numbers(640)
    compiled = sg.graph(lambda theta: sg.mean(sg.sample("x", Normal, theta["w"].sum(), 1.0, n=9) ** 2)).compile(sg.SF())
    theta = {"w": torch.zeros(leaf, dtype=F64), "count": torch.zeros(10**4, dtype=torch.long)}
    trace = compiled.sample(theta)
    assert sg.chunk_size(compiled, trace, "x", inputs=(theta,)) == size
    assert sg.chunk_size(compiled, trace, "x") == 10  # layers of 64, where nothing is known of them


def test_several_inputs_and_leaves_without_a_gradient(numbers):
    @sg.graph
    def objective(theta, rates, data):
        task = sg.sample("task", Bernoulli, probs=data, n=40)
        pulls = sg.sample("D", lambda p, _: Bernoulli(logits=p), theta["a"], task, n=2)
        adapted = sg.ascend(theta["a"], sg.mean(pulls * task, over="D"), rates)
        return -sg.mean(torch.exp(adapted) * task) + theta["count"] * 2.0

    theta = {"a": THETA, "count": torch.tensor(3)}
    compiled = objective.compile(sg.SF(), wrt=("theta", "rates"))
    results = []
    for count in (WHOLE, 10):
        numbers(count)
        results.append(compiled.value_and_grad(theta, THETA + 0.1, torch.tensor(0.6, dtype=F64), generator=seed()))
    (whole, (first, second)), (value, (one, other)) = results
    assert one["count"] is None
    assert_close((value, one["a"], other), (whole, first["a"], second))


def test_inference_mode_changes_nothing(numbers):
    compiled = meta(1).compile(sg.LSF())
    numbers(120)
    expected = compiled.value_and_grad(parameters(), generator=seed(), sizes={"task": 7})
    with torch.inference_mode():
        found = compiled.value_and_grad(parameters(), generator=seed(), sizes={"task": 7})
    assert same_bits(found, expected)


def test_a_large_pass_inside_a_transform_is_refused_as_any_other(numbers):
    numbers(1)
    compiled = problems.task_bandit(1).compile(sg.SF())
    with pytest.raises(sg.SamplingError, match=r"value_and_grad .* inside a torch.func transform"):
        torch.vmap(lambda theta: compiled.value_and_grad(theta)[1], randomness="different")(
            torch.stack([BANDIT_THETA, BANDIT_THETA])
        )


@sg.graph
def rows(theta, batch, scale):
    """A term of every row, with draws of its own, and one of none."""
    x, y = sg.data("row", (batch["x"], batch["y"]))
    z = sg.sample("z", Bernoulli, logits=theta["w"] * x, n=2)
    return sg.mean(sg.apply(lambda z, t, y: (z * t - y).square().sum(), z, theta["v"], y)) * scale + theta["w"] ** 2


def batch(count):
    x = torch.linspace(-1.0, 1.0, count, dtype=F64)
    return {"x": x, "y": torch.stack([x, x**2], -1)}


ROWS = {"w": THETA, "v": torch.tensor([0.4, -0.2], dtype=F64)}


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LOO(), sg.SF(baseline=lambda trace: 0.0)])
def test_rows_of_data_are_cut_with_the_draws(estimator, numbers, cut):
    """A mini-batch of any size; a function as baseline may look at any row, so that nothing is cut."""
    compiled = rows.compile(estimator)
    numbers(WHOLE)
    whole = compiled.value_and_grad(ROWS, batch(23), 1.5, generator=seed())
    numbers(20)
    found = compiled.value_and_grad(ROWS, batch(23), 1.5, generator=seed())
    assert_close(found, whole)
    compiled.value_and_grad(ROWS, batch(10), 1.5)
    cuttable = not callable(getattr(estimator, "baseline", None))
    assert cut == ([("row", 10)] if cuttable else [])


def test_rows_that_nothing_is_drawn_for_count(numbers, cut):
    """The weights are drawn; their function is computed for every row."""

    @sg.graph
    def objective(theta, x):
        weight = sg.sample("weight", Normal, theta, 1.0, n=3)
        return sg.mean(sg.apply(lambda w, x: torch.sin(w * x), weight, sg.data("row", x)))

    compiled, x = objective.compile(sg.PW()), torch.linspace(0.0, 1.0, 50, dtype=F64)
    numbers(WHOLE)
    whole = compiled.value_and_grad(THETA, x, generator=seed())
    numbers(30)
    assert_close(compiled.value_and_grad(THETA, x, generator=seed()), whole)
    assert cut == [("row", 10)]
    trace = compiled.sample(THETA, x)
    assert sg.chunk_size(compiled, trace, "row", inputs=(THETA, x)) == 10


def test_what_is_drawn_first_is_drawn_alone(numbers):
    """Scores and the objective are computed once for every draw, in its chunk."""
    computed: list[str] = []

    class Noted(problems.TwoStateMDP):
        def log_prob(self, value, *parents):
            computed.append("score")
            return super().log_prob(value, *parents)

    def priced(reward):
        computed.append("cost")
        return 2.0 * reward

    graph = sg.graph(lambda theta: sg.mean(sg.sum(sg.apply(priced, sg.sample("D", Noted(3), theta, n=8).reward))))
    compiled = graph.compile(sg.SF())
    for count, chunks in ((48, 1), (24, 2), (12, 4)):  # 3 time steps, policies of 2 x 2 weights
        numbers(count)
        computed.clear()
        compiled.value_and_grad(torch.zeros(2, 2, dtype=F64))
        assert sorted(computed) == ["cost"] * chunks + ["score"] * chunks


def test_log_probabilities_that_are_not_finite_are_found_in_the_whole(numbers):
    """The draw that is named is that of the whole plate, and not of its chunk."""

    class Broken(sg.Sampler):
        def draw(self, batch_shape, mean):
            return torch.arange(batch_shape[0], dtype=F64)

        def log_prob(self, value, mean):
            return torch.where(value == 7, torch.inf * mean, mean * value)

    graph = sg.graph(lambda theta: sg.mean(sg.sample("x", Broken(), theta, n=9) * 1.0))
    compiled, message = graph.compile(sg.SF()), r"sample 'x' .*: the log-probability of draw \(7,\) is inf"
    for count in (WHOLE, 5):
        numbers(count)
        with pytest.raises(sg.SamplingError, match=message):
            compiled.value_and_grad(THETA)
    trace = sg.Trace(draws={"x": torch.arange(9.0, dtype=F64)})
    with pytest.raises(sg.SamplingError, match=message):
        sg.accumulate(compiled, THETA, over="x", trace=trace, chunk=5)


def test_log_probabilities_of_rows_that_are_not_finite(numbers):
    """The rows of a chunk are diagnosed with their own draws."""

    @sg.graph
    def objective(theta, x):
        z = sg.sample("z", Normal, theta * sg.data("row", x), 1.0)
        return sg.mean(z**2)

    compiled, x = objective.compile(sg.SF()), torch.ones(9, dtype=F64)
    z = torch.zeros(9, dtype=F64)
    z[7] = 1e200
    for chunk in (None, 5):
        with pytest.raises(sg.SamplingError, match=r"sample 'z' .*: the log-probability of draw \(7,\) is -inf"):
            sg.accumulate(compiled, THETA, x, over="row", trace=sg.Trace(draws={"z": z}), chunk=chunk)


def test_updates_before_the_last_trajectory_are_looked_at_in_the_first_pass():
    """What a step does with a pathwise draw is seen there, whether or not a trajectory is drawn behind it."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta.sum(), 1.0, n=3)
        adapted = sg.descend(theta, sg.mean(sg.apply(lambda t, x: (x > 0).double() * t.sum(), theta, x)), 0.1)
        return sg.mean(sg.sum(sg.sample("D", problems.TwoStateMDP(2), adapted, n=2).reward))

    with pytest.raises(sg.CompileError, match=r"PW on sample 'x' .*no differentiable path"):
        objective.compile({"x": sg.PW(), "D": sg.SF()}).value_and_grad(torch.zeros(2, 2, dtype=F64))
