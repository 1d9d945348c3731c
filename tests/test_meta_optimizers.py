"""Trust-region steps and clipped epochs, on replays of one trace of a small meta-problem."""

import math
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.algorithms.inner_steps.advantages import LinearBaseline, gae
from stochgraph.algorithms.inner_steps.policy_gradient import ascend_advantages
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.objectives.replays import Recorded, adapted_divergence, adapted_gain, meta_divergence
from stochgraph.algorithms.optimizers.trust_region import conjugate_gradients, replay, trust_region_step
from stochgraph.algorithms.optimizers.vectors import Vector
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.promp import clipped_return
from stochgraph.algorithms.training.learners import Ascent
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
HORIZON = 4
SOLVED = 1e-6  # powers of a hundredth make the baseline's equations ill-conditioned; solvers differ by rounding


class Trajectory(NamedTuple):
    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    log_prob: Tensor


class Policy(GaussianMLP):
    """With a divergence, by torch's own formula."""

    def kl(self, old, new, observation):
        before, after = (
            torch.distributions.Normal(self.mean(p, observation), p["log_std"].exp(), validate_args=False)
            for p in (old, new)
        )
        return torch.distributions.kl_divergence(before, after).sum(-1)


POLICY = Policy(1, 1, hidden=(3,), log_std=-0.3)


class Line(sg.Sampler):
    """A point on a line, rewarded for being near the task's goal; the walk ends above 1. Counts its draws."""

    time = batched = True

    def __init__(self):
        self.drawn = 0

    def draw(self, batch_shape, *parents):
        self.drawn += 1
        theta, goal = parents
        position = torch.zeros(*batch_shape, 1, dtype=F64)
        running = torch.ones(batch_shape, dtype=F64)
        mean = sg.vectorize(POLICY.mean, len(batch_shape))
        std = sg.vectorize(POLICY.std, len(batch_shape))(theta)
        rows = []
        for _ in range(HORIZON):
            action = mean(theta, position) + std * torch.randn(*batch_shape, 1, dtype=F64)
            log_prob = sg.vectorize(POLICY.log_prob, len(batch_shape))(theta, position, action)
            after = position + 0.5 * action
            reward = -(after.squeeze(-1) - goal).abs() * running
            rows.append((position, action, reward, running, log_prob * running))
            running = running * (after.squeeze(-1) < 1)
            position = after
        along = [torch.stack(column, len(batch_shape)) for column in zip(*rows, strict=True)]
        return Trajectory(*along)

    def log_prob(self, value, *parents):
        return POLICY.log_prob(parents[0], value.observation, value.action) * value.mask


def tasks():
    return sg.sample("task", torch.distributions.Normal, torch.zeros((), dtype=F64), 1.0, n=5)


ADAPT = partial(ascend_advantages, policy=POLICY, rate=0.1, baseline=LinearBaseline(), discount=0.9, ratio=True)
THETA = {
    name: leaf * (10 if name == "2.weight" else 1)
    for name, leaf in POLICY.initial(torch.Generator().manual_seed(3), dtype=F64).items()
}


@pytest.fixture(scope="module")
def problem():
    """The line, the compiled return after one step, a trace, and the divergence."""
    line = Line()
    graph = adapted_return(line, tasks, inner_rate=0.1, inner=6, outer=6, adapt=ADAPT)
    compiled = graph.compile({"D1": sg.MAML(), "tau": sg.LVC()})
    trace = compiled.sample(THETA, generator=torch.Generator().manual_seed(0))
    assert 0 < trace.draws["tau"].mask.mean() < 1
    return line, compiled, trace, adapted_divergence(tasks, POLICY, ADAPT).compile({})


def random_parameters(scale, number=0):
    generator = torch.Generator().manual_seed(number)
    return {k: leaf + scale * torch.randn(leaf.shape, generator=generator, dtype=F64) for k, leaf in THETA.items()}


# --- conjugate gradients


@pytest.mark.parametrize("size", [1, 4, 9])
def test_conjugate_gradients_against_a_dense_solve(size):
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=F64)
    matrix, target = root @ root.T + torch.eye(size, dtype=F64), torch.arange(1.0, size + 1, dtype=F64)
    found = conjugate_gradients(lambda x: matrix @ x, target, iterations=2 * size, tolerance=1e-30)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), **EXACT)


def test_conjugate_gradients_take_as_many_steps_as_there_are_eigenvalues():
    diagonal = torch.tensor([2.0, 5.0, 5.0, 2.0, 2.0], dtype=F64)
    products = []

    def product(x):
        products.append(x)
        return diagonal * x

    found = conjugate_gradients(product, torch.ones(5, dtype=F64), tolerance=1e-24)
    torch.testing.assert_close(found, 1 / diagonal, **EXACT)
    assert len(products) == 2


