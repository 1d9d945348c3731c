"""The training loop: evaluate, step, write down, save; from the last checkpoint on, whatever ended the last process.

An iteration is a function of the parameters, the optimiser's state and the iteration's number (see `randomness`), so a
run that is broken off and continued ends with the same bits as one left alone. Parameters change in one place only,
which takes back what does not come to its end, so what is saved is always the state after a whole number of iterations.
It is saved whatever ends a run, a signal or an error.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.errors.checks import shortened

from ..environments.threads import torch_threads
from ..policies.families import Parameters
from .audience import Audience, hearing
from .checkpoints import CheckpointError, not_finite
from .configuration import Configuration, ConfigurationError
from .curves import save_learning_curve
from .errors import TrainingError
from .interrupts import BrokenOff, Interrupts
from .memory import check_memory, gigabytes, memory_of
from .problem import Problem, standard_errors
from .progress import Progress
from .randomness import default_generator_for
from .ranks import ALONE, Ranks
from .reports import Reporter, default_reporters
from .roll import RankFailure
from .run_folder import RunFolder
from .run_memory import need_of


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        theta: the parameters.
        iteration: how many iterations they have seen.
        finished: whether those are all; otherwise the run was interrupted, and saved.
        folder: where everything is written.
    """

    theta: Parameters
    iteration: int
    finished: bool
    folder: Path


