"""Runs that are killed, interrupted, refused disk space and tampered with, at random: what must hold after every start.

A series is a run that is started again and again, each time to go some iterations farther. Every start but the last has
a fault: at some system call on its folder the process is killed (before the call, after it, within a write), gets a
signal, or is answered with an error, once or from there on; or it is killed at some time. Between two starts somebody
else is at the folder: writes into the metrics, damages a checkpoint, puts files there, moves the checkpoints away.
After every start:

- it ended in an outcome, in one sentence, or by the signal; never in another error;
- the newest good checkpoint is as new as before, unless it was that one which was damaged;
- the metrics up to there are those of a run left alone.

After the last start everything is that of a run left alone, to the bit.

    python -m tests.faults --hours 1 --seed 1         by hand; prints how much was tried
"""

import argparse
import builtins
import errno
import io
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stochgraph.algorithms.training import (
    CheckpointError,
    Configuration,
    ConfigurationError,
    RunFolder,
    TrainingError,
    train,
)
from stochgraph.algorithms.training.checkpoints import read_checkpoint
from tests.training_cases import FORKS, SMALL, same, same_runs, without_times

STARTS = 6
FARTHER = 4  # iterations that a start is to go farther than the one before
RUN = SMALL.replace(iterations=FARTHER * (STARTS + 1), checkpoints_kept=2)
CALLS = [30, 100]  # a start makes some more, half of them before its first iteration
ERRORS = [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EACCES, errno.EDQUOT, errno.EROFS, errno.EMFILE]
BY_PATH = ["open", "stat", "lstat", "scandir", "mkdir", "rename", "replace", "unlink", "truncate"]
BY_DESCRIPTOR = ["write", "fsync", "ftruncate", "pread"]
Action = Callable[[Callable[[], Any]], Any]  # what is done with a call: it is made, or not


@dataclass
class Fault:
    """What happens to a start.

    Attributes:
        kind: in words, for the count.
        call: the number of the system call on the folder that it happens at.
        number: of a signal, or of an error.
        seconds: when the process is killed in any case.
    """

    kind: str
    call: int = 0
    number: int = 0
    seconds: float = 60.0


def random_fault(chance: random.Random) -> Fault:
    """One of them."""
    kind = chance.choice(["killed before", "killed after", "killed within", "killed at some time", "signal", "signals"])
    if chance.random() < 0.5:
        kind = chance.choice(["an error", "errors from there on", "a short write"])
    if kind == "killed at some time":
        return Fault(kind, seconds=chance.uniform(0.0, 0.6))
    number = chance.choice(ERRORS if "error" in kind else [signal.SIGINT, signal.SIGTERM])
    return Fault(kind, chance.randrange(1, chance.choice(CALLS)), number)


