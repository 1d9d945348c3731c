"""Do what is missing of the papers' experiments, and survive being stopped at any time.

    python benchmarks/reproduce/run.py --list
    python benchmarks/reproduce/run.py --group 1 --jobs 2
    python benchmarks/reproduce/run.py --only fallah-line

Results are folders under benchmarks/reproduce/results, small enough to be committed. A run is done with the package as
it is at one commit, from its beginning to its end, whatever happens to the code meanwhile. Ctrl-C saves and ends; the
same command goes on. What is being timed (benchmarks/) has the machine alone: the runs stand still for it.
"""

import argparse
import fcntl
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.reproduce.experiments import EXPERIMENTS, Experiment  # noqa: E402
from benchmarks.reproduce.installed import BuildError, cache_folder, full_name, python_of, sources_of  # noqa: E402
from benchmarks.reproduce.jobs import Queue, jobs_of, table  # noqa: E402

INTERRUPTED = 130
PATIENCE = 60  # seconds that another queue is waited for


def chosen(options: argparse.Namespace) -> list[Experiment]:
    """The experiments that are asked for."""
    found = [each for each in EXPERIMENTS if options.group in (None, each.group)]
    found = [each for each in found if not options.only or any(word in each.name for word in options.only)]
    if not found:
        raise SystemExit(f"no experiment is meant; there are {', '.join(each.name for each in EXPERIMENTS)}")
    return found


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    words = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="experiments with this in a name")
    parser.add_argument("--group", type=int, help="experiments of this group")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="processes, each with one thread")
    parser.add_argument("--list", action="store_true", help="say how far every run is, and do nothing")
    parser.add_argument("--commit", default="HEAD", help="what runs that have not begun are run with")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="their folder")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="the folder of environments and logs")
    return parser.parse_args(arguments)


@contextmanager
def alone_in(results: Path) -> Iterator[int]:
    """Hold a folder of results: no other queue, and no run that one which was killed has left and that still saves."""
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".lock").open("a") as lock:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise SystemExit(f"another queue is at work in {results}") from None
                time.sleep(0.5)
        yield lock.fileno()


def main(arguments: list[str] | None = None) -> int:
    """Run the queue; the exit status."""
    options = parsed(arguments)
    jobs = jobs_of(chosen(options), options.results.resolve())
    if options.list:
        print("\n".join(table(jobs)))
        return 0
    try:
        commit = full_name(options.commit)
    except BuildError as error:
        raise SystemExit(str(error)) from error
    with alone_in(options.results) as lock:
        environment = partial(_environment, options.cache.resolve())
        say = partial(print, flush=True)
        queue = Queue(jobs, commit, environment, options.jobs, options.cache / "logs", say, passed=(lock,))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, queue.stop)
        whole = queue.run()
    return INTERRUPTED if queue.stopping else int(not whole)


def _environment(cache: Path, commit: str) -> tuple[Path, Path]:
    return python_of(commit, cache), sources_of(commit, cache)


if __name__ == "__main__":
    sys.exit(main())
