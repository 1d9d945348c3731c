"""MAML: model-agnostic meta-learning, as first implemented, and first-order.

The inner step is differentiated at fixed samples. That the samples themselves come from the meta-parameters is left
out: in the ledger, the path of the inner batches is dropped. What is lost is the credit for exploration, whatever the
inner batches do for the adapted policy by being drawn where they are. The bias does not vanish with more draws, O(1).

Public implementations agree, some by their automatic differentiation, some by their words. They also standardise the
inner advantages, which is a legitimate choice of inner step: `MetaProblem(standardise=True)`.

Not all that is called MAML is this. Fallah et al. print an algorithm of that name with the full estimate of the
Hessian, outer products of scores included: in this library that is `lsf`, which counts the path, linearised. A
comparison with their MAML is one with `lsf`; one with Finn's is one with `maml`.

References:
    Finn, Abbeel and Levine (2017), Model-agnostic meta-learning, algorithm 3 and section 5.2; the dropped term is in
    Al-Shedivat et al. (2018), eq. 8. Fallah et al. (2021), eq. 16; (2020), algorithm 2 and eq. 21.
"""

import stochgraph as sg

from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def maml(problem: MetaProblem) -> Template:
    r"""The derivative of the return after inner steps, at fixed inner samples: the distribution path is dropped.

    .. math:: \big(I + \eta \tfrac1N \textstyle\sum_i R_i \nabla^2 \log p(\tau_i)\big) \, \nabla V(\theta')

    Args:
        problem: what is asked.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.maml import maml
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = maml(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'dropped'}, 'O(1)')
    """
    return problem.template(sg.MAML())


def first_order_maml(problem: MetaProblem) -> Template:
    r"""The gradient at the adapted parameters, :math:`\nabla V(\theta')`: the directions of inner steps are constants.

    Both the distribution path and the path through the values of the inner steps are dropped.

    Args:
        problem: what is asked.

    References:
        Finn et al. (2017), section 5.2.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.maml import first_order_maml
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = first_order_maml(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'dropped'}, 'O(1)')
    """
    return problem.template(sg.FirstOrder())
