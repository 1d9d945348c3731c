"""The names in a configuration, and what they stand for: environments, policies, algorithms, estimators, optimisers.

A new environment is a new row of `ENVIRONMENTS`, anything that makes an `Environment` of options; or it stays in a
module of its own, and is named by that: `package.module:Name`. A new policy is a new row of `POLICIES`, which says what
makes it for an environment: of the sizes of observations and actions, of the hidden layers if it takes them, and of
options. A new algorithm is a new row of `META_ALGORITHMS`, or of `PLAIN_ALGORITHMS` if it takes no inner step: a
function of a `MetaProblem` that returns a `Template`; its keyword arguments are its options.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.errors.checks import shortened, shown

from .. import environments
from ..a2c import a2c
from ..bomrl import bomrl, fixed_sample_bomrl, practical_bomrl, tabular_bomrl
from ..emaml import emaml, emaml_published
from ..environments import Environment, Navigation
from ..inner_steps.advantages import LinearBaseline
from ..loo import loo
from ..lsf import dice_maml, lsf
from ..maml import first_order_maml, maml
from ..meta_sgd import LearnedRates, meta_sgd
from ..objectives.meta_policy_gradient import MetaProblem
from ..objectives.template import Template
from ..policies.actor_critic import ActorCritic
from ..policies.families import CategoricalMLP, GaussianMLP, HeteroscedasticMLP, Policy, TabularSoftmax
from ..policies.recurrent import CategoricalGRU, GaussianGRU
from ..ppo import ppo
from ..promp import promp
from ..reinforce import reinforce
from ..rollouts.trajectories import Rollouts
from ..sgmrl import sgmrl, sgmrl_first_order, sgmrl_published
from ..tmaml import tmaml
from .configuration import Configuration, ConfigurationError, allowed_types, type_words, unknown
from .devices import device_named
from .imported import imported, is_place
from .learners import Measures, TrustRegion
from .memory import check_memory, memory_of, need_of_parameters


def _bandit(arms: int = 5, pulls: int = 10) -> Environment:
    """One that shows what was pulled before, and what it paid."""
    return environments.Trials(environments.Bandit(arms, pulls))


ENVIRONMENTS: dict[str, Callable[..., Environment]] = {
    "navigation": environments.Navigation,
    "corner-navigation": environments.CornerNavigation,
    "line-navigation": environments.LineNavigation,
    "frozen-lake": environments.FrozenLake,
    "random-mdp": environments.RandomMDP,
    "half-cheetah": environments.half_cheetah,
    "ant": environments.ant,
    "walker2d": environments.walker2d,
    "swimmer": environments.swimmer,
    "bandit": _bandit,
    "gymnasium": environments.registered_environment,
}
POLICIES: dict[str, Callable[[Environment], Callable[..., Policy]]] = {
    "network": lambda environment: CategoricalMLP if environment.discrete else GaussianMLP,
    "network-with-variances": lambda _: HeteroscedasticMLP,
    "table": lambda _: TabularSoftmax,
    "recurrent": lambda environment: CategoricalGRU if environment.discrete else GaussianGRU,
}
META_ALGORITHMS: dict[str, Callable[..., Template]] = {
    "maml": maml,
    "first-order-maml": first_order_maml,
    "emaml": emaml,
    "emaml-published": emaml_published,
    "lsf": lsf,
    "dice-maml": dice_maml,
    "sgmrl": sgmrl,
    "sgmrl-published": sgmrl_published,
    "sgmrl-first-order": sgmrl_first_order,
    "loo": loo,
    "promp": promp,
    "tmaml": tmaml,
    "meta-sgd": meta_sgd,
    "bomrl": bomrl,
    "bomrl-practical": practical_bomrl,
    "bomrl-fixed-sample": fixed_sample_bomrl,
    "bomrl-tabular": tabular_bomrl,
}
PLAIN_ALGORITHMS: dict[str, Callable[..., Template]] = {"reinforce": reinforce, "a2c": a2c, "ppo": ppo}
ALGORITHMS = {**META_ALGORITHMS, **PLAIN_ALGORITHMS}


def _with_critic(policy: Policy, configuration: Configuration, environment: Environment) -> Policy:
    return ActorCritic(policy, environment.observation_size, configuration.hidden)


# Algorithms that learn more than the policy's parameters: what puts that in.
WRAPPERS: Mapping[str, Callable[[Policy, Configuration, Environment], Policy]] = {
    "meta-sgd": lambda policy, configuration, _: LearnedRates(policy, configuration.inner_rate),
    "a2c": _with_critic,
    "ppo": _with_critic,
}
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

# What a function raises that is called with options which do not suit it.
_UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def rollouts_of(configuration: Configuration) -> Rollouts:
    """The environment and the policy that a configuration names, together."""
    environment = _environment_of(configuration)
    policy = _policy_of(configuration, environment)
    if configuration.algorithm in WRAPPERS:
        policy = WRAPPERS[configuration.algorithm](policy, configuration, environment)
    if configuration.bootstrap and not isinstance(policy, ActorCritic):
        raise ConfigurationError(f"bootstrap: {configuration.algorithm!r} has no critic; choose 'a2c' or 'ppo'")
    _check_size(configuration, policy)
    try:
        return Rollouts(environment, policy, configuration.horizon, bootstrap=configuration.bootstrap)
    except ValueError as error:
        raise ConfigurationError(f"policy={configuration.policy!r}: {error}") from error


def _environment_of(configuration: Configuration) -> Environment:
    """A known environment, or one that is imported."""
    name = configuration.environment
    make = imported("environment", name) if is_place(name) else _named("environment", name, ENVIRONMENTS)
    environment = _called("environment_options", make, configuration.environment_options)
    if not isinstance(environment, Environment):
        raise ConfigurationError(
            f"environment={shown(name)}: it makes an object of {type(environment).__name__}; expected one of "
            "stochgraph.algorithms.environments.Environment"
        )
    return environment


def _policy_of(configuration: Configuration, environment: Environment) -> Policy:
    make = _named("policy", configuration.policy, POLICIES)(environment)
    layers = {"hidden": configuration.hidden} if "hidden" in inspect.signature(make).parameters else {}
    options = {**layers, **configuration.policy_options}
    found: Policy = _called("policy_options", make, options, environment.observation_size, environment.action_size)
    return found


def _check_size(configuration: Configuration, policy: Policy) -> None:
    """Refuse a policy whose parameters cannot be held, before they are made: here first, then on the run's device."""
    need = need_of_parameters(policy, getattr(torch, configuration.precision))
    for device in {torch.device("cpu"), device_named(configuration.device)}:
        check_memory(need, memory_of(device))


