"""The picture of a profile: what each estimator reaches in a given time, and the bias and the variance that say why.

Nothing is drawn that is below its own error: a curve stops where the bias is no longer known well enough to say on, and
a bias that cannot be told from none is shown as the largest that it may be.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..explain.picture import Picture

ERRORS = 2.0  # standard errors on either side of what is drawn, and that a bias is away from none
_LEAST_SPREAD = 20  # largest over smallest, from which on an axis is logarithmic
_PALE = "#7d7d7d"


class Measured(Protocol):
    """The figures of one estimator that are drawn; see `stochgraph.Figures`."""

    @property
    def bias(self) -> float: ...
    @property
    def bias_error(self) -> float: ...
    @property
    def variance(self) -> float: ...
    @property
    def variance_error(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def unbiased(self) -> bool: ...
    @property
    def squared_bias(self) -> float: ...
    @property
    def mse_per_second_error(self) -> float: ...


def picture_of(figures: Mapping[str, Measured]) -> "Picture":
    """Three panels: the mean squared error against time, the bias, the variance."""
    from ..explain.picture import Picture

    figure = Picture(figsize=(12, 3.6), layout="constrained")
    curves, biases, variances = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    colors = {name: f"C{i}" for i, name in enumerate(figures)}
    _draw_curves(curves, figures, colors)
    _draw_biases(biases, figures, colors)
    _draw_variances(variances, figures, colors)
    return figure


def times(figures: Mapping[str, Measured]) -> np.ndarray:
    """Seconds, from one estimate of the fastest on, to ten seconds or a thousand estimates of the slowest."""
    seconds = [each.seconds for each in figures.values()]
    return np.geomspace(min(seconds), max(10.0, 1000 * max(seconds)), 200)


def mse_at(measured: Measured, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean squared error of the mean of as many estimates as a time allows, at least one, and its standard error.

    NaN where there is time for less than one estimate, and where the error is as large as the figure.
    """
    share = measured.seconds / seconds
    value = measured.squared_bias + measured.variance * share
    error = np.hypot(measured.mse_per_second_error, measured.variance_error * share)
    known = (share <= 1) & (ERRORS * error < value)
    return np.where(known, value, np.nan), np.where(known, error, np.nan)


def _draw_curves(axes: "Axes", figures: Mapping[str, Measured], colors: Mapping[str, str]) -> None:
    seconds, lowest = times(figures), list[float]()
    axes.set_title("mean squared error of the mean of all estimates", size=11)
    for name, measured in figures.items():
        value, error = mse_at(measured, seconds)
        if np.isnan(value).all():
            axes.plot([], [], color=colors[name], label=f"{name}: not known")
            continue
        lowest.append(float(np.nanmin(value)))
        axes.plot(seconds, value, color=colors[name], label=name)
        axes.fill_between(seconds, value - ERRORS * error, value + ERRORS * error, color=colors[name], alpha=0.2, lw=0)
    if lowest:
        axes.set(xscale="log", yscale="log", xlabel="seconds", ylim=(min(lowest) / 3, None))
        axes.legend(frameon=False)
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not known", ha="center", color=_PALE, transform=axes.transAxes)


def _draw_biases(axes: "Axes", figures: Mapping[str, Measured], colors: Mapping[str, str]) -> None:
    shown: list[float] = []
    for i, (name, measured) in enumerate(figures.items()):
        if measured.unbiased:
            _say(axes, i, "0\n(ledger)")
        elif math.isnan(measured.bias):
            _say(axes, i, "not\nknown")
        elif measured.bias > ERRORS * measured.bias_error:
            error = ERRORS * measured.bias_error
            axes.errorbar(i, measured.bias, yerr=error, color=colors[name], marker="o", capsize=4)
            shown.append(measured.bias)
        else:
            most = measured.bias + ERRORS * measured.bias_error
            axes.plot(i, most, color=colors[name], marker="v", linestyle="none", fillstyle="none")
            axes.annotate("at most", (i, most), (0, 6), textcoords="offset points", ha="center", size=8, color=_PALE)
            shown.append(most)
    _finish(axes, "bias", figures, shown)
    if not shown:
        axes.set_yticks([])


def _draw_variances(axes: "Axes", figures: Mapping[str, Measured], colors: Mapping[str, str]) -> None:
    for i, (name, measured) in enumerate(figures.items()):
        error = ERRORS * measured.variance_error
        axes.errorbar(i, measured.variance, yerr=error, color=colors[name], marker="o", capsize=4)
    _finish(axes, "variance", figures, [each.variance for each in figures.values()])


def _say(axes: "Axes", place: int, words: str) -> None:
    at = axes.get_xaxis_transform()
    axes.text(place, 0.04, words, ha="center", va="bottom", size=8, color=_PALE, transform=at)


def _finish(axes: "Axes", title: str, figures: Mapping[str, Measured], shown: list[float]) -> None:
    """Names below, and a logarithmic axis where the smaller ones would vanish."""
    names = list(figures)
    tilt: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(names) * max(map(len, names)) > 20 else {}
    axes.set_xticks(range(len(names)), names, **tilt)
    axes.set_title(title, size=11)
    axes.set(xlim=(-0.6, len(names) - 0.4))
    highest = axes.get_ylim()[1]
    if shown and 0 < min(shown) < highest / _LEAST_SPREAD:
        axes.set_yscale("log")
    elif shown:
        axes.set_ylim(0, 1.1 * highest)
