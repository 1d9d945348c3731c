"""Sites as a derivation makes them."""

from collections.abc import Callable, Hashable, Iterable, Sequence

from torch import Tensor

from ..ir import nodes as nd
from ..ir.paths import descends_from
from ..surrogate.terms import Weight
from ..tensors.axes import Axis
from .boxes import Kind
from .deriving import Deriving
from .estimator import Drawn, Made, Site
from .replays import replay
from .substitutions import substitute


class DerivedSite(Site):
    """A site in a derivation; `kind` says how the box is meant there."""

    def __init__(
        self, derivation: Deriving, place: nd.Node, node: nd.Node, sample: nd.Sample, kind: Kind, term: nd.Node
    ) -> None:
        self._derivation, self._kind = derivation, kind
        self.place, self.node, self.sample, self.term = place, node, sample, term
        self.kept = derivation.scope.kept(place, sample.name, kind)

    @property
    def independent(self) -> frozenset[Axis]:  # type: ignore[override]
        return self._derivation.scope.dependence[self.place][self.name]

    @property
    def drawn(self) -> nd.Node:
        return self._derivation.root.derive(self.sample)

    @property
    def noise(self) -> nd.Node:
        drawn = self._derivation.noise(self.sample)
        assert drawn is not None
        return drawn

    def parents(self) -> Sequence[nd.Node]:
        return [self._derivation.derive(parent) for parent in self.sample.inputs]

    def ratio(self, kept: Iterable[Axis] | None = None) -> Weight:
        return self._derivation.ratios.ratio(self.name, self.kept if kept is None else kept, self._kind)

    def ratio_at_parameters(self) -> Weight:
        return self._derivation.ratios.ratio(self.name, self.kept, Kind.WEIGHT)

    def ancestors(self) -> tuple[tuple[Weight, ...], nd.Node | None]:
        above = self._derivation.ratios.ancestors(self.node, self.sample, self._kind)
        return above, self._derivation.ratios.total(above) if above else None

    def earlier(self) -> Sequence[Drawn]:
        root = self._derivation.root
        before = [n for n in root.order if isinstance(n, nd.Sample) and n.index <= self.place.index]
        return [Drawn(n, root.derive(n), root.score(n) if n.name in root.scope.samples else None) for n in before]

    def discount(self, time: Axis) -> float | Tensor:
        order = self._derivation.order
        later = descends_from(order, self.place)
        sums = [n for n in order if n in later and isinstance(n, nd.Reduction) and time in n.over]
        return 1.0 if not sums or sums[0].discount is None else sums[0].discount

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        return self._derivation.share(key, make)

    def leave_out(self, plate: Axis) -> nd.Node:
        return self.once(("replay", self.node, self.name), lambda: replay(self._derivation, self, plate))

    def put(self, values: nd.Node, differentiable: bool = True, together: bool = False) -> nd.Node:
        return substitute(self._derivation, self, values, differentiable, together)
