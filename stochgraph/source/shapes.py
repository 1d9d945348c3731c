"""The facts known of shapes before there are any: which values are tensors, and of how many dimensions.

A declaration says nothing of shapes. Much follows all the same: objectives are scalars, so all that is added up in one
is a scalar for each draw; the parameters of a torch distribution have the dimensions that it declares. Where something
does not follow, what is written is right for every shape (`torch.vmap`, `tree_map`), and longer.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from ..derive.controls import ControlVariate
from ..derive.replays import Replay
from ..distributions.laws import DistributionLaw
from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Logarithm, Scale
from ..surrogate.expansions import ExpandedBox, OtherScores
from ..surrogate.steps import CompiledStep
from ..surrogate.terms import Box, Controlled, Score, ScoreTerm, Total, Weight


class Shapes:
    """The shapes of all nodes of a surrogate, those inside of updates and of replays included.

    Attributes:
        ranks: the number of dimensions of one draw's value, where it is known.
        tensors: the nodes whose values are tensors, and no pytrees of them.
    """

    def __init__(self, nodes: Iterable[nd.Node], root: nd.Node) -> None:
        self.ranks: dict[nd.Node, int] = {root: 0}
        self.tensors: set[nd.Node] = {root}
        order = list(nodes)
        known = 0
        while known < len(self.ranks) + len(self.tensors):
            known = len(self.ranks) + len(self.tensors)
            for node in [*order, *reversed(order)]:
                rule = _RULES.get(type(node))
                if rule is not None:
                    rule(self, node)

    def has_rank(self, node: nd.Node, rank: int) -> None:
        """Note the dimensions of a tensor."""
        self.ranks.setdefault(node, rank)
        self.tensors.add(node)

    def are_alike(self, *nodes: nd.Node) -> None:
        """Note that values have one structure."""
        if not self.tensors.isdisjoint(nodes):
            self.tensors.update(nodes)
        for rank in [self.ranks[node] for node in nodes if node in self.ranks][:1]:
            for node in nodes:
                self.has_rank(node, rank)

    def scored(self, node: Score | nd.LogProb) -> None:
        """A log-probability is a number for each draw, of which much is known."""
        self.has_rank(node, 0)
        draw, *parents = node.inputs
        self._drawn_from(node.sample, draw, parents)

    def drawn(self, node: nd.Sample) -> None:
        """A draw of a distribution of torch."""
        self._drawn_from(node, node, node.inputs)

    def _drawn_from(self, sample: nd.Sample, draw: nd.Node, parents: Iterable[nd.Node]) -> None:
        """A draw has the batch dimensions of its parameters, and those of one event."""
        if not isinstance(sample.law, DistributionLaw):
            return
        self.tensors.add(draw)
        event = _event_dim(sample.law)
        if sample.event_dims is None or event is None:
            return
        dims = dict(zip(parents, sample.event_dims, strict=True))
        self.tensors.update(dims)
        if all(parent in self.ranks for parent in dims):
            self.has_rank(draw, event + max((self.ranks[parent] - d for parent, d in dims.items()), default=0))
        if self.ranks.get(draw) == event:
            for parent, d in dims.items():
                self.has_rank(parent, d)

    def combined(self, node: nd.Apply) -> None:
        """Operands of an elementwise operation are tensors; a tensor among the constants has dimensions too."""
        if node.elementwise:
            self.tensors.update([node, *node.inputs])
            constants = [leaf.dim() for leaf in node.arguments.leaves if isinstance(leaf, Tensor)]
            self._broadcast(node, constants)

    def kept(self, node: nd.Node) -> None:
        """The operands that a node adds up, scales or reduces have the structure of the result."""
        if node in self.tensors:
            self.tensors.update(node.inputs)
        elif node.inputs[0] in self.tensors:
            self.tensors.add(node)
        self._broadcast(node, [])

    def _broadcast(self, node: nd.Node, constants: list[int]) -> None:
        """The result has the most dimensions of any operand."""
        if self.ranks.get(node) == 0:
            for parent in node.inputs:
                self.has_rank(parent, 0)
        if all(parent in self.ranks for parent in node.inputs):
            self.has_rank(node, max([*(self.ranks[parent] for parent in node.inputs), *constants], default=0))

    def selected(self, node: nd.Select) -> None:
        """A constant index takes one dimension from a tensor."""
        if node.attribute or not isinstance(node.key, int):
            return
        (base,) = node.inputs
        if base in self.ranks:
            self.has_rank(node, self.ranks[base] - 1)
        if node in self.ranks and base in self.tensors:
            self.has_rank(base, self.ranks[node] + 1)

    def updated(self, node: CompiledStep) -> None:
        """Parameters stay what they are, and an inner objective is a number."""
        self.are_alike(node, node.psi, node.inputs[0])
        for surrogate in node.surrogates:
            self.has_rank(surrogate, 0)


def _event_dim(law: DistributionLaw) -> int | None:
    """The dimensions of one event of a class of distributions; `None` if it does not say."""
    found = getattr(getattr(law.factory, "support", None), "event_dim", None)
    return found if isinstance(found, int) else None


_DECLARED = (nd.Stop, nd.Reduction, nd.Zero, Exponential, Logarithm, Scale)
_KEEPING = (*_DECLARED, Box, ExpandedBox, ScoreTerm, Total, Controlled)
_RULES: Mapping[type[nd.Node], Callable[..., None]] = {
    **dict.fromkeys(_KEEPING, Shapes.kept),
    nd.Apply: Shapes.combined,
    nd.Sample: Shapes.drawn,
    nd.Select: Shapes.selected,
    nd.Data: lambda shapes, node: shapes.are_alike(node, *node.inputs),
    nd.LogProb: Shapes.scored,
    Score: Shapes.scored,
    OtherScores: lambda shapes, node: shapes.has_rank(node, 0),
    Weight: lambda shapes, node: shapes.has_rank(node, 0),
    CompiledStep: Shapes.updated,
    Replay: lambda shapes, node: shapes.are_alike(node, node.root),
    ControlVariate: lambda shapes, node: shapes.are_alike(node, node.inputs[0]),
}
