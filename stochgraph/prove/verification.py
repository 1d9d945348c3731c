"""Exact verification: every joint outcome of a small graph, weighted with its probability.

The truth is the derivative of `sum over outcomes D of p(D; theta) * value(D; theta)`: forward values and
log-probabilities, with the derivative of an update taken for fixed draws. No box, no estimator has a part in it.
Continuous draws may have the nodes of a rule of quadrature; see the note in `quadrature.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.populations import expected_plates
from ..errors.exceptions import SamplingError, VerificationError
from ..errors.failures import short_tracebacks
from ..explain.ledger import Source
from ..explain.magnitudes import Estimates, Group, groups
from ..ir.traces import Trace
from ..run.compiled import Compiled
from ..run.contributions import Contributions, scored
from .enumeration import enumerated
from .outcomes import CHUNK, Outcome, Outcomes
from .quadrature import Quadrature, at_least_two
from .vectors import differentiated, shaper, vector

_ZERO = 1e-12  # of the mean size of an estimate: a truth below it is zero, but for rounding


@dataclass(frozen=True)
class Verification:
    """Exact figures of an estimator, from `verify`.

    Attributes:
        truth: the derivative of the expected objective.
        expectation: the exact mean of the estimator.
        bias: `expectation - truth`.
        variance: the exact variance of the estimator, coordinate by coordinate.
        relative_bias: Euclidean norm of `bias` over that of `truth`; where that is zero, but for rounding, over the
            mean norm of an estimate.
        relative_to: which of the two `relative_bias` is relative to, "truth" or "estimates".
        outcomes: how many joint outcomes of positive probability there are.
        order: the order of the derivative.
        quadrature: where continuous draws have the nodes of a rule, how far the figures can be trusted: `nodes`, the
            `change` from half of them, and the `disagreement` with nodes that are held, both relative; else `None`.
        rows: the groups of the ledger's rows with what each of them gives to `expectation`; see `Group`. First order
            only: of other orders, and of a surrogate written by hand, there are none.

    For first derivatives `truth`, `expectation`, `bias` and `variance` are pytrees like the differentiated input (a
    tuple of them if there are several). For order k they are tensors of shape `(*input.shape,) * k` if one tensor is
    differentiated, else `(P,) * k` over the P concatenated parameters.
    """

    truth: Any
    expectation: Any
    bias: Any
    variance: Any
    relative_bias: float
    relative_to: Literal["truth", "estimates"]
    outcomes: int
    order: int
    _total_variance: float = field(repr=False)
    quadrature: Quadrature | None = None
    _groups: Callable[[], tuple[Group, ...]] = field(default=tuple, repr=False, compare=False)

    @cached_property
    def rows(self) -> tuple[Group, ...]:
        """The groups of the ledger's rows, with their exact figures. Worked out when they are asked for."""
        return self._groups()

    @property
    def total_variance(self) -> float:
        """The variance summed over all coordinates."""
        return self._total_variance

    @property
    def cosine(self) -> float:
        """The cosine of the angle between `expectation` and `truth`; NaN where one of them is 0."""
        expectation, truth = vector(self.expectation), vector(self.truth)
        return float(expectation @ truth / (expectation.norm() * truth.norm()))

    @property
    def scale(self) -> float:
        """The factor of the truth in `expectation`, by projection: 1 if there is no bias; NaN if the truth is 0."""
        expectation, truth = vector(self.expectation), vector(self.truth)
        return float(expectation @ truth / (truth @ truth))

    def __str__(self) -> str:
        return (
            f"order {self.order}, {self.outcomes} outcomes: relative bias {self.relative_bias:.3e}{self._of}, "
            f"total variance {self.total_variance:.4g}{self._by}"
        )

    @property
    def _by(self) -> str:
        return "" if self.quadrature is None else f" ({self.quadrature})"

    @property
    def _of(self) -> str:
        return "" if self.relative_to == "truth" else " (of the mean size of an estimate, the truth being 0)"

    def _repr_markdown_(self) -> str:
        return (
            "| order | outcomes | relative bias | total variance |\n|---|---|---|---|\n"
            f"| {self.order} | {self.outcomes} | {self.relative_bias:.3e}{self._of} | "
            f"{self.total_variance:.4g}{self._by} |"
        )


