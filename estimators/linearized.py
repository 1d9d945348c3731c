"""The linearised score function: the objective linearised in the plate's mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..derive.estimator import Control, Crossing, Site
from ..derive.papers import ICML, Paper
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.paths import averaging_plate
from ..surrogate.expansions import ExpandedBox, OtherScores
from ..tensors.axes import describe
from .baselines import others, shared_plates
from .two_parts import Curvature, Influence, TwoParts

TANG_2022 = Paper(
    "tang2022biased",
    "Yunhao Tang",
    "Biased gradient estimate with drastic variance reduction for meta reinforcement learning",
    ICML,
    2022,
)


@dataclass(frozen=True)
class Linearized(Influence):
    """Boxes the terms of the plate's mean, and nothing later."""

    word: ClassVar[str] = "mean"
    expands: ClassVar[bool] = True

    control_variate: bool = False

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (TANG_2022, *super().papers)

    @property
    def control(self) -> Control | None:
        return TermsOfTheMean() if self.control_variate else super().control

    def crosses(self, sample: nd.Sample, node: nd.Node) -> Crossing:
        if isinstance(node, nd.Update):
            return Crossing.DROPPED
        plate = averaging_plate(sample)
        if not isinstance(node, (nd.Reduction, nd.Reduce)) or plate not in node.over:
            return Crossing.ON
        if isinstance(node, nd.Reduce):
            raise CompileError(
                f"sample {sample.name!r} reaches {node.name!r} (axes reduced: {describe(node.over)}), which is not a "
                "mean: an estimator that linearises at the plate's mean has no mean to linearise at; use SF for this "
                "node"
            )
        return Crossing.BELOW

    def options(self) -> Mapping[str, Any]:
        return {**super().options(), **({"control_variate": True} if self.control_variate else {})}


class TermsOfTheMean(Control):
    """Compares each term of a plate's mean with the mean of the others; a draw without a plate is in no mean."""

    def node(self, site: Site) -> nd.Node | None:
        plates = shared_plates(site)
        return others(site, plates[-1:]) if plates else None


@dataclass(frozen=True)
class BoxedTerms(Curvature):
    """The terms of an update's objective are boxed: its direction is differentiated with the draws' distribution.

    With `compared` each of them is compared with the others of its plate.
    """

    word: str = "dice"
    boxes: ClassVar[bool] = True
    compared: bool = False

    def factor(self, site: Site) -> nd.Node:
        plate = averaging_plate(site.sample)
        if not self.compared or plate is None or plate not in site.kept:
            return site.term
        ratio = site.ratio_at_parameters()
        return ExpandedBox(site.term, site.once(("others", ratio), lambda: OtherScores(ratio, plate)), ())


def LSF(control_variate: bool = False) -> TwoParts:
    r"""The linearised score function: the box pushed down to the mean of the plate.

    .. math:: f\Big(\frac1N \sum_i \phi_i\Big) \;\to\; f\Big(\frac1N \sum_i \phi_i \, \square(\log p(x_i))\Big)

    Bias :math:`O(1/\sqrt N)` at worst (:math:`O(1/N)` is what enumeration shows), variance :math:`O(1/N)`. On a plate
    that reaches the objective through linear operations only it coincides with `SF`.

    Args:
        control_variate: compare each term of the mean with the mean of the others, :math:`\phi_i - \bar\phi_{-i}` in
            place of :math:`\phi_i` in front of the score. In an update the terms are vectors, the contributions to its
            direction. This is the first-order expansion of `LOO`.

    References:
        Tang (2022), eq. 11; through one update it is DiCE-MAML, Foerster et al. (2018).

    Example:
        >>> import stochgraph as sg
        >>> sg.LSF()
        Estimator(curvature='dice', influence='mean')
    """
    return TwoParts(BoxedTerms(compared=control_variate), Linearized(control_variate=control_variate))
