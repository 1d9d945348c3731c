"""The routes of derivatives in a declared graph, before anything is known of what the user's functions do."""

from collections.abc import Iterable

from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..ir.paths import descends_from, moves_with


class Routes:
    """The routes of derivatives through a graph.

    Attributes:
        order: the declared nodes.
        objective: the declared objective.
        pathwise: the names of the samples whose draw is differentiated.
        inputs: the names of the inputs.
    """

    def __init__(self, graph: Declaration, pathwise: Iterable[str]) -> None:
        self.order, self.objective, self.pathwise = graph.order, graph.objective, frozenset(pathwise)
        self.inputs = tuple(graph.inputs)

    def arrive(self, source: nd.Node) -> bool:
        """True if a derivative with respect to a node can reach the objective."""
        return self.objective in self.from_(source)

    def flat_behind(self, source: nd.Node) -> nd.Node | None:
        """The first node on a route through values that has no derivative, an operation with jumps or a stop."""
        moving = moves_with(self.order, [source], self.pathwise)
        return next((node for node in self.order if node.flat and any(p in moving for p in node.inputs)), None)

    def from_(self, source: nd.Node) -> set[nd.Node]:
        """The nodes that a derivative with respect to a node can reach, through values and through distributions."""
        found = {source}
        for node in self.order:
            if not node.flat and any(parent in found for parent in node.inputs):
                found.add(node)
        # A draw carries the distribution path through anything that comes later, a stop included.
        through = [node for node in found if isinstance(node, nd.Sample) and node is not source]
        return found | descends_from(self.order, *(node for node in through if node.name not in self.pathwise))
