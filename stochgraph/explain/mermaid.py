"""The graph as a Mermaid flowchart, which code hosts render in a Markdown page: plates are subgraphs."""

import re
from collections.abc import Iterator

import networkx as nx

from ..ir.declaration import Declaration
from .folding import folded
from .grid import UPDATE_ROLES, Lane, captions, text, without_selects

_SHAPES = {"sample": "([{}])", "update": "{{{{{}}}}}"}
_OPERATION = "[{}]"
_OBJECTIVE = "[[{}]]"
# What would end a label, open a tag, or be read as Markdown: emphasis, and the start of a list.
_SPECIAL = re.compile(r'["#&<>\\`|*]|(?<!\w)_|_(?!\w)|^[-+](?= )|^\d(?=\d*[.)] )')
_CLASSES = {
    "input": "fill:#cfe2f3,stroke:#222,color:#222",
    "data": "fill:#eaf2f9,stroke:#222,color:#222",
    "unknown": "fill:#fff,stroke:#b3261e,color:#222",
    "sample": "fill:#fff2cc,stroke:#222,color:#222",
    "update": "fill:#fbe3e1,stroke:#b3261e,color:#222",
    "operation": "fill:#fff,stroke:#7d7d7d,color:#222",
}


def mermaid(graph: Declaration, fold: bool = False, direction: str = "TD") -> str:
    """The text of the flowchart."""
    shown = folded(graph) if fold else without_selects(graph)
    identifiers = {node: f"n{i}" for i, node in enumerate(shown)}
    lines = [f"flowchart {direction}", *_nodes(shown, identifiers)]
    lines += [_edge(identifiers, *edge) for edge in shown.edges(data=True)]
    kinds = {_kind(shown, node): None for node in shown}
    return "\n".join([*lines, *(f"    classDef {kind} {_CLASSES[kind]}" for kind in kinds)]) + "\n"


def _kind(graph: nx.DiGraph, node: str) -> str:
    kind: str = graph.nodes[node]["kind"]
    return kind if kind in _CLASSES else "operation"


def _nodes(graph: nx.DiGraph, identifiers: dict[str, str]) -> Iterator[str]:
    """The nodes of every lane, in the subgraphs of its axes: where plates cross, the inner one has several."""
    lanes = {axes[:depth] for _, axes in graph.nodes(data="axes") for depth in range(len(axes) + 1)}
    names, order = captions(graph), sorted(lanes)
    box = {lane: f"p{i}" for i, lane in enumerate(order)}

    def inside(lane: Lane) -> Iterator[str]:
        indent = "    " * (len(lane) + 1)
        for node in (n for n, axes in graph.nodes(data="axes") if axes == lane):
            yield indent + _node(graph, node, identifiers[node])
        for inner in (other for other in order if other and other[:-1] == lane):
            yield f"{indent}subgraph {box[inner]}[{_label(names[inner[-1]])}]"
            yield from inside(inner)
            yield f"{indent}end"

    yield from inside(())
    dashed = [box[lane] for lane in order if lane and names[lane[-1]].endswith("(time)")]
    yield from (f"    style {identifier} stroke-dasharray: 4 4" for identifier in dashed)


def _node(graph: nx.DiGraph, node: str, identifier: str) -> str:
    data = graph.nodes[node]
    words = text(graph, node) + ("\nobjective" if data["objective"] else "")
    shape = _SHAPES.get(data["kind"], _OBJECTIVE if data["objective"] else _OPERATION)
    return f"{identifier}{shape.format(_label(words))}:::{_kind(graph, node)}"


def _edge(identifiers: dict[str, str], parent: str, child: str, data: dict[str, str]) -> str:
    """A parent of a sample and what goes into an update have thick lines."""
    arrow = "==>" if data["role"] == "parent" or data["role"] in UPDATE_ROLES else "-->"
    label = f"|{_label(data['label'])}|" if data["label"] else ""
    return f"    {identifiers[parent]} {arrow}{label} {identifiers[child]}"


def _label(words: str) -> str:
    escaped = _SPECIAL.sub(lambda found: f"#{ord(found[0])};", words)
    return '"' + escaped.replace("\n", "<br/>") + '"'
