"""Explanations: the ledger in words, the class of bias and variance, the estimator as a formula."""

from collections.abc import Collection
from dataclasses import dataclass

from ..derive.populations import Corrected, expected_plates, is_bent
from ..derive.replays import Replay
from ..ir import nodes as nd
from ..ir.paths import averaging_plate
from .derived import Derived
from .formula import latex
from .ledger import Row, Source, largest, read_ledger
from .magnitudes import Group
from .tables import paragraph, table

_WORDS = {
    "once": "counted exactly once",
    "linearized": "counted once, linearised {}",
    "relaxed": "counted through a draw of another law: biased",
    "dropped": "not counted: the estimate ignores this path",
    "scaled": "counted {} times",
    "twice": "counted twice",
}
_PARTS = {
    "dropped": "products of scores at two time steps are not counted",
    "scaled": "products of scores at time steps k apart are counted {} times",
}
_PATHWISE = "counted once, through the draw itself"
_VALUE = {"once": "the direction of {} is differentiated", "dropped": "the direction of {} is held constant"}
_ORDER_ONE = (
    "order 1: the noise of {} depends on its parameters, so that there is no second derivative, and no replay at other "
    "parameters"
)
_SEEN_LATE = (
    "its rsample is seen when it draws: a straight-through draw is refused there, and one whose noise depends on its "
    "parameters (Gamma, Beta, Dirichlet ...) is of order 1"
)
_BOX = r"where $\square(L) = e^{L - \mathrm{stop}(L)}$: its value is 1, its derivative that of $L$"
_CONSTANT = "its distribution depends on no differentiated input; nothing to count"
_PLAIN = 'only linear operations follow its plate, where LOO is SF; SF(baseline="loo") has less variance'
_EXACT = "share: the size of what the rows give, of the gradient's, exact; as vectors they sum to the estimate's mean"
_SAMPLED = "share: the size of what the rows give, of the gradient's, from draws, with standard errors"
_BENT = "the mean of its draws stands for an expectation where something nonlinear follows"
_LESS_SO = ": biased, less so the larger {}"
_ORDERS = ["0", "O(1/N^2)", "O(1/sqrt(N))", "O(1)"]
_DITTO = '"'
_LONGEST_ROUTE = 8
_MANY = 10**6


