"""A fake experiment that counts, and a queue that does it in a process of its own: without torch, in no time."""

import signal
import sys
from pathlib import Path

from benchmarks.reproduce.experiments import Experiment
from benchmarks.reproduce.jobs import Queue, jobs_of
from benchmarks.reproduce.run import alone_in

# Counts to 60 in a file, a line each 20 ms, from where it was; or fails.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(0.5)  # to save
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
if sys.argv[1] == "fail":
    raise SystemExit("out of luck")
folder = Path(sys.argv[2])
(folder / "process").write_text(str(os.getpid()))
with (folder / "count").open("a+") as file:
    file.seek(0)
    for k in range(len(file.readlines()), 60):
        print(k, file=file, flush=True)
        time.sleep(0.02)
"""


def fake(name: str, **fields: object) -> Experiment:
    """An experiment with these fields, and words for the others."""
    described = dict.fromkeys(("paper", "shows", "published", "ours"), "none")
    return Experiment(**{"name": name, "group": 1, **described, **fields})  # type: ignore[arg-type]


def counting(name: str = "counting", word: str = "count", seeds: int = 2) -> Experiment:
    """An experiment that counts, or with the word "fail" one that fails."""
    return fake(name, script=("fake.py", word), seeds=range(seeds))


def main(place: Path) -> int:
    """Do what is missing, two at once, until SIGTERM."""
    with alone_in(place / "results") as lock:
        queue = Queue(
            jobs_of([counting()], place / "results"),
            "first",
            lambda commit: (Path(sys.executable), place / commit),
            at_once=2,
            logs=place / "logs",
            poll=0.02,
            passed=(lock,),
        )
        signal.signal(signal.SIGTERM, queue.stop)
        return 0 if queue.run() else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
