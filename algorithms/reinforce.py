"""REINFORCE: the gradient of the return by the score function, without an inner step.

An action is credited with the rewards from its own step on, less a baseline. In the ledger every path is counted once.

References:
    Williams (1992), Simple statistical gradient-following algorithms, theorem 1; Sutton et al. (2000), Policy gradient
    methods for reinforcement learning with function approximation, theorem 1.
"""

import stochgraph as sg

from .objectives.actor_critic import check_plain
from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def reinforce(problem: MetaProblem) -> Template:
    r"""The score-function gradient of the return, unbiased.

    .. math:: \frac1N \sum_i \sum_t \nabla \log \pi_\theta(a_{it} \mid o_{it})
              \Big(\sum_{u \ge t} \gamma^u r_{iu} - b_{it}\Big)

    Bias 0, variance O(1/N): the return discounted from its start is what is differentiated, late steps weigh less.

    Args:
        problem: what is asked, with `steps=0`; its `baseline` is b.

    Raises:
        ValueError: the problem has inner steps.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.reinforce import reinforce
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, steps=0, outer=4, baseline="loo")
        >>> reinforce(problem).compile().explain().unbiased
        True
    """
    check_plain(problem, "reinforce")
    return problem.template(sg.SF())
