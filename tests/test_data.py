"""Mini-batches as inputs: the rows of data are a plate like any other, but nothing is drawn for it."""

import itertools
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, TensorDataset

import stochgraph as sg
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
THETA = {"weight": torch.tensor([0.4, -0.7], dtype=F64), "scale": torch.tensor(0.6, dtype=F64)}
WAYS = {
    "SF": sg.SF(),
    "LSF": sg.LSF(),
    "LSF, compared": sg.LSF(control_variate=True),
    "LOO": sg.LOO(),
    "MAML": sg.MAML(),
    "EMAML": sg.EMAML(),
    "SGMRL": sg.SGMRLPublished(),
    "FirstOrder": sg.FirstOrder(),
}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def batch(rows: int, number: int = 1) -> tuple[Tensor, Tensor]:
    """Points and their labels, which are integers."""
    generator = seed(number)
    points = torch.randn(rows, 2, dtype=F64, generator=generator)
    return points, torch.randint(0, 3, (rows,), generator=generator)


def same(found: Any, expected: Any) -> None:
    pytree.tree_map(lambda one, other: torch.testing.assert_close(one, other, **EXACT), found, expected)


def logit(theta: Any, point: Tensor) -> Tensor:
    return theta["weight"] @ point


def miss(theta: Any, z: Tensor, label: Tensor) -> Tensor:
    return (theta["scale"] * z - label) ** 2


# The rows are a plate like that of drawn row numbers


def declared(rows: Any, n: int | None, outer: str) -> sg.Graph:
    """A latent per row, or n of them; `rows` gives the rows of the batch, by any way to do so."""

    @sg.graph
    def objective(theta: Any, points: Any, labels: Any) -> Any:
        point, label = rows(points, labels)
        z = sg.sample("z", Bernoulli, logits=sg.apply(logit, theta, point), n=n)
        cost = sg.apply(miss, theta, z, label)
        if outer == "update":  # parameters of every row
            loss = cost if n is None else sg.mean(cost, over="z")
            adapted = sg.descend(theta, loss, 0.1)
            last = sg.sample("last", Bernoulli, logits=sg.apply(logit, adapted, point))
            return sg.mean(sg.apply(miss, adapted, last, label))
        if outer == "update of all":
            adapted = sg.descend(theta, sg.mean(cost), 0.1)
            last = sg.sample("last", Bernoulli, logits=sg.apply(logit, adapted, point))
            return sg.mean(sg.apply(miss, adapted, last, label))
        return {"mean": lambda: sg.mean(cost), "square": lambda: sg.mean(cost) ** 2}[outer]()

    return objective


def as_data(points: Any, labels: Any) -> Any:
    return sg.data("row", (points, labels))


def as_numbers(points: Any, labels: Any) -> Any:
    row = sg.sample("row", Categorical, torch.ones(5, dtype=F64), n=5)
    return sg.apply(lambda p, i: p[i], points, row), sg.apply(lambda y, i: y[i], labels, row)


@pytest.mark.parametrize("outer", ["mean", "square", "update", "update of all"])
@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("name", WAYS)
def test_as_with_row_numbers_that_are_drawn(name: str, n: int | None, outer: str) -> None:
    """The gradient and the ledger, at the drawing parameters and at others, where every number has come up once."""
    chosen: dict[str, Any] = {"z": WAYS[name]}
    if "update" in outer:
        chosen["last"] = sg.SF("loo") if outer == "update" else sg.SF()
    data, numbers = (declared(rows, n, outer).compile(chosen) for rows in (as_data, as_numbers))
    inputs = (THETA, *batch(5))
    trace = data.sample(*inputs, generator=seed())
    drawn = trace._replace(draws={**trace.draws, "row": torch.arange(5)})
    for theta in (THETA, pytree.tree_map(lambda leaf: leaf + 0.1, THETA)):
        found, expected = (
            torch.func.grad(compiled.surrogate)(theta, *inputs[1:], t)
            for compiled, t in ((data, trace), (numbers, drawn))
        )
        same(found, expected)
    torch.testing.assert_close(data.surrogate(*inputs, trace), trace.value, **EXACT)
    rows = [(row.sample, row.counted, row.weight, row.plates, row.variance) for row in data.explain().ledger]
    assert rows == [(r.sample, r.counted, r.weight, r.plates, r.variance) for r in numbers.explain().ledger]


