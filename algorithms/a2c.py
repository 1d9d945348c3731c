"""A2C: advantage actor-critic, one step on every batch.

The critic's values are what rewards are measured against, and with `decay` below 1 they stand for the rewards that are
left out: less variance, and a bias as large as the critic's errors, O(1). With `decay=1`, a discount of 1 and episodes
of one length the actor's part is unbiased. With a smaller discount late steps weigh as much as early ones, as in all
public code, which is the gradient of no return.

What is climbed is `Template.replayed`, on the draws of the template's graph, whose ledger is that of REINFORCE.

References:
    Mnih et al. (2016), Asynchronous methods for deep reinforcement learning, section 4 and algorithm S3; A2C is its
    synchronous form.
"""

from torch import Tensor

import stochgraph as sg

from .objectives.actor_critic import actor_critic_return, check_plain
from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def a2c(
    problem: MetaProblem,
    *,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    decay: float = 0.95,
    standardise: bool = False,
) -> Template:
    r"""The policy gradient on bootstrapped advantages, the critic's regression, and the policy's entropy.

    .. math:: \nabla \hat E_{it}\big[ A_{it} \log \pi_\theta(a_{it} \mid o_{it})
              - c_v \tfrac12 (v_\theta(o_{it}) - \hat R_{it})^2 + c_e H(\pi_\theta(\cdot \mid o_{it})) \big]

    Args:
        problem: what is asked, with `steps=0` and an `ActorCritic` as its policy.
        value_weight: :math:`c_v`.
        entropy_weight: :math:`c_e`.
        decay: of the generalised advantages.
        standardise: standardise the advantages over the batch.

    Raises:
        ValueError: inner steps, an option out of its range, or a policy without a value network.

    Example:
        >>> from stochgraph.algorithms.a2c import a2c
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import ActorCritic, GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), ActorCritic(GaussianMLP(2, 2, hidden=()), 2), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> found = a2c(MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, steps=0, outer=4))
        >>> theta = walks.policy.initial()
        >>> trace = found.compile().sample(theta)
        >>> found.replayed.compile({}).surrogate(theta, theta, trace).shape
        torch.Size([])
    """
    check_plain(problem, "a2c")
    climbed = actor_critic_return(
        problem,
        _credited,
        value_weight=value_weight,
        entropy_weight=entropy_weight,
        decay=decay,
        standardise=standardise,
    )
    return problem.template(sg.SF(), replayed=climbed)


def _credited(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """The term with the gradient of the advantage times the log-probability; it is zero where the batch was drawn."""
    return log_ratio * advantage
