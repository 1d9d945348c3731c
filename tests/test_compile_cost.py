"""The cost of compiling, counted and not timed: K inner steps cost K times what one costs, leave-one-out K squared."""

from itertools import pairwise

import pytest
import torch
from torch.distributions import Bernoulli

import stochgraph as sg
from stochgraph.derive.reach import Reach
from stochgraph.derive.replays import Replay
from stochgraph.estimators.leave_one_out import ComparedWithReplays
from stochgraph.explain.ledger import _Walk
from stochgraph.ir import nodes as nd
from stochgraph.ir import programs
from stochgraph.surrogate.steps import CompiledStep
from tests.problems import bandit


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.MAML(), sg.LVC()], ids=["SF", "LSF", "MAML", "LVC"])
def test_nodes_that_reach_looks_at_grow_linearly(estimator, monkeypatch):
    looked_at: list[nd.Node] = []
    arriving = Reach._arriving

    def counted(self, node):
        looked_at.append(node)
        return arriving(self, node)

    monkeypatch.setattr(Reach, "_arriving", counted)

    def count(steps: int) -> int:
        graph = bandit(steps)
        looked_at.clear()
        graph.compile(estimator)
        return len(looked_at)

    few, more, most = count(10), count(20), count(30)
    assert few > 10
    assert most - more == more - few


def test_an_update_reads_of_the_history_what_its_objective_reads():
    program = bandit(20).compile(sg.SF())._program
    inside = [len(node.program) for node in program if isinstance(node, CompiledStep)]
    assert len(inside) == 20
    assert len(set(inside)) == 1


def test_work_of_leave_one_out_grows_at_most_quadratically(monkeypatch):
    """What every step of compiling looks at: nodes put in order, and control variates made."""
    looked_at, made = [0], [0]
    places, node = programs._places, ComparedWithReplays.node

    def counted_places(users):
        looked_at[0] += len(users) + sum(map(len, users.values()))
        return places(users)

    def counted_node(self, site):
        made[0] += 1
        return node(self, site)

    monkeypatch.setattr(programs, "_places", counted_places)
    monkeypatch.setattr(ComparedWithReplays, "node", counted_node)

    def count(steps: int) -> tuple[int, int]:
        graph = bandit(steps)
        looked_at[0], made[0] = 0, 0
        graph.compile(sg.LOO())
        return looked_at[0], made[0]

    found = [count(steps) for steps in (10, 20, 30, 40)]
    first = [after[0] - before[0] for before, after in pairwise(found)]
    second = [after - before for before, after in pairwise(first)]
    assert second[0] == second[1] > 0  # a polynomial of second degree
    assert [controls for _, controls in found] == [11, 21, 31, 41]


def test_leave_one_out_of_many_steps_compiles_within_the_stack_of_python():
    compiled = bandit(120).compile(sg.LOO())
    assert sum(isinstance(node, Replay) for node in compiled._program) == 120


def latents(count: int) -> sg.Graph:
    """A chain of latent draws, every one of them with a cost."""

    @sg.graph
    def objective(theta):
        total = draw = sg.sample("x0", Bernoulli, logits=theta, n=2)
        for k in range(1, count):
            draw = sg.sample(f"x{k}", Bernoulli, logits=theta * draw)
            total = total + torch.sin(draw)
        return sg.mean(total)

    return objective


@pytest.mark.parametrize("make", [bandit, latents])
@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.MAML(), sg.LOO()], ids=["SF", "LSF", "MAML", "LOO"])
def test_routes_that_the_ledger_follows_grow_linearly(estimator, make, monkeypatch):
    followed: list[int] = []
    add = _Walk._add

    def counted(self, node, state, passed):
        followed.append(len(passed))
        add(self, node, state, passed)

    monkeypatch.setattr(_Walk, "_add", counted)

    def count(size: int) -> tuple[int, int]:
        compiled = make(size).compile(estimator)
        followed.clear()
        rows = compiled.explain().ledger
        return sum(followed), len(rows)

    few, more, most = count(10), count(20), count(30)
    assert few[0] > 10
    for one, other, third in zip(few, more, most, strict=True):
        assert third - other == other - one


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO()], ids=["SF", "LSF", "LOO"])
def test_a_formula_of_many_steps_has_the_first_and_the_last(estimator):
    formula = bandit(20).compile(estimator).explain().latex
    assert r"\theta' &= \theta + 0.7" in formula
    assert r"\vdots" in formula
    assert r"\theta^{(20)} &= \theta^{(19)} + 0.7" in formula


def test_a_history_is_no_deeper_than_pythons_stack():
    explanation = bandit(400).compile(sg.LSF()).explain()
    assert r"\theta^{(400)} &= \theta^{(399)}" in explanation.latex
    first = [row for row in explanation.ledger if row.sample == "D1"]
    assert sum(row.paths for row in first) == 2**399
    assert len(str(explanation).splitlines()) < 5 * 400
