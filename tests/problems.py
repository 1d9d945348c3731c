"""Small graphs that the tests share: few enough outcomes to enumerate, one for every rule of the compiler."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical
from torch.nn.functional import one_hot

import stochgraph as sg

F64 = torch.float64

BANDIT_REWARD = torch.tensor([0.1, 1.0, -0.6], dtype=F64)
BANDIT_THETA = torch.tensor([0.2817755826117539, 0.571528236398211, 0.42950429533573536], dtype=F64)
TASK_REWARD = torch.tensor([[0.1, 1.0, -0.6], [0.7, -0.2, 0.3]], dtype=F64)

TRANSITION = torch.tensor(
    [
        [[0.8622880285375046, 0.13771197146249534], [0.060243808948215585, 0.9397561910517843]],
        [[0.5778791345410295, 0.4221208654589707], [0.3930094690411185, 0.6069905309588814]],
    ],
    dtype=F64,
)
REWARD = torch.tensor([[0.5813409198075745, 0.2882358921361502], [0.4528688488811142, 0.17679952620371409]], dtype=F64)
INITIAL = torch.tensor([0.4, 0.6], dtype=F64)
MDP_THETA = torch.tensor(
    [[-0.42833729664818715, 0.5503020854517136], [-0.5355936815545737, 0.06135061958165608]], dtype=F64
)
DISCOUNT, RATE = 0.9, 0.7
LATENT_THETA = torch.tensor([0.3, -0.5, 0.8], dtype=F64)


def additive(n: int = 3) -> sg.Graph:
    """A nonlinear function of the mean of n draws, with a term that depends on theta through values too."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta[0], n=n)
        return -((sg.mean(theta[1] * x + torch.sin(x)) - 1.0) ** 2)

    return objective


def bandit(steps: int = 1, n: int = 2, m: int = 1) -> sg.Graph:
    """Inner policy-gradient steps of a softmax bandit, then m pulls."""

    @sg.graph
    def objective(theta):
        for k in range(1, steps + 1):
            pulls = sg.sample(f"D{k}", Categorical, logits=theta, n=n)
            theta = sg.ascend(theta, sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), 0.7)
        last = sg.sample("tau", Categorical, logits=theta, n=m)
        return sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], last))

    return objective


def task_bandit(steps: int = 1, n: int = 2, exact: bool = False) -> sg.Graph:
    """The same under a plate of two tasks; the outcome is one more pull, or its exact mean."""

    @sg.graph
    def objective(theta):
        task = sg.sample("task", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=2)
        for k in range(1, steps + 1):
            pulls = sg.sample(f"D{k}", lambda logits, _: Categorical(logits=logits), theta, task, n=n)
            reward = sg.apply(lambda a, i: TASK_REWARD[i, a], pulls, task)
            theta = sg.ascend(theta, sg.mean(reward, over=f"D{k}"), 0.7)
        if exact:
            return sg.mean(sg.apply(lambda t, i: (t.softmax(-1) * TASK_REWARD[i]).sum(), theta, task))
        last = sg.sample("tau", Categorical, logits=theta)
        return sg.mean(sg.apply(lambda a, i: TASK_REWARD[i, a], last, task))

    return objective


class Path(NamedTuple):
    """A trajectory of the two-state MDP."""

    state: Tensor
    action: Tensor
    reward: Tensor


class TwoStateMDP(sg.Sampler):
    """Trajectories of a softmax policy; the state after the last action is not part of them."""

    time = True

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Path:
        policy = parents[0].softmax(-1).expand(*batch_shape, 2, 2)
        state = _pick(INITIAL.expand(*batch_shape, 2))
        states, actions = [], []
        for _ in range(self.horizon):
            chosen = policy.gather(-2, state[..., None, None].expand(*batch_shape, 1, 2)).squeeze(-2)
            action = _pick(chosen)
            states.append(state)
            actions.append(action)
            state = _pick(TRANSITION[state, action])
        visited, taken = torch.stack(states, -1), torch.stack(actions, -1)
        return Path(visited, taken, REWARD[visited, taken])

    def log_prob(self, value: Path, *parents: Any) -> Tensor:
        s, a = value.state, value.action
        world = torch.cat([INITIAL[s[:1]].log(), TRANSITION[s[:-1], a[:-1], s[1:]].log()])
        return parents[0].log_softmax(-1)[s, a] + world

    def enumerate(self, *parents: Any) -> Path:
        choices = torch.cartesian_prod(*[torch.arange(2)] * (2 * self.horizon))
        s, a = choices[:, : self.horizon], choices[:, self.horizon :]
        return Path(s, a, REWARD[s, a])


