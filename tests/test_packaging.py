"""The package list, the links and the version say the same thing everywhere."""

import ast
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LINKED = ("estimators", "algorithms")  # top-level folders that are subpackages of stochgraph
SOURCES = ("stochgraph", *LINKED, "tests", "benchmarks", "notebooks")


def folders() -> dict[str, Path]:
    """Every folder with Python files in it, by the name that it is imported under."""
    found = {}
    for top in ("stochgraph", *LINKED):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT)
            if top == "stochgraph" and len(folder.parts) > 1 and folder.parts[1] in LINKED:
                continue  # the same files, through a link
            found[".".join(folder.parts if top == "stochgraph" else ("stochgraph", *folder.parts))] = folder
    return found


def test_every_folder_is_packaged_and_nothing_else_is() -> None:
    assert set(SETUPTOOLS["packages"]) == set(folders())


def test_no_package_is_listed_twice() -> None:
    assert len(SETUPTOOLS["packages"]) == len(set(SETUPTOOLS["packages"]))


def test_package_dir_maps_every_package_that_is_not_where_its_name_says() -> None:
    elsewhere = {name: path.as_posix() for name, path in folders().items() if name.replace(".", "/") != path.as_posix()}
    assert SETUPTOOLS["package-dir"] == elsewhere


def test_every_package_has_an_init() -> None:
    assert [name for name, path in folders().items() if not (ROOT / path / "__init__.py").is_file()] == []


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_package_imports(package: str) -> None:
    importlib.import_module(package)


@pytest.mark.parametrize("name", LINKED)
def test_the_links_are_relative(name: str) -> None:
    link = ROOT / "stochgraph" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


@pytest.mark.parametrize("name", LINKED)
def test_the_links_are_committed_as_links(name: str) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git")
    command = ["git", "-c", "safe.directory=*", "ls-files", "--stage", f"stochgraph/{name}"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed.startswith("120000 "), f"git has {listed!r}, not a link"


def test_the_installed_version_is_the_declared_one() -> None:
    assert importlib.metadata.version("stochgraph") == PROJECT["project"]["version"]


def test_the_changelog_begins_with_the_declared_version() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions
    assert versions[0] == PROJECT["project"]["version"]


def test_torch_is_pinned_exactly() -> None:
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)


def test_everything_that_is_installed_directly_is_pinned() -> None:
    def names(lines: list[str]) -> set[str]:
        found = (re.match(r"[\w.-]+", line) for line in lines)
        return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}

    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    wanted = names([*project["dependencies"], *(line for extra in extras for line in extra)])
    assert wanted <= names((ROOT / "constraints.txt").read_text().splitlines())


def bare_imports(source: str) -> list[str]:
    """The imports of `source` that name a linked folder as if it were a package of its own."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.append(node.module or "")
    return [module for module in modules if module.split(".")[0] in LINKED]


def test_nothing_imports_a_linked_folder_by_its_bare_name() -> None:
    files = {path.resolve() for folder in SOURCES for path in (ROOT / folder).rglob("*.py")}
    assert files
    found = {str(path.relative_to(ROOT)): names for path in files if (names := bare_imports(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    ("source", "bare"),
    [
        ("import estimators", ["estimators"]),
        ("def late():\n    from algorithms.demo import main", ["algorithms.demo"]),
        ("import stochgraph.estimators", []),
        ("from . import estimators", []),
        ("from .estimators import SF", []),
    ],
)
def test_bare_imports_are_told_from_qualified_ones(source: str, bare: list[str]) -> None:
    assert bare_imports(source) == bare


def test_importing_takes_less_than_two_seconds_over_torch_and_no_extra() -> None:
    """In time of the processor, which other processes do not take; none of what the extras need is imported."""
    program = (
        "import sys, time, torch, torch.distributions\n"
        "start, before = time.process_time(), set(sys.modules)\n"
        "import stochgraph\n"
        "spent, new = time.process_time() - start, {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(spent, *sorted(new & set(sys.argv[1:])))\n"
    )
    needed = [
        re.split(r"[\[<>=]", each)[0]
        for extra in PROJECT["project"]["optional-dependencies"].values()
        for each in extra
    ]
    done = subprocess.run([sys.executable, "-c", program, *needed], capture_output=True, text=True, check=True)
    spent, *extras = done.stdout.split()
    assert float(spent) < 2
    assert extras == []
