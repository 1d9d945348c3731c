"""Shortlists: the likeliest outcomes of a draw, and one of the others, which stands for all of these."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.utils import _pytree as pytree

from ..derive.estimator import Site
from ..derive.substitutions import alternatives
from ..distributions.interfaces import SampleNode, Surroundings
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors.axes import Axes, union
from ..tensors.trees import map_tensors
from .beside import LawBeside, Made, drawn_beside
from .outcomes import Changes, outcomes_at, probabilities


class Shortlist(NamedTuple):
    """The outcomes that stand for all those of a draw: the likeliest, and one of the rest.

    Attributes:
        outcomes: `(*plates, chosen, ...)`.
        weights: one over the probability to be chosen, 1 for the likeliest; `(*plates, chosen)`.
    """

    outcomes: Any
    weights: Tensor


class ShortlistLaw(LawBeside):
    """The distribution of the shortlist: one of the rest is drawn, as likely among them as it is.

    Where all of the rest are impossible, each is as likely: their probabilities may still move.
    """

    def __init__(self, sample: nd.Sample, top: int) -> None:
        super().__init__(sample, f"the {top} likeliest outcomes and another one")
        self.top = top

    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Shortlist, None]:
        found, likeliest, chance = self._ranked(values, run)
        if len(chance) <= self.top:
            return _shortlist(found, likeliest, chance), None
        with run.placed():
            other = Categorical(chance.movedim(0, -1), validate_args=False).sample()
        return _shortlist(found, torch.cat([likeliest, other[None]]), chance), None

    def log_prob(self, value: Shortlist, values: Sequence[Any], run: Surroundings) -> Tensor:
        return -value.weights[..., -1].log()

    def outcomes(
        self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int
    ) -> tuple[Shortlist, int]:
        found, likeliest, chance = self._ranked(values, run)
        if len(chance) <= self.top:
            lists = [_shortlist(found, likeliest, chance)]
        else:
            others = [torch.full_like(likeliest[:1], k) for k in range(len(chance))]
            lists = [_shortlist(found, torch.cat([likeliest, other]), chance) for other in others]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *lists), 0

    def _ranked(self, values: Sequence[Any], run: Surroundings) -> tuple[Any, Tensor, Tensor]:
        """All outcomes, the places of the likeliest, and of every one the chance to be drawn for the rest."""
        *parents, _ = values
        found = self._at_all_plates(outcomes_at(self.sample, parents, run), run)
        probability = probabilities(self.sample, found, self.sample.inputs, parents, run).detach()
        if len(probability) <= self.top:
            return found, torch.ones_like(probability, dtype=torch.int64).cumsum(0) - 1, torch.ones_like(probability)
        likeliest = probability.topk(self.top, 0).indices
        rest = torch.ones_like(probability).scatter(0, likeliest, 0.0)
        left = probability * rest
        possible = left.sum(0) > 0
        return found, likeliest, torch.where(possible, left / left.sum(0), rest / rest.sum(0))

    def _at_all_plates(self, found: Any, run: Surroundings) -> Any:
        sizes = [run.sizes[plate] for plate in self.sample.plates]
        return map_tensors(lambda leaf: leaf.expand(-1, *sizes, *leaf.shape[1 + len(sizes) :]), found)


def _shortlist(found: Any, places: Tensor, chance: Tensor) -> Shortlist:
    """The outcomes at some places of the first dimension, the last of them drawn by chance."""

    def at(leaf: Tensor) -> Tensor:
        index = places.reshape(*places.shape, *[1] * (leaf.dim() - places.dim()))
        return leaf.gather(0, index.expand(-1, *leaf.shape[1:])).movedim(0, places.dim() - 1)

    weights = torch.ones_like(places, dtype=chance.dtype)
    weights[-1] = 1 / chance.gather(0, places[-1:])[0]
    return Shortlist(map_tensors(at, found), weights.movedim(0, -1))


def shortlists_of(sample: nd.Sample, top: int) -> nd.Sample:
    """The sample of the shortlists of another one's draws."""
    return drawn_beside(sample, "shortlist", ShortlistLaw(sample, top), [*sample.inputs, Made(sample)])


class Chosen(nd.Node):
    """The outcomes that are summed, as they were recorded: `(outcomes, *plates, ...)`."""

    kind = "alternatives"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site) -> None:
        self.sample = site.sample
        super().__init__(f"outcomes({site.name})", site.sample.index, [site.noise])

    def infer_axes(self) -> Axes:
        return union([alternatives(self.sample)], self.sample.plates)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        return map_tensors(lambda leaf: leaf.movedim(len(self.sample.plates), 0), values[0].outcomes)


class ComparedChanges(Changes):
    """The factor of each outcome, all of them compared with the mean of the likeliest: of value 0.

    All changes of probabilities sum to 0, so that any number may be taken off all terms. Off those of a shortlist, that
    changes no mean and less is left to the draw for the rest.
    """

    def __init__(self, site: Site, outcomes: nd.Node) -> None:
        super().__init__(site, outcomes, site.noise)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        outcomes, *parents, chosen = values
        weights = chosen.weights.movedim(-1, 0)
        probability = probabilities(self.sample, outcomes, self.parents, parents, run)
        changes = weights * (probability - probability.detach())
        likely = torch.where(weights == 1, probability.detach(), 0.0)
        return changes - changes.sum(0) * likely / likely.sum(0)
