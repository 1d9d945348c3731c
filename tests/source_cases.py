"""Graphs whose surrogates are written out, beyond those of `problems`: one for every form of text."""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Gumbel, LogNormal, MultivariateNormal, Normal, Uniform

import stochgraph as sg
from tests import problems

F64 = torch.float64
THETA = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
ROWS = torch.tensor([[0.5, -1.0], [1.5, 0.2], [-0.3, 0.7]], dtype=F64)


class Case(NamedTuple):
    """A graph, where it is evaluated, and its estimators."""

    graph: sg.Graph
    inputs: tuple[Any, ...]
    estimators: Any


@sg.graph
def pathwise(theta):
    """Noise of two families, one in plates that torch draws in another order."""
    x = sg.sample("x", Normal, theta[0], torch.exp(theta[1]), n=4)
    y = sg.sample("y", Uniform, x, x + 2.0, n=3)
    return torch.sin(sg.mean(x * y)) + theta[2]


@sg.graph
def pathwise_update(theta):
    """A draw that moves within an update."""
    x = sg.sample("x", Normal, theta[0], 1.0, n=4)
    adapted = sg.descend(theta, sg.mean((x - theta[1]) ** 2) * theta[2], lr=0.1)
    return sg.mean(sg.sample("y", Normal, adapted[0], 1.0, n=2)) * adapted[1]


@sg.graph
def pathwise_vectors(theta):
    """Noise of vectors, in plates that torch draws in another order, and a constant with a dimension of one draw."""
    task = sg.sample("task", Normal, theta, 1.0, n=3)
    y = sg.sample("y", Normal, task, 0.5, n=4)
    z = sg.sample("z", Normal, sg.apply(torch.sum, task), torch.tensor([1.0, 2.0, 3.0], dtype=F64), n=3)
    return sg.mean(sg.apply(lambda y, z: (y * torch.sin(z)).sum(), y, z))


@sg.graph
def pathwise_functions(theta):
    """Draws of functions and of other families, of vectors, and in plates that torch draws in another order."""
    x = sg.sample("x", lambda t, scale: Normal(t[0], scale * t[1].exp()), theta, 0.5, n=4)
    y = sg.sample("y", LogNormal, x, 0.3, n=3)
    z = sg.sample("z", lambda t: Gumbel(t, 1.0), theta)
    w = sg.sample("w", MultivariateNormal, z, scale_tril=torch.eye(3, dtype=F64), n=2)
    return sg.mean(torch.sin(x) * y) + sg.mean(sg.apply(lambda w, z: (w * z).sum(), w, z))


@sg.graph
def vectors(theta):
    """Draws of a vector, and a mean of vectors, of dimensions that nothing tells."""
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    moments = sg.mean(sg.apply(lambda x, t: x * t, x, theta))
    return sg.apply(lambda m: m.sin().sum(), moments)


@sg.graph
def events(theta):
    """A draw with a dimension of its own."""
    x = sg.sample("x", MultivariateNormal, theta, torch.eye(3, dtype=F64), n=4)
    return torch.exp(sg.mean(sg.apply(torch.sum, x)))


@sg.graph
def tree(theta):
    """Parameters that are a dictionary."""
    x = sg.sample("x", Normal, theta["a"], 1.0, n=4)
    loss = sg.apply(lambda x, p: (x - p["b"].sum()) ** 2 * p["a"], x, theta)
    adapted = sg.descend(theta, sg.mean(loss), lr=0.1)
    return adapted["a"] ** 2 + sg.apply(torch.sum, adapted["b"])


@sg.graph
def learned_rate(theta, rate):
    """A step size that is an input."""
    x = sg.sample("x", Normal, theta[0], 1.0, n=4)
    adapted = sg.descend(theta, sg.mean((x - theta[1]) ** 2) * theta[2], lr=rate)
    return adapted[0] * adapted[1]


@sg.graph
def data(theta, rows):
    """Rows of an input, and the density of a draw as a cost."""
    row = sg.data("row", rows)
    z = sg.sample("z", Normal, theta[0] * row[0] + row[1], 1.0, n=3)
    return sg.mean((z - theta[1] * row[1]) ** 2 + sg.log_prob(z))


@sg.graph
def across(theta):
    """Two plates that meet, in a plate of tasks."""
    task = sg.sample("task", Normal, 0.0, 1.0, n=3)
    x = sg.sample("x", Normal, theta[0] * task, 1.0, n=4)
    y = sg.sample("y", Normal, theta[1], 1.0, n=2, within=())
    return sg.mean(x * y * task) + sg.mean(sg.mean(x, over="x") * sg.mean(y))


@sg.graph
def prior(theta):
    """The density of a draw whose distribution has numbers for parameters, of which none is a binary fraction."""
    z = sg.sample("z", Normal, 0.1, 0.7, n=3)
    y = sg.sample("y", Normal, theta[0] * z, 0.3)
    return sg.mean(torch.exp(sg.log_prob(z)) * y)


@sg.graph
def counts(theta):
    """Truth values and integers that are added, multiplied and averaged."""
    x = sg.sample("x", Categorical, logits=theta, n=4)
    y = sg.sample("y", Categorical, logits=theta, n=4)
    one_or_two = (x == 1) + (x == 2)
    both = sg.apply(lambda a: a > 0, x) * sg.apply(lambda a: a > 1, x) + sg.apply(lambda a: a > 0, x)
    return sg.mean(one_or_two) * sg.mean(y) + sg.mean(both * 0.5)


@sg.graph
def log_mean_exp(theta):
    """The logarithm of a mean of exponentials, which must not overflow."""
    z = sg.sample("z", Normal, theta[0], 1.0, n=3)
    return sg.logmeanexp(-800.0 * theta[1] * (1 + z))


