"""The cuts of a gradient: which plate, into chunks of which size, and the trace of every chunk.

A plate that reaches the objective through a mean, and after it through linear operations only, can be cut into chunks:
the surrogate of the whole trace is the mean of the chunks' surrogates, weighted with their sizes, at any parameters.
Whether a plate does so is read off the derived surrogate, where control variates, baselines and boxes have their part.
Every node is in one of three states:

- `SAME`: all chunks have the same value of it;
- `OWN`: it has the plate, and an entry depends on its own entry of the plate alone;
- `MEAN`: its value is the weighted mean of its values in the chunks.

The size of a chunk follows from sizes alone. Results move by rounding with it: they must not depend on the number of
threads, nor on what else a machine does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from math import isqrt, prod
from typing import Any, NamedTuple

import torch

from ..derive.replays import Replay
from ..errors.exceptions import CompileError, SamplingError
from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..ir.paths import plates_in
from ..ir.traces import Trace
from ..surrogate.steps import CompiledUpdate, all_axes
from ..surrogate.terms import Weight
from ..tensors.axes import Axes, Axis, describe
from ..tensors.trees import map_tensors, tensors
from .passes import Piece

# How many numbers a layer of a chunk holds: the layers of 64 units that policies have, for 8000 draws or their time
# steps. With fewer the interpreter shows, with more the memory: what fits into no cache is several times slower.
_LAYER = 64
_NUMBERS = {"cpu": 8000 * _LAYER}
_ON_ACCELERATORS = 500_000 * _LAYER
_NEVER_TOUCHED = 31 << 20  # bytes; glibc learns from blocks below 32 MiB
_HOW = {nd.Reduction: "sums over the plate", Weight: "adds up the scores of all draws of the plate"}


class Part(NamedTuple):
    """A chunk: its weight in the whole, its trace, and which entries it has. Without the last it is the whole."""

    weight: float
    trace: Trace
    piece: Piece | None = None


def entries_at_once(device: torch.device, weights: int = _LAYER**2) -> int:
    """The number of entries of the largest node of a chunk.

    Args:
        device: where the draws are.
        weights: those of a layer, which is taken for a square one.
    """
    return max(1, _NUMBERS.get(device.type, _ON_ACCELERATORS) // max(1, isqrt(weights)))


class Cuts:
    """The plates of a compiled graph that can be cut, and how.

    Args:
        graph: the declared graph.
        samples: what is drawn, by name.
        program: the nodes of its surrogate.
        scores: the scores that are compared with recorded ones, by sample node.
        named: the nodes that the user has named, by name.
    """

    def __init__(
        self,
        graph: Declaration,
        samples: Mapping[str, nd.Sample],
        program: Sequence[nd.Node],
        scores: Mapping[str, nd.Node],
        named: Mapping[str, nd.Node],
    ) -> None:
        self.graph, self.program = graph, program
        self.samples = samples
        self.plates = plates_in(graph.order)  # outer ones before inner ones
        self._scores, self._named = scores, named
        self._refusals: dict[Axis, str | None] = {}

    def plate(self, over: str) -> Axis:
        """The plate of a name.

        Raises:
            CompileError: there is none, or it cannot be cut.
        """
        if over not in self.plates:
            raise CompileError(
                f"over={over!r} is not a plate of {self.graph.name}; "
                + (f"its plates are {', '.join(map(repr, self.plates))}" if self.plates else "it has none")
            )
        refusal = self.refusal(self.plates[over])
        if refusal is not None:
            raise CompileError(refusal)
        return self.plates[over]

    def refusal(self, plate: Axis) -> str | None:
        """Why a plate cannot be cut, if it cannot. The surrogate is looked through once."""
        if plate not in self._refusals:
            try:
                _Check(self.graph.name, self.program, plate)
                self._refusals[plate] = None
            except CompileError as error:
                self._refusals[plate] = str(error)
        return self._refusals[plate]

    def declared_sizes(self, known: Mapping[str, int]) -> dict[Axis, int]:
        """The sizes of all plates: those that are known by name, the others as declared."""
        return {axis: known.get(name, axis.n or 1) for name, axis in self.plates.items()}

    def sizes(self, trace: Trace, rows: Mapping[str, int]) -> dict[Axis, int]:
        """The sizes of all axes in a trace, and those of the plates of data."""
        known = {axis: rows[name] for name, axis in self.plates.items() if name in rows}
        for name, node in self.samples.items():
            known.update(zip(node.axes, tensors(trace.draws[name])[0].shape, strict=False))
        return known

    def length(self, plate: Axis, sizes: Mapping[Axis, int], entries: int) -> int:
        """The entries of a plate that make a chunk whose largest node has so many entries."""
        return max(1, entries // self._largest(sizes, [axes for axes in self._extents if plate in axes], plate))

    def find(self, sizes: Mapping[Axis, int], entries: int) -> tuple[Axis, int] | None:
        """The plate to cut, and the length of its chunks; nothing if no node has more than so many entries.

        The outermost plate that varies and can be cut. What does not have the plate is computed again for every chunk,
        so it must be little.
        """
        if prod(sizes.values()) <= entries or self._largest(sizes, self._extents) <= entries:
            return None
        for plate in self.plates.values():
            length = self.length(plate, sizes, entries)
            shared = self._largest(sizes, [axes for axes in self._extents if plate not in axes])
            if length < sizes.get(plate, 1) and shared <= entries and self.refusal(plate) is None:
                return plate, length
        return None

    def parts(self, trace: Trace, plate: Axis, length: int, rows: Mapping[str, int]) -> Iterator[Part]:
        """The chunks of a trace. Nothing is copied.

        Raises:
            SamplingError: the draws and the rows of data differ in their number.
        """
        count = self._size(trace, plate, rows)
        _keep_freed_memory()
        for start in range(0, count, length):
            piece = Piece(plate, start, min(length, count - start))
            yield Part(piece.length / count, self._slice(trace, piece), piece)

    def _size(self, trace: Trace, plate: Axis, rows: Mapping[str, int]) -> int:
        """The size of a plate, on which the draws and, for a plate of data, the inputs agree."""
        found = {f"the inputs have {rows[plate.name]} rows": rows[plate.name]} if plate.data else {}
        for name, node in self.samples.items():
            if plate in node.axes:
                size = tensors(trace.draws[name])[0].shape[node.axes.index(plate)]
                found[f"the draws of {name!r} have {size} entries"] = size
        if len(set(found.values())) > 1:
            raise SamplingError(
                f"{self.graph.name}: {', '.join(found)} along the plate {plate.name!r}: a trace belongs to one pass, "
                "and to the batch of that pass"
            )
        return next(iter(found.values()))

    @cached_property
    def _extents(self) -> list[Axes]:
        """The axes of all nodes, those inside of updates included, each once."""
        return list(dict.fromkeys(all_axes(self.program)))

    def _largest(self, sizes: Mapping[Axis, int], extents: Iterable[Axes], left_out: Axis | None = None) -> int:
        """The entries of the largest node; an axis whose size is not known yet counts as one."""
        return max((prod(sizes.get(axis, 1) for axis in axes if axis != left_out) for axes in extents), default=1)

    def _slice(self, trace: Trace, piece: Piece) -> Trace:
        plate, start, length = piece

        def narrow(tree: object, axes: Axes) -> Any:
            if plate not in axes:
                return tree
            dim = axes.index(plate)
            return map_tensors(lambda leaf: leaf.narrow(dim, start, length), tree)

        # A trace of another graph may hold more scores than this graph compares with.
        scored = [(name, node) for name, node in self._scores.items() if name in trace.log_probs]
        noisy = [(name, node) for name, node in self.samples.items() if name in trace.noise]
        named = [(name, node) for name, node in self._named.items() if name in trace.nodes]
        return trace._replace(
            draws={name: narrow(trace.draws[name], node.axes) for name, node in self.samples.items()},
            log_probs={name: narrow(trace.log_probs[name], node.axes) for name, node in scored},
            noise={name: narrow(trace.noise[name], node.drawn_axes) for name, node in noisy},
            nodes={name: narrow(trace.nodes[name], node.axes) for name, node in named},
        )


def _keep_freed_memory() -> None:
    """Let a chunk have the memory of the one before.

    glibc returns what a chunk frees to the system, which hands it out again page by page, a tenth of a chunk's time.
    How much it keeps follows from the largest block that it has seen freed: this one takes no memory, only addresses.
    """
    torch.empty(_NEVER_TOUCHED, dtype=torch.uint8, device="cpu")


class _State(Enum):
    SAME = "the same in all chunks"
    OWN = "each entry of the plate by itself"
    MEAN = "the mean over the chunks"


class _Check:
    """Refuses a surrogate that is not the mean of its chunks."""

    def __init__(self, graph: str, program: Iterable[nd.Node], plate: Axis) -> None:
        self.graph, self.plate = graph, plate
        self.states: dict[nd.Node, _State] = {}
        self._walk(program)

    def _walk(self, program: Iterable[nd.Node]) -> None:
        for node in program:
            if node not in self.states:
                self.states[node] = self._state(node)

    def _state(self, node: nd.Node) -> _State:
        if node.held:
            return self._by_axes(node)  # replayed, whatever its parents are
        self._enter(node)
        known = [self.states[parent] for parent in node.inputs]
        means = [i for i, state in enumerate(known) if state is _State.MEAN]
        linear = node.linear_in(means)  # asked of every node: a kind that does not say is refused
        if means:
            return self._after_mean(node, known, linear)
        if self.plate in node.mixes and _State.OWN in known:
            return self._mixed(node)
        if self.plate not in node.axes and _State.OWN in known:
            raise self._refusal(node, "it has lost the plate")
        return self._by_axes(node)

    def _by_axes(self, node: nd.Node) -> _State:
        return _State.OWN if self.plate in node.axes else _State.SAME

    def _mixed(self, node: nd.Node) -> _State:
        if self.plate in node.averages:
            return _State.MEAN
        raise self._refusal(node, _HOW.get(type(node), "compares or combines entries of the plate"))

    def _after_mean(self, node: nd.Node, known: list[_State], linear: bool) -> _State:
        if _State.OWN in known:
            raise self._refusal(node, "combines the plate's mean with single entries of the plate")
        if not linear:
            raise self._refusal(node, "is not linear in the plate's mean")
        return _State.MEAN

    def _enter(self, node: nd.Node) -> None:
        """Look through the programs that a node evaluates inside of itself."""
        if isinstance(node, CompiledUpdate):
            self.states[node.psi] = self._by_axes(node.psi)
            for program, root in zip(node.programs, node.surrogates, strict=True):
                self._walk(program)
                if self.states[root] is _State.MEAN:
                    raise self._refusal(node, "takes the gradient of a mean over the plate")
        elif isinstance(node, Replay):
            self._walk(node.program)

    def _refusal(self, node: nd.Node, why: str) -> CompileError:
        return CompileError(
            f"{self.graph} cannot be cut into chunks of the plate {self.plate.name!r}: {node.name!r} "
            f"(axes: {describe(node.axes)}) {why}. The plate must reach the objective through sg.mean, and after it "
            "through linear operations only, and no estimator or baseline may compare its draws; choose another plate "
            "or another estimator, or use value_and_grad"
        )