@dataclass(frozen=True, repr=False)
class Explanation:
    """The account of every gradient path in a compiled surrogate. Made by `Compiled.explain`; prints as a table.

    Attributes:
        ledger: the rows, one per sample node and kind of path; see `Row`.
        unbiased: every path is counted exactly once, and none is linearised.
        bias: "0", "O(1/sqrt(N))" (some path linearised, N the size of the plate at whose mean) or "O(1)" (some path
            dropped, scaled or counted twice). An upper bound: for the linearised score function enumeration shows
            O(1/N). "O(1/N^2)" is what the jackknife leaves of it.
        variance: "O(1/N)", "O(1)" (a sample without a plate) or "O(N)" (the scores of a plate are summed), the
            largest order of any path.
        latex: the estimator as a formula.
        target: the plates that are expected, `sg.expect`: the gradient is that of a function of their expectations.
            Empty: that of the expected objective, with as many draws as are made.
        rows: with inputs, the groups of rows with what each gives to the gradient there; see `Group`.
    """

    ledger: tuple[Row, ...]
    unbiased: bool
    bias: str
    variance: str
    latex: str
    target: tuple[str, ...]
    rows: tuple[Group, ...]
    _title: str
    _constant: tuple[str, ...]
    _plain: tuple[str, ...]
    _pathwise: tuple[str, ...]
    _landmarks: frozenset[str]
    _objective: str

    def __str__(self) -> str:
        below = [line for text in (*self._notes(), self._summary()) for line in paragraph(text)]
        return "\n".join([*paragraph(self._title), *table(self._heads(), self._cells()), *below])

    def _heads(self) -> list[str]:
        """The last column, which has words, needs none."""
        return ["sample", "path", "counted", *(["share"] if self.rows else []), ""]

    def _cells(self) -> list[list[str]]:
        waiting = {_key(group): group for group in self.rows}
        return [self._row(row, waiting) for row in self.ledger]

    def _row(self, row: Row, waiting: dict[tuple[Source, bool], Group]) -> list[str]:
        """One printed row; the figures of a group stand in its first."""
        cells = [row.sample or "(values)", self._route(row), row.counted]
        if not self.rows:
            return [*cells, words(row)]
        group = waiting.pop(_key(row), None)
        if group is None:
            return [*cells, _DITTO, words(row)]
        # What is missing of a sample is one figure, that of its dropped rows where it has any.
        elsewhere = row.counted != "dropped" and (row.source, True) in waiting
        share = "" if elsewhere else group.missing_in_words()
        missing = share and f"; {share} missing"
        return [*cells, group.in_words(), words(row) + missing]

    def _route(self, row: Row) -> str:
        """The path with its operations left out: input, samples, updates, what was named, and the objective."""
        names = [name for name in row.path[:-1] if name in self._landmarks]
        if row.update:  # the path enters the update through its gradient
            names = [f"gradient → {name}" if name == row.update else name for name in names]
        if len(names) > _LONGEST_ROUTE:
            names = [*names[: _LONGEST_ROUTE // 2], "...", *names[-_LONGEST_ROUTE // 2 + 1 :]]
        return " → ".join([*names, self._objective])

    __repr__ = __str__

    def _summary(self) -> str:
        verdict = "unbiased" if self.unbiased else f"biased, {self.bias}"
        return f"{verdict}; variance {self.variance} in the size N of a sample's own plate"

    def _notes(self) -> list[str]:
        constant = [f"{name}: {_CONSTANT}" for name in self._constant]
        shares = [_SAMPLED if self.rows[0].errors else _EXACT] if self.rows else []
        return [*constant, *(f"{name}: {_PLAIN}" for name in self._plain), *self._pathwise, *shares]

    def _repr_markdown_(self) -> str:
        heads = self._heads()
        marked = [[*cells[:2], f"**{cells[2]}**", *cells[3:]] for cells in self._cells()]
        lines = [heads, ["---"] * len(heads), *marked]
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        notes = [f"\n{note}" for note in self._notes()]
        return "\n".join([self._title, "", *rows, *notes, "", self._summary(), "", f"$${self.latex}$$", "", _BOX])


def _key(row: Row | Group) -> tuple[Source, bool]:
    """The key of a row's group: of what is counted of a sample there is one."""
    return row.source, row.counted == "dropped"


def explain(compiled: Derived, groups: tuple[Group, ...] = ()) -> Explanation:
    """The explanation of a `Compiled`, with what the groups of its rows give."""
    order, names = compiled.graph.order, list(compiled.estimators)
    rows = tuple(read_ledger(compiled._root, order, names, compiled.wrt))
    unscored = _bent_expectations(compiled, {row.sample for row in rows})
    bias = max([*map(bias_of, rows), *(order for order, _ in unscored)], key=_ORDERS.index, default="0")
    alone = any(isinstance(n, nd.Sample) and averaging_plate(n) is None for n in order)
    variance = largest([*(row.variance for row in rows), *(["O(1)"] if alone else [])])
    listed = {row.sample for row in rows}
    constant = tuple(n.name for n in order if isinstance(n, nd.Sample) and n.name not in listed)
    pathwise = [n for n in order if isinstance(n, nd.Sample) and n.name in compiled._derivation.pathwise]
    notes = tuple(f"{n.name}: {note}" for n in pathwise for note in _pathwise_notes(n))
    notes += tuple(note for _, note in unscored)
    target = tuple(axis.name for axis in expected_plates(order))
    title = f"gradient of E[{compiled.graph.name}] with respect to {', '.join(compiled.wrt)}"
    title += f"; of {' and '.join(target)} the expectation is meant, not the mean of N draws" if target else ""
    landmarks = frozenset(n.name for n in order if isinstance(n, (nd.Input, nd.Sample, nd.Update)) or n.named)
    return Explanation(
        rows,
        bias == "0",
        bias,
        variance,
        latex(compiled),
        target,
        groups,
        title,
        constant,
        _uncompared(compiled),
        notes,
        landmarks,
        compiled.graph.name,
    )


def _bent_expectations(compiled: Derived, listed: Collection[str]) -> list[tuple[str, str]]:
    """Of expectations over draws that are not scored, the order of the bias, and what is to be known of it."""
    order, found = compiled.graph.order, []
    estimator = compiled._root.estimator if isinstance(compiled._root, Corrected) else None
    for node in order:
        plate = averaging_plate(node) if isinstance(node, nd.Sample) and node.name not in listed else None
        if plate in expected_plates(order) and is_bent(order, plate):
            done = f", {estimator.correction}" if estimator else _LESS_SO.format(plate.name)
            bias = (estimator.bias if estimator else "") or "O(1/sqrt(N))"
            found.append((bias, f"{node.name}: {_BENT}{done}"))
    return found


def _uncompared(compiled: Derived) -> tuple[str, ...]:
    """The samples for which leave-one-out is the score function: nothing nonlinear follows the mean of their plate."""
    compared = {node.sample.name for node in compiled._program if isinstance(node, Replay)}
    controls = {name: estimator.control for name, estimator in compiled.estimators.items()}
    names = [s for s, control in controls.items() if control and control.later_only and s not in compared]
    plates = {n.name for n in compiled.graph.order if isinstance(n, nd.Sample) and averaging_plate(n) is not None}
    return tuple(name for name in names if name in plates)


def _pathwise_notes(node: nd.Sample) -> list[str]:
    """Notes on a pathwise draw, besides its path."""
    if not node.law.is_torchs_own:
        return [_SEEN_LATE]
    return [_ORDER_ONE.format(node.law.name)] if node.law.noise_parents(node.arguments) else []


def words(row: Row) -> str:
    """The row in plain words."""
    if row.kind == "value":
        text = _VALUE[row.counted].format(row.update) if row.update else "differentiated through values"
    elif row.kind == "pathwise" and row.counted == "once":
        text = _PATHWISE
    elif row.counted == "linearized":
        over = " and ".join(row.plates)
        at = f"at the mean over {over}" if over else "in a single draw: biased"
        at += f": biased, less so the larger {over}" if over and not row.correction else ""
        text = _WORDS["linearized"].format(at)
    elif row.part:
        text = _PARTS[row.counted].format(row.weight)
    else:
        text = _WORDS[row.counted].format(row.weight)
    text += f", {row.correction}" if row.correction else ""
    return text + (f" ({_number(row.paths)} paths like this)" if row.paths > 1 else "")


def _number(count: int) -> str:
    """A count; of very many the power of ten."""
    return str(count) if count < _MANY else f"about 10^{len(str(count)) - 1}"


def bias_of(row: Row) -> str:
    """The order of the bias that the row's path adds."""
    if row.bias:
        return row.bias
    if row.counted == "once":
        return "0"
    vanishes = (row.counted == "linearized" and row.plates) or row.weight.startswith("1 + 1/")
    return "O(1/sqrt(N))" if vanishes else "O(1)"
