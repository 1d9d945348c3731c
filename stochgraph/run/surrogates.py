"""The surrogate of a graph as a program: evaluated in a pass, and looked through in the first one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..derive.derivation import Derivation
from ..derive.populations import Expectations, corrected
from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..ir.paths import samples_in
from ..ir.programs import schedule
from ..tensors.indexing import in_transform
from ..tensors.trees import tensors
from .first_pass import Watch, check_captured, check_pathwise
from .passes import Run, check_edges
from .values import Values, scalar


class Surrogate:
    """The surrogate.

    Attributes:
        root: its last node.
        program: its nodes, in order.
    """

    def __init__(
        self,
        graph: Declaration,
        derivation: Derivation,
        wrt: Sequence[str],
        values: Values,
        expectations: Expectations | None,
    ) -> None:
        self._graph, self._wrt, self._values = graph, wrt, values
        self.root = corrected(derivation, derivation.surrogate(graph.objective), expectations)
        # A pathwise draw that is used inside an update alone is still drawn outside of it.
        drawn = [derivation.derive(node) for s, node in samples_in(graph.order).items() if s in derivation.pathwise]
        self.program: list[nd.Node] = schedule([self.root, *drawn, *graph.data])  # rows are counted, whoever reads them
        self._unseen = {False, True}  # whether a pass outside of transforms, and one inside, is still the first

    def __call__(self, run: Run) -> Tensor:
        """Its value in a pass."""
        first = self.watch(run)
        loss = scalar(self._graph, run.execute(self.program)[self.root], run)
        if first:
            check_captured(self._graph.order, self.program, run, loss)
            if not in_transform():
                check_pathwise(self.program, self.root, run.values, self._graph.objective)
            self._unseen.discard(in_transform())
        check_edges(run)
        if not in_transform() and not bool(loss.isfinite()):
            self._values.diagnose(run)
        return loss

    def watch(self, run: Run) -> bool:
        """Have a first pass watched; whether it is one."""
        if run.watch is None and self.is_first(run):
            run.watch = Watch()
        return run.watch is not None

    def is_first(self, run: Run) -> bool:
        """True if nobody has looked yet where the derivatives of such a pass lead."""
        if in_transform() not in self._unseen or not torch.is_grad_enabled():
            return False
        wanted = tensors([run.inputs[name] for name in self._wrt])
        return in_transform() or any(leaf.requires_grad for leaf in wanted)
