"""Bernoulli draws, one by one: the distribution of the single coins of a sample."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Bernoulli, Independent

from ..distributions.interfaces import Surroundings
from ..distributions.laws import DistributionLaw
from ..errors.exceptions import CompileError, SamplingError
from ..ir import nodes as nd
from ..tensors import vectorize as vz
from ..tensors.axes import describe


def refuse_others(sample: nd.Sample, estimator: str) -> None:
    """Refuse a sample that is known not to be Bernoulli."""
    law = sample.law
    if not isinstance(law, DistributionLaw) or law.family not in (None, Bernoulli, Independent):
        raise CompileError(_not_a_coin(sample, law.name, estimator))


def coins(sample: nd.Sample, parents: Sequence[Any], run: Surroundings, estimator: str) -> Bernoulli:
    """The distribution of the single coins.

    Raises:
        SamplingError: it is another one.
    """
    assert isinstance(sample.law, DistributionLaw)
    built = sample.law.build(sample, sample.inputs, parents, sample.parent_axes, run, validate=False)
    while isinstance(built, Independent):
        built = built.base_dist
    if not isinstance(built, Bernoulli):
        raise SamplingError(_not_a_coin(sample, type(built).__name__, estimator))
    return built


def entries(sample: nd.Sample, parameter: Tensor, drawn: Tensor) -> Tensor:
    """A parameter of every single coin, shaped as the draws are."""
    return vz.align(parameter, sample.parent_axes, sample.plates).expand(drawn.shape)


def summed_entries(value: Tensor, plates: int) -> Tensor:
    """The sum over the entries of a draw, which are behind its plates."""
    return value.flatten(plates).sum(-1) if value.dim() > plates else value


def _not_a_coin(sample: nd.Sample, name: str, estimator: str) -> str:
    return (
        f"{estimator} on sample {sample.name!r} (axes: {describe(sample.axes)}): {name} is not Bernoulli, and it is "
        "for coins; use LOO or Enumerate for this node"
    )
