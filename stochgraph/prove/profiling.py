"""Monte Carlo profiles: estimators side by side on one graph."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..explain.magnitudes import Group
from ..run.compiled import Compiled
from .profile_picture import picture_of
from .sequential import FEWEST, Evidence, against_zero
from .shares import sampled
from .vectors import vector


@dataclass(frozen=True)
class Figures:
    """The figures of one estimator in a profile.

    Attributes:
        mean: the mean estimate, all coordinates concatenated, shape `(P,)`.
        standard_error: of each coordinate of the mean, shape `(P,)`.
        variance: summed over coordinates.
        bias: Euclidean norm of `mean - truth`; NaN without a truth.
        bias_error: the standard error of `mean - truth`, a norm too; that of the truth is counted in where it was
            measured. An unbiased estimator shows a bias of about this size.
        mse: mean squared distance from the truth; NaN without one.
        seconds: median seconds per estimate.
        unbiased: whether the ledger says so.
        variance_error: the standard error of the variance.
        rows: the groups of the ledger's rows, each with what it gives to the mean; see `Group`.
        evidence: what speaks against a mean at the reference, of the sequential test: `largest`, at any time, and
            `after`, the number of estimates after which the mean was refuted; `None` where nothing is compared.
    """

    mean: Tensor
    standard_error: Tensor
    variance: float
    bias: float
    bias_error: float
    mse: float
    seconds: float
    unbiased: bool
    variance_error: float
    evidence: Evidence | None = None
    _groups: Callable[[], tuple[Group, ...]] = field(default=tuple, repr=False, compare=False)

    @cached_property
    def rows(self) -> tuple[Group, ...]:
        """The groups of the ledger's rows, with errors: from as many draws, made when they are asked for."""
        return self._groups()

    @property
    def mse_per_second(self) -> float:
        """The mean squared error of the average of as many estimates as a second allows: equal-time accuracy.

        The variance shrinks with the number of estimates, the squared bias stays: that which is measured, less what its
        standard error explains, and 0 if the ledger says so.
        """
        return self.squared_bias + self.variance * self.seconds

    @property
    def mse_per_second_error(self) -> float:
        r"""The standard error of the squared bias in `mse_per_second`, at most.

        That of :math:`|\hat b|^2` with normal errors of standard deviations :math:`s_i` is :math:`(4 \sum_i b_i^2 s_i^2
        + 2 \sum_i s_i^4)^{1/2} \le (4 |b|^2 |s|^2 + 2 |s|^4)^{1/2}`. Where it is as large as the figure, more estimates
        are needed to tell a small bias from none.
        """
        if self.unbiased:
            return 0.0
        return math.sqrt(4 * self.squared_bias * self.bias_error**2 + 2 * self.bias_error**4)

    @property
    def squared_bias(self) -> float:
        """The squared bias less what its standard error explains; 0 if the ledger says so."""
        return 0.0 if self.unbiased else max(self.bias**2 - self.bias_error**2, 0.0)


