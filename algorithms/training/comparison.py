"""Runs beside each other: what each reached, over its seeds, with intervals; one table and one figure.

Runs that differ in nothing but their seed are one group. Three figures of a run are compared, each of the return on
held-out tasks after adaptation: the last one, the best one, and the mean over the iterations of training (the area
under the learning curve, over its length).
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .configuration import Configuration, ConfigurationError
from .curves import save_figure, when
from .run_folder import RunFolder

FIGURES = ("final", "best", "area")
_PLACE = ("output", "seed", "threads", "device", "chunk", "lowering", "checkpoint_every", "checkpoints_kept")
_RESAMPLES = 2000


class Curve(NamedTuple):
    """The learning curve of one run: iterations, and the returns on held-out tasks after adaptation at each."""

    seed: int
    iterations: np.ndarray
    returns: np.ndarray

    def figures(self) -> dict[str, float]:
        """The returns of the run: at the end, at its best, and on average over training."""
        span = self.iterations[-1] - self.iterations[0]
        area = np.trapezoid(self.returns, self.iterations) / span if span else self.returns[-1]
        return {"final": float(self.returns[-1]), "best": float(self.returns.max()), "area": float(area)}


class Interval(NamedTuple):
    """A figure over seeds, with a 95 % interval; `None` where there are too few seeds for one."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        name: the folder that they are in, or their own if there is one.
        configuration: that of the first of them.
        curves: a learning curve for each.
    """

    name: str
    configuration: Configuration
    curves: tuple[Curve, ...]

    def figure(self, name: str) -> np.ndarray:
        """One figure of every run, shape `(seeds,)`."""
        return np.array([curve.figures()[name] for curve in self.curves])

    def mean(self, name: str) -> Interval:
        """The mean over seeds."""
        return _interval(self.figure(name), np.mean)

    def interquartile_mean(self, name: str) -> Interval:
        """The mean of the middle half of the seeds."""
        return _interval(self.figure(name), _middle_mean)

    def common(self) -> tuple[np.ndarray, np.ndarray]:
        """The iterations at which all runs were evaluated, `(evaluations,)`; the returns, `(seeds, evaluations)`."""
        shared = set.intersection(*(set(curve.iterations.tolist()) for curve in self.curves))
        chosen = [[i for i, n in enumerate(curve.iterations.tolist()) if n in shared] for curve in self.curves]
        returns = [curve.returns[places] for curve, places in zip(self.curves, chosen, strict=True)]
        return np.array(sorted(shared)), np.array(returns)


def _middle_mean(values: np.ndarray, axis: int = -1) -> Any:
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


def _interval(values: np.ndarray, statistic: Any) -> Interval:
    """The statistic, with the percentiles of a bootstrap over seeds."""
    from scipy.stats import bootstrap

    value = float(statistic(values, axis=-1))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(value, None, None)
    found = bootstrap((values,), statistic, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return Interval(value, float(low), float(high))


class Comparison:
    """Groups of runs, printed as a table. Made by `compare`.

    Attributes:
        groups: the groups, in the order in which they were given.
        steps: after how many adaptation steps; `None`: all that were evaluated.
    """

    def __init__(self, groups: Sequence[Group], steps: int | None = None) -> None:
        self.groups = tuple(groups)
        self.steps = steps

    def rows(self) -> list[dict[str, Any]]:
        """A row a group: its name, how many seeds and iterations, and every figure with its intervals."""
        found = []
        for group in self.groups:
            figures = {name: {"mean": group.mean(name), "iqm": group.interquartile_mean(name)} for name in FIGURES}
            last = min(int(curve.iterations[-1]) for curve in group.curves)
            found.append({"name": group.name, "seeds": len(group.curves), "iterations": last, **figures})
        return found

    def to_json(self) -> str:
        """The rows as JSON; intervals are `[value, low, high]`."""
        return json.dumps(self.rows(), indent=2)

    def to_markdown(self) -> str:
        """The rows as a table."""
        heads = ["run", "seeds", "iterations"]
        heads += [f"{name}, {kind}" for name in FIGURES for kind in ("mean", "interquartile mean")]
        lines = [heads, ["---"] * len(heads)]
        for row in self.rows():
            cells = [str(row[name][kind]) for name in FIGURES for kind in ("mean", "iqm")]
            lines.append([row["name"], str(row["seeds"]), str(row["iterations"]), *cells])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    __str__ = to_markdown
    _repr_markdown_ = to_markdown

    def plot(self, axes: Any) -> None:
        """Learning curves: the mean over seeds, and a band from the lowest seed to the highest."""
        for i, group in enumerate(self.groups):
            iterations, returns = group.common()
            count = len(group.curves)
            label = f"{group.name}, {count} seed{'s' * (count > 1)}"
            axes.plot(iterations, returns.mean(0), color=f"C{i}", label=label)
            if count > 1:
                axes.fill_between(iterations, returns.min(0), returns.max(0), color=f"C{i}", alpha=0.15, linewidth=0)
        adapted = (
            "adapted"
            if self.steps is None
            else f"{when(self.steps)} of adaptation"
            if self.steps
            else "before adaptation"
        )
        axes.set(xlabel="meta-iteration", ylabel=f"return, held-out tasks, {adapted}")
        axes.legend(frameon=False, fontsize="small")

    def save(self, path: Path) -> None:
        """Write the learning curves to a file, whose ending names the format.

        Raises:
            ConfigurationError: matplotlib is not installed, or does not know the ending.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigurationError(f"{path}: a figure needs matplotlib: pip install 'stochgraph[plot]'") from error
        picture = Figure(figsize=(7, 4.5), layout="constrained")
        known = picture.canvas.get_supported_filetypes()
        if path.suffix[1:].lower() not in known:
            raise ConfigurationError(f"{path}: the ending names the format, one of {', '.join(sorted(known))}")
        self.plot(picture.add_subplot())
        save_figure(picture, path)


