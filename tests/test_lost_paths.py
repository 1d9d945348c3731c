"""PW through functions without a derivative: refused at the first pass in which nothing arrives at the objective."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, TransformedDistribution
from torch.distributions.transforms import SigmoidTransform

import stochgraph as sg
from tests.problems import F64

THETA = torch.tensor(0.3, dtype=F64)


def drawn(theta: Any) -> Any:
    return sg.sample("x", Normal, theta, 1.0, n=3)


def jump(x: Tensor) -> Tensor:
    return (x > 0).double()


# Each has no derivative with respect to the draw; with the node behind which there is none any more.


def an_indicator(theta):
    return sg.mean(sg.apply(jump, drawn(theta)))


def a_parameter_beside_it(theta):
    return sg.mean(sg.apply(lambda x, t: (x > 0).double() * t, drawn(theta), theta))


def further_operations(theta):
    return (sg.mean(torch.exp(sg.apply(jump, drawn(theta)))) - 1) ** 2 + theta


def a_detached_value(theta):
    return sg.mean(sg.apply(lambda x: x.detach() ** 2, drawn(theta)))


def a_rounded_value(theta):
    return sg.mean(sg.apply(lambda x: x.long().double(), drawn(theta)))


def a_rounding_with_a_derivative_of_zero(theta):
    return sg.mean(sg.apply(lambda x: torch.round(2 * x) / 2, drawn(theta)))


def a_sign_beside_a_parameter(theta):
    return sg.mean(sg.apply(lambda x, t: t * x.sign() + x.floor() + x.ceil() + x.trunc(), drawn(theta), theta))


def a_tree(theta):
    return sg.mean(sg.apply(lambda x: {"a": jump(x)}, drawn(theta))["a"])


def a_reduction(theta):
    return sg.reduce(lambda whole: (whole > 0).sum().double(), drawn(theta))


def behind_scores(theta):
    y = sg.sample("y", Bernoulli, logits=theta, n=2)
    return sg.mean(sg.apply(lambda x, y: (x > 0).double() * y, sg.sample("x", Normal, y + theta, 1.0), y))


def a_baseline_beside_it(theta):
    y = sg.sample("y", Bernoulli, logits=theta)
    return sg.mean(sg.apply(jump, drawn(theta))) * y


def a_factory(theta):
    return sg.mean(sg.sample("y", lambda x: Bernoulli((x > 0).double() / 2 + 0.25), drawn(theta)))


def an_inner_objective(theta):
    loss = sg.mean(sg.apply(lambda t, x: (x > 0).double() * t**2, theta, drawn(theta)))
    return sg.descend(theta, loss, lr=0.1)


def data_of_a_step(theta):
    start = torch.ones((), dtype=F64)
    phi = sg.apply(lambda t: t * 0 + start, theta)
    loss = sg.mean(phi * sg.apply(jump, drawn(theta)))
    return sg.descend(phi, loss, lr=0.1)


def an_implicit_step(theta):
    psi = sg.unknown("psi", like=theta)
    count = sg.mean(sg.apply(jump, drawn(theta)))
    return sg.argmax(-((psi - count) ** 2), over=psi)


def inside_an_implicit_step(theta):
    psi = sg.unknown("psi", like=theta)
    loss = sg.mean(sg.apply(lambda p, x: (p - (x > 0).double()) ** 2, psi, drawn(theta)))
    return sg.argmax(-loss, over=psi) + theta


LOST: dict[Callable[..., Any], str] = {
    an_indicator: "jump",
    a_parameter_beside_it: "lambda",
    further_operations: "jump",
    a_detached_value: "lambda",
    a_rounded_value: "lambda",
    a_rounding_with_a_derivative_of_zero: "lambda",
    a_sign_beside_a_parameter: "lambda",
    a_tree: "lambda",
    behind_scores: "lambda",
    a_baseline_beside_it: "jump",
    a_reduction: r"<lambda>\(x\)",
    a_factory: "y",
    an_inner_objective: "lambda",
    data_of_a_step: "jump",
    an_implicit_step: "jump",
    inside_an_implicit_step: "lambda",
}


def compiled_with(body: Callable[..., Any]) -> sg.Compiled:
    """PW on `x`; later draws are scored, with a baseline that is handed `x`."""
    graph = sg.graph(body)
    return graph.compile({name: sg.PW() if name == "x" else sg.SF(lambda trace: 0.5) for name in graph.samples})


@pytest.mark.parametrize("call", ["value_and_grad", "surrogate"])
@pytest.mark.parametrize("body", LOST, ids=lambda body: body.__name__)
def test_nothing_differentiable_arrives(body, call):
    compiled = compiled_with(body)
    replayed = (THETA.clone().requires_grad_(), compiled.sample(THETA))
    run = compiled.value_and_grad if call == "value_and_grad" else compiled.surrogate
    words = rf"PW on sample 'x' \(axes: .*\): .*objective .*no derivative behind '{LOST[body]}' .*Use SF for this node"
    with pytest.raises(sg.CompileError, match=words) as caught:
        run(*(replayed[:1] if call == "value_and_grad" else replayed))
    assert "box(" not in str(caught.value)


def test_in_chunks():
    compiled = compiled_with(an_indicator)
    with pytest.raises(sg.CompileError, match="no derivative behind 'jump'"):
        sg.accumulate(compiled, THETA, over="x")


# Each has one, or needs none.


def a_smooth_cost(theta):
    return sg.mean(sg.apply(lambda x: x**2, drawn(theta)))


def a_jump_in_a_smooth_cost(theta):
    return sg.mean(sg.apply(lambda x: torch.where(x > 0, x + 1, x), drawn(theta)))


def two_ways(theta):
    x = drawn(theta)
    return sg.mean(sg.apply(jump, x) + x)


def a_linear_inner_objective(theta):
    """Its direction is the same whatever is drawn: a derivative of exactly 0."""
    return sg.ascend(theta, sg.mean(drawn(theta)), lr=0.1)


def a_separate_inner_objective(theta):
    phi = theta * 1.0
    return sg.descend(phi, sg.mean(drawn(theta)) + phi**2, lr=0.1)


def a_log_probability(theta):
    base = Normal(torch.zeros((), dtype=F64), 1.0)
    x = sg.sample("x", lambda t: TransformedDistribution(Normal(t, base.scale), SigmoidTransform()), theta, n=3)
    return -sg.mean(sg.log_prob(x))


def a_smooth_implicit_step(theta):
    psi = sg.unknown("psi", like=theta)
    return sg.argmax(-sg.mean((psi - drawn(theta)) ** 2), over=psi)


def a_straight_through_rounding(theta):
    return sg.mean(sg.apply(lambda x: x + (x.round() - x).detach(), drawn(theta)))


def a_baseline_that_reads_it(theta):
    """The draw reaches the objective through an update in which it has a part of its own, and a baseline."""
    y = sg.sample("y", Bernoulli, logits=theta)
    return sg.ascend(theta, sg.mean(drawn(theta)), lr=0.1) * y


def a_later_draw(theta):
    return sg.mean(sg.sample("y", lambda x: Bernoulli(logits=x), drawn(theta)))


SMOOTH = [
    a_smooth_cost,
    a_jump_in_a_smooth_cost,
    two_ways,
    a_linear_inner_objective,
    a_separate_inner_objective,
    a_log_probability,
    a_smooth_implicit_step,
    a_straight_through_rounding,
    a_baseline_that_reads_it,
    a_later_draw,
]


@pytest.mark.parametrize("body", SMOOTH, ids=lambda body: body.__name__)
def test_something_arrives(body):
    compiled = compiled_with(body)
    _, grad = compiled.value_and_grad(THETA, generator=torch.Generator().manual_seed(0))
    theta = THETA.clone().requires_grad_()
    trace = compiled.sample(THETA, generator=torch.Generator().manual_seed(0))
    compiled.surrogate(theta, trace).backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, grad)


def test_what_an_estimator_drops_is_no_fault_of_the_function():
    """A first-order update holds its direction constant, and the ledger says so."""

    @sg.graph
    def graph(theta):
        return sg.descend(theta, sg.mean((theta - drawn(theta)) ** 2), lr=0.1)

    compiled = graph.compile({"x": sg.PW()})
    compiled.value_and_grad(THETA)


def test_parameters_that_are_not_differentiated():
    """Another input may go into a function without a derivative."""

    @sg.graph
    def graph(theta, other):
        x = sg.sample("x", Normal, other, 1.0, n=3)
        return sg.mean(sg.apply(jump, x)) * theta

    graph.compile(sg.PW(), wrt="theta").value_and_grad(THETA, THETA)
