"""Trajectories of a policy in an environment, as a distribution that a declaration can sample from."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.errors.checks import FLAG, require

from ..environments import Environment
from ..environments.threads import torch_threads
from ..policies.families import Policy
from .checks import (
    check_agreement,
    check_fit,
    check_horizons,
    check_parameters,
    check_reset,
    check_step,
    check_trajectory,
)


class Trajectory(NamedTuple):
    """Trajectories, each field of shape `(*plates, time, ...)`; from the end of an episode on, all of it is zero.

    Attributes:
        observation: what the policy saw, `(*plates, time, observation)`.
        action: what it did, `(*plates, time, action)`, or `(*plates, time)` of integers.
        reward: what it got for it, `(*plates, time)`.
        mask: 1 while the episode runs, the step that ends it included, and 0 after, `(*plates, time)`.
        log_prob: the log-probability of each action under the parameters that drew it, `(*plates, time)`.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    log_prob: Tensor


class CutTrajectory(NamedTuple):
    """Trajectories that may go on where they are cut off: the fields of a `Trajectory`, and what followed.

    Attributes:
        after: what would be seen after each step, `(*plates, time, observation)`.
        terminal: 1 where a step ended the episode for good, `(*plates, time)`; 0 where a limit of time or the horizon
            did.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    log_prob: Tensor
    after: Tensor
    terminal: Tensor


class EnumeratedTrajectory(NamedTuple):
    """All trajectories that a task can have: the fields of a `Trajectory`, and what the environment's part is.

    Attributes:
        transition: the log-probability of what the environment did in each step, `(*plates, time)`. It does not depend
            on the policy, so a drawn trajectory does without it; enumerated ones need it to sum to 1.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    log_prob: Tensor
    transition: Tensor


