"""The figures of the site, made by the library: bias and variance of every estimator, by enumeration or measured."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Bernoulli, Normal

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
    "DisARM": sg.DisARM(),
    "REBAR": sg.REBAR(temperature=1.0),
    "RELAX": sg.RELAX(lambda z: z.sigmoid().sum(), temperature=1.0, scale=0.5),
    "Relaxed": sg.Relaxed(temperature=1.0),
}
OF_COINS = ("DisARM", "REBAR", "RELAX", "Relaxed")  # those that are for coins
COINS = ("SF", "LOO", "Enumerate", "MVD", "LSF", *OF_COINS)  # those that are compared on coins
SIZES = (2, 3, 4)
EXACT = 1e-12  # a relative bias below it is rounding
_THETA = torch.tensor(0.3, dtype=torch.float64)
_NORMAL_THETA = torch.tensor(2.0, dtype=torch.float64)
_REPEATS = 400
_NODES = {"REBAR": 5, "RELAX": 5, "Relaxed": 8}  # of their noise: with as many, their variances are right to 1e-4
_MOST_WITH_NODES = 3  # draws
_OWN, _OTHERS = "#b3261e", "#6b6b6b"
_APART = 0.075  # of the height of the axes, between two names


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


def tossed(n: int) -> sg.Graph:
    """The exponential of the mean of n coins: what estimators of coins are shown on."""

    @sg.graph
    def exponential(logit: Any) -> Any:
        return torch.exp(sg.mean(sg.sample("x", Bernoulli, logits=logit, n=n)))

    return exponential


def compiled(name: str, n: int) -> sg.Compiled:
    """The estimator on its example."""
    if name == "PW":
        return squared_mean(n).compile(sg.PW())
    return of_coins(name, n) if name in OF_COINS else of_walks(name, n)


def of_walks(name: str, n: int) -> sg.Compiled:
    """An estimator of the inner walks."""
    estimator = ESTIMATORS[name]
    graph = adapted_walk(n, sg.expect if estimator.population else sg.mean)
    return graph.compile({"inner": estimator, "outer": sg.SF()})


def of_coins(name: str, n: int) -> sg.Compiled:
    """An estimator of coins."""
    return tossed(n).compile(ESTIMATORS[name])


class Point(NamedTuple):
    """What an estimator reaches with n draws; `bias` is relative, and none where it is zero."""

    n: int
    bias: float | None
    variance: float


@cache
def enumerated(name: str, example: Callable[[str, int], sg.Compiled]) -> tuple[Point, ...]:
    """Exact, over all outcomes of an example."""
    points = []
    for n in SIZES if name not in _NODES else range(SIZES[0], _MOST_WITH_NODES + 1):
        found = sg.verify(example(name, n), _THETA, quadrature=_NODES.get(name))
        zero = found.relative_bias < EXACT or (found.quadrature and found.relative_bias < found.quadrature.change)
        bias = None if zero else found.relative_bias
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
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    if name == "PW":
        _draw(figure.subplots(), measured(), name, "variance")
    else:
        coins = name in OF_COINS
        others = COINS if coins else [other for other in ESTIMATORS if other not in ("PW", *OF_COINS)]
        shown = {other: enumerated(other, of_coins if coins else of_walks) for other in others}
        left, right = figure.subplots(1, 2)
        _draw(left, shown, name, "bias")
        _draw(right, shown, name, "variance")
        exact = all(point.bias is None for point in shown[name])
        left.set_title("relative bias" + (f": that of {name} is 0" if exact else ""), size=10)
        for axes in (left, right):
            axes.set_xticks(SIZES, SIZES)
            axes.xaxis.minorticks_off()
    return svg(figure)


def _draw(axes: Any, shown: dict[str, tuple[Point, ...]], name: str, what: str) -> None:
    """The bias or the variance against the number of draws; a bias of zero has no line."""
    ends: dict[str, float] = {}
    for other, points in shown.items():
        drawn = [(point.n, getattr(point, what)) for point in points if getattr(point, what) is not None]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), **_style(other == name))
            ends[other] = drawn[-1][1]
    axes.set(xlabel="draws N", yscale="log", xscale="log")
    axes.set_title(what, size=10)
    _name_ends(axes, ends, name)


def _name_ends(axes: Any, ends: dict[str, float], name: str) -> None:
    """Names to the right of the lines' ends, each above the last."""
    height = axes.transAxes.inverted()
    lowest = -_APART
    for other in sorted(ends, key=lambda other: ends[other]):
        _, at = height.transform(axes.transData.transform((1.0, ends[other])))
        lowest = max(at, lowest + _APART)
        style = {"color": _OWN, "weight": "bold"} if other == name else {"color": _OTHERS}
        axes.text(1.02, lowest, other, size=8, va="center", transform=axes.transAxes, **style)


def _style(own: bool) -> dict[str, Any]:
    if own:
        return {"color": _OWN, "marker": "o", "linewidth": 2, "zorder": 3}
    return {"color": "#b5b5b5", "linewidth": 1, "zorder": 2}


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file, the same at every build."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "stochgraph", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
