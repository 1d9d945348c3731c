r"""The share of every group of the ledger's rows: the vectors that a gradient is the sum of, and their figures.

A group is all rows of one sample, kind and word, or of one update's direction: what a surrogate gives for them cannot
be told apart row by row, because one box serves them all. Words that are counted in one box, "once" on one route and
"linearized" on another, are one group under the larger of the two; dropped rows are a group of their own, of zeros.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ledger import WORDS, Counted, Kind, Row, Source

_ZERO = 1e-12  # of the mean size of an estimate: a truth below it is zero, but for rounding


@dataclass(frozen=True)
class Group:
    r"""The rows of the ledger that one vector stands for, with its figures. First order only.

    .. math:: \nabla S = \sum_g G_g

    where G_g are the paths that pass the group's sample, or update, first.

    Attributes:
        sample: the sample node; empty for paths through values alone.
        update: for a path through values, the update whose direction it goes through; else empty.
        kind: "distribution", "pathwise" or "value".
        counted: how often the surrogate counts the paths.
        expectation: the mean of G_g, a pytree like the gradient.
        size: its Euclidean norm; where it is sampled, less what its errors explain.
        share: `size` over the norm of the truth; `None` where the truth is 0. It may exceed 1.
        cosine: the cosine of the angle to the truth; `None` where one of them is 0.
        variance_share: tr Cov(G_g, G) / tr Var(G); these sum to 1. `None` where nothing varies.
        missing: what the score function counts for the sample, or the update, less what is counted in all its groups:
            a pytree like the gradient. `None` where the group is counted once.
        missing_share: its norm over that of the truth; `None` where one of them is.
        errors: the standard errors of the figures, by name, where they were sampled; that of `expectation` is a pytree.
            Empty where they are exact.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     x = sg.sample("x", Bernoulli, logits=logit, n=3)
        ...     return sg.mean(x) ** 2 + 0.1 * logit
        >>> verified = sg.verify(objective.compile(sg.LSF()), torch.tensor(0.0, dtype=torch.float64))
        >>> draws, values = verified.rows
        >>> print(draws, values, sep="; ")
        x, linearized: 95.2 %; values, once: 28.6 %
        >>> torch.allclose(draws.expectation + values.expectation, verified.expectation)
        True
    """

    sample: str
    update: str
    kind: Kind
    counted: Counted
    expectation: Any
    size: float
    share: float | None
    cosine: float | None
    variance_share: float | None
    missing: Any
    missing_share: float | None
    errors: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        name = self.sample or (f"direction of {self.update}" if self.update else "values")
        return f"{name}, {self.counted}: {self.in_words()}"

    def in_words(self) -> str:
        """The share, or the size where the truth is 0, with its error."""
        if self.share is None:
            return f"{self.size:.3g}" + (f" ± {self.errors['size']:.2g}" if self.errors else "")
        return _percent(self.share, self.errors.get("share"))

    def missing_in_words(self) -> str:
        """The share of what is missing, with its error; empty where nothing is, or the truth is 0."""
        return "" if self.missing_share is None else _percent(self.missing_share, self.errors.get("missing_share"))

    @property
    def source(self) -> Source:
        """The first thing that its paths pass."""
        return Source(self.kind, self.sample, self.update)


def _percent(share: float, error: float | None) -> str:
    return f"{100 * share:.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + " %"


class Estimates(NamedTuple):
    """The contributions found in some outcomes, or draws.

    Attributes:
        vectors: by source, `(outcomes, P)`.
        reference: the same with the score function in place of all estimators that have boxes.
        weights: the probabilities of the outcomes, `(outcomes,)`; they sum to 1.
        truth: the gradient, `(P,)`, or `None`: then it is the mean of the reference.
        exact: whether the outcomes are all there are.
    """

    vectors: Mapping[Source, Tensor]
    reference: Mapping[Source, Tensor]
    weights: Tensor
    truth: Tensor | None
    exact: bool


def groups(ledger: Iterable[Row], estimates: Estimates, shape: Callable[[Tensor], object]) -> tuple[Group, ...]:
    """The groups of a ledger, in its order.

    Args:
        ledger: the rows.
        estimates: what was found, outcome by outcome.
        shape: from a vector `(P,)` to a pytree like the gradient.
    """
    words: dict[Source, set[Counted]] = {}
    for row in ledger:
        words.setdefault(row.source, set()).add(row.counted)
    return tuple(_group(source, word, estimates, shape) for source, found in words.items() for word in _words(found))


def _words(found: set[Counted]) -> list[Counted]:
    """The words of a source's groups: of what is counted the largest, and "dropped" if anything is."""
    counted = sorted(found - {"dropped"}, key=WORDS.index)
    return [*counted[-1:], *(["dropped"] if "dropped" in found else [])]  # type: ignore[list-item]


