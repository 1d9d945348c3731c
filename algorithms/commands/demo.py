"""The demonstration: ledgers, exact biases, and meta-training on two-dimensional navigation.

python -m stochgraph.algorithms.commands.demo [--iterations 1200] [--seed 0] [--out results/navigation.png]
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributions import Categorical

import stochgraph as sg

from ..training import Configuration, ConfigurationError, Problem, RunFolder, TrainingError, load_result, train
from ..training.curves import plot_learning_curves, save_figure
from ..training.reports import default_reporters, spelled
from .beside import make_room

ESTIMATORS = {
    "SF": sg.SF(),
    "LSF": sg.LSF(),
    "MAML": sg.MAML(),
    "E-MAML as implemented": sg.EMAML(),
    "SG-MRL as printed": sg.SGMRLPublished(),
}
HORIZON, TASKS, TRAJECTORIES = 20, 20, 20


def navigation(
    estimator: str, iterations: int = 1200, seed: int = 0, output: str = "results/navigation"
) -> Configuration:
    """The run: the return after one inner step in a square with a goal that changes from task to task."""
    return Configuration(
        output=output,
        environment="navigation",
        environment_options={"reward": "distance", "action_scale": 0.1},
        horizon=HORIZON,
        reference=True,
        policy_options={"log_std": -0.5},
        estimator=estimator,
        tasks=TASKS,
        inner=TRAJECTORIES,
        outer=TRAJECTORIES,
        inner_rate=0.1,
        inner_baseline=None,
        standardise=False,
        outer_baseline=None,
        iterations=iterations,
        seed=seed,
        evaluate_every=max(iterations // 40, 1),
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
    """The ledgers of all estimators on the navigation graph."""
    graph = Problem(navigation("LSF")).template.graph
    ledgers = [f"--- {name}\n{graph.compile(estimator).explain()}\n" for name, estimator in ESTIMATORS.items()]
    for text in (f"{graph!r}\n", *ledgers):
        print(spelled(text, sys.stdout))


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


def meta_train(iterations: int, seed: int, folder: Path) -> dict[str, Path]:
    """Meta-train with LSF, then with SF: the folders of the runs. An interrupt ends the training, not the program."""
    folders = {}
    for name in ("LSF", "SF"):
        run = navigation(name, iterations, seed, str(folder / name))
        folders[name] = Path(run.output)
        if not train(run, reporters=default_reporters(folders[name], name)).finished:
            break
    return folders


def figure(folders: dict[str, Path]) -> Any:
    """Learning curves, and trajectories before and after adaptation on four held-out tasks."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(13, 2.9 * len(folders)), layout="constrained")
    grid = result.add_gridspec(len(folders), 6)
    plot_learning_curves(result.add_subplot(grid[:, :2]), folders)
    for row, (name, folder) in enumerate(folders.items()):
        learned = load_result(folder)
        trace = learned.problem.compiled.sample(
            learned.theta, generator=torch.Generator().manual_seed(3), sizes={"task": 4, "tau": 10}
        )
        for k in range(4):
            _paths(result.add_subplot(grid[row, 2 + k]), trace, k, f"{name}, task {k + 1}")
    return result


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


def _installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _problem(options: argparse.Namespace) -> str | None:
    """The options that would fail later, found before anything runs."""
    if options.iterations < 1:
        return "--iterations must be at least 1"
    if options.out.suffix != ".png":
        return "--out must end in .png"
    blocked = next((part for part in options.out.parents if part.exists() and not part.is_dir()), None)
    if blocked or options.out.is_dir():
        return f"--out: {blocked or options.out} is {'no' if blocked else 'a'} directory"
    missing = [name for name in ("matplotlib.figure", "tqdm") if not _installed(name)]
    return f"{missing[0]} is not installed: pip install 'stochgraph[plot,train]'" if missing else None


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
    make_room()
    print_ledgers()
    print_biases()
    try:
        folders = meta_train(options.iterations, options.seed, options.out.with_suffix(""))
    except (ConfigurationError, TrainingError) as error:
        parser.error(str(error))
    for name, folder in folders.items():
        evaluations = RunFolder(folder).metrics("evaluation")
        (_, first), (before, after) = (evaluations[k]["returns"] for k in (0, -1))
        print(
            f"{name}, {evaluations[-1]['iteration']} of {options.iterations} iterations: return {before:.2f} before, "
            f"{after:.2f} after adaptation; {first:.2f} without meta-training"
        )
    save_figure(figure(folders), options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
