"""Quadrature: nodes and weights in the place of the noise that continuous draws are functions of.

NOTE [what moves]
The truth moves the nodes with the parameters, as a reparameterised draw moves with them; the estimate holds them where
the parameters of the call put them, and weights them as outcomes are weighted with their probabilities. With nodes held
in both, the truth and the score function would be the same sum, of whatever rule, and prove nothing.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial import hermite_e, laguerre, legendre
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..distributions.laws import DistributionLaw
from ..errors.exceptions import VerificationError
from ..ir import nodes as nd
from ..run.passes import Run
from ..tensors.axes import describe


@dataclass(frozen=True)
class Quadrature:
    """The accuracy of a verification by quadrature.

    Attributes:
        nodes: the nodes of the rule for every number of noise, K.
        change: from K // 2 to K nodes, that of the truth or of the expectation, whichever is larger; relative to the
            truth.
        disagreement: the distance of the truth from another one, relative to it: that of nodes which are held, with the
            derivative of the density. It shows what no number of nodes does, a jump that moving nodes step over. `None`
            where there is no such truth: supports that move, or draws that an update differentiates.
    """

    nodes: int
    change: float
    disagreement: float | None

    def __str__(self) -> str:
        found = f"{self.nodes} nodes: {self.change:.1e} from {self.nodes // 2}"
        return found if self.disagreement is None else f"{found}, {self.disagreement:.1e} from nodes that are held"


class Rule(NamedTuple):
    """Nodes and weights, `(K,)` each; the weights sum to 1."""

    nodes: Tensor
    weights: Tensor


def _gauss(family: Callable[[int], tuple[np.ndarray, np.ndarray]], count: int) -> Rule:
    """The Gauss rule of a family of numpy's polynomials, its weights a distribution."""
    nodes, weights = (torch.from_numpy(found) for found in family(count))
    return Rule(nodes, weights / weights.sum())


class Noise(NamedTuple):
    """A tensor of noise that a draw asks for: its shape, and the rule of its entries by the number of nodes."""

    shape: torch.Size
    rule: Callable[[int], Rule]


def _normal(mean: float = 0.0, std: float = 1.0) -> Callable[[int], Rule]:
    return lambda count: _mapped(_gauss(hermite_e.hermegauss, count), std, mean)


def _uniform(low: float = 0.0, high: float = 1.0) -> Callable[[int], Rule]:
    return lambda count: _mapped(_gauss(legendre.leggauss, count), (high - low) / 2, (high + low) / 2)


def _exponential(rate: float = 1.0) -> Callable[[int], Rule]:
    return lambda count: _mapped(_gauss(laguerre.laggauss, count), 1 / rate, 0.0)


def _mapped(rule: Rule, scale: float, shift: float) -> Rule:
    return Rule(scale * rule.nodes + shift, rule.weights)


_Family = Callable[..., Callable[[int], Rule]]
_IN_PLACE: dict[Any, _Family] = {Tensor.normal_: _normal, Tensor.uniform_: _uniform, Tensor.exponential_: _exponential}
_STANDARD: dict[Any, _Family] = {
    torch.randn: _normal,
    torch.randn_like: _normal,
    torch.rand: _uniform,
    torch.rand_like: _uniform,
}


class _Requests(TorchFunctionMode):
    """Notes the noise that a draw asks for. It goes around the tape that records it."""

    def __init__(self) -> None:
        super().__init__()
        self.noise: list[Noise] = []

    def __torch_function__(
        self, fn: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = fn(*args, **(kwargs or {}))
        if fn in _STANDARD:
            self.noise.append(Noise(result.shape, _STANDARD[fn]()))
        elif fn in _IN_PLACE:
            self.noise.append(Noise(result.shape, _IN_PLACE[fn](*args[1:], **(kwargs or {}))))
        return result


def noise_of(node: nd.Sample, values: Sequence[Any], run: Run) -> list[Noise]:
    """The noise that the draws of a sample are a function of.

    Raises:
        VerificationError: they are no function of noise of normal, uniform or exponential distributions.
    """
    moved = pathwise(node)
    with torch.random.fork_rng(), _Requests() as requests:
        run.draws.pop(node.name, None)
        run.draw(moved, list(values))
    if [found.shape for found in requests.noise] != [recorded.shape for recorded in run.noise[node.name]]:
        raise VerificationError(
            f"sample {node.name!r} (axes: {describe(node.axes)}): {node.law.name} draws with noise that depends on its "
            "parameters, or has no quadrature here; it is for distributions made of normal, uniform and exponential "
            "noise. Measure with sg.profile"
        )
    return requests.noise


def pathwise(node: nd.Sample) -> nd.Sample:
    """The sample with its draw a function of noise."""
    moved = copy.copy(node)
    moved.pathwise = True
    return moved


def has_nodes(node: nd.Sample) -> bool:
    """True if a sample's draws may be a function of noise, as far as can be told before they are made."""
    law = node.law
    return isinstance(law, DistributionLaw) and not (law.is_class and not law.factory.has_rsample)  # type: ignore[attr-defined]


def entries(noise: Sequence[Noise]) -> int:
    """The number of entries of the noise."""
    return sum(prod(found.shape) for found in noise)


def grid(noise: Sequence[Noise], count: int) -> tuple[list[Tensor], Tensor]:
    """All combinations of nodes: the noise, `(combinations, ...)` each, and the logarithm of their weights."""
    total = entries(noise)
    index = torch.arange(count**total)[:, None] // count ** torch.arange(total) % count
    found, weight, start = [], torch.zeros(len(index), dtype=torch.float64), 0
    for one in noise:
        size = prod(one.shape)
        chosen, rule = index[:, start : start + size], one.rule(count)
        found.append(rule.nodes[chosen].reshape(-1, *one.shape))
        weight = weight + rule.weights.log()[chosen].sum(1)
        start += size
    return found, weight


def at_least_two(count: int) -> int:
    """The number of nodes, checked."""
    if count < 2:
        raise ValueError(f"quadrature={count}: the number of nodes of the rule, at least 2")
    return count
