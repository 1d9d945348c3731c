"""DisARM: antithetic pairs of Bernoulli draws.

NOTE [a control variate]
With one uniform u a coin of probability p is `b = [u < p]`, its partner `b' = [1 - u < p]`. What the pair estimates
differs from the score function by something of zero mean, whatever it is multiplied with. Added to the score function's
box it leaves that unbiased at every order and at other parameters, and takes its place at first order. Given b the
partner is drawn from its own distribution: the uniform itself is never needed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..derive.controls import ZeroMean
from ..derive.estimator import Control, GradientEstimator, Site
from ..derive.papers import NEURIPS, Paper
from ..derive.routes import Routes
from ..derive.substitutions import alternatives
from ..distributions.interfaces import SampleNode, Surroundings
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, union, without
from ..tensors.trees import map_tensors, tensors
from .beside import LawBeside, drawn_beside
from .coins import coins, entries, refuse_others, summed_entries


class Partner(NamedTuple):
    """The partners that are drawn beside Bernoulli draws, and the probability of a one that drew both."""

    other: Tensor
    probability: Tensor


class PartnerLaw(LawBeside):
    """The distribution of the partners, given the draws and the parents of their distribution."""

    def _one_too(self, values: Sequence[Any], run: Surroundings) -> tuple[Tensor, Tensor]:
        """The probability that the draw is one, and that its partner is, of every entry: `(*plates, ...)`."""
        drawn, *parents = values
        probability = entries(self.sample, coins(self.sample, parents, run, "DisARM").probs, drawn).detach()
        one = ((2 * probability - 1) / probability).clamp(min=0)
        return probability, torch.where(drawn == 1, one, (probability / (1 - probability)).clamp(max=1))

    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Partner, None]:
        probability, one = self._one_too(values, run)
        with run.placed():
            other = torch.bernoulli(one)
        return Partner(other.to(values[0].dtype), probability), None

    def log_prob(self, value: Partner, values: Sequence[Any], run: Surroundings) -> Tensor:
        _, one = self._one_too(values, run)
        return summed_entries(torch.where(value.other == 1, one, 1 - one).log(), len(self.sample.plates))

    def outcomes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int) -> tuple[Partner, int]:
        probability, _ = self._one_too(values, run)
        both = torch.stack([torch.zeros_like(values[0]), torch.ones_like(values[0])])
        return Partner(both, probability.expand(2, *probability.shape)), probability.dim() - len(node.plates)


DONG_2020 = Paper(
    "dong2020disarm",
    "Zhe Dong and Andriy Mnih and George Tucker",
    "{DisARM}: An antithetic gradient estimator for binary latent variables",
    NEURIPS,
    2020,
)


class Coupled(GradientEstimator):
    """Compares Bernoulli draws with antithetic partners. Made by `DisARM`."""

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (DONG_2020, *super().papers)

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        super().check(sample, routes)
        refuse_others(sample, "DisARM")

    def noise(self, sample: nd.Sample) -> nd.Sample:
        return drawn_beside(sample, "partner", PartnerLaw(sample, "antithetic partners"), [sample, *sample.inputs])

    @property
    def control(self) -> Control:
        return COMPARED_WITH_PARTNERS

    def __repr__(self) -> str:
        return "DisARM()"


class ComparedWithPartners(Control):
    """The control variate that turns the score function's first derivative into that of the pair."""

    def node(self, site: Site) -> nd.Node:
        others = site.once(("partners", site.sample), lambda: Others(site))
        return PairLessScore(site, site.put(others, differentiable=False, together=True))


COMPARED_WITH_PARTNERS = ComparedWithPartners()


class Others(nd.Node):
    """The partners as alternatives to the draws: one, `(1, *plates, ...)`."""

    kind = "alternatives"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site) -> None:
        self.sample = site.sample
        super().__init__(f"partners({site.name})", site.sample.index, [site.noise])

    def infer_axes(self) -> Axes:
        return union([alternatives(self.sample)], self.sample.plates)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        other: Tensor = values[0].other
        return other.unsqueeze(0)


