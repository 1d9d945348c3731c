"""What a call costs in the forms that people write, lowered and interpreted, beside hand-written torch.

Functions of one draw and lambdas, tasks, one and three inner steps, leave-one-out, a game of two learners (LOLA), a
variational autoencoder, trajectories of a sampler of one's own. `benchmarks/overhead.py` has the forms in which nothing
is mapped. The hand-written side is the same estimate in batched torch: distributions with their argument checks left
on, `torch.autograd.grad(..., create_graph=True)` for an inner step, one backward pass.

Both sides must give the same value and gradient for the same seed before either is timed. Leave-one-out is another
estimate than the linearised one that it stands beside, so that the values alone are compared there. Every case is
timed with each way of lowering that is asked for; programs are recorded, and compared with the interpreter, before.

Run from the checkout: python benchmarks/lowering.py [--rounds 25] [--only "K = 3"] [--lowering flat inductor]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from benchmarks._paired import CLOCKS, Case, Estimate, Parameters, check, show

LOWERINGS = ("never", "flat", "inductor")
SHOWN = ("never", "flat")  # unless others are asked for: torch.compile takes from seconds to minutes a form
WARM = 4  # calls: a first one that is interpreted, the recording, and two that are made both ways
N, ARMS, RATE = 100, 5, 0.5  # draws of the chains, arms of a bandit, inner step sizes
TASKS, PULLS = 10, 20
ROUNDS, GAMES = 5, 32
STATES, ACTIONS, HORIZON, PATHS = 6, 3, 20, 50
PIXELS, HIDDEN, LATENT, ROWS = 64, 32, 8, 32
PAYOFF = torch.tensor([[-1.0, -3.0], [0.0, -2.0]])  # mine, by my move and theirs


class Form(NamedTuple):
    """One estimate both ways: a graph with its estimator, the code by hand, and the parameters at which it is made."""

    name: str
    compile: Callable[[str], Estimate]
    by_hand: Estimate
    theta: Parameters
    gradients: bool = True  # whether they are those of the code by hand

    def case(self, lowering: str) -> Case:
        """The form, lowered in this way."""
        return Case(f"{self.name}, {lowering}", self.compile(lowering), self.by_hand, self.theta)


def compiling(graph: sg.Graph, estimators: object) -> Callable[[str], Estimate]:
    """How a graph becomes an estimate, by the word for its lowering."""
    return lambda lowering: graph.compile(estimators, lowering=lowering).value_and_grad


def differentiated(surrogate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Estimate:
    """The estimate of a function that returns its value, and the number whose gradient is the estimate's."""

    def estimate(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        value, loss = surrogate(theta)
        return value.detach(), torch.autograd.grad(loss, theta)[0]

    return estimate


def box(log_prob: Tensor) -> Tensor:
    """One, with the log-probability's derivatives."""
    return torch.exp(log_prob - log_prob.detach())


def normal() -> Form:
    """A cost of one draw, written as a function of one draw."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", lambda t: Normal(t, 1.0), theta, n=N)
        return sg.mean(sg.apply(lambda x, t: (x - t) ** 2 + torch.sin(x), x, theta))

    @differentiated
    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        dist = Normal(theta, 1.0)
        x = dist.sample((N,))
        cost = (x - theta) ** 2 + torch.sin(x)
        return cost.mean(), (cost + cost.detach() * dist.log_prob(x)).mean()

    return Form("Normal", compiling(objective, sg.SF()), by_hand, torch.tensor(0.3))


def chain(steps: int) -> Form:
    """A Markov chain of lambdas, a cost at every step."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x0", lambda t: Bernoulli(logits=t[1]), theta, n=N)
        total = sg.apply(lambda x: (x - 0.3) ** 2, x)
        for i in range(1, steps):
            x = sg.sample(f"x{i}", lambda t, x: Bernoulli(logits=t[0] * x + t[1]), theta, x)
            total = total + sg.apply(lambda x: (x - 0.3) ** 2, x)
        return sg.mean(total)

    @differentiated
    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        dist = Bernoulli(logits=theta[1])
        x = dist.sample((N,))
        log_prob, total = dist.log_prob(x), (x - 0.3) ** 2
        surrogate = total * log_prob
        for _ in range(1, steps):
            dist = Bernoulli(logits=theta[0] * x + theta[1])
            x = dist.sample()
            log_prob, cost = log_prob + dist.log_prob(x), (x - 0.3) ** 2
            total, surrogate = total + cost, surrogate + cost * log_prob
        return total.mean(), surrogate.mean()

    return Form(f"chain of {steps}", compiling(objective, sg.SF()), by_hand, torch.tensor([-0.8, 0.5]))


