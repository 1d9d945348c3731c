"""Graphs on recorded trajectories: other objectives on the trace of a graph that drew it.

A meta-objective draws its trajectories from the parameters. Steps after that look at the same trajectories again: how
far have the adapted policies moved, what is a clipped objective at other parameters? Those are graphs too. Their sample
nodes have the same names, but nothing is drawn from the parameters: trajectories are data (`Recorded`), so that no
distribution is differentiated, and values alone carry the derivative. Replay them on the trace:
`graph.compile({}).surrogate(parameters, anchor, trace)`.

An `adapt` argument is how a task's parameters are adapted, a function of `(parameters, data, plate)` that declares one
step; `ascend_advantages` with everything but these three filled in. With `ratio=True` the steps are corrected for data
that were drawn from other parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import stochgraph as sg

from ..inner_steps.advantages import Baseline
from ..inner_steps.policy_gradient import advantages, step_ratios, whole

Adapt = Callable[[Any, Any, str], Any]
Reference = Callable[[Tensor], Tensor]


class Recorded(sg.Sampler):
    """Trajectories that are in the trace already: they are not drawn, and carry no score.

    Example:
        >>> import torch, stochgraph as sg
        >>> from stochgraph.algorithms.objectives.replays import Recorded
        >>> @sg.graph
        ... def total(weight):
        ...     return sg.mean(sg.sum(sg.sample("tau", Recorded(), n=2) * weight))
        >>> trace = sg.Trace(torch.tensor(0.0), {"tau": torch.ones(2, 3)}, {}, {})
        >>> total.compile({}).surrogate(torch.tensor(2.0), trace)
        tensor(6.)
    """

    time = True

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Any:
        raise sg.SamplingError(
            "recorded trajectories are not drawn: replay a trace, compiled.surrogate(*inputs, trace)"
        )

    def log_prob(self, value: Any, *parents: Any) -> Tensor:
        raise sg.SamplingError("recorded trajectories have no parameters to be scored under")


def adapted_divergence(
    tasks: Callable[[], Any], policy: Any, adapt: Adapt, *, steps: int = 1, inner_reference: Reference | None = None
) -> sg.Graph:
    r"""Declare how far the adapted policies are from those of an anchor, on the states that the anchor's visited.

    .. math:: \frac1B \sum_b \operatorname{mean}_{i, t}
              KL\big(\pi_{\theta'_b(anchor)}(\cdot \mid o_{bit}) \,\|\, \pi_{\theta'_b(\theta)}(\cdot \mid o_{bit})\big)

    Inputs of the graph: the parameters and the anchor, at which the trace was drawn. 0 where they are equal, and its
    gradient as well. Ragged trajectories count by their steps.

    Args:
        tasks: declares the plate of tasks, named "task", as in the graph that drew the trace.
        policy: its `kl(old, new, observation)` is the divergence at each observation.
        adapt: declares one inner step.
        steps: the number of inner steps.
        inner_reference: a reward that depends on the task alone, subtracted from the rewards of the inner steps.

    References:
        Finn et al. (2017), section 5.3, for the trust region on adapted policies; Schulman et al. (2015), eq. 12.
    """

    def divergence(theta: Any, anchor: Any) -> Any:
        task = tasks()
        batches = recorded_batches(task, steps, inner_reference)
        new, old = adapted_to(batches, theta, adapt), adapted_to(batches, anchor, adapt)
        tau = sg.sample("tau", Recorded(), task, n=1)
        return mean_divergence(policy, sg.stop(old), new, tau, "tau")

    return sg.graph(divergence)


def meta_divergence(tasks: Callable[[], Any], policy: Any, *, steps: int = 1) -> sg.Graph:
    r"""Declare how far the policy before adaptation is from an anchor, on the states that it visited.

    .. math:: \frac1B \sum_b \operatorname{mean}_{i, t}
              KL\big(\pi_{anchor}(\cdot \mid o_{bit}) \,\|\, \pi_\theta(\cdot \mid o_{bit})\big)

    The states are those of the first inner batch; without inner steps, of the outcome. Inputs of the graph are those of
    `adapted_divergence`. It needs no inner step, which is a fraction of the work where steps are solved.

    Args:
        tasks: see `adapted_divergence`.
        policy: see `adapted_divergence`.
        steps: the number of inner steps.

    References:
        Xu and Zhu (2024), algorithm 2: a trust region on the trajectories of the meta-policy.
    """

    def divergence(theta: Any, anchor: Any) -> Any:
        name = "D1" if steps else "tau"
        data = sg.sample(name, Recorded(), tasks(), n=1)
        return mean_divergence(policy, sg.stop(anchor), theta, data, name)

    return sg.graph(divergence)


def adapted_gain(
    tasks: Callable[[], Any],
    policy: Any,
    adapt: Adapt,
    *,
    steps: int = 1,
    baseline: Baseline | None = None,
    discount: float = 1.0,
    decay: float = 1.0,
    standardise: bool = True,
    reference: Reference | None = None,
    inner_reference: Reference | None = None,
) -> sg.Graph:
    r"""Declare what adapted policies gain on recorded trajectories, by the ratios of single steps.

    .. math:: \frac1B \sum_b \frac1M \sum_{i, t} \frac{\pi_{\theta'_b}(a_{bit} \mid o_{bit})}
              {\pi_{drawn}(a_{bit} \mid o_{bit})} A_{bit}

    It is what the code of the literature compares candidates of a line search on. A replayed surrogate weights a reward
    with the product of the ratios before it, and of those of the inner batches: right on average, and with long
    trajectories so heavy-tailed that it promises gains that do not come. This neglects how the visited states move,
    which is little within a trust region. Input of the graph: the parameters.

    Args:
        tasks: declares the plate of tasks, named "task", as in the graph that drew the trace.
        policy: has `log_prob`.
        adapt: declares one inner step.
        steps: the number of inner steps.
        baseline: of the outer trajectories; see `advantages`, as for the next three.
        discount: per time step.
        decay: of the advantages.
        standardise: of the advantages of a task.
        reference: see `clipped_return` in `promp`.
        inner_reference: see `adapted_divergence`.

    References:
        Schulman et al. (2015), eq. 14; Rothfuss et al. (2019) and its code, for TRPO on adapted policies.
    """
    options = {"baseline": baseline, "discount": discount, "decay": decay, "standardise": standardise}

    def gained(parameters: Any, trajectory: Any, advantage: Tensor) -> Tensor:
        return (step_ratios(policy, parameters, trajectory) * advantage * trajectory.mask).sum()

    def gain(theta: Any) -> Any:
        task = tasks()
        adapted = adapted_to(recorded_batches(task, steps, inner_reference), theta, adapt)
        tau = whole(recorded("tau", task, reference), "tau")
        return sg.mean(sg.apply(gained, adapted, tau, advantages(tau, "tau", **options)))  # type: ignore[arg-type]

    return sg.graph(gain)


def mean_divergence(policy: Any, old: Any, new: Any, data: Any, plate: str) -> Any:
    """Declare how far policies are from others: the mean over the steps of a task's trajectories, then over tasks."""
    trajectories = whole(data, plate)

    def apart(before: Any, after: Any, observation: Tensor, mask: Tensor) -> Tensor:
        return (policy.kl(before, after, observation) * mask).sum()

    distance = sg.apply(apart, old, new, trajectories.observation, trajectories.mask)
    return sg.mean(sg.mean(distance, over=plate) / sg.mean(sg.apply(torch.sum, trajectories.mask), over=plate))


def recorded_batches(task: Any, steps: int, reference: Reference | None = None) -> dict[str, Any]:
    """The recorded batches of the inner steps, their rewards measured against the reference."""
    return {name: recorded(name, task, reference) for name in (f"D{k}" for k in range(1, steps + 1))}


def recorded(name: str, task: Any, reference: Reference | None) -> Any:
    """A recorded batch, its rewards measured against the reference."""
    data = sg.sample(name, Recorded(), task, n=1)
    if reference is None:
        return data
    return sg.apply(lambda d, about: d._replace(reward=d.reward - reference(about)), data, task)


def adapted_to(batches: dict[str, Any], theta: Any, adapt: Adapt) -> Any:
    """The parameters after one inner step on each batch."""
    for plate, data in batches.items():
        theta = adapt(theta, data, plate)
    return theta
