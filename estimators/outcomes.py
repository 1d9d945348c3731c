"""All outcomes of draws with a finite support, and how their probabilities move."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.estimator import Site
from ..derive.substitutions import alternatives
from ..distributions.interfaces import Surroundings
from ..errors.exceptions import SamplingError
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors import vectorize as vz
from ..tensors.axes import describe
from ..tensors.trees import map_tensors, tensors

_MOST_OUTCOMES = 4096


class Changes(nd.Node):
    """The probability of every outcome less its value: `(outcomes, *plates)`."""

    kind = "alternatives"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site, outcomes: nd.Node, *others: nd.Node) -> None:
        self.sample, self.parents = site.sample, tuple(site.parents())
        super().__init__(f"changes({site.name})", site.sample.index, [outcomes, *self.parents, *others])

    def infer_axes(self) -> Any:
        return self.inputs[0].axes

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        outcomes, *parents = values
        probability = probabilities(self.sample, outcomes, self.parents, parents, run)
        return probability - probability.detach()


def probabilities(
    sample: nd.Sample, outcomes: Any, inputs: Sequence[nd.Node], parents: Sequence[Any], run: Surroundings
) -> Tensor:
    """The probability of outcomes, `(outcomes, *plates)`; of whole trajectories, where draws have steps."""
    log_prob = torch.vmap(lambda one: sample.law.score(sample, one, inputs, parents, run))(outcomes)
    return (log_prob.sum(-1) if sample.time else log_prob).exp()


def outcomes_of(sample: nd.Sample, drawn: object, parents: Sequence[Any], run: Surroundings) -> Any:
    """All outcomes of every draw, `(outcomes, *plates, ...)`.

    Raises:
        SamplingError: there are too many, or infinitely many.
    """
    leaves, spec = pytree.tree_flatten(outcomes_at(sample, parents, run))
    like = iter(tensors(drawn))
    expanded = [leaf.expand(leaf.shape[0], *next(like).shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return pytree.tree_unflatten(expanded, spec)


def outcomes_at(sample: nd.Sample, parents: Sequence[Any], run: Surroundings) -> Any:
    """The same, with one entry along the plates on which all draws have the same parents."""
    law = sample.law
    try:
        support, own = law.outcomes(sample, parents, run, int(law.trials(sample, parents, run).max()))
    except NotImplementedError as error:
        raise SamplingError(not_finite(sample, str(error))) from None
    lead = 1 + len(sample.parent_axes)
    support = map_tensors(lambda leaf: _combined(leaf.detach(), lead, own, sample), support)
    axes = (alternatives(sample), *sample.parent_axes)
    target = (alternatives(sample), *sample.plates)
    return map_tensors(lambda leaf: vz.align(leaf, axes, target), support)


def _combined(leaf: Tensor, lead: int, own: int, sample: nd.Sample) -> Tensor:
    """The outcomes of draws that have several entries, `own` dimensions of them: all their combinations."""
    if not own:
        return leaf
    choices, entries = leaf.shape[0], prod(leaf.shape[lead : lead + own])
    count = choices**entries
    if count > _MOST_OUTCOMES:
        raise SamplingError(not_finite(sample, f"one draw has {choices}**{entries} = {count} outcomes"))
    index = torch.arange(count, device=leaf.device)[:, None] // choices ** torch.arange(entries, device=leaf.device)
    flat = leaf.flatten(lead, lead + own - 1).movedim(lead, 1)  # (choices, entries, *parents, *event)
    chosen = flat[index % choices, torch.arange(entries, device=leaf.device)]
    return chosen.movedim(1, lead).reshape(count, *leaf.shape[1:])


def not_finite(sample: nd.Sample, why: str) -> str:
    """Why the outcomes of a sample are not summed."""
    return (
        f"Enumerate on sample {sample.name!r} (axes: {describe(sample.axes)}): {why}; use SF for this node, or a "
        f"distribution with at most {_MOST_OUTCOMES} outcomes"
    )
