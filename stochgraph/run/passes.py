"""One pass through a compiled program: where draws come from, and what is recorded of them."""

import bisect
import copy
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributions.interfaces import SampleNode
from ..distributions.kept import refuse_lost
from ..distributions.mends import at_edge, edge_message
from ..errors.exceptions import FunctionError, SamplingError
from ..ir import nodes as nd
from ..ir.programs import execute
from ..ir.traces import Trace
from ..surrogate.terms import Score
from ..tensors.axes import Axis, describe
from ..tensors.indexing import in_transform, transform_rules
from ..tensors.left_out import LeftOut
from ..tensors.trees import map_tensors, tensors

_AS_IT_IS = nullcontext()


class Piece(NamedTuple):
    """Some entries of a plate, next to each other."""

    plate: Axis
    start: int
    length: int


class Place:
    """The nodes that a pass is computing: their declared names, also behind the operations of a backward pass."""

    def __init__(self) -> None:
        self.node = ""
        self._starts: list[tuple[int, str]] = []  # where a node's steps begin in autograd's count

    def enter(self, node: nd.Node) -> None:
        """From here on a node is computed."""
        self.node = node.name
        self._starts.append((torch._C._autograd._get_sequence_nr(), node.name))

    def name(self) -> str:
        """The node that is computed, or differentiated, at this moment."""
        step = torch._C._current_autograd_node()
        if step is None:
            return self.node
        place = bisect.bisect_right(self._starts, step._sequence_nr(), key=lambda start: start[0]) - 1
        return f"d {self._starts[place][1]}" if place >= 0 else "d"


