"""A gradient in chunks of a plate: the memory of one chunk, the result of the whole.

A plate that reaches the objective through a mean, and after it through linear operations only, can be cut into chunks:
the surrogate of the whole trace is the mean of the chunks' surrogates, weighted with their sizes, at any parameters.
Whether a plate does so is read off the derived surrogate, where control variates, baselines and boxes have their part.
Every node is in one of three states:

- `SAME`: all chunks have the same value of it;
- `OWN`: it has the plate, and an entry depends on its own entry of the plate alone;
- `MEAN`: its value is the weighted mean of its values in the chunks.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import _node as nd
from ._axes import Axis, describe
from ._compile import Compiled
from ._control import ControlVariate, Uncovered
from ._data import data_sizes
from ._errors import CompileError, SamplingError
from ._failures import shortened
from ._leave_one_out import Replay
from ._reach import plates_in, samples_in
from ._run import Piece, Run
from ._surrogate import Box, Controlled, ScoreTerm, Total, Weight
from ._trace import Trace
from ._trees import map_tensors, tensors
from ._update import CompiledUpdate

# Draws, or time steps of draws, that a chunk has at least for every thread: with fewer the interpreter shows, with more
# than this on more than four threads the memory does.
_TRANSITIONS, _THREADS = 2000, 4
_NEVER_TOUCHED = 31 << 20  # bytes; glibc learns from blocks below 32 MiB
_HOW = {nd.Reduction: "sums over the plate", Weight: "adds up the scores of all draws of the plate"}
_LINEAR_IN_ALL = (operator.add, operator.sub, operator.neg, operator.pos)


@shortened()
def accumulate(
    compiled: Compiled,
    *inputs: Any,
    over: str,
    trace: Trace | None = None,
    chunk: int | None = None,
    generator: Any = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[Tensor, Any]:
    r"""`Compiled.value_and_grad`, differentiated in chunks of a plate: memory does not grow with the plate.

    .. math:: \nabla S(\text{trace}) = \sum_c \frac{n_c}{n} \nabla S(\text{trace}_c)

    Equal to the gradient of the whole up to rounding. All draws are made in one batch; only the differentiation is cut.

    Args:
        compiled: the compiled graph.
        *inputs: the inputs of the graph, pytrees of tensors.
        over: the name of the plate. It must reach the objective through a mean, and after it through linear operations.
            Of a plate of data the inputs are sliced with the draws.
        trace: draws to replay, at these inputs or at others; default: fresh draws.
        chunk: entries of the plate in one chunk; the last chunk may be smaller. Default: see `chunk_size`.
        generator: for fresh draws, the source of randomness; default: torch's default generators.
        sizes: for fresh draws, sizes of plates by name, in place of the declared ones.

    Returns:
        The value of the objective, and the gradient: a pytree like the differentiated input, or a tuple of them if
        `wrt` names several.

    Raises:
        CompileError: there is no such plate, or something in the surrogate mixes its entries other than by that mean.
        SamplingError: a chunk of less than one entry, a log-probability that is not finite.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     task = sg.sample("task", Normal, 0.0, 1.0, n=10)
        ...     x = sg.sample("x", Normal, theta, 1.0, n=5, within="task")
        ...     adapted = sg.ascend(theta, sg.mean(x * task, over="x"), lr=0.1)
        ...     return sg.mean(-((adapted - task) ** 2))
        >>> compiled, theta = objective.compile(sg.SF()), torch.tensor(0.5)
        >>> trace = compiled.sample(theta, generator=torch.Generator().manual_seed(0))
        >>> value, gradient = sg.accumulate(compiled, theta, over="task", trace=trace, chunk=4)
        >>> torch.allclose(gradient, torch.func.grad(compiled.surrogate)(theta, trace))
        True
    """
    plate = _plate(compiled, over)
    _check_cut(compiled, plate, chunk)
    if trace is None:
        trace = compiled.sample(*inputs, generator=generator, sizes=sizes)
    elif generator is not None or sizes is not None:
        raise SamplingError("accumulate: generator and sizes are for fresh draws; with a trace leave them out")
    count = _size(compiled, trace, plate, data_sizes(compiled.graph._data, compiled._named(inputs)))
    total: list[Any] = []
    for piece in _pieces(compiled, trace, plate, chunk, count):
        part, weight = _slice(compiled, trace, piece), piece.length / count
        found = compiled._value_and_grad(inputs, partial(Run, sizes={}, trace=part, piece=piece))
        leaves, spec = pytree.tree_flatten(found)
        scaled = [None if leaf is None else leaf * weight for leaf in leaves]
        total = scaled if not total else [_plus(x, y) for x, y in zip(total, scaled, strict=True)]
    value, gradient = pytree.tree_unflatten(total, spec)
    return value, gradient


def chunks(compiled: Compiled, trace: Trace, *, over: str, chunk: int | None = None) -> Iterator[tuple[float, Trace]]:
    """Cut a trace along a plate: pairs of a weight and a trace, whose surrogates' weighted sum is that of the whole.

    For whatever is linear in the surrogate at fixed draws: derivatives of any order, values in a line search.

    Args:
        compiled: the compiled graph.
        trace: one of its traces.
        over: the name of the plate, of draws: the rows of data are in no trace, and `accumulate` slices both.
        chunk: entries of the plate in one chunk. Default: see `chunk_size`.

    Returns:
        An iterator over `(weight, trace)`. The weights sum to 1, the draws are views.

    Raises:
        CompileError: as for `accumulate`, when called.
        SamplingError: a chunk of less than one entry.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=10) ** 2)
        >>> compiled, theta = objective.compile(sg.SF()), torch.tensor(0.5)
        >>> trace = compiled.sample(theta)
        >>> [weight for weight, part in sg.chunks(compiled, trace, over="x", chunk=4)]
        [0.4, 0.4, 0.2]
    """
    plate = _plate(compiled, over)
    if plate.data:
        raise CompileError(
            f"sg.chunks of {compiled.graph.name} over {over!r}: the plate is one of data, whose rows are in the inputs "
            f"and not in a trace. Use sg.accumulate(compiled, *inputs, over={over!r}), which slices both"
        )
    _check_cut(compiled, plate, chunk)
    return _cut(compiled, trace, plate, chunk)


def chunk_size(compiled: Compiled, trace: Trace, over: str) -> int:
    """How many entries of a plate one chunk has by default: 2000 draws of the largest sample node for every thread.

    A time step counts as a draw, and at most four threads of torch count. Fewer leave a processor waiting for the
    interpreter, more need memory and are no faster; on an accelerator more are. Chunks of another size move a gradient
    by rounding: give the size where runs on different machines must agree to the last bit.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     task = sg.sample("task", Normal, theta, 1.0, n=20)
        ...     return sg.mean(sg.sample("x", Normal, task, 1.0, n=8000))
        >>> compiled = objective.compile(sg.SF())
        >>> sg.chunk_size(compiled, compiled.sample(torch.tensor(0.5)), "task")
        1
    """
    plate = _plate(compiled, over)
    counts = [1]
    for name, node in samples_in(compiled.graph._order).items():
        if plate in node.axes:
            shape = tensors(trace.draws[name])[0].shape
            counts.append(prod(n for n, axis in zip(shape, node.axes, strict=False) if axis != plate))
    wanted = _TRANSITIONS * min(torch.get_num_threads(), _THREADS)
    return -(-wanted // max(counts))


def _plate(compiled: Compiled, over: str) -> Axis:
    plates = plates_in(compiled.graph._order)
    if over not in plates:
        raise CompileError(
            f"over={over!r} is not a plate of {compiled.graph.name}; "
            + (f"its plates are {', '.join(map(repr, plates))}" if plates else "it has none")
        )
    return plates[over]


def _check_cut(compiled: Compiled, plate: Axis, chunk: int | None) -> None:
    """Refuse plates that cannot be cut, and impossible chunks."""
    _Check(compiled, plate)
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise SamplingError(f"chunk={chunk!r}: a chunk of the plate {plate.name!r} needs at least one entry")


def _cut(compiled: Compiled, trace: Trace, plate: Axis, chunk: int | None) -> Iterator[tuple[float, Trace]]:
    count = _size(compiled, trace, plate, {})
    for piece in _pieces(compiled, trace, plate, chunk, count):
        yield piece.length / count, _slice(compiled, trace, piece)


def _pieces(compiled: Compiled, trace: Trace, plate: Axis, chunk: int | None, count: int) -> Iterator[Piece]:
    """Where a plate of `count` entries is cut."""
    size = chunk_size(compiled, trace, plate.name) if chunk is None else chunk
    _keep_freed_memory()
    for start in range(0, count, size):
        yield Piece(plate, start, min(size, count - start))


def _keep_freed_memory() -> None:
    """Let a chunk have the memory of the one before.

    glibc returns what a chunk frees to the system, which hands it out again page by page, a tenth of a chunk's time.
    How much it keeps follows from the largest block that it has seen freed: this one takes no memory, only addresses.
    """
    torch.empty(_NEVER_TOUCHED, dtype=torch.uint8, device="cpu")


def _size(compiled: Compiled, trace: Trace, plate: Axis, rows: Mapping[str, int]) -> int:
    """The size of a plate, on which the draws and, for a plate of data, the inputs agree."""
    found = {f"the inputs have {rows[plate.name]} rows": rows[plate.name]} if plate.data else {}
    for name, node in samples_in(compiled.graph._order).items():
        if plate in node.axes:
            size = tensors(trace.draws[name])[0].shape[node.axes.index(plate)]
            found[f"the draws of {name!r} have {size} entries"] = size
    if len(set(found.values())) > 1:
        raise SamplingError(
            f"{compiled.graph.name}: {', '.join(found)} along the plate {plate.name!r}: a trace belongs to one pass, "
            "and to the batch of that pass"
        )
    return next(iter(found.values()))


def _slice(compiled: Compiled, trace: Trace, piece: Piece) -> Trace:
    """A trace with some entries of a plate; nothing is copied."""
    plate, start, length = piece

    def narrow(tree: Any, axes: tuple[Axis, ...]) -> Any:
        if plate not in axes:
            return tree
        dim = axes.index(plate)
        return map_tensors(lambda leaf: leaf.narrow(dim, start, length), tree)

    samples = samples_in(compiled.graph._order)
    draws = {name: narrow(trace.draws[name], node.axes) for name, node in samples.items()}
    scores = {name: narrow(trace.log_probs[name], node.axes) for name, node in _recorded(compiled, trace)}
    # Noise is in the order in which torch draws it.
    noise = {name: narrow(trace.noise[name], node.drawn_axes) for name, node in samples.items() if name in trace.noise}
    named = compiled._named_nodes
    nodes = {name: narrow(value, named[name].axes) for name, value in trace.nodes.items() if name in named}
    return trace._replace(draws=draws, log_probs=scores, noise=noise, nodes=nodes)


def _recorded(compiled: Compiled, trace: Trace) -> list[tuple[str, nd.Node]]:
    """The scores that the graph compares with recorded ones; a trace of another graph may hold more."""
    return [(name, node) for name, node in compiled._scores.items() if name in trace.log_probs]


def _plus(one: Any, other: Any) -> Any:
    return None if one is None else one + other


class _State(Enum):
    SAME = "the same in all chunks"
    OWN = "each entry of the plate by itself"
    MEAN = "the mean over the chunks"


class _Check:
    """Refuses a surrogate that is not the mean of its chunks."""

    def __init__(self, compiled: Compiled, plate: Axis) -> None:
        self.graph, self.plate = compiled.graph.name, plate
        self.states: dict[nd.Node, _State] = {}
        self._walk(compiled._program)

    def _walk(self, program: Iterable[nd.Node]) -> None:
        for node in program:
            if node not in self.states:
                self.states[node] = self._state(node)

    def _state(self, node: nd.Node) -> _State:
        if isinstance(node, nd.Sample) and not node.pathwise:
            return self._by_axes(node)  # replayed, whatever its parents are
        self._enter(node)
        known = [self.states[parent] for parent in node.inputs]
        if _State.MEAN in known:
            return self._after_mean(node, known)
        if self.plate in node.mixes and _State.OWN in known:
            return self._mixed(node)
        if self.plate not in node.axes and _State.OWN in known:
            raise self._refusal(node, "it has lost the plate")
        return self._by_axes(node)

    def _by_axes(self, node: nd.Node) -> _State:
        return _State.OWN if self.plate in node.axes else _State.SAME

    def _mixed(self, node: nd.Node) -> _State:
        if isinstance(node, nd.Reduction) and node.mean:
            return _State.MEAN
        raise self._refusal(node, _HOW.get(type(node), "compares or combines entries of the plate"))

    def _after_mean(self, node: nd.Node, known: list[_State]) -> _State:
        if _State.OWN in known:
            raise self._refusal(node, "combines the plate's mean with single entries of the plate")
        means = [i for i, state in enumerate(known) if state is _State.MEAN]
        if not _linear(node, means):
            raise self._refusal(node, "is not linear in the plate's mean")
        return _State.MEAN

    def _enter(self, node: nd.Node) -> None:
        """What a node evaluates inside of itself."""
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


def _linear(node: nd.Node, means: list[int]) -> bool:
    """Whether a node is linear, or affine, in the inputs at some places."""
    if isinstance(node, (nd.Reduction, nd.Select, nd.Stop, nd.Zero, Total, Controlled)):
        return True
    if isinstance(node, Uncovered):
        return 2 not in means
    if isinstance(node, (Box, ScoreTerm)):
        return means == [0]
    if isinstance(node, ControlVariate) or not isinstance(node, nd.Apply) or not node.arguments.simple:
        return False
    if node.fn in _LINEAR_IN_ALL:
        return True
    if node.fn is operator.mul:
        return len(means) == 1
    return node.fn is operator.truediv and means == [0] and isinstance(node.arguments.leaves[0], nd.Node)
