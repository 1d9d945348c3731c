"""Frozen lakes of Xu and Zhu (2024) with exact values: returns by adaptation steps, gaps beside both bounds.

Nothing is estimated from trajectories: a table is trained for one exact step of adaptation on 20 maps, and measured on
them and on 20 others. One call writes `result.json` to a folder; what is in it already is not computed again.

    python benchmarks/reproduce/lakes.py 0.3 FOLDER
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

# Behind an installed package, which is what is run.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.reproduce.claims import write_result
from stochgraph.algorithms import exact
from stochgraph.algorithms.bomrl import every_task, exact_bomrl
from stochgraph.algorithms.environments import FrozenLake
from stochgraph.algorithms.environments.tabular import Dynamics
from stochgraph.algorithms.exact import Process, optimality

PENALTIES = {0.3: {"D1": 0.5, "D2": 0.5, "D3": 0.04}, 0.1: {"D1": 0.25, "D2": 0.25, "D3": 0.02}}
MAML, DISCOUNT, TASKS, STEPS, SETS = "MAML", 0.8, 20, 4, 3
ITERATIONS, RATE = 100, 0.1
MARGIN = 0.01  # of returns: on some maps two ways learn to stay where they are, and differ by less

Adapted = Callable[..., Tensor]  # (processes, table, steps=) -> the mean return after adaptation


def lakes(holes: float, seed: int) -> Process:
    """Twenty maps as decision processes, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        environment = FrozenLake(holes=holes, slippery=False, goal="pays")
        maps = environment.task_distribution().sample((TASKS,)).double()
    tables, which = environment.dynamics(maps)
    return exact.process(Dynamics(*(field[which] for field in tables)), DISCOUNT)


def uniform() -> Tensor:
    """The table that nothing was learned in."""
    return torch.zeros(16, 4, dtype=torch.float64)


def implicit(penalty: float, distance: str, processes: Process, table: Tensor, steps: int = 1) -> Tensor:
    """The mean return after some steps of Alg(i)."""
    if steps == 0:
        return exact.returns(processes, table.softmax(-1)).mean()
    return exact_bomrl(processes, penalty, distance, steps=steps).compile().surrogate(table, every_task(processes))


def gradient_steps(rate: float, processes: Process, table: Tensor, steps: int = 1) -> Tensor:
    """The mean return after some policy-gradient steps."""
    table = table.expand(TASKS, 16, 4)
    for _ in range(steps):
        slope = torch.func.grad(lambda t: exact.returns(processes, t.softmax(-1)).sum())(table)
        table = table + rate * slope
    return exact.returns(processes, table.softmax(-1)).mean()


def ways(holes: float) -> dict[str, Adapted]:
    """How a table is adapted: Alg(1), (2) and (3), and policy gradients with the step size of Alg(3)."""
    penalties = PENALTIES[holes]
    found: dict[str, Adapted] = {name: partial(implicit, penalty, name) for name, penalty in penalties.items()}
    return {**found, MAML: partial(gradient_steps, (1 - DISCOUNT) / (2 * penalties["D3"]))}


def trained(adapted: Adapted, processes: Process, iterations: int) -> Tensor:
    """The table that is learned for one step of adaptation."""
    table = uniform().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=RATE, maximize=True)
    for _ in range(iterations):
        optimizer.zero_grad()
        adapted(processes, table).backward()
        optimizer.step()
    return table.detach()


def best_return(processes: Process) -> float:
    """What the best policy of each map earns, on average."""
    return float((processes.start * exact.optimal_values(processes)).sum(-1).mean())


def bounds(processes: Process, distance: str, penalty: float) -> dict[str, float]:
    """The bounds on the gap after one step, from the table in the middle of the tasks."""
    variance, centre = optimality.task_variance(processes, distance)
    nearest = optimality.nearest_optimal(processes, centre, distance)
    found = optimality.gap_bound(processes, centre, nearest, penalty, distance)
    return {
        "variance": float(variance),
        "bound drawn": float(found.drawn + found.lost),
        "of which lost": float(found.lost),
        "theorem's bound": float(found.published + found.lost),
        "theorem's penalty": float(found.theorems_penalty),
    }


def of_way(holes: float, name: str, maps: int, iterations: int = ITERATIONS) -> dict[str, Any]:
    """One way of adaptation, on one set of training maps and one of held-out maps."""
    train, test = lakes(holes, 2 * maps), lakes(holes, 2 * maps + 1)
    adapted = ways(holes)[name]
    table = trained(adapted, train, iterations)
    with torch.no_grad():
        curves = {
            word: [float(adapted(test, start, steps=k)) for k in range(STEPS + 1)]
            for word, start in (("learned", table), ("untrained", uniform()))
        }
        best = {"training": best_return(train), "held out": best_return(test)}
        gaps = {
            f"gap, {word}": {str(k): best[word] - float(adapted(processes, table, steps=k)) for k in (0, 1)}
            for word, processes in (("training", train), ("held out", test))
        }
    figures: dict[str, Any] = {**curves, "best": best["held out"], **gaps}
    if name != MAML:
        figures["bounds, training"] = bounds(train, name, PENALTIES[holes][name])
        figures["bounds, held out"] = bounds(test, name, PENALTIES[holes][name])
    return figures


