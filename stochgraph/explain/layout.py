"""The place of everything in a graph's picture, in inches; no drawing here, so that it can be tested.

Edges move sideways only in the gaps between rows. The strip of a lane lies in the strip of its outer axes, and from its
first row to its last it is the box of its innermost axis. So boxes hold exactly their own nodes, by construction.
(Where plates cross instead of nesting, the inner one has a box in each strip that it appears in.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from .grid import Lane, columns, rows, trunk_of

Point = tuple[float, float]

ROW, GAP, STUB = 0.46, 0.38, 0.08  # heights of a row, of the gap below it, and of an edge's straight end in the gap
SPACE, TRUNK, MARGIN = 0.3, 0.26, 0.3  # between two nodes of a row; a column without nodes; around the whole picture
PAD, CAPTION = 0.1, 0.2  # what a box adds on three sides, and at the bottom, where its caption is
LETTER = 0.076  # the width of a letter, on average


@dataclass(frozen=True)
class Box:
    """The box of the last axis of a lane, around all that the lane holds."""

    lane: Lane
    left: float
    right: float
    bottom: float
    top: float


class Layout:
    """The places of everything.

    Args:
        graph: nodes with `kind` and `axes`, edges with `role`, as in `Graph.networkx`.
        widths: the width of each node.
        captions: the caption of each axis: its box has room for it.
    """

    def __init__(self, graph: nx.DiGraph, widths: Mapping[str, float], captions: Mapping[str, str]) -> None:
        self.graph, self.widths, self.captions = graph, widths, captions
        self.row = rows(graph)
        self.extent = self._extents()
        self._inner: dict[Lane, list[Lane]] = {lane: [] for lane in self.extent}
        for lane in sorted(self.extent, key=lambda lane: self.extent[lane]):
            if lane:
                self._inner[lane[:-1]].append(lane)
        self.column, self.trunks = columns(graph, self.row)
        self._wide = self._column_widths()
        self._x: dict[tuple[Lane, int], float] = {}
        self._spans: dict[Lane, tuple[float, float]] = {}
        self.width = self._strip((), MARGIN) + MARGIN
        self._y, self.height = self._heights()
        self.boxes = [self._box(lane) for lane in sorted(self._spans, key=len)]

    def lane(self, node: str) -> Lane:
        """The axes of a node, outermost first."""
        axes: Lane = self.graph.nodes[node]["axes"]
        return axes

    def centre(self, node: str) -> Point:
        """The centre of a node."""
        return self._x[self.lane(node), self.column[node]], self._y[self.row[node]]

    def way(self, parent: str, child: str, port: float) -> list[Point]:
        """An edge from below its parent's row to above the child's, at `port`: the ends of its curves, pairwise."""
        first, last = self.row[parent] + 1, self.row[child] - 1
        start, end = (self.centre(parent)[0], self._below(first - 1)), (port, self._above(last + 1) + STUB)
        if last < first:
            return [start, end]
        trunk = trunk_of(self.graph, parent, child)
        x = self._x[trunk.lane, self.trunks[trunk]]
        return [start, (x, self._above(first)), (x, self._below(last)), end]

    def _above(self, row: int) -> float:
        return self._y[row] + ROW / 2

    def _below(self, row: int) -> float:
        return self._y[row] - ROW / 2

    def _extents(self) -> dict[Lane, tuple[int, int]]:
        """The first and the last row of each strip."""
        inside: dict[Lane, list[int]] = {}
        for node, row in self.row.items():
            for depth in range(len(self.lane(node)) + 1):
                inside.setdefault(self.lane(node)[:depth], []).append(row)
        return {lane: (min(among), max(among)) for lane, among in inside.items()}

    def _strip(self, lane: Lane, left: float) -> float:
        """Give the columns of all lanes that start with `lane` their places, from `left` on; the right end."""
        x = left + (PAD + SPACE / 2 if lane else 0)
        last = left
        for column, width in sorted(self._wide.get(lane, {}).items()):
            last = self._x[lane, column] = x + width / 2
            x += width
        for slot in self._slots(lane):
            x = max(self._strip(inner, x) for inner in slot)
        if lane:
            # The caption is to the right of the edges that leave the box downwards.
            x = max(x + PAD, last + LETTER * len(self.captions[lane[-1]]) + PAD)
            self._spans[lane] = (left + SPACE / 2, x)
            x += SPACE / 2
        return x

    def _column_widths(self) -> dict[Lane, dict[int, float]]:
        """The widths of all columns of all lanes."""
        widths: dict[Lane, dict[int, float]] = {}
        for trunk, column in self.trunks.items():
            widths.setdefault(trunk.lane, {})[column] = TRUNK
        for node, column in self.column.items():
            among = widths.setdefault(self.lane(node), {})
            among[column] = max(among.get(column, 0.0), self.widths[node] + SPACE)
        return widths

    def _slots(self, lane: Lane) -> list[list[Lane]]:
        """The strips inside a strip, from above; those that are never side by side in a row share a slot."""
        slots: list[list[Lane]] = []
        ends: list[int] = []  # the last row of each slot
        for inner in self._inner[lane]:
            first, last = self.extent[inner]
            slot = next((i for i, end in enumerate(ends) if end < first), len(slots))
            if slot == len(slots):
                slots.append([])
                ends.append(last)
            slots[slot].append(inner)
            ends[slot] = last
        return slots

    def _borders(self, lane: Lane, end: int) -> int:
        """The number of boxes that begin (`end` 0) or stop (`end` 1) in this one's row, from this one inwards."""
        row = self.extent[lane][end]
        inner = [self._borders(other, end) for other in self._inner[lane] if self.extent[other][end] == row]
        return 1 + max(inner, default=0)

    def _heights(self) -> tuple[list[float], float]:
        """The y of each row and the height of all; gaps are larger where boxes begin or stop in them."""
        above, below = [[0.0] * (1 + max(self.row.values())) for _ in range(2)]
        for lane in self._spans:
            first, last = self.extent[lane]
            above[first] = max(above[first], self._borders(lane, 0) * PAD)
            below[last] = max(below[last], self._borders(lane, 1) * CAPTION)
        heights, y = [], MARGIN - GAP
        for i in reversed(range(len(above))):
            y += GAP + below[i] + ROW
            heights.append(y - ROW / 2)
            y += above[i]
        return heights[::-1], y + MARGIN

    def _box(self, lane: Lane) -> Box:
        (left, right), (first, last) = self._spans[lane], self.extent[lane]
        bottom = self._below(last) - self._borders(lane, 1) * CAPTION
        return Box(lane, left, right, bottom, self._above(first) + self._borders(lane, 0) * PAD)