@pytest.mark.parametrize(("baseline", "n"), [(None, None), ("loo", None), ("mean", None), ("loo", 3), ("mean", 3)])
def test_by_hand_on_the_same_draws(baseline: Any, n: int | None) -> None:
    """REINFORCE and its leave-one-out baselines: of the other draws of a row, or of the other rows."""
    compiled = declared(as_data, n, "mean").compile(sg.SF(baseline))
    points, labels = batch(5)
    trace = compiled.sample(THETA, points, labels, generator=seed())
    z = trace.draws["z"] if n else trace.draws["z"].unsqueeze(-1)

    def by_hand(theta: Any) -> Tensor:
        cost = (theta["scale"] * z - labels[:, None]) ** 2
        log_prob = Bernoulli(logits=(points @ theta["weight"])[:, None]).log_prob(z)
        fixed = cost.detach()
        if baseline == "loo" and n:
            others = (fixed.sum(1, keepdim=True) - fixed) / (n - 1)
        else:
            others = (fixed.sum() - fixed) / (fixed.numel() - 1) if baseline else 0.0
        return (cost + (fixed - others) * log_prob).mean()

    same(torch.func.grad(compiled.surrogate)(THETA, points, labels, trace), torch.func.grad(by_hand)(THETA))


def test_pathwise_by_hand() -> None:
    @sg.graph
    def objective(theta: Any, points: Any, labels: Any) -> Any:
        point, label = sg.data("row", (points, labels))
        z = sg.sample("z", Normal, sg.apply(logit, theta, point), torch.exp(theta["scale"]), n=4)
        return torch.exp(-sg.mean((z - label) ** 2))

    compiled = objective.compile(sg.PW())
    points, labels = batch(5)
    trace = compiled.sample(THETA, points, labels, generator=seed())
    noise = (trace.draws["z"] - (points @ THETA["weight"])[:, None]) / torch.exp(THETA["scale"])

    def by_hand(theta: Any) -> Tensor:
        z = (points @ theta["weight"])[:, None] + torch.exp(theta["scale"]) * noise
        return torch.exp(-((z - labels[:, None]) ** 2).mean())

    same(torch.func.grad(compiled.surrogate)(THETA, points, labels, trace), torch.func.grad(by_hand)(THETA))


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LOO(), sg.LSF()], ids=str)
def test_exact_bias_and_variance(estimator: Any) -> None:
    """A nonlinear function of a mean over rows: leave-one-out leaves a row out, and stays unbiased; LSF linearises."""
    compiled = declared(as_data, None, "square").compile(estimator)
    found = sg.verify(compiled, THETA, *batch(4))
    assert found.outcomes == 16

    def truth(theta: Any) -> Tensor:
        points, labels = batch(4)
        p = (points @ theta["weight"]).sigmoid()
        outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=F64)
        chance = torch.where(outcomes > 0, p, 1 - p).prod(1)
        return chance @ ((theta["scale"] * outcomes - labels) ** 2).mean(1) ** 2

    same(found.truth, torch.func.grad(truth)(THETA))
    assert (found.relative_bias < 1e-12) is (estimator != sg.LSF())
    assert compiled.explain().unbiased is (estimator != sg.LSF())
    if estimator == sg.LOO():
        plain = sg.verify(declared(as_data, None, "square").compile(sg.SF()), THETA, *batch(4))
        assert found.total_variance < 0.6 * plain.total_variance
    if estimator == sg.LSF():
        assert compiled.explain().bias == "O(1/sqrt(N))"
        assert "linearised at the mean over row" in str(compiled.explain())


def test_enumeration_within_the_rows() -> None:
    """The size of the plate is that of the inputs, also for draws that have no row for a parent."""

    @sg.graph
    def objective(theta: Any, points: Any) -> Any:
        point = sg.data("row", points)
        z = sg.sample("z", Bernoulli, logits=theta["scale"], within="row", n=2)
        return sg.mean(z * point.sum()) ** 2

    for rows in (1, 3):
        found = sg.verify(objective.compile(sg.SF()), THETA, batch(rows)[0], sizes={"z": 1})
        assert found.outcomes == 2**rows
        assert found.relative_bias < 1e-12


