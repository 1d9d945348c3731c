"""What it costs to have no bias at all: multilevel estimates against the plug-in, for the same number of draws.

A three-armed bandit with one and two exact inner steps (rate 0.7). The overhead is variance times expected draws, over
that of the plug-in (LSF) on `base` draws. Draws of one plate are counted, pilots among them; the expected number is
exact, the variances are measured, with a bootstrap interval of 90 %.

Run from the checkout: python benchmarks/multilevel.py [--repeats 4000]
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from tests.problems import BANDIT_THETA
from tests.test_expectations import bandit

BASES = (8, 16, 64)


def estimates(compiled: sg.Compiled, repeats: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([compiled.value_and_grad(BANDIT_THETA, generator=generator)[1] for _ in range(repeats)])


def expected_draws(estimator: sg.estimators.GradientEstimator, base: int, pilots: int) -> float:
    """The mean of base * 2**(highest level): levels are chosen independently of each other."""
    total, none_higher = 0.0, 1.0
    chances = estimator.chances()
    for level in range(len(chances), 0, -1):
        total += none_higher * chances[level - 1] * 2.0**level
        none_higher *= 1 - chances[level - 1]
    return pilots + base * (total + none_higher)


def interval(found: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Of the summed variance, by resampling."""
    chosen = torch.randint(len(found), (400, len(found)), generator=generator)
    variances = found[chosen].var(1).sum(1)
    low, high = variances.quantile(torch.tensor([0.05, 0.95], dtype=variances.dtype))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=4000, help="estimates with each")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| inner steps | base | expected draws | variance | of the plug-in | overhead | 90 % |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    generator = torch.Generator().manual_seed(1)
    for steps in (1, 2):
        for base in BASES:
            estimator = sg.Multilevel(base=base)
            plugin = estimates(bandit(steps, base).compile(sg.Plugin()), repeats).var(0).sum()
            found = estimates(bandit(steps, base).compile(estimator), repeats)
            draws = expected_draws(estimator, base, base if steps > 1 else 0)
            scale = draws / base / float(plugin)
            low, high = (scale * bound for bound in interval(found, generator))
            variance = float(found.var(0).sum())
            row = f"| {steps} | {base} | {draws:.1f} | {variance:.3g} | {float(plugin):.3g} | {scale * variance:.2f} |"
            print(f"{row} {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
