"""The ways of boxes through a placement, in words."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..ir import nodes as nd
from .boxes import Key, Kind, Pending, routing
from .placement import Decision, Placement

Row = tuple[str, str, str]


class Box(NamedTuple):
    """An open box of a sample at a node with all that are open there; `where` it begins, in words."""

    key: Key
    name: str
    kind: Kind
    where: str


def journeys(placement: Placement) -> Iterator[tuple[str, list[Row]]]:
    """The name of every start, and a row for every box and control variate.

    A row says what there is, the node where it begins, and what becomes of it.
    """
    covered: set[Key] = set()
    for start in placement.starts:
        keys = list(_leads_to(placement, start, covered))
        covered.update(keys)
        begins = _boxes(placement, start, f"at {start[0].name}") if keys else []
        joining = [box for key in keys for box in _joining(placement, key)]
        controls = [row for key in keys for row in _controls(placement, key)]
        yield start[0].name, [*_followed(placement, [*begins, *joining]), *controls]


def _leads_to(placement: Placement, start: Key, covered: set[Key]) -> Iterator[Key]:
    seen, stack = set(covered), [start]
    while stack:
        key = stack.pop()
        if key not in seen:
            seen.add(key)
            yield key
            stack.extend(reversed(placement.table[key].needs))


def _boxes(placement: Placement, key: Key, where: str) -> list[Box]:
    """The boxes that are open at a node, in the order of the draws."""
    samples = placement.scope.samples
    return [Box(key, s, kind, where) for s, kind in sorted(key[1], key=lambda box: samples[box[0]].index)]


def _joining(placement: Placement, key: Key) -> Iterator[Box]:
    """The boxes that are put below a node, and are not open at it."""
    decision = placement.table[key]
    known = {s for s, _ in key[1]}
    for need in decision.needs if _moves(decision) else ():
        yield from (box for box in _boxes(placement, need, f"below {key[0].name}") if box.name not in known)


def _moves(decision: Decision) -> bool:
    return not decision.controlled and not decision.stays


def _controls(placement: Placement, key: Key) -> Iterator[Row]:
    for name in placement.table[key].controlled:
        yield "control", f"of {name}", f"at {key[0].name}, on the part that its box covers"


def _followed(placement: Placement, begins: Iterable[Box]) -> Iterator[Row]:
    """A row for every box, and for each of the ways on which it goes on."""
    seen, waiting = set(), deque(begins)
    while waiting:
        box = waiting.popleft()
        if box not in seen:
            seen.add(box)
            fate, ways = _journey(placement, box)
            yield f"{'score' if box.kind is Kind.SCORE else 'box'}({box.name})", box.where, fate
            waiting.extendleft(reversed(ways))


def _journey(placement: Placement, box: Box) -> tuple[str, list[Box]]:
    """The way of a box as far as there is one; and the boxes that it goes on as from there."""
    key, through = box.key, [""]
    while True:
        key, decision = _standing(placement, key, box.name)
        if decision.stays:
            return _stays(placement, key[0], box, through), []
        ways = list(dict.fromkeys(need for need in decision.needs if _is_open(box.name, need[1])))
        lost = _lost(placement, key, box)
        if len(ways) > 1 or lost:
            ends = " and ".join(node.name for node, _ in ways)
            note = "".join(f"; dropped at {node.name}: {box.name} does not reach it" for node in lost)
            onward = [Box(way, box.name, box.kind, f"at {way[0].name}") for way in ways]
            return f"moves {' → '.join([*through, ends]).strip()}{note}", onward
        (key,) = ways
        through.append(key[0].name)


def _standing(placement: Placement, key: Key, name: str) -> tuple[Key, Decision]:
    """The decision about one box at a node, behind those about control variates and about other boxes that stay."""
    decision = placement.table[key]
    while not _moves(decision) and not _is_open(name, decision.stays):
        key = decision.needs[0]
        decision = placement.table[key]
    return key, decision


def _is_open(name: str, pending: Pending) -> bool:
    return any(s == name for s, _ in pending)


def _stays(placement: Placement, node: nd.Node, box: Box, through: list[str]) -> str:
    axes = ", ".join(axis.name for axis in sorted(placement.scope.kept(node, box.name, box.kind)))
    why = f"stays{' there' * (len(through) > 1)}: `{node.name}` is not linear; kept along ({axes})"
    return f"moves through{' → '.join(through)}, {why}" if len(through) > 1 else why


def _lost(placement: Placement, key: Key, box: Box) -> list[nd.Node]:
    """The operands of a sum that a sample does not reach."""
    node, pending = key
    scope, place = placement.scope, routing(box.kind)
    operands = [node.inputs[i] for i in scope.operands(node, pending, place) or ()]
    return [operand for operand in operands if box.name not in scope.reach[place][operand]]
