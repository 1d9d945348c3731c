"""The demo beside other programs: its processor time and wall time, alone, beside busy processes, and with one thread.

Busy processes count to infinity while the demo runs, and end with it. Wanted: a processor time beside them of at most
1.2 times that alone, and a wall time of at most 1.3 times that of the same demo with one thread beside the same load.
"spinning" is the demo whose threads wait as those of torch do by default; beside others it takes long, and is left out
unless asked for. Each row is a process of its own; `alone` needs a machine that nobody else uses.

Run from the checkout: python benchmarks/beside.py [--iterations 20] [--busy 7] [--rounds 1] [--spinning]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"as it is": {}, "one thread": {"OMP_NUM_THREADS": "1"}, "spinning": {"GOMP_SPINCOUNT": "300000"}}


class Seconds(NamedTuple):
    """What one demo took."""

    wall: float
    processor: float


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Within it, so many processes are busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def demo(iterations: int, setting: str, others: int) -> Seconds:
    """One demo in a process of its own, its restarts included."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **SETTINGS[setting]}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors, busy(others):
        command = [sys.executable, "-m", "stochgraph.algorithms.commands.demo", "--iterations", str(iterations)]
        command += ["--out", f"{folder}/navigation.png"]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, cwd=folder)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            errors.seek(0)
            raise RuntimeError(f"the demo failed: {errors.read()}")
    return Seconds(wall, used.ru_utime + used.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=20, help="meta-iterations of each learner; the demo has 1200")
    parser.add_argument("--busy", type=int, default=7, help="busy processes")
    parser.add_argument("--rounds", type=int, default=1, help="demos of every row; medians are shown")
    parser.add_argument("--spinning", action="store_true", help="also with threads that spin, as torch has them")
    options = parser.parse_args()
    rows = [("as it is", 0), ("one thread", 0), ("as it is", options.busy), ("one thread", options.busy)]
    rows += [("spinning", 0), ("spinning", options.busy)] if options.spinning else []
    print(f"The demo of {options.iterations} iterations; medians of {options.rounds} rounds.\n")
    print("| demo | busy processes | wall, s | processor, s |\n|---|---:|---:|---:|")
    found = {}
    for setting, others in rows:
        times = [demo(options.iterations, setting, others) for _ in range(options.rounds)]
        found[setting, others] = Seconds(median(t.wall for t in times), median(t.processor for t in times))
        print(f"| {setting} | {others} | {found[setting, others].wall:.1f} | {found[setting, others].processor:.1f} |")
        sys.stdout.flush()
    alone, beside, single = found["as it is", 0], found["as it is", options.busy], found["one thread", options.busy]
    print(f"\nprocessor time beside / alone: {beside.processor / alone.processor:.2f} (at most 1.2)")
    print(f"wall time beside / with one thread beside: {beside.wall / single.wall:.2f} (at most 1.3)")


if __name__ == "__main__":
    main()
