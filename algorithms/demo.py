"""The demonstration: ledgers, exact biases, and meta-training on two-dimensional navigation.

python -m stochgraph.algorithms.demo [--iterations 1200] [--seed 0] [--out results/navigation.png]
"""

import argparse
import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

import stochgraph as sg

from .environments import Navigation
from .meta_policy_gradient import adapted_return
from .policies import GaussianMLP
from .rollouts import Rollouts

ESTIMATORS = {
    "SF": sg.SF(),
    "LSF": sg.LSF(),
    "MAML": sg.MAML(),
    "E-MAML as implemented": sg.EMAML(),
    "SG-MRL as printed": sg.SGMRLPublished(),
}
HORIZON, TASKS, TRAJECTORIES = 20, 20, 20
POLICY = GaussianMLP(2, 2, hidden=(64, 64), log_std=-0.5)


def standing_still(goal: Tensor) -> Tensor:
    """The reward of staying at the origin: what returns are measured against."""
    return -goal.norm()


def navigation(steps: int) -> sg.Graph:
    """The meta-objective: the return after some inner policy-gradient steps, above that of standing still."""
    walks = Rollouts(Navigation("distance", action_scale=0.1), POLICY, horizon=HORIZON)
    return adapted_return(
        walks,
        lambda: walks.environment.declare_tasks(TASKS),
        inner_rate=0.1,
        steps=steps,
        inner=TRAJECTORIES,
        outer=TRAJECTORIES,
        discount=0.99,
        reference=standing_still,
    )


def bandit(steps: int, n: int) -> sg.Graph:
    """A small discrete meta-problem: a three-armed softmax bandit, `n` pulls per inner step, one pull after them."""
    rewards = torch.tensor([0.1, 1.0, -0.6], dtype=torch.float64)

    @sg.graph
    def adapted_reward(theta: Any) -> Any:
        for k in range(1, steps + 1):
            pulls = sg.sample(f"D{k}", Categorical, logits=theta, n=n)
            theta = sg.ascend(theta, sg.mean(sg.apply(rewards.__getitem__, pulls)), lr=0.7)
        return sg.apply(rewards.__getitem__, sg.sample("pull", Categorical, logits=theta))

    return adapted_reward


def print_ledgers() -> None:
    """How each estimator counts the paths of the navigation graph."""
    graph = navigation(steps=1)
    print(f"{graph!r}\n")
    for name, estimator in ESTIMATORS.items():
        print(f"--- {name}\n{graph.compile(estimator).explain()}\n")


def print_biases() -> None:
    """The exact bias of each estimator on the bandit."""
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    cases = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)]
    print("Exact relative bias by enumeration: three-armed bandit, N pulls per inner step")
    heads = [f"{steps} step{'s' * (steps > 1)}, N = {n}" for steps, n in cases]
    print(f"{'':24}" + "".join(f"{head:>16}" for head in heads))
    for name, estimator in ESTIMATORS.items():
        found = [sg.verify(bandit(*case).compile(estimator), theta).relative_bias for case in cases]
        print(f"{name:24}" + "".join(f"{bias:16.1e}" for bias in found))
    print()


@dataclass
class Learner:
    """One meta-learner: parameters, their optimiser, and its learning curve."""

    compiled: sg.Compiled
    before: sg.Compiled
    seed: int
    iterations: list[int] = field(default_factory=list)
    returns: dict[str, list[float]] = field(default_factory=lambda: {"before": [], "after": []})

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.theta = POLICY.initial(self.generator)
        self.optimizer = torch.optim.Adam(self.theta.values(), lr=1e-3, maximize=True)

    def step(self) -> None:
        """One meta-gradient, clipped, and one step of Adam."""
        _, gradient = self.compiled.value_and_grad(self.theta, generator=self.generator)
        for name, leaf in self.theta.items():
            leaf.grad = gradient[name]
        torch.nn.utils.clip_grad_norm_(self.theta.values(), 10.0)
        self.optimizer.step()

    def evaluate(self, iteration: int) -> None:
        """The return before and after adaptation, on fixed held-out tasks and fixed noise."""
        found = {}
        for when, compiled in (("before", self.before), ("after", self.compiled)):
            held_out = torch.Generator().manual_seed(12345)
            found[when] = float(compiled.sample(self.theta, generator=held_out, sizes={"task": 100}).value)
        self.iterations.append(iteration)  # nothing is kept of an evaluation that is interrupted
        for when, value in found.items():
            self.returns[when].append(value)


