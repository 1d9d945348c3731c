"""Declared inner steps on advantages: a policy gradient on data that were drawn before.

Advantages belong to whole trajectories, and through a fitted baseline or standardisation to whole batches. The declared
form says just that. A trajectory becomes one value, its time axis a dimension (`whole`); what is computed of one
trajectory is `sg.apply`; what is computed of the batch is a mean or a sum over its plate, and a function of that. So
every dependence is in the graph: `SF` and `LOO` stay unbiased, and `LSF` linearises in the batch's statistics as in any
other mean. The step itself is taken on a copy of the parameters from which nothing is drawn, so that its direction is a
function of the data as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg

from .advantages import Baseline, Zero, gae, returns_to_go

_TINY = 1e-8  # added to a variance before one divides by its root


def whole(trajectories: Any, plate: str) -> Any:
    """Declare trajectories as single values: the time axis of the sample node `plate` becomes a dimension."""
    return sg.reduce(_same, trajectories, over=f"{plate}.time")


def advantages(
    trajectories: Any,
    plate: str,
    *,
    baseline: Baseline | None = None,
    discount: object = 1.0,
    decay: object = 1.0,
    standardise: bool = False,
) -> Any:
    """Declare the advantages of whole trajectories.

    Args:
        trajectories: a node with the fields `observation`, `reward` and `mask`, made by `whole`.
        plate: the plate of the trajectories: a baseline is fitted, and advantages are standardised, on this batch.
        baseline: what they are measured against; default: nothing.
        discount: per time step, a number or a node.
        decay: see `gae`; a number or a node.
        standardise: subtract the batch's mean and divide by its standard deviation, over all steps that count.

    Returns:
        A node with the plate, shape `(time,)` per draw.
    """
    fitted = Zero() if baseline is None else baseline
    observation, reward, mask = trajectories.observation, trajectories.reward, trajectories.mask
    target = sg.apply(returns_to_go, reward, mask, discount=discount)
    value = _value(fitted, observation, mask, target, plate)
    advantage = sg.apply(gae, reward, mask, value, discount=discount, decay=decay)
    return standardised(advantage, mask, plate) if standardise else advantage


def ascend_advantages(
    parameters: Any,
    data: Any,
    plate: str,
    policy: Any,
    rate: Any,
    *,
    baseline: Baseline | None = None,
    discount: object = 1.0,
    decay: object = 1.0,
    standardise: bool = False,
    ratio: bool = False,
) -> Any:
    r"""Declare one policy-gradient step on the advantages of a batch of trajectories.

    .. math:: \theta' = \theta + \eta \nabla \frac1N \sum_i \sum_t A_{it} \log \pi_\theta(a_{it} \mid o_{it})

    The advantages are data: the direction is not differentiated through them. How they depend on how the data were
    drawn is accounted for by the estimator of the sample node.

    Args:
        parameters: a node, a pytree of tensors.
        data: the sample node of the trajectories, with the fields `observation`, `action`, `reward` and `mask`.
        plate: the name of that node.
        policy: its `log_prob(parameters, observation, action)` scores the steps of a trajectory.
        rate: the step size.
        baseline: see `advantages`.
        discount: see `advantages`.
        decay: see `advantages`.
        standardise: see `advantages`.
        ratio: climb :math:`A \pi_\theta / \pi_{drawn}` instead of :math:`A \log \pi_\theta`. At the parameters that
            drew the data the direction is the same; elsewhere it is corrected step by step, and its derivative is that
            of the low-variance curvature. Needs the field `log_prob` of the data.

    References:
        Rothfuss et al. (2019), ProMP, eqs. 7 and 10, for `ratio`.

    Example:
        >>> import torch, stochgraph as sg
        >>> from typing import NamedTuple
        >>> from stochgraph.algorithms.inner_steps.policy_gradient import ascend_advantages
        >>> class Pulls(NamedTuple):
        ...     observation: torch.Tensor
        ...     action: torch.Tensor
        ...     reward: torch.Tensor
        ...     mask: torch.Tensor
        >>> class Bandit(sg.Sampler):
        ...     time = True
        ...     def draw(self, batch_shape, logits):
        ...         action = torch.distributions.Bernoulli(logits=logits.expand(*batch_shape, 3)).sample()
        ...         return Pulls(torch.zeros(*batch_shape, 3, 1), action, 2 * action, torch.ones(*batch_shape, 3))
        ...     def log_prob(self, value, logits):
        ...         return Coin().log_prob(logits, None, value.action)
        >>> class Coin:
        ...     def log_prob(self, logits, observation, action):
        ...         return torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(action)
        >>> @sg.graph
        ... def objective(logits):
        ...     data = sg.sample("D", Bandit(), logits, n=20)
        ...     return ascend_advantages(logits, data, "D", Coin(), 0.1, standardise=True)
        >>> trace = objective.compile(sg.LSF()).sample(torch.tensor(0.0), generator=torch.Generator().manual_seed(0))
        >>> bool(trace.value > 0)
        True
    """
    options: dict[str, Any] = {
        "baseline": baseline,
        "discount": discount,
        "decay": decay,
        "standardise": standardise,
    }
    trajectories = whole(data, plate)
    advantage = advantages(trajectories, plate, **options)
    copy = sg.apply(_copy, parameters)
    gain = sg.apply(_gain(policy, ratio), copy, trajectories, advantage)
    return sg.ascend(copy, sg.mean(gain, over=plate), rate)


def ascend_returns(
    parameters: Any, data: Any, plate: str, policy: Any, rate: Any, *, discount: float = 1.0, ratio: bool = False
) -> Any:
    r"""Declare one policy-gradient step on returns discounted from the start of a trajectory.

    .. math:: \theta' = \theta + \eta \nabla \frac1N \sum_i \sum_t G_{it} \log \pi_\theta(a_{it} \mid o_{it}), \qquad
              G_{it} = \sum_{u \ge t} \gamma^u r_{iu}

    It is the step that `adapted_return` takes by itself, on data as they are: for graphs on recorded trajectories, and
    for estimators that score an inner trajectory as a whole.

    Args:
        parameters: see `ascend_advantages`, as for the others.
        data: the sample node of the trajectories.
        plate: the name of that node.
        policy: has `log_prob`.
        rate: the step size.
        discount: :math:`\gamma`, per time step.
        ratio: see `ascend_advantages`.

    Example:
        >>> import torch, stochgraph as sg
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.inner_steps.policy_gradient import ascend_returns
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> @sg.graph
        ... def objective(theta):
        ...     data = sg.sample("D", walks, theta, walks.environment.declare_tasks(2), n=4)
        ...     return sg.mean(ascend_returns(theta, data, "D", walks.policy, 0.1)["log_std"].sum())
        >>> objective.compile(sg.SF()).sample(walks.policy.initial()).value.shape
        torch.Size([])
    """
    trajectories, copy = whole(data, plate), sg.apply(_copy, parameters)
    gain = sg.apply(_gain(policy, ratio), copy, trajectories, sg.apply(_discounted(discount), trajectories))
    return sg.ascend(copy, sg.mean(gain, over=plate), rate)


def _discounted(discount: float) -> Callable[[Any], Tensor]:
    """Returns to go, discounted from the first step of the trajectory on.

    Rewards after the end count, as in the sum over time of a drawn trajectory: they are zero, less a reference.
    """

    def weights(trajectory: Any) -> Tensor:
        reward = trajectory.reward
        start = discount ** torch.arange(reward.shape[-1], dtype=reward.dtype, device=reward.device)
        return start * returns_to_go(reward, torch.ones_like(reward), discount)

    return weights


def _gain(policy: Any, ratio: bool) -> Callable[..., Tensor]:
    """The part of one trajectory in the inner objective."""

    def gain(parameters: Any, trajectory: Any, advantage: Tensor) -> Tensor:
        if ratio:
            weight = step_ratios(policy, parameters, trajectory)
        else:
            weight = policy.log_prob(parameters, trajectory.observation, trajectory.action)
        return torch.where(trajectory.mask > 0, weight * advantage, 0.0).sum()

    return gain


def step_ratios(policy: Any, parameters: Any, trajectory: Any) -> Tensor:
    """The probabilities of the actions of one trajectory, over those that were recorded with them: `(time,)`."""
    log_prob = policy.log_prob(parameters, trajectory.observation, trajectory.action)
    # After the end there is nothing to compare with: a ratio there could overflow, and its derivative with it.
    return torch.exp(torch.where(trajectory.mask > 0, log_prob - trajectory.log_prob, 0.0))


def _value(baseline: Baseline, observation: Any, mask: Any, target: Any, plate: str) -> Any:
    if _fits(baseline):
        total = sg.sum(sg.apply(baseline.statistics, observation, mask, target), over=plate)
        return sg.apply(baseline.value, total, observation, mask)
    return sg.apply(lambda o, m: baseline.value(None, o, m), observation, mask)


def _fits(baseline: Baseline) -> bool:
    """True if a baseline is fitted to the batch."""
    step = torch.ones(1)
    return baseline.statistics(step.unsqueeze(-1), step, step) is not None


def standardised(advantage: Any, mask: Any, plate: str | None = None) -> Any:
    """Declare advantages less their mean, over their standard deviation: of all steps that count, of all plates or one.

    Means over all steps of a batch are ratios of means over its trajectories.
    """

    def mean(x: Any) -> Any:
        return sg.mean(sg.apply(torch.sum, x), over=plate) / count

    count = sg.mean(sg.apply(torch.sum, mask), over=plate)
    centred = sg.apply(lambda a, centre, m: (a - centre) * m, advantage, mean(advantage), mask)
    return sg.apply(lambda a, spread: a / torch.sqrt(spread + _TINY), centred, mean(centred**2))


def _same(x: Any) -> Any:
    return x


def _copy(parameters: Any) -> Any:
    return pytree.tree_map(torch.clone, parameters)