def key(name: str, maps: int) -> str:
    """The name of a point."""
    return f"{name}, maps {maps}"


def claims_of(result: dict[str, Any]) -> dict[str, bool]:
    """What the paper says, and whether it is so here on every set of maps."""
    points, found = result["points"], dict[str, bool]()
    for name in PENALTIES[0.3]:
        mine = [points[key(name, maps)] for maps in range(SETS)]
        maml = [points[key(MAML, maps)] for maps in range(SETS)]
        found[f"{name} is above its untrained table after 1 to {STEPS} steps by {MARGIN}"] = all(
            a > b + MARGIN for each in mine for a, b in zip(each["learned"][1:], each["untrained"][1:], strict=True)
        )
        found[f"{name} is above MAML after 1 to {STEPS} steps by {MARGIN}"] = all(
            a > b + MARGIN
            for each, other in zip(mine, maml, strict=True)
            for a, b in zip(each["learned"][1:], other["learned"][1:], strict=True)
        )
        for word in ("training", "held out"):
            maps_words = "the maps it was trained on" if word == "training" else "held-out maps"
            found[f"{name}'s gap after one step is below the bound drawn on {maps_words}"] = all(
                each[f"gap, {word}"]["1"] <= each[f"bounds, {word}"]["bound drawn"] for each in mine
            )
        found[f"the gap after one policy-gradient step is above {name}'s bound drawn on held-out maps"] = all(
            other["gap, held out"]["1"] > each["bounds, held out"]["bound drawn"]
            for each, other in zip(mine, maml, strict=True)
        )
    return found


def in_words(result: dict[str, Any]) -> str:
    """Gaps on held-out maps, and the bounds."""
    points, parts = result["points"], []
    for name in (*PENALTIES[0.3], MAML):
        each = [points[key(name, maps)] for maps in range(SETS)]
        gap = _mean_and_deviation([point["gap, held out"]["1"] for point in each])
        without = fmean(point["gap, held out"]["0"] for point in each)
        words = f"{name} {gap} (without adaptation {without:.3f}"
        if name != MAML:
            drawn = fmean(point["bounds, held out"]["bound drawn"] for point in each)
            theirs = fmean(point["bounds, held out"]["theorem's bound"] for point in each)
            words += f", bound drawn {drawn:.3f}, theorem's {theirs:.1e}"
        parts.append(words + ")")
    return f"gap after one step, held-out maps: {'; '.join(parts)} (mean ± deviation over {SETS} sets of maps)"


def _mean_and_deviation(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def plot(result: dict[str, Any], picture: Any) -> None:
    """Returns by adaptation steps, and gaps beside the bounds drawn; means over sets of maps."""
    left, right = picture.subplots(1, 2)
    points = result["points"]

    def mean(name: str, read: Callable[[dict[str, Any]], float]) -> float:
        return fmean(read(points[key(name, maps)]) for maps in range(SETS))

    names = [*PENALTIES[0.3], MAML]
    for i, name in enumerate(names):
        for word, style in (("learned", "o-"), ("untrained", "s:")):
            line = [mean(name, lambda p, k=k, w=word: p[w][k]) for k in range(STEPS + 1)]  # type: ignore[misc]
            label = f"{name}, {word}"
            left.plot(range(STEPS + 1), line, style, color=f"C{i}", markersize=3, linewidth=1, label=label)
        for j, steps in enumerate("01"):
            gap = mean(name, lambda p, k=steps: p["gap, held out"][k])  # type: ignore[misc]
            right.bar(i + (j - 0.5) * 0.35, gap, 0.33, color=f"C{i}", alpha=0.35 + 0.65 * j)
        if name != MAML:
            bound = mean(name, lambda p: p["bounds, held out"]["bound drawn"])
            right.plot([i - 0.45, i + 0.45], [bound] * 2, color="0.2", label="bound drawn" if i == 0 else None)
            if bound > 2:
                right.text(i, 1.9, f"bound drawn: {bound:.1f}", ha="center", fontsize=8)
    left.axhline(mean(MAML, lambda p: p["best"]), color="0.4", linestyle="--", linewidth=1, label="best policies")
    left.set(xlabel="adaptation steps", ylabel="return, held-out maps", xticks=range(STEPS + 1))
    left.legend(frameon=False, fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    right.set(ylabel="gap to the best, held-out maps", ylim=(0, 2), xticks=range(len(names)), xticklabels=names)
    right.set_title("without adaptation (pale), after one step", fontsize="small")
    right.legend(frameon=False, fontsize="small")


def main(holes: float, folder: Path) -> None:
    """Compute what is missing of a distribution of maps, point by point."""
    path = folder / "result.json"
    points = json.loads(path.read_text())["points"] if path.is_file() else {}
    for maps in range(SETS):
        for name in ways(holes):
            if key(name, maps) not in points:
                points[key(name, maps)] = of_way(holes, name, maps)
                write_result(path, {"iterations": ITERATIONS, "points": points})
    write_result(path, {"iterations": ITERATIONS, "points": points})


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