def reference_of(configuration: Configuration, environment: Environment) -> Callable[[Tensor], Tensor] | None:
    """The reward per step of standing still, if it is to be subtracted; it takes variance away."""
    if not configuration.reference:
        return None
    if not isinstance(environment, Navigation) or environment.goal_size is not None:
        raise ConfigurationError("reference: only 'navigation' without goal_size says what standing still gives")
    distance = environment.reward == "distance"
    return lambda goal: -goal.norm() if distance else -goal.square().sum()


def problem_of(configuration: Configuration, trajectories: sg.Sampler, rollouts: Rollouts) -> MetaProblem:
    """The problem that the run sets its algorithm."""
    run = configuration
    if run.inner_baseline not in (None, "linear"):
        raise ConfigurationError(f"inner_baseline={shown(run.inner_baseline)}: choose 'linear' or none")
    if run.outer_baseline not in (None, "loo", "mean", "linear"):
        raise ConfigurationError(
            f"outer_baseline={shown(run.outer_baseline)}: choose 'loo', 'mean' or 'linear', or none"
        )
    try:
        return MetaProblem(
            trajectories=trajectories,
            tasks=partial(rollouts.environment.declare_tasks, run.tasks),
            policy=rollouts.policy,
            inner_rate=run.inner_rate,
            steps=run.steps,
            inner=run.inner,
            outer=run.outer,
            discount=run.discount,
            baseline=run.outer_baseline,
            inner_baseline=LinearBaseline() if run.inner_baseline else None,
            decay=run.advantage_decay,
            standardise=run.standardise,
            reference=reference_of(run, rollouts.environment),
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def template_of(configuration: Configuration, problem: MetaProblem) -> Template:
    """The algorithm that a configuration names, for this problem."""
    make = _named("algorithm", configuration.algorithm, ALGORITHMS)
    template: Template = _called("algorithm_options", make, configuration.algorithm_options, problem)
    if configuration.estimator is None:
        if configuration.estimator_options:
            raise ConfigurationError("estimator_options: name the estimator that they are for")
        return template
    if template.replayed is not None:
        raise ConfigurationError(
            f"estimator={configuration.estimator!r}: {configuration.algorithm!r} climbs an objective of its own, which "
            "has no estimators; choose another algorithm, or no estimator"
        )
    return template.with_estimator(estimator_of(configuration.estimator, configuration.estimator_options))


def check_draws(configuration: Configuration, template: Template, tasks: int) -> None:
    """Refuse baselines that leave one draw out where there is no other: no meta-batch could be drawn.

    Args:
        configuration: the run's.
        template: the algorithm that it names.
        tasks: those of the smallest shard.
    """
    run = configuration
    if template.replayed is None:  # an objective of its own has a baseline of its own, which leaves none out
        _check_others("outer", run.outer, f"outer_baseline={run.outer_baseline!r}", run.outer_baseline, tasks)
    estimator = template.estimators.get("D1")
    baseline = getattr(estimator, "baseline", None)
    given = f"the baseline {baseline!r} of the inner samples"
    if getattr(estimator, "curvature", None) == "loaded":
        _check_others("inner", run.inner, given, baseline, tasks)
    elif baseline in ("loo", "mean") and tasks < 2:
        raise ConfigurationError(
            f"tasks={run.tasks}, shards={run.shards}: {given} compares every task with the others of its shard; give "
            "at least 2 tasks to each shard, or no such baseline"
        )


def _check_others(field: str, count: int, given: str, baseline: Any, tasks: int) -> None:
    """Refuse a plate of one where a baseline compares a trajectory with the others: its task's, or ("mean") all."""
    others = {"loo": count, "linear": count, "mean": count * tasks}
    if others.get(baseline, 2) < 2:
        of = "any task" if baseline == "mean" else "its task"
        raise ConfigurationError(
            f"{field}={count}: {given} compares every trajectory with the others of {of}; give {field}=2 at least, or "
            "no such baseline"
        )


def estimator_of(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """The estimator of this name."""
    return _called("estimator_options", _named("estimator", name, ESTIMATORS), options or {})


def trust_region_of(configuration: Configuration, template: Template, measures: Measures) -> TrustRegion:
    """Trust-region steps as a configuration has them."""
    if template.replayed is not None or configuration.epochs not in (None, 1):
        raise ConfigurationError(
            f"optimizer='TRPO' takes one step on the surrogate of a meta-batch: no algorithm with an objective of its "
            f"own, as {configuration.algorithm!r} may be, and no epochs. Choose an optimiser of torch.optim"
        )
    found: TrustRegion = _called("optimizer_options", TrustRegion, configuration.optimizer_options, measures)
    return found


def optimizer_of(configuration: Configuration, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimiser that a configuration names, on these parameters; it ascends."""
    known = {name: kind for name, kind in vars(torch.optim).items() if _ascends(kind)}
    make = _named("optimizer", configuration.optimizer, {**known, "TRPO": None})
    if "maximize" in configuration.optimizer_options:
        raise ConfigurationError("optimizer_options: 'maximize' is not an option, a meta-gradient is always climbed")
    if "lr" in configuration.optimizer_options:
        raise ConfigurationError("optimizer_options: 'lr' has a field of its own, learning_rate")
    options = {"lr": configuration.learning_rate, "maximize": True, **configuration.optimizer_options}
    optimizer: torch.optim.Optimizer = _called("optimizer_options", make, options, parameters)
    _try(configuration.optimizer, make, options, parameters)
    return optimizer


def _try(
    name: str, make: Callable[..., torch.optim.Optimizer], options: Mapping[str, Any], parameters: list[Tensor]
) -> None:
    """Refuse options that an optimiser looks at no earlier than in its first step: one is made, on copies."""
    copies = [leaf.clone() for leaf in parameters]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    try:
        make(copies, **options).step()
    except _UNFIT as error:
        given = f"optimizer={name!r}, optimizer_options={shown(dict(options))}"
        raise ConfigurationError(f"{given}: {shortened(str(error), 500)}") from error


def _ascends(kind: Any) -> bool:
    """True for an optimiser that can climb along gradients as they are, which are dense."""
    if not inspect.isclass(kind) or not issubclass(kind, torch.optim.Optimizer) or kind is torch.optim.SparseAdam:
        return False
    return "maximize" in inspect.signature(kind).parameters


def _named(field: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise ConfigurationError(f"{field}={shown(name)}: " + unknown(name, f"a known {field}", table))
    return table[name]


def _called(field: str, make: Callable[..., Any], options: Mapping[str, Any], *arguments: Any) -> Any:
    """`make(*arguments, **options)`; what it does not take or does not like is an error of the field."""
    try:
        bound = inspect.signature(make).bind(*arguments, **options)
    except TypeError as error:
        known = list(inspect.signature(make).parameters)[len(arguments) :]
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigurationError(f"{field}: {shortened(str(error), 500)}; {takes}") from error
    _check_types(field, make, options)
    try:
        return make(*bound.args, **bound.kwargs)
    except (ImportError, *_UNFIT) as error:
        # Without options it is the name itself that does not fit.
        given = f"{field}={shown(dict(options))}" if options else field.removesuffix("_options")
        raise ConfigurationError(f"{given}: {shortened(str(error), 500)}") from error


def _check_types(field: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options of another type than the annotated one, where that is one of JSON's: "no" is not false."""
    hints = _hints(make)
    for name, value in options.items():
        allowed = _kinds(hints.get(name))
        if not allowed or type(value) in allowed or (float in allowed and type(value) is int):
            continue
        expected = type_words(hints[name]) + (", as JSON has it" if bool in allowed else "")
        raise ConfigurationError(f"{field}: {name}={shown(value)}: expected {expected}, got {type(value).__name__}")


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    """The annotated types of parameters, as far as they can be told."""
    try:
        return typing.get_type_hints(make.__init__ if inspect.isclass(make) else make)
    except (NameError, TypeError):
        return {}


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a simple annotation allows; none: any."""
    kinds = allowed_types(hint)
    return kinds if set(kinds) <= {bool, int, float, str, type(None)} else ()
