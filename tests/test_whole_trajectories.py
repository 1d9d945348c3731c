"""Scores of whole trajectories: the estimators as the papers print them, written out on the same samples."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.environments import RandomMDP
from stochgraph.algorithms.lsf import lsf
from stochgraph.algorithms.maml import maml
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.policies import TabularSoftmax
from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.sgmrl import sgmrl, sgmrl_published
from tests.problems import F64
from tests.small_meta_problem import THETA, meta_problem

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
RATE, DISCOUNT, STATES, ACTIONS = 0.7, 0.9, 3, 2
POLICY = TabularSoftmax(STATES, ACTIONS)
PROCESS = RandomMDP(STATES, ACTIONS, reward_std=0.0, horizon=3)


def logits(states: int = STATES) -> Tensor:
    return torch.randn(states, ACTIONS, generator=torch.Generator().manual_seed(1), dtype=F64)


def processes(count: int, states: int = STATES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(count, states, ACTIONS, states, generator=generator, dtype=F64)
    mean = torch.randn(count, states, ACTIONS, 1, generator=generator, dtype=F64)
    return torch.cat([chance / chance.sum(-1, keepdim=True), mean], -1)


def problem(stepwise: bool, **changes: Any) -> MetaProblem:
    walks = Rollouts(PROCESS, POLICY, stepwise=stepwise)
    tasks = partial(PROCESS.declare_tasks, 1, among=processes(2))
    given: dict[str, Any] = {"inner_rate": RATE, "inner": 4, "outer": 3, "discount": DISCOUNT}
    return MetaProblem(trajectories=walks, tasks=tasks, policy=POLICY, **given | changes)


class Batch:
    """What the equations need of some trajectories of one task, as functions of the parameters in one vector."""

    def __init__(self, data: Any, policy: Any = POLICY) -> None:
        self.data, self.policy = type(data)(*(leaf[0] for leaf in data)), policy
        steps = self.data.reward.shape[-1]
        discounted = self.data.reward * DISCOUNT ** torch.arange(steps, dtype=F64)
        self.returns = discounted.sum(-1)
        self.to_go = torch.stack([discounted[:, t:].sum(-1) for t in range(steps)], -1)

    def _steps(self, flat: Tensor) -> Tensor:
        table = {"logits": flat.reshape(-1, ACTIONS)}
        found: Tensor = self.policy.log_prob(table, self.data.observation, self.data.action)
        return found

    def log_prob(self, flat: Tensor) -> Tensor:
        """Of each trajectory."""
        return self._steps(flat).sum(-1)

    def nu(self, flat: Tensor) -> Tensor:
        """Of each trajectory: its log-probabilities, weighted with the rewards that followed, from the start on."""
        return (self._steps(flat) * self.to_go).sum(-1)

    def whole_nu(self, flat: Tensor) -> Tensor:
        """The same with the rewards of the whole trajectory at each step."""
        return self.log_prob(flat) * self.returns

    def scores(self, flat: Tensor) -> Tensor:
        return torch.func.jacrev(self.log_prob)(flat)

    def bends(self, flat: Tensor) -> Tensor:
        return torch.func.jacrev(torch.func.jacrev(self.log_prob))(flat)


def gradient(template: Any, trace: sg.Trace, theta: Tensor) -> Tensor:
    found: Tensor = torch.func.grad(template.compile().surrogate)({"logits": theta}, trace)["logits"]
    return found.reshape(-1)


# Tang, eqs. 1, 8 and 11: returns of whole trajectories, inside and outside


def tangs(estimator: str, trace: sg.Trace, theta: Tensor) -> Tensor:
    flat = theta.reshape(-1)
    inner, outer = Batch(trace.draws["D1"]), Batch(trace.draws["tau"])
    scores, weight = inner.scores(flat), inner.returns[:, None]
    adapted = flat + RATE * (weight * scores).mean(0)
    slope = (outer.returns[:, None] * outer.scores(adapted)).mean(0)
    bent = slope + RATE * (inner.returns[:, None, None] * inner.bends(flat)).mean(0) @ slope
    if estimator == "SF":
        return outer.returns.mean() * scores.sum(0) + bent
    return RATE * (inner.returns[:, None] * scores * (scores @ slope)[:, None]).mean(0) + bent


@pytest.mark.parametrize("estimator", ["SF", "LSF"])
def test_the_equations_of_tang(estimator):
    template = problem(stepwise=False).template(getattr(sg, estimator)())
    stepwise = problem(stepwise=True).template(getattr(sg, estimator)())
    for seed in range(4):
        trace = template.compile().sample({"logits": logits()}, generator=torch.Generator().manual_seed(seed))
        found, expected = gradient(template, trace, logits()), tangs(estimator, trace, logits())
        torch.testing.assert_close(found, expected, **EXACT)
        assert (gradient(stepwise, trace, logits()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("estimator", [sg.SF(), sg.SF(baseline="loo")], ids=["SF", "baseline"])
def test_whole_scores_are_unbiased_and_vary_more(estimator):
    whole, steps = (mean_return(small(1, stepwise), estimator) for stepwise in (False, True))
    assert whole.relative_bias < 1e-10
    assert steps.relative_bias < 1e-10
    assert whole.total_variance > 1.05 * steps.total_variance


def mean_return(asked: MetaProblem, estimator: Any) -> Any:
    """The return of two trajectories, without a step."""

    @sg.graph
    def pay(theta: Any) -> Any:
        data = sg.sample("D", asked.trajectories, theta, asked.tasks(), n=2)
        return sg.mean(sg.sum(data.reward, discount=DISCOUNT))

    return sg.verify(pay.compile({"D": estimator}), THETA)


# Fallah et al.: rewards to go, the Hessian of eqs. 8 and 9, and eq. 44


def hessian(batch: Batch, flat: Tensor, nu: str) -> Tensor:
    """Eq. 9, the mean of eq. 8: the slopes of nu times the scores of whole trajectories, and nu's own bend.

    Transposed, as the chain rule has it: printed is the matrix whose rows are the slopes.
    """
    slope = torch.func.jacrev(getattr(batch, nu))
    slopes, bends = slope(flat), torch.func.jacrev(slope)(flat)
    return (batch.scores(flat)[:, :, None] * slopes[:, None, :] + bends).mean(0)


def equation_44(trace: sg.Trace, steps: int, inner_nu: str, outer_nu: str, credit: bool = True) -> Tensor:
    """As printed, for one task: a product of I + rate times Hessian estimates, and the credit of every inner batch."""
    policy, at = TabularSoftmax(2, 2), THETA["logits"].reshape(-1)
    product, credits = torch.eye(4, dtype=F64), torch.zeros(4, dtype=F64)
    for t in range(1, steps + 1):
        inner = Batch(trace.draws[f"D{t}"], policy)
        credits = credits + product @ inner.scores(at).sum(0)
        product = product @ (torch.eye(4, dtype=F64) + RATE * hessian(inner, at, inner_nu))
        at = at + RATE * torch.func.jacrev(getattr(inner, inner_nu))(at).mean(0)
    outer = Batch(trace.draws["tau"], policy)
    slope = torch.func.jacrev(getattr(outer, outer_nu))(at).mean(0)
    return product @ slope + (outer.returns.mean() * credits if credit else 0)


def small(steps: int, stepwise: bool = True) -> MetaProblem:
    """The smallest meta-problem, on the library's own rollouts."""
    process = RandomMDP(2, 2, reward_std=0.0, horizon=2)
    walks = Rollouts(process, TabularSoftmax(2, 2), stepwise=stepwise)
    tasks = partial(process.declare_tasks, 1, among=processes(2, 2))
    return meta_problem(trajectories=walks, tasks=tasks, policy=walks.policy, steps=steps, inner=3, outer=2)