def compare(folders: Iterable[str | Path], steps: int | None = None) -> Comparison:
    """Put runs beside each other.

    Args:
        folders: folders of runs, or folders that hold some (`OUTPUT/seed-0`, ...).
        steps: after how many adaptation steps returns are compared; default: all that were evaluated.

    Raises:
        ConfigurationError: a folder holds no run, or a run no evaluation after so many steps.

    References:
        Agarwal et al. (2021), Deep reinforcement learning at the edge of the statistical precipice, section 4, for the
        interquartile mean and its bootstrap.

    Example:
        >>> import tempfile
        >>> from stochgraph.algorithms.training import Configuration, compare, train
        >>> small = Configuration(horizon=3, tasks=2, inner=2, outer=2, hidden=(4,), evaluation_tasks=2, iterations=2)
        >>> place = tempfile.mkdtemp()
        >>> for seed in (0, 1):
        ...     outcome = train(small.replace(seed=seed, output=f"{place}/seed-{seed}"), reporters=[])
        >>> [group.figure("final").shape for group in compare([place]).groups]
        [(2,)]
    """
    groups: dict[tuple[str, str], list[tuple[str, Configuration, Curve]]] = {}
    for folder in folders:
        place = Path(folder)
        for run in runs_in(place):
            configuration = Configuration.load(run.configuration_path)
            key = (str(place if run.path != place else place.parent), _apart_from_seed(configuration))
            name = place.name if run.path != place else run.path.name
            groups.setdefault(key, []).append((name, configuration, _curve(run, configuration.seed, steps)))
    found = [Group(runs[0][0], runs[0][1], tuple(curve for _, _, curve in runs)) for runs in groups.values()]
    return Comparison(_named_apart(found), steps)


def runs_in(place: Path) -> list[RunFolder]:
    """The run in a folder, or the runs in its sub-folders, in the order of their names (`seed-2` before `seed-10`)."""
    if (place / "run.json").is_file():
        return [RunFolder(place)]
    inner = sorted((path.parent for path in place.glob("*/run.json")), key=lambda path: (len(path.name), path.name))
    if not inner:
        raise ConfigurationError(f"{place} holds no run: give the output folder of one, or a folder with several in it")
    return [RunFolder(path) for path in inner]


def _apart_from_seed(configuration: Configuration) -> str:
    fields = dataclasses.asdict(configuration)
    return json.dumps({name: value for name, value in fields.items() if name not in _PLACE}, sort_keys=True)


def _named_apart(groups: Sequence[Group]) -> list[Group]:
    """Groups of one name, told apart by what differs in their configurations."""
    found = []
    for group in groups:
        twins = [other.configuration for other in groups if other.name == group.name and other is not group]
        fields = {name: value for name, value in dataclasses.asdict(group.configuration).items() if name not in _PLACE}
        own = [f"{name}={value}" for name, value in fields.items() if any(getattr(t, name) != value for t in twins)]
        found.append(dataclasses.replace(group, name=f"{group.name} ({', '.join(own)})") if own else group)
    return found


def _curve(run: RunFolder, seed: int, steps: int | None) -> Curve:
    records = run.metrics("evaluation")
    chosen = [record for record in records if steps is None or steps < len(record["returns"])]
    if not chosen:
        after = "" if steps is None else f" after {steps} adaptation steps"
        raise ConfigurationError(f"{run.path} has no evaluation{after} yet: train it further, or leave it out")
    place = -1 if steps is None else steps
    returns = np.array([record["returns"][place] for record in chosen], dtype=float)
    iterations = np.array([record["iteration"] for record in chosen])
    if not np.isfinite(returns).all():
        broken = iterations[~np.isfinite(returns)][0]
        raise ConfigurationError(f"{run.path} has a return at iteration {broken} that is not finite: leave it out")
    return Curve(seed, iterations, returns)
