"""The passes of the compiler in lines: what reaches what, where boxes stand, what was built, the program that runs.

Behind a sample are the axes along which a node depends on it draw by draw: `tau (tau)`, or `D ()` where all draws of D
come together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..ir import nodes as nd
from ..tensors.axes import Axis
from .boxes import Kind, Pending
from .derivation import Derivation
from .journeys import journeys

Rows = Iterable[tuple[str, ...]]
Told = Iterable[tuple[str, Sequence[tuple[str, ...]]]]


def printed(derivation: Derivation, objective: nd.Node, program: Sequence[nd.Node], stage: str) -> str:
    """A pass by its name: "reach", "placement", "build" or "program".

    Args:
        derivation: of a graph.
        objective: the declared one.
        program: the nodes of the surrogate, in order.
        stage: the name.

    Raises:
        ValueError: it has another name.
    """
    if stage == "program":
        return "\n".join(_columns(_evaluated(program, {}, "")))
    if stage not in _TOLD:
        raise ValueError(f"show({stage!r}): one of {', '.join(map(repr, (*_TOLD, 'program')))} is expected")
    title = f"objective {objective.name}"
    lines = []
    for name, rows in _TOLD[stage](derivation, title):
        lines += [name, *(f"  {line}" for line in _columns(rows))] if rows else []
    return "\n".join(lines) or f"{title}: no boxes"


def _columns(rows: Rows) -> list[str]:
    """The rows with their columns below each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _sections(derivation: Derivation, title: str, where: str = "") -> Iterator[tuple[str, Derivation]]:
    """A derivation, those of its updates, and that of its replays where it is another one."""
    yield where + title, derivation
    for update, inner in derivation.updates.items():
        yield from _sections(inner, f"objective {update.objective.name} of {update.name}", where)
    if derivation.around is None and derivation.exact is not derivation and derivation.exact.placement.starts:
        yield from _sections(derivation.exact, title, "replays: ")


def _told_of_reach(derivation: Derivation, title: str) -> Told:
    return ((name, list(_reach(inner))) for name, inner in _sections(derivation, title))


def _told_of_placement(derivation: Derivation, title: str) -> Told:
    """Of every derivation the rows of its objective, and of what is derived again, for replays or of parts."""
    for name, inner in _sections(derivation, title):
        for place, (start, rows) in enumerate(journeys(inner.placement)):
            yield f"{name}, again: {start}" if place else name, rows


def _told_of_build(derivation: Derivation, title: str) -> Told:
    return ((name, list(_built(inner))) for name, inner in _sections(derivation, title))


def _reach(derivation: Derivation) -> Rows:
    scope = derivation.scope
    for node in scope.order:
        for kind, reach in scope.reach.items():
            if reach[node]:
                yield node.name, "scores of" if kind is Kind.SCORE else "boxes of", _samples(reach[node])


def _samples(reached: Mapping[str, frozenset[Axis]]) -> str:
    return ", ".join(f"{name} {_axes(axes)}" for name, axes in reached.items())


def _axes(axes: Iterable[Axis]) -> str:
    return f"({', '.join(axis.name for axis in sorted(axes))})"


def _built(derivation: Derivation) -> Rows:
    for (node, pending), built in derivation.built.items():
        if pending:
            yield node.name, f"with {_open(pending)}", f"= {built.kind} of {', '.join(p.name for p in built.inputs)}"


def _open(pending: Pending) -> str:
    """The samples whose boxes are open, and which of them have no control variate yet."""
    return ", ".join(name + " uncontrolled" * (kind is Kind.CONTROLLED) for name, kind in sorted(pending, key=_name))


def _name(box: tuple[str, Kind]) -> str:
    return box[0]


def _evaluated(program: Sequence[nd.Node], outside: Mapping[nd.Node, str], prefix: str) -> Rows:
    """The nodes of a program, before each what it evaluates on its own."""
    numbers = dict(outside)
    for number, node in enumerate(program):
        numbers[node] = f"{prefix}{number}"
        for which, inner in enumerate(node.programs):
            place = f".{which}" * (len(node.programs) > 1)
            yield from _evaluated(inner, numbers, f"{prefix}{number}{place}.")
        read = ", ".join(numbers.get(parent, parent.name) for parent in node.inputs)
        yield numbers[node], node.kind, node.name, _axes(node.axes), f"reads {read}" if read else ""


_TOLD: dict[str, Callable[[Derivation, str], Told]] = {
    "reach": _told_of_reach,
    "placement": _told_of_placement,
    "build": _told_of_build,
}
