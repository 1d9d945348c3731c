"""Draws as their scores need them: the distribution that drew, and what its transforms mapped."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..errors.exceptions import SamplingError
from ..tensors.axes import describe
from ..tensors.indexing import in_transform
from .interfaces import SampleNode

_LOST = 0.1  # by which a log-probability may be wrong where a draw is inverted in few digits


class Kept(NamedTuple):
    """A distribution that has drawn, for `score` to reuse, and the node that it is of.

    The draw is as torch made it; it is kept where its score depends on that.

    `remembering` is the distribution with transforms that know what they mapped, where others would invert the draw.
    """

    node: SampleNode
    built: Distribution
    draw: Tensor | None = None
    remembering: Distribution | None = None


def refuse_lost(node: SampleNode, kept: Kept) -> None:
    """Refuse to score draws whose transforms do not lead back: a score by their inverses would be another draw's."""
    if kept.remembering is None or kept.draw is None or in_transform():
        return
    draw = kept.draw
    with torch.no_grad():
        known, found = kept.remembering.log_prob(draw), kept.built.log_prob(draw)
    lost = known.isfinite() & ~((found - known).abs() <= _LOST)
    if bool(lost.any()):
        where = tuple(int(i) for i in torch.nonzero(lost)[0])
        raise SamplingError(
            f"sample {node.name!r} (axes: {describe(node.axes)}): a draw of {node.law.name} is {draw[where]} in "
            f"{draw.dtype}, from which its transforms do not lead back: its log-probability would be "
            f"{float(found[where]):.4g}, and is {float(known[where]):.4g}. Sample what is transformed and transform it "
            'in the graph, torch.tanh(sg.sample("x", Normal, ...)); or use PW for this node, or double precision'
        )
