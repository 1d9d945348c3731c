"""Estimators of functions of expectations, `sg.expect`: the plug-in, and what takes its bias away."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..derive.estimator import Crossing, Inside
from ..derive.populations import PopulationEstimator, Replayed
from ..errors.exceptions import SamplingError
from ..ir import nodes as nd
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
