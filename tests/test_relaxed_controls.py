"""REBAR and RELAX: unbiased by quadrature of their uniforms, the papers' formulas on the same noise."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent

import stochgraph as sg
from tests.problems import F64, LATENT_THETA
from tests.test_disarm import in_every_way

THETA = torch.tensor(0.3, dtype=F64)
CLOSE = 1e-9  # where the temperature is 1, the relaxed coin is a rational function of the uniform


@sg.graph
def single(logit):
    return (sg.sample("x", Bernoulli, logits=logit) - 0.45) ** 2


@sg.graph
def pair(logit):
    """A nonlinear function of a mean."""
    return torch.exp(sg.mean(sg.sample("x", Bernoulli, logits=logit, n=2)))


@sg.graph
def linear(logit):
    """A cost for each draw, which depends on the parameters through values as well."""
    x = sg.sample("x", Bernoulli, logits=logit, n=2)
    return sg.mean((x - 0.45) ** 2 * (1 + logit))


@sg.graph
def latents(theta):
    """A coin that another one follows."""
    x = sg.sample("x", Bernoulli, logits=theta[0])
    y = sg.sample("y", Bernoulli, logits=theta[1] * x + theta[2])
    return (x - 2 * y) ** 2


@sg.graph
def step(logit):
    """An inner update, and a coin from where it leads."""
    x = sg.sample("x", Bernoulli, logits=logit)
    adapted = sg.ascend(logit, x * x - 0.3 * x, 0.7)
    return sg.sample("y", Bernoulli, logits=adapted) * 1.0


@sg.graph
def vector(theta):
    """A draw of two coins."""
    x = sg.sample("x", lambda t: Independent(Bernoulli(logits=t), 1), theta)
    return sg.apply(lambda one: (one[0] - 0.3 * one[1]) ** 2, x)


PROBLEMS = {
    "single": (single, THETA, {"x"}, 12),
    "pair": (pair, THETA, {"x"}, 8),
    "linear": (linear, THETA, {"x"}, 8),
    "latents, the first": (latents, LATENT_THETA, {"x"}, 14),
    "latents, both": (latents, LATENT_THETA, {"x", "y"}, 10),
    "step, the data": (step, THETA, {"x"}, 14),
    "step, the outcome": (step, THETA, {"y"}, 14),
    "vector": (vector, LATENT_THETA[:2], {"x"}, 10),
}


def chosen(graph, estimator, names):
    return graph.compile({s: estimator if s in names else sg.SF() for s in graph.samples})


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_rebar_is_unbiased(name, order):
    graph, theta, names, nodes = PROBLEMS[name]
    found = sg.verify(chosen(graph, sg.REBAR(1.0, 0.8), names), theta, order=order, quadrature=nodes)
    exact = sg.verify(graph.compile(sg.SF()), theta, order=order)
    assert torch.allclose(found.truth, exact.truth, rtol=1e-12)
    assert found.relative_bias < (CLOSE if order == 1 else 1e-6)


def test_the_change_from_half_the_nodes_tells_how_far_to_trust():
    """At a temperature of 1/2 the relaxed coin is steeper, and more nodes are needed."""
    found = [sg.verify(single.compile(sg.REBAR(0.5)), THETA, quadrature=nodes) for nodes in (4, 8, 16)]
    assert found[0].relative_bias > found[1].relative_bias > found[2].relative_bias
    for one in found:
        assert one.quadrature is not None
        assert one.relative_bias < one.quadrature.change
        assert one.quadrature.disagreement is None
    assert found[2].relative_bias < CLOSE


@pytest.mark.parametrize("learned", [lambda z: torch.tanh(z).sum(), lambda z: 0.3 * (z.sigmoid() ** 2).sum() + 0.1])
@pytest.mark.parametrize("name", ["single", "pair", "linear", "step, the data", "vector"])
def test_relax_is_unbiased_whatever_is_learned(name, learned):
    """The log-odds have logarithmic ends, on which a Gauss rule converges slowly: the change from K / 2 bounds it."""
    graph, theta, names, nodes = PROBLEMS[name]
    found = sg.verify(chosen(graph, sg.RELAX(learned), names), theta, quadrature=nodes)
    assert found.quadrature is not None
    assert found.relative_bias < min(found.quadrature.change, 1e-4)


def test_relax_with_the_costs_at_relaxed_draws():
    estimator = sg.RELAX(lambda z: 0.2 * z.sigmoid().sum(), temperature=1.0, scale=0.7)
    assert sg.verify(pair.compile(estimator), THETA, quadrature=8).relative_bias < CLOSE


def test_at_other_parameters():
    compiled = pair.compile(sg.REBAR(1.0))
    there = sg.verify(pair.compile(sg.SF()), THETA + 0.9).truth
    found = sg.verify(compiled, THETA, surrogate=lambda t, trace: compiled.surrogate(t + 0.9, trace), quadrature=8)
    assert abs(found.expectation - there) < CLOSE * abs(there)


def test_beside_others():
    for first, last in ((sg.REBAR(1.0), sg.LOO()), (sg.Enumerate(), sg.REBAR(1.0)), (sg.REBAR(1.0), sg.DisARM())):
        compiled = step.compile({"x": first, "y": last})
        assert sg.verify(compiled, THETA, quadrature=12).relative_bias < CLOSE


@pytest.mark.parametrize("logit", [0.4, -0.9])
def test_the_formula_of_rebar_on_the_same_noise(logit):
    """That of Tucker et al. (2017), for three coins of one cost."""
    tau, eta = 0.6, 0.8
    theta = torch.tensor(logit, dtype=F64)

    def f(x):
        return torch.exp(x.mean(-1))

    @sg.graph
    def objective(t):
        return torch.exp(sg.mean(sg.sample("x", Bernoulli, logits=t, n=3)))

    compiled = objective.compile(sg.REBAR(tau, eta))
    for seed in range(4):
        trace = compiled.sample(theta, generator=torch.Generator().manual_seed(seed))
        b, (u, v) = trace.draws["x"], trace.draws["x noise"]
        assert torch.equal((theta + torch.logit(u) > 0).double(), b)

        def z(t, u=u):
            return t + torch.logit(u)

        def other(t, b=b, v=v):
            p = t.sigmoid()
            return t + torch.logit(torch.where(b == 1, 1 - p + p * v, (1 - p) * v))

        def relaxed(draw):
            return torch.func.grad(lambda t: f((draw(t) / tau).sigmoid()))(theta)

        assert torch.equal((other(theta) > 0).double(), b)
        score = (b - theta.sigmoid()).sum()
        by_hand = (f(b) - eta * f((other(theta) / tau).sigmoid())) * score + eta * (relaxed(z) - relaxed(other))
        found = torch.func.grad(compiled.surrogate)(theta, trace)
        assert float(found) == pytest.approx(float(by_hand), abs=1e-13)
        assert float(compiled.surrogate(theta, trace)) == pytest.approx(float(f(b)), abs=1e-14)


def test_the_formula_of_relax_on_the_same_noise():
    """That of Grathwohl et al. (2018), one cost for each coin."""
    compiled = linear.compile(sg.RELAX(torch.tanh))
    trace = compiled.sample(THETA, generator=torch.Generator().manual_seed(0))
    b, (u, v) = trace.draws["x"], trace.draws["x noise"]

    def z(t):
        return torch.tanh(t + torch.logit(u)).mean()

    def other(t):
        p = t.sigmoid()
        return torch.tanh(t + torch.logit(torch.where(b == 1, 1 - p + p * v, (1 - p) * v)))

    score, cost = b - THETA.sigmoid(), (b - 0.45) ** 2
    by_hand = ((cost * (1 + THETA) - other(THETA)) * score).mean() + cost.mean()
    by_hand = by_hand + torch.func.grad(z)(THETA) - torch.func.grad(lambda t: other(t).mean())(THETA)
    assert float(torch.func.grad(compiled.surrogate)(THETA, trace)) == pytest.approx(float(by_hand), abs=1e-13)


@sg.graph
def learned_single(logit, phi):
    return (sg.sample("x", Bernoulli, logits=logit) + 0.45) ** 2


LEARNED = {
    "REBAR": (sg.REBAR(temperature=1.0, scale="phi"), torch.tensor(0.0, dtype=F64)),
    "RELAX": (sg.RELAX(lambda z, phi: phi[0] * z.sigmoid() + phi[1], "phi"), torch.zeros(2, dtype=F64)),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_lessens_the_variance(name):
    """By the derivative of squared estimates; the estimate stays unbiased on the way."""
    estimator, start = LEARNED[name]
    compiled = learned_single.compile(estimator)

    def squared(phi, trace):
        return torch.func.grad(compiled.surrogate)(THETA, phi, trace) ** 2

    generator, phi = torch.Generator().manual_seed(0), start
    for _ in range(60):
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            many = torch.vmap(lambda _, phi=phi: compiled.sample(THETA, phi), randomness="different")
            traces = many(torch.arange(50))
        phi = phi - 0.2 * torch.vmap(torch.func.grad(squared), in_dims=(None, 0))(phi, traces).mean(0)
    before, after = (sg.verify(compiled, THETA, one, quadrature=12) for one in (start, phi))
    assert after.relative_bias < CLOSE
    assert after.total_variance < 0.5 * before.total_variance


def test_costs_that_jump_are_biased():
    """The gradient of the relaxed cost is not that of its mean; a learned function of z needs no cost there."""

    @sg.graph
    def jump(logit):
        return sg.apply(lambda x: torch.where(x > 0.3, x + 1, x), sg.sample("x", Bernoulli, logits=logit))

    assert sg.verify(jump.compile(sg.REBAR(1.0)), THETA, quadrature=16).relative_bias > 0.1
    assert sg.verify(jump.compile(sg.RELAX(lambda z: z.sigmoid())), THETA, quadrature=16).relative_bias < CLOSE


def test_one_call_a_trace_chunks_and_a_flat_program_agree():
    grad, at_trace, in_chunks, flat = in_every_way(sg.REBAR())
    assert torch.allclose(at_trace, grad, atol=1e-14)
    assert torch.allclose(in_chunks, grad, atol=1e-14)
    assert torch.equal(flat, grad)


@pytest.mark.parametrize("estimator", [sg.REBAR(1.0), sg.RELAX(lambda z: z.sigmoid().sum()), sg.DisARM()])
def test_all_that_is_added_belongs_to_the_draw(estimator):
    """Of the shares: the control's mean is 0, and its part of the variance is that of the draw's row."""
    (row,) = sg.verify(pair.compile(estimator), THETA, quadrature=6).rows
    assert (row.sample, row.counted) == ("x", "once")
    assert row.share == pytest.approx(1.0, abs=1e-6)
    assert row.variance_share == pytest.approx(1.0, abs=1e-12)


def test_what_it_says():
    explained = pair.compile(sg.REBAR()).explain()
    assert explained.unbiased
    assert {row.counted for row in explained.ledger} == {"once"}
    assert r"c(\tilde z_{x_{i}})" in explained.latex
    assert repr(sg.REBAR()) == "REBAR(temperature=0.5, scale=1.0)"


def test_what_is_refused():
    @sg.graph
    def arms(theta):
        return sg.sample("x", Categorical, logits=theta) * 1.0

    @sg.graph
    def flat(logit):
        return sg.apply(torch.ge, sg.sample("x", Bernoulli, logits=logit), 0.5) * 1.0

    @sg.graph
    def stopped(logit):
        x = sg.sample("x", Bernoulli, logits=logit)
        return x * sg.stop(x + 0.5)

    with pytest.raises(sg.CompileError, match=r"REBAR on sample 'x' \(axes: none\): Categorical is not Bernoulli"):
        arms.compile(sg.REBAR())
    with pytest.raises(sg.CompileError, match=r"RELAX on sample 'x' \(axes: none\): Categorical is not Bernoulli"):
        arms.compile(sg.RELAX(torch.tanh))
    for graph, node in ((flat, "ge"), (stopped, "stop")):
        with pytest.raises(sg.CompileError, match=f"'x' .* meet '{node}.*, through which a relaxed draw has no deriv"):
            graph.compile(sg.REBAR())
        with pytest.raises(sg.CompileError, match=f"'x' .* meet '{node}.* Use RELAX without a temperature"):
            graph.compile(sg.RELAX(torch.tanh, temperature=1.0))
    assert sg.verify(stopped.compile(sg.RELAX(lambda z: z.sigmoid())), THETA, quadrature=12).relative_bias < CLOSE
    with pytest.raises(sg.VerificationError, match=r"'x noise' .* verify\(quadrature=8\)"):
        sg.verify(single.compile(sg.REBAR()), THETA)
    with pytest.raises(sg.CompileError, match=r"REBAR on sample 'x': 'tau' is no input of the graph; .* are logit"):
        single.compile(sg.REBAR(temperature="tau"))
