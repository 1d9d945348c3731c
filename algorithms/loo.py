"""Leave-one-out: unbiased as the score function, with the variance of the linearised one.

Each inner draw is credited with what it changed: the return after adaptation, less the return after an adaptation
without that draw. The second does not depend on the draw, so the gradient stays exact; the difference is O(1/N), and so
is the variance. No new trajectories are needed: those after adaptation are reweighted for the parameters that an inner
step without the draw leads to.

Its first-order expansion is `lsf` with a control variate.

References:
    Mnih and Rezende (2016), VIMCO, for its relative in multi-sample bounds.
"""

import stochgraph as sg

from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def loo(problem: MetaProblem) -> Template:
    r"""The return after inner steps, each inner draw credited with what it changed: unbiased, variance O(1/N).

    .. math:: \nabla \theta'^\top \nabla V(\theta')
              + \textstyle\sum_i \big(V(\theta') - V(\theta'_{-i})\big) \nabla \log p(\tau_i)

    Args:
        problem: what is asked; with two trajectories or more per inner step.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.loo import loo
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = loo(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'once'}, '0')
    """
    return problem.template(sg.LOO())
