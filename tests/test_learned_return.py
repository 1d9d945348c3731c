"""The discount and step size of inner steps are learned: against sums over all outcomes written in plain torch."""

import itertools

import pytest
import torch

import stochgraph as sg
from stochgraph.algorithms.objectives.learned_return import learned_return, meta_parameters
from tests.problems import F64
from tests.small_meta_problem import LOGITS, TASKS, meta_problem

META = {name: leaf.double() for name, leaf in meta_parameters(0.8, 0.7).items()}
THETA = {"logits": LOGITS}
ACTIONS = list(itertools.product(range(2), repeat=2))
PROBABILITY = torch.tensor([0.4, 0.6], dtype=F64)


def walk(theta, task, actions):
    """The rewards, the log-probabilities of the actions and their slopes: the second state is the first action."""
    states = (0, actions[0])
    log_prob = torch.stack([theta[s].log_softmax(-1)[a] for s, a in zip(states, actions, strict=True)])
    slopes = []
    for s, a in zip(states, actions, strict=True):
        slope = torch.zeros(2, 2, dtype=F64).index_put((torch.tensor(s), torch.tensor(a)), torch.tensor(1.0, dtype=F64))
        chance = torch.zeros(2, 1, dtype=F64).index_put((torch.tensor(s),), torch.tensor(1.0, dtype=F64))
        slopes.append(slope - chance * theta[s].softmax(-1))
    return TASKS[task, list(states), list(actions)], log_prob, slopes


def outcome(theta, task, discount):
    """The expected return."""
    found = [walk(theta, task, actions)[:2] for actions in ACTIONS]
    return sum(log_prob.sum().exp() * (rewards[0] + discount * rewards[1]) for rewards, log_prob in found)


def expected(meta, start, steps, inner):
    """The expected return after the updates, over tasks and all data."""
    discount, rate = meta["logit_discount"].sigmoid(), meta["log_rate"].exp()

    def after(theta, task, steps):
        if not steps:
            return outcome(theta, task, 0.9)
        total = torch.zeros((), dtype=F64)
        for data in itertools.product(ACTIONS, repeat=inner):
            found = [walk(theta, task, actions) for actions in data]
            slope = sum(s[0] * (r[0] + discount * r[1]) + s[1] * r[1] for r, _, s in found) / inner
            chance = sum(log_prob.sum() for _, log_prob, _ in found).exp()
            total = total + chance * after(theta + rate * slope, task, steps - 1)
        return total

    return sum(PROBABILITY[task] * after(start, task, steps) for task in range(2))


@pytest.mark.parametrize(("steps", "inner"), [(1, 2), (2, 1)])
def test_the_gradient_of_the_sum_over_all_outcomes(steps, inner):
    problem = meta_problem(steps=steps, inner=inner)
    compiled = learned_return(problem).with_estimator(sg.SF()).compile()
    found = sg.verify(compiled, META, THETA)
    truth = torch.func.grad(expected)(META, LOGITS, steps, inner)
    for name, leaf in truth.items():
        assert float(found.truth[name]) == pytest.approx(float(leaf), rel=1e-11)
        assert float(found.expectation[name]) == pytest.approx(float(leaf), rel=1e-11)


def test_of_one_update_no_path_is_dropped():
    """Its data come from the parameters that are given, whatever their estimator says."""
    compiled = learned_return(meta_problem()).compile()
    assert compiled.explain().unbiased
    assert {row.sample for row in compiled.explain().ledger} == {"", "tau"}
    assert sg.verify(compiled, META, THETA).relative_bias < 1e-12


def test_of_two_updates_the_paper_drops_one():
    problem = meta_problem(steps=2, inner=1)
    compiled = learned_return(problem).compile()
    assert {row.counted for row in compiled.explain().ledger if row.sample == "D2"} == {"dropped"}
    assert sg.verify(compiled, META, THETA).relative_bias > 0.01


def test_refusals():
    for changes in ({"steps": 0}, {"policy": None}):
        with pytest.raises(ValueError, match="learned_return learns how updates of a policy are made"):
            learned_return(meta_problem(**changes))
