"""The declared graph: nodes, axes, and what can be known of them before anything runs."""

from collections.abc import Callable, Iterable
from typing import Any

import networkx as nx
from torch import Tensor

from . import _node as nd
from ._declare import declare
from ._errors import CompileError
from ._program import schedule
from ._reach import moves_with, plates_in, samples_in


def graph(fn: Callable[..., Any]) -> "Graph":
    """Declare a stochastic computation graph: a decorator. `fn` runs once, on symbols; nothing is sampled.

    Args:
        fn: takes the inputs (each a pytree of tensors), returns the objective, a node without axes.

    Raises:
        DeclarationError: what `fn` says is not a graph; the message names the node, its axes and the remedy.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
        ...     return -(sg.mean(x) - 1.0) ** 2
        >>> print(objective)
        Graph objective(theta)
          x ~ Normal(theta, 1.0)   axes: (x), n = 100
    """
    inputs, objective, data = declare(fn)
    return Graph(fn.__name__, fn.__doc__, inputs, objective, data)


class Graph:
    """A stochastic computation graph with one objective. Made by `stochgraph.graph`."""

    def __init__(
        self, name: str, doc: str | None, inputs: list[nd.Input], objective: nd.Node, data: list[nd.Data]
    ) -> None:
        self.name = name
        self.__doc__ = doc
        self._inputs = inputs
        self._objective = objective
        self._data = data
        self._order = schedule([objective])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        return tuple(node.name for node in self._inputs)

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of the sample nodes that the objective depends on, in order of declaration."""
        return tuple(samples_in(self._order))

    @property
    def networkx(self) -> nx.DiGraph:
        """The graph as a `networkx.DiGraph`.

        Nodes are keyed by name. Attributes: `kind` ("input", "data", "sample", "apply", "select", "reduction",
        "reduce", "log_prob", "stop", "update", "unknown", "exponential", "logarithm"), `axes` (tuple of axis names,
        outermost first), `label` (what the node computes), `objective` (bool), and for samples `distribution`, `plate`
        (name or None), `time` (name or None) and `n`.
        Edges have `role`: "parent" (into a sample), "params", "objective" or "rate" (into a gradient step), "init" or
        "objective" (into an argmax), else "value". The graph's own attribute `plates` has the declared size of every
        plate by name, `None` for data.
        """
        result = nx.DiGraph(name=self.name, plates={name: axis.n for name, axis in plates_in(self._order).items()})
        shown = [node for node in self._order if node.carries]
        for node in shown:
            result.add_node(node.name, **_attributes(node, self._objective))
        for node in shown:
            for i, parent in enumerate(node.inputs):
                if parent.carries:
                    result.add_edge(parent.name, node.name, role=_role(node, i))
        return result

    def compile(self, estimators: Any = None, wrt: str | tuple[str, ...] | None = None) -> Any:
        """Derive the surrogate. See `stochgraph.Compiled`.

        Args:
            estimators: one estimator for all sample nodes, or a dict from names of sample nodes to estimators. Nodes
                whose distribution does not depend on an input need none.
            wrt: the inputs to differentiate, by name; default: the first.

        Raises:
            CompileError: no estimators, an estimator for a node that does not exist, a node without one, or an
                estimator that is wrong for its node.
        """
        from ._compile import Compiled

        if estimators is None:
            raise CompileError(
                f"{self.name}: give an estimator, for instance sg.LOO(), or one for each sample node by name: "
                f"{self.name}.compile(sg.LOO())"
            )
        return Compiled(self, estimators, wrt)

    def __call__(self, *inputs: Any) -> Any:
        """A graph is no function of values: compile it first."""
        raise TypeError(f"{self.name} is a declared graph: compile it first, {self.name}.compile(sg.SF()).sample(...)")

    def draw(self) -> Any:
        """The graph as a `matplotlib` figure: plates as boxes, sample nodes round, updates marked."""
        from ._draw import draw

        return draw(self)

    def _repr_png_(self) -> bytes:
        return self.draw()._repr_png_()

    def __repr__(self) -> str:
        lines = [f"Graph {self.name}({', '.join(self.inputs)})"]
        for node in self._order:
            if isinstance(node, nd.Sample):
                axes = ", ".join(axis.name for axis in node.axes)
                size = f", n = {node.n}" if node.n is not None else ""
                lines.append(f"  {node.name} ~ {sample_label(node)}" + (f"   axes: ({axes}){size}" if axes else ""))
            elif isinstance(node, nd.Data):
                lines.append(f"  {node.name}: data   axes: ({node.plate.name})")
            elif isinstance(node, nd.Update):
                lines.append(f"  {node.name} = {label(node)}")
        return "\n".join(lines)


def scored_samples(
    order: list[nd.Node], sources: Iterable[nd.Node], pathwise: Iterable[str] = ()
) -> dict[str, nd.Sample]:
    """The sample nodes whose distribution depends on one of the sources through values, pathwise draws included."""
    moving = moves_with(order, sources, pathwise)
    return {name: node for name, node in samples_in(order).items() if any(parent in moving for parent in node.inputs)}


def sample_label(node: nd.Sample) -> str:
    """`Normal(theta, 1.0)`."""
    return f"{node.law.name}({', '.join(map(_argument, node.arguments.leaves))})"


def _argument(leaf: Any) -> str:
    """A parent by its name, a constant as it is, a data set by its shape."""
    if isinstance(leaf, nd.Node):
        return leaf.name
    large = isinstance(leaf, Tensor) and (leaf.dim() > 1 or leaf.numel() > 5)
    return f"tensor of shape {tuple(leaf.shape)}" if large else repr(leaf)


def label(node: nd.Node) -> str:
    """What a node computes, in a few characters."""
    if isinstance(node, nd.Sample):
        return f"{node.name} ~ {node.law.name}"
    if isinstance(node, nd.Update):
        return f"{node.word}({node.variable.name}, {node.objective.name})"
    return node.name


def _attributes(node: nd.Node, objective: nd.Node) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "kind": node.kind,
        "axes": tuple(axis.name for axis in node.axes),
        "label": label(node),
        "objective": node is objective,
    }
    if isinstance(node, nd.Sample):
        shared["distribution"] = node.law.name
        shared["plate"] = node.plate.name if node.plate else None
        shared["time"] = node.time.name if node.time else None
        shared["n"] = node.n
    return shared


def _role(node: nd.Node, i: int) -> str:
    if isinstance(node, nd.Sample):
        return "parent"
    if isinstance(node, nd.Update):
        return node.roles[i] if i < 2 else "rate"
    return "value"
