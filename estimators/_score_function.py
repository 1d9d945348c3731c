"""The score function: every distribution path counted exactly once."""

from ._base import Estimator


def SF() -> Estimator:
    r"""The score function, debiased through updates: unbiased.

    .. math:: \nabla_\theta E[f] = E\big[\nabla f + f \, \textstyle\sum_i \nabla_\theta \log p(x_i; \theta)\big]

    Every cost is multiplied with the scores of the draws that it depends on, the draws of inner updates included; the
    directions of updates are differentiated at fixed samples. Linear operations are free: behind a mean over a plate
    each term meets its own draw's score only. Where the plate's mean goes through a nonlinear operation or an update,
    the variance grows as :math:`\Theta(N)`.

    References:
        Williams (1992); Tang (2022), eq. 8; Rothfuss et al. (2019), E-MAML as derived.

    Example:
        >>> import stochgraph as sg
        >>> sg.SF()
        Estimator(curvature='log', influence='cost')
    """
    return Estimator("log", "cost")
