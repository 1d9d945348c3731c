"""A gradient in chunks of a plate: the memory of one chunk, the result of the whole. `cuts` says which plates can."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors.exceptions import CompileError, SamplingError
from ..errors.failures import short_tracebacks
from ..ir.traces import Trace
from ..tensors.trees import tensors
from .compiled import Compiled
from .cuts import entries_at_once
from .passes import recorded


@short_tracebacks()
def accumulate(
    compiled: Compiled,
    *inputs: object,
    over: str,
    trace: Trace | None = None,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
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
        chunk: entries of the plate in one chunk; the last chunk may be smaller. Default: the `chunk_size` at these
            inputs.
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
    plate = compiled._cuts.plate(over)
    _check(chunk, over)
    if trace is None:
        trace = compiled.sample(*inputs, generator=generator, sizes=sizes)
    elif generator is not None or sizes is not None:
        raise SamplingError("accumulate: generator and sizes are for fresh draws; with a trace leave them out")
    length = chunk or chunk_size(compiled, trace, over, inputs)
    with recorded():
        point = compiled._inputs.point("accumulate", inputs)
        value, gradient = compiled._estimates.in_chunks(point, trace, plate, length)
        return value, point.shaped(gradient)


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
    plate = compiled._cuts.plate(over)
    if plate.data:
        raise CompileError(
            f"sg.chunks of {compiled.graph.name} over {over!r}: the plate is one of data, whose rows are in the inputs "
            f"and not in a trace. Use sg.accumulate(compiled, *inputs, over={over!r}), which slices both"
        )
    _check(chunk, over)
    return _cut(compiled, trace, over, chunk)


def chunk_size(compiled: Compiled, trace: Trace, over: str, inputs: Sequence[Any] | None = None) -> int:
    """The entries of a plate in one chunk, by default: those for which the largest node has 8000 entries.

    A draw is an entry, and so is each of its time steps. That is for layers of 64 units; where the inputs are known and
    their layers are wider or narrower, a chunk has so many fewer or more: it is numbers that memory holds. A layer has
    as many units as a square one with as many weights as the largest leaf of the differentiated inputs. On an
    accelerator all this is 62 times as much.

    Sizes alone decide, and not the number of threads: chunks of another size move a gradient by rounding.

    Args:
        compiled: the compiled graph.
        trace: one of its traces.
        over: the name of the plate.
        inputs: the inputs of the graph; default: layers of 64 units. `accumulate` knows them, `chunks` does not.

    Raises:
        CompileError: as for `accumulate`.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     task = sg.sample("task", Normal, theta.sum(), 1.0, n=20)
        ...     return sg.mean(sg.sample("x", Normal, task, 1.0, n=2000))
        >>> compiled, theta = objective.compile(sg.SF()), torch.zeros(128, 128)
        >>> trace = compiled.sample(theta)
        >>> sg.chunk_size(compiled, trace, "task"), sg.chunk_size(compiled, trace, "task", inputs=(theta,))
        (4, 2)
    """
    plate = compiled._cuts.plate(over)
    if inputs is None:
        device = next((leaf.device for leaf in tensors(trace.draws)), torch.device("cpu"))
        return compiled._cuts.length(plate, compiled._cuts.sizes(trace, {}), entries_at_once(device))
    point = compiled._inputs.point("chunk_size", inputs)
    return compiled._cuts.length(plate, compiled._cuts.sizes(trace, compiled._inputs.rows(point.named)), point.entries)


def _cut(compiled: Compiled, trace: Trace, over: str, chunk: int | None) -> Iterator[tuple[float, Trace]]:
    """Cut when the first chunk is asked for: until then the trace may be anything."""
    length = chunk or chunk_size(compiled, trace, over)
    for weight, part, _ in compiled._cuts.parts(trace, compiled._cuts.plate(over), length, {}):
        yield weight, part


def _check(chunk: object, over: str) -> None:
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise SamplingError(f"chunk={chunk!r}: a chunk of the plate {over!r} needs at least one entry")
