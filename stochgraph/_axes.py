"""Axes: the plates and time axes that nodes carry.

A value of a node with axes `(a, b)` is stored with one leading dimension per axis, outermost first, followed by the
dimensions of one draw. Axes are ordered by their declaration, so the order of a node's axes never depends on how the
node was built.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Axis:
    """A plate (`time=False`, independent draws) or a time axis (`time=True`, ordered steps of one draw)."""

    position: int
    name: str = field(compare=False)
    time: bool = field(compare=False, default=False)

    def __repr__(self) -> str:
        return self.name


Axes = tuple[Axis, ...]


def union(*groups: Iterable[Axis]) -> Axes:
    """All axes of the groups, in declaration order."""
    return tuple(sorted({axis for group in groups for axis in group}))


def without(axes: Axes, removed: Iterable[Axis]) -> Axes:
    """`axes` less `removed`, order kept."""
    gone = set(removed)
    return tuple(axis for axis in axes if axis not in gone)


def describe(axes: Axes) -> str:
    """The axes as an error message shows them."""
    return "(" + ", ".join(axis.name for axis in axes) + ")" if axes else "none"
