"""Terms with the control variates of the boxes that stand below."""

from collections.abc import Iterable, Sequence

from ..ir import nodes as nd
from ..surrogate.terms import Controlled
from .boxes import Key, Kind
from .controls import uncovered
from .deriving import Deriving
from .estimator import Control
from .parts import part_of
from .sites import DerivedSite


def add_controls(term: nd.Node, controls: Iterable[nd.Node | None]) -> nd.Node:
    """A term and the control variates that there are."""
    made = [control for control in controls if control is not None]
    return Controlled(term, made) if made else term


class Controls:
    """The control variates of the objective of a graph.

    Replays that differ in the boxes that still wait have the others' control variates in common: one is made for every
    sample at every place.
    """

    def __init__(self, derivation: Deriving) -> None:
        self._derivation = derivation
        self._made: dict[Key, dict[str, list[nd.Node | None]]] = {}

    def added(self, place: Key, term: nd.Node, names: Sequence[str]) -> nd.Node:
        """A derived term, with what has zero mean and makes it vary less.

        Args:
            place: the declared node, and the boxes that are below.
            term: their derived form.
            names: the samples whose control variates stand here.
        """
        known = self._made.setdefault(place, {})
        sites = {name: self._site(place, name) for name in names if name not in known}
        for name, site in sites.items():
            self._control(name).check(site)
        for name in self._innermost_first(sites):
            known[name] = self._make(sites[name], term)
        return add_controls(term, [control for name in names for control in known[name]])

    def _site(self, place: Key, name: str) -> DerivedSite:
        derivation, (node, below) = self._derivation, place
        part = part_of(derivation, node, below, name)
        term = derivation.derive(part, derivation.scope.reaching(part, below))
        return DerivedSite(derivation, node, part, derivation.scope.samples[name], Kind.WEIGHT, term)

    def _innermost_first(self, names: Iterable[str]) -> list[str]:
        """The order in which they are made: those that replays of earlier draws have in them, last first.

        In the order of the draws each would be made inside of the one before it, as deep as there are draws.
        """
        inner = [name for name in names if self._control(name).later_only]
        return [name for name in names if name not in inner] + inner[::-1]

    def _make(self, site: DerivedSite, term: nd.Node) -> list[nd.Node | None]:
        control = self._control(site.name)
        return [control.node(site), uncovered(site, term) if control.whole and site.node is not site.place else None]

    def _control(self, name: str) -> Control:
        control = self._derivation.estimators[name].control
        assert control is not None
        return control
