"""The queue of experiments: what is missing is done once, whatever stops it; and the page says what the files say."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fcntl")
pytest.importorskip("click")

from benchmarks import _machine
from benchmarks.reproduce import installed, lakes, run, summary, tang
from benchmarks.reproduce.claims import verdict
from benchmarks.reproduce.experiments import EXPERIMENTS, Experiment
from benchmarks.reproduce.jobs import Queue, alone, jobs_of, table, write
from stochgraph.algorithms.training import Configuration, Problem
from tests.reproduce_cases import SCRIPT, counting, fake
from tests.training_cases import SMALL, python_environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "reproduce"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with results, logs, and the sources of two commits; with locks of its own."""
    monkeypatch.setenv(_machine.VARIABLE, str(tmp_path / "locks"))
    for commit in ("first", "second"):
        script = tmp_path / commit / "benchmarks" / "reproduce" / "fake.py"
        script.parent.mkdir(parents=True)
        script.write_text(SCRIPT)
    (tmp_path / "results").mkdir()
    return tmp_path


def queue(place: Path, experiments: list[Experiment], commit: str = "first", at_once: int = 2) -> Queue:
    jobs = jobs_of(experiments, place / "results")
    said: list[str] = []
    found = Queue(
        jobs, commit, lambda c: (Path(sys.executable), place / c), at_once, place / "logs", said.append, poll=0.02
    )
    found.said = said  # type: ignore[attr-defined]
    return found


def start(place: Path) -> subprocess.Popen[bytes]:
    """A queue in a process of its own."""
    command = [sys.executable, "-m", "tests.reproduce_cases", str(place)]
    return subprocess.Popen(command, cwd=ROOT, env=python_environment())


def counts(place: Path) -> list[int]:
    """How far every run has counted."""
    return [len(path.read_text().splitlines()) for path in sorted((place / "results").rglob("count"))]


