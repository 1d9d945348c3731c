"""Programs beside others: they start anew with threads that sleep, once, and nothing else about them changes."""

import os
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from click.testing import CliRunner

from stochgraph.algorithms.commands import beside, command_line, demo
from stochgraph.algorithms.training import train
from tests.training_cases import SMALL, python_environment, same_runs

LINES = """\
cpu  900 0 0 900 0 0 0 0 0 0
cpu0 {} 5 10 {} {} 0 0 2 7 7
cpu1 {} 5 10 {} {} 0 0 2 7 7
cpu10 500 5 10 500 0 0 0 2 7 7
intr 12 34
"""


@pytest.fixture
def crowded(monkeypatch):
    """The program is one of this package's own, with two threads on processors that others use; a restart is noted."""
    restarts: list[tuple[str, list[str], dict[str, str]]] = []
    for name in beside._SAID:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: True)
    monkeypatch.setattr(beside, "_is_own_program", lambda: True)
    monkeypatch.setattr(beside, "free_processors", lambda: 0.2)
    monkeypatch.setattr(os, "execve", lambda *given: restarts.append(given))
    return restarts


def test_a_program_starts_anew_where_others_keep_the_processors_busy(crowded, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-X", "dev", "-m", "stochgraph.algorithms.commands.demo", "--out", "a b.png"]
    )
    beside.make_room()
    [(program, arguments, environment)] = crowded
    assert program == sys.executable
    assert arguments == [sys.executable, "-X", "dev", "-m", "stochgraph.algorithms.commands.demo", "--out", "a b.png"]
    assert environment == {**os.environ, "OMP_WAIT_POLICY": "passive"}
    assert "OMP_WAIT_POLICY" not in os.environ
    assert "threads sleep while they wait" in capsys.readouterr().err


