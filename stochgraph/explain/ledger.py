"""The ledger: how often a compiled surrogate counts every gradient path.

It is read off the surrogate itself. Walking down from the objective along every route, a route to a sample node
counts that node's distribution once for each box on it that holds the node's log-probability. What is met on the way
says how: a nonlinear operation above the box linearises, an average scales, an update with a constant direction or a
stop-gradient cuts boxes below it off. Estimators are not looked at, so custom ones get their ledger in the same way.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, NamedTuple, TypeVar

from ..derive.populations import Corrected
from ..ir import nodes as nd
from ..ir.paths import averaging_plate, descends_from
from ..ir.programs import up_to
from ..surrogate.steps import CompiledUpdate
from ..tensors.axes import Axis

Counted = Literal["once", "linearized", "relaxed", "dropped", "scaled", "twice"]
WORDS: tuple[Counted, ...] = ("once", "linearized", "relaxed", "scaled", "twice", "dropped")  # the later prevails
Kind = Literal["distribution", "pathwise", "value"]

_MOST_ROUTES = 4
_MANY = frozenset({"many"})
_T = TypeVar("_T")
_ACROSS = "across time steps"


class Source(NamedTuple):
    """The first thing that a path passes: a sample's distribution, a pathwise draw, an update's direction, or none.

    Paths through values alone have neither sample nor update.
    """

    kind: Kind
    sample: str = ""
    update: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the ledger.

    Paths that differ only in which of many like things they pass are one row: in which of the draws inside the steps of
    one chain of updates, or, where more than four routes are counted alike, in all that they pass.

    Attributes:
        sample: the sample node whose distribution carries the path; empty for a path through values alone.
        update: for a path through values, the update whose direction it goes through; else empty.
        path: names of the nodes on the path, from the differentiated input to the objective.
        counted: how often the surrogate counts the path.
        kind: "distribution", "pathwise" (the draw is differentiated) or "value" (through values alone).
        weight: how often, as a number: "1", "0", "2", "1/N(D)" (N the size of plate D), "1 + 1/N(D)".
        plates: for a linearised path, the plates whose mean it is linearised at.
        paths: how many paths of this kind the row stands for; `path` is the shortest.
        variance: the order of the variance that the path adds, in the size N of the sample's own plate.
        part: what of the path the row is about; "across time steps" for products of scores at two time steps, where
            an update counts them otherwise than the rest. Empty for a whole path.
        correction: for a path linearised at the mean of a plate that is expected, what the estimator does about it;
            else empty.
        bias: the order of the bias that a correction leaves; empty where there is none.
    """

    sample: str
    update: str
    path: tuple[str, ...]
    counted: Counted
    kind: Kind
    weight: str
    plates: tuple[str, ...]
    paths: int
    variance: str
    part: str = ""
    correction: str = ""
    bias: str = ""

    @property
    def source(self) -> Source:
        """The first thing that its paths pass."""
        return Source(self.kind, self.sample, self.update)


class _Count(NamedTuple):
    """One box on the way: the sample it scores, and how."""

    sample: str
    how: Counted
    weight: str
    plates: tuple[str, ...]  # over which the boxed terms are averaged before anything nonlinear
    aligned: frozenset[Axis]  # the axes along which the box scores each draw's own term alone
    grows: bool  # the plate's scores are summed, so the variance grows with the plate
    across_time: str = "1"  # how often products of scores at two time steps are counted


class _State(NamedTuple):
    """The part of the route from the objective down to a node that matters for samples below the node."""

    boxes: tuple[_Count, ...] = ()
    nonlinear: frozenset[str] = frozenset()  # samples in which an operation above is not linear
    outside: frozenset[Axis] = frozenset()  # the axes of the nearest such operation
    totalled: frozenset[Axis] = frozenset()  # plates that are summed above, not averaged
    left_out: frozenset[str] = frozenset()  # samples with a leave-one-out control variate
    cut: bool = False  # a derivative cannot pass from above
    stopped: bool = False  # by declaration, not by the estimator
    share: Counted = "once"  # how the distributions crossed so far count what lies above them
    drawn: bool = False  # it passes a draw
    chain: str = ""  # in an update's objective: the parameters that its chain of updates starts from


class _Way(NamedTuple):
    """A path from a node up to the objective, sharing what is above with other paths."""

    name: str
    above: "_Way | None"
    length: int

    @property
    def names(self) -> tuple[str, ...]:
        found, way = [self.name], self.above
        while way is not None:
            found.append(way.name)
            way = way.above
        return tuple(found)


class _Routes(NamedTuple):
    """Paths that agree in everything that matters: how many, and the shortest."""

    paths: int
    way: _Way | None

    def joined(self, other: "_Routes") -> "_Routes":
        shorter = other.way if _length(other.way) < _length(self.way) else self.way
        return _Routes(self.paths + other.paths, shorter)


