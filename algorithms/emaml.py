"""E-MAML: MAML with credit for exploration.

As derived, the return after adaptation is credited to every action of the inner batches: the score function, unbiased.
The public code credits the mean of the batch's log-probabilities in place of their sum: 1/N of the term, in the ledger
`scaled`. It also uses the mean reward of a step, standardised, which makes the term smaller still.

References:
    Stadie et al. (2018), Some considerations on learning to explore via meta-reinforcement learning, eq. 4;
    Rothfuss et al. (2019), ProMP, section 4, for the derivation.
"""

from typing import Any

import stochgraph as sg

from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def emaml(problem: MetaProblem, *, credit_baseline: Any = None) -> Template:
    r"""The return after inner steps with every inner draw credited for it, as derived: unbiased.

    .. math:: \nabla \theta'^\top \nabla V(\theta') + V(\theta') \textstyle\sum_i \nabla \log p(\tau_i)

    Args:
        problem: what is asked.
        credit_baseline: what the returns are compared with where inner draws are credited: "mean" over the other tasks
            and draws, or another one of `SF`. Without one the variance grows with the draws of an inner step.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.emaml import emaml
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = emaml(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'once'}, '0')
    """
    return problem.template(sg.SF(baseline=credit_baseline))


def emaml_published(problem: MetaProblem) -> Template:
    r"""E-MAML as in its public code: the credit of the inner draws is scaled by 1/N. Bias O(1).

    .. math:: \nabla \theta'^\top \nabla V(\theta') + V(\theta') \tfrac1N \textstyle\sum_i \nabla \log p(\tau_i)

    Args:
        problem: what is asked.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.emaml import emaml_published
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = emaml_published(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'scaled'}, 'O(1)')
    """
    return problem.template(sg.EMAML())