def wait(until, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def stands_still(place: Path) -> bool:
    before = counts(place)
    time.sleep(0.3)
    return counts(place) == before


def gone(place: Path) -> bool:
    """Whether no process of a run is left, not even one that stands still."""
    for path in (place / "results").rglob("process"):
        state = subprocess.run(["ps", "-o", "stat=", "-p", path.read_text()], capture_output=True, check=False).stdout
        if state.strip() and not state.startswith(b"Z"):
            return False
    return True


def counted_once(place: Path) -> bool:
    """Whether both runs are whole, and no step was done twice."""
    expected = [str(k) for k in range(60)]
    return [path.read_text().split() for path in sorted((place / "results").rglob("count"))] == [expected] * 2


# --- the queue


def test_runs_come_by_group_and_by_seed(tmp_path):
    late = fake("late", group=2, variants={"a": {}}, seeds=(0,))
    early = fake("early", variants={"a": {}, "b": {}}, seeds=(0, 1))
    names = [job.name for job in jobs_of([late, early], tmp_path)]
    assert names == [*(f"early/{v}/seed-{k}" for k in (0, 1) for v in "ab"), "late/a/seed-0"]


def test_what_is_missing_is_done_once_with_the_commit_that_it_was_begun_with(place):
    begun = jobs_of([counting(seeds=3)], place / "results")
    begun[1].begin("first")
    write(begun[2].folder / "commit.json", {"commit": "earlier"})
    write(begun[2].folder / "done.json", {"kept_every": 1})
    assert [job.state() for job in begun] == ["missing", "begun", "done"]
    assert queue(place, [counting(seeds=3)], "second").run()
    assert [job.commit() for job in begun] == ["second", "first", "earlier"]
    assert counted_once(place)  # and the third, which was done, was left alone
    before = {path: path.stat().st_mtime_ns for path in (place / "results").rglob("*")}
    assert queue(place, [counting(seeds=3)], "first").run()
    assert before == {path: path.stat().st_mtime_ns for path in (place / "results").rglob("*")}
    assert [line.split()[-1] for line in table(begun)] == ["done"] * 3


def test_no_more_run_at_once_than_is_asked(place):
    assert queue(place, [counting()], at_once=1).run()
    times = [path.stat() for path in sorted((place / "results").rglob("count"))]
    begun = (place / "results" / "counting" / "all" / "seed-1" / "commit.json").stat().st_mtime
    assert times[0].st_mtime < begun < times[1].st_mtime


def test_a_killed_queue_takes_its_runs_along_and_the_next_one_goes_on(place):
    first = start(place)
    wait(lambda: len(counts(place)) == 2 and min(counts(place)) >= 5)
    first.kill()
    first.wait()
    wait(lambda: gone(place))
    assert max(counts(place)) < 60
    assert not list((place / "results").rglob("done.json"))
    assert start(place).wait(60) == 0
    assert counted_once(place)


def test_the_next_queue_waits_for_runs_that_still_save(place):
    first = start(place)
    wait(lambda: len(counts(place)) == 2)
    first.kill()
    first.wait()
    with run.alone_in(place / "results"):
        assert gone(place)
    assert start(place).wait(60) == 0
    assert counted_once(place)


def test_a_queue_that_is_asked_to_stop_ends_its_runs(place):
    first = start(place)
    wait(lambda: len(counts(place)) == 2)
    first.terminate()
    assert first.wait(30) == 1
    assert gone(place)
    assert not list((place / "results").rglob("done.json"))
    assert start(place).wait(60) == 0
    assert counted_once(place)


def test_runs_stand_still_while_a_benchmark_has_the_machine(place):
    first = start(place)
    wait(lambda: len(counts(place)) == 2)
    with _machine.quiet_machine():
        assert stands_still(place)
        assert max(counts(place)) < 60
    assert first.wait(60) == 0
    assert counted_once(place)


def test_a_queue_that_is_killed_while_it_stands_still_leaves_no_run_behind(place):
    first = start(place)
    wait(lambda: len(counts(place)) == 2)
    with _machine.quiet_machine():
        first.kill()
        first.wait()
        wait(lambda: gone(place))
    assert start(place).wait(60) == 0
    assert counted_once(place)


def test_nothing_is_begun_while_a_benchmark_has_the_machine(place):
    with _machine.quiet_machine():
        first = start(place)
        time.sleep(1)
        assert counts(place) == []
        assert first.poll() is None
    assert first.wait(60) == 0


def test_a_run_that_fails_leaves_the_others_running(place):
    found = queue(place, [counting("unlucky", "fail", seeds=1), counting(seeds=1)])
    assert not found.run()
    assert [job.name for job in found.failed] == ["unlucky/all/seed-0"]
    assert "unlucky/all/seed-0: failed: out of luck" in found.said  # type: ignore[attr-defined]
    assert (place / "results" / "counting" / "all" / "seed-0" / "done.json").is_file()


def test_a_commit_that_cannot_be_installed_is_a_failure(place):
    found = queue(place, [counting(seeds=1)])
    found.environment = lambda commit: installed.python_of("0" * 40, place / "cache")  # type: ignore[assignment,return-value]
    assert not found.run()
    assert "git" in found.said[-1]  # type: ignore[attr-defined]
    assert not (place / "cache" / ("0" * 40) / "ready").exists()


def test_a_configuration_is_trained_and_its_figures_are_kept(place, monkeypatch):
    monkeypatch.setattr("benchmarks.reproduce.jobs.LINES_KEPT", 3)
    unset = ("output", "seed", "threads", "checkpoints_kept")
    settings = {name: value for name, value in vars(SMALL).items() if name not in unset}
    small = fake("small", settings=settings, variants={"lsf": {"algorithm": "lsf"}}, seeds=(3,))
    (job,) = jobs_of([small], place / "results")
    found = queue(place, [small])
    assert found.run(), found.said  # type: ignore[attr-defined]
    assert {path.name for path in job.folder.iterdir()} == {"commit.json", "done.json", "metrics.jsonl", "run.json"}
    kept = Configuration.load(job.folder / "run.json")
    assert (kept.output, kept.seed, kept.threads, kept.checkpoints_kept) == ("small/lsf/seed-3", 3, 1, 1)
    lines = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "iteration"] == [0, 2, 4]
    assert [line["iteration"] for line in lines if line["kind"] == "evaluation"] == [0, 3, 6]
    assert summary.done(job)["iterations"] == 6
    assert summary.last_returns(job) == lines[-1]["returns"]
    job.tidy()
    assert len((job.folder / "metrics.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.slow
def test_a_commit_is_installed_beside_the_packages_that_are_there(tmp_path):
    if subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
        pytest.skip("no repository")
    commit = installed.full_name("HEAD")
    python = installed.python_of(commit, tmp_path)
    assert installed.python_of(commit, tmp_path) == python
    words = "import stochgraph.algorithms.training as t, torch; print(t.__file__); print(torch.__file__)"
    done = subprocess.run([python, "-P", "-c", words], capture_output=True, text=True, check=True, env=alone())
    ours, theirs = done.stdout.splitlines()
    assert Path(ours).is_relative_to(tmp_path / commit / "venv")
    assert not Path(theirs).is_relative_to(tmp_path)
    with pytest.raises(installed.BuildError, match="rev-parse"):
        installed.full_name("no-such-commit")


# --- the experiments


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_experiments_are_configurations(experiment):
    assert (PAGE / experiment.script[0]).is_file() if experiment.script else experiment.settings
    for variant in experiment.variants:
        found = Configuration.from_mapping(experiment.configuration(variant, 0, "somewhere"))
        assert (found.threads, found.checkpoints_kept) == (1, 1)
    assert {name for pair in experiment.above for name in pair} <= set(experiment.variants)


def problems() -> list[object]:
    """A variant of each kind that differs in more than its task."""
    names = [(each, variant) for each in EXPERIMENTS if not each.script for variant in each.variants]
    chosen = [(each, v) for each, v in names if each.group < 3 or each.name.endswith(("half-cheetah", "velocity"))]
    chosen += [(each, v) for each, v in names if each.name in ("tang-figure-2-ant", "tang-figure-2-walker2d")]
    return [pytest.param(each, variant, id=f"{each.name}-{variant}") for each, variant in chosen]


@pytest.mark.parametrize(("experiment", "variant"), problems())
def test_experiments_are_problems(experiment, variant):
    if experiment.group == 3:
        pytest.importorskip("mujoco")
    Problem(Configuration.from_mapping(experiment.configuration(variant, 0, "somewhere")))


@pytest.mark.parametrize("estimator", ["SF", "LSF", "PW"])
def test_the_script_has_the_errors_that_are_known(estimator):
    """The mean of 20000 squared errors, to five of its standard errors: the six tests fail by chance with 3e-6."""
    import torch

    torch.manual_seed(0)
    for start, size in ((0.0, 5), (2.0, 2)):
        found = tang.gradients(estimator, torch.full((20_000,), start, dtype=torch.float64), size)
        errors = (found + 2 * (start - 1)).square()
        expected = tang.expected_error(estimator, start, size)
        assert abs(float(errors.mean()) - expected) < 5 * float(errors.std()) / len(errors) ** 0.5


def test_the_orderings_of_figure_1_on_a_few_draws():
    """The closed forms of SF and LSF are 5 and 30 times apart, and 2000 squared errors are enough to tell."""
    import torch

    torch.manual_seed(0)
    theta = torch.full((2000,), 2.0, dtype=torch.float64)
    error = {
        (name, size): float((tang.gradients(name, theta, size) + 2).square().mean())
        for name in ("SF", "LSF", "LOO")
        for size in (5, 100)
    }
    assert error["SF", 100] > 2 * error["SF", 5]
    assert error["LSF", 100] < error["LSF", 5] / 2
    assert error["LOO", 100] < error["LOO", 5] / 2
    assert error["LSF", 100] < error["SF", 100]


def test_a_table_trained_on_lakes_is_within_the_bound_and_one_gradient_step_is_not():
    learned, plain = (lakes.of_way(0.3, name, 0, iterations=20) for name in ("D2", lakes.MAML))
    for maps in ("training", "held out"):
        assert 0 <= learned[f"gap, {maps}"]["1"] <= learned[f"bounds, {maps}"]["bound drawn"]
        assert learned[f"bounds, {maps}"]["bound drawn"] < plain[f"gap, {maps}"]["1"]
        assert learned[f"bounds, {maps}"]["theorem's penalty"] > 0.5
    assert all(a > b for a, b in zip(learned["learned"][1:], learned["untrained"][1:], strict=True))
    assert all(a > b for a, b in zip(learned["learned"][1:], plain["learned"][1:], strict=True))
    assert learned["best"] == pytest.approx(0.8**5 / (1 - 0.8))


def test_standing_still_is_measured_on_the_goals_that_all_are_measured_on():
    import torch

    (experiment,) = run.chosen(run.parsed(["--only", "fallah-table-1"]))
    fields = {**experiment.configuration("standing-still", 0, "somewhere"), "evaluation_tasks": 40}
    problem = Problem(Configuration.from_mapping(fields))
    still = problem.evaluate(problem.initial())
    noisy = Problem(Configuration.from_mapping({**fields, "policy_options": {"output_scale": 0.0}}))
    lost = (still - noisy.evaluate(noisy.initial())).mean(0)
    assert torch.allclose(still[:, 0], still[:, 1])
    assert float(still.mean()) == pytest.approx(-100 / 6, abs=3)  # 40 goals of the square: .1 / 40**.5 a step
    # Noise adds 2 (.01)^2 t to the squared distance after t steps; its mean over 800 walks is near.
    assert float(lost[1]) == pytest.approx(2 * 0.01**2 * sum(range(1, 101)), rel=0.2)


# --- the page


def results_of(folder: Path, experiment: Experiment, returns: dict[str, list[float]]) -> None:
    for job in jobs_of([experiment], folder):
        if job.seed < len(returns[job.variant]):
            job.begin("1234567890abcdef")
            line = {"kind": "evaluation", "iteration": 7, "returns": [0.0, returns[job.variant][job.seed]]}
            (job.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            write(job.folder / "done.json", {"iterations": 7, "seconds": 120.0, "kept_every": 1})


def test_the_page_says_what_the_files_say(tmp_path):
    small = fake("small", variants={"a": {}, "b": {}, "c": {}}, seeds=range(3), above=[("a", "b"), ("b", "c")])
    small = replace(small, variants={**small.variants, "still": {}}, lines=["still"])
    results_of(tmp_path, small, {"a": [1.0, 3.0, 2.0], "b": [0.0, 3.5], "c": [], "still": [1.0, 1.0, 1.0]})
    text = summary.page([small], tmp_path, tmp_path)
    assert "a 2.000 ± 1.000 (3 seeds); b 1.750 ± 2.475 (2 seeds)" in text
    assert "a is above b (+0.250, 1 of 2 seeds); best against still (1.000): a, +1.000" in text
    assert "8 of 12 runs are done" in text
    assert "| b | 1.750 ± 2.475 | 2 of 3: [0](results/small/b/seed-0/metrics.jsonl), [1](" in text
    assert "| 7 | 2.0 | `1234567890ab` |" in text


def test_the_page_compares_returns_after_every_step_and_averages_evaluations(tmp_path):
    small = fake("small", variants={"a": {}, "b": {}}, seeds=range(2), above=[("a", "b")], averaged=2)
    for job in jobs_of([small], tmp_path):
        job.begin("1234567890abcdef")
        last = {"a": [[0.0, 1.0, 2.0], [0.0, 3.0, 2.0]], "b": [[0.0, 1.0, 3.0], [0.0, 1.0, 5.0]]}[job.variant]
        returns = enumerate([[9.0, 9.0, 9.0], *last])  # the first is not among the last two
        lines = [{"kind": "evaluation", "iteration": k, "returns": each} for k, each in returns]
        (job.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write(job.folder / "done.json", {"iterations": 7, "seconds": 120.0, "kept_every": 1})
    text = summary.page([small], tmp_path, tmp_path)
    assert "a is not above b (-2.000, 0 of 2 seeds, above after 1 of the steps)" in text
    assert "| a | 0.000, 2.000, 2.000 ± 0.000 | 2 of 2" in text


def test_a_figure_has_the_mean_of_the_runs_that_are_whole_and_what_they_are_compared_with(tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    small = fake("small", variants={"a": {}, "b": {}, "still": {}}, seeds=range(3), lines=["still"])
    picture = figure.Figure()
    assert not summary.draw(small, tmp_path, picture)
    results_of(tmp_path, small, {"a": [1.0, 3.0, 2.0], "b": [0.0, 3.5], "still": [1.5]})
    (begun,) = [job for job in jobs_of([small], tmp_path) if job.name == "small/b/seed-2"]
    begun.begin("1234567890abcdef")
    assert summary.draw(small, tmp_path, picture)
    lines = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in picture.axes[0].lines}
    assert {label: y[0] for label, (_, y) in lines.items()} == {"a, 3 seeds": 2, "b, 2 seeds": 1.75, "still": 1.5}
    assert lines["a, 3 seeds"][0][0] == 7


def test_the_committed_page_is_that_of_the_committed_files():
    assert (PAGE / "README.md").read_text() == summary.page(EXPERIMENTS, PAGE / "results", PAGE / "figures")


@pytest.mark.parametrize("figure", ["1a", "1b"])
def test_verdicts_follow_from_the_points(figure):
    """What the script wrote down at the end is what its points give now."""
    (experiment,) = run.chosen(run.parsed(["--only", f"tang-figure-{figure}"]))
    result = summary.of_script(experiment, PAGE / "results")
    assert result is not None
    assert result["claims"] == tang.claims_of(result)
    assert result["verdict"] == verdict(result["claims"])


def test_a_claim_fails_where_one_set_of_maps_contradicts_it():
    curve = {"learned": [0.0, 1.0, 1.0, 1.0, 1.0], "untrained": [0.0] * 5}
    gaps = {f"gap, {maps}": {"0": 1.0, "1": 0.3} for maps in ("training", "held out")}
    bounds = {f"bounds, {maps}": {"bound drawn": 0.5} for maps in ("training", "held out")}
    plain = {"learned": [0.0] * 5, "gap, held out": {"1": 0.6}}
    points = {lakes.key(name, k): {**curve, **gaps, **bounds} for name in ("D1", "D2", "D3") for k in range(lakes.SETS)}
    points |= {lakes.key(lakes.MAML, k): plain for k in range(lakes.SETS)}
    assert all(lakes.claims_of({"points": points}).values())
    points[lakes.key("D2", 1)] = {**curve, **bounds, **gaps, "gap, held out": {"0": 1.0, "1": 0.7}}
    points[lakes.key("D3", 2)] = {**gaps, **bounds, "learned": [0.0, 1.0, 1.0, 0.005, 1.0], "untrained": [0.0] * 5}
    points[lakes.key(lakes.MAML, 0)] = {**plain, "gap, held out": {"1": 0.4}}
    assert [words for words, true in lakes.claims_of({"points": points}).items() if not true] == [
        "the gap after one policy-gradient step is above D1's bound drawn on held-out maps",
        "D2's gap after one step is below the bound drawn on held-out maps",
        "the gap after one policy-gradient step is above D2's bound drawn on held-out maps",
        "D3 is above its untrained table after 1 to 4 steps by 0.01",
        "D3 is above MAML after 1 to 4 steps by 0.01",
        "the gap after one policy-gradient step is above D3's bound drawn on held-out maps",
    ]


def test_rows_of_the_page_can_be_followed():
    """Every row has a command that does this experiment, and every file that is named is there."""
    text = (PAGE / "README.md").read_text()
    commands = re.findall(r"`python benchmarks/reproduce/run\.py (--only [\w-]+)`", text)
    assert [run.chosen(run.parsed(words.split())) for words in commands] == [[each] for each in EXPERIMENTS]
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE / target).is_file(), target
    seeds = re.findall(r"\[(\d+)\]\(results/[\w-]+/[\w-]+/seed-(\d+)/", text)
    assert all(shown == of_folder for shown, of_folder in seeds)


def test_the_command_lists_runs(capsys, tmp_path):
    assert run.main(["--list", "--only", "tang-figure-1", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines] == [[f"tang-figure-1{x}/all/seed-0", "missing"] for x in "ab"]
    with pytest.raises(SystemExit, match="no experiment is meant"):
        run.main(["--list", "--only", "nothing"])


def test_two_queues_do_not_share_results(place, monkeypatch):
    import fcntl

    monkeypatch.setattr(run, "PATIENCE", 0)
    with (place / "results" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another queue is at work"):
            run.main(["--only", "tang-figure-1a", "--results", str(place / "results")])