@dataclass(frozen=True, repr=False)
class Profile(Mapping[str, Figures]):
    """The result of `profile`: figures by estimator name, as a mapping, a table or a plot.

    Attributes:
        figures: name to `Figures`.
        truth: what bias and MSE refer to, shape `(P,)`, or `None`.
        reference: where the truth comes from.
        repeats: how many estimates were made with each.
        false_alarm: the probability that the sequential test refutes a mean of this table that is right.
    """

    figures: dict[str, Figures]
    truth: Tensor | None
    reference: str
    repeats: int
    false_alarm: float = 0.001

    def __getitem__(self, name: str) -> Figures:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def to_markdown(self) -> str:
        """The table in markdown."""
        head = "| estimator | bias | ± | refuted | variance | MSE | ms per estimate | MSE at one second | ± |"
        rows = [
            f"| {name} | {f.bias:.3g} | {f.bias_error:.2g} | {_refuted(f.evidence)} | {f.variance:.4g} | {f.mse:.4g} | "
            f"{1e3 * f.seconds:.3g} | {f.mse_per_second:.3g} | {f.mse_per_second_error:.2g} |"
            for name, f in self.figures.items()
        ]
        note = f"\n{self.repeats} estimates each; bias and MSE against {self.reference}. "
        note += "MSE at one second: of the mean of all estimates that fit into one. "
        note += "±: the standard error of the bias, and that of the squared bias. "
        note += "Refuted: the number of estimates after which the mean was refuted, by a sequential test; at most "
        note += (
            f"{self.false_alarm:.2g} of such tables refute a right one, at any time, if the variances are near those "
        )
        note += "measured."
        return "\n".join([head, "|---|" + "---|" * 8, *rows, note])

    def plot(self) -> Any:
        """A `matplotlib` figure: the mean squared error against time, the bias, the variance, two errors each way.

        With time t there are t / s estimates of s seconds each; their mean has the error :math:`b^2 + v s / t` of a
        bias b and a variance v. A curve stops where the error of b squared is as large; a bias that cannot be told from
        none is shown as the largest that it may be.
        """
        return picture_of(self.figures)

    def __repr__(self) -> str:
        return self.to_markdown()

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def _refuted(evidence: Evidence | None) -> str:
    if evidence is None:
        return "–"
    return "no" if evidence.after is None else f"after {evidence.after}"


def profile(
    compiled: Mapping[str, Compiled],
    *inputs: Any,
    repeats: int = 1000,
    truth: object = None,
    generator: torch.Generator | None = None,
    sizes: Mapping[str, int] | None = None,
    false_alarm: float = 0.001,
) -> Profile:
    """Measure estimators by Monte Carlo: bias, variance, mean squared error and time.

    Means are tested as well. The test is sequential: it may be looked at after every estimate, and whoever goes on
    until it refutes something is wrong with a probability of `false_alarm` at most. It takes nothing for granted but
    the variances, those measured: where they are not finite, as those of heavy importance ratios, it may be wrong more
    often. Fewer than 50 estimates are not tested.

    Args:
        compiled: the estimators by name. Estimates are made in turn, so that a drift of the machine meets all.
        *inputs: the inputs of the graph.
        repeats: estimates per estimator, at least 2.
        truth: the gradient, a pytree like the estimate. Default: the mean of those estimators whose ledger says that
            they are unbiased, the one of least variance.
        generator: source of randomness.
        sizes: sizes of plates by name.
        false_alarm: the probability that the test refutes a mean that is right, for the whole table.

    Raises:
        ValueError: no estimator, or fewer than two repeats; a probability that is not between 0 and 1.

    References:
        Delyon (2009), Exponential inequalities for sums of weakly dependent variables, and Howard et al. (2020),
        Time-uniform Chernoff bounds via nonnegative supermartingales, for the test; Robbins (1970), for mixtures.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=10)) ** 2
        >>> p = sg.profile({"PW": objective.compile(sg.PW())}, torch.tensor(1.0), repeats=20, truth=torch.tensor(2.0))
        >>> p["PW"].variance > 0
        True
    """
    if not isinstance(compiled, Mapping) or not all(isinstance(one, Compiled) for one in compiled.values()):
        raise TypeError('profile takes compiled graphs by name: sg.profile({"SF": graph.compile(sg.SF())}, theta)')
    if not compiled or repeats < 2:
        raise ValueError(f"profile needs at least one estimator and two repeats, got {len(compiled)} and {repeats}")
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm={false_alarm!r}: a probability, between 0 and 1")
    begun = None if generator is None else generator.clone_state()
    estimates: dict[str, list[Tensor]] = {name: [] for name in compiled}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for one in compiled.values():  # the first call of a torch function is slow
        one.value_and_grad(*inputs, generator=generator, sizes=sizes)
    for _ in range(repeats):
        for name, one in compiled.items():
            start = time.perf_counter()
            grads = one.value_and_grad(*inputs, generator=generator, sizes=sizes)[1]
            seconds[name].append(time.perf_counter() - start)
            estimates[name].append(vector(grads))
    stacked = {name: torch.stack(found).double().cpu() for name, found in estimates.items()}
    reference = reference_of(compiled, stacked, truth)
    evidence = _tested(stacked, reference, false_alarm)
    given = None if truth is None else reference.value
    figures = {}
    for name, found in stacked.items():
        time_of_one = torch.tensor(seconds[name]).median().item()
        rows = partial(_rows, compiled[name], inputs, sizes, repeats, begun, given)
        figures[name] = figures_of(found, reference, time_of_one, name, compiled[name], evidence.get(name), rows)
    return Profile(figures, reference.value, reference.words, repeats, false_alarm)


