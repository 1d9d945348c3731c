"""Which samples reach which nodes, along which axes, and where a box may move."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from ..ir import nodes as nd
from ..ir.paths import samples_in
from ..ir.programs import up_to
from ..tensors.axes import Axis
from .estimator import SCORED, Crossing, GradientEstimator

_BOTH = (operator.add, operator.sub)
_UNARY = (operator.neg, operator.pos)


class Reach(dict[nd.Node, dict[str, frozenset[Axis]]]):
    """For every node, the samples that reach it and are not boxed yet, with the axes on which they do so draw by draw.

    A sample is gone from a node once all its routes there have been boxed at a mean, or dropped at an update. At the
    node `cut` nothing arrives. Nodes that are made later, the parts of terms, are looked at when they are asked for.
    """

    def __init__(
        self,
        order: Iterable[nd.Node],
        sources: Mapping[str, nd.Sample],
        estimators: Mapping[str, GradientEstimator],
        cut: nd.Node | None = None,
    ) -> None:
        self.sources, self.estimators, self.cut = sources, estimators, cut
        for node in order:
            self[node] = self._arriving(node)

    def __missing__(self, node: nd.Node) -> dict[str, frozenset[Axis]]:
        stack = [node]
        while stack:
            unknown = [parent for parent in stack[-1].inputs if parent not in self]
            stack.extend(unknown)
            if not unknown:
                top = stack.pop()
                self[top] = self._arriving(top)
        return self[node]

    def _arriving(self, node: nd.Node) -> dict[str, frozenset[Axis]]:
        merged: dict[str, frozenset[Axis]] = {}
        if node is not self.cut and node.carries:
            merged = self._merged([self[parent] for parent in node.inputs])
            own = frozenset(node.axes)
            passing = {s: a & own for s, a in merged.items() if self._passes(s, node)}
            merged = merged if passing == merged else passing  # a chain of nodes shares one: it may have many samples
        if isinstance(node, nd.Sample) and node.name in self.sources:
            merged = {**merged, node.name: frozenset(node.axes)}
        return merged

    def _merged(self, arriving: list[dict[str, frozenset[Axis]]]) -> dict[str, frozenset[Axis]]:
        many = [reached for reached in arriving if reached]
        if len(many) == 1:
            return many[0]
        merged: dict[str, frozenset[Axis]] = {}
        for reached in many:
            for name, kept in reached.items():
                merged[name] = merged.get(name, kept) & kept
        return merged

    def _passes(self, name: str, node: nd.Node) -> bool:
        return self.estimators[name].crosses(self.sources[name], node) is Crossing.ON


def linear_operands(node: nd.Node, pending: Iterable[str], reach: Mapping[nd.Node, Any]) -> list[int] | None:
    """The inputs to which a box pending at the node may move; `None` if the node is not linear in them."""
    if isinstance(node, nd.Reduction):
        return [0]
    if not isinstance(node, nd.Apply) or not node.arguments.simple:
        return None
    everywhere = list(range(len(node.inputs)))
    if node.fn in _BOTH or node.fn in _UNARY:
        return everywhere
    if node.fn is operator.mul:
        touched = [i for i in everywhere if not reach[node.inputs[i]].keys().isdisjoint(pending)]
        return touched if len(touched) <= 1 else None
    if node.fn is operator.truediv:
        numerator = isinstance(node.arguments.leaves[0], nd.Node)
        below = everywhere[1:] if numerator else everywhere
        free = all(reach[node.inputs[i]].keys().isdisjoint(pending) for i in below)
        return [0] if numerator and free else None
    return None


def data_of(update: nd.Update) -> list[str]:
    """The samples that feed an update's objective, other than through what it is a function of."""
    local = up_to(update.objective, update.variable)
    samples = samples_in(local)
    reach = Reach(local, samples, dict.fromkeys(samples, SCORED), cut=update.variable)
    return list(reach[update.objective])
