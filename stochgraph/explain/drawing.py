"""The graph as a picture: plates as boxes, sample nodes round, updates marked.

`layout` says where things are, in inches; here they get their texts and shapes. Matplotlib is an extra: it is imported
when something is drawn.
"""

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import networkx as nx
import numpy as np

from ..ir.declaration import Declaration
from .folding import folded
from .grid import UPDATE_ROLES, captions, numbered, text, without_selects
from .layout import MARGIN, ROW, Box, Layout, Point
from .legend import room

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .picture import Picture

ACCENT, INK, PALE = "#b3261e", "#222222", "#7d7d7d"
LEGEND = 1.7  # the width of the legend, in inches
SIZE = 9  # points, of the text in nodes
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "parse_math": False}
VEIL = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}  # behind texts that edges may cross
RIM = 0.05  # between the two borders of the objective


class Look(NamedTuple):
    """The look of a kind of node; `spread`: its width for a text of width one, `marker` stands for it in the legend."""

    word: str
    height: float
    spread: float
    fill: str
    edge: str
    line: float
    marker: str


DETERMINISTIC = Look("deterministic", 0.27, 1.0, "#ffffff", PALE, 0.8, "s")
LOOKS = {
    "input": Look("input", 0.3, 1.0, "#cfe2f3", INK, 1.0, "s"),
    "data": Look("data", 0.3, 1.0, "#eaf2f9", INK, 1.0, "s"),
    "unknown": Look("unknown", 0.3, 1.0, "#ffffff", ACCENT, 1.0, "s"),
    "sample": Look("sample", ROW, 1.36, "#fff2cc", INK, 1.0, "o"),
    "update": Look("update", ROW, 1.25, "#fbe3e1", ACCENT, 2.0, "H"),
}
# Word in the legend, colour and line width of an edge, by role; those into an update share a look.
LINES = {
    "parent": ("parent of a sample", INK, 1.2),
    "value": ("value", PALE, 0.8),
    **dict.fromkeys(UPDATE_ROLES, ("into an update", ACCENT, 1.2)),
}


