"""Values without derivatives, evaluated in pieces of a plate: the memory of one piece, the result of the whole.

Drawing a graph takes the gradients inside its updates and scores what was drawn. Both need many times the memory of
their results, and entries of a plate do not know of each other. So where nothing is differentiated outside, a plate
with more draws than a piece holds is cut, and only then: what is drawn is drawn in one batch all the same.

The size of a piece is fixed. Results move by rounding with it, and a simulator makes much of little: what is drawn must
not depend on the number of threads.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from .axes import Axes, Axis
from .indexing import in_transform
from .trees import map_tensors, tensors

_DRAWS = {"cpu": 8000}  # what keeps four threads busy
_ON_ACCELERATORS = 500_000


def draws_at_once(device: torch.device) -> int:
    """Draws, or their time steps, in a piece."""
    return _DRAWS.get(device.type, _ON_ACCELERATORS)


class Cut(NamedTuple):
    """A cut of values: the plate, its size, and that of a piece."""

    plate: Axis
    size: int
    length: int

    def parts(self, values: Sequence[Any], axes: Sequence[Axes]) -> Iterable[tuple[int, list[Any]]]:
        """The length of every piece, and its part of the values, `(*axes, ...)` each. Nothing is copied."""
        for start in range(0, self.size, self.length):
            length = min(self.length, self.size - start)
            yield length, [self._part(value, own, start, length) for value, own in zip(values, axes, strict=True)]

    def joined(self, parts: Sequence[Any], axes: Axes) -> Any:
        """The whole of the results of all pieces, `(*axes, ...)` each."""
        if self.plate not in axes:
            return parts[-1]
        dim = axes.index(self.plate)
        return pytree.tree_map(lambda *leaves: torch.cat(leaves, dim), *parts)

    def _part(self, value: object, axes: Axes, start: int, length: int) -> Any:
        if self.plate not in axes:
            return value
        dim = axes.index(self.plate)
        return map_tensors(lambda leaf: leaf if leaf.shape[dim] == 1 else leaf.narrow(dim, start, length), value)


def find_cut(values: Sequence[Any], axes: Sequence[Axes], plates: Iterable[Axis]) -> Cut | None:
    """The cut of values `(*axes, ...)` that hold more draws than a piece: at the first of the plates that varies."""
    if in_transform():
        return None
    sizes: dict[Axis, int] = {}
    most, limit = 1, 1
    for value, own in zip(values, axes, strict=True):
        for leaf in tensors(value)[:1]:
            lead = leaf.shape[: len(own)]
            most, limit = max(most, prod(lead)), draws_at_once(leaf.device)
            sizes.update((axis, n) for axis, n in zip(own, lead, strict=True) if n > 1)
    plate = next((plate for plate in plates if plate in sizes), None)
    if plate is None or most <= limit:
        return None
    return Cut(plate, sizes[plate], max(1, limit * sizes[plate] // most))
