"""Advantages and baselines against loops written out, and their declared form by enumeration of the two-state MDP."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.inner_steps.advantages import LinearBaseline, ValueNetwork, Zero, gae, returns_to_go
from stochgraph.algorithms.inner_steps.policy_gradient import advantages, ascend_advantages, whole
from tests.problems import DISCOUNT, F64, MDP_THETA, RATE, Path, TwoStateMDP, mdp, mdp_value

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
LENGTHS = [6, 1, 4, 3]


@pytest.fixture
def batch():
    """Four ragged trajectories of up to six steps: observation, reward, mask, value. After the end there is rubbish."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).to(F64)
    observation = 8 * torch.randn(4, 6, 3, generator=generator, dtype=F64)
    reward, value = torch.randn(2, 4, 6, generator=generator, dtype=F64)
    return observation, reward, mask, value


def returns_by_hand(reward, length, discount):
    return [sum(discount ** (u - t) * reward[u] for u in range(t, length)) for t in range(length)] + [0.0] * (
        6 - length
    )


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
def test_returns_to_go(batch, discount):
    _, reward, mask, _ = batch
    found = returns_to_go(reward, mask, discount)
    for i, length in enumerate(LENGTHS):
        expected = torch.tensor(returns_by_hand(reward[i].tolist(), length, discount), dtype=F64)
        torch.testing.assert_close(found[i], expected, **EXACT)


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (0.9, 0.8), (0.99, 1.0), (0.9, 0.0)])
def test_gae(batch, discount, decay):
    _, reward, mask, value = batch
    found = gae(reward, mask, value, discount, decay)
    for i, length in enumerate(LENGTHS):
        advantage = 0.0
        assert found[i, length:].eq(0).all()
        for t in reversed(range(length)):
            after = value[i, t + 1] if t + 1 < length else 0.0
            advantage = reward[i, t] + discount * after - value[i, t] + discount * decay * advantage
            torch.testing.assert_close(found[i, t], advantage, **EXACT)


def test_without_a_baseline_advantages_are_rewards_to_go(batch):
    _, reward, mask, _ = batch
    for i, length in enumerate(LENGTHS):
        summed = [float(reward[i, t:length].sum()) for t in range(6)]
        found = gae(reward[i], mask[i], Zero().value(None, reward[i], mask[i]))
        torch.testing.assert_close(found, torch.tensor(summed, dtype=F64) * mask[i], **EXACT)


def test_the_baseline_is_taken_off_once(batch):
    _, reward, mask, value = batch
    found = gae(reward, mask, value, discount=0.9)
    torch.testing.assert_close(found, returns_to_go(reward, mask, 0.9) - value * mask, **EXACT)


def test_plates_stand_in_front(batch):
    _, reward, mask, value = batch
    stacked = [x.reshape(2, 2, 6) for x in (reward, mask, value)]
    torch.testing.assert_close(
        gae(stacked[0], stacked[1], stacked[2], 0.9, 0.8).flatten(0, 1), gae(reward, mask, value, 0.9, 0.8), **EXACT
    )


def linear_by_hand(observation, mask, target):
    """Row by row: features, normal equations, solution, prediction."""

    def features(i, t):
        clipped = [max(-10.0, min(10.0, float(o))) for o in observation[i, t]]
        return torch.tensor([*clipped, *[o * o for o in clipped], *[(t / 100) ** k for k in (1, 2, 3)], 1.0], dtype=F64)

    steps = [(i, t) for i in range(4) for t in range(6) if mask[i, t]]
    moments, products = 1e-5 * torch.eye(10, dtype=F64), torch.zeros(10, dtype=F64)
    moments[-1, -1] = 0.0  # the intercept is not penalised
    for i, t in steps:
        row = features(i, t)
        moments += torch.outer(row, row)
        products += row * target[i, t]
    coefficients = torch.linalg.solve(moments, products)
    predicted = torch.zeros(4, 6, dtype=F64)
    for i, t in steps:
        predicted[i, t] = features(i, t) @ coefficients
    return predicted


def test_the_linear_baseline(batch):
    observation, reward, mask, _ = batch
    assert (observation.abs() > 10).any()
    target = returns_to_go(reward, mask, 0.9)
    baseline = LinearBaseline()
    found = baseline.value(baseline.fit(observation, mask, target), observation, mask)
    torch.testing.assert_close(found, linear_by_hand(observation, mask, target), rtol=0.0, atol=1e-6)


