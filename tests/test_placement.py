"""Placement is a pass of its own: its table is made before anything is built, and has all that building asks."""

import pytest

import stochgraph as sg
from stochgraph.derive.placement import Placement
from stochgraph.derive.scopes import ObjectiveScope
from tests.problems import BANDIT_THETA, GRAPHS, bandit

ESTIMATORS = {"SF": sg.SF(), "LSF": sg.LSF(), "LOO": sg.LOO(), "MAML": sg.MAML(), "Enumerate": sg.Enumerate()}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_table_of_a_start_is_what_building_reads(name, estimator):
    try:
        derivation = GRAPHS[name][0]().compile(ESTIMATORS[estimator])._derivation
    except sg.CompileError:
        pytest.skip("the estimator refuses the graph")
    start = derivation.placement.starts[0]
    alone = Placement(ObjectiveScope(derivation.order, derivation.estimators))
    table = alone.place(start)
    assert len(table) > 1
    assert alone.place(start) is table
    assert {key: derivation.placement.table[key] for key in table} == table
    assert set(derivation.built) == set(derivation.placement.table)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_box_stands_in_one_place_on_every_way_and_none_is_lost(name, estimator):
    """A decision hands every open box on, whole, or has it stand: to the inputs that the sample reaches, at least one.

    Control variates change no box, and what stays is not handed on.
    """
    try:
        placement = GRAPHS[name][0]().compile(ESTIMATORS[estimator])._derivation.placement
    except sg.CompileError:
        pytest.skip("the estimator refuses the graph")
    for (node, pending), decision in placement.table.items():
        names = {s for s, _ in pending}
        below = [{s for s, _ in boxes} for _, boxes in decision.needs]
        if decision.controlled:
            assert decision.needs[0][0] is node
            assert below == [names]
        elif decision.stays:
            standing = {s for s, _ in decision.stays}
            assert decision.needs[0][0] is node
            assert below == [names - standing]
            assert decision.stays <= pending
        elif names:
            assert names <= set().union(*below)
            assert [parent for parent, _ in decision.needs] == list(node.inputs)


def test_refusals_name_the_first_draw():
    """All control variates of a term are asked before any is made; leave-one-out's are made from the last draw on."""
    with pytest.raises(sg.CompileError, match=r"sample 'D1' .*leave-one-out on a plate of one"):
        bandit(3, n=1).compile(sg.LOO())
    mixed = {"D1": sg.LOO(), "D2": sg.SF(baseline="loo"), "tau": sg.SF()}
    with pytest.raises(sg.CompileError, match=r"sample 'D1' .*leave-one-out on a plate of one"):
        bandit(2, n=1).compile(mixed)


def test_control_variates_that_replays_share_are_one_node():
    """Of three inner steps: a control variate for every draw at the objective, and none again in the replays."""
    compiled = bandit(3).compile(sg.LOO())
    made = {node for node in compiled._program if node.kind == "control variate"}
    inside = {
        node
        for replay in compiled._program
        if replay.kind == "replay"
        for node in replay.programs[0]
        if node.kind == "control variate"
    }
    assert len(made) == 3
    assert inside < made
    assert sg.verify(bandit(2).compile(sg.LOO()), BANDIT_THETA).relative_bias < 1e-12
