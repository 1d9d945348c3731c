"""All joint outcomes of the sample nodes of a small graph, each with its probability or its weight.

Discrete draws are enumerated. Where a rule of quadrature is asked for, the noise of continuous ones has its nodes.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.derivation import Derivation
from ..derive.estimator import SCORED, GradientEstimator
from ..distributions.laws import arrange
from ..distributions.mends import at_edge, edge_message
from ..errors.exceptions import VerificationError
from ..ir import nodes as nd
from ..ir.programs import schedule
from ..ir.traces import Trace
from ..language.data import data_sizes
from ..run.compiled import Compiled
from ..run.inputs import watched
from ..run.passes import Run
from ..tensors.axes import Axis, describe
from .populations import expected_samples, laid_out, probabilities
from .quadrature import entries, grid, has_nodes, noise_of

CHUNK = 4096


class Outcome(NamedTuple):
    """One joint outcome, or all of them with one more dimension in front.

    Attributes:
        draws: of every sample node.
        noise: of those whose draws are nodes of a rule, the noise that they are a function of.
        log_weight: the logarithm of the weights of those nodes, and of the probability of what estimators drew, summed.
    """

    draws: dict[str, Any]
    noise: dict[str, list[Tensor]]
    log_weight: Tensor


class Values:
    """The value of the objective, and the scores, as functions of the inputs and of an outcome.

    Args:
        order: the declared nodes.
        estimators: the estimator of every sample node: only those that differentiate the draw itself matter.
        objective: the declared objective.
        beside: what estimators draw beside the declared samples.
    """

    def __init__(
        self,
        order: list[nd.Node],
        estimators: Mapping[str, GradientEstimator],
        objective: nd.Node,
        beside: Sequence[nd.Sample],
    ) -> None:
        derivation = Derivation(order, estimators)
        self.objective = derivation.derive(objective)
        self.scores = {name: derivation.score(node) for name, node in derivation.scope.samples.items()}
        self.scores_beside = {node.name: derivation.score(node) for node in beside}
        drawn = [*_samples(order), *beside]
        self.parents = {node.name: [derivation.derive(parent) for parent in node.inputs] for node in drawn}
        self.program = schedule([self.objective, *self.scores.values()])


def relaxed_in(compiled: Compiled) -> dict[str, nd.Sample]:
    """The samples that an estimator draws from another law than the declared one, as it draws them."""
    declared = {node.name: node for node in _samples(compiled.graph.order)}
    moved = {s: compiled._derivation.derive(declared[s]) for s in compiled._derivation.pathwise}
    return {s: node for s, node in moved.items() if isinstance(node, nd.Sample) and node.relaxed}


def _samples(order: list[nd.Node]) -> list[nd.Sample]:
    return [node for node in order if isinstance(node, nd.Sample)]


class Outcomes:
    """All joint outcomes, built node by node in the order of declaration.

    Args:
        compiled: the compiled graph.
        inputs: its inputs.
        sizes: sizes of plates by name.
        limit: the most outcomes.
        quadrature: the number of nodes for every number of noise; `None`: continuous draws are refused.
        declared: whether draws are as declared, and not as an estimator relaxes them.
        expected: plates of which one draw is enumerated, its outcomes along the plate with their probabilities.
    """

    def __init__(
        self,
        compiled: Compiled,
        inputs: Any,
        sizes: Mapping[str, int],
        limit: int,
        quadrature: int | None = None,
        declared: bool = False,
        expected: Iterable[Axis] = (),
    ) -> None:
        self.names, self.inputs, self.limit, self.quadrature = compiled.graph.inputs, inputs, limit, quadrature
        run = compiled._inputs.run(inputs, sizes)  # refuses wrong inputs and sizes
        self.watched, self.differentiated = list(watched(run.inputs, compiled.wrt).values()), set(compiled.estimators)
        self.wanted = {**sizes, **data_sizes(compiled.graph.data, run.inputs)}
        self.order, self.goal = compiled.graph.order, compiled.graph.objective
        self.samples = _samples(self.order)
        self.expected = expected_samples(self.samples, expected)
        self.relaxed = {} if declared else relaxed_in(compiled)
        kept = compiled._derivation.pathwise - (relaxed_in(compiled).keys() if declared else set())
        self.pathwise = {s: compiled.estimators[s] for s in kept}
        self.beside = [node.declared for node in compiled._noise.values()]
        self.values = self._values(self.pathwise)
        self.held_values = self._values(self._differentiated_by_updates())
        self.all = Outcome({}, {}, torch.zeros(1, dtype=torch.float64))
        self.count = 1  # a graph without draws has one outcome
        self.uses_nodes = False
        self._enumerate()

    def _values(self, pathwise: Mapping[str, GradientEstimator]) -> Values:
        scored = {node.name: SCORED for node in self.samples}
        return Values(self.order, {**scored, **pathwise}, self.goal, self.beside)

    def _differentiated_by_updates(self) -> dict[str, GradientEstimator]:
        """The pathwise draws that an update differentiates: its direction is another one where they are held."""
        inside = schedule([node.objective for node in self.order if isinstance(node, nd.Update)])
        return {node.name: self.pathwise[node.name] for node in _samples(inside) if node.name in self.pathwise}

    def _enumerate(self) -> None:
        for node in self.samples:
            if node in self.expected:
                self._lay_out(node, self.expected[node])
                continue
            if self.quadrature is not None and node.name in self.relaxed:
                self._extend_relaxed(self.relaxed[node.name], self.quadrature)
                continue
            if self.quadrature is not None and has_nodes(node) and not self._lists_outcomes(node):
                self._extend_by_nodes(node, self.quadrature)
                continue
            if node.name in self.differentiated:
                self._refuse_edges(node)
            self._extend(node)
            self._drop_impossible(self.values.scores[node.name])
        for node in self.beside:
            self._extend_beside(node)

    def _extend_beside(self, node: nd.Sample) -> None:
        """Every outcome so far, times every outcome of what an estimator draws: its probability is a weight."""
        if self.quadrature is not None and not self._lists_outcomes(node):
            self._extend(node, self.quadrature)
            return
        self._extend(node)
        score = self.values.scores_beside[node.name]
        self._drop_impossible(score)
        self.all = self.all._replace(log_weight=self.all.log_weight + self._scored(score))

    def _lists_outcomes(self, node: nd.Sample) -> bool:
        try:
            self._at_parents(node, lambda node, parents, run: node.law.outcomes(node, parents, run, 1)[0])
        except NotImplementedError:
            return False
        return True

    def _extend_by_nodes(self, node: nd.Sample, count: int) -> None:
        """Every outcome so far, times every combination of the nodes of a sample's noise."""
        first = pytree.tree_map(lambda x: x[0], self.all)
        run, values = self._run_to_parents(self.inputs, first, node)
        noise = noise_of(node, values, run)
        self._refuse_too_many(node, f"{count} nodes", count, entries(noise))
        found, log_weight = grid(noise, count)
        self.uses_nodes = True
        before = self.count
        self._repeat(len(log_weight))
        tiled = [x.repeat(before, *[1] * (x.dim() - 1)) for x in found]
        self.all.noise[node.name] = tiled
        self.all = self.all._replace(log_weight=self.all.log_weight + log_weight.repeat(before))
        self.all.draws[node.name] = self.map(lambda outcome: self._at_nodes(node, *self._prepared(node, outcome)))

    def _extend_relaxed(self, node: nd.Sample, count: int) -> None:
        """The same for a draw that an estimator relaxes, whose law has the nodes of its noise."""
        self._extend(node, count)
        found = self.all.draws.pop(node.name)
        self.all.noise[node.name] = [torch.vmap(lambda one: arrange(one, node.axes, node.drawn_axes))(found)]
        self.all.draws[node.name] = self.map(lambda outcome: self._at_nodes(node, *self._prepared(node, outcome)))

    def _prepared(self, node: nd.Sample, outcome: Outcome) -> tuple[list[Any], Run, list[Tensor]]:
        run, values = self._run_to_parents(self.inputs, outcome, node)
        for axis in node.plates:
            run.sizes.setdefault(axis, self.wanted.get(axis.name, axis.n or 1))
        return values, run, outcome.noise[node.name]

    def _at_nodes(self, node: nd.Sample, values: list[Any], run: Run, noise: list[Tensor]) -> Tensor:
        """The draw that the noise makes of the values of its parents."""
        return node.law.draw_pathwise(node, values, run, noise)[0]

    def _extend(self, node: nd.Sample, nodes: int | None = None) -> None:
        """Every outcome so far, times every joint outcome of the node's draws, or of its nodes and their weights."""
        support, own = self._support(node) if nodes is None else self._weighted_support(node, nodes)
        leaves, spec = pytree.tree_flatten(support)
        lead = len(node.parent_axes)
        shape = leaves[0].shape
        sizes = [self.wanted.get(axis.name, axis.n or 1) for axis in node.repeats]
        cells = [*shape[2 : 2 + lead], *sizes, *shape[2 + lead : 2 + lead + own]]
        choices, n = shape[1], prod(cells)
        self._refuse_too_many(node, f"{choices} outcomes", choices, n)
        index = torch.arange(choices**n)[:, None] // choices ** torch.arange(n) % choices
        combined = [_combine(leaf, lead, own, sizes, cells, index) for leaf in leaves]
        # What is repeated is now behind the axes of the parents: each goes to its place among the plates.
        places = [1 + node.plates.index(axis) for axis in (*node.parent_axes, *node.repeats)]
        grown = [leaf.movedim(list(range(1, 1 + len(places))), places) for leaf in combined]
        self._repeat(len(index))
        found = pytree.tree_unflatten(grown, spec)
        if nodes is not None:
            found, log_weight = found
            self.uses_nodes = True
            self.all = self.all._replace(
                log_weight=self.all.log_weight + log_weight.reshape(len(log_weight), -1).sum(1)
            )
        self.all.draws[node.name] = found

    def _weighted_support(self, node: nd.Sample, count: int) -> tuple[Any, int]:
        """The nodes of every draw, and the logarithm of their weights, at every outcome."""
        own: list[int] = []

        def nodes(node: nd.Sample, values: list[Any], run: Run) -> Any:
            found, log_weight, dims = node.law.nodes(node, values, run, count)
            own[:] = [dims]
            return found, log_weight

        return self._at_parents(node, nodes), own[0]

    def _lay_out(self, node: nd.Sample, plate: Axis) -> None:
        """Every outcome so far, with all outcomes of one draw along the plate."""
        if node.name in self.differentiated:
            self._refuse_edges(node)
        support, own = self._support(node)
        sizes = {axis: self.wanted.get(axis.name, axis.n or 1) for axis in node.repeats if axis != plate}
        self.all.draws[node.name] = pytree.tree_map(lambda leaf: laid_out(leaf, own, node, plate, sizes), support)

    def _refuse_too_many(self, node: nd.Sample, what: str, choices: int, n: int) -> None:
        if self.count * choices**n > self.limit:
            raise VerificationError(
                f"sample {node.name!r} (axes: {describe(node.axes)}) has {what} for each of its {n} draws: "
                f"{self.count} * {choices}**{n} joint outcomes are more than max_outcomes={self.limit}. "
                "Make plates or horizons smaller"
            )

    def _repeat(self, times: int) -> None:
        """Every outcome so far a number of times, next to each other."""
        self.all = pytree.tree_map(lambda x: x.repeat_interleave(times, 0), self.all)
        self.count *= times

    def _refuse_edges(self, node: nd.Sample) -> None:
        """Refuse an impossible outcome whose probability moves: the sum over outcomes would not see it."""
        with torch.enable_grad():
            margins = self._at_parents(node, node.law.margins, self.watched)
        if any(margin.requires_grad for margin in at_edge(margins)):
            raise VerificationError(edge_message(node))

    def _support(self, node: nd.Sample) -> tuple[Any, int]:
        own: list[int] = []
        trials = int(self._at_parents(node, node.law.trials).max())

        def outcomes(node: nd.Sample, parents: list[Any], run: Run) -> Any:
            found, dims = node.law.outcomes(node, parents, run, trials)
            own[:] = [dims]
            return found

        try:
            support = self._at_parents(node, outcomes)
        except NotImplementedError as error:
            raise VerificationError(
                f"sample {node.name!r} ({node.law.name}) cannot be enumerated exactly: {error}. "
                "Use a distribution with finitely many outcomes, nodes for continuous ones, verify(quadrature=8), or "
                "measure with sg.profile"
            ) from None
        return support, own[0]

    def _at_parents(self, node: nd.Sample, fn: Callable[..., Any], inputs: Any = None) -> Any:
        """`fn(node, values of its parents, run)` for every outcome."""

        def one(outcome: Outcome) -> Any:
            run, values = self._run_to_parents(self.inputs if inputs is None else inputs, outcome, node)
            return fn(node, values, run)

        return self.map(one)

    def _run_to_parents(self, inputs: Any, outcome: Outcome, node: nd.Sample) -> tuple[Run, list[Any]]:
        parents = self.values.parents[node.name]
        run = self._run(inputs, outcome)
        values = run.execute(schedule(parents))
        return run, [values[parent] for parent in parents]

    def _drop_impossible(self, score: nd.Node) -> None:
        possible = self._scored(score) > -torch.inf
        if not bool(possible.all()):
            self.all = pytree.tree_map(lambda x: x[possible], self.all)
            self.count = int(possible.sum())

    def _scored(self, score: nd.Node) -> Tensor:
        """A log-probability in every outcome."""
        program = schedule([score])
        return self.map(lambda outcome: self._run(self.inputs, outcome).execute(program)[score].sum())

    def map(self, fn: Callable[..., Any], *more: Any, chunk: int | None = None) -> Any:
        """`fn(outcome, *more)` for every outcome; `more` has one entry for each."""
        return torch.vmap(fn, chunk_size=chunk)(self.all, *more)

    def some(self, start: int) -> "Outcomes":
        """The outcomes from a place on, as many as are evaluated at once."""
        part = copy.copy(self)
        part.all = pytree.tree_map(lambda x: x[start : start + CHUNK], self.all)
        part.count = min(CHUNK, self.count - start)
        return part

    def _run(self, inputs: Any, outcome: Outcome) -> Run:
        trace = Trace(draws=outcome.draws, noise=outcome.noise)
        run = Run(dict(zip(self.names, inputs, strict=True)), self.wanted, trace)
        if self.expected:
            run.portions = probabilities(run, self.expected, self.values.scores)
        return run

    def log_probs(self, inputs: Any, outcome: Outcome) -> dict[str, Tensor]:
        """The log-probability of every draw of an outcome."""
        values = self._run(inputs, outcome).execute(self.values.program)
        return {name: values[score] for name, score in self.values.scores.items()}

    def weighted(self, inputs: Any, outcome: Outcome) -> Tensor:
        """The value of the objective, nodes moving with the parameters, times the outcome's probability."""
        run = self._run(inputs, outcome)
        for node in self.samples:
            if node.name in outcome.noise and node.name not in self.pathwise:
                self._move(node, run, outcome)
        values = run.execute(self.values.program)
        known = {*outcome.noise, *(node.name for node in self.expected)}
        log_probs = [values[score].sum() for name, score in self.values.scores.items() if name not in known]
        return sum(log_probs, start=outcome.log_weight).exp() * values[self.values.objective]

    def weighted_and_held(self, inputs: Any, outcome: Outcome) -> Tensor:
        """The same with held nodes, whose weights move as their density does."""
        values = self._run(inputs, outcome).execute(self.held_values.program)
        known = {node.name for node in self.expected}
        scores = {name: values[score].sum() for name, score in self.held_values.scores.items() if name not in known}
        log_probs = [score - score.detach() if name in outcome.noise else score for name, score in scores.items()]
        return sum(log_probs, start=outcome.log_weight).exp() * values[self.held_values.objective]

    @property
    def holds_nodes(self) -> bool:
        """True if there are nodes that can be held."""
        return not self.all.noise.keys() <= self._differentiated_by_updates().keys()

    def _move(self, node: nd.Sample, run: Run, outcome: Outcome) -> None:
        parents = self.values.parents[node.name]
        values = run.execute(schedule(parents))
        place = [values[parent] for parent in parents]
        run.draw(node, place)  # which notes its sizes
        run.draws[node.name] = self._at_nodes(node, place, run, outcome.noise[node.name])

    def probabilities(self, log_probs: Mapping[str, Tensor]) -> Tensor:
        """The probability of every outcome; `log_probs` are those of all."""
        enumerated = [x for name, x in log_probs.items() if name not in self.all.noise]
        return sum((x.reshape(self.count, -1).sum(1) for x in enumerated), start=self.all.log_weight).exp()


def _combine(leaf: Tensor, lead: int, own: int, sizes: list[int], cells: list[int], index: Tensor) -> Tensor:
    """Leaf `(outcomes, choices, *parents, *own, ...)` to `(outcomes * combinations, *parents, *sizes, *own, ...)`."""
    event = leaf.shape[2 + lead + own :]
    leaf = leaf.reshape(*leaf.shape[: 2 + lead], *[1] * len(sizes), *leaf.shape[2 + lead :])
    flat = leaf.expand(*leaf.shape[:2], *cells, *event).reshape(*leaf.shape[:2], prod(cells), *event)
    chosen = flat[:, index.to(leaf.device), torch.arange(prod(cells), device=leaf.device)]
    return chosen.reshape(-1, *cells, *event)
