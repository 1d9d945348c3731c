"""The score function: every distribution path counted exactly once."""

from typing import ClassVar

from ..derive.estimator import GradientEstimator
from ..derive.papers import Paper
from .baselines import Baseline
from .two_parts import LOG, Influence, TwoParts

WILLIAMS_1992 = Paper(
    "williams1992simple",
    "Ronald J. Williams",
    "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    "Machine Learning",
    1992,
    in_journal=True,
)


class ScoreFunction(Influence):
    """Boxes all costs downstream of the draws, with the sum of their log-ratios: the compiler's default everywhere."""

    word: ClassVar[str] = "cost"

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (WILLIAMS_1992, *super().papers)

    def exact(self) -> GradientEstimator:
        return self


def SF(baseline: Baseline | None = None) -> TwoParts:
    r"""The score function, debiased through updates: unbiased.

    .. math:: \nabla_\theta E[f] = E\big[\nabla f + (f - b) \, \textstyle\sum_i \nabla_\theta \log p(x_i; \theta)\big]

    Every cost is multiplied with the scores of the draws that it depends on, the draws of inner updates included; the
    directions of updates are differentiated at fixed samples. Linear operations are free: behind a mean over a plate
    each term meets its own draw's score only. Where the plate's mean goes through a nonlinear operation or an update,
    the variance grows as :math:`\Theta(N)`.

    Args:
        baseline: what the costs of a draw are compared with. It never depends on the draw that it is for, so the
            estimate stays unbiased, and its zero-mean term is boxed with the draw's strict ancestors only, so second
            derivatives stay right.

            - `"loo"`: the mean cost of the other draws of the innermost plate.
            - `"mean"`: the mean cost of all other draws, over every plate on which the draws have costs of their own.
            - `"linear"`: for trajectories with a field `observation`: returns-to-go predicted at each step from
              features of the observation and the time, by least squares on the other trajectories of the plate.
            - a function of the trace: one number, or a tensor with one number for each draw (and time step) that has a
              cost of its own. It is handed a trace of what was drawn before the cost; its `value` is not known yet
              (NaN). It must not use the draw that a number is for; at a time step it may use all that was drawn before
              that step's own action.

            The first three compare the terms that the draw reaches: what else is added to them, a constant or the cost
            of other draws, changes no variance. A function predicts the cost as declared, the whole sum in which those
            terms stand, and is subtracted from it once a draw: with `pay + bonus[k]` it predicts both, as if one
            `apply` computed them. Behind `sg.sum(discount=g)` it predicts costs as they are seen from their own step:
            what it returns for step t is multiplied with :math:`g^t` by the sum, as the cost is.

    References:
        Williams (1992); Tang (2022), eq. 8; Rothfuss et al. (2019), E-MAML as derived. Baselines: Mao et al. (2019),
        eq. 7, and Liu et al. (2019), TMAML, eq. 12, for any order of derivatives; Duan et al. (2016) for the features.

    Example:
        >>> import stochgraph as sg
        >>> sg.SF()
        Estimator(curvature='log', influence='cost')
        >>> sg.SF(baseline="loo")
        Estimator(curvature='log', influence='cost', baseline='loo')
    """
    return TwoParts(LOG, ScoreFunction(baseline))
