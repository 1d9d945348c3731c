"""The uses of values: they decide what values are called, and what need not be written of them."""

from collections import Counter
from collections.abc import Iterable, Iterator

from ..distributions.laws import DistributionLaw
from ..ir import nodes as nd
from ..surrogate.terms import Score, ScoreTerm, Total, Weight
from .names import identifier

_READING = (Score, nd.LogProb)


class Uses:
    """The uses of all nodes of a surrogate.

    Attributes:
        directions: sums of log-probabilities of which a derivative alone is used: no constant matters there.
        ratios: in how many forms the ratio of a log-probability to the recorded one is used.
        roles: names for the parameters of distributions, `logits_of_x`.
    """

    def __init__(self, nodes: Iterable[nd.Node]) -> None:
        order = list(nodes)
        self.directions = _directions(order)
        self.ratios = Counter(n.inputs[0] for n in order if type(n) is Weight and n not in self.directions)
        self.roles = {node: name for reader in order for node, name in _parameters(reader)}


def _directions(order: list[nd.Node]) -> set[nd.Node]:
    users: dict[nd.Node, list[nd.Node]] = {}
    for node in order:
        for parent in node.inputs:
            users.setdefault(parent, []).append(node)
    found: set[nd.Node] = set()
    for node in reversed(order):
        mine = users.get(node, [])
        derived = all(user in found or (type(user) is ScoreTerm and user.inputs[0] is not node) for user in mine)
        if type(node) in (Weight, Total) and mine and derived:
            found.add(node)
    return found


def _parameters(node: nd.Node) -> Iterator[tuple[nd.Node, str]]:
    """The parameters of the distribution that a node reads, with what they are to it."""
    if type(node) in _READING:
        yield from _named(node.sample, node.inputs[1:])  # type: ignore[attr-defined]
    if type(node) is nd.Sample and node.pathwise:
        yield from _named(node, node.inputs)


def _named(sample: nd.Sample, parents: Iterable[nd.Node]) -> Iterator[tuple[nd.Node, str]]:
    law = sample.law
    if isinstance(law, DistributionLaw) and law.is_class and sample.arguments.flat:
        words = law.parameters(sample.arguments)
        places = zip(parents, sample.arguments.places, strict=True)
        yield from ((parent, f"{words[place]}_of_{identifier(sample.name)}") for parent, place in places)


def inside(program: Iterable[nd.Node]) -> Iterator[nd.Node]:
    """The nodes of a program, and of the programs in it."""
    for node in program:
        for inner in node.programs:
            yield from inside(inner)
        yield node