def draw(graph: Declaration, legend: bool = True, fold: bool = False) -> "Picture":
    """The graph as a `matplotlib` figure, as large as it needs to be; the legend goes where there is room for it."""
    from .picture import Picture

    layout = layout_of(graph, fold)
    edges = list(_edges(layout))
    entries = _entries(layout) if legend else []
    size = (LEGEND, 0.19 * len(entries))
    place = _place_of_legend(layout, edges, size)
    width = layout.width + (LEGEND + MARGIN if legend and place is None else 0.0)
    height = max(layout.height, size[1] + 2 * MARGIN if legend else 0.0)
    figure = Picture(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    # One unit is one inch, and the graph hangs from the top edge.
    axes.set(xlim=(0.0, width), ylim=(layout.height - height, layout.height))
    axes.axis("off")
    for box in layout.boxes:
        _draw_box(axes, box, layout.captions[box.lane[-1]])
    numbers = numbered(graph)
    for node in layout.graph:
        _draw_node(axes, layout, node, node_id(numbers[node]))
    for edge in edges:
        _draw_edge(axes, edge, edge_id(numbers[edge.parent], numbers[edge.child]))
    _draw_labels(axes, edges)
    if legend:
        _draw_legend(axes, entries, place or (layout.width, layout.height - MARGIN - size[1]))
    return figure


def node_id(node: int) -> str:
    """The name of a node's shape in an SVG file: by its place in the order of the graph."""
    return f"node-{node}"


def edge_id(parent: int, child: int) -> str:
    """The name of an edge there."""
    return f"edge-{parent}-{child}"


def layout_of(graph: Declaration, fold: bool = False) -> Layout:
    """The places of the graph's nodes and boxes, in inches."""
    shown = folded(graph) if fold else without_selects(graph)
    return Layout(shown, {node: _width(shown, node) for node in shown}, captions(shown))


def _look(graph: nx.DiGraph, node: str) -> Look:
    return LOOKS.get(graph.nodes[node]["kind"], DETERMINISTIC)


def _height(graph: nx.DiGraph, node: str) -> float:
    """A node of one line is as high as its kind, one of two is as high as a row."""
    return ROW if "\n" in text(graph, node) else _look(graph, node).height


def _width(graph: nx.DiGraph, node: str) -> float:
    longest = max(_inches(line) for line in text(graph, node).split("\n"))
    return max(_look(graph, node).spread * longest + 0.16, 0.5)


def _inches(line: str) -> float:
    """The width of a line of text in a node."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    width, _, _ = TextToPath().get_text_width_height_descent(line, FontProperties(size=SIZE), ismath=False)
    return float(width) / 72


def _outline(kind: str, centre: Point, width: float, height: float, **style: Any) -> Any:
    """The shape of a node."""
    from matplotlib.patches import Ellipse, Polygon, Rectangle

    x, y = centre
    if kind == "sample":
        return Ellipse(centre, width, height, **style)
    if kind == "update":
        slant = min(0.12, width / 4)
        right = [(x + width / 2 - slant, y + height / 2), (x + width / 2, y), (x + width / 2 - slant, y - height / 2)]
        return Polygon([*right, *((2 * x - u, v) for u, v in reversed(right))], closed=True, **style)
    return Rectangle((x - width / 2, y - height / 2), width, height, **style)


def _draw_node(axes: "Axes", layout: Layout, node: str, identifier: str) -> None:
    data, look, centre = layout.graph.nodes[node], _look(layout.graph, node), layout.centre(node)
    width, style = layout.widths[node], {"edgecolor": look.edge, "linewidth": look.line, "zorder": 3}
    height = _height(layout.graph, node)
    axes.add_artist(_outline(data["kind"], centre, width, height, facecolor=look.fill, gid=identifier, **style))
    axes.text(*centre, text(layout.graph, node), zorder=4, size=SIZE, **CENTRED)
    if data["objective"]:
        axes.add_artist(_outline(data["kind"], centre, width + 2 * RIM, height + 2 * RIM, fill=False, **style))
        below = (centre[0], centre[1] - height / 2 - RIM - 0.04)
        axes.text(*below, "objective", size=8, style="italic", **{**CENTRED, "va": "top"})


def _draw_box(axes: "Axes", box: Box, caption: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner, size = (box.left, box.bottom), (box.right - box.left, box.top - box.bottom)
    rounded = FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.1", linewidth=0.9, zorder=1)
    rounded.set(facecolor="#4a6fa50d", edgecolor="#4a6fa5", linestyle="--" if caption.endswith("(time)") else "-")
    axes.add_artist(rounded)
    style: dict[str, Any] = {"size": 8, "color": "#2f4a73", "ha": "right", "parse_math": False}
    axes.text(box.right - 0.07, box.bottom + 0.05, caption, zorder=2.5, bbox=VEIL, **style)


class Edge(NamedTuple):
    """The way of an edge: from the foot of its parent along curves to a port of its child."""

    parent: str
    child: str
    foot: Point
    curves: list[list[Point]]
    port: Point
    role: str
    label: str


def _edges(layout: Layout) -> Iterator[Edge]:
    for child in layout.graph:
        middle = layout.centre(child)[0]
        came_from = {parent: layout.way(parent, child, middle)[-2][0] for parent in layout.graph.predecessors(child)}
        for place, parent in _places(came_from, middle):
            port, data = _port(layout, child, place), layout.graph.edges[parent, child]
            *way, start, end = layout.way(parent, child, port[0])
            curves = [*([_curve(way[0], way[1], 0.0)] if way else []), _curve(start, end, place)]
            yield Edge(parent, child, _foot(layout, parent), curves, port, data["role"], data["label"])


def _places(came_from: dict[str, float], middle: float) -> list[tuple[float, str]]:
    """The ends of edges on the upper border, in (-0.5, 0.5) from left to right; one from straight above ends at 0."""
    parents = sorted(came_from, key=lambda parent: came_from[parent])
    straight = [i for i, parent in enumerate(parents) if math.isclose(came_from[parent], middle)]
    origin = straight[0] if straight else (len(parents) - 1) / 2
    step = min(0.2, 0.33 / max(len(parents) - 1, 1))
    return [((i - origin) * step, parent) for i, parent in enumerate(parents)]


def _foot(layout: Layout, node: str) -> Point:
    """The point where the edges of a node begin."""
    x, y = layout.centre(node)
    return x, y - _height(layout.graph, node) / 2


def _port(layout: Layout, node: str, place: float) -> Point:
    """The point of a node's upper border at `place`."""
    (x, y), height = layout.centre(node), _height(layout.graph, node) / 2
    if layout.graph.nodes[node]["kind"] == "sample":
        height *= math.sqrt(1 - (2 * place) ** 2)
    return x + place * layout.widths[node], y + height + (RIM if layout.graph.nodes[node]["objective"] else 0.0)


def _curve(start: Point, end: Point, place: float) -> list[Point]:
    """A Bézier curve, upright at both ends. Those from one side that end at several places run at several heights."""
    (x, y), (u, v) = start, end
    shift = math.copysign(place, place * (u - x))
    return [start, (x, y + (v - y) * (0.65 - shift)), (u, v - (v - y) * (0.65 + shift)), end]


def _draw_edge(axes: "Axes", edge: Edge, identifier: str) -> None:
    """Curves between rows, straight lines along the trunk and at both ends."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    points = [edge.foot, *(point for curve in edge.curves for point in curve), edge.port]
    codes = [Path.MOVETO, *[Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * len(edge.curves), Path.LINETO]
    _, color, width = LINES[edge.role]
    arrow = FancyArrowPatch(path=Path(points, codes), arrowstyle="-|>", mutation_scale=10, zorder=2 + 0.1 * width)
    arrow.set(color=color, linewidth=width, capstyle="butt", gid=identifier)
    axes.add_artist(arrow)


def _draw_labels(axes: "Axes", edges: list[Edge]) -> None:
    """Labels on the last curves of edges, away from each other."""
    others: list[Point] = []
    for edge in (edge for edge in edges if edge.label):
        places = [_along(edge.curves[-1], t) for t in (0.5, 0.35, 0.65, 0.2)]
        free = [(x, y) for x, y in places if all(abs(x - u) > 0.6 or abs(y - v) > 0.13 for u, v in others)]
        others.append([*free, places[0]][0])
        axes.text(*others[-1], edge.label, zorder=2.5, size=7, bbox=VEIL, **CENTRED)


def _along(curve: list[Point], t: float) -> Point:
    weights = [math.comb(3, i) * t**i * (1 - t) ** (3 - i) for i in range(4)]
    x, y = np.dot(weights, curve)
    return float(x), float(y)


def _place_of_legend(layout: Layout, edges: list[Edge], size: Point) -> Point | None:
    """The place where the picture has room for a legend of a size."""
    taken = list(layout.boxes)
    for node in layout.graph:
        (x, y), wide, high = layout.centre(node), layout.widths[node] / 2 + RIM, ROW / 2 + RIM
        below = 0.2 if layout.graph.nodes[node]["objective"] else 0.0
        taken.append(Box((), x - wide, x + wide, y - high - below, y + high))
    return room(layout.width, layout.height, size, taken, [point for edge in edges for point in _points(edge)])


def _points(edge: Edge) -> Iterator[Point]:
    """Points along an edge, no further from each other than a legend is small."""
    corners = [edge.foot, *(_along(curve, t) for curve in edge.curves for t in np.linspace(0, 1, 33)), edge.port]
    for (x, y), (u, v) in itertools.pairwise(corners):
        for t in np.linspace(0, 1, 2 + int(math.hypot(u - x, v - y) / 0.2)):
            yield float(x + t * (u - x)), float(y + t * (v - y))


def _entries(layout: Layout) -> list[Any]:
    """One for each kind of node and of edge that there is."""
    from matplotlib.lines import Line2D

    nodes = []
    for look in dict.fromkeys(_look(layout.graph, node) for node in layout.graph):
        nodes.append(Line2D([], [], linestyle="none", marker=look.marker, markersize=9, label=look.word))
        nodes[-1].set(markerfacecolor=look.fill, markeredgecolor=look.edge, markeredgewidth=look.line)
    lines = dict.fromkeys(LINES[role] for _, _, role in layout.graph.edges(data="role"))
    return [*nodes, *(Line2D([], [], color=color, linewidth=width, label=word) for word, color, width in lines)]


def _draw_legend(axes: "Axes", entries: list[Any], corner: Point) -> None:
    style: dict[str, Any] = {
        "loc": "lower left",
        "borderaxespad": 0.0,
        "borderpad": 0.2,
        "fontsize": 8,
        "frameon": False,
    }
    axes.legend(handles=entries, bbox_to_anchor=corner, bbox_transform=axes.transData, **style)
