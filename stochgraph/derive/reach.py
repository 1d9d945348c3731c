"""Which samples reach which nodes, along which axes, and where a box may move."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from itertools import product
from typing import Any

from ..ir import nodes as nd
from ..ir.paths import samples_in
from ..ir.programs import up_to
from ..tensors.axes import Axis
from .estimator import SCORED, Crossing, GradientEstimator


class Reached(Mapping[str, frozenset[Axis]]):
    """The samples that reach a node, with the axes along which they do so draw by draw.

    Sets of samples are the bits of a number: of many samples most have the same axes.
    """

    def __init__(self, places: Mapping[str, int], kept: dict[frozenset[Axis], int]) -> None:
        self.places, self.kept = places, kept

    def __getitem__(self, name: str) -> frozenset[Axis]:
        bit = 1 << self.places[name]
        for axes, samples in self.kept.items():
            if samples & bit:
                return axes
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        found = self.samples
        return (name for name, place in self.places.items() if found >> place & 1)

    def __len__(self) -> int:
        return self.samples.bit_count()

    @property
    def samples(self) -> int:
        """All of them, as bits."""
        return _all(self.kept)


def _all(kept: dict[frozenset[Axis], int]) -> int:
    return reduce(operator.or_, kept.values(), 0)


def _merged(one: dict[frozenset[Axis], int], other: dict[frozenset[Axis], int]) -> dict[frozenset[Axis], int]:
    """The samples that arrive by two inputs: one that comes by both is kept along the axes that they have in common."""
    if not one or not other:
        return one or other
    merged: dict[frozenset[Axis], int] = {}
    for axes, samples in [*_less(one, _all(other)), *_less(other, _all(one))]:
        merged[axes] = merged.get(axes, 0) | samples
    for (axes, samples), (others, more) in product(one.items(), other.items()):
        merged[axes & others] = merged.get(axes & others, 0) | (samples & more)
    return {axes: samples for axes, samples in merged.items() if samples}


def _less(kept: dict[frozenset[Axis], int], gone: int) -> Iterator[tuple[frozenset[Axis], int]]:
    return ((axes, samples & ~gone) for axes, samples in kept.items())


class Reach(dict[nd.Node, Reached]):
    """For every node, the samples that reach it and are not boxed yet, with the axes on which they do so draw by draw.

    A sample is gone from a node once all its routes there have been boxed at a mean, or dropped at an update. At the
    nodes `cuts` nothing arrives. Nodes that are made later, the parts of terms, are looked at when they are asked for.
    """

    def __init__(
        self,
        order: Iterable[nd.Node],
        sources: Mapping[str, nd.Sample],
        estimators: Mapping[str, GradientEstimator],
        cuts: Iterable[nd.Node] = (),
    ) -> None:
        self.sources, self.estimators, self.cuts = sources, estimators, frozenset(cuts)
        self.places = {name: place for place, name in enumerate(sources)}
        # What crosses everything is not asked, node by node.
        self._asked = {s: place for s, place in self.places.items() if estimators[s] is not SCORED}
        for node in order:
            self[node] = self._arriving(node)

    def __missing__(self, node: nd.Node) -> Reached:
        stack = [node]
        while stack:
            unknown = [parent for parent in stack[-1].inputs if parent not in self]
            stack.extend(unknown)
            if not unknown:
                top = stack.pop()
                self[top] = self._arriving(top)
        return self[node]

    def _arriving(self, node: nd.Node) -> Reached:
        kept: dict[frozenset[Axis], int] = {}
        if node not in self.cuts and node.carries:
            arriving = reduce(_merged, (self[parent].kept for parent in node.inputs), kept)
            own, ended = frozenset(node.axes), self._ended(node, arriving)
            for axes, samples in _less(arriving, ended):
                kept[axes & own] = kept.get(axes & own, 0) | samples
        if isinstance(node, nd.Sample) and node.name in self.sources:
            own = frozenset(node.axes)
            kept[own] = kept.get(own, 0) | 1 << self.places[node.name]
        return Reached(self.places, {axes: samples for axes, samples in kept.items() if samples})

    def _ended(self, node: nd.Node, arriving: dict[frozenset[Axis], int]) -> int:
        """The samples whose boxes do not cross a node, as bits."""
        crossings = {s: self.estimators[s].crosses(self.sources[s], node) for s in Reached(self._asked, arriving)}
        return sum(1 << self.places[s] for s, crossing in crossings.items() if crossing is not Crossing.ON)


def linear_operands(node: nd.Node, pending: Iterable[str], reach: Mapping[nd.Node, Any]) -> list[int] | None:
    """The inputs to which a box pending at the node may move; `None` if the node is not linear in them."""
    touched = [i for i, parent in enumerate(node.inputs) if not reach[parent].keys().isdisjoint(pending)]
    if not (node.linear_in(touched) and node.moves_boxes):
        return None
    return list(range(len(node.inputs))) if node.adds else touched


def data_of(update: nd.Update) -> list[str]:
    """The samples that feed an update's objective, other than through what it is a function of."""
    local = up_to(update.objective, update.variable)
    samples = samples_in(local)
    reach = Reach(local, samples, dict.fromkeys(samples, SCORED), cuts=[update.variable])
    return list(reach[update.objective])
