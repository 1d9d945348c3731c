"""Multilevel estimates of functions of expectations: they telescope exactly, and are right on average."""

import itertools

import pytest
import torch
from torch.distributions import Categorical

import stochgraph as sg
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64
from tests.test_expectations import RATE, adapted, bandit

TWO_ARMS = torch.tensor([0.1, 1.0], dtype=F64)
TWO_THETA = torch.tensor([0.3, -0.2], dtype=F64)


def levels(*chosen):
    return {"levels": [torch.tensor(chosen, dtype=torch.bool)]}


# Telescoping


@pytest.mark.parametrize("base", [1, 2, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_two_levels_are_the_plugin_on_twice_the_draws(base, order):
    """On average over the level and over all outcomes of the draws."""
    multilevel, plugin = (bandit(1, 2 * base).compile(e) for e in (sg.Multilevel(base, deepest=1), sg.Plugin()))
    (chance,) = sg.Multilevel(base, deepest=1).chances()

    def expected(theta, trace):
        with_it = multilevel.surrogate(theta, trace._replace(noise=levels(True)))
        lower = trace._replace(
            draws={"D1": trace.draws["D1"][:base]},
            log_probs={"D1": trace.log_probs["D1"][:base]},
            noise=levels(False),
        )
        return chance * with_it + (1 - chance) * multilevel.surrogate(theta, lower)

    found = sg.verify(plugin, BANDIT_THETA, order=order, surrogate=expected)
    wanted = sg.verify(plugin, BANDIT_THETA, order=order)
    assert torch.allclose(found.expectation, wanted.expectation, rtol=0, atol=1e-13)


def test_a_level_that_there_always_is_is_enumerated():
    assert sg.Multilevel(1, deepest=1).chances() == [1.0]
    compiled, plugin = (bandit(1, 2).compile(e) for e in (sg.Multilevel(1, deepest=1), sg.Plugin()))
    found, wanted = (sg.verify(c, BANDIT_THETA) for c in (compiled, plugin))
    assert torch.allclose(found.expectation, wanted.expectation, rtol=0, atol=1e-13)


def two_arms(steps, n):
    @sg.graph
    def objective(theta):
        for k in range(1, steps + 1):
            pulls = sg.sample(f"D{k}", Categorical, logits=theta, n=n)
            theta = sg.ascend(theta, sg.expect(sg.apply(lambda a: TWO_ARMS[a], pulls)), RATE)
        return sg.apply(lambda t: t.softmax(-1) @ TWO_ARMS, theta)

    return objective


def test_two_levels_of_two_steps_telescope():
    """The second step's draws come from a pilot; both halves have the law of the level below, so that they cancel.

    All outcomes of a pilot and two draws in each step: the estimate of two levels has the mean of the plug-in on the
    two draws, reused with their likelihood ratios.
    """
    multilevel, plugin = two_arms(2, 3).compile(sg.Multilevel(1, deepest=1)), two_arms(2, 2).compile(sg.Plugin())
    found, wanted = torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
    for outcome in itertools.product(range(2), repeat=6):
        first, second = torch.tensor(outcome[:3]), torch.tensor(outcome[3:])
        slope = torch.eye(2, dtype=F64)[first[0]] - TWO_THETA.softmax(-1)
        moved = TWO_THETA + RATE * TWO_ARMS[first[0]] * slope
        scores = {"D1": TWO_THETA.log_softmax(-1)[first], "D2": moved.log_softmax(-1)[second]}
        chance = (scores["D1"].sum() + scores["D2"].sum()).exp()
        trace = sg.Trace(draws={"D1": first, "D2": second}, log_probs=scores, noise=levels(True))
        later = sg.Trace(draws={"D1": first[1:], "D2": second[1:]}, log_probs={s: x[1:] for s, x in scores.items()})
        found += chance * torch.func.grad(multilevel.surrogate)(TWO_THETA, trace)
        wanted += chance * torch.func.grad(plugin.surrogate)(TWO_THETA, later)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-13)


# On average


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "sampled"), [(1, False), (1, True), (2, False)])
def test_the_mean_of_many_estimates(steps, sampled):
    """Within 4 standard errors in each of three coordinates: fails by chance in 1 of 5000, at this seed it does not."""
    graph = bandit(steps, sampled=sampled)
    chosen = {s: sg.SF("loo") if s == "tau" else sg.Multilevel(base=2) for s in graph.samples}
    compiled, generator = graph.compile(chosen), torch.Generator().manual_seed(0)
    found = torch.stack([compiled.value_and_grad(BANDIT_THETA, generator=generator)[1] for _ in range(800)])
    error = found.std(0) / len(found) ** 0.5
    truth = torch.func.grad(adapted)(BANDIT_THETA, steps)
    assert bool(((found.mean(0) - truth).abs() < 4 * error).all())


