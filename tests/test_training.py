"""A run: the same bits however it was broken off, and clear words for whatever breaks it."""

import contextlib
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training import (
    Batch,
    CheckpointError,
    Configuration,
    ConfigurationError,
    Problem,
    RunFolder,
    Trainer,
    TrainingError,
    checkpoints,
    files,
    load_result,
    run_folder,
    train,
)
from stochgraph.algorithms.training.checkpoints import read_checkpoint
from stochgraph.algorithms.training.curves import save_learning_curve
from stochgraph.algorithms.training.files import _synchronise
from stochgraph.algorithms.training.learners import Ascent
from stochgraph.algorithms.training.reports import ProgressBar, TensorBoard
from stochgraph.algorithms.training.settings import _ascends
from tests.training_cases import (
    FORKS,
    SMALL,
    Hook,
    contents,
    failing,
    newest,
    same,
    same_runs,
    timeless,
    train_quietly,
    wait_for,
    without_times,
)


@pytest.fixture
def small(tmp_path):
    return SMALL.replace(output=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The folder of the small run left alone, for all to compare with."""
    return train(SMALL.replace(output=str(tmp_path_factory.mktemp("left") / "alone")), reporters=[]).folder


@pytest.fixture(scope="module")
def longer(left_alone):
    """The folder of the small run after eight iterations."""
    return train(SMALL.replace(output=str(left_alone.parent / "longer"), iterations=8), reporters=[]).folder


@pytest.fixture
def alone(tmp_path, left_alone):
    """A copy of the folder of the small run, to do with what one likes."""
    return Path(shutil.copytree(left_alone, tmp_path / "alone"))


# --- what a run does


def test_a_run_leaves_everything_in_its_folder(small):
    outcome = train(small, reporters=[])
    assert (outcome.iteration, outcome.finished) == (6, True)
    kept = {str(path.relative_to(outcome.folder)) for path in outcome.folder.rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/0000000{i}.pt" for i in (2, 4, 6)}
    assert kept == {".lock", "run.json", "metrics.jsonl", "learning_curve.png"} | checkpoints
    assert Configuration.load(outcome.folder / "run.json") == small
    folder = RunFolder(outcome.folder)
    assert [record["iteration"] for record in folder.metrics("iteration")] == list(range(6))
    assert [record["iteration"] for record in folder.metrics("evaluation")] == [0, 3, 6]


def test_an_iteration_is_one_step_of_the_optimiser_along_the_gradient_of_one_trace(small):
    """Without shards and chunks the meta-gradient is that of the compiled graph's own trace, to the bit."""
    problem = Problem(small)
    theta = problem.initial()
    batch = problem.draw(theta, 0)
    value, gradient = batch.value_and_grad(theta)
    trace = batch.shards[0][1]
    expected = torch.func.grad(problem.compiled.surrogate)(theta, trace)
    torch.testing.assert_close(value, trace.value)
    assert same(gradient, expected)
    optimizer = torch.optim.Adam(list(theta.values()), lr=small.learning_rate, maximize=True)
    norm = torch.stack([leaf.norm() for leaf in gradient.values()]).norm()
    assert small.gradient_clip is not None
    assert norm < small.gradient_clip
    for name, leaf in theta.items():
        leaf.grad = gradient[name].clone()
    optimizer.step()
    assert same(train(small.replace(iterations=1), reporters=[]).theta, theta)


def test_the_gradient_is_clipped(small):
    problem = Problem(small.replace(optimizer="SGD", learning_rate=1.0, gradient_clip=1e-3))
    theta = problem.initial()
    start = {name: leaf.clone() for name, leaf in theta.items()}
    figures = problem.learner(theta).step(theta, problem.draw(theta, 0))
    moved = torch.stack([(theta[name] - start[name]).norm() for name in theta]).norm()
    assert figures["gradient_norm"] > 0.1
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_metrics_are_means_over_the_batch(small):
    """Returns before and after adaptation are undiscounted sums of rewards."""
    train(small, reporters=[])
    problem = Problem(small)
    theta = problem.initial()
    record = RunFolder(small.output).metrics("iteration")[0]
    trace = problem.draw(theta, 0).shards[0][1]
    expected = [trace.draws[name].reward.sum(-1).mean() for name in ("D1", "tau")]
    torch.testing.assert_close(torch.tensor(record["returns"]), torch.stack(expected))
    assert record["value"] == pytest.approx(float(trace.value))
    assert record["gradient_norm"] > 0


@pytest.mark.parametrize("changes", [{"chunk": 1}, {"chunk": 2}, {"shards": 2, "chunk": 1}])
def test_chunks_do_not_change_the_gradient(small, changes):
    run = small.replace(precision="float64", **changes)
    whole = Problem(run.replace(chunk=run.tasks))
    theta = whole.initial()
    found = Problem(run).draw(theta, 3).value_and_grad(theta)
    torch.testing.assert_close(found, whole.draw(theta, 3).value_and_grad(theta), rtol=1e-12, atol=1e-14)


def test_shards_are_averaged_by_their_numbers_of_tasks(small):
    problem = Problem(small.replace(tasks=5, shards=2, precision="float64"))
    theta = problem.initial()
    batch = problem.draw(theta, 0)
    shards = batch.shards
    assert [weight for weight, _ in shards] == [2 / 5, 3 / 5]
    assert [len(trace.draws["task"]) for _, trace in shards] == [2, 3]
    expected = sum(weight * torch.func.grad(problem.compiled.surrogate)(theta, t)["log_std"] for weight, t in shards)
    torch.testing.assert_close(batch.value_and_grad(theta)[1]["log_std"], expected)


def test_seeds_iterations_and_shards_have_draws_of_their_own(small):
    tasks = []
    for seed in (0, 1):
        problem = Problem(small.replace(seed=seed, tasks=4, shards=2))
        theta = Problem(small).initial()
        for iteration in (0, 1):
            tasks += [trace.draws["task"][0] for _, trace in problem.draw(theta, iteration).shards]
    assert len({tuple(task.tolist()) for task in tasks}) == 8


def test_torch_is_left_as_it_was(small):
    torch.manual_seed(5)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    train(small.replace(threads=2), reporters=[])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": "frozen-lake", "policy": "table", "policy_options": {}, "environment_options": {"holes": 0.1}},
        {"environment": "random-mdp", "policy_options": {}, "hidden": ()},
        {"environment": "corner-navigation", "estimator": "LOO"},
        {"environment": "swimmer", "environment_options": {"threads": 1}},
    ],
    ids=lambda changes: changes["environment"],
)
def test_other_environments_and_policies(small, changes):
    """Continued after two iterations they end with the same bits, too."""
    if changes["environment"] in ("frozen-lake", "swimmer"):
        pytest.importorskip("gymnasium")
        pytest.importorskip("mujoco")
    run = small.replace(**changes, iterations=4)
    train(run.replace(iterations=2), reporters=[])
    train(run, reporters=[])
    whole = run.replace(output=f"{run.output}-whole")
    train(whole, reporters=[])
    assert same_runs(run.output, whole.output)


