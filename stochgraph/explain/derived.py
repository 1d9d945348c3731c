"""A derived graph, as those see it that explain it."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from ..derive.estimator import GradientEstimator
from ..ir import nodes as nd
from ..ir.declaration import Declaration


class Pathwise(Protocol):
    """A derivation, of which the pathwise samples are asked."""

    @property
    def pathwise(self) -> AbstractSet[str]:
        """The samples whose draw is differentiated."""


class Derived(Protocol):
    """A compiled graph."""

    @property
    def graph(self) -> Declaration:
        """The declared graph."""

    @property
    def wrt(self) -> Sequence[str]:
        """The names of the differentiated inputs."""

    @property
    def estimators(self) -> Mapping[str, GradientEstimator]:
        """The estimators of the scored samples."""

    @property
    def _root(self) -> nd.Node:
        """The surrogate."""

    @property
    def _program(self) -> Sequence[nd.Node]:
        """Its nodes, in order."""

    @property
    def _derivation(self) -> Pathwise:
        """The derivation behind it."""