def test_the_direction_is_the_natural_gradient(problem):
    """One candidate, a huge radius of acceptance: the step against dense algebra on the exact Hessian."""
    _, compiled, trace, divergence = problem
    start = Vector(THETA)
    hessian = torch.func.hessian(lambda flat: divergence.surrogate(start.at(flat), THETA, trace))(start.flat)
    slope = Vector(torch.func.grad(compiled.surrogate)(THETA, trace)).flat
    matrix = hessian + 0.1 * torch.eye(len(slope), dtype=F64)
    direction = torch.linalg.solve(matrix, slope)
    radius = 1e-6  # so small that the first candidate is accepted
    step = trust_region_step(
        THETA,
        replay(compiled, trace, over="task", chunk=2),
        replay(divergence, trace, THETA, over="task", chunk=2),
        radius=radius,
        damping=0.1,
        iterations=60,
    )
    expected = start.flat + torch.sqrt(2 * radius / (direction @ matrix @ direction)) * direction
    assert step.accepted
    assert step.tries == 1
    torch.testing.assert_close(Vector(step.parameters).flat, expected, rtol=0.0, atol=1e-8)


# --- the divergence


def test_the_divergence_by_hand(problem):
    """Task by task: adapt both by hand, mean over the steps that count of torch's own formula."""
    _, _, trace, divergence = problem
    candidate = random_parameters(0.1)
    data, tau = trace.draws["D1"], trace.draws["tau"]
    total = 0.0
    for i in range(5):
        old, new = (adapted_by_hand(p, pytree.tree_map(lambda x, i=i: x[i], data)) for p in (THETA, candidate))
        moved = POLICY.kl(old, new, tau.observation[i])
        total += float((moved * tau.mask[i]).sum() / tau.mask[i].sum()) / 5
    found = divergence.surrogate(candidate, THETA, trace)
    assert float(found) == pytest.approx(total, abs=SOLVED)
    assert float(found) > 1e-3


def adapted_by_hand(parameters, data):
    baseline = LinearBaseline()
    discounts = torch.tensor([[0.9 ** (u - t) if u >= t else 0.0 for u in range(HORIZON)] for t in range(HORIZON)])
    target = (data.reward @ discounts.to(F64).T) * data.mask
    value = baseline.value(baseline.fit(data.observation, data.mask, target), data.observation, data.mask)
    advantage = gae(data.reward, data.mask, value, 0.9)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in parameters.items()}
    ratio = torch.exp(POLICY.log_prob(leaves, data.observation, data.action) - data.log_prob)
    gain = (ratio * advantage * data.mask).sum(-1).mean()
    steps = torch.autograd.grad(gain, list(leaves.values()))
    return {name: (leaf + 0.1 * step).detach() for (name, leaf), step in zip(leaves.items(), steps, strict=True)}


@pytest.mark.parametrize("steps", [0, 1])
def test_the_divergence_before_adaptation_by_hand(problem, steps):
    _, _, trace, _ = problem
    candidate, data = random_parameters(0.1), trace.draws["D1" if steps else "tau"]
    compiled = meta_divergence(tasks, POLICY, steps=steps).compile({})
    moved = POLICY.kl(THETA, candidate, data.observation) * data.mask
    expected = float((moved.sum((1, 2)) / data.mask.sum((1, 2))).mean())
    assert float(compiled.surrogate(candidate, THETA, trace)) == pytest.approx(expected, abs=1e-12)
    assert expected > 1e-3
    assert all(x.abs().max() < 1e-12 for x in torch.func.grad(compiled.surrogate)(THETA, THETA, trace).values())


def test_the_divergence_and_its_slope_are_zero_at_the_anchor(problem):
    _, _, trace, divergence = problem
    assert abs(float(divergence.surrogate(THETA, THETA, trace))) < 1e-12
    slope = torch.func.grad(divergence.surrogate)(THETA, THETA, trace)
    assert all(leaf.abs().max() < 1e-12 for leaf in slope.values())


# --- trust-region steps