_Passed = dict[frozenset[str], _Routes]  # by the like things that the routes pass


def _length(way: _Way | None) -> int:
    return way.length if way else 0


def counted(boxes: Iterable[_Count]) -> Counted:
    """The word for all boxes that one path meets."""
    found = [box.how for box in boxes if box.how != "dropped"]
    if len(found) < 2:
        return found[0] if found else "dropped"
    return "scaled" if "scaled" in found else "twice"


def weight_of(boxes: Iterable[_Count]) -> str:
    """The number of times that a path is counted."""
    found = sorted(box.weight for box in boxes if box.how != "dropped")
    if found and set(found) == {"1"}:
        return str(len(found))
    return " + ".join(sorted(found, key=len)) or "0"


def _times(above: Counted, below: Counted) -> Counted:
    """A path counted `below`, of what is itself counted `above`."""
    return max(above, below, key=WORDS.index)


class _Walk:
    """All routes from the objective down, merged where they agree in everything that matters."""

    def __init__(self, root: nd.Node, scored: Iterable[str]) -> None:
        self.scored = frozenset(scored)
        self.order = list(top_down(root))
        bottom_up = self.order[::-1]
        self.below = _below(bottom_up, lambda node: {node.name} & self.scored if node.is_draw else ())
        self.plates = _below(bottom_up, lambda node: node.axes if node.is_draw else ())
        self.routes: dict[nd.Node, dict[_State, _Passed]] = {node: {} for node in self.order}
        self.routes[root][_State()] = {frozenset(): _Routes(1, None)}
        for node in self.order:
            for state, passed in self.routes[node].items():
                self.routes[node][state] = passed = _few(passed)
                above = {via: self._through_node(node, routes) for via, routes in passed.items()}
                for child, below, landmark in self._links(node, state):
                    self._add(child, self._narrowed(node, child, below), _with(above, landmark))

    def _through_node(self, node: nd.Node, routes: _Routes) -> _Routes:
        if node.transparent:
            return routes
        return routes._replace(way=_Way(node.name, routes.way, _length(routes.way) + 1))

    def _add(self, node: nd.Node, state: _State, passed: _Passed) -> None:
        known = self.routes[node].setdefault(state, {})
        for via, routes in passed.items():
            known[via] = known[via].joined(routes) if via in known else routes

    def _narrowed(self, node: nd.Node, child: nd.Node, state: _State) -> _State:
        """The state as far as it still matters: what is not below any more is forgotten."""
        below, plates = self.below[child], self.plates[child]
        if below is self.below[node] and plates is self.plates[node]:
            return state
        return state._replace(
            boxes=tuple(box for box in state.boxes if box.sample in below),
            nonlinear=state.nonlinear & below,
            outside=state.outside & plates,
            totalled=state.totalled & plates,
            left_out=state.left_out & below,
        )

    def _links(self, node: nd.Node, state: _State) -> Iterator[tuple[nd.Node, _State, str]]:
        """The nodes below one: the state there, and the thing that was passed, by which routes are told apart."""
        if isinstance(node, CompiledUpdate):
            yield from self._into_update(node, state)
        elif isinstance(node, nd.Sample):
            passed = f"draws in the updates of {state.chain}" if state.chain else node.name
            crossed = None if node.pathwise else self._crossed(node, state)
            if node.relaxed:
                state = state._replace(share=_times(state.share, "relaxed"))
            for i, parent in enumerate(node.inputs):
                yield parent, (crossed or self._through(node, i, state))._replace(chain="", drawn=True), passed
        else:
            state = self._counted(node, state)
            for i in node.carried_places:
                yield node.inputs[i], self._through(node, i, state), ""

    def _through(self, node: nd.Node, position: int, state: _State) -> _State:
        """Through a declared operation, to one of its inputs."""
        if node.stops:
            return state._replace(cut=True, stopped=True)
        if node.over:
            # A box that scores each draw's own term does not cover what other draws do to the term through a mean.
            covering = tuple(box for box in state.boxes if box.aligned.isdisjoint(node.over))
            totalled = [axis for axis in node.totals if not axis.time]
            state = state._replace(boxes=covering, totalled=state.totalled.union(totalled))
        bent = self._bent(node, position)
        if not bent:
            return state
        return state._replace(nonlinear=state.nonlinear | bent, outside=self.plates[node].intersection(node.axes))

    def _counted(self, node: nd.Node, state: _State) -> _State:
        """With the boxes that a node adds, and what it compares."""
        if not (node.counts or node.compares_below):
            return state
        found = () if state.cut else tuple(_count(ratio, node, state) for ratio in node.counts)
        return state._replace(boxes=state.boxes + found, left_out=state.left_out | node.compares_below)

    def _into_update(self, node: CompiledUpdate, state: _State) -> Iterator[tuple[nd.Node, _State, str]]:
        chain = node.update.origin.name
        passed = f"updates of {chain}"
        bent = self._bending(node, state)
        if node.starts_matter:
            yield node.inputs[0], bent, passed
        for rate in node.inputs[1 : 1 + node.rate_count]:
            yield rate, bent, passed
        yield node.surrogate, bent._replace(cut=state.cut or node.detach, chain=chain), passed

    def _crossed(self, node: nd.Sample, state: _State) -> _State:
        """Through the distribution of a draw: what lies above it is counted as often as the draw's own path is."""
        own = counted(box for box in state.boxes if box.sample == node.name)
        share = _times(state.share, own if node.name in self.scored else "dropped")
        return self._bending(node, state)._replace(cut=False, stopped=False, share=share)

    def _bending(self, node: nd.Node, state: _State) -> _State:
        """Below a node that is linear in nothing."""
        return state._replace(nonlinear=self.below[node], outside=self.plates[node].intersection(node.axes))

    def _bent(self, node: nd.Node, position: int) -> frozenset[str]:
        """The samples in which the node is not linear, seen from one of its inputs."""
        if not node.linear_in([position]):
            return self.below[node]
        factors = [node.inputs[i] for i in node.carried_places if not node.linear_in({position, i})]
        return frozenset().union(*(self.below[factor] for factor in factors))


