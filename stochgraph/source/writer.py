"""The state that all nodes of one module are written with: facts known of them, names, functions and helpers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..derive.estimator import GradientEstimator
from ..errors.exceptions import CompileError
from ..explain.explanation import Explanation
from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..tensors.axes import Axis
from .counting import Counting
from .helpers import HELPERS
from .names import Handed, Names, identifier
from .numbers import Numbers
from .preamble import Preamble
from .scope import Scope, Written
from .shapes import Shapes
from .text import ATOM, COMPARISON, Text
from .uses import Uses, inside

Kinds = Mapping[type[nd.Node], Callable[..., Written]]


class CompiledGraph(Protocol):
    """The parts of a compiled graph that are read."""

    graph: Declaration
    estimators: dict[str, GradientEstimator]
    wrt: tuple[str, ...]
    _root: nd.Node

    def explain(self) -> Explanation: ...


class Writer:
    """The state of one module.

    Attributes:
        shapes: what is known of tensors and their dimensions.
        uses: what values are used for.
        numbers: what is known of whole and of real numbers.
        counting: the ledger's words.
        handed: what the caller hands over.
        preamble: the first lines of the function.
        helpers: the names of helpers that are called.
        distributions: the names of distributions that are imported.
    """

    def __init__(self, compiled: CompiledGraph, program: Sequence[nd.Node], kinds: Kinds) -> None:
        nodes = list(dict.fromkeys(inside(program)))
        self.compiled, self.kinds, self.names = compiled, kinds, Names()
        self.shapes, self.uses, self.numbers = Shapes(nodes, compiled._root), Uses(nodes), Numbers(compiled.wrt)
        self.counting, self.handed = Counting(compiled.explain().ledger), Handed(self.names)
        self.preamble = Preamble(self.names, compiled.graph.inputs)
        self.helpers: set[str] = set()
        self.distributions: set[str] = set()

    def write(self, scope: Scope, node: nd.Node) -> Written:
        """A node as text. Kinds that are not among the known ones are refused, whatever they derive from."""
        one = self.kinds.get(type(node))
        if one is not None:
            return one(self, scope, node)
        if not node.spelling:
            raise self.refuse(node.name, f"is of the kind {node.kind!r} ({type(node).__name__}), which is not written")
        return self._spelled(scope, node)

    def _spelled(self, scope: Scope, node: nd.Node) -> Written:
        """A node of an estimator that says itself how it is written."""
        self.helpers |= {name for name in HELPERS if f"{name}(" in node.spelling}
        code = node.spelling.format(*(scope.text(parent).within(ATOM) for parent in node.inputs))
        return Written(Text(code, COMPARISON), identifier(node.name), keep=True)

    def helper(self, name: str) -> str:
        """A helper of the module, by name."""
        self.helpers.add(name)
        return name

    def size(self, axis: Axis) -> str:
        """The number of entries of a plate.

        Raises:
            CompileError: no draw has the plate.
        """
        name = self.preamble.size(axis)
        if name is None:
            raise self.refuse(axis.name, "is a plate that no draw has, so that nothing tells its size")
        return name

    def refuse(self, node: str, why: str) -> CompileError:
        """Why a graph is not written, with the node."""
        return CompileError(
            f"source of {self.compiled.graph.name!r}: {node!r} {why}. compiled.surrogate computes it all the same"
        )
