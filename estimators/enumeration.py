"""Enumeration: every outcome of one draw at a time, the others as they were drawn."""

from dataclasses import dataclass

from ..derive.estimator import GradientEstimator, Site
from ..derive.papers import ICML, NEURIPS, Paper
from ..derive.routes import Routes
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..surrogate.terms import Term
from .outcomes import Changes, not_finite, outcomes_of
from .replaced import AtParents, Replaced
from .shortlists import Chosen, ComparedChanges, shortlists_of

TITSIAS_2015 = Paper(
    "titsias2015local",
    "Michalis K. Titsias and Miguel Lázaro-Gredilla",
    "Local expectation gradients for black box variational inference",
    NEURIPS,
    2015,
)
TOKUI_2017 = Paper(
    "tokui2017evaluating",
    "Seiya Tokui and Issei Sato",
    "Evaluating the variance of likelihood-ratio gradient estimators",
    ICML,
    2017,
)
LIU_2019 = Paper(
    "liu2019rao",
    "Runjing Liu and Jeffrey Regier and Nilesh Tripuraneni and Michael I. Jordan and Jon McAuliffe",
    "{Rao-Blackwellized} stochastic gradients for discrete distributions",
    ICML,
    2019,
)


@dataclass(frozen=True)
class Enumeration(GradientEstimator):
    """Sums over the outcomes of each draw. Made by `Enumerate`."""

    top: int | None = None

    @property
    def papers(self) -> tuple[Paper, ...]:
        found = (TITSIAS_2015, TOKUI_2017, *super().papers)
        return found if self.top is None else (LIU_2019, *found)

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        super().check(sample, routes)
        law, family = sample.law, sample.law.family
        listed = family is None or family.has_enumerate_support or law.name == "Multinomial"
        if law.is_torchs_own and not listed:
            raise CompileError(not_finite(sample, f"{law.name} has no finite support"))

    def noise(self, sample: nd.Sample) -> nd.Sample | None:
        return None if self.top is None else shortlists_of(sample, self.top)

    def term(self, site: Site) -> Term:
        if self.top is not None:
            return self._shortened(site)
        outcomes = site.once(("outcomes", site.sample), lambda: AtParents(site, "outcomes", outcomes_of))
        changes = site.once(("changes", outcomes), lambda: Changes(site, outcomes))
        return Enumerated(site, changes, site.put(outcomes), own=False)

    def _shortened(self, site: Site) -> Term:
        chosen = site.once(("chosen", site.sample), lambda: Chosen(site))
        changes = site.once(("changes", chosen), lambda: ComparedChanges(site, chosen))
        return EnumeratedInPart(site, changes, site.put(chosen), own=False)

    def __repr__(self) -> str:
        return "Enumerate()" if self.top is None else f"Enumerate(top={self.top})"


class Enumerated(Replaced):
    """`term + sum over i and outcomes k of (p_i(k) - stop p_i(k)) * box(draws before i) * (term with x_i = k)`."""

    kind = "enumerated"

    def formula(self, term: str, sample: str) -> str:
        return rf"\sum_{{k}} p({sample} = k) \, \big({term}\big)_{{{sample} = k}}"


class EnumeratedInPart(Enumerated):
    """The same over the outcomes of a shortlist, the draw for the rest compared with the mean of the likeliest."""

    def formula(self, term: str, sample: str) -> str:
        likeliest = rf"\sum_{{k \in T}} p({sample} = k) \, \big({term}\big)_{{{sample} = k}}"
        return rf"\big({likeliest} + p({sample} \notin T) \, \big({term}\big)_{{{sample} = r \notin T}}\big)"


def Enumerate(top: int | None = None) -> Enumeration:
    r"""The expectation over one draw at a time, all others as they were drawn: unbiased, of any order.

    .. math:: \nabla F(x) + \sum_i \sum_k \nabla_\theta p_i(k; \theta) \, F(x_{-i}, k)

    For derivatives of higher order term i is boxed with the draws before it, in one fixed order. Every summand varies
    at most as that of `SF` or `LOO`. Their sum may vary more, because scores of different draws are not compared with
    each other: for :math:`4 m (1 - m)`, m the mean of two fair coins, `SF` and `LOO` do not vary at all.

    A term behind the mean of N draws with K outcomes is evaluated N K times. What is drawn later is reused with its
    likelihood ratio; what a draw feeds directly, without an update between, must be pathwise, or discrete with the same
    outcomes whatever the draw.

    Args:
        top: how many of the outcomes are summed, the likeliest ones of every draw; one more, drawn among the rest,
            stands for these with their mass, compared with the mean of the likeliest. It is recorded in the trace as
            another sample, "x shortlist" of x. The bias stays 0. Default: all.

    Raises:
        ValueError: a `top` that is no positive number.
        CompileError: a distribution without a finite support, or a direct child that cannot be reused.
        SamplingError: the same, where a function builds the distribution; more than 4096 outcomes of a draw.

    References:
        Titsias and Lázaro-Gredilla (2015), Local expectation gradients; Tokui and Sato (2017), Evaluating the variance
        of likelihood-ratio gradient estimators. For `top`: Liu et al. (2019), Rao-Blackwellized stochastic gradients
        for discrete distributions.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return sg.mean(sg.sample("x", Bernoulli, logits=logit, n=3)) ** 2
        >>> compiled = objective.compile(sg.Enumerate())
        >>> logit = torch.tensor(0.3, dtype=torch.float64)
        >>> sg.verify(compiled, logit, order=2).relative_bias < 1e-12
        True
        >>> [row.counted for row in compiled.explain().ledger]
        ['once']
    """
    if top is not None and top < 1:
        raise ValueError(f"top={top!r}: the number of outcomes that are summed, at least 1; None: all")
    return Enumeration(top)
