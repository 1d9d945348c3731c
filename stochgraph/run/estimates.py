"""Values and gradients, of one pass or, where that is large, of draws and then of chunks of a plate."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..errors.exceptions import SamplingError
from ..ir import nodes as nd
from ..ir.traces import Trace
from ..tensors.axes import Axis
from .cuts import Cuts, Part
from .gradient import Point
from .inputs import Inputs, checked_sizes
from .lowered import Lowering, drawn
from .passes import Run, seeded
from .surrogates import Surrogate
from .values import Values

Found = tuple[Tensor, list[Tensor]]


class Estimates:
    """Gradients of a compiled graph.

    Args:
        inputs: what the graph takes.
        surrogate: what is differentiated.
        values: what draws.
        cuts: how it is cut.
        lowering: flat programs that take the place of the interpreter where they can.
    """

    def __init__(
        self, inputs: Inputs, surrogate: Surrogate, values: Values, cuts: Cuts, lowering: Lowering | None
    ) -> None:
        self._inputs, self._surrogate, self._values = inputs, surrogate, values
        self._cuts, self._lowering = cuts, lowering

    def fresh(self, point: Point, generator: torch.Generator | None, sizes: Mapping[str, int] | None) -> Found:
        """The value and gradient for fresh draws: of one pass, or of draws and then of chunks of a plate."""
        sizes = checked_sizes(self._inputs.graph, sizes)
        with seeded(generator, point.named):
            found = None if self._lowering is None else self._lowering.fresh(point, sizes)
            if found is not None:
                return found
            run = self._inputs.begun(Run(point.named, sizes))
            if not self.is_large(run, point) and not (self._lowering is not None and self._lowering.draws_apart):
                return self.one_pass(point, run)
            trace = drawn(self._values.draw_program, run)
        return self.at(point, trace)

    def is_large(self, run: Run, point: Point) -> bool:
        """True if a pass is to be cut. Plate sizes are known before it, lengths of trajectories once they are drawn."""
        plates = self._cuts.declared_sizes({**run.wanted, **self._inputs.rows(run.inputs)})
        if self._cuts.find(plates, point.entries) is not None:
            return True
        self._surrogate.watch(run)
        for program in self._until_lengths:
            with torch.enable_grad():
                run.execute(program)
            if self._cuts.find({**plates, **run.sizes}, point.entries) is not None:
                return True
        return False

    @cached_property
    def _until_lengths(self) -> list[list[nd.Node]]:
        """The parts of the program that end where a trajectory is drawn."""
        program = self._surrogate.program
        lengths = [i + 1 for i, node in enumerate(program) if isinstance(node, nd.Sample) and node.time]
        return [program[start:end] for start, end in pairwise([0, *lengths])]

    def at(self, point: Point, trace: Trace) -> Found:
        """The value and gradient at a trace, cut if it is large."""
        cut = self._cuts.find(self._cuts.sizes(trace, self._inputs.rows(point.named)), point.entries)
        return self._accumulated(point, [Part(1.0, trace)]) if cut is None else self.in_chunks(point, trace, *cut)

    def in_chunks(self, point: Point, trace: Trace, plate: Axis, length: int) -> Found:
        """The value and gradient at a trace, in chunks of a plate."""
        parts = list(self._cuts.parts(trace, plate, length, self._inputs.rows(point.named)))
        try:
            return self._accumulated(point, parts)
        except SamplingError:
            self._values.diagnose(
                self._inputs.begun(Run(point.named, {}, trace))
            )  # names a draw by its place in the whole
            raise

    def _accumulated(self, point: Point, parts: Iterable[Part]) -> Found:
        """The weighted sum of the values and of the gradients of some chunks."""
        total: list[Tensor] = []
        for weight, trace, piece in parts:
            of_rows = piece is not None and piece.plate.data  # they are cut out of the inputs
            found = None if self._lowering is None or of_rows else self._lowering.at(point, trace)
            value, gradient = found or self.one_pass(point, self._inputs.begun(Run(point.named, {}, trace, piece)))
            scaled = [leaf * weight for leaf in (value, *gradient)]
            total = list(map(torch.add, total, scaled)) if total else scaled
        return total[0], total[1:]

    def one_pass(self, point: Point, run: Run) -> Found:
        """The value and gradient of one pass, by the interpreter."""
        with torch.enable_grad():
            loss = self._surrogate(run)
        return loss.detach(), point.gradient(loss)

    def is_first(self, run: Run) -> bool:
        """True if the interpreter has not looked yet where the derivatives of such a pass lead."""
        return self._surrogate.is_first(run)