def bandits(steps: int, name: str, estimator: object, gradients: bool = True) -> Form:
    """Inner steps on the pulls of a bandit for each of some tasks, then pulls with their mean as a baseline."""

    @sg.graph
    def objective(theta):
        task = sg.sample("task", lambda: Independent(Normal(torch.zeros(ARMS), 1.0), 1), n=TASKS)
        for k in range(1, steps + 1):
            pulls = sg.sample(f"D{k}", lambda t, _: Categorical(logits=t), theta, task, n=PULLS)
            theta = sg.ascend(theta, sg.mean(sg.apply(lambda r, a: r[a], task, pulls), over=f"D{k}"), RATE)
        last = sg.sample("tau", lambda t, _: Categorical(logits=t), theta, task, n=PULLS)
        return sg.mean(sg.apply(lambda r, a: r[a], task, last))

    @differentiated
    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        rewards = Independent(Normal(torch.zeros(ARMS), 1.0), 1).sample((TASKS,))
        adapted = theta.expand(TASKS, ARMS)
        for _ in range(steps):
            dist = Categorical(logits=adapted)
            pulls = dist.sample((PULLS,))  # (pulls, tasks)
            inner = (rewards.gather(1, pulls.T).T * box(dist.log_prob(pulls))).mean(0).sum()
            adapted = adapted + RATE * torch.autograd.grad(inner, adapted, create_graph=True)[0]
        dist = Categorical(logits=adapted)
        last = dist.sample((PULLS,))
        reward = rewards.gather(1, last.T).T
        others = (reward.sum(0) - reward) / (PULLS - 1)
        return reward.mean(), ((reward - others) * dist.log_prob(last)).mean()

    estimators = {**{f"D{k}": estimator for k in range(1, steps + 1)}, "tau": sg.SF("loo")}
    theta = torch.linspace(-0.5, 0.5, ARMS)
    return Form(f"bandits, K = {steps}, {name}", compiling(objective, estimators), by_hand, theta, gradients)


class Game(NamedTuple):
    """Games of the prisoner's dilemma: moves `(*games, rounds, 2)`, 0 for cooperating; rewards of the same shape."""

    move: Tensor
    reward: Tensor


class Dilemma(sg.Sampler):
    """Games of two players, each with five logits: for the first round, and after the four pairs of moves."""

    time = traceable = True

    def draw(self, batch_shape: torch.Size, mine: Tensor, theirs: Tensor) -> Game:
        return played(batch_shape, mine, theirs)

    def log_prob(self, value: Game, mine: Tensor, theirs: Tensor) -> Tensor:
        return scored(value, mine, theirs)


def played(batch_shape: torch.Size, mine: Tensor, theirs: Tensor) -> Game:
    """Games, drawn round by round."""
    logits = torch.stack([mine, theirs], -1).expand(*batch_shape, 5, 2)
    situation, moves = torch.zeros(batch_shape, dtype=torch.long), []
    for _ in range(ROUNDS):
        chosen = logits.gather(-2, situation[..., None, None].expand(*batch_shape, 1, 2)).squeeze(-2)
        moves.append(torch.bernoulli(chosen.sigmoid()).long())
        situation = 1 + 2 * moves[-1][..., 0] + moves[-1][..., 1]
    first, second = torch.stack(moves, -2).unbind(-1)
    return Game(torch.stack(moves, -2), torch.stack([PAYOFF[first, second], PAYOFF[second, first]], -1))


def scored(game: Game, mine: Tensor, theirs: Tensor) -> Tensor:
    """The log-probability of every round, of one game or of many: `(*games, rounds)`."""
    after = 1 + 2 * game.move[..., :-1, 0] + game.move[..., :-1, 1]
    situation = F.pad(after, (1, 0))
    logits = torch.stack([mine[situation], theirs[situation]], -1)
    return F.logsigmoid(logits * (2 * game.move - 1)).sum(-1)


def lola() -> Form:
    """The other player takes a step on some games before the next are played, and is seen to do so."""

    @sg.graph
    def objective(mine, theirs):
        before = sg.sample("D", Dilemma(), mine, theirs, n=GAMES)
        learned = sg.ascend(theirs, sg.mean(sg.sum(before.reward[1])), RATE)
        after = sg.sample("tau", Dilemma(), mine, learned, n=GAMES)
        return sg.mean(sg.sum(after.reward[0]))

    theirs = torch.linspace(0.5, -0.5, 5)

    @differentiated
    def by_hand(mine: Tensor) -> tuple[Tensor, Tensor]:
        other = theirs.detach().requires_grad_()
        before = played(torch.Size([GAMES]), mine, other)
        boxes = box(scored(before, mine, other).cumsum(-1))
        inner = (before.reward[..., 1] * boxes).sum(-1).mean()
        learned = other + RATE * torch.autograd.grad(inner, other, create_graph=True)[0]
        after = played(torch.Size([GAMES]), mine, learned)
        to_go = after.reward[..., 0].flip(-1).cumsum(-1).flip(-1)
        return after.reward[..., 0].sum(-1).mean(), (to_go * scored(after, mine, learned)).sum(-1).mean()

    def compiled(lowering: str) -> Estimate:
        estimate = objective.compile({"D": sg.LSF(), "tau": sg.SF()}, lowering=lowering).value_and_grad
        return lambda mine: estimate(mine, theirs)

    return Form("LOLA", compiled, by_hand, torch.linspace(-0.5, 0.5, 5))


