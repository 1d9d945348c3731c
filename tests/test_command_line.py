"""The command `stochgraph`: every field is an option, and what goes wrong is said in a line."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("tqdm")

from click.testing import CliRunner

import stochgraph as sg
from stochgraph.algorithms.commands import command_line, demo
from stochgraph.algorithms.training import Configuration, Problem, RankFailure, RunFolder, TrainingError, compare
from stochgraph.algorithms.training.configuration import describe
from stochgraph.algorithms.training.reports import ProgressBar
from tests.training_cases import SMALL, python_environment, same_runs

OPTIONS = "--horizon 3 --hidden 3 --tasks 2 --inner 2 --outer 2 --evaluation-tasks 3".split()
PLAIN = "--inner-baseline none --no-standardise".split()


def call(*arguments):
    return CliRunner().invoke(command_line.main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    """A finished run of the command line."""
    result = call("train", *OPTIONS, "--output", tmp_path / "run", "--iterations", 4, "--checkpoint-every", 2)
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_the_entry_point_is_the_command():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["stochgraph"].split(":")
    assert module == command_line.__name__
    assert getattr(command_line, name) is command_line.main


def test_help_lists_the_commands_and_the_fields_that_matter_to_them():
    commands = call("--help").output
    assert all(f"\n  {name} " in commands for name in ("train", "evaluate", "compare", "explain", "profile", "demo"))
    assert all(re.search(rf"^ *stochgraph {name} .{{20,}}$", commands, re.MULTILINE) for name in ("evaluate", "demo"))
    assert "\\b" not in commands + call("train", "--help").output
    of_training = command_line.OF_TRAINING
    unlisted = {"train": set(), "explain": of_training | {"output", "threads"}, "profile": of_training}
    for command, silent in unlisted.items():
        listed = re.findall(r"^ +--([a-z-]+)", call(command, "--help").output, re.MULTILINE)
        fields = {name for name in describe() if name.replace("_", "-") in listed}
        assert fields == describe().keys() - silent
    assert "LSF, LoadedDiCE" in " ".join(call("train", "--help").output.split())


def test_options_of_training_are_taken_where_they_are_not_listed():
    assert call("explain", *PLAIN, "--iterations", 3, "--optimizer", "SGD").exit_code == 0
    assert "--iterations" not in call("explain", "--help").output
    assert "iterations=0" in call("explain", *PLAIN, "--iterations", 0).output


@pytest.mark.parametrize("command", ["profile", "evaluate"])
def test_threads_are_those_of_the_configuration(command, folder, monkeypatch):
    seen, before = [], torch.get_num_threads()
    owner, name = (sg, "profile") if command == "profile" else (Problem, "evaluate")
    original = getattr(owner, name)

    def watched(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)
    path = folder / "run.json"
    Configuration.load(path).replace(threads=before + 1).save(path)
    options = {"profile": ["--config", path, "--repeats", 2, "--estimators", "SF"], "evaluate": [folder]}
    result = call(command, *options[command])
    assert (result.exit_code, seen, torch.get_num_threads()) == (0, [before + 1], before), result.output


def test_training_writes_the_configuration_that_the_options_make(folder):
    expected = Configuration(output=str(folder), horizon=3, hidden=(3,), tasks=2, inner=2, outer=2, evaluation_tasks=3)
    assert Configuration.load(folder / "run.json") == expected.replace(iterations=4, checkpoint_every=2)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ("--hidden 8,4", "hidden", (8, 4)),
        ("--gradient-clip none", "gradient_clip", None),
        ("--gradient-clip 2", "gradient_clip", 2.0),
        ("--reference", "reference", True),
        ("--no-reference", "reference", False),
        ("--environment-options reward=distance", "environment_options", {"reward": "distance"}),
        ("--optimizer-options betas=[0.8,0.9] --optimizer-options amsgrad=true", "optimizer_options",
         {"betas": [0.8, 0.9], "amsgrad": True}),
        ("--output 7", "output", "7"),
        ("--discount .8", "discount", 0.8),
        ("--optimizer-options weight_decay=-.5", "optimizer_options", {"weight_decay": -0.5}),
        ("--gradient-clip 5.", "gradient_clip", 5.0),
        ("--policy-options log_std=-1. --policy-options name=1.2.3", "policy_options",
         {"log_std": -1.0, "name": "1.2.3"}),
    ],
)  # fmt: skip
def test_options_become_fields(monkeypatch, options, field, value):
    seen: list[Configuration] = []

    def problem(configuration):
        seen.append(configuration)
        sys.exit(0)

    monkeypatch.setattr(command_line, "Problem", problem)
    assert call("explain", *options.split()).exit_code == 0
    assert getattr(seen[0], field) == value


def test_a_configuration_is_accepted_back_and_options_replace_what_it_says(folder, tmp_path):
    result = call("train", "--config", folder / "run.json", "--output", tmp_path / "other", "--iterations", 2)
    assert result.exit_code == 0, result.output
    other = Configuration.load(tmp_path / "other" / "run.json")
    assert other == Configuration.load(folder / "run.json").replace(output=str(tmp_path / "other"), iterations=2)
    assert call("train", "--config", folder / "run.json", "--output", tmp_path / "other").exit_code == 0
    assert same_runs(folder, tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--estimator", "LFS"], "did you mean 'LSF'"),
        (["train", "--tasks", "many"], "tasks='many': expected an integer, got str"),
        (["train", "--tasks", "0"], "tasks=0: must be at least 1"),
        (["train", "--task", "3"], "No such option"),
        (["train", "--environment-options", "distance"], "'distance': expected name=value"),
        (["train", "--config", "nowhere.json"], "'nowhere.json' does not exist"),
        (["profile", "--estimators", "SF,XX"], "estimator='XX'"),
        (["profile", "--algorithm", "promp"], "'promp' climbs an objective of its own, which has no estimators"),
        (["evaluate", "nowhere"], "'nowhere' does not exist"),
        (["train", "--seeds", "0,x"], "seeds='[0,x]': expected integers"),
        (["train", "--seeds", "0,0"], "each of them once"),
        (["compare"], "Missing argument 'RUN...'"),
        (["compare", "."], "holds no run"),
        (["compare", "nowhere"], "nowhere holds no run"),
        (["compare", ".", "--steps", "-1"], "-1 is not in the range"),
    ],
)
def test_bad_options_are_refused_before_anything_is_done(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_a_run_is_started_over_on_request(folder):
    (folder / "checkpoints").rename(folder / "moved")
    command = ["train", "--config", folder / "run.json"]
    refused = call(*command)
    assert refused.exit_code == 1
    assert "--restart" in refused.output
    assert call(*command, "--restart").exit_code == 0
    assert RunFolder(folder / "earlier-1").metrics("evaluation")[0] == RunFolder(folder).metrics("evaluation")[0]


def test_evaluation(folder):
    printed = call("evaluate", folder, "--steps", 2, "--tasks", 5).output
    assert "after 4 iterations, 5 held-out tasks, return ± standard error:" in printed
    assert re.findall(r"^(\d) adaptation steps +-?\d+\.\d+ ± \d+\.\d+$", printed, re.MULTILINE) == ["0", "1", "2"]
    found = json.loads(call("evaluate", folder, "--json").output)
    record = RunFolder(folder).metrics("evaluation")[-1]
    assert found["returns"] == pytest.approx(record["returns"])
    assert found["errors"] == pytest.approx(record["errors"])
    assert found["iteration"] == record["iteration"] == 4
    alone = call("evaluate", folder, "--tasks", 1).output  # one task says nothing about its error
    assert len(re.findall(r"± \?$", alone, re.MULTILINE)) == 2


def test_evaluation_of_what_cannot_be_read(folder, tmp_path):
    assert "run.json cannot be read" in call("evaluate", tmp_path).output
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    result = call("evaluate", folder)
    assert result.exit_code == 1
    assert "No checkpoint is left" in result.output


@pytest.fixture
def seeds(tmp_path):
    """The folders of two algorithms, with two seeds each."""
    for name in ("lsf", "maml"):
        options = [*OPTIONS, "--algorithm", name, "--iterations", 2, "--output", tmp_path / name]
        result = call("train", *options, "--seeds", "0,1")
        assert result.exit_code == 0, result.output
        assert "seed 1: iteration 2, held-out tasks: return" in result.output
    return tmp_path


def test_several_seeds_are_runs_in_folders_of_their_own(seeds):
    assert sorted(path.name for path in (seeds / "lsf").iterdir()) == ["seed-0", "seed-1"]
    assert [Configuration.load(seeds / "lsf" / f"seed-{k}" / "run.json").seed for k in (0, 1)] == [0, 1]


def test_a_seed_that_fails_is_named_at_the_end(tmp_path, monkeypatch):
    def fail(self, record, original=ProgressBar.trained):
        if self.title == "seed 0":
            raise TrainingError("it is out of luck")
        original(self, record)

    monkeypatch.setattr(ProgressBar, "trained", fail)
    result = call("train", *OPTIONS, "--iterations", 2, "--output", tmp_path / "run", "--seeds", "0,1")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert f"seed 0: {tmp_path / 'run' / 'seed-0'} failed: it is out of luck" in result.output
    assert result.stderr.startswith(f"Error: seed 0 of {tmp_path / 'run'} failed, the others are done")
    assert RunFolder(tmp_path / "run" / "seed-1").metrics("evaluation")[-1]["iteration"] == 2


def test_an_interrupted_seed_ends_with_the_status_of_an_interrupt(tmp_path, monkeypatch):
    def interrupt(self, record, original=ProgressBar.trained):
        original(self, record)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "trained", interrupt)
    assert call("train", *OPTIONS, "--output", tmp_path / "run", "--seeds", "0,1").exit_code == 130
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["seed-0"]


def test_runs_are_compared(seeds):
    printed = call("compare", seeds / "lsf", seeds / "maml").output
    assert printed == compare([seeds / "lsf", seeds / "maml"]).to_markdown() + "\n"
    assert re.findall(r"^\| (\w+) \| 2 \| 2 \| -?\d", printed, re.MULTILINE) == ["lsf", "maml"]
    rows = json.loads(call("compare", seeds / "lsf", "--steps", 0, "--json").output)
    last = [RunFolder(seeds / "lsf" / f"seed-{k}").metrics("evaluation")[-1]["returns"][0] for k in (0, 1)]
    assert rows[0]["final"]["mean"][0] == pytest.approx(sum(last) / 2)
    result = call("compare", seeds / "lsf", "--steps", 2)
    assert (result.exit_code, "no evaluation after 2 adaptation steps" in result.output) == (2, True)


def test_a_comparison_is_drawn_where_it_is_asked_to_be(seeds, monkeypatch):
    monkeypatch.chdir(seeds)
    assert call("compare", "lsf", "maml").exit_code == 0
    assert sorted(path.name for path in seeds.iterdir()) == ["lsf", "maml"]
    for name in ("both.png", "pictures/both.svg"):
        assert call("compare", "lsf", "maml", "--figure", name).exit_code == 0
        assert (seeds / name).stat().st_size > 1000
    result = call("compare", "lsf", "--figure", "both.xyz")
    assert (result.exit_code, "both.xyz: the ending names the format" in result.output) == (2, True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call("compare", "lsf", "--figure", "third.png")
    assert (result.exit_code, "pip install 'stochgraph[plot]'" in result.output) == (2, True)


def test_the_ledger_is_explained():
    printed = call("explain", *PLAIN, "--algorithm", "maml", "--steps", 2).output
    assert "tau ~ Rollouts(theta'', task)" in printed
    assert re.search(r"^D2 .* dropped +not counted", printed, re.MULTILINE)


def test_the_ledger_of_draws_is_said_to_be_that():
    assert "promp climbs an objective of its own" in call("explain", "--algorithm", "promp").output


def test_a_profile_tunes(folder):
    printed = call("profile", *OPTIONS, "--tune", "--budget", 0.1).output
    assert printed.startswith('graph.compile({"D1": sg.')
    assert "| yes |" in printed
    assert "| no |" not in printed


def test_profiles_compare_estimators(folder):
    printed = call("profile", *OPTIONS, "--estimators", "LSF,SF", "--repeats", 3).output
    assert re.search(r"^\| LSF \|.*\n\| SF \|", printed, re.MULTILINE)
    assert "3 estimates each; bias and MSE against the mean of SF" in printed
    at_the_end = call("profile", "--config", folder / "run.json", "--trained", "--estimators", "SF", "--repeats", 2)
    assert at_the_end.exit_code == 0, at_the_end.output


def test_profiles_have_an_unbiased_reference_of_low_variance():
    """Without a choice of estimators LOO is among them, what the means of the others are compared with."""
    assert "SF,LOO,LSF,MAML" in call("profile", "--help").output
    printed = call("profile", *OPTIONS, "--repeats", 2).output
    assert re.findall(r"^\| (\w+) +\|", printed, re.MULTILINE)[1:] == ["SF", "LOO", "LSF", "MAML"]
    assert "against the mean of" in printed


def test_an_interrupt_ends_with_the_status_of_an_interrupt(tmp_path, monkeypatch):
    def interrupt(self, record, original=ProgressBar.trained):
        original(self, record)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "trained", interrupt)
    result = call("train", *OPTIONS, "--output", tmp_path / "run")
    assert result.exit_code == 130
    assert "interrupted, and saved after 1 iterations; the same command continues it" in result.output


def test_a_time_for_missing_ranks(tmp_path, monkeypatch):
    """An option of the command, and no field of the configuration: machines decide it."""
    seen = []

    @contextlib.contextmanager
    def joined(timeout):
        seen.append(timeout)
        raise RankFailure("rank 1 of 2 did not come")
        yield

    monkeypatch.setattr(command_line, "joined_ranks", joined)
    for options in ([], ["--rank-timeout", 60]):
        result = call("train", *OPTIONS, "--output", tmp_path / "run", *options)
        assert (result.exit_code, result.output) == (1, "Error: rank 1 of 2 did not come\n")
    assert seen == [1800, 60]
    assert "x>0" in call("train", "--rank-timeout", 0).output


def test_a_failure_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    result = call("train", *OPTIONS, "--output", tmp_path / "file" / "run")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert result.output.startswith("Error: iteration 0: ")


def test_the_demo_gets_its_own_options(monkeypatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(demo, "main", seen.append)
    assert call("demo", "--iterations", 3, "--help").exit_code == 0
    assert seen == [["--iterations", "3", "--help"]]


def test_the_module_is_the_command_too(tmp_path):
    command = [sys.executable, "-m", "stochgraph.algorithms.commands.command_line", "train", "--iterations", "2"]
    SMALL.replace(output=str(tmp_path / "run")).save(tmp_path / "small.json")
    done = subprocess.run(
        [*command, "--config", str(tmp_path / "small.json")],
        env=python_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "held-out tasks: return" in done.stdout