# --- evaluation


def test_held_out_tasks_are_the_same_for_all_runs_and_measured_after_every_step(small):
    problem = Problem(small.replace(evaluation_steps=3, evaluation_tasks=23))
    theta = problem.initial()
    returns = problem.evaluate(theta)
    assert returns.shape == (23, 4)
    other = Problem(small.replace(evaluation_steps=3, evaluation_tasks=23, seed=9, shards=3, estimator="SF"))
    assert torch.equal(other.evaluate(theta), returns)
    assert torch.equal(problem.evaluate(theta, tasks=20), returns[:20])


def test_returns_are_shown_with_the_discount_that_is_asked_for(small):
    problem = Problem(small.replace(evaluation_discount=0.5))
    trace = problem.compiled.sample(problem.initial(), sizes={"task": 3})
    reward = trace.draws["tau"].reward
    expected = (reward[..., 0] + 0.5 * reward[..., 1] + 0.25 * reward[..., 2]).mean(-1)
    assert torch.allclose(problem.returns(trace)[:, -1], expected)


def test_evaluation_without_adaptation(small):
    assert train(small.replace(steps=0), reporters=[]).finished
    assert len(RunFolder(small.output).metrics("evaluation")[0]["returns"]) == 1


def test_meta_training_raises_the_return_on_held_out_tasks(small):
    """The goal is far in one direction only if the policy learns it: with 60 steps the return doubles nearly."""
    easy = small.replace(iterations=60, evaluate_every=60, learning_rate=0.02, steps=0, tasks=20, horizon=5)
    train(easy.replace(policy_options={"log_std": 1.0}), reporters=[])
    first, last = (record["returns"][0] for record in RunFolder(small.output).metrics("evaluation"))
    assert last > first


# --- continuing


OPTIMIZERS = sorted(name for name, kind in vars(torch.optim).items() if _ascends(kind) and name != "Muon")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_in_two_halves_is_the_run_in_one(small, tmp_path, optimizer):
    whole = small.replace(output=str(tmp_path / "whole"), optimizer=optimizer)
    train(whole, reporters=[])
    half = small.replace(optimizer=optimizer, iterations=4)
    assert train(half, reporters=[]).iteration == 4
    hook = Hook()
    train(half.replace(iterations=6), reporters=[hook])
    assert "continuing after 4 iterations" in hook.said
    assert same_runs(small.output, whole.output)


def test_a_run_with_tuples_in_its_options_is_continued(small, tmp_path):
    run = small.replace(optimizer_options={"betas": (0.8, 0.9)})
    for iterations in (2, 6):
        train(run.replace(iterations=iterations), reporters=[])
    whole = train(run.replace(output=str(tmp_path / "whole")), reporters=[])
    assert same_runs(small.output, whole.folder)


def test_a_finished_run_is_left_as_it_is(alone):
    before = newest(alone)
    outcome = train(SMALL.replace(output=str(alone)), reporters=[])
    assert outcome.finished
    assert same(newest(alone), before)
    assert same(outcome.theta, before["parameters"])


@pytest.mark.parametrize("changes", [{"iterations": 3}, {"seed": 1}, {"learning_rate": 0.1, "iterations": 8}])
def test_a_refused_command_changes_nothing(alone, changes):
    """Not the configuration, not the metrics; not even a damaged checkpoint, or half a file."""
    (alone / "checkpoints" / "00000006.pt").write_bytes(b"damaged")
    (alone / ".temporary-999999999-run.json").touch()
    before = contents(alone)
    with pytest.raises(ConfigurationError, match=f"{next(iter(changes))}="):
        train(SMALL.replace(output=str(alone), **changes), reporters=[])
    assert contents(alone) == before
    train(SMALL.replace(output=str(alone)), reporters=[])
    assert contents(alone).keys() == (before.keys() | {"checkpoints/00000006.pt.unreadable"}) - {
        ".temporary-999999999-run.json"
    }


def test_another_run_is_not_mixed_with_the_one_in_the_folder(alone):
    with pytest.raises(ConfigurationError, match=r"holds a run with seed=0 not 1, tasks=3 not 4|tasks=3 not 4, seed=0"):
        train(SMALL.replace(output=str(alone), seed=1, tasks=4), reporters=[])
    with pytest.raises(ConfigurationError, match=r"iterations=3: .* has seen 6 already"):
        train(SMALL.replace(output=str(alone), iterations=3), reporters=[])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(small, alone, number):
    def interrupt(record):
        if record["iteration"] == 2:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    hook = Hook(interrupt)
    outcome = train(small, reporters=[hook])
    assert (outcome.iteration, outcome.finished) == (3, False)
    assert "interrupted, and saved after 3 iterations; the same command continues it" in hook.said
    assert newest(small.output)["iteration"] == 3
    assert signal.getsignal(number) is handler
    train(small, reporters=[])
    assert same_runs(small.output, alone)


