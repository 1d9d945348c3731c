"""What estimators ask of the compiler, and the words in which it keeps account of boxes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ..ir import nodes as nd
from ..surrogate.expansions import Curvature
from ..tensors.axes import Axis

if TYPE_CHECKING:
    from .derivation import Derivation


@dataclass(frozen=True)
class Rule:
    """What an estimator asks of the compiler for its sample node."""

    boxes_costs: bool = True  # box everything that comes later, updates included
    boxes_means: bool = False  # box where the sample's plate is averaged, and nowhere later
    averages: bool = False  # the plate's mean log-probability in place of its sum
    boxes_terms: bool = False  # box the terms of an update's inner objective
    pathwise: bool = False  # differentiate the draw itself
    curvature: Curvature | None = None  # box the terms of a mean with an expansion of the likelihood ratio
    control: "Control | None" = None  # the control variate of what is boxed
    term_control: "Control | None" = None  # the control variate of the terms of an update's inner objective
    compares_terms: bool = False  # compare each of those terms with the others of its plate


COST = Rule()
VALUE = Rule(boxes_costs=False)


class Kind(Enum):
    """What a pending box is for."""

    SCORE = "an update's own score, taken at the placeholder"
    WEIGHT = "a box at the parameters that drew the sample"
    CONTROLLED = "a weight that still waits for its control variate"


Pending = frozenset[tuple[str, Kind]]
Key = tuple[nd.Node, Pending]
NOTHING: Pending = frozenset()


@dataclass(frozen=True)
class Control:
    """A control variate: what makes the node of zero mean at a site, `None` where there is nothing to compare with.

    Attributes:
        make: makes the node.
        whole: it predicts the cost as declared, and not the part of it that the sample's box covers.
        later_only: replays of another sample have it only if its own sample is drawn later, on another plate.
    """

    make: "Callable[[Site], nd.Node | None]"
    whole: bool = False
    later_only: bool = False


@dataclass(frozen=True)
class Site:
    """Where a sample's control variate stands.

    Attributes:
        derivation: what derives the surrogate.
        place: the declared node that the control variate is added to.
        node: the part of it that the sample's box covers, which is what is compared.
        name: the sample's.
        kind: how the box is meant.
        term: the derived form of `node`.
    """

    derivation: "Derivation"
    place: nd.Node
    node: nd.Node
    name: str
    kind: Kind
    term: nd.Node

    @property
    def sample(self) -> nd.Sample:
        """The sample that the box scores."""
        return self.derivation.samples[self.name]

    @property
    def aligned(self) -> frozenset[Axis]:
        """The axes along which the term depends on the sample draw by draw."""
        return self.derivation.reach[self.kind][self.place][self.name]

    @property
    def apart(self) -> frozenset[Axis]:
        """Those of them along which it does not meet other draws on a route that is boxed elsewhere, or not at all."""
        return self.derivation.dependence[self.place][self.name]


def value_rules(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rules under which nothing is boxed: every node has the value that the declaration gives it."""
    return {name: Rule(boxes_costs=False, pathwise=rule.pathwise) for name, rule in rules.items()}


def routing(kind: Kind) -> Kind:
    """Boxes that wait for a control variate move as all weights do."""
    return Kind.SCORE if kind is Kind.SCORE else Kind.WEIGHT


def settled(pending: Pending, names: Iterable[str] | None = None) -> Pending:
    """The pending boxes, those of `names` (default: all) no longer waiting for a control variate."""
    return frozenset((s, routing(kind) if names is None or s in names else kind) for s, kind in pending)