def test_a_value_network(batch):
    observation, reward, mask, _ = batch
    baseline = ValueNetwork(lambda p, o: o @ p, torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    value = baseline.value(None, observation, mask)
    torch.testing.assert_close(value, observation @ baseline.parameters * mask, **EXACT)
    target = returns_to_go(reward, mask)
    squares = [float((value[i, t] - target[i, t]) ** 2) for i in range(4) for t in range(LENGTHS[i])]
    assert float(baseline.loss(baseline.parameters, observation, mask, target)) == pytest.approx(
        sum(squares) / sum(LENGTHS), abs=1e-12
    )


# --- declared


class Episode(NamedTuple):
    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    log_prob: Tensor


class Episodes(TwoStateMDP):
    """The two-state MDP, ending after action 1 in state 1, so that trajectories are ragged; after that nothing is."""

    def __init__(self, horizon=2, ends=True):
        super().__init__(horizon)
        self.ends = ends

    def draw(self, batch_shape, *parents):
        return self._episode(super().draw(batch_shape, *parents))

    def enumerate(self, *parents):
        return self._episode(super().enumerate(*parents))

    def log_prob(self, value, *parents):
        path = value.observation.argmax(-1)
        return super().log_prob(Path(path, value.action, value.reward), *parents)

    def _episode(self, path):
        end = ((path.state == 1) & (path.action == 1)).to(F64) * self.ends
        mask = (end.cumsum(-1) - end == 0).to(F64)
        observation = torch.nn.functional.one_hot(path.state, 2).to(F64)
        return Episode(observation, path.action, path.reward * mask, mask, torch.zeros_like(mask))


class Softmax:
    """The policy of the two-state MDP, on observations that say which state it is."""

    def log_prob(self, theta, observation, action):
        return theta.log_softmax(-1)[observation.argmax(-1), action]


def adapted(n, ends=True, **options):
    """The exact value after one step on advantages."""

    @sg.graph
    def objective(theta):
        data = sg.sample("D", Episodes(ends=ends), theta, n=n)
        theta = ascend_advantages(theta, data, "D", Softmax(), RATE, discount=DISCOUNT, **options)
        return sg.apply(mdp_value, theta)

    return objective


OPTIONS: list[dict[str, Any]] = [
    {},
    {"standardise": True},
    {"baseline": LinearBaseline(), "decay": 0.8},
    {"baseline": LinearBaseline(), "standardise": True},
]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_score_function_is_exact(n, options):
    """Ragged data, a baseline fitted to the batch, standardised advantages: unbiased all the same."""
    assert sg.verify(adapted(n, **options).compile(sg.SF()), MDP_THETA).relative_bias < 1e-12


@pytest.mark.parametrize("options", OPTIONS)
def test_leave_one_out_is_exact(options):
    assert sg.verify(adapted(2, **options).compile(sg.LOO()), MDP_THETA).relative_bias < 1e-12


@pytest.mark.parametrize("options", OPTIONS)
def test_the_linearised_score_function_counts_every_path(options):
    """The bias is that of linearising, well below what dropping the paths costs, and the ledger says so."""
    graph = adapted(2, **options)
    linearised, dropped = (sg.verify(graph.compile(e), MDP_THETA).relative_bias for e in (sg.LSF(), sg.MAML()))
    assert 1e-4 < linearised < 0.6 * dropped
    rows = [row for row in graph.compile(sg.LSF()).explain().ledger if row.kind == "distribution"]
    assert {row.counted for row in rows} == {"linearized"}


def test_without_options_it_is_the_update_of_the_score_function():
    """Discounted from each step on, not from the first one: the direction for discount 1, on data that do not end."""
    plain, with_advantages = mdp(n=2), adapted(2, ends=False)
    first = plain.compile(sg.MAML())
    trace = first.sample(MDP_THETA, generator=torch.Generator().manual_seed(1))
    path = trace.draws["D"]
    episode = Episodes(ends=False)._episode(path)
    steps = DISCOUNT ** torch.arange(2, dtype=F64)
    again = trace._replace(draws={"D": episode._replace(reward=path.reward * steps)})
    undiscounted = adapted_without_discount().compile(sg.MAML())
    torch.testing.assert_close(undiscounted.surrogate(MDP_THETA, again), trace.value, **EXACT)
    assert with_advantages.compile(sg.MAML()).surrogate(MDP_THETA, again) != trace.value


def adapted_without_discount():
    @sg.graph
    def objective(theta):
        data = sg.sample("D", Episodes(ends=False), theta, n=2)
        return sg.apply(mdp_value, ascend_advantages(theta, data, "D", Softmax(), RATE))

    return objective


def test_standardised_advantages_have_mean_zero_and_unit_spread():
    @sg.graph
    def objective(theta):
        data = sg.sample("D", Episodes(horizon=5), theta, n=20)
        advantage = advantages(whole(data, "D"), "D", baseline=LinearBaseline(), standardise=True)
        pair = sg.apply(lambda a, m: torch.stack([a.sum(), (a**2).sum(), m.sum()]), advantage, whole(data, "D").mask)
        return sg.reduce(lambda x: x[:, 0].sum() * 1e6 + x[:, 1].sum() / x[:, 2].sum(), pair)

    trace = objective.compile(sg.SF()).sample(MDP_THETA, generator=torch.Generator().manual_seed(0))
    assert trace.draws["D"].mask.mean() < 1
    assert float(trace.value) == pytest.approx(1, abs=1e-5)


def test_the_ratio_has_the_same_direction_and_the_low_variance_curvature():
    compiled = adapted(3).compile(sg.MAML())
    trace = compiled.sample(MDP_THETA, generator=torch.Generator().manual_seed(0))
    data = trace.draws["D"]
    scores = Softmax().log_prob(MDP_THETA, data.observation, data.action)
    recorded = trace._replace(draws={"D": data._replace(log_prob=scores)})
    by_ratio = adapted(3, ratio=True).compile(sg.MAML())
    torch.testing.assert_close(by_ratio.surrogate(MDP_THETA, recorded), trace.value, **EXACT)

    advantage = returns_to_go(data.reward, data.mask, DISCOUNT)

    def value(theta, lvc):
        log_ratio = Softmax().log_prob(theta, data.observation, data.action) - scores
        inner = ((log_ratio.exp() if lvc else log_ratio) * advantage * data.mask).sum(-1).mean()
        (step,) = torch.autograd.grad(inner, theta, create_graph=True)
        return mdp_value(theta + RATE * step)

    for lvc, graph in ((False, compiled), (True, by_ratio)):
        theta = MDP_THETA.clone().requires_grad_()
        (expected,) = torch.autograd.grad(value(theta, lvc), theta)
        found = torch.func.grad(graph.surrogate)(MDP_THETA, recorded)
        torch.testing.assert_close(found, expected, **EXACT)
