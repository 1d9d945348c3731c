"""Two-dimensional navigation and the meta-objective on it, against formulas written out for one trajectory at a time.

The meta-gradients of six estimators are written by hand from the recorded trajectories; what a trajectory is, and
what a policy's log-density is, is recomputed from recorded actions with plain torch. The two z-tests here fail by
chance with a probability of 1.2e-6 together.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.algorithms.environments import Navigation
from stochgraph.algorithms.objectives.meta_policy_gradient import adapted_return
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts, Trajectory
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
POLICY = GaussianMLP(2, 2, hidden=(4,), log_std=-0.5)
RATE, DISCOUNT, TASKS, INNER, OUTER, HORIZON = 0.3, 0.9, 3, 2, 4, 5


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def parameters(number: int = 0) -> dict[str, Tensor]:
    """Parameters with a last layer of full size, so that observations matter."""
    theta = POLICY.initial(seed(number), dtype=F64)
    return {name: 10 * leaf if name == "2.weight" else leaf for name, leaf in theta.items()}


def tasks() -> Any:
    corner = torch.full((2,), 0.5, dtype=F64)
    return sg.sample("task", Uniform, -corner, corner, n=TASKS)


def standing_still(goal: Tensor) -> Tensor:
    return -goal.square().sum()


def meta(steps: int = 1, reference: Any = standing_still, **options: Any) -> sg.Graph:
    walk = Rollouts(Navigation(action_scale=0.1), POLICY, options.pop("horizon", HORIZON))
    settings = {"inner_rate": RATE, "inner": INNER, "outer": OUTER, "discount": DISCOUNT, **options}
    return adapted_return(walk, tasks, steps=steps, reference=reference, **settings)


# --- the environment


def walk_by_hand(action: Tensor, goal: Tensor, reward: str, scale: float) -> tuple[Tensor, Tensor]:
    """The observations and rewards of one trajectory, coordinate by coordinate."""
    position, observations, rewards = [0.0, 0.0], [], []
    for step in action.tolist():
        observations.append(position)
        velocity = [max(-0.1, min(0.1, scale * a)) for a in step]
        position = [max(-0.5, min(0.5, p + v)) for p, v in zip(position, velocity, strict=True)]
        squared = sum((p - g) ** 2 for p, g in zip(position, goal.tolist(), strict=True))
        rewards.append(-squared if reward == "squared distance" else -math.sqrt(squared))
    return torch.tensor(observations, dtype=F64), torch.tensor(rewards, dtype=F64)


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.03])
@pytest.mark.parametrize("reward", ["squared distance", "distance"])
def test_dynamics(reward, scale):
    """One policy and one goal per task, three trajectories each; a bias drives some of them into the wall."""
    walk = Rollouts(Navigation(reward, action_scale=scale), POLICY, horizon=16)
    theta = [parameters(i) for i in range(2)]
    theta[0]["2.bias"] = torch.tensor([4.0, -0.5], dtype=F64)
    stacked = {name: torch.stack([one[name] for one in theta]).unsqueeze(1) for name in theta[0]}
    goal = torch.tensor([[0.3, -0.4], [0.0, 0.5]], dtype=F64).unsqueeze(1)
    torch.manual_seed(0)
    found = walk.draw(torch.Size([2, 3]), stacked, goal)
    assert [tuple(leaf.shape) for leaf in found] == [(2, 3, 16, 2)] * 2 + [(2, 3, 16)] * 3
    assert (found.mask == 1).all()
    for i, j in itertools.product(range(2), range(3)):
        observation, rewards = walk_by_hand(found.action[i, j], goal[i, 0], reward, scale)
        torch.testing.assert_close(found.observation[i, j], observation, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(found.reward[i, j], rewards, rtol=0.0, atol=1e-12)
    # The clips were at work, and not everywhere.
    clipped = (scale * found.action).abs() > 0.1
    assert clipped.any()
    assert not clipped.all()
    if scale > 0.03:
        assert (found.observation[0, :, -1, 0] == 0.5).all()
    assert (found.observation[1].abs() < 0.5).any()
    assert (found.observation[:, :, 0] == 0).all()


def test_actions_follow_the_policy():
    """With the least noise that the floor allows, an action is the mean of what the policy does at its observation."""
    policy = GaussianMLP(2, 2, hidden=(4,), least_log_std=-20.0)
    theta = {**parameters(), "log_std": torch.full((2,), -30.0, dtype=F64)}
    theta["2.bias"] = torch.tensor([0.5, -0.3], dtype=F64)
    walk = Rollouts(Navigation(action_scale=0.1), policy, horizon=6)
    found = walk.draw(
        torch.Size([3]), pytree.tree_map(lambda leaf: leaf.unsqueeze(0), theta), torch.zeros(1, 2, dtype=F64)
    )
    torch.testing.assert_close(found.action, policy.mean(theta, found.observation), rtol=0.0, atol=1e-7)
    assert (found.action[:, 1:] - found.action[:, :-1]).abs().max() > 1e-3
    hidden = torch.tanh(found.observation[0, 3] @ theta["0.weight"].mT + theta["0.bias"])
    by_hand = hidden @ theta["2.weight"].mT + theta["2.bias"]
    torch.testing.assert_close(policy.mean(theta, found.observation[0, 3]), by_hand, **EXACT)


def test_actions_have_the_spread_of_the_policy():
    """Standardised actions are normal, so the sum of their squares is chi-square: two z-tests at |z| < 5."""
    theta = {**parameters(), "log_std": torch.tensor([-0.7, 0.4], dtype=F64)}
    walk = Rollouts(Navigation(action_scale=0.1), POLICY, horizon=20)
    torch.manual_seed(0)
    stacked = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), theta)
    found = walk.draw(torch.Size([200]), stacked, torch.zeros(1, 2, dtype=F64))
    standardised = (found.action - POLICY.mean(theta, found.observation)) / theta["log_std"].exp()
    for square in standardised.square().flatten(0, 1).sum(0):
        assert abs(float(square) - 4000) < 5 * math.sqrt(2 * 4000)


def test_log_prob_is_that_of_torchs_normal():
    theta = {**parameters(), "log_std": torch.tensor([-0.7, 0.2], dtype=F64)}
    observation, action = torch.randn(2, 3, 5, 2, generator=seed(), dtype=F64)
    expected = Normal(POLICY.mean(theta, observation), theta["log_std"].exp()).log_prob(action).sum(-1)
    torch.testing.assert_close(POLICY.log_prob(theta, observation, action), expected, **EXACT)


def test_the_floor_of_the_log_std():
    policy = GaussianMLP(2, 2, hidden=(4,), least_log_std=-1.0)
    theta = {**parameters(), "log_std": torch.tensor([-3.0, 0.5], dtype=F64)}
    torch.testing.assert_close(policy.std(theta), torch.tensor([-1.0, 0.5], dtype=F64).exp(), **EXACT)
    observation, action = torch.randn(2, 5, 2, generator=seed(), dtype=F64)
    expected = Normal(policy.mean(theta, observation), policy.std(theta)).log_prob(action).sum(-1)
    torch.testing.assert_close(policy.log_prob(theta, observation, action), expected, **EXACT)
    slope = torch.func.grad(lambda t: policy.log_prob(t, observation, action).sum())(theta)["log_std"]
    assert slope[0] == 0
    assert slope[1] != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "sparse"}, r"reward='sparse' is not known: choose \"squared distance\" or \"distance\""),
        ({"horizon": 0}, "horizon must be at least 1 step, got 0"),
        ({"horizon": -3}, "horizon must be at least 1 step, got -3"),
        ({"goal_size": 0.0}, "goal_size must be positive, or None for episodes that do not end; got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Navigation(**options)


def test_goals_are_in_the_square():
    @sg.graph
    def objective(theta):
        return sg.mean(Navigation().declare_tasks(50).sum() * theta)

    drawn = objective.compile({}).sample(torch.tensor(1.0), generator=seed()).draws["task"]
    assert drawn.shape == (50, 2)
    assert drawn.abs().max() <= 0.5
    assert (drawn.amin(0) < -0.3).all()
    assert (drawn.amax(0) > 0.3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_parameters(dtype):
    walk = Rollouts(Navigation(), POLICY, horizon=3)
    graph = adapted_return(walk, lambda: walk.environment.declare_tasks(2), inner_rate=0.1, inner=2, outer=2)
    theta = POLICY.initial(seed(), dtype=dtype)
    value, grads = graph.compile(sg.LSF()).value_and_grad(theta, generator=seed())
    assert {value.dtype, *(leaf.dtype for leaf in grads.values())} == {dtype}


# --- the meta-objective


def test_one_seed_gives_one_trace_and_leaves_the_global_generator_alone():
    compiled = meta(2).compile(sg.LSF())
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    traces = [compiled.sample(parameters(), generator=seed(i)) for i in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), before)
    leaves = [pytree.tree_leaves(trace) for trace in traces]
    assert all(torch.equal(one, same) for one, same in zip(leaves[0], leaves[1], strict=True))
    for name in ("D1", "D2", "tau"):
        assert not (traces[0].draws[name].action == traces[2].draws[name].action).any()
    assert not (traces[0].draws["task"] == traces[2].draws["task"]).any()


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.MAML(), sg.SGMRLPublished()], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_at_the_parameters_that_drew_them_all_ratios_are_one(steps, estimator):
    compiled = meta(steps).compile(estimator)
    trace = compiled.sample(parameters(), generator=seed())
    assert float(compiled.surrogate(parameters(), trace)) == pytest.approx(float(trace.value), rel=1e-12)
    value, _ = compiled.value_and_grad(parameters(), generator=seed())
    assert float(value) == pytest.approx(float(trace.value), rel=1e-12)
    single = {name: leaf.float() for name, leaf in parameters().items()}
    replayed = compiled.surrogate(single, pytree.tree_map(lambda x: x.float(), trace))
    assert float(replayed) == pytest.approx(float(trace.value), rel=1e-5)


STEPS = {0: ("task", "tau"), 1: ("task", "D1", "tau"), 2: ("task", "D1", "D2", "tau")}


@pytest.mark.parametrize("steps", STEPS)
def test_nodes_axes_and_ledger(steps):
    graph = meta(steps)
    assert graph.samples == STEPS[steps]
    nodes = graph.networkx.nodes
    assert nodes["task"]["axes"] == ("task",)
    for name in STEPS[steps][1:]:
        assert nodes[name]["axes"] == ("task", name, f"{name}.time")
    assert [name for name in nodes if nodes[name]["kind"] == "update"] == [
        "theta" + "'" * k for k in range(1, steps + 1)
    ]
    trace = graph.compile(sg.LSF()).sample(parameters(), generator=seed(), sizes={"task": 2, "tau": 7})
    assert trace.draws["tau"].reward.shape == (2, 7, HORIZON)
    assert all(trace.draws[name].action.shape == (2, INNER, HORIZON, 2) for name in STEPS[steps][1:-1])
    words = {"SF": "once", "LSF": "linearized", "MAML": "dropped", "EMAML": "scaled", "SGMRLPublished": "twice"}
    for name, word in words.items():
        explained = graph.compile(getattr(sg, name)()).explain()
        counted = {
            row.sample: {r.counted for r in explained.ledger if r.sample == row.sample} for row in explained.ledger
        }
        counted.pop("", None)
        assert counted == {**{sample: {word} for sample in STEPS[steps][1:-1]}, "tau": {"once"}}
        assert explained.unbiased == (name == "SF" or steps == 0)


def rewards_of(trajectory: Trajectory, goal: Tensor, i: int) -> Tensor:
    """Discounted rewards above the reference, shape `(draws, time)`."""
    weights = DISCOUNT ** torch.arange(trajectory.reward.shape[-1], dtype=F64)
    return weights * (trajectory.reward[i] - standing_still(goal[i]))


def scores_of(theta: dict[str, Tensor], trajectory: Trajectory, i: int) -> Tensor:
    """The log-density of every action of a task, one trajectory after the other, shape `(draws, time)`."""
    rows = []
    for observation, action in zip(trajectory.observation[i], trajectory.action[i], strict=True):
        rows.append(Normal(POLICY.mean(theta, observation), theta["log_std"].exp()).log_prob(action).sum(-1))
    return torch.stack(rows)


def ascend(theta: dict[str, Tensor], inner: Tensor) -> dict[str, Tensor]:
    steps = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
    return {name: leaf + RATE * step for (name, leaf), step in zip(theta.items(), steps, strict=True)}


def fixed_sample(scores: Tensor, rewards: Tensor) -> Tensor:
    return (rewards * scores.cumsum(-1)).sum(-1).mean()


def dice(scores: Tensor, rewards: Tensor) -> Tensor:
    summed = scores.cumsum(-1)
    return (rewards * torch.exp(summed - summed.detach())).sum(-1).mean()


def leaves() -> dict[str, Tensor]:
    return {name: leaf.clone().requires_grad_() for name, leaf in parameters().items()}


def test_every_task_has_adapted_parameters_of_its_own():
    """The recorded log-probabilities of `tau` are those under parameters adapted by hand on the task's own data."""
    trace = meta().compile(sg.LSF()).sample(parameters(), generator=seed())
    goal, data, tau = (trace.draws[name] for name in ("task", "D1", "tau"))
    for i in range(TASKS):
        theta = leaves()
        adapted = ascend(theta, fixed_sample(scores_of(theta, data, i), rewards_of(data, goal, i)))
        torch.testing.assert_close(trace.log_probs["D1"][i], scores_of(theta, data, i).detach(), **EXACT)
        torch.testing.assert_close(trace.log_probs["tau"][i], scores_of(adapted, tau, i).detach(), **EXACT)
        for j in range(TASKS):
            if j != i:  # no other task's actions fit to them
                assert (trace.log_probs["tau"][j] - scores_of(adapted, tau, j).detach()).abs().max() > 1e-3
        assert (trace.log_probs["tau"][i] - scores_of(theta, tau, i).detach()).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["SF", "LSF", "MAML", "EMAML", "SGMRLPublished", "FirstOrder"])
