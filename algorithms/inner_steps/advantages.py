"""Advantages of trajectories, and the baselines that they are measured against.

Functions work along the last dimension, time; any plates stand in front. Trajectories may be ragged: `mask` is 1 while
an episode runs and 0 after its end, where rewards, values and advantages count as zero.

NOTE [the horizon]
The value after the last step is zero: an episode that its horizon cuts off is one that ends there. The objective is the
return over the horizon, for which that is exact, and a linear baseline has the time among its features, so it knows how
much is left. The code of the literature (rllab, ProMP) does the same. Where the horizon stands for an endless
task, the value of what follows belongs to the last step: `gae(after=)`, on trajectories that record what they were cut
off before, `Rollouts(bootstrap=True)`.

A baseline is fitted to a batch of trajectories in two parts, so that a declared graph can hold it: `statistics` is a
function of one trajectory, the sum of the statistics over the batch is a linear operation, and `value` is a function of
that sum and of one trajectory. So the compiler knows how the baseline of one trajectory depends on all others.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from stochgraph.estimators.baselines import (
    RIDGE,
    discounted_to_go,
    normal_equations,
    observation_features,
    ridge_prediction,
)


def returns_to_go(reward: Tensor, mask: Tensor, discount: float = 1.0) -> Tensor:
    r"""The rewards that are still to come: :math:`R_t = \sum_{u \ge t} \gamma^{u - t} r_u`.

    Args:
        reward: shape `(..., time)`.
        mask: shape `(..., time)`, 1 while the episode runs and 0 after.
        discount: :math:`\gamma`, per time step.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.inner_steps.advantages import returns_to_go
        >>> returns_to_go(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 0.0]), discount=0.5)
        tensor([2., 2., 0.])
    """
    return discounted_to_go(reward * mask, discount) * mask


def gae(
    reward: Tensor,
    mask: Tensor,
    value: Tensor,
    discount: float = 1.0,
    decay: float = 1.0,
    after: Tensor | None = None,
) -> Tensor:
    r"""Generalised advantages: discounted sums of temporal differences.

    .. math:: A_t = \sum_{u \ge t} (\gamma \lambda)^{u - t} \delta_u, \qquad
              \delta_u = r_u + \gamma v_{u + 1} - v_u

    With :math:`\lambda = 1` this is :math:`R_t - v_t`, with :math:`v = 0` besides the returns to go themselves.

    Args:
        reward: shape `(..., time)`.
        mask: shape `(..., time)`, 1 while the episode runs and 0 after.
        value: the baseline at every step, shape `(..., time)`.
        discount: :math:`\gamma`, per time step.
        decay: :math:`\lambda`, between 0 and 1: less variance and more bias the smaller.
        after: :math:`v_{u + 1}`, the value after every step, shape `(..., time)`, where episodes may go on after their
            last one; default: that of the next step, and zero after the last.

    References:
        Pardo et al. (2018), Time limits in reinforcement learning, eq. 6, for values after the last step.
        Schulman et al. (2016), Generalized advantage estimation, eq. 16.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.inner_steps.advantages import gae
        >>> reward, mask = torch.tensor([1.0, 2.0, 4.0]), torch.ones(3)
        >>> gae(reward, mask, value=torch.tensor([7.0, 6.0, 3.0]))
        tensor([0., 0., 1.])
    """
    value = value * mask
    if after is None:
        after = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)
    return returns_to_go(reward + discount * after - value, mask, discount * decay)


class Baseline(Protocol):
    """The reference of advantages: two functions of one trajectory, `(time, ...)`, or of a batch of them."""

    def statistics(self, observation: Tensor, mask: Tensor, target: Tensor) -> Any:
        """The tensors that the fit needs of one trajectory, summed over the batch; `None` if nothing is fitted."""

    def value(self, total: Any, observation: Tensor, mask: Tensor) -> Tensor:
        """The baseline at every step, from the summed statistics."""


class Zero:
    """No baseline.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.inner_steps.advantages import Zero
        >>> Zero().value(None, torch.ones(3, 2), torch.ones(3))
        tensor([0., 0., 0.])
    """

    def statistics(self, observation: Tensor, mask: Tensor, target: Tensor) -> None:
        return None

    def value(self, total: None, observation: Tensor, mask: Tensor) -> Tensor:
        return torch.zeros_like(mask)


class LinearBaseline:
    r"""Least squares on features of the observation and the time, fitted to discounted returns to go.

    Features: the observation clipped to :math:`\pm 10`, its square, :math:`t/100` to the powers 1 to 3, and 1. The
    coefficients solve :math:`(X^\top X + \rho D) w = X^\top y`, D the identity but for the intercept, which is not
    penalised; in float64 whatever the trajectories are in.

    Args:
        ridge: :math:`\rho`.

    References:
        Duan et al. (2016), Benchmarking deep reinforcement learning, section 5.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.inner_steps.advantages import LinearBaseline, returns_to_go
        >>> generator = torch.Generator().manual_seed(0)
        >>> observation, mask = torch.randn(8, 20, 2, generator=generator), torch.ones(8, 20)
        >>> target = returns_to_go(torch.ones(8, 20), mask)  # 20 - t, which the features have
        >>> baseline = LinearBaseline()
        >>> value = baseline.value(baseline.fit(observation, mask, target), observation, mask)
        >>> bool((value - target).abs().max() < 0.01)
        True
    """

    def __init__(self, ridge: float = RIDGE) -> None:
        self.ridge = ridge

    def features(self, observation: Tensor, mask: Tensor) -> Tensor:
        """The features, zero where the mask is: shape `(..., time, features)`, float64."""
        return observation_features(observation.double(), mask.dim()) * mask.unsqueeze(-1)

    def statistics(self, observation: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`X^T X` and `X^T y` of each trajectory: shapes `(..., features, features)` and `(..., features)`."""
        features = self.features(observation, mask)
        return normal_equations(features, target.to(features.dtype))

    def value(self, total: tuple[Tensor, Tensor], observation: Tensor, mask: Tensor) -> Tensor:
        return ridge_prediction(self.features(observation, mask), *total, self.ridge).to(mask.dtype)

    def fit(self, observation: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics of a batch of trajectories `(trajectories, time, ...)`, summed."""
        moments, products = self.statistics(observation, mask, target)
        return moments.sum(0), products.sum(0)


class ValueNetwork:
    """A value function with parameters of its own, fitted elsewhere: to a graph it is a constant.

    Args:
        network: from parameters and observations `(..., time, observation)` to values `(..., time)`.
        parameters: a pytree of tensors.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.inner_steps.advantages import ValueNetwork
        >>> baseline = ValueNetwork(lambda p, o: o @ p["w"], {"w": torch.tensor([1.0, 2.0])})
        >>> baseline.value(None, torch.ones(3, 2), torch.tensor([1.0, 1.0, 0.0]))
        tensor([3., 3., 0.])
    """

    def __init__(self, network: Callable[[Any, Tensor], Tensor], parameters: Any) -> None:
        self.network = network
        self.parameters = parameters

    def statistics(self, observation: Tensor, mask: Tensor, target: Tensor) -> None:
        return None

    def value(self, total: None, observation: Tensor, mask: Tensor) -> Tensor:
        return self.network(self.parameters, observation) * mask

    def loss(self, parameters: Any, observation: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """The mean squared error over all steps that count, for an optimiser of the parameters."""
        error = (self.network(parameters, observation) - target) * mask
        return error.square().sum() / mask.sum()
