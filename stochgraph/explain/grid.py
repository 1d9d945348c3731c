"""The parts of a graph that are drawn, with their text, row and column. `layout` makes inches of them.

Rows are depths: sources on top, the objective at the bottom. A lane is the strip of columns that belongs to one tuple
of axes. An edge over several rows runs down a column of its own, its trunk, so that no edge crosses a node.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import NamedTuple

import networkx as nx

from ..ir import nodes as nd
from ..ir.declaration import Declaration

Lane = tuple[str, ...]
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
UPDATE_ROLES = ("params", "objective", "rate", "init")


def without_selects(graph: Declaration) -> nx.DiGraph:
    """The graph with `tau.reward` and the like as `label`s of edges; an objective that is one stays a node."""
    full = graph.networkx
    keys = {n.name: f".{n.key}" if n.attribute else f"[{n.key!r}]" for n in graph.order if isinstance(n, nd.Select)}
    shown = nx.DiGraph(**full.graph)
    shown.add_nodes_from((n, data) for n, data in full.nodes(data=True) if n not in keys or data["objective"])
    for parent, child, role in full.edges(data="role"):
        path = ""
        while child in shown and parent not in shown:
            path, parent = keys[parent] + path, next(full.predecessors(parent))
        if child in shown:
            text = f"{role} {path}".strip() if role in UPDATE_ROLES else path
            _add_edge(shown, parent, child, role, text)
    return shown


def _add_edge(graph: nx.DiGraph, parent: str, child: str, role: str, text: str) -> None:
    """A second edge between two nodes adds its text to the first."""
    texts = [text]
    if graph.has_edge(parent, child):
        texts = [graph.edges[parent, child]["label"], text]
    graph.add_edge(parent, child, role=role, label=", ".join(dict.fromkeys(filter(None, texts))))


def numbered(graph: Declaration) -> dict[str, int]:
    """The places of the nodes in the order of the graph, by name."""
    return {node.name: i for i, node in enumerate(graph.order)}


def captions(graph: nx.DiGraph) -> dict[str, str]:
    """The caption of each axis: plates of draws have declared sizes, those of data have rows, other axes are times."""
    sizes = graph.graph["plates"]
    names = {axis for _, axes in graph.nodes(data="axes") for axis in axes}
    words = {name: f"{name} (data)" if n is None else f"{name}, N = {n}" for name, n in sizes.items()}
    return {name: words.get(name, f"{name} (time)") for name in names}


def text(graph: nx.DiGraph, node: str) -> str:
    """The text in a node: its name, and what it is; or the formula that it was folded into."""
    data = graph.nodes[node]
    words: str = data["formula"] if "formula" in data else _words(graph, node)
    return words


def raised(name: str) -> str:
    """The name of an update with its number raised: of theta[4], the fourth in a chain."""
    return re.sub(r"\[(\d+)\]$", lambda number: f"⁽{number[1].translate(SUPERSCRIPTS)}⁾", name)


def _words(graph: nx.DiGraph, node: str) -> str:
    data = graph.nodes[node]
    if data["kind"] == "sample":
        return f"{node}\n~ {data['distribution']}"
    if data["kind"] == "update":
        return f"{raised(node)}\n{data['label'].split('(')[0]}"
    if data["kind"] in ("reduction", "reduce"):
        (parent,) = graph.predecessors(node)
        gone = [axis for axis in graph.nodes[parent]["axes"] if axis not in data["axes"]]
        return f"{node.split('(')[0]} over {', '.join(gone)}"
    return node


class Trunk(NamedTuple):
    """The way down of all edges from `parent` that cross rows in `lane`; those into updates have one of their own."""

    parent: str
    lane: Lane
    into_update: bool


def trunk_of(graph: nx.DiGraph, parent: str, child: str) -> Trunk:
    """The trunk of an edge. It runs outside the boxes that only one of its ends is in."""
    lane = min(graph.nodes[parent]["axes"], graph.nodes[child]["axes"], key=len)
    return Trunk(parent, lane, graph.edges[parent, child]["role"] in UPDATE_ROLES)


def rows(graph: nx.DiGraph) -> dict[str, int]:
    """Depths; a source goes down to the row above its first use, so that a learning rate is next to its update."""
    row = {node: i for i, layer in enumerate(nx.topological_generations(graph)) for node in layer}
    for node in [node for node in graph if not graph.in_degree(node) and graph.out_degree(node)]:
        row[node] = min(row[child] for child in graph.successors(node)) - 1
    return row


def columns(graph: nx.DiGraph, row: dict[str, int]) -> tuple[dict[str, int], dict[Trunk, int]]:
    """The columns of nodes and trunks within their lanes.

    Parameters, then their updates, are placed first and one below the other; other nodes go as close below their
    parents as there is room, other trunks beside them: to the left if they stay in the lane.
    """
    taken: set[tuple[Lane, int, int]] = set()

    def place(lane: Lane, among: Iterable[int], wishes: Iterator[int]) -> int:
        cells = next(c for c in ([(lane, w, r) for r in among] for w in wishes) if taken.isdisjoint(c))
        taken.update(cells)
        return cells[0][1]

    column: dict[str, int] = {}
    trunks: dict[Trunk, int] = {}
    ends = _trunk_ends(graph, row)
    for node in sorted(graph, key=lambda n: row[n]):
        column[node] = place(graph.nodes[node]["axes"], [row[node]], _around(_wish(graph, node, column)))
        for trunk, end in ends.items():
            if trunk.parent == node and trunk.into_update and trunk.lane == graph.nodes[node]["axes"]:
                trunks[trunk] = place(trunk.lane, range(row[node] + 1, end), _around(column[node]))
    # The short ones are placed first: they are the ones that should stay near.
    for trunk in sorted(ends.keys() - trunks.keys(), key=lambda t: (ends[t] - row[t.parent], t)):
        lanes = {graph.nodes[n]["axes"] for n in (trunk.parent, *graph.successors(trunk.parent))}
        step = -1 if lanes == {trunk.lane} else 1
        start = column[trunk.parent] if graph.nodes[trunk.parent]["axes"] == trunk.lane else 0
        wishes = itertools.count(start + step, step)
        trunks[trunk] = place(trunk.lane, range(row[trunk.parent] + 1, ends[trunk]), wishes)
    return column, trunks


def _trunk_ends(graph: nx.DiGraph, row: dict[str, int]) -> dict[Trunk, int]:
    """For each trunk the row that it ends above."""
    ends: dict[Trunk, int] = {}
    for parent, child in graph.edges:
        if row[child] - row[parent] > 1:
            trunk = trunk_of(graph, parent, child)
            ends[trunk] = max(ends.get(trunk, 0), row[child])
    return ends


def _around(middle: int) -> Iterator[int]:
    """`middle` and its neighbours, the nearest first."""
    yield middle
    for distance in itertools.count(1):
        yield from (middle + distance, middle - distance)


def _wish(graph: nx.DiGraph, node: str, column: dict[str, int]) -> int:
    """The column of the updated parameters, or else the mean column of the parents in the same lane."""
    beside = [p for p in graph.predecessors(node) if graph.nodes[p]["axes"] == graph.nodes[node]["axes"]]
    params = [p for p in beside if graph.edges[p, node]["role"] == "params"]
    return round(fmean(column[p] for p in params or beside)) if beside else 0
