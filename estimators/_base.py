"""The two-part form that every estimator is made of.

A sample node's distribution carries the gradient along every route from the draw to the objective. An estimator says
how those routes are counted: `curvature` within the updates that the draws feed, `influence` on everything that comes
later. The named estimators of this package are choices of the two.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Curvature = Literal["log", "dice", "stop"]
Influence = Literal["cost", "mean", "none", "scaled"]


@dataclass(frozen=True)
class Estimator:
    r"""An estimator of one sample node: curvature of the updates it feeds, times influence on later costs.

    Args:
        curvature: how the direction of an update is differentiated with respect to the update's parameters.

            - `"log"`: at fixed samples, :math:`\frac1N \sum_i R_i \nabla^2 \log p(x_i)`.
            - `"dice"`: with the draws' distribution, which adds
              :math:`\frac1N \sum_i R_i \nabla \log p(x_i) \nabla \log p(x_i)^\top`.
            - `"stop"`: not at all (first-order).
        influence: what is boxed with the node's log-probabilities.

            - `"cost"`: all costs downstream of the draws, with the sum over the plate.
            - `"mean"`: the terms of the plate's mean, and nothing later. Through an update the mean is inside the
              update, so that this adds nothing there: `"dice"` counts the route.
            - `"none"`: nothing behind an update. A route without an update on it is boxed as with `"cost"`.
            - `"scaled"`: as `"cost"`, with the plate's mean log-probability in place of its sum.

    Raises:
        ValueError: a word that is not in the lists above.

    References:
        Foerster et al. (2018), DiCE, eq. 4, for the box; Tang (2022), eqs. 8 and 11, for the two ways of counting.

    Example:
        >>> import stochgraph as sg
        >>> sg.Estimator("log", "cost") == sg.SF()
        True
    """

    curvature: Curvature
    influence: Influence

    def __post_init__(self) -> None:
        for word, given, allowed in (
            ("curvature", self.curvature, get_args(Curvature)),
            ("influence", self.influence, get_args(Influence)),
        ):
            if given not in allowed:
                raise ValueError(f"{word}={given!r} is not known: choose one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class Pathwise:
    """Differentiate the draw itself instead of its distribution. Made by `PW`."""
