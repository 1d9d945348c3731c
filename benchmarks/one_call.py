"""One call for any number of tasks: `value_and_grad`, beside `sample` and then `accumulate`.

Two-dimensional navigation, B tasks, N = M trajectories of H steps before and after one inner step, a Gaussian tanh
policy, float32. Both sides draw on the same seed and must give the same value and gradient first.

One process, both sides on the same number of threads. A round times both sides in alternating order; a ratio is the
median of the rounds' ratios. On a machine that others use as well, `--clock cpu` counts processor time instead of wall
time. Memory is the growth of the resident high-water mark of a fresh process during one estimate, warm from one of a
single task with one trajectory, so that libraries loaded on first use are not counted (Linux). The last column is that
of a single pass, which nothing cuts.

Run from the checkout: python benchmarks/one_call.py [--rounds 9] [--threads 2] [--clock cpu] [--only "B = 20"]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from stochgraph.algorithms.environments import Navigation
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts

Parameters = dict[str, Tensor]
Estimate = Callable[[], tuple[Tensor, Parameters]]
SIDES = ("one call", "two calls", "one pass")
RATE = 0.001  # small: nothing is learned here


class Case(NamedTuple):
    """An estimator and the sizes of a problem."""

    estimator: str
    tasks: int
    trajectories: int = 20
    horizon: int = 100
    hidden: tuple[int, ...] = (64, 64)

    @property
    def name(self) -> str:
        """As the table shows it."""
        units = " x ".join(map(str, self.hidden))
        return f"{self.estimator}, B = {self.tasks}, {self.trajectories} x {self.horizon}, {units}"

    def compile(self) -> tuple[Any, Parameters]:
        """The graph with the estimator, and parameters."""
        policy = GaussianMLP(2, 2, hidden=self.hidden)
        walk = Rollouts(Navigation(action_scale=0.1), policy, self.horizon)
        n = self.trajectories
        graph = adapted_return(
            walk, lambda: walk.environment.declare_tasks(self.tasks), inner_rate=RATE, steps=1, inner=n, outer=n
        )
        compiled = graph.compile({"LSF": sg.LSF(), "SF": sg.SF(), "LOO": sg.LOO()}[self.estimator])
        return compiled, policy.initial(torch.Generator().manual_seed(0))

    def estimate(self, side: str, compiled: Any, theta: Parameters) -> tuple[Tensor, Parameters]:
        """One estimate by one side, on a fixed seed."""
        generator = torch.Generator().manual_seed(1)
        if side == "two calls":
            trace = compiled.sample(theta, generator=generator)
            return sg.accumulate(compiled, theta, over="task", trace=trace)
        if side == "one call":
            return compiled.value_and_grad(theta, generator=generator)
        trace = compiled.sample(theta, generator=generator)
        return sg.accumulate(compiled, theta, over="task", trace=trace, chunk=self.tasks)


CASES = [
    *[Case(name, tasks) for name in ("LSF", "SF") for tasks in (5, 20, 40)],
    *[Case("LSF", 20, *sizes) for sizes in ((20, 20), (20, 100, (16,)), (20, 100, (128, 128)))],
]


def check(case: Case, compiled: Any, theta: Parameters) -> None:
    """The same value and gradient: in float32 rounding is all that one sees between a whole and its chunks."""
    (value, gradient), (expected, right) = (case.estimate(side, compiled, theta) for side in SIDES[:2])
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=f"{case.name}: value")
    scale = max(float(leaf.abs().max()) for leaf in right.values())
    for name, leaf in right.items():
        error = float((gradient[name] - leaf).abs().max())
        if error > 1e-4 * scale:
            raise AssertionError(f"{case.name}: {name} differs by {error:.1e}, the largest entry being {scale:.1e}")


def compare(case: Case, rounds: int, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Medians over rounds: seconds of one call, seconds of two, ratio pair by pair."""
    compiled, theta = case.compile()
    check(case, compiled, theta)

    def seconds(side: str) -> float:
        start = clock()
        case.estimate(side, compiled, theta)
        return clock() - start

    pairs = []
    for k in range(rounds):
        sides = SIDES[:2] if k % 2 else SIDES[1::-1]
        times = dict(zip(sides, map(seconds, sides), strict=True))
        pairs.append((times["one call"], times["two calls"]))
    return median(one for one, _ in pairs), median(two for _, two in pairs), median(one / two for one, two in pairs)


def growth(case: Case, side: str, threads: int) -> float:
    """Megabytes by which one estimate moves the high-water mark of a fresh process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--grow", side, "--only", case.name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def grow(case: Case, side: str) -> None:
    """In the fresh process: one estimate, and how much it needed."""
    small = case._replace(tasks=1, trajectories=1)
    small.estimate(side, *small.compile())
    compiled, theta = case.compile()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is resident now
    before = status("VmRSS")
    case.estimate(side, compiled, theta)
    print(status("VmHWM") - before)


def status(field: str) -> float:
    """A field of the process's own accounts, in megabytes. Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="measurements per case and side")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what a time is")
    parser.add_argument("--grow", default="", choices=("", *SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = [case for case in CASES if options.only in case.name]
    if options.grow:
        grow(next(case for case in chosen if case.name == options.only), options.grow)
        return
    print(f"One estimate; median of {options.rounds} rounds; torch {torch.__version__}, {options.threads} threads.\n")
    print(
        "| case | one call, ms | two calls, ms | ratio | memory of one call, MB | of two calls, MB | of one pass, MB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    for case in chosen:
        one, two, ratio = compare(case, options.rounds, clock)
        memory = " | ".join(f"{growth(case, side, options.threads):.0f}" for side in SIDES)
        print(f"| {case.name} | {one * 1e3:.0f} | {two * 1e3:.0f} | {ratio:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
