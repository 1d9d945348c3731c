"""The compiler: from a declared graph and an estimator per sample node to a surrogate.

The four rules, as they stand in the code:

1. *Scope.* A term is boxed with the samples that reach it (`reach`), along the axes on which it depends on them draw
   by draw; all other axes of their log-probabilities are summed.
2. *Linear operations are free.* A pending box moves through sums, means and constant factors to each operand, where
   it keeps only the samples that reach that operand (`linear_operands`). A control variate compares the part of a term
   that its sample's box covers, and no summand that the box leaves aside (`part_of`).
3. *Nonlinear operations are not.* There the pending box stays. An estimator that linearises puts the box of its
   sample below the mean of the sample's plate instead, whatever comes after it.
4. *An update is a nonlinear operation* of the terms of its inner objective, whether it is a gradient step or the
   objective's maximum. The same rules derive the inner surrogate; "dice" curvature is rule 3 again, the box pushed
   through the update down to those terms.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from functools import cached_property
from typing import Any

from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.paths import descends_from, first_mixing, moves_with, samples_in
from ..ir.programs import schedule, up_to
from ..surrogate.expansions import ExpandedBox, Expansion
from ..surrogate.limited import Limited
from ..surrogate.solutions import CompiledArgmax
from ..surrogate.steps import CompiledDirection, CompiledGradient, CompiledStep, Placeholder
from ..surrogate.terms import Box, Controlled, Score, ScoreTerm, Total, Weight
from ..tensors.axes import Axes, Axis, describe, union
from .boxes import NOTHING, Key, Kind, Pending, routing, settled
from .controls import uncovered
from .estimator import SCORED, Crossing, GradientEstimator, Where
from .parts import part_of
from .reach import Reach, linear_operands
from .sites import DerivedSite
from .substitutions import replaces_terms

_GRADIENTS: dict[type[nd.Update], type[CompiledGradient]] = {nd.Step: CompiledStep, nd.Direction: CompiledDirection}


class Derivation:
    """Derives the surrogate of a graph, or of one update's inner objective.

    `estimators` has one entry per scored sample; the directions of updates in `constant` are not differentiated. For an
    inner objective, `update` is the update, `outer` the derivation around it, and `psi` stands for what the objective
    is a function of. `drawing` is the derivation whose draws and scores are used: for replays that of the surrogate.
    """

    def __init__(
        self,
        order: list[nd.Node],
        estimators: Mapping[str, GradientEstimator],
        constant: Set[nd.Update] = frozenset(),
        outer: "Derivation | None" = None,
        update: nd.Update | None = None,
        psi: nd.Node | None = None,
        shared: dict[Any, nd.Node] | None = None,
        controls_terms: bool = False,
        drawing: "Derivation | None" = None,
    ) -> None:
        self.controls_terms = controls_terms
        self.order, self.estimators, self.constant = order, estimators, constant
        self.outer, self.update, self.psi = outer, update, psi
        self.root: Derivation = outer.root if outer else self
        self.drawing: Derivation = drawing or self
        self.pathwise = {name for name, estimator in estimators.items() if not estimator.scored}
        scored = estimators.keys() - self.pathwise
        local = order if update is None else up_to(update.objective, update.variable)
        self.samples = {name: node for name, node in samples_in(local).items() if name in scored}
        self.memo: dict[Key, nd.Node] = {}
        self.alignments: dict[Key, dict[str, frozenset[Axis] | None]] = {}
        if update is None:
            self.reach = {Kind.WEIGHT: Reach(order, self.samples, estimators)}
            self.shared: dict[Any, nd.Node] = {} if shared is None else shared
        else:
            self._scope(update, local)

    def _scope(self, update: nd.Update, order: list[nd.Node]) -> None:
        """Which samples the inner surrogate scores, and which it only weights."""
        moving = moves_with(order, [update.variable], self.pathwise)
        inner = {s: node for s, node in self.samples.items() if any(p in moving for p in node.inputs)}
        data = {s: node for s, node in self.samples.items() if s not in inner}
        self.moved = moving
        self.region = descends_from(order, update.variable)
        self.reach = {
            Kind.SCORE: Reach(order, inner, dict.fromkeys(inner, SCORED), cut=update.variable),
            Kind.WEIGHT: Reach(order, data, self.estimators, cut=update.variable),
        }

    @cached_property
    def dependence(self) -> Reach:
        """What `reach` would be if every route were boxed at its end."""
        if self.update is not None:
            return self.reach[Kind.SCORE]
        return Reach(self.order, self.samples, dict.fromkeys(self.samples, SCORED))

    @cached_property
    def exact(self) -> "Derivation":
        """Boxes costs with every sample that is scored or descends from one, whatever their estimators.

        A draw that is replaced, or left out, moves the distributions of what is drawn after it.
        """
        moving, drawn = descends_from(self.order, *self.samples.values()), samples_in(self.order)
        names = [s for s, node in drawn.items() if s in self.estimators or node in moving]
        exact = {s: self.estimators[s].exact() if s in self.estimators else SCORED for s in names}
        if exact == self.estimators:
            return self
        return Derivation(self.order, exact, shared=self.shared, drawing=self)

    def surrogate(self, objective: nd.Node) -> nd.Node:
        """The objective with every pending box in its place."""
        return self.derive(objective, self.weighted(self.reach[Kind.WEIGHT][objective]))

    def weighted(self, names: Collection[str]) -> Pending:
        """Pending weights; with a control variate to come where the rule asks for one."""
        controlled = {s for s in names if self.estimators[s].control} if self.update is None else set()
        return frozenset((s, Kind.CONTROLLED if s in controlled else Kind.WEIGHT) for s in names)

    def inner_surrogate(self) -> nd.Node:
        """The update's inner objective as a function of `psi` whose gradient is the update's direction."""
        assert self.update is not None
        objective = self.update.objective
        scored = frozenset((s, Kind.SCORE) for s in self.reach[Kind.SCORE][objective])
        weighted = frozenset(
            (s, Kind.WEIGHT) for s in self.reach[Kind.WEIGHT][objective] if self.estimators[s].inside.boxes
        )
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
        return frozenset((s, kind) for s, kind in pending if s in self.reach[routing(kind)][node])

    def _needs(self, node: nd.Node, pending: Pending) -> list[Key]:
        if self._elsewhere(node) and not pending:
            return []
        due = self._due(node, pending)
        if due:
            return [(node, settled(pending, due))]
        stuck = self.stuck(node, pending)
        if stuck:
            return [(node, pending - stuck)]
        if isinstance(node, nd.Update):
            return [(parent, NOTHING) for parent in (node.params, *node.inputs[2:])]
        return self.received(node, pending)

    def received(self, node: nd.Node, pending: Pending) -> list[Key]:
        """The inputs of a node, with what moves through it to each."""
        moving = self._moving_on(node, pending)
        return [(parent, self._reaches(parent, moving[i])) for i, parent in enumerate(node.inputs)]

    def _due(self, node: nd.Node, pending: Pending) -> list[str]:
        """The samples whose control variate belongs at the node: below it, nothing changes in how they are boxed."""
        waiting = [s for s, kind in pending if kind is Kind.CONTROLLED]
        found = self.alignments_below(node, settled(pending)) if waiting else {}
        return sorted((s for s in waiting if found[s] is not None), key=lambda s: self.samples[s].index)

    def alignments_below(self, node: nd.Node, pending: Pending) -> dict[str, frozenset[Axis] | None]:
        """The axes along which the weights pending at the node are kept wherever they end; `None` if that differs."""
        stack = [(node, pending)]
        while stack:
            key = stack[-1]
            below = [] if self.stuck(*key) else [(n, settled(p)) for n, p in self._needs(*key)]
            missing = [child for child in below if child not in self.alignments]
            stack.extend(missing)
            if not missing:
                stack.pop()
                self.alignments[key] = {s: self._agreed(key[0], s, below) for s, _ in key[1]}
        return self.alignments[node, pending]

    def _agreed(self, node: nd.Node, name: str, below: list[Key]) -> frozenset[Axis] | None:
        own = self.reach[Kind.WEIGHT][node][name]
        found = {self.alignments[key][name] for key in below if name in self.alignments[key]}
        # Below a factor that depends on the draw too, nothing has zero mean; below a sum it sees less of other draws.
        if not found or linear_operands(node, [name], self.dependence) is None:
            return own
        return own if found == {own} and own == self.dependence[node][name] else None

    def stuck(self, node: nd.Node, pending: Pending) -> Pending:
        """The pending boxes that stay at the node, which is not linear in what they score."""
        nonlinear = {place for place in self.reach if self.operands(node, pending, place) is None}
        return frozenset((s, kind) for s, kind in pending if routing(kind) in nonlinear)

    def _moving_on(self, node: nd.Node, pending: Pending) -> list[Pending]:
        """What each input of a node receives: the boxes that move through it, and at a mean those that belong there."""
        received = [NOTHING] * len(node.inputs)
        for place in self.reach:
            chosen = frozenset((s, kind) for s, kind in pending if routing(kind) is place)
            for position in self.operands(node, pending, place) or ():
                received[position] |= chosen
        return [found | self._averaged(node) for found in received]

    def _elsewhere(self, node: nd.Node) -> bool:
        """Whether the enclosing derivation, or the placeholder, provides the node."""
        if self.update is None:
            return False
        held = isinstance(node, nd.Sample) and node.name not in self.pathwise
        return held or node is self.update.variable or node not in self.region

    def operands(self, node: nd.Node, pending: Pending, place: Kind) -> list[int] | None:
        """The inputs to which pending boxes of one kind may move.

        The kinds are asked apart: where an update's own scores stand decides its direction, and that must not depend on
        what else is boxed.
        """
        names = [s for s, kind in pending if routing(kind) is place]
        operands = linear_operands(node, names, self.reach[place])
        if operands is None or place is Kind.WEIGHT or not names:
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
        reaching = self.reach[Kind.WEIGHT][node.inputs[0]]
        below = [s for s in reaching if self.estimators[s].crosses(self.samples[s], node) is Crossing.BELOW]
        return self.weighted([s for s in below if self.update is None or self.estimators[s].inside.boxes])

    def _build(self, node: nd.Node, pending: Pending, parts: list[nd.Node]) -> nd.Node:
        if self._elsewhere(node) and not pending:
            assert self.outer is not None
            is_variable = self.update is not None and node is self.update.variable
            return self.psi if is_variable and self.psi else self.outer.derive(node)
        due = self._due(node, pending)
        if due:
            return self._with_controls(node, pending, parts[0], due)
        stuck = self.stuck(node, pending)
        if stuck:
            return self._box(node, parts[0], stuck, pending - stuck)
        return self._update(node, parts) if isinstance(node, nd.Update) else self._own(node).with_inputs(parts)

    def _with_controls(self, node: nd.Node, pending: Pending, term: nd.Node, names: list[str]) -> nd.Node:
        """The derived node, and what has zero mean and makes it vary less."""
        wanted = [(control, s) for s in names if (control := self.estimators[s].control)]
        below = settled(pending, names)
        found: list[nd.Node | None] = []
        for control, name in wanted:
            part = part_of(self, node, below, name)
            term_of_part = self.derive(part, self._reaches(part, below))
            site = DerivedSite(self, node, part, self.samples[name], Kind.WEIGHT, term_of_part)
            found += [control.node(site), uncovered(site, term) if control.whole and part is not node else None]
        return _controlled(term, found)

    def _own(self, node: nd.Node) -> nd.Node:
        if isinstance(node, nd.Sample) and node.name in self.pathwise:
            return self.share(("pathwise", node), lambda: self.estimators[node.name].draw(node))
        return node

    def _update(self, node: nd.Update, parts: list[nd.Node]) -> nd.Node:
        # Inside another update's inner gradient, an update is the function of its parameters that it is: no boxes.
        estimators, detach = self.estimators, node in self.constant
        if self.update is not None:
            estimators = plain(self.estimators)
        axes = union(parts[0].axes, node.variable.axes, node.objective.axes)
        psi, inner, surrogates = self._inner(node, estimators, axes)
        if isinstance(node, nd.Argmax):
            return CompiledArgmax(node, parts[0], parts[1:], psi, surrogates, detach)
        shared = self._shared_scores(node, inner)
        return _GRADIENTS[type(node)](node, parts[0], parts[1:], psi, surrogates, detach, shared)

    def _inner(
        self, node: nd.Update, estimators: Mapping[str, GradientEstimator], axes: Axes
    ) -> tuple[Placeholder, "Derivation", list[nd.Node]]:
        """The update's placeholder, derivation and surrogate; behind it the plain one if it has control variates.

        Inside another update's objective the surrogate may depend on copies of that update's parameters: then there is
        one placeholder for each.
        """
        psi = Placeholder(node, axes)
        inner = Derivation(self.order, estimators, outer=self, update=node, psi=psi)
        surrogates = [inner.inner_surrogate()]
        if any(estimators[s].inside.control for s in inner.reach[Kind.SCORE][node.objective]):
            controlled = Derivation(self.order, estimators, outer=self, update=node, psi=psi, controls_terms=True)
            surrogates.insert(0, controlled.inner_surrogate())
        wider = union(axes, *(surrogate.axes for surrogate in surrogates))
        if wider != axes:
            return self._inner(node, estimators, wider)
        for surrogate in surrogates:
            _refuse_mixed_copies(node, psi, surrogate)
        return psi, inner, surrogates

    def _shared_scores(self, node: nd.Update, inner: "Derivation") -> list[tuple[Score, Score]]:
        """The scores of an inner derivation with the same ones at the parameters themselves."""
        found: list[tuple[Score, Score]] = []
        names = inner.reach[Kind.SCORE][node.objective] if self.update is None else ()
        for sample in map(self.samples.__getitem__, names):
            direct = all(parent is node.params or parent not in inner.region for parent in sample.inputs)
            at_psi = inner.score(sample)
            if direct and at_psi.axes == sample.axes:
                found.append((at_psi, self.score(sample)))
        return found

    def _box(self, node: nd.Node, base: nd.Node, pending: Pending, inside: Pending) -> nd.Node:
        """Box a term: importance weights and linearised scores as factors, the update's own scores as a score term."""
        factors = frozenset((s, k) for s, k in pending if k is Kind.WEIGHT or self.estimators[s].inside.boxes)
        scored = pending - factors
        term = self._boxed(node, base, factors)
        if not scored:
            return term
        still = self._still()
        fixed = still._boxed(node, still.derive(node, inside), factors)
        weights = self._weights(node, scored)
        score_term = ScoreTerm(fixed, self.total(weights), weights)
        return Total(term, score_term) if self.psi in term.free else score_term

    def _boxed(self, node: nd.Node, base: nd.Node, factors: Pending) -> nd.Node:
        """The term with its boxes; outside of updates an estimator may put something else in its place."""
        taken = {s for s, _ in factors if self.update is None and replaces_terms(self.estimators[s])}
        term = self._in_boxes(node, base, frozenset((s, kind) for s, kind in factors if s not in taken))
        for name in sorted(taken, key=lambda s: self.samples[s].index, reverse=True):  # the later drawn is innermost
            term = self._replaced(node, name, term)
        return term

    def _replaced(self, node: nd.Node, name: str, term: nd.Node) -> nd.Node:
        estimator, sample = self.estimators[name], self.samples[name]
        site = self._site(node, name, Kind.WEIGHT, term)
        found = estimator.term(site)
        if found is None:
            return self._in_boxes(node, term, frozenset([(name, Kind.WEIGHT)]))
        return Limited(site, found) if estimator.orders(sample) == 1 else found

    def _in_boxes(self, node: nd.Node, base: nd.Node, factors: Pending) -> nd.Node:
        weights = self._weights(node, factors)
        plain = tuple(weight for weight in weights if not isinstance(weight, Expansion))
        term = Box(base, self.total(plain), plain) if plain else base
        for weight in weights:
            if isinstance(weight, Expansion):
                term = ExpandedBox(term, weight, (weight,))
        return term if self.update is None else self._compared(node, term, factors)

    def _compared(self, node: nd.Node, term: nd.Node, factors: Pending) -> nd.Node:
        """The terms of an inner objective with the factors and control variates that their estimators give them."""
        for s, kind in sorted(factors, key=lambda item: item[0]):
            term = self.estimators[s].inside.factor(self._site(node, s, kind, term))
        if not self.controls_terms:
            return term
        names = sorted(s for s, kind in factors if kind is Kind.SCORE)
        wanted = [(control, s) for s in names if (control := self.estimators[s].inside.control)]
        return _controlled(term, [control.node(self._site(node, s, Kind.SCORE, term)) for control, s in wanted])

    def _site(self, node: nd.Node, name: str, kind: Kind, term: nd.Node) -> DerivedSite:
        return DerivedSite(self, node, node, self.samples[name], kind, term)

    def _still(self) -> "Derivation":
        """The same inner objective at the parameters themselves instead of at `psi`."""
        if not hasattr(self, "_at_parameters"):
            self._at_parameters = Derivation(self.order, self.estimators, outer=self.outer, update=self.update)
        return self._at_parameters

    def _weights(self, node: nd.Node, pending: Pending) -> tuple[Weight, ...]:
        ordered = sorted(pending, key=lambda item: self.samples[item[0]].index)
        return tuple(self._weight(node, s, kind) for s, kind in ordered)

    def _weight(self, node: nd.Node, name: str, kind: Kind) -> Weight:
        return self.weight(name, self.reach[kind][node][name], kind)

    def weight(self, name: str, aligned: Iterable[Axis], kind: Kind = Kind.WEIGHT) -> Weight:
        """The log-probability of a sample's draws relative to its recorded value, kept along the axes `aligned`."""
        sample = self.samples[name]
        kept = tuple(axis for axis in sample.axes if axis in aligned)
        score = self.score(sample) if kind is Kind.SCORE or self.outer is None else self.outer.score(sample)
        ratio = self.estimators[name].ratio(score, kept, self._where(kind))
        return self.share(ratio.key, lambda: ratio)

    def _where(self, kind: Kind) -> Where:
        if self.update is None:
            return Where.OUTSIDE
        return Where.OWN if kind is Kind.SCORE else Where.DATA

    def ancestors(self, node: nd.Node, sample: nd.Sample, kind: Kind) -> tuple[Weight, ...]:
        """The weights of a sample's strict ancestors, as they box the node."""
        above = samples_in(schedule(sample.inputs))
        reaching = self.reach[kind][node]
        return self._weights(node, frozenset((s, kind) for s in reaching if s in above))

    def score(self, sample: nd.Sample) -> Score:
        """The log-probability of the sample's draws, its parents as this derivation has them."""
        drawn = self.root.derive(sample)
        parents = [self.derive(parent) for parent in sample.inputs]
        return self.share(("score", sample, *parents), lambda: Score(sample, drawn, parents))

    def total(self, weights: tuple[Weight, ...]) -> nd.Node:
        """The sum of the weights. Common beginnings are shared, so a chain of samples costs one addition each."""
        total: nd.Node = weights[0]
        for weight in weights[1:]:
            total = self.share((total, weight), lambda left=total, right=weight: Total(left, right))
        return total

    def share(self, key: Any, make: Callable[..., Any]) -> Any:
        """One node per key in the whole derivation: what is equal is computed once."""
        shared = self.root.shared
        if key not in shared:
            shared[key] = make()
        return shared[key]


def _refuse_mixed_copies(update: nd.Update, psi: Placeholder, surrogate: nd.Node) -> None:
    """A copy for every copy of an outer update's parameters must not meet the others."""
    found = first_mixing(psi, surrogate, set(psi.axes) - set(update.axes))
    if found:
        node, plate = found
        raise CompileError(
            f"update {update.name!r} (axes: {describe(update.axes)}) is part of another update's objective, which "
            f"keeps the plate {plate.name!r}: there is one {update.name!r} for each of its draws, but "
            f"{node.name!r} reduces that plate. Reduce it in the whole objective of the outer update"
        )


def _controlled(term: nd.Node, controls: Iterable[nd.Node | None]) -> nd.Node:
    made = [control for control in controls if control is not None]
    return Controlled(term, made) if made else term


def plain(estimators: Mapping[str, GradientEstimator]) -> dict[str, GradientEstimator]:
    """The estimators where nothing is boxed: every node has the value that the declaration gives it."""
    return {name: SCORED if estimator.scored else estimator for name, estimator in estimators.items()}
