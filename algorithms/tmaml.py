"""TMAML: the derivative of the inner step with a baseline for each time step.

Through an inner step run products of scores, of second order. A baseline that depends on the state alone takes variance
away from them without moving the expectation: DiCE's derivatives, of advantages in place of returns.

The paper's surrogate adds a term with the same expectation zero to the objective of DiCE. Here the same baseline is an
option of Loaded DiCE, whose `decay` also trades variance for a bias of O(1).

References:
    Liu, Socher and Xiong (2019), Taming MAML, eq. 12; Farquhar et al. (2019), Loaded DiCE, eq. 12.
"""

from typing import Any

import stochgraph as sg

from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def tmaml(problem: MetaProblem, *, curvature_baseline: Any = "linear", decay: float = 1.0) -> Template:
    r"""The return after inner steps, whose derivative compares each time step with a baseline.

    .. math:: \nabla V\Big(\theta + \eta \nabla \tfrac1N \sum_{i,t}
              \big(\square(w_{it}) - \square(w_{it} - \log p_{it})\big) (R_{it} - b_{it})\Big), \qquad
              w_{it} = \lambda w_{i,t-1} + \log p_{it}

    Args:
        problem: what is asked; its inner steps climb plain returns, so that their direction is the same with any
            baseline.
        curvature_baseline: as in `LoadedDiCE`: "linear", fitted to the other trajectories of the task.
        decay: :math:`\lambda`; below 1 biased.

    Raises:
        ValueError: inner steps on advantages, whose direction has a baseline already; one trajectory for each inner
            step, which has no others to be compared with.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.tmaml import tmaml
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = tmaml(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'linearized'}, 'O(1/sqrt(N))')
    """
    if problem.on_advantages or problem.adapt is not None:
        raise ValueError(
            "tmaml puts a baseline into the derivative of steps on plain returns: give no inner baseline, no decay, no "
            "standardisation and no steps of your own (in a run: --inner-baseline none --no-standardise)"
        )
    if problem.steps and curvature_baseline in ("linear", "loo") and problem.inner < 2:
        raise ValueError(
            f"inner={problem.inner}: curvature_baseline={curvature_baseline!r} compares trajectories with others; take "
            "two or more, or None as baseline"
        )
    return problem.template(sg.LoadedDiCE(decay=decay, baseline=curvature_baseline))
