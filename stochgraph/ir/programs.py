"""Programs: the nodes of a graph in an order that they can be evaluated in."""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from ..ir import nodes as nd

_INPUTS = attrgetter("inputs")


def schedule(roots: Iterable[nd.Node], read: Callable[[nd.Node], Iterable[nd.Node]] = _INPUTS) -> list[nd.Node]:
    """The ancestors of the roots in an order that respects inputs, and otherwise the declaration, late ones late.

    Args:
        roots: what is computed.
        read: the inputs of a node that are wanted; all of them by default. It is called once for each ancestor.
    """
    found: dict[nd.Node, int] = {}
    parents: dict[nd.Node, set[nd.Node]] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = len(found)
            wanted = list(read(node))
            parents[node] = set(wanted)
            stack.extend(wanted)
    users: dict[nd.Node, list[nd.Node]] = {node: [] for node in found}
    waiting = {node: len(parents[node]) for node in found}
    for node in found:
        for parent in parents[node]:
            users[parent].append(node)
    place = _places(users)
    ready = [(place[node], found[node], node) for node in found if not waiting[node]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, _, node = heapq.heappop(ready)
        order.append(node)
        for user in users[node]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, (place[user], found[user], user))
    return order


def _places(users: dict[nd.Node, list[nd.Node]]) -> dict[nd.Node, float]:
    """When nodes are wanted: in the order of their declaration; late ones not before their use."""
    places: dict[nd.Node, float] = {}
    stack = list(users)
    while stack:
        node = stack[-1]
        missing = [user for user in users[node] if user not in places] if node.late else []
        stack.extend(missing)
        if not missing:
            stack.pop()
            places[node] = min((places[user] for user in users[node]), default=math.inf) if node.late else node.index
    return places


def split(
    root: nd.Node,
    moves: Callable[[nd.Node, bool], bool],
    start: Iterable[nd.Node] = (),
    read: Callable[[nd.Node], Iterable[nd.Node]] = _INPUTS,
) -> tuple[list[nd.Node], list[nd.Node]]:
    """The nodes behind `root` that move, in order, and the others that they read.

    Args:
        root: what is computed.
        moves: whether a node moves, given the node and whether one of its inputs does.
        start: nodes that move and are computed elsewhere.
        read: the inputs of a node that are looked at; all of them by default.
    """
    moving = set(start)
    program = []
    for node in schedule([root], read):
        if moves(node, any(parent in moving for parent in node.inputs)):
            moving.add(node)
            program.append(node)
    needed = [root] if root not in moving else []
    needed += [parent for node in program for parent in node.inputs if parent not in moving]
    return program, list(dict.fromkeys(needed))


def dependent(root: nd.Node, placeholder: nd.Node) -> tuple[list[nd.Node], list[nd.Node]]:
    """The nodes behind `root` that depend on a placeholder, in order, and the others that they read.

    Only those are visited: what an update reads from outside may have the whole history of the parameters behind it.
    """
    if placeholder not in root.free:
        return [], [root]
    inside = schedule([root], lambda node: [parent for parent in node.inputs if placeholder in parent.free])
    program = [node for node in inside if node is not placeholder]
    return program, list(dict.fromkeys(p for node in program for p in node.inputs if placeholder not in p.free))


def up_to(root: nd.Node, source: nd.Node) -> list[nd.Node]:
    """The ancestors of `root` in order, those of `source` left out where nothing else leads to them."""
    return schedule([root], lambda node: () if node is source else node.inputs)


def execute(program: Sequence[nd.Node], run: nd.Pass, known: dict[nd.Node, Any]) -> None:
    """Evaluate the nodes of a program in order, adding their values to `known`."""
    value_of = known.__getitem__
    for node in program:
        if node not in known:
            if run.place is not None:
                run.place.enter(node)
            known[node] = node.evaluate(run, list(map(value_of, node.inputs)))
