"""Checkpoints: written whole, the newest few kept, an unreadable one passed over for the one before it."""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import files_in, replacing, set_aside

State = dict[str, Any]
FILES = r"[0-9]{8,}\.pt"  # the names of checkpoints
_REAL = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_FINITE = _REAL | {torch.complex128, torch.complex64}  # what may have infinities, and can be asked


class CheckpointError(RuntimeError):
    """A run cannot be continued from its checkpoints. The message names the files and what is wrong with them."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that does not hold what was written, and never will."""


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
        return sorted(files_in(self.folder, FILES), key=lambda path: int(path.stem))

    def path(self, iteration: int) -> Path:
        """The path of the one after so many iterations."""
        return self.folder / f"{iteration:08}.pt"

    def save(self, iteration: int, state: State) -> None:
        """Write one, and then remove the oldest of those up to it.

        Raises:
            CheckpointError: something in it is not finite.
        """
        if broken := not_finite(state):
            raise CheckpointError(f"checkpoint {self.path(iteration)} is not written: {broken} is not finite")
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(self.path(iteration)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        for path in [path for path in self.paths() if int(path.stem) <= iteration][: -self.kept]:
            path.unlink(missing_ok=True)

    def newest(self, say: Callable[[str], None] = print) -> State | None:
        """The newest one that is not damaged, its tensors on the CPU, or `None` if there are none."""
        found = self.newest_file(say)
        return None if found is None else found[1]

    def newest_file(self, say: Callable[[str], None] = print) -> tuple[Path, State] | None:
        """The newest one that is not damaged, with the file that it is in.

        Args:
            say: is told of those that are damaged.

        Raises:
            DamagedCheckpoint: there are some, and all are damaged.
            CheckpointError: one cannot be read at present.
        """
        paths = self.paths()
        while True:
            try:
                return _newest_of(paths, say)
            except CheckpointError as error:
                seen, paths = paths, self.paths()
                if paths == seen or not isinstance(error.__cause__, FileNotFoundError):
                    raise  # or else a run that goes on has removed what was seen, and written a newer one

    def set_aside(self, iteration: int) -> None:
        """Rename those after an iteration, which were damaged, so that they do not count as checkpoints any more."""
        for path in self.paths():
            if int(path.stem) > iteration:
                set_aside(path, "unreadable")


def _newest_of(paths: Sequence[Path], say: Callable[[str], None]) -> tuple[Path, State] | None:
    failures: list[str] = []
    for path in reversed(paths):
        try:
            state = read_checkpoint(path)
        except DamagedCheckpoint as error:
            failures.append(str(error))
            continue
        for why in failures:
            say(f"{why}; going back to {path.name}")
        return path, state
    if failures:
        raise DamagedCheckpoint(f"{'; '.join(failures)}. No checkpoint is left to go back to")
    return None


def read_checkpoint(path: Path) -> State:
    """The content of a checkpoint, its checksums compared.

    Raises:
        DamagedCheckpoint: the file is cut short, or is not what was written, or has what is not finite.
        CheckpointError: the file cannot be read at present; what is in it nobody knows.
    """
    try:
        written = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}): try again once the cause is gone, or "
            "move it away to go back to the one before"
        ) from error
    try:
        state = _loaded(written)
    except Exception as error:  # a broken file breaks torch.load in many ways
        raise DamagedCheckpoint(f"checkpoint {path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"checkpoint {path} holds {type(state).__name__}, and not the state of a run")
    if broken := not_finite(state):
        raise DamagedCheckpoint(f"checkpoint {path} is of no use: {broken} is not finite")
    return state


def _loaded(written: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
    return torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)


def not_finite(state: Any) -> str:
    """The place of the first tensor that has infinities, or what is no number; nothing if there is none.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.training.checkpoints import not_finite
        >>> not_finite({"learner": {}, "parameters": {"log_std": torch.tensor([0.0, float("inf")])}})
        'parameters.log_std'
    """
    if isinstance(state, Tensor):
        return "" if state.dtype not in _FINITE or not _dense(state) or bool(state.isfinite().all()) else "."
    entries = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    for name, each in entries:
        if found := not_finite(each):
            return f"{name}.{found}".rstrip(".")
    return ""


def check_state(path: Path, state: State, run: Mapping[str, Any] | None = None) -> None:
    """Refuse a checkpoint of other iterations than its name has, or of another run.

    Args:
        path: where it is.
        state: what is in it.
        run: the fingerprint of the run; `None` for any. Checkpoints of earlier versions have none.

    Raises:
        CheckpointError: it is another one.
    """
    iteration, origin = state.get("iteration"), state.get("run", run)
    if type(iteration) is not int or iteration != int(path.stem):
        raise foreign(path, f"it holds iteration {iteration!r}, and not that of its name")
    if run is None or origin == run:
        return
    if not isinstance(origin, dict):
        raise foreign(path, f"it is of a run {origin!r}")
    raise foreign(path, f"it is of a run with {_differences(origin, run)}")


def check_parameters(found: Any, like: Mapping[str, Tensor]) -> None:
    """Refuse parameters of other names, shapes or kinds of numbers.

    Raises:
        ValueError: they are not like those.
    """
    if not isinstance(found, dict):
        raise ValueError(f"its parameters are {type(found).__name__}")
    if found.keys() != like.keys():
        raise ValueError(f"its parameters are {', '.join(map(str, found))}, and not {', '.join(like)}")
    for name, leaf in like.items():
        if not fits(found[name], leaf):
            raise ValueError(f"its parameter {name!r} is {_described(found[name])}, and not {_described(leaf)}")


def fits(found: Any, like: Tensor) -> bool:
    """True for a tensor that can take the place of another one: of its shape, and real numbers as it is."""
    if not isinstance(found, Tensor) or not _dense(found) or found.shape != like.shape:
        return False
    return found.dtype in _REAL if like.is_floating_point() else found.dtype == like.dtype


def _dense(tensor: Tensor) -> bool:
    """True if its numbers are there, one after the other."""
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def foreign(path: Path, why: str) -> CheckpointError:
    """The error of a checkpoint that belongs to something else."""
    return CheckpointError(
        f"checkpoint {path} is not one of this run: {why}. Remove it if it has got here by mistake; if it is of "
        "another version of the package, give another output"
    )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*one, *other} if name not in one or name not in other or one[name] != other[name])
    values = [[repr(each[name]) if name in each else "its default" for each in (one, other)] for name in names]
    return ", ".join(f"{name}={theirs} not {ours}" for name, (theirs, ours) in zip(names, values, strict=True))


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "" if _dense(value) else "without numbers, " if value.device.type == "meta" else "sparse "
    return f"{kind}{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
