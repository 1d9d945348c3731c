"""SG-MRL: stochastic gradient meta-reinforcement learning, with any number of inner steps.

The estimator that its convergence theorem is about counts the path of the inner batches once: the derivative of the
inner step at fixed samples, and the credit of the inner draws for the later return. That is the default here.

As printed, the derivative of the inner step is the unbiased estimate of a Hessian, whose outer product of scores counts
the same path a second time. The published experiments drop the derivative of the inner step: first-order.

What the paper prints beside it as MAML, the Hessian estimate without the credit, counts the path once, linearised: it
is `lsf`. The difference between the two printed algorithms is the second count, and not what `maml` leaves out.

The public code multiplies the credit with the mean of standardised advantages of a task. Those have the mean zero, so
the term vanishes, and the gradient is that of MAML. Here later returns are credited, never normalised ones, however the
inner advantages are normalised.

References:
    Fallah, Georgiev, Mokhtari and Ozdaglar (2021), On the convergence theory of debiased model-agnostic
    meta-reinforcement learning: eqs. 6 and 13, algorithm 1 and theorem 1 for one step. The same (2020), Provably
    convergent policy gradient methods for model-agnostic meta-reinforcement learning, arXiv:2002.05135: eqs. 10 and 44,
    algorithm 3 and theorem F.1 for several. What is wrong in print is on the page `docs/errata.md`.
"""

from typing import Any

import stochgraph as sg
from stochgraph.errors.checks import FLAG, require

from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template


def sgmrl(problem: MetaProblem, *, credit_baseline: Any = None) -> Template:
    r"""The unbiased gradient of the return after inner steps: what theorem 1 of the paper is about.

    .. math:: \big(I + \eta \nabla^2 \nu\big) \nabla V(\theta') + V(\theta') \textstyle\sum_i \nabla \log p(\tau_i)

    with :math:`\nabla^2 \nu` the derivative of the inner direction at fixed samples. Several steps compose by the chain
    rule, and the later return is credited to the inner draws of all of them.

    Args:
        problem: what is asked.
        credit_baseline: what the returns are compared with where inner draws are credited: "mean" over the other tasks
            and draws, or another one of `SF`. Without one the variance grows with the draws of an inner step.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.sgmrl import sgmrl
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = sgmrl(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'once'}, '0')
    """
    return problem.template(sg.SF(baseline=credit_baseline))


def sgmrl_published(problem: MetaProblem, *, whole: bool = False) -> Template:
    r"""SG-MRL as printed: the path of the inner batches is counted twice. Bias O(1).

    .. math:: \big(I + \eta (\nabla^2 \nu + \nabla \log q \, \nabla \nu^\top)\big) \nabla V(\theta')
              + V(\theta') \textstyle\sum_i \nabla \log p(\tau_i)

    By default a reward meets the scores of the steps before it only, in the slope of :math:`\nu` and in the outer
    product. Eq. 8 has rewards to go in the slope and the score of the whole trajectory beside it: that is `whole=True`,
    to the letter but for a transposition, which the chain rule asks for. Trajectories of `Rollouts(stepwise=False)`
    have returns and scores of whole trajectories in both places, eq. 44 with :math:`\nu = R \log q`. The Hessian
    estimates have the same expectation.

    Args:
        problem: what is asked.
        whole: the outer product has rewards to go and scores of whole trajectories. For inner steps on plain
            returns, with a policy and without a reference.

    Raises:
        ValueError: `whole` for another problem.

    References:
        Fallah et al. (2021), eqs. 8, 9 and 13; Fallah et al. (2020), eqs. 11, 13 and 18, and eq. 44 for several steps.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.sgmrl import sgmrl_published
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = sgmrl_published(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'twice'}, 'O(1)')
    """
    require(FLAG, whole=whole)
    return (_on_whole_trajectories(problem) if whole else problem).template(sg.SGMRLPublished())


def _on_whole_trajectories(problem: MetaProblem) -> MetaProblem:
    """The problem with inner steps that take a recorded trajectory as one value, which has one score."""
    if problem.on_advantages or problem.adapt is not None:
        raise ValueError(
            "whole=True: for inner steps on plain returns, got steps on advantages or declared by `adapt`; "
            "Rollouts(stepwise=False) has scores of whole trajectories whatever the steps are"
        )
    if problem.policy is None:
        raise ValueError("whole=True: an inner step on recorded trajectories scores actions: give the problem a policy")
    if problem.reference is not None:
        raise ValueError("whole=True: the inner step climbs rewards as they were recorded: give no reference")
    return problem.replace(adapt=problem.step())


def sgmrl_first_order(problem: MetaProblem) -> Template:
    r"""SG-MRL as in its experiments, first-order: the path of the inner batches once, that of their values dropped.

    .. math:: \nabla V(\theta') + V(\theta') \textstyle\sum_i \nabla \log p(\tau_i)

    Args:
        problem: what is asked.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.sgmrl import sgmrl_first_order
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> ledger = sgmrl_first_order(problem).compile().explain()
        >>> {row.counted for row in ledger.ledger if row.sample == "D1"}, ledger.bias
        ({'once'}, 'O(1)')
    """
    return problem.template(sg.FirstOrder("cost"))
