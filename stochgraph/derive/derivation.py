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

Three passes have them: `reach`, `placement`, which decides where boxes stand, and building, which is here.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from typing import Any, cast

from ..ir import nodes as nd
from ..ir.paths import descends_from, samples_in
from ..surrogate.terms import Score
from .boxes import NOTHING, Key, Pending
from .boxing import Ratios, box
from .controls import Controls
from .deriving import Around
from .estimator import SCORED, GradientEstimator, Made
from .placement import Decision, Placement
from .scopes import ObjectiveScope, Scope
from .updates import compiled_update


class Derivation:
    """Derives the surrogate of a graph, or of one update's inner objective.

    Args:
        order: the declared nodes.
        estimators: one for every scored sample.
        constant: the updates whose direction is not differentiated.
        around: for the objective of an update, what is around it.
        shared: what is made once, where several derivations are of one surrogate.
        drawing: the derivation whose draws and scores are used: for replays that of the surrogate.

    Attributes:
        placement: where boxes stand.
        built: what became of nodes with open boxes.
        updates: the derivations of the objectives of updates.
    """

    def __init__(
        self,
        order: list[nd.Node],
        estimators: Mapping[str, GradientEstimator],
        constant: Iterable[nd.Update] = (),
        around: Around | None = None,
        shared: dict[Hashable, object] | None = None,
        drawing: "Derivation | None" = None,
    ) -> None:
        self.order, self.around, self.constant = order, around, frozenset(constant)
        self.placement = around.placement if around else Placement(ObjectiveScope(order, estimators))
        self.root: Derivation = cast(Derivation, around.outer.root) if around else self
        self.drawing: Derivation = drawing or self
        self.ratios, self.controls = Ratios(self), Controls(self)
        self._shared: dict[Hashable, object] = {} if shared is None else shared
        self.built: dict[Key, nd.Node] = {}
        self.updates: dict[nd.Update, Derivation] = {}

    @property
    def scope(self) -> Scope:
        """The objective that is derived."""
        return self.placement.scope

    @property
    def estimators(self) -> Mapping[str, GradientEstimator]:
        """One for every scored sample."""
        return self.scope.estimators

    @property
    def pathwise(self) -> set[str]:
        """The names of the samples whose draw is differentiated."""
        return self.scope.pathwise

    @cached_property
    def exact(self) -> "Derivation":
        """Boxes costs with every sample that is scored or descends from one, whatever their estimators.

        A draw that is replaced, or left out, moves the distributions of what is drawn after it.
        """
        moving, drawn = descends_from(self.order, *self.scope.samples.values()), samples_in(self.order)
        names = [s for s, node in drawn.items() if s in self.estimators or node in moving]
        exact = {s: self.estimators[s].exact() if s in self.estimators else SCORED for s in names}
        if exact == self.estimators:
            return self
        return Derivation(self.order, exact, shared=self._shared, drawing=self)

    @cached_property
    def at_parameters(self) -> "Derivation":
        """The same inner objective at the parameters themselves instead of at `psi`."""
        assert self.around is not None
        return self.inside(Around(self.around.outer, self.around.update, self.placement))

    def inside(self, around: Around) -> "Derivation":
        """The derivation of an update's objective."""
        inner = Derivation(self.order, around.placement.scope.estimators, around=around, shared=self._shared)
        if around.outer is self:
            self.updates[around.update] = inner
        return inner

    def surrogate(self, objective: nd.Node) -> nd.Node:
        """The objective with every pending box in its place; of an update, what has its direction as the gradient."""
        return self.derive(objective, self.scope.start(objective))

    def derive(self, node: nd.Node, pending: Pending = NOTHING) -> nd.Node:
        """The node with `pending` boxed in it. Iterative: graphs may be deeper than Python's stack."""
        start = (node, pending)
        decisions = self.placement.place(start)
        stack = [start]
        while stack:
            key = stack[-1]
            missing = [] if key in self.built else [need for need in decisions[key].needs if need not in self.built]
            stack.extend(missing)
            if not missing:
                stack.pop()
                if key not in self.built:
                    self.built[key] = self._build(key, decisions[key])
        return self.built[start]

    def _build(self, key: Key, decision: Decision) -> nd.Node:
        node, pending = key
        parts = [self.built[need] for need in decision.needs]
        if decision.controlled:
            return self.controls.added(decision.needs[0], parts[0], decision.controlled)
        if decision.stays:
            return box(self, node, parts[0], decision.stays, pending - decision.stays)
        if self.scope.provided(node) and not pending:
            return self._provided(node)
        return compiled_update(self, node, parts) if isinstance(node, nd.Update) else self._own(node).with_inputs(parts)

    def _provided(self, node: nd.Node) -> nd.Node:
        """A node as the derivation around this one has it, or what stands for it here."""
        assert self.around is not None
        is_variable = node is self.around.update.variable
        return self.around.psi if is_variable and self.around.psi else self.around.outer.derive(node)

    def _own(self, node: nd.Node) -> nd.Node:
        if isinstance(node, nd.Sample) and node.name in self.pathwise:
            return self.share(("pathwise", node), lambda: self.estimators[node.name].draw(node))
        return node

    def score(self, sample: nd.Sample) -> Score:
        """The log-probability of the sample's draws, its parents as this derivation has them."""
        return self.ratios.score(sample)

    def noise(self, sample: nd.Sample) -> nd.Sample | None:
        """The sample that the estimator of this one draws beside it."""
        drawn = self.share(("noise", sample), lambda: self.estimators[sample.name].noise(sample))
        return None if drawn is None else cast(nd.Sample, self.root.derive(drawn))

    def share(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """One node per key in the whole derivation: what is equal is computed once."""
        if key not in self._shared:
            self._shared[key] = make()
        return cast(Any, self._shared[key])
