"""The two words that an estimator can be made by."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from .baselines import Baseline, check_baseline
from .expansions import ExpandedTerms
from .leave_one_out import LeaveOneOut
from .linearized import BoxedTerms, Linearized
from .published import Dropped, Scaled
from .score_function import ScoreFunction
from .two_parts import LOG, Curvature, Influence, Stopped, TwoParts

CurvatureWord = Literal["log", "dice", "lvc", "loaded", "taylor", "stop"]
InfluenceWord = Literal["cost", "mean", "none", "scaled", "leave-one-out"]


def Estimator(
    curvature: CurvatureWord,
    influence: InfluenceWord,
    baseline: Baseline | None = None,
    control_variate: bool = False,
    decay: float = 1.0,
) -> TwoParts:
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
    for word, given, allowed in (
        ("curvature", curvature, get_args(CurvatureWord)),
        ("influence", influence, get_args(InfluenceWord)),
    ):
        if given not in allowed:
            raise ValueError(f"{word}={given!r} is not known: choose one of {', '.join(map(repr, allowed))}")
    _check_baseline(baseline, curvature, influence)
    if control_variate and influence != "mean":
        raise ValueError(f'control_variate=True needs influence="mean", not {influence!r}')
    if decay != 1 and curvature != "loaded":
        raise ValueError(f'decay={decay!r}: it is between 0 and 1, and for curvature="loaded" only')
    return TwoParts(
        _curvature(curvature, control_variate, decay, baseline), _influence(influence, control_variate, baseline)
    )


def _curvature(word: CurvatureWord, compared: bool, decay: float, baseline: Baseline | None) -> Curvature:
    made: Mapping[str, Callable[[], Curvature]] = {
        "log": lambda: LOG,
        "stop": Stopped,
        "dice": lambda: BoxedTerms(compared=compared),
        "lvc": lambda: ExpandedTerms("lvc", compared, 0.0),
        "loaded": lambda: ExpandedTerms("loaded", compared, decay, baseline),
        "taylor": lambda: ExpandedTerms("taylor", compared),
    }
    return made[word]()


def _influence(word: InfluenceWord, compared: bool, baseline: Baseline | None) -> Influence:
    if word == "mean":
        return Linearized(baseline, compared)
    others: Mapping[str, type[Influence]] = {
        "cost": ScoreFunction,
        "none": Dropped,
        "scaled": Scaled,
        "leave-one-out": LeaveOneOut,
    }
    return others[word](baseline)


def _check_baseline(baseline: Baseline | None, curvature: str, influence: str) -> None:
    if baseline is None:
        return
    check_baseline(baseline)
    if influence != "cost" and curvature != "loaded":
        raise ValueError(
            f"baseline={baseline!r} needs costs to be compared with it: "
            f'influence="cost" or curvature="loaded", not {curvature!r} and {influence!r}'
        )
