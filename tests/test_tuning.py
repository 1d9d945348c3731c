"""A choice by measurement: what may be chosen, what is pruned and why, and how it is shown. Budgets are tiny."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

import stochgraph as sg
from stochgraph.prove.tuning import other_sizes
from tests import problems
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64
from tests.test_expectations import bandit as expected_bandit

BUDGET = 0.02


def seed():
    return torch.Generator().manual_seed(0)


GRAPHS = {
    "bandit": (lambda: problems.bandit(1, n=3, m=2), BANDIT_THETA),
    "chain": (problems.chain, problems.LATENT_THETA),
    "MDP": (lambda: problems.mdp(2, m=2), problems.MDP_THETA),
    "expected": (lambda: expected_bandit(1, 4, sampled=True), BANDIT_THETA),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_unbiased_means_unbiased(name):
    """Whatever the noise of so few estimates: the ledger decides."""
    make, theta = GRAPHS[name]
    graph = make()
    found = sg.tune(graph, theta, budget=BUDGET, generator=seed())
    assert graph.compile(found.choice).explain().unbiased
    assert all(trial.unbiased for trial in found.table)
    assert set(found.choice) == set(graph.samples)


def test_biased_ones_are_measured_if_they_may_be():
    graph = problems.bandit(1, n=3, m=2)
    found = sg.tune(graph, BANDIT_THETA, budget=BUDGET, unbiased=False, generator=seed())
    assert {trial.unbiased for trial in found.table} == {True, False}
    graph.compile(found.choice)


def test_what_is_pruned_has_a_reason():
    found = sg.tune(problems.bandit(1, n=3, m=2), BANDIT_THETA, budget=BUDGET, generator=seed())
    assert found.pruned["sg.LSF()", "D1"] == "biased: linearized"
    assert found.pruned["sg.MAML()", "D1"] == "biased: dropped"
    assert "no differentiable path" in found.pruned["sg.PW()", "tau"]
    assert "sg.Plugin()" not in {written for written, _ in found.pruned}  # nothing is expected


def test_a_clear_choice():
    """The pathwise derivative of a smooth function of a normal draw varies hundreds of times less."""

    @sg.graph
    def objective(theta):
        return 100.0 + sg.mean(sg.apply(lambda x: 0.01 * x, sg.sample("x", Normal, theta, 1.0, n=5)))

    found = sg.tune(objective, torch.tensor(1.0, dtype=F64), budget=BUDGET, generator=seed())
    assert found.table[0].estimators == {"x": "sg.PW()"}
    assert repr(found.choice["x"]) == repr(sg.PW())


def test_expectations_have_one_estimator():
    found = sg.tune(expected_bandit(2, 4), BANDIT_THETA, budget=BUDGET, generator=seed())
    assert set(found.table[0].estimators.values()) == {"sg.Multilevel()"}  # what is unbiased there


def test_sizes_vary_where_the_objective_stays_the_same():
    """The outcome is a linear mean; the inner plate goes into an update, so that another size is another objective."""
    graph = problems.bandit(1, n=4, m=4)
    sizes = other_sizes(graph, {"D1": "sg.SF()", "tau": "sg.SF()"})
    assert sizes == [{"tau": 2}, {"tau": 8}, {"tau": 16}]
    expected = other_sizes(expected_bandit(1, 4), {"D1": "sg.Jackknife()"})
    assert expected == [{"D1": 2}, {"D1": 8}, {"D1": 16}]
    assert other_sizes(expected_bandit(1, 4), {"D1": "sg.Multilevel()"}) == []


def test_equal_estimates_are_measured_once():
    """Behind a linear mean leave-one-out is the score function, and the linearised one as well."""

    @sg.graph
    def objective(logit):
        return sg.mean(sg.sample("x", Bernoulli, logits=logit, n=4) * 2.0)

    found = sg.tune(objective, torch.tensor(0.3, dtype=F64), budget=BUDGET, generator=seed())
    same = {"sg.SF()", "sg.LOO()", "sg.LSF()"}
    assert sum(trial.estimators["x"] in same and not trial.sizes for trial in found.table) <= 1


def test_how_it_is_shown():
    found = sg.tune(problems.bandit(1, n=3, m=2), BANDIT_THETA, budget=BUDGET, generator=seed())
    first, *_ = str(found).splitlines()
    assert first.startswith('graph.compile({"D1": sg.')
    pasted = eval(first.replace("graph.compile", "dict"), {"sg": sg, "dict": dict})
    assert {name: repr(estimator) for name, estimator in pasted.items()} == {
        name: repr(estimator) for name, estimator in found.choice.items()
    }
    assert found.to_markdown().count("\n") == len(found.table) + 1
    assert "```python" in found._repr_markdown_()


def test_refusals():
    with pytest.raises(ValueError, match="budget=0"):
        sg.tune(problems.bandit(), BANDIT_THETA, budget=0)

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Categorical, logits=theta, n=2)
        return torch.relu(sg.expect(sg.apply(lambda a: BANDIT_REWARD[a], x)) - 0.1)

    with pytest.raises(sg.CompileError, match="no unbiased estimator is possible for sample 'x': Multilevel on sample"):
        sg.tune(objective, BANDIT_THETA, budget=BUDGET)