class PairLessScore(ZeroMean):
    r"""`sum over i of (phi_i - stop phi_i) ((F - F') a_i - F (b_i - p_i))`, of value 0 and of zero mean.

    phi are the log-odds, F the term and F' the term with all draws replaced by their partners, both constants, and
    `a_i = (-1)**b'_i [b_i != b'_i] max(p_i, 1 - p_i) / 2`.
    """

    def __init__(self, site: Site, replay: nd.Node) -> None:
        self.parents = tuple(site.parents())
        super().__init__("pair", site, [site.term, site.ratio(), replay, site.drawn, site.noise, *self.parents])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        term, ratio, replay, drawn, partner, *parents = values
        odds = entries(self.sample, coins(self.sample, parents, run, "DisARM").logits, drawn)
        change, probability = odds - odds.detach(), partner.probability
        sign = torch.where(partner.other == 1, -0.5, 0.5) * (drawn != partner.other)
        paired = self._summed(change * sign * torch.maximum(probability, 1 - probability))
        scored = self._summed(change * (drawn - probability))
        own = (-ratio).exp().detach()  # the term has its own box, of value 1 at the parameters that drew
        others = iter(tensors(replay))
        return map_tensors(lambda leaf: self._of(leaf, own, next(others), paired, scored), term)

    def _summed(self, value: Tensor) -> Tensor:
        """Over the entries of a draw, and the plates along which the term depends on all draws."""
        plates = self.sample.plates
        value = summed_entries(value, len(plates))
        dims = tuple(plates.index(plate) for plate in self.gone)
        return value.sum(dims) if dims else value

    def _of(self, term: Tensor, own: Tensor, other: Tensor, paired: Tensor, scored: Tensor) -> Tensor:
        kept = without(self.sample.plates, self.gone)
        axes = [self.input_axes[0], self.input_axes[1], self.input_axes[2][1:], kept, kept]
        term, own, other, paired, scored = vz.broadcast([term, own, other[0], paired, scored], axes, self.axes)
        here = (term * own).detach()
        return (here - other.detach()) * paired - here * scored

    def formula(self, term: str, sample: str) -> str:
        difference = rf"{term} - \big({term}\big)_{{{sample}'}}"
        return rf" + \sum (\phi - \mathrm{{stop}}(\phi)) \, \big(a \, ({difference}) - ({sample} - p) \, ({term})\big)"


def DisARM() -> Coupled:
    r"""Antithetic pairs of Bernoulli draws: unbiased, with one more evaluation of what follows, forward only.

    .. math:: \sum_i \tfrac12 \big(F(b) - F(b')\big) (-1)^{b'_i} 1[b_i \ne b'_i] \, \sigma(|\phi_i|) \,
              \nabla_\theta \phi_i, \qquad b_i = 1[u_i < \sigma(\phi_i)], \quad b'_i = 1[1 - u_i < \sigma(\phi_i)]

    with log-odds :math:`\phi`. All draws that a term depends on are replaced by their partners at once, in one replay.
    This is the first derivative, at the parameters that drew. It is reached by a term of zero mean that is added to the
    score function: derivatives of higher orders, and those at other parameters, are unbiased too, and there it is close
    to `SF`. The partners are drawn beside the draws, and recorded in the trace as another sample, "x partner" of x.

    What is drawn later is reused with its likelihood ratio; what a draw feeds directly, without an update between, must
    be pathwise, or discrete with the same outcomes whatever the draw.

    Raises:
        CompileError: another distribution than Bernoulli, or a direct child that cannot be reused.
        SamplingError: another distribution that a function builds.

    References:
        Dong, Mnih and Tucker (2020), DisARM: an antithetic gradient estimator for binary latent variables; Yin et al.
        (2020), Probabilistic best subset selection via gradient-based optimization, who have the same estimator.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return torch.exp(sg.mean(sg.sample("x", Bernoulli, logits=logit, n=3)))
        >>> logit = torch.tensor(0.3, dtype=torch.float64)
        >>> pair, score = (sg.verify(objective.compile(e), logit) for e in (sg.DisARM(), sg.SF()))
        >>> pair.relative_bias < 1e-12, pair.total_variance < score.total_variance
        (True, True)
    """
    return Coupled()
