"""The words in which the derivation keeps account of boxes that are still open."""

from collections.abc import Iterable
from enum import Enum

from ..ir import nodes as nd


class Kind(Enum):
    """The purpose of a pending box."""

    SCORE = "an update's own score, taken at the placeholder"
    WEIGHT = "a box at the parameters that drew the sample"
    CONTROLLED = "a weight that still waits for its control variate"


Pending = frozenset[tuple[str, Kind]]
Key = tuple[nd.Node, Pending]
NOTHING: Pending = frozenset()


def routing(kind: Kind) -> Kind:
    """Boxes that wait for a control variate move as all weights do."""
    return Kind.SCORE if kind is Kind.SCORE else Kind.WEIGHT


def settled(pending: Pending, names: Iterable[str] | None = None) -> Pending:
    """The pending boxes, those of `names` (default: all) no longer waiting for a control variate."""
    return frozenset((s, routing(kind) if names is None or s in names else kind) for s, kind in pending)
