"""Environments of one's own, named by where they are: they run, and what is wrong with the name is said in words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stochgraph.algorithms.training import Configuration, ConfigurationError, Problem
from tests.training_cases import SMALL, python_environment

MODULE = """
from stochgraph.algorithms.environments import Navigation

class Walk(Navigation):
    def __init__(self, horizon: int = 4) -> None:
        super().__init__(horizon=horizon)

def other():
    return object()

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package in it, which can be imported from there."""
    package = tmp_path / "walks_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "plain.py").write_text(MODULE)
    (package / "broken.py").write_text("1 / 0")
    (package / "needy.py").write_text("import there_is_no_such_thing")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("walks_of_mine")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_an_environment_of_ones_own(folder):
    options = {"environment": "walks_of_mine.plain:Walk", "environment_options": {"horizon": 5}, "horizon": None}
    problem = Problem(SMALL.replace(**options))
    assert type(problem.rollouts.environment).__name__ == "Walk"
    assert problem.rollouts.horizon == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("walks_of_mine.plain:Wlak", "'Wlak' is not in the module walks_of_mine.plain; did you mean 'Walk'"),
        ("walks_of_mine.plain:number", "number is int; give a class, or a function that makes the environment"),
        ("walks_of_mine.plain:other", "it makes an object of object; expected one of .*Environment"),
        ("walks_of_mine.plane:Walk", "there is no module 'walks_of_mine.plane'; install it, or run in the folder"),
        ("nothing_of_mine.plain:Walk", "there is no module 'nothing_of_mine'"),
        ("walks_of_mine.broken:Walk", "importing walks_of_mine.broken raised ZeroDivisionError: division by zero"),
        ("walks_of_mine.needy:Walk", "needs 'there_is_no_such_thing', which is not installed"),
        ("walks_of_mine.plain:", "expected package.module:Name"),
        (":Walk", "expected package.module:Name"),
        ("walks_of_mine/plain.py:Walk", "expected package.module:Name"),
    ],
)
def test_what_is_wrong_with_a_name(folder, name, words):
    with pytest.raises(ConfigurationError, match=f"^environment='{name}': .*{words}"):
        Problem(Configuration(environment=name))


def test_options_that_it_does_not_take(folder):
    with pytest.raises(ConfigurationError, match=r"environment_options: .*; it takes horizon"):
        Problem(Configuration(environment="walks_of_mine.plain:Walk", environment_options={"size": 3}))


def test_the_command_line_finds_modules_of_the_folder_at_hand(folder):
    """As the script that is installed does it: Python itself would put the folder of the script there."""
    code = "import sys; sys.path.remove(''); from stochgraph.algorithms.commands.command_line import main; main()"
    fields = "--environment walks_of_mine.plain:Walk --steps 0 --tasks 2 --outer 2 --hidden 3 --evaluation-tasks 2"
    run = f"{fields} --algorithm reinforce --iterations 1 --outer-baseline none --output run"
    command = [sys.executable, "-c", code, "train", *run.split()]
    root = str(Path(__file__).parents[1])
    subprocess.run(command, cwd=folder, env=python_environment() | {"PYTHONPATH": root}, check=True, timeout=120)
    saved = json.loads((folder / "run" / "run.json").read_text())
    assert saved["environment"] == "walks_of_mine.plain:Walk"
