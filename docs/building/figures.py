"""The figures of the site, made by the library: bias and variance of every estimator, by enumeration or measured."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

import stochgraph as sg

ESTIMATORS = {
    "SF": sg.SF(),
    "LOO": sg.LOO(),
    "Enumerate": sg.Enumerate(),
    "MVD": sg.MVD(),
    "LSF": sg.LSF(),
    "Plugin": sg.Plugin(),
    "Jackknife": sg.Jackknife(),
    "LoadedDiCE": sg.LoadedDiCE(0.5),
    "LVC": sg.LVC(),
    "Taylor": sg.Taylor(),
    "MAML": sg.MAML(),
    "EMAML": sg.EMAML(),
    "SGMRLPublished": sg.SGMRLPublished(),
    "FirstOrder": sg.FirstOrder(),
    "PW": sg.PW(),
}
SIZES = (2, 3, 4)
EXACT = 1e-12  # a relative bias below it is rounding
_WALK_THETA = torch.tensor(0.3, dtype=torch.float64)
_NORMAL_THETA = torch.tensor(2.0, dtype=torch.float64)
_REPEATS = 400


class Walk(NamedTuple):
    """Steps left or right, each rewarded with the position it leads to."""

    step: Tensor
    reward: Tensor


class RandomWalk(sg.Sampler):
    """Two steps."""

    time = True

    def draw(self, batch_shape: Any, logit: Any) -> Walk:
        step = torch.bernoulli(torch.sigmoid(logit).unsqueeze(-1).expand(*batch_shape, 2)) * 2 - 1
        return Walk(step, step.cumsum(-1))

    def log_prob(self, walk: Any, logit: Any) -> Tensor:
        return torch.nn.functional.logsigmoid(logit * walk.step)

    def enumerate(self, logit: Any) -> Walk:
        step = torch.cartesian_prod(*[torch.tensor([-1, 1], dtype=logit.dtype)] * 2)
        return Walk(step, step.cumsum(-1))


def adapted_walk(n: int, mean: Callable[..., Any] = sg.mean) -> sg.Graph:
    """The return after one inner step on n walks, or on their expectation: what every estimator but PW is shown on."""

    @sg.graph
    def adapted(logit: Any) -> Any:
        inner = sg.sample("inner", RandomWalk(), logit, n=n)
        moved = sg.ascend(logit, mean(sg.sum(inner.reward)), lr=0.5, name="adapted")
        return sg.mean(sg.sum(sg.sample("outer", RandomWalk(), moved, n=1).reward))

    return adapted


def squared_mean(n: int) -> sg.Graph:
    """The square of the mean of n normal draws: what PW is shown on, beside SF and LSF."""

    @sg.graph
    def squared(theta: Any) -> Any:
        return -(sg.mean(sg.sample("x", Normal, theta, 1.0, n=n)) ** 2)

    return squared


def compiled(name: str, n: int) -> sg.Compiled:
    """The estimator on its example."""
    if name == "PW":
        return squared_mean(n).compile(sg.PW())
    estimator = ESTIMATORS[name]
    graph = adapted_walk(n, sg.expect if estimator.population else sg.mean)
    return graph.compile({"inner": estimator, "outer": sg.SF()})


class Point(NamedTuple):
    """What an estimator reaches with n draws; `bias` is relative, and none where it is zero."""

    n: int
    bias: float | None
    variance: float


@cache
def enumerated(name: str) -> tuple[Point, ...]:
    """Exact, over all outcomes."""
    points = []
    for n in SIZES:
        found = sg.verify(compiled(name, n), _WALK_THETA)
        bias = found.relative_bias if found.relative_bias > EXACT else None
        points.append(Point(n, bias, float(found.total_variance)))
    return tuple(points)


@cache
def measured() -> dict[str, tuple[Point, ...]]:
    """Monte Carlo on normal draws: the variance; the ledger says what is biased, which few estimates cannot."""
    found: dict[str, list[Point]] = {"PW": [], "LSF": [], "SF": []}
    for n in (1, 10, 100):
        graph = squared_mean(n)
        estimators = {name: graph.compile(ESTIMATORS[name]) for name in found}
        generator = torch.Generator().manual_seed(0)
        profile = sg.profile(estimators, _NORMAL_THETA, repeats=_REPEATS, generator=generator)
        for name, points in found.items():
            points.append(Point(n, None, profile[name].variance))
    return {name: tuple(points) for name, points in found.items()}


def bias_and_variance(name: str) -> str:
    """The figure of an estimator as SVG: itself in colour, what it is compared with in grey."""
    figure = Figure(figsize=(7.5, 2.7), layout="constrained")
    if name == "PW":
        _variances(figure.subplots(), measured(), name)
    else:
        shown = {other: enumerated(other) for other in ESTIMATORS if other != "PW"}
        left, right = figure.subplots(1, 2)
        _biases(left, shown, name)
        _variances(right, shown, name)
        for axes in (left, right):
            axes.set_xticks(SIZES, SIZES)
            axes.minorticks_off()
    return svg(figure)


def _biases(axes: Any, shown: dict[str, tuple[Point, ...]], name: str) -> None:
    for other, points in shown.items():
        drawn = [(point.n, point.bias) for point in points if point.bias is not None]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), **_style(other, name))
    axes.set(xlabel="inner draws N", yscale="log", xscale="log")
    exact = all(point.bias is None for point in shown[name])
    axes.set_title("relative bias" + (f": that of {name} is 0" if exact else ""), size=10)


def _variances(axes: Any, shown: dict[str, tuple[Point, ...]], name: str) -> None:
    for other, points in shown.items():
        axes.plot([point.n for point in points], [point.variance for point in points], **_style(other, name))
    axes.set(xlabel="draws N", yscale="log", xscale="log")
    axes.set_title("variance", size=10)
    axes.legend(*_named(axes), frameon=False, fontsize=8)


def _named(axes: Any) -> tuple[list[Any], list[str]]:
    """The lines that the legend names: the estimator's own and the first of the others."""
    lines = axes.get_lines()
    own = [line for line in lines if line.get_zorder() > 2]
    others = [line for line in lines if line.get_zorder() <= 2]
    labels = [line.get_label() for line in others]
    if len(others) > 2:
        return [*own, others[0]], [own[0].get_label(), "the other estimators"]
    return [*own, *others], [own[0].get_label(), *labels]


def _style(other: str, name: str) -> dict[str, Any]:
    if other == name:
        return {"color": "#b3261e", "marker": "o", "linewidth": 2, "zorder": 3, "label": other}
    dashes = {"LSF": "--", "SF": ":"}.get(other, "-") if name == "PW" else "-"
    return {"color": "#b5b5b5", "linewidth": 1, "zorder": 2, "linestyle": dashes, "label": other}


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file, the same at every build."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "stochgraph", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