def test_measured_side_by_side() -> None:
    graph = declared(as_data, 3, "mean")
    profile = sg.profile(
        {"SF": graph.compile(sg.SF()), "loo": graph.compile(sg.SF("loo"))},
        THETA,
        *batch(6),
        repeats=20,
        generator=seed(),
        sizes={"z": 4},
    )
    assert profile["loo"].variance < profile["SF"].variance


# Batches of any size, and of any structure


def test_a_loader_with_a_smaller_last_batch() -> None:
    """One compiled graph trains on all of its batches."""
    points, labels = batch(10)
    compiled = declared(as_data, 2, "mean").compile(sg.SF("loo"))
    theta = {name: leaf.clone().requires_grad_() for name, leaf in THETA.items()}
    optimizer = torch.optim.SGD(theta.values(), lr=0.1)
    sizes: list[tuple[int, float]] = []
    for _ in range(20):
        for one in DataLoader(TensorDataset(points, labels), batch_size=4):
            value, gradient = compiled.value_and_grad(theta, *one, generator=seed(len(sizes)))
            for name, leaf in theta.items():
                leaf.grad = gradient[name]
            optimizer.step()
            sizes.append((len(one[0]), float(value)))
    assert {size for size, _ in sizes} == {4, 2}
    assert sum(v for _, v in sizes[-3:]) < sum(v for _, v in sizes[:3])


class Batch(NamedTuple):
    x: Tensor
    y: Any


@pytest.mark.parametrize("rows", [1, 3])
def test_structures(rows: int) -> None:
    """What comes back has the structure that was given; a pytree is one input, a part of one, or several."""
    x, y = torch.arange(rows).double(), torch.arange(rows)

    def tree(theta, batch):
        found = sg.data("row", batch)
        return sg.mean(found.x * found.y["label"] * theta)

    def part(theta, batch):
        x = sg.data("row", batch.x)
        return sg.mean(x * x * theta) + 0.0 * batch.y["label"].sum()

    def parts(theta, batch):
        found = sg.data("row", {"a": batch.x, "b": [batch.y["label"]]})
        assert found.keys() == {"a", "b"}
        assert isinstance(found["b"], list)
        return sg.mean(found["a"] * found["b"][0] * theta)

    for body in (tree, part, parts):
        theta, given = torch.tensor(2.0, dtype=F64), Batch(x, {"label": y})
        value, gradient = sg.graph(body).compile({}).value_and_grad(theta, given)
        torch.testing.assert_close(gradient, (x * x).mean())
        torch.testing.assert_close(value, 2 * gradient)


@pytest.mark.parametrize(
    "points",
    [
        np.arange(6.0).reshape(3, 2),
        torch.arange(6).reshape(3, 2),
        torch.arange(6).reshape(3, 2) > 2,
        torch.ones(3, 2, 1),
    ],
    ids=["array", "integers", "truths", "another shape"],
)
def test_kinds_of_tensors(points: Any) -> None:
    graph = sg.graph(lambda theta, points: sg.mean(sg.data("row", points).double().sum() * theta))
    value, _ = graph.compile({}).value_and_grad(torch.tensor(1.0, dtype=F64), points)
    assert float(value) == float(torch.as_tensor(points).double().sum()) / 3


def test_batches_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        inputs = batch(4)
    compiled = declared(as_data, 2, "update").compile({"z": sg.LSF(), "last": sg.SF()})
    value, gradient = compiled.value_and_grad(THETA, *inputs, generator=seed())
    expected = compiled.value_and_grad(THETA, *(leaf.clone() for leaf in inputs), generator=seed())
    same((value, gradient), expected)


def test_a_batch_as_a_loader_gives_it() -> None:
    """A list of tensors is one input."""

    @sg.graph
    def objective(theta: Any, batch: Any) -> Any:
        rows = sg.data("row", batch)
        return sg.mean((theta * rows[0].sum() - rows[1]) ** 2)

    points, labels = batch(7)
    found = []
    for one in DataLoader(TensorDataset(points, labels), batch_size=4):
        found.append(objective.compile({}).value_and_grad(torch.tensor(0.5, dtype=F64), one)[0] * len(one[0]))
    torch.testing.assert_close(sum(found) / 7, ((0.5 * points.sum(1) - labels) ** 2).mean(), **EXACT)


