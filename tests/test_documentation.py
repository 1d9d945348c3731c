"""Every public name has a docstring, and every example in the documentation runs."""

import ast
import doctest
import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import stochgraph
import stochgraph.estimators
import stochgraph.solvers

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FOLDERS = ("stochgraph", "estimators", "algorithms")
PUBLIC = (stochgraph, stochgraph.estimators, stochgraph.solvers)
NEEDED = {f"stochgraph.algorithms.environments.{name}": "mujoco" for name in ("gymnasium", "locomotion", "tabular")}
MEMBERS = (property, cached_property, classmethod, staticmethod)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def plain_torch() -> Iterator[None]:
    """The print options that examples are written for, and a seed that no other test has moved."""
    torch.set_printoptions(profile="default", sci_mode=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Docstrings


def exports(module: ModuleType) -> dict[str, Any]:
    """The public names that a module exports, submodules aside."""
    return {
        name: value for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)
    }


def undocumented(name: str, value: Any) -> list[str]:
    """`name`, if it has no docstring of its own, and its public members that have none."""
    missing = [] if documented(value) else [name]
    if inspect.isclass(value):
        members = {n: m for n, m in vars(value).items() if not n.startswith("_")}
        missing += [
            f"{name}.{member}"
            for member, found in members.items()
            if (inspect.isfunction(found) or isinstance(found, MEMBERS)) and not inspect.getdoc(getattr(value, member))
        ]
    return missing


def documented(value: Any) -> bool:
    if not inspect.isclass(value):
        return bool(inspect.getdoc(value))
    doc = vars(value).get("__doc__") or ""  # not a base class's
    return bool(doc) and not doc.startswith(f"{value.__name__}(")  # not the signature that dataclass puts there


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_export_has_a_docstring(module: ModuleType) -> None:
    assert exports(module)
    assert [missing for name, value in exports(module).items() for missing in undocumented(name, value)] == []


def test_a_missing_docstring_is_found() -> None:
    class Bare:
        """Documented."""

        def method(self) -> None: ...

        @property
        def value(self) -> int:
            return 1

        @property
        def told(self) -> int:
            """Documented."""
            return 1

    class Heir(Bare):
        pass

    assert undocumented("Bare", Bare) == ["Bare.method", "Bare.value"]
    assert undocumented("Heir", Heir) == ["Heir"]
    assert undocumented("function", lambda: None) == ["function"]


def questions(code: str) -> list[str]:
    """The docstrings of a module that begin with a question word, where the noun belongs: "What a graph draws"."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    return [doc for doc in docs if re.match(r"(What|How|Where|Whether)\b", doc)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_the_noun(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): questions(file.read_text(encoding="utf-8")) for file in files}
    assert {file: docs for file, docs in found.items() if docs} == {}


def test_a_docstring_that_begins_with_a_question_word_is_found() -> None:
    code = '"""Whatever."""\nclass A:\n    """What it is."""\n    async def f(self):\n        """\n        How."""'
    assert questions(code) == ["What it is.", "How."]


# Examples in docstrings


def modules() -> list[str]:
    found = pkgutil.walk_packages(stochgraph.__path__, "stochgraph.")
    return ["stochgraph", *(module.name for module in found if not module.name.endswith("__main__"))]


def test_modules_of_linked_folders_are_among_them() -> None:
    assert {"stochgraph.estimators", "stochgraph.estimators.words"} <= set(modules())


@pytest.mark.parametrize("name", modules())
def test_examples_of_module(name: str) -> None:
    module = importlib.import_module(name)
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    runner, report = doctest.DocTestRunner(optionflags=FLAGS), io.StringIO()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__):
        runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()


# The list of what is there


def test_what_the_list_of_algorithms_names_can_be_imported() -> None:
    """Every import line runs, and every algorithm that a run can name is in one."""
    pytest.importorskip("tqdm")
    from stochgraph import algorithms
    from stochgraph.algorithms.training.settings import ALGORITHMS

    assert algorithms.__doc__ is not None
    namespace: dict[str, Any] = {}
    for line in re.findall(r"^    (from .+)$", algorithms.__doc__, flags=re.MULTILINE):
        exec(line, namespace)
    assert {make.__name__ for make in ALGORITHMS.values()} <= set(namespace)


def test_every_environment_is_listed() -> None:
    from stochgraph.algorithms import environments

    assert environments.__doc__ is not None
    listed = set(re.findall(r"`(\w+)`", environments.__doc__))
    assert set(exports(environments)) <= listed


# Examples in the README


def blocks(text: str) -> list[tuple[int, str]]:
    """The Python blocks of a Markdown text, each with the number of lines before it."""
    fences = re.finditer(r"^```python[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, fence.start(1)), fence[1]) for fence in fences]


def test_readme_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs, prints the ledger and the exact biases that it shows, and its picture is that of its graph."""
    found = blocks(README.read_text())
    assert found, "the README has no Python block"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, Any] = {"__name__": "readme"}
    for line, code in found:
        exec(compile("\n" * line + code, str(README), "exec"), namespace)
    printed = capsys.readouterr().out
    shown = re.search(r"^```text\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1] in printed
    right, popular, compared = (float(x) for x in re.findall(r"relative bias (\S+),", printed))
    assert max(right, compared) < 1e-14 < 0.08 < popular < 0.09
    plain, _, less = (float(x) for x in re.findall(r"total variance (\S+)", printed))
    assert 0.6 < less / plain < 0.72
    picture = namespace["worst_adapted_pull"].to_mermaid(fold=True, direction="LR")
    assert f"```mermaid\n{picture}```" in README.read_text()


def test_blocks_are_found_with_their_lines() -> None:
    text = "a\n```python\nx = 1\n```\n```bash\nls\n```\n```python\ny = 2\nz = 3\n```\n"
    assert blocks(text) == [(2, "x = 1\n"), (8, "y = 2\nz = 3\n")]
