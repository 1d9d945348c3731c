"""The result of a run so far, read from its folder without touching it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..policies.families import Parameters
from .checkpoints import CheckpointError, State, check_parameters, check_state, foreign
from .configuration import Configuration, ConfigurationError
from .devices import device_named
from .problem import Problem
from .run_folder import RunFolder


class Result(NamedTuple):
    """A run that was read back: its problem, the parameters of the newest checkpoint, and their iteration."""

    problem: Problem
    theta: Parameters
    iteration: int


def load_result(
    folder: str | Path, configuration: Configuration | None = None, say: Callable[[str], None] = print
) -> Result:
    """The newest state of a run.

    Args:
        folder: its output folder.
        configuration: default: the one that the folder holds.
        say: is told of checkpoints that cannot be read, and of a device that is not there.

    Raises:
        ConfigurationError: the folder holds no run.
        CheckpointError: it holds no checkpoint that can be read, or one that does not fit the configuration.

    Example:
        >>> import tempfile
        >>> from stochgraph.algorithms.training import Configuration, load_result, train
        >>> small = Configuration(horizon=3, tasks=2, inner=2, outer=2, hidden=(4,), evaluation_tasks=2, iterations=2)
        >>> outcome = train(small.replace(output=tempfile.mkdtemp()), reporters=[])
        >>> result = load_result(outcome.folder)
        >>> result.problem.evaluate(result.theta).shape  # tasks; before and after adaptation
        torch.Size([2, 2])
    """
    kept = RunFolder(folder)
    problem = Problem(_runnable(configuration or Configuration.load(kept.configuration_path), say))
    try:
        found = kept.checkpoints.newest_file(say)
    except OSError as error:
        raise CheckpointError(f"the checkpoints of {folder} cannot be read: {error}") from error
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint yet")
    path, state = found
    check_state(path, state)
    return Result(problem, _parameters(path, state, problem.initial()), state["iteration"])


def _parameters(path: Path, state: State, like: Parameters) -> Parameters:
    """Those of a checkpoint, if the problem can have them, as numbers of its precision and on its device."""
    try:
        check_parameters(state.get("parameters"), like)
    except ValueError as error:
        raise foreign(path, str(error)) from error
    return {name: state["parameters"][name].to(leaf) for name, leaf in like.items()}


def _runnable(configuration: Configuration, say: Callable[[str], None]) -> Configuration:
    """The configuration, on the CPU where its device is not there: results are read on any machine."""
    try:
        device_named(configuration.device)
    except ConfigurationError as error:
        say(f"{error}; the CPU takes its place")
        return configuration.replace(device="cpu")
    return configuration
