"""The sequential test of a mean: its false alarms, whatever the distribution and whenever one looks; and what it finds.

Seven comparisons here are random: counts of false alarms beyond the stated rate by five standard deviations, which
fail by chance with probability 3e-7 at most each if the rate is the stated one. Seeds are fixed.
"""

import math

import pytest
import torch
from torch.distributions import Normal

import stochgraph as sg
from stochgraph.prove.sequential import against_zero
from tests.problems import F64

LEVEL, RUNS, TIMES = 0.05, 400, 400
MOST = LEVEL * RUNS + 5 * math.sqrt(LEVEL * (1 - LEVEL) * RUNS)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=F64)


DRAWS = {
    "normal": lambda g: normal(g, TIMES, 3),
    "one for all coordinates": lambda g: normal(g, TIMES, 1).expand(-1, 3),
    "exponential": lambda g: torch.empty(TIMES, 3, dtype=F64).exponential_(generator=g) - 1,
    "one in ten": lambda g: (torch.rand(TIMES, 3, generator=g, dtype=F64) < 0.1).double() - 0.1,
    "log-normal": lambda g: normal(g, TIMES, 3).exp() - math.exp(0.5),
    "difference of exponentials": lambda g: (
        torch.empty(TIMES, 2, 3, dtype=F64).exponential_(generator=g).diff(dim=1)[:, 0]
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_false_alarms_are_as_rare_as_stated(name):
    generator = torch.Generator().manual_seed(0)
    alarms = sum(against_zero(DRAWS[name](generator), LEVEL).after is not None for _ in range(RUNS))
    assert alarms <= MOST


def test_false_alarms_of_whoever_looks_again_and_again():
    generator = torch.Generator().manual_seed(1)
    runs = [normal(generator, 800, 1) for _ in range(200)]
    looks = [any(against_zero(run[:n], LEVEL).after for n in range(100, 801, 100)) for run in runs]
    assert sum(looks) <= LEVEL * 200 + 5 * math.sqrt(LEVEL * (1 - LEVEL) * 200)


def test_the_inequality():
    """`exp(x - x**2 / 6) <= 1 + x + x**2 / 3`: where x has a mean of 0, at most 1 and a third of its variance."""
    x = torch.linspace(-60, 60, 120_001, dtype=F64)
    assert bool((torch.exp(x - x**2 / 6) <= 1 + x + x**2 / 3 + 1e-12).all())


def test_the_mixture_by_integration():
    """The evidence is the mean of `exp(l S - l**2 V / 2)` over normal l."""
    x = normal(torch.Generator().manual_seed(2), 60, 1)
    found = against_zero(x, LEVEL)
    bits = 2 * math.log(1 / LEVEL)
    deviation = math.sqrt((bits + math.log(1 + bits)) / 30)
    scaled = (x / x.std(0))[:, 0]
    total, grown = scaled.cumsum(0), ((scaled**2 + 2) / 3).cumsum(0)
    steps = torch.linspace(-10, 10, 20_001, dtype=F64)
    weight = torch.exp(Normal(0.0, 1.0).log_prob(steps)) * (steps[1] - steps[0])
    rates = deviation * steps
    by_hand = (weight * torch.exp(rates * total[:, None] - rates**2 * grown[:, None] / 2)).sum(1)
    assert found.largest == pytest.approx(float(by_hand.max()), rel=1e-6)


@pytest.mark.parametrize(("mean", "most"), [(0.2, 1000), (0.5, 200), (2.0, 60)])
def test_a_mean_is_found(mean, most):
    generator = torch.Generator().manual_seed(3)
    after = against_zero(normal(generator, 1500, 4) + mean, 0.001).after
    assert after is not None
    assert after <= most


def test_what_does_not_vary():
    same = torch.zeros(60, 2, dtype=F64)
    assert against_zero(same, 0.001).after is None
    assert against_zero(same + torch.tensor([0.0, 1.0], dtype=F64), 0.001).after is not None
    rounding = torch.tensor([1.0, 1e-17], dtype=F64) * normal(torch.Generator().manual_seed(4), 60, 2)
    assert against_zero(rounding + torch.tensor([0.0, 1e-16], dtype=F64), 0.001).after is None


@sg.graph
def square(theta):
    return sg.mean(sg.sample("x", Normal, theta, 1.0, n=2)) ** 2


def profiled(truth=None, repeats=400, names=("PW", "LOO", "LSF")):
    compiled = {name: square.compile(getattr(sg, name)()) for name in names}
    generator = torch.Generator().manual_seed(0)
    return sg.profile(compiled, torch.tensor(1.0, dtype=F64), repeats=repeats, truth=truth, generator=generator)


def test_profile_refutes_the_biased_one():
    """Linearising is half too much here, 1/n with n = 2: against a truth, and against the best of the unbiased."""
    for found in (profiled(truth=2.0), profiled()):
        assert found["LSF"].evidence is not None
        assert found["LSF"].evidence.after is not None
        assert found["LOO"].evidence is not None
        assert found["LOO"].evidence.after is None
        assert f"| after {found['LSF'].evidence.after} |" in found.to_markdown()
        assert "at most 0.001 of such tables refute a right one" in found.to_markdown()
    assert profiled()["PW"].evidence is None  # the reference itself


def test_what_is_not_tested():
    assert profiled(repeats=49)["LSF"].evidence is None
    assert profiled(names=("LSF",))["LSF"].evidence is None
    assert "| – |" in profiled(names=("LSF",)).to_markdown()
    with pytest.raises(ValueError, match=r"false_alarm=1.5: a probability"):
        sg.profile({"SF": square.compile(sg.SF())}, torch.tensor(1.0), false_alarm=1.5)
