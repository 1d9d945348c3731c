"""The ledger: how often a compiled surrogate counts every gradient path.

It is read off the surrogate itself. Walking down from the objective along every route, a route to a sample node
counts that node's distribution once for each box on it that holds the node's log-probability. What is met on the way
says how: a nonlinear operation above the box linearises, an average scales, an update with a constant direction or a
stop-gradient cuts boxes below it off. Estimators are not looked at, so custom ones get their ledger in the same way.
"""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from . import _node as nd
from ._derive import averaging_plate
from ._surrogate import Box, CompiledUpdate, Placeholder, ScoreTerm, Total, Weight

Counted = Literal["once", "linearized", "dropped", "scaled", "twice"]

_TRANSPARENT = (Box, ScoreTerm, Total, Placeholder)
_MOST_STATES = 256


@dataclass(frozen=True)
class Row:
    """One line of the ledger.

    Attributes:
        sample: the sample node whose distribution carries the path; empty for a path through values alone.
        update: for a path through values, the update whose direction it goes through; else empty.
        path: names of the nodes on the path, from the differentiated input to the objective.
        counted: how often the surrogate counts the path.
        kind: "distribution", "pathwise" (the draw is differentiated) or "value" (through an update's direction).
        paths: how many paths of this kind the row stands for; `path` is the shortest.
        variance: the order of the variance that the path adds, in the size N of the sample's own plate.
    """

    sample: str
    update: str
    path: tuple[str, ...]
    counted: Counted
    kind: Literal["distribution", "pathwise", "value"]
    paths: int
    variance: str


@dataclass(frozen=True)
class _Count:
    """One box on the way: the sample it scores, and how."""

    sample: str
    how: Counted
    grows: bool  # the plate's scores are summed, so the variance grows with the plate


@dataclass(frozen=True)
class _State:
    """What matters of the route from the objective down to a node."""

    boxes: tuple[_Count, ...] = ()
    nonlinear: frozenset[str] = frozenset()  # samples in which an operation above is not linear
    cut: bool = False  # a derivative cannot pass from above
    share: Counted = "once"  # how the distributions crossed so far count what lies above them
    via: tuple[str, ...] = ()


def counted(boxes: Iterable[_Count]) -> Counted:
    """The word for all boxes that one path meets."""
    found = [box.how for box in boxes if box.how != "dropped"]
    return "dropped" if not found else found[0] if len(found) == 1 else "twice"


def _times(above: Counted, below: Counted) -> Counted:
    """A path counted `below`, of what is itself counted `above`."""
    order: list[Counted] = ["once", "linearized", "scaled", "twice", "dropped"]
    return max(above, below, key=order.index)


class _Walk:
    """All routes from the objective down, merged where they agree in everything that matters."""

    def __init__(self, root: nd.Node, scored: Iterable[str]) -> None:
        self.scored = frozenset(scored)
        self.order = list(_top_down(root))
        self.below = _samples_below(reversed(self.order))
        self.routes: dict[nd.Node, dict[_State, tuple[int, tuple[str, ...]]]] = {node: {} for node in self.order}
        self.routes[root][_State()] = (1, ())
        for node in self.order:
            for state, (count, path) in self.routes[node].items():
                path = path if isinstance(node, _TRANSPARENT) else (node.name, *path)
                for child, below in self._links(node, state):
                    self._add(child, below, count, path)

    def _add(self, node: nd.Node, state: _State, count: int, path: tuple[str, ...]) -> None:
        routes = self.routes[node]
        if len(routes) >= _MOST_STATES:  # dense graphs have exponentially many routes; keep what decides the count
            state = replace(state, via=())
        known, shortest = routes.get(state, (0, path))
        routes[state] = (known + count, min(path, shortest, key=len))

    def _links(self, node: nd.Node, state: _State) -> Iterator[tuple[nd.Node, _State]]:
        if isinstance(node, Box):
            yield node.inputs[0], self._boxed(node.weights, state)
        elif isinstance(node, ScoreTerm):
            yield node.inputs[0], state
        elif isinstance(node, CompiledUpdate):
            yield from self._into_update(node, state)
        elif isinstance(node, nd.Sample) and not node.pathwise:
            crossed = self._crossed(node, state)
            yield from ((parent, crossed) for parent in node.inputs)
        else:
            if isinstance(node, nd.Sample):
                state = replace(state, via=(node.name, *state.via))
            for i, parent in enumerate(node.inputs):
                cut = state.cut or isinstance(node, nd.Stop)
                yield parent, replace(state, nonlinear=state.nonlinear | self._bent(node, i), cut=cut)

    def _boxed(self, weights: Iterable[Weight], state: _State) -> _State:
        if state.cut:
            return state
        found = [_count(weight, state) for weight in weights]
        return replace(state, boxes=(*state.boxes, *found))

    def _into_update(self, node: CompiledUpdate, state: _State) -> Iterator[tuple[nd.Node, _State]]:
        bent = replace(state, nonlinear=self.scored, via=(node.name, *state.via))
        yield node.inputs[0], bent
        for rate in node.inputs[1 : 1 + node.rate_count]:
            yield rate, bent
        yield node.surrogate, replace(bent, cut=state.cut or node.detach)

    def _crossed(self, node: nd.Sample, state: _State) -> _State:
        """Through the distribution of a draw: what lies above it is counted as often as the draw's own path is."""
        own = counted(box for box in state.boxes if box.sample == node.name)
        share = _times(state.share, own if node.name in self.scored else "dropped")
        return replace(state, nonlinear=self.scored, cut=False, share=share, via=(node.name, *state.via))

    def _bent(self, node: nd.Node, position: int) -> frozenset[str]:
        """The samples in which the node is not linear, seen from one of its inputs."""
        if isinstance(node, (nd.Reduction, Total, nd.Stop)):
            return frozenset()
        fn = node.fn if isinstance(node, nd.Apply) and node.arguments.simple else None
        if fn in (operator.add, operator.sub, operator.neg, operator.pos):
            return frozenset()
        if fn is operator.mul or (fn is operator.truediv and _is_numerator(node, position)):
            others = [parent for i, parent in enumerate(node.inputs) if i != position]
            return frozenset().union(*(self.below[parent] for parent in others))
        return self.scored


