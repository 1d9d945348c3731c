"""Relaxed coins: what becomes of a Bernoulli draw when its threshold is made smooth.

NOTE [noise, given the draw]
A coin of log-odds phi is `b = [z > 0]` with `z = phi + logit(u)`, u uniform. Given b, u is uniform on one side of
1 - p: so it is drawn beside b, recorded, and held, while z moves with the parameters. A second z of the same law given
b is made of a uniform v that does not depend on b: it moves with the parameters so that it stays on b's side.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.polynomial import legendre
from torch import Tensor

from ..derive.estimator import Site
from ..derive.substitutions import alternatives
from ..distributions.interfaces import SampleNode, Surroundings
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors.axes import Axes, union
from .beside import LawBeside, drawn_beside
from .coins import coins, entries


class Uniforms(NamedTuple):
    """The noise of relaxed coins: that which made the coin, and that of another one like it."""

    made: Tensor
    other: Tensor


class UniformsLaw(LawBeside):
    """The distribution of the noise, given the coins."""

    def _at(self, values: Sequence[Any], run: Surroundings, along: Tensor) -> Tensor:
        """The noise of every coin, by its place `along` its side of 1 - p: from 0, its lower end, to 1."""
        drawn, *parents = values
        probability = entries(self.sample, coins(self.sample, parents, run, self.name).probs, drawn).detach()
        return torch.where(drawn == 1, 1 - probability + probability * along, (1 - probability) * along)

    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Uniforms, None]:
        like = entries(self.sample, coins(self.sample, values[1:], run, self.name).probs, values[0]).detach()
        with run.placed():
            along, other = torch.rand_like(like), torch.rand_like(like)
        return Uniforms(self._at(values, run, along), other), None

    def log_prob(self, value: Uniforms, values: Sequence[Any], run: Surroundings) -> Tensor:
        raise NotImplementedError("it is never scored")

    def outcomes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int) -> tuple[Any, int]:
        raise NotImplementedError("noise of relaxed draws is continuous")

    def nodes(
        self, node: SampleNode, values: Sequence[Any], run: Surroundings, count: int
    ) -> tuple[Uniforms, Tensor, int]:
        found, weights = (torch.from_numpy(x) for x in legendre.leggauss(count))
        places = (found + 1) / 2
        shape = [-1, *[1] * values[0].dim()]
        along = places.repeat_interleave(count).reshape(shape)
        other = places.repeat(count).reshape(shape).expand(-1, *values[0].shape)
        log_weight = (weights[:, None] * weights / 4).log().reshape(shape).expand(-1, *values[0].shape)
        return Uniforms(self._at(values, run, along), other), log_weight, values[0].dim() - len(node.plates)


def uniforms_of(sample: nd.Sample, estimator: str) -> nd.Sample:
    """The sample of the noise of another one's relaxed draws."""
    return drawn_beside(sample, "noise", UniformsLaw(sample, estimator), [sample, *sample.inputs])


class LogOdds(nd.Node):
    """The relaxed draws z that made the coins, and others like them: `(2, *plates, ...)`."""

    kind = "relaxed"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site, estimator: str) -> None:
        self.sample, self.estimator = site.sample, estimator
        super().__init__(f"relaxed({site.name})", site.sample.index, [site.drawn, site.noise, *site.parents()])

    def infer_axes(self) -> Axes:
        return union([alternatives(self.sample)], self.sample.plates)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        drawn, noise, *parents = values
        built = coins(self.sample, parents, run, self.estimator)
        odds, probability = (entries(self.sample, x, drawn) for x in (built.logits, built.probs))
        like = torch.where(drawn == 1, 1 - probability + probability * noise.other, (1 - probability) * noise.other)
        return torch.stack([odds + torch.logit(noise.made), odds + torch.logit(like)])


class Soft(nd.Node):
    """Relaxed coins, between 0 and 1: `sigmoid(z / temperature)`."""

    kind = "relaxed"
    linear = Linearity.NOWHERE

    def __init__(self, odds: LogOdds, temperature: nd.Node) -> None:
        self.sample = odds.sample
        super().__init__(f"soft({odds.sample.name})", odds.index, [odds, temperature])

    def infer_axes(self) -> Axes:
        return self.inputs[0].axes

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        odds, temperature = values
        return torch.sigmoid(odds / temperature)


class Setting(nd.Node):
    """A number of an estimator: as it is, or an input of the graph, by its name."""

    kind = "setting"
    linear = Linearity.NOWHERE

    def __init__(self, value: float) -> None:
        self.value = value
        super().__init__(str(value), 0, [])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> float:
        return self.value


def setting(given: float | str) -> nd.Node:
    """The node of a number, or of the input that holds it."""
    return nd.Input(given, 0, []) if isinstance(given, str) else Setting(float(given))
