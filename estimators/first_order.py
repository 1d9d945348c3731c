"""First-order updates: what an update's direction owes to the parameters is dropped."""

from .two_parts import TwoParts
from .words import Estimator, InfluenceWord


def FirstOrder(influence: InfluenceWord = "none") -> TwoParts:
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
