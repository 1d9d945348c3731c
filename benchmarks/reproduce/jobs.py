"""Runs, and the queue that does what is missing of them.

A run is a folder, `RESULTS/<experiment>/<variant>/seed-k`, and its files say how far it is: `commit.json`, with which
commit it runs from its beginning to its end; what the trainer writes; `done.json`, that it is whole. Each is written
whole or not at all, so that the queue can be stopped at any time, and whoever starts it next goes on from there.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._machine import Working

from .experiments import Experiment

WORKER = Path(__file__).with_name("worker.py")
LINES_KEPT = 500  # lines of iterations that are kept of a whole run; evaluations are kept all
_LEFT_OVER = ("checkpoints", "tensorboard", "learning_curve.png", ".lock")


@dataclass(frozen=True)
class Job:
    """One run of an experiment.

    Attributes:
        experiment: what it belongs to.
        variant: which of its variants.
        seed: with which seed.
        results: the folder of all results.
    """

    experiment: Experiment
    variant: str
    seed: int
    results: Path

    @property
    def name(self) -> str:
        """The run's folder among the results; it is the same on every machine."""
        return f"{self.experiment.name}/{self.variant}/seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.results / self.name

    def done(self) -> bool:
        """Whether it is whole."""
        return (self.folder / "done.json").is_file()

    def commit(self) -> str | None:
        """The commit that it was begun with."""
        path = self.folder / "commit.json"
        return json.loads(path.read_text())["commit"] if path.is_file() else None

    def state(self) -> str:
        """How far it is, in a word or two."""
        if self.done():
            return "done"
        saved = sorted(path.stem for path in (self.folder / "checkpoints").glob("*.pt"))
        if saved:
            return f"saved after {int(saved[-1])}"
        return "missing" if self.commit() is None else "begun"

    def begin(self, commit: str) -> str:
        """Remember the commit if none is; the one that it runs with."""
        if self.commit() is None:
            write(self.folder / "commit.json", {"commit": commit})
        return self.commit() or commit

    def call(self, sources: Path) -> dict[str, Any]:
        """What the worker is asked to do, in the folder of results."""
        if self.experiment.script:
            script, *arguments = self.experiment.script
            return {"script": [str(sources / "benchmarks" / "reproduce" / script), *arguments], "output": self.name}
        return {"configuration": self.experiment.configuration(self.variant, self.seed, self.name)}

    def finish(self) -> None:
        """Say that it is whole, and keep what is read later: the figures, not the states."""
        steps = [line for line in self._lines() if line["kind"] == "iteration"]
        whole = {"iterations": len(steps), "seconds": sum(line["seconds"] for line in steps)} if steps else {}
        every = max(1, len(steps) // LINES_KEPT)
        write(self.folder / "done.json", {**whole, "kept_every": every})
        self.tidy()

    def tidy(self) -> None:
        """Remove what only an unfinished run needs; of many lines of iterations a few are kept."""
        every = json.loads((self.folder / "done.json").read_text())["kept_every"]
        kept = [line for line in self._lines() if line["kind"] != "iteration" or line["iteration"] % every == 0]
        if kept:
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        for name in _LEFT_OVER:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".new-{path.name}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def jobs_of(experiments: Iterable[Experiment], results: Path) -> list[Job]:
    """All runs: by group, and within an experiment all variants with one seed before any with the next."""
    ordered = sorted(experiments, key=lambda experiment: experiment.group)
    return [
        Job(experiment, variant, seed, results)
        for experiment in ordered
        for seed in experiment.seeds
        for variant in experiment.variants
    ]


Environment = Callable[[str], tuple[Path, Path]]


class Queue:
    """Does the runs that are not done, some at a time, and stands still while a benchmark wants the machine.

    Args:
        jobs: the runs, in their order.
        commit: what those that have not begun are run with.
        environment: the interpreter, and the files, of a commit.
        at_once: how many processes, each with one thread.
        logs: the folder for what the runs say.
        say: is told how it goes.
        poll: seconds between looks at processes and locks.
        passed: open files that runs hold, too: the lock of the results.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        commit: str,
        environment: Environment,
        at_once: int,
        logs: Path,
        say: Callable[[str], None] = print,
        poll: float = 1.0,
        passed: Collection[int] = (),
    ) -> None:
        self.waiting = []
        for job in jobs:
            if job.done():
                job.tidy()  # the last queue may have been killed before it had
            else:
                self.waiting.append(job)
        self.commit = commit
        self.environment = environment
        self.at_once = at_once
        self.logs = logs
        self.say = say
        self.poll = poll
        self.passed = passed
        self.failed: list[Job] = []
        self.stopping = False
        self._running: dict[Job, subprocess.Popen[bytes]] = {}
        self._paused = False

    def run(self) -> bool:
        """Everything that is missing; whether all of it is done."""
        machine = Working()
        try:
            while not self.stopping and (self.waiting or self._running):
                self._look_at(machine)
                if machine.held:
                    self._start()
                self._collect()
                time.sleep(self.poll)
        finally:
            self._end()
            machine.close()
        return not self.stopping and not self.failed

    def stop(self, *_: object) -> None:
        """Save and end, at the next look; a handler of signals."""
        self.stopping = True

    def _look_at(self, machine: Working) -> None:
        if machine.held and machine.asked_to_stop():
            self._order(b"s")
            time.sleep(0.1)  # until they do
            machine.give()
            self.say("standing still for a benchmark")
        elif not machine.held and machine.take():
            self._order(b"c")

    def _start(self) -> None:
        while self.waiting and len(self._running) < self.at_once:
            job = self.waiting.pop(0)
            try:
                self._running[job] = self._process(job)
            except Exception as error:
                self._fail(job, str(error))

    def _process(self, job: Job) -> subprocess.Popen[bytes]:
        before, commit = job.state(), job.begin(self.commit)
        python, sources = self.environment(commit)
        log = self.logs / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"{job.name}: {before}, with {commit[:12]}")
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(python), "-P", str(WORKER), json.dumps(job.call(sources))],
                cwd=job.results,
                env=alone(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=self.passed,
            )

    def _collect(self) -> None:
        for job, process in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[job]
            if process.stdin is not None:
                process.stdin.close()
            if process.returncode == 0:
                job.finish()
                self.say(f"{job.name}: done")
            elif not self.stopping:
                lines = (self.logs / f"{job.name}.log").read_text(errors="replace").splitlines()
                self._fail(job, lines[-1] if lines else f"exit status {process.returncode}")

    def _fail(self, job: Job, reason: str) -> None:
        self.failed.append(job)
        self.say(f"{job.name}: failed: {reason}")

    def _end(self) -> None:
        """Processes save and end; those that take a minute for it are ended."""
        self.stopping = self.stopping or bool(self._running)
        for process in self._running.values():
            if process.stdin is not None:
                process.stdin.close()
        until = time.monotonic() + 60
        while self._running:
            self._collect()
            if time.monotonic() > until:
                for process in self._running.values():
                    os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)

    def _order(self, order: bytes) -> None:
        for process in self._running.values():
            with suppress(BrokenPipeError):  # it has just ended
                if process.stdin is not None:
                    process.stdin.write(order)
                    process.stdin.flush()


def alone() -> dict[str, str]:
    """Environment variables for one thread, and for an interpreter that sees nothing but its own environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
    return {**kept, **threads, "MPLBACKEND": "Agg"}


def table(jobs: Iterable[Job]) -> Iterator[str]:
    """A line a run: how far it is."""
    for job in jobs:
        yield f"{job.experiment.group}  {job.name:60} {(job.commit() or '')[:12]:12}  {job.state()}"
