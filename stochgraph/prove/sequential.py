r"""A sequential test of a mean of zero: looked at after every estimate, and not wrong more often than it says.

NOTE [the test]
Of estimates x_1, x_2, ... with mean 0 and variance 1, whatever else their distribution, the evidence

    E_t = (1 + r V_t)^(-1/2) exp(r S_t^2 / (2 (1 + r V_t))),   S_t = sum of x_i,   V_t = sum of (x_i^2 + 2) / 3,

reaches 1/alpha at any time with probability alpha at most: exp(l S_t - l^2 V_t / 2) has a mean of at most 1 for every
l (Delyon 2009, Howard et al. 2020), and E_t is its mixture over normal l of variance r (Robbins 1970). So one may stop,
look or go on at will: the rate is that of all times together. The mean over coordinates keeps it, however they depend
on each other. What is not known is the variance: that of all estimates made stands for it, and nothing else is taken
for granted, neither normal sums nor bounds.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 50  # estimates, for their variance to be known
_ROUNDING = 1e-12


class Evidence(NamedTuple):
    """The evidence against a mean of zero.

    Attributes:
        largest: the largest evidence at any time: 1 or below is none, 1/alpha refutes at the level alpha.
        after: the number of estimates after which it was refuted; `None`: it was not.
    """

    largest: float
    after: int | None


def against_zero(differences: Tensor, level: float) -> Evidence:
    """The evidence that estimates, `(times, P)`, have another mean than zero.

    Args:
        differences: the estimates less what their mean should be; of two estimators, of pairs.
        level: the probability of a false alarm, over all times.

    Example:
        >>> import torch
        >>> from stochgraph.prove.sequential import against_zero
        >>> noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> against_zero(noise, 0.001).after is None
        True
        >>> against_zero(noise + 0.5, 0.001).after < 200
        True
    """
    evidence = _evidence(differences, level)
    alarms = torch.nonzero(evidence >= math.log(1 / level))
    after = int(alarms[0]) + 1 if len(alarms) else None
    return Evidence(float(evidence.max().clamp(max=700.0).exp()), after)


def _evidence(differences: Tensor, level: float) -> Tensor:
    """The logarithm of the evidence at every time, `(times,)`."""
    size = (differences**2).mean(0).sqrt()
    # Estimates that do not vary refute at once what they are not, but for rounding.
    least = _ROUNDING * size.max().clamp(min=torch.finfo(size.dtype).tiny)
    x = differences / torch.maximum(differences.std(0), least)
    r = _mixture(level, len(differences))
    grown = 1 + r * ((x**2 + 2) / 3).cumsum(0)
    exponent = r * x.cumsum(0) ** 2 / (2 * grown) - 0.5 * grown.log()
    return torch.logsumexp(exponent, 1) - math.log(differences.shape[1])


def _mixture(level: float, times: int) -> float:
    """The variance of the mixture that finds a mean soonest half way to the last time (Howard et al. 2021)."""
    bits = 2 * math.log(1 / level)
    return (bits + math.log(1 + bits)) / (times / 2)
