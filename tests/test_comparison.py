"""Runs beside each other: figures of their curves, intervals over seeds, and which runs belong together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stochgraph.algorithms.training import Configuration, ConfigurationError, compare
from stochgraph.algorithms.training.comparison import FIGURES, runs_in


def write_run(folder: Path, returns: list[float], seed: int = 0, every: int = 10, **fields: Any) -> Path:
    """A run's folder with evaluations of made-up returns, before and after one step."""
    folder.mkdir(parents=True)
    Configuration(output=str(folder), seed=seed, **fields).save(folder / "run.json")
    records = [
        {"kind": "evaluation", "iteration": every * i, "returns": [-9.0, value], "errors": [0.1, 0.1]}
        for i, value in enumerate(returns)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


CURVES = {0: [0.0, 4.0, 2.0], 1: [1.0, 1.0, 3.0], 2: [0.0, 2.0, 10.0]}


@pytest.fixture
def seeds(tmp_path):
    for seed, returns in CURVES.items():
        write_run(tmp_path / "lsf" / f"seed-{seed}", returns, seed)
    return tmp_path / "lsf"


def test_figures_of_curves(seeds):
    (group,) = compare([seeds]).groups
    assert group.name == "lsf"
    assert group.figure("final").tolist() == [2.0, 3.0, 10.0]
    assert group.figure("best").tolist() == [4.0, 3.0, 10.0]
    assert group.figure("area").tolist() == [2.5, 1.5, 3.5]  # trapezia over twenty iterations
    assert group.mean("final").value == 5.0


def test_before_adaptation(seeds):
    (group,) = compare([seeds], steps=0).groups
    assert set(group.figure("final").tolist()) == {-9.0}
    assert group.mean("final").low is None  # no spread, no interval


def test_the_interquartile_mean_leaves_the_outer_quarters_out(tmp_path):
    for seed, value in enumerate([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0]):
        write_run(tmp_path / "runs" / f"seed-{seed}", [value], seed)
    (group,) = compare([tmp_path / "runs"]).groups
    found = group.interquartile_mean("final")
    assert found.value == np.mean([2.0, 3.0, 4.0, 5.0])
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert group.mean("final").value > 90


def test_intervals_are_those_of_a_bootstrap_over_seeds(seeds):
    """Of the 27 resamples of three seeds one in 27 is the lowest alone and one the highest: both within 95 %."""
    values = compare([seeds]).groups[0].figure("final")
    every = np.sort([np.mean(values[[i, j, k]]) for i in range(3) for j in range(3) for k in range(3)])
    found = compare([seeds]).groups[0].mean("final")
    low, high = (np.percentile(every, percent, method="inverted_cdf") for percent in (2.5, 97.5))
    assert (found.low, found.high) == (low, high) == (2.0, 10.0)


def test_runs_that_differ_in_more_than_their_seed_are_apart(tmp_path):
    write_run(tmp_path / "both" / "a", [1.0], algorithm="lsf", threads=2)
    write_run(tmp_path / "both" / "b", [2.0], seed=1, algorithm="lsf")
    write_run(tmp_path / "both" / "c", [5.0], algorithm="maml")
    found = compare([tmp_path / "both"])
    assert [(group.name, len(group.curves)) for group in found.groups] == [
        ("both (algorithm=lsf)", 2),
        ("both (algorithm=maml)", 1),
    ]
    assert str(found).count("\n") == 3


def test_seeds_are_in_their_order(tmp_path):
    for seed in (10, 2, 0):
        write_run(tmp_path / "runs" / f"seed-{seed}", [1.0], seed)
    assert [run.path.name for run in runs_in(tmp_path / "runs")] == ["seed-0", "seed-2", "seed-10"]


def test_curves_of_different_lengths_are_compared_where_all_have_figures(tmp_path):
    write_run(tmp_path / "runs" / "seed-0", [1.0, 2.0, 3.0], 0)
    write_run(tmp_path / "runs" / "seed-1", [5.0, 6.0], 1)
    found = compare([tmp_path / "runs"])
    iterations, returns = found.groups[0].common()
    assert iterations.tolist() == [0, 10]
    assert returns.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert found.rows()[0]["iterations"] == 10


def test_one_run_and_its_table(tmp_path):
    run = write_run(tmp_path / "first", [1.0, 2.0])
    found = compare([run])
    assert [group.name for group in found.groups] == ["first"]
    assert "| first | 1 | 10 | 2.00 | 2.00 | 2.00 | 2.00 | 1.50 | 1.50 |" in found.to_markdown()
    row = json.loads(found.to_json())[0]
    assert [row[name]["mean"] for name in FIGURES] == [[2.0, None, None], [2.0, None, None], [1.5, None, None]]


def test_the_picture_has_a_line_and_a_band_a_group(seeds, tmp_path):
    from matplotlib.figure import Figure

    single = write_run(tmp_path / "single", [0.0, 1.0], algorithm="maml")
    axes = Figure().add_subplot()
    compare([seeds, single]).plot(axes)
    assert [line.get_label() for line in axes.lines] == ["lsf, 3 seeds", "single, 1 seed"]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == pytest.approx([1 / 3, 7 / 3, 5.0])
    assert len(axes.collections) == 1


def test_refusals(tmp_path):
    with pytest.raises(ConfigurationError, match="holds no run"):
        compare([tmp_path])
    run = write_run(tmp_path / "run", [])
    with pytest.raises(ConfigurationError, match="has no evaluation yet"):
        compare([run])
    other = write_run(tmp_path / "other", [1.0])
    with pytest.raises(ConfigurationError, match="no evaluation after 3 adaptation steps"):
        compare([other], steps=3)
    broken = write_run(tmp_path / "broken", [1.0, float("nan")])
    with pytest.raises(ConfigurationError, match="broken has a return at iteration 10 that is not finite"):
        compare([broken])
