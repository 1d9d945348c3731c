"""What sites, parts and replays ask of a derivation."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from ..ir import nodes as nd
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axis
from .boxes import Key, Kind, Pending
from .estimator import GradientEstimator

Reached = Mapping[nd.Node, Mapping[str, frozenset[Axis]]]


class Deriving(Protocol):
    """A derivation, as those see it that it calls upon."""

    order: list[nd.Node]
    estimators: Mapping[str, GradientEstimator]
    samples: dict[str, nd.Sample]

    @property
    def reach(self) -> Mapping[Kind, Reached]:
        """For every node the samples whose boxes are open there, with the axes that they are kept along."""

    @property
    def dependence(self) -> Reached:
        """What `reach` would be if every route were boxed at its end."""

    @property
    def root(self) -> "Deriving":
        """The derivation of the graph's own objective."""

    @property
    def drawing(self) -> "Deriving":
        """The derivation whose draws and scores are used."""

    @property
    def exact(self) -> "Deriving":
        """The derivation of what is evaluated again, every draw weighted with its likelihood ratio."""

    def derive(self, node: nd.Node, pending: Pending = ...) -> nd.Node:
        """The node with pending boxes in it."""

    def score(self, sample: nd.Sample) -> Score:
        """The log-probability of the sample's draws."""

    def noise(self, sample: nd.Sample) -> nd.Sample | None:
        """What the estimator of a sample draws beside it."""

    def weight(self, name: str, aligned: Iterable[Axis], kind: Kind = ...) -> Weight:
        """The log-ratio of a sample's draws, kept along some axes."""

    def ancestors(self, node: nd.Node, sample: nd.Sample, kind: Kind) -> tuple[Weight, ...]:
        """The log-ratios of a sample's strict ancestors as they box a node."""

    def total(self, weights: tuple[Weight, ...]) -> nd.Node:
        """The sum of some log-ratios."""

    def weighted(self, names: Collection[str]) -> Pending:
        """Open boxes of some samples, with control variates to come."""

    def share(self, key: Any, make: Callable[..., Any]) -> Any:
        """One node for one key."""

    def stuck(self, node: nd.Node, pending: Pending) -> Pending:
        """The open boxes that stay at a node."""

    def received(self, node: nd.Node, pending: Pending) -> list[Key]:
        """The inputs of a node with the boxes that move to each."""

    def operands(self, node: nd.Node, pending: Pending, place: Kind) -> list[int] | None:
        """The inputs to which boxes of one kind may move."""
