"""Runs whose parameters are moved by other things than an optimiser of torch: trust regions, clipped epochs."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.algorithms.environments import FrozenLake, Navigation
from stochgraph.algorithms.inner_steps.policy_gradient import whole
from stochgraph.algorithms.meta_sgd import meta_sgd
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.objectives.replays import Recorded, adapted_divergence, adapted_to, recorded_batches
from stochgraph.algorithms.policies import GaussianMLP, TabularSoftmax
from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training import Configuration, ConfigurationError, Problem, RunFolder, TrainingError, train
from stochgraph.algorithms.training.settings import ESTIMATORS, META_ALGORITHMS
from tests.training_cases import SMALL, in_ranks, newest, same, same_runs, timeless, train_on_rank

# With few draws the curvature is nearly singular, and conjugate gradients would enlarge rounding errors: damped.
LEARNERS = pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "TRPO", "optimizer_options": {"damping": 0.1}, "outer": 8},
        {"optimizer": "TRPO", "optimizer_options": {"damping": 0.1, "line_search": "product", "policies": "meta"}},
        {"algorithm": "promp", "optimizer": "Adam"},
        {"epochs": 3, "optimizer": "Adam"},
    ],
    ids=["trust region", "of meta-policies", "promp", "epochs"],
)
TRUST = SMALL.replace(optimizer="TRPO", precision="float64", tasks=4)


@pytest.fixture
def trust(tmp_path):
    return TRUST.replace(output=str(tmp_path / "run"))


# --- recorded trajectories


def adapted_log_density(problem: Problem) -> tuple[float, float]:
    """The mean log-density of the outer actions: on recorded trajectories at the anchor, and as they were drawn."""

    class Scoring(type(problem.rollouts.policy)):  # type: ignore[misc]
        def kl(self, old, new, observation):
            return self.log_prob(new, observation[..., :2], observation[..., 2:])

    policy = copy.copy(problem.rollouts.policy)
    policy.__class__ = Scoring
    run, theta = problem.configuration, problem.initial()
    asked = problem.asked
    adapt, reference = problem.template.adapt, asked.inner_reference
    graph = adapted_divergence(asked.tasks, policy, adapt, steps=run.steps, inner_reference=reference)
    trace = problem.draw(theta, 0).shards[0][1]
    tau = trace.draws["tau"]
    both = tau._replace(observation=torch.cat([tau.observation, tau.action], -1))
    recorded = graph.compile({}).surrogate(theta, theta, trace._replace(draws={**trace.draws, "tau": both}))
    return float(recorded), float(tau.log_prob.mean())


@pytest.mark.parametrize(
    "changes",
    [
        *[{"estimator": name} for name in ESTIMATORS],
        *[{"algorithm": name} for name in META_ALGORITHMS if name != "bomrl-tabular"],
        {"estimator": "SF", "estimator_options": {"baseline": "mean"}},
        {"steps": 0},
        {"steps": 2},
        {"reference": True},
        {"reference": True, "inner_baseline": "linear"},
        {"inner_baseline": "linear", "standardise": True, "steps": 2},
    ],
    ids=str,
)
def test_policies_adapted_on_recorded_trajectories_are_those_that_acted(changes):
    problem = Problem(TRUST.replace(optimizer="Adam", inner_rate=0.5, discount=0.9, **changes))
    recorded, drawn = adapted_log_density(problem)
    assert recorded == pytest.approx(drawn, rel=1e-12)


# --- trust regions


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "float32", "estimator": "LVC", "shards": 2},
        {"optimizer_options": {"radius": 0.001}, "inner_baseline": "linear", "outer_baseline": "linear"},
        {"algorithm": "meta-sgd", "optimizer_options": {"damping": 0.1}},
    ],
    ids=str,
)
def test_accepted_steps_stay_within_the_radius(trust, changes):
    """The divergence is measured again, on the draws of the iteration made anew."""
    run = trust.replace(**changes)
    problem = Problem(run)
    divergence, radius = problem.divergence, run.optimizer_options.get("radius", 0.01)
    theta, accepted = problem.initial(), 0
    learner = problem.learner(theta)
    for iteration in range(run.iterations):
        before = {name: leaf.clone() for name, leaf in theta.items()}
        figures = learner.step(theta, problem.draw(theta, iteration))
        again = problem.draw(before, iteration)
        found = float(again.average(partial(divergence.surrogate, theta, before)))
        if figures["gain"] == 0:
            assert same(theta, before)
            continue
        accepted += 1
        assert 0 < found <= radius * (1 + 1e-4 * (run.precision == "float32"))
        assert found == pytest.approx(figures["kl"], rel=1e-3 if run.precision == "float32" else 1e-9)
    assert accepted >= 4
    assert same(train(run, reporters=[]).theta, theta)
    assert {"gradient_norm", "kl", "gain", "tries"} <= RunFolder(run.output).metrics("iteration")[0].keys()


@pytest.mark.parametrize("policies", ["adapted", "meta"])
@pytest.mark.parametrize("line_search", ["ratios", "product"])
@pytest.mark.parametrize("outer_baseline", ["linear", None])
def test_what_a_step_is_measured_with(trust, line_search, policies, outer_baseline):
    """The figures of a step, measured again on its draws: what was compared rose by the gain, `kl` is whose it says."""
    options = {"line_search": line_search, "policies": policies, "damping": 0.01}
    run = trust.replace(optimizer_options=options, outer=9, inner=6, outer_baseline=outer_baseline)
    problem = Problem(run)
    theta, anchor = problem.initial(), problem.initial()
    batch = problem.draw(theta, 1)
    figures = problem.learner(theta).step(theta, batch)
    measures = problem.measures
    compared = measures.ratios if line_search == "ratios" else problem.compiled
    rise = float(batch.value(compared, theta)) - float(batch.value(compared, anchor))
    assert figures["gain"] == pytest.approx(rise, abs=1e-12)
    assert figures["gain"] > 0
    kl = {name: float(batch.value(getattr(measures, name), theta, anchor)) for name in ("adapted", "meta")}
    assert figures["kl"] == pytest.approx(kl[policies], abs=1e-12)
    assert abs(kl["adapted"] - kl["meta"]) > 1e-5


@pytest.mark.parametrize("policies", ["adapted", "meta"])
def test_slopes_that_are_kept_change_nothing(trust, policies):
    """The same bits, in chunks too."""
    ends = []
    for keep in (False, True):
        options = {"keep": keep, "policies": policies, "damping": 0.01}
        problem = Problem(trust.replace(optimizer_options=options, outer=8, chunk=2))
        ends.append(stepped(problem, problem.draw(problem.initial(), 1)))
    assert same(*ends)
    assert not same(ends[0], problem.initial())


@pytest.mark.slow
def test_products_of_ratios_claim_gains_that_do_not_come():
    """Forty steps: the replayed surrogate promises more than three, and on new draws next to nothing has changed."""
    run = Configuration(
        algorithm="emaml",
        horizon=40,
        tasks=10,
        inner=10,
        outer=10,
        hidden=(8,),
        inner_rate=0.1,
        discount=1.0,
        optimizer="TRPO",
        optimizer_options={"line_search": "product", "damping": 1e-3},
        evaluation_tasks=200,
    )
    problem = Problem(run)
    theta = problem.initial()
    learner = problem.learner(theta)
    for iteration in range(3):
        batch, anchor = problem.draw(theta, iteration), {name: leaf.clone() for name, leaf in theta.items()}
        before = problem.evaluate(theta)[:, 1].mean()
        claimed = learner.step(theta, batch)["gain"]
        came = float(problem.evaluate(theta)[:, 1].mean() - before)
        ratios = problem.measures.ratios
        promised = float(batch.value(ratios, theta) - batch.value(ratios, anchor))
        assert claimed > 3
        assert abs(came) < 0.6
        assert promised < claimed / 3


def test_a_trust_region_around_policies_that_adapt_implicitly(trust):
    """The outer step of the practical algorithm: on the divergence of the solved inner problems."""
    options = {"adam_steps": 20, "penalty": 5.0}
    run = trust.replace(algorithm="bomrl-practical", algorithm_options=options, standardise=True, inner=8, outer=8)
    problem = Problem(run)
    theta = problem.initial()
    batch = problem.draw(theta, 0)
    figures = problem.learner(theta).step(theta, batch)
    assert figures["gain"] > 0
    moved = float(problem.divergence.surrogate(theta, problem.initial(), batch.shards[0][1]))
    assert 0 < moved <= 0.01
    assert figures["kl"] == pytest.approx(moved, rel=1e-9)


@LEARNERS
def test_a_run_in_two_halves_is_the_run_in_one(trust, tmp_path, changes):
    half = trust.replace(**changes, iterations=4)
    whole = half.replace(output=str(tmp_path / "whole"))
    train(whole, reporters=[])
    train(half.replace(iterations=2), reporters=[])
    train(half, reporters=[])
    assert same_runs(half.output, whole.output)


@LEARNERS
def test_a_step_on_shards_is_the_step_on_their_draws_together(trust, changes):
    """In chunks, whole, or as one shard with all the draws: the same mean over tasks, so the same step."""
    run = trust.replace(shards=2, **changes)
    problem, chunked = Problem(run), Problem(run.replace(chunk=1))
    start = problem.initial()
    split = problem.draw(start, 0)
    ends = [stepped(problem, split), stepped(chunked, chunked.draw(start, 0)), stepped(problem, joined(split))]
    assert not same(ends[0], start)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-7, atol=1e-9)


def joined(batch: Any) -> Any:
    """The draws of all shards, of equal sizes, as one."""
    found = copy.copy(batch)
    traces = [trace._replace(value=trace.value.reshape(1)) for _, trace in batch.shards]
    whole = pytree.tree_map(lambda *leaves: torch.cat(leaves), *traces)
    found.shards = [(1.0, whole)]
    return found


def stepped(problem: Problem, batch: Any) -> Any:
    theta = problem.initial()
    problem.learner(theta).step(theta, batch)
    return theta


@LEARNERS
def test_a_run_of_two_ranks_is_that_of_one(tmp_path, changes):
    run = TRUST.replace(tasks=5, shards=3, iterations=3, **changes)
    one, two = (run.replace(output=str(tmp_path / name)) for name in ("one", "two"))
    train(one, reporters=[])
    assert in_ranks(2, train_on_rank, two) == [0, 0]
    torch.testing.assert_close(newest(two.output)["parameters"], newest(one.output)["parameters"], rtol=1e-6, atol=1e-9)
    for record, expected in zip(timeless(two.output), timeless(one.output), strict=True):
        assert record.get("tries") == expected.get("tries")


def test_a_gradient_that_is_not_finite_is_an_error(trust, monkeypatch):
    monkeypatch.setattr(
        "stochgraph.algorithms.training.batches.Batch.parts",
        lambda self, *_: [(1.0, lambda theta: theta["log_std"].sum() * float("inf"))],
    )
    with pytest.raises(TrainingError, match="iteration 0: the meta-gradient is not finite"):
        train(trust, reporters=[])


# --- epochs

CLIPPED = {"algorithm": "promp", "optimizer": "Adam"}


def test_the_first_clipped_epoch_goes_along_the_meta_gradient(trust):
    """At the anchor the ratios are 1: the gradient is that of the low-variance curvature."""
    options = {"standardise": False}
    problem = Problem(trust.replace(**CLIPPED, algorithm_options=options, discount=1.0, reference=True))
    theta = problem.initial()
    batch = problem.draw(theta, 0)
    _, expected = batch.value_and_grad(theta)
    clipped = problem.template.replayed
    assert clipped is not None
    _, found = batch.replayed(clipped.compile({}), theta, theta)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("changes", [CLIPPED, {"optimizer": "Adam"}], ids=["clipped", "surrogate"])
def test_epochs_are_steps_of_adam_on_the_same_draws(trust, changes):
    problem = Problem(trust.replace(**changes, epochs=3, gradient_clip=None))
    theta, expected = problem.initial(), problem.initial()
    anchor, batch = problem.initial(), problem.draw(theta, 0)
    figures = problem.learner(theta).step(theta, batch)
    adam = torch.optim.Adam(list(expected.values()), lr=trust.learning_rate, maximize=True)
    replayed = problem.template.replayed
    for _ in range(3):
        if replayed is None:
            _, gradient = batch.replayed(problem.compiled, expected)
        else:
            _, gradient = batch.replayed(replayed.compile({}), expected, anchor)
        for name, leaf in expected.items():
            leaf.grad = gradient[name]
        adam.step()
    assert same(theta, expected)
    moved = float(problem.divergence.surrogate(theta, anchor, batch.shards[0][1]))
    assert moved > 0
    assert figures["kl"] == pytest.approx(moved)


def test_learned_rates_are_learned(trust):
    """Every parameter has a rate, and it moves; parameters adapt with the rates they have."""
    run = trust.replace(algorithm="meta-sgd", optimizer="Adam", inner_rate=0.2)
    theta = train(run, reporters=[]).theta
    rates = {name: leaf for name, leaf in theta.items() if name.startswith("rate.")}
    assert {f"rate.{name}" for name in theta if name not in rates} == rates.keys()
    assert all((leaf != 0.2).any() for leaf in rates.values())


def test_equal_learned_rates_are_a_rate(trust):
    """The gradient of the parameters is that of MAML, and those of the rates sum to the derivative by its rate."""
    run = trust.replace(optimizer="Adam", steps=2)
    one, each = Problem(run.replace(algorithm="maml", inner_rate=0.3)), Problem(run.replace(algorithm="meta-sgd"))
    theta = one.initial()
    batch = one.draw(theta, 0)
    rates = {f"rate.{name}": torch.full_like(leaf, 0.3) for name, leaf in theta.items()}
    _, expected = batch.value_and_grad(theta)
    _, found = batch.replayed(each.compiled, theta | rates)
    torch.testing.assert_close({name: found[name] for name in theta}, expected, rtol=0.0, atol=1e-12)

    def value(rate):
        problem = Problem(run.replace(algorithm="maml", inner_rate=rate))
        return float(batch.replayed(problem.compiled, theta)[0])

    difference = (value(0.3 + 1e-5) - value(0.3 - 1e-5)) / 2e-5
    assert float(sum(found[name].sum() for name in rates)) == pytest.approx(difference, rel=1e-6)


# --- what does not fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm_options": {"clip": 0}}, "clip=0: must be a number more than 0"),
        ({"algorithm_options": {"penalty": -1}}, "penalty=-1: must be a number of at least 0"),
        ({"algorithm_options": {"standardise": 1}}, "standardise=1: expected true or false, as JSON has it, got int"),
        ({"algorithm_options": {"radius": 1}}, "'radius'; it takes clip, penalty, standardise"),
        ({"outer_baseline": "loo"}, "baseline='loo': promp takes 'linear' or none"),
        ({"estimator": "LSF"}, "'promp' climbs an objective of its own, which has no estimators"),
        ({"optimizer": "TRPO"}, "'TRPO' takes one step on the surrogate .* as 'promp' may be"),
        ({"algorithm": "lsf", "optimizer": "TRPO", "epochs": 2}, "'TRPO' takes one step .* and no epochs"),
        ({"algorithm": "lsf", "estimator_options": {"decay": 1}}, "name the estimator that they are for"),
        ({"algorithm": "meta-sgd", "steps": 0}, "meta_sgd learns the rates of inner steps"),
        ({"algorithm": "tmaml", "inner_baseline": "linear"}, "^algorithm: tmaml puts .* --inner-baseline none --no-"),
        ({"algorithm": "loo", "inner": 1}, "algorithm='loo': sample 'D1' .*leave-one-out on a plate of one"),
        ({"algorithm": "mamll"}, "did you mean 'maml'"),
        ({"algorithm": "lsf", "outer": 1, "outer_baseline": "loo"}, "outer=1: outer_baseline='loo' compares"),
        ({"algorithm": "lsf", "outer": 1, "outer_baseline": "mean", "shards": 4}, "outer=1: outer_baseline='mean'"),
        ({"algorithm": "tmaml", "inner": 1}, "inner=1: curvature_baseline='linear' compares"),
        ({"algorithm": "meta-sgd", "evaluation_steps": 0}, "evaluation_steps=0: .*needs at least one"),
        ({"algorithm": "lsf", "optimizer_options": {"betas": [0.9]}}, "optimizer_options=.*index out of range"),
        ({"algorithm": "lsf", "optimizer_options": {"capturable": True}}, "optimizer_options=.*capturable"),
        ({"algorithm": "lsf", "optimizer_options": {"maximize": False}}, "'maximize' is not an option"),
    ],
)  # fmt: skip
def test_algorithms_that_do_not_fit_are_refused(trust, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        Problem(trust.replace(**CLIPPED | changes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radius": -1}, r"optimizer_options=.*radius=-1: must be a number more than 0"),
        ({"damping": -1}, "damping=-1: must be a number of at least 0"),
        ({"backtracking": 1}, "backtracking=1: must be a number between 0 and 1"),
        ({"tries": 0}, "tries=0: must be an integer of at least 1"),
        ({"iterations": 2.5}, "iterations=2.5: expected an integer, got float"),
        ({"radius": "small"}, "optimizer_options: radius='small': expected a number, got str"),
        ({"lr": 0.1}, "optimizer_options: .*'lr'; it takes radius, damping, iterations, backtracking, tries"),
        ({"line_search": "sums"}, "line_search='sums' is not known: choose one of 'ratios', 'product'"),
        ({"policies": "both"}, "policies='both' is not known: choose one of 'adapted', 'meta'"),
    ],
)
def test_wrong_options_of_trust_regions_are_refused(trust, options, words):
    with pytest.raises(ConfigurationError, match=words):
        Problem(trust.replace(optimizer_options=options))


def test_the_names_of_all_optimisers_are_listed():
    with pytest.raises(ConfigurationError, match=r"choose from .*SGD, .*TRPO") as refused:
        Problem(Configuration(optimizer="natural"))
    assert "LBFGS" not in str(refused.value)


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam", "Optimizer"])
def test_optimisers_that_cannot_climb_dense_gradients_are_not_known(name):
    with pytest.raises(ConfigurationError, match=f"'{name}' is not a known optimizer"):
        Problem(Configuration(optimizer=name))


def test_an_inner_problem_that_is_not_solved_ends_a_run_in_words(trust):
    run = trust.replace(
        algorithm="bomrl", algorithm_options={"gain": "ratio"}, optimizer="Adam", inner_baseline="linear"
    )
    with pytest.raises(TrainingError, match=r"iteration \d: argmax .* LBFGS ended where .*(no|last good) checkpoint"):
        train(run, reporters=[])


def test_step_sizes_that_are_not_there_are_an_error():
    walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
    problem = MetaProblem(trajectories=walks, tasks=lambda: walks.environment.declare_tasks(2))
    with pytest.raises(ValueError, match=r"no step sizes among the parameters .*: wrap the policy in LearnedRates"):
        meta_sgd(problem).compile().sample(walks.policy.initial())


@pytest.mark.parametrize("steps", [1, 2])
def test_a_reference_counts_after_the_end_in_replays_as_in_draws(steps):
    """The recorded inner step is the drawn one for episodes of different lengths as well."""
    pytest.importorskip("gymnasium")
    walks = Rollouts(FrozenLake(size=3, horizon=6), TabularSoftmax(9, 4))
    problem = MetaProblem(
        trajectories=walks,
        tasks=lambda: walks.environment.declare_tasks(3),
        policy=walks.policy,
        inner_rate=0.7,
        steps=steps,
        discount=0.9,
        reference=lambda task: 0.5 + task.sum(),
    )
    template = problem.template(sg.MAML())
    theta = {"logits": torch.zeros(9, 4, dtype=torch.float64)}
    trace = template.compile().sample(theta, generator=torch.Generator().manual_seed(0))
    assert trace.draws["D1"].mask.min() == 0

    @sg.graph
    def scored(theta):
        task = problem.tasks()
        batches = recorded_batches(task, steps, problem.inner_reference)
        tau = whole(sg.sample("tau", Recorded(), task, n=1), "tau")
        own = adapted_to(batches, theta, template.adapt)
        return sg.mean(
            sg.apply(lambda p, t: (walks.policy.log_prob(p, t.observation, t.action) * t.mask).sum(), own, tau)
        )

    drawn = trace.draws["tau"].log_prob.sum(-1).mean()
    torch.testing.assert_close(scored.compile({}).surrogate(theta, trace), drawn, rtol=0.0, atol=1e-12)