def _group(source: Source, word: Counted, estimates: Estimates, shape: Callable[[Tensor], object]) -> Group:
    total = torch.stack(list(estimates.vectors.values())).sum(0)
    zeros = torch.zeros_like(total)
    counted, whole = (each.get(source, zeros) for each in (estimates.vectors, estimates.reference))
    own = zeros if word == "dropped" else counted
    reference = torch.stack(list(estimates.reference.values())).sum(0)
    truth = reference if estimates.truth is None else estimates.truth.expand_as(own)
    draws = _Moments.of(own, total, truth, whole - counted)
    means = draws.weighted(estimates.weights)
    squares = _figures(means, 0.0 if estimates.exact else 1 / len(own))
    figures = {name: _value(name, float(one)) for name, one in squares.items()}
    errors = {}
    if not estimates.exact:
        errors = {"expectation": shape(own.std(0) / math.sqrt(len(own))), **_errors(draws, squares)}
    defined = _defined(figures, float(estimates.weights @ total.norm(dim=1)), means)
    partly = word != "once"
    return Group(
        source.sample,
        source.update,
        source.kind,
        word,
        shape(means.own),
        figures["size"],
        figures["share"] if defined["share"] else None,
        figures["cosine"] if defined["cosine"] else None,
        figures["variance_share"] if defined["variance_share"] else None,
        shape(means.missing) if partly else None,
        figures["missing_share"] if partly and defined["share"] else None,
        errors,
    )


class _Moments(NamedTuple):
    """Vectors `(..., P)` and their products `(...)`, draw by draw or as means: of a group, of the whole, and so on."""

    own: Tensor
    total: Tensor
    truth: Tensor
    missing: Tensor
    own_own: Tensor
    truth_truth: Tensor
    missing_missing: Tensor
    own_truth: Tensor
    own_total: Tensor
    total_total: Tensor

    @classmethod
    def of(cls, own: Tensor, total: Tensor, truth: Tensor, missing: Tensor) -> "_Moments":
        """Those of every draw."""
        pairs = ((own, own), (truth, truth), (missing, missing), (own, truth), (own, total), (total, total))
        return cls(own, total, truth, missing, *(_dot(x, y) for x, y in pairs))

    def weighted(self, weights: Tensor) -> "_Moments":
        """Their means."""
        return _Moments(*(weights @ column for column in self))

    def left_out(self) -> "_Moments":
        """Their means without each draw in turn."""
        return _Moments(*((column.sum(0) - column) / (len(column) - 1) for column in self))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)


def _figures(means: _Moments, part: float) -> dict[str, Tensor]:
    """The figures, norms and quotients of norms as squares, from means over draws of which one is this part of all.

    The part is 0 for exact expectations.

    NOTE [norms of noisy means]
    The square of a mean of n draws is on average that of the expectation and the variance over n: noise would pass for
    size. Products of means are estimated without it, by the products of different draws; squares may then be negative,
    which stands for 0. Near 0 it is the square whose error is known: that of a norm is the step to its upper end.
    """

    def product(x: Tensor, y: Tensor, mean: Tensor) -> Tensor:
        return (_dot(x, y) - part * mean) / (1 - part)

    own = product(means.own, means.own, means.own_own)
    truth = product(means.truth, means.truth, means.truth_truth)
    return {
        "size": own,
        "norm": truth,
        "share": own / truth,
        "missing_share": product(means.missing, means.missing, means.missing_missing) / truth,
        "cosine": product(means.own, means.truth, means.own_truth) / (own * truth).sqrt(),
        "variance_share": (means.own_total - _dot(means.own, means.total))
        / (means.total_total - _dot(means.total, means.total)),
    }


_SQUARES = frozenset(["size", "norm", "share", "missing_share"])


def _value(name: str, figure: float) -> float:
    return math.sqrt(max(figure, 0.0)) if name in _SQUARES else figure


def _defined(figures: Mapping[str, float], size: float, means: _Moments) -> dict[str, bool]:
    """Which figures are quotients of something that is not 0; `size` is the mean norm of an estimate."""
    moves = figures["norm"] > _ZERO * size
    varies = bool(means.total_total - _dot(means.total, means.total) > _ZERO * means.total_total)
    return {"share": moves, "cosine": moves and figures["size"] > _ZERO * size, "variance_share": varies}


def _errors(draws: _Moments, whole: Mapping[str, Tensor]) -> dict[str, float]:
    """The standard errors of the figures by the jackknife; infinite where a figure is lost with a draw left out."""
    n = len(draws.own)
    found = {}
    for name, one in _figures(draws.left_out(), 1 / (n - 1)).items():
        error = float(((n - 1) / n * ((one - one.mean()) ** 2).sum()).sqrt())
        found[name] = _error(name, float(whole[name]), error if math.isfinite(error) else math.inf)
    del found["norm"]
    return found


def _error(name: str, figure: float, error: float) -> float:
    """The error of a figure, from that of its square where it is one."""
    return _value(name, max(figure, 0.0) + error) - _value(name, figure) if name in _SQUARES else error
