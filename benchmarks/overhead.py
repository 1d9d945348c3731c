"""What the compiler costs at run time: one estimate, from the library and written by hand.

Every case is one call of `value_and_grad` (sample, surrogate, backward), N = 100, against torch
code for the same estimate as one would write it without the library: distributions with their argument checks left on,
a draw, its log-probability, a running sum of log-probabilities where costs have several ancestors, one backward pass.
The two must give the same value and gradient for the same seed before either is timed.

Run from the checkout: python benchmarks/overhead.py [--rounds 25] [--only chain]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stochgraph as sg
from benchmarks._paired import Case, main

N = 100
LENGTHS = (5, 20, 80)


def normal(estimator: Any) -> Case:
    """(a) One plate, a cost per draw."""

    @sg.graph
    def objective(theta: Any) -> Any:
        x = sg.sample("x", Normal, theta, 1.0, n=N)
        return sg.mean((x - 2.0) ** 2)

    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        dist = Normal(theta, 1.0)
        x = dist.sample((N,))
        cost = (x - 2.0) ** 2
        surrogate = (cost * dist.log_prob(x)).mean()
        return cost.mean(), torch.autograd.grad(surrogate, theta)[0]

    return Case("Normal", objective.compile(estimator).value_and_grad, by_hand, torch.tensor(0.3))


def two_level(estimator: Any) -> Case:
    """(b) A draw whose parameters are a draw."""

    @sg.graph
    def objective(theta: Any) -> Any:
        x = sg.sample("x", Bernoulli, logits=theta[0], n=N)
        y = sg.sample("y", Bernoulli, logits=theta[1] * x + theta[2])
        return sg.mean((y - 0.5 * x - 0.2) ** 2)

    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        first = Bernoulli(logits=theta[0])
        x = first.sample((N,))
        second = Bernoulli(logits=theta[1] * x + theta[2])
        y = second.sample()
        cost = (y - 0.5 * x - 0.2) ** 2
        surrogate = (cost * (first.log_prob(x) + second.log_prob(y))).mean()
        return cost.mean(), torch.autograd.grad(surrogate, theta)[0]

    theta = torch.tensor([0.3, -0.8, 0.5])
    return Case("Bernoulli, two levels", objective.compile(estimator).value_and_grad, by_hand, theta)


def chain_of_costs(steps: int, estimator: Any) -> Case:
    """(c) A Markov chain with a cost at every step; each cost meets the scores of its own ancestors only."""

    @sg.graph
    def objective(theta: Any) -> Any:
        slope, intercept = theta[0], theta[1]
        x = sg.sample("x0", Bernoulli, logits=intercept, n=N)
        total = (x - 0.3) ** 2
        for t in range(1, steps):
            x = sg.sample(f"x{t}", Bernoulli, logits=slope * x + intercept)
            total = total + (x - 0.3) ** 2
        return sg.mean(total)

    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        slope, intercept = theta[0], theta[1]
        dist = Bernoulli(logits=intercept)
        x = dist.sample((N,))
        log_prob = dist.log_prob(x)
        total = (x - 0.3) ** 2
        surrogate = total * log_prob
        for _ in range(1, steps):
            dist = Bernoulli(logits=slope * x + intercept)
            x = dist.sample()
            log_prob = log_prob + dist.log_prob(x)
            cost = (x - 0.3) ** 2
            total = total + cost
            surrogate = surrogate + cost * log_prob
        return total.mean(), torch.autograd.grad(surrogate.mean(), theta)[0]

    return Case(
        f"Bernoulli chain, {steps} costs",
        objective.compile(estimator).value_and_grad,
        by_hand,
        torch.tensor([-0.8, 0.5]),
    )


def chain_with_final_cost(steps: int, estimator: Any) -> Case:
    """(c) The same chain with one cost at its end."""

    @sg.graph
    def objective(theta: Any) -> Any:
        slope, intercept = theta[0], theta[1]
        x = sg.sample("x0", Bernoulli, logits=intercept, n=N)
        for t in range(1, steps):
            x = sg.sample(f"x{t}", Bernoulli, logits=slope * x + intercept)
        return sg.mean((x - 0.3) ** 2)

    def by_hand(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        slope, intercept = theta[0], theta[1]
        dist = Bernoulli(logits=intercept)
        x = dist.sample((N,))
        log_prob = dist.log_prob(x)
        for _ in range(1, steps):
            dist = Bernoulli(logits=slope * x + intercept)
            x = dist.sample()
            log_prob = log_prob + dist.log_prob(x)
        cost = (x - 0.3) ** 2
        return cost.mean(), torch.autograd.grad((cost * log_prob).mean(), theta)[0]

    return Case(
        f"Bernoulli chain of {steps}, final cost",
        objective.compile(estimator).value_and_grad,
        by_hand,
        torch.tensor([-0.8, 0.5]),
    )


def cases() -> list[Case]:
    """All cases with SF; then those of the other estimators, which on plain means are the same estimate."""
    chains = [chain(steps, sg.SF()) for steps in LENGTHS for chain in (chain_of_costs, chain_with_final_cost)]
    others = {"LSF": sg.LSF(), "LOO": sg.LOO(), "Loaded DiCE": sg.LoadedDiCE(0.9), "Taylor": sg.Taylor()}
    named = [
        case._replace(name=f"{case.name}, {name}")
        for name, estimator in others.items()
        for case in (normal(estimator), two_level(estimator), *(chain_of_costs(n, estimator) for n in LENGTHS))
    ]
    return [normal(sg.SF()), two_level(sg.SF()), *chains, *named]


if __name__ == "__main__":
    main(__doc__ or "", cases())
