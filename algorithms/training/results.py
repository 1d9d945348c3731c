"""What a run has learned so far, read from its folder without touching it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..policies import Parameters
from .checkpoints import CheckpointError
from .configuration import Configuration
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
        say: is told of checkpoints that cannot be read.

    Raises:
        ConfigurationError: the folder holds no run.
        CheckpointError: it holds no checkpoint that can be read.

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
    problem = Problem(configuration or Configuration.load(kept.configuration_path))
    state = kept.checkpoints.newest(say, set_aside=False)
    if state is None:
        raise CheckpointError(f"{folder} holds no checkpoint yet")
    return Result(problem, state["parameters"], state["iteration"])
