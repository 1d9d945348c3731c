"""A run: the same bits however it was broken off, and clear words for whatever breaks it."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training import (
    Batch,
    Configuration,
    ConfigurationError,
    Problem,
    RunFolder,
    Trainer,
    TrainingError,
    load_result,
    train,
)
from stochgraph.algorithms.training.curves import save_learning_curve
from stochgraph.algorithms.training.files import _synchronise
from stochgraph.algorithms.training.reports import ProgressBar, TensorBoard
from tests.training_cases import FORKS, SMALL, Hook, newest, same, same_runs, train_quietly


@pytest.fixture
def small(tmp_path):
    return SMALL.replace(output=str(tmp_path / "run"))


@pytest.fixture
def alone(tmp_path):
    """The folder of the small run left alone."""
    return train(SMALL.replace(output=str(tmp_path / "alone")), reporters=[]).folder


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


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSprop"])
def test_a_run_in_two_halves_is_the_run_in_one(small, tmp_path, optimizer):
    whole = small.replace(output=str(tmp_path / "whole"), optimizer=optimizer)
    train(whole, reporters=[])
    half = small.replace(optimizer=optimizer, iterations=4)
    assert train(half, reporters=[]).iteration == 4
    hook = Hook()
    train(half.replace(iterations=6), reporters=[hook])
    assert "continuing after 4 iterations" in hook.said
    assert same_runs(small.output, whole.output)


def test_a_finished_run_is_left_as_it_is(alone):
    before = newest(alone)
    outcome = train(SMALL.replace(output=str(alone)), reporters=[])
    assert outcome.finished
    assert same(newest(alone), before)
    assert same(outcome.theta, before["parameters"])


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


def test_twenty_kills_do_not_change_a_bit(tmp_path):
    """SIGKILL at random moments, in draws, metrics and checkpoints: the end is that of a run left alone."""
    alone, killed = (SMALL.replace(output=str(tmp_path / name)) for name in ("alone", "killed"))
    moments, reached = random.Random(0), []
    for _ in range(20):
        process = FORKS.Process(target=train_quietly, args=(killed.replace(iterations=10**6),))
        process.start()
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


# --- what goes wrong


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
    assert [path.name for path in RunFolder(small.output).checkpoints.paths()] == ["00000002.pt"]
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
def test_a_damaged_checkpoint_is_passed_over(alone, tmp_path, damage):
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
    whole_run = train(SMALL.replace(output=str(tmp_path / "whole")), reporters=[]).folder
    assert same_runs(alone, whole_run)


def test_no_readable_checkpoint_is_an_error_that_names_them_all(alone):
    for path in (alone / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"00000006.*00000004.*00000002.*remove .*checkpoints to start anew"):
        train(SMALL.replace(output=str(alone)), reporters=[])


def test_a_checkpoint_of_something_else(alone):
    state = newest(alone)
    state["parameters"] = {"weight": torch.zeros(3)}
    RunFolder(alone).checkpoints.save(6, state)
    with pytest.raises(TrainingError, match=r"is not one of this run \(KeyError.*give another output"):
        train(SMALL.replace(output=str(alone)), reporters=[])


def test_metrics_that_were_cut_by_hand_are_no_hindrance(alone):
    metrics = alone / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:250])
    assert train(SMALL.replace(output=str(alone), iterations=8), reporters=[]).iteration == 8
    assert [record["iteration"] for record in RunFolder(alone).metrics("iteration")][-2:] == [6, 7]


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
    with pytest.raises(TrainingError, match=r"iteration 0: the meta-gradient of .* is not finite.*no checkpoint yet"):
        trainer.run()
    assert same(trainer.theta, Problem(small).initial())


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


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ConfigurationError, match=r"run.json cannot be read"):
        load_result(tmp_path)


def test_the_learning_curve_of_several_runs(alone, tmp_path):
    pytest.importorskip("matplotlib")
    save_learning_curve([alone, alone], tmp_path / "curves.pdf", say=lambda _: None)
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


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
