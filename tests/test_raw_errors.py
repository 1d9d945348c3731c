"""Whatever is typed, or stands in run.json: it runs, or it is refused in one sentence. Nothing ends in a traceback."""

import json
import os
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("tqdm")

from click.testing import CliRunner

from stochgraph.algorithms.commands.command_line import main
from stochgraph.algorithms.policies import CategoricalMLP, GaussianMLP
from stochgraph.algorithms.training import ConfigurationError, TrainingError, train
from stochgraph.algorithms.training.configuration import describe
from tests.training_cases import SMALL

DEEP, DIGITS, LONG = "[" * 100_000, "9" * 5000, "x" * 5000
SMALL_OPTIONS = "--horizon 3 --hidden 3 --tasks 2 --inner 2 --outer 2 --evaluation-tasks 2 --iterations 1".split()


def refused(arguments: list[str]) -> str:
    """The sentence with which the command refuses these arguments."""
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)[:500]
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    sentence = result.output.rpartition("Error: ")[2]
    assert 10 < len(sentence) < 2500, f"{sentence[:200]} ..."
    assert sentence.count("\n") == 1
    return sentence


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hidden", "x"], "hidden='[x]': expected integers, got str"),
        (["--hidden", DEEP], "expected integers, got str"),
        (["--hidden", f"3,{DIGITS}"], "expected integers, got str"),
        (["--hidden", "3,1" + "0" * 30], "must be at most 2147483647"),
        (["--tasks", DIGITS], "expected an integer, got str"),
        (["--tasks", "1" + "0" * 30], "tasks=1000000000000000000000000000000: must be at most 2147483647"),
        (["--horizon", "-" + DIGITS], "expected an integer or none, got str"),
        (["--inner-rate", "1" + "0" * 400], "must be a finite number"),
        (["--gradient-clip", "-1" + "0" * 400], "must be at least 0"),
        (["--threads", "1000000"], "threads=1000000: must be at most 1024"),  # so many end the process
        (["--rank-timeout", "nan"], "timeout=nan: must be a number more than 0"),
        (["--seed", str(2**64)], "must be at most 9223372036854775807"),
        (["--environment", LONG], "is not a known environment; choose from navigation"),
        (["--precision", LONG], "is not known: choose 'float32' or 'float64'"),
        (["--device", DEEP], "is not known: choose 'cpu'"),
        (["--outer-baseline", LONG], "choose 'loo', 'mean' or 'linear', or none"),
        (["--environment-options", LONG], "expected name=value"),
        (["--environment-options", f"{LONG}=1"], "environment_options: "),
        (["--environment-options", f"reward={DEEP}"], "is not known: choose"),
        (["--policy-options", "hidden=x"], "hidden='x': must be the sizes of layers, integers of at least 1"),
        (["--policy-options", "hidden=[3,0]"], "hidden=[3, 0]: must be the sizes of layers"),
        (["--policy-options", f"hidden={DEEP}"], "must be the sizes of layers"),
        (["--policy-options", f"log_std={'9' * 400}"], "is too large"),
        (["--policy-options", "hidden=" + "[" * 400 + "]" * 400], "it is nested too deeply"),
        (["--output", "a\0b"], r"output='a\x00b' is no path (it has a null byte)"),
        (["--output", "\ud800"], "is no path ("),
        (["--output", LONG], "File name too long"),
        (["--output", "x/" * 5000], "File name too long"),
        (["--output", DEEP], "File name too long"),
        (["--config", "a\0b"], "is no path (it has a null byte)"),
        (["--config", "."], "is a directory"),
        (["--environment", "frozen-lake", "--environment-options", "holes=0.9999"], "has a way to the goal; choose"),
        (["--environment", "frozen-lake", "--environment-options", f"size=1{'0' * 30}"], "is too large"),
        (["--environment", "random-mdp", "--environment-options", "states=1000000000000"], "of memory at least"),
        (["--environment", "half-cheetah", "--environment-options", 'velocities=["x",2]'], "velocities"),
        (["--optimizer-options", 'betas=["x",0.9]'], "'betas': ['x', 0.9]}: '<=' not supported"),
        (["--seeds", DIGITS], "]': expected integers, as in 0,1,2"),
        (["--seeds", "x"], "seeds='[x]': expected integers"),
    ],
    ids=lambda value: " ".join(each[:24] for each in value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_typed(here, options, words):
    if "frozen-lake" in options or "half-cheetah" in options:
        pytest.importorskip("gymnasium")
        pytest.importorskip("mujoco")
    output = [] if "--output" in options else ["--output", "run"]
    assert words in refused(["train", *SMALL_OPTIONS, *output, *options])
    assert not list(here.iterdir())


@pytest.mark.parametrize("command", [["evaluate"], ["evaluate", "--json"], ["compare"]], ids=" ".join)
@pytest.mark.parametrize("place", ["a\0b", "\ud800", LONG, "nowhere"], ids=["null", "surrogate", "long", "nowhere"])
def test_folders_that_are_none(here, command, place):
    refused([*command, place])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "not JSON that can be read"),
        (f'{{"tasks": {DIGITS}}}', "not JSON that can be read: Exceeds the limit"),
        (f'{{"tasks": 1{"0" * 30}}}', "must be at most 2147483647"),
        (f'{{"policy_options": {{"a": {DEEP[:300]}{"]" * 300}}}}}', "it is nested too deeply"),
        ('{"output": "a\\u0000b"}', "is no path (it has a null byte)"),
        ('{"output": "\\ud800"}', "is no path ("),
        (f'{{"output": "{LONG}"}}', "File name too long"),
        ('{"hidden": "x"}', "hidden='x': expected integers, got str"),
        ('{"hidden": [1e400]}', "hidden=[inf]: expected integers, got list"),
        ('{"inner_rate": NaN}', "inner_rate=nan: must be at least 0"),
        ('{"policy_options": {"log_std": Infinity}}', "cannot be saved as JSON"),
        (f'{{"{LONG}": 1}}', "is not a field of a configuration"),
        (f'{{"environment_options": {{"{LONG}": 1}}}}', "environment_options"),
        ("", "not JSON"),
        ("[]", "a JSON object with fields is expected, got list"),
        ("\ufeff{}", "not JSON"),
    ],
    ids=lambda text: text[:24],
)
def test_what_stands_in_a_file(here, text, words):
    Path("run.json").write_text(text, encoding="utf-8")
    sentence = refused(["train", *SMALL_OPTIONS[2:4], "--config", "run.json"])
    assert words in sentence
    assert "run.json" in sentence or "output" in text or LONG in text
    Path("run.json").write_bytes(text.encode("utf-16") + b"\xff")
    assert "run.json cannot be read" in refused(["evaluate", "."])


