"""A report on a compiled graph: one page with its picture, its ledger, its formula and the lines that declare it.

Pointing at a row of the ledger lights up the nodes and edges of its path, the terms of the formula that count it, and
the lines that declare its nodes. The page fetches nothing.
"""

import html
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..ir.declaration import Declaration
from .derived import Derived
from .drawing import draw, edge_id, node_id
from .explanation import Explanation
from .folding import folded
from .grid import numbered
from .ledger import Row
from .marks import mathml, term_of
from .page import PAGE, SCRIPT, STYLE
from .sources import Source, sources


def report(derived: Derived, explanation: Explanation, estimators: Mapping[str, object]) -> str:
    """The page.

    Raises:
        ImportError: matplotlib or latex2mathml is not installed.
    """
    graph = derived.graph
    functions, formula = sources(graph), mathml(derived)
    lights = _Lights(graph, functions, formula)
    chosen = ", ".join(f"{name}: {estimator}" for name, estimator in estimators.items())
    notes = [explanation._summary(), f"Estimators: {chosen}", *explanation._notes()]
    picture = draw(graph, fold=True).svg()
    parts = [
        "<h2>How every path is counted</h2>",
        _table(explanation, lights),
        "<h2>The estimator</h2>",
        f'<div class="wide">{formula}</div>',
        '<p class="pale">The value of □(L) = exp(L − stop(L)) is 1, its derivative that of L.</p>',
        *_sources(functions),
    ]
    return PAGE.format(
        title=html.escape(explanation._title),
        head="\n".join(f'<p class="pale">{html.escape(note)}</p>' for note in notes),
        picture=picture[picture.index("<svg") :],
        parts="\n".join(parts),
        style=STYLE,
        script=SCRIPT,
    )


class _Lights:
    """The elements that light up with a row of the ledger, as CSS selectors."""

    def __init__(self, graph: Declaration, functions: list[Source], formula: str) -> None:
        self._classes = set(" ".join(re.findall(r'class="([^"]*)"', formula)).split())
        self._numbers = numbered(graph)
        self._picture = folded(graph)
        self._lines = {node.name: line for node in graph.order for line in _line_ids(node.declared_at, functions)}

    def of(self, row: Row) -> str:
        """The selector of all of it; at least the ends of a path are nodes of the picture."""
        return ", ".join([*self._shapes(row.path), *self._terms(row), *self._declared(row.path)])

    def _shapes(self, path: tuple[str, ...]) -> Iterator[str]:
        """Operations that are folded are part of the next node on the path that is not."""
        shown = [name for name in path if name in self._picture]
        for name in shown:
            yield f"#{node_id(self._numbers[name])}"
        for parent, child in itertools.pairwise(shown):
            if self._picture.has_edge(parent, child):
                yield f"#{edge_id(self._numbers[parent], self._numbers[child])}"

    def _terms(self, row: Row) -> Iterator[str]:
        """Formulas are cut short where they are deep, and estimators may say in a word what others write out."""
        term = term_of(row, self._numbers)
        if term in self._classes:
            yield f".{term}"

    def _declared(self, path: tuple[str, ...]) -> Iterator[str]:
        return (f"#{line}" for line in dict.fromkeys(self._lines[name] for name in path if name in self._lines))


def _line_id(function: int, line: int) -> str:
    return f"line-{function}-{line}"


def _line_ids(place: tuple[str, int, int] | None, functions: list[Source]) -> Iterator[str]:
    """The line where a node is declared, if its function is shown."""
    if place is not None:
        file, first, line = place
        found = (i for i, source in enumerate(functions) if (source.file, source.first) == (file, first))
        yield from (_line_id(i, line) for i in found if functions[i].has(file, line))


def _table(explanation: Explanation, lights: _Lights) -> str:
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in explanation._heads())
    rows = [
        _row(i, row, cells, lights)
        for i, (row, cells) in enumerate(zip(explanation.ledger, explanation._cells(), strict=True))
    ]
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _row(number: int, row: Row, cells: list[str], lights: _Lights) -> str:
    """A row of the table; the third cell says how the path is counted."""
    classes = ["", "", f' class="word {row.counted}"']
    data = [
        f"<td{style}>{html.escape(cell)}</td>" for style, cell in itertools.zip_longest(classes, cells, fillvalue="")
    ]
    return f'<tr id="path-{number}" tabindex="0" data-lit="{html.escape(lights.of(row))}">{"".join(data)}</tr>'


def _sources(functions: list[Source]) -> Iterator[str]:
    if functions:
        yield "<h2>Where it is declared</h2>"
    for i, source in enumerate(functions):
        lines = enumerate(source.lines, start=source.first)
        spans = [f'<span id="{_line_id(i, number)}">{html.escape(line)}</span>' for number, line in lines]
        yield f'<p class="pale">{html.escape(Path(source.file).name)}, line {source.first}</p>'
        yield f"<pre>{''.join(spans)}</pre>"
