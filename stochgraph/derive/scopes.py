"""The objectives that are derived, that of a graph and that of an update, and which samples are boxed in them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property

from ..ir import nodes as nd
from ..ir.paths import descends_from, moves_with, samples_in
from ..ir.programs import up_to
from ..tensors.axes import Axis
from .boxes import Kind, Pending, routing
from .estimator import SCORED, Crossing, GradientEstimator, Where, replaces_terms
from .reach import Reach, linear_operands


class Scope(ABC):
    """An objective, and the samples that are boxed in it.

    Attributes:
        order: the declared nodes that it depends on.
        estimators: one for every scored sample of the graph.
        pathwise: the names of the samples whose draw is differentiated.
        samples: the scored samples that the objective depends on, by name.
        reach: for every node the samples whose boxes are open there, with the axes that they are kept along.
    """

    estimators: Mapping[str, GradientEstimator]
    samples: dict[str, nd.Sample]
    reach: Mapping[Kind, Reach]

    def __init__(self, order: list[nd.Node], estimators: Mapping[str, GradientEstimator]) -> None:
        self.order, self.estimators = order, estimators
        self.pathwise = {name for name, estimator in estimators.items() if not estimator.scored}
        scored = estimators.keys() - self.pathwise
        self.samples = {name: node for name, node in samples_in(order).items() if name in scored}

    @property
    @abstractmethod
    def dependence(self) -> Reach:
        """The `reach` that there would be if every route were boxed at its end."""

    @abstractmethod
    def start(self, objective: nd.Node) -> Pending:
        """The boxes that are open at the objective."""

    @abstractmethod
    def where(self, kind: Kind) -> Where:
        """The place where ratios of a kind are used."""

    @abstractmethod
    def provided(self, node: nd.Node) -> bool:
        """True if a node is taken from the derivation around this one, as it is there."""

    @abstractmethod
    def waits(self, name: str) -> bool:
        """True if the boxes of a sample wait for a control variate."""

    @abstractmethod
    def boxes(self, name: str) -> bool:
        """True if terms are boxed with the weights of a sample."""

    @abstractmethod
    def replaces(self, name: str) -> bool:
        """True if the estimator of a sample puts something else in the place of its boxes."""

    def weighted(self, names: Iterable[str]) -> Pending:
        """Pending weights; with a control variate to come where the estimator has one."""
        return frozenset((s, Kind.CONTROLLED if self.waits(s) else Kind.WEIGHT) for s in names)

    def reaching(self, node: nd.Node, pending: Pending) -> Pending:
        """The pending boxes of samples that reach a node."""
        return frozenset((s, kind) for s, kind in pending if s in self.reach[routing(kind)][node])

    def joining(self, node: nd.Node) -> Pending:
        """The boxes that belong below a mean. Inside an update it is curvature that boxes."""
        if not isinstance(node, nd.Reduction):
            return frozenset()
        reaching = self.reach[Kind.WEIGHT][node.inputs[0]]
        below = [s for s in reaching if self.estimators[s].crosses(self.samples[s], node) is Crossing.BELOW]
        return self.weighted(s for s in below if self.boxes(s))

    def operands(self, node: nd.Node, pending: Pending, place: Kind) -> list[int] | None:
        """The inputs to which pending boxes of one kind may move.

        The kinds are asked apart: where an update's own scores stand decides its direction, and that must not depend on
        what else is boxed.
        """
        names = [s for s, kind in pending if routing(kind) is place]
        return linear_operands(node, names, self.reach[place])

    def kept(self, node: nd.Node, name: str, kind: Kind) -> frozenset[Axis]:
        """The axes along which a node depends on a sample draw by draw."""
        return self.reach[routing(kind)][node][name]


class ObjectiveScope(Scope):
    """The objective of a graph."""

    def __init__(self, order: list[nd.Node], estimators: Mapping[str, GradientEstimator]) -> None:
        super().__init__(order, estimators)
        self.reach = {Kind.WEIGHT: Reach(order, self.samples, estimators)}

    @cached_property
    def dependence(self) -> Reach:
        return Reach(self.order, self.samples, dict.fromkeys(self.samples, SCORED))

    def start(self, objective: nd.Node) -> Pending:
        return self.weighted(self.reach[Kind.WEIGHT][objective])

    def where(self, kind: Kind) -> Where:
        return Where.OUTSIDE

    def provided(self, node: nd.Node) -> bool:
        return False

    def waits(self, name: str) -> bool:
        return self.estimators[name].control is not None

    def boxes(self, name: str) -> bool:
        return True

    def replaces(self, name: str) -> bool:
        return replaces_terms(self.estimators[name])


class UpdateScope(Scope):
    """The objective of an update, as a function of what the update changes.

    Samples whose distribution moves with that are scored, the others, its data, only weighted.

    Attributes:
        region: the nodes that depend on what the update changes.
    """

    def __init__(self, estimators: Mapping[str, GradientEstimator], update: nd.Update) -> None:
        order = up_to(update.objective, update.variable)
        super().__init__(order, estimators)
        self.update = update
        self.region = descends_from(order, update.variable)
        self._moving = moves_with(order, [update.variable], self.pathwise)
        inner = {s: node for s, node in self.samples.items() if any(p in self._moving for p in node.inputs)}
        data = {s: node for s, node in self.samples.items() if s not in inner}
        # What data does to an earlier update is counted there, and moves this one as a value: of
        # D1 -> theta' -> D2 -> theta'' a box of D1 in the objective of theta'' would be one too many.
        earlier = [node for node in order if isinstance(node, nd.Update)]
        self.reach = {
            Kind.SCORE: Reach(order, inner, dict.fromkeys(inner, SCORED), cuts=[update.variable]),
            Kind.WEIGHT: Reach(order, data, estimators, cuts=[update.variable, *earlier]),
        }

    @property
    def dependence(self) -> Reach:
        return self.reach[Kind.SCORE]

    def start(self, objective: nd.Node) -> Pending:
        scored = frozenset((s, Kind.SCORE) for s in self.reach[Kind.SCORE][objective])
        return scored | self.weighted(s for s in self.reach[Kind.WEIGHT][objective] if self.boxes(s))

    def where(self, kind: Kind) -> Where:
        return Where.OWN if kind is Kind.SCORE else Where.DATA

    def provided(self, node: nd.Node) -> bool:
        held = isinstance(node, nd.Sample) and node.name not in self.pathwise
        return held or node is self.update.variable or node not in self.region

    def waits(self, name: str) -> bool:
        return False

    def boxes(self, name: str) -> bool:
        return self.estimators[name].inside.boxes

    def replaces(self, name: str) -> bool:
        return False

    def operands(self, node: nd.Node, pending: Pending, place: Kind) -> list[int] | None:
        operands = super().operands(node, pending, place)
        names = [s for s, kind in pending if routing(kind) is place]
        if operands is None or place is Kind.WEIGHT or not names:
            return operands
        # A factor that moves with `psi` would multiply a score term, whose value is no use: its derivative would be
        # lost.
        others = [parent for i, parent in enumerate(node.inputs) if i not in operands]
        return None if any(parent in self._moving for parent in others) else operands