def test_values_that_are_none_of_json():
    """From Python, there are more of them."""
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for changes, words in (
        ({"tasks": 10**5000}, "tasks=a value of int that cannot be written out: must be at most"),
        ({"inner_rate": 10**5000}, "must be a finite number"),
        ({"inner_rate": -(10**5000)}, "must be at least 0"),
        ({"hidden": nested}, "hidden=.*: expected integers, got list"),
        ({"policy_options": {"log_std": nested}}, "'log_std' cannot be saved as JSON"),
        ({"policy_options": {"log_std": 10**5000}}, "'log_std' cannot be saved as JSON"),
        ({"policy_options": {"log_std": torch.zeros(3)}}, "'log_std' cannot be saved as JSON"),
        ({"policy_options": {LONG: object()}}, "cannot be saved as JSON"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            SMALL.replace(**changes)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("hidden", ["x", [0], [1.5], [True], 3, None, {"a": 1}], ids=repr)
@pytest.mark.parametrize("policy", [GaussianMLP, CategoricalMLP])
def test_layers_that_are_none(policy, hidden):
    with pytest.raises(ValueError, match=r"^hidden=.*: must be the sizes of layers, integers of at least 1$"):
        policy(2, 2, hidden)


@pytest.mark.parametrize("call", ["stat", "lstat", "mkdir", "scandir", "open"])
def test_a_parent_folder_that_may_not_be_read(tmp_path, monkeypatch, call):
    """Whoever runs the tests: root may read everything."""
    parent = tmp_path / "parent"
    parent.mkdir()
    original = getattr(os, call)

    def forbidden(path, *arguments, **options):
        if isinstance(path, str | os.PathLike) and parent in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    run = SMALL.replace(output=str(parent / "run"), iterations=1)
    monkeypatch.setattr(os, call, forbidden)
    with pytest.raises(TrainingError, match=r"Permission denied: '.*parent"):
        train(run, reporters=[])
    if call in ("lstat", "mkdir"):
        with pytest.raises(TrainingError, match=r"Permission denied: '.*parent"):
            train(run, reporters=[], seeds=[0, 1])
    assert "Permission denied" in refused(["train", *SMALL_OPTIONS, "--output", run.output])


NASTY = [
    0, -1, 2, 0.5, -0.5, 1e308, -1e308, float("nan"), float("inf"), 10**30, -(10**30), 2**31, 2**63, 10**12,
    "x", "", "a\0b", "\ud800", LONG, None, True, [], [1], ["x"], [0.1, 0.2], [10**30], {}, {"a": 1}, [[1]], "linear",
]  # fmt: skip
NAMES = ["reward", "goal_size", "states", "hidden", "log_std", "learn_std", "decay", "betas", "weight_decay", "radius"]
FIELDS = [name for name in describe() if name not in ("environment", "threads", "epochs", "steps")]


def test_whatever_else_there_may_be(here):
    """A seeded sample of values in fields and options, on the command line and in a file."""
    chosen = random.Random(0)
    plain = {"horizon": 3, "hidden": [3], "tasks": 2, "inner": 2, "outer": 2, "evaluation_tasks": 2, "iterations": 1}
    ran = 0
    for i in range(300):
        name = chosen.choice(FIELDS)
        value = chosen.choice(NASTY)
        if "options" in name:
            value = {chosen.choice(NAMES): value}
        given = {"output": f"run-{i}", "environment": chosen.choice(["navigation", "random-mdp"]), **plain, name: value}
        Path("given.json").write_text(json.dumps(given))
        arguments = ["train", "--config", "given.json"]
        if chosen.random() < 0.5 and isinstance(value, str | float | int):
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        result = CliRunner().invoke(main, arguments)
        ran += result.exit_code == 0
        if result.exit_code:
            refused(arguments)
    assert 10 < ran < 200
