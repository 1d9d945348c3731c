"""The declared graph as data: its nodes in order, its inputs and its objective; and the words for them."""

from typing import Any

import networkx as nx
from torch import Tensor

from ..ir import nodes as nd
from .paths import plates_in, samples_in
from .programs import schedule


class Declaration:
    """A stochastic computation graph with one objective.

    Attributes:
        name: of the function that declares it.
        order: the nodes that the objective depends on, in an order that respects inputs.
        objective: what is estimated, a node without axes.
        sources: the nodes of the inputs, in order.
        data: the nodes of inputs whose rows are a plate.
    """

    def __init__(
        self, name: str, doc: str | None, sources: list[nd.Input], objective: nd.Node, data: list[nd.Data]
    ) -> None:
        self.name = name
        self.__doc__ = doc
        self.sources = sources
        self.objective = objective
        self.data = data
        self.order = schedule([objective])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        return tuple(node.name for node in self.sources)

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of the sample nodes that the objective depends on, in order of declaration."""
        return tuple(samples_in(self.order))

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
        result = nx.DiGraph(name=self.name, plates={name: axis.n for name, axis in plates_in(self.order).items()})
        shown = [node for node in self.order if node.carries]
        for node in shown:
            result.add_node(node.name, **_attributes(node, self.objective))
        for node in shown:
            for i, parent in enumerate(node.inputs):
                if parent.carries:
                    result.add_edge(parent.name, node.name, role=_role(node, i))
        return result

    def __repr__(self) -> str:
        lines = [f"Graph {self.name}({', '.join(self.inputs)})"]
        for node in self.order:
            if isinstance(node, nd.Sample):
                axes = ", ".join(axis.name for axis in node.axes)
                size = f", n = {node.n}" if node.n is not None else ""
                lines.append(f"  {node.name} ~ {sample_label(node)}" + (f"   axes: ({axes}){size}" if axes else ""))
            elif isinstance(node, nd.Data):
                lines.append(f"  {node.name}: data   axes: ({node.plate.name})")
            elif isinstance(node, nd.Update):
                lines.append(f"  {node.name} = {label(node)}")
        return "\n".join(lines)


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