def test_training_and_test_rows_are_two_plates() -> None:
    @sg.graph
    def objective(theta: Any, train: Any, test: Any) -> Any:
        x = sg.data("train", train)
        adapted = sg.descend(theta, sg.mean((theta - x) ** 2), 0.1)
        return sg.mean((adapted - sg.data("test", test)) ** 2)

    train, test, theta = torch.randn(5, generator=seed()), torch.randn(3, generator=seed(1)), torch.tensor(0.3)
    value, gradient = objective.compile({}).value_and_grad(theta, train, test)
    adapted = theta - 0.2 * (theta - train.mean())
    torch.testing.assert_close(value, ((adapted - test) ** 2).mean())
    torch.testing.assert_close(gradient, 2 * 0.8 * (adapted - test).mean())


def test_a_batch_of_tasks() -> None:
    """A step for every row of the batch: each has data of its own behind its leading dimension."""

    @sg.graph
    def objective(theta: Any, tasks: Any) -> Any:
        task = sg.data("task", tasks)
        adapted = sg.descend(theta, ((theta - task["train"]) ** 2).mean(), 0.1, name="adapted")
        return sg.mean(((adapted - task["test"]) ** 2).mean())

    tasks = {"train": torch.randn(4, 5, generator=seed()), "test": torch.randn(4, 3, generator=seed(1))}
    theta = torch.tensor(0.3)
    trace = objective.compile({}).sample(theta, tasks)
    adapted = theta - 0.2 * (theta - tasks["train"].mean(1))
    torch.testing.assert_close(trace.nodes["adapted"], adapted)
    torch.testing.assert_close(trace.value, ((adapted[:, None] - tasks["test"]) ** 2).mean())


def test_an_update_of_the_rows_and_of_the_input_itself() -> None:
    """A step on the batch, before its rows are taken apart or after."""
    points, theta = torch.randn(4, 2, generator=seed()), torch.tensor([0.3, -0.2])

    @sg.graph
    def rows(theta: Any, points: Any) -> Any:
        x = sg.data("row", points)
        moved = sg.ascend(x, torch.exp((x * theta).sum()), 0.1)
        return sg.mean(torch.exp((moved * theta).sum()))

    @sg.graph
    def whole(theta: Any, points: Any) -> Any:
        loss = sg.mean(torch.exp((sg.data("row", points) * theta).sum()))
        moved = sg.ascend(points, 4 * loss, 0.1)
        return sg.apply(lambda x, t: torch.exp((x * t).sum(1)).mean(), moved, theta)

    def by_hand(theta: Tensor) -> Tensor:
        moved = points + 0.1 * theta * torch.exp(points @ theta)[:, None]
        return torch.exp(moved @ theta).mean()

    for graph in (rows, whole):
        value, gradient = graph.compile({}).value_and_grad(theta, points)
        torch.testing.assert_close(value, by_hand(theta))
        torch.testing.assert_close(gradient, torch.func.grad(by_hand)(theta))


def test_copies_of_an_input_that_an_update_keeps_plates_of() -> None:
    """One batch for every task: its copies have the plate of tasks in front of the rows, wherever it is declared."""

    def body(first: bool) -> Any:
        def objective(theta: Any, points: Any) -> Any:
            if first:
                x = sg.data("row", points)
            task = sg.sample("task", Normal, torch.zeros((), dtype=F64), 1.0, n=3)
            if not first:
                x = sg.data("row", points)
            loss = sg.mean(torch.exp(x * theta) * task, over="row")
            moved = sg.ascend(points, loss, 0.5)
            return sg.mean(sg.apply(lambda m, t: (m**2).sum() * t, moved, task))

        return sg.graph(lambda theta, points: objective(theta, points))

    points, theta = torch.randn(4, dtype=F64, generator=seed()), torch.tensor(0.3, dtype=F64)
    found = []
    for first in (True, False):
        with pytest.warns(UserWarning, match="'task'"):  # the rows are shared by all tasks
            compiled = body(first).compile({})
        trace = compiled.sample(theta, points, generator=seed())
        task = trace.draws["task"]
        moved = points + 0.5 * task[:, None] * theta * torch.exp(points * theta) / 4
        torch.testing.assert_close(trace.value, ((moved**2).sum(1) * task).mean(), **EXACT)
        found.append(torch.func.grad(compiled.surrogate)(theta, points, trace))
    torch.testing.assert_close(found[0], found[1], **EXACT)


def test_draws_within_the_rows() -> None:
    @sg.graph
    def objective(theta: Any, points: Any) -> Any:
        sg.data("row", points)
        return sg.mean(sg.sample("z", Normal, theta, 1.0, within="row") ** 2)  # nothing else reads the rows

    compiled = objective.compile(sg.SF())
    theta = torch.tensor(0.3, dtype=F64)
    for rows in (3, 5):
        trace = compiled.sample(theta, batch(rows)[0], generator=seed())
        assert trace.draws["z"].shape == (rows,)
        value, gradient = compiled.value_and_grad(theta, batch(rows)[0], generator=seed())
        torch.testing.assert_close(value, trace.value)
        found = sg.accumulate(compiled, theta, batch(rows)[0], over="row", chunk=2, trace=trace)
        same(found, (value, gradient))


@pytest.mark.parametrize("parents", [True, False])
def test_a_draw_that_all_rows_share_unsaid(parents: bool) -> None:
    def body(theta, points):
        point = sg.data("row", points)
        z = sg.sample("z", Normal, *((theta["scale"],) if parents else (0.0,)), 1.0, n=2)
        return sg.mean(z * point.sum() * theta["scale"])

    if parents:
        sg.graph(body)
    else:
        with pytest.warns(UserWarning, match="sample 'z'.*meets the plate 'row' at .*say within='row'"):
            sg.graph(body)


# Chunks


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 9, None])
@pytest.mark.parametrize(
    ("n", "outer", "chosen"),
    [
        (None, "mean", {"z": sg.SF()}),
        (3, "mean", {"z": sg.SF("loo")}),
        (3, "mean", {"z": sg.LOO()}),
        (3, "update", {"z": sg.LOO(), "last": sg.SF()}),
        (3, "update", {"z": sg.LSF(control_variate=True), "last": sg.SF()}),
    ],
)
def test_chunks_slice_the_inputs(n: int | None, outer: str, chosen: Any, chunk: int | None) -> None:
    compiled = declared(as_data, n, outer).compile(chosen, wrt=("theta", "points"))
    inputs = (THETA, *batch(5))
    expected = compiled.value_and_grad(*inputs, generator=seed())
    same(sg.accumulate(compiled, *inputs, over="row", chunk=chunk, generator=seed()), expected)
    trace = compiled.sample(*inputs, generator=seed())
    same(sg.accumulate(compiled, *inputs, over="row", chunk=chunk, trace=trace), expected)
    away = pytree.tree_map(lambda leaf: leaf + 0.1, THETA)
    found = sg.accumulate(compiled, away, *inputs[1:], over="row", chunk=chunk, trace=trace)
    torch.testing.assert_close(found[0], compiled.surrogate(away, *inputs[1:], trace), **EXACT)


def test_what_reads_the_whole_input_is_not_sliced() -> None:
    """The same tensors as rows, and as one value that every row is held against."""

    @sg.graph
    def objective(theta: Any, points: Any) -> Any:
        point = sg.data("row", points)
        z = sg.sample("z", Normal, theta * point, 1.0)
        return sg.mean((z - points.mean()) ** 2) + theta * points.sum()

    compiled = objective.compile(sg.SF(), wrt=("theta", "points"))
    inputs = torch.tensor(0.3, dtype=F64), torch.randn(5, dtype=F64, generator=seed())
    expected = compiled.value_and_grad(*inputs, generator=seed())
    same(sg.accumulate(compiled, *inputs, over="row", chunk=2, generator=seed()), expected)


def test_deterministic_losses_in_chunks() -> None:
    """No draw has the plate: its size is that of the inputs."""
    graph = sg.graph(lambda theta, points: sg.mean(sg.apply(logit, theta, sg.data("row", points)) ** 2))
    compiled = graph.compile({})
    points = batch(7)[0]
    expected = compiled.value_and_grad(THETA, points)
    for chunk in (3, None):
        found = sg.accumulate(compiled, THETA, points, over="row", chunk=chunk)
        torch.testing.assert_close(found[0], expected[0], **EXACT)
        torch.testing.assert_close(found[1]["weight"], expected[1]["weight"], **EXACT)


