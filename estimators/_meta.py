"""Estimators that the meta-learning literature names, with the ways in which they count a path wrongly."""

from ._base import Estimator, Influence


def MAML() -> Estimator:
    """MAML as first implemented: the distribution path through an update is dropped. Bias O(1).

    References:
        Finn et al. (2017), Algorithm 3 as implemented; the missing term is in Al-Shedivat et al. (2018), eq. 8.

    Example:
        >>> import stochgraph as sg
        >>> sg.MAML()
        Estimator(curvature='log', influence='none')
    """
    return Estimator("log", "none")


def EMAML() -> Estimator:
    """E-MAML as implemented in public code: the path is counted 1/N times. Bias O(1). As derived, it is `SF`.

    References:
        Stadie et al. (2018), eq. 4, where the scores are summed; the implementations average them.

    Example:
        >>> import stochgraph as sg
        >>> sg.EMAML()
        Estimator(curvature='log', influence='scaled')
    """
    return Estimator("log", "scaled")


def SGMRLPublished() -> Estimator:
    """SG-MRL as printed: the path is counted twice, by the Hessian estimate and by the added score term. Bias O(1).

    References:
        Fallah et al. (2021), eq. 13 with the Hessian estimate of eqs. 8 and 9; (2020), eq. 44 for several steps. The
        estimator that their theorem 1 is about is `SF`.

    Example:
        >>> import stochgraph as sg
        >>> sg.SGMRLPublished()
        Estimator(curvature='dice', influence='cost')
    """
    return Estimator("dice", "cost")


def FirstOrder(influence: Influence = "none") -> Estimator:
    """First-order updates: the direction of an update is a constant. Bias O(1).

    As the one estimator of a graph, `compile(FirstOrder())`, it holds for every update, also for one at given data, on
    whose batch no sample has a part. As the estimator of a sample it holds for the updates that the sample feeds.

    Args:
        influence: `"none"` is first-order MAML; `"cost"` is first-order SG-MRL, which counts the distribution path
            once and drops the path through the update's value.

    References:
        Finn et al. (2017), section 5.2; Fallah et al. (2021), section 5.

    Example:
        >>> import stochgraph as sg
        >>> sg.FirstOrder("cost")
        Estimator(curvature='stop', influence='cost')
        >>> import torch
        >>> @sg.graph
        ... def supervised(theta, data):
        ...     return sg.descend(theta, sg.apply(lambda t, x: ((t - x) ** 2).mean(), theta, data), lr=0.1) ** 2
        >>> theta, data = torch.tensor(0.5), torch.tensor([0.0, 1.0])
        >>> value, grad = supervised.compile(sg.FirstOrder()).value_and_grad(theta, data)
        >>> float(grad)  # 2 * 0.5 times 1, the step's derivative being that of its start; the whole one is 0.8
        1.0
    """
    return Estimator("stop", influence)
