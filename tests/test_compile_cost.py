"""The cost of compiling, counted and not timed: K inner steps cost K times what one costs."""

import pytest
import torch
from torch.distributions import Bernoulli

import stochgraph as sg
from stochgraph.derive.reach import Reach
from stochgraph.explain.ledger import _Walk
from stochgraph.ir import nodes as nd
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
