"""The part of a term that a draw's box covers: the declared node without the summands that the box leaves aside.

NOTE [parts]
In `(x + 300) + y` the box of x moves to x. A control variate that compared the whole sum would multiply 300 and the
noise of y with the score of x, and the variance would be theirs. So it compares x. A part is a declared node like any
other: it is derived by the same rules, with the other boxes, control variates and replays that belong in it.
"""

import operator
from collections.abc import Mapping

from ..ir import nodes as nd
from .boxes import Key, Kind, Pending
from .deriving import Deriving


def part_of(derivation: Deriving, node: nd.Node, pending: Pending, name: str) -> nd.Node:
    """The node without the summands that the box of a sample, one of the pending boxes, does not move to."""
    found: dict[Key, nd.Node] = {}
    stack = [(node, pending)]
    while stack:
        key = stack[-1]
        below = _covered(derivation, key, name)
        missing = [deeper for deeper in below.values() if deeper is not None and deeper not in found]
        stack.extend(missing)
        if not missing:
            stack.pop()
            parts = {i: None if deeper is None else found[deeper] for i, deeper in below.items()}
            found[key] = _rebuilt(derivation, key[0], parts)
    return found[node, pending]


def _covered(derivation: Deriving, key: Key, name: str) -> dict[int, Key | None]:
    """The summands of a node: where the box moves on to, or `None` where it does not. Empty if it stays."""
    node, pending = key
    if any(s == name for s, _ in derivation.placement.staying(node, pending)):
        return {}
    received = derivation.placement.received(node, pending)
    summands = derivation.scope.operands(node, pending, Kind.WEIGHT) or ()
    return {i: received[i] if any(s == name for s, _ in received[i][1]) else None for i in summands}


def _rebuilt(derivation: Deriving, node: nd.Node, parts: Mapping[int, nd.Node | None]) -> nd.Node:
    """A node on the parts of its summands; of those that are left aside nothing stays."""
    if not parts:
        return node
    if isinstance(node, nd.Apply) and node.adds and _leaves_aside(node, parts):
        return _sum(derivation, node, parts)
    inputs = [parts.get(i) or parent for i, parent in enumerate(node.inputs)]
    return _shared(derivation, node, inputs)


def _leaves_aside(node: nd.Apply, parts: Mapping[int, nd.Node | None]) -> bool:
    return None in parts.values() or len(node.inputs) < len(node.arguments.leaves)


def _sum(derivation: Deriving, node: nd.Apply, parts: Mapping[int, nd.Node | None]) -> nd.Node:
    """The one summand that the box moves to, with the sign that it has in the sum."""
    (place, kept), *others = [(i, part) for i, part in parts.items() if part is not None]
    assert not others
    lost = [parent for i, parent in enumerate(node.inputs) if i != place and not set(parent.axes) <= set(kept.axes)]
    if lost:  # a sum over an axis of theirs counts the part once for each of its entries
        zeros = {i: _shared_zero(derivation, parent) for i, parent in enumerate(node.inputs) if parent in lost}
        return _shared(derivation, node, [zeros.get(i, kept) for i in range(len(node.inputs))])
    sign = node.operation.signs[node.arguments.places[place]]
    return _negated(derivation, node, kept) if sign < 0 else kept


def _negated(derivation: Deriving, node: nd.Apply, part: nd.Node) -> nd.Node:
    arguments = nd.Arguments((part,), {})
    return derivation.share(("-", part), lambda: nd.Apply(node.name, node.index, operator.neg, arguments))


def _shared_zero(derivation: Deriving, node: nd.Node) -> nd.Node:
    return derivation.share(("0", node), lambda: nd.Zero(node))


def _shared(derivation: Deriving, node: nd.Node, inputs: list[nd.Node]) -> nd.Node:
    """One node for every node and its inputs: equal parts have one replay."""
    return derivation.share(("part", node, *inputs), lambda: node.with_inputs(inputs))
