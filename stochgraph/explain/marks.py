"""The formula of an estimator as MathML, in which the terms that count a path can be pointed at.

A path through a distribution is counted by the boxes of its sample, a pathwise one by its draws, one through values by
the direction of its update.
"""

from collections.abc import Iterable

from .derived import Derived
from .formula import Printer
from .grid import numbered
from .ledger import Row


def mathml(derived: Derived) -> str:
    """The formula of `latex` as MathML; its terms have the classes that `term_of` names.

    Raises:
        ImportError: latex2mathml is not installed.
    """
    try:
        from latex2mathml.converter import convert
    except ImportError as error:
        raise ImportError("a report needs latex2mathml: pip install stochgraph[plot]") from error
    formula = _Marking(derived).print().replace("{aligned}", "{align*}")  # the one of the two that it knows
    return str(convert(formula, display="block"))


def term_of(row: Row, numbers: dict[str, int]) -> str:
    """The class of the terms that count the path of a row; empty if none does. `numbers` are those of `numbered`."""
    if row.counted == "dropped":
        return ""
    if row.kind == "value":
        return f"direction-{numbers[row.update]}" if row.update else ""
    return f"{'draw' if row.kind == 'pathwise' else 'box'}-{numbers[row.sample]}"


class _Marking(Printer):
    def __init__(self, derived: Derived) -> None:
        super().__init__(derived)
        self._numbers = numbered(derived.graph)

    def marked(self, word: str, names: Iterable[str], text: str) -> str:
        classes = " ".join(f"{word}-{self._numbers[name]}" for name in names if name in self._numbers)
        return rf"\class{{{classes}}}{{{text}}}" if classes else text
