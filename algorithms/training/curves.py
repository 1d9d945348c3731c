"""Learning curves of runs, drawn from their metrics."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import replacing
from .run_folder import RunFolder


def save_learning_curve(folders: Sequence[Path], path: Path, say: Callable[[str], None] = print) -> None:
    """Draw the returns on held-out tasks before and after adaptation; without matplotlib nothing but a word of it.

    Args:
        folders: the folders of the runs.
        path: where the figure goes; its ending names the format.
        say: is told where it is.
    """
    if not importlib.util.find_spec("matplotlib"):
        say("no figure of the learning curve: pip install 'stochgraph[plot]' for it")
        return
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 4.5), layout="constrained")
    plot_learning_curves(picture.add_subplot(), {folder.name: folder for folder in folders})
    save_figure(picture, path)
    say(f"learning curve: {path}")


def save_figure(picture: Any, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with replacing(path) as temporary:
        picture.savefig(temporary, format=path.suffix[1:], dpi=110)


def plot_learning_curves(axes: Any, folders: Mapping[str, Path]) -> None:
    """The curves of some runs, by name, before the adaptation dashed, with two standard errors over tasks."""
    for i, (name, folder) in enumerate(folders.items()):
        records = [record for record in RunFolder(folder).metrics("evaluation") if _is_evaluation(record)]
        steps = len(records[-1]["returns"]) - 1 if records else -1
        for k in sorted({0, steps} - {-1}):
            chosen = [record for record in records if len(record["returns"]) == steps + 1]
            _plot(axes, chosen, k, f"{name}, {when(k)}", color=f"C{i}", linestyle="--" if k < steps else "-")
    axes.set(xlabel="meta-iteration", ylabel="return, held-out tasks")
    axes.legend(frameon=False)


def _plot(axes: Any, records: list[dict[str, Any]], k: int, label: str, **style: Any) -> None:
    x = [record["iteration"] for record in records]
    y, error = ([_number(record[name][k]) for record in records] for name in ("returns", "errors"))
    axes.plot(x, y, label=label, **style)
    low, high = ([a + sign * 2 * b for a, b in zip(y, error, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _is_evaluation(record: dict[str, Any]) -> bool:
    """True for a line that has what an evaluation has, a number of returns and as many errors."""
    returns, errors = record.get("returns"), record.get("errors")
    return isinstance(returns, list) and isinstance(errors, list) and 0 < len(returns) == len(errors)


def _number(value: float | None) -> float:
    """A number that JSON does not have stands there as `None`."""
    return float("nan") if value is None else value


def when(k: int) -> str:
    """After how many steps, in words."""
    return "before" if k == 0 else f"after {k} step{'s' * (k > 1)}"
