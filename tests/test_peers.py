"""Plain MAML here and in other libraries, on the same recorded trajectories.

Each library differentiates the same inner steps of the same module; the tests of those that are not installed skip.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from stochgraph.algorithms.environments import RandomMDP
from stochgraph.algorithms.maml import maml
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.policies import CategoricalModule
from stochgraph.algorithms.rollouts import Rollouts

RATE, DISCOUNT = 0.3, 0.9
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Recorded:
    """A module, trajectories that its adapted versions drew, and the meta-gradient of this library on them."""

    def __init__(self, steps: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(steps)
            self.module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.steps = steps
        walks = Rollouts(RandomMDP(states=4, actions=3, horizon=5), CategoricalModule(self.module, actions=3))
        problem = MetaProblem(
            trajectories=walks,
            tasks=lambda: walks.environment.declare_tasks(1),
            inner_rate=RATE,
            steps=steps,
            inner=6,
            outer=6,
            discount=DISCOUNT,
        )
        compiled = maml(problem).compile()
        self.theta = {name: leaf.detach().clone() for name, leaf in self.module.named_parameters()}
        self.trace = compiled.sample(self.theta, generator=torch.Generator().manual_seed(steps))
        self.gradient = torch.func.grad(compiled.surrogate)(self.theta, self.trace)

    def loss(self, name: str, act: Any) -> Tensor:
        """The policy-gradient loss of one batch, by hand."""
        batch = self.trace.draws[name]
        observation, action, reward = batch.observation[0], batch.action[0], batch.reward[0]
        log_prob = act(observation).log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        earned = reward * DISCOUNT ** torch.arange(reward.shape[-1])
        to_go = earned.flip(-1).cumsum(-1).flip(-1)
        return -(log_prob * to_go).sum(-1).mean()

    def inner(self) -> list[str]:
        return [f"D{k}" for k in range(1, self.steps + 1)]

    def agrees(self, found: Any) -> None:
        """The other gradient is that of a loss, so it has the other sign."""
        assert max(leaf.abs().max() for leaf in self.gradient.values()) > 1e-2
        expected = {name: -leaf for name, leaf in self.gradient.items()}
        torch.testing.assert_close(dict(zip(self.theta, found, strict=True)), expected, rtol=1e-5, atol=1e-7)


@pytest.fixture(params=[1, 3], ids=["K = 1", "K = 3"])
def recorded(request):
    return Recorded(request.param)


def test_by_hand(recorded):
    """What the others are compared with agrees with torch alone."""
    theta = {name: leaf.clone().requires_grad_() for name, leaf in recorded.theta.items()}
    adapted = theta
    for name in recorded.inner():
        loss = recorded.loss(name, lambda o, p=adapted: functional_call(recorded.module, p, (o,)))
        found = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
        adapted = {n: leaf - RATE * step for (n, leaf), step in zip(adapted.items(), found, strict=True)}
    last = recorded.loss("tau", lambda o: functional_call(recorded.module, adapted, (o,)))
    recorded.agrees(torch.autograd.grad(last, list(theta.values())))


def test_learn2learn(recorded):
    learn2learn = pytest.importorskip("learn2learn", exc_type=ImportError)
    meta = learn2learn.algorithms.MAML(recorded.module, lr=RATE)
    learner = meta.clone()
    for name in recorded.inner():
        learner.adapt(recorded.loss(name, learner))
    recorded.agrees(torch.autograd.grad(recorded.loss("tau", learner), list(meta.parameters())))


def test_torchopt(recorded):
    torchopt = pytest.importorskip("torchopt", exc_type=ImportError)
    start = list(recorded.module.parameters())
    optimizer = torchopt.MetaSGD(recorded.module, lr=RATE)
    for name in recorded.inner():
        optimizer.step(recorded.loss(name, recorded.module))
    recorded.agrees(torch.autograd.grad(recorded.loss("tau", recorded.module), start))


def test_higher(recorded):
    higher = pytest.importorskip("higher", exc_type=ImportError)
    optimizer = torch.optim.SGD(recorded.module.parameters(), lr=RATE)
    with higher.innerloop_ctx(recorded.module, optimizer, copy_initial_weights=False) as (learner, steps):
        for name in recorded.inner():
            steps.step(recorded.loss(name, learner))
        last = recorded.loss("tau", learner)
        recorded.agrees(torch.autograd.grad(last, list(recorded.module.parameters())))
