"""Estimators that the meta-learning literature names, with the ways in which they count a path wrongly."""

from typing import ClassVar

from ..derive.estimator import Crossing, GradientEstimator, Where
from ..ir import nodes as nd
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axes
from .linearized import BoxedTerms
from .score_function import ScoreFunction
from .two_parts import LOG, Influence, TwoParts


class Dropped(Influence):
    """Boxes nothing behind an update."""

    word: ClassVar[str] = "none"

    def crosses(self, sample: nd.Sample, node: nd.Node) -> Crossing:
        return Crossing.DROPPED if isinstance(node, nd.Update) else Crossing.ON


class Scaled(Influence):
    """Boxes costs with the mean of the plate's log-ratios in place of their sum."""

    word: ClassVar[str] = "scaled"

    def ratio(self, score: Score, kept: Axes, where: Where) -> Weight:
        return Weight(score, kept, average=where is not Where.OWN)

    def exact(self) -> GradientEstimator:
        return ScoreFunction(self.baseline)


def MAML() -> TwoParts:
    """MAML as first implemented: the distribution path through an update is dropped. Bias O(1).

    References:
        Finn et al. (2017), Algorithm 3 as implemented; the missing term is in Al-Shedivat et al. (2018), eq. 8.

    Example:
        >>> import stochgraph as sg
        >>> sg.MAML()
        Estimator(curvature='log', influence='none')
    """
    return TwoParts(LOG, Dropped())


def EMAML() -> TwoParts:
    """E-MAML as implemented in public code: the path is counted 1/N times. Bias O(1). As derived, it is `SF`.

    References:
        Stadie et al. (2018), eq. 4, where the scores are summed; the implementations average them.

    Example:
        >>> import stochgraph as sg
        >>> sg.EMAML()
        Estimator(curvature='log', influence='scaled')
    """
    return TwoParts(LOG, Scaled())


def SGMRLPublished() -> TwoParts:
    """SG-MRL as printed: the path is counted twice, by the Hessian estimate and by the added score term. Bias O(1).

    References:
        Fallah et al. (2021), eq. 13 with the Hessian estimate of eqs. 8 and 9; (2020), eq. 44 for several steps. The
        estimator that their theorem 1 is about is `SF`.

    Example:
        >>> import stochgraph as sg
        >>> sg.SGMRLPublished()
        Estimator(curvature='dice', influence='cost')
    """
    return TwoParts(BoxedTerms(), ScoreFunction())
