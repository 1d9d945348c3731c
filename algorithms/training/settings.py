"""What the names in a configuration stand for: environments, policies, estimators.

A new environment is a new row of `ENVIRONMENTS`: a function of a configuration and its options that returns a
`Setting`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stochgraph as sg

from ..environments.navigation import Navigation
from ..policies import GaussianMLP
from .configuration import Configuration, ConfigurationError, unknown

ESTIMATORS: Mapping[str, Callable[..., Any]] = {
    "SF": sg.SF,
    "LOO": sg.LOO,
    "LSF": sg.LSF,
    "LoadedDiCE": sg.LoadedDiCE,
    "LVC": sg.LVC,
    "Taylor": sg.Taylor,
    "MAML": sg.MAML,
    "EMAML": sg.EMAML,
    "SGMRLPublished": sg.SGMRLPublished,
    "FirstOrder": sg.FirstOrder,
}
POLICIES: Mapping[str, Callable[..., Any]] = {"gaussian": GaussianMLP}


class Setting(NamedTuple):
    """What is acted in, and by whom.

    Attributes:
        policy: has `initial(generator, dtype)`, the parameters to start from.
        trajectories: a sampler with the parents `(parameters, task)` and a field `reward` over time.
        tasks: declares the plate "task" of so many tasks.
        reference: the reward per step of standing still, a function of the task; `None` where there is no such thing.
    """

    policy: Any
    trajectories: sg.Sampler
    tasks: Callable[[int], Any]
    reference: Callable[[Tensor], Tensor] | None = None


def setting_of(configuration: Configuration) -> Setting:
    """The environment and the policy that a configuration names."""
    make = _named("environment", configuration.environment, ENVIRONMENTS)
    found: Setting = _called("environment_options", make, configuration.environment_options, configuration)
    if configuration.reference and found.reference is None:
        raise ConfigurationError(f"reference: {configuration.environment!r} does not say what standing still gives")
    return found


def estimator_of(configuration: Configuration, name: str | None = None) -> Any:
    """The estimator that a configuration names, or another one with its defaults."""
    if name is not None:
        return _named("estimator", name, ESTIMATORS)()
    make = _named("estimator", configuration.estimator, ESTIMATORS)
    return _called("estimator_options", make, configuration.estimator_options)


def optimizer_of(configuration: Configuration, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimiser that a configuration names, on these parameters; it ascends."""
    known = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    make = _named("optimizer", configuration.optimizer, known)
    options = {"lr": configuration.learning_rate, "maximize": True, **configuration.optimizer_options}
    return _called("optimizer_options", make, options, parameters)


def _policy(configuration: Configuration, observation: int, action: int) -> Any:
    make = _named("policy", configuration.policy, POLICIES)
    options = {"hidden": configuration.hidden, **configuration.policy_options}
    return _called("policy_options", make, options, observation, action)


def _navigation(
    configuration: Configuration, reward: Any = "squared distance", action_scale: float = 1.0, side: float = 0.5
) -> Setting:
    policy = _policy(configuration, 2, 2)

    def goals(n: int) -> Any:
        corner = torch.full((2,), side, dtype=getattr(torch, configuration.precision))
        return sg.sample("task", torch.distributions.Uniform, -corner, corner, n=n)

    def standing_still(goal: Tensor) -> Tensor:
        return -goal.norm() if reward == "distance" else -goal.square().sum()

    return Setting(policy, Navigation(policy, configuration.horizon, reward, action_scale), goals, standing_still)


ENVIRONMENTS: Mapping[str, Callable[..., Setting]] = {"navigation": _navigation}


def _named(field: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise ConfigurationError(f"{field}={name!r}: " + unknown(name, f"a known {field}", table))
    return table[name]


def _called(field: str, make: Callable[..., Any], options: Mapping[str, Any], *arguments: Any) -> Any:
    """`make(*arguments, **options)`; what it does not take or does not like is an error of the field."""
    try:
        bound = inspect.signature(make).bind(*arguments, **options)
    except TypeError as error:
        known = list(inspect.signature(make).parameters)[len(arguments) :]
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigurationError(f"{field}: {error}; {takes}") from error
    try:
        return make(*bound.args, **bound.kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{field}={dict(options)!r}: {error}") from error
