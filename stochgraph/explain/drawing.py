"""The graph as a picture: plates as boxes, sample nodes round, updates marked.

`layout` says where things are, in inches; here they get their texts and shapes. Matplotlib is an extra: it is imported
when something is drawn.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import networkx as nx
import numpy as np

from ..ir.declaration import Declaration
from .grid import UPDATE_ROLES, captions, text, without_selects
from .layout import LETTER, ROW, Box, Layout, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .picture import Picture

ACCENT, INK, PALE = "#b3261e", "#222222", "#7d7d7d"
LEGEND = 1.9  # inches, to the right of the graph
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "parse_math": False}
VEIL = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}  # behind texts that edges may cross
RIM = 0.05  # between the two borders of the objective


class Look(NamedTuple):
    """How a kind of node looks; `spread` is its width for a text of width one, `marker` stands for it in the legend."""

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


def draw(graph: Declaration) -> "Picture":
    """The graph as a `matplotlib` figure, as large as it needs to be."""
    from .picture import Picture

    layout = layout_of(graph)
    width, height = layout.width + LEGEND, max(layout.height, 2.4)
    figure = Picture(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    # One unit is one inch, and the graph hangs from the top edge.
    axes.set(xlim=(0.0, width), ylim=(layout.height - height, layout.height))
    axes.axis("off")
    for box in layout.boxes:
        _draw_box(axes, box, layout.captions[box.lane[-1]])
    for node in layout.graph:
        _draw_node(axes, layout, node)
    _draw_edges(axes, layout)
    _draw_legend(axes, layout)
    return figure


def layout_of(graph: Declaration) -> Layout:
    """The places of the graph's nodes and boxes, in inches."""
    shown = without_selects(graph)
    return Layout(shown, {node: _width(shown, node) for node in shown}, captions(shown))


def _look(graph: nx.DiGraph, node: str) -> Look:
    return LOOKS.get(graph.nodes[node]["kind"], DETERMINISTIC)


def _width(graph: nx.DiGraph, node: str) -> float:
    letters = max(len(line) for line in text(graph, node).split("\n"))
    return max(_look(graph, node).spread * LETTER * letters + 0.16, 0.5)


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


def _draw_node(axes: "Axes", layout: Layout, node: str) -> None:
    data, look, centre = layout.graph.nodes[node], _look(layout.graph, node), layout.centre(node)
    width, style = layout.widths[node], {"edgecolor": look.edge, "linewidth": look.line, "zorder": 3}
    axes.add_patch(_outline(data["kind"], centre, width, look.height, facecolor=look.fill, **style))
    axes.text(*centre, text(layout.graph, node), zorder=4, size=9, **CENTRED)
    if data["objective"]:
        axes.add_patch(_outline(data["kind"], centre, width + 2 * RIM, look.height + 2 * RIM, fill=False, **style))
        below = (centre[0], centre[1] - look.height / 2 - RIM - 0.04)
        axes.text(*below, "objective", size=8, style="italic", **{**CENTRED, "va": "top"})


