"""The linearised score function: the objective linearised in the plate's mean."""

from ._base import Estimator


def LSF(control_variate: bool = False) -> Estimator:
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
    return Estimator("dice", "mean", control_variate=control_variate)
