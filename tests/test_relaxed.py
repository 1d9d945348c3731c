"""Relaxed draws: biased as the ledger says, by how much, and straight-through draws with the values of choices."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical

import stochgraph as sg
from stochgraph.distributions.relaxed import FAMILIES
from tests.problems import F64, LATENT_THETA
from tests.test_disarm import in_every_way

THETA = torch.tensor(0.3, dtype=F64)
PRICES = torch.tensor([0.1, 1.0, -0.6], dtype=F64)


@sg.graph
def cube(logit):
    return sg.sample("x", Bernoulli, logits=logit) ** 3


@sg.graph
def arms(theta):
    x = sg.sample("x", OneHotCategorical, logits=theta)
    return torch.exp(sg.apply(lambda one: (one * PRICES).sum(), x))


@sg.graph
def step(logit):
    x = sg.sample("x", Bernoulli, logits=logit)
    adapted = sg.ascend(logit, x * x - 0.3 * x, 0.7)
    return sg.sample("y", Bernoulli, logits=adapted) * 1.0


@sg.graph
def latents(theta):
    x = sg.sample("x", Bernoulli, logits=theta[0], n=2)
    y = sg.sample("y", Bernoulli, logits=theta[1] * x + theta[2])
    return sg.mean(x) * sg.mean(x - 2 * y)


@sg.graph
def vector(theta):
    x = sg.sample("x", lambda t: Independent(Bernoulli(logits=t), 1), theta)
    return sg.apply(lambda one: (one[0] - 0.3 * one[1]) ** 2, x)


PROBLEMS = {
    "cube": (cube, THETA),
    "arms": (arms, LATENT_THETA),
    "step": (step, THETA),
    "latents": (latents, LATENT_THETA),
    "vector": (vector, LATENT_THETA[:2]),
}
ESTIMATORS = {"soft": sg.Relaxed(1.0), "straight-through": sg.Relaxed(1.0, hard=True)}


@pytest.mark.parametrize("word", ESTIMATORS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_biased_and_says_so(name, word):
    """Against the truth of the declared draws, of which the score function has no bias."""
    graph, theta = PROBLEMS[name]
    compiled = graph.compile({s: ESTIMATORS[word] if s == "x" else sg.SF() for s in graph.samples})
    found = sg.verify(compiled, theta, quadrature=8)
    exact = sg.verify(graph.compile(sg.SF()), theta)
    assert torch.allclose(found.truth, exact.truth, rtol=1e-12)
    assert found.quadrature is not None
    assert found.relative_bias > max(0.01, 5 * found.quadrature.change)
    explained = compiled.explain()
    assert (explained.unbiased, explained.bias) == (False, "O(1)")
    assert "relaxed" in {row.counted for row in explained.ledger if row.sample == "x"}


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0])
def test_the_mean_by_integration(temperature):
    """Of the cube of one coin, over its uniform number: soft, and straight-through with three times its square.

    With temperatures of 1 over a whole number the integrands are smooth up to the ends.
    """
    u = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000

    def soft(logit):
        return torch.sigmoid((logit + torch.logit(u)) / temperature)

    expected = torch.func.grad(lambda t: (soft(t) ** 3).mean())(THETA)
    found = sg.verify(cube.compile(sg.Relaxed(temperature)), THETA, quadrature=32)
    assert float(found.expectation) == pytest.approx(float(expected), rel=1e-6)
    slope = torch.func.jvp(soft, (THETA,), (torch.ones((), dtype=F64),))[1]
    expected = (3.0 * (THETA + torch.logit(u) > 0) * slope).mean()
    found = sg.verify(cube.compile(sg.Relaxed(temperature, hard=True)), THETA, quadrature=32)
    assert float(found.expectation) == pytest.approx(float(expected), rel=1e-5)


def test_the_bias_at_low_temperatures():
    """Soft it goes with the temperature. Straight-through it is that of the mean slope at 0 and 1, 3/2 for 1."""
    soft = [sg.verify(cube.compile(sg.Relaxed(t)), THETA, quadrature=48).relative_bias for t in (1.0, 0.5, 0.25)]
    assert soft == sorted(soft, reverse=True)
    hard = sg.verify(cube.compile(sg.Relaxed(0.1, hard=True)), THETA, quadrature=64)
    assert hard.scale == pytest.approx(1.5, abs=0.05)


def test_straight_through_draws_have_the_values_of_choices():
    compiled, soft = (arms.compile(sg.Relaxed(0.5, hard=hard)) for hard in (True, False))
    for seed in range(5):
        trace = compiled.sample(LATENT_THETA, generator=torch.Generator().manual_seed(seed))
        draw = trace.draws["x"]
        assert sorted(draw.tolist()) == [0.0, 0.0, 1.0]
        assert float(trace.value) == pytest.approx(float(torch.exp(draw @ PRICES)))
        relaxed = soft.sample(LATENT_THETA, generator=torch.Generator().manual_seed(seed)).draws["x"]
        assert int(relaxed.argmax()) == int(draw.argmax())
        assert float(relaxed.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_the_nodes_lead_to_their_choice_and_have_the_law_of_the_noise(family):
    """Whatever is chosen, `exp(-exp(-g))` of Gumbel noise is uniform, and so is the sigmoid of the logistic one."""
    relaxed = FAMILIES[family]
    odds = LATENT_THETA if family is OneHotCategorical else THETA
    along = torch.rand(20000, *odds.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    mean = torch.zeros_like(odds)
    for choice in range(relaxed.choices(odds)):
        noise = relaxed.nodes(odds, choice, along)
        hard = relaxed.hard(odds + noise)
        assert bool((hard == choice).all() if family is Bernoulli else (hard[..., choice] == 1).all())
        uniform = noise.sigmoid() if family is Bernoulli else (-(-noise).exp()).exp()
        mean += relaxed.log_prob(odds, choice).exp() * uniform.mean(0)
    assert torch.allclose(mean, torch.full_like(mean, 0.5), atol=5 * (1 / 12 / 20000) ** 0.5)  # fails once in 6e5


def test_one_call_a_trace_chunks_and_a_flat_program_agree():
    grad, at_trace, in_chunks, flat = in_every_way(sg.Relaxed(hard=True))
    assert torch.allclose(at_trace, grad, atol=1e-14)
    assert torch.allclose(in_chunks, grad, atol=1e-14)
    assert torch.allclose(flat, grad, atol=1e-14)


def test_what_is_refused():
    @sg.graph
    def indices(theta):
        return sg.sample("x", Categorical, logits=theta) * 1.0

    @sg.graph
    def continuous(theta):
        return sg.sample("x", lambda t: Normal(t, 1.0), theta)

    @sg.graph
    def flat(logit):
        return sg.apply(torch.ge, sg.sample("x", Bernoulli, logits=logit), 0.5) * 1.0

    @sg.graph
    def scored(logit):
        x = sg.sample("x", Bernoulli, logits=logit)
        return x + sg.log_prob(x)

    with pytest.raises(sg.CompileError, match=r"Relaxed on sample 'x' .*: Categorical has no relaxation .* one-hot"):
        indices.compile(sg.Relaxed())
    with pytest.raises(sg.SamplingError, match="Normal has no relaxation"):
        continuous.compile(sg.Relaxed()).sample(THETA)
    with pytest.raises(sg.CompileError, match="no differentiable path to the objective 'mul'"):
        flat.compile(sg.Relaxed())
    with pytest.raises(sg.CompileError, match=r"draws have another law than Bernoulli.* use SF, LOO or DisARM"):
        scored.compile(sg.Relaxed())
    with pytest.raises(sg.VerificationError, match=r"'x' is pathwise.*verify\(quadrature=8\)"):
        sg.verify(cube.compile(sg.Relaxed()), THETA)
    with pytest.raises(ValueError, match=r"temperature=0.0: a positive number"):
        sg.Relaxed(0.0)
