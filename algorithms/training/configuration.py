"""The configuration of a run: one frozen dataclass, written as JSON next to its results and read back from there."""

import dataclasses
import difflib
import json
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from stochgraph.errors.checks import shortened, shown
from stochgraph.run.lowered import LOWERINGS

from .files import replacing

# What may differ when a run is continued: how far it goes and how it is kept, not what it computes.
_FREE = {"output", "iterations", "evaluate_every", "checkpoint_every", "checkpoints_kept", "chunk", "threads", "device"}

_DEFAULT = object()
_LARGEST = 2**31 - 1  # of the integers: what some of torch's sizes are counted in


class ConfigurationError(ValueError):
    """A configuration that no run can be made of. The message names the field, and what it may be."""


def _option(default: Any, words: str, least: float | None = None, most: float | None = None) -> Any:
    """A field with its description, and the least and the largest number that it may be."""
    return field(default=default, metadata={"words": words, "least": least, "most": most})


def _words(words: str) -> dict[str, Any]:
    return {"words": words, "least": None, "most": None}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One run of meta-training. Every field is also an option of `stochgraph train`; `describe` tells what it means.

    Example:
        >>> from stochgraph.algorithms.training import Configuration
        >>> run = Configuration(iterations=10, hidden=(8,))
        >>> Configuration.from_json(run.to_json()) == run
        True
        >>> Configuration.from_mapping({"iteratoins": 3})
        Traceback (most recent call last):
        ...
        stochgraph.algorithms.training.configuration.ConfigurationError: 'iteratoins' is not ... 'iterations'?
    """

    output: str = _option("results/run", "the folder that everything is written to; what is there is continued")
    environment: str = _option("navigation", "the environment, by name, or package.module:Name")
    environment_options: dict[str, Any] = field(default_factory=dict, metadata=_words("options of the environment"))
    horizon: int | None = _option(None, "steps of an episode; none: as the environment has it", least=1)
    bootstrap: bool = _option(False, "the critic's value of what follows where a limit of time cuts off; a2c, ppo")
    reference: bool = _option(False, "subtract from every reward what standing still would give; less variance")
    policy: str = _option("network", "the policy, by name")
    hidden: tuple[int, ...] = _option((64, 64), "sizes of the policy's hidden layers", least=1)
    policy_options: dict[str, Any] = field(default_factory=dict, metadata=_words("options of the policy"))
    algorithm: str = _option("lsf", "the algorithm, by name")
    algorithm_options: dict[str, Any] = field(default_factory=dict, metadata=_words("options of the algorithm"))
    estimator: str | None = _option(None, "another estimator of the inner samples, by name; none: the algorithm's own")
    estimator_options: dict[str, Any] = field(default_factory=dict, metadata=_words("options of the estimator"))
    steps: int = _option(1, "inner policy-gradient steps", least=0)
    inner_rate: float = _option(0.02, "the step size of the inner steps", least=0)
    tasks: int = _option(20, "tasks of a meta-batch", least=1)
    inner: int = _option(20, "trajectories per task and inner step", least=1)
    outer: int = _option(20, "trajectories per task after adaptation", least=1)
    discount: float = _option(0.99, "the discount per time step", least=0, most=1)
    inner_baseline: str | None = _option("linear", "baseline of the inner advantages: linear; none: plain returns")
    advantage_decay: float = _option(1.0, "the decay of generalised advantages in the inner steps", least=0, most=1)
    standardise: bool = _option(True, "standardise the inner advantages of a task's batch")
    outer_baseline: str | None = _option(
        "linear", "baseline of the returns after adaptation: loo, mean, linear; or none"
    )
    optimizer: str = _option("Adam", "what takes the meta-gradient, by name: a class in torch.optim, or TRPO")
    learning_rate: float = _option(1e-3, "the step size of torch's optimisers", least=0)
    optimizer_options: dict[str, Any] = field(default_factory=dict, metadata=_words("other options of the optimiser"))
    epochs: int | None = _option(None, "steps on the draws of a meta-batch; none: as the algorithm has it", least=1)
    gradient_clip: float | None = _option(10.0, "the largest norm of a meta-gradient; none: any; not for TRPO", least=0)
    iterations: int = _option(500, "steps of meta-training", least=1)
    seed: int = _option(
        0, "seed of parameters, tasks and draws; held-out tasks are the same for all", -(2**63), 2**63 - 1
    )
    precision: str = _option("float32", "of all numbers: float32 or float64")
    device: str = _option("cpu", "where all tensors live: cpu, cuda, cuda:1; another device draws other numbers")
    shards: int = _option(1, "parts of a meta-batch, each with randomness of its own: what ranks share out", least=1)
    chunk: int | None = _option(
        None, "tasks differentiated at a time; none: those of some 8000 time steps, on a GPU of 500 000", least=1
    )
    threads: int | None = _option(
        None,
        "threads of torch; none: as torch chooses; in programs of your own beside busy ones: 1",
        least=1,
        most=1024,
    )
    lowering: str = _option("auto", "how meta-gradients are computed: never, auto, flat, inductor")
    evaluate_every: int = _option(25, "iterations between evaluations on held-out tasks", least=1)
    evaluation_tasks: int = _option(100, "held-out tasks", least=1)
    evaluation_steps: int | None = _option(None, "adaptation steps evaluated; none: as trained", least=0)
    evaluation_discount: float = _option(
        1.0, "the discount per time step of the returns that are shown; 1: none", least=0, most=1
    )
    checkpoint_every: int = _option(25, "iterations between checkpoints", least=1)
    checkpoints_kept: int = _option(3, "how many of the newest checkpoints are kept", least=1)

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            value = _fitting(name, hint, getattr(self, name))
            object.__setattr__(self, name, value)  # integers that stand for floats, lists that stand for tuples
        if why := unfit_path(self.output):
            raise ConfigurationError(f"output={shown(self.output)} is no path ({why})")
        if self.shards > self.tasks:
            raise ConfigurationError(f"shards={self.shards}: a meta-batch of {self.tasks} tasks has at most as many")
        if self.precision not in ("float32", "float64"):
            raise ConfigurationError(f"precision={shown(self.precision)} is not known: choose 'float32' or 'float64'")
        if self.lowering not in LOWERINGS:
            known = ", ".join(map(repr, LOWERINGS))
            raise ConfigurationError(f"lowering={shown(self.lowering)} is not known: choose one of {known}")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> "Configuration":
        """The configuration with these fields, and the defaults for the others. Unknown ones are refused by name."""
        for name in given:
            if name not in _hints():
                raise ConfigurationError(unknown(name, "a field of a configuration", _hints()))
        return cls(**given)

    @classmethod
    def from_json(cls, text: str) -> "Configuration":
        """The configuration that `to_json` wrote."""
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"not JSON: {error}") from error
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number with too many digits
            raise ConfigurationError(f"not JSON that can be read: {error}") from error
        if not isinstance(given, dict):
            raise ConfigurationError(f"a JSON object with fields is expected, got {type(given).__name__}")
        return cls.from_mapping(given)

    @classmethod
    def load(cls, path: str | Path) -> "Configuration":
        """The configuration in a file; errors name the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ConfigurationError as error:
            raise ConfigurationError(f"{shortened(str(path), 300)}: {error}") from error
        except (OSError, ValueError) as error:  # the file, its letters, or its name
            why = shortened(str(error), 300)
            raise ConfigurationError(f"{shortened(str(path), 300)} cannot be read: {why}") from error

    def to_json(self) -> str:
        """All fields, as a JSON object."""
        return json.dumps({name: getattr(self, name) for name in _hints()}, indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Write the configuration to a file, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    def replace(self, **changes: Any) -> "Configuration":
        """This configuration with other values of some fields."""
        return dataclasses.replace(self, **changes)

    def conflicts(self, other: "Configuration") -> list[str]:
        """The fields in which `other` would be another run, and not this one continued."""
        one, another = self.fingerprint(), other.fingerprint()
        return [name for name in _hints() if one.get(name, _DEFAULT) != another.get(name, _DEFAULT)]

    def fingerprint(self) -> dict[str, Any]:
        """The fields that decide what is computed and are not as by default, as they are saved.

        Neither how far a run goes nor how it is kept is in it, and no field that later versions add as it was before.

        Example:
            >>> from stochgraph.algorithms.training import Configuration
            >>> Configuration(seed=3, iterations=7, hidden=(8,)).fingerprint()
            {'hidden': [8], 'seed': 3}
        """
        saved, plain = _saved(self), _saved(Configuration())
        return {name: value for name, value in saved.items() if name not in _FREE and value != plain[name]}


def describe() -> dict[str, tuple[Any, Any, str]]:
    """Every field: its type, its default, and what it means."""
    empty = Configuration()
    words = {each.name: each.metadata["words"] for each in dataclasses.fields(Configuration)}
    return {name: (hint, getattr(empty, name), words[name]) for name, hint in _hints().items()}


def unknown(name: str, what: str, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(name[:100], known, n=1)
    return f"{shown(name)} is not {what}; " + (
        f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    )


def _saved(configuration: Configuration) -> dict[str, Any]:
    """The fields as they come back from a file: lists where there were tuples."""
    return json.loads(configuration.to_json())


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Configuration)


def _fitting(name: str, hint: Any, value: Any) -> Any:
    """The value, if it is of the field's type, not too small and not too large."""
    allowed = allowed_types(hint)
    if float in allowed and type(value) is int:
        value = float(value) if abs(value) <= sys.float_info.max else inf if value > 0 else -inf
    if tuple in allowed and isinstance(value, (list, tuple)) and all(type(each) is int for each in value):
        value = tuple(value)
    if type(value) not in allowed:
        raise ConfigurationError(f"{name}={shown(value)}: expected {type_words(hint)}, got {type(value).__name__}")
    if isinstance(value, dict):
        _check_saved(name, value)
    bounds = Configuration.__dataclass_fields__[name].metadata
    least, most = bounds["least"], bounds["most"]
    if most is None and int in allowed_types(_element(hint)):
        most = _LARGEST
    numbers = value if isinstance(value, tuple) else (value,) if isinstance(value, (int, float)) else ()
    if any(number != number or (least is not None and number < least) for number in numbers):
        raise ConfigurationError(f"{name}={shown(value)}: must be at least {least}")
    if any(number in (inf, -inf) for number in numbers):
        otherwise = ", or none" if type(None) in allowed else ""
        raise ConfigurationError(f"{name}={shown(value)}: must be a finite number{otherwise}")
    if most is not None and any(number > most for number in numbers):
        raise ConfigurationError(f"{name}={shown(value)}: must be at most {most}")
    return value


def _check_saved(field: str, options: dict[Any, Any]) -> None:
    """Refuse options that could not be read back: a run is continued with what was saved."""
    for name, value in options.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"{field}: the name {shown(name)} is no string")
        try:
            json.dumps(value, allow_nan=False)
            _check_extent(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{field}: {shown(name)} cannot be saved as JSON ({shortened(str(error), 200)}): give strings, finite "
                "numbers, true or false, none, and lists and mappings of them"
            ) from error


def _check_extent(value: Any, depth: int = 20) -> None:
    """Refuse what others cannot hold: integers of more than 64 bits, and what is nested more deeply."""
    if isinstance(value, int) and abs(value) > 2**63 - 1:
        raise ValueError(f"the number {shown(value)} is too large")
    if isinstance(value, (list, tuple, dict)):
        if not depth:
            raise ValueError("it is nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            _check_extent(each, depth - 1)


def unfit_path(path: str) -> str | None:
    """Why no file can be called that: null bytes, and letters that the file system cannot write; `None` if one can."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        return shortened(str(error))
    return "it has a null byte" if "\0" in path else None


def _element(hint: Any) -> Any:
    """The type of what is in a tuple, or the type itself."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def allowed_types(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, without their parameters."""
    return typing.get_args(hint) if _is_union(hint) else (typing.get_origin(hint) or hint,)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def type_words(hint: Any) -> str:
    """A type in words."""
    if _is_union(hint):
        return " or ".join(type_words(each) for each in typing.get_args(hint))
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "none"}
    return words.get(hint, "integers" if typing.get_origin(hint) is tuple else "options by name")
