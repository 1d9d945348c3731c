"""One meta-gradient of meta-reinforcement learning: from the library and from a loop over tasks written by hand.

B tasks, N trajectories of H steps for every inner step and M after adaptation, observations of size 20, actions of
size 6, a Gaussian tanh 64x64 policy, K inner policy-gradient steps, float32. Trajectories are recorded beforehand, so
that no simulator is timed: their observations and rewards are noise, their actions are the policy's. The hand-written
side is what one writes without the library: for every task `torch.autograd.grad(..., create_graph=True)` per inner
step, the estimator's outer loss, one backward pass. Both sides must give the same value and gradient first.

One process, both sides on the same number of threads. A round times both sides in alternating order; a ratio is the
median of the rounds' ratios. On a machine that others use as well, `--clock cpu` counts processor time instead of wall
time. Memory is the growth of the resident high-water mark of a fresh process that replays the trace, warm from a trace
of one task with one trajectory, so that libraries loaded on first use are not counted (Linux). The last column is that
of `compiled.sample` in place of a replay, the trace that it returns included.

Run from the checkout: python benchmarks/meta_gradient.py [--rounds 9] [--threads 2] [--only "LSF, K = 1"]
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from benchmarks._machine import quiet_machine
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import acting

OBSERVATION, ACTION, RATE, DISCOUNT = 20, 6, 0.1, 0.99
SCALE = 0.01  # of rewards: three steps along the gradient of pure noise must not blow up
POLICY = GaussianMLP(OBSERVATION, ACTION)
TOLERANCE = 1e-10  # in float64, relative to the largest entry of the gradient
SIDES = ("hand", "library", "drawing")  # whose memory is measured
Parameters = dict[str, Tensor]
Estimate = Callable[[], tuple[Tensor, Parameters]]


class Trajectory(NamedTuple):
    """Recorded trajectories; every field has shape `(*plates, time, ...)`."""

    observation: Tensor
    action: Tensor
    reward: Tensor


class Recorded(sg.Sampler):
    """Observations and rewards are noise: as good as a simulator for what is timed here."""

    time = batched = True

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Trajectory:
        """Step by step, as a simulator does it: nothing but the trajectories grows with their length."""
        like = parents[0]["log_std"]
        observation = torch.randn(*batch_shape, self.horizon, OBSERVATION, dtype=like.dtype)
        noise = torch.randn(*batch_shape, self.horizon, ACTION, dtype=like.dtype)
        reward = SCALE * torch.randn(*batch_shape, self.horizon, dtype=like.dtype)
        act, dims = acting(POLICY, parents[0], batch_shape), len(batch_shape)
        for t in range(self.horizon):  # actions take the place of the noise that they are made of
            seen, shock = (x.select(dims, t).flatten(0, -2) for x in (observation, noise))
            noise.select(dims, t).copy_(act(seen, shock)[0].view(*batch_shape, ACTION))
        return Trajectory(observation, noise, reward)

    def log_prob(self, value: Trajectory, *parents: Any) -> Tensor:
        return POLICY.log_prob(parents[0], value.observation, value.action)

    def log_prob_stacked(self, value: Trajectory, *parents: Any) -> Tensor:
        parameters, lead = parents[0], value.reward.shape
        if not getattr(POLICY, "batched", False) or parameters["log_std"].shape[0] != lead[0]:
            return super().log_prob_stacked(value, *parents)
        observation, action = (x.reshape(lead[0], -1, x.shape[-1]) for x in (value.observation, value.action))
        return POLICY.log_prob(parameters, observation, action).reshape(lead)


class Case(NamedTuple):
    """An estimator and the sizes of a problem."""

    estimator: str
    steps: int
    tasks: int
    trajectories: int = 20
    horizon: int = 100

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.estimator}, K = {self.steps}, B = {self.tasks}, {self.trajectories} x {self.horizon}"

    def compile(self) -> Any:
        """The graph with the estimator."""
        graph = adapted_return(
            Recorded(self.horizon),
            lambda: sg.sample("task", torch.distributions.Normal, 0.0, 1.0, n=self.tasks),
            inner_rate=RATE,
            steps=self.steps,
            inner=self.trajectories,
            outer=self.trajectories,
            discount=DISCOUNT,
        )
        return graph.compile(sg.SF() if self.estimator == "SF" else sg.LSF())


CASES = [
    Case(estimator, steps, tasks, *sizes)
    for sizes in ((20, 100), (20, 5))
    for estimator in ("LSF", "SF")
    for steps in (1, 3)
    for tasks in (20, 40)
]


def by_hand(case: Case, theta: Parameters, trace: sg.Trace) -> tuple[Tensor, Parameters]:
    """The same estimate, one task after the other."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
    gradient = [torch.zeros_like(leaf) for leaf in leaves.values()]
    value = torch.zeros((), dtype=theta["log_std"].dtype)
    discounts = DISCOUNT ** torch.arange(case.horizon, dtype=value.dtype)
    for i in range(case.tasks):
        adapted, scores = leaves, torch.zeros(())
        for k in range(1, case.steps + 1):
            data = trace.draws[f"D{k}"]
            log_prob = log_prob_by_hand(adapted, data.observation[i], data.action[i])
            summed, reward = log_prob.cumsum(-1), data.reward[i] * discounts
            factor = torch.exp(summed - summed.detach()) if case.estimator == "LSF" else summed
            inner = (reward * factor).sum(-1).mean()
            steps = torch.autograd.grad(inner, list(adapted.values()), create_graph=True)
            adapted = {name: leaf + RATE * step for (name, leaf), step in zip(adapted.items(), steps, strict=True)}
            scores = scores + log_prob.sum()
        tau = trace.draws["tau"]
        reward = tau.reward[i] * discounts
        outcome = reward.sum(-1).mean()
        log_prob = log_prob_by_hand(adapted, tau.observation[i], tau.action[i])
        outer = (reward * log_prob.cumsum(-1)).sum(-1).mean()
        if case.estimator == "SF":
            outer = outer + outcome * scores
        found = torch.autograd.grad(outer / case.tasks, list(leaves.values()))
        gradient = [total + part for total, part in zip(gradient, found, strict=True)]
        value = value + outcome / case.tasks
    return value, dict(zip(leaves, gradient, strict=True))


