"""Probabilities near 0 and 1, and at them, of every family that is given probabilities.

torch takes logarithms of probabilities that it has clamped to an epsilon, and draws with those that it was given. Here
both have to be right: scores are compared with derivatives written by hand, expectations with closed forms.
"""

from typing import Any

import pytest
import torch
from torch import distributions as td

import stochgraph as sg
from tests.problems import F64

F32 = torch.float32
SMALL = [(F32, 1e-8), (F32, 1e-30), (F64, 1e-20), (F64, 1e-200)]
LARGE = [(F32, 1 - 2**-24), (F64, 1 - 2**-53)]  # the largest numbers below 1


def two(p):
    return torch.stack([1 - p, p])


# Families of one small probability, and the derivative of the mean of (a weighted sum of) the draw.
MEANS: dict[str, tuple[Any, Any, float]] = {
    "Bernoulli": (td.Bernoulli, lambda p: p, 1.0),
    "Binomial": (lambda p: td.Binomial(3, p), lambda p: p, 3.0),
    "Categorical": (lambda p: td.Categorical(two(p)), lambda p: p, 1.0),
    "Categorical, as a class": (td.Categorical, two, 1.0),
    "Independent": (lambda p: td.Independent(td.Bernoulli(p), 1), lambda p: p.expand(3), 3.0),
    "Multinomial": (lambda p: td.Multinomial(2, two(p)), lambda p: p, 2.0),
    "OneHotCategorical": (td.OneHotCategorical, two, 1.0),
}


def mean_of(name: str, plate: bool) -> sg.Graph:
    dist, parameter, _ = MEANS[name]
    vector = name in ("Multinomial", "OneHotCategorical")

    @sg.graph
    def objective(p):
        x = sg.sample("x", dist, sg.apply(parameter, p), n=1 if plate else None)
        cost = sg.apply(lambda v: 3.0 * (v[1] if vector else v.sum()) + 2.0, x)
        return sg.mean(cost) if plate else cost

    return objective


