"""What a memory costs: draws and scores of a gated recurrent unit, against those of a network of equal width.

Twenty tasks with twenty trajectories of a hundred steps each, 2-D navigation; a network of two layers of 64, and a
state of 64. One set of parameters for all tasks, and one for every task. Sides are timed in pairs in alternating order,
torch on one thread; a ratio is the median of its rounds' ratios. A score is timed with its gradient.

Run from the checkout: python benchmarks/recurrent.py [--rounds 15]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._machine import quiet_machine
from stochgraph.algorithms.environments import Navigation
from stochgraph.algorithms.policies import GaussianGRU, GaussianMLP, Policy
from stochgraph.algorithms.rollouts import Rollouts, Trajectory

TASKS, TRAJECTORIES, HORIZON, WIDTH = 20, 20, 100, 64
SIDES: dict[str, Policy] = {"network": GaussianMLP(2, 2, (WIDTH, WIDTH)), "memory": GaussianGRU(2, 2, WIDTH)}


def parameters(policy: Policy, sets: int) -> dict[str, Tensor]:
    """As many sets of parameters, `(sets, ...)`."""
    first = policy.initial(torch.Generator().manual_seed(0))
    return {name: leaf.expand(sets, *leaf.shape).clone() for name, leaf in first.items()}


def measures(policy: Policy, sets: int) -> dict[str, Callable[[], Any]]:
    """What is timed: a draw of all trajectories, and the gradient of the sum of their scores."""
    walks, theta = Rollouts(Navigation(), policy, HORIZON), parameters(policy, sets)
    task = walks.environment.task_distribution().sample(torch.Size([TASKS]))

    def draw() -> Trajectory:
        held = {name: leaf.unsqueeze(1) for name, leaf in theta.items()}
        return walks.draw(torch.Size([TASKS, TRAJECTORIES]), held, task.unsqueeze(1))

    drawn = draw()

    def score() -> None:
        leaves = {name: leaf.requires_grad_() for name, leaf in parameters(policy, sets).items()}
        walks.log_prob_stacked(drawn, leaves, task).sum().backward()

    return {"draw": draw, "score": score}


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def pairs(sides: list[Callable[[], Any]], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both sides in every round, after one that warms them."""
    found = []
    for k in range(rounds + 1):
        times = [seconds(side) for side in (sides if k % 2 else sides[::-1])]
        found.append((times[0], times[1]) if k % 2 else (times[1], times[0]))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="measurements per case and side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{TASKS * TRAJECTORIES} trajectories of {HORIZON} steps; torch {torch.__version__}, one thread.\n")
    print("| parameters | what | network, ms | memory, ms | ratio |\n|---|---|---:|---:|---:|")
    with quiet_machine():
        for words, sets in {"one set": 1, "a set per task": TASKS}.items():
            network, memory = (measures(policy, sets) for policy in SIDES.values())
            for what in network:
                found = pairs([network[what], memory[what]], options.rounds)
                times = [1e3 * median(each) for each in zip(*found, strict=True)]
                ratio = median(m / n for n, m in found)
                print(f"| {words} | {what} | {times[0]:.1f} | {times[1]:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
