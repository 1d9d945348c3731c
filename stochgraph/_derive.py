"""The compiler: from a declared graph and an estimator per sample node to a surrogate.

The four rules, as they stand in the code:

1. *Scope.* A term is boxed with the samples that reach it (`reach`), along the axes on which it depends on them draw
   by draw; all other axes of their log-probabilities are summed.
2. *Linear operations are free.* A pending box moves through sums, means and constant factors to each operand, where
   it keeps only the samples that reach that operand (`linear_operands`).
3. *Nonlinear operations are not.* There the pending box stays. An estimator that linearises puts the box of its
   sample below the mean of the sample's plate instead, whatever comes after it.
4. *An update is a nonlinear operation* of the terms of its inner objective, whether it is a gradient step or the
   objective's maximum. The same rules derive the inner surrogate; "dice" curvature is rule 3 again, the box pushed
   through the update down to those terms.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from . import _node as nd
from ._axes import Axes, Axis, describe, union
from ._errors import CompileError
from ._implicit import CompiledArgmax
from ._surrogate import Box, CompiledStep, CompiledUpdate, Placeholder, Score, ScoreTerm, Total, Weight

_BOTH = (operator.add, operator.sub)
_UNARY = (operator.neg, operator.pos)


@dataclass(frozen=True)
class Rule:
    """What an estimator asks of the compiler for its sample node."""

    boxes_costs: bool = True  # box everything that comes later, updates included
    boxes_means: bool = False  # box where the sample's plate is averaged, and nowhere later
    averages: bool = False  # the plate's mean log-probability in place of its sum
    boxes_terms: bool = False  # box the terms of an update's inner objective
    pathwise: bool = False  # differentiate the draw itself


COST = Rule()
VALUE = Rule(boxes_costs=False)

Reach = dict[nd.Node, dict[str, frozenset[Axis]]]
Pending = frozenset[tuple[str, bool]]  # (sample, whether its score is taken at the placeholder)
NOTHING: Pending = frozenset()


def value_rules(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rules under which nothing is boxed: every node has the value that the declaration gives it."""
    return {name: Rule(boxes_costs=False, pathwise=rule.pathwise) for name, rule in rules.items()}


def samples_in(order: Iterable[nd.Node]) -> dict[str, nd.Sample]:
    """The sample nodes by name."""
    return {node.name: node for node in order if isinstance(node, nd.Sample)}


def averaging_plate(sample: nd.Sample) -> Axis | None:
    """The innermost plate of a sample: averaging it averages its draws."""
    plates = [axis for axis in sample.plates if not axis.time]
    return plates[-1] if plates else None


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


def find_reach(
    order: list[nd.Node], sources: Mapping[str, nd.Sample], rules: Mapping[str, Rule], cut: nd.Node | None = None
) -> Reach:
    """For every node, the samples that reach it and are not boxed yet, with the axes on which they do so draw by draw.

    A sample is gone from a node once all its routes there have been boxed at a mean, or dropped at an update. At the
    node `cut` nothing arrives.
    """
    reach: Reach = {}
    for node in order:
        merged: dict[str, frozenset[Axis]] = {}
        if node is not cut:
            for parent in node.inputs:
                for name, aligned in reach[parent].items():
                    merged[name] = merged.get(name, aligned) & aligned
            merged = {s: a & frozenset(node.axes) for s, a in merged.items() if _passes(node, s, sources, rules)}
        if isinstance(node, nd.Sample) and node.name in sources:
            merged[node.name] = frozenset(node.axes)
        reach[node] = merged
    return reach


def _passes(node: nd.Node, name: str, sources: Mapping[str, nd.Sample], rules: Mapping[str, Rule]) -> bool:
    rule = rules[name]
    if isinstance(node, nd.Update):
        return rule.boxes_costs
    if rule.boxes_means and isinstance(node, (nd.Reduction, nd.Reduce)):
        plate = averaging_plate(sources[name])
        if plate in node.over and isinstance(node, nd.Reduce):
            raise CompileError(
                f"sample {name!r} reaches {node.name!r} (axes reduced: {describe(node.over)}), which is not a mean: "
                "an estimator that linearises at the plate's mean has no mean to linearise at; use SF for this node"
            )
        return plate not in node.over
    return True


def moves_with(order: list[nd.Node], sources: Iterable[nd.Node], pathwise: Iterable[str] = ()) -> set[nd.Node]:
    """The nodes whose value moves with the sources while every draw is held fixed (pathwise draws move)."""
    moving, moved_draws = set(sources), set(pathwise)
    for node in order:
        held = isinstance(node, nd.Sample) and node.name not in moved_draws
        if not held and not isinstance(node, nd.Stop) and any(parent in moving for parent in node.inputs):
            moving.add(node)
    return moving


