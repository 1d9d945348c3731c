"""The picture of a graph: everything is in it, boxes hold exactly their nodes, nothing overlaps, nothing leaks."""

import itertools
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


GRAPHS = [normal, single, trivial, chain, bandit, tasks, crossed]
NESTED = [graph for graph in GRAPHS if graph is not crossed]


def every(graphs: list[sg.Graph]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("graph", graphs, ids=lambda graph: graph.name)


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


@every(GRAPHS)
def test_the_boxes_of_an_axis_hold_exactly_its_nodes(graph: sg.Graph) -> None:
    layout = layout_of(graph)
    for node in layout.graph:
        around = [box for box in layout.boxes if inside(rectangle(layout, node), box)]
        assert sorted(box.lane[-1] for box in around) == sorted(layout.lane(node))
        others = [box for box in layout.boxes if box not in around]
        assert all(apart(rectangle(layout, node), box) for box in others)


@every(GRAPHS)
def test_boxes_nest_as_axes_do(graph: sg.Graph) -> None:
    for one, other in itertools.combinations(layout_of(graph).boxes, 2):
        if other.lane[: len(one.lane)] == one.lane:
            assert inside(other, one)
        else:
            assert apart(one, other)


@every(NESTED)
def test_nested_axes_have_one_box_each(graph: sg.Graph) -> None:
    layout = layout_of(graph)
    assert sorted(box.lane[-1] for box in layout.boxes) == sorted(layout.captions)


@every(GRAPHS)
def test_nodes_do_not_overlap_and_edges_go_down_between_them(graph: sg.Graph) -> None:
    layout = layout_of(graph)
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


@every(GRAPHS)
def test_texts_fit_their_nodes_and_the_picture(graph: sg.Graph) -> None:
    figure, layout = graph.draw(), layout_of(graph)
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
    assert all(extent.x1 < legend.x0 or extent.y1 < legend.y0 for extent in extents.values())
    assert legend.x1 <= figure.bbox.x1


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
