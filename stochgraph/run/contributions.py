r"""A gradient as a sum of contributions, one for each thing by which its paths enter.

A path of the derivative of a surrogate S leads from the differentiated inputs to S. Its *source* is the first thing on
it that the ledger has rows for: the log-probability of a sample (in boxes, controls and what takes their place), a
pathwise draw, the direction of an update; or none, where it leads through values alone. Paths are split by their
source, so the contributions sum to the gradient: with :math:`s_g(\theta)` what a source gives where everything that
comes before is no source, and all of S a function of what the sources give,

.. math:: \nabla S = \sum_g \frac{\partial S}{\partial s_g} \, \nabla_\theta s_g

NOTE [boxes inside an update]
The direction of an update is a derivative at its parameters, of terms that may be boxed with the scores there. These
boxes are a source of their own: the direction without them is that in which the score is compared, not with what was
recorded, but with itself at the parameters, differentiated: the box stays 1. Pathwise draws inside are held likewise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.controls import ZeroMean
from ..derive.estimator import SCORED
from ..explain.ledger import Source
from ..ir import nodes as nd
from ..ir.paths import samples_in
from ..ir.programs import schedule
from ..ir.traces import Trace
from ..surrogate.steps import CompiledUpdate
from ..surrogate.terms import Box, Score, Term
from ..tensors import vectorize as vz
from ..tensors.indexing import transform_rules
from .compiled import Compiled
from .passes import Run

_VALUES = Source("value")
_Entry = tuple[Source, nd.Node]
_Leaves = list[Tensor]


class _Pass(Run):
    """A pass in which some pathwise draws are held: their derivative at the parameters is taken off."""

    held: Mapping[str, tuple[object, nd.Sample]] = {}

    def holding(self, draws: Mapping[str, tuple[object, nd.Sample]], log_probs: Mapping[str, Tensor]) -> "_Pass":
        other = copy(self)
        other.log_probs, other.kept, other.found = {**self.log_probs, **log_probs}, {}, {}
        other.held = draws
        return other

    def draw(self, node: nd.Sample, values: list[Any]) -> Any:
        value = super().draw(node, values)
        if node.name not in self.held:
            return value
        outer, drawn = self.held[node.name]
        aligned = vz.align_tree(outer, drawn.axes, node.axes)
        return pytree.tree_map(lambda x, moved: x - (moved - moved.detach()), value, aligned)


class Contributions:
    """The contributions of all sources to the gradient of a compiled graph, for one trace."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.root = compiled._root
        self.samples = samples_in(compiled.graph.order)
        self.inside: dict[nd.Node, list[str]] = {
            node: _carriers(node) for node in compiled._program if isinstance(node, CompiledUpdate)
        }
        # Before an update comes what its boxes and pathwise draws are at the parameters.
        self.program = schedule(
            compiled._program,
            lambda node: (*node.inputs, *(self._outside(name) for name in self.inside.get(node, ()))),
        )
        self.own = frozenset(compiled._program)

    def of(self, inputs: Callable[[Tensor], Sequence[Any]], point: Tensor, trace: Trace) -> dict[Source, Tensor]:
        """The contribution of every source to the gradient at a point.

        Args:
            inputs: from a vector of the differentiated inputs to all inputs.
            point: that vector, `(P,)`.
            trace: what was drawn there.

        Returns:
            Vectors `(P,)` that sum to the gradient of the surrogate.
        """
        entries: list[_Entry] = []

        def given(vector: Tensor) -> list[_Leaves]:
            found = self._given(_Pass(self._named(inputs(vector)), {}, trace))
            entries[:] = found
            return list(found.values())

        def objective(changes: list[_Leaves]) -> Tensor:
            return self._objective(Run(self._named(inputs(point)), {}, trace), dict(zip(entries, changes, strict=True)))

        with torch.enable_grad():
            start, pull = torch.func.vjp(given, point)[:2]
            zeros = [[torch.zeros_like(leaf) for leaf in leaves] for leaves in start]
            weights = torch.func.grad(objective)(zeros)
            sources = list(dict(entries))
            places = torch.tensor([sources.index(source) for source, _ in entries], device=point.device)
            numbers = torch.arange(len(sources), device=point.device)
            found = torch.vmap(lambda number: pull(_only(places == number, weights))[0])(numbers)
            return dict(zip(sources, found, strict=True))

    def _named(self, inputs: Sequence[Any]) -> dict[str, Any]:
        return self.compiled._inputs.named(inputs)

    def _outside(self, name: str) -> nd.Node:
        """The node that carries a sample's gradient outside of updates: its score, or the draw itself."""
        derivation, sample = self.compiled._derivation, self.samples[name]
        return derivation.derive(sample) if name in derivation.pathwise else derivation.score(sample)

    def _given(self, run: _Pass) -> dict[_Entry, _Leaves]:
        """The contributions of all sources where nothing before them is one."""
        found: dict[_Entry, _Leaves] = {}
        with transform_rules():
            for node in self.program:
                values = [run.values[parent] for parent in node.inputs]
                value, entries = self._apart(node, run, values)
                run.values[node] = value
                if node in self.own:
                    found |= {(source, node): _floats(entry) for source, entry in entries.items()}
        return {**found, (_VALUES, self.root): [run.values[self.root]]}

    def _apart(self, node: nd.Node, run: _Pass, values: list[Any]) -> tuple[Any, dict[Source, Any]]:
        """The value of a node, constant in what its sources give, and what these give."""
        if isinstance(node, Score):
            value = node.evaluate(run, values)
            return value.detach(), {Source("distribution", node.sample.name): value}
        if isinstance(node, ZeroMean):
            value = node.evaluate(run, values)
            return _constant(value), {Source("distribution", node.sample.name): value}
        if node.pathwise:
            value = node.evaluate(run, values)
            return _constant(value), {Source("pathwise", node.name): value}
        if isinstance(node, Term) and node.weights:
            held = [values[0], *map(_constant, values[1:])]
            return node.evaluate(run, held), {Source("distribution", node.weights[0].sample.name): values[1:]}
        if isinstance(node, CompiledUpdate) and not node.detach:
            return self._updated(node, run, values)
        return node.evaluate(run, values), {}

    def _updated(self, node: CompiledUpdate, run: _Pass, values: list[Any]) -> tuple[Any, dict[Source, Any]]:
        """An update whose direction is a constant; what the direction gives, and the boxes and draws in it."""
        constant = copy(node)
        constant.detach = True
        value, whole = constant.evaluate(run, values), node.evaluate(run, values)
        names = self.inside[node]
        entries = {self._carried(s): _less(whole, node.evaluate(self._holding(run, [s]), values)) for s in names}
        held = node.evaluate(self._holding(run, names), values) if names else whole
        return value, {**entries, Source("value", update=node.name): _less(held, value)}

    def _carried(self, name: str) -> Source:
        return Source("pathwise" if name in self.compiled._derivation.pathwise else "distribution", name)

    def _holding(self, run: _Pass, names: Iterable[str]) -> _Pass:
        draws, log_probs = {}, {}
        for name in names:
            # The source was detached where it stands: what it gives is evaluated once more.
            outside = self._outside(name)
            value = outside.evaluate(run, [run.values[parent] for parent in outside.inputs])
            if name in self.compiled._derivation.pathwise:
                draws[name] = (value, self.samples[name])
            else:
                log_probs[name] = value
        return run.holding(draws, log_probs)

    def _objective(self, run: Run, changes: Mapping[_Entry, _Leaves]) -> Tensor:
        """The surrogate at constant inputs, a function of changes of what the sources give."""
        by_node: dict[nd.Node, list[_Leaves]] = {}
        for (_, node), leaves in changes.items():
            by_node.setdefault(node, []).append(leaves)
        with transform_rules():
            for node in self.compiled._program:
                values = [run.values[parent] for parent in node.inputs]
                here = by_node.get(node, [])
                if isinstance(node, Term) and node.weights:
                    values, here = [values[0], *_changed(values[1:], here[0])], here[1:]
                value = node.evaluate(run, values)
                for leaves in here:
                    value = _changed(value, leaves)
                run.values[node] = value
        result: Tensor = run.values[self.root]
        return result


