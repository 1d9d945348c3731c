"""The command `stochgraph`: train, evaluate, compare, explain, profile, demo."""

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

try:
    import click
    from click.core import ParameterSource
except ImportError as error:
    raise ImportError("the command line needs click: pip install 'stochgraph[train]'") from error

import stochgraph as sg
from stochgraph.errors.checks import shortened, shown

from ..environments.threads import torch_threads
from ..training import (
    CheckpointError,
    Configuration,
    ConfigurationError,
    Problem,
    RankFailure,
    TrainingError,
    compare,
    joined_ranks,
    load_result,
    train,
)
from ..training.configuration import describe, type_words, unfit_path
from ..training.problem import standard_errors
from ..training.randomness import generator_for
from ..training.reports import spelled
from ..training.roll import TIMEOUT
from ..training.settings import ALGORITHMS, ENVIRONMENTS, ESTIMATORS, POLICIES
from . import demo
from .beside import make_room

KNOWN: dict[str, Iterable[str]] = {
    "algorithm": ALGORITHMS,
    "environment": ENVIRONMENTS,
    "policy": POLICIES,
    "estimator": ESTIMATORS,
}
# What says how a run goes on, and nothing about its graph: taken everywhere, so that a run can be passed, listed once.
OF_TRAINING = frozenset(
    "optimizer learning_rate optimizer_options epochs gradient_clip iterations shards chunk "
    "evaluate_every evaluation_tasks evaluation_steps checkpoint_every checkpoints_kept".split()
)
INTERRUPTED = 130  # the exit status of a shell's command that Ctrl-C ended


