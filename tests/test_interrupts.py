"""Whatever ends a run, a signal or an error: whole iterations are saved, and the same command continues to the bit."""

import errno
import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as distributed

from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training import Problem, RunFolder, TrainingError, joined_ranks, train
from stochgraph.algorithms.training.checkpoints import Checkpoints
from stochgraph.algorithms.training.files import Lines
from stochgraph.algorithms.training.interrupts import BrokenOff, Interrupts
from stochgraph.algorithms.training.learners import Ascent
from tests.training_cases import SMALL, Hook, become_rank, in_ranks, newest, same_runs

# No checkpoint but the one that the end makes, and evaluations between all iterations.
RARE = SMALL.replace(checkpoint_every=100, evaluate_every=1, iterations=4)
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Signals as a shell leaves them: what runs the tests may have SIGHUP ignored, which a run respects."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def rare(tmp_path):
    return RARE.replace(output=str(tmp_path / "run"))


@pytest.fixture
def alone(tmp_path):
    """The folder of that run left alone."""
    return train(RARE.replace(output=str(tmp_path / "alone")), reporters=[]).folder


def send(*numbers):
    """Send these signals to this process in the iteration 2, when its step is done."""

    def after(record):
        if record["iteration"] == 2:
            for number in numbers:
                os.kill(os.getpid(), number)

    return Hook(after)


# --- signals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_says_that_it_was_heard_and_saves(rare, alone, number):
    handler = signal.getsignal(number)
    hook = send(number)
    outcome = train(rare, reporters=[hook])
    assert (outcome.iteration, outcome.finished, newest(rare.output)["iteration"]) == (3, False, 3)
    heard, saved = (
        next(i for i, text in enumerate(hook.said) if words in text) for words in (number.name, "and saved after 3")
    )
    assert heard < saved
    assert signal.getsignal(number) is handler
    assert train(rare, reporters=[]).finished
    assert same_runs(rare.output, alone)


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM] * 3, [signal.SIGHUP, signal.SIGTERM], [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]]
)
def test_further_signals_that_are_no_ctrl_c_do_not_lose_the_save(rare, alone, numbers):
    outcome = train(rare, reporters=[send(*numbers)])
    assert (outcome.iteration, outcome.finished, newest(rare.output)["iteration"]) == (3, False, 3)
    train(rare, reporters=[])
    assert same_runs(rare.output, alone)


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_ends_at_once_and_whole_iterations_are_saved(rare, alone, first):
    with pytest.raises(KeyboardInterrupt):
        train(rare, reporters=[send(first, signal.SIGINT)])
    assert newest(rare.output)["iteration"] == 2  # the iteration under way is taken back
    train(rare, reporters=[])
    assert same_runs(rare.output, alone)


