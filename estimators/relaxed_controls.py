"""REBAR and RELAX: relaxed coins as a control variate of the score function.

NOTE [zero mean everywhere]
Let z be the relaxed draw that made the coin b, and y another one given b. A function c of z has the same mean whether
z is drawn at once, or b first and y after it: `E c(z) = E box(L) c(y)`, L the log-probability of b, at all parameters
that z, y and the box move with. So `c(z) - box(L) c(y)` has zero mean there, and its derivatives of every order have.
The first one, at the parameters that drew, is that of the papers. Nothing is held constant: the derivative of an
estimate with respect to what c is made of is what c is learned by.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..derive.controls import ZeroMean
from ..derive.estimator import Control, GradientEstimator, Site
from ..derive.papers import ICLR, NEURIPS, Paper
from ..derive.routes import Routes
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, describe, without
from ..tensors.trees import map_tensors, tensors
from .coins import refuse_others
from .relaxations import LogOdds, Soft, setting, uniforms_of

Learned = Callable[..., Tensor]

TUCKER_2017 = Paper(
    "tucker2017rebar",
    "George Tucker and Andriy Mnih and Chris J. Maddison and Dieterich Lawson and Jascha Sohl-Dickstein",
    "{REBAR}: Low-variance, unbiased gradient estimates for discrete latent variable models",
    NEURIPS,
    2017,
)
GRATHWOHL_2018 = Paper(
    "grathwohl2018backpropagation",
    "Will Grathwohl and Dami Choi and Yuhuai Wu and Geoffrey Roeder and David Duvenaud",
    "Backpropagation through the void: Optimizing control variates for black-box gradient estimation",
    ICLR,
    2018,
)


@dataclass(frozen=True)
class RelaxedControl(Control):
    """`c(z) - box(L) c(y)`, with `c(z) = scale * F(sigmoid(z / temperature)) + learned(z, parameters)`.

    Attributes:
        name: of the estimator.
        temperature: of the relaxed coins; `None`: the term is not evaluated at them.
        scale: what the term is multiplied with there.
        learned: a function of relaxed draws, and of an input of the graph.
        parameters: the name of that input.
    """

    name: str
    temperature: float | str | None
    scale: float | str
    learned: Learned | None = None
    parameters: str | None = None

    def named_inputs(self) -> list[str]:
        """The inputs of the graph that it reads."""
        return [given for given in (self.temperature, self.scale, self.parameters) if isinstance(given, str)]

    def node(self, site: Site) -> nd.Node:
        odds = site.once(("log-odds", site.sample), lambda: LogOdds(site, self.name))
        found: list[nd.Node] = []
        if self.temperature is not None:
            soft = site.once(("soft", odds), lambda: Soft(odds, setting(self.temperature)))  # type: ignore[arg-type]
            found.append(Scaled(site.put(soft, together=True), setting(self.scale)))
        if self.learned is not None:
            found.append(Called(site, odds, self.learned, self.parameters))
        return Conditioned(site, found)


class Scaled(nd.Node):
    """A number times a node."""

    kind = "scaled"
    linear = Linearity.NOWHERE

    def __init__(self, node: nd.Node, factor: nd.Node) -> None:
        super().__init__(f"scaled({node.name})", node.index, [node, factor])

    def infer_axes(self) -> Axes:
        return self.inputs[0].axes

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        return map_tensors(lambda leaf: leaf * values[1], values[0])


class Called(nd.Node):
    """A learned function of the relaxed draws that one term depends on, and its parameters."""

    kind = "learned"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site, odds: LogOdds, fn: Learned, parameters: str | None) -> None:
        self.fn, self.sample = fn, site.sample
        plates = site.sample.plates
        self.kept = tuple(plate for plate in plates if plate in site.kept)
        self.order = [1 + plates.index(plate) for plate in (*self.kept, *without(plates, self.kept))]
        given = [] if parameters is None else [nd.Input(parameters, 0, [])]
        super().__init__(f"learned({site.name})", site.node.index, [odds, *given])

    def infer_axes(self) -> Axes:
        return (self.inputs[0].axes[0], *self.kept)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        odds, *given = values
        lead = 1 + len(self.kept)
        odds = odds.movedim(self.order, list(range(1, 1 + len(self.order))))
        return vz.vectorize(lambda one: self.fn(one, *given), lead)(odds)


class Conditioned(ZeroMean):
    """`c(z) - box(L) c(y)`, less its value."""

    def __init__(self, site: Site, controls: list[nd.Node]) -> None:
        super().__init__("relaxed", site, [site.term, site.ratio(), *controls])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        term, ratio, *controls = values
        box, place = ratio.exp(), itertools.count()
        return map_tensors(lambda _: self._of_leaf(controls, next(place), box), term)

    def _of_leaf(self, controls: list[Any], place: int, box: Tensor) -> Tensor:
        leaves = [control if isinstance(control, Tensor) else tensors(control)[place] for control in controls]
        found = [self._of(leaf, box, axes) for leaf, axes in zip(leaves, self.input_axes[2:], strict=True)]
        total = sum(found[1:], start=found[0])
        return total - total.detach()

    def _of(self, control: Tensor, box: Tensor, axes: Axes) -> Tensor:
        made, other = control
        made, other, factor = vz.broadcast([made, other, box], [axes[1:], axes[1:], self.input_axes[1]], self.axes)
        return made - factor * other

    def formula(self, term: str, sample: str) -> str:
        return rf" + c(z_{{{sample}}}) - \square \, c(\tilde z_{{{sample}}})"


@dataclass(frozen=True)
class ComparedWithRelaxed(GradientEstimator):
    """The score function with relaxed coins as its control variate. Made by `REBAR` and `RELAX`."""

    relaxed: RelaxedControl

    @property
    def papers(self) -> tuple[Paper, ...]:
        learned = () if self.relaxed.learned is None else (GRATHWOHL_2018,)
        return (*learned, TUCKER_2017, *super().papers)

    @property
    def control(self) -> Control:
        return self.relaxed

    def noise(self, sample: nd.Sample) -> nd.Sample:
        return uniforms_of(sample, self.relaxed.name)

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        super().check(sample, routes)
        refuse_others(sample, self.relaxed.name)
        for name in self.relaxed.named_inputs():
            if name not in routes.inputs:
                raise CompileError(
                    f"{self.relaxed.name} on sample {sample.name!r}: {name!r} is no input of the graph; its inputs are "
                    f"{', '.join(routes.inputs)}"
                )
        flat = routes.flat_behind(sample)
        if self.relaxed.temperature is not None and flat is not None:
            raise CompileError(
                f"{self.relaxed.name} on sample {sample.name!r} (axes: {describe(sample.axes)}): its draws meet "
                f"{flat.name!r}, through which a relaxed draw has no derivative, so that the estimate would be biased. "
                "Use RELAX without a temperature, DisARM or Enumerate for this node"
            )

    def __repr__(self) -> str:
        given = self.relaxed
        options = f"temperature={given.temperature!r}, scale={given.scale!r}"
        if given.learned is None:
            return f"{given.name}({options})"
        learned = getattr(given.learned, "__name__", type(given.learned).__name__)
        return f"{given.name}({learned}, parameters={given.parameters!r}, {options})"


def REBAR(temperature: float | str = 0.5, scale: float | str = 1.0) -> ComparedWithRelaxed:
    r"""The score function with relaxed Bernoulli draws as its control variate: unbiased.

    .. math:: (f(b) - \eta f(\sigma_\tau(\tilde z))) \, \nabla \log p(b) + \eta \nabla f(\sigma_\tau(z))
              - \eta \nabla f(\sigma_\tau(\tilde z)), \qquad \sigma_\tau(z) = (1 + e^{-z / \tau})^{-1}

    with :math:`z = \phi + \mathrm{logit}(u)` the relaxed draw of which :math:`b = [z > 0]` is made, and
    :math:`\tilde z` another one given b. The costs are evaluated at relaxed draws, twice, and differentiated there:
    they have to be **continuous** between 0 and 1. Where they jump, or index a table, the gradient of the relaxed costs
    is not that of their mean, and the estimate is biased without a word, as that of `PW` is.

    Unbiased for every temperature and scale, at every order of derivatives and at other parameters. The noise is
    drawn beside the draws, and recorded in the trace as another sample, "x noise" of x. `verify` needs `quadrature=`.

    Args:
        temperature: :math:`\tau`, a positive number, or the name of an input of the graph that holds it.
        scale: :math:`\eta`, likewise. An input can be learned: the derivative of a squared estimate with respect to it
            estimates that of the variance.

    Raises:
        CompileError: another distribution than Bernoulli; an operation without a derivative behind the draws, or a
            stop; a direct child that cannot be reused.
        SamplingError: another distribution that a function builds.

    References:
        Tucker et al. (2017), REBAR: low-variance, unbiased gradient estimates for discrete latent variable models.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit, scale):
        ...     return (sg.sample("x", Bernoulli, logits=logit) + 0.45) ** 2
        >>> compiled = objective.compile(sg.REBAR(1.0, scale="scale"))
        >>> logit, scale = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
        >>> def squared(scale, trace):
        ...     return torch.func.grad(compiled.surrogate)(logit, scale, trace) ** 2
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(200):
        ...     trace = compiled.sample(logit, scale, generator=generator)
        ...     scale = scale - 0.2 * torch.func.grad(squared)(scale, trace)
        >>> before, after = (sg.verify(compiled, logit, s, quadrature=12) for s in (torch.zeros_like(scale), scale))
        >>> after.relative_bias < 1e-6, after.total_variance < before.total_variance / 2
        (True, True)
    """
    return ComparedWithRelaxed(RelaxedControl("REBAR", temperature, scale))


def RELAX(
    learned: Learned,
    parameters: str | None = None,
    temperature: float | str | None = None,
    scale: float | str = 1.0,
) -> ComparedWithRelaxed:
    r"""The score function with a learned function of relaxed Bernoulli draws as its control variate: unbiased.

    .. math:: (f(b) - c(\tilde z)) \, \nabla \log p(b) + \nabla c(z) - \nabla c(\tilde z)

    as in `REBAR`, where c is :math:`\eta f \circ \sigma_\tau`; here it is any function, with that added if a
    temperature is given. Unbiased whatever it is, as long as it is continuous.

    Args:
        learned: `learned(z, parameters)`, a number for the relaxed draws that one cost depends on: those of all the
            plates over which the cost has taken a mean, `(*plates, ...)`; it is mapped over the others.
        parameters: the name of an input of the graph, a pytree, that `learned` is handed; `None`: it is handed z alone.
            It is learned by the derivative of a squared estimate, as in the example of `REBAR`.
        temperature: of the costs at relaxed draws, as in `REBAR`; `None`: the costs are not evaluated there, and need
            not be continuous.
        scale: what they are multiplied with.

    Raises:
        CompileError: another distribution than Bernoulli; with a temperature, an operation without a derivative behind
            the draws, a stop, or a direct child that cannot be reused.
        SamplingError: another distribution that a function builds.

    References:
        Grathwohl et al. (2018), Backpropagation through the void: optimizing control variates for black-box gradient
        estimation.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit, phi):
        ...     return (sg.sample("x", Bernoulli, logits=logit) - 0.45) ** 2
        >>> compiled = objective.compile(sg.RELAX(lambda z, phi: phi[0] * torch.tanh(z) + phi[1], "phi"))
        >>> logit, phi = torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
        >>> sg.verify(compiled, logit, phi, quadrature=16).relative_bias < 1e-6
        True
    """
    return ComparedWithRelaxed(RelaxedControl("RELAX", temperature, scale, learned, parameters))