def _pick(probabilities: Tensor) -> Tensor:
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return torch.multinomial(flat, 1).reshape(probabilities.shape[:-1])


def mdp_value(theta: Tensor, horizon: int = 2) -> Tensor:
    """The exact discounted return of the softmax policy, by backward induction."""
    value = torch.zeros(2, dtype=theta.dtype)
    for _ in range(horizon):
        value = (theta.softmax(-1) * (REWARD + DISCOUNT * (TRANSITION @ value))).sum(-1)
    return INITIAL.to(theta.dtype) @ value


def mdp(horizon: int = 2, n: int = 2, m: int | None = None) -> sg.Graph:
    """One inner policy-gradient step with reward-to-go; then the exact value, or m trajectories."""

    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(horizon), theta, n=n)
        adapted = sg.ascend(theta, sg.mean(sg.sum(data.reward, discount=DISCOUNT)), RATE)
        if m is None:
            return sg.apply(lambda t: mdp_value(t, horizon), adapted)
        tau = sg.sample("tau", TwoStateMDP(horizon), adapted, n=m)
        return sg.mean(sg.sum(tau.reward, discount=DISCOUNT))

    return objective


def discounted_to_go(reward: Tensor) -> Tensor:
    """Discounted rewards from each step on, along the last dimension, discounted from the first step."""
    weighted = reward * DISCOUNT ** torch.arange(reward.shape[-1], dtype=F64)
    return weighted.flip(-1).cumsum(-1).flip(-1)


def mdp_whole_trajectory(horizon: int = 2, n: int = 2) -> sg.Graph:
    """The same update as a loss on given data. Its terms are whole trajectories, so boxes are not split over time."""

    @sg.graph
    def objective(theta):
        data = sg.sample("D", TwoStateMDP(horizon), theta, n=n)
        copy = sg.apply(torch.clone, theta)
        log_prob = sg.apply(lambda t, s, a: t.log_softmax(-1)[s, a], copy, data.state, data.action)
        pair = sg.apply(lambda lp, r: (lp, r), log_prob, data.reward)
        loss = sg.reduce(lambda x: (x[0] * discounted_to_go(x[1])).sum(), pair, over="D.time")
        return sg.apply(lambda t: mdp_value(t, horizon), sg.ascend(copy, sg.mean(loss), RATE))

    return objective


def chain() -> sg.Graph:
    """Three Bernoulli latents in a row; products of plate means, and theta in the cost."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta[0], n=2)
        y = sg.sample("y", Bernoulli, logits=theta[1] * x + theta[0])
        z = sg.sample("z", Bernoulli, logits=theta[2] * y - theta[1] * x)
        return (sg.mean(x * y + z) - theta[1]) ** 2 + sg.mean(torch.exp(y * theta[0])) * sg.mean(z)

    return objective


def fork() -> sg.Graph:
    """One latent with two plates of children."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta[0])
        y = sg.sample("y", Bernoulli, logits=theta[1] * x + theta[0], n=2)
        z = sg.sample("z", Bernoulli, logits=theta[2] * x - theta[1], n=3)
        return torch.sin(sg.mean(y)) * sg.mean(z) + x * theta[2]

    return objective


def centered() -> sg.Graph:
    """A plate's mean broadcast back into the plate: each term depends on all draws."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta[0], n=3)
        return sg.mean((x - sg.mean(x)) ** 2 * theta[1])

    return objective


def extreme() -> sg.Graph:
    """A function of the whole plate that is no mean."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Categorical, logits=theta, n=3)
        return sg.reduce(lambda draws: draws.max(0).values, sg.apply(lambda a: BANDIT_REWARD[a], x))

    return objective


