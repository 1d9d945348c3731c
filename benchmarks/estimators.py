"""What the compiler costs at run time, estimator by estimator: from the library and written by hand.

Nonlinear functions of a plate's mean, an update, and trajectories; N = 100. Every hand-written side is the formula of
the literature in torch, vectorised over draws; the two sides must give the same value and gradient for the same seed
before either is timed.

Run from the checkout: python benchmarks/estimators.py [--rounds 25] [--only LOO]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from benchmarks._paired import Case, Estimate, main

N, STEPS, RATE = 100, 20, 0.7
REWARD = torch.tensor([0.1, 1.0, -0.6])
DECAY = 0.9


@sg.graph
def bound(theta: Any) -> Any:
    """A nonlinear function of a mean."""
    x = sg.sample("x", Normal, theta, 1.0, n=N)
    return torch.log(sg.mean(torch.exp(-(x**2))))


def bound_by_hand(kind: str) -> Estimate:
    """The gradient of log of the mean of exp(-x^2), with one of four estimators."""

    def estimate(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        dist = Normal(theta, 1.0)
        x = dist.sample((N,))
        terms = torch.exp(-(x**2))
        mean, log_prob = terms.mean(), dist.log_prob(x)
        value = torch.log(mean)
        others = (terms.sum() - terms) / (N - 1)
        if kind == "SF":
            surrogate = value * log_prob.sum()
        elif kind == "LOO":
            surrogate = ((value - torch.log(others)) * log_prob).sum()
        elif kind == "LSF":
            surrogate = (terms * log_prob).mean() / mean
        else:
            surrogate = ((terms - others) * log_prob).mean() / mean
        return value, torch.autograd.grad(surrogate, theta)[0]

    return estimate


@sg.graph
def baselined(theta: Any) -> Any:
    """A plain mean."""
    x = sg.sample("x", Normal, theta, 1.0, n=N)
    return sg.mean((x - 2.0) ** 2)


def baselined_by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Each cost less the mean of the others, in a box: every cost has derivatives of any order."""
    theta = theta.detach().requires_grad_()
    dist = Normal(theta, 1.0)
    x = dist.sample((N,))
    cost, log_prob = (x - 2.0) ** 2, dist.log_prob(x)
    box = torch.exp(log_prob - log_prob.detach())
    others = (cost.sum() - cost) / (N - 1)
    surrogate = (cost * box - others * (box - 1)).mean()
    return cost.mean(), torch.autograd.grad(surrogate, theta)[0]


@sg.graph
def adapted(theta: Any) -> Any:
    """One inner policy-gradient step of a bandit, then N more pulls."""
    pulls = sg.sample("D", Categorical, logits=theta, n=N)
    theta = sg.ascend(theta, sg.mean(sg.apply(REWARD.__getitem__, pulls)), RATE)
    return sg.mean(sg.apply(REWARD.__getitem__, sg.sample("tau", Categorical, logits=theta, n=N)))


def adapted_by_hand(kind: str) -> Estimate:
    """DiCE for LSF, a fixed-sample update and the summed scores for SF, replays of all N updates for LOO."""

    def estimate(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        before = Categorical(logits=theta)
        pulls = before.sample((N,))
        log_prob, reward = before.log_prob(pulls), REWARD[pulls]
        terms = torch.exp(log_prob - log_prob.detach()) * reward if kind == "LSF" else log_prob * reward
        (direction,) = torch.autograd.grad(terms.mean(), theta, create_graph=True)
        after = theta + RATE * direction
        last = Categorical(logits=after)
        tau = last.sample((N,))
        outcome, outer = REWARD[tau], last.log_prob(tau)
        surrogate = (outcome * outer).mean()
        if kind == "SF":
            surrogate = surrogate + outcome.mean() * log_prob.sum()
        elif kind == "LOO":
            surrogate = surrogate + (gains(theta, after, pulls, tau, outer) * log_prob).sum()
        return outcome.mean(), torch.autograd.grad(surrogate, theta)[0]

    return estimate


def gains(theta: Tensor, after: Tensor, pulls: Tensor, tau: Tensor, outer: Tensor) -> Tensor:
    """What each pull gains: the outcome less that of the update without it, later pulls weighted with their ratio."""
    with torch.no_grad():
        scores = torch.nn.functional.one_hot(pulls, 3) - theta.softmax(-1)
        each = REWARD[pulls, None] * scores
        without = theta + RATE * (each.sum(0) - each) / (N - 1)
        ratio = torch.exp(without.log_softmax(-1)[:, tau] - outer)
        return (REWARD[tau] * (1 - ratio)).mean(1)


class Walk(sg.Sampler):
    """Gaussian steps around theta."""

    time = True

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Tensor:
        return torch.normal(parents[0].expand(*batch_shape).unsqueeze(-1).expand(*batch_shape, STEPS), 1.0)

    def log_prob(self, value: Tensor, *parents: Any) -> Tensor:
        return -0.5 * (value - parents[0]) ** 2


@sg.graph
def walked(theta: Any) -> Any:
    """A return over time."""
    steps = sg.sample("D", Walk(), theta, n=N)
    return sg.mean(sg.sum(torch.cos(steps)))


def walked_by_hand(decay: float) -> Estimate:
    """Loaded DiCE as a matrix of decays, in place of the published loop over time."""
    order = torch.arange(STEPS)
    behind = order[:, None] - order
    matrix = torch.where(behind >= 0, decay ** behind.clamp(min=0), 0.0).T

    def estimate(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        steps = torch.normal(theta.detach().expand(N, STEPS), 1.0)
        reward, log_prob = torch.cos(steps), -0.5 * (steps - theta) ** 2
        fresh = log_prob - log_prob.detach()
        weighted = fresh @ matrix
        factor = 1 + (weighted.exp() - (weighted - fresh).exp()).cumsum(-1)
        surrogate = (reward * factor).sum(-1).mean()
        return reward.sum(-1).mean(), torch.autograd.grad(surrogate, theta)[0]

    return estimate


def cases() -> list[Case]:
    """All cases."""
    kinds = {"SF": sg.SF(), "LSF": sg.LSF(), "LSF, control variate": sg.LSF(control_variate=True), "LOO": sg.LOO()}
    of_mean = [
        Case(f"log of a mean, {k}", bound.compile(e).value_and_grad, bound_by_hand(k), torch.tensor(0.3))
        for k, e in kinds.items()
    ]
    logits = torch.tensor([0.3, -0.2, 0.1])
    through = [
        Case(f"update, {k}", adapted.compile(kinds[k]).value_and_grad, adapted_by_hand(k), logits)
        for k in ("SF", "LSF", "LOO")
    ]
    plain = Case(
        "mean, SF with baseline", baselined.compile(sg.SF("loo")).value_and_grad, baselined_by_hand, torch.tensor(0.3)
    )
    loaded = Case(
        "trajectories, Loaded DiCE",
        walked.compile(sg.LoadedDiCE(DECAY)).value_and_grad,
        walked_by_hand(DECAY),
        torch.tensor(0.3),
    )
    return [plain, *of_mean, *through, loaded]


if __name__ == "__main__":
    main(__doc__ or "", cases())
