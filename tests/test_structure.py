"""The rooms of the code: an arrow goes down or stays inside, and nothing is imported in a circle; classes and walks."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import networkx as nx
import pytest

import stochgraph as sg
from stochgraph.ir import nodes as nd
from tests.problems import additive

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
    ["stochgraph.graphs"],
    ["stochgraph.prove"],
    ["stochgraph.estimators"],
    ["stochgraph.run"],
    ["stochgraph.source"],
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


CORE = {name: path for name, path in MODULES.items() if not name.startswith("stochgraph.algorithms")}
NODES = [node for path in CORE.values() for node in ast.walk(ast.parse(path.read_text()))]


def test_classes_of_the_compiler_are_small():
    """No class outside the algorithms has twenty methods."""
    classes = [node for node in NODES if isinstance(node, ast.ClassDef)]
    methods = {c.name: sum(isinstance(node, ast.FunctionDef) for node in c.body) for c in classes}
    assert len(methods) > 30
    assert {name: count for name, count in methods.items() if count >= 20} == {}


def test_few_parameters_may_be_anything():
    """Of type `Any` are fewer than sixty outside the algorithms, and no pass, node or compiled graph."""
    functions = [node for node in NODES if isinstance(node, ast.FunctionDef)]
    given = [(f, f.args.args + f.args.kwonlyargs + f.args.posonlyargs) for f in functions]
    given = [(f, [*found, *filter(None, (f.args.vararg, f.args.kwarg))]) for f, found in given]
    named = [
        (f.name, a.arg) for f, found in given for a in found if a.annotation and ast.unparse(a.annotation) == "Any"
    ]
    assert 0 < len(named) < 60
    assert [(f, name) for f, name in named if name in ("run", "node", "compiled")] == []


def test_types_are_seldom_asked_for():
    """Fewer than eighteen times in a thousand lines outside the algorithms."""
    calls = [node for node in NODES if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"]
    lines = sum(len(path.read_text().splitlines()) for path in CORE.values())
    assert 0 < len(calls) < 0.018 * lines


# What one reads from an estimator to its effect in the surrogate, in this order; CONTRIBUTING.md lists the same.
WALKS = {
    "SF": ["estimators/score_function", "estimators/two_parts", "derive/estimator", "derive/boxing"],
    "LOO": ["estimators/leave_one_out", "estimators/two_parts", "derive/controls", "derive/sites", "derive/replays"],
}


def module(frame: FrameType) -> str:
    """The room and the file of a frame."""
    return "/".join(Path(frame.f_code.co_filename).with_suffix("").parts[-2:])


class Walk:
    """The files that an estimator leads through while a graph is compiled.

    They are those of its own functions, and those of the functions between the compiler's loop, which builds a node
    after the other, and the making of each node of a class that others do not add.
    """

    def __init__(self, others: frozenset[type] = frozenset()) -> None:
        self.others = others
        self.files: set[str] = set()
        self.classes: set[type] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        if module(frame).startswith("estimators/"):
            self.files.add(module(frame))
        made = frame.f_locals.get("self")
        if frame.f_code.co_name != "__init__" or not isinstance(made, nd.Node) or type(made).__module__ == nd.__name__:
            return
        if type(made) not in self.others:
            below = self.below(frame.f_back, made)
            self.files.update(below)
            self.classes.update([type(made)] if below else [])

    @staticmethod
    def below(frame: FrameType | None, made: nd.Node) -> list[str]:
        """The files from what makes a node up to the compiler's loop, but that which looks up what is made already.

        None, where the node is made elsewhere: the log-probabilities that a trace records, for instance.
        """
        found: list[str] = []
        while frame is not None and frame.f_code.co_name != "_build":
            if frame.f_code.co_name != "share" and frame.f_locals.get("self") is not made:
                found.append(module(frame))
            frame = frame.f_back
        return found if frame is not None else []


def walk(estimator: Any, others: frozenset[type] = frozenset()) -> Walk:
    """The walk of an estimator that is made inside of it."""
    found, graph = Walk(others), additive()
    sys.setprofile(found)
    try:
        graph.compile(estimator())
    finally:
        sys.setprofile(None)
    return found


def test_walks_of_estimators_are_short():
    """From the function that makes one to the nodes that it adds; leave-one-out adds to the score function."""
    boxes = walk(sg.SF)
    assert {made.__name__ for made in boxes.classes} == {"Score", "Weight", "Box"}
    assert boxes.files == set(WALKS["SF"])
    compared = walk(sg.LOO, frozenset(boxes.classes))
    assert {made.__name__ for made in compared.classes} == {"ControlVariate", "Replay", "Controlled"}
    assert compared.files == set(WALKS["LOO"])
    assert (len(boxes.files), len(compared.files)) == (4, 5)


@pytest.mark.parametrize("name", WALKS)
def test_contributors_are_told_of_the_walks(name):
    paths = [path if path.startswith("estimators") else f"stochgraph/{path}" for path in WALKS[name]]
    assert " → ".join(f"`{path}.py`" for path in paths) in " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