def test_other_plates_in_chunks_leave_the_rows_whole() -> None:
    @sg.graph
    def objective(theta: Any, points: Any) -> Any:
        task = sg.sample("task", Normal, theta["scale"], 1.0, n=5)
        x = sg.data("row", points)
        loss = sg.mean((x.sum() * theta["scale"] - task) ** 2, over="row")
        return sg.mean(torch.exp(-loss))

    compiled = objective.compile(sg.SF())
    inputs = THETA, batch(4)[0]
    trace = compiled.sample(*inputs, generator=seed())
    expected = torch.func.grad(compiled.surrogate)(*inputs, trace)["scale"]
    found = sg.accumulate(compiled, *inputs, over="task", chunk=2, trace=trace)[1]["scale"]
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_sum_over_rows_cannot_be_cut() -> None:
    graph = sg.graph(lambda theta, points: sg.sum(sg.apply(logit, theta, sg.data("row", points)), over="row"))
    with pytest.raises(sg.CompileError, match="sums over the plate"):
        sg.accumulate(graph.compile({}), THETA, batch(4)[0], over="row", chunk=2)


# Transforms


def test_surrogates_under_vmap() -> None:
    """Over parameters on one batch, and over batches with their traces."""
    compiled = declared(as_data, 3, "update").compile({"z": sg.LSF(), "last": sg.SF("loo")})
    points, labels = batch(4)
    trace = compiled.sample(THETA, points, labels, generator=seed())
    gradient = torch.func.grad(compiled.surrogate)
    many = pytree.tree_map(lambda leaf: torch.stack([leaf, leaf + 0.1]), THETA)
    found = torch.vmap(gradient, in_dims=(0, None, None, None))(many, points, labels, trace)
    for i in range(2):
        one = gradient(pytree.tree_map(lambda leaf, i=i: leaf[i], many), points, labels, trace)
        same(pytree.tree_map(lambda leaf, i=i: leaf[i], found), one)
    batches = [batch(4, number) for number in (1, 2)]
    traces = [compiled.sample(THETA, *one, generator=seed(i)) for i, one in enumerate(batches)]
    stacked = pytree.tree_map(lambda *leaves: torch.stack(leaves), *zip(batches, traces, strict=True))
    found = torch.vmap(gradient, in_dims=(None, 0, 0, 0))(THETA, *stacked[0], stacked[1])
    for i, (one, drawn) in enumerate(zip(batches, traces, strict=True)):
        same(pytree.tree_map(lambda leaf, i=i: leaf[i], found), gradient(THETA, *one, drawn))