def _is_numerator(node: nd.Node, position: int) -> bool:
    return position == 0 and isinstance(node, nd.Apply) and isinstance(node.arguments.leaves[0], nd.Node)


def _count(weight: Weight, state: _State) -> _Count:
    """What one box adds to the paths below it."""
    sample = weight.sample
    plates = [axis for axis in weight.summed if not axis.time]
    how: Counted = "scaled" if weight.average and plates else "once"
    if sample.name in state.nonlinear:
        how = "linearized"
    grows = averaging_plate(sample) in plates and not weight.average
    return _Count(sample.name, _times(state.share, how), grows)


def _children(node: nd.Node) -> tuple[nd.Node, ...]:
    if isinstance(node, (Box, ScoreTerm)):
        return node.inputs[:1]
    if isinstance(node, CompiledUpdate):
        return (*node.inputs[: 1 + node.rate_count], node.surrogate)
    return node.inputs


def _top_down(root: nd.Node) -> Iterator[nd.Node]:
    """Every node after all nodes that use it."""
    done: set[nd.Node] = set()
    finished: list[nd.Node] = []
    stack = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            finished.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node) if child not in done)
    return reversed(finished)


def _samples_below(bottom_up: Iterable[nd.Node]) -> dict[nd.Node, frozenset[str]]:
    below: dict[nd.Node, frozenset[str]] = {}
    for node in bottom_up:
        own = {node.name} if isinstance(node, nd.Sample) else set()
        below[node] = frozenset(own).union(*(below[child] for child in _children(node)))
    return below


def read_ledger(root: nd.Node, order: list[nd.Node], scored: Iterable[str], inputs: Iterable[str]) -> list[Row]:
    """The ledger of a derived surrogate.

    Args:
        root: the surrogate.
        order: the declared nodes.
        scored: the samples whose distribution depends on an input.
        inputs: the names of the differentiated inputs.
    """
    walk = _Walk(root, scored)
    prefixes = _prefixes(order, set(inputs), {n.name for n in walk.order if isinstance(n, nd.Sample) and n.pathwise})
    rows: dict[tuple[object, ...], Row] = {}
    for node in walk.order:
        if node.name not in prefixes:
            continue
        for state, (count, path) in walk.routes[node].items():
            row = _row(node, state, count, (*prefixes[node.name], node.name, *path), walk.scored)
            if row is not None:
                key = (row.sample, row.update, row.counted, row.kind, state.via, node.name)
                rows[key] = _merge(rows[key], row) if key in rows else row
    places = {node.name: node.index for node in order}
    return sorted(rows.values(), key=lambda r: (r.kind == "value", places.get(r.sample, 0), len(r.path)))


def _merge(one: Row, other: Row) -> Row:
    shorter = min(one, other, key=lambda row: len(row.path))
    return replace(shorter, paths=one.paths + other.paths, variance=largest([one.variance, other.variance]))


def largest(orders: Iterable[str]) -> str:
    """The largest of some orders of variance."""
    return max(orders, key=["O(1/N)", "O(1)", "O(N)"].index, default="O(1/N)")


def _row(node: nd.Node, state: _State, count: int, path: tuple[str, ...], scored: frozenset[str]) -> Row | None:
    if isinstance(node, CompiledUpdate):
        word: Counted = "dropped" if node.detach or state.cut else "once"
        return Row("", node.name, path, word, "value", count, "O(1/N)")
    if not isinstance(node, nd.Sample) or node.name not in scored:
        return None
    small = "O(1/N)" if averaging_plate(node) is not None else "O(1)"
    if node.pathwise:
        through: Counted = "dropped" if state.cut else state.share
        return Row(node.name, "", path, through, "pathwise", count, small)
    own = [box for box in state.boxes if box.sample == node.name]
    grows = any(box.grows for box in own)
    return Row(node.name, "", path, counted(own), "distribution", count, "O(N)" if grows else small)


def _prefixes(order: list[nd.Node], inputs: set[str], pathwise: set[str]) -> dict[str, tuple[str, ...]]:
    """For every sample and update, the shortest way through values from a differentiated input to it."""
    ways: dict[nd.Node, tuple[str, ...]] = {}
    found: dict[str, tuple[str, ...]] = {}
    for node in order:
        known = [ways[parent] for parent in node.inputs if parent in ways]
        if isinstance(node, nd.Input) and node.name in inputs:
            ways[node] = (node.name,)
        elif known:
            way = (*min(known, key=len), node.name)
            if isinstance(node, (nd.Sample, nd.Update)):
                found[node.name] = way
            held = isinstance(node, nd.Sample) and node.name not in pathwise
            if not held and not isinstance(node, nd.Stop):
                ways[node] = way
    return {name: way[:-1] for name, way in found.items()}