def log_prob_by_hand(parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
    """The log-density of a Gaussian policy, without modules."""
    hidden = observation
    for layer in ("0", "2"):
        hidden = torch.tanh(F.linear(hidden, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]))
    mean = F.linear(hidden, parameters["4.weight"], parameters["4.bias"])
    log_std = parameters["log_std"]
    standardised = (action - mean) * torch.exp(-log_std)
    return -0.5 * standardised.square().sum(-1) - log_std.sum() - 0.5 * math.log(2 * math.pi) * ACTION


def problem(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, Parameters, sg.Trace]:
    """A compiled graph, parameters, and a trace, sampled a few tasks at a time."""
    compiled, theta = case.compile(), POLICY.initial(torch.Generator().manual_seed(0), dtype)
    torch.manual_seed(0)
    parts = [compiled.sample(theta, sizes={"task": 5}) for _ in range(case.tasks // 5)]
    draws, log_probs = ([getattr(part, field) for part in parts] for field in ("draws", "log_probs"))
    joined = [pytree.tree_map(lambda *leaves: torch.cat(leaves), *trees) for trees in (draws, log_probs)]
    return compiled, theta, sg.Trace(torch.zeros(()), *joined, {})


def check(case: Case) -> None:
    """The same value and gradient in float64: in float32 rounding is all that one sees of 40 000 scores."""
    case = case._replace(tasks=5)
    compiled, theta, trace = problem(case, torch.float64)
    value, gradient = sg.accumulate(compiled, theta, over="task", trace=trace, chunk=2)
    expected_value, expected = by_hand(case, theta, trace)
    torch.testing.assert_close(value, expected_value, rtol=0.0, atol=TOLERANCE, msg=f"{case.name}: value")
    scale = max(float(leaf.abs().max()) for leaf in expected.values())
    for name, leaf in expected.items():
        error = float((gradient[name] - leaf).abs().max())
        if error > TOLERANCE * scale:
            raise AssertionError(f"{case.name}: {name} differs by {error:.1e}, the largest entry being {scale:.1e}")


def seconds(estimate: Estimate, clock: Callable[[], float]) -> float:
    """The time of one estimate."""
    start = clock()
    estimate()
    return clock() - start


def compare(case: Case, rounds: int, chunk: int | None, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Medians over rounds: seconds by hand, seconds with the library, ratio pair by pair."""
    compiled, theta, trace = problem(case)

    def library() -> Any:
        return sg.accumulate(compiled, theta, over="task", trace=trace, chunk=chunk)

    def loop() -> Any:
        return by_hand(case, theta, trace)

    check(case)
    library()
    loop()
    pairs = []
    for k in range(rounds):
        first, second = (seconds(side, clock) for side in ((loop, library) if k % 2 else (library, loop)))
        pairs.append((first, second) if k % 2 else (second, first))
    return median(h for h, _ in pairs), median(m for _, m in pairs), median(m / h for h, m in pairs)


def growth(case: Case, side: str, threads: int, chunk: int | None) -> float:
    """Megabytes by which one estimate moves the high-water mark of a fresh process."""
    _, theta, trace = problem(case)
    with tempfile.NamedTemporaryFile() as file:
        torch.save((case, side, chunk, theta, trace.draws, trace.log_probs), file.name)
        command = [sys.executable, __file__, "--threads", str(threads), "--grow", file.name]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def grow(file: str) -> None:
    """In the fresh process: replay once and print the growth."""
    saved = torch.load(file, weights_only=False)
    case, side, chunk, theta, draws, log_probs = saved
    compiled, trace = case.compile(), sg.Trace(torch.zeros(()), draws, log_probs, {})
    sample = {name: (slice(0, 1), slice(0, 1)) if name != "task" else slice(0, 1) for name in draws}
    few = [{n: pytree.tree_map(lambda x, n=n: x[sample[n]], v) for n, v in t.items()} for t in (draws, log_probs)]
    run(case._replace(tasks=1), side, chunk, compiled, theta, sg.Trace(torch.zeros(()), *few, {}))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is resident now
    before = status("VmRSS")
    run(case, side, chunk, compiled, theta, trace)
    print(status("VmHWM") - before)


def status(field: str) -> float:
    """A field of the process's own accounts, in megabytes. Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def run(case: Case, side: str, chunk: int | None, compiled: Any, theta: Parameters, trace: sg.Trace) -> None:
    """One estimate by one side."""
    if side == "drawing":
        compiled.sample(theta, sizes={"task": case.tasks})
    elif side == "library":
        sg.accumulate(compiled, theta, over="task", trace=trace, chunk=chunk)
    else:
        by_hand(case, theta, trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="measurements per case and side")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--chunk", type=int, default=None, help="tasks in one chunk; default: the library's own choice")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what a time is")
    parser.add_argument("--grow", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.grow:
        grow(options.grow)
        return
    print(
        f"One meta-gradient; median of {options.rounds} rounds; torch {torch.__version__}, {options.threads} threads.\n"
    )
    print("| case | by hand, ms | library, ms | ratio | memory by hand, MB | memory of the library, MB | drawing, MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    with quiet_machine():
        for case in (case for case in CASES if options.only in case.name):
            hand, library, ratio = compare(case, options.rounds, options.chunk, clock)
            memory = (f"{growth(case, side, options.threads, options.chunk):.0f}" for side in SIDES)
            print(f"| {case.name} | {hand * 1e3:.0f} | {library * 1e3:.0f} | {ratio:.2f} | {' | '.join(memory)} |")


if __name__ == "__main__":
    main()