@pytest.mark.parametrize("plate", [False, True], ids=["alone", "in a plate"])
@pytest.mark.parametrize(("dtype", "value"), [*SMALL, *LARGE], ids=str)
@pytest.mark.parametrize("name", MEANS)
def test_the_truth_near_the_edge(name, dtype, value, plate):
    """E[3x + 2] has the derivative 3, however small the probability, and its score function has that mean."""
    theta = torch.tensor(value, dtype=dtype)
    assert 0 < float(theta) < 1
    result = sg.verify(mean_of(name, plate).compile(sg.SF()), theta)
    expected = torch.tensor(3 * MEANS[name][2], dtype=dtype)
    accuracy: dict[str, Any] = {"rtol": 200 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(result.truth, expected, **accuracy)
    torch.testing.assert_close(result.expectation, expected, **accuracy)


# Families with the derivative of the log-probability of one draw with respect to the probability.
SCORES: dict[str, tuple[Any, list[Any], Any]] = {
    "Bernoulli": (td.Bernoulli, [0.0, 1.0], lambda x, p: x / p - (1 - x) / (1 - p)),
    "Binomial": (lambda p: td.Binomial(3, p), [0.0, 1.0, 3.0], lambda x, p: x / p - (3 - x) / (1 - p)),
    "Categorical": (lambda p: td.Categorical(two(p)), [0, 1], lambda x, p: x / p - (1 - x) / (1 - p)),
    "Geometric": (td.Geometric, [0.0, 1.0, 7.0], lambda x, p: 1 / p - x / (1 - p)),
    "Multinomial": (
        lambda p: td.Multinomial(2, two(p)),
        [[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]],
        lambda x, p: x[1] / p - x[0] / (1 - p),
    ),
    "NegativeBinomial": (lambda p: td.NegativeBinomial(3.0, p), [0.0, 1.0, 4.0], lambda x, p: x / p - 3 / (1 - p)),
    "OneHotCategorical": (
        lambda p: td.OneHotCategorical(two(p)),
        [[1.0, 0.0], [0.0, 1.0]],
        lambda x, p: x[1] / p - x[0] / (1 - p),
    ),
    "mixture": (
        lambda p: td.MixtureSameFamily(td.Categorical(two(p)), td.Bernoulli(torch.tensor([0.25, 0.75]).to(p))),
        [0.0, 1.0],
        lambda x, p: (x - 0.5) / (0.25 + 0.5 * p if x else 0.75 - 0.5 * p),
    ),
}


@pytest.mark.parametrize(("dtype", "value"), [*SMALL[:3], *LARGE], ids=str)
@pytest.mark.parametrize("name", SCORES)
def test_the_score_near_the_edge(name, dtype, value):
    """In float32 an epsilon is 1e-7: below it torch's own score is zero."""
    dist, draws, derivative = SCORES[name]
    theta = torch.tensor(value, dtype=dtype)
    compiled = sg.graph(lambda p: sg.apply(lambda x: (1 + 0 * x).sum() / x.numel(), sg.sample("x", dist, p))).compile(
        sg.SF()
    )
    for draw in draws:
        x = torch.tensor(draw) if isinstance(draw, int) else torch.tensor(draw, dtype=dtype)
        trace = sg.Trace(theta, {"x": x}, {}, {})
        found = torch.func.grad(compiled.surrogate)(theta, trace)  # the score: all costs are 1
        expected = derivative(x.double(), theta.double())
        torch.testing.assert_close(found.double(), expected, rtol=100 * torch.finfo(dtype).eps, atol=0.0)


# At the edge itself

AT: dict[str, tuple[Any, Any]] = {
    "Bernoulli": (td.Bernoulli, lambda p: p),
    "Bernoulli, through a function": (lambda p: td.Bernoulli(p), lambda p: p),
    "Binomial": (lambda p: td.Binomial(2, p), lambda p: p),
    "Categorical": (td.Categorical, two),
    "Independent": (lambda p: td.Independent(td.Bernoulli(p), 1), lambda p: p.expand(2)),
    "Multinomial": (lambda p: td.Multinomial(2, p), two),
    "OneHotCategorical": (td.OneHotCategorical, two),
    "a row of a table": (lambda p: td.Categorical(p[0]), lambda p: torch.stack([two(p), two(1 - p)])),
}


def at(name: str, n: int | None = None) -> sg.Graph:
    dist, parameter = AT[name]

    @sg.graph
    def objective(p):
        x = sg.sample("x", dist, sg.apply(parameter, p), n=n)
        cost = sg.apply(lambda v: torch.sin(1.0 + v).sum(), x)
        return cost if n is None else sg.mean(cost)

    return objective


REFUSED = r"sample 'x' \(axes: .*\): .* a probability of exactly 0 or 1.* depends on a differentiated .*logits="


@pytest.mark.parametrize("n", [None, 2], ids=["alone", "in a plate"])
@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("name", AT)
def test_at_the_edge_what_depends_on_the_input_is_refused(name, p, n):
    """An outcome of probability zero is never drawn, so that no score shows how its probability grows."""
    compiled, theta = at(name, n).compile(sg.SF()), torch.tensor(p, dtype=F64)
    for call in (compiled.sample, compiled.value_and_grad):
        with pytest.raises(sg.SamplingError, match=REFUSED):
            call(theta)
    with pytest.raises(sg.StochgraphError, match=REFUSED):
        sg.verify(compiled, theta)
    trace = compiled.sample(torch.tensor(0.5, dtype=F64))
    with pytest.raises(sg.SamplingError, match=REFUSED):
        compiled.surrogate(theta.clone().requires_grad_(), trace)


def test_at_the_edge_a_geometric_is_refused():
    compiled = sg.graph(lambda p: sg.sample("x", td.Geometric, p) * 1.0).compile(sg.SF())
    with pytest.raises(sg.SamplingError, match=REFUSED):
        compiled.value_and_grad(torch.tensor(1.0, dtype=F64))


@pytest.mark.parametrize("edge", [0.0, 1.0])
@pytest.mark.parametrize("name", AT)
def test_at_the_edge_what_is_constant_is_verified(name, edge):
    """Tables with zeros: what they make impossible is never drawn, and adds nothing."""
    dist, parameter = AT[name]
    table = parameter(torch.tensor(edge, dtype=F64))

    @sg.graph
    def objective(theta):
        y = sg.sample("y", td.Bernoulli, theta)
        x = sg.sample("x", dist, sg.apply(torch.add, table, 0 * y))
        return sg.apply(lambda v: torch.sin(1.0 + v.to(F64)).sum(), x) * (1 + 2 * y)

    compiled, theta = objective.compile(sg.SF()), torch.tensor(0.3, dtype=F64)
    result = sg.verify(compiled, theta)
    value = torch.sin(1.0 + dist(table).sample().to(F64)).sum()
    torch.testing.assert_close(result.truth, 2 * value, rtol=1e-12, atol=1e-12)
    assert result.relative_bias < 1e-12
    compiled.value_and_grad(theta)
    torch.func.grad(compiled.surrogate)(theta, compiled.sample(theta))


def test_tables_with_zeros_that_are_another_input():
    @sg.graph
    def objective(theta, table):
        state = sg.sample("state", td.Categorical, logits=theta)
        following = sg.sample("following", td.Categorical, sg.apply(lambda t, i: t[i], table, state))
        return sg.apply(lambda i: torch.sin(1.0 + i.to(F64)), following)

    theta = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    table = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.25, 0.75, 0.0]], dtype=F64)
    compiled = objective.compile(sg.SF())
    compiled.value_and_grad(theta, table)
    compiled.sample(theta, table)
    result = sg.verify(compiled, theta, table)
    value = torch.sin(1.0 + torch.arange(3, dtype=F64))
    expected = torch.func.grad(lambda t: t.softmax(0) @ table @ value)(theta)
    torch.testing.assert_close(result.truth, expected, rtol=1e-12, atol=1e-12)
    assert result.relative_bias < 1e-12
    with pytest.raises(sg.StochgraphError, match=r"'following' .* exactly 0 or 1"):
        objective.compile(sg.SF(), wrt="table").value_and_grad(theta, table)


def test_the_remedy_of_a_mask():
    """Outcomes that are ruled out: log-probabilities may be minus infinity."""
    allowed = torch.tensor([True, False, True])
    masked = lambda t: torch.where(allowed, t, -torch.inf)  # noqa: E731

    @sg.graph
    def objective(theta):
        a = sg.sample("a", td.Categorical, logits=sg.apply(masked, theta), n=2)
        return sg.mean(torch.sin(a)) ** 2

    theta = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    result = sg.verify(objective.compile(sg.SF()), theta)
    assert (result.outcomes, result.relative_bias < 1e-12) == (4, True)
    objective.compile(sg.SF()).value_and_grad(theta)


def test_inside_an_update():
    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", td.Bernoulli, theta, n=3)
        return sg.ascend(theta, sg.mean(torch.sin(1.0 + pulls)), 0.1)

    compiled = objective.compile(sg.SF())
    for call in (compiled.sample, compiled.value_and_grad):
        with pytest.raises(sg.SamplingError, match=r"sample 'D' .* exactly 0 or 1"):
            call(torch.tensor(1.0))
    compiled.value_and_grad(torch.tensor(1.0 - 2**-24))