class Trainer:
    """One run. `train` is the way in; the pieces are here for those who want a loop of their own."""

    def __init__(
        self,
        configuration: Configuration,
        ranks: Ranks = ALONE,
        reporters: Sequence[Reporter] | None = None,
        restart: bool = False,
    ) -> None:
        self.configuration = configuration
        self.restart = restart and not started_again()
        self.ranks = ranks
        self.folder = RunFolder(configuration.output, configuration.checkpoints_kept)
        self.problem = Problem(configuration)
        self._audience = Audience(self._told(reporters))
        self._say, self._tell = self._audience.say, self._audience.tell
        self.progress = Progress(self.problem, self.folder, ranks, self._say)
        self._check()

    @property
    def iteration(self) -> int:
        """The number of iterations that are done."""
        return self.progress.iteration

    def run(self) -> Outcome:
        """Everything that is left to do."""
        # Alone, one signal breaks off a draw. Several ranks end together: the others may not have heard of it.
        enough = 1 if self.ranks.count == 1 else 2
        with self._explained(), self._prepared(), Interrupts(self._say, enough) as interrupts:
            self._continue()
            self._tell(lambda reporter: reporter.begin(self.iteration, self.configuration.iterations))
            finished = self._to_the_end(interrupts)
            self._draw()
            self.progress.keep_folder()
        return Outcome(self.progress.theta, self.iteration, finished, self.folder.path)

    def _continue(self) -> None:
        """From the newest checkpoint. Metrics have one from their start on."""
        state = self.progress.restore()
        if not self.ranks.first:
            return
        self.folder.begin(self.configuration, state, self._say)
        self._say_memory()
        if state is None:
            self.progress.save()
        else:
            self._say(f"continuing after {self.iteration} iterations")

    def _to_the_end(self, interrupts: Interrupts) -> bool:
        """All iterations, unless something ends them before: whole ones are saved."""
        try:
            self._loop(interrupts)
        except BrokenOff:
            interrupts.over()
            self.progress.save_what_is_new()
            done = f", and saved after {self.iteration} iterations" if self.iteration else " before the first iteration"
            self._say(f"interrupted{done}; {self._command} continues it")
            return False
        except BaseException:
            interrupts.over()
            self.progress.rescue()
            raise
        return True

    def _loop(self, interrupts: Interrupts) -> None:
        run = self.configuration
        while self.iteration < run.iterations:
            self.progress.keep_folder()
            if self.iteration % run.evaluate_every == 0:
                self._evaluate(interrupts)
            self._step(interrupts)
            stopped = self.ranks.any(interrupts.asked) and self.iteration < run.iterations
            if stopped:
                raise BrokenOff
            if self.iteration % run.checkpoint_every == 0 or self.iteration == run.iterations:
                self.progress.save()
        self.progress.keep_folder()
        self._evaluate(interrupts)

    def _step(self, interrupts: Interrupts) -> None:
        start = time.perf_counter()
        with interrupts.breaking_off():
            batch = self.problem.draw(self.progress.theta, self.iteration, self.ranks)
            means = batch.average(lambda trace: (trace.value, self.problem.returns(trace).mean(0)))
        with self._whole_or_not(interrupts):
            with (
                interrupts.breaking_off(),
                default_generator_for(self.configuration.seed, "learner", self.iteration),
            ):
                found = self.progress.learner.step(self.progress.theta, batch)
            self._check_finite()
            figures = {"value": float(means[0]), "returns": means[1].tolist(), **found}
            self._log("iteration", **figures, seconds=time.perf_counter() - start)
            self.progress.iteration += 1

    def _check_finite(self) -> None:
        """Refuse what is not finite: it never becomes so again, and is neither written down nor saved."""
        if broken := not_finite(self.progress.state_dict()):
            raise TrainingError(
                f"iteration {self.iteration}: {broken} is not finite after this step; a smaller learning_rate or "
                f"gradient_clip may help. {self._left()}"
            )

    @contextmanager
    def _whole_or_not(self, interrupts: Interrupts) -> Iterator[None]:
        """Take a step back that an error or a signal has ended: between two epochs, or before it was written down."""
        before = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), self.progress.state_dict())
        try:
            yield
        except BaseException:
            interrupts.over()
            self.progress.load_state_dict(before)
            raise

    def _evaluate(self, interrupts: Interrupts) -> None:
        with interrupts.breaking_off():
            returns = self.problem.evaluate(self.progress.theta, self.ranks)
        self._log("evaluation", returns=returns.mean(0).tolist(), errors=standard_errors(returns).tolist())

    def _log(self, kind: str, **figures: Any) -> None:
        record = {"kind": kind, "iteration": self.iteration, **figures}
        if self.ranks.first:
            self.folder.log(record)
        if kind == "iteration":
            self._tell(lambda reporter: reporter.trained(record))
        else:
            self._tell(lambda reporter: reporter.evaluated(record))

    def _say_memory(self) -> None:
        """Say what memory a large run needs, and what there is: others may need it too."""
        need, there = need_of(self.problem, self.ranks), memory_of(self.problem.device)
        if there is not None and need.total > there.free / 4:
            self._say(f"needs {need} of memory at least; {gigabytes(there.free)} GB are free")

    def _draw(self) -> None:
        if not self.ranks.first:
            return
        try:
            save_learning_curve([self.folder.path], self.folder.curve_path, self._say)
        except Exception as error:  # the run is over, and whole: a picture of it can be drawn later
            self._say(f"no figure of the learning curve ({type(error).__name__}: {error})")

    def _check(self) -> None:
        """Refuse now what would fail later."""
        run = self.configuration
        if self.ranks.count > run.shards:
            raise ConfigurationError(
                f"shards={run.shards}: {self.ranks.count} ranks need at least as many shards to share out; set shards "
                f"to a multiple of {self.ranks.count}. The result depends on the shards, not on the ranks"
            )
        check_memory(need_of(self.problem, self.ranks), memory_of(self.problem.device))

    def _told(self, reporters: Sequence[Reporter] | None) -> Sequence[Reporter]:
        """The reporters of this rank: only the first one speaks."""
        if not self.ranks.first:
            return []
        return default_reporters(self.folder.path) if reporters is None else reporters

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """The folder held, the threads set, the reporters let go at the end."""
        with ExitStack() as stack:
            if self.ranks.first:
                stack.enter_context(self.folder.opened(self.configuration, self.restart, self._say))
            stack.enter_context(torch_threads(self.configuration.threads))
            stack.enter_context(hearing(self._say))
            stack.callback(self._tell, lambda reporter: reporter.end())
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors that a person can do something about, in words."""
        try:
            yield
        except CheckpointError as error:
            raise TrainingError(str(error)) from error
        except (sg.SamplingError, sg.SolverError, RankFailure, OSError) as error:
            why = shortened(str(error), 2000)
            raise TrainingError(f"iteration {self.iteration}: {why}. {self._left()}") from error

    def _left(self) -> str:
        if not self.ranks.first:
            return "The first rank says what is saved"
        again = f"once the cause is gone, {self._command} continues"
        try:
            paths = self.folder.checkpoints.paths()
        except OSError:
            return f"Whether there is a checkpoint cannot be told now; {again}"
        return f"The last good checkpoint is {paths[-1]}; {again} from there" if paths else "There is no checkpoint yet"

    @property
    def _command(self) -> str:
        """The command that continues this run, in words."""
        return "the same command without --restart" if self.restart else "the same command"


def started_again() -> bool:
    """True if torchrun repeats the command, with all that was asked in it, because a process has died."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
