"""The ledger's words for the samples of a surrogate, and for its boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..derive.estimator import GradientEstimator
from ..explain.explanation import words
from ..explain.ledger import Row


class Counting:
    """The counts of the paths of every sample."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [replace(row, paths=1) for row in rows]

    def chosen(self, estimators: Mapping[str, GradientEstimator]) -> list[str]:
        """Every sample with its estimator, and the words for its paths below."""
        lines = []
        for name, estimator in estimators.items():
            found = dict.fromkeys(words(row) for row in self.rows if row.sample == name)
            lines += [f"{name} by {estimator!r}", *(f"    {how}" for how in found)]
        return lines

    def of_box(self, names: Sequence[str], place: str) -> str:
        """The words for the paths of some samples that go through the place where they are boxed."""
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self._through(name, place), []).append(name)
        return "; ".join(f"{', '.join(group)}: {counted}" for counted, group in found.items())

    def _through(self, name: str, place: str) -> str:
        rows = [row for row in self.rows if row.sample == name and row.counted != "dropped"]
        through = [row for row in rows if place in row.path] or rows
        found = dict.fromkeys(words(row).split(": ")[0] for row in through)
        return ", or ".join(found) or "weighted; no path of a differentiated input goes through it"