def regularized() -> sg.Graph:
    """An inner objective whose costs depend on the parameters through values as well."""

    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", Categorical, logits=theta, n=2)
        cost = sg.apply(lambda a, t: BANDIT_REWARD[a] * t[0] - 0.3 * t.log_softmax(-1)[a], pulls, theta)
        adapted = sg.ascend(theta, sg.mean(cost), 0.7)
        return sg.apply(lambda t: (t.softmax(-1) * BANDIT_REWARD).sum(), adapted)

    return objective


def nonlinear_inner() -> sg.Graph:
    """An inner objective that is a nonlinear function of a plate's mean."""

    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", Categorical, logits=theta, n=2)
        inner = torch.exp(sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], pulls)))
        adapted = sg.descend(theta, inner, 0.4)
        return sg.apply(lambda t: (t.softmax(-1) * BANDIT_REWARD).sum(), adapted)

    return objective


def reused_data() -> sg.Graph:
    """Data of the first step used again in the second one, and in the outer objective."""

    @sg.graph
    def objective(theta):
        first = sg.sample("D1", Categorical, logits=theta, n=2)
        reward = sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], first))
        adapted = sg.ascend(theta, reward, 0.7)
        second = sg.sample("D2", Categorical, logits=adapted, n=2)
        value = sg.apply(lambda a, b, t: t[a] * BANDIT_REWARD[b], first, second, adapted)
        again = sg.ascend(adapted, sg.mean(value), 0.5)
        return sg.apply(lambda t: (t.softmax(-1) * BANDIT_REWARD).sum(), again) + reward**2

    return objective


def nested_update(n: int = 1) -> sg.Graph:
    """An update whose inner objective contains another update of the same parameters."""

    @sg.graph
    def objective(theta):
        first = sg.sample("D1", Categorical, logits=theta, n=n)
        inner = sg.ascend(theta, sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], first)), 0.7)
        second = sg.sample("D2", Categorical, logits=inner, n=n)
        outer = sg.ascend(theta, sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], second)), 0.5)
        return sg.apply(lambda t: (t.softmax(-1) * BANDIT_REWARD).sum(), outer)

    return objective


def soft_greedy_bandit(damping: float = 0.0) -> sg.Graph:
    """An implicit update with a closed form: the policy between greed, by estimated values, and the one that pulled."""

    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", Categorical, logits=theta, n=2)
        value = sg.mean(sg.apply(lambda a, t: one_hot(a, 3) * BANDIT_REWARD / t.softmax(-1), pulls, theta))
        psi = sg.unknown("psi", like=theta)
        distance = sg.apply(lambda p, t: (p.softmax(-1) * (p.log_softmax(-1) - t.log_softmax(-1))).sum(), psi, theta)
        inner = sg.apply(lambda p, v: p.softmax(-1) @ v, psi, value) - 1.5 * distance
        solver = sg.solvers.ClosedForm(lambda t, v: t + v / 1.5, theta, value)
        adapted = sg.argmax(inner, over=psi, solver=solver, linear_solver=sg.solvers.Dense(damping))
        return sg.apply(lambda t: t.softmax(-1) @ BANDIT_REWARD, adapted)

    return objective


GRAPHS = {
    "additive": (additive, torch.tensor([0.4, 0.7], dtype=F64)),
    "bandit, 1 step": (lambda: bandit(1), BANDIT_THETA),
    "bandit, 2 steps": (lambda: bandit(2), BANDIT_THETA),
    "bandit, 3 steps": (lambda: bandit(3), BANDIT_THETA),
    "two tasks, 1 step": (lambda: task_bandit(1), BANDIT_THETA),
    "MDP, horizon 2": (lambda: mdp(2), MDP_THETA),
    "MDP, horizon 2, sampled outcome": (lambda: mdp(2, m=1), MDP_THETA),
    "MDP, horizon 3": (lambda: mdp(3), MDP_THETA),
    "MDP, whole trajectories": (mdp_whole_trajectory, MDP_THETA),
    "chain": (chain, LATENT_THETA),
    "fork": (fork, LATENT_THETA),
    "centered": (centered, LATENT_THETA),
    "extreme": (extreme, BANDIT_THETA),
    "regularized": (regularized, BANDIT_THETA),
    "nonlinear inner objective": (nonlinear_inner, BANDIT_THETA),
    "reused data": (reused_data, BANDIT_THETA),
    "nested update": (nested_update, BANDIT_THETA),
    "implicit update": (soft_greedy_bandit, BANDIT_THETA),
}
