"""Checks before, while and after trajectories are drawn, so that errors name what is wrong, and where."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg

from ..environments import Environment
from ..policies.families import Policy

_ROUNDING = 1e-3  # by which a policy may differ from itself
_IN_ORDER = {  # of a step, one follows from the other
    "observation": "the observation",
    "action": "the policy's action",
    "log_prob": "the policy's log-probability",
    "reward": "the reward",
}


def check_parameters(environment: Environment, policy: Policy, parameters: Any) -> None:
    """Refuse to act with parameters that are not finite, which is where the trouble began."""
    named, _ = pytree.tree_flatten_with_path(parameters)
    broken = [pytree.keystr(path) for path, leaf in named if not torch.isfinite(leaf).all()]
    if broken:
        raise sg.SamplingError(
            f"{type(environment).__name__}: {type(policy).__name__} is to act with parameters that are not finite: "
            f"{', '.join(broken)}. To blame are those that were handed in, or an inner step: its size, or its data"
        )


def check_trajectory(environment: Environment, found: Any) -> None:
    """Refuse what is not finite, with the first step at which something is not."""
    places = {name: place for name in _IN_ORDER if (place := _first_broken(getattr(found, name), found.mask.dim()))}
    if not places:
        return
    name = min(places, key=lambda name: places[name][-1])
    *plates, step = places[name]
    where = [f"{word} {i}" for word, i in zip(("task", "trajectory"), plates, strict=False)]
    value = getattr(found, name)[tuple(places[name])]
    hint = "; adapted parameters may have left their scale (inner step size)" if "policy" in _IN_ORDER[name] else ""
    raise sg.SamplingError(
        f"{type(environment).__name__}: {_IN_ORDER[name]} is {value.tolist()} at "
        f"{', '.join([*where, f'step {step}'])}{hint}"
    )


def check_agreement(policy: Policy, parameters: Any, found: Any) -> None:
    """Refuse a policy that scores a trajectory otherwise than it said when it acted; first and last stand for all.

    Rounding may part a few steps, saturated actions for instance; a mistake parts most of them.
    """
    for i in (0, -1):
        place = (i,) * (found.mask.dim() - 1)
        own, one = (pytree.tree_map(lambda leaf: leaf[place], tree) for tree in (parameters, found))  # noqa: B023
        running = one.mask > 0
        sampled = one.log_prob[running]
        scored = policy.log_prob(own, one.observation, one.action)[running]
        apart = _apart(sampled, scored)
        if apart.sum() * 2 > len(apart):
            step = int(apart.nonzero()[0])
            raise ValueError(_disagreement(policy, sampled[step], scored[step]) + f" (step {step} of an episode)")


def _apart(sampled: Tensor, scored: Tensor) -> Tensor:
    """The places at which the two differ by more than rounding."""
    return ~torch.isclose(sampled, scored.to(sampled), rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)


def _disagreement(policy: Policy, sampled: Tensor, scored: Tensor) -> str:
    return (
        f"{type(policy).__name__}: sample returns an action with the log-probability {float(sampled):.6g}, log_prob "
        f"says {float(scored):.6g} of it: they must agree"
    )


def _first_broken(field: Tensor, dims: int) -> list[int] | None:
    """The place of the earliest step of a field that is not finite, one index per plate and the step."""
    finite = torch.isfinite(field)
    if finite.all():
        return None
    broken: list[list[int]] = torch.nonzero(~finite)[:, :dims].tolist()
    return min(broken, key=lambda place: place[-1])


def check_reset(environment: Environment, episodes: int, observation: Tensor) -> None:
    """The first observations of an environment."""
    expected = (episodes, environment.observation_size)
    got = tuple(observation.shape) if isinstance(observation, Tensor) else type(observation).__name__
    if got != expected:
        raise ValueError(
            f"{type(environment).__name__}.reset: a tensor of observations {expected} is expected, got {got}"
        )


def check_step(environment: Environment, episodes: int, results: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A step's results, which would be broadcast to something else if their shapes were wrong."""
    each = results if isinstance(results, tuple | list) else (results,)
    if len(each) != 3 or not all(isinstance(result, Tensor) for result in each):
        got = ", ".join(type(result).__name__ for result in each)
        raise ValueError(
            f"{type(environment).__name__}.step: three tensors are expected, observations, rewards and ends, got {got}"
        )
    observation, reward, done = each
    found = (observation.shape, reward.shape, done.shape)
    if found != ((episodes, environment.observation_size), (episodes,), (episodes,)) or done.dtype != torch.bool:
        raise ValueError(
            f"{type(environment).__name__}.step: observations ({episodes}, {environment.observation_size}), rewards "
            f"({episodes},) and ends ({episodes},) of booleans are expected, got {tuple(observation.shape)}, "
            f"{tuple(reward.shape)} and {tuple(done.shape)} of {done.dtype}"
        )
    return observation, reward, done


def check_horizons(environment: Environment, horizon: int | None) -> None:
    """The number of steps that is given, and the environment's own."""
    given = {} if horizon is None else {"horizon": horizon}
    for name, steps in (given | {f"{type(environment).__name__}.horizon": environment.horizon}).items():
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{name} must be at least 1 step, got {steps!r}")


def check_fit(environment: Environment, policy: Policy) -> None:
    """Try the policy on an observation of zeros, and look at the action. The default generators are left alone."""
    for word, given in (("environment", environment), ("policy", policy)):
        if isinstance(given, type):
            raise TypeError(
                f"Rollouts: the {word} is the class {given.__name__} itself: make one of it, {given.__name__}(...)"
            )
    name, kind = type(policy).__name__, type(environment).__name__
    observation = torch.zeros(1, environment.observation_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            parameters = policy.initial(torch.Generator())
            like = next(leaf for leaf in pytree.tree_leaves(parameters) if leaf.is_floating_point())
            observation = observation.to(like)
            action, log_prob = policy.sample(parameters, observation, policy.noise((1,), like))
            scored = policy.log_prob(parameters, observation, action)
    except RuntimeError as error:
        size = environment.observation_size
        raise ValueError(f"{name} does not take the observations of {kind}, vectors of {size}: {error}") from error
    expected = (1,) if environment.discrete else (1, environment.action_size)
    if action.shape != expected or action.is_floating_point() == environment.discrete:
        wanted = "an integer" if environment.discrete else f"a vector of {environment.action_size}"
        raise ValueError(
            f"an action of {kind} is {wanted}, one of {name} is of {action.dtype} and has the shape "
            f"{tuple(action.shape[1:])}: choose a policy for {'discrete' if environment.discrete else 'such'} actions"
        )
    if log_prob.shape != (1,) or scored.shape != (1,):
        raise ValueError(
            f"{name}: log-probabilities of one action have the shape (1,), sample returns {tuple(log_prob.shape)} and "
            f"log_prob {tuple(scored.shape)}"
        )
    if _apart(log_prob, scored).any():
        raise ValueError(_disagreement(policy, log_prob, scored))
    actions = getattr(policy, "actions", environment.action_size)
    if environment.discrete and actions != environment.action_size:
        raise ValueError(f"{kind} has {environment.action_size} actions, {name} chooses among {actions}")
