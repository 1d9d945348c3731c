"""Boxes: the log-ratios in them, and terms with them.

Importance weights are factors of a term; the scores of an update's own draws make a score term.
"""

from collections.abc import Iterable

from ..ir import nodes as nd
from ..ir.paths import samples_in
from ..ir.programs import schedule
from ..surrogate.expansions import ExpandedBox, Expansion
from ..surrogate.limited import Limited
from ..surrogate.terms import Box, Score, ScoreTerm, Total, Weight
from ..tensors.axes import Axes, Axis
from .boxes import Kind, Pending
from .controls import add_controls
from .deriving import Around, Deriving
from .sites import DerivedSite


class Ratios:
    """The log-ratios of a derivation: what is equal is one node in the whole surrogate."""

    def __init__(self, derivation: Deriving) -> None:
        self._derivation = derivation
        self._made: dict[tuple[str, Axes, Kind], Weight] = {}

    def ratio(self, name: str, aligned: Iterable[Axis], kind: Kind = Kind.WEIGHT) -> Weight:
        """The log-probability of a sample's draws relative to its recorded value, kept along the axes `aligned`."""
        kept = tuple(axis for axis in self._derivation.scope.samples[name].axes if axis in aligned)
        key = (name, kept, kind)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, name: str, kept: Axes, kind: Kind) -> Weight:
        derivation, sample = self._derivation, self._derivation.scope.samples[name]
        around = derivation.around if kind is Kind.WEIGHT else None  # recorded draws are weighted outside of updates
        score = around.outer.ratios.score(sample) if around else self.score(sample)
        ratio = derivation.estimators[name].ratio(score, kept, derivation.scope.where(kind))
        return derivation.share(ratio.key, lambda: ratio)

    def score(self, sample: nd.Sample) -> Score:
        """The log-probability of the sample's draws, its parents as the derivation has them."""
        drawn = self._derivation.root.derive(sample)
        parents = [self._derivation.derive(parent) for parent in sample.inputs]
        return self._derivation.share(("score", sample, *parents), lambda: Score(sample, drawn, parents))

    def of(self, node: nd.Node, pending: Pending) -> tuple[Weight, ...]:
        """The log-ratios in the boxes that stand at a node, in the order of the draws."""
        scope = self._derivation.scope
        ordered = sorted(pending, key=lambda box: scope.samples[box[0]].index)
        return tuple(self.ratio(s, scope.kept(node, s, kind), kind) for s, kind in ordered)

    def ancestors(self, node: nd.Node, sample: nd.Sample, kind: Kind) -> tuple[Weight, ...]:
        """The log-ratios of a sample's strict ancestors, as they box the node."""
        above = self._derivation.share(("above", sample), lambda: frozenset(samples_in(schedule(sample.inputs))))
        reaching = self._derivation.scope.reach[kind][node]
        return self.of(node, frozenset((s, kind) for s in reaching if s in above))

    def total(self, ratios: tuple[Weight, ...]) -> nd.Node:
        """The sum of the log-ratios. Common beginnings are shared, so a chain of samples costs one addition each."""
        total: nd.Node = ratios[0]
        for ratio in ratios[1:]:
            total = self._added(total, ratio)
        return total

    def _added(self, total: nd.Node, ratio: Weight) -> nd.Node:
        return self._derivation.share((total, ratio), lambda: Total(total, ratio))


def box(derivation: Deriving, node: nd.Node, base: nd.Node, pending: Pending, below: Pending) -> nd.Node:
    """A term with the boxes that stay at a node; `base` is its derived form, with the boxes below in it."""
    factors = frozenset((s, k) for s, k in pending if k is Kind.WEIGHT or derivation.estimators[s].inside.boxes)
    scored = pending - factors
    term = _boxed(derivation, node, base, factors)
    if not scored:
        return term
    still = derivation.at_parameters
    fixed = _boxed(still, node, still.derive(node, below), factors)
    ratios = derivation.ratios.of(node, scored)
    score_term = ScoreTerm(fixed, derivation.ratios.total(ratios), ratios)
    moves = derivation.around is not None and derivation.around.psi in term.free
    return Total(term, score_term) if moves else score_term


def _boxed(derivation: Deriving, node: nd.Node, base: nd.Node, factors: Pending) -> nd.Node:
    """The term with its boxes, or with what estimators put in their place: the later drawn is innermost."""
    samples = derivation.scope.samples
    taken = {s for s, _ in factors if derivation.scope.replaces(s)}
    term = _in_boxes(derivation, node, base, frozenset((s, kind) for s, kind in factors if s not in taken))
    for name in sorted(taken, key=lambda s: samples[s].index, reverse=True):
        term = _replaced(derivation, node, name, term)
    return term


def _replaced(derivation: Deriving, node: nd.Node, name: str, term: nd.Node) -> nd.Node:
    estimator = derivation.estimators[name]
    site = _site(derivation, node, name, Kind.WEIGHT, term)
    found = estimator.term(site)
    if found is None:
        return _in_boxes(derivation, node, term, frozenset([(name, Kind.WEIGHT)]))
    return Limited(site, found) if estimator.orders(site.sample) == 1 else found


def _in_boxes(derivation: Deriving, node: nd.Node, base: nd.Node, factors: Pending) -> nd.Node:
    ratios = derivation.ratios.of(node, factors)
    plain = tuple(ratio for ratio in ratios if not isinstance(ratio, Expansion))
    term = Box(base, derivation.ratios.total(plain), plain) if plain else base
    for ratio in ratios:
        if isinstance(ratio, Expansion):
            term = ExpandedBox(term, ratio, (ratio,))
    around = derivation.around
    return term if around is None else _compared(derivation, around, node, term, factors)


def _compared(derivation: Deriving, around: Around, node: nd.Node, term: nd.Node, factors: Pending) -> nd.Node:
    """The terms of an inner objective with the factors and control variates that their estimators give them."""
    for s, kind in sorted(factors, key=lambda item: item[0]):
        term = derivation.estimators[s].inside.factor(_site(derivation, node, s, kind, term))
    if not around.controlled:
        return term
    names = sorted(s for s, kind in factors if kind is Kind.SCORE)
    wanted = [(control, s) for s in names if (control := derivation.estimators[s].inside.control)]
    sites = [(control, _site(derivation, node, s, Kind.SCORE, term)) for control, s in wanted]
    for control, site in sites:
        control.check(site)
    return add_controls(term, [control.node(site) for control, site in sites])


def _site(derivation: Deriving, node: nd.Node, name: str, kind: Kind, term: nd.Node) -> DerivedSite:
    return DerivedSite(derivation, node, node, derivation.scope.samples[name], kind, term)
