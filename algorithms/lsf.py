"""The linearised score function, DiCE-MAML: low variance, and a bias that vanishes with more draws.

The inner direction is a mean over draws, and the return is linearised in that mean: each draw's term is boxed with its
own log-probability, and nothing later is. Automatic differentiation then counts the path of the inner batches, once,
up to the curvature of the return in the direction: in the ledger, `linearized`.

Code that writes the inner loss with DiCE's operator computes this, whatever it calls it; so does the algorithm that
Fallah et al. print as MAML, whose Hessian estimate has the outer products of scores.

References:
    Tang (2022), Biased gradient estimate with drastic variance reduction for meta reinforcement learning, eqs. 9 to 11
    and algorithm 1; Foerster et al. (2018), DiCE, eq. 4; Rothfuss et al. (2019), section 4 (DiCE-MAML).
"""

import stochgraph as sg

from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def lsf(problem: MetaProblem, *, control_variate: bool = False) -> Template:
    r"""The return after inner steps, linearised in the inner means: bias O(1/sqrt(N)), variance O(1/N).

    .. math:: \nabla V\Big(\theta + \eta \nabla \tfrac1N \textstyle\sum_i \square(\log p(\tau_i)) R_i\Big)

    Args:
        problem: what is asked.
        control_variate: compare each draw's term with the mean of the others.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.lsf import lsf
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = lsf(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'linearized'}, 'O(1/sqrt(N))')
    """
    return problem.template(sg.LSF(control_variate=control_variate))


dice_maml = lsf
