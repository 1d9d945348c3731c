"""Estimators of trajectories that expand the likelihood ratio: less variance of second derivatives, or other bias.

All of them coincide with `LSF` on draws without a time axis. On a route without an update on it the first derivative
is that of `LSF`; they differ in second derivatives, which an update brings in.
"""

from ._base import Baseline, Estimator


def LVC() -> Estimator:
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
    return Estimator("lvc", "mean")


def LoadedDiCE(decay: float = 1.0, baseline: Baseline | None = None) -> Estimator:
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
    return Estimator("loaded", "mean", baseline=baseline, decay=decay)


def Taylor() -> Estimator:
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
    return Estimator("taylor", "mean")