def test_draws_under_vmap() -> None:
    compiled = declared(as_data, 3, "mean").compile(sg.SF("loo"))
    points, labels = batch(4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sample = torch.vmap(lambda p: compiled.sample(THETA, p, labels), randomness="different")
        traces = sample(points.expand(6, *points.shape))
    assert traces.draws["z"].shape == (6, 4, 3)


def test_second_derivatives() -> None:
    compiled = declared(as_data, None, "square").compile(sg.SF())
    assert sg.verify(compiled, THETA, *batch(3), order=2).relative_bias < 1e-12


# What it looks like


def test_pictures_tables_and_formulas() -> None:
    graph = declared(as_data, 3, "mean")
    assert "points[row]: data   axes: (row)" in repr(graph)
    assert "z ~ Bernoulli(logit)   axes: (row, z), n = 3" in repr(graph)
    found = graph.networkx
    assert found.graph["plates"] == {"row": None, "z": 3}
    assert found.nodes["points[row]"] == {"kind": "data", "axes": ("row",), "label": "points[row]", "objective": False}
    assert list(found.predecessors("points[row]")) == ["points"]
    assert r"{\mathrm{labels}}_{i}" in graph.compile(sg.SF()).explain().latex
    assert "theta → z → objective" in str(graph.compile(sg.SF()).explain())
    differentiated = str(graph.compile(sg.SF(), wrt="points").explain())
    assert "points → z → objective" in differentiated
    pytest.importorskip("matplotlib")
    texts = {text.get_text() for text in graph.draw().axes[0].texts}
    assert {"row (data)", "z, N = 3", "points[row]"} <= texts


# What is refused, while declaring


def adapted(theta: Any, points: Any) -> Any:
    return sg.descend(theta, (theta["scale"] ** 2), 0.1)


DECLARED: dict[str, tuple[Any, str]] = {
    "a draw": (
        lambda t, p: sg.data("row", sg.sample("x", Normal, 0.0, 1.0, n=3)),
        r"'x' \(axes: \(x\)\) is not an input or a part of one. Its draws have plates already",
    ),
    "a field of a draw": (
        lambda t, p: sg.data("row", sg.sample("x", Normal, 0.0, 1.0, n=3)[0]),
        r"'x\[0\]' \(axes: \(x\)\) is not an input or a part of one. Its draws",
    ),
    "adapted parameters": (lambda t, p: sg.data("row", adapted(t, p)), r"plates that their objective has left"),
    "something computed": (
        lambda t, p: sg.data("row", p / 255),
        r"'truediv' .* is not an input or a part of one. Declare the input as data, and compute with what",
    ),
    "a tensor": (lambda t, p: sg.data("row", torch.ones(3)), "Tensor is not an input of the graph.*an argument of"),
    "a number among inputs": (lambda t, p: sg.data("row", (p, 3.0)), "float is not an input of the graph"),
    "nothing": (lambda t, p: sg.data("row", ()), "it was given no input"),
    "no name": (lambda t, p: sg.data(p, p), "is not the name of a plate: give a string"),
    "the rows again": (
        lambda t, p: sg.data("shot", sg.data("row", p)),
        r"'points\[row\]' \(axes: \(row\)\) is not an input .* declare the input once, and use what sg.data returned",
    ),
    "an input again": (
        lambda t, p: (sg.data("row", p), sg.data("other", p))[0],
        "sg.data 'other': 'points' is declared as data already: use what sg.data returned",
    ),
    "an input twice at once": (lambda t, p: sg.data("row", (p, p)), "'points' is declared as data already"),
    "a part of it again": (
        lambda t, p: (sg.data("row", p), sg.data("other", p["x"]))[0],
        r"\"points\['x'\]\" is declared as data already, 'points' being a part of it or it of 'points'",
    ),
    "the whole of it again": (
        lambda t, p: (sg.data("row", p["x"]), sg.data("other", p))[0],
        r"'points' is declared as data already, \"points\['x'\]\" being a part of it",
    ),
    "two plates of one name": (
        lambda t, p: (sg.data("row", p), sg.data("row", t))[0],
        r"two plates of the name 'row'.*declared together, sg.data\('row', \(first, second\)\)",
    ),
    "the name of a sample": (
        lambda t, p: (sg.sample("row", Normal, 0.0, 1.0), sg.data("row", p))[0],
        "two plates of the name 'row'",
    ),
    "a sample of the name": (
        lambda t, p: (sg.data("row", p), sg.sample("row", Normal, 0.0, 1.0))[0],
        "two nodes of the name 'row'",
    ),
    "a step on the input for each of its rows": (
        lambda t, p: sg.mean(sg.descend(p, sg.data("row", p) ** 2, 0.1)),
        r"sg.descend of 'points': the inner objective 'pow' keeps the plate 'row', .* update the rows, 'points\[row\]'",
    ),
    "rows that are left": (
        lambda t, p: sg.data("row", p) * t,
        r"still has the axes \(row\): reduce them with sg.mean\(\.\.\., over='row'\)",
    ),
}


@pytest.mark.parametrize("case", DECLARED)
def test_refused_while_declaring(case: str) -> None:
    body, message = DECLARED[case]

    def declaring(theta, points):
        return body(theta, points)

    with pytest.raises(sg.DeclarationError, match=message):
        sg.graph(declaring)


def test_outside_a_declaration() -> None:
    with pytest.raises(sg.DeclarationError, match=r"sg\.data was called outside a declaration"):
        sg.data("row", torch.ones(3))


def test_the_name_of_an_input_is_free() -> None:
    graph = sg.graph(lambda theta, x: sg.mean(sg.data("x", x) * theta))
    assert graph.networkx.nodes["x[x]"]["axes"] == ("x",)


# What is refused, before anything is computed


CALLED: dict[str, tuple[Any, Any, str]] = {
    "different rows": (
        torch.ones(3, 2),
        torch.ones(4),
        "data 'row': .* differ in it: points has 3, labels has 4. Hand over as many rows",
    ),
    "different rows in a tree": (
        {"x": torch.ones(3, 2), "y": [torch.ones(2)]},
        torch.ones(3),
        r"points\['x'\] has 3, points\['y'\]\[0\] has 2, labels has 3",
    ),
    "no rows": (torch.ones(0, 2), torch.ones(0), r"points has no rows, shape \(0, 2\).*Leave empty batches out"),
    "a scalar": (torch.ones(3, 2), torch.tensor(3), "labels is a tensor without dimensions, and the leading"),
    "a number": (3.0, torch.ones(3), "points is a tensor without dimensions"),
    "a whole number": (torch.ones(3, 2), 3, "labels is int 3, and the leading dimension of every tensor"),
    "a scalar in a tree": (
        {"x": torch.ones(3, 2), "rate": 0.1},
        torch.ones(3),
        r"points\['rate'\] is a tensor without",
    ),
    "a word in a tree": ({"x": torch.ones(3, 2), "kind": "a"}, torch.ones(3), r"points\['kind'\] is str 'a'"),
    "no tensors": ({}, torch.ones(3), "points holds no tensor"),
}


@pytest.mark.parametrize("case", CALLED)
@pytest.mark.parametrize("unused", [False, True])
def test_refused_before_anything_is_computed(case: str, unused: bool) -> None:
    """Whether or not the objective reads the tensors."""
    points, labels, message = CALLED[case]

    @sg.graph
    def objective(theta: Any, points: Any, labels: Any) -> Any:
        x, y = sg.data("row", (points, labels))
        if unused:
            return theta**2
        return sg.mean(sg.apply(lambda x, y, t: t * 1.0, x, y, theta))

    compiled = objective.compile({})
    theta = torch.tensor(1.0)
    trace = sg.Trace()
    calls = [
        lambda: compiled.sample(theta, points, labels),
        lambda: compiled.value_and_grad(theta, points, labels),
        lambda: compiled.surrogate(theta, points, labels, trace),
        lambda: sg.verify(compiled, theta, points, labels),
    ]
    for call in calls:
        with pytest.raises(sg.SamplingError, match=message):
            call()


def test_sizes_are_those_of_the_inputs() -> None:
    compiled = declared(as_data, 3, "mean").compile(sg.SF())
    with pytest.raises(sg.SamplingError, match="sizes: 'row' is a plate of data: its size is the number of rows"):
        compiled.sample(THETA, *batch(4), sizes={"row": 3})
    assert compiled.sample(THETA, *batch(4), sizes={"z": 5}).draws["z"].shape == (4, 5)


def test_chunks_of_a_trace_have_no_rows() -> None:
    compiled = declared(as_data, 3, "mean").compile(sg.SF())
    trace = compiled.sample(THETA, *batch(4))
    with pytest.raises(sg.CompileError, match=re.escape("Use sg.accumulate(compiled, *inputs, over='row')")):
        sg.chunks(compiled, trace, over="row", chunk=2)
    assert len(list(sg.chunks(compiled, trace, over="z", chunk=2))) == 2


def test_a_trace_of_another_batch() -> None:
    compiled = declared(as_data, 3, "mean").compile(sg.SF())
    trace = compiled.sample(THETA, *batch(4))
    with pytest.raises(sg.SamplingError, match=r"sample 'z'.*4 entries .*'row', and the inputs have 3 rows"):
        compiled.surrogate(THETA, *batch(3), trace)
    with pytest.raises(sg.SamplingError, match="have 3 rows, the draws of 'z' have 4 entries along the plate"):
        sg.accumulate(compiled, THETA, *batch(3), trace=trace, over="row")


@pytest.mark.parametrize("estimator", [sg.SF("loo"), sg.LOO()], ids=str)
def test_one_row_cannot_be_compared_with_others(estimator: Any) -> None:
    compiled = declared(as_data, None, "mean" if estimator == sg.SF("loo") else "square").compile(estimator)
    with pytest.raises(sg.SamplingError, match=r"at least two rows .*drop_last=True"):
        compiled.value_and_grad(THETA, *batch(1))
    declared(as_data, None, "mean").compile(sg.SF()).value_and_grad(THETA, *batch(1))
