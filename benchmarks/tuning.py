"""Does `sg.tune` choose well? Its choice against an exhaustive comparison of all unbiased candidates, on eight graphs.

Every graph is tuned with a budget; then all combinations that come into question make as many estimates as asked, in
turn. The ratio is the measured mean squared error at one second of the choice over that of the best; its interval of
90 % takes estimates for normal. Sizes of plates are held as declared in the comparison.

Run from the checkout: python benchmarks/tuning.py [--budget 10] [--repeats 100]
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from benchmarks._machine import quiet_machine
from stochgraph.algorithms.environments import Navigation
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.prove.tuning import candidates
from tests.problems import BANDIT_THETA, F64, TASK_REWARD, bandit
from tests.variational_cases import OBSERVED, log_joint

_WALKS = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=5)
_TWO = torch.tensor([0.2, -0.4], dtype=F64)


class Case(NamedTuple):
    """A graph and its input."""

    make: Callable[[], sg.Graph]
    theta: Tensor | Mapping[str, Tensor]


def elbo() -> sg.Graph:
    @sg.graph
    def objective(theta):
        z = sg.sample("z", Normal, theta[0], theta[1].exp(), n=8)
        return sg.mean(sg.apply(log_joint, z) - sg.log_prob(z))

    return objective


def importance_weighted() -> sg.Graph:
    @sg.graph
    def objective(theta):
        z = sg.sample("z", Normal, theta[0], theta[1].exp(), n=8)
        return sg.logmeanexp(sg.apply(log_joint, z) - sg.log_prob(z))

    return objective


def foresight() -> sg.Graph:
    """LOLA on matching pennies: my outcome after the other's step, estimated on what both have played."""

    @sg.graph
    def objective(theta):
        other = sg.sample("start", Normal, torch.tensor(0.3, dtype=F64), 0.1)
        mine = sg.sample("mine", lambda t: Bernoulli(logits=t[0]), theta, within=(), n=8)
        theirs = sg.sample("theirs", Bernoulli, logits=other, n=8)
        pay = sg.mean(mine) * sg.mean(theirs) + 0.5 * sg.mean(theirs)
        moved = sg.ascend(other, pay, 2.0)
        return sg.apply(lambda t, o: (1 - 2 * t[0].sigmoid()) * o.sigmoid() + 0.1 * t[1] ** 2, theta, moved)

    return objective


def at_risk() -> sg.Graph:
    """The mean of the worst half of six adapted tasks."""

    @sg.graph
    def objective(theta):
        task = sg.sample("task", Bernoulli, torch.tensor(0.4, dtype=F64), n=6)
        pulls = sg.sample("D", lambda t, _: torch.distributions.Categorical(logits=t), theta, task, n=5)
        pay = sg.apply(lambda a, i: TASK_REWARD[i.long(), a], pulls, task)
        moved = sg.ascend(theta, sg.mean(pay, over="D"), 1.0)
        value = sg.apply(lambda t, i: t.softmax(-1) @ TASK_REWARD[i.long()], moved, task)
        return sg.reduce(lambda values: values.sort(0).values[:3].mean(), value)

    return objective


def navigation() -> sg.Graph:
    return adapted_return(
        _WALKS, lambda: _WALKS.environment.declare_tasks(4), inner_rate=0.1, inner=5, outer=5, discount=0.95
    )


def mixed() -> sg.Graph:
    """A coin decides between two Gaussian readings."""

    @sg.graph
    def objective(theta):
        coin = sg.sample("coin", Bernoulli, logits=theta[0], n=6)
        x = sg.sample("x", Normal, theta[1] + 2.0 * coin, 0.5)
        return -sg.mean((x - OBSERVED) ** 2) - 0.1 * sg.mean(coin) ** 2

    return objective


CASES = {
    "ELBO": Case(elbo, _TWO),
    "IWAE bound": Case(importance_weighted, _TWO),
    "bandit, K = 1": Case(lambda: bandit(1, n=6, m=6), BANDIT_THETA),
    "bandit, K = 2": Case(lambda: bandit(2, n=4, m=4), BANDIT_THETA),
    "LOLA": Case(foresight, _TWO),
    "CVaR": Case(at_risk, BANDIT_THETA),
    "navigation": Case(navigation, _WALKS.policy.initial(dtype=F64)),
    "mixed": Case(mixed, _TWO),
}


def drawable(compiled: Mapping[str, sg.Compiled], theta: Tensor | Mapping[str, Tensor]) -> dict[str, sg.Compiled]:
    """Those that nothing is found against when they are first used."""
    found = {}
    for written, one in compiled.items():
        try:
            one.value_and_grad(theta)
        except sg.StochgraphError:
            continue
        found[written] = one
    return found


def compare(case: Case, budget: float, repeats: int) -> str:
    """A row of the table."""
    graph, generator = case.make(), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    found = sg.tune(graph, case.theta, budget=budget, generator=generator)
    took = time.perf_counter() - start
    chosen = ", ".join(f'"{name}": {written}' for name, written in found.table[0].estimators.items())
    measured = sg.profile(drawable(candidates(graph), case.theta), case.theta, repeats=repeats, generator=generator)
    best = min(measured, key=lambda name: measured[name].mse_per_second)
    ratio = measured[chosen].mse_per_second / measured[best].mse_per_second
    # The variance of a variance of about normal estimates: 2 / (n - 1) of its square, of each of the two.
    width = 1.645 * math.sqrt(2 * 2 / (repeats - 1))
    low, high = ratio * math.exp(-width), ratio * math.exp(width)
    return f"| {chosen} | {best} | {len(measured)} | {took:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each graph")
    parser.add_argument("--repeats", type=int, default=100, help="estimates with each candidate in the comparison")
    parser.add_argument("--only", default="", help="the graphs to do, separated by commas; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| graph | chosen | best | candidates | seconds | ratio | 90 % |\n|---|---|---|---:|---:|---:|---:|")
    for name in [one for one in options.only.split(",") if one] or list(CASES):
        print(f"| {name} {compare(CASES[name], options.budget, options.repeats)}", flush=True)


if __name__ == "__main__":
    with quiet_machine():
        main()