@sg.graph
def operations(theta):
    """Methods, indices, torch's functions, a named node, a constant, and names that Python or torch has."""
    x = sg.sample("x", Normal, theta, 1.0, n=4)
    weights = sg.apply(torch.clone, theta, name="torch")
    clamped = sg.stop(x).clamp(min=-1.0)
    inside, outside = (x > 0) & (x < 1), ~(x < 2) | ((x < -1) ^ (x < -2))
    leaky = torch.where((inside == outside) < (x > 0), x, 0.1 * x) + (-x) ** 2 - -(x**2) / (x - (2 - x)) ** 2
    scaled = x * torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    inner = torch.dot(x, weights) + x @ weights + x[0] - x[-1] ** 2 / 3
    return sg.mean(clamped.sum() + leaky.sum() + scaled.sum() + inner) + torch.logsumexp(weights, 0)


def _stepped(theta: Tensor) -> Any:
    x = sg.sample("x", Normal, theta[0], 1.0, n=4)
    adapted = sg.descend(theta, sg.mean((x - theta[1]) ** 2 * theta[2]), lr=0.1)
    return sg.mean(sg.sample("y", Normal, adapted[0], 1.0, n=2)) * adapted[1]


@sg.graph
def stepped(theta):
    """An update, for estimators of public code."""
    return _stepped(theta)


@sg.graph
def box_and_increase(theta):
    """Costs of single draws, boxed with the ratios of which a control variate takes the increase."""
    x = sg.sample("x", Normal, theta[0], torch.exp(theta[1]), n=3)
    return sg.mean(x * x) + sg.mean(x) * sg.mean(torch.sin(x)) + theta[2]


NAMES = [
    "a'\"<script>",
    'b"""\\',
    "c\nd",
    "e\N{GRINNING FACE}",
    "\ufb01",
    "fi",
    "g\N{SUPERSCRIPT TWO}",
    "h (1",
    "lambda",
]


@sg.graph
def names(theta):
    """Names that Python has other uses for, or none."""
    total = theta[0]
    for name in NAMES:
        x = sg.sample(name, Normal, torch.sin(total), torch.exp(theta[1]), n=2)
        total = total + sg.mean(torch.sin(x)) * theta[2]
    return total


class Scale(IntEnum):
    """A constant that is a number and has a name."""

    TWO = 2


@sg.graph
def numbers(theta):
    """Numbers of numpy and enumerations, and some that Python has no literals of."""
    x = sg.sample("x", Categorical, logits=theta + torch.tensor([0.0, 0.0, -float("inf")], dtype=F64), n=3)
    y = sg.sample("y", Normal, theta[0], np.float64(2.0), n=3)
    return sg.mean(x * theta[1] * Scale.TWO) * sg.mean(y) ** 2


@sg.graph
def many(theta):
    """A function of one draw of more values than there are letters for."""
    x = sg.sample("x", Normal, theta[0], 1.0, n=3)
    others = [torch.sin(theta[1] * k) for k in range(9)]
    return sg.mean(sg.apply(lambda *values, power: sum(values) ** power, x, *others, power=2))


TREE = {"a": THETA[0], "b": THETA[1:]}
CASES = {
    "pathwise": Case(pathwise, (THETA,), sg.PW()),
    "pathwise, vectors": Case(pathwise_vectors, (THETA,), sg.PW()),
    "pathwise, functions": Case(pathwise_functions, (THETA,), sg.PW()),
    "pathwise, in an update": Case(pathwise_update, (THETA,), sg.PW()),
    "vectors, SF": Case(vectors, (THETA,), sg.SF()),
    "vectors, LSF": Case(vectors, (THETA,), sg.LSF()),
    "vectors, LOO": Case(vectors, (THETA,), sg.LOO()),
    "events": Case(events, (THETA,), sg.LSF()),
    "tree": Case(tree, (TREE,), sg.LSF()),
    "learned rate": Case(learned_rate, (THETA, torch.tensor(0.3, dtype=F64)), sg.SF()),
    "data": Case(data, (THETA, ROWS), sg.SF()),
    "prior": Case(prior, (THETA,), sg.SF()),
    "across": Case(across, (THETA,), sg.SF()),
    "counts": Case(counts, (THETA,), sg.SF()),
    "log-mean-exp": Case(log_mean_exp, (THETA,), sg.LSF()),
    "operations": Case(operations, (THETA,), sg.SF()),
    "EMAML": Case(stepped, (THETA,), sg.EMAML()),
    "SG-MRL as published": Case(stepped, (THETA,), sg.SGMRLPublished()),
    "first order": Case(stepped, (THETA,), sg.FirstOrder()),
    "compared, SF": Case(problems.mdp(2, m=3), (problems.MDP_THETA,), {"D": sg.SF(), "tau": sg.SF("loo")}),
    "compared, LSF": Case(problems.mdp(2, m=3), (problems.MDP_THETA,), sg.LSF(control_variate=True)),
    "compared, LOO": Case(problems.bandit(2, m=2), (THETA,), {"D1": sg.LOO(), "D2": sg.LOO(), "tau": sg.SF("mean")}),
    "box and increase": Case(box_and_increase, (THETA,), sg.LOO()),
    "names, SF": Case(names, (THETA,), sg.SF()),
    "names, PW": Case(names, (THETA,), sg.PW()),
    "numbers": Case(numbers, (THETA,), sg.SF()),
    "many": Case(many, (THETA,), sg.SF()),
    "one by one": Case(stepped, (THETA,), {"x": sg.PW(), "y": sg.SF()}),
}
