"""The log-ratios that boxes are made of, as one derivation has them."""

from collections.abc import Iterable

from ..ir import nodes as nd
from ..ir.paths import samples_in
from ..ir.programs import schedule
from ..surrogate.terms import Total, Weight
from ..tensors.axes import Axes, Axis
from .boxes import Kind, Pending
from .deriving import Deriving


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
        score = around.outer.score(sample) if around else derivation.score(sample)
        ratio = derivation.estimators[name].ratio(score, kept, derivation.scope.where(kind))
        return derivation.share(ratio.key, lambda: ratio)

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
