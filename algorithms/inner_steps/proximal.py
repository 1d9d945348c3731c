r"""Implicit inner steps on trajectories: the parameters that do best by the data, kept close to those that drew them.

.. math:: \theta' = \arg\max_\psi \; \frac1T \sum_{i, t} g(\psi; \phi, s_{it}, a_{it}) A_{it} - \lambda D^2(\phi, \psi)

with :math:`T` the number of steps in the batch. What is climbed, :math:`g`, and what holds it back, :math:`D`, are
words:

============  ================================================================================================
gain          :math:`g`
============  ================================================================================================
`"ratio"`     :math:`x = \pi_\psi(a|s) / \pi_\phi(a|s)`
`"soft"`      :math:`h(x) = 2 / (1 + e^{-2 (x - 1)})`, the ratio held between 0 and 2; its slope at 1 is 1
`"linear"`    :math:`\langle \nabla \log \pi_\phi(a|s), \psi - \phi \rangle`, the ratio to first order at :math:`\phi`
============  ================================================================================================

============  ================================================================================================
distance      :math:`D^2`, averaged over the steps of the batch where it depends on the state
============  ================================================================================================
`"D1"`        :math:`KL(\pi_\phi \| \pi_\psi)`
`"D2"`        :math:`KL(\pi_\psi \| \pi_\phi)`
`"D3"`        :math:`\|\phi - \psi\|^2`
`"quadratic"` :math:`\frac12 (\psi - \phi)^\top F (\psi - \phi)`, `"D1"` to second order, with Fisher's matrix
============  ================================================================================================

Well-known steps are pairs of words: linear and D3 is the policy gradient, of rate :math:`1 / (2 \lambda)`; linear and
quadratic the natural one, of rate :math:`1 / \lambda`; ratio and D1 the penalised form of proximal policy optimisation.
All are one declared problem, differentiated by the implicit function theorem. The advantages and the draws are data;
how their law depends on :math:`\phi` is the estimator's part. So :math:`\phi` stands in two places, the denominators of
the ratios and the distance. With `recorded=True` the denominators are data as well, the probabilities that were
recorded with the actions, and the distance alone is differentiated.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.errors.checks import FLAG, at_least, integer, more_than, require, require_known
from stochgraph.solvers._linear import conjugate_gradient

from .advantages import Baseline
from .policy_gradient import advantages, step_ratios, whole

_NEWTON, _CONJUGATE_GRADIENT = sg.solvers.Newton(), sg.solvers.ConjugateGradient()
_DAMPING = 0.1


def proximal_step(
    parameters: Any,
    data: Any,
    plate: str,
    policy: Any,
    penalty: Any,
    *,
    gain: str = "ratio",
    distance: str = "D1",
    baseline: Baseline | None = None,
    discount: float = 1.0,
    decay: float = 1.0,
    standardise: bool = False,
    recorded: bool = False,
    solver: sg.solvers.Solver = _NEWTON,
    linear_solver: sg.solvers.LinearSolver = _CONJUGATE_GRADIENT,
) -> Any:
    r"""Declare one implicit step on a batch of trajectories.

    Args:
        parameters: a node, :math:`\phi`, a pytree of tensors.
        data: the sample node of the trajectories, with the fields `observation`, `action`, `reward` and `mask`.
        plate: the name of that node.
        policy: its `log_prob` scores the steps of a trajectory, its `kl` measures how far two policies are apart.
        penalty: :math:`\lambda`, positive; a number or a node.
        gain: one of the words above.
        distance: one of the words above.
        baseline: of the advantages; see `advantages`, as for the next three.
        discount: per time step.
        decay: of the advantages.
        standardise: of the advantages.
        recorded: divide by the recorded probabilities, which are constants, in place of :math:`\pi_\phi`. Needs the
            field `log_prob` of the data. Where the data were drawn from :math:`\phi` the solution is the same, and its
            derivative lacks that of the denominators; elsewhere the ratios are those to the policy that drew.
        solver: how the problem is solved; see `sg.argmax`.
        linear_solver: how its Hessian is inverted; see `sg.argmax`.

    Raises:
        ValueError: a word that is not known, a number that is not positive as penalty, or `recorded` with a gain that
            has no ratio.
        SolverError: while running; see `sg.argmax`. Divergences curve a policy's outputs, not all of its parameters:
            between a network and its divergence there may be no strict maximum, and a damping is needed.

    References:
        Xu and Zhu (2024), eq. 2 and proposition 2; eq. 7 for `gain="soft"`, eq. 8 for `recorded`. Kakade (2001) for
        the natural gradient; Schulman et al. (2017), eq. 8, for the penalised form.

    Example:
        >>> import torch, stochgraph as sg
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.inner_steps.proximal import proximal_step
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> @sg.graph
        ... def objective(theta):
        ...     data = sg.sample("D", walks, theta, walks.environment.declare_tasks(2), n=4)
        ...     adapted = proximal_step(theta, data, "D", walks.policy, 0.5, gain="linear", distance="D3")
        ...     return sg.mean(adapted["log_std"].sum())
        >>> objective.compile({"D": sg.MAML()}).sample(walks.policy.initial()).value.shape
        torch.Size([])
    """
    _check(gain, distance, penalty, recorded)
    trajectories = whole(data, plate)
    advantage = advantages(
        trajectories, plate, baseline=baseline, discount=discount, decay=decay, standardise=standardise
    )
    psi = sg.unknown(None, like=parameters)
    gained = sg.apply(_gained(policy, _climbed(gain, recorded)), psi, parameters, trajectories, advantage)
    steps = sg.mean(sg.apply(torch.sum, trajectories.mask), over=plate)
    if distance == "D3":
        moved = sg.apply(squared_distance, psi, parameters)
    else:
        apart = sg.apply(_apart(policy, distance), psi, parameters, trajectories)
        moved = sg.mean(apart, over=plate) / steps
    inner = sg.mean(gained, over=plate) / steps - penalty * moved
    return sg.argmax(inner, over=psi, solver=solver, linear_solver=linear_solver)


def practical_solvers(
    distance: str, steps: int = 50, lr: float = 0.01, products: int = 10, damping: float | None = None
) -> dict[str, Any]:
    """A fixed budget of work: Adam's steps, then conjugate gradients, as far as they get.

    The derivative is that of a maximum which the steps only approximate.

    Args:
        distance: of the inner problem, a word.
        steps: of Adam.
        lr: its step size.
        products: Hessian-vector products of the linear solve.
        damping: added to the curvature in every direction; default: what the distance needs, none for `"D3"` and 0.1
            for the others, which do not curve in all directions.

    References:
        Xu and Zhu (2024), algorithm 2; fifty steps in their experiments, which state neither products nor damping.

    Example:
        >>> from stochgraph.algorithms.inner_steps.proximal import practical_solvers
        >>> practical_solvers("D1")["linear_solver"]
        TruncatedConjugateGradient(steps=10, damping=0.1)
    """
    require_known(DISTANCES, distance=distance)
    needed = 0.0 if distance == "D3" else _DAMPING
    return {
        "solver": sg.solvers.Adam(steps=steps, lr=lr, tolerance=float("inf")),
        "linear_solver": TruncatedConjugateGradient(products, needed if damping is None else damping),
    }


class NegativeCurvature(UserWarning):
    """A linear solve stopped where the objective curves upwards: it is at no maximum. See the class below."""


@dataclass(frozen=True)
class TruncatedConjugateGradient(sg.solvers.LinearSolver):
    r"""Conjugate gradients on :math:`(-H + \text{damping} \, I) \, u = v`, up to the first direction of no curvature.

    A network, few data and a budget of steps leave the inner problem short of a strict maximum. Each copy keeps what it
    has solved along the directions before; where the very first one does not curve that is zero. A warning tells in how
    many copies that was. Nothing else is an error: the steps are a budget.

    Args:
        steps: the largest number of steps, each one Hessian-vector product.
        damping: added to the curvature in every direction. It biases the derivative.

    References:
        Steihaug (1983), The conjugate gradient method and trust regions in large scale optimization; Nocedal and Wright
        (2006), algorithm 7.1.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.inner_steps.proximal import TruncatedConjugateGradient
        >>> curvature = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> TruncatedConjugateGradient().solve(lambda v: v @ curvature, torch.tensor([3.0, 4.0]))
        tensor([1., 1.])
    """

    steps: int = 10
    damping: float = 0.0

    def __post_init__(self) -> None:
        require(integer(0), steps=self.steps)
        require(at_least(0), damping=self.damping)

    def solve(self, product: Callable[[Tensor], Tensor], rhs: Tensor) -> Tensor:
        found = conjugate_gradient(lambda v: product(v) + self.damping * v, rhs, self.steps, 0.0)
        stopped = found.curvature < -found.zero
        if bool(stopped.any()):
            warnings.warn(
                f"conjugate gradients met negative curvature and stopped there in {int(stopped.sum())} of "
                f"{stopped.numel()} solutions, damping {self.damping:g}: the derivative is that of the directions "
                "before. A larger damping, a larger penalty or more steps of the solver leave less out",
                NegativeCurvature,
                stacklevel=2,
            )
        return found.solution


# --- what is climbed: functions of (policy, psi, phi, trajectory), one value per step


def ratio(policy: Any, psi: Any, phi: Any, trajectory: Any, recorded: bool = False) -> Tensor:
    """The ratio of the probabilities of each action, to those of `phi` or to those that were recorded."""
    if recorded:
        return step_ratios(policy, psi, trajectory)
    new, old = (policy.log_prob(p, trajectory.observation, trajectory.action) for p in (psi, phi))
    return torch.exp(torch.where(trajectory.mask > 0, new - old, 0.0))


def soft_ratio(policy: Any, psi: Any, phi: Any, trajectory: Any, recorded: bool = False) -> Tensor:
    """The ratio, held between 0 and 2 (Xu and Zhu, eq. 7)."""
    return 2 * torch.sigmoid(2 * (ratio(policy, psi, phi, trajectory, recorded) - 1))


def linear_ratio(policy: Any, psi: Any, phi: Any, trajectory: Any) -> Tensor:
    """The growth of the ratio, to first order."""

    def log_prob(parameters: Any) -> Tensor:
        return policy.log_prob(parameters, trajectory.observation, trajectory.action)

    return torch.func.jvp(log_prob, (phi,), (_difference(psi, phi),))[1]


GAINS: dict[str, Callable[..., Tensor]] = {"ratio": ratio, "soft": soft_ratio, "linear": linear_ratio}


def _climbed(gain: str, recorded: bool) -> Callable[..., Tensor]:
    return partial(GAINS[gain], recorded=True) if recorded else GAINS[gain]


def _gained(policy: Any, gain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The part of one trajectory in the inner objective."""

    def gained(psi: Any, phi: Any, trajectory: Any, advantage: Tensor) -> Tensor:
        return torch.where(trajectory.mask > 0, gain(policy, psi, phi, trajectory) * advantage, 0.0).sum()

    return gained


