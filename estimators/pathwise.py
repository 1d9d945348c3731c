"""The pathwise derivative: the draw as a function of its parameters and of noise."""

import copy
from dataclasses import dataclass
from typing import ClassVar

from ..derive.estimator import GradientEstimator
from ..derive.papers import ICLR, ICML, Paper
from ..derive.routes import Routes
from ..distributions.laws import DistributionLaw, no_path
from ..distributions.noise import straight_through_message
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.paths import moves_with
from ..ir.programs import schedule
from ..tensors.axes import describe

KINGMA_2014 = Paper(
    "kingma2014auto", "Diederik P. Kingma and Max Welling", "Auto-encoding variational {Bayes}", ICLR, 2014
)
REZENDE_2014 = Paper(
    "rezende2014stochastic",
    "Danilo Jimenez Rezende and Shakir Mohamed and Daan Wierstra",
    "Stochastic backpropagation and approximate inference in deep generative models",
    ICML,
    2014,
)


@dataclass(frozen=True)
class Pathwise(GradientEstimator):
    """Differentiates the draw itself instead of its distribution. Made by `PW`."""

    scored: ClassVar[bool] = False

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (KINGMA_2014, REZENDE_2014)

    def draw(self, sample: nd.Sample) -> nd.Sample:
        moved = copy.copy(sample)
        moved.pathwise = True
        return moved

    def exact(self) -> GradientEstimator:
        return self

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        if not isinstance(sample.law, DistributionLaw):
            raise CompileError(
                f"PW on sample {sample.name!r}: {sample.law.name} is a Sampler, whose draws have no differentiable "
                "path to their parameters; use SF or LSF for this node"
            )
        if sample.law.is_class and not sample.law.factory.has_rsample:  # type: ignore[attr-defined]
            raise CompileError(no_path(sample, sample.law.name))
        straight_through = sample.law.straight_through()
        if straight_through:
            raise CompileError(straight_through_message(sample, straight_through))
        _refuse_second_order(sample, routes)
        if not routes.arrive(sample):
            raise CompileError(
                f"PW on sample {sample.name!r} (axes: {describe(sample.axes)}): the draw has no differentiable path to "
                f"the objective {routes.objective.name!r}; it only meets operations without a derivative, or a stop. "
                "Use SF for this node"
            )


def _refuse_second_order(sample: nd.Sample, routes: Routes) -> None:
    """Refuse an update that takes the first derivative of a draw that has no other."""
    noise = sample.law.noise_parents(sample.arguments)
    for update in routes.order if noise else ():
        if not isinstance(update, nd.Update) or sample not in schedule([update.objective]):
            continue
        moved = moves_with(routes.order, [update.variable], routes.pathwise)
        if any(parent in moved for parent in noise):
            raise CompileError(
                f"PW on sample {sample.name!r} ({sample.law.name}; axes: {describe(sample.axes)}): its noise depends "
                "on its parameters, so that its draws have a first derivative and no second one. The update "
                f"{update.name!r} takes the first, and its own derivative would be the second. Use SF for this node"
            )


def PW() -> Pathwise:
    r"""The pathwise derivative (reparameterisation): :math:`x = g(\theta, \epsilon)`, differentiated through.

    Unbiased where the objective is continuous along the draw. A function of the draw without a derivative is refused:
    at compile where it is one of torch's, else at the first pass in which nothing arrives at the objective. A jump
    beside something smooth is not seen (the page on choosing says how to check). Needs a distribution with `rsample`:

    - Most families of torch draw :math:`\epsilon` without their parameters (`Normal`, `LogNormal`, `Uniform`, `Gumbel`,
      relaxed ones, transforms of these). It is recorded in the trace: a surrogate can be replayed at other parameters,
      the draw moving with them, and has derivatives of any order.
    - `Gamma`, `Chi2`, `Beta`, `Dirichlet`, `StudentT`, `FisherSnedecor`, `InverseGamma`, `Wishart`: the noise depends
      on the shape (concentration, degrees of freedom), and the draw is differentiated implicitly,
      :math:`\partial x / \partial \theta = - F_\theta(x) / F_x(x)` with the distribution function F. That is of order 1
      and at the parameters that drew: a second derivative, an update that takes the first, and a replay at another
      shape are refused. In the other parameters (rate, location, scale) there is no bound.
    - Discrete draws are refused, and so are straight-through ones (`OneHotCategoricalStraightThrough`, or a class of
      one's own): their derivative is that of something else, and biased.

    A class of torch is refused when it is compiled, what a function builds when it draws. The log-probability of a
    pathwise draw, `stochgraph.log_prob`, needs no inverse of a transform: it is exact where, say, a hyperbolic tangent
    has become 1.

    References:
        Kingma and Welling (2014), eq. 4; Rezende et al. (2014); Figurnov et al. (2018) for implicit draws.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=4))
        >>> value, grad = objective.compile(sg.PW()).value_and_grad(torch.tensor(0.0))
        >>> float(grad)
        1.0
    """
    return Pathwise()