def train(iterations: int, seed: int) -> dict[str, Learner]:
    """Meta-train with LSF and with SF side by side. An interrupt ends the training, not the program."""
    from tqdm import tqdm

    before = navigation(steps=0).compile(sg.SF())
    learners = {
        name: Learner(navigation(steps=1).compile(estimator), before, seed)
        for name, estimator in (("LSF", sg.LSF()), ("SF", sg.SF()))
    }
    bar = tqdm(range(iterations), unit="step", desc="meta-training", dynamic_ncols=True)
    try:
        for iteration in bar:
            if iteration % max(iterations // 40, 1) == 0:
                _evaluate(learners, iteration, bar)
            for learner in learners.values():
                learner.step()
        _evaluate(learners, iterations, bar)
    except KeyboardInterrupt:
        print("\ninterrupted: showing what has been learned so far")
    bar.close()
    return {name: learner for name, learner in learners.items() if learner.returns["after"]}


def _evaluate(learners: dict[str, Learner], iteration: int, bar: Any) -> None:
    for learner in learners.values():
        learner.evaluate(iteration)
    bar.set_postfix_str(_progress(learners))


def _progress(learners: dict[str, Learner]) -> str:
    return ", ".join(
        f"{name}: {learner.returns['before'][-1]:.2f} → {learner.returns['after'][-1]:.2f}"
        for name, learner in learners.items()
    )


def figure(learners: dict[str, Learner]) -> Any:
    """Learning curves, and trajectories before and after adaptation on four held-out tasks."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(13, 2.9 * len(learners)), layout="constrained")
    grid = result.add_gridspec(len(learners), 6)
    _curves(result.add_subplot(grid[:, :2]), learners)
    for row, (name, learner) in enumerate(learners.items()):
        trace = learner.compiled.sample(
            learner.theta, generator=torch.Generator().manual_seed(3), sizes={"task": 4, "tau": 10}
        )
        for k in range(4):
            _paths(result.add_subplot(grid[row, 2 + k]), trace, k, f"{name}, task {k + 1}")
    return result


def _curves(axes: Any, learners: dict[str, Learner]) -> None:
    for color, (name, learner) in zip(("C0", "C1"), learners.items(), strict=False):
        axes.plot(learner.iterations, learner.returns["after"], color=color, label=f"{name}, after one inner step")
        axes.plot(learner.iterations, learner.returns["before"], "--", color=color, label=f"{name}, before")
    axes.axhline(0, color="0.8", zorder=0)
    axes.set_xlabel("meta-iteration")
    axes.set_ylabel("return above standing still, held-out tasks")
    axes.set_title("2-D navigation, one inner step")
    axes.legend(frameon=False)


def _paths(axes: Any, trace: sg.Trace, task: int, title: str) -> None:
    groups = (("D1", "0.75", "before"), ("tau", "C2", "after"))
    for sample, color, label in groups:
        for i, path in enumerate(trace.draws[sample].observation[task][:10]):
            axes.plot(path[:, 0], path[:, 1], color=color, lw=1, alpha=0.8, label=label if i == 0 else None)
    goal = trace.draws["task"][task]
    axes.plot(goal[0], goal[1], "r*", ms=12, label="goal")
    axes.plot(0, 0, "ko", ms=4)
    axes.set(xlim=(-0.55, 0.55), ylim=(-0.55, 0.55), aspect="equal", title=title, xticks=[], yticks=[])
    if task == 0:
        axes.legend(frameon=False, fontsize=8, loc="upper left")


def save(picture: Any, path: Path) -> None:
    """Write the picture to a temporary name beside its place, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        picture.savefig(temporary, dpi=110)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _problem(options: argparse.Namespace) -> str | None:
    """What would fail later, found before anything runs."""
    if options.iterations < 1:
        return "--iterations must be at least 1"
    if options.out.suffix != ".png":
        return "--out must end in .png"
    blocked = next((part for part in options.out.parents if part.exists() and not part.is_dir()), None)
    if blocked or options.out.is_dir():
        return f"--out: {blocked or options.out} is {'no' if blocked else 'a'} directory"
    missing = [name for name in ("matplotlib.figure", "tqdm") if not _installed(name)]
    return f"{missing[0]} is not installed: pip install 'stochgraph[plot,demo]'" if missing else None


def main(arguments: list[str] | None = None) -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description="Ledgers, exact biases, and meta-training on 2-D navigation.")
    parser.add_argument("--iterations", type=int, default=1200, help="meta-iterations of each learner (default: 1200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of parameters, tasks and draws (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("results/navigation.png"), help="where the figure goes")
    options = parser.parse_args(arguments)
    problem = _problem(options)
    if problem:
        parser.error(problem)
    print_ledgers()
    print_biases()
    learners = train(options.iterations, options.seed)
    if not learners:
        return
    for name, learner in learners.items():
        before, after = (learner.returns[when][-1] for when in ("before", "after"))
        first = learner.returns["after"][0]
        print(f"{name}: return {before:.2f} before, {after:.2f} after adaptation; {first:.2f} without meta-training")
    save(figure(learners), options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