def scored(compiled: Compiled) -> Compiled:
    """The same graph with the score function in place of every estimator that has boxes, and no direction constant."""
    estimators = {name: SCORED if one.scored else one for name, one in compiled.estimators.items()}
    return Compiled(compiled.graph, estimators, compiled.wrt, "never", compiled._shares)


def _carriers(update: CompiledUpdate) -> list[str]:
    """The samples whose boxes, or pathwise draws, are functions of an update's parameters inside its objective."""
    inner = [node for program in update.programs for node in program]
    boxed = [w.sample.name for node in inner if isinstance(node, Box) for w in node.weights if update.psi in w.free]
    drawn = [node.name for node in _all(inner) if node.pathwise]
    return list(dict.fromkeys([*boxed, *drawn])) if not update.detach else []


def _all(program: Iterable[nd.Node]) -> Iterable[nd.Node]:
    """The nodes of a program, with those inside its updates."""
    for node in program:
        yield node
        if isinstance(node, CompiledUpdate):
            yield from _all(node.program)


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _floats(tree: object) -> _Leaves:
    return [leaf for leaf in pytree.tree_leaves(tree) if _is_float(leaf)]


def _constant(tree: object) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


def _less(one: object, other: object) -> Any:
    return pytree.tree_map(lambda x, y: x - y if _is_float(x) else x, one, other)


def _changed(tree: object, changes: _Leaves) -> Any:
    """The tree with changes added to its floating-point leaves."""
    supply = iter(changes)
    return pytree.tree_map(lambda leaf: leaf + next(supply) if _is_float(leaf) else leaf, tree)


def _only(chosen: Tensor, weights: Sequence[_Leaves]) -> list[_Leaves]:
    """The weights of the chosen entries, zeros for the others."""
    pairs = zip(chosen.unbind(), weights, strict=True)
    return [[torch.where(one, leaf, torch.zeros_like(leaf)) for leaf in leaves] for one, leaves in pairs]
