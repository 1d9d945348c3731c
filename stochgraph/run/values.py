"""The values of a graph as it is declared: what a pass draws, scores and records, and what is wrong with it."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..derive.derivation import Derivation
from ..errors.exceptions import SamplingError
from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..ir.paths import open_unknowns
from ..ir.programs import schedule
from ..ir.traces import Trace
from ..surrogate.steps import OF_A_BATCH
from ..tensors.indexing import in_transform
from ..tensors.trees import map_tensors
from .inputs import watched
from .passes import Run, check_edges, check_scores


class Values:
    """The values of a graph, where nothing is boxed.

    Args:
        graph: the declared graph.
        derivation: of plain estimators.
        samples: what is drawn, by name: those of the graph, and what estimators draw beside them.
        wrt: the names of the differentiated inputs.

    Attributes:
        draws: the node that draws each sample, by name.
        scores: the log-probability of each scored sample, by name.
        named: the nodes that the user has named.
    """

    def __init__(
        self, graph: Declaration, derivation: Derivation, samples: Mapping[str, nd.Sample], wrt: Sequence[str]
    ) -> None:
        self._graph, self._wrt = graph, wrt
        self._root = derivation.derive(graph.objective)
        self.scores = {name: derivation.score(node) for name, node in derivation.scope.samples.items()}
        self.draws = {name: derivation.derive(node) for name, node in samples.items()}
        unsolved = open_unknowns(graph.order)
        self.named = {n.name: derivation.derive(n) for n in graph.order if n.named and not unsolved[n]}
        recorded = (*graph.data, *self.scores.values(), *self.draws.values(), *self.named.values())
        self._program = schedule([self._root, *recorded])
        self._moving_supports = schedule(s for s in self.scores.values() if not s.sample.law.fixed_support)

    @cached_property
    def draw_program(self) -> list[nd.Node]:
        """The nodes that draw, and nothing else."""
        return schedule([*self._graph.data, *self.draws.values()])

    def trace(self, run: Run) -> Trace:
        """The draws of a pass, and what is recorded of it."""
        with torch.no_grad():
            values = run.execute(self._program)
            if not in_transform():
                check_scores(run)
        self._check_supports(run)
        self._check_edges(run)
        log_probs = {name: values[node].detach() for name, node in self.scores.items()}
        nodes = {name: map_tensors(Tensor.detach, values[node]) for name, node in self.named.items()}
        value = scalar(self._graph, values[self._root], run)
        return Trace(value, dict(run.draws), log_probs, dict(run.noise), nodes)

    def _check_supports(self, run: Run) -> None:
        """Score once more with gradients where only a built distribution shows that its support moves."""
        if not self._moving_supports or in_transform():
            return
        with torch.enable_grad():
            run.again(watched(run.inputs, self._graph.inputs)).execute(self._moving_supports)

    def _check_edges(self, run: Run) -> None:
        """Score once more with gradients where probabilities are 0 or 1: do they move with what is differentiated?"""
        names = [node.name for node in run.edges]
        if not names:
            return
        with torch.enable_grad():
            again = run.again(watched(run.inputs, self._wrt))
            again.execute(schedule(self.scores.get(name, self.draws[name]) for name in names))
        check_edges(again)

    def diagnose(self, run: Run) -> None:
        """Find the draw behind a surrogate that is not finite. Scores inside updates are looked at too."""
        again = run.again(run.inputs)
        with torch.no_grad():
            again.execute(self._program)
        check_scores(again)


def scalar(graph: Declaration, value: object, run: Run) -> Tensor:
    """The value of an objective, a real number.

    Raises:
        SamplingError: it is something else.
    """
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        value = value.to(run.dtype)
    if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
        got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise SamplingError(
            f"the objective {graph.objective.name!r} of {graph.name!r} must be a real scalar, got {got}"
            + (f". {OF_A_BATCH}" if isinstance(value, Tensor) and value.dim() else "")
        )
    return value
