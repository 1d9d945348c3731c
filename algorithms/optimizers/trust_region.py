"""Trust-region steps on meta-parameters: as far along the natural gradient as the adapted policies may move.

A step is a function of two functions of the parameters, a gain and a divergence, both replays of one trace. Nothing is
drawn: candidates of the line search are compared on the very same trajectories.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stochgraph as sg

from .vectors import Vector, added

Function = Callable[[Any], Tensor]
Parts = list[tuple[float, Function]]  # functions and their weights: a weighted sum


class Step(NamedTuple):
    """The outcome of a trust-region step.

    Attributes:
        parameters: the new parameters; the old ones, the same tensors, if no candidate was accepted.
        accepted: whether the line search found a candidate.
        gain: by how much what is compared rose, 0 if no candidate was accepted.
        divergence: how far the policies moved, 0 if no candidate was accepted.
        tries: how many candidates were evaluated.
        reason: why there was no step; empty if there was one.
        gradient_norm: the norm of the gain's gradient at the old parameters.
    """

    parameters: Any
    accepted: bool
    gain: float
    divergence: float
    tries: int
    reason: str
    gradient_norm: float


def trust_region_step(
    parameters: Any,
    gain: Function | Iterable[tuple[float, Function]] | list[Parts],
    divergence: Function | Iterable[tuple[float, Function]] | list[Parts],
    *,
    radius: float = 0.01,
    damping: float = 1e-5,
    iterations: int = 10,
    backtracking: float = 0.8,
    tries: int = 15,
    compared: Function | Iterable[tuple[float, Function]] | list[Parts] | None = None,
    keep: bool = False,
    reduce: Callable[[Iterable[Any]], Any] = added,
) -> Step:
    r"""One step of trust-region policy optimisation.

    .. math:: \theta_{new} = \theta + \beta^j \sqrt{\frac{2 \delta}{s^\top H s}} \, s, \qquad
              (H + \epsilon I) s \approx g

    g is the gradient of the gain and H the Hessian of the divergence at the old parameters, both exact; s comes from
    conjugate gradients on exact Hessian-vector products. j counts up until what is compared, by default the gain, rises
    and the divergence is at most :math:`\delta`; if it never does, the old parameters stay.

    Args:
        parameters: a pytree of tensors.
        gain: what is climbed, a scalar of the parameters: a surrogate replayed on a trace. Or a list of weights and
            functions whose weighted sum it is, one for each chunk of the trace, for less memory (`replay`). Or a list
            of such lists, for each share of the work one.
        divergence: a scalar of the parameters with its minimum 0 at the old ones, such as `adapted_divergence`; or a
            list as for `gain`.
        radius: :math:`\delta`.
        damping: :math:`\epsilon`.
        iterations: of the conjugate gradients, at most.
        backtracking: :math:`\beta`.
        tries: candidates at most.
        compared: what a candidate must raise, if that is another function than the gain, such as `adapted_gain`; or a
            list as for `gain`.
        keep: keep the graph of the divergence's slope for all products. That takes the memory of all its parts at once,
            and a fraction of the time where inner steps are solved.
        reduce: adds up pytrees of tensors, one for each share, default: those given, in their order. Where processes
            have shares of their own, it adds up all of them: all call `trust_region_step` together, and decide alike
            if the sums are the same bits on each.

    References:
        Schulman et al. (2015), Trust region policy optimization, appendix C; Finn et al. (2017), section 5.3.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.optimizers.trust_region import trust_region_step
        >>> old = torch.tensor([1.0, 2.0])
        >>> step = trust_region_step(old, lambda t: t.sum(), lambda t: 0.5 * ((t - old) ** 2).sum(), radius=0.01)
        >>> step.accepted, [round(float(x), 2) for x in step.parameters]
        (True, [1.1, 2.1])
    """
    gains, divergences, start = _shares(gain), _shares(divergence), Vector(parameters)
    before, slope = reduce(_value_and_gradient(parts, start) for parts in gains)
    norm = float(slope.norm())
    if not 0 < norm < float("inf"):
        return Step(parameters, False, 0.0, 0.0, 0, "the gradient of the gain is zero or not finite", norm)

    curved = [_curvature(parts, start, keep) for parts in divergences]

    def product(vector: Tensor) -> Tensor:
        return reduce(product_of(vector) for product_of in curved) + damping * vector

    direction = conjugate_gradients(product, slope, iterations)
    curvature = float(direction @ product(direction))
    if not 0 < curvature < float("inf"):
        return Step(parameters, False, 0.0, 0.0, 0, "the divergence does not curve along the step", norm)
    full = (2 * radius / curvature) ** 0.5 * direction
    if compared is not None:
        gains = _shares(compared)
        before = reduce(_value(parts, parameters) for parts in gains)
    for j in range(tries):
        candidate = start.moved(backtracking**j * full)
        pairs = zip(gains, divergences, strict=True)
        value, distance = map(float, reduce((_value(g, candidate), _value(d, candidate)) for g, d in pairs))
        rise = value - float(before)
        if rise > 0 and distance <= radius:
            return Step(candidate, True, rise, distance, j + 1, "", norm)
    what = "the gain" if compared is None else "what is compared"
    reason = f"none of {tries} candidates raised {what} within a divergence of {radius}"
    return Step(parameters, False, 0.0, 0.0, tries, reason, norm)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """Solve `A x = target` for a symmetric positive definite A, given by its products with vectors.

    Exact after as many iterations as A has different eigenvalues, up to rounding.

    Args:
        product: from x to `A x`.
        target: shape `(size,)`.
        iterations: at most.
        tolerance: stop once the squared residual is this fraction of the target's.

    References:
        Hestenes and Stiefel (1952), section 3.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.optimizers.trust_region import conjugate_gradients
        >>> conjugate_gradients(lambda x: torch.tensor([2.0, 4.0]) * x, torch.tensor([2.0, 2.0]))
        tensor([1.0000, 0.5000])
    """
    solution, residual, direction = torch.zeros_like(target), target.clone(), target.clone()
    squared = residual @ residual
    enough = tolerance * squared
    for _ in range(iterations):
        if not bool(squared > enough):
            break
        image = product(direction)
        step = squared / (direction @ image)
        solution, residual = solution + step * direction, residual - step * image
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return solution


def replay(
    compiled: sg.Compiled, trace: sg.Trace, *others: Any, over: str | None = None, chunk: int | None = None
) -> Parts:
    """A compiled surrogate as a function of its first input, on one trace: in chunks of a plate.

    Args:
        compiled: the compiled graph.
        trace: what was drawn.
        *others: the inputs after the first.
        over: the plate to cut; `None` for the whole trace at once.
        chunk: see `sg.chunks`.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> from stochgraph.algorithms.optimizers.trust_region import replay
        >>> @sg.graph
        ... def objective(theta):
        ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=10) ** 2)
        >>> compiled, theta = objective.compile(sg.SF()), torch.tensor(0.5)
        >>> trace = compiled.sample(theta)
        >>> parts = replay(compiled, trace, over="x", chunk=4)
        >>> bool(torch.isclose(sum(weight * part(theta) for weight, part in parts), trace.value))
        True
    """
    cut = [(1.0, trace)] if over is None else sg.chunks(compiled, trace, over=over, chunk=chunk)

    def function(part: sg.Trace) -> Function:
        return lambda first: compiled.surrogate(first, *others, part)

    return [(weight, function(part)) for weight, part in cut]


def _shares(function: Any) -> list[Parts]:
    given: list[Any] = [(1.0, function)] if callable(function) else list(function)
    return given if given and isinstance(given[0], list) else [given]


@torch.no_grad()
def _value(parts: Parts, parameters: Any) -> Tensor:
    return torch.stack([weight * part(parameters) for weight, part in parts]).sum()


def _value_and_gradient(parts: Parts, start: Vector) -> tuple[Tensor, Tensor]:
    value, slope = start.flat.new_zeros(()), torch.zeros_like(start.flat)
    for weight, part in parts:
        point = start.flat.clone().requires_grad_()
        found = weight * part(start.at(point))
        value += found.detach()
        slope += torch.autograd.grad(found, point)[0]
    return value, slope


Slope = tuple[float, Tensor, Tensor]  # a weight, the point, and the slope there with its graph


def _slopes(parts: Parts, start: Vector) -> Iterator[Slope]:
    for weight, part in parts:
        point = start.flat.clone().requires_grad_()
        (slope,) = torch.autograd.grad(part(start.at(point)), point, create_graph=True)
        yield weight, point, slope


def _curvature(parts: list[tuple[float, Function]], start: Vector, keep: bool) -> Callable[[Tensor], Tensor]:
    """The exact Hessian at the start, as a map of vectors: the derivative of the slope along them."""
    kept = list(_slopes(parts, start)) if keep else None

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for weight, point, slope in _slopes(parts, start) if kept is None else kept:
            if slope.requires_grad:
                total += weight * torch.autograd.grad(slope @ vector, point, retain_graph=keep)[0]
        return total

    return product
