"""Reporters, who are told how a run goes: a progress bar, TensorBoard, or anything with the same methods.

What only shows progress ends no run: terminals are closed, pipes are cut, disks are full.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Reporter:
    """Is told of everything that happens in a run. This one does nothing with it; override what you want to hear.

    One that raises an error is told nothing any more, and the run goes on. To end a run, raise `TrainingError`.
    """

    def begin(self, done: int, total: int) -> None:
        """Iterations `done` to `total` come next."""

    def trained(self, record: Record) -> None:
        """An iteration is done: the line of the metrics."""

    def evaluated(self, record: Record) -> None:
        """An evaluation is done: the line of the metrics."""

    def say(self, text: str) -> None:
        """Something that a person should read."""

    def end(self) -> None:
        """The run is over, or broken off."""


class ProgressBar(Reporter):
    """A bar with the figures that matter, and a line per evaluation. Without a terminal only the lines.

    Lines go to the standard output, and to the standard error once that cannot be written to. The bar is there.

    Args:
        title: what stands before the bar.
    """

    def __init__(self, title: str = "meta-training") -> None:
        self.title = title
        self._bar: Any = None
        self._streams = ["stdout", "stderr"]

    def begin(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if sys.stderr is not None:
            self._bar = tqdm(initial=done, total=total, unit="step", desc=self.title, dynamic_ncols=True, disable=None)

    def trained(self, record: Record) -> None:
        if self._bar is None:
            return
        try:
            self._bar.set_postfix_str(spelled(figures(record), sys.stderr), refresh=False)
            self._bar.update()
        except (OSError, ValueError) as error:
            self._bar = None
            self.say(f"no progress bar any more ({error})")

    def evaluated(self, record: Record) -> None:
        self.say(f"iteration {record['iteration']}, held-out tasks: return {arrows(record['returns'])}")

    def say(self, text: str) -> None:
        while self._streams:
            try:
                self._print(text, getattr(sys, self._streams[0]))
            except (OSError, ValueError) as error:
                lost = self._streams.pop(0)
                text = f"{text}\n{self.title}: {lost} cannot be written to ({error}); training goes on"
            else:
                return

    def _print(self, text: str, stream: Any) -> None:
        if stream is None:  # closed before Python began
            raise OSError("it is closed")
        line = spelled(f"{self.title}: {text}", stream)
        if self._bar is None:
            print(line, file=stream, flush=True)
        else:
            self._bar.write(line, file=stream)
            stream.flush()

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TensorBoard(Reporter):
    """All numbers as scalars for TensorBoard.

    Args:
        folder: where its files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def begin(self, done: int, total: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=done)

    def trained(self, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"training/{name}", value, record["iteration"])

    def evaluated(self, record: Record) -> None:
        for k, value in enumerate(record["returns"]):
            self._writer.add_scalar(f"held-out/return_after_{k}_steps", value, record["iteration"])

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def default_reporters(folder: Path, title: str = "meta-training") -> list[Reporter]:
    """A progress bar, and TensorBoard if it is installed."""
    found: list[Reporter] = [ProgressBar(title)]
    if importlib.util.find_spec("tensorboard"):
        found.append(TensorBoard(folder / "tensorboard"))
    return found


def figures(record: Record) -> str:
    """The figures of an iteration that matter, in a few words.

    Example:
        >>> from stochgraph.algorithms.training.reports import figures
        >>> figures({"iteration": 3, "returns": [-5.0, -3.2], "gradient_norm": 0.51, "seconds": 0.1})
        'return -5.00 → -3.20, gradient norm 0.51'
    """
    shown = [f"return {arrows(record['returns'])}"]
    shown += [f"{words} {record[name]:.2g}" for name, words in _WORDS.items() if record.get(name) is not None]
    return ", ".join(shown)


_WORDS = {"gradient_norm": "gradient norm", "kl": "KL"}


def arrows(returns: list[float]) -> str:
    """Returns before, between and after the adaptation steps."""
    return " → ".join(f"{value:.2f}" for value in returns)


def spelled(text: str, stream: Any) -> str:
    """The text in the letters that a stream has.

    Example:
        >>> import io
        >>> from stochgraph.algorithms.training.reports import spelled
        >>> spelled("return 1.00 → 2.00 ± 0.10", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        'return 1.00 -> 2.00 +- 0.10'
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for letter, plain in _PLAIN.items():
        if letter in text and not letter.encode(encoding, "ignore"):
            text = text.replace(letter, plain)
    return text.encode(encoding, "backslashreplace").decode(encoding)


_PLAIN = {"→": "->", "±": "+-"}
