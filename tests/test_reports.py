"""What only shows progress ends no run: it is said once, and trained on."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from stochgraph.algorithms.commands import demo
from stochgraph.algorithms.training import Configuration, Reporter, train
from stochgraph.algorithms.training.reports import ProgressBar, TensorBoard, default_reporters
from tests.training_cases import FORKS, SMALL, Hook, python_environment, same_runs

pytest.importorskip("tqdm")
METHODS = ["begin", "trained", "evaluated", "say", "end"]


@pytest.fixture
def small(tmp_path):
    return SMALL.replace(output=str(tmp_path / "run"))


@pytest.fixture
def alone(tmp_path):
    """The folder of the small run left alone."""
    return train(SMALL.replace(output=str(tmp_path / "alone")), reporters=[]).folder


# --- reporters that fail


class Broken(Reporter):
    """Raises an error whenever this method is called, and counts how often that is."""

    def __init__(self, method, error):
        self.calls = 0

        def fail(*_):
            self.calls += 1
            raise error

        setattr(self, method, fail)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("queue"), SystemError()], ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_a_reporter_that_fails_is_left_out_and_that_is_said_once(small, alone, method, error):
    for first in (True, False):
        broken, hook = Broken(method, error), Hook()
        reporters = [broken, hook] if first else [hook, broken]
        outcome = train(small.replace(output=f"{small.output}-{first}"), reporters=reporters)
        assert outcome.finished
        assert same_runs(outcome.folder, alone)
        assert broken.calls == (2 if method == "end" else 1)
        said = [text for text in hook.said if "Broken" in text]
        assert said == [f"Broken is left out from here on ({type(error).__name__}: {error}); training goes on"]


@pytest.mark.parametrize("method", METHODS)
def test_the_last_reporter_that_fails_is_said_in_the_errors(small, capsys, method):
    assert train(small, reporters=[Broken(method, ValueError("odd")), TensorBoard(Path(small.output))]).finished
    assert capsys.readouterr().err.count("Broken is left out from here on (ValueError: odd); training goes on") == 1


def test_a_bar_that_is_not_installed(small, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert train(small, reporters=[ProgressBar()]).finished
    assert "ProgressBar is left out" in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn(small, monkeypatch):
    def fail(*_):
        raise ValueError("no such font")

    monkeypatch.setattr("stochgraph.algorithms.training.trainer.save_learning_curve", fail)
    hook = Hook()
    assert train(small, reporters=[hook]).finished
    assert "no figure of the learning curve (ValueError: no such font)" in hook.said


# --- outputs that cannot be written to


class Cut(io.TextIOWrapper):
    """An output whose reader is gone after the first line."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.lines = 0

    def write(self, text: str) -> int:
        if self.lines:
            raise BrokenPipeError(32, "Broken pipe")
        self.lines += text.count("\n")
        return super().write(text)


def test_lines_go_to_the_errors_where_the_output_is_cut(small, alone, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Cut())
    assert train(small, reporters=[ProgressBar()]).finished
    errors = capsys.readouterr().err
    assert errors.count("stdout cannot be written to ([Errno 32] Broken pipe); training goes on") == 1
    assert "iteration 3, held-out tasks" in errors
    assert "learning curve" in errors
    assert same_runs(small.output, alone)


def test_nothing_is_said_where_nothing_can_be(small, alone, monkeypatch):
    for names in (("stdout",), ("stderr",), ("stdout", "stderr")):
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(sys, name, None)
            assert train(small, reporters=default_reporters(Path(small.output))).finished
    assert same_runs(small.output, alone)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_outputs_have_letters_of_their_own(tmp_path, monkeypatch, encoding):
    """Also for names that are no text, which Python has as surrogates."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    train(SMALL.replace(output=str(tmp_path / "läuft")), reporters=[ProgressBar("größer \udcff")])
    monkeypatch.undo()
    printed = output.buffer.getvalue().decode(encoding)
    assert "return -" in printed
    assert ("→" in printed) == (encoding == "utf-8") != ("->" in printed)
    assert r"\udcff" in printed


def lose_terminal(configuration: Configuration, streams: tuple[int, ...]) -> None:
    """Train with a terminal that is closed before the second iteration, no signal being sent."""
    master, terminal = pty.openpty()
    for descriptor in streams:
        os.dup2(terminal, descriptor)
    os.close(terminal)
    sys.stdout, sys.stderr = (open(i, "w", closefd=False) for i in (1, 2))  # noqa: SIM115

    def hang_up(record):
        if record["iteration"] == 1:
            os.close(master)

    outcome = train(configuration, reporters=[ProgressBar(), Hook(hang_up)])
    os._exit(0 if outcome.finished else 1)


@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2)])
def test_a_terminal_that_is_closed(small, alone, streams):
    process = FORKS.Process(target=lose_terminal, args=(small, streams))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert same_runs(small.output, alone)


def stochgraph(*arguments, **options):
    """Run the command: its exit status, its output and its errors."""
    command = [sys.executable, "-m", "stochgraph.algorithms.commands.command_line", *map(str, arguments)]
    environment = {**python_environment(), **options.pop("env", {})}
    done = subprocess.run(command, env=environment, timeout=240, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def test_the_command_survives_the_loss_of_its_outputs(small, alone, tmp_path):
    """Nobody reads what it prints, as behind `| head`; its status is that of a run that came to its end."""
    small.save(tmp_path / "small.json")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        code, _, errors = stochgraph(
            "train", "--config", tmp_path / "small.json", stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert (code, "Traceback" in errors, "Exception ignored" in errors) == (0, False, False), errors
    assert errors.count("Broken pipe") == 1
    assert same_runs(small.output, alone)


def test_the_command_prints_in_any_alphabet(small, tmp_path):
    small.save(tmp_path / "small.json")
    options = {"env": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, "capture_output": True}
    for arguments in (("train", "--config", tmp_path / "small.json"), ("evaluate", small.output)):
        code, printed, errors = stochgraph(*arguments, **options)
        assert code == 0, errors.decode()
        assert b"->" in printed or b"+-" in printed


def test_ledgers_in_any_alphabet(monkeypatch):
    for words in (["explain"], None):
        output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with monkeypatch.context() as patched, contextlib.suppress(SystemExit):
            patched.setattr(sys, "stdout", output)
            if words is None:
                demo.print_ledgers()
            else:
                from stochgraph.algorithms.commands.command_line import main

                main(words)
        output.flush()
        assert b"counted" in output.buffer.getvalue()
