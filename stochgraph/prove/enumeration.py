"""The enumeration of all joint outcomes of the sample nodes of a small graph, node by node, as they are declared.

Discrete draws are enumerated. Where a rule of quadrature is asked for, the noise of continuous ones has its nodes.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..distributions.laws import arrange
from ..distributions.mends import at_edge, edge_message
from ..errors.exceptions import VerificationError
from ..ir import nodes as nd
from ..run.compiled import Compiled
from ..run.passes import Run
from ..tensors.axes import Axis, describe
from .outcomes import Outcomes
from .populations import laid_out
from .quadrature import entries, grid, has_nodes, noise_of


def enumerated(
    compiled: Compiled,
    inputs: Sequence[object],
    sizes: Mapping[str, int],
    limit: int,
    quadrature: int | None = None,
    declared: bool = False,
    expected: Iterable[Axis] = (),
) -> Outcomes:
    """All joint outcomes.

    Args:
        compiled: the compiled graph.
        inputs: its inputs.
        sizes: sizes of plates by name.
        limit: the most outcomes.
        quadrature: the number of nodes for every number of noise; `None`: continuous draws are refused.
        declared: whether draws are as declared, and not as an estimator relaxes them.
        expected: plates of which one draw is enumerated, its outcomes along the plate with their probabilities.

    Raises:
        VerificationError: a node that cannot be enumerated, or too many outcomes.
    """
    outcomes = Outcomes(compiled, inputs, sizes, declared, expected)
    _Enumeration(outcomes, set(compiled.estimators), limit, quadrature).run()
    return outcomes


class _Enumeration:
    """Extends outcomes by those of one node after the other."""

    def __init__(self, outcomes: Outcomes, differentiated: set[str], limit: int, quadrature: int | None) -> None:
        self.outcomes, self.differentiated, self.limit, self.quadrature = outcomes, differentiated, limit, quadrature

    def run(self) -> None:
        """Take all nodes."""
        for node in self.outcomes.samples:
            if node in self.outcomes.expected:
                self._lay_out(node, self.outcomes.expected[node])
                continue
            if self.quadrature is not None and node.name in self.outcomes.relaxed:
                self._extend_relaxed(self.outcomes.relaxed[node.name], self.quadrature)
                continue
            if self.quadrature is not None and has_nodes(node) and not self._lists_outcomes(node):
                self._extend_by_nodes(node, self.quadrature)
                continue
            if node.name in self.differentiated:
                self._refuse_edges(node)
            self._extend(node)
            self._drop_impossible(self.outcomes.values.scores[node.name])
        for node in self.outcomes.beside:
            self._extend_beside(node)

    def _extend_beside(self, node: nd.Sample) -> None:
        """Every outcome so far, times every outcome of what an estimator draws: its probability is a weight."""
        if self.quadrature is not None and not self._lists_outcomes(node):
            self._extend(node, self.quadrature)
            return
        self._extend(node)
        score = self.outcomes.values.scores_beside[node.name]
        self._drop_impossible(score)
        self.outcomes.weigh(self.outcomes.scored(score))

    def _lists_outcomes(self, node: nd.Sample) -> bool:
        try:
            self.outcomes.at_parents(node, lambda node, parents, run: node.law.outcomes(node, parents, run, 1)[0])
        except NotImplementedError:
            return False
        return True

    def _extend_by_nodes(self, node: nd.Sample, count: int) -> None:
        """Every outcome so far, times every combination of the nodes of a sample's noise."""
        first = pytree.tree_map(lambda x: x[0], self.outcomes.all)
        run, values = self.outcomes.run_to_parents(self.outcomes.inputs, first, node)
        noise = noise_of(node, values, run)
        self._refuse_too_many(node, f"{count} nodes", count, entries(noise))
        found, log_weight = grid(noise, count)
        self.outcomes.uses_nodes = True
        before = self.outcomes.count
        self.outcomes.repeat(len(log_weight))
        tiled = [x.repeat(before, *[1] * (x.dim() - 1)) for x in found]
        self.outcomes.all.noise[node.name] = tiled
        self.outcomes.weigh(log_weight.repeat(before))
        self.outcomes.draw_of_noise(node)

    def _extend_relaxed(self, node: nd.Sample, count: int) -> None:
        """The same for a draw that an estimator relaxes, whose law has the nodes of its noise."""
        self._extend(node, count)
        found = self.outcomes.all.draws.pop(node.name)
        self.outcomes.all.noise[node.name] = [torch.vmap(lambda one: arrange(one, node.axes, node.drawn_axes))(found)]
        self.outcomes.draw_of_noise(node)

    def _extend(self, node: nd.Sample, nodes: int | None = None) -> None:
        """Every outcome so far, times every joint outcome of the node's draws, or of its nodes and their weights."""
        support, own = self._support(node) if nodes is None else self._weighted_support(node, nodes)
        leaves, spec = pytree.tree_flatten(support)
        lead = len(node.parent_axes)
        shape = leaves[0].shape
        sizes = [self.outcomes.size(axis) for axis in node.repeats]
        cells = [*shape[2 : 2 + lead], *sizes, *shape[2 + lead : 2 + lead + own]]
        choices, n = shape[1], prod(cells)
        self._refuse_too_many(node, f"{choices} outcomes", choices, n)
        index = torch.arange(choices**n)[:, None] // choices ** torch.arange(n) % choices
        combined = [_combine(leaf, lead, own, sizes, cells, index) for leaf in leaves]
        # What is repeated is now behind the axes of the parents: each goes to its place among the plates.
        places = [1 + node.plates.index(axis) for axis in (*node.parent_axes, *node.repeats)]
        grown = [leaf.movedim(list(range(1, 1 + len(places))), places) for leaf in combined]
        self.outcomes.repeat(len(index))
        found = pytree.tree_unflatten(grown, spec)
        if nodes is not None:
            found, log_weight = found
            self.outcomes.uses_nodes = True
            self.outcomes.weigh(log_weight.reshape(len(log_weight), -1).sum(1))
        self.outcomes.all.draws[node.name] = found

    def _weighted_support(self, node: nd.Sample, count: int) -> tuple[Any, int]:
        """The nodes of every draw, and the logarithm of their weights, at every outcome."""
        own: list[int] = []

        def nodes(node: nd.Sample, values: list[Any], run: Run) -> Any:
            found, log_weight, dims = node.law.nodes(node, values, run, count)
            own[:] = [dims]
            return found, log_weight

        return self.outcomes.at_parents(node, nodes), own[0]

    def _lay_out(self, node: nd.Sample, plate: Axis) -> None:
        """Every outcome so far, with all outcomes of one draw along the plate."""
        if node.name in self.differentiated:
            self._refuse_edges(node)
        support, own = self._support(node)
        sizes = {axis: self.outcomes.size(axis) for axis in node.repeats if axis != plate}
        self.outcomes.all.draws[node.name] = pytree.tree_map(
            lambda leaf: laid_out(leaf, own, node, plate, sizes), support
        )

    def _support(self, node: nd.Sample) -> tuple[Any, int]:
        own: list[int] = []
        trials = int(self.outcomes.at_parents(node, node.law.trials).max())

        def outcomes(node: nd.Sample, parents: list[Any], run: Run) -> Any:
            found, dims = node.law.outcomes(node, parents, run, trials)
            own[:] = [dims]
            return found

        try:
            support = self.outcomes.at_parents(node, outcomes)
        except NotImplementedError as error:
            raise VerificationError(
                f"sample {node.name!r} ({node.law.name}) cannot be enumerated exactly: {error}. "
                "Use a distribution with finitely many outcomes, nodes for continuous ones, verify(quadrature=8), or "
                "measure with sg.profile"
            ) from None
        return support, own[0]

    def _refuse_too_many(self, node: nd.Sample, what: str, choices: int, n: int) -> None:
        if self.outcomes.count * choices**n > self.limit:
            raise VerificationError(
                f"sample {node.name!r} (axes: {describe(node.axes)}) has {what} for each of its {n} draws: "
                f"{self.outcomes.count} * {choices}**{n} joint outcomes are more than max_outcomes={self.limit}. "
                "Make plates or horizons smaller"
            )

    def _refuse_edges(self, node: nd.Sample) -> None:
        """Refuse an impossible outcome whose probability moves: the sum over outcomes would not see it."""
        with torch.enable_grad():
            margins = self.outcomes.at_parents(node, node.law.margins, self.outcomes.watched)
        if any(margin.requires_grad for margin in at_edge(margins)):
            raise VerificationError(edge_message(node))

    def _drop_impossible(self, score: nd.Node) -> None:
        possible = self.outcomes.scored(score) > -torch.inf
        if not bool(possible.all()):
            self.outcomes.keep(possible)


def _combine(leaf: Tensor, lead: int, own: int, sizes: list[int], cells: list[int], index: Tensor) -> Tensor:
    """Leaf `(outcomes, choices, *parents, *own, ...)` to `(outcomes * combinations, *parents, *sizes, *own, ...)`."""
    event = leaf.shape[2 + lead + own :]
    leaf = leaf.reshape(*leaf.shape[: 2 + lead], *[1] * len(sizes), *leaf.shape[2 + lead :])
    flat = leaf.expand(*leaf.shape[:2], *cells, *event).reshape(*leaf.shape[:2], prod(cells), *event)
    chosen = flat[:, index.to(leaf.device), torch.arange(prod(cells), device=leaf.device)]
    return chosen.reshape(-1, *cells, *event)
