"""Checkpoints: written whole, the newest few kept, an unreadable one passed over for the one before it."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .files import replacing

State = dict[str, Any]
FILES = r"[0-9]{8,}\.pt"  # the names of checkpoints


class CheckpointError(RuntimeError):
    """No checkpoint can be read. The message names the files and what is wrong with them."""


class Checkpoints:
    """The checkpoints of a run: files `00000120.pt` in one folder, named after the iterations that are done.

    A checkpoint is what `torch.save` writes of tensors and plain values, nothing that could run code.

    Args:
        folder: where they are.
        kept: how many of the newest are kept.

    Example:
        >>> import pathlib, tempfile
        >>> import torch
        >>> from stochgraph.algorithms.training.checkpoints import Checkpoints
        >>> checkpoints = Checkpoints(pathlib.Path(tempfile.mkdtemp()), kept=2)
        >>> for iteration in (10, 20, 30):
        ...     checkpoints.save(iteration, {"theta": torch.tensor(1.0)})
        >>> [path.name for path in checkpoints.paths()]
        ['00000020.pt', '00000030.pt']
        >>> checkpoints.newest()
        {'theta': tensor(1.)}
    """

    def __init__(self, folder: Path, kept: int = 3) -> None:
        self.folder = folder
        self.kept = kept

    def paths(self) -> list[Path]:
        """The checkpoints that there are, oldest first."""
        return sorted(path for path in self.folder.glob("*.pt") if path.stem.isdigit())

    def save(self, iteration: int, state: State) -> None:
        """Write one, and then remove the oldest."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(self.folder / f"{iteration:08}.pt") as temporary:
            temporary.write_bytes(buffer.getbuffer())
        for path in self.paths()[: -self.kept]:
            path.unlink(missing_ok=True)

    def newest(self, say: Callable[[str], None] = print, set_aside: bool = True) -> State | None:
        """The newest one that can be read, its tensors on the CPU, or `None` if there are none.

        Args:
            say: is told of those that cannot be read.
            set_aside: rename those, so that they do not count as checkpoints any more.

        Raises:
            CheckpointError: there are some, and none can be read.
        """
        failures: dict[Path, str] = {}
        for path in reversed(self.paths()):
            try:
                state = read_checkpoint(path)
            except CheckpointError as error:
                failures[path] = str(error)
                continue
            for broken, why in failures.items():
                say(f"{why}; going back to {path.name}")
                if set_aside:
                    broken.rename(broken.with_suffix(".pt.unreadable"))
            return state
        if failures:
            why = "; ".join(failures.values())
            raise CheckpointError(f"{why}. No checkpoint is left to go back to: remove {self.folder} to start anew")
        return None


def read_checkpoint(path: Path) -> State:
    """What is in a checkpoint, its checksums compared.

    Raises:
        CheckpointError: the file cannot be read, is cut short, or is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file breaks torch.load in many ways
        raise CheckpointError(f"checkpoint {path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} holds {type(state).__name__}, and not the state of a run")
    return state