def agrees(template: Any, expected: Any, **others: Any) -> None:
    """The gradient is what is expected, on some traces, and that of other templates is not."""
    for seed in range(6):
        trace = template.compile().sample(THETA, generator=torch.Generator().manual_seed(seed))
        wanted = expected(trace)
        torch.testing.assert_close(gradient(template, trace, THETA["logits"]), wanted, **EXACT)
        for name, other in others.items():
            assert (gradient(other, trace, THETA["logits"]) - wanted).abs().max() > 1e-4, name


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_equation_44(steps):
    """Returns and scores of whole trajectories, at several steps."""
    agrees(
        sgmrl_published(small(steps, stepwise=False)),
        partial(equation_44, steps=steps, inner_nu="whole_nu", outer_nu="whole_nu"),
        stepwise=sgmrl_published(small(steps)),
        derived=sgmrl(small(steps, stepwise=False)),
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_equations_13_and_44_to_the_letter(steps):
    """Rewards to go, and the scores of whole trajectories in the outer product of eq. 8 alone."""
    agrees(
        sgmrl_published(small(steps), whole=True),
        partial(equation_44, steps=steps, inner_nu="nu", outer_nu="nu"),
        stepwise=sgmrl_published(small(steps)),
        derived=sgmrl(small(steps)),
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_what_they_print_as_maml_is_lsf(steps):
    """The full Hessian estimate without the credit: the linearised score function, and not MAML."""
    asked = small(steps, stepwise=False)
    agrees(
        lsf(asked),
        partial(equation_44, steps=steps, inner_nu="whole_nu", outer_nu="whole_nu", credit=False),
        maml=maml(asked),
    )
    recorded = small(steps).replace(adapt=small(steps).step())
    agrees(
        lsf(recorded),
        partial(equation_44, steps=steps, inner_nu="nu", outer_nu="nu", credit=False),
        maml=maml(recorded),
    )


@pytest.mark.parametrize(
    ("steps", "stepwise", "whole"), [(1, True, True), (2, True, True), (1, False, False), (2, False, False)]
)
def test_as_printed_counts_twice(steps, stepwise, whole):
    asked = small(steps, stepwise).replace(inner=1, outer=1)
    compiled = sgmrl_published(asked, whole=whole).compile()
    assert {row.counted for row in compiled.explain().ledger if row.sample == "D1"} == {"twice"}
    found = sg.verify(compiled, THETA)
    assert found.relative_bias > 0.05
    derived = sg.verify(sgmrl(asked).compile(), THETA)
    assert derived.relative_bias < 1e-10
    torch.testing.assert_close(found.truth, derived.truth, **EXACT)


def test_an_inner_step_on_recorded_returns_is_the_step_on_drawn_ones():
    """It is taken on a copy of the parameters: the data are not scored once more in its direction."""
    plain = small(2)
    one, other = (asked.template(sg.MAML()).compile() for asked in (plain, plain.replace(adapt=plain.step())))
    first, second = (each.sample(THETA, generator=torch.Generator().manual_seed(0)) for each in (one, other))
    torch.testing.assert_close(second.draws["tau"].log_prob, first.draws["tau"].log_prob, **EXACT)
    found, expected = (torch.func.grad(each.surrogate)(THETA, first) for each in (other, one))
    torch.testing.assert_close(found, expected, **EXACT)


def test_refusals():
    with pytest.raises(ValueError, match="whole=True: an inner step on recorded trajectories scores actions: give the"):
        sgmrl_published(meta_problem(policy=None), whole=True)
    with pytest.raises(ValueError, match=r"whole=True: for inner steps on plain returns.*Rollouts\(stepwise=False\)"):
        sgmrl_published(meta_problem(standardise=True), whole=True)
    with pytest.raises(ValueError, match=r"whole=True: .* give no reference"):
        sgmrl_published(meta_problem(reference=lambda task: task), whole=True)
    with pytest.raises(ValueError, match="stepwise=1: must be true or false"):
        Rollouts(PROCESS, POLICY, stepwise=1)  # type: ignore[arg-type]
