"""The third pass, building, as those see it that do a part of it: ratios, boxes, sites, replays and updates."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..ir import nodes as nd
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axis
from .boxes import Kind, Pending
from .estimator import GradientEstimator, Made
from .placement import Placement
from .scopes import Scope


class Ratios(Protocol):
    """The log-ratios that boxes are made of."""

    def score(self, sample: nd.Sample) -> Score:
        """The log-probability of the sample's draws."""

    def ratio(self, name: str, aligned: Iterable[Axis], kind: Kind = ...) -> Weight:
        """The log-ratio of a sample's draws, kept along some axes."""

    def of(self, node: nd.Node, pending: Pending) -> tuple[Weight, ...]:
        """The log-ratios in the boxes that stand at a node, in the order of the draws."""

    def ancestors(self, node: nd.Node, sample: nd.Sample, kind: Kind) -> tuple[Weight, ...]:
        """The log-ratios of a sample's strict ancestors as they box a node."""

    def total(self, ratios: tuple[Weight, ...]) -> nd.Node:
        """The sum of some log-ratios."""


class Deriving(Protocol):
    """A derivation: of the objective of a graph or of an update, or of what replays evaluate again."""

    @property
    def order(self) -> list[nd.Node]:
        """The declared nodes."""

    @property
    def scope(self) -> Scope:
        """The objective that is derived."""

    @property
    def placement(self) -> Placement:
        """The places where boxes stand in it."""

    @property
    def estimators(self) -> Mapping[str, GradientEstimator]:
        """One for every scored sample."""

    @property
    def constant(self) -> frozenset[nd.Update]:
        """The updates whose direction is not differentiated."""

    @property
    def around(self) -> "Around | None":
        """The surroundings of the objective of an update."""

    @property
    def ratios(self) -> Ratios:
        """The log-ratios that boxes are made of."""

    @property
    def root(self) -> "Deriving":
        """The derivation of the whole graph's objective."""

    @property
    def drawing(self) -> "Deriving":
        """The derivation whose draws and scores are used."""

    @property
    def exact(self) -> "Deriving":
        """The derivation of what is evaluated again, every draw weighted with its likelihood ratio."""

    @property
    def at_parameters(self) -> "Deriving":
        """The derivation of an update's objective at the parameters themselves."""

    def inside(self, around: "Around") -> "Deriving":
        """The derivation of an update's objective."""

    def derive(self, node: nd.Node, pending: Pending = ...) -> nd.Node:
        """The node with pending boxes in it."""

    def surrogate(self, objective: nd.Node) -> nd.Node:
        """The objective with all boxes in it."""

    def score(self, sample: nd.Sample) -> Score:
        """The log-probability of the sample's draws."""

    def noise(self, sample: nd.Sample) -> nd.Sample | None:
        """The sample that the estimator of a sample draws beside it."""

    def share(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """One node for one key."""


@dataclass(frozen=True)
class Around:
    """The surroundings of the derivation of an update's objective.

    Attributes:
        outer: the derivation that the update is in.
        update: the update.
        placement: where boxes stand in its objective.
        psi: what stands for the variable of the objective; `None`: nothing, it is at the parameters themselves.
        controlled: the terms have the control variates of the direction.
    """

    outer: Deriving
    update: nd.Update
    placement: Placement
    psi: nd.Node | None = None
    controlled: bool = False
