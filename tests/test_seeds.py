"""Several seeds of a configuration: each the same run as alone, whatever happens to the others."""

import os
import signal
from pathlib import Path

import pytest

from stochgraph.algorithms.training import ConfigurationError, Ranks, RunFolder, TrainingError, train
from tests.training_cases import SMALL, Hook, same_runs

SHORT = SMALL.replace(iterations=3)


class Failing(Hook):
    """Fails after the first iteration of some runs, which are counted from 0."""

    def __init__(self, *runs: int) -> None:
        super().__init__()
        self.runs = runs
        self.begun = -1

    def begin(self, done: int, total: int) -> None:
        self.begun += 1

    def trained(self, record: dict[str, object]) -> None:
        if self.begun in self.runs:
            raise TrainingError(f"run {self.begun} is out of luck")


@pytest.fixture
def several(tmp_path):
    return SHORT.replace(output=str(tmp_path / "runs"))


def alone(tmp_path: Path, seed: int) -> Path:
    """The folder of a run with this seed that nothing else ran beside."""
    run = SHORT.replace(seed=seed, output=str(tmp_path / f"alone-{seed}"))
    return train(run, reporters=[]).folder


def test_every_seed_is_the_run_that_it_is_alone(several, tmp_path):
    outcomes = train(several, reporters=[], seeds=(2, 0))
    assert [(outcome.folder.name, outcome.finished) for outcome in outcomes] == [("seed-2", True), ("seed-0", True)]
    for outcome, seed in zip(outcomes, (2, 0), strict=True):
        assert outcome.folder.parent == Path(several.output)
        assert same_runs(outcome.folder, alone(tmp_path, seed))


def test_a_seed_that_fails_leaves_the_others_running(several, tmp_path):
    hook = Failing(0, 2)
    with pytest.raises(
        TrainingError, match=r"^seeds 0, 2 of .*runs failed, the others are done.*run 2 is out"
    ) as caught:
        train(several, reporters=[hook], seeds=range(4))
    assert [text for text in hook.said if text.endswith("out of luck")] == [
        f"{several.output}/seed-{k} failed: run {k} is out of luck" for k in (0, 2)
    ]
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert [str(error) for error in caught.value.__cause__.exceptions] == [f"run {k} is out of luck" for k in (0, 2)]
    assert all(same_runs(f"{several.output}/seed-{seed}", alone(tmp_path, seed)) for seed in (1, 3))
    assert [outcome.finished for outcome in train(several, reporters=[], seeds=range(4))] == [True] * 4
    assert all(same_runs(f"{several.output}/seed-{seed}", tmp_path / f"alone-{seed}") for seed in (1, 3))


def test_an_interrupt_saves_the_one_under_way_and_stops_all(several, tmp_path):
    heard = []

    def interrupt(record):
        heard.append(record["iteration"])
        if len(heard) == 5:  # the second iteration of the second seed
            os.kill(os.getpid(), signal.SIGINT)

    outcomes = train(several, reporters=[Hook(interrupt)], seeds=(0, 1, 2))
    assert [(outcome.folder.name, outcome.finished) for outcome in outcomes] == [("seed-0", True), ("seed-1", False)]
    assert RunFolder(outcomes[-1].folder).checkpoints.paths()
    assert not (Path(several.output) / "seed-2").exists()
    assert [outcome.finished for outcome in train(several, reporters=[], seeds=(0, 1, 2))] == [True] * 3
    for seed in (0, 1, 2):
        assert same_runs(f"{several.output}/seed-{seed}", alone(tmp_path, seed))


def test_a_failure_that_several_ranks_share_ends_all(several, monkeypatch):
    """The others know nothing of it: they are started again together."""
    monkeypatch.setattr(Ranks, "any", lambda self, flag: flag)
    monkeypatch.setattr(Ranks, "sum", lambda self, shares, count: next(iter(shares)))
    monkeypatch.setattr(Ranks, "from_first", lambda self, value: value)
    monkeypatch.setattr(Ranks, "gathered", lambda self, values: list(values))
    hook = Failing(0)
    with pytest.raises(TrainingError, match=r"^run 0 is out of luck$"):
        train(several.replace(shards=2), Ranks(0, 2), [hook], seeds=(0, 1))
    assert hook.begun == 0


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "at least one is expected"),
        ((0, 1, 0), "each of them once"),
        ((0, True), "seed=True: expected an integer"),
        ((0, 1.0), "seed=1.0: expected an integer"),
        ("01", "seeds='01': expected integers"),
        (3, "seeds=3: expected integers"),
    ],
)
def test_bad_seeds_are_refused_before_anything_is_done(several, seeds, message):
    with pytest.raises(ConfigurationError, match=message):
        train(several, reporters=[], seeds=seeds)
    assert not Path(several.output).exists()


def test_folders_of_other_runs_are_refused_before_anything_is_done(several):
    train(several.replace(seed=2, tasks=4, output=f"{several.output}/seed-2"), reporters=[])
    with pytest.raises(ConfigurationError, match=r"holds a run with tasks=4 not 3"):
        train(several, reporters=[], seeds=(0, 1, 2))
    assert [path.name for path in Path(several.output).iterdir()] == ["seed-2"]
    train(several.replace(output=f"{several.output}/seed-2/own"), reporters=[])
    with pytest.raises(ConfigurationError, match=r"holds a run of its own"):
        train(several.replace(output=f"{several.output}/seed-2/own"), reporters=[], seeds=(0, 1))