def _tested(estimates: Mapping[str, Tensor], reference: "Reference", false_alarm: float) -> dict[str, Evidence]:
    """The evidence against every mean that is compared with another; all share the probability of a false alarm."""
    if reference.value is None or len(next(iter(estimates.values()))) < FEWEST:
        return {}
    right = estimates.get(reference.name, reference.value)
    compared = {name: found - right for name, found in estimates.items() if name != reference.name}
    return {name: against_zero(found, false_alarm / len(compared)) for name, found in compared.items()}


def _given(truth: object, size: int) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(truth) if leaf is not None]  # integers have no gradient
    found = torch.cat([torch.as_tensor(leaf, dtype=torch.float64).cpu().reshape(-1) for leaf in leaves])
    if len(found) != size:
        raise ValueError(f"profile: the truth has {len(found)} numbers, the estimates have {size}")
    return found


class Reference(NamedTuple):
    """The reference of bias and MSE, and how well it is known."""

    words: str
    name: str
    value: Tensor | None
    variance: Tensor | float


def reference_of(compiled: Mapping[str, Compiled], estimates: Mapping[str, Tensor], truth: object) -> Reference:
    """The truth that was given, or the mean of the unbiased estimator that varies least."""
    if truth is not None:
        return Reference("the given truth", "", _given(truth, next(iter(estimates.values())).shape[1]), 0.0)
    unbiased = [name for name, one in compiled.items() if one.explain().unbiased]
    if not unbiased:
        return Reference("nothing: no estimator is unbiased and no truth was given", "", None, 0.0)
    best = min(unbiased, key=lambda name: float(estimates[name].var(0).sum()))
    found = estimates[best]
    return Reference(f"the mean of {best}, which is unbiased", best, found.mean(0), found.var(0) / len(found))


def _rows(
    compiled: Compiled,
    inputs: Sequence[object],
    sizes: Mapping[str, int] | None,
    repeats: int,
    begun: torch.Generator | None,
    truth: Tensor | None,
) -> tuple[Group, ...]:
    """The groups of one estimator, on the draws that a generator begins with."""
    return sampled(compiled, inputs, sizes, repeats, None if begun is None else begun.clone_state(), truth)


def figures_of(
    estimates: Tensor,
    reference: Reference,
    seconds: float,
    name: str,
    compiled: Compiled,
    evidence: Evidence | None,
    rows: Callable[[], tuple[Group, ...]],
) -> Figures:
    """The figures of one estimator, from its estimates, `(repeats, P)`."""
    mean, variance = estimates.mean(0), estimates.var(0)
    own = variance / len(estimates)
    error = own if name == reference.name else own + reference.variance
    bias = mse = float("nan")
    if reference.value is not None:
        bias = float((mean - reference.value).norm())
        mse = float(((estimates - reference.value) ** 2).sum(1).mean())
    unbiased = compiled.explain().unbiased
    distances = ((estimates - mean) ** 2).sum(1)
    spread = float(distances.std()) / math.sqrt(len(estimates))
    total, bias_error = float(variance.sum()), float(error.sum().sqrt())
    return Figures(mean, own.sqrt(), total, bias, bias_error, mse, seconds, unbiased, spread, evidence, rows)
