"""Estimators of functions of expectations, `sg.expect`: the plug-in, and what takes its bias away."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..derive.estimator import Crossing, Inside
from ..derive.populations import Expectations, Pass, PopulationEstimator, Replayed
from ..derive.routes import Routes
from ..errors.exceptions import CompileError, SamplingError, VerificationError
from ..ir import nodes as nd
from ..ir.paths import moves_with
from ..tensors.axes import describe
from ..tensors.indexing import in_transform
from .linearized import BoxedTerms, Linearized

_BOXES = BoxedTerms()
_LINEARIZED = Linearized()


class PluggedIn(PopulationEstimator):
    """Base class: boxes the terms of the means that stand for expectations, as the linearised score function does."""

    @property
    def inside(self) -> Inside:
        return _BOXES

    def crosses(self, sample: nd.Sample, node: nd.Node) -> Crossing:
        return _LINEARIZED.crosses(sample, node)


@dataclass(frozen=True)
class Plugin(PluggedIn):
    r"""The mean of N draws in the place of an expectation: the gradient of :math:`f(E x)`, with a bias of O(1/N).

    .. math:: \nabla f\Big(\frac1N \sum_i x_i \, \square(\log p(x_i))\Big)

    It is `LSF`, for the target that `LSF` is closest to. Its variance is O(1/N).

    References:
        Tang (2022), eq. 11.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return sg.expect(sg.sample("x", Bernoulli, logits=logit, n=2)) ** 3
        >>> compiled, logit = objective.compile(sg.Plugin()), torch.tensor(0.3, dtype=torch.float64)
        >>> biases = [sg.verify(compiled, logit, sizes={"x": n}).relative_bias for n in (4, 8)]
        >>> 1.8 < biases[0] / biases[1] < 2.2
        True
    """

    @property
    def correction(self) -> str:
        return ""

    @property
    def bias(self) -> str:
        return ""

    def combined(self, replayed: Replayed) -> Tensor:
        return replayed.whole

    def formula(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Jackknife(PluggedIn):
    r"""The jackknife of `Plugin`: a bias of O(1/N^2) where the objective is smooth in the expectation.

    .. math:: g_N + \sum_p (N_p - 1) \Big(g_N - \frac{1}{N_p} \sum_{i \in p} g_{N - i}\Big)

    p runs over the plates that are expected, and :math:`g_{N - i}` is the plug-in without draw i, what is drawn later
    reused with its likelihood ratio. It takes N more evaluations for every plate, and varies more than `Plugin`,
    the less so the larger N.

    Raises:
        SamplingError: while running, a plate of one draw.

    References:
        Quenouille (1956), Notes on bias in estimation, for the means of samples; Efron (1982), The jackknife, the
        bootstrap and other resampling plans, chapter 2.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return sg.expect(sg.sample("x", Bernoulli, logits=logit, n=2)) ** 3
        >>> compiled, logit = objective.compile(sg.Jackknife()), torch.tensor(0.3, dtype=torch.float64)
        >>> biases = [sg.verify(compiled, logit, sizes={"x": n}).relative_bias for n in (4, 8)]
        >>> 4 < biases[0] / biases[1] < 5
        True
    """

    @property
    def correction(self) -> str:
        return "less its bias by the jackknife"

    @property
    def bias(self) -> str:
        return "O(1/N^2)"

    def combined(self, replayed: Replayed) -> Tensor:
        found = replayed.whole
        for axis, size in replayed.sizes.items():
            if size < 2:
                raise SamplingError(
                    f"Jackknife on the plate {axis.name!r}: it leaves draws out, and there is one. Give it at least two"
                )
            whole = replayed.whole
            others = (1 - torch.eye(size, dtype=whole.dtype, device=whole.device)) / (size - 1)
            found = found + (size - 1) * (whole - replayed.mean(axis, others))
        return found

    def formula(self, text: str) -> str:
        return rf"N \big({text}\big) - \frac{{N - 1}}{{N}} \sum_i \big({text}\big)_{{-i}}"


_LEVELS = "levels"  # what they are called among the noise of a trace
_DEEPEST = 60  # levels are drawn one by one: the chance of a deeper one is below 1e-24
_KINKED = frozenset(
    "abs ceil clamp clamp_max clamp_min clip eq floor ge gt le lt max maximum min minimum ne relu round sign "
    "trunc where".split()
)


@dataclass(frozen=True)
class Multilevel(PluggedIn):
    r"""Levels of more and more draws: unbiased for a smooth function of expectations, at a finite expected cost.

    .. math:: g_{n} + \sum_{l \ge 1} \frac{I_l}{q_l} \Delta_l, \qquad
              \Delta_l = g_{2^l n} - \tfrac12 \big(g^{\text{first half}} + g^{\text{second half}}\big)

    :math:`I_l` is 1 with probability :math:`q_l = \min(1, (8/n)^{1/2} 2^{-rl})`, and g the plug-in on so many draws of
    every expected plate, which are halved together. The means of the :math:`\Delta_l` telescope to the gradient of the
    function of the expectations. Their second moments fall as :math:`4^{-l}` where that function is smooth, so that the
    variance is finite for r < 2; the expected number of draws is finite for r > 1. The number of draws is drawn,
    whatever n the graph declares, and the levels are in the trace.

    What is drawn after an expectation is drawn from what n further draws make of it, the pilots, at every level, and
    reused with its likelihood ratio. So its law is one for a level's halves and for the level below, without which
    nothing would telescope. The value is then that of the pilots.

    Args:
        base: n, the draws of the lowest level.
        rate: r, between 1 and 2; default: 3/2.
        deepest: the deepest level; default: none. With one the bias is that of the plug-in on
            :math:`2^{\text{deepest}} n` draws.

    Raises:
        CompileError: the function of an expectation has a kink that can be seen, a maximum or a clipping: the variance
            would be infinite. Functions of your own are not looked into.
        ValueError: an option out of its range.

    References:
        Rhee and Glynn (2015), Unbiased estimation with square root convergence for SDE models; Blanchet and Glynn
        (2015), Unbiased Monte Carlo for optimization and functions of expectations, section 3; Hu, Chen and He (2021),
        On the bias-variance-cost tradeoff of stochastic optimization, for MAML.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return torch.exp(sg.expect(sg.sample("x", Bernoulli, logits=logit, n=2)))
        >>> compiled = objective.compile(sg.Multilevel(base=4))
        >>> compiled.explain().unbiased
        True
        >>> trace = compiled.sample(torch.tensor(0.3), generator=torch.Generator().manual_seed(0))
        >>> len(trace.draws["x"]) in {4 * 2**level for level in range(20)}
        True
    """

    base: int = 8
    rate: float | None = None
    deepest: int | None = None
    draws_sizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.base, int) or self.base < 1:
            raise ValueError(f"Multilevel(base={self.base!r}): the lowest level needs at least one draw, an integer")
        if self.rate is not None and not 1 < self.rate < 2:
            raise ValueError(
                f"Multilevel(rate={self.rate!r}): between 1 and 2, both excluded: the expected number of draws, or the "
                "variance, would be infinite"
            )
        if self.deepest is not None and (not isinstance(self.deepest, int) or self.deepest < 0):
            raise ValueError(f"Multilevel(deepest={self.deepest!r}): a number of levels, an integer, or None")

    @property
    def correction(self) -> str:
        if self.deepest is None:
            return f"by levels of {self.base}, {2 * self.base}, {4 * self.base}, ... draws"
        return f"by levels, biased as with {self.base * 2**self.deepest} draws"

    @property
    def bias(self) -> str:
        return "0" if self.deepest is None else ""

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        super().check(sample, routes)
        for node in routes.order:
            if node.expected and sample.plate in node.expected:
                _refuse_kinks(sample, node, routes.order)

    def chances(self) -> list[float]:
        """The probabilities of the levels above the lowest."""
        rate = 1.5 if self.rate is None else self.rate
        levels = range(1, (_DEEPEST if self.deepest is None else self.deepest) + 1)
        return [min(1.0, math.sqrt(8 / self.base) * 2 ** (-rate * level)) for level in levels]

    def begin(self, run: Pass, expectations: Expectations) -> None:
        pilots = self.base if expectations.followed else 0
        if expectations.samples[0] not in run.draws:
            self._draw(run, expectations, pilots)
        if pilots:
            levels = self._levels(run.noise)
            weights = _portion(self.base, 0, self.base + self.base * 2 ** _highest(levels), levels.device)
            run.portions = {axis: nd.Portion(weights, (axis,)) for axis in expectations.plates}

    def _draw(self, run: Pass, expectations: Expectations, pilots: int) -> None:
        names = [axis.name for axis in expectations.plates]
        given = [name for name in names if name in run.wanted]
        if given:
            raise SamplingError(
                f"sizes: {given[0]!r} is a plate of {self}, which draws how many draws it has: give its base instead"
            )
        if in_transform():
            raise SamplingError(f"{self} draws the sizes of {', '.join(names)}: it cannot draw inside a transform")
        chances = torch.tensor(self.chances(), dtype=torch.float64)
        levels = torch.rand(len(chances), dtype=torch.float64) < chances
        run.noise[_LEVELS] = [levels]
        run.wanted = {**run.wanted, **dict.fromkeys(names, pilots + self.base * 2 ** _highest(levels))}

    def _levels(self, noise: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Which levels there are; a trace without them has those that there always are."""
        if _LEVELS in noise:
            return noise[_LEVELS][0]
        if not self._certain:
            raise SamplingError(
                f"{self}: its levels are drawn, and the trace does not say which levels it has: make one with "
                "compiled.sample"
            )
        return torch.ones(len(self.chances()), dtype=torch.bool)

    @property
    def _certain(self) -> bool:
        """True if the levels are always the same."""
        return self.deepest is not None and min(self.chances(), default=1.0) == 1

    def refuse_enumeration(self, expectations: Expectations) -> None:
        if not self._certain:
            raise VerificationError(
                f"{self}: its levels are drawn, and are not among the outcomes; measure with sg.profile, against the "
                "truth of sg.Plugin()"
            )
        if expectations.followed:
            raise VerificationError(
                f"{self}: draws after an expectation come from pilots, whose outcomes are not enumerated; measure with "
                "sg.profile, against the truth of sg.Plugin()"
            )

    def combined(self, replayed: Replayed) -> Tensor:
        levels = self._levels(replayed.noise)
        size, highest = next(iter(replayed.sizes.values())), _highest(levels)
        pilots = size - self.base * 2**highest
        if pilots not in (0, self.base):
            raise SamplingError(
                f"{self}: the trace has {size} draws, and its levels need {self.base * 2**highest}: a trace belongs to "
                "one estimator"
            )

        def on(start: int, count: int) -> Tensor:
            weights = _portion(count, pilots + start, size, replayed.whole.device)
            return replayed.on(dict.fromkeys(replayed.sizes, weights))

        found = on(0, self.base)
        for level, (chance, chosen) in enumerate(zip(self.chances(), levels.tolist(), strict=True), start=1):
            if chosen:
                half = self.base * 2 ** (level - 1)
                found = found + (on(0, 2 * half) - (on(0, half) + on(half, half)) / 2) / chance
        return found

    def formula(self, text: str) -> str:
        n = self.base
        return rf"\big({text}\big)_{{{n}}} + \sum_l \frac{{I_l}}{{q_l}} \, \Delta_l \big({text}\big)_{{2^l \cdot {n}}}"


def _highest(levels: Tensor) -> int:
    """The highest of the levels that are chosen; 0 for the lowest."""
    chosen = levels.nonzero()
    return int(chosen.max()) + 1 if len(chosen) else 0


def _portion(count: int, start: int, size: int, device: torch.device) -> Tensor:
    """Equal weights for some draws of a plate, next to each other."""
    weights = torch.zeros(size, dtype=torch.float64, device=device)
    weights[start : start + count] = 1 / count
    return weights


def _refuse_kinks(sample: nd.Sample, expectation: nd.Node, order: Sequence[nd.Node]) -> None:
    """Refuse known functions with a kink through which values of an expectation pass."""
    for node in moves_with(list(order), [expectation]):
        name = getattr(getattr(node, "fn", None), "__name__", "")
        if name.strip("_") in _KINKED:
            raise CompileError(
                f"Multilevel on sample {sample.name!r} (axes: {describe(sample.axes)}): {node.name!r} has a kink, and "
                f"{expectation.name!r} goes into it: the variance of its levels would be infinite. Use sg.Jackknife() "
                "or sg.Plugin(), or a smooth function"
            )
