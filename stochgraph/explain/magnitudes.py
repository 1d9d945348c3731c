r"""How much every group of the ledger's rows gives: the vectors that a gradient is the sum of, and their figures.

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

from .ledger import Counted, Kind, Row, Source

_ZERO = 1e-12  # of the mean size of an estimate: a truth below it is zero, but for rounding
_ORDER: list[Counted] = ["once", "linearized", "scaled", "twice", "dropped"]


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
        size: its Euclidean norm.
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
        return percent(self.share) if not self.errors else f"{100 * self.share:.1f} ± {percent(self.errors['share'])}"

    @property
    def source(self) -> Source:
        """What its paths pass first."""
        return Source(self.kind, self.sample, self.update)


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %"


class Estimates(NamedTuple):
    """What some outcomes, or draws, gave.

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
    counted = sorted(found - {"dropped"}, key=_ORDER.index)
    return [*counted[-1:], *(["dropped"] if "dropped" in found else [])]  # type: ignore[list-item]


def _group(source: Source, word: Counted, estimates: Estimates, shape: Callable[[Tensor], object]) -> Group:
    total = torch.stack(list(estimates.vectors.values())).sum(0)
    zeros = torch.zeros_like(total)
    counted, whole = (each.get(source, zeros) for each in (estimates.vectors, estimates.reference))
    own = zeros if word == "dropped" else counted
    reference = torch.stack(list(estimates.reference.values())).sum(0)
    truth = reference if estimates.truth is None else estimates.truth.expand_as(own)
    columns = (own, total, truth, whole - counted, (own * total).sum(1), (total * total).sum(1))
    means = [estimates.weights @ column for column in columns]
    figures = {name: float(value) for name, value in _figures(*means).items()}
    errors = {} if estimates.exact else {"expectation": shape(own.std(0) / math.sqrt(len(own))), **_errors(columns)}
    defined = _defined(*means, size=float(estimates.weights @ total.norm(dim=1)))
    partly = word != "once"
    return Group(
        source.sample,
        source.update,
        source.kind,
        word,
        shape(means[0]),
        figures["size"],
        figures["share"] if defined["share"] else None,
        figures["cosine"] if defined["cosine"] else None,
        figures["variance_share"] if defined["variance_share"] else None,
        shape(means[3]) if partly else None,
        figures["missing_share"] if partly and defined["share"] else None,
        errors,
    )


def _figures(
    own: Tensor, total: Tensor, truth: Tensor, missing: Tensor, product: Tensor, square: Tensor
) -> dict[str, Tensor]:
    """Functions of the means `(..., P)`, and of those of a group's, and the whole's, products with the whole."""
    size, norm = own.norm(dim=-1), truth.norm(dim=-1)
    return {
        "size": size,
        "share": size / norm,
        "cosine": (own * truth).sum(-1) / (size * norm),
        "variance_share": (product - (own * total).sum(-1)) / (square - (total * total).sum(-1)),
        "missing_share": missing.norm(dim=-1) / norm,
    }


def _defined(
    own: Tensor, total: Tensor, truth: Tensor, _: Tensor, __: Tensor, square: Tensor, *, size: float
) -> dict[str, bool]:
    """Which figures are quotients of something that is not 0; `size` is the mean norm of an estimate."""
    moves = bool(truth.norm() > _ZERO * size)
    varies = bool(square - total @ total > _ZERO * square)
    turned = moves and bool(own.norm() > _ZERO * size)
    return {"share": moves, "cosine": turned, "variance_share": varies}


def _errors(columns: Iterable[Tensor]) -> dict[str, float]:
    """The standard errors of the figures by the jackknife: each draw left out in turn."""
    left_out = [(column.sum(0) - column) / (len(column) - 1) for column in columns]
    found = {}
    for name, values in _figures(*left_out).items():
        n = len(values)
        found[name] = float(((n - 1) / n * ((values - values.mean()) ** 2).sum()).sqrt())
    return found
