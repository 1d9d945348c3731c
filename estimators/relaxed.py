"""Relaxed draws: discrete ones that are differentiated as if they were continuous, and biased for it."""

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch.distributions import Independent

from ..derive.estimator import GradientEstimator
from ..derive.papers import ICLR, Paper
from ..derive.routes import Routes
from ..distributions.laws import DistributionLaw
from ..distributions.relaxed import FAMILIES, RelaxedLaw, unrelaxed, unscored
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..tensors.axes import describe

JANG_2017 = Paper(
    "jang2017categorical",
    "Eric Jang and Shixiang Gu and Ben Poole",
    "Categorical reparameterization with {Gumbel-Softmax}",
    ICLR,
    2017,
)
MADDISON_2017 = Paper(
    "maddison2017concrete",
    "Chris J. Maddison and Andriy Mnih and Yee Whye Teh",
    "The concrete distribution: A continuous relaxation of discrete random variables",
    ICLR,
    2017,
)


@dataclass(frozen=True, repr=False)
class RelaxedDraws(GradientEstimator):
    """Differentiates a relaxation of the draw. Made by `Relaxed`."""

    scored: ClassVar[bool] = False
    temperature: float
    hard: bool

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (JANG_2017, MADDISON_2017)

    def draw(self, sample: nd.Sample) -> nd.Sample:
        assert isinstance(sample.law, DistributionLaw)
        moved = copy.copy(sample)
        moved.pathwise = moved.relaxed = True
        moved.law = RelaxedLaw(sample.law, self.temperature, self.hard)
        return moved

    def exact(self) -> GradientEstimator:
        return self

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        law = sample.law
        if not isinstance(law, DistributionLaw) or law.family not in (None, Independent, *FAMILIES):
            raise CompileError(unrelaxed(sample, law.name))
        if any(node.kind == "log_prob" and node.inputs[0] is sample for node in routes.order):
            raise CompileError(unscored(sample, law.name))
        if not routes.arrive(sample):
            raise CompileError(
                f"Relaxed on sample {sample.name!r} (axes: {describe(sample.axes)}): the draw has no differentiable "
                f"path to the objective {routes.objective.name!r}; it only meets operations without a derivative, or a "
                "stop. Use LOO, DisARM or Enumerate for this node"
            )

    def __repr__(self) -> str:
        return f"Relaxed(temperature={self.temperature:g}, hard={self.hard})"


def Relaxed(temperature: float = 0.5, hard: bool = False) -> RelaxedDraws:
    r"""Gumbel-softmax draws in the place of discrete ones, soft or straight-through: **biased**.

    .. math:: x = \mathrm{softmax}\big((\phi + g) / \tau\big), \quad g \text{ Gumbel}; \qquad
              \text{of a coin } x = \sigma\big((\phi + l) / \tau\big), \quad l \text{ logistic}

    With `hard=True` a draw has the value of the choice, the largest of :math:`\phi + g`, and the derivative of x:
    straight-through. What is differentiated is another objective than the declared one, so that the bias is O(1): it
    goes neither with the number of draws nor, straight-through, with the temperature, and at a low temperature the
    variance grows instead. The ledger says "relaxed", and `explain` never says unbiased. Soft draws give `value`
    another mean as well. `REBAR` takes such draws as a control variate, and is unbiased.

    `verify(quadrature=)` has the bias: its truth is that of the declared, discrete draws.

    Args:
        temperature: :math:`\tau`, a positive number.
        hard: whether a draw has the value of the choice.

    Raises:
        ValueError: a temperature that is not positive.
        CompileError: another distribution than Bernoulli and OneHotCategorical; no differentiable path; a
            log-probability of the draws, `stochgraph.log_prob`.
        SamplingError: another distribution that a function builds.

    References:
        Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax, section 2.2 for straight-through;
        Maddison, Mnih and Teh (2017), The concrete distribution.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return (sg.sample("x", Bernoulli, logits=logit) - 0.45) ** 2
        >>> compiled = objective.compile(sg.Relaxed(temperature=1.0, hard=True))
        >>> compiled.explain().unbiased
        False
        >>> sg.verify(compiled, torch.tensor(0.3, dtype=torch.float64), quadrature=8).relative_bias > 0.1
        True
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}: a positive number")
    return RelaxedDraws(float(temperature), hard)
