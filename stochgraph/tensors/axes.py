"""Axes: the plates and time axes that nodes carry.

A value of a node with axes `(a, b)` is stored with one leading dimension per axis, outermost first, followed by the
dimensions of one draw. Axes are ordered by their declaration, so the order of a node's axes never depends on how the
node was built.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Axis:
    """A plate (`time=False`, independent draws) or a time axis (`time=True`, ordered steps of one draw).

    `n` is the declared size of a plate of draws. The size of a plate of data is that of the inputs, and the length of a
    time axis that of what is drawn.
    """

    position: int
    name: str = field(compare=False)
    time: bool = field(compare=False, default=False)
    n: int | None = field(compare=False, default=None)

    @property
    def data(self) -> bool:
        """True for a plate whose entries are the rows of an input."""
        return self.n is None and not self.time

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


def at_least_two(plates: Axes) -> str:
    """The remedy for a plate of one where entries are compared with the others."""
    if any(plate.data for plate in plates):
        return "at least two rows (a loader leaves out a last batch of one with drop_last=True)"
    return "at least two draws"


def describe(axes: Axes) -> str:
    """The axes as an error message shows them."""
    return "(" + ", ".join(axis.name for axis in axes) + ")" if axes else "none"