@short_tracebacks()
def verify(
    compiled: Compiled,
    *inputs: object,
    order: int = 1,
    sizes: Mapping[str, int] | None = None,
    surrogate: Callable[..., Tensor] | None = None,
    max_outcomes: int = 1_000_000,
    quadrature: int | None = None,
) -> Verification:
    r"""The exact bias and variance of an estimator, by enumeration of all joint outcomes.

    .. math:: \text{truth} = \nabla^k_\theta \sum_D p(D; \theta) \, f(D; \theta), \qquad
              \text{expectation} = \sum_D p(D; \theta) \, \nabla^k_\theta S(\theta, D)

    Args:
        compiled: the estimator. Every sample node must be discrete with finitely many outcomes, or have nodes.
        *inputs: the inputs; use float64.
        order: the order of the derivative, 1 or more.
        sizes: sizes of plates by name.
        surrogate: a surrogate written by hand, `surrogate(*inputs, trace)`, to be verified for this graph in place of
            the derived one.
        max_outcomes: refuse graphs with more joint outcomes.
        quadrature: the number K of nodes for every number of noise that continuous draws are made of: a Gauss rule,
            Hermite for normal noise, Legendre for uniform, Laguerre for exponential noise. In the truth the nodes move
            with the parameters, in the estimate they do not. Exact where the objective, times a score, is a polynomial
            of degree at most 2 K - 1 in the noise; else an approximation, whose change from K // 2 nodes is in the
            result's `quadrature`. An estimator whose ratios are no polynomials, such as `LOO` with a Normal drawn
            later, is approximated too.

    Raises:
        VerificationError: a node that cannot be enumerated, too many outcomes, or outcomes whose probabilities do
            not sum to 1.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     x = sg.sample("x", Bernoulli, logits=logit, n=3)
        ...     return sg.mean(x) ** 2
        >>> logit = torch.tensor(0.3, dtype=torch.float64)
        >>> sg.verify(objective.compile(sg.SF()), logit).relative_bias < 1e-12
        True
        >>> sg.verify(objective.compile(sg.LSF()), logit).relative_bias > 0.01
        True

        A Gaussian has nodes:

        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def curved(mean):
        ...     return (sg.mean(sg.sample("x", Normal, mean, 1.0, n=2) ** 2) - 1) ** 2
        >>> sg.verify(curved.compile(sg.SF()), logit, quadrature=8).relative_bias < 1e-12
        True
    """
    if not isinstance(compiled, Compiled):
        raise TypeError(f"verify takes a compiled graph, graph.compile(sg.SF()), got {type(compiled).__name__}")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    pathwise = sorted(compiled._derivation.pathwise)
    if pathwise and quadrature is None:
        raise VerificationError(
            f"sample {pathwise[0]!r} is pathwise, so continuous: it cannot be enumerated. Give it nodes, "
            "verify(quadrature=8), or see sg.profile"
        )

    expectations, plates = compiled._expectations, expected_plates(compiled.graph.order)
    if expectations is not None:
        expectations.estimator.refuse_enumeration(expectations)

    def proof(nodes: int | None) -> _Proof:
        given = (compiled, inputs, sizes or {}, max_outcomes, nodes)
        outcomes = enumerated(*given)
        others = bool(outcomes.relaxed or plates)
        declared = enumerated(*given, declared=True, expected=plates) if others else outcomes
        return _Proof(compiled, inputs, outcomes, declared, surrogate, order)

    if quadrature is None:
        return proof(None).result(None)
    found = proof(at_least_two(quadrature))
    if not found.outcomes.uses_nodes:
        return found.result(None)  # all draws are discrete: there is nothing to approximate
    return found.result(found.accuracy(proof(quadrature // 2), quadrature))


class _Proof:
    """The figures of an estimator over some outcomes; derivatives are of the vector of differentiated inputs.

    The truth is that of declared outcomes, which are others where an estimator relaxes draws, or a plate is expected.
    """

    def __init__(
        self,
        compiled: Compiled,
        inputs: Sequence[object],
        outcomes: Outcomes,
        declared: Outcomes,
        surrogate: Callable[..., Tensor] | None,
        order: int,
    ) -> None:
        self.outcomes, self.declared, self.order = outcomes, declared, order
        self.shape = shaper(compiled, inputs, order)
        self.flat, self.restore = differentiated(compiled, inputs)
        self.truth = self._derivative_of(declared.weighted)
        self.probability, log_probs = self._probabilities(compiled.graph.name)
        estimate = surrogate or compiled.surrogate
        self.estimates = _estimates(estimate, outcomes, self.restore, self.flat, log_probs, order)
        self.weights = self.probability.reshape(-1, *[1] * order)
        self.mean = (self.weights * self.estimates).sum(0)
        self.groups: Callable[[], tuple[Group, ...]] = tuple
        if order == 1 and surrogate is None and declared is outcomes:
            at = (self.restore, self.flat, log_probs)
            self.groups = _Groups(compiled, outcomes, *at, self.probability, self.truth, self.shape)

    def _probabilities(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The probability of every outcome, and the log-probability of every draw in it."""
        given = self.restore(self.flat)
        log_probs = self.outcomes.map(lambda outcome: self.outcomes.log_probs(given, outcome), chunk=CHUNK)
        probability = self.outcomes.probabilities(log_probs)
        if abs(float(probability.sum()) - 1) > 1e-6:
            raise VerificationError(
                f"the probabilities of all outcomes of {name} sum to {float(probability.sum()):.8f}, not 1: an "
                "enumeration is incomplete, or a distribution is not normalised"
            )
        return probability, log_probs

    def _derivative_of(self, weighted: Callable[[Any, Outcome], Tensor]) -> Tensor:
        """The derivative of a sum over outcomes."""
        parts = [self.declared.some(start) for start in range(0, self.declared.count, CHUNK)]
        return torch.stack([self._of_part(part, weighted) for part in parts]).sum(0)

    def _of_part(self, part: Outcomes, weighted: Callable[[Any, Outcome], Tensor]) -> Tensor:
        def total(vector: Tensor) -> Tensor:
            return part.map(lambda outcome: weighted(self.restore(vector), outcome)).sum()

        return _derivative(total, self.order)(self.flat)

    def accuracy(self, half: "_Proof", nodes: int) -> Quadrature:
        """The accuracy of the figures, given those of half the nodes."""
        changes = [self.relative(self.truth - half.truth)[0], self.relative(self.mean - half.mean)[0]]
        return Quadrature(nodes, max(changes), self._disagreement())

    def relative(self, bias: Tensor) -> tuple[float, Literal["truth", "estimates"]]:
        """The size of a difference, and what it is relative to."""
        return relative(bias, self.truth, (self.probability * self.estimates.flatten(1).norm(dim=1)).sum())

    def _disagreement(self) -> float | None:
        if not self.declared.holds_nodes:
            return None
        try:
            held = self._derivative_of(self.declared.weighted_and_held)
        except SamplingError:  # a support moves with the parameters: a density has no derivative at its bounds
            return None
        return self.relative(held - self.truth)[0]

    def result(self, quadrature: Quadrature | None) -> Verification:
        """The figures."""
        variance = (self.weights * (self.estimates - self.mean) ** 2).sum(0)
        bias = self.mean - self.truth
        return Verification(
            self.shape(self.truth),
            self.shape(self.mean),
            self.shape(bias),
            self.shape(variance),
            *self.relative(bias),
            len(self.probability),
            self.order,
            float(variance.sum()),
            quadrature,
            self.groups,
        )


@dataclass(frozen=True)
class _Groups:
    """The share of every group of the ledger's rows, from the contributions in every outcome, for whoever asks."""

    compiled: Compiled
    outcomes: Outcomes
    restore: Callable[[Tensor], Any]
    flat: Tensor
    log_probs: dict[str, Tensor]
    probability: Tensor
    truth: Tensor
    shape: Callable[[Tensor], Any]

    def __call__(self) -> tuple[Group, ...]:
        explained, own = self.compiled.explain(), self._contributions(self.compiled)
        reference = own if explained.unbiased else self._contributions(scored(self.compiled))
        found = Estimates(own, reference, self.probability, self.truth, exact=True)
        return groups(explained.ledger, found, self.shape)

    def _contributions(self, compiled: Compiled) -> dict[Source, Tensor]:
        """By source, `(outcomes, P)`."""
        contributions = Contributions(compiled)

        def one(outcome: Outcome, recorded: dict[str, Tensor]) -> dict[Source, Tensor]:
            trace = Trace(draws=outcome.draws, log_probs=recorded, noise=outcome.noise)
            return contributions.of(self.restore, self.flat, trace)

        chunk = CHUNK // 8  # one outcome takes a backward pass for every source, all at once
        return pytree.tree_map(Tensor.detach, self.outcomes.map(one, self.log_probs, chunk=chunk))


def relative(bias: Tensor, truth: Tensor, size: Tensor) -> tuple[float, Literal["truth", "estimates"]]:
    """The size of the bias, and what it is relative to; `size` is the mean norm of an estimate."""
    if float(truth.norm()) < _ZERO * float(size):
        return float(bias.norm() / size), "estimates"
    return float(bias.norm() / truth.norm()) if bool(bias.any()) else 0.0, "truth"


def _derivative(fn: Callable[..., Tensor], order: int) -> Callable[..., Tensor]:
    """The derivative of a scalar function of a vector, in reverse mode: not every torch function has the other."""
    derived = torch.func.grad(fn)
    for _ in range(order - 1):
        derived = torch.func.jacrev(derived)
    return derived


def _estimates(
    surrogate: Callable[..., Tensor],
    outcomes: Outcomes,
    restore: Callable[[Tensor], Any],
    flat: Tensor,
    log_probs: dict[str, Tensor],
    order: int,
) -> Tensor:
    """The estimate that every outcome gives, `(outcomes, P, ...)`."""

    def one(outcome: Outcome, recorded: dict[str, Tensor]) -> Tensor:
        trace = Trace(draws=outcome.draws, log_probs=recorded, noise=outcome.noise)
        return _derivative(lambda vector: surrogate(*restore(vector), trace), order)(flat)

    return outcomes.map(one, log_probs, chunk=CHUNK).detach()
