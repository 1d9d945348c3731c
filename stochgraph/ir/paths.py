"""Questions about a declared graph: its samples and plates, what moves with what, the ways between two nodes."""

from collections.abc import Iterable

from ..ir import nodes as nd
from ..tensors.axes import Axis


def samples_in(order: Iterable[nd.Node]) -> dict[str, nd.Sample]:
    """The sample nodes by name."""
    return {node.name: node for node in order if isinstance(node, nd.Sample)}


def plates_in(order: Iterable[nd.Node]) -> dict[str, Axis]:
    """The plates by name. What adds a plate may be missing among the nodes, where nothing reads it."""
    plates = {axis for node in order for axis in node.axes if not axis.time}
    return {axis.name: axis for axis in sorted(plates)}


def averaging_plate(sample: nd.Sample) -> Axis | None:
    """The innermost plate of a sample: averaging it averages its draws."""
    plates = [axis for axis in sample.plates if not axis.time]
    return plates[-1] if plates else None


def moves_with(order: list[nd.Node], sources: Iterable[nd.Node], pathwise: Iterable[str] = ()) -> set[nd.Node]:
    """The nodes whose value moves with the sources while every draw is held fixed (pathwise draws move)."""
    moving, moved_draws = set(sources), set(pathwise)
    for node in order:
        held = node.is_draw and node.name not in moved_draws
        if not held and not node.stops and any(parent in moving for parent in node.inputs):
            moving.add(node)
    return moving


def descends_from(order: Iterable[nd.Node], *sources: nd.Node) -> set[nd.Node]:
    """The nodes and all their descendants, through values and distributions."""
    found = set(sources)
    for node in order:
        if any(parent in found for parent in node.inputs):
            found.add(node)
    return found


def open_unknowns(order: Iterable[nd.Node]) -> dict[nd.Node, frozenset[nd.Node]]:
    """For every node the unknowns that it depends on outside an update that solves for them."""
    found: dict[nd.Node, frozenset[nd.Node]] = {}
    for node in order:
        below = frozenset[nd.Node]().union(*(found[parent] for parent in node.inputs))
        found[node] = below - node.solves | node.opens
    return found


def between(start: nd.Node, goal: nd.Node) -> list[nd.Node]:
    """The nodes on a way from `start` to `goal`, `start` itself left out."""
    order: list[nd.Node] = []
    seen, stack = {goal}, [goal]
    while stack:
        node = stack.pop()
        order.append(node)
        fresh = [parent for parent in node.inputs if parent not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    below = {start}
    for node in sorted(order, key=lambda n: n.index):
        if any(parent in below for parent in node.inputs):
            below.add(node)
    return sorted(below - {start}, key=lambda n: n.index)


def first_mixing(start: nd.Node, goal: nd.Node, plates: Iterable[Axis]) -> tuple[nd.Node, Axis] | None:
    """The first node on a way from `start` to `goal` that reduces or adds one of the plates, and that plate."""
    kept = set(plates)
    for node in between(start, goal) if kept else ():
        mixed = kept.intersection(node.shares)
        if mixed:
            return node, min(mixed)
    return None


def scored_samples(
    order: list[nd.Node], sources: Iterable[nd.Node], pathwise: Iterable[str] = ()
) -> dict[str, nd.Sample]:
    """The sample nodes whose distribution depends on one of the sources through values, pathwise draws included."""
    moving = moves_with(order, sources, pathwise)
    return {name: node for name, node in samples_in(order).items() if any(parent in moving for parent in node.inputs)}
