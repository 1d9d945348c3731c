"""The folder of a run: what is where, and that two runs are not mixed in it."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from stochgraph.errors.checks import shown

from .checkpoints import FILES, CheckpointError, Checkpoints, DamagedCheckpoint, State, check_state
from .configuration import Configuration, ConfigurationError
from .files import (
    Folder,
    Lines,
    content,
    is_there,
    json_lines,
    only_writer,
    remove_temporaries,
    synchronise_names,
    write_lines,
)

_ANEW = "start anew with --restart (restart=True), which keeps what is there"


class RunFolder:
    """`run.json`, `metrics.jsonl`, `checkpoints/` and what is drawn from them.

    Args:
        path: the folder. It is made when a run is written to it.
        kept: how many checkpoints are kept.

    Example:
        >>> import tempfile
        >>> from stochgraph.algorithms.training import Configuration
        >>> from stochgraph.algorithms.training.run_folder import RunFolder
        >>> folder, run = RunFolder(tempfile.mkdtemp()), Configuration()
        >>> with folder.opened(run):
        ...     folder.begin(run, folder.restored(run))
        ...     folder.log({"kind": "iteration", "iteration": 0})
        ...     folder.save(run, 1, {"theta": [0.5]})
        >>> folder.metrics("iteration"), folder.restored(run)["theta"]
        ([{'kind': 'iteration', 'iteration': 0}], [0.5])
    """

    def __init__(self, path: str | Path, kept: int = 3) -> None:
        self.path = Path(path).absolute()  # whoever changes the working folder does not move the run
        self.checkpoints = Checkpoints(self.path / "checkpoints", kept)
        self._lines: Lines | None = None
        self._folder: Folder | None = None
        self._rescued: Path | None = None

    @property
    def configuration_path(self) -> Path:
        """The path of the configuration."""
        return self.path / "run.json"

    @property
    def metrics_path(self) -> Path:
        """The path of the metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def curve_path(self) -> Path:
        """The path of the learning curve."""
        return self.path / "learning_curve.png"

    def check(self, configuration: Configuration) -> None:
        """Refuse a configuration that is not the one of the run in the folder, continued."""
        if not is_there(self.configuration_path):
            if self.checkpoints.paths():
                raise ConfigurationError(
                    f"{self.path} holds checkpoints, and no {self.configuration_path.name} that says of which run: put "
                    "it back, remove the checkpoints, or give another output"
                )
            return
        there = Configuration.load(self.configuration_path)
        names = there.conflicts(configuration)
        if names:
            differences = ", ".join(
                f"{n}={shown(getattr(there, n))} not {shown(getattr(configuration, n))}" for n in names
            )
            raise ConfigurationError(
                f"{self.path} holds a run with {differences}: continue it with the configuration in "
                f"{self.configuration_path}, or give another output"
            )

    @contextmanager
    def opened(
        self, configuration: Configuration, restart: bool = False, say: Callable[[str], None] = print
    ) -> Iterator[None]:
        """Hold the folder, so that what is read from it is what will be continued. Nothing is written to it yet.

        Args:
            configuration: of the run that is to be continued, or begun.
            restart: begin anew, with what the folder holds of a run in a folder of its own.
            say: is told which.

        Raises:
            ConfigurationError: the folder holds another run.
            OSError: another process holds the folder, or it cannot be read.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with only_writer(self.path):
            if restart:
                self._set_aside(say)
            self.check(configuration)
            self._folder = Folder(self.path)
            try:
                yield
            finally:
                self._folder.close()
                if self._lines is not None:
                    self._lines.close()
                self._folder = self._lines = None

    def restored(self, configuration: Configuration, say: Callable[[str], None] = print) -> State | None:
        """The newest checkpoint that is not damaged; `None` if there is no run yet.

        Args:
            configuration: of the run.
            say: is told of checkpoints that are damaged.

        Raises:
            CheckpointError: there is a run, and no checkpoint of it that can be read, or one of another run.
        """
        try:
            found = self.checkpoints.newest_file(say)
        except DamagedCheckpoint as error:
            raise CheckpointError(f"{error}: {_ANEW}") from error
        if found is not None:
            path, state = found
            check_state(path, state, configuration.fingerprint())
            return state
        if content(self.metrics_path).strip():
            raise CheckpointError(
                f"{self.metrics_path} holds the metrics of a run, and there is no checkpoint in "
                f"{self.checkpoints.folder} to continue it from: put the checkpoints back, or {_ANEW}"
            )
        return None

    def begin(self, configuration: Configuration, state: State | None, say: Callable[[str], None] = print) -> None:
        """Write what the run is, and take away what it has not got to: metrics, checkpoints and halves of files.

        Args:
            configuration: of the run.
            state: what was restored.
            say: is told of lines among the metrics that are none.
        """
        iteration = 0 if state is None else state["iteration"]
        lines = json_lines(content(self.metrics_path))
        self._tidy()
        configuration.save(self.configuration_path)
        self.checkpoints.set_aside(iteration)
        self._cut(lines, iteration, say)
        self._lines = Lines(self.metrics_path)
        self.checkpoints.folder.mkdir(exist_ok=True)
        synchronise_names(self.path)

    def is_own(self) -> bool:
        """True while this is the folder that was opened. If only the metrics are new, they go on in the new file."""
        if self._folder is None or not self._folder.is_there():
            return False
        if not self._writing.is_there():
            self._writing.reopen()
        return True

    def rescue(self, configuration: Configuration, iteration: int, state: State) -> Path:
        """Save, once, what a run holds whose folder is not there any more, as a run in another folder.

        Args:
            configuration: of the run.
            iteration: how many are done.
            state: after them.

        Returns:
            The folder: one beside the lost one or, where that cannot be, one for temporary files.

        Raises:
            OSError: nothing can be written anywhere.
        """
        if self._rescued is None:
            names = (f"{self.path.name}-rescued{number}" for number in ("", *(f"-{i}" for i in range(2, 10**6))))
            try:
                place = next(self.path.with_name(name) for name in names if not is_there(self.path.with_name(name)))
                self._rescued = self._copied(place, configuration, iteration, state)
            except OSError:
                place = Path(tempfile.mkdtemp(prefix="rescued-"))
                self._rescued = self._copied(place, configuration, iteration, state)
        return self._rescued

    def _copied(self, place: Path, configuration: Configuration, iteration: int, state: State) -> Path:
        """A folder with all that a run needs to be continued there."""
        other, moved = RunFolder(place, self.checkpoints.kept), configuration.replace(output=str(place))
        with other.opened(moved):
            other.metrics_path.write_bytes(self._writing.content())
            other.begin(moved, {"iteration": iteration})
            other.save(moved, iteration, state)
        return place

    def log(self, record: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        self._writing.append(record)

    def save(self, configuration: Configuration, iteration: int, state: State) -> None:
        """Write a checkpoint that knows its run, once all metrics before it are on the disk."""
        self._writing.synchronise()
        self.checkpoints.save(iteration, {**state, "iteration": iteration, "run": configuration.fingerprint()})

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind, "iteration" or "evaluation"."""
        found = json_lines(content(self.metrics_path))
        return [record for _, record in found if _is_record(record) and record["kind"] == kind]

    @property
    def _writing(self) -> Lines:
        if self._lines is None:
            raise RuntimeError(f"{self.path} is not open for a run: see RunFolder.begin")
        return self._lines

    def _cut(self, lines: list[tuple[bytes, Any]], iteration: int, say: Callable[[str], None]) -> None:
        """Keep what was measured before an iteration, each of it once. What is no record goes to a file of its own."""
        strange = [line for line, value in lines if not _is_record(value)]
        records = [(line, value) for line, value in lines if _is_record(value)]
        if strange:
            aside = self.metrics_path.with_name(f"{self.metrics_path.name}.unreadable")
            with aside.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in strange))
                file.flush()
                os.fsync(file.fileno())
            what = "1 line that is no record" if len(strange) == 1 else f"{len(strange)} lines that are no records"
            say(f"{self.metrics_path} has {what} of a run: moved to {aside}")
        kept = {(value["kind"], value["iteration"]): line for line, value in records if value["iteration"] < iteration}
        write_lines(self.metrics_path, kept.values())

    def _set_aside(self, say: Callable[[str], None]) -> None:
        """Move the run that the folder holds to a folder within, its configuration last: it can be read there."""
        own = (self.checkpoints.folder, self.metrics_path, self.curve_path, self.configuration_path)
        there = [path for path in own if is_there(path)]
        if there:
            earlier = next(each for i in count(1) if not is_there(each := self.path / f"earlier-{i}"))
            earlier.mkdir()
            for path in there:
                path.rename(earlier / path.name)
            say(f"starting anew; the run that was there is in {earlier}")

    def _tidy(self) -> None:
        """Remove what a run of this folder that was killed has left half-written."""
        own = (self.configuration_path, self.metrics_path, self.curve_path)
        remove_temporaries(self.path, "|".join(re.escape(path.name) for path in own))
        remove_temporaries(self.checkpoints.folder, FILES)


def _is_record(value: Any) -> bool:
    """True for a line of metrics as a run writes it."""
    if not isinstance(value, dict) or type(value.get("iteration")) is not int:
        return False
    return isinstance(value.get("kind"), str) and value["iteration"] >= 0