def test_a_replay_gives_the_same_gradient():
    compiled = bandit(2).compile(sg.Multilevel(base=2))
    generator = torch.Generator()
    _, gradient = compiled.value_and_grad(BANDIT_THETA, generator=generator.manual_seed(5))
    trace = compiled.sample(BANDIT_THETA, generator=generator.manual_seed(5))
    again = torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace)
    assert torch.allclose(gradient, again, rtol=0, atol=1e-14)
    assert float(compiled.surrogate(BANDIT_THETA, trace)) == pytest.approx(float(trace.value), abs=1e-14)
    assert set(trace.noise) == {"levels"}


def test_levels_shrink_four_times():
    """The second moment of a level's difference, by enumeration of its draws."""

    def second_moment(base):
        plugin = bandit(1, 2 * base).compile(sg.Plugin())
        small = bandit(1, base).compile(sg.Plugin())

        def difference(theta, trace):
            halves = [
                sg.Trace(draws={"D1": trace.draws["D1"][part]}, log_probs={"D1": trace.log_probs["D1"][part]})
                for part in (slice(base), slice(base, None))
            ]
            return plugin.surrogate(theta, trace) - sum(small.surrogate(theta, half) for half in halves) / 2

        found = sg.verify(plugin, BANDIT_THETA, surrogate=difference)
        return found.total_variance + float(found.expectation.square().sum())

    moments = [second_moment(base) for base in (1, 2, 4)]
    assert 3 < moments[0] / moments[1] < 5
    assert 3 < moments[1] / moments[2] < 5


# What it says, and refuses


def test_the_ledger():
    endless, ended = (bandit().compile(sg.Multilevel(base=8, deepest=d)).explain() for d in (None, 2))
    assert endless.unbiased
    row = next(row for row in endless.ledger if row.sample == "D1")
    assert (row.counted, row.correction) == ("once", "by levels of 8, 16, 32, ... draws")
    assert "counted exactly once, by levels of 8, 16, 32, ... draws" in str(endless)
    assert not ended.unbiased
    assert "by levels, biased as with 32 draws" in str(ended)
    assert endless.target == ("D1",)


@pytest.mark.parametrize(
    "options", [{"base": 0}, {"base": 2.0}, {"rate": 1.0}, {"rate": 2.5}, {"deepest": -1}, {"deepest": 1.5}]
)
def test_options(options):
    with pytest.raises(ValueError, match=r"Multilevel\(" + next(iter(options))):
        sg.Multilevel(**options)


def test_kinks_are_refused():
    @sg.graph
    def objective(theta):
        pay = sg.expect(sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("x", Categorical, logits=theta, n=2)))
        return torch.relu(pay - 0.1)

    with pytest.raises(sg.CompileError, match=r"Multilevel on sample 'x'.*'relu' has a kink.*sg.Jackknife"):
        objective.compile(sg.Multilevel())
    objective.compile(sg.Jackknife())


def test_what_its_sizes_forbid():
    compiled = bandit().compile(sg.Multilevel())
    with pytest.raises(sg.SamplingError, match=r"sizes: 'D1' is a plate of Multilevel.*give its base"):
        compiled.sample(BANDIT_THETA, sizes={"D1": 4})
    with pytest.raises(sg.LoweringError, match="draws how many draws there are"):
        compiled.lower(BANDIT_THETA)
    with pytest.raises(sg.LoweringError, match="draws how many draws there are"):
        bandit().compile(sg.Multilevel(), lowering="flat")
    with pytest.raises(sg.SamplingError, match="the trace does not say which levels it has"):
        compiled.surrogate(BANDIT_THETA, sg.Trace(draws={"D1": torch.zeros(8, dtype=torch.long)}))
    draws = {"D1": torch.zeros(5, dtype=torch.long)}
    with pytest.raises(sg.SamplingError, match="the trace has 5 draws, and its levels need 8"):
        compiled.surrogate(BANDIT_THETA, sg.Trace(draws=draws, noise=levels(*[False] * 60)))
    with pytest.raises(sg.SamplingError, match="it cannot draw inside a transform"):
        torch.vmap(lambda t: compiled.sample(t).value, randomness="different")(BANDIT_THETA.expand(2, 3))


def test_what_is_not_enumerated():
    with pytest.raises(sg.VerificationError, match="draws after an expectation come from pilots"):
        sg.verify(bandit(2).compile(sg.Multilevel(1, deepest=1)), BANDIT_THETA)
    with pytest.raises(sg.VerificationError, match=r"Multilevel.*: its levels are drawn"):
        sg.verify(bandit().compile(sg.Multilevel()), BANDIT_THETA)


def test_tasks_are_not_cut():
    compiled = bandit().compile(sg.Multilevel(base=2))
    with pytest.raises(sg.CompileError, match="cannot be cut into chunks of the plate 'D1'"):
        sg.accumulate(compiled, BANDIT_THETA, over="D1")
