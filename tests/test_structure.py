"""The rooms of the code: an arrow goes down or stays inside, and nothing is imported in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
# From the top floor down. What stands on one floor does not know of each other.
FLOORS = [
    ["stochgraph.algorithms.commands"],
    ["stochgraph.algorithms.training"],
    ["stochgraph.algorithms"],
    ["stochgraph.algorithms.objectives"],
    ["stochgraph.algorithms.inner_steps", "stochgraph.algorithms.exact", "stochgraph.algorithms.rollouts"],
    ["stochgraph.algorithms.policies", "stochgraph.algorithms.environments", "stochgraph.algorithms.optimizers"],
    ["stochgraph"],
    ["stochgraph.graphs", "stochgraph.prove"],
    ["stochgraph.estimators"],
    ["stochgraph.run"],
    ["stochgraph.explain", "stochgraph.lower"],
    ["stochgraph.derive"],
    ["stochgraph.surrogate"],
    ["stochgraph.language"],
    ["stochgraph.ir"],
    ["stochgraph.distributions", "stochgraph.solvers"],
    ["stochgraph.tensors"],
    ["stochgraph.errors"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = {"stochgraph": "stochgraph", "algorithms": "stochgraph.algorithms", "estimators": "stochgraph.estimators"}
EXTRAS = {"stochgraph.explain.picture"}  # needs matplotlib


def modules() -> dict[str, Path]:
    """All of them by their import names."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if not inner[:-1] or inner[0] not in FOLDERS:
                found[".".join((package, *(part for part in inner if part != "__init__")))] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """The modules that one imports, wherever in the file, for types too; and whether it does so inside a function."""
    path = MODULES[name]
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                target = full if full in MODULES else base
                if target in MODULES:
                    yield target, id(node) in inside


def room(name: str) -> str:
    """The longest room that a module is in."""
    parts = name.split(".")
    return next(r for n in range(len(parts), 0, -1) if (r := ".".join(parts[:n])) in FLOOR)


@pytest.mark.parametrize("name", MODULES)
def test_arrows_go_down(name):
    own = room(name)
    targets = {room(target) for target, _ in imports(name)} - {own}
    if name.startswith("stochgraph.algorithms"):
        targets.discard("stochgraph")  # as users do
    assert {target for target in targets if FLOOR[target] <= FLOOR[own]} == set()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_imported_late(name):
    assert {target for target, late in imports(name) if late} <= EXTRAS


def test_there_is_no_circle():
    graph = nx.DiGraph((name, target) for name in MODULES for target, _ in imports(name) if name != target)
    graph.remove_node("stochgraph")
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []
