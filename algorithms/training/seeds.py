"""The way into training: one run, or one for each of several seeds, one after another in folders of their own."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

from stochgraph.errors.checks import shortened, shown

from .configuration import Configuration, ConfigurationError
from .errors import TrainingError
from .files import is_there
from .ranks import ALONE, Ranks
from .reports import Reporter, default_reporters
from .run_folder import RunFolder
from .trainer import Outcome, Trainer


@overload
def train(
    configuration: Configuration,
    ranks: Ranks = ...,
    reporters: Sequence[Reporter] | None = ...,
    restart: bool = ...,
    *,
    seeds: None = ...,
) -> Outcome: ...


@overload
def train(
    configuration: Configuration,
    ranks: Ranks = ...,
    reporters: Sequence[Reporter] | None = ...,
    restart: bool = ...,
    *,
    seeds: Iterable[int],
) -> list[Outcome]: ...


def train(
    configuration: Configuration,
    ranks: Ranks = ALONE,
    reporters: Sequence[Reporter] | None = None,
    restart: bool = False,
    *,
    seeds: Iterable[int] | None = None,
) -> Outcome | list[Outcome]:
    """Run a configuration, from the newest checkpoint in its output folder on if there is one.

    Args:
        configuration: the run.
        ranks: the processes that share it; default: this one alone. See `joined_ranks`.
        reporters: who is told how it goes; default: a progress bar, and TensorBoard if it is installed.
        restart: begin anew; the run in the output folder is kept in a folder within, `earlier-1`, `earlier-2`, ...
        seeds: run it with each of them in place of its own, one after another, in `OUTPUT/seed-0`, ... One that fails
            leaves the others running, unless several ranks share it: they are started again together.

    Returns:
        The parameters. A first Ctrl-C, SIGTERM or SIGHUP breaks off the iteration under way; the whole ones are saved.
        Several ranks finish it first, unless there is a second signal. A second Ctrl-C is a `KeyboardInterrupt`. With
        seeds a list, which ends with the run that was interrupted if there was one.

    Raises:
        ConfigurationError: before anything is done, if the configuration makes no sense, or if the output folder holds
            another run.
        TrainingError: an environment failed, the disk is full, no checkpoint can be read, and so on. With seeds it is
            raised at the end, and names those that failed.

    Example:
        >>> import tempfile
        >>> from stochgraph.algorithms.training import Configuration, train
        >>> small = Configuration(horizon=3, tasks=2, inner=2, outer=2, hidden=(4,), evaluation_tasks=2, iterations=2)
        >>> outcome = train(small.replace(output=tempfile.mkdtemp()), reporters=[])
        >>> outcome.iteration, outcome.finished
        (2, True)
        >>> outcomes = train(small.replace(output=tempfile.mkdtemp()), reporters=[], seeds=(0, 1))
        >>> [outcome.folder.name for outcome in outcomes]
        ['seed-0', 'seed-1']
    """
    if seeds is not None:
        return train_seeds(configuration, seeds, ranks, reporters, restart)
    return Trainer(configuration, ranks, reporters, restart).run()


def seeded(configuration: Configuration, seeds: Iterable[int]) -> list[Configuration]:
    """The configuration with each of these seeds, in folders `seed-0`, `seed-1`, ... of its output.

    Raises:
        ConfigurationError: there is no seed, or one twice, or one that is no integer; the output folder holds a run of
            its own.

    Example:
        >>> from stochgraph.algorithms.training import Configuration
        >>> from stochgraph.algorithms.training.seeds import seeded
        >>> [(run.seed, run.output) for run in seeded(Configuration(output="results/lsf"), (0, 7))]
        [(0, 'results/lsf/seed-0'), (7, 'results/lsf/seed-7')]
    """
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise ConfigurationError(f"seeds={shown(seeds)}: expected integers, as in 0,1,2")
    given, place = list(seeds), Path(configuration.output)
    runs = [configuration.replace(seed=seed, output=str(place / f"seed-{seed}")) for seed in given]
    if not given or len(set(given)) < len(given):
        raise ConfigurationError(f"seeds={shown(given)}: at least one is expected, and each of them once")
    if is_there(RunFolder(place).configuration_path):
        raise ConfigurationError(
            f"output={shown(str(place))} holds a run of its own: give another output to several seeds"
        )
    return runs


def train_seeds(
    configuration: Configuration,
    seeds: Iterable[int],
    ranks: Ranks,
    reporters: Sequence[Reporter] | None,
    restart: bool = False,
) -> list[Outcome]:
    """Run a configuration with each of these seeds: `train` says how.

    Raises:
        ConfigurationError: at once, as where the folder of a seed holds another run; it would be one of the other
            seeds, too.
        TrainingError: at the end, with the errors of all that failed behind it; at once where several ranks share a
            run, of which the others know nothing of the failure.
    """
    outcomes: list[Outcome] = []
    failures: dict[int, Exception] = {}
    try:
        runs = seeded(configuration, seeds)
        for run in () if restart else runs:
            RunFolder(run.output).check(run)  # before any of them begins
    except OSError as error:
        raise TrainingError(shortened(str(error), 2000)) from error
    for run in runs:
        told = default_reporters(Path(run.output), f"seed {run.seed}") if reporters is None else reporters
        try:
            outcomes.append(Trainer(run, ranks, told, restart).run())
        except ConfigurationError:
            raise
        except Exception as error:
            if ranks.count > 1:
                raise
            failures[run.seed] = error
            _say(told, f"{run.output} failed: {error or repr(error)}")
            continue
        if not outcomes[-1].finished:
            return outcomes
    if failures:
        raise _failed(configuration, failures)
    return outcomes


def _say(reporters: Sequence[Reporter], text: str) -> None:
    for reporter in reporters:
        with suppress(Exception):  # as in a run, where it was said that this one fails
            reporter.say(text)


def _failed(configuration: Configuration, failures: dict[int, Exception]) -> TrainingError:
    names = f"seed{'s' * (len(failures) > 1)} {', '.join(map(str, failures))}"
    reasons = "; ".join(f"seed {seed}: {error or repr(error)}" for seed, error in failures.items())
    found = TrainingError(
        f"{names} of {configuration.output} failed, the others are done. Once the cause is gone, the same command "
        f"continues: {reasons}"
    )
    found.__cause__ = ExceptionGroup(names, list(failures.values()))
    return found
