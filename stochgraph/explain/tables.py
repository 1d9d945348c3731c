"""Tables of text as wide as the terminal: cells are continued on the next line, at spaces, and no word is cut."""

import shutil
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

_GAP = "  "
_NO_TERMINAL = 10_000  # where nobody says how wide it is, no line is broken


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table. Columns with a heading are underlined; those that do not fit share what is left."""
    columns = list(zip(heads, *rows, strict=True))
    widths = _fitted([max(map(len, column)) for column in columns], [_longest_word(" ".join(c)) for c in columns])
    underlined = ["-" * width if head else "" for head, width in zip(heads, widths, strict=True)]
    return [line for row in (heads, underlined, *rows) for line in _lines(row, widths)]


def paragraph(text: str) -> list[str]:
    """The lines of a sentence."""
    return _wrapped(text, max(_room(), _longest_word(text)))


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _room() -> int:
    return shutil.get_terminal_size((_NO_TERMINAL, 24)).columns


def _wrapped(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _fitted(wanted: list[int], least: list[int]) -> list[int]:
    """The widths of the columns: as wanted where they fit, else the widest give way, to the same width."""
    room = _room() - len(_GAP) * (len(wanted) - 1)
    if sum(wanted) <= room:
        return wanted
    limit = next((n for n in range(max(wanted), 0, -1) if sum(_limited(wanted, least, n)) <= room), 1)
    return _limited(wanted, least, limit)


def _limited(wanted: list[int], least: list[int], limit: int) -> list[int]:
    return [max(min(width, limit), word) for width, word in zip(wanted, least, strict=True)]


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """A row, with as many lines as its longest cell needs."""
    cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = zip_longest(*cells, fillvalue="")
    return [_GAP.join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]