def _draw_box(axes: "Axes", box: Box, caption: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner, size = (box.left, box.bottom), (box.right - box.left, box.top - box.bottom)
    rounded = FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.1", linewidth=0.9, zorder=1)
    rounded.set(facecolor="#4a6fa50d", edgecolor="#4a6fa5", linestyle="--" if caption.endswith("(time)") else "-")
    axes.add_patch(rounded)
    style: dict[str, Any] = {"size": 8, "color": "#2f4a73", "ha": "right", "parse_math": False}
    axes.text(box.right - 0.07, box.bottom + 0.05, caption, zorder=2.5, bbox=VEIL, **style)


def _draw_edges(axes: "Axes", layout: Layout) -> None:
    labels: list[Point] = []
    for child in layout.graph:
        middle = layout.centre(child)[0]
        came_from = {parent: layout.way(parent, child, middle)[-2][0] for parent in layout.graph.predecessors(child)}
        for place, parent in _places(came_from, middle):
            port, data = _port(layout, child, place), layout.graph.edges[parent, child]
            *way, start, end = layout.way(parent, child, port[0])
            curves = [*([_curve(way[0], way[1], 0.0)] if way else []), _curve(start, end, place)]
            _draw_edge(axes, _foot(layout, parent), curves, port, data["role"])
            if data["label"]:
                labels.append(_draw_label(axes, curves[-1], data["label"], labels))


def _places(came_from: dict[str, float], middle: float) -> list[tuple[float, str]]:
    """Where edges end on the upper border, in (-0.5, 0.5) from left to right; one from straight above ends at 0."""
    parents = sorted(came_from, key=lambda parent: came_from[parent])
    straight = [i for i, parent in enumerate(parents) if math.isclose(came_from[parent], middle)]
    origin = straight[0] if straight else (len(parents) - 1) / 2
    step = min(0.2, 0.33 / max(len(parents) - 1, 1))
    return [((i - origin) * step, parent) for i, parent in enumerate(parents)]


def _foot(layout: Layout, node: str) -> Point:
    """Where the edges of a node begin."""
    x, y = layout.centre(node)
    return x, y - _look(layout.graph, node).height / 2


def _port(layout: Layout, node: str, place: float) -> Point:
    """The point of a node's upper border at `place`."""
    (x, y), height = layout.centre(node), _look(layout.graph, node).height / 2
    if layout.graph.nodes[node]["kind"] == "sample":
        height *= math.sqrt(1 - (2 * place) ** 2)
    return x + place * layout.widths[node], y + height + (RIM if layout.graph.nodes[node]["objective"] else 0.0)


def _curve(start: Point, end: Point, place: float) -> list[Point]:
    """A Bézier curve, upright at both ends. Those from one side that end at several places run at several heights."""
    (x, y), (u, v) = start, end
    shift = math.copysign(place, place * (u - x))
    return [start, (x, y + (v - y) * (0.65 - shift)), (u, v - (v - y) * (0.65 + shift)), end]


def _draw_edge(axes: "Axes", foot: Point, curves: list[list[Point]], port: Point, role: str) -> None:
    """Curves between rows, straight lines along the trunk and at both ends."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    points = [foot, *(point for curve in curves for point in curve), port]
    codes = [Path.MOVETO, *[Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * len(curves), Path.LINETO]
    _, color, width = LINES[role]
    arrow = FancyArrowPatch(path=Path(points, codes), arrowstyle="-|>", mutation_scale=10, zorder=2 + 0.1 * width)
    arrow.set(color=color, linewidth=width, capstyle="butt")
    axes.add_patch(arrow)


def _draw_label(axes: "Axes", curve: list[Point], label: str, others: list[Point]) -> Point:
    """A label on a curve, away from the other labels; where it is."""
    places = [_along(curve, t) for t in (0.5, 0.35, 0.65, 0.2)]
    free = [(x, y) for x, y in places if all(abs(x - u) > 0.6 or abs(y - v) > 0.13 for u, v in others)]
    place = [*free, places[0]][0]
    axes.text(*place, label, zorder=2.5, size=7, bbox=VEIL, **CENTRED)
    return place


def _along(curve: list[Point], t: float) -> Point:
    weights = [math.comb(3, i) * t**i * (1 - t) ** (3 - i) for i in range(4)]
    x, y = np.dot(weights, curve)
    return float(x), float(y)


def _draw_legend(axes: "Axes", layout: Layout) -> None:
    """One entry for each kind of node and of edge that there is, at the right."""
    from matplotlib.lines import Line2D

    nodes = []
    for look in dict.fromkeys(_look(layout.graph, node) for node in layout.graph):
        nodes.append(Line2D([], [], linestyle="none", marker=look.marker, markersize=9, label=look.word))
        nodes[-1].set(markerfacecolor=look.fill, markeredgecolor=look.edge, markeredgewidth=look.line)
    lines = dict.fromkeys(LINES[role] for _, _, role in layout.graph.edges(data="role"))
    edges = [Line2D([], [], color=color, linewidth=width, label=word) for word, color, width in lines]
    axes.legend(handles=[*nodes, *edges], loc="upper right", fontsize=8, frameon=False, borderaxespad=1.2)