def descends_from(order: list[nd.Node], source: nd.Node) -> set[nd.Node]:
    """The node and all its descendants, through values and distributions."""
    found = {source}
    for node in order:
        if any(parent in found for parent in node.inputs):
            found.add(node)
    return found


def between(start: nd.Node, goal: nd.Node) -> list[nd.Node]:
    """The nodes on a way from `start` to `goal`, `start` itself left out."""
    order: list[nd.Node] = []
    seen, stack = {goal}, [goal]
    while stack:
        node = stack.pop()
        order.append(node)
        fresh = [parent for parent in node.inputs if parent not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    below = {start}
    for node in sorted(order, key=lambda n: n.index):
        if any(parent in below for parent in node.inputs):
            below.add(node)
    return sorted(below - {start}, key=lambda n: n.index)


class Derivation:
    """Derives the surrogate of a graph, or of one update's inner objective.

    `rules` has one entry per scored sample; updates that a sample in `constant` feeds have a constant direction. For an
    inner objective, `update` is the update, `outer` the derivation around it, and `psi` stands for what the objective
    is a function of.
    """

    def __init__(
        self,
        order: list[nd.Node],
        rules: Mapping[str, Rule],
        constant: Set[str] = frozenset(),
        outer: "Derivation | None" = None,
        update: nd.Update | None = None,
        psi: nd.Node | None = None,
    ) -> None:
        self.order, self.rules, self.constant = order, rules, constant
        self.outer, self.update, self.psi = outer, update, psi
        self.root: Derivation = outer.root if outer else self
        self.pathwise = {name for name, rule in rules.items() if rule.pathwise}
        scored = rules.keys() - self.pathwise
        self.samples = {name: node for name, node in samples_in(order).items() if name in scored}
        self.memo: dict[tuple[nd.Node, Pending], nd.Node] = {}
        self.moving: dict[nd.Node, bool] = {psi: isinstance(psi, Placeholder)} if psi else {}
        if update is None:
            self.reach = {False: find_reach(order, self.samples, rules)}
            self.shared: dict[Any, nd.Node] = {}
        else:
            self._scope(update)

    def _scope(self, update: nd.Update) -> None:
        """Which samples the inner surrogate scores, and which it only weights."""
        moving = moves_with(self.order, [update.variable], self.pathwise)
        inner = {s: node for s, node in self.samples.items() if any(p in moving for p in node.inputs)}
        data = {s: node for s, node in self.samples.items() if s not in inner}
        self.moved = moving
        self.region = descends_from(self.order, update.variable)
        self.reach = {
            True: find_reach(self.order, inner, dict.fromkeys(inner, COST), cut=update.variable),
            False: find_reach(self.order, data, self.rules, cut=update.variable),
        }

    def surrogate(self, objective: nd.Node) -> nd.Node:
        """The objective with every pending box in its place."""
        return self.derive(objective, frozenset((s, False) for s in self.reach[False][objective]))

    def inner_surrogate(self) -> nd.Node:
        """The update's inner objective as a function of `psi` whose gradient is the update's direction."""
        assert self.update is not None
        objective = self.update.objective
        scored = frozenset((s, True) for s in self.reach[True][objective])
        weighted = frozenset((s, False) for s in self.reach[False][objective] if self.rules[s].boxes_terms)
        return self.derive(objective, scored | weighted)

    def derive(self, node: nd.Node, pending: Pending = NOTHING) -> nd.Node:
        """The node with `pending` boxed in it. Iterative: graphs may be deeper than Python's stack."""
        stack = [(node, pending)]
        while stack:
            key = stack[-1]
            needs = [] if key in self.memo else self._needs(*key)
            missing = [need for need in needs if need not in self.memo]
            stack.extend(missing)
            if not missing:
                stack.pop()
                if key not in self.memo:
                    self.memo[key] = self._build(*key, [self.memo[need] for need in needs])
        return self.memo[node, pending]

    def _reaches(self, node: nd.Node, pending: Pending) -> Pending:
        return frozenset((s, inner) for s, inner in pending if s in self.reach[inner][node])

    def _needs(self, node: nd.Node, pending: Pending) -> list[tuple[nd.Node, Pending]]:
        if self._elsewhere(node) and not pending:
            return []
        stuck = self._stuck(node, pending)
        if stuck:
            return [(node, pending - stuck)]
        if isinstance(node, nd.Update):
            return [(parent, NOTHING) for parent in (node.params, *node.inputs[2:])]
        moving = self._moving_on(node, pending)
        return [(parent, self._reaches(parent, moving[i])) for i, parent in enumerate(node.inputs)]

    def _stuck(self, node: nd.Node, pending: Pending) -> Pending:
        """The pending boxes that stay at the node, which is not linear in what they score."""
        nonlinear = {inner for inner in self.reach if self._operands(node, pending, inner) is None}
        return frozenset((s, inner) for s, inner in pending if inner in nonlinear)

    def _moving_on(self, node: nd.Node, pending: Pending) -> list[Pending]:
        """What each input of a node receives: the boxes that move through it, and at a mean those that belong there."""
        received = [NOTHING] * len(node.inputs)
        for inner in self.reach:
            chosen = frozenset((s, i) for s, i in pending if i is inner)
            for position in self._operands(node, pending, inner) or ():
                received[position] |= chosen
        return [found | self._averaged(node) for found in received]

    def _elsewhere(self, node: nd.Node) -> bool:
        """Whether the enclosing derivation, or the placeholder, provides the node."""
        if self.update is None:
            return False
        held = isinstance(node, nd.Sample) and node.name not in self.pathwise
        return held or node is self.update.variable or node not in self.region

    def _operands(self, node: nd.Node, pending: Pending, inner: bool) -> list[int] | None:
        """The inputs to which pending boxes of one kind may move.

        The kinds are asked apart: where an update's own scores stand decides its direction, and that must not depend on
        what else is boxed.
        """
        names = [s for s, i in pending if i is inner]
        operands = linear_operands(node, names, self.reach[inner])
        if operands is None or not inner or not names:
            return operands
        # A factor that moves with `psi` would multiply a score term, whose value is no use: its derivative would be
        # lost.
        scaling = isinstance(node, nd.Apply) and node.fn in (operator.mul, operator.truediv)
        others = [parent for i, parent in enumerate(node.inputs) if i not in operands]
        return None if scaling and any(parent in self.moved for parent in others) else operands

    def _averaged(self, node: nd.Node) -> Pending:
        """The samples whose box belongs below this mean. Inside an update it is curvature that boxes."""
        if not isinstance(node, nd.Reduction):
            return NOTHING
        return frozenset(
            (s, False)
            for s in self.reach[False][node.inputs[0]]
            if self.rules[s].boxes_means and averaging_plate(self.samples[s]) in node.over
            if self.update is None or self.rules[s].boxes_terms
        )

    def _build(self, node: nd.Node, pending: Pending, parts: list[nd.Node]) -> nd.Node:
        if self._elsewhere(node) and not pending:
            assert self.outer is not None
            is_variable = self.update is not None and node is self.update.variable
            return self.psi if is_variable and self.psi else self.outer.derive(node)
        stuck = self._stuck(node, pending)
        if stuck:
            return self._box(node, parts[0], stuck, pending - stuck)
        return self._update(node, parts) if isinstance(node, nd.Update) else self._own(node).with_inputs(parts)

    def _own(self, node: nd.Node) -> nd.Node:
        if isinstance(node, nd.Sample) and node.name in self.pathwise:
            return self._share(("pathwise", node), lambda: _pathwise(node))
        return node

    def _moves(self, node: nd.Node) -> bool:
        """Whether a derived node depends on `psi`."""
        stack = [node]
        while stack:
            top = stack[-1]
            unknown = [parent for parent in top.inputs if parent not in self.moving]
            if unknown and top not in self.moving:
                stack.extend(unknown)
                continue
            stack.pop()
            self.moving.setdefault(top, any(self.moving[parent] for parent in top.inputs))
        return self.moving[node]

    def _update(self, node: nd.Update, parts: list[nd.Node]) -> nd.Node:
        # Inside another update's inner gradient, an update is the function of its parameters that it is: no boxes.
        rules, detach = self.rules, not self.constant.isdisjoint(data_of(node, self.order))
        if self.update is not None:
            rules = value_rules(self.rules)
        axes = union(parts[0].axes, node.variable.axes, node.objective.axes)
        psi, surrogate = self._inner(node, rules, axes)
        return self._compiled(node)(node, parts[0], parts[1:], psi, surrogate, detach)

    def _inner(self, node: nd.Update, rules: Mapping[str, Rule], axes: Axes) -> tuple[Placeholder, nd.Node]:
        """The update's placeholder and surrogate.

        Inside another update's objective the surrogate may depend on copies of that update's parameters: then there is
        one placeholder for each.
        """
        psi = Placeholder(node, axes)
        surrogate = Derivation(self.order, rules, outer=self, update=node, psi=psi).inner_surrogate()
        wider = union(axes, surrogate.axes)
        if wider != axes:
            return self._inner(node, rules, wider)
        _refuse_mixed_copies(node, psi, surrogate)
        return psi, surrogate

    @staticmethod
    def _compiled(node: nd.Update) -> type[CompiledUpdate]:
        return CompiledArgmax if isinstance(node, nd.Argmax) else CompiledStep

    def _box(self, node: nd.Node, base: nd.Node, pending: Pending, inside: Pending) -> nd.Node:
        """Box a term: importance weights and linearised scores as factors, the update's own scores as a score term."""
        factors = frozenset((s, i) for s, i in pending if not i or self.rules[s].boxes_terms)
        scored = pending - factors
        term = self._boxed(node, base, factors)
        if not scored:
            return term
        still = self._still()
        fixed = still._boxed(node, still.derive(node, inside), factors)
        weights = self._weights(node, scored)
        score_term = ScoreTerm(fixed, self._total(weights), weights)
        return Total(term, score_term) if self._moves(term) else score_term

    def _boxed(self, node: nd.Node, base: nd.Node, factors: Pending) -> nd.Node:
        if not factors:
            return base
        weights = self._weights(node, factors)
        return Box(base, self._total(weights), weights)

    def _still(self) -> "Derivation":
        """The same inner objective at the parameters themselves instead of at `psi`."""
        if not hasattr(self, "_at_parameters"):
            self._at_parameters = Derivation(self.order, self.rules, outer=self.outer, update=self.update)
        return self._at_parameters

    def _weights(self, node: nd.Node, pending: Pending) -> tuple[Weight, ...]:
        ordered = sorted(pending, key=lambda item: self.samples[item[0]].index)
        return tuple(self._weight(node, s, inner) for s, inner in ordered)

    def _weight(self, node: nd.Node, name: str, inner: bool) -> Weight:
        sample = self.samples[name]
        aligned = self.reach[inner][node][name]
        kept = tuple(axis for axis in sample.axes if axis in aligned)
        score = self.score(sample) if inner or self.outer is None else self.outer.score(sample)
        average = self.rules[name].averages and not inner
        return self._share((score, kept, average), lambda: Weight(score, kept, average))

    def score(self, sample: nd.Sample) -> Score:
        """The log-probability of the sample's draws, its parents as this derivation has them."""
        drawn = self.root.derive(sample)
        parents = [self.derive(parent) for parent in sample.inputs]
        return self._share(("score", sample, *parents), lambda: Score(sample, drawn, parents))

    def _total(self, weights: tuple[Weight, ...]) -> nd.Node:
        """The sum of the weights. Common beginnings are shared, so a chain of samples costs one addition each."""
        total: nd.Node = weights[0]
        for weight in weights[1:]:
            total = self._share((total, weight), lambda left=total, right=weight: Total(left, right))
        return total

    def _share(self, key: Any, make: Callable[..., Any]) -> Any:
        """One node per key in the whole derivation: what is equal is computed once."""
        shared = self.root.shared
        if key not in shared:
            shared[key] = make()
        return shared[key]


def _refuse_mixed_copies(update: nd.Update, psi: Placeholder, surrogate: nd.Node) -> None:
    """A copy for every copy of an outer update's parameters must not meet the others."""
    added = set(psi.axes) - set(update.axes)
    for node in between(psi, surrogate) if added else ():
        mixed = added & set(getattr(node, "over", ()))
        if mixed:
            raise CompileError(
                f"update {update.name!r} (axes: {describe(update.axes)}) is part of another update's objective, which "
                f"keeps the plate {min(mixed).name!r}: there is one {update.name!r} for each of its draws, but "
                f"{node.name!r} reduces that plate. Reduce it in the whole objective of the outer update"
            )


def data_of(update: nd.Update, order: list[nd.Node]) -> list[str]:
    """The samples that feed an update's objective, other than through what it is a function of."""
    samples = samples_in(order)
    reach = find_reach(order, samples, dict.fromkeys(samples, COST), cut=update.variable)
    return list(reach[update.objective])


def _pathwise(node: nd.Sample) -> nd.Sample:
    moved = copy.copy(node)
    moved.pathwise = True
    moved.declared_axes = node.parent_axes
    return moved
