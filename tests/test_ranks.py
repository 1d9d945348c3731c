"""Several ranks: the same meta-gradient as one, and a run that survives the loss of one of them."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed

from stochgraph.algorithms.training import (
    ConfigurationError,
    Problem,
    RankFailure,
    Ranks,
    TrainingError,
    joined_ranks,
    train,
)
from tests.training_cases import (
    FORKS,
    SMALL,
    become_rank,
    free_port,
    in_ranks,
    newest,
    python_environment,
    same,
    same_runs,
    timeless,
    train_on_rank,
)

if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("torch is built without gloo", allow_module_level=True)

SHARED = SMALL.replace(tasks=5, shards=4, iterations=3)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_make_the_meta_gradient_of_one_process(tmp_path, count, precision, tolerance):
    """SGD with step size 1: the parameters move by the sum of the meta-gradients. Four shards, of 1 and 2 tasks."""
    run = SHARED.replace(precision=precision, optimizer="SGD", learning_rate=1.0, gradient_clip=None, iterations=1)
    one, several = (run.replace(output=str(tmp_path / name)) for name in ("one", "several"))
    train(one, reporters=[])
    assert in_ranks(count, train_on_rank, several) == [0] * count
    start = Problem(run).initial()
    expected, found = (newest(folder.output)["parameters"] for folder in (one, several))
    for name, leaf in start.items():
        gradient = expected[name] - leaf
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], expected[name], rtol=0.0, atol=tolerance * float(gradient.norm() + 1))


def test_a_whole_run_of_two_ranks_is_that_of_one(tmp_path):
    run = SHARED.replace(precision="float64")
    one, two = (run.replace(output=str(tmp_path / name)) for name in ("one", "two"))
    train(one, reporters=[])
    assert in_ranks(2, train_on_rank, two) == [0, 0]
    torch.testing.assert_close(newest(two.output)["parameters"], newest(one.output)["parameters"], rtol=1e-9, atol=0.0)
    for record, expected in zip(timeless(two.output), timeless(one.output), strict=True):
        assert {k: pytest.approx(v, rel=1e-9) if k != "kind" else v for k, v in expected.items()} == record


def test_a_run_of_one_is_continued_by_two(tmp_path):
    run = SHARED.replace(precision="float64", iterations=6)
    one, mixed = (run.replace(output=str(tmp_path / name)) for name in ("one", "mixed"))
    train(one, reporters=[])
    train(mixed.replace(iterations=2), reporters=[])
    assert in_ranks(2, train_on_rank, mixed) == [0, 0]
    state = newest(mixed.output)
    assert state["iteration"] == 6
    torch.testing.assert_close(state["parameters"], newest(one.output)["parameters"], rtol=1e-9, atol=0.0)


SHARDS = (1, 2, 3, 4, 6, 8)
LEARNERS: dict[str, dict[str, Any]] = {
    "Adam": {"inner_rate": 0.3},
    "Adam, in chunks": {"chunk": 1, "estimator": "LOO"},
    "TRPO": {"optimizer": "TRPO", "chunk": 1, "optimizer_options": {"iterations": 2, "tries": 2}},
    "epochs": {"algorithm": "promp", "chunk": 2, "environment": "random-mdp", "policy_options": {}, "epochs": 2},
}


def train_in_shards(rank, count, port, run):
    """The run in every number of shards that this number of ranks can share out."""
    become_rank(rank, count, port)
    with pytest.MonkeyPatch.context() as patched, joined_ranks() as ranks:
        patched.setattr("stochgraph.algorithms.training.trainer.save_learning_curve", lambda *_: None)
        for shards in SHARDS:
            if shards >= count:
                train(run.replace(shards=shards, output=f"{run.output}/{shards} in {count}"), ranks, reporters=[])


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_result_depends_on_the_shards_and_not_on_the_ranks(tmp_path, learner):
    """Parameters, what the learner remembers, and metrics: to the bit, in single precision, with unequal shards."""
    run = SMALL.replace(tasks=9, output=str(tmp_path), iterations=2, evaluate_every=2, evaluation_tasks=25)
    run = run.replace(**LEARNERS[learner])
    train_in_shards(0, 1, 0, run)
    for count in (2, 3):
        assert in_ranks(count, train_in_shards, run) == [0] * count
        for shards in SHARDS:
            one, several = (tmp_path / f"{shards} in {ranks}" for ranks in (1, count))
            assert several.exists() == (shards >= count)
            assert shards < count or same_runs(one, several), f"{shards} shards in {count} ranks"
    ends = [newest(tmp_path / f"{shards} in 1")["parameters"] for shards in SHARDS]
    assert not any(same(ends[0], end) for end in ends[1:]), "the shards have no draws of their own"


@pytest.mark.parametrize(("shards", "count"), [(1, 2), (1, 3), (2, 3)])
def test_more_ranks_than_shards_are_refused(tmp_path, shards, count):
    with pytest.raises(ConfigurationError, match=rf"shards={shards}: {count} ranks need at least as many shards"):
        train(SMALL.replace(output=str(tmp_path / "run"), shards=shards), Ranks(0, count), reporters=[])
    assert not list(tmp_path.iterdir())


def stop_one_rank(rank, count, port, folder):
    """Signal the second rank alone, in the second iteration."""
    original = Problem.draw

    def draw(self, theta, iteration, ranks):
        if iteration == 1 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, theta, iteration, ranks)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Problem, "draw", draw)
        become_rank(rank, count, port)
        with joined_ranks() as ranks:
            outcome = train(SHARED.replace(output=folder, iterations=50), ranks, reporters=[])
    raise SystemExit(0 if (outcome.iteration, outcome.finished) == (2, False) else 1)


def test_a_signal_to_one_rank_stops_all_of_them_after_the_same_iteration(tmp_path):
    assert in_ranks(2, stop_one_rank, str(tmp_path / "run")) == [0, 0]
    assert newest(tmp_path / "run")["iteration"] == 2


def meet(rank, count, port):
    """Join several times, some more slowly than others, and talk."""
    become_rank(rank, count, port)
    for i in range(3):
        time.sleep(0.1 * ((rank + i) % count))
        with joined_ranks() as ranks:
            assert ranks.from_first({"a": [i, torch.arange(3)]} if rank == 0 else None)["a"][0] == i
            assert [ranks.any(rank == 1 and i == 1), ranks.any(False)] == [i == 1, False]
            items = list(range(2 * count + 1))
            assert ranks.gathered([torch.tensor(item) for item in ranks.own(items)]) == items


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_meet_as_often_as_they_like(count):
    assert in_ranks(count, meet) == [0] * count


# --- ranks that are missing


def lose(rank, count, port, folder, victim, how, timeout):
    """Lose one rank in the second iteration. The others write down what ends them, with what they have printed."""
    draw = Problem.draw
    become_rank(rank, count, port)
    sys.stderr = io.StringIO()

    def losing(self, theta, iteration, ranks):
        if (iteration, rank) == (1, victim):
            os.kill(os.getpid(), getattr(signal, how.partition(",")[0]))
        if iteration == 1 and how == "SIGKILL":
            time.sleep(0.5 * rank)  # some are still on their way
        if iteration == 1 and how == "SIGSTOP, then Ctrl-C":
            for after in (0.5, 1.0):
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
        return draw(self, theta, iteration, ranks)

    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Problem, "draw", losing)
        try:
            with joined_ranks(timeout) as ranks:
                train(SHARED.replace(output=folder), ranks, reporters=[])
        except (KeyboardInterrupt, RankFailure, TrainingError) as error:
            end = f"{type(error).__name__}: {error}\n{sys.stderr.getvalue()}"
            Path(f"{folder}-{rank}").write_text(f"{time.monotonic() - start:.0f}\n{end}")


def lost(tmp_path, count, victim, how, timeout):
    """What the others write down, by their rank: seconds, and words."""
    port, folder = free_port(), str(tmp_path / "run")
    ranks = range(count) if how != "never there" else [rank for rank in range(count) if rank != victim]
    processes = {
        rank: FORKS.Process(target=lose, args=(rank, count, port, folder, victim, how, timeout)) for rank in ranks
    }
    for process in processes.values():
        process.start()
    for rank, process in processes.items():
        if rank != victim:
            process.join(90)
    for process in processes.values():
        process.kill()
        process.join()
    others = [rank for rank in range(count) if rank != victim]
    texts = {rank: Path(f"{folder}-{rank}").read_text() for rank in others}
    return {rank: (int(text.partition("\n")[0]), text.partition("\n")[2]) for rank, text in texts.items()}


@pytest.mark.parametrize(("count", "victim"), [(2, 1), (2, 0), (3, 1)])
def test_a_rank_that_is_stopped_is_named(tmp_path, count, victim):
    for _, text in lost(tmp_path, count, victim, "SIGSTOP", timeout=4.0).values():
        assert text.startswith(f"TrainingError: iteration 1: rank {victim} of {count}: not heard of for ")
        said = rf"^rank \d of {count}: waiting for rank {victim} for \d s; given up after 4 s$"
        assert re.search(said, text, re.MULTILINE)
    if victim != 0:
        assert newest(tmp_path / "run")["iteration"] == 1


@pytest.mark.parametrize(("count", "victim"), [(2, 1), (2, 0), (3, 2)])
def test_a_rank_that_is_killed_is_named_at_once(tmp_path, count, victim):
    for seconds, text in lost(tmp_path, count, victim, "SIGKILL", timeout=300.0).values():
        assert text.startswith(f"TrainingError: iteration 1: rank {victim} of {count}: ended")
        assert seconds < 60
    if victim != 0:
        assert newest(tmp_path / "run")["iteration"] == 1


def test_a_wait_for_a_rank_can_be_interrupted(tmp_path):
    """Its process ends as soon: gloo would wait for the end of its time."""
    ((seconds, text),) = lost(tmp_path, 2, 1, "SIGSTOP, then Ctrl-C", timeout=300.0).values()
    assert text.startswith("KeyboardInterrupt")
    assert seconds < 60
    assert newest(tmp_path / "run")["iteration"] == 1


@pytest.mark.parametrize(
    ("count", "victim", "words"), [(2, 1, "rank 1 of 2 did not come within 2 s"), (3, 0, "the ranks have not met at")]
)
def test_a_rank_that_never_comes_is_named(tmp_path, count, victim, words):
    for seconds, text in lost(tmp_path, count, victim, "never there", timeout=2.0).values():
        assert text.startswith(f"RankFailure: {words}")
        assert seconds < 60


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE='many' is no number"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "RANK=0 is no number below WORLD_SIZE=0"),
        ({"WORLD_SIZE": "2"}, "RANK='' is no number"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_PORT='' is no number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK=2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1000000"}, "are no address"),
    ],
)
def test_variables_that_make_no_sense(monkeypatch, variables, words):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankFailure, match=f"the ranks have not met at .*: .*{words}"), joined_ranks(1.0):
        pass


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), "60"])
def test_times_that_are_none(timeout):
    with pytest.raises(ValueError, match=r"timeout=.*: must be a number more than 0"), joined_ranks(timeout):
        pass


SCRIPT = """
import os, signal, sys
from stochgraph.algorithms.training import Configuration, Problem, joined_ranks, train

