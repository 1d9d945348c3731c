"""The second pass: where boxes stand. A table of decisions, one for every node and set of boxes that are open there.

A start is an objective with the boxes of all samples that reach it; each decision says what has to be decided next.
The table of a start has everything that the third pass, building, asks for.
"""

from typing import NamedTuple

from ..ir import nodes as nd
from ..tensors.axes import Axis
from .boxes import NOTHING, Key, Kind, Pending, routing, settled
from .reach import linear_operands
from .scopes import Scope


class Decision(NamedTuple):
    """The fate of the boxes that are open at a node: control variates first, then boxes that stay, then moves.

    Attributes:
        needs: the nodes with open boxes that are derived before this one, its inputs if the boxes move on to them.
        controlled: the samples whose control variates stand here; their boxes wait no longer.
        stays: the boxes that stand here.
    """

    needs: tuple[Key, ...]
    controlled: tuple[str, ...] = ()
    stays: Pending = NOTHING


class Placement:
    """The decisions in one objective, made as they are asked for.

    Attributes:
        scope: the objective.
        table: the decisions so far; what a start leads to stands together, in the order in which boxes move.
        starts: the nodes with open boxes that were asked for, and not decided before.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.table: dict[Key, Decision] = {}
        self.starts: list[Key] = []
        self._kept: dict[Key, dict[str, frozenset[Axis] | None]] = {}

    def place(self, start: Key) -> dict[Key, Decision]:
        """The table, with all decisions that a start leads to."""
        if start not in self.table:
            self.starts.append(start)
        stack = [start]
        while stack:
            key = stack.pop()
            if key not in self.table:
                self.table[key] = self._decide(*key)
                stack.extend(reversed(self.table[key].needs))
        return self.table

    def _decide(self, node: nd.Node, pending: Pending) -> Decision:
        if self.scope.provided(node) and not pending:
            return Decision(())
        due = self._due(node, pending)
        if due:
            return Decision(((node, settled(pending, due)),), controlled=due)
        stays = self.staying(node, pending)
        if stays:
            return Decision(((node, pending - stays),), stays=stays)
        return Decision(tuple(self._moves(node, pending)))

    def staying(self, node: nd.Node, pending: Pending) -> Pending:
        """The pending boxes that stay at the node, which is not linear in what they score."""
        nonlinear = {place for place in self.scope.reach if self.scope.operands(node, pending, place) is None}
        return frozenset((s, kind) for s, kind in pending if routing(kind) in nonlinear)

    def received(self, node: nd.Node, pending: Pending) -> list[Key]:
        """The inputs of a node, with what moves through it to each: of the boxes there, and of those that join."""
        joining = self.scope.joining(node)
        received = [joining] * len(node.inputs)
        for place in self.scope.reach:
            chosen = frozenset((s, kind) for s, kind in pending if routing(kind) is place)
            for position in self.scope.operands(node, pending, place) or ():
                received[position] |= chosen
        return [(parent, self.scope.reaching(parent, received[i])) for i, parent in enumerate(node.inputs)]

    def _moves(self, node: nd.Node, pending: Pending) -> list[Key]:
        if isinstance(node, nd.Update):  # its objective is derived apart
            return [(parent, NOTHING) for parent in (node.params, *node.inputs[2:])]
        return self.received(node, pending)

    def _due(self, node: nd.Node, pending: Pending) -> tuple[str, ...]:
        """The samples whose control variate belongs at the node: below it, nothing changes in how they are boxed."""
        waiting = [s for s, kind in pending if kind is Kind.CONTROLLED]
        found = self._kept_below(node, settled(pending)) if waiting else {}
        return tuple(sorted((s for s in waiting if found[s] is not None), key=lambda s: self.scope.samples[s].index))

    def _kept_below(self, node: nd.Node, pending: Pending) -> dict[str, frozenset[Axis] | None]:
        """The axes along which the weights pending at the node are kept wherever they end; `None` if that differs."""
        stack = [(node, pending)]
        while stack:
            key = stack[-1]
            below = [] if self.staying(*key) else [(n, settled(p)) for n, p in self._below(*key)]
            missing = [child for child in below if child not in self._kept]
            stack.extend(missing)
            if not missing:
                stack.pop()
                self._kept[key] = {s: self._agreed(key[0], s, below) for s, _ in key[1]}
        return self._kept[node, pending]

    def _below(self, node: nd.Node, pending: Pending) -> list[Key]:
        return [] if self.scope.provided(node) and not pending else self._moves(node, pending)

    def _agreed(self, node: nd.Node, name: str, below: list[Key]) -> frozenset[Axis] | None:
        own = self.scope.reach[Kind.WEIGHT][node][name]
        found = {self._kept[key][name] for key in below if name in self._kept[key]}
        # Below a factor that depends on the draw too, nothing has zero mean; below a sum it sees less of other draws.
        if not found or linear_operands(node, [name], self.scope.dependence) is None:
            return own
        return own if found == {own} and own == self.scope.dependence[node][name] else None