class Run:
    """The state of one pass. With a trace every draw is replayed; without one it is made, in declaration order.

    With a piece the pass is about these rows of data alone: the trace has the draws of no others.
    """

    def __init__(
        self,
        inputs: Mapping[str, Any],
        sizes: Mapping[str, int],
        trace: Trace | None = None,
        piece: Piece | None = None,
    ) -> None:
        self.inputs = inputs
        self.piece = piece
        self.wanted = sizes
        self.sizes: dict[Axis, int] = {}
        self.draws: dict[str, Any] = dict(trace.draws) if trace else {}
        self.noise: dict[str, list[Tensor]] = dict(trace.noise) if trace else {}
        self.log_probs: Mapping[str, Tensor] = trace.log_probs if trace else {}
        self.kept: dict[nd.Node, Any] = {}  # what scores can reuse of the draws, by the node that drew
        self.values: dict[nd.Node, Any] = {}
        self.found: dict[nd.Node, Tensor] = {}  # scores that updates hand over
        self.edges: dict[SampleNode, bool] = {}  # where probabilities are 0 or 1: whether they are differentiated
        self.left_out: LeftOut | None = None
        self.portions: Mapping[Axis, nd.Portion] = {}  # which draws count in expectations, if not all do
        self.watch: nd.Watch | None = None
        self.place: Place | None = None  # where a pass is recorded

    @cached_property
    def like(self) -> Tensor | None:
        """A real tensor among the inputs, if there is one."""
        floats = (x for x in tensors(dict(self.inputs)) if x.is_floating_point())
        return next(floats, None)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs: what numbers and means of integers become."""
        return torch.get_default_dtype() if self.like is None else self.like.dtype

    @cached_property
    def device(self) -> torch.device | None:
        """The device of the inputs."""
        return None if self.like is None else self.like.device

    def placed(self) -> AbstractContextManager[Any]:
        """Within it, tensors that say nothing of their device are made where the inputs are."""
        return _AS_IT_IS if self.device is None or self.device.type == "cpu" else self.device

    def number(self, value: object) -> Any:
        """A Python number as a tensor where the inputs are."""
        return torch.tensor(value, dtype=self.dtype, device=self.device) if isinstance(value, float) else value

    def again(self, inputs: Mapping[str, Any]) -> "Run":
        """A pass with the same draws at other inputs."""
        return self._like(Run(inputs, {}, Trace(draws=self.draws, noise=self.noise), self.piece))

    def continued(self) -> "Run":
        """A pass that begins with what this one has drawn so far, and draws the rest."""
        drawn: dict[str, Any] = map_tensors(Tensor.detach, self.draws)
        return self._like(Run(self.inputs, self.wanted, Trace(draws=drawn, noise=self.noise)))

    def _like(self, other: "Run") -> "Run":
        other.portions = self.portions
        return other

    def leaving_out(self, left_out: LeftOut, log_probs: Mapping[str, Tensor]) -> "Run":
        """This pass with one draw left out of the means over its plate."""
        other = self.replaying(log_probs)
        other.left_out = left_out
        return other

    def replaying(self, log_probs: Mapping[str, Tensor]) -> "Run":
        """This pass where draws have other values or parents than those that they were drawn with."""
        other = copy.copy(self)
        other.log_probs, other.kept, other.found = log_probs, {}, {}
        return other

    def within(self, plate: Axis, size: int) -> "Run":
        """This pass for some entries of a plate: what is computed there is handed over apart."""
        other = copy.copy(self)
        other.sizes, other.kept, other.found = {**self.sizes, plate: size}, {}, {}
        return other

    def execute(self, program: Sequence[nd.Node]) -> dict[nd.Node, Any]:
        """Evaluate a program; the values of its nodes, and of all evaluated before."""
        with transform_rules():
            execute(program, self, self.values)
        return self.values

    def rows(self, plate: Axis, value: object, dim: int) -> Any:
        """The rows of this pass, of data whose rows are along a dimension."""
        if self.piece is not None and self.piece.plate == plate:
            _, start, length = self.piece
            value = map_tensors(lambda leaf: leaf.narrow(dim, start, length), value)
        self.sizes[plate] = tensors(value)[0].shape[dim]
        return value

    def draw(self, node: nd.Sample, values: list[Any]) -> Any:
        """The value of a sample node: replayed if it is known, drawn otherwise."""
        if node.name not in self.draws:
            return self._draw(node, values)
        value = self.draws[node.name]
        self._note_sizes(node.declared, value)
        if node.pathwise:
            value, _, self.kept[node] = node.law.draw_pathwise(node, values, self, self.noise[node.name])
        return value

    def _draw(self, node: nd.Sample, values: list[Any]) -> Any:
        for axis in node.plates:
            if axis not in self.sizes:
                size = self.wanted.get(axis.name, axis.n)
                assert size is not None, "rows are counted, and times known, before what is drawn for them"
                self.sizes[axis] = size
        try:
            if node.pathwise:
                value, self.noise[node.name], self.kept[node] = node.law.draw_pathwise(node, values, self, None)
            else:
                value, self.kept[node] = node.law.draw(node, values, self)
        except FunctionError as error:
            error.args = (f"{error}{_origin(self)}",)
            raise
        except (ValueError, RuntimeError) as error:
            if isinstance(error, SamplingError):
                raise
            raise SamplingError(
                f"sample {node.name!r} (axes: {describe(node.axes)}) could not be drawn from {node.law.name}: {error}"
                + _origin(self)
            ) from error
        self.draws[node.name] = value
        self._note_sizes(node, value)
        return value

    def _note_sizes(self, node: nd.Sample, value: object) -> None:
        for leaf in tensors(value)[:1]:
            for axis, size in zip(node.axes, leaf.shape, strict=False):
                known = self.sizes.setdefault(axis, size)
                if known != size:
                    before = f"the inputs have {known} rows" if axis.data else f"{known} of what was drawn before it"
                    raise SamplingError(
                        f"sample {node.name!r} (axes: {describe(node.axes)}): {size} entries of its draw are given "
                        f"along {axis.name!r}, and {before}: a trace belongs to one pass, and to the batch of that pass"
                    )

    def score(self, sample: nd.Sample, inputs: Sequence[nd.Node], values: list[Any]) -> Tensor:
        """The log-probability of each draw, with the distribution that drew it if its parents are the same nodes.

        `inputs` are the node that drew, or what stands for it, and the parents.
        """
        drawn, *parents = inputs
        kept = self.kept.get(drawn)
        if kept is not None:
            refuse_lost(sample, kept)
            kept = kept if drawn.inputs == inputs[1:] else None
        return sample.law.score(kept.node if kept else sample, values[0], parents, values[1:], self, kept)

    def note_margins(self, node: SampleNode, margins: Sequence[Tensor]) -> None:
        """Note whether probabilities are at the edge. Inside transforms there is no telling."""
        found = at_edge(margins) if margins and not in_transform() else []
        if found:
            self.edges[node] = self.edges.get(node, False) or any(margin.requires_grad for margin in found)


def _origin(run: Run) -> str:
    """The first value that is not a number, if there is one: all that come after it may have it from there."""
    if in_transform():
        return ""
    for node, value in run.values.items():
        if any(leaf.is_floating_point() and bool(leaf.isnan().any()) for leaf in tensors(value)):
            return f". The first value with a NaN is that of {node.name!r} (axes: {describe(node.axes)})"
    return ""


def check_edges(run: Run) -> None:
    """Refuse probabilities that are differentiated where an outcome is impossible."""
    for node, differentiated in run.edges.items():
        if differentiated:
            raise SamplingError(edge_message(node))


def check_scores(run: Run) -> None:
    """Refuse log-probabilities that are not finite, with the draw that gave them."""
    for node, value in run.values.items():
        if isinstance(node, (Score, nd.LogProb)) and not bool(torch.isfinite(value).all()):
            raise SamplingError(_not_finite(run, node.sample, value))


def _not_finite(run: Run, sample: nd.Sample, log_prob: Tensor) -> str:
    where = tuple(int(i) for i in torch.nonzero(~torch.isfinite(log_prob))[0])
    plates = where[: len(sample.plates)]  # a draw is shown whole, with all its time steps
    draw = map_tensors(lambda leaf: leaf[plates], run.draws[sample.name])
    return (
        f"sample {sample.name!r} (axes: {describe(sample.axes)}): the log-probability of draw {where} is "
        f"{float(log_prob[where])}; the draw is {draw}. Check the parameters of {sample.law.name}, and that the "
        "draw is in its support"
    )


def recorded() -> AbstractContextManager[None]:
    """Within it, inner steps can be differentiated even in inference mode; whether gradients are on stays as it is."""
    return _recorded() if torch.is_inference_mode_enabled() else _AS_IT_IS


@contextmanager
def _recorded() -> Iterator[None]:
    enabled = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


# One thread draws at a time: torch's default generators belong to the process, as do environments behind samplers.
_DRAWING = threading.RLock()
if hasattr(os, "register_at_fork"):  # a fork has this thread alone, whoever held the lock
    os.register_at_fork(after_in_child=_DRAWING._at_fork_reinit)  # type: ignore[attr-defined]


def seeded(generator: torch.Generator | None, inputs: object) -> AbstractContextManager[Any]:
    """Let torch's default generators continue `generator`, and hand the state back to it afterwards.

    Distributions draw from the default generators only. The default state of the caller is left as it was.
    """
    if generator is None:
        return _DRAWING
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator={generator!r}: a torch.Generator is expected, such as torch.Generator().manual_seed(0)"
        )
    return _continuing(generator, inputs)


@contextmanager
def _continuing(generator: torch.Generator, inputs: object) -> Iterator[None]:
    devices = {leaf.device for leaf in tensors(inputs) if leaf.is_cuda}
    with _DRAWING, torch.random.fork_rng(devices=[d.index or 0 for d in devices]):
        if generator.device.type == "cpu":
            torch.set_rng_state(generator.get_state())
        else:
            torch.cuda.set_rng_state(generator.get_state(), generator.device)
        on_cpu = generator.device.type == "cpu"
        for device in devices if on_cpu else ():
            seed = int(torch.randint(2**62, ()))
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
        generator.set_state(torch.get_rng_state() if on_cpu else torch.cuda.get_rng_state(generator.device))
