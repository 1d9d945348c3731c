"""The exact variances of the unbiased estimators on every graph with finite supports: the table in docs/estimators.md.

Run `python -m tests.test_variances` to print it.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli

import stochgraph as sg
from tests.problems import F64, GRAPHS

PAGE = Path(__file__).parents[1] / "docs" / "estimators.md"
ESTIMATORS = {
    "Enumerate": sg.Enumerate(),
    "Enumerate(top=1)": sg.Enumerate(top=1),
    "LOO": sg.LOO(),
    "DisARM": sg.DisARM(),
    "SF": sg.SF(),
}
MOST = 300_000  # joint outcomes, those of what is drawn beside the samples included
SLOW = {"bandit, 3 steps", "two tasks, 1 step", "MDP, horizon 3", "MDP, horizon 2, sampled outcome"}


def two_coins() -> sg.Graph:
    """4 m (1 - m), m the mean of two coins: what the scores of both have in common cancels."""

    @sg.graph
    def objective(logit):
        mean = sg.mean(sg.sample("x", Bernoulli, logits=logit, n=2))
        return 4 * mean * (1 - mean)

    return objective


ALL = {**GRAPHS, "two coins": (two_coins, torch.tensor(0.5, dtype=F64))}


@cache
def variance(graph: str, estimator: str) -> float | None:
    """Summed over coordinates; nothing where the estimator is not for the graph, or the outcomes are too many."""
    make, theta = ALL[graph]
    try:
        found = sg.verify(make().compile(ESTIMATORS[estimator]), theta, max_outcomes=MOST)
    except (sg.CompileError, sg.VerificationError):
        return None
    assert found.relative_bias < 1e-12
    return found.total_variance


def row(graph: str) -> str:
    found = [variance(graph, estimator) for estimator in ESTIMATORS]
    return f"| {graph} | " + " | ".join("–" if v is None else f"{v:.3g}" for v in found) + " |"


def shown() -> dict[str, str]:
    """The rows of the page, by graph."""
    lines = re.findall(r"^\| (.+?) \| .*\|$", PAGE.read_text(), flags=re.MULTILINE)
    rows = re.findall(r"^\| .*\|$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(lines, rows, strict=True))


@pytest.mark.parametrize(
    "graph", [pytest.param(graph, marks=[pytest.mark.slow] if graph in SLOW else []) for graph in ALL]
)
def test_the_row_of_the_page(graph: str) -> None:
    assert shown()[graph] == row(graph)


@pytest.mark.parametrize("graph", [graph for graph in ALL if graph not in SLOW])
def test_the_likeliest_outcome_alone_varies_more_than_all(graph: str) -> None:
    whole, part = variance(graph, "Enumerate"), variance(graph, "Enumerate(top=1)")
    assert whole is not None
    assert part is None or whole <= part * (1 + 1e-9)


if __name__ == "__main__":
    print("| graph | " + " | ".join(ESTIMATORS) + " |")
    print("|---|" + "---|" * len(ESTIMATORS))
    for name in ALL:
        print(row(name))
