"""The meta-objective of gradient-based meta-reinforcement learning: the return after inner policy-gradient steps.

Most algorithms of the field ask for the gradient of this one objective, and differ in how they estimate it. Therefore a
`MetaProblem` says what is asked, and an algorithm is a function of it; see `stochgraph.algorithms.maml` and others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.errors.checks import integer, require

from ..inner_steps.advantages import Baseline
from ..inner_steps.policy_gradient import ascend_advantages, ascend_returns
from .replays import Adapt
from .template import Template

Rate = float | Callable[[Any], Any]


def adapted_return(
    trajectories: sg.Sampler,
    tasks: Callable[[], Any],
    *,
    inner_rate: Rate,
    steps: int = 1,
    inner: int = 20,
    outer: int = 20,
    discount: float = 1.0,
    reference: Callable[[Tensor], Tensor] | None = None,
    adapt: Adapt | None = None,
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
        inner_rate: the step size of the inner steps; or a function that declares it, of the parameters' node.
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
        Finn et al. (2017), eq. 1; Fallah et al. (2021), eq. 6 and, for several steps, eq. 7; Tang (2022), eq. 1.
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
        return sg.ascend(theta, sg.mean(total(data, task), over=plate), rate_of(inner_rate, theta))

    def objective(theta: Any) -> Any:
        task = tasks()
        for k in range(1, steps + 1):
            data = sg.sample(f"D{k}", trajectories, theta, task, n=inner)
            theta = step(theta, data, task, f"D{k}")
        tau = sg.sample("tau", trajectories, theta, task, n=outer)
        return sg.mean(total(tau, task))

    return sg.graph(objective)


def rate_of(rate: Rate, parameters: Any) -> Any:
    """The step size from these parameters."""
    return rate(parameters) if callable(rate) else rate


@dataclass(frozen=True, kw_only=True)
class MetaProblem:
    r"""A problem of meta-learning: tasks, trajectories, and the adaptation of a task's parameters.

    An algorithm is a function of it that returns a `Template`. The fields are those of `adapted_return`, and:

    Attributes:
        policy: scores actions, for inner steps on advantages and for graphs on recorded trajectories.
        baseline: of the returns after adaptation: "loo", "mean" or "linear" as in `SF`; or none.
        inner_baseline: what the advantages of the inner steps are measured against; none: nothing.
        decay: the decay of generalised advantages in the inner steps.
        standardise: standardise the inner advantages of a task's batch.

    Inner steps climb plain returns, unless `inner_baseline`, `decay` or `standardise` ask for advantages; or they are
    what `adapt` declares.

    Raises:
        ValueError: inner steps on advantages without a policy; a number out of its range.

    Example:
        >>> import stochgraph as sg
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner_rate=0.1, inner=4, outer=4)
        >>> problem.template(sg.LOO()).compile().explain().unbiased
        True
    """

    trajectories: sg.Sampler
    tasks: Callable[[], Any]
    policy: Any = None
    inner_rate: Rate = 0.1
    steps: int = 1
    inner: int = 20
    outer: int = 20
    discount: float = 1.0
    baseline: Any = None
    inner_baseline: Baseline | None = None
    decay: float = 1.0
    standardise: bool = False
    reference: Callable[[Tensor], Tensor] | None = None
    adapt: Adapt | None = None

    def __post_init__(self) -> None:
        require(integer(0), steps=self.steps)
        require((lambda value: 0 <= value <= 1, "between 0 and 1"), discount=self.discount, decay=self.decay)
        require((_steps_forward, "finite and at least 0"), inner_rate=self.inner_rate)
        if isinstance(self.inner_baseline, str):
            raise ValueError(
                f"inner_baseline={self.inner_baseline!r}: give a baseline itself, such as LinearBaseline() of "
                "stochgraph.algorithms.inner_steps.advantages"
            )
        if self.on_advantages and self.adapt is None and self.policy is None:
            raise ValueError("inner steps on advantages score actions again: give the policy")

    def graph(self) -> sg.Graph:
        """The return after the inner steps."""
        return adapted_return(
            self.trajectories,
            self.tasks,
            inner_rate=self.inner_rate,
            steps=self.steps,
            inner=self.inner,
            outer=self.outer,
            discount=self.discount,
            reference=self.reference,
            adapt=self.adapt or (self.step() if self.on_advantages else None),
        )

    def template(self, estimator: Any, **parts: Any) -> Template:
        """The algorithm that estimates the inner samples with `estimator`, and the outcome with the score function."""
        inner = {f"D{k}": estimator for k in range(1, self.steps + 1)}
        estimators = {**inner, "tau": sg.SF(baseline=self.baseline)}
        return Template(self.graph(), estimators, self.step() if self.policy is not None else self.adapt, **parts)

    def step(self, ratio: bool = False) -> Adapt:
        """One inner step on recorded trajectories.

        Args:
            ratio: see `ascend_advantages`.
        """
        if self.adapt is not None:
            return self.adapt
        options: dict[str, Any] = {"discount": self.discount, "ratio": ratio}
        ascend: Callable[..., Any] = ascend_returns
        if self.on_advantages:
            ascend = ascend_advantages
            options |= {"baseline": self.inner_baseline, "decay": self.decay, "standardise": self.standardise}

        def step(theta: Any, data: Any, plate: str) -> Any:
            return ascend(theta, data, plate, self.policy, rate_of(self.inner_rate, theta), **options)

        return step

    @property
    def inner_reference(self) -> Callable[[Tensor], Tensor] | None:
        """The number that is subtracted from the rewards of the inner steps: steps on advantages do without it."""
        return None if self.adapt is not None or self.on_advantages else self.reference

    def replace(self, **changes: Any) -> "MetaProblem":
        """This problem with other values of some fields."""
        return replace(self, **changes)

    @property
    def on_advantages(self) -> bool:
        """True if the inner steps climb advantages."""
        return self.inner_baseline is not None or self.decay != 1 or self.standardise


def _steps_forward(rate: Any) -> bool:
    """True if all step sizes are finite and not negative; what a function declares has no value yet."""
    leaves = [] if callable(rate) else map(torch.as_tensor, pytree.tree_leaves(rate))
    return all(bool((leaf.isfinite() & (leaf >= 0)).all()) for leaf in leaves)
