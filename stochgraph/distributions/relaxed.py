"""Relaxed laws: discrete draws whose choice is made smooth, differentiable and of another law.

A choice among alternatives is the largest of their log-odds, each with noise of a Gumbel distribution added; of a coin,
whether its log-odds with logistic noise are positive. A softmax, or a sigmoid, in place of that is the relaxation.

NOTE [nodes]
Noise is recorded as it is added, Gumbel or logistic. For proofs it has nodes: for every choice those of the noise that
leads to it, so that no node lies beside the jump of a hard choice; their weights have the probability of the choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.polynomial import legendre
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, OneHotCategorical
from torch.nn.functional import one_hot

from ..errors.exceptions import SamplingError
from ..tensors.axes import describe
from .interfaces import Call, Node, SampleNode, Surroundings
from .kept import Kept
from .laws import DistributionLaw, Law, arrange


@dataclass(frozen=True)
class Family:
    """The relaxation of a family's draws.

    Attributes:
        event: how many dimensions of the log-odds one choice has.
        odds: the log-odds, from the distribution.
        noise: noise from uniform numbers.
        soft: the relaxed draw, from log-odds with noise, divided by the temperature.
        hard: the draw, from the same.
        nodes: noise that leads to a choice, from log-odds, the number of the choice and numbers between 0 and 1.
        choices: how many there are, from the log-odds.
        log_prob: the log-probability of a choice, by its number.
    """

    event: int
    odds: Callable[[Any], Tensor]
    noise: Callable[[Tensor], Tensor]
    soft: Callable[[Tensor], Tensor]
    hard: Callable[[Tensor], Tensor]
    nodes: Callable[[Tensor, int, Tensor], Tensor]
    choices: Callable[[Tensor], int]
    log_prob: Callable[[Tensor, int], Tensor]


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.log()).log()


def _logistic_on_one_side(odds: Tensor, choice: int, along: Tensor) -> Tensor:
    """Of the coin that shows `choice`: the uniform number is on one side of 1 - p."""
    p = odds.sigmoid()
    return torch.logit(1 - p + p * along if choice else (1 - p) * along)


def _gumbel_below(odds: Tensor, choice: int, along: Tensor) -> Tensor:
    """The largest is that of the choice: it is drawn first, the others below it (Maddison et al. 2014)."""
    log_prob = odds.log_softmax(-1)
    largest = _gumbel(along[..., choice : choice + 1])
    others = -((-largest).exp() - along.log() * (-log_prob).exp()).log()
    own = one_hot(torch.tensor(choice), odds.shape[-1]).bool()
    return torch.where(own, largest, others) - log_prob


def _one_of(value: Tensor) -> Tensor:
    return torch.zeros_like(value).scatter(-1, value.argmax(-1, keepdim=True), 1.0)


FAMILIES: dict[type[Distribution], Family] = {
    Bernoulli: Family(
        0,
        lambda built: built.logits,
        torch.logit,
        torch.sigmoid,
        lambda value: (value > 0).to(value.dtype),
        _logistic_on_one_side,
        lambda odds: 2,
        lambda odds, choice: torch.nn.functional.logsigmoid(odds if choice else -odds),
    ),
    OneHotCategorical: Family(
        1,
        lambda built: built.logits,
        _gumbel,
        lambda value: value.softmax(-1),
        _one_of,
        _gumbel_below,
        lambda odds: odds.shape[-1],
        lambda odds, choice: odds.log_softmax(-1)[..., choice],
    ),
}


class RelaxedLaw(Law):
    """The law of a discrete distribution's relaxed draws.

    Args:
        declared: the law of the declared draws.
        temperature: of the softmax, or the sigmoid.
        hard: whether a draw has the value of the choice, and the derivative of the relaxed draw.
    """

    fixed_support = True

    def __init__(self, declared: DistributionLaw, temperature: float, hard: bool) -> None:
        self.declared, self.temperature, self.hard = declared, temperature, hard

    @property
    def name(self) -> str:
        return f"relaxed {self.declared.name}"

    def event_dims(self, arguments: Call) -> list[int] | None:
        return self.declared.event_dims(arguments)

    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Tensor, Kept]:
        value, _, kept = self.draw_pathwise(node, values, run, None)
        return value.detach(), kept

    def draw_pathwise(
        self, node: SampleNode, values: Sequence[Any], run: Surroundings, noise: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor], Kept]:
        built, family = self._built(node, values, run)
        odds = family.odds(built)
        if noise is None:
            with run.placed():
                uniform = torch.rand([*(run.sizes[axis] for axis in node.repeats), *odds.shape], dtype=odds.dtype)
            tiny = torch.finfo(odds.dtype).tiny
            noise = [family.noise(uniform.clamp(tiny, 1 - torch.finfo(odds.dtype).eps))]
        else:
            noise = [arrange(x, node.declared.drawn_axes, node.drawn_axes) for x in noise]
        moved = odds + noise[0]
        value = family.soft(moved / self.temperature)
        if self.hard:
            value = family.hard(moved.detach()) + (value - value.detach())
        return arrange(value, node.drawn_axes, node.axes), noise, Kept(node, built, value)

    def score(
        self,
        node: SampleNode,
        value: Any,
        inputs: Sequence[Node],
        values: Sequence[Any],
        run: Surroundings,
        kept: Kept | None = None,
    ) -> Tensor:
        raise SamplingError(unscored(node, self.declared.name))

    def outcomes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int) -> tuple[Any, int]:
        why = f"relaxed draws of {node.name!r} are continuous"
        raise NotImplementedError(why)

    def nodes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, count: int) -> tuple[Any, Tensor, int]:
        """Those of the noise of one draw; as many for every choice, one behind the other."""
        built, family = self._built(node, values, run)
        odds = family.odds(built)
        size = odds.shape[-1] if family.event else 1
        found, weights = (torch.from_numpy(x) for x in legendre.leggauss(count))
        index = torch.arange(count**size)[:, None] // count ** torch.arange(size) % count
        shape = [-1, *[1] * (odds.dim() - family.event), *[size] * family.event]
        along = ((found + 1) / 2)[index].reshape(shape)
        log_weight = (weights / 2).log()[index].sum(1).reshape([-1, *[1] * (odds.dim() - family.event)])
        noise, logs = [], []
        for choice in range(family.choices(odds)):
            noise.append(family.nodes(odds, choice, along).expand(len(index), *odds.shape))
            logs.append(log_weight + family.log_prob(odds, choice))
        return torch.cat(noise), torch.cat(logs), odds.dim() - family.event - len(node.parent_axes)

    def _built(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Distribution, Family]:
        built: Any = self.declared.build(node, node.inputs, values, node.parent_axes, run, validate=False)
        while isinstance(built, Independent):
            built = built.base_dist
        if type(built) not in FAMILIES:
            raise SamplingError(unrelaxed(node, type(built).__name__))
        return built, FAMILIES[type(built)]


def unscored(node: SampleNode, name: str) -> str:
    """Why a relaxed draw has no log-probability."""
    return (
        f"Relaxed on sample {node.name!r} (axes: {describe(node.axes)}): its draws have another law than {name}, so "
        "that there is no log-probability of them; use SF, LOO or DisARM for this node"
    )


def unrelaxed(node: SampleNode, name: str) -> str:
    """Why a draw is not relaxed."""
    return (
        f"Relaxed on sample {node.name!r} (axes: {describe(node.axes)}): {name} has no relaxation here; it is for "
        f"{', '.join(family.__name__ for family in FAMILIES)}. An index, as Categorical draws it, has no values "
        "between: draw one-hot vectors"
    )
