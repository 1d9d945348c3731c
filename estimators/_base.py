"""The two-part form that every estimator is made of.

A sample node's distribution carries the gradient along every route from the draw to the objective. An estimator says
how those routes are counted: `curvature` within the updates that the draws feed, `influence` on everything that comes
later. The named estimators of this package are choices of the two; a baseline or a control variate changes how much an
estimate varies, and not how a route is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Curvature = Literal["log", "dice", "lvc", "loaded", "taylor", "stop"]
Influence = Literal["cost", "mean", "none", "scaled", "leave-one-out"]
Baseline = Literal["mean", "loo", "linear"] | Callable[[Any], Any]


@dataclass(frozen=True, repr=False)
class Estimator:
    r"""An estimator of one sample node: curvature of the updates it feeds, times influence on later costs.

    Args:
        curvature: how the direction of an update is differentiated with respect to the update's parameters.

            - `"log"`: at fixed samples, :math:`\frac1N \sum_i R_i \nabla^2 \log p(x_i)`.
            - `"dice"`: with the draws' distribution, which adds
              :math:`\frac1N \sum_i R_i \nabla \log p(x_i) \nabla \log p(x_i)^\top`.
            - `"loaded"`: as `"dice"`, products of scores at two time steps k apart weighted with `decay` to the k.
            - `"lvc"`: as `"loaded"` with `decay=0`: products of scores at one time step only.
            - `"taylor"`: the likelihood ratio of a trajectory expanded to second order in the ratios of its steps.
            - `"stop"`: not at all (first-order).
        influence: what is boxed with the node's log-probabilities.

            - `"cost"`: all costs downstream of the draws, with the sum over the plate.
            - `"mean"`: the terms of the plate's mean, and nothing later. Through an update the mean is inside the
              update, so that this adds nothing there: the curvature counts the route.
            - `"none"`: nothing behind an update. A route without an update on it is boxed as with `"cost"`.
            - `"scaled"`: as `"cost"`, with the plate's mean log-probability in place of its sum.
            - `"leave-one-out"`: as `"cost"`, less what each cost is with the draw left out of the plate's means.
        baseline: what the costs of a draw are compared with (see `SF`); for the influence `"cost"`, and for the
            curvature `"loaded"`, where it makes advantages of the rewards.
        control_variate: with the influence `"mean"`, compare each term of a mean with the mean of the others.
        decay: the factor per time step, between 0 and 1, of the curvature `"loaded"`.

    Raises:
        ValueError: a word that is not in the lists above, or an option that the two words leave nothing to do.

    References:
        Foerster et al. (2018), DiCE, eq. 4, for the box; Tang (2022), eqs. 8 and 11, for the two ways of counting.

    Example:
        >>> import stochgraph as sg
        >>> sg.Estimator("log", "cost") == sg.SF()
        True
    """

    curvature: Curvature
    influence: Influence
    baseline: Baseline | None = None
    control_variate: bool = False
    decay: float = 1.0

    def __post_init__(self) -> None:
        for word, given, allowed in (
            ("curvature", self.curvature, get_args(Curvature)),
            ("influence", self.influence, get_args(Influence)),
        ):
            if given not in allowed:
                raise ValueError(f"{word}={given!r} is not known: choose one of {', '.join(map(repr, allowed))}")
        _check_baseline(self)
        if self.control_variate and self.influence != "mean":
            raise ValueError(f'control_variate=True needs influence="mean", not {self.influence!r}')
        if not 0 <= self.decay <= 1 or (self.decay != 1 and self.curvature != "loaded"):
            raise ValueError(f'decay={self.decay!r}: it is between 0 and 1, and for curvature="loaded" only')

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.name in ("curvature", "influence") or getattr(self, f.name) != f.default]
        return f"Estimator({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"


def _check_baseline(estimator: Estimator) -> None:
    baseline = estimator.baseline
    if baseline is None:
        return
    if not callable(baseline) and baseline not in ("mean", "loo", "linear"):
        raise ValueError(
            f'baseline={baseline!r} is not known: choose "mean", "loo", "linear" or a function of the trace'
        )
    if estimator.influence != "cost" and estimator.curvature != "loaded":
        raise ValueError(
            f"baseline={baseline!r} needs costs to be compared with it: "
            f'influence="cost" or curvature="loaded", not {estimator.curvature!r} and {estimator.influence!r}'
        )


@dataclass(frozen=True)
class Pathwise:
    """Differentiate the draw itself instead of its distribution. Made by `PW`."""
