"""Programs: the nodes of a graph in an order that they can be evaluated in."""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..ir import nodes as nd


def schedule(roots: Iterable[nd.Node]) -> list[nd.Node]:
    """The ancestors of the roots in an order that respects inputs, and otherwise the declaration, late ones late."""
    found: dict[nd.Node, int] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = len(found)
            stack.extend(node.inputs)
    users: dict[nd.Node, list[nd.Node]] = {node: [] for node in found}
    waiting = {node: len(set(node.inputs)) for node in found}
    for node in found:
        for parent in set(node.inputs):
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
    root: nd.Node, moves: Callable[[nd.Node, bool], bool], start: Iterable[nd.Node] = ()
) -> tuple[list[nd.Node], list[nd.Node]]:
    """The nodes behind `root` that move, in order, and the others that they read.

    Args:
        root: what is computed.
        moves: whether a node moves, given the node and whether one of its inputs does.
        start: nodes that move and are computed elsewhere.
    """
    moving = set(start)
    program = []
    for node in schedule([root]):
        if moves(node, any(parent in moving for parent in node.inputs)):
            moving.add(node)
            program.append(node)
    needed = [root] if root not in moving else []
    needed += [parent for node in program for parent in node.inputs if parent not in moving]
    return program, list(dict.fromkeys(needed))


def execute(program: Sequence[nd.Node], run: Any, known: dict[nd.Node, Any]) -> None:
    """Evaluate the nodes of a program in order, adding their values to `known`."""
    value_of = known.__getitem__
    for node in program:
        if node not in known:
            if run.place is not None:
                run.place.enter(node)
            known[node] = node.evaluate(run, list(map(value_of, node.inputs)))