@pytest.mark.parametrize("name", beside._SAID)
@pytest.mark.parametrize("value", ["", "active", "passive", "0"])
def test_whoever_says_how_threads_wait_has_decided(name, value, crowded, monkeypatch):
    monkeypatch.setenv(name, value)
    beside.make_room()
    assert not crowded


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch, "get_num_threads", 1),
        (torch.backends.openmp, "is_available", False),
        (beside, "_is_own_program", False),
        (beside, "free_processors", 1.6),
        (beside, "free_processors", float("inf")),
    ],
)
def test_where_there_is_no_reason_nothing_happens(owner, name, value, crowded, monkeypatch, capsys):
    monkeypatch.setattr(owner, name, lambda: value)
    beside.make_room()
    assert not crowded
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("threads", "free", "restarts"), [(2, 1.0, True), (2, 1.9, False), (8, 7.0, True)])
def test_every_thread_wants_a_processor(threads, free, restarts, crowded, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(beside, "free_processors", lambda: free)
    beside.make_room()
    assert bool(crowded) == restarts


def test_a_busy_moment_is_no_crowd(crowded, monkeypatch):
    moments = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(beside, "free_processors", lambda: next(moments))
    beside.make_room()
    assert not crowded


@pytest.mark.parametrize(
    ("after", "free"),
    [
        ((100, 120, 0, 100, 120, 0), 2.0),
        ((120, 100, 0, 120, 100, 0), 0.0),
        ((120, 100, 0, 100, 110, 10), 1.0),
        ((115, 105, 0, 110, 110, 0), 0.75),
        ((100, 100, 0, 100, 100, 0), float("inf")),  # a system that does not count
    ],
)
def test_processors_that_are_idle(after, free, monkeypatch, tmp_path):
    """Of those that this process may run on, 0 and 1; time that is waited for disks is free."""
    file = tmp_path / "stat"
    file.write_text(LINES.format(100, 100, 0, 100, 100, 0))
    monkeypatch.setattr(beside, "_STATISTICS", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: file.write_text(LINES.format(*after)))
    assert beside._idle() == pytest.approx(free)


def test_a_system_without_statistics(monkeypatch, tmp_path):
    monkeypatch.setattr(beside, "_STATISTICS", tmp_path / "none")
    monkeypatch.setattr(beside, "_QUOTA", tmp_path / "none")
    assert beside.free_processors() == float("inf")


@pytest.mark.parametrize(("text", "quota"), [("max 100000\n", float("inf")), ("150000 100000\n", 1.5)])
def test_a_group_that_may_use_so_many_processors(text, quota, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(beside, "_STATISTICS", tmp_path / "none")
    monkeypatch.setattr(beside, "_QUOTA", tmp_path / "cpu.max")
    assert beside.free_processors() == quota


@pytest.mark.parametrize(
    ("spec", "path", "own"),
    [
        ("stochgraph.algorithms.commands.demo", "/anywhere/demo.py", True),
        ("stochgraph.algorithms.commands.command_line", "/anywhere/command_line.py", True),
        (None, "/anywhere/bin/stochgraph", True),
        (None, r"stochgraph.exe", True),
        (None, "slopes.py", False),
        (None, "", False),
        (None, "-c", False),
        ("pytest.__main__", "/anywhere/stochgraph", False),
        ("stochgraphs.main", "/anywhere/main.py", False),
    ],
)
def test_programs_of_others_are_left_alone(spec, path, own, monkeypatch):
    """A program of a user's own has done who knows what before it calls `main`."""
    main = type(sys)("__main__")
    main.__spec__ = None if spec is None else type("Spec", (), {"name": spec})()
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [path])
    assert beside._is_own_program() == own


PROGRAM = """\
import os
from click.testing import CliRunner

from stochgraph.algorithms.commands import beside, command_line, demo
from stochgraph.algorithms.training import train
from stochgraph.algorithms.commands.command_line import main

beside.free_processors = lambda: 0.0
print("started", os.environ.get("OMP_WAIT_POLICY"), os.getpid())
main()
"""


@pytest.mark.skipif(not torch.backends.openmp.is_available() or not hasattr(os, "fork"), reason="no such threads here")
def test_the_command_restarts_once_and_runs_as_it_would_have(tmp_path):
    """One process, two starts, the same options, the same bits, the same exit status."""

    def call(name: str, *arguments: str) -> tuple[int, list[str]]:
        (tmp_path / name).mkdir(exist_ok=True)
        program = tmp_path / name / "stochgraph"
        program.write_text(PROGRAM)
        environment = {**python_environment(), "OMP_NUM_THREADS": "2"}
        if name == "settled":
            environment["OMP_WAIT_POLICY"] = "active"
        found = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, env=environment)
        starts = [line.split()[1:] for line in found.stdout.splitlines() if line.startswith("started")]
        assert len({process for _, process in starts}) == 1, found.stderr
        return found.returncode, [policy for policy, _ in starts]

    SMALL.replace(threads=2, iterations=2).save(tmp_path / "run.json")
    for name, policies in (("crowded", ["None", "passive"]), ("settled", ["active"])):
        folder = str(tmp_path / name / "with a space")
        assert call(name, "train", "--config", str(tmp_path / "run.json"), "--output", folder) == (0, policies)
    assert call("crowded", "evaluate", folder, "--steps", "many") == (2, ["None"])
    assert same_runs(tmp_path / "crowded" / "with a space", tmp_path / "settled" / "with a space")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ("train --config {0}/run.json --output {0}/other", True),
        ("evaluate {0}", True),
        ("profile --config {0}/run.json --estimators SF --repeats 2", True),
        ("demo --iterations 1 --out {0}/demo.png", True),
        ("explain --config {0}/run.json", False),
        ("train --help", False),
        ("train --tasks 0", False),
        ("evaluate {0} --steps many", False),
        ("demo --iterations 0", False),
    ],
)
def test_commands_that_compute_make_room_first(arguments, asked, tmp_path, monkeypatch):
    """After their options are read, and before anything else."""

    class Asked(Exception):
        pass

    def make_room():
        raise Asked

    run = SMALL.replace(output=str(tmp_path), iterations=1)
    train(run, reporters=[])
    monkeypatch.setattr(command_line, "make_room", make_room)
    monkeypatch.setattr(demo, "make_room", make_room)
    result = CliRunner().invoke(command_line.main, arguments.format(tmp_path).split())
    assert isinstance(result.exception, Asked) == asked, result.output
    assert asked or isinstance(result.exception, SystemExit | None)
