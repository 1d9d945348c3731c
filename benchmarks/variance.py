"""How the variance of the estimators grows with the inner plate: a tabular meta-problem.

A two-state, two-action MDP of horizon 2, softmax policy, one inner policy-gradient step (rate 0.7) on N trajectories,
the outcome measured on M = 20 more. Variances are summed over the four parameters; the ratio to LSF's has a standard
error of about 3 % at 5000 repeats.

Run from the checkout: python benchmarks/variance.py [--repeats 5000]
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from tests.problems import MDP_THETA, mdp

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
    graph = mdp(2, n=SIZES[0], m=20)
    compiled = {name: graph.compile({"D": estimator, "tau": sg.SF()}) for name, estimator in ESTIMATORS.items()}
    generator = torch.Generator().manual_seed(0)
    print(f"{repeats} estimates each; ms: median time of one estimate\n")
    print("| N | estimator | variance | ratio to LSF | bias ± | ms |\n|---:|---|---:|---:|---:|---:|")
    for n in SIZES:
        found = sg.profile(compiled, MDP_THETA, repeats=repeats, generator=generator, sizes={"D": n})
        for name, figures in found.figures.items():
            ratio = figures.variance / found["LSF"].variance
            bias = f"{figures.bias:.4f} ± {figures.bias_error:.4f}"
            print(f"| {n} | {name} | {figures.variance:.4g} | {ratio:.3f} | {bias} | {1e3 * figures.seconds:.2f} |")


if __name__ == "__main__":
    main()