def test_meta_gradients_by_hand(name):
    """The estimators' formulas, one task after the other, on the same samples."""
    compiled = meta().compile(getattr(sg, name)())
    trace = compiled.sample(parameters(), generator=seed())
    goal, data, tau = (trace.draws[sample] for sample in ("task", "D1", "tau"))
    theta = leaves()
    total = torch.zeros((), dtype=F64)
    for i in range(TASKS):
        scores = scores_of(theta, data, i)
        inner = dice if name in ("LSF", "SGMRLPublished") else fixed_sample
        adapted = ascend(theta, inner(scores, rewards_of(data, goal, i)))
        if name == "FirstOrder":
            adapted = {key: leaf + (adapted[key] - leaf).detach() for key, leaf in theta.items()}
        outcome = rewards_of(tau, goal, i)
        total = total + fixed_sample(scores_of(adapted, tau, i), outcome) / TASKS
        if name in ("SF", "SGMRLPublished", "EMAML"):
            share = INNER if name == "EMAML" else 1
            total = total + outcome.sum(-1).mean() * scores.sum() / share / TASKS
    by_hand = dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))
    found = torch.func.grad(compiled.surrogate)(parameters(), trace)
    torch.testing.assert_close(found, by_hand, **EXACT)
    one_pass = compiled.value_and_grad(parameters(), generator=seed())[1]
    torch.testing.assert_close(one_pass, by_hand, **EXACT)


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.MAML()], ids=str)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_gradient_is_the_mean_over_chunks_of_tasks(steps, estimator):
    """A trace is a pytree with the tasks first: tasks that do not fit into memory can be taken one after the other."""
    compiled = meta(steps).compile(estimator)
    trace = compiled.sample(parameters(), generator=seed(), sizes={"task": 6})
    whole = torch.func.grad(compiled.surrogate)(parameters(), trace)
    for size in (1, 2, 3):
        chunks = []
        for start in range(0, 6, size):
            draws, log_probs = pytree.tree_map(lambda x, i=start, n=size: x[i : i + n], (trace.draws, trace.log_probs))
            chunk = trace._replace(draws=draws, log_probs=log_probs)
            chunks.append(torch.func.grad(compiled.surrogate)(parameters(), chunk))
        mean = pytree.tree_map(lambda *parts: torch.stack(parts).mean(0), *chunks)
        torch.testing.assert_close(mean, whole, **EXACT)


