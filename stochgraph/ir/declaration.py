"""The declared graph as data: its nodes in order, its inputs and its objective; and the words for them."""

from functools import singledispatch
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
            result.add_node(node.name, **_attributes(node), objective=node is self.objective)
        for node in shown:
            for i, parent in enumerate(node.inputs):
                if parent.carries:
                    result.add_edge(parent.name, node.name, role=node.role(i))
        return result

    def __repr__(self) -> str:
        lines = [_line(node) for node in self.order]
        return "\n".join([f"Graph {self.name}({', '.join(self.inputs)})", *(f"  {line}" for line in lines if line)])


@singledispatch
def _line(node: nd.Node) -> str:
    """The line of a node where a graph is printed; most have none."""
    return ""


@_line.register
def _line_of_sample(node: nd.Sample) -> str:
    axes = ", ".join(axis.name for axis in node.axes)
    size = f", n = {node.n}" if node.n is not None else ""
    return f"{node.name} ~ {sample_label(node)}" + (f"   axes: ({axes}){size}" if axes else "")


@_line.register
def _line_of_data(node: nd.Data) -> str:
    return f"{node.name}: data   axes: ({node.plate.name})"


@_line.register
def _line_of_update(node: nd.Update) -> str:
    return f"{node.name} = {label(node)}"


def sample_label(node: nd.Sample) -> str:
    """`Normal(theta, 1.0)`."""
    parents = node.arguments.mapped([parent.name for parent in node.arguments.nodes], _constant)
    return f"{node.law.name}({', '.join(parents)})"


def _constant(leaf: object) -> str:
    """A constant as it is, a data set by its shape."""
    large = isinstance(leaf, Tensor) and (leaf.dim() > 1 or leaf.numel() > 5)
    return f"tensor of shape {tuple(leaf.shape)}" if large else repr(leaf)  # type: ignore[attr-defined]


@singledispatch
def label(node: nd.Node) -> str:
    """A node in a few characters: its name, or what it is made of."""
    return node.name


@label.register
def _label_of_sample(node: nd.Sample) -> str:
    return f"{node.name} ~ {node.law.name}"


@label.register
def _label_of_update(node: nd.Update) -> str:
    return f"{node.word}({node.variable.name}, {node.objective.name})"


@singledispatch
def _attributes(node: nd.Node) -> dict[str, Any]:
    return {"kind": node.kind, "axes": tuple(axis.name for axis in node.axes), "label": label(node)}


@_attributes.register
def _attributes_of_sample(node: nd.Sample) -> dict[str, Any]:
    plate = node.plate.name if node.plate else None
    time = node.time.name if node.time else None
    shared = _attributes.dispatch(nd.Node)(node)
    return {**shared, "distribution": node.law.name, "plate": plate, "time": time, "n": node.n}
