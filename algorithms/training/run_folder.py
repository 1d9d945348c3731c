"""The folder of a run: what is where, and that two runs are not mixed in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .checkpoints import Checkpoints, State
from .configuration import Configuration, ConfigurationError
from .files import Lines, only_writer, remove_temporaries


class RunFolder:
    """`run.json`, `metrics.jsonl`, `checkpoints/` and what is drawn from them.

    Args:
        path: the folder. It is made when a run is written to it.
        kept: how many checkpoints are kept.

    Example:
        >>> import tempfile
        >>> from stochgraph.algorithms.training import Configuration
        >>> from stochgraph.algorithms.training.run_folder import RunFolder
        >>> folder = RunFolder(tempfile.mkdtemp())
        >>> with folder.opened(Configuration()):
        ...     folder.log({"kind": "iteration", "iteration": 0})
        ...     folder.save(1, {"theta": [0.5]})
        >>> folder.metrics("iteration"), folder.restored()["theta"]
        ([{'kind': 'iteration', 'iteration': 0}], [0.5])
    """

    def __init__(self, path: str | Path, kept: int = 3) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", kept)
        self._lines: Lines | None = None
        self._began = (-1, 0)  # the iteration of the newest line, and how long the metrics were before its first one

    @property
    def configuration_path(self) -> Path:
        """Where the configuration is."""
        return self.path / "run.json"

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def check(self, configuration: Configuration) -> None:
        """Refuse a configuration that is not the one of the run in the folder, continued."""
        if not self.configuration_path.exists():
            if self.checkpoints.paths():
                raise ConfigurationError(
                    f"{self.path} holds checkpoints, and no {self.configuration_path.name} that says of which run: put "
                    "it back, remove the checkpoints, or give another output"
                )
            return
        there = Configuration.load(self.configuration_path)
        names = there.conflicts(configuration)
        if names:
            differences = ", ".join(f"{n}={getattr(there, n)!r} not {getattr(configuration, n)!r}" for n in names)
            raise ConfigurationError(
                f"{self.path} holds a run with {differences}: continue it with the configuration in "
                f"{self.configuration_path}, or give another output"
            )

    @contextmanager
    def opened(self, configuration: Configuration) -> Iterator[None]:
        """Hold the folder for writing; another process that holds it is an error."""
        self.check(configuration)
        self.path.mkdir(parents=True, exist_ok=True)
        with only_writer(self.path):
            remove_temporaries(self.path)
            configuration.save(self.configuration_path)
            try:
                yield
            finally:
                if self._lines is not None:
                    self._lines.close()
                    self._lines = None

    def restored(self, say: Callable[[str], None] = print) -> State | None:
        """The newest checkpoint that can be read, with the metrics cut to it; `None`, and no metrics, without one."""
        state = self.checkpoints.newest(say)
        self._open_metrics(0 if state is None else state["metrics_size"])
        return state

    def log(self, record: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        if self._lines is None:
            self._lines = self._open_metrics(None)
        if record["iteration"] != self._began[0]:
            self._began = (record["iteration"], self._lines.size)
        self._lines.append(record)

    def save(self, iteration: int, state: State) -> None:
        """Write a checkpoint that remembers how long the metrics were before the first line of the next iteration."""
        lines = self._lines or self._open_metrics(None)
        lines.synchronise()
        size = self._began[1] if self._began[0] == iteration else lines.size
        self.checkpoints.save(iteration, {**state, "metrics_size": size})

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind, "iteration" or "evaluation"."""
        return [record for record in Lines.read(self.metrics_path) if record["kind"] == kind]

    def _open_metrics(self, size: int | None) -> Lines:
        if self._lines is not None:
            self._lines.close()
        self._lines = Lines(self.metrics_path, size)
        return self._lines