def encoded(weights: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the scale of the latent, of one image or of many."""
    hidden = torch.tanh(image @ weights["in"])
    return hidden @ weights["mean"], (hidden @ weights["scale"]).exp()


def autoencoder() -> Form:
    """A variational autoencoder of a batch of binary images: the evidence bound along its reparameterised latents."""
    images = torch.bernoulli(torch.full((ROWS, PIXELS), 0.4))

    def posterior(weights, image):
        mean, scale = encoded(weights, image)
        return Independent(Normal(mean, scale), 1)

    def evidence_bound(weights, image, latent):
        mean, scale = encoded(weights, image)
        distance = 0.5 * (mean**2 + scale**2 - 1).sum(-1) - scale.log().sum(-1)
        logits = torch.tanh(latent @ weights["latent"]) @ weights["out"]
        return Independent(Bernoulli(logits=logits), 1).log_prob(image) - distance

    @sg.graph
    def objective(weights, batch):
        image = sg.data("row", batch)
        latent = sg.sample("latent", posterior, weights, image)
        return sg.mean(sg.apply(evidence_bound, weights, image, latent))

    def by_hand(weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weights = {name: leaf.detach().requires_grad_() for name, leaf in weights.items()}
        bound = evidence_bound(weights, images, posterior(weights, images).rsample()).mean()
        return bound.detach(), dict(zip(weights, torch.autograd.grad(bound, list(weights.values())), strict=True))

    def compiled(lowering: str) -> Estimate:
        estimate = objective.compile(sg.PW(), lowering=lowering).value_and_grad
        return lambda weights: estimate(weights, images)

    sizes = {"in": (PIXELS, HIDDEN), "mean": (HIDDEN, LATENT), "scale": (HIDDEN, LATENT)}
    sizes |= {"latent": (LATENT, HIDDEN), "out": (HIDDEN, PIXELS)}
    weights = {name: 0.1 * torch.randn(*size) for name, size in sizes.items()}
    return Form("VAE", compiled, by_hand, weights)


class Walk(NamedTuple):
    """Trajectories of a decision process; every field has the shape `(*paths, time)`."""

    state: Tensor
    action: Tensor
    reward: Tensor


class Walks(sg.Sampler):
    """Trajectories of a softmax policy in a finite decision process."""

    time = traceable = True

    def __init__(self) -> None:
        self.transition = torch.randn(STATES, ACTIONS, STATES).softmax(-1)
        self.reward = torch.randn(STATES, ACTIONS)

    def draw(self, batch_shape: torch.Size, logits: Tensor) -> Walk:
        policy = logits.softmax(-1).expand(*batch_shape, STATES, ACTIONS).flatten(0, -3)
        state, steps = torch.zeros(batch_shape.numel(), dtype=torch.long), []
        for _ in range(HORIZON):
            chances = policy.gather(1, state[:, None, None].expand(-1, 1, ACTIONS)).squeeze(1)
            action = torch.multinomial(chances, 1).squeeze(-1)
            steps.append((state, action, self.reward[state, action]))
            state = torch.multinomial(self.transition[state, action], 1).squeeze(-1)
        return Walk(*(torch.stack(field, -1).unflatten(0, batch_shape) for field in zip(*steps, strict=True)))

    def log_prob(self, value: Walk, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[value.state, value.action]


def trajectories() -> Form:
    """The policy gradient on the trajectories of a sampler of one's own, each reward with the actions before it."""
    walks = Walks()

    @sg.graph
    def objective(theta):
        tau = sg.sample("tau", walks, theta, n=PATHS)
        return sg.mean(sg.sum(tau.reward))

    @differentiated
    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        tau = walks.draw(torch.Size([PATHS]), theta.detach())
        to_go = tau.reward.flip(-1).cumsum(-1).flip(-1)
        return tau.reward.sum(-1).mean(), (to_go * walks.log_prob(tau, theta)).sum(-1).mean()

    return Form("trajectories", compiling(objective, sg.SF()), by_hand, 0.3 * torch.randn(STATES, ACTIONS))


def forms() -> list[Form]:
    """All of them."""
    inner = [bandits(steps, "LSF", sg.LSF()) for steps in (1, 3)]
    inner += [bandits(steps, "LOO beside LSF", sg.LOO(), gradients=False) for steps in (1, 3)]
    return [normal(), *map(chain, (5, 20, 80)), *inner, lola(), autoencoder(), trajectories()]


def warmed(form: Form, lowering: str) -> Case:
    """The case, compared with the code by hand, its program recorded and trusted."""
    case = form.case(lowering)
    check(case, form.gradients)
    for _ in range(WARM):
        case.library(case.theta)
    check(case, form.gradients)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="measurements per case and side")
    parser.add_argument("--only", default="", help="forms whose name contains this")
    parser.add_argument("--lowering", nargs="+", choices=LOWERINGS, default=SHOWN, help="how calls are lowered")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wanted = [form for form in forms() if options.only.lower() in form.name.lower()]
    show([warmed(form, lowering) for form in wanted for lowering in options.lowering], options.rounds, options.clock)


if __name__ == "__main__":
    main()
