"""Terms with their boxes: importance weights as factors, the scores of an update's own draws as a score term."""

from ..ir import nodes as nd
from ..surrogate.expansions import ExpandedBox, Expansion
from ..surrogate.limited import Limited
from ..surrogate.terms import Box, ScoreTerm, Total
from .boxes import Kind, Pending
from .controlled import add_controls
from .deriving import Around, Deriving
from .sites import DerivedSite


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
