"""Configurations: written and read back, and everything that is wrong with one said by name."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from stochgraph.algorithms.training import Configuration, ConfigurationError
from stochgraph.algorithms.training.configuration import describe


def test_a_configuration_is_read_back_from_what_was_written(tmp_path):
    run = Configuration(hidden=(8, 4), gradient_clip=None, environment_options={"reward": "distance"}, inner_rate=1)
    run.save(tmp_path / "new" / "run.json")
    assert Configuration.load(tmp_path / "new" / "run.json") == run
    assert json.loads(run.to_json())["hidden"] == [8, 4]
    assert type(run.inner_rate) is float


def test_every_field_is_described():
    described = describe()
    assert list(described) == [field.name for field in dataclasses.fields(Configuration)]
    assert all(words for _, _, words in described.values())


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Configuration().tasks = 3  # type: ignore[misc]


def test_defaults_are_not_shared():
    Configuration().environment_options["reward"] = "distance"
    assert Configuration().environment_options == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": 3}, r"'task' is not a field of a configuration; did you mean 'tasks'\?"),
        ({"xyzzy": 3}, r"'xyzzy' is not a field of a configuration; choose from output, environment, "),
        ({"tasks": "3"}, "tasks='3': expected an integer, got str"),
        ({"tasks": True}, "tasks=True: expected an integer, got bool"),
        ({"lowering": "jit"}, "lowering='jit' is not known: choose one of 'never', 'auto', 'flat', 'inductor'"),
        ({"tasks": 2.0}, "tasks=2.0: expected an integer, got float"),
        ({"tasks": None}, "tasks=None: expected an integer, got NoneType"),
        ({"tasks": 0}, "tasks=0: must be at least 1"),
        ({"reference": 1}, "reference=1: expected true or false, got int"),
        ({"hidden": 64}, "hidden=64: expected integers, got int"),
        ({"hidden": [64, "64"]}, "hidden=.*: expected integers, got list"),
        ({"hidden": [64, 0]}, "hidden=.*: must be at least 1"),
        ({"environment_options": []}, r"environment_options=\[\]: expected options by name, got list"),
        ({"gradient_clip": "x"}, "gradient_clip='x': expected a number or none, got str"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: must be at least 0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf: must be a finite number"),
        ({"learning_rate": -float("inf")}, "learning_rate=-inf: must be at least 0"),
        ({"inner_rate": 1e999}, "inner_rate=inf: must be a finite number"),
        ({"gradient_clip": float("inf")}, "gradient_clip=inf: must be a finite number, or none"),
        ({"discount": float("inf")}, "discount=inf: must be"),
        ({"inner_rate": -0.1}, "inner_rate=-0.1: must be at least 0"),
        ({"discount": 1.01}, "discount=1.01: must be at most 1"),
        ({"shards": 4, "tasks": 3}, "shards=4: a meta-batch of 3 tasks"),
        ({"precision": "float16"}, "precision='float16' is not known: choose"),
    ],
)
def test_what_is_wrong_is_named(given, words):
    with pytest.raises(ConfigurationError, match=words):
        Configuration.from_mapping(given)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "run.json: not JSON"), ("[1]", "run.json: a JSON object with fields is expected, got list")],
)
def test_what_is_no_configuration(tmp_path, text, words):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        Configuration.load(tmp_path / "run.json")


def test_no_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"run\.json cannot be read"):
        Configuration.load(tmp_path / "run.json")


def test_what_may_differ_when_a_run_is_continued():
    run = Configuration()
    assert run.conflicts(run.replace(iterations=9, output="x", threads=2, checkpoint_every=1, device="cuda")) == []
    assert run.conflicts(run.replace(iterations=9, seed=1, hidden=(3,))) == ["hidden", "seed"]


def test_a_fingerprint_has_what_is_computed_and_is_not_the_default():
    """So that neither more iterations nor a field of a later version makes another run of it."""
    run = Configuration()
    free = {"iterations": 9, "output": "x", "threads": 2, "chunk": 3, "device": "cuda", "checkpoints_kept": 1}
    free |= {"checkpoint_every": 1, "evaluate_every": 1}
    assert run.fingerprint() == run.replace(**free).fingerprint() == {}
    changed = run.replace(seed=3, gradient_clip=None, hidden=(8,), optimizer_options={"betas": (0.8, 0.9)})
    assert changed.fingerprint() == {
        "seed": 3, "gradient_clip": None, "hidden": [8], "optimizer_options": {"betas": [0.8, 0.9]}
    }  # fmt: skip
    assert set(run.conflicts(changed)) == set(changed.fingerprint())


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"betas": (0.8, 0.9)}, {"betas": [0.8, 0.9]}),
        ({"nested": {"sizes": ((1, 2), [3, (4,)])}}, {"nested": {"sizes": [[1, 2], [3, [4]]]}}),
        ({"radius": 1}, {"radius": 1.0}),
        ({"rate": np.float64(0.5)}, {"rate": 0.5}),
        ({"table": {1: "one", None: 2}}, {"table": {"1": "one", "null": 2}}),
    ],
)
@pytest.mark.parametrize("field", [name for name in describe() if name.endswith("_options")])
def test_options_are_compared_as_they_are_saved(tmp_path, field, options, saved):
    run = Configuration.from_mapping({field: options})
    run.save(tmp_path / "run.json")
    there = Configuration.load(tmp_path / "run.json")
    assert getattr(there, field) == saved
    assert there.conflicts(run) == run.conflicts(there) == []
    assert there.conflicts(Configuration.from_mapping({field: {**saved, "other": 1}})) == [field]


def nested(depth):
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), np.int64(3), np.bool_(True), torch.tensor(1.0), float("nan"), [float("inf")], 1j, b"x", CIRCLE,
     {(1, 2): 3}, nested(100_000)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_options_that_cannot_be_saved_are_refused_at_once(value):
    with pytest.raises(ConfigurationError, match=r"^policy_options: 'size' cannot be saved as JSON \("):
        Configuration(policy_options={"size": value})


def test_options_have_names():
    with pytest.raises(ConfigurationError, match=r"^policy_options: the name 3 is no string"):
        Configuration(policy_options={3: 4})  # type: ignore[dict-item]
