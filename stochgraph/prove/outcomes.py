"""All joint outcomes of the sample nodes of a small graph, each with its probability or its weight."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.derivation import Derivation
from ..derive.estimator import SCORED, GradientEstimator
from ..ir import nodes as nd
from ..ir.programs import schedule
from ..ir.traces import Trace
from ..language.data import data_sizes
from ..run.compiled import Compiled
from ..run.inputs import watched
from ..run.passes import Run
from ..tensors.axes import Axis
from ..tensors.trees import tensors
from .populations import expected_samples, probabilities

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
        drawn = [*samples_of(order), *beside]
        self.parents = {node.name: [derivation.derive(parent) for parent in node.inputs] for node in drawn}
        self.program = schedule([self.objective, *self.scores.values()])


def relaxed_in(compiled: Compiled) -> dict[str, nd.Sample]:
    """The samples that an estimator draws from another law than the declared one, as it draws them."""
    declared = {node.name: node for node in samples_of(compiled.graph.order)}
    moved = {s: compiled._derivation.derive(declared[s]) for s in compiled._derivation.pathwise}
    return {s: node for s, node in moved.items() if isinstance(node, nd.Sample) and node.relaxed}


def samples_of(order: list[nd.Node]) -> list[nd.Sample]:
    """The sample nodes among some nodes."""
    return [node for node in order if isinstance(node, nd.Sample)]


class Outcomes:
    """Joint outcomes, and what is worked out in each. A new one has one, in which nothing is drawn.

    Attributes:
        all: the outcomes.
        uses_nodes: whether some draws are nodes of a rule, and not all outcomes that there are.
        sizes: the sizes of plates that are asked for, or follow from data.
        expected: the samples of which one draw is enumerated, its outcomes along the plate with their probabilities.
        relaxed: the samples whose draws are as an estimator relaxes them.

    Args:
        compiled: the compiled graph.
        inputs: its inputs.
        sizes: sizes of plates by name.
        declared: whether draws are as declared, and not as an estimator relaxes them.
        expected: the plates that are expected.
    """

    def __init__(
        self,
        compiled: Compiled,
        inputs: Sequence[object],
        sizes: Mapping[str, int],
        declared: bool = False,
        expected: Iterable[Axis] = (),
    ) -> None:
        self._names, self.inputs = compiled.graph.inputs, inputs
        run = compiled._inputs.run(inputs, sizes)  # refuses wrong inputs and sizes
        self.watched = list(watched(run.inputs, compiled.wrt).values())
        self.sizes = {**sizes, **data_sizes(compiled.graph.data, run.inputs)}
        order = compiled.graph.order
        self.samples = samples_of(order)
        self.expected = expected_samples(self.samples, expected)
        relaxed = relaxed_in(compiled)
        self.relaxed = {} if declared else relaxed
        kept = compiled._derivation.pathwise - (relaxed.keys() if declared else set())
        self._pathwise = {s: compiled.estimators[s] for s in kept}
        self.beside = [node.declared for node in compiled._noise.values()]
        self._differentiated = _in_updates(order, self._pathwise)
        scored = {node.name: SCORED for node in self.samples}
        self.values, self._held_values = (
            Values(order, {**scored, **moved}, compiled.graph.objective, self.beside)
            for moved in (self._pathwise, self._differentiated)
        )
        # Weights have the dtype and device of what is differentiated: figures come in those of the inputs.
        like = next((x for x in tensors(self.watched) if x.requires_grad), torch.zeros(()))
        self.all = Outcome({}, {}, torch.zeros(1, dtype=like.dtype, device=like.device))
        self.uses_nodes = False

    @property
    def count(self) -> int:
        """The number of outcomes; a graph without draws has one."""
        return len(self.all.log_weight)

    def size(self, axis: Axis) -> int:
        """The size of a plate."""
        return self.sizes.get(axis.name, axis.n or 1)

    def map(self, fn: Callable[..., Any], *more: Any, chunk: int | None = None) -> Any:
        """`fn(outcome, *more)` for every outcome; `more` has one entry for each."""
        return torch.vmap(fn, chunk_size=chunk)(self.all, *more)

    def some(self, start: int) -> "Outcomes":
        """The outcomes from a place on, as many as are evaluated at once."""
        part = copy.copy(self)
        part.all = pytree.tree_map(lambda x: x[start : start + CHUNK], self.all)
        return part

    def repeat(self, times: int) -> None:
        """Every outcome so far a number of times, next to each other."""
        self.all = pytree.tree_map(lambda x: x.repeat_interleave(times, 0), self.all)

    def keep(self, chosen: Tensor) -> None:
        """Leave the other outcomes out."""
        self.all = pytree.tree_map(lambda x: x[chosen], self.all)

    def weigh(self, log_weight: Tensor) -> None:
        """Add to the logarithm of every outcome's weight."""
        self.all = self.all._replace(log_weight=self.all.log_weight + log_weight.to(self.all.log_weight))

    def at_parents(self, node: nd.Sample, fn: Callable[..., Any], inputs: Sequence[object] | None = None) -> Any:
        """`fn(node, values of its parents, run)` for every outcome."""

        def one(outcome: Outcome) -> Any:
            run, values = self.run_to_parents(self.inputs if inputs is None else inputs, outcome, node)
            return fn(node, values, run)

        return self.map(one)

    def run_to_parents(self, inputs: Sequence[object], outcome: Outcome, node: nd.Sample) -> tuple[Run, list[Any]]:
        """A pass in an outcome up to the parents of a sample, and their values."""
        parents = self.values.parents[node.name]
        run = self.run(inputs, outcome)
        values = run.execute(schedule(parents))
        return run, [values[parent] for parent in parents]

    def run(self, inputs: Sequence[object], outcome: Outcome) -> Run:
        """A pass in an outcome."""
        trace = Trace(draws=outcome.draws, noise=outcome.noise)
        run = Run(dict(zip(self._names, inputs, strict=True)), self.sizes, trace)
        if self.expected:
            run.portions = probabilities(run, self.expected, self.values.scores)
        return run

    def scored(self, score: nd.Node) -> Tensor:
        """A log-probability in every outcome."""
        program = schedule([score])
        return self.map(lambda outcome: self.run(self.inputs, outcome).execute(program)[score].sum())

    def draw_of_noise(self, node: nd.Sample) -> None:
        """Record the draws that the noise makes of the values of a sample's parents."""

        def one(outcome: Outcome) -> Tensor:
            run, values = self.run_to_parents(self.inputs, outcome, node)
            for axis in node.plates:
                run.sizes.setdefault(axis, self.size(axis))
            return _drawn(node, values, run, outcome)

        self.all.draws[node.name] = self.map(one)

    def log_probs(self, inputs: Sequence[object], outcome: Outcome) -> dict[str, Tensor]:
        """The log-probability of every draw of an outcome."""
        values = self.run(inputs, outcome).execute(self.values.program)
        return {name: values[score] for name, score in self.values.scores.items()}

    def weighted(self, inputs: Sequence[object], outcome: Outcome) -> Tensor:
        """The value of the objective, nodes moving with the parameters, times the outcome's probability."""
        run = self.run(inputs, outcome)
        for node in self.samples:
            if node.name in outcome.noise and node.name not in self._pathwise:
                self._move(node, run, outcome)
        values = run.execute(self.values.program)
        known = {*outcome.noise, *(node.name for node in self.expected)}
        log_probs = [values[score].sum() for name, score in self.values.scores.items() if name not in known]
        return sum(log_probs, start=outcome.log_weight).exp() * values[self.values.objective]

    def weighted_and_held(self, inputs: Sequence[object], outcome: Outcome) -> Tensor:
        """The same with held nodes, whose weights move as their density does."""
        values = self.run(inputs, outcome).execute(self._held_values.program)
        known = {node.name for node in self.expected}
        scores = {name: values[score].sum() for name, score in self._held_values.scores.items() if name not in known}
        log_probs = [score - score.detach() if name in outcome.noise else score for name, score in scores.items()]
        return sum(log_probs, start=outcome.log_weight).exp() * values[self._held_values.objective]

    @property
    def holds_nodes(self) -> bool:
        """True if there are nodes that can be held."""
        return not self.all.noise.keys() <= self._differentiated.keys()

    def _move(self, node: nd.Sample, run: Run, outcome: Outcome) -> None:
        parents = self.values.parents[node.name]
        values = run.execute(schedule(parents))
        place = [values[parent] for parent in parents]
        run.draw(node, place)  # which notes its sizes
        run.draws[node.name] = _drawn(node, place, run, outcome)

    def probabilities(self, log_probs: Mapping[str, Tensor]) -> Tensor:
        """The probability of every outcome; `log_probs` are those of all."""
        enumerated = [x for name, x in log_probs.items() if name not in self.all.noise]
        return sum((x.reshape(self.count, -1).sum(1) for x in enumerated), start=self.all.log_weight).exp()


def _drawn(node: nd.Sample, values: Sequence[Any], run: Run, outcome: Outcome) -> Tensor:
    """The draw that the noise of an outcome makes of the values of its parents."""
    return node.law.draw_pathwise(node, values, run, outcome.noise[node.name])[0]


def _in_updates(order: Iterable[nd.Node], pathwise: Mapping[str, GradientEstimator]) -> dict[str, GradientEstimator]:
    """The pathwise draws that an update differentiates: its direction is another one where they are held."""
    inside = schedule([node.objective for node in order if isinstance(node, nd.Update)])
    return {node.name: pathwise[node.name] for node in samples_of(inside) if node.name in pathwise}
