"""PPO: proximal policy optimisation with the clipped objective, several steps on every batch.

An action counts while its probability is near what it was. In the first step on a batch clipping changes nothing, and
the gradient is that of `a2c` with its bias, O(1); later steps climb an objective on data that older parameters drew.

Every step is on the whole batch; the public code shuffles a batch into parts. What is climbed is `Template.replayed`,
on the draws of the template's graph, whose ledger is that of REINFORCE.

References:
    Schulman, Wolski, Dhariwal, Radford and Klimov (2017), Proximal policy optimization algorithms, eqs. 7 and 9 and
    algorithm 1.
"""

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.errors.checks import more_than, require

from .objectives.actor_critic import actor_critic_return, check_plain
from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template

EPOCHS = 10  # steps on one batch, as in the paper's experiments on robots


def ppo(
    problem: MetaProblem,
    *,
    clip: float = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float = 0.0,
    decay: float = 0.95,
    standardise: bool = True,
) -> Template:
    r"""The clipped objective on bootstrapped advantages, the critic's regression, and the policy's entropy.

    .. math:: \nabla \hat E_{it}\big[ \min\big(\rho_{it} A_{it}, \operatorname{clip}(\rho_{it}, 1 - \epsilon,
              1 + \epsilon) A_{it}\big) - c_v \tfrac12 (v_\theta(o_{it}) - \hat R_{it})^2
              + c_e H(\pi_\theta(\cdot \mid o_{it})) \big]

    Args:
        problem: what is asked, with `steps=0` and an `ActorCritic` as its policy.
        clip: :math:`\epsilon`, how far the ratio of an action's probabilities may be from 1 and still count.
        value_weight: :math:`c_v`.
        entropy_weight: :math:`c_e`.
        decay: of the generalised advantages.
        standardise: standardise the advantages over the batch.

    Raises:
        ValueError: inner steps, an option out of its range, or a policy without a value network.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import ActorCritic, GaussianMLP
        >>> from stochgraph.algorithms.ppo import ppo
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), ActorCritic(GaussianMLP(2, 2, hidden=()), 2), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> found = ppo(MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, steps=0, outer=4))
        >>> theta = walks.policy.initial()
        >>> trace = found.compile().sample(theta)
        >>> found.replayed.compile({}).surrogate(theta, theta, trace).shape, found.epochs
        (torch.Size([]), 10)
    """
    check_plain(problem, "ppo")
    require(more_than(0), clip=clip)

    def gain(log_ratio: Tensor, advantage: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)

    climbed = actor_critic_return(
        problem,
        gain,
        value_weight=value_weight,
        entropy_weight=entropy_weight,
        decay=decay,
        standardise=standardise,
    )
    return problem.template(sg.SF(), replayed=climbed, epochs=EPOCHS)
