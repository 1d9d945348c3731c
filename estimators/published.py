"""Estimators that the meta-learning literature names, with the ways in which they count a path wrongly."""

from typing import ClassVar

from ..derive.estimator import Crossing, GradientEstimator, Where
from ..derive.papers import ICLR, NEURIPS, Paper
from ..ir import nodes as nd
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axes
from .linearized import BoxedTerms
from .score_function import ScoreFunction
from .two_parts import FINN_2017, LOG, Influence, TwoParts

AL_SHEDIVAT_2018 = Paper(
    "alshedivat2018continuous",
    "Maruan Al-Shedivat and Trapit Bansal and Yuri Burda and Ilya Sutskever and Igor Mordatch and Pieter Abbeel",
    "Continuous adaptation via meta-learning in nonstationary and competitive environments",
    ICLR,
    2018,
)
STADIE_2018 = Paper(
    "stadie2018importance",
    "Bradly C. Stadie and Ge Yang and Rein Houthooft and Xi Chen and Yan Duan and Yuhuai Wu and Pieter Abbeel and "
    "Ilya Sutskever",
    "The importance of sampling in meta-reinforcement learning",
    NEURIPS,
    2018,
)
FALLAH_2021 = Paper(
    "fallah2021convergence",
    "Alireza Fallah and Kristian Georgiev and Aryan Mokhtari and Asuman Ozdaglar",
    "On the convergence theory of debiased model-agnostic meta-reinforcement learning",
    NEURIPS,
    2021,
)


class Dropped(Influence):
    """Boxes nothing behind an update."""

    word: ClassVar[str] = "none"

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (FINN_2017, AL_SHEDIVAT_2018, *super().papers)

    def crosses(self, sample: nd.Sample, node: nd.Node) -> Crossing:
        return Crossing.DROPPED if isinstance(node, nd.Update) else Crossing.ON


class Scaled(Influence):
    """Boxes costs with the mean of the plate's log-ratios in place of their sum."""

    word: ClassVar[str] = "scaled"

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (STADIE_2018, *super().papers)

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
    return TwoParts(BoxedTerms(), ScoreFunction(), (FALLAH_2021,))