def test_a_reference_leaves_the_expected_gradient_alone():
    """Exactly: with noise of +1 and -1 the scores of a Gaussian step have mean zero, as they have with normal noise.

    The reference is a constant times these scores. All 2^4 noises of two steps are averaged over, at no inner step;
    the gradient without the reference stays far from zero, and single gradients do move.
    """
    graphs = [meta(0, reference, horizon=2) for reference in (None, standing_still)]
    theta, goal = parameters(), torch.tensor([0.3, -0.4], dtype=F64)
    found: list[list[Tensor]] = [[], []]
    for noise in itertools.product([-1.0, 1.0], repeat=4):
        tau = steered(theta, goal, torch.tensor(noise, dtype=F64).reshape(2, 2))
        recorded = POLICY.log_prob(theta, tau.observation, tau.action)
        draws = {"task": goal.unsqueeze(0), "tau": pytree.tree_map(lambda x: x[None, None], tau)}
        trace = sg.Trace(torch.zeros(()), draws, {"tau": recorded[None, None]}, {})
        for graph, gradients in zip(graphs, found, strict=True):
            grad = torch.func.grad(graph.compile(sg.SF()).surrogate)(theta, trace)
            gradients.append(torch.cat([leaf.flatten() for leaf in grad.values()]))
    without, above = (torch.stack(gradients) for gradients in found)
    torch.testing.assert_close(above.mean(0), without.mean(0), rtol=0.0, atol=1e-12)
    assert without.mean(0).norm() > 1e-3
    assert (above - without).norm(dim=1).min() > 1e-3


def steered(theta: dict[str, Tensor], goal: Tensor, noise: Tensor) -> Trajectory:
    """The trajectory that given standardised noise, shape `(time, 2)`, makes."""
    position, steps = torch.zeros(2, dtype=F64), []
    for shock in noise:
        action = POLICY.mean(theta, position) + theta["log_std"].exp() * shock
        after = (position + (0.1 * action).clamp(-0.1, 0.1)).clamp(-0.5, 0.5)
        steps.append((position, action, -(after - goal).square().sum()))
        position = after
    observation, actions, reward = (torch.stack(column) for column in zip(*steps, strict=True))
    log_prob = POLICY.log_prob(theta, observation, actions)
    return Trajectory(observation, actions, reward, torch.ones_like(reward), log_prob)