def _few(passed: _Passed) -> _Passed:
    """Routes told apart by what they pass as long as they are few: a dense graph has exponentially many."""
    if len(passed) <= _MOST_ROUTES and _MANY not in passed:
        return passed
    return {_MANY: reduce(_Routes.joined, passed.values())}


def _with(passed: _Passed, landmark: str) -> _Passed:
    """The routes behind one more thing that they pass."""
    if not landmark:
        return passed
    found: _Passed = {}
    for via, routes in passed.items():
        longer = via if via == _MANY else via | {landmark}
        found[longer] = found[longer].joined(routes) if longer in found else routes
    return found


def _count(weight: nd.Ratio, box: nd.Node, state: _State) -> _Count:
    """The count that one box adds to the paths below it."""
    sample = weight.sample
    summed = [axis for axis in weight.summed if not axis.time]
    scaled = bool(weight.average and summed)
    how: Counted = "linearized" if sample.name in state.nonlinear else "scaled" if scaled else "once"
    number = "1/" + " ".join(f"N({axis.name})" for axis in summed) if scaled else "1"
    averaged = [a.name for a in sample.plates if a in box.inputs[0].axes and a not in state.outside and not a.time]
    compared = sample.name in box.compares or sample.name in state.left_out
    grows = averaging_plate(sample) in summed and not weight.average and not compared
    aligned = frozenset(weight.aligned)
    return _Count(sample.name, _times(state.share, how), number, tuple(averaged), aligned, grows, weight.across_time)


def top_down(root: nd.Node) -> Iterator[nd.Node]:
    """Every node of a surrogate after all nodes that use it, those inside updates included."""
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
            stack.extend((child, False) for child in node.carried if child not in done)
    return reversed(finished)


def _below(bottom_up: Iterable[nd.Node], own: Callable[[nd.Node], Iterable[_T]]) -> dict[nd.Node, frozenset[_T]]:
    """The things that all nodes below have, together. Where nothing is added the set is the same object."""
    below: dict[nd.Node, frozenset[_T]] = {}
    for node in bottom_up:
        sets = [below[child] for child in node.carried]
        largest = max(sets, key=len, default=frozenset[_T]())
        together = largest.union(own(node), *sets)
        below[node] = largest if len(together) == len(largest) else together
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
    pathwise = {node.name for node in walk.order if node.pathwise}
    rows = [row for name in inputs for row in _rows_of(walk, _prefixes(order, name, pathwise))]
    if isinstance(root, Corrected):
        rows = [_corrected(row, root) for row in rows]
    places = {node.name: node.index for node in order}
    return sorted(rows, key=lambda r: (r.kind == "value", places.get(r.sample, 0), len(r.path)))


def _corrected(row: Row, root: Corrected) -> Row:
    """The row with what an estimator of expectations makes of a path that the plug-in linearises."""
    estimator, expected = root.estimator, {axis.name for axis in root.plates}
    if row.counted != "linearized" or not estimator.correction or expected.isdisjoint(row.plates):
        return row
    word: Counted = "once" if estimator.bias == "0" else "linearized"
    return replace(row, counted=word, correction=estimator.correction, bias=estimator.bias)


