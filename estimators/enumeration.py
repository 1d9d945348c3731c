"""Enumeration: every outcome of one draw at a time, the others as they were drawn."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.estimator import GradientEstimator, Site
from ..derive.papers import ICML, NEURIPS, Paper
from ..derive.routes import Routes
from ..derive.substitutions import alternatives
from ..errors.exceptions import CompileError, SamplingError
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..surrogate.terms import Term
from ..tensors import vectorize as vz
from ..tensors.axes import describe
from ..tensors.trees import map_tensors, tensors
from .replaced import AtParents, Replaced

_MOST_OUTCOMES = 4096

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


class Enumeration(GradientEstimator):
    """Sums over the outcomes of each draw. Made by `Enumerate`."""

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (TITSIAS_2015, TOKUI_2017, *super().papers)

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        super().check(sample, routes)
        law, family = sample.law, sample.law.family
        listed = family is None or family.has_enumerate_support or law.name == "Multinomial"
        if law.is_torchs_own and not listed:
            raise CompileError(_not_finite(sample, f"{law.name} has no finite support"))

    def term(self, site: Site) -> Term:
        outcomes = site.once(("outcomes", site.sample), lambda: AtParents(site, "outcomes", outcomes_of))
        changes = site.once(("changes", outcomes), lambda: Changes(site, outcomes))
        return Enumerated(site, changes, site.put(outcomes), own=False)

    def __repr__(self) -> str:
        return "Enumerate()"


class Enumerated(Replaced):
    """`term + sum over i and outcomes k of (p_i(k) - stop p_i(k)) * box(draws before i) * (term with x_i = k)`."""

    kind = "enumerated"

    def formula(self, term: str, sample: str) -> str:
        return rf"\sum_{{k}} p({sample} = k) \, \big({term}\big)_{{{sample} = k}}"


class Changes(nd.Node):
    """The probability of every outcome less its value: `(outcomes, *plates)`."""

    kind = "alternatives"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site, outcomes: nd.Node) -> None:
        self.sample, self.parents = site.sample, tuple(site.parents())
        super().__init__(f"changes({site.name})", site.sample.index, [outcomes, *self.parents])

    def infer_axes(self) -> Any:
        return self.inputs[0].axes

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        outcomes, *parents = values
        score = torch.vmap(lambda one: self.sample.law.score(self.sample, one, self.parents, parents, run))
        log_prob = score(outcomes)
        if self.sample.time:  # whole trajectories are replaced: their steps are added up
            log_prob = log_prob.sum(-1)
        probability = log_prob.exp()
        return probability - probability.detach()


def outcomes_of(sample: nd.Sample, drawn: object, parents: Sequence[Any], run: nd.Pass) -> Any:
    """All outcomes of every draw, `(outcomes, *plates, ...)`.

    Raises:
        SamplingError: there are too many, or infinitely many.
    """
    law = sample.law
    try:
        support, own = law.outcomes(sample, parents, run, int(law.trials(sample, parents, run).max()))
    except NotImplementedError as error:
        raise SamplingError(_not_finite(sample, str(error))) from None
    lead = 1 + len(sample.parent_axes)
    support = map_tensors(lambda leaf: _combined(leaf.detach(), lead, own, sample), support)
    axes = (alternatives(sample), *sample.parent_axes)
    target = (alternatives(sample), *sample.plates)
    leaves, spec = pytree.tree_flatten(support)
    like = iter(tensors(drawn))
    expanded = [
        vz.align(leaf, axes, target).expand(leaf.shape[0], *next(like).shape) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    ]
    return pytree.tree_unflatten(expanded, spec)


def _combined(leaf: Tensor, lead: int, own: int, sample: nd.Sample) -> Tensor:
    """The outcomes of draws that have several entries, `own` dimensions of them: all their combinations."""
    if not own:
        return leaf
    choices, entries = leaf.shape[0], prod(leaf.shape[lead : lead + own])
    count = choices**entries
    if count > _MOST_OUTCOMES:
        raise SamplingError(_not_finite(sample, f"one draw has {choices}**{entries} = {count} outcomes"))
    index = torch.arange(count, device=leaf.device)[:, None] // choices ** torch.arange(entries, device=leaf.device)
    flat = leaf.flatten(lead, lead + own - 1).movedim(lead, 1)  # (choices, entries, *parents, *event)
    chosen = flat[index % choices, torch.arange(entries, device=leaf.device)]
    return chosen.movedim(1, lead).reshape(count, *leaf.shape[1:])


def _not_finite(sample: nd.Sample, why: str) -> str:
    return (
        f"Enumerate on sample {sample.name!r} (axes: {describe(sample.axes)}): {why}; use SF for this node, or a "
        f"distribution with at most {_MOST_OUTCOMES} outcomes"
    )


def Enumerate() -> Enumeration:
    r"""The expectation over one draw at a time, all others as they were drawn: unbiased, of any order.

    .. math:: \nabla F(x) + \sum_i \sum_k \nabla_\theta p_i(k; \theta) \, F(x_{-i}, k)

    For derivatives of higher order term i is boxed with the draws before it, in one fixed order. Every summand varies
    at most as that of `SF` or `LOO`. Their sum may vary more, because scores of different draws are not compared with
    each other: for :math:`4 m (1 - m)`, m the mean of two fair coins, `SF` and `LOO` do not vary at all.

    A term behind the mean of N draws with K outcomes is evaluated N K times. What is drawn later is reused with its
    likelihood ratio; what a draw feeds directly, without an update between, must be discrete, with the same outcomes
    whatever the draw.

    Raises:
        CompileError: a distribution without a finite support, or a direct child that cannot be reused.
        SamplingError: the same, where a function builds the distribution; more than 4096 outcomes of a draw.

    References:
        Titsias and Lázaro-Gredilla (2015), Local expectation gradients; Tokui and Sato (2017), Evaluating the variance
        of likelihood-ratio gradient estimators.

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
    return Enumeration()
