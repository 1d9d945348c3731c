"""The picture of a graph: everything is in it, boxes hold exactly their nodes, nothing overlaps, nothing leaks."""

import itertools
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

import stochgraph as sg
from stochgraph.explain.drawing import layout_of
from stochgraph.explain.folding import folded
from stochgraph.explain.layout import ROW, Box, Layout

figures = pytest.importorskip("matplotlib.figure")


class Path(NamedTuple):
    state: Tensor
    reward: Tensor


class Walk(sg.Sampler):
    """Only declared, never run."""

    time = True

    def draw(self, batch: tuple[int, ...], *parents: Any) -> Any:
        raise AssertionError("drawing a graph must not sample")

    def log_prob(self, value: Any, *parents: Any) -> Tensor:
        raise AssertionError("drawing a graph must not score")


say: Any = sg  # operators of symbols are made in a loop, where mypy does not see them


@sg.graph
def normal(theta: Any) -> Any:
    x = say.sample("x", Normal, theta, 1.0, n=100)
    return -((say.mean(x) - 1.0) ** 2)


@sg.graph
def single(theta: Any) -> Any:
    return say.sample("x", Normal, theta, 1.0) ** 2


@sg.graph
def trivial(theta: Any) -> Any:
    return theta["loss"]


@sg.graph
def chain(theta: Any) -> Any:
    x = say.sample("x1", Bernoulli, logits=theta[0])
    for k in range(2, 9):
        x = say.sample(f"x{k}", Bernoulli, logits=theta[1] * x + theta[0])
    return x


@sg.graph
def bandit(theta: Any) -> Any:
    for k in range(2):
        a = say.sample(f"a{k}", Categorical, logits=theta, n=2)
        theta = say.ascend(theta, say.mean(torch.sin(a)), 0.7)
    return say.mean(torch.sin(say.sample("b", Categorical, logits=theta, n=1)))


@sg.graph
def tasks(theta: Any, rate: Any) -> Any:
    goal = say.sample("tasks", Normal, 0.0, 1.0, n=20)
    for k in range(2):
        tau = say.sample(f"trajectories{k}", Walk(), theta["policy"], goal, n=10)
        value = say.sum(tau.reward * torch.exp(tau.state), discount=0.9)
        theta = say.descend(theta, say.mean(value, over=f"trajectories{k}"), rate)
    after = say.sample("after", Walk(), theta["policy"], goal, n=5)
    return say.mean(say.sum(after.reward)) / say.mean(goal)


@sg.graph
def crossed(theta: Any, rate: Any) -> Any:
    u = say.sample("u", Normal, theta, 1.0, n=3)
    v = say.sample("v", Normal, theta, 1.0, n=4)
    new = say.ascend(theta, say.mean(u * v), rate)
    return rate * say.sample("w", Normal, new, 1.0) + say.mean(say.mean(u * v, over="u") * say.stop(v))


@sg.graph
def sharpe(theta: Any, strength: Any) -> Any:
    """The Sharpe ratio of adapted pulls, less a divergence from the policy that they were adapted from."""
    adapted = theta
    for name in ("first", "second"):
        arms = say.sample(name, Categorical, logits=adapted, n=4)
        adapted = say.ascend(adapted, say.mean(say.apply(torch.sin, arms)), 0.7)
    last = say.apply(torch.sin, say.sample("last", Categorical, logits=adapted, n=8))
    deviation = torch.sqrt(say.mean(last**2) - say.mean(last) ** 2 + 0.01)
    step = torch.log_softmax(adapted, -1) - torch.log_softmax(theta, -1)
    return say.mean(last) / deviation - strength * (torch.softmax(adapted, -1) * step).sum()


GRAPHS = [normal, single, trivial, chain, bandit, tasks, crossed, sharpe]
NESTED = [graph for graph in GRAPHS if graph is not crossed]


