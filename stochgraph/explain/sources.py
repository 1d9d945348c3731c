"""The functions in which a graph is declared, as they stand in their files, and the lines of its nodes."""

import inspect
import linecache
from dataclasses import dataclass

from ..ir.declaration import Declaration


@dataclass(frozen=True)
class Source:
    """A function.

    Attributes:
        file: its file.
        first: the number of its first line.
        lines: the text of its lines.
    """

    file: str
    first: int
    lines: tuple[str, ...]

    def has(self, file: str, line: int) -> bool:
        """True if a line of a file is one of its lines."""
        return file == self.file and self.first <= line < self.first + len(self.lines)


def sources(graph: Declaration) -> list[Source]:
    """The functions in the order in which they declare nodes. Those whose file is not at hand are left out."""
    places = [node.declared_at for node in graph.order if node.declared_at is not None]
    starts = dict.fromkeys((place.file, place.function) for place in places)
    return [source for start in starts if (source := _source(*start))]


def _source(file: str, first: int) -> Source | None:
    lines = linecache.getlines(file)[first - 1 :]
    if not lines:
        return None
    try:
        block = inspect.getblock(lines)
    except (IndentationError, SyntaxError):
        block = lines[:1]
    return Source(file, first, tuple(line.rstrip("\n") for line in block))
