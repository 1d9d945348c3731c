"""How the variance of the estimators grows with the inner plate: a tabular meta-problem.

A two-state, two-action MDP of horizon 2, softmax policy, one inner policy-gradient step (rate 0.7) on N trajectories,
the outcome measured on M = 20 more. Then a three-armed bandit with two inner steps on N pulls each: a replay without
one pull of the first step weights all pulls of the second. Variances are summed over the parameters; the ratio to LSF's
has a standard error of about 3 % at 5000 repeats.

Run from the checkout: python benchmarks/variance.py [--repeats 5000]
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from benchmarks._machine import quiet_machine
from tests.problems import BANDIT_THETA, MDP_THETA, bandit, mdp

SIZES = (10, 20, 50, 100)
ESTIMATORS = {
    "SF": sg.SF(),
    "LSF": sg.LSF(),
    "LSF, control variate": sg.LSF(control_variate=True),
    "LOO": sg.LOO(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5000, help="estimates with each")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{repeats} estimates each; ms: median time of one estimate")
    report("MDP, one step", mdp(2, n=SIZES[0], m=20), MDP_THETA, repeats)
    report("bandit, two steps", bandit(2, n=SIZES[0], m=20), BANDIT_THETA, repeats)


def report(title: str, graph: sg.Graph, theta: torch.Tensor, repeats: int) -> None:
    """One table: every size of the inner plates, every estimator."""
    inner = [name for name in graph.samples if name != "tau"]
    compiled = {
        name: graph.compile({**dict.fromkeys(inner, estimator), "tau": sg.SF()})
        for name, estimator in ESTIMATORS.items()
    }
    generator = torch.Generator().manual_seed(0)
    print(f"\n| {title}: N | estimator | variance | ratio to LSF | bias ± | ms |\n|---:|---|---:|---:|---:|---:|")
    for n in SIZES:
        found = sg.profile(compiled, theta, repeats=repeats, generator=generator, sizes=dict.fromkeys(inner, n))
        for name, figures in found.figures.items():
            ratio = figures.variance / found["LSF"].variance
            bias = f"{figures.bias:.4f} ± {figures.bias_error:.4f}"
            print(f"| {n} | {name} | {figures.variance:.4g} | {ratio:.3f} | {bias} | {1e3 * figures.seconds:.2f} |")


if __name__ == "__main__":
    with quiet_machine():
        main()