def test_signals_that_are_ignored_stay_so(rare, alone):
    """Under nohup, or in the background of a script."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        assert train(rare, reporters=[send(*SIGNALS)]).finished
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert same_runs(rare.output, alone)


def lasting(owner, name, when, monkeypatch):
    """Let a method last a minute at its call number `when`; events that tell that it has begun."""
    calls: list[None] = []
    original, begun = getattr(owner, name), threading.Event()

    def slow(*arguments, **options):
        calls.append(None)
        if len(calls) == when:
            begun.set()
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.01)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, slow)
    return begun


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("owner", "name", "when", "done"),
    [(Rollouts, "_walk", 4 * 2 + 3, 2), (Problem, "evaluate", 3, 2), (Ascent, "ascend", 3, 2), (Problem, "draw", 1, 0)],
    ids=["in a draw", "in an evaluation", "in a step", "before the first"],
)
def test_what_lasts_long_is_broken_off(rare, alone, monkeypatch, owner, name, when, done, number):
    hook = Hook()
    with monkeypatch.context() as patched:
        begun = lasting(owner, name, when, patched)

        def interrupt():
            begun.wait(60)
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=interrupt)
        thread.start()
        start = time.monotonic()
        outcome = train(rare, reporters=[hook])
        thread.join()
    assert time.monotonic() - start < 50
    assert (outcome.iteration, outcome.finished) == (done, False)
    assert any(f"{number.name}: what is under way is broken off" in text for text in hook.said)
    assert any("interrupted" in text for text in hook.said)
    assert not done or newest(rare.output)["iteration"] == done
    assert train(rare, reporters=[]).finished
    assert same_runs(rare.output, alone)


def test_nothing_interrupts_the_last_save(rare, alone, monkeypatch):
    save = Checkpoints.save

    def signalled(self, iteration, state):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT) if iteration else ():
            os.kill(os.getpid(), number)
        save(self, iteration, state)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", signalled)
        assert not train(rare, reporters=[send(signal.SIGTERM)]).finished
    assert newest(rare.output)["iteration"] == 3
    train(rare, reporters=[])
    assert same_runs(rare.output, alone)


def test_a_save_that_fails_after_a_signal_is_an_error(rare, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", no_space)
    with pytest.raises(TrainingError, match=r"iteration 3: .*No space left.*last good checkpoint is .*0"):
        train(rare, reporters=[send(signal.SIGTERM)])


def test_signals_between_what_can_be_broken_off_wait_for_it():
    said: list[str] = []
    with Interrupts(said.append) as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.asked
        with pytest.raises(BrokenOff), interrupts.breaking_off():
            raise AssertionError("the signal was heard before")
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(said) == 1


def break_off_ranks(rank, count, port, run):
    """Both ranks get two signals in the draw of the second iteration, which lasts."""
    draw = Problem.draw

    def slow(self, theta, iteration, ranks):
        if iteration == 1:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return draw(self, theta, iteration, ranks)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Problem, "draw", slow)
        become_rank(rank, count, port)
        with joined_ranks() as ranks:
            outcome = train(run, ranks, reporters=[])
    raise SystemExit(0 if (outcome.iteration, outcome.finished) == (1, False) else 1)


@pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="no gloo")
def test_a_second_signal_breaks_off_a_draw_of_several_ranks(rare):
    assert in_ranks(2, break_off_ranks, rare.replace(shards=2)) == [0, 0]
    assert newest(rare.output)["iteration"] == 1


# --- errors


def no_space(self, iteration, state, save=Checkpoints.save):
    """The disk is full once the run is under way."""
    if iteration:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")
    save(self, iteration, state)


def fail_in_draw(patched):
    def draw(self, theta, iteration, ranks, original=Problem.draw):
        if iteration == 2:
            raise RuntimeError("the simulator is gone")
        return original(self, theta, iteration, ranks)

    patched.setattr(Problem, "draw", draw)


def fail_between_epochs(patched):
    def ascend(self, theta, gradient, original=Ascent.ascend, calls=[]):  # noqa: B006  # its own memory
        calls.append(None)
        if len(calls) == 6:  # the second of the third iteration
            raise MemoryError
        return original(self, theta, gradient)

    patched.setattr(Ascent, "ascend", ascend)


def fail_in_metrics(patched):
    def append(self, record, original=Lines.append):
        if (record["kind"], record["iteration"]) == ("iteration", 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")
        original(self, record)

    patched.setattr(Lines, "append", append)


@pytest.mark.parametrize("fail", [fail_in_draw, fail_between_epochs, fail_in_metrics])
def test_whole_iterations_are_saved_whatever_error_ends_a_run(rare, tmp_path, monkeypatch, fail):
    rare = rare.replace(epochs=2)
    whole = train(rare.replace(output=str(tmp_path / "whole")), reporters=[]).folder
    with monkeypatch.context() as patched:
        fail(patched)
        with pytest.raises((RuntimeError, MemoryError, TrainingError)):
            train(rare, reporters=[])
    assert newest(rare.output)["iteration"] == 2
    assert train(rare, reporters=[]).finished
    assert same_runs(rare.output, whole)


def test_a_reporter_can_end_a_run(rare, alone):
    def enough(record):
        if record["iteration"] == 2:
            raise TrainingError("good enough")

    with pytest.raises(TrainingError, match=r"^good enough$"):
        train(rare, reporters=[Hook(enough)])
    assert newest(rare.output)["iteration"] == 2
    train(rare, reporters=[])
    assert same_runs(rare.output, alone)


def test_an_error_is_not_hidden_by_that_of_the_last_save(rare, monkeypatch):
    hook = Hook()
    fail_in_draw(monkeypatch)
    monkeypatch.setattr(Checkpoints, "save", no_space)
    with pytest.raises(RuntimeError, match="the simulator is gone"):
        train(rare, reporters=[hook])
    assert any("iterations 0 to 2 could not be saved" in text for text in hook.said)


def test_a_step_that_is_taken_back_leaves_the_parameters(rare, monkeypatch):
    """To the bit, those of the optimiser as well."""
    fail_between_epochs(monkeypatch)
    with pytest.raises(MemoryError):
        train(rare.replace(epochs=2), reporters=[])
    state = newest(rare.output)
    two = train(rare.replace(epochs=2, iterations=2, output=f"{rare.output}-two"), reporters=[])
    expected = newest(two.folder)
    for name, leaf in expected["parameters"].items():
        assert torch.equal(state["parameters"][name], leaf)
    assert [int(each["step"]) for each in state["learner"]["state"].values()] == [4] * len(expected["parameters"])
    assert len(RunFolder(two.folder).metrics("iteration")) == 2