class Field(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """The value of a configuration field on the command line: words as they are, everything else as in JSON."""

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.name = type_words(hint)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        if self.hint == tuple[int, ...]:
            return "INTEGER,..."
        kinds = {"an integer": "INTEGER", "a number": "NUMBER", "a string": "TEXT", "options by name": "NAME=VALUE"}
        return "|".join(kinds.get(word, word.upper()) for word in self.name.split(" or "))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self.hint is str or not isinstance(value, str):
            return value
        if self.hint == tuple[int, ...]:
            return _json(f"[{value}]")
        return None if value == "none" else _json(value)


class Place(click.Path):
    """A path on the command line, one that a file can have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if why := unfit_path(str(value)):
            self.fail(f"{shown(value)} is no path ({why})", param, ctx)
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(shortened(error.message, 500), param, ctx)


def _json(text: str) -> Any:
    """The text as JSON, or as it stands: what fits the field is for the configuration to say."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return _number(text)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        return text


def _number(text: str) -> Any:
    """A number as people write it, which JSON does not have: .8, 5., +1. Other words stay words."""
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else text


def _pairs(_: Any, __: Any, given: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` pairs as a mapping."""
    for pair in given:
        if "=" not in pair:
            raise click.BadParameter(f"{shown(pair)}: expected name=value")
    return {name: _json(value) for name, _, value in (pair.partition("=") for pair in given)}


def configured(unlisted: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the option --config, one option per field of a configuration, and the configuration they make.

    Args:
        unlisted: fields that the command does without; their options are taken, and its help is silent about them.
    """
    fields = describe()

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def run(config: Path | None, **given: Any) -> Any:
            own = {name: given.pop(name) for name in list(given) if name not in fields}
            source = click.get_current_context().get_parameter_source
            changes = {name: value for name, value in given.items() if source(name) is not ParameterSource.DEFAULT}
            with readable_errors():
                base = Configuration() if config is None else Configuration.load(config)
                return command(base.replace(**changes), **own)

        run.__doc__ = command.__doc__
        for name, (hint, default, words) in reversed(fields.items()):
            run = _field_option(name, hint, default, words, name in unlisted)(run)
        path = Place(exists=True, dir_okay=False, path_type=Path)
        config_words = "Read a configuration, such as the run.json of a run; other options replace what it says."
        return click.option("--config", type=path, help=config_words)(run)

    return decorate


def _field_option(name: str, hint: Any, default: Any, words: str, hidden: bool) -> Callable[..., Any]:
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    words += f": {', '.join(KNOWN[name])}" if name in KNOWN else ""
    text = f"{words[0].upper()}{words[1:]}." + (f"  [{'none' if shown is None else shown}]" if shown != {} else "")
    option, dashed = partial(click.option, help=text, hidden=hidden), name.replace("_", "-")
    if hint is bool:
        return option(f"--{dashed}/--no-{dashed}", name, default=None)
    if shown == {}:
        return option(f"--{dashed}", name, multiple=True, callback=_pairs, metavar="NAME=VALUE")
    return option(f"--{dashed}", name, type=Field(hint))


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors that a person can do something about, without a traceback."""
    try:
        yield
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    except (CheckpointError, RankFailure, TrainingError, sg.StochgraphError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:  # of a file that cannot be read or written
        raise click.ClickException(shortened(str(error), 500)) from error


def _echo(text: str) -> None:
    """Print in the letters that the output has."""
    click.echo(spelled(text, sys.stdout))


def _let_go() -> None:
    """Streams that nobody reads any more get no last word: Python would end with an error of its own over it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except AttributeError:  # None: it was closed before Python began
            pass


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="stochgraph")
def main() -> None:
    """Gradient estimators for stochastic computation graphs, and meta-training with them.

    \b
    stochgraph train --output results/first --iterations 300     train; the same again continues
    stochgraph evaluate results/first --steps 3                  returns after 0, 1, 2, 3 adaptation steps
    stochgraph train --algorithm promp --environment half-cheetah
    stochgraph train --output results/lsf --seeds 0,1,2          one after another, in results/lsf/seed-0, ...
    stochgraph compare results/lsf results/maml                  what they reached, with intervals over seeds
    stochgraph explain --algorithm maml                          how every gradient path is counted
    stochgraph profile --estimators SF,LOO,LSF --tasks 4         bias, variance and time side by side
    stochgraph profile --tune --budget 60                        the estimators of least error at equal time
    stochgraph demo                                              a tour in a few minutes

    Everything that a run is made of is an option, a field of the run.json that is written next to its results, and of
    `stochgraph.algorithms.training.Configuration`.
    """  # noqa: D301  # click looks for the character itself
    click.get_current_context().call_on_close(_let_go)
    if "" not in sys.path:
        sys.path.append("")  # the folder at hand, for --environment package.module:Name; last, so that it hides nothing


@main.command("train")
@click.option(
    "--restart", is_flag=True, help="Begin anew; a run that is in the folder is kept within, in earlier-1, ..."
)
@click.option(
    "--rank-timeout",
    type=click.FloatRange(0, min_open=True),
    default=TIMEOUT,
    show_default=True,
    help="Under torchrun, the seconds that processes wait for each other; then the run ends, and names who is missing.",
)
@click.option(
    "--seeds",
    type=Field(tuple[int, ...]),
    help="Run with each of these in place of --seed, one after another, in OUTPUT/seed-0, ...; one that fails leaves "
    "the others running.",
)
@configured()
def train_command(configuration: Configuration, restart: bool, rank_timeout: float, seeds: Any) -> None:
    """Train, and write everything to one folder.

    The folder gets run.json (the configuration), metrics.jsonl (one line per iteration and evaluation), checkpoints,
    learning_curve.png, and files for TensorBoard if that is installed. A line of metrics has "value", the estimate of
    the meta-objective (discounted), "returns" before and after each adaptation step (undiscounted, of the training
    tasks in an iteration, of held-out tasks with their standard "errors" in an evaluation), "gradient_norm", "kl" and
    "seconds" where there are any. If the folder holds the run already, it is
    continued from its newest checkpoint, to the same bits as if it had never stopped; --restart begins anew, and
    keeps it. Ctrl-C, SIGTERM and a terminal that is closed (SIGHUP) save and end; a second Ctrl-C ends at once. Under
    nohup a run outlives its terminal. Errors save what was learned, too. What only shows progress ends nothing: outputs
    that cannot be written to are left out.

    Several processes share the work under torchrun, each computes its shards one by one. The result depends on the
    number of shards, not on theirs, to the bit where they have as many --threads:

    \b
    torchrun --nproc-per-node 2 --max-restarts 3 --no-python stochgraph train --shards 4 --threads 1

    A process that dies is started again, and the run goes on from its newest checkpoint. On several machines, set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for that. One that is stopped or out of reach is named after half a minute, and
    given up after --rank-timeout. Only the first process reads and writes the folder.
    """  # noqa: D301
    make_room()
    with joined_ranks(rank_timeout) as ranks:
        if seeds is None:
            outcomes = [train(configuration, ranks, restart=restart)]
        else:
            outcomes = train(configuration, ranks, restart=restart, seeds=seeds)
    if not all(outcome.finished for outcome in outcomes):
        raise click.exceptions.Exit(INTERRUPTED)


@main.command("evaluate")
@click.argument("folder", type=Place(exists=True, file_okay=False, path_type=Path))
@click.option("--tasks", type=click.IntRange(1), help="Held-out tasks.  [as configured]")
@click.option("--steps", type=click.IntRange(0), help="Adaptation steps.  [as configured]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate_command(folder: Path, tasks: int | None, steps: int | None, as_json: bool) -> None:
    """Measure returns on held-out tasks after 0, 1, ... adaptation steps, at the newest checkpoint in FOLDER."""
    with readable_errors():
        configuration = Configuration.load(folder / "run.json")
        changes = {"evaluation_tasks": tasks, "evaluation_steps": steps}
        configuration = configuration.replace(**{name: value for name, value in changes.items() if value is not None})
        result = load_result(folder, configuration, lambda text: click.echo(text, err=True))
        make_room()
        with torch_threads(configuration.threads):
            returns = result.problem.evaluate(result.theta)
    means = returns.mean(0).tolist()
    errors = standard_errors(returns).tolist() if len(returns) > 1 else [None] * len(means)
    if as_json:
        found = {"iteration": result.iteration, "tasks": len(returns), "returns": means, "errors": errors}
        _echo(json.dumps(found))
        return
    _echo(f"after {result.iteration} iterations, {len(returns)} held-out tasks, return ± standard error:")
    for k, (value, uncertainty) in enumerate(zip(means, errors, strict=True)):
        _echo(f"{k} adaptation steps  {value:9.3f} ± {'?' if uncertainty is None else f'{uncertainty:.3f}'}")


@main.command("compare")
@click.argument("folders", nargs=-1, required=True, metavar="RUN...", type=Place(path_type=Path))
@click.option("--steps", type=click.IntRange(0), help="Adaptation steps after which they are compared.  [all]")
@click.option("--figure", type=Place(dir_okay=False, path_type=Path), help="Draw the learning curves to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a group, intervals as [value, low, high].")
def compare_command(folders: tuple[Path, ...], steps: int | None, figure: Path | None, as_json: bool) -> None:
    """Put runs beside each other: what they reached on held-out tasks, over their seeds.

    A RUN is the output folder of a run, or a folder with several in it, as --seeds makes them. Runs in one folder that
    differ in nothing but their seed are a row. "final" is the last return that was measured, "best" the best one,
    "area" the mean over training; of each the mean over seeds, and the interquartile mean, with 95 % intervals of a
    bootstrap where there are several seeds.

    The figure has the mean over seeds, and a band from the lowest seed to the highest.
    """
    with readable_errors():
        found = compare(folders, steps)
        if figure is not None:
            found.save(figure)
    _echo(found.to_json() if as_json else found.to_markdown())


@main.command("explain")
@configured(unlisted=OF_TRAINING | {"output", "threads"})
def explain_command(configuration: Configuration) -> None:
    """Print how the run's algorithm counts every gradient path, with its bias and variance class."""
    problem = Problem(configuration)
    _echo(f"{problem.compiled.graph!r}\n\n{problem.compiled.explain()}")
    if problem.template.replayed is not None:
        _echo(
            f"This is the graph that draws. On its draws {configuration.algorithm} climbs an objective of its own, "
            f"Template.replayed; stochgraph.algorithms.{configuration.algorithm} says how that counts"
        )


@main.command("profile")
@click.option("--estimators", default="SF,LOO,LSF,MAML", show_default=True, help=f"Of {', '.join(ESTIMATORS)}.")
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(2), help="Estimates with each of them.")
@click.option("--trained", is_flag=True, help="At the newest checkpoint in the output folder, not at the start.")
@click.option("--tune", is_flag=True, help="Measure all unbiased estimators, and choose, in place of --estimators.")
@click.option(
    "--budget", default=10.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Seconds of --tune."
)
@configured(unlisted=OF_TRAINING)
def profile_command(
    configuration: Configuration, estimators: str, repeats: int, trained: bool, tune: bool, budget: float
) -> None:
    """Compare estimators on the run's meta-objective: bias, variance, mean squared error, time."""
    problem = Problem(configuration)
    if problem.template.replayed is not None:
        raise click.UsageError(
            f"algorithm {configuration.algorithm!r} climbs an objective of its own, which has no estimators to "
            "compare; choose another algorithm, for instance --algorithm lsf"
        )
    compiled = {} if tune else {name: problem.compile(name) for name in estimators.split(",")}
    theta = load_result(configuration.output, configuration).theta if trained else problem.initial()
    generator = generator_for(configuration.seed, "profile")
    make_room()
    with torch_threads(configuration.threads):
        if tune:
            _echo(repr(sg.tune(problem.template.graph, theta, budget=budget, generator=generator)))
            return
        found = sg.profile(compiled, theta, repeats=repeats, generator=generator)
    _echo(found.to_markdown())


@main.command("demo", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo_command(arguments: tuple[str, ...]) -> None:
    """Print ledgers and exact biases, meta-train 2-D navigation with two estimators, save a figure."""
    demo.main(list(arguments))


if __name__ == "__main__":
    main()
