"""Programs beside others: threads that wait for each other, on processors that other programs want too.

NOTE [threads that sleep]
torch shares an operation out among its threads, and they meet again at its end. Whoever is early spins there, which is
the fastest way to meet on processors that are free. Beside other programs it is the slowest: whoever spins uses up its
time on the processor, and then waits for its turn together with those it was waited for by. A thread that sleeps
instead gets a processor as soon as it is woken; on free processors that costs a third of the time.

How threads wait is settled when torch is loaded, by an environment variable. So a program of this package that finds
the processors busy starts anew, with the variable set. The number of threads stays as it was: results do not depend on
what else a machine does.
"""

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

SLEEPING = {"OMP_WAIT_POLICY": "passive"}
_SAID = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # whoever sets one of them has decided
_STATISTICS, _QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")
_MOMENT, _MOMENTS = 0.15, 4  # seconds, and how many of them in a row must be busy


def make_room() -> None:
    """Start this program anew with threads that sleep while they wait, where other programs keep processors busy.

    Only a program of this package, run by its command or with `python -m`, and once: with one thread, or where the
    environment says how threads wait, or where there is no telling, nothing happens.
    """
    threads = torch.get_num_threads()
    settled = any(name in os.environ for name in _SAID) or not torch.backends.openmp.is_available()
    if threads == 1 or settled or not _is_own_program() or not _is_crowded(threads):
        return
    with suppress(OSError, ValueError):  # of outputs that cannot be written to
        print(
            "other programs keep the processors busy: threads sleep while they wait (OMP_WAIT_POLICY)", file=sys.stderr
        )
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **SLEEPING})


def _is_own_program() -> bool:
    """True where a module of this package runs, or its command: nothing of a user's is lost if it starts anew."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = Path(sys.argv[0]).stem if spec is None else spec.name
    return name.partition(".")[0] == "stochgraph"


def _is_crowded(threads: int) -> bool:
    """True where there is no processor for every thread, for a while."""
    return all(free_processors() < threads - 0.5 for _ in range(_MOMENTS))


def free_processors() -> float:
    """The number of processors for this process now: those that are idle, and no more than its group may use."""
    return min(_idle(), _quota(_QUOTA))


def _idle() -> float:
    """The number of idle processors; as many as one wants where the system does not say."""
    if not _STATISTICS.exists():
        return float("inf")
    own = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    before = _ticks(_STATISTICS.read_text().splitlines(), own)
    time.sleep(_MOMENT)
    after = _ticks(_STATISTICS.read_text().splitlines(), own)
    passed = sum(after) - sum(before)
    return len(own) * (after[3] + after[4] - before[3] - before[4]) / passed if passed else float("inf")


def _ticks(lines: Iterable[str], own: set[str]) -> list[int]:
    """The time of some processors in every state so far; the fourth is idle, the fifth waiting for disks."""
    counts = [list(map(int, line.split()[1:9])) for line in lines if line.partition(" ")[0] in own]
    return [sum(column) for column in zip(*counts, strict=True)]


def _quota(path: Path) -> float:
    """The number of processors that a control group may use at a time."""
    limit, period = path.read_text().split() if path.exists() else ("max", "1")
    return float("inf") if limit == "max" else int(limit) / int(period)