# --- what holds it back: functions of (policy, psi, phi, trajectory), summed over the steps


def forward_divergence(policy: Any, psi: Any, phi: Any, trajectory: Any) -> Tensor:
    """From the policy that drew to the new one."""
    return (policy.kl(phi, psi, trajectory.observation) * trajectory.mask).sum()


def backward_divergence(policy: Any, psi: Any, phi: Any, trajectory: Any) -> Tensor:
    """From the new policy to the one that drew."""
    return (policy.kl(psi, phi, trajectory.observation) * trajectory.mask).sum()


def quadratic_divergence(policy: Any, psi: Any, phi: Any, trajectory: Any) -> Tensor:
    """The divergence to second order; its value and its gradient are zero at `phi`."""

    def slope(parameters: Any) -> Any:
        return torch.func.grad(lambda p: forward_divergence(policy, p, phi, trajectory))(parameters)

    way = _difference(psi, phi)
    bent = torch.func.jvp(slope, (phi,), (way,))[1]
    return 0.5 * _dot(bent, way)


def squared_distance(psi: Any, phi: Any) -> Tensor:
    """The squared Euclidean distance of parameters."""
    way = _difference(psi, phi)
    return _dot(way, way)


DISTANCES: dict[str, Callable[..., Tensor] | None] = {
    "D1": forward_divergence,
    "D2": backward_divergence,
    "D3": None,  # of parameters alone
    "quadratic": quadratic_divergence,
}


def _apart(policy: Any, distance: str) -> Callable[..., Tensor]:
    measure = DISTANCES[distance]
    assert measure is not None
    return lambda psi, phi, trajectory: measure(policy, psi, phi, trajectory)


def _difference(one: Any, other: Any) -> Any:
    return pytree.tree_map(torch.sub, one, other)


def _dot(one: Any, other: Any) -> Tensor:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return torch.stack([(a * b).sum() for a, b in pairs]).sum()


def _check(gain: str, distance: str, penalty: Any, recorded: bool) -> None:
    require_known(GAINS, gain=gain)
    require(FLAG, recorded=recorded)
    if recorded and gain == "linear":
        raise ValueError(
            "recorded=True: these are the denominators of ratios, and gain='linear' has no ratio; choose 'ratio' or "
            "'soft', or leave recorded out"
        )
    require_known(DISTANCES, distance=distance)
    if penalty is None or isinstance(penalty, int | float | str):  # and not a node or a tensor
        require(more_than(0), penalty=penalty)
