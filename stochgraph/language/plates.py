"""Plates by name: those that a draw lies in because it says so, and draws that the entries of a plate share unsaid.

NOTE [which draws are warned of]
Axes follow parents, so a draw without parents is in no plate but its own, and where it is combined with a node of
another plate, all entries of that plate share it. Sometimes that is meant (a prior over global weights), sometimes it
trains all tasks on one batch. Only the user knows, who says it with `within=`.

A mean over the draw's own plate is a number of the whole plate, and an update makes parameters: sharing those is their
use (what is learned from training data meets test data), so draws are not followed through them. Some meetings leave
nothing to ask: where the plate is drawn from the draw, or lies inside the draw's own plates, its entries can but share
the draw. Where two plates cross it is enough that one of them says so.
"""

import warnings
from collections.abc import Iterable, Sequence

from ..errors.exceptions import DeclarationError
from ..ir import nodes as nd
from ..ir.paths import descends_from
from ..ir.programs import schedule
from ..tensors.axes import Axes, Axis, describe, union

_STACK = 4  # whoever called sg.graph, which calls declare, which calls warn_of_shared_draws

_Owners = dict[Axis, nd.Node]
_Meetings = dict[tuple[nd.Sample, Axis], nd.Node]  # a draw, a plate that it is not in, and what combines them first


def owners_in(nodes: Iterable[nd.Node]) -> _Owners:
    """The nodes that add each plate, in the order of declaration."""
    return {node.new_plate: node for node in nodes if node.new_plate is not None}


def plates_within(nodes: Iterable[nd.Node], name: str, within: str | Iterable[str]) -> Axes:
    """The plates that the sample `name` names with `within`, and those that they lie in.

    Raises:
        DeclarationError: `within` is neither a name nor several, or there is no such plate yet.
    """
    owners = {axis.name: owner for axis, owner in owners_in(nodes).items()}
    wanted = [within] if isinstance(within, str) or not isinstance(within, Iterable) else list(within)
    for one in wanted:
        if not isinstance(one, str) or one not in owners:
            raise DeclarationError(
                f"sample {name!r}: within={one!r} is not a plate that is declared before it; "
                + (f"there are {', '.join(map(repr, owners))}" if owners else "there is none yet")
                + ". Name plates of nodes above; within=() says that one draw for all is meant"
            )
    return union(*(_plates(owners[one]) for one in wanted))


def warn_of_shared_draws(declared: Sequence[nd.Node], objective: nd.Node) -> None:
    """Warn of draws without parents that the entries of a plate share, where nothing is said of that."""
    owners, meetings = owners_in(declared), _meetings(schedule([objective]))
    shared: dict[nd.Sample, list[Axis]] = {}
    for draw, plate in meetings:
        owner = owners[plate]
        clear = _crossed(owner, draw, meetings) or _lies_inside(owner, draw)
        if not (clear or owner in descends_from(declared, draw)):
            shared.setdefault(draw, []).append(plate)
    for draw, plates in shared.items():
        warnings.warn(_message(draw, plates, meetings[draw, plates[0]], owners), stacklevel=_STACK)


def _plates(node: nd.Node) -> Axes:
    return tuple(axis for axis in node.axes if not axis.time)


def _unsaid(node: nd.Sample) -> bool:
    """True if a draw has no parents, and does not say which plates it lies in."""
    return not node.inputs and node.within is None


def _meetings(order: Sequence[nd.Node]) -> _Meetings:
    """The nodes at which such draws, or values made of them, are combined with plates that the draws do not have."""
    carried: dict[nd.Node, set[nd.Sample]] = {}
    found: _Meetings = {}
    for node in order:
        plates = [axis for axis in union(*node.input_axes) if not axis.time]
        for parent in node.inputs:
            missing = [axis for axis in plates if axis not in parent.axes]
            met = [(draw, axis) for draw in carried[parent] for axis in missing if axis not in draw.axes]
            found.update((pair, node) for pair in met if pair not in found)
        carried[node] = set[nd.Sample]()
        if isinstance(node, nd.Sample):
            carried[node] = {node} if _unsaid(node) else set()
        elif not isinstance(node, nd.Update):
            arriving = set[nd.Sample]().union(*(carried[parent] for parent in node.inputs))
            carried[node] = {draw for draw in arriving if set(_plates(draw)) <= set(node.axes)}
    return dict(sorted(found.items(), key=lambda item: (item[0][0].index, item[0][1])))


def _lies_inside(owner: nd.Node, draw: nd.Sample) -> bool:
    """True if a plate lies inside all plates of a draw, which has some."""
    return bool(_plates(draw)) and set(_plates(draw)) <= set(owner.axes)


def _crossed(owner: nd.Node, draw: nd.Sample, meetings: _Meetings) -> bool:
    """True if the plate's own draw says where it lies, or is warned of the draw's plate as the later of the two."""
    if draw.plate is None:
        return False
    later = owner.index > draw.index and any(met is owner and plate == draw.plate for met, plate in meetings)
    return owner.within is not None or later


def _message(draw: nd.Sample, plates: list[Axis], node: nd.Node, owners: _Owners) -> str:
    listed = " and ".join(repr(plate.name) for plate in plates)
    return (
        f"sample {draw.name!r} (axes: {describe(draw.axes)}) has no parents and meets the plate {listed} at "
        f"{node.name!r} (axes: {describe(node.axes)}): all entries of {listed} share what is drawn. For draws of their "
        f"own {_remedy(draw, plates, owners)}; if one draw for all is meant, say within=() here"
    )


def _remedy(draw: nd.Sample, plates: list[Axis], owners: _Owners) -> str:
    names = [plate.name for plate in plates]
    within = f"within={(names[0] if len(names) == 1 else tuple(names))!r}"
    later = [plate for plate in plates if owners[plate].index > draw.index]
    if not later:
        return f"say {within}"
    if draw.plate is not None and owners[later[0]].is_draw:
        return f"give {later[0].name!r} within={draw.name!r}"
    return f"declare it after {' and '.join(repr(plate.name) for plate in later)}, with {within}"
