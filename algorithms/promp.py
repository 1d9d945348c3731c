"""ProMP: proximal meta-policy search.

The inner curvature is the low-variance one, which drops products of scores at different time steps. The outcome is
climbed in several epochs on one meta-batch; actions count while their probability is near what it was, and the policy
before adaptation is held near itself by a divergence.

What is climbed is the clipped objective, `Template.replayed`, on the draws of the template's graph. At the parameters
that drew, clipping changes nothing, and the inner steps have the low-variance curvature through their ratios: the path
of the inner batches is linearized, products of scores at different time steps are dropped from it, bias O(1). With
plain returns inside, a discount of 1 and plain advantages after adaptation its gradient is that of the graph, whose
ledger says so. Otherwise the two differ: on advantages, where a trajectory is one value, the graph's estimator is
`LSF`; with a smaller discount the clipped objective weighs late steps as much as early ones, as the public code does.

The public code standardises the advantages after adaptation, as the default does here.

References:
    Rothfuss, Lee, Clavera, Asfour and Abbeel (2019), ProMP: eqs. 7, 10, 11 and algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.errors.checks import FLAG, at_least, more_than, require

from .inner_steps.advantages import Baseline, LinearBaseline
from .inner_steps.policy_gradient import advantages, step_ratios, whole
from .objectives.meta_policy_gradient import MetaProblem
from .objectives.replays import Adapt, Reference, adapted_to, mean_divergence, recorded, recorded_batches
from .objectives.template import Template

EPOCHS = 5  # steps on one meta-batch, as in the paper's experiments


def promp(problem: MetaProblem, *, clip: float = 0.3, penalty: float = 5e-4, standardise: bool = True) -> Template:
    r"""The clipped return after inner steps with the low-variance curvature.

    .. math:: \frac1M \sum_{i, t} \min\big(\rho_{it} A_{it}, \operatorname{clip}(\rho_{it}, 1 - \epsilon, 1 + \epsilon)
              A_{it}\big) - \eta \, KL(\pi_{anchor} \| \pi_\theta)

    Args:
        problem: what is asked; needs a policy. Its baseline is "linear" or none.
        clip: :math:`\epsilon`, how far the ratio of an action's probabilities may be from 1 and still count.
        penalty: :math:`\eta`, on the divergence of the policy before adaptation.
        standardise: standardise the advantages after adaptation.

    Raises:
        ValueError: an option out of its range, or a problem without a policy.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.promp import promp
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> found = promp(MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=4, outer=4))
        >>> theta = walks.policy.initial()
        >>> trace = found.compile().sample(theta)
        >>> found.replayed.compile({}).surrogate(theta, theta, trace).shape
        torch.Size([])
    """
    require(more_than(0), clip=clip)
    require(at_least(0), penalty=penalty)
    require(FLAG, standardise=standardise)
    if problem.policy is None or problem.adapt is not None:
        raise ValueError("promp scores recorded actions, and adapts by policy gradients: give a policy, and no adapt")
    if problem.baseline not in (None, "linear"):
        raise ValueError(f"baseline={problem.baseline!r}: promp takes 'linear' or none")
    replayed = clipped_return(
        problem.tasks,
        problem.policy,
        problem.step(ratio=True),
        steps=problem.steps,
        clip=clip,
        penalty=penalty,
        baseline=LinearBaseline() if problem.baseline else None,
        discount=problem.discount,
        decay=problem.decay,
        standardise=standardise,
        reference=problem.reference,
        inner_reference=problem.inner_reference,
    )
    return problem.template(sg.LVC(), replayed=replayed, epochs=EPOCHS)


def clipped_return(
    tasks: Callable[[], Any],
    policy: Any,
    adapt: Adapt,
    *,
    steps: int = 1,
    clip: float = 0.3,
    penalty: float = 0.0,
    baseline: Baseline | None = None,
    discount: float = 1.0,
    decay: float = 1.0,
    standardise: bool = False,
    reference: Reference | None = None,
    inner_reference: Reference | None = None,
) -> sg.Graph:
    r"""Declare the clipped meta-objective, for several epochs on one trace.

    .. math:: \frac1B \sum_b \frac1M \sum_{i, t} \min\big(\rho_{bit} A_{bit},\,
              \operatorname{clip}(\rho_{bit}, 1 - \epsilon, 1 + \epsilon) A_{bit}\big)
              - \eta \, KL(\pi_{anchor} \| \pi_\theta), \qquad
              \rho_{bit} = \frac{\pi_{\theta'_b}(a_{bit} \mid o_{bit})}{\pi_{drawn}(a_{bit} \mid o_{bit})}

    Clipping is per step, so it needs the ratio of each step: a replayed surrogate boxes costs with products of them.
    Therefore this is a graph of its own, on recorded trajectories with the field `log_prob`. At the anchor its gradient
    is that of the low-variance curvature, if `adapt` has `ratio=True` and the discount is 1: advantages of late steps
    are not discounted once more.

    Inputs of the graph: the parameters and the anchor, at which the trace was drawn.

    Args:
        tasks: declares the plate of tasks, named "task", as in the graph that drew the trace.
        policy: has `log_prob`, and for a penalty `kl`.
        adapt: declares one inner step.
        steps: the number of inner steps.
        clip: :math:`\epsilon`.
        penalty: :math:`\eta`, on the divergence of the policy before adaptation, at the steps of the first inner batch.
        baseline: of the outer trajectories; see `advantages`.
        discount: see `advantages`.
        decay: see `advantages`.
        standardise: see `advantages`.
        reference: a reward that depends on the task alone, subtracted from the rewards after adaptation while an
            episode runs: for episodes that last until the horizon. It would pay for the end of others.
        inner_reference: the same for the rewards of the inner steps.

    References:
        Rothfuss et al. (2019), ProMP, eqs. 10 and 11; Schulman et al. (2017), PPO, eq. 7.
    """
    options = {"baseline": baseline, "discount": discount, "decay": decay, "standardise": standardise}

    def gain(parameters: Any, trajectory: Any, advantage: Tensor) -> Tensor:
        ratio = step_ratios(policy, parameters, trajectory)
        return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum()

    def objective(theta: Any, anchor: Any) -> Any:
        task = tasks()
        batches = recorded_batches(task, steps, inner_reference)
        adapted = adapted_to(batches, theta, adapt)
        tau = whole(recorded("tau", task, reference), "tau")
        clipped = sg.mean(sg.apply(gain, adapted, tau, advantages(tau, "tau", **options)))  # type: ignore[arg-type]
        if not penalty or not steps:
            return clipped
        return clipped - penalty * mean_divergence(policy, anchor, theta, batches["D1"], "D1")

    return sg.graph(objective)