def test_a_second_interrupt_ends_at_once(small, alone):
    def insist(record):
        if record["iteration"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(small, reporters=[Hook(insist)])
    train(small, reporters=[])
    assert same_runs(small.output, alone)


def test_a_run_in_another_thread_hears_no_signals(small):
    thread = threading.Thread(target=train, args=(small,), kwargs={"reporters": []})
    thread.start()
    thread.join()
    assert newest(small.output)["iteration"] == 6


def test_a_folder_has_one_writer(small):
    def again(record):
        train(small, reporters=[])

    with pytest.raises(TrainingError, match="another process is writing to this folder"):
        train(small, reporters=[Hook(again)])


def last_written(folder):
    """When the metrics were written to for the last time."""
    metrics = Path(folder) / "metrics.jsonl"
    return metrics.stat().st_mtime_ns if metrics.exists() else 0


def written_since(folder, moment):
    return last_written(folder) > moment


def test_twenty_kills_do_not_change_a_bit(tmp_path):
    """SIGKILL at random moments, in draws, metrics and checkpoints: the end is that of a run left alone."""
    alone, killed = (SMALL.replace(output=str(tmp_path / name)) for name in ("alone", "killed"))
    moments, reached = random.Random(0), []
    for i in range(20):
        before = last_written(killed.output)
        process = FORKS.Process(target=train_quietly, args=(killed.replace(iterations=10**6),))
        process.start()
        if i % 4:  # or else in what comes before the first iteration
            wait_for(partial(written_since, killed.output, before))
        process.join(moments.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reached.append(len(RunFolder(killed.output).metrics("iteration")))
    assert len(set(reached)) > 5, "hardly any of the processes lived long enough to train"
    total = newest(killed.output)["iteration"] + 5
    for run in (alone, killed):
        assert train(run.replace(iterations=total), reporters=[]).finished
    assert same_runs(killed.output, alone.output)
    assert not [path for path in Path(killed.output).rglob("*") if "temporary" in path.name or "unread" in path.name]


@pytest.mark.parametrize("starts", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_starts_in_a_folder_above_do_not_disturb_a_run(tmp_path, starts):
    """A run in `results/b` writes checkpoints all the time while runs in `results` start; a file of ours lies about."""
    above = tmp_path / "results"
    mine = [above / ".temporary-notes", above / "b" / ".temporary-1-00000001.pt", above / "b" / "checkpoints"]
    small = SMALL.replace(output=str(above), iterations=1)
    train(small, reporters=[])
    within = SMALL.replace(output=str(above / "b"), iterations=10**7, checkpoint_every=1)
    process = FORKS.Process(target=train_quietly, args=(within,))
    process.start()
    wait_for(lambda: RunFolder(within.output).checkpoints.paths())
    for path in mine[:2]:
        path.touch()
    for _ in range(starts):
        with RunFolder(above).opened(small):
            pass
    assert process.is_alive(), "the run in the folder within has ended"
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    assert all(path.exists() for path in mine)
    total = newest(within.output)["iteration"]
    assert total > 1
    alone = train(within.replace(output=str(tmp_path / "alone"), iterations=total), reporters=[])
    train(within.replace(iterations=total), reporters=[])
    assert same_runs(within.output, alone.folder)


# --- what goes wrong


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/00000006.pt", "metrics.jsonl", "run.json"])
def test_what_cannot_be_read_is_said_and_left_as_it_is(alone, longer, name, number):
    """A disk that answers with an error, for a while, is not an empty folder, and a file on it is not damaged."""
    before = contents(alone)
    with (
        failing(alone / name, number),
        pytest.raises((TrainingError, ConfigurationError), match=f"{name}.*{os.strerror(number)}|{number}.*{name}"),
    ):
        train(SMALL.replace(output=str(alone), iterations=8), reporters=[])
    assert contents(alone) == before
    train(SMALL.replace(output=str(alone), iterations=8), reporters=[])
    assert same_runs(alone, longer)


@pytest.mark.parametrize("left", ["a file", "a link to nowhere", "nothing", "an empty folder"])
def test_metrics_without_checkpoints_are_not_written_over(alone, left):
    """The checkpoints were moved away, or the disk that they are on is not there."""
    (alone / "checkpoints").rename(alone.parent / "moved")
    if left == "a file":
        (alone / "checkpoints").touch()
    elif left == "a link to nowhere":
        (alone / "checkpoints").symlink_to(alone.parent / "not there")
    elif left == "an empty folder":
        (alone / "checkpoints").mkdir()
    before = contents(alone)
    with pytest.raises(TrainingError, match=r"checkpoints" if left == "a file" else r"no checkpoint.*put .*--restart"):
        train(SMALL.replace(output=str(alone)), reporters=[])
    assert contents(alone) == before


def test_a_run_has_a_checkpoint_before_it_has_metrics(small):
    """So that metrics without a checkpoint are never those of a run that has just begun."""
    seen = []

    class Watching(Hook):
        def begin(self, done, total):
            seen.append(RunFolder(small.output).checkpoints.paths()[0].name)
            seen.append((Path(small.output) / "metrics.jsonl").read_text())

    train(small, reporters=[Watching()])
    assert seen == ["00000000.pt", ""]


def test_the_names_of_what_a_run_begins_with_are_on_the_disk(small, monkeypatch):
    """Before the first iteration: a loss of power leaves no metrics whose checkpoints have no name."""
    folder, seen = Path(small.output), list[set[str]]()

    def synchronise(path, original=_synchronise):
        original(path)
        if path == folder:
            seen.append({each.name for each in path.iterdir()})

    monkeypatch.setattr(files, "_synchronise", synchronise)
    train(small, reporters=[once(0, lambda: seen.append(set()))])
    before = seen[: seen.index(set())]
    assert {"run.json", "metrics.jsonl", "checkpoints"} <= before[-1]


def test_a_run_is_started_over_where_that_is_asked_for(alone, tmp_path):
    """What the folder held is not lost: it is a run of its own within it. Nothing of another run is in the way."""
    again = SMALL.replace(output=str(alone), seed=3)
    (alone / "notes.txt").write_text("mine")
    before = contents(alone)
    hook = Hook()
    train(again, reporters=[hook], restart=True)
    assert any("earlier-1" in text for text in hook.said)
    assert contents(alone / "earlier-1") == {name: content for name, content in before.items() if name != "notes.txt"}
    whole = train(again.replace(output=str(tmp_path / "whole")), reporters=[])
    assert same_runs(alone, whole.folder)
    assert load_result(alone / "earlier-1").iteration == 6
    train(again, reporters=[], restart=True)
    assert same_runs(alone, whole.folder)
    assert same_runs(alone / "earlier-2", whole.folder)
    assert (alone / "notes.txt").exists()


def test_starting_over_where_nothing_is(small, alone):
    train(small, reporters=[], restart=True)
    assert same_runs(small.output, alone)
    assert contents(small.output).keys() == contents(alone).keys()


def test_a_rank_that_is_started_again_goes_on_with_what_was_started_over(alone, monkeypatch):
    """torchrun repeats the command, with its --restart, when a process has died."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    hook = Hook()
    train(SMALL.replace(output=str(alone)), reporters=[hook], restart=True)
    assert "continuing after 6 iterations" in hook.said


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")


def test_a_full_disk_while_a_checkpoint_is_written(small, alone, monkeypatch):
    def synchronise(path, original=_synchronise):
        if path.name.endswith("00000004.pt"):
            no_space()
        original(path)

    with monkeypatch.context() as patched:
        patched.setattr("stochgraph.algorithms.training.files._synchronise", synchronise)
        with pytest.raises(
            TrainingError, match=r"^iteration 4: .*No space left.*last good checkpoint is .*00000002.pt"
        ):
            train(small, reporters=[])
    assert [path.name for path in RunFolder(small.output).checkpoints.paths()] == ["00000000.pt", "00000002.pt"]
    train(small, reporters=[])
    assert same_runs(small.output, alone)


def train_with_little_room(configuration, room):
    """Train where no file may be larger than `room` bytes; exit with status 3 if that is said."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        train(configuration, reporters=[])
    except TrainingError as error:
        raise SystemExit(3 if "File too large" in str(error) and "iteration" in str(error) else 4) from error


@pytest.mark.parametrize("room", [400, 900, 1500, 3000])
def test_a_disk_that_takes_a_part_of_a_file(small, alone, room):
    """The system cuts a write short in the middle: of the configuration, of a line of metrics, of a checkpoint."""
    process = FORKS.Process(target=train_with_little_room, args=(small, room))
    process.start()
    process.join(60)
    assert process.exitcode == 3
    metrics = Path(small.output) / "metrics.jsonl"
    assert not metrics.exists() or all(json.loads(line) for line in metrics.read_text().splitlines())
    train(small, reporters=[])
    assert same_runs(small.output, alone)


@pytest.mark.parametrize("damage", ["truncated", "empty", "a flipped bit", "something else"])
def test_a_damaged_checkpoint_is_passed_over(alone, left_alone, damage):
    path = alone / "checkpoints" / "00000006.pt"
    whole = path.read_bytes()
    middle = whole.index(b"parameters") if damage == "a flipped bit" else len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    texts = {"truncated": whole[:middle], "empty": b"", "a flipped bit": flipped, "something else": b"hello"}
    path.write_bytes(texts[damage])
    hook = Hook()
    again = SMALL.replace(output=str(alone))
    assert train(again, reporters=[hook]).iteration == 6
    assert any("00000006.pt cannot be read" in text and "going back to 00000004.pt" in text for text in hook.said)
    assert (alone / "checkpoints" / "00000006.pt.unreadable").exists()
    assert same_runs(alone, left_alone)


def test_no_readable_checkpoint_is_an_error_that_names_them_all(alone):
    for path in (alone / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"00000006.*00000004.*00000002.*No checkpoint is left.*--restart"):
        train(SMALL.replace(output=str(alone)), reporters=[])


def test_a_checkpoint_of_something_else(alone):
    state = newest(alone)
    state["parameters"] = {"weight": torch.zeros(3)}
    RunFolder(alone).checkpoints.save(6, state)
    with pytest.raises(TrainingError, match=r"00000006.pt is not one of this run: .*weight.*give another output"):
        train(SMALL.replace(output=str(alone)), reporters=[])


def once(iteration, action):
    """A reporter that does something after an iteration."""
    return Hook(lambda record: action() if record["iteration"] == iteration else None)


def remove(folder):
    shutil.rmtree(folder)


def remove_with_all_around(folder):
    shutil.rmtree(folder.parent)


def rename(folder):
    folder.rename(folder.with_name("renamed"))


def put_a_file_there(folder):
    shutil.rmtree(folder)
    folder.touch()


def let_another_run_in(folder):
    shutil.rmtree(folder)
    train(SMALL.replace(output=str(folder), seed=1), reporters=[])


@pytest.mark.parametrize("when", [0, 2, 3, 5])
@pytest.mark.parametrize(
    "loss", [remove, remove_with_all_around, rename, put_a_file_there, let_another_run_in], ids=lambda f: f.__name__
)
def test_a_run_whose_folder_is_taken_away_says_where_it_is_saved(tmp_path, left_alone, loss, when):
    """It has not finished, nor does it write where it is not at home; what it holds is a run that can be continued."""
    folder = tmp_path / "results" / "run"
    run = SMALL.replace(output=str(folder))
    with pytest.raises(TrainingError, match=rf"^iteration {when + 1}: {folder} is not the folder .*") as caught:
        train(run, reporters=[once(when, lambda: loss(folder))])
    (place,) = re.findall(r"saved to (\S+), a run", str(caught.value))
    assert place == f"{folder}-rescued"
    assert load_result(place).iteration == when + 1
    assert Configuration.load(Path(place) / "run.json") == run.replace(output=place)
    if loss is let_another_run_in:
        assert load_result(folder).problem.configuration.seed == 1
        assert RunFolder(folder).metrics("iteration")[-1]["iteration"] == 5
    else:
        assert folder.is_file() if loss is put_a_file_there else not folder.exists()
    train(run.replace(output=place), reporters=[])
    assert same_runs(place, left_alone)


def test_a_folder_that_is_taken_away_at_the_end(small, monkeypatch):
    """While the learning curve is drawn, into a folder that is then made anew: the run has not finished there."""
    monkeypatch.setattr(f"{Trainer.__module__}.save_learning_curve", lambda folders, *_: remove(folders[0]))
    with pytest.raises(TrainingError, match=r"^iteration 6: .*run-rescued, a run"):
        train(small, reporters=[])
    assert load_result(f"{small.output}-rescued").iteration == 6


def test_what_is_saved_elsewhere_finds_a_place(small, tmp_path, monkeypatch):
    """A name that is free; or, where nothing can be written beside the folder, the folder for temporary files."""
    (tmp_path / "run-rescued").mkdir()
    with pytest.raises(TrainingError, match=r"run-rescued-2, a run"):
        train(small, reporters=[once(2, lambda: remove(small.output))])
    inner = tmp_path / "results" / "run"

    def bar():
        shutil.rmtree(inner.parent)
        inner.parent.touch()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(TrainingError, match=r"and nothing could be saved: .*"):
        train(small.replace(output=str(inner)), reporters=[once(2, bar)])
    (tmp_path / "temporary").mkdir()
    inner.parent.unlink()
    with pytest.raises(TrainingError, match=rf"saved to {tmp_path}/temporary/\S+, a run") as caught:
        train(small.replace(output=str(inner)), reporters=[once(2, bar)])
    (place,) = re.findall(r"saved to (\S+), a run", str(caught.value))
    assert load_result(place).iteration == 3


def test_a_folder_that_cannot_be_looked_at_is_not_taken_for_another(small, left_alone):
    """An error of the disk ends the run in its words, and nothing is saved elsewhere."""
    faults = contextlib.ExitStack()
    with faults, pytest.raises(TrainingError, match=r"Input/output error"):
        train(small, reporters=[once(3, lambda: faults.enter_context(failing(Path(small.output), errno.EIO)))])
    assert [path.name for path in Path(small.output).parent.iterdir()] == ["run"]
    train(small, reporters=[])
    assert same_runs(small.output, left_alone)


def test_a_run_goes_on_where_the_working_folder_changes(tmp_path, left_alone, monkeypatch):
    """A simulator may go to another one; the output is where it was."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    outcome = train(SMALL.replace(output="here/run"), reporters=[once(2, lambda: os.chdir("elsewhere"))])
    assert outcome.folder == tmp_path / "here" / "run"
    assert same_runs(outcome.folder, left_alone)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_metrics_that_are_taken_away_go_on_in_a_file_of_the_name(small, left_alone):
    """Removed, or written anew as editors do, without the end of the last line: no line is written to nowhere."""
    metrics = Path(small.output) / "metrics.jsonl"
    train(small, reporters=[once(2, metrics.unlink)])
    assert timeless(small.output) == timeless(left_alone)[4:]

    def edit():
        metrics.with_suffix(".new").write_bytes(metrics.read_bytes().rstrip())
        metrics.with_suffix(".new").rename(metrics)

    train(small, reporters=[once(2, edit)], restart=True)
    assert timeless(small.output) == timeless(left_alone)


def with_moments(change):
    """A change of all first moments that Adam remembers."""

    def changed(state):
        memory = state["learner"]["state"]
        for each in memory.values():
            each["exp_avg"] = change(each["exp_avg"])

    return changed


def with_parameters(change):
    """A change of all parameters."""

    def changed(state):
        state["parameters"] = {name: change(leaf) for name, leaf in state["parameters"].items()}

    return changed


FORMS: dict[str, tuple[Any, str]] = {
    "a scalar for every parameter": (with_parameters(lambda _: torch.tensor(1.0)), r"'0.weight' is float32 .*\(\)"),
    "another shape": (with_parameters(lambda leaf: leaf.unsqueeze(0)), r"'0.weight' is .*\(1, 3, 2\), .*\(3, 2\)"),
    "complex": (with_parameters(lambda leaf: leaf + 0j), "'0.weight' is complex64"),
    "integers": (with_parameters(torch.Tensor.long), "'0.weight' is int64"),
    "lists": (with_parameters(torch.Tensor.tolist), "'0.weight' is list"),
    "sparse": (with_parameters(torch.Tensor.to_sparse), "'0.weight' is sparse float32"),
    "eight bits": (with_parameters(lambda leaf: leaf.to(torch.float8_e4m3fn)), "'0.weight' is float8"),
    "no numbers": (with_parameters(lambda leaf: leaf.to("meta")), "'0.weight' is without numbers"),
    "no mapping": (lambda state: state.update(parameters=[1, 2]), "parameters are list"),
    "one too many": (lambda state: state["parameters"].update(bias=torch.zeros(2)), "parameters .*, bias, and not"),
    "one too few": (lambda state: state["parameters"].pop("log_std"), "2.bias, and not .*, log_std"),
    "no parameters": (lambda state: state.pop("parameters"), "parameters are NoneType"),
    "a negative iteration": (lambda state: state.update(iteration=-3), "iteration -3, and not that of its name"),
    "another iteration": (lambda state: state.update(iteration=4), "iteration 4, and not that of its name"),
    "half an iteration": (lambda state: state.update(iteration=6.0), "iteration 6.0, and not"),
    "no iteration": (lambda state: state.pop("iteration"), "iteration None, and not"),
    "no learner": (lambda state: state.pop("learner"), "the optimiser"),
    "another learner": (lambda state: state.update(learner={}), "the optimiser"),
    "a learner that is none": (lambda state: state.update(learner={"state": 3, "param_groups": []}), "the optimiser"),
    "scalar moments": (with_moments(torch.Tensor.mean), "the optimiser"),
    "other moments": (with_moments(lambda leaf: leaf.unsqueeze(-1)), "the optimiser"),
    "complex moments": (with_moments(lambda leaf: leaf + 0j), "the optimiser"),
    "no moments": (with_moments(lambda leaf: None), "the optimiser"),
    "no such run": (lambda state: state.update(run=7), "run 7"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_another_form_is_refused(alone, form):
    change, words = FORMS[form]
    state = newest(alone)
    change(state)
    RunFolder(alone).checkpoints.save(6, state)
    before = contents(alone)
    with pytest.raises(TrainingError, match=rf"^checkpoint .*00000006.pt is not one of this run: .*{words}"):
        train(SMALL.replace(output=str(alone), iterations=8), reporters=[])
    assert contents(alone) == before
    if "learner" in form or "moments" in form or "run" in form:
        assert load_result(alone).iteration == 6
    else:
        with pytest.raises(CheckpointError, match=rf"00000006.pt .*{words}"):
            load_result(alone)


BETAS = {"betas": [0.5, 0.9]}


@pytest.mark.parametrize("changes", [{"seed": 1}, {"gradient_clip": None}, {"optimizer_options": BETAS}])
def test_a_checkpoint_knows_its_run(small, alone, changes):
    """Checkpoints of another run with parameters of the same shapes, copied here by mistake, are not continued."""
    other = train(small.replace(**changes, iterations=8), reporters=[]).folder
    shutil.copytree(other / "checkpoints", alone / "checkpoints", dirs_exist_ok=True)
    before = contents(alone)
    ((name, value),) = changes.items()
    words = f"00000008.pt is not one of this run: it is of a run with {name}={value!r} not its default. Remove it"
    with pytest.raises(TrainingError, match=re.escape(words)):
        train(SMALL.replace(output=str(alone), iterations=10), reporters=[])
    assert contents(alone) == before


def test_a_checkpoint_from_before_checkpoints_knew_their_run(alone, longer):
    """Only their shapes can be compared."""
    for path in RunFolder(alone).checkpoints.paths():
        state = read_checkpoint(path)
        del state["run"]
        torch.save(state, path)
    train(SMALL.replace(output=str(alone), iterations=8), reporters=[])
    assert same_runs(alone, longer)


def test_a_folder_is_compared_once_it_is_held(small, monkeypatch):
    """Another run begins, and ends, in the moment before this one gets hold of the folder."""
    hold, other = files.only_writer, small.replace(seed=1)

    def late(folder):
        monkeypatch.undo()
        train(other, reporters=[])
        return hold(folder)

    monkeypatch.setattr(run_folder, "only_writer", late)
    with pytest.raises(ConfigurationError, match="holds a run with seed=1 not 0"):
        train(small.replace(iterations=8), reporters=[])
    assert Configuration.load(Path(small.output) / "run.json") == other


def test_the_step_size_is_that_of_the_run(alone, longer):
    """What a checkpoint says of the optimiser's options is not asked: they are the run's."""
    state = newest(alone)
    state["learner"]["param_groups"][0].update(lr="much", betas=None)
    RunFolder(alone).checkpoints.save(6, state)
    train(SMALL.replace(output=str(alone), iterations=8), reporters=[])
    assert same_runs(alone, longer)


def after_line(number, added):
    """Put bytes after a line of the metrics."""

    def changed(written):
        lines = written.splitlines(keepends=True)
        return b"".join([*lines[:number], added, *lines[number:]])

    return changed


GARBAGE = {
    "words": b"hello\n",
    "zeros": bytes(4096) + b"\n",
    "no UTF-8": b"\xff\xfe{\n",
    "half a line": b'{"kind": "iteration", "itera\n',
    "two on a line": b'{"kind": "iteration", "iteration": 1}{"kind": "iteration", "iteration": 2}\n',
    "another object": b'{"note": "hello"}\n',
    "no object": b"[1, 2]\n",
    "no kind": b'{"iteration": 3}\n',
    "a negative iteration": b'{"kind": "iteration", "iteration": -3}\n',
    "no number of an iteration": b'{"kind": "iteration", "iteration": "3"}\n',
    "a nest": b"[" * 100_000 + b"\n",
    "a number of 5000 digits": b"1" * 5000 + b"\n",
}


@pytest.mark.parametrize("line", [0, 3])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_line_that_is_no_record_is_set_aside(alone, left_alone, garbage, line):
    """Nine lines: evaluations before the iterations 0, 3 and after 5. The run goes back to iteration 4."""
    change_metrics(alone, after_line(line, GARBAGE[garbage]))
    go_back(alone)
    hook = Hook()
    train(SMALL.replace(output=str(alone)), reporters=[hook])
    assert same_runs(alone, left_alone)
    assert (alone / "metrics.jsonl.unreadable").read_bytes() == GARBAGE[garbage]
    assert any("metrics.jsonl has 1 line" in text and "metrics.jsonl.unreadable" in text for text in hook.said)
    change_metrics(alone, after_line(2, b"more\n"))
    train(SMALL.replace(output=str(alone), iterations=8), reporters=[])
    assert (alone / "metrics.jsonl.unreadable").read_bytes() == GARBAGE[garbage] + b"more\n"


HARMLESS = {
    "carriage returns": lambda written: written.replace(b"\n", b"\r\n"),
    "blank lines": lambda written: written.replace(b"\n", b"\n\n \n"),
    "a mark of the encoding": lambda written: b"\xef\xbb\xbf" + written,
    "no newline at the end": lambda written: written.rstrip(b"\n"),
    "a line cut short at the end": lambda written: written + b'{"kind": "iter',
    "every line twice": lambda written: written.replace(b"\n", b"\n" + written + b"\n", 1),
    "spaces": lambda written: written.replace(b"{", b"  { ").replace(b"\n", b"  \n"),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_metrics_that_were_written_otherwise(alone, left_alone, change):
    """By an editor, on another system, by a version that lost count: lines count by their iterations."""
    change_metrics(alone, HARMLESS[change])
    assert RunFolder(alone).metrics("evaluation")[-1]["iteration"] == 6
    go_back(alone)
    hook = Hook()
    train(SMALL.replace(output=str(alone)), reporters=[hook])
    for name in ("iteration", "evaluation"):
        assert without_times(RunFolder(alone).metrics(name)) == without_times(RunFolder(left_alone).metrics(name))
    assert not any("unreadable" in text for text in [*hook.said, *contents(alone)])


@pytest.mark.parametrize("left", [0, 250, 600, None])
def test_metrics_that_were_cut_by_hand_are_no_hindrance(alone, left):
    """Emptied, cut within a line, removed."""
    metrics = alone / "metrics.jsonl"
    before = RunFolder(alone).metrics("iteration")
    metrics.unlink() if left is None else metrics.write_bytes(metrics.read_bytes()[:left])
    whole = metrics.read_bytes().count(b'"iteration", "iteration"') if left else 0
    kept = [record for record in RunFolder(alone).metrics("iteration") if record in before]
    assert whole - 1 <= len(kept) <= whole
    assert train(SMALL.replace(output=str(alone), iterations=8), reporters=[]).iteration == 8
    found = RunFolder(alone).metrics("iteration")
    assert found[:-2] == kept
    assert [record["iteration"] for record in found][-2:] == [6, 7]


def test_metrics_that_are_emptied_while_a_run_writes_them(small, alone):
    """Iterations do not stand twice, and a write that fails does not leave a hole where the lines were."""

    def empty(record):
        if record["iteration"] == 2:
            os.truncate(Path(small.output) / "metrics.jsonl", 0)

    train(small, reporters=[Hook(empty)])
    go_back(small.output)
    train(small, reporters=[])
    assert timeless(small.output) == timeless(alone)[4:]  # an evaluation and three iterations were there


def change_metrics(folder, change):
    metrics = Path(folder) / "metrics.jsonl"
    metrics.write_bytes(change(metrics.read_bytes()))


def go_back(folder):
    """Take the newest checkpoint away, as if the run had been killed before it was written."""
    RunFolder(folder).checkpoints.paths()[-1].unlink()


def fail(monkeypatch, when, failure):
    """Let the environment fail in the draw number `when`."""
    original, walks = Rollouts._walk, []

    def walk(self, *arguments):
        value = original(self, *arguments)
        walks.append(value)
        return failure(value) if len(walks) == when else value

    monkeypatch.setattr(Rollouts, "_walk", walk)


def broken_reward(value):
    value.reward[len(value.reward) // 3, 2] = float("nan")  # of the second of three tasks
    return value


def raises(value):
    raise KeyError("no such body: 'torso'")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            broken_reward,
            r"'navigation': Navigation: the reward is nan at task 1, trajectory 0, step 2 \(shard 0, of 3 tasks\)",
        ),
        (raises, r"'navigation' raised KeyError: \"no such body: 'torso'\""),
    ],
)
def test_a_failing_environment_is_named_and_the_checkpoint_stays(small, alone, monkeypatch, failure, words):
    # An evaluation and an iteration have two draws each; iteration 3 comes after two evaluations and three iterations.
    with monkeypatch.context() as patched:
        fail(patched, 2 + 3 * 2 + 2 + 2, failure)
        with pytest.raises(TrainingError, match=rf"^iteration 3: environment {words}.*last good .*00000003.pt"):
            train(small, reporters=[])
    train(small, reporters=[])
    assert same_runs(small.output, alone)


def test_a_gradient_that_is_not_finite_changes_nothing(small, monkeypatch):
    def value_and_grad(self, theta):
        return torch.tensor(0.0), {name: leaf * float("inf") for name, leaf in theta.items()}

    monkeypatch.setattr(Batch, "value_and_grad", value_and_grad)
    trainer = Trainer(small, reporters=[])
    with pytest.raises(
        TrainingError, match=r"iteration 0: the meta-gradient of .* is not finite.*last good .*00000000.pt"
    ):
        trainer.run()
    assert same(trainer.progress.theta, Problem(small).initial())


def overflowing(monkeypatch, when, change):
    """Let a step of the optimiser leave something that is not finite, where the gradient was finite."""
    original, steps = Ascent.ascend, []

    def ascend(self, theta, gradient):
        norm = original(self, theta, gradient)
        steps.append(norm)
        if len(steps) == when:
            change(self, theta)
        return norm

    monkeypatch.setattr(Ascent, "ascend", ascend)


def overflow_of_a_parameter(learner, theta):
    theta["log_std"][1] = float("inf")


def overflow_of_a_moment(learner, theta):
    learner.optimizer.state_dict()["state"][0]["exp_avg_sq"][0] = float("inf")


@pytest.mark.parametrize(
    ("change", "words"),
    [(overflow_of_a_parameter, "parameters.log_std"), (overflow_of_a_moment, "learner.state.0.exp_avg_sq")],
)
@pytest.mark.parametrize("when", [4, 5])  # one before a checkpoint, and one that would have been saved by now
def test_parameters_that_are_not_finite_are_not_saved(small, left_alone, monkeypatch, change, words, when):
    with monkeypatch.context() as patched:
        overflowing(patched, when, change)
        kept = f"0000000{2 if when == 4 else 4}.pt"
        message = rf"^iteration {when - 1}: {words} is not finite after this step.*learning_rate.*last good.*{kept}"
        with pytest.raises(TrainingError, match=message):
            train(small, reporters=[])
    assert [record["iteration"] for record in RunFolder(small.output).metrics("iteration")] == list(range(when - 1))
    train(small, reporters=[])
    assert same_runs(small.output, left_alone)


def test_a_checkpoint_that_is_not_finite_is_passed_over(alone, left_alone):
    """Earlier versions have written such ones."""
    path = alone / "checkpoints" / "00000006.pt"
    state = read_checkpoint(path)
    state["parameters"]["2.bias"][0] = float("nan")
    torch.save(state, path)
    hook = Hook()
    train(SMALL.replace(output=str(alone)), reporters=[hook])
    assert any("parameters.2.bias is not finite; going back to 00000004.pt" in text for text in hook.said)
    assert same_runs(alone, left_alone)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": "navigatoin"}, "did you mean 'navigation'"),
        (
            {"environment_options": {"rewards": "distance"}},
            "environment_options: .*rewards.*it takes reward, action_sc",
        ),
        ({"environment_options": {"reward": "far"}}, "environment_options=.*reward='far' is not known"),
        ({"policy": "tabular"}, "policy='tabular': .*did you mean 'table'"),
        ({"policy": "table", "policy_options": {}}, r"policy='table': an action of Navigation is a vector of 2"),
        ({"environment": "random-mdp", "policy_options": {}, "reference": True}, "reference: only 'navigation'"),
        ({"policy_options": {"std": 1}}, "policy_options: .*'std'"),
        ({"estimator": "LFS"}, "did you mean 'LSF'"),
        ({"estimator_options": {"baseline": "best"}}, "estimator_options"),
        (
            {"environment": "frozen-lake", "environment_options": {"slippery": "False"}},
            "environment_options: slippery='False': expected true or false, as JSON has it, got str",
        ),
        ({"environment": "frozen-lake", "environment_options": {"size": 3.5}}, "size=3.5: expected an integer, got f"),
        ({"policy_options": {"learn_std": "no"}}, "policy_options: learn_std='no': expected true or false"),
        ({"estimator": "LoadedDiCE", "estimator_options": {"decay": ".5"}}, "decay='.5': expected a number, got str"),
        ({"optimizer_options": {"amsgrad": 1}}, "amsgrad=1: expected true or false"),
        ({"algorithm": "bomrl-tabular"}, "^algorithm: tabular_bomrl .*--policy table, on an environment with discrete"),
        (
            {"outer": 1, "outer_baseline": "linear"},
            "^outer=1: outer_baseline='linear' compares every trajectory with .* its",
        ),
        ({"outer": 1, "outer_baseline": "loo"}, "^outer=1: outer_baseline='loo' .*; give outer=2 at least, or no such"),
        (
            {"outer": 1, "tasks": 1, "outer_baseline": "mean"},
            "^outer=1: outer_baseline='mean' .* the others of any task",
        ),
        (
            {"inner": 1, "algorithm": "tmaml"},
            "inner=1: curvature_baseline='linear' compares trajectories with others",
        ),
        (
            {"shards": 3, "algorithm": "sgmrl", "algorithm_options": {"credit_baseline": "mean"}},
            "^tasks=3, shards=3: the baseline 'mean' .* compares every task with the others of its shard; give at",
        ),
        ({"tasks": 1, "estimator": "SF", "estimator_options": {"baseline": "loo"}}, "^tasks=1, shards=1: the baseline"),
        ({"optimizer": "adam"}, "did you mean 'Adam'"),
        ({"optimizer_options": {"beta": 1}}, "optimizer_options: .*'beta'"),
        ({"optimizer_options": {"betas": [2.0, 2.0]}}, "optimizer_options=.*[Ii]nvalid beta"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(small, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        train(small.replace(**changes), reporters=[])
    assert not Path(small.output).exists()


def test_an_output_that_cannot_be_a_folder(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="file"):
        train(small.replace(output=str(tmp_path / "file" / "run")), reporters=[])


# --- reports and results


def test_the_progress_bar_shows_what_matters(small, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    train(small, reporters=[ProgressBar("small")])
    printed = capsys.readouterr().out
    assert "small: iteration 3, held-out tasks: return -" in printed
    assert "small: learning curve: " in printed
    shown = []
    bar = ProgressBar()
    bar.begin(0, 2)
    monkeypatch.setattr(bar._bar, "set_postfix_str", lambda text, refresh: shown.append(text))
    bar.trained({"iteration": 0, "returns": [-2.0, -1.0], "gradient_norm": 0.125, "kl": 0.0101, "seconds": 1.0})
    bar.end()
    assert shown == ["return -2.00 → -1.00, gradient norm 0.12, KL 0.01"]


def test_tensorboard(small):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(small.output) / "tensorboard"
    train(small.replace(iterations=4), reporters=[TensorBoard(folder)])
    train(small, reporters=[TensorBoard(folder)])
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("training/gradient_norm")] == list(range(6))
    assert events.Scalars("held-out/return_after_1_steps")[0].step == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"outer": 1, "outer_baseline": "mean"},
        {"outer": 1, "outer_baseline": "linear", "algorithm": "promp"},
        {"inner": 1, "algorithm": "sgmrl", "algorithm_options": {"credit_baseline": "mean"}},
    ],
)
def test_few_draws_that_are_enough(small, changes):
    """What is not refused for too few draws can take a step."""
    problem = Problem(small.replace(**changes))
    theta = problem.initial()
    assert problem.learner(theta).step(theta, problem.draw(theta, 0))


def test_results_are_read_back_without_touching_the_folder(alone):
    (alone / "checkpoints" / "00000006.pt").write_bytes(b"")
    said: list[str] = []
    result = load_result(alone, say=said.append)
    assert result.iteration == 4
    assert len(said) == 1
    assert (alone / "checkpoints" / "00000006.pt").read_bytes() == b""


def test_results_of_a_run_that_goes_on_are_read(alone, monkeypatch):
    """Its only checkpoint is replaced by the next one after it was seen and before it is read."""
    read, kept = checkpoints.read_checkpoint, RunFolder(alone, kept=1).checkpoints
    state = newest(alone)

    def late(path):
        if (done := int(path.stem)) < 9:
            kept.save(done + 1, {**state, "iteration": done + 1})
        return read(path)

    monkeypatch.setattr(checkpoints, "read_checkpoint", late)
    assert load_result(alone).iteration == 9


def test_a_run_is_read_all_the_time_while_it_is_written(small):
    live = small.replace(iterations=10**6, checkpoint_every=1, checkpoints_kept=1, evaluate_every=10**6)
    process = FORKS.Process(target=train_quietly, args=(live,))
    process.start()
    wait_for(lambda: RunFolder(live.output).checkpoints.paths())
    found = [load_result(live.output, live).iteration for _ in range(30)]
    process.kill()
    process.join()
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_a_checkpoint_that_is_a_link_to_nowhere(alone):
    """It is seen, and is not there: no reason to look for it for ever."""
    path = alone / "checkpoints" / "00000006.pt"
    path.rename(alone / "moved")
    path.symlink_to(alone / "nowhere")
    with pytest.raises(CheckpointError, match=r"00000006.pt cannot be read \(FileNotFoundError"):
        load_result(alone)
    with pytest.raises(TrainingError, match=r"00000006.pt cannot be read \(FileNotFoundError"):
        train(SMALL.replace(output=str(alone)), reporters=[])


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/00000006.pt", "run.json"])
def test_results_that_cannot_be_read(alone, name):
    with failing(alone / name, errno.EIO), pytest.raises((CheckpointError, ConfigurationError), match=name):
        load_result(alone)


def test_nobody_who_reads_is_told_to_remove_anything(alone):
    for path in (alone / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="No checkpoint is left") as caught:
        load_result(alone)
    assert not re.search("remove|restart", str(caught.value), re.IGNORECASE)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ConfigurationError, match=r"run.json cannot be read"):
        load_result(tmp_path)


def test_the_learning_curve_of_several_runs(alone, tmp_path):
    pytest.importorskip("matplotlib")
    save_learning_curve([alone, alone], tmp_path / "curves.pdf", say=lambda _: None)
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_a_learning_curve_with_returns_that_are_no_numbers(alone, tmp_path):
    """They are null in JSON; and what has the name of an evaluation, and no returns, is none."""
    pytest.importorskip("matplotlib")
    with (alone / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "iteration": 7, "returns": [-1.0, null], "errors": [null, 0.1]}\n')
        file.write('{"kind": "evaluation", "iteration": 8}\n')
    save_learning_curve([alone], tmp_path / "curves.png", say=lambda _: None)
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(("horizon", "chunk"), [(100, 4), (400, 1), (2000, 1), (10, 40)])
def test_a_chunk_has_some_8000_time_steps(horizon, chunk):
    assert Problem(Configuration(inner=10, outer=20, horizon=horizon)).chunk == chunk


def test_checkpoints_of_nobody_knows_what_are_not_continued(alone, small, tmp_path):
    shutil.copytree(Path(alone) / "checkpoints", tmp_path / "found" / "checkpoints")
    with pytest.raises(ConfigurationError, match=r"found holds checkpoints, and no run\.json"):
        train(small.replace(output=str(tmp_path / "found")), reporters=[])


def test_what_compares_tasks_is_differentiated_whole(small):
    run = small.replace(estimator="SF", estimator_options={"baseline": "mean"})
    problem = Problem(run)
    assert problem.chunk is None
    theta = problem.initial()
    problem.learner(theta).step(theta, problem.draw(theta, 0))


def test_a_baseline_over_tasks_cannot_be_cut_into_chunks(small):
    run = small.replace(estimator="SF", estimator_options={"baseline": "mean"}, chunk=1)
    with pytest.raises(ConfigurationError, match=r"^chunk=1: .*cannot be cut into chunks"):
        train(run, reporters=[])