class Rollouts(sg.Sampler):
    r"""Trajectories of a policy: :math:`a_t \sim \pi_\theta(\cdot \mid o_t)`, and the environment does the rest.

    Parents of a sample node: the policy's parameters and the task. All episodes of all plates are one batch of the
    environment; the policy acts in one call per step, mapped over the tasks if each has parameters of its own. The
    log-probability of a trajectory is that of its actions, one per step, and 0 from the end of the episode on. Where
    the environment enumerates its episodes, as small tabular ones do, `stochgraph.verify` works on its rollouts.

    Scored step by step, an action is credited with the rewards from its own step on. With `stepwise=False` the whole
    log-probability stands at the first step, so that each action is credited with all rewards, as papers print it:

    .. math:: \sum_t \nabla \log \pi(a_t | o_t) \sum_{u \ge t} r_u \quad \text{or} \quad
              \sum_t \nabla \log \pi(a_t | o_t) \sum_u r_u

    Both have the same expectation, and the second varies more. It is not for estimators that tell the steps of a
    trajectory apart: `LVC`, `LoadedDiCE`, `Taylor`.

    Args:
        environment: what is acted in.
        policy: what acts.
        horizon: the number of steps; the environment's if `None`.
        stepwise: whether actions are scored one by one, or a trajectory as a whole.
        bootstrap: record what follows each step, as a `CutTrajectory`: for values of what comes after a limit of time.

    References:
        Tang (2022), eqs. 1, 8 and 11, print scores of whole trajectories; its experiments have stepwise ones.

    Example:
        >>> import torch
        >>> import stochgraph as sg
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=(8,)), horizon=5)
        >>> @sg.graph
        ... def objective(theta):
        ...     task = walks.environment.declare_tasks(3)
        ...     return sg.mean(sg.sum(sg.sample("tau", walks, theta, task, n=4).reward))
        >>> trace = objective.compile(sg.SF()).sample(walks.policy.initial())
        >>> trace.draws["tau"].reward.shape
        torch.Size([3, 4, 5])
    """

    time = batched = True

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        horizon: int | None = None,
        stepwise: bool = True,
        bootstrap: bool = False,
    ) -> None:
        check_fit(environment, policy)
        check_horizons(environment, horizon)
        require(FLAG, stepwise=stepwise, bootstrap=bootstrap)
        self.environment = environment
        self.policy = policy
        self.horizon = horizon or environment.horizon
        self.stepwise = stepwise
        self.kind = CutTrajectory if bootstrap else Trajectory

    @torch.no_grad()
    def draw(self, batch_shape: torch.Size, *parents: Any) -> Any:
        parameters, task = parents
        like = next(leaf for leaf in pytree.tree_leaves(parameters) if leaf.is_floating_point())
        check_parameters(self.environment, self.policy, parameters)
        event = task.shape[len(batch_shape) :]
        task = task.to(like).expand(*batch_shape, *event).reshape(-1, *event)
        act = acting(self.policy, parameters, batch_shape)
        noise = self.policy.noise((self.horizon, math.prod(batch_shape)), like)
        with torch_threads(1):  # steps are small, and idle threads would spin and take the processor from a simulator's
            walked = self._walk(act, task, noise, like)
        found = pytree.tree_map(lambda leaf: leaf.unflatten(0, batch_shape), walked)
        check_trajectory(self.environment, found)
        check_agreement(self.policy, parameters, found)
        return found

    def log_prob(self, value: Trajectory | EnumeratedTrajectory, *parents: Any) -> Tensor:
        scored = self.policy.log_prob(parents[0], value.observation, value.action)
        scored = torch.where(value.mask > 0, scored, torch.zeros_like(scored))
        transition = getattr(value, "transition", None)
        if transition is not None:
            scored = scored + transition
        return scored if self.stepwise else torch.cat([scored.sum(-1, True), torch.zeros_like(scored[..., 1:])], -1)

    def log_prob_stacked(self, value: Trajectory | EnumeratedTrajectory, *parents: Any) -> Tensor:
        parameters, lead = parents[0], value.reward.shape
        sets = {leaf.shape[0] for leaf in pytree.tree_leaves(parameters)}
        if sets == {1}:  # tasks differ, which do not matter here: one batch
            return self.log_prob(value, pytree.tree_map(lambda leaf: leaf.squeeze(0), parameters))
        if sets != {lead[0]} or not getattr(self.policy, "batched", False):
            return super().log_prob_stacked(value, *parents)
        kept = len(lead) - getattr(self.policy, "recurrent", False)  # time stays, where a policy looks along it
        flat = pytree.tree_map(lambda leaf: leaf.reshape(lead[0], -1, *leaf.shape[kept:]), value)  # (sets, batch, ...)
        return self.log_prob(flat, parameters).reshape(lead)

    def enumerate(self, *parents: Any) -> EnumeratedTrajectory:
        """All trajectories of one task, stacked; impossible ones have probability zero.

        Raises:
            NotImplementedError: the environment does not enumerate its episodes, or has too many of them.
        """
        parameters, task = parents
        like = next(leaf for leaf in pytree.tree_leaves(parameters) if leaf.is_floating_point())
        episodes = self.environment.enumerate(task.to(like), self.horizon)
        scored = self.policy.log_prob(parameters, episodes.observation, episodes.action).detach()
        return EnumeratedTrajectory(*episodes[:4], scored * episodes.mask, episodes.transition)

    def _walk(self, act: "Act", task: Tensor, noise: Tensor, like: Tensor) -> "Drawn":
        """One batch of episodes, `(episodes, time, ...)`."""
        record = Record(like, self.kind)
        observation = self.environment.reset(task)
        check_reset(self.environment, len(task), observation)
        running = torch.ones(len(task), dtype=torch.bool, device=like.device)
        for shock in noise:
            observation = observation.to(like, copy=True)  # environments may write into all that they return or get
            action, log_prob = act(observation, shock)
            after, reward, done = check_step(self.environment, len(task), self.environment.step(action.clone()))
            made = (observation, action, reward.to(like, copy=True), running, log_prob)
            record.add(*made, *self._following(after, done, like))
            if done.any():
                running = running & ~done
                if not running.any():
                    break
            observation = after
        return record.trajectory(self.horizon)

    def _following(self, after: Tensor, done: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """The further fields of a `CutTrajectory`."""
        if self.kind is Trajectory:
            return ()
        cut = self.environment.truncated
        return after.to(like, copy=True), done if cut is None else done & ~cut


Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Drawn = Trajectory | CutTrajectory


def acting(policy: Policy, parameters: Any, plates: torch.Size) -> Act:
    """The policy as a function of the observations and the noise of all episodes, whatever plates parameters have.

    Parameters have `len(plates)` leading dimensions, of size 1 where they do not vary. They are stacked over the outer
    plates, up to the last one on which they vary, and the policy is called, or mapped, once for all of them: a layer is
    one batched product of matrices. Over the plates within, it works on batches of observations as it does anyway.
    """
    leaves, spec = pytree.tree_flatten(parameters)
    varying = [d for d in range(len(plates)) if any(leaf.shape[d] != 1 for leaf in leaves)]
    outer = plates[: varying[-1] + 1] if varying else torch.Size()
    sets = math.prod(outer)

    def flat(leaf: Tensor) -> Tensor:
        event = leaf.shape[len(plates) :]
        lead = (sets,) if varying else ()
        return leaf.reshape(*leaf.shape[: len(outer)], *event).expand(*outer, *event).reshape(*lead, *event)

    own = pytree.tree_unflatten([flat(leaf) for leaf in leaves], spec)
    mapped = _sampling(policy, bool(varying))
    if not varying:
        return lambda observation, noise: mapped(own, observation, noise)

    def act(observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        per_set = (grouped.reshape(sets, -1, *grouped.shape[1:]) for grouped in (observation, noise))
        action, log_prob = mapped(own, *per_set)
        return action.flatten(0, 1), log_prob.flatten(0, 1)

    return act


def _sampling(policy: Any, stacked: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """`sample` of a policy, mapped over sets of parameters if these are stacked and it does not take them as they are.

    That of a recurrent policy keeps the state from step to step.
    """
    mapped = torch.vmap if stacked and not getattr(policy, "batched", False) else lambda function: function
    if not getattr(policy, "recurrent", False):
        return mapped(policy.sample)
    start, act, state = mapped(policy.start), mapped(policy.act), None

    def sample(parameters: Any, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal state
        before = start(parameters, observation) if state is None else state
        state, action, log_prob = act(parameters, before, observation, noise)
        return action, log_prob

    return sample


class Record:
    """The steps of a batch of episodes as they are made. What is added is kept as it is, and stacked at the end.

    Args:
        like: floating-point fields and masks get its dtype.
        kind: what they become.
    """

    def __init__(self, like: Tensor, kind: type[Drawn] = Trajectory) -> None:
        self.like = like
        self.kind = kind
        self.fields: list[list[Tensor]] = [[] for _ in kind._fields]

    def add(self, *step: Tensor) -> None:
        """The fields at the next step, each `(episodes, ...)`."""
        for made, field in zip(self.fields, step, strict=True):
            made.append(field)

    def trajectory(self, horizon: int) -> Drawn:
        """All steps, `(episodes, time, ...)`, zero where nothing was made."""
        whole = self.kind(*(self._stacked(made, horizon) for made in self.fields))
        ended = whole.mask == 0
        if not ended.any():
            return whole
        return self.kind(*(leaf.masked_fill(ended.view(*ended.shape, *[1] * (leaf.dim() - 2)), 0) for leaf in whole))

    def _stacked(self, made: list[Tensor], horizon: int) -> Tensor:
        """One field, whose steps are let go: at no time there are two copies of all fields."""
        whole = torch.stack(made + [torch.zeros_like(made[0])] * (horizon - len(made)), dim=1)
        made.clear()
        return whole.to(self.like) if whole.is_floating_point() or whole.dtype == torch.bool else whole