@pytest.mark.parametrize("radius", [0.1, 0.01, 0.001])
def test_accepted_steps_stay_within_the_radius(problem, radius):
    line, compiled, trace, divergence = problem
    drawn = line.drawn
    parameters, accepted = THETA, 0
    for _ in range(4):  # the anchor stays where the trace was drawn
        gain, moved = replay(compiled, trace), replay(divergence, trace, parameters)
        step = trust_region_step(parameters, gain, moved, radius=radius)
        found = float(divergence.surrogate(step.parameters, parameters, trace))
        before, after = (float(compiled.surrogate(p, trace)) for p in (parameters, step.parameters))
        if step.accepted:
            accepted += 1
            assert found <= radius
            assert step.divergence == pytest.approx(found, abs=1e-12)
            assert step.gain == pytest.approx(after - before, abs=1e-10)
            assert step.gain > 0
        parameters = step.parameters
    assert accepted >= 3
    assert line.drawn == drawn  # nothing is sampled


def test_chunks_make_no_difference(problem):
    _, compiled, trace, divergence = problem
    whole = trust_region_step(THETA, replay(compiled, trace), replay(divergence, trace, THETA), damping=0.1)
    gain, moved = (replay(c, trace, *o, over="task", chunk=2) for c, o in ((compiled, ()), (divergence, (THETA,))))
    cut = trust_region_step(THETA, gain, moved, damping=0.1)
    for name, leaf in whole.parameters.items():
        torch.testing.assert_close(cut.parameters[name], leaf, rtol=0.0, atol=1e-5)


def test_a_rejected_line_search_leaves_the_parameters_alone(problem):
    _, compiled, trace, _ = problem
    before = pytree.tree_map(torch.clone, THETA)

    def far(parameters):  # away from the start every candidate has moved too far
        distance = sum(((leaf - THETA[name]) ** 2).sum() for name, leaf in parameters.items())
        return distance + (distance.detach() > 0)

    step = trust_region_step(THETA, replay(compiled, trace), far, radius=0.01)
    assert not step.accepted
    assert step.parameters is THETA
    assert all(torch.equal(THETA[name], leaf) for name, leaf in before.items())
    assert (step.gain, step.divergence, step.tries) == (0.0, 0.0, 15)
    assert step.reason == "none of 15 candidates raised the gain within a divergence of 0.01"


def test_what_is_compared_decides():
    """Along the gradient of the gain; accepted is what raises another function, whose rise is told."""
    start, square = torch.zeros(2, dtype=F64), lambda t: 0.5 * (t**2).sum()
    options: dict[str, Any] = {"radius": 0.5, "damping": 0.0, "backtracking": 0.5}
    step = trust_region_step(start, lambda t: t[0], square, compared=lambda t: t[0] - t[0] ** 2 / 0.75, **options)
    torch.testing.assert_close(step.parameters, torch.tensor([0.5, 0.0], dtype=F64), **EXACT)
    assert step.gain == pytest.approx(0.5 - 0.25 / 0.75)
    none = trust_region_step(start, lambda t: t[0], square, compared=lambda t: -t[0], **options)
    assert none.parameters is start
    assert none.reason == "none of 15 candidates raised what is compared within a divergence of 0.5"


def test_backtracking_counts_its_tries():
    """A gain that falls beyond 0.5: sqrt(2 radius) = 1 must be halved once."""
    step = trust_region_step(
        torch.zeros(1, dtype=F64),
        lambda t: (t - t**2 / 0.75).sum(),
        lambda t: 0.5 * (t**2).sum(),
        radius=0.5,
        damping=0.0,
        backtracking=0.5,
    )
    assert step.tries == 2
    torch.testing.assert_close(step.parameters, torch.tensor([0.5], dtype=F64), **EXACT)


@pytest.mark.parametrize(
    ("gain", "divergence", "reason"),
    [
        (lambda t: (t * 0.0).sum(), lambda t: (t**2).sum(), "the gradient of the gain is zero"),
        (lambda t: (t / 0.0).sum(), lambda t: (t**2).sum(), "the gradient of the gain is zero or not finite"),
        (lambda t: t.sum(), lambda t: -(t**2).sum(), "the divergence does not curve along the step"),
    ],
)
def test_no_step_without_a_direction(gain, divergence, reason):
    start = torch.zeros(2, dtype=F64)
    step = trust_region_step(start, gain, divergence)
    assert step.parameters is start
    assert not step.accepted
    assert reason in step.reason


