"""The meta-objective of gradient-based meta-reinforcement learning: the return after inner policy-gradient steps."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

import stochgraph as sg


def adapted_return(
    trajectories: sg.Sampler,
    tasks: Callable[[], Any],
    *,
    inner_rate: float,
    steps: int = 1,
    inner: int = 20,
    outer: int = 20,
    discount: float = 1.0,
    reference: Callable[[Tensor], Tensor] | None = None,
    adapt: Callable[[Any, Any, str], Any] | None = None,
) -> sg.Graph:
    r"""Declare the return after some inner policy-gradient steps.

    .. math:: E_{task}\, E_{\tau \sim \pi_{\theta_K}} \sum_t \gamma^t r_t, \qquad
              \theta_k = \theta_{k-1} + \eta \nabla J(\theta_{k-1}; D_k)

    Every inner step draws `inner` fresh trajectories `D1`, `D2`, ... per task from the current parameters; the outcome
    is measured on `outer` trajectories `tau` of the adapted ones. Which estimator this becomes is the caller's choice:
    compile the graph with `SF`, `LSF`, `MAML` and so on.

    Args:
        trajectories: a sampler with the parents `(parameters, task)` and a field `reward` over time.
        tasks: declares the plate of tasks.
        inner_rate: the step size of the inner steps.
        steps: the number of inner steps, 0 or more.
        inner: trajectories per task and inner step.
        outer: trajectories per task after adaptation.
        discount: the discount per time step.
        reference: a reward that depends on the task alone (that of standing still, say), subtracted from every
            reward. It takes variance away. Without inner steps it moves no expectation; with them the inner direction
            keeps its mean, and the objective changes through the direction's variance, by O(inner_rate^2 / inner).
        adapt: declares one inner step in place of the policy gradient above, from the parameters, the sample node of
            the data and its name; `ascend_advantages` for instance, with its other arguments filled in.

    References:
        Finn et al. (2017), eq. 1; Fallah et al. (2021), eq. 6 and, for several steps, eq. 33.
    """

    def total(trajectory: Any, task: Any) -> Any:
        # One function, not a subtraction in the graph: the compiler would move the box past the subtraction, to the
        # reward alone, and the reference could not take variance away.
        reward = trajectory.reward
        if reference is not None:
            reward = sg.apply(lambda r, about: r - reference(about), reward, task)
        return sg.sum(reward, discount=discount)

    def step(theta: Any, data: Any, task: Any, plate: str) -> Any:
        if adapt is not None:
            return adapt(theta, data, plate)
        return sg.ascend(theta, sg.mean(total(data, task), over=plate), inner_rate)

    def objective(theta: Any) -> Any:
        task = tasks()
        for k in range(1, steps + 1):
            data = sg.sample(f"D{k}", trajectories, theta, task, n=inner)
            theta = step(theta, data, task, f"D{k}")
        tau = sg.sample("tau", trajectories, theta, task, n=outer)
        return sg.mean(total(tau, task))

    return sg.graph(objective)
