"""The cost of compiling, counted and not timed: K inner steps cost K times what one costs."""

import pytest

import stochgraph as sg
from stochgraph.derive.reach import Reach
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