def _rows_of(walk: _Walk, prefixes: dict[str, tuple[str, ...]]) -> Iterator[Row]:
    """The rows of all paths from one input."""
    alike: dict[tuple[object, ...], dict[frozenset[str], Row]] = {}
    for node in walk.order:
        if node.name not in prefixes:
            continue
        for state, passed in walk.routes[node].items():
            for via, routes in passed.items():
                path = (*prefixes[node.name], node.name, *(routes.way.names if routes.way else ()))
                for row in _rows(node, state, routes.paths, path, walk.scored):
                    rows = alike.setdefault((row.sample, row.update, row.counted, row.kind, row.weight, row.part), {})
                    rows[via] = _merge(rows[via], row) if via in rows else row
    for rows in alike.values():
        few = len(rows) <= _MOST_ROUTES and _MANY not in rows
        yield from rows.values() if few else [reduce(_merge, rows.values())]


def _merge(one: Row, other: Row) -> Row:
    shorter = min(one, other, key=lambda row: len(row.path))
    return replace(shorter, paths=one.paths + other.paths, variance=largest([one.variance, other.variance]))


def largest(orders: Iterable[str]) -> str:
    """The largest of some orders of variance."""
    return max(orders, key=["O(1/N)", "O(1)", "O(N)"].index, default="O(1/N)")


def _rows(node: nd.Node, state: _State, count: int, path: tuple[str, ...], scored: frozenset[str]) -> Iterator[Row]:
    row = _row(node, state, count, path, scored)
    if row is None:
        return
    yield row
    across = {box.across_time for box in state.boxes if box.sample == row.sample} - {"1"}
    if row.kind == "distribution" and across:
        weight = min(across)
        yield replace(row, counted="dropped" if weight == "0" else "scaled", weight=weight, part=_ACROSS)


def _row(node: nd.Node, state: _State, count: int, path: tuple[str, ...], scored: frozenset[str]) -> Row | None:
    if isinstance(node, (nd.Input, CompiledUpdate)):
        return _value_row(node, state, count, path)
    if not isinstance(node, nd.Sample) or node.name not in scored:
        return None
    small = "O(1/N)" if averaging_plate(node) is not None else "O(1)"
    if node.pathwise:
        share = _times(state.share, "relaxed") if node.relaxed else state.share
        through: Counted = "dropped" if state.cut else share
        weight = {"dropped": "0", "twice": "2"}.get(through, "1")
        order = "O(N)" if averaging_plate(node) in state.totalled else small  # a reduction may be a sum
        return Row(node.name, "", path, through, "pathwise", weight, (), count, order)
    own = [box for box in state.boxes if box.sample == node.name]
    word = counted(own)
    plates = tuple(dict.fromkeys(name for box in own for name in box.plates)) if word == "linearized" else ()
    totalled = averaging_plate(node) in state.totalled and node.name not in state.nonlinear
    grows = totalled or any(box.grows for box in own)
    order = "O(N)" if grows else small
    return Row(node.name, "", path, word, "distribution", weight_of(own), plates, count, order)


def _value_row(node: nd.Node, state: _State, count: int, path: tuple[str, ...]) -> Row | None:
    """Through an update's direction, or from an input by no direction and no draw. A declared stop is no path."""
    if state.stopped or (isinstance(node, nd.Input) and (state.cut or state.drawn or state.chain)):
        return None
    update = node.name if isinstance(node, CompiledUpdate) else ""
    cut = state.cut or (isinstance(node, CompiledUpdate) and node.detach)
    word: Counted = "dropped" if cut else "once"
    return Row("", update, path, word, "value", "0" if cut else "1", (), count, "O(1/N)")


def _makes_direction(update: nd.Update) -> list[nd.Node]:
    """The nodes that make an update's direction: parameters, objective, and the parents of the draws it scores."""
    behind = descends_from(up_to(update.objective, update.variable), update.variable)
    scored = sorted((node for node in behind if node.is_draw), key=lambda node: node.index)
    return [update.params, update.objective, *(parent for node in scored for parent in node.inputs)]


def _prefixes(order: list[nd.Node], source: str, pathwise: set[str]) -> dict[str, tuple[str, ...]]:
    """The shortest way through values from an input to every sample and to the direction of every update."""
    ways: dict[nd.Node, tuple[str, ...]] = {}
    found: dict[str, tuple[str, ...]] = {}
    for node in order:
        if isinstance(node, nd.Input) and node.name == source:
            ways[node] = (source,)
            found[source] = ()
            continue
        # A step size moves an update without having a part in its direction.
        entries = _makes_direction(node) if isinstance(node, nd.Update) else node.inputs
        arriving = [ways[parent] for parent in entries if parent in ways]
        if arriving and isinstance(node, (nd.Sample, nd.Update)):
            found[node.name] = min(arriving, key=len)
        known = [ways[parent] for parent in node.inputs if parent in ways] + arriving
        held = node.is_draw and node.name not in pathwise
        if known and not held and not node.stops:
            ways[node] = (*min(known, key=len), node.name)
    return found