draw = Problem.draw

def dying(self, theta, iteration, ranks):
    started = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if started < 2 and (ranks.rank, iteration) == (started, 3 + 2 * started):  # first rank 0, then rank 1
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(self, theta, iteration, ranks)

if __name__ == "__main__":
    Problem.draw = dying
    with joined_ranks() as ranks:
        outcome = train(Configuration.load(sys.argv[1]), ranks)
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_ranks_are_killed(tmp_path):
    """Rank 0 is killed in iteration 3, rank 1 in iteration 5; the run ends as one that nothing happened to."""
    run = SHARED.replace(iterations=8, precision="float64")
    one, two = (run.replace(output=str(tmp_path / name)) for name in ("one", "two"))
    train(one, reporters=[])
    (tmp_path / "killed.py").write_text(SCRIPT)
    two.save(tmp_path / "run.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "--max-restarts",
        "2",
        "--monitor-interval",
        "0.1",
        str(tmp_path / "killed.py"),
        str(tmp_path / "run.json"),
    ]
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    # Rank 0 survives the loss of rank 1, and saves.
    assert re.findall(r"continuing after (\d) iterations", done.stdout) == ["2", "5"]
    torch.testing.assert_close(newest(two.output)["parameters"], newest(one.output)["parameters"], rtol=1e-9, atol=0.0)
    lines = [json.loads(line) for line in (Path(two.output) / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "iteration"] == list(range(8))
