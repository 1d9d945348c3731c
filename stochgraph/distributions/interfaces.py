"""The nodes and the pass that distributions draw and score in, as far as they see them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from ..tensors.axes import Axes, Axis


class Named(Protocol):
    """A thing that messages call by its name."""

    @property
    def name(self) -> str:
        """Its name."""


class Node(Protocol):
    """A node: a parent of a sample, for instance."""

    @property
    def axes(self) -> Axes:
        """The axes of its values."""


class Call(Protocol):
    """The arguments of a call, nodes and constants: `stochgraph.ir.nodes.Arguments`."""

    @property
    def flat(self) -> bool:
        """True if nothing in them is nested."""

    @property
    def leaves(self) -> Sequence[Any]:
        """All leaves, nodes and constants."""

    @property
    def places(self) -> Sequence[int]:
        """The leaves that are nodes."""

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes themselves, in order."""

    @property
    def positional(self) -> int:
        """The number of arguments that have no name."""

    @property
    def keywords(self) -> Sequence[str]:
        """The names of the others."""

    def fill(self, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """The call's `(args, kwargs)` with each node replaced by its value."""


class SampleNode(Protocol):
    """A sample node: `stochgraph.ir.nodes.Sample`, which says what each of these is."""

    pathwise: bool

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def law(self) -> Named:
        """The law of its draws."""

    @property
    def axes(self) -> Axes:
        """The axes of its draws."""

    @property
    def parent_axes(self) -> Axes:
        """Those along which draws have parents of their own."""

    @property
    def plates(self) -> Axes:
        """Those of whole draws."""

    @property
    def repeats(self) -> Axes:
        """Those along which draws of the same parents are repeated."""

    @property
    def drawn_axes(self) -> Axes:
        """The axes in the order in which torch draws."""

    @property
    def time(self) -> Axis | None:
        """The draw's own time axis."""

    @property
    def inputs(self) -> Sequence[Node]:
        """The parents."""

    @property
    def arguments(self) -> Call:
        """The arguments of its law."""

    @property
    def event_dims(self) -> list[int] | None:
        """The event dimensions of each parent."""

    @property
    def declared(self) -> "SampleNode":
        """The node as it was declared."""


class Surroundings(Protocol):
    """The pass: how many draws there are, and where tensors are made."""

    @property
    def sizes(self) -> Mapping[Axis, int]:
        """The sizes of all axes that are known."""

    def placed(self) -> AbstractContextManager[Any]:
        """Within it, tensors that say nothing of their device are made where the inputs are."""

    def number(self, value: object) -> Any:
        """A Python number as a tensor where the inputs are."""

    def note_margins(self, node: SampleNode, margins: Sequence[Tensor]) -> None:
        """Note whether probabilities are at the edge."""