class Meddler:
    """Stands between a process and the system: counts the calls on one folder, and lets a fault happen at one."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.folder = str(folder)
        self.fault = fault
        self.count = 0
        self.descriptors: set[int] = set()

    def install(self) -> None:
        """From here on, in this process, for good."""
        for name in BY_PATH:
            setattr(os, name, self.by_path(getattr(os, name), remembered=name == "open"))
        for name in BY_DESCRIPTOR:
            setattr(os, name, self.by_descriptor(getattr(os, name)))
        io.open = builtins.open = self.by_path(io.open)
        for name in ("write_bytes", "write_text"):
            setattr(Path, name, self.of_a_path(getattr(Path, name)))

    def by_path(self, call: Any, remembered: bool = False) -> Any:
        """A call that is given a path."""

        def guarded(path: Any, *arguments: Any, **named: Any) -> Any:
            if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(self.folder):
                return call(path, *arguments, **named)
            found = self.meet(lambda: call(path, *arguments, **named), os.fspath(path))
            if remembered:
                self.descriptors.add(found)
            return found

        return guarded

    def by_descriptor(self, call: Any) -> Any:
        """A call that is given an open file."""

        def guarded(descriptor: int, *arguments: Any) -> Any:
            if descriptor not in self.descriptors:
                return call(descriptor, *arguments)
            half = [each[: len(each) // 2] if isinstance(each, bytes) else each for each in arguments]
            return self.meet(lambda: call(descriptor, *arguments), "", lambda: call(descriptor, *half))

        return guarded

    def of_a_path(self, call: Any) -> Any:
        """A method of paths that writes a file."""

        def guarded(path: Path, data: Any, *arguments: Any, **named: Any) -> Any:
            half = data[: len(data) // 2]
            whole, part = (
                (lambda: call(path, data, *arguments, **named)),
                (lambda: call(path, half, *arguments, **named)),
            )
            return self.meet(whole, str(path), part) if str(path).startswith(self.folder) else whole()

        return guarded

    def meet(self, call: Callable[[], Any], path: str, half: Callable[[], Any] | None = None) -> Any:
        """Make a call, or let happen what happens at it."""
        self.count += 1
        kind, due = self.fault.kind, self.count - self.fault.call
        if due < 0 or (due > 0 and kind != "errors from there on"):
            return call()
        if "error" in kind:
            raise OSError(self.fault.number, os.strerror(self.fault.number), path)
        if kind == "a short write" and half is not None:
            written = half()
            if path:  # a file of Python's writes on, and hears of it then
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return written
        if kind == "killed within" and half is not None:
            half()
        elif kind == "killed after":
            call()
        for _ in range({"signals": 2, "signal": 1}.get(kind, 0)):
            os.kill(os.getpid(), self.fault.number)
        if "killed" in kind:
            os.kill(os.getpid(), signal.SIGKILL)
        return call()


def start(configuration: Configuration, fault: Fault, answers: Any) -> None:
    """Train in a process of its own, and say how it ended."""
    Meddler(Path(configuration.output), fault).install()
    try:
        outcome = train(configuration, reporters=[])
        answers.send(("outcome", "finished" if outcome.finished else "interrupted"))
    except (ConfigurationError, TrainingError) as error:
        answers.send(("sentence", str(error)))
    except KeyboardInterrupt:
        answers.send(("outcome", "interrupted at once"))
    except BaseException as error:
        answers.send(("another error", f"{type(error).__name__}: {error}"))


class Series:
    """One run under faults.

    Args:
        folder: where the run is to be.
        alone: the folder of a run left alone.
        chance: what happens.
        count: counts what was tried.
    """

    def __init__(self, folder: Path, alone: Path, chance: random.Random, count: Counter[str]) -> None:
        self.folder = RunFolder(folder)
        self.run = RUN.replace(output=str(folder))
        self.alone = RunFolder(alone)
        self.chance = chance
        self.count = count
        self.story: list[str] = []

    def play(self) -> None:
        """All starts, and the last one, after which everything is there."""
        for i in range(STARTS):
            self.run = RUN.replace(output=str(self.folder.path), iterations=FARTHER * (i + 1))
            self.start(random_fault(self.chance))
            self.meddle()
        self.run = RUN.replace(output=str(self.folder.path))
        kind, said = self.start(Fault("nothing"))
        self.hold(kind == "outcome" and said == "finished", f"the last start did not finish: {said}")
        self.hold(same_runs(self.folder.path, self.alone.path), "the run is not that of a run left alone")

    def start(self, fault: Fault) -> tuple[str, str]:
        """One start, and what must hold after it."""
        self.story.append(f"start with {fault}")
        before = self.newest()
        receiver, sender = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=start, args=(self.run, fault, sender))
        process.start()
        sender.close()
        process.join(fault.seconds)
        process.kill()
        process.join()
        kind, said = "killed", ""
        with suppress(EOFError):
            kind, said = receiver.recv()
        self.story.append(f"{kind}: {said}")
        self.count.update(["starts", fault.kind, f"ended: {said if kind == 'outcome' else kind}"])
        self.hold(kind != "another error", "it ended in another error")
        self.hold(kind != "sentence" or (bool(said.strip()) and "\n" not in said), "it said more than a sentence")
        self.hold(self.newest() >= before, f"the newest good checkpoint was {before}, and is {self.newest()}")
        self.check_metrics()
        return kind, said

    def check_metrics(self) -> None:
        """Up to the newest checkpoint, the metrics are there, and those of a run left alone."""
        done = self.newest()
        for kind in ("iteration", "evaluation"):
            found, expected = (
                [record for record in without_times(each.metrics(kind)) if record["iteration"] < done]
                for each in (self.folder, self.alone)
            )
            self.hold(same(found, expected), f"the metrics up to iteration {done} have changed")

    def newest(self) -> int:
        """The newest checkpoint of the run that can be read; −1 without one."""
        for path in reversed(self.folder.checkpoints.paths()):
            with suppress(CheckpointError):
                if read_checkpoint(path).get("run") == self.run.fingerprint():
                    return int(path.stem)
        return -1

    def meddle(self) -> None:
        """Somebody else is at the folder; where that must be noticed, it is, and is put right again."""
        actions = [
            self.write_garbage,
            self.damage,
            self.leave_files,
            self.move_away,
            self.copy_another,
            self.rest,
        ]
        if self.newest() < 0:
            return
        action = self.chance.choice(actions)
        self.story.append(action.__name__)
        self.count.update([action.__name__.replace("_", " ")])
        action()

    def write_garbage(self) -> None:
        metrics = self.folder.metrics_path
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        garbage = self.chance.choice([b"hello\n", b"\n", b"\0" * 512 + b"\n", b'{"kind": 3}\n', b"[[[\n"])
        lines.insert(self.chance.randrange(len(lines) + 1), garbage)
        end = self.chance.choice([b"\n", b"\r\n"])
        metrics.write_bytes(b"".join(lines).replace(b"\r\n", b"\n").replace(b"\n", end))

    def damage(self) -> None:
        """The newest checkpoint, if there is one before it: then the run goes back to that."""
        paths = self.folder.checkpoints.paths()
        if len(paths) > 1:
            whole = paths[-1].read_bytes()
            cut = whole[: self.chance.randrange(len(whole))]
            paths[-1].write_bytes(self.chance.choice([cut, bytes(len(whole)), b"something else"]))

    def leave_files(self) -> None:
        for path in (self.folder.path, self.folder.checkpoints.folder):
            (path / f".temporary-{self.chance.randrange(10**6)}-notes").touch()
        (self.folder.checkpoints.folder / "best.pt").write_bytes(b"mine")
        (self.folder.checkpoints.folder / "99999999.pt").mkdir(exist_ok=True)

    def move_away(self) -> None:
        """The checkpoints: without them nothing is begun, nor written over."""
        there, away = self.folder.checkpoints.folder, self.folder.path / "away"
        there.rename(away)
        if self.chance.random() < 0.5:
            there.symlink_to(self.folder.path / "nowhere")
        if self.folder.metrics("evaluation"):
            self.refused("put the checkpoints back")
        if there.is_symlink():
            there.unlink()
        away.rename(there)

    def copy_another(self) -> None:
        """A checkpoint of another run, newer than all: it is not continued."""
        path = self.folder.checkpoints.path(99)
        state = read_checkpoint(self.folder.checkpoints.path(self.newest()))
        torch.save({**state, "iteration": 99, "run": {"seed": 7}}, path)
        self.refused("is not one of this run")
        path.unlink()

    def rest(self) -> None:
        pass

    def refused(self, words: str) -> None:
        """A start without a fault ends in these words, and changes no file."""
        before = self.files()
        kind, said = self.start_refused()
        self.hold(kind == "sentence" and words in said, f"not refused with {words!r}, but {kind}: {said}")
        self.hold(self.files() == before, "a start that was refused has changed files")

    def start_refused(self) -> tuple[str, str]:
        try:
            train(self.run, reporters=[])
        except (ConfigurationError, TrainingError) as error:
            return "sentence", str(error)
        return "outcome", ""

    def files(self) -> dict[Path, bytes]:
        files = [path for path in self.folder.path.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
        return {path: path.read_bytes() for path in files}

    def hold(self, holds: bool, otherwise: str) -> None:
        """What must hold; the story of the series if it does not."""
        assert holds, "\n".join([otherwise, *self.story])


def left_alone(folder: Path) -> Path:
    """A run that nothing happens to."""
    return train(RUN.replace(output=str(folder)), reporters=[]).folder


def main() -> None:
    """Series until the time is over."""
    parser = argparse.ArgumentParser(description="Series of faults, for hours.")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    end, count = time.monotonic() + 3600 * given.hours, Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        alone = left_alone(Path(place) / "alone")
        while time.monotonic() < end:
            Series(Path(place) / "run", alone, random.Random(f"{given.seed} {count['series']}"), count).play()
            shutil.rmtree(Path(place) / "run")
            count.update(["series"])
    for what, times in count.most_common():
        print(f"{times:8} {what}")


if __name__ == "__main__":
    main()