# --- gains by the ratios of single steps


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("baseline", [None, LinearBaseline()], ids=["plain", "baseline"])
def test_the_gain_of_single_steps_by_hand(problem, baseline, standardise):
    """Ratio times advantage at every step that counts, summed over a trajectory; no ratio meets another one."""
    _, _, trace, _ = problem
    candidate, data, tau = random_parameters(0.2), trace.draws["D1"], trace.draws["tau"]
    total = 0.0
    for i in range(5):
        adapted = adapted_by_hand(candidate, pytree.tree_map(lambda x, i=i: x[i], data))
        mask, observation = tau.mask[i], tau.observation[i]
        to_go = torch.stack([(tau.reward[i, :, t:] * 0.9 ** torch.arange(HORIZON - t)).sum(-1) for t in range(HORIZON)])
        advantage = to_go.mT * mask
        if baseline is not None:
            fitted = baseline.fit(observation, mask, advantage)
            advantage = (advantage - baseline.value(fitted, observation, mask)) * mask
        if standardise:
            mean = advantage.sum() / mask.sum()
            spread = (((advantage - mean) * mask) ** 2).sum() / mask.sum()
            advantage = (advantage - mean) / (spread + 1e-8).sqrt()
        log_prob = POLICY.log_prob(adapted, observation, tau.action[i])
        total += float((torch.exp(log_prob - tau.log_prob[i]) * advantage * mask).sum()) / 30
    compiled = adapted_gain(tasks, POLICY, ADAPT, baseline=baseline, discount=0.9, standardise=standardise).compile({})
    assert float(compiled.surrogate(candidate, trace)) == pytest.approx(total, abs=SOLVED)
    assert abs(total - float(compiled.surrogate(THETA, trace))) > 1e-3


# --- clipped epochs


def clipped(**options: Any) -> sg.Compiled:
    return clipped_return(tasks, POLICY, ADAPT, **options).compile({})


def test_the_clipped_objective_by_hand(problem):
    _, _, trace, _ = problem
    candidate = random_parameters(0.3, 1)
    data, tau = trace.draws["D1"], trace.draws["tau"]
    total, outside = 0.0, 0
    for i in range(5):
        adapted = adapted_by_hand(candidate, pytree.tree_map(lambda x, i=i: x[i], data))
        to_go = torch.stack([tau.reward[i, :, t:].sum(-1) for t in range(HORIZON)], -1) * tau.mask[i]
        log_prob = POLICY.log_prob(adapted, tau.observation[i], tau.action[i])
        for m in range(6):
            for t in range(HORIZON):
                if tau.mask[i, m, t]:
                    ratio, advantage = math.exp(log_prob[m, t] - tau.log_prob[i, m, t]), float(to_go[m, t])
                    outside += abs(ratio - 1) > 0.3
                    total += min(ratio * advantage, max(0.7, min(1.3, ratio)) * advantage) / 30
    moved = POLICY.kl(THETA, candidate, data.observation) * data.mask
    penalty = float((moved.sum((1, 2)) / data.mask.sum((1, 2))).mean())
    assert outside > 10
    assert float(clipped().surrogate(candidate, THETA, trace)) == pytest.approx(total, abs=SOLVED)
    found = clipped(penalty=0.5).surrogate(candidate, THETA, trace)
    assert float(found) == pytest.approx(total - 0.5 * penalty, abs=SOLVED)


def test_at_the_anchor_clipping_changes_nothing(problem):
    """The gradient is that of the return with the same update, its distribution dropped: MAML on the data, LVC."""
    _, compiled, trace, _ = problem
    expected = torch.func.grad(compiled.surrogate)(THETA, trace)
    found = torch.func.grad(clipped(penalty=0.5).surrogate)(THETA, THETA, trace)
    for name, leaf in expected.items():
        torch.testing.assert_close(found[name], leaf, **EXACT)


def test_several_epochs_on_one_trace(problem):
    line, _, trace, _ = problem
    drawn, compiled = line.drawn, clipped(clip=0.2, penalty=5e-4)
    theta = {name: leaf.clone() for name, leaf in THETA.items()}
    learner = Ascent(torch.optim.Adam(list(theta.values()), lr=3e-3, maximize=True))
    values = []
    for _ in range(5):
        value, gradient = sg.accumulate(compiled, theta, THETA, over="task", trace=trace, chunk=2)
        values.append(float(value))
        learner.ascend(theta, gradient)
    assert values == sorted(values)
    assert values[-1] > values[0] + 1e-3
    assert line.drawn == drawn


def test_recorded_trajectories_are_not_drawn():
    with pytest.raises(sg.SamplingError, match="replay a trace"):
        clipped().sample(THETA, THETA)
    with pytest.raises(sg.SamplingError, match="no parameters to be scored under"):
        Recorded().log_prob(None)


# --- vectors


def test_vectors():
    tree = {"a": torch.ones(2, 2), "n": torch.tensor(3), "b": [torch.tensor(5.0)]}
    vector = Vector(tree)
    assert vector.flat.tolist() == [1, 1, 1, 1, 5]
    moved = vector.moved(torch.arange(5.0))
    assert moved["a"].tolist() == [[1, 2], [3, 4]]
    assert moved["b"][0] == 9
    assert moved["n"] is tree["n"]
