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
    if stage not in _ROWS:
        raise ValueError(f"show({stage!r}): one of {', '.join(map(repr, (*_ROWS, 'program')))} is expected")
    title = f"objective {objective.name}"
    lines = []
    for name, inner in _sections(derivation, title):
        body = _columns(_ROWS[stage](inner))
        lines += [name, *(f"  {line}" for line in body)] if body else []
    return "\n".join(lines) or f"{title}: no boxes"


def _columns(rows: Rows) -> list[str]:
    """The rows with their columns below each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _sections(derivation: Derivation, title: str) -> Iterator[tuple[str, Derivation]]:
    """A derivation, those of its updates, and that of its replays where it is another one."""
    yield title, derivation
    for update, inner in derivation.updates.items():
        yield from _sections(inner, f"objective {update.objective.name} of {update.name}")
    if derivation.around is None and derivation.exact is not derivation and derivation.exact.placement.starts:
        yield from _sections(derivation.exact, "replays")


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


_ROWS: dict[str, Callable[[Derivation], Rows]] = {
    "reach": _reach,
    "placement": lambda derivation: journeys(derivation.placement),
    "build": _built,
}