def every(graphs: list[sg.Graph]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("graph", graphs, ids=lambda graph: graph.name)


def drawn(graphs: list[sg.Graph]) -> Callable[[Any], Any]:
    """As they are, and with their arithmetic folded."""
    cases = [(graph, fold) for graph in graphs for fold in (False, True)]
    return pytest.mark.parametrize(
        ("graph", "fold"), cases, ids=[f"{graph.name}{'-folded' * fold}" for graph, fold in cases]
    )


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def rectangle(layout: Layout, node: str) -> Box:
    (x, y), width = layout.centre(node), layout.widths[node]
    return Box(layout.lane(node), x - width / 2, x + width / 2, y - ROW / 2, y + ROW / 2)


def inside(inner: Box, outer: Box) -> bool:
    across = outer.left < inner.left and inner.right < outer.right
    return across and outer.bottom < inner.bottom and inner.top < outer.top


def apart(one: Any, other: Any) -> bool:
    across = one.right <= other.left or other.right <= one.left
    return bool(across or one.top <= other.bottom or other.top <= one.bottom)


@every(GRAPHS)
def test_it_is_a_figure_and_a_png(graph: sg.Graph) -> None:
    assert isinstance(graph.draw(), figures.Figure)
    assert graph._repr_png_().startswith(b"\x89PNG\r\n\x1a\n")


@every(GRAPHS)
def test_every_node_and_every_plate_is_named(graph: sg.Graph) -> None:
    figure, layout = graph.draw(), layout_of(graph)
    found, placed = texts(figure), {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    for name, data in graph.networkx.nodes(data=True):
        if data["kind"] in ("input", "sample", "update"):
            assert placed[layout.centre(name)].split("\n")[0] == name
        if data["kind"] == "sample":
            assert f"{name}\n~ {data['distribution']}" in found
            assert data["plate"] is None or f"{name}, N = {data['n']}" in found
            assert data["time"] is None or f"{name}.time (time)" in found
    assert found.count("objective") == 1 + sum(data["kind"] == "update" for _, data in graph.networkx.nodes(data=True))


def test_updates_and_selected_fields_are_labelled() -> None:
    found = texts(tasks.draw())
    assert {"theta'\ndescend", "theta''\ndescend", "params", "rate", "['policy']", ".reward", ".state"} <= set(found)
    assert "trajectories0.reward" not in found


def test_only_selects_are_left_out_and_only_times_are_dashed() -> None:
    kept = {name for name, data in tasks.networkx.nodes(data=True) if data["kind"] != "select"}
    assert set(layout_of(tasks).graph) == kept
    boxes = [patch for patch in tasks.draw().axes[0].patches if type(patch).__name__ == "FancyBboxPatch"]
    assert sorted(box.get_linestyle() for box in boxes) == ["-"] * 4 + ["--"] * 3


@drawn(GRAPHS)
def test_the_boxes_of_an_axis_hold_exactly_its_nodes(graph: sg.Graph, fold: bool) -> None:
    layout = layout_of(graph, fold)
    for node in layout.graph:
        around = [box for box in layout.boxes if inside(rectangle(layout, node), box)]
        assert sorted(box.lane[-1] for box in around) == sorted(layout.lane(node))
        others = [box for box in layout.boxes if box not in around]
        assert all(apart(rectangle(layout, node), box) for box in others)


@drawn(GRAPHS)
def test_boxes_nest_as_axes_do(graph: sg.Graph, fold: bool) -> None:
    for one, other in itertools.combinations(layout_of(graph, fold).boxes, 2):
        if other.lane[: len(one.lane)] == one.lane:
            assert inside(other, one)
        else:
            assert apart(one, other)


@drawn(NESTED)
def test_nested_axes_have_one_box_each(graph: sg.Graph, fold: bool) -> None:
    layout = layout_of(graph, fold)
    assert sorted(box.lane[-1] for box in layout.boxes) == sorted(layout.captions)


@drawn(GRAPHS)
def test_nodes_do_not_overlap_and_edges_go_down_between_them(graph: sg.Graph, fold: bool) -> None:
    layout = layout_of(graph, fold)
    nodes = [rectangle(layout, node) for node in layout.graph]
    assert all(apart(one, other) for one, other in itertools.combinations(nodes, 2))
    for parent, child in layout.graph.edges:
        way = layout.way(parent, child, layout.centre(child)[0])
        heights = [layout.centre(parent)[1], *(y for _, y in way), layout.centre(child)[1]]
        assert heights == sorted(heights, reverse=True)
        # Curves, between points 0-1 and 2-3, stay within a gap between rows; between 1 and 2 the edge is upright.
        for (_, top), (_, bottom) in zip(way[::2], way[1::2], strict=True):
            assert not any(bottom < node.top - 1e-9 and node.bottom + 1e-9 < top for node in nodes)
        for (x, top), (u, bottom) in zip(way[1:-1:2], way[2:-1:2], strict=True):
            assert x == u
            assert all(apart(node, Box((), x, x, bottom, top)) for node in nodes)


@drawn(GRAPHS)
def test_texts_fit_their_nodes_and_the_picture(graph: sg.Graph, fold: bool) -> None:
    figure, layout = graph.draw(fold=fold), layout_of(graph, fold)
    axes, dots = figure.axes[0], figure.dpi
    extents = {text: text.get_window_extent(figure.canvas.get_renderer()) for text in axes.texts}
    for text, extent in extents.items():
        assert figure.bbox.x0 <= extent.x0
        assert extent.x1 <= figure.bbox.x1
        for node in layout.graph:
            if text.get_position() == layout.centre(node):
                assert extent.width < layout.widths[node] * dots
                assert extent.height < ROW * dots
    for one, other in itertools.combinations(extents.values(), 2):
        assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
    legend = axes.get_legend().get_window_extent()
    assert not any(legend.overlaps(extent) for extent in extents.values())
    assert figure.bbox.x0 <= legend.x0
    assert legend.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= legend.y0
    assert legend.y1 <= figure.bbox.y1


@drawn(GRAPHS)
def test_the_legend_covers_nothing(graph: sg.Graph, fold: bool) -> None:
    figure = graph.draw(fold=fold)
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent(figure.canvas.get_renderer())
    for patch in axes.patches:
        line = type(patch).__name__ == "FancyArrowPatch"
        shape = patch.get_transform().transform_path(patch.get_path())
        parts = [type(shape)(part) for part in shape.to_polygons(closed_only=False)]
        assert not any(part.intersects_bbox(legend, filled=not line) for part in parts)


def test_the_legend_is_within_the_picture_where_there_is_room() -> None:
    width, height = chain.draw(legend=False).get_size_inches()
    beside = chain.draw().get_size_inches()
    assert beside[0] > width + 1  # a narrow picture has none
    assert list(tasks.draw().get_size_inches()) == list(tasks.draw(legend=False).get_size_inches())
    assert chain.draw(legend=False).axes[0].get_legend() is None
    assert beside[1] == height


def test_a_learning_rate_is_next_to_its_update() -> None:
    layout = layout_of(crossed)
    assert layout.row["rate"] == layout.row["theta'"] - 1
    assert layout.row["theta"] == 0


def test_nothing_is_shown_or_left_behind() -> None:
    program = (
        "import sys, torch, stochgraph as sg\n"
        "graph = sg.graph(lambda theta: sg.sample('x', torch.distributions.Normal, theta, 1.0))\n"
        "assert 'matplotlib' not in sys.modules\n"
        "graph.draw(); graph._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib.pyplot\n"
        "assert matplotlib.pyplot.get_fignums() == []\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "stochgraph.explain.picture", raising=False)
    with pytest.raises(ImportError, match=r"pip install stochgraph\[plot\]"):
        normal.draw()


def test_the_text_shows_small_constants_and_shapes_of_large_ones() -> None:
    @sg.graph
    def objective(theta: Any) -> Any:
        row = say.sample("row", Categorical, torch.full((200,), 0.005), n=20)
        coin = say.sample("coin", Categorical, torch.tensor([0.5, 0.5]), within=())
        return say.mean(say.sample("x", Normal, theta + row + coin, torch.ones(1, 2)))

    assert str(objective).splitlines() == [
        "Graph objective(theta)",
        "  row ~ Categorical(tensor of shape (200,))   axes: (row), n = 20",
        "  coin ~ Categorical(tensor([0.5000, 0.5000]))",
        "  x ~ Normal(add_2, tensor of shape (1, 2))   axes: (row)",
    ]


# Folded arithmetic


def formulas(graph: sg.Graph) -> list[str]:
    """The texts of the folded nodes, each in one line."""
    found = [data["formula"] for _, data in folded(graph).nodes(data=True) if "formula" in data]
    return [formula.replace("\n", " ") for formula in found]


def test_arithmetic_is_one_node() -> None:
    assert formulas(normal) == ["−(mean(x) − 1)²"]
    assert formulas(bandit) == ["mean(sin(a0))", "mean(sin(a1))", "mean(sin(b))"]
    assert formulas(crossed) == ["mean(u · v)", "rate · w + mean(mean(u · v over u) · stop(v))"]
    assert set(folded(normal).edges) == {("theta", "x"), ("x", "neg")}


def test_a_long_formula_is_parted_and_its_parts_are_called_by_name() -> None:
    assert formulas(sharpe) == [
        "mean(sin(first))",
        "mean(sin(second))",
        "sqrt = sqrt(mean(sin(last)²) − mean(sin(last))² + 0.01)",
        "sub_2 = log_softmax(theta'', -1) − log_softmax(theta, -1)",
        "mul_2 = strength · sum(softmax(theta'', -1) · sub_2)",
        "mean(sin(last)) / sqrt − mul_2",
    ]


def test_what_has_a_meaning_of_its_own_stays_a_node() -> None:
    @sg.graph
    def objective(theta: Any, data: Any) -> Any:
        pay = say.apply(lambda x, scale: scale * x, say.sample("x", Normal, 2 * theta, 1.0, n=3), data, name="pay")
        return say.mean(pay.a[0] + (pay.b - 1) / 2) * data

    graph = folded(objective)
    assert formulas(objective) == ["2 · theta", "pay(x, data)", "mean(pay.a[0] + (pay.b − 1) / 2) · data"]
    assert set(graph) == {"theta", "data", "mul", "x", "pay", "mul_2"}
    assert graph.edges["mul", "x"]["role"] == "parent"
    assert not any(label for _, _, label in graph.edges(data="label"))


def test_fields_that_are_no_arithmetic_label_their_edges() -> None:
    @sg.graph
    def objective(theta: Any) -> Any:
        pair = say.apply(lambda x: (x, x + 1), 2 * theta["policy"])
        x = say.sample("x", Normal, pair[0], 1.0)
        return x * pair[1]

    graph = folded(objective)
    assert formulas(objective) == ["lambda = lambda(2 · theta['policy'])", "x · lambda[1]"]
    assert graph.edges["lambda", "x"] == {"role": "parent", "label": "[0]"}


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        (lambda x: x - (1 - x), "x − (1 − x)"),
        (lambda x: (x - 1) - x, "x − 1 − x"),
        (lambda x: x / (x / 2), "x / (x / 2)"),
        (lambda x: (x * x) * (x + 1), "x · x · (x + 1)"),
        (lambda x: -((x + 1) ** 2), "−(x + 1)²"),
        (lambda x: (-x) ** -12, "(−x)⁻¹²"),
        (lambda x: x**0.5 + x**x, "x^0.5 + x^x"),
        (lambda x: x * (-1.5), "x · (-1.5)"),
        (lambda x: torch.where(x > 0, x, torch.tensor(0.5)), "where(gt(x, 0), x, 0.5)"),
        (lambda x: torch.stack([x, x + 1])[1], "stack([x, x + 1])[1]"),
        (lambda x: torch.clamp(x, min=0.0), "clamp(x, min=0)"),
        (lambda x: x.square() + x.clamp(0, 1), "x² + clamp(x, 0, 1)"),
    ],
)
def test_formulas_have_the_brackets_that_they_need(expression: Callable[[Any], Any], formula: str) -> None:
    @sg.graph
    def objective(theta: Any) -> Any:
        return expression(say.sample("x", Normal, theta, 1.0))

    assert formulas(objective) == [formula]


def test_the_numbers_of_updates_are_raised() -> None:
    @sg.graph
    def objective(theta: Any) -> Any:
        for _ in range(12):
            theta = say.ascend(theta, -((theta - 1) ** 2), 0.1)
        return theta**2

    shown = texts(objective.draw(fold=True))
    assert {"theta'''\nascend", "theta⁽⁴⁾\nascend", "−(theta⁽¹¹⁾ − 1)²", "theta⁽¹²⁾²"} <= set(shown)


# Pages and files


def test_sharpe_less_a_divergence_fits_a_page() -> None:
    """A sheet of A4."""
    width, height = sharpe.draw(fold=True).get_size_inches()
    assert width <= 8.27
    assert height <= 11.69


@pytest.mark.parametrize(("name", "start"), [("graph.svg", b"<?xml"), ("graph.pdf", b"%PDF")])
def test_vector_files(name: str, start: bytes, tmp_path: pathlib.Path) -> None:
    sharpe.draw(fold=True).savefig(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


# Many steps


def crossings(layout: Layout) -> int:
    """How many pairs of edges swap sides between the same two rows."""
    gaps: dict[float, list[tuple[float, float]]] = {}
    for parent, child in layout.graph.edges:
        way = layout.way(parent, child, layout.centre(child)[0])
        for (x, top), (u, _) in zip(way[::2], way[1::2], strict=True):
            gaps.setdefault(top, []).append((x, u))
    pairs = (pair for ends in gaps.values() for pair in itertools.combinations(ends, 2))
    return sum((x - y) * (u - v) < 0 for (x, u), (y, v) in pairs)


def steps_of(count: int) -> sg.Graph:
    @sg.graph
    def objective(theta: Any) -> Any:
        for k in range(count):
            a = say.sample(f"a{k}", Categorical, logits=theta, n=2)
            theta = say.ascend(theta, say.mean(torch.sin(a)), 0.7)
        return say.mean(torch.sin(say.sample("b", Categorical, logits=theta, n=1)))

    return objective


def calls(fn: Callable[[], object]) -> int:
    """How many Python functions a call of `fn` calls: its cost, and the same on every machine."""
    count = 0

    def counting(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        fn()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("fold", [False, True])
def test_a_step_costs_the_same_whether_there_are_few_or_many(fold: bool) -> None:
    few, many = steps_of(25), steps_of(100)
    assert calls(lambda: layout_of(many, fold)) < 4.4 * calls(lambda: layout_of(few, fold))
    assert crossings(layout_of(many, fold)) == 0
    assert crossings(layout_of(sharpe, fold)) <= 6
