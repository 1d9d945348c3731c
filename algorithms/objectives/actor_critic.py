"""The objective that an actor and a critic climb together, on recorded trajectories.

Algorithms without inner steps differ in little: what an action is credited with, how far its probability may move, how
often a batch is used. Therefore A2C and PPO are this one graph with another gain of a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.errors.checks import FLAG, at_least, require

from ..inner_steps.advantages import gae
from ..inner_steps.policy_gradient import standardised, whole
from .meta_policy_gradient import MetaProblem
from .replays import Recorded

Gain = Callable[[Tensor, Tensor], Tensor]


class Credit(NamedTuple):
    """The credit of the steps of a trajectory: the actor's advantages, the critic's targets, `(time,)`."""

    advantage: Tensor
    target: Tensor


def check_plain(problem: MetaProblem, algorithm: str) -> None:
    """Refuse inner steps where an algorithm has none."""
    if problem.steps:
        raise ValueError(f"steps={problem.steps}: {algorithm} takes no inner step; give steps=0")


def actor_critic_return(
    problem: MetaProblem,
    gain: Gain,
    *,
    value_weight: float,
    entropy_weight: float,
    decay: float,
    standardise: bool,
) -> sg.Graph:
    r"""Declare the gain of the actor, less the error of the critic, plus the entropy of the policy.

    .. math:: \hat E_{it}\big[ g(\log \rho_{it}, A_{it}) - c_v \tfrac12 (v_\theta(o_{it}) - \hat R_{it})^2
              + c_e H(\pi_\theta(\cdot \mid o_{it})) \big], \qquad
              \rho_{it} = \frac{\pi_\theta(a_{it} \mid o_{it})}{\pi_{drawn}(a_{it} \mid o_{it})}

    The mean is over all steps that count, of all trajectories of all tasks. The advantages A are generalised ones,
    bootstrapped with the critic's values at the anchor. An episode that the horizon or a limit of time cuts off is one
    that ends there, unless its `Rollouts` have `bootstrap=True`: then the critic's value of what follows is added,
    :math:`\delta_T = r_T + \gamma v(o_{T+1}) - v(o_T)`. :math:`\hat R = A + v` before A is standardised. Both are
    data: nothing is differentiated through them. Inputs of the graph: the parameters, and the anchor that drew.

    Args:
        problem: what is asked; its policy is an `ActorCritic`.
        gain: of one step, a function of the logarithm of the ratio and of the advantage, each `(time,)`.
        value_weight: :math:`c_v`.
        entropy_weight: :math:`c_e`; a policy without `entropy` needs 0.
        decay: of the advantages; see `gae`.
        standardise: standardise the advantages over all steps that count.

    Raises:
        ValueError: inner steps, an option out of its range, or a policy that has no value or no entropy.

    References:
        Mnih et al. (2016), Asynchronous methods for deep reinforcement learning, section 4; Schulman et al. (2017),
        PPO, eq. 9; Schulman et al. (2016), eq. 16, for the advantages; Pardo et al. (2018), eq. 6, for limits of time.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.actor_critic import actor_critic_return
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import ActorCritic, GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), ActorCritic(GaussianMLP(2, 2, hidden=()), 2), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, steps=0, outer=4)
        >>> weights = {"value_weight": 0.5, "entropy_weight": 0.0, "decay": 0.95, "standardise": False}
        >>> climbed = actor_critic_return(problem, lambda log_ratio, advantage: log_ratio * advantage, **weights)
        >>> theta = walks.policy.initial()
        >>> climbed.compile({}).surrogate(theta, theta, problem.graph().compile(sg.SF()).sample(theta)).shape
        torch.Size([])
    """
    policy = problem.policy
    require(at_least(0), value_weight=value_weight, entropy_weight=entropy_weight)
    require((lambda value: 0 <= value <= 1, "between 0 and 1"), decay=decay)
    require(FLAG, standardise=standardise)
    _check_policy(policy, entropy_weight)

    def bootstrapped(anchor: Any, trajectory: Any) -> Credit:
        value = policy.value(anchor, trajectory.observation) * trajectory.mask
        after = None
        if hasattr(trajectory, "after"):
            after = policy.value(anchor, trajectory.after) * (1 - trajectory.terminal)
        advantage = gae(trajectory.reward, trajectory.mask, value, problem.discount, decay, after)
        return Credit(advantage, advantage + value)

    def climbed(theta: Any, trajectory: Any, advantage: Tensor, target: Tensor) -> Tensor:
        observation = trajectory.observation
        log_ratio = policy.log_prob(theta, observation, trajectory.action) - trajectory.log_prob
        # After the end there is nothing to compare with: a ratio there could overflow, and its derivative with it.
        found = gain(torch.where(trajectory.mask > 0, log_ratio, 0.0), advantage)
        found = found - value_weight / 2 * (policy.value(theta, observation) - target).square()
        if entropy_weight:
            found = found + entropy_weight * policy.entropy(theta, observation)
        return (found * trajectory.mask).sum()

    def objective(theta: Any, anchor: Any) -> Any:
        tau = whole(sg.sample("tau", Recorded(), problem.tasks(), n=1), "tau")
        credit = sg.apply(bootstrapped, sg.stop(anchor), tau)
        advantage = standardised(credit.advantage, tau.mask) if standardise else credit.advantage
        total = sg.mean(sg.apply(climbed, theta, tau, advantage, credit.target))
        return total / sg.mean(sg.apply(torch.sum, tau.mask))

    return sg.graph(objective)


def _check_policy(policy: Any, entropy_weight: float) -> None:
    if not hasattr(policy, "value"):
        raise ValueError(
            f"{type(policy).__name__} has no value network to bootstrap with: wrap it, ActorCritic(policy, observation)"
        )
    if entropy_weight and not hasattr(getattr(policy, "policy", policy), "entropy"):
        raise ValueError(f"entropy_weight={entropy_weight}: the policy has no entropy(parameters, observation); give 0")
