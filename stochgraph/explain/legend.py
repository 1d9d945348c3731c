"""The place for a legend within a picture: a rectangle that no node, no box and no edge touches."""

from collections.abc import Iterable, Sequence

import numpy as np

from .layout import Box, Point

_CELL = 0.05  # inches: the free space is looked for on a grid
_RIM = 3  # cells at the edge of the picture that stay free


def room(width: float, height: float, size: Point, taken: Sequence[Box], ways: Iterable[Point]) -> Point | None:
    """The lower left corner of free space of `size` in a picture of a width and height, as near as can be to a corner.

    Args:
        width: of the picture.
        height: of the picture; its lower edge is at 0.
        size: width and height of what is to be placed.
        taken: what may not be covered.
        ways: points along the lines that may not be covered, closer to each other than `size`.

    Returns:
        `None` if there is no such place.
    """
    full = np.ones((int(width / _CELL) + 1, int(height / _CELL) + 1), dtype=np.int64)
    full[_RIM:-_RIM, _RIM:-_RIM] = 0
    for box in taken:
        full[_cells(box.left, box.right), _cells(box.bottom, box.top)] = 1
    for x, y in ways:
        full[_cells(x, x), _cells(y, y)] = 1
    wide, high = (int(length / _CELL) + 1 for length in size)
    if wide > full.shape[0] or high > full.shape[1]:
        return None
    free = np.argwhere(_window_sums(full, wide, high) == 0) * _CELL
    if not len(free):
        return None
    from_corner = np.minimum(free, (width - size[0], height - size[1]) - free).sum(1)
    best = free[int(from_corner.argmin())]
    return float(best[0]), float(best[1])


def _cells(start: float, end: float) -> slice:
    return slice(max(int(start / _CELL) - 1, 0), max(int(end / _CELL) + 2, 0))


def _window_sums(full: np.ndarray, wide: int, high: int) -> np.ndarray:
    """The sums of all windows of a size."""
    total = np.pad(full.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return total[wide:, high:] - total[:-wide, high:] - total[wide:, :-high] + total[:-wide, :-high]
