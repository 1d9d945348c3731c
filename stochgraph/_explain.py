"""Explanations: the ledger in words, the class of bias and variance, the estimator as a formula."""

from dataclasses import dataclass, replace
from typing import Any

from . import _node as nd
from ._latex import latex
from ._ledger import Row, largest, read_ledger

_WORDS = {
    "once": "counted exactly once",
    "linearized": "counted once, linearised at the plate's mean: biased, less so the larger the plate",
    "dropped": "not counted: the estimate ignores this path",
    "scaled": "counted 1/N times: the plate's scores are averaged, not summed",
    "twice": "counted twice",
}
_PATHWISE = "counted once, through the draw itself"
_VALUE = {"once": "the direction of {} is differentiated", "dropped": "the direction of {} is held constant"}
_LONGEST_ROUTE = 8
_MOST_ROWS = 4


@dataclass(frozen=True)
class Explanation:
    """How a compiled surrogate counts every gradient path. Made by `Compiled.explain`; prints as a table.

    Attributes:
        ledger: the rows, one per sample node and kind of path; see `Row`.
        unbiased: every path is counted exactly once, and none is linearised.
        bias: "0", "O(1/sqrt(N))" (some path linearised) or "O(1)" (some path dropped, scaled or counted twice), in the
            size N of the inner plates. An upper bound; for the linearised score function enumeration shows O(1/N).
        variance: "O(1/N)", "O(1)" (a sample without a plate) or "O(N)" (the scores of a plate are summed), the
            largest order of any path.
        latex: the estimator as a formula.
    """

    ledger: tuple[Row, ...]
    unbiased: bool
    bias: str
    variance: str
    latex: str
    _title: str
    _constant: tuple[str, ...]
    _landmarks: frozenset[str]
    _objective: str

    def __str__(self) -> str:
        rows = self._cells()
        heads = ("sample", "path", "counted", "")
        widths = [max(len(r[i]) for r in [heads, *rows]) for i in range(3)]
        lines = [_line(heads, widths), _line(tuple("-" * w for w in widths), widths)]
        lines += [_line(row, widths) for row in rows]
        return "\n".join([self._title, *lines, *self._notes(), self._summary()])

    def _cells(self) -> list[tuple[str, str, str, str]]:
        """The printed rows: where a sample has many paths of one kind, the shortest stands for all."""
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.ledger:
            groups.setdefault((row.sample, row.update, row.counted, row.kind), []).append(row)
        shown: list[Row] = []
        for rows in groups.values():
            total = sum(row.paths for row in rows)
            shown += rows if len(rows) <= _MOST_ROWS else [replace(rows[0], paths=total)]
        return [(row.sample or "(values)", self._route(row), row.counted, words(row)) for row in shown]

    def _route(self, row: Row) -> str:
        """The path with its operations left out: input, samples, updates and the objective."""
        names = [name for name in row.path[:-1] if name in self._landmarks]
        if len(names) > _LONGEST_ROUTE:
            names = [*names[: _LONGEST_ROUTE // 2], "...", *names[-_LONGEST_ROUTE // 2 + 1 :]]
        return " → ".join([*names, self._objective])

    def _summary(self) -> str:
        verdict = "unbiased" if self.unbiased else f"biased, {self.bias}"
        return f"{verdict}; variance {self.variance} in the size N of a sample's own plate"

    def _notes(self) -> list[str]:
        text = "its distribution depends on no differentiated input; nothing to count"
        return [f"{name}: {text}" for name in self._constant]

    def _repr_markdown_(self) -> str:
        rows = [f"| {name} | {path} | **{word}** | {text} |" for name, path, word, text in self._cells()]
        notes = [f"\n{note}" for note in self._notes()]
        head = "| sample | path | counted | |\n|---|---|---|---|"
        return "\n".join([self._title, "", head, *rows, *notes, "", self._summary(), "", f"$${self.latex}$$"])


def explain(compiled: Any) -> Explanation:
    """The explanation of a `Compiled`."""
    order, names = compiled.graph._order, list(compiled.rules)
    rows = tuple(read_ledger(compiled._root, order, names, compiled.wrt))
    words_found = {row.counted for row in rows}
    wrong = words_found & {"dropped", "scaled", "twice"}
    bias = "O(1)" if wrong else "O(1/sqrt(N))" if "linearized" in words_found else "0"
    variance = largest(row.variance for row in rows)
    listed = {row.sample for row in rows}
    constant = tuple(n.name for n in order if isinstance(n, nd.Sample) and n.name not in listed)
    title = f"gradient of E[{compiled.graph.name}] with respect to {', '.join(compiled.wrt)}"
    landmarks = frozenset(n.name for n in order if isinstance(n, (nd.Input, nd.Sample, nd.Update)))
    return Explanation(
        rows, bias == "0", bias, variance, latex(compiled), title, constant, landmarks, compiled.graph.name
    )


def words(row: Row) -> str:
    """What the row says, in plain words."""
    if row.kind == "value":
        text = _VALUE[row.counted].format(row.update)
    else:
        text = _PATHWISE if row.kind == "pathwise" and row.counted == "once" else _WORDS[row.counted]
    return text + (f" ({row.paths} paths like this)" if row.paths > 1 else "")


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return "  ".join([*padded, *cells[len(widths) :]]).rstrip()
