"""Estimators of trajectories that expand the likelihood ratio: less variance of second derivatives, or other bias.

All of them coincide with `LSF` on draws without a time axis. On a route without an update on it the first derivative
is that of `LSF`; they differ in second derivatives, which an update brings in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..derive.estimator import Control, Where
from ..derive.papers import ICLR, NEURIPS, Paper
from ..surrogate.expansions import Curvature as Expanded
from ..surrogate.expansions import Expansion
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axes
from .baselines import Baseline, baseline_control, check_baseline
from .linearized import BoxedTerms, Linearized
from .two_parts import TwoParts

ROTHFUSS_2019 = Paper(
    "rothfuss2019promp",
    "Jonas Rothfuss and Dennis Lee and Ignasi Clavera and Tamim Asfour and Pieter Abbeel",
    "{ProMP}: Proximal meta-policy search",
    ICLR,
    2019,
)
FARQUHAR_2019 = Paper(
    "farquhar2019loaded",
    "Gregory Farquhar and Shimon Whiteson and Jakob Foerster",
    "Loaded {DiCE}: Trading off bias and variance in any-order score function gradient estimators for "
    "reinforcement learning",
    NEURIPS,
    2019,
)
TANG_2021 = Paper(
    "tang2021unifying",
    "Yunhao Tang and Tadashi Kozuno and Mark Rowland and Rémi Munos and Michal Valko",
    "Unifying gradient estimators for meta-reinforcement learning via off-policy evaluation",
    NEURIPS,
    2021,
)
_OF = {"lvc": ROTHFUSS_2019, "loaded": FARQUHAR_2019, "taylor": TANG_2021}


@dataclass(frozen=True)
class ExpandedTerms(BoxedTerms):
    """Boxes the terms of an update's objective with an expansion of the likelihood ratio, where there is time."""

    decay: float = 1.0
    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        if self.baseline is not None:
            check_baseline(self.baseline)
        if not 0 <= self.decay <= 1:
            raise ValueError(f'decay={self.decay!r}: it is between 0 and 1, and for curvature="loaded" only')

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (_OF[self.word],)

    @property
    def control(self) -> Control | None:
        return None if self.baseline is None else baseline_control(self.baseline)

    def ratio(self, score: Score, kept: Axes, where: Where) -> Weight | None:
        expanded = Expanded(self.word, self.decay)
        return Expansion(score, kept, expanded, where is Where.OWN) if score.sample.time else None

    def options(self) -> Mapping[str, Any]:
        shown = {"decay": self.decay} if self.word == "loaded" and self.decay != 1 else {}
        return shown | ({} if self.baseline is None else {"baseline": self.baseline})


def LVC() -> TwoParts:
    r"""The low-variance curvature: each reward is boxed with single time steps. Bias O(1).

    .. math:: \sum_u r_u \Big(1 + \sum_{t \le u} \big(\square(\log p_t) - 1\big)\Big)

    Products of scores at two different time steps are dropped from the derivative of an update.

    References:
        Rothfuss et al. (2019), ProMP, eq. 7.

    Example:
        >>> import stochgraph as sg
        >>> sg.LVC()
        Estimator(curvature='lvc', influence='mean')
    """
    return TwoParts(ExpandedTerms("lvc", decay=0.0), Linearized())


def LoadedDiCE(decay: float = 1.0, baseline: Baseline | None = None) -> TwoParts:
    r"""Loaded DiCE: trades bias for variance with a decay, and rewards for advantages with a baseline.

    .. math:: \sum_t \big(\square(w_t) - \square(w_t - \log p_t)\big) (R_t - b_t), \qquad
              w_t = \lambda w_{t-1} + \log p_t, \quad R_t = \textstyle\sum_{u \ge t} r_u

    With :math:`\lambda = 1` every derivative of a plain mean has the expectation that DiCE gives it, and the bias
    through an update is of the order of `LSF`'s; with :math:`\lambda = 0` it is `LVC`; between them products of scores
    k steps apart count :math:`\lambda^k` times: bias O(1). In an update the baseline changes the derivative of the
    direction, never the direction.

    Args:
        decay: :math:`\lambda`, between 0 and 1.
        baseline: as in `SF`. One of a time step's own, `"linear"` or a function of the trace, makes advantages.

    References:
        Farquhar et al. (2019), eq. 12 and Algorithm 1; Liu et al. (2019), TMAML, for the per-step baseline.

    Example:
        >>> import stochgraph as sg
        >>> sg.LoadedDiCE(decay=0.9)
        Estimator(curvature='loaded', influence='mean', decay=0.9)
    """
    return TwoParts(ExpandedTerms("loaded", decay=decay, baseline=baseline), Linearized(baseline))


def Taylor() -> TwoParts:
    r"""The likelihood ratio of a trajectory expanded to second order in the ratios of its steps.

    .. math:: \sum_u r_u \Big(1 + \sum_{t \le u} \rho_t + \sum_{s < t \le u} \rho_s \rho_t\Big), \qquad
              \rho_t = \square(\log p_t) - 1

    First and second derivatives are those of DiCE, so that through one update the bias is that of `LSF`; third
    derivatives lack products of three time steps. At other parameters than the trace's it is no likelihood ratio but
    its expansion, of less variance.

    References:
        Tang et al. (2021), Unifying gradient estimators for meta-reinforcement learning via off-policy evaluation,
        section 4; Tang et al. (2020), Taylor expansion policy optimization, for the expansion.

    Example:
        >>> import stochgraph as sg
        >>> sg.Taylor()
        Estimator(curvature='taylor', influence='mean')
    """
    return TwoParts(ExpandedTerms("taylor"), Linearized())
