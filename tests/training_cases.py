"""Runs that take a second, and processes that train: what the tests of the trainer share."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stochgraph.algorithms.training import Configuration, Reporter, RunFolder, joined_ranks, train

SMALL = Configuration(
    horizon=3,
    hidden=(3,),
    tasks=3,
    inner=2,
    outer=2,
    policy_options={"log_std": -0.5},
    inner_rate=0.1,
    inner_baseline=None,
    standardise=False,
    outer_baseline=None,
    learning_rate=0.05,
    iterations=6,
    evaluate_every=3,
    evaluation_tasks=4,
    checkpoint_every=2,
    threads=1,
)
FORKS = multiprocessing.get_context("forkserver")  # what takes seconds to import is imported once, and forked
FORKS.set_forkserver_preload(["stochgraph.algorithms.training", "torch._dynamo", "matplotlib.figure", __name__])


class Hook(Reporter):
    """Calls a function after every iteration, and remembers what was said."""

    def __init__(self, after: Any = None) -> None:
        self.after = after
        self.said: list[str] = []

    def trained(self, record: dict[str, Any]) -> None:
        if self.after is not None:
            self.after(record)

    def say(self, text: str) -> None:
        self.said.append(text)


def newest(folder: Path | str) -> dict[str, Any]:
    """The state in the newest checkpoint."""
    state = RunFolder(folder).checkpoints.newest()
    assert state is not None
    return state


def same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors and plain values are the same to the bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def contents(folder: Path | str) -> dict[str, bytes]:
    """All files in a folder but the lock, with what is in them."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextlib.contextmanager
def failing(place: Path, number: int) -> Iterator[None]:
    """Every look at one place fails, as on a disk that is not well: for all users, the superuser too."""

    def guarded(call: Any) -> Any:
        def guard(target: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(target, (str, os.PathLike)) and Path(target) == place:
                raise OSError(number, os.strerror(number), str(target))
            return call(target, *arguments, **named)

        return guard

    with pytest.MonkeyPatch.context() as patched:
        for module, name in ((os, "scandir"), (os, "stat"), (os, "lstat"), (os, "open"), (io, "open")):
            patched.setattr(module, name, guarded(getattr(module, name)))
        patched.setattr("builtins.open", io.open)
        yield


def same_runs(one: Path | str, other: Path | str) -> bool:
    """Whether two runs ended alike: the state, and all metrics but the times."""
    states = [{**newest(folder), "metrics_size": 0} for folder in (one, other)]
    return same(*states) and timeless(one) == timeless(other)


def timeless(folder: Path | str) -> list[dict[str, Any]]:
    """The metrics without times."""
    return without_times([json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()])


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is the same in every run."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.01)


def train_quietly(configuration: Configuration) -> None:
    """Train in a process of its own, or in one rank of several."""
    with joined_ranks() as ranks:
        train(configuration, ranks, reporters=[])


def become_rank(rank: int, count: int, port: int) -> None:
    """What torchrun tells a process."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def train_on_rank(rank: int, count: int, port: int, configuration: Configuration) -> None:
    """Be one of several ranks."""
    become_rank(rank, count, port)
    train_quietly(configuration)


def free_port() -> int:
    """A port that nobody listens at, below those of outgoing connections, which could take it before the ranks do."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def in_ranks(count: int, function: Any, *arguments: Any) -> list[int | None]:
    """Call `function(rank, count, port, *arguments)` in a process per rank: their exit statuses."""
    port = free_port()
    processes = [FORKS.Process(target=function, args=(rank, count, port, *arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def python_environment() -> dict[str, str]:
    """Environment variables for a Python that imports what the tests import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
