"""What the names in a configuration stand for: environments, policies, estimators, optimisers.

A new environment is a new row of `ENVIRONMENTS`, anything that makes an `Environment` of options.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

import stochgraph as sg

from .. import environments
from ..advantages import Baseline, LinearBaseline
from ..environments import Environment, Navigation
from ..policies import CategoricalMLP, GaussianMLP, Policy, TabularSoftmax
from ..policy_gradient import ascend_advantages, ascend_returns
from ..replays import Adapt
from ..rollouts import Rollouts
from .configuration import Configuration, ConfigurationError, unknown
from .learners import Clipping, TrustRegion

ENVIRONMENTS: Mapping[str, Callable[..., Environment]] = {
    "navigation": environments.Navigation,
    "corner-navigation": environments.CornerNavigation,
    "line-navigation": environments.LineNavigation,
    "frozen-lake": environments.FrozenLake,
    "random-mdp": environments.RandomMDP,
    "half-cheetah": environments.half_cheetah,
    "ant": environments.ant,
    "walker2d": environments.walker2d,
    "swimmer": environments.swimmer,
}
POLICIES = ("network", "table")  # for continuous or discrete actions, as the environment has them
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


def rollouts_of(configuration: Configuration) -> Rollouts:
    """The environment and the policy that a configuration names, together."""
    make = _named("environment", configuration.environment, ENVIRONMENTS)
    environment: Environment = _called("environment_options", make, configuration.environment_options)
    policy = _policy_of(configuration, environment)
    try:
        return Rollouts(environment, policy, configuration.horizon)
    except ValueError as error:
        raise ConfigurationError(f"policy={configuration.policy!r}: {error}") from error


def _policy_of(configuration: Configuration, environment: Environment) -> Policy:
    _named("policy", configuration.policy, dict.fromkeys(POLICIES))
    sizes = (environment.observation_size, environment.action_size)
    make: Callable[..., Policy] = CategoricalMLP if environment.discrete else GaussianMLP
    options = {"hidden": configuration.hidden, **configuration.policy_options}
    if configuration.policy == "table":
        make, options = TabularSoftmax, configuration.policy_options
    found: Policy = _called("policy_options", make, options, *sizes)
    return found


def reference_of(configuration: Configuration, environment: Environment) -> Callable[[Tensor], Tensor] | None:
    """The reward per step of standing still, if it is to be subtracted; it takes variance away."""
    if not configuration.reference:
        return None
    if not isinstance(environment, Navigation) or environment.goal_size is not None:
        raise ConfigurationError("reference: only 'navigation' without goal_size says what standing still gives")
    distance = environment.reward == "distance"
    return lambda goal: -goal.norm() if distance else -goal.square().sum()


def estimator_of(configuration: Configuration, name: str | None = None) -> Any:
    """The estimator that a configuration names, or another one with its defaults."""
    if name is not None:
        return _named("estimator", name, ESTIMATORS)()
    make = _named("estimator", configuration.estimator, ESTIMATORS)
    return _called("estimator_options", make, configuration.estimator_options)


def estimators_of(configuration: Configuration, samples: Iterable[str], name: str | None = None) -> Any:
    """The estimator of every sample node: with a baseline of its own for the trajectories after adaptation."""
    chosen, baseline = estimator_of(configuration, name), configuration.outer_baseline
    if baseline is None:
        return chosen
    if baseline not in ("loo", "mean", "linear"):
        raise ConfigurationError(f"outer_baseline={baseline!r}: choose 'loo', 'mean' or 'linear', or none")
    return {**{s: chosen for s in samples if s not in ("task", "tau")}, "tau": sg.SF(baseline=baseline)}  # type: ignore[arg-type]


def adaptation_of(configuration: Configuration, policy: Policy, ratio: bool = False) -> Adapt | None:
    """An inner step on advantages, if the configuration asks for one; it has to be declared."""
    run = configuration
    if run.inner_baseline not in (None, "linear"):
        raise ConfigurationError(f"inner_baseline={run.inner_baseline!r}: choose 'linear' or none")
    if run.inner_baseline is None and run.advantage_decay == 1 and not run.standardise:
        return None
    options = {"discount": run.discount, "decay": run.advantage_decay, "standardise": run.standardise, "ratio": ratio}
    baseline = LinearBaseline() if run.inner_baseline else None

    def adapt(theta: Any, data: Any, plate: str) -> Any:
        return ascend_advantages(theta, data, plate, policy, run.inner_rate, baseline=baseline, **options)  # type: ignore[arg-type]

    return adapt


def recorded_adaptation_of(configuration: Configuration, policy: Policy, ratio: bool = False) -> Adapt:
    """The same inner step on recorded trajectories; `ratio` as in `ascend_advantages`."""
    declared, run = adaptation_of(configuration, policy, ratio), configuration
    if declared is not None:
        return declared
    options: dict[str, Any] = {"discount": run.discount, "ratio": ratio}
    return lambda theta, data, plate: ascend_returns(theta, data, plate, policy, run.inner_rate, **options)


def trust_region_of(configuration: Configuration, divergence: sg.Compiled) -> TrustRegion:
    """Trust-region steps as a configuration has them."""
    found: TrustRegion = _called("optimizer_options", TrustRegion, configuration.optimizer_options, divergence)
    return found


def clipping_of(configuration: Configuration) -> Clipping:
    """The options of clipped epochs."""
    found: Clipping = _called("optimizer_options", Clipping, configuration.optimizer_options)
    return found


def clipped_baseline_of(configuration: Configuration) -> Baseline | None:
    """What the advantages after adaptation are measured against in clipped epochs."""
    if configuration.outer_baseline not in (None, "linear"):
        raise ConfigurationError(f"outer_baseline={configuration.outer_baseline!r}: ProMP takes 'linear' or none")
    return LinearBaseline() if configuration.outer_baseline else None


def optimizer_of(configuration: Configuration, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimiser that a configuration names, on these parameters; it ascends."""
    known = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    make = _named("optimizer", configuration.optimizer, {**known, "TRPO": None, "ProMP": None})
    options = {"lr": configuration.learning_rate, "maximize": True, **configuration.optimizer_options}
    return _called("optimizer_options", make, options, parameters)


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
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{field}={dict(options)!r}: {error}") from error
