"""Variational inference with several latents: data plates, discrete and continuous draws in one graph, nested plates.

Discrete models are enumerated and compared with bounds that are summed by hand; with Gaussian latents the gradient is
compared with a formula on the same samples, and in expectation by enumeration times Gauss-Hermite quadrature.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.func import functional_call

import stochgraph as sg
from tests.problems import F64
from tests.variational_cases import ZERO, real

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def normal(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=seed(number))


class Rows(sg.Sampler):
    """The rows of a data set as a plate: each once, in order.

    To `verify` they are drawn uniformly, which is the same to whatever is a mean over rows.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Tensor:
        return torch.arange(batch_shape[0])

    def log_prob(self, value: Tensor, *parents: Any) -> Tensor:
        return torch.full((), -math.log(self.count), dtype=F64)

    def enumerate(self, *parents: Any) -> Tensor:
        return torch.arange(self.count)


# A mixture of three Gaussians: q has a table of logits, one row for each datum

DATA, KINDS = normal(4, number=1), 3
LOGITS, MEANS = normal(4, KINDS, number=2), real(-1.0, 0.2, 1.5)
BOTH = ("logits", "means")


def log_joint(x, means, kind):
    return Normal(means[kind], 0.7).log_prob(x) - math.log(KINDS)


def declare_mixture(logits, means, data, n):
    """The log-weights of n draws for each row."""
    row = sg.sample("row", Rows(len(DATA)), n=len(DATA))
    own = sg.apply(lambda table, i: table[i], logits, row)
    kind = sg.sample("kind", Categorical, logits=own, n=n)
    log_q = sg.apply(lambda k, table: table.log_softmax(-1)[k], kind, own)
    return sg.apply(log_joint, sg.apply(lambda values, i: values[i], data, row), means, kind) - log_q


def mixture(n: int, shift: float = 0.0, scored: bool = False) -> sg.Graph:
    """The evidence lower bound, mean over rows; a constant may be added, and be scored with the rest."""

    @sg.graph
    def bound(logits, means, data):
        weight = declare_mixture(logits, means, data, n)
        return sg.mean(sg.apply(lambda w: w + shift, weight) if scored else weight + shift)

    return bound


def tighter(n: int, linear: bool) -> sg.Graph:
    """The log of the mean of n weights (Burda et al. 2016), as a function of the plate or of its mean."""

    @sg.graph
    def bound(logits, means, data):
        weight = declare_mixture(logits, means, data, n)
        if linear:
            return sg.mean(torch.log(sg.mean(torch.exp(weight), over="kind")))
        return sg.mean(sg.reduce(lambda w: torch.logsumexp(w, 0) - math.log(len(w)), weight, over="kind"))

    return bound


def log_weights(logits, means, data):  # (rows, kinds)
    log_q = logits.log_softmax(-1)
    return log_q, Normal(means, 0.7).log_prob(data[:, None]) - math.log(KINDS) - log_q


def mixture_by_hand(logits, means, data):
    log_q, weight = log_weights(logits, means, data)
    return (log_q.exp() * weight).sum(1).mean()


def tighter_by_hand(n):
    kinds = torch.cartesian_prod(*[torch.arange(KINDS)] * n).reshape(-1, n)

    def bound(logits, means, data):
        log_q, weight = log_weights(logits, means, data)
        outcomes = torch.logsumexp(weight[:, kinds], 2) - math.log(n)
        return (log_q[:, kinds].sum(2).exp() * outcomes).sum(1).mean()

    return bound


def gradients_by_hand(bound, order=1):
    derivative = torch.func.grad if order == 1 else torch.func.hessian
    return derivative(bound, argnums=(0, 1) if order == 1 else 1)(LOGITS, MEANS, DATA)


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF()], ids=["SF", "LSF"])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (1, 3), (2, 1)])
def test_mixture_in_expectation(rows, n, estimator):
    compiled = mixture(n).compile(estimator, wrt=BOTH)
    verification = sg.verify(compiled, LOGITS, MEANS, DATA, sizes={"row": rows})
    torch.testing.assert_close(verification.expectation, gradients_by_hand(mixture_by_hand), **EXACT)
    torch.testing.assert_close(verification.truth, verification.expectation, **EXACT)
    assert compiled.explain().unbiased


def test_variance_falls_with_rows_and_draws():
    """Independent rows average; draws of one row share it, so that only the variance that they bring is divided."""
    compiled = mixture(1).compile(sg.SF())
    total = {
        (rows, n): sg.verify(compiled, LOGITS, MEANS, DATA, sizes={"row": rows, "kind": n}).total_variance
        for rows, n in [(1, 1), (2, 1), (1, 2), (1, 4)]
    }
    assert total[2, 1] == pytest.approx(total[1, 1] / 2, rel=1e-12)
    assert total[1, 2] - total[1, 4] == pytest.approx((total[1, 1] - total[1, 2]) / 2, rel=1e-10)
    assert total[1, 4] < total[1, 2] < total[1, 1]


def test_mixture_on_the_same_samples():
    """Every row in turn, each scored by its own draws alone: the logits of q per row are parameters and cost."""
    compiled = mixture(5).compile(sg.SF(), wrt=BOTH)
    trace = compiled.sample(LOGITS, MEANS, DATA, generator=seed())
    kind = trace.draws["kind"]
    assert torch.equal(trace.draws["row"], torch.arange(4))
    weight = log_weights(LOGITS, MEANS, DATA)[1].gather(1, kind)
    score = torch.nn.functional.one_hot(kind, KINDS) - LOGITS.softmax(-1).unsqueeze(1)
    slope = torch.nn.functional.one_hot(kind, KINDS) * ((DATA[:, None] - MEANS[kind]) / 0.7**2).unsqueeze(2)
    expected = ((weight - 1).unsqueeze(2) * score).mean(1) / 4, slope.mean((0, 1))
    found = torch.func.grad(compiled.surrogate, argnums=(0, 1))(LOGITS, MEANS, DATA, trace)
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_constant_that_is_added_is_not_scored():
    """No draw reaches it. Hidden in a function it is: the variance is then a parabola of it, the mean stays."""
    shifts = (0, 1, 2, 3)
    for scored in (False, True):
        compiled = [mixture(1, shift, scored).compile(sg.SF()) for shift in shifts]
        found = [sg.verify(one, LOGITS, MEANS, DATA, sizes={"row": 1}) for one in compiled]
        for verification in found:
            torch.testing.assert_close(verification.expectation, found[0].truth, **EXACT)
        second = np.diff([verification.total_variance for verification in found], 2)
        q = LOGITS.softmax(-1)
        information = float((q * (1 - q)).sum()) / len(DATA)  # of a row that is drawn uniformly
        np.testing.assert_allclose(second, 2 * information if scored else 0.0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_tighter_bound_in_expectation(n):
    expected = gradients_by_hand(tighter_by_hand(n))
    for linear in (False, True):
        compiled = tighter(n, linear).compile(sg.SF(), wrt=BOTH)
        verification = sg.verify(compiled, LOGITS, MEANS, DATA, sizes={"row": 1})
        torch.testing.assert_close(verification.expectation, expected, **EXACT)
        assert compiled.explain().unbiased


def test_second_derivatives_of_the_bounds():
    for graph, bound in ((mixture(2), mixture_by_hand), (tighter(2, linear=True), tighter_by_hand(2))):
        verification = sg.verify(graph.compile(sg.SF(), wrt="means"), LOGITS, MEANS, DATA, sizes={"row": 1}, order=2)
        torch.testing.assert_close(verification.expectation, gradients_by_hand(bound, order=2), **EXACT)


def test_the_linearised_score_function_of_the_tighter_bound():
    """In one form it has a mean to linearise at: that of the weights, the evidence for any q. So q gets no gradient."""
    with pytest.raises(sg.CompileError, match=r"'kind' .* is not a mean: .* use SF"):
        tighter(3, linear=False).compile(sg.LSF())
    compiled = tighter(3, linear=True).compile(sg.LSF(), wrt=BOTH)
    assert {row.counted for row in compiled.explain().ledger if row.sample == "kind"} == {"linearized"}
    verification = sg.verify(compiled, LOGITS, MEANS, DATA, sizes={"row": 1})
    for figure in (verification.expectation[0], verification.variance[0]):
        torch.testing.assert_close(figure, torch.zeros_like(LOGITS), **EXACT)
    expected = gradients_by_hand(tighter_by_hand(3))
    assert float(expected[0].abs().max()) > 0.01
    torch.testing.assert_close(verification.expectation[1], expected[1], **EXACT)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_normalised_weights_in_expectation(n):
    """A posterior mean by importance sampling: every weight is divided by the mean of all weights of its row."""

    @sg.graph
    def posterior_mean(logits, means, data):
        weight = torch.exp(declare_mixture(logits, means, data, n))
        return sg.mean(weight / sg.mean(weight, over="kind") * torch.sin(weight**2))

    kinds = torch.cartesian_prod(*[torch.arange(KINDS)] * n).reshape(-1, n)

    def by_hand(logits, means, data):
        log_q, log_weight = log_weights(logits, means, data)
        weight = log_weight.exp()[:, kinds]
        value = (weight / weight.mean(2, keepdim=True) * torch.sin(weight**2)).mean(2)
        return (log_q[:, kinds].sum(2).exp() * value).sum(1).mean()

    compiled = posterior_mean.compile(sg.SF(), wrt=BOTH)
    verification = sg.verify(compiled, LOGITS, MEANS, DATA, sizes={"row": 1})
    torch.testing.assert_close(verification.expectation, gradients_by_hand(by_hand), **EXACT)


def test_a_vector_of_latents_in_one_draw():
    """A mean field without plates: dimensions of a draw are scored together."""

    @sg.graph
    def bound(logits):
        z = sg.sample("z", Bernoulli, logits=logits)
        log_q = sg.apply(lambda z, logits: Bernoulli(logits=logits).log_prob(z).sum(), z, logits)
        return sg.apply(lambda z: torch.sin((z * MEANS).sum()), z) - log_q

    def by_hand(logits):
        z = torch.cartesian_prod(*[real(0, 1)] * 3)
        log_q = Bernoulli(logits=logits).log_prob(z).sum(1)
        return (log_q.exp() * (torch.sin(z @ MEANS) - log_q)).sum()

    verification = sg.verify(bound.compile(sg.SF()), LOGITS[0])
    torch.testing.assert_close(verification.expectation, torch.func.grad(by_hand)(LOGITS[0]), **EXACT)


# Gaussian latents with a discrete one above or below


def mixed() -> sg.Graph:
    """q: a component k, then z ~ N(means[k], scales[k]). p: the same with standard means and one scale."""

    @sg.graph
    def bound(theta):
        k = sg.sample("k", Categorical, logits=theta["logits"], n=3)
        loc, scale = theta["loc"][k], torch.exp(theta["log scale"])[k]
        z = sg.sample("z", Normal, loc, scale, n=2)
        log_q = sg.apply(lambda z, m, s: Normal(m, s).log_prob(z), z, loc, scale)
        log_q_k = sg.apply(lambda k, logits: logits.log_softmax(-1)[k], k, theta["logits"])
        log_p = sg.apply(lambda z, k: Normal(MEANS[k], 0.7).log_prob(z) + PRIOR.log()[k], z, k)
        return sg.mean(log_p - log_q - log_q_k)

    return bound


PRIOR = real(0.5, 0.2, 0.3)
MIXED = {"logits": real(0.3, -0.4, 0.1), "loc": real(-0.6, 0.1, 0.9), "log scale": real(-0.2, 0.3, -0.5)}


def mixed_by_hand(theta):
    """Summed over components; given one, the divergence of two normals."""
    log_q = theta["logits"].log_softmax(-1)
    divergence = kl_divergence(Normal(theta["loc"], theta["log scale"].exp()), Normal(MEANS, real(0.7, 0.7, 0.7)))
    return (log_q.exp() * (PRIOR.log() - log_q - divergence)).sum()


def log_weight(theta, k, z):
    """Of a component and Gaussian draws given it, and the derivative of the weight along the draws."""
    loc, scale = theta["loc"][k], theta["log scale"].exp()[k]
    log_q = Normal(loc, scale).log_prob(z) + theta["logits"].log_softmax(-1)[k]
    slope = (MEANS[k] - z) / 0.7**2 + (z - loc) / scale**2
    return Normal(MEANS[k], 0.7).log_prob(z) + PRIOR.log()[k] - log_q, slope


@pytest.mark.parametrize("pathwise", [True, False], ids=["PW", "SF"])
def test_component_and_gaussian_on_the_same_samples(pathwise):
    """The component is scored with all Gaussian draws given it; these are moved, or scored one by one."""
    compiled = mixed().compile({"k": sg.SF(), "z": sg.PW() if pathwise else sg.SF()})
    trace = compiled.sample(MIXED, generator=seed())
    k, z = trace.draws["k"][:, None], trace.draws["z"]
    assert k.unique().numel() > 1
    weight, slope = log_weight(MIXED, k, z)
    loc, scale = MIXED["loc"][k], MIXED["log scale"].exp()[k]
    chosen = torch.nn.functional.one_hot(k.expand(3, 2), KINDS).to(F64)
    reached = weight + MIXED["logits"].log_softmax(-1)[k]  # z does not reach log q of the component
    score = torch.stack([(z - loc) / scale**2, (z - loc) ** 2 / scale**2 - 1])
    moved = torch.stack([slope, slope * (z - loc)]) if pathwise else reached * score
    both = ((moved - score).unsqueeze(3) * chosen).mean((1, 2))
    logits = ((weight - 1).unsqueeze(2) * (chosen - MIXED["logits"].softmax(-1))).mean((0, 1))
    expected = {"logits": logits, "loc": both[0], "log scale": both[1]}
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(MIXED, trace), expected, **EXACT)
    assert compiled.explain().unbiased


@pytest.mark.parametrize("pathwise", [True, False], ids=["PW", "SF"])
def test_component_and_gaussian_in_expectation(pathwise):
    """All components times eight nodes of quadrature: the estimate is a polynomial of the noise."""
    compiled = mixed().compile({"k": sg.SF(), "z": sg.PW() if pathwise else sg.SF()})
    nodes, weights = (torch.tensor(x) for x in np.polynomial.hermite_e.hermegauss(8))
    k, noise = torch.arange(KINDS).repeat_interleave(8), nodes.repeat(KINDS)
    log_q = MIXED["logits"].log_softmax(-1)[k]
    probability = log_q.exp() * (weights / weights.sum()).repeat(KINDS)
    loc, scale = MIXED["loc"][k], MIXED["log scale"].exp()[k]
    z = loc + scale * noise

    def estimate(k, z, noise, log_k, log_z):
        log_probs = {"k": log_k.reshape(1), "z": log_z.reshape(1, 1)}
        draws = {"k": k.reshape(1), "z": z.reshape(1, 1)}
        trace = sg.Trace(ZERO, draws, log_probs, {"z": [noise.reshape(1, 1)]})
        return torch.func.grad(compiled.surrogate)(MIXED, trace)

    estimates = torch.vmap(estimate)(k, z, noise, log_q, Normal(loc, scale).log_prob(z))
    expectation = {name: probability @ values for name, values in estimates.items()}
    torch.testing.assert_close(expectation, torch.func.grad(mixed_by_hand)(MIXED), **EXACT)


def test_gaussian_then_component_then_gaussian_on_the_same_samples():
    """A pathwise draw above a scored one above a pathwise one: the score of the middle moves with the first."""

    @sg.graph
    def bound(theta):
        first = sg.sample("first", Normal, theta[0], torch.exp(theta[1]), n=4)
        middle = sg.sample("middle", Bernoulli, logits=first)
        last = sg.sample("last", Normal, first - middle, torch.exp(theta[2]), n=3)
        return sg.mean(torch.sin(last) * first + theta[0] * middle)

    theta = real(0.3, -0.2, 0.1)
    compiled = bound.compile({"first": sg.PW(), "middle": sg.SF(), "last": sg.PW()})
    trace = compiled.sample(theta, generator=seed())
    middle, (first_noise,), (last_noise,) = trace.draws["middle"], trace.noise["first"], trace.noise["last"]

    def by_hand(theta):
        first = theta[0] + theta[1].exp() * first_noise
        last = (first - middle).unsqueeze(1) + theta[2].exp() * last_noise.reshape(3, 4).T
        cost = torch.sin(last) * first.unsqueeze(1) + (theta[0] * middle).unsqueeze(1)
        score = Bernoulli(logits=first).log_prob(middle).unsqueeze(1)
        return (cost + cost.detach() * score).mean()

    expected = torch.func.grad(by_hand)(theta)
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(theta, trace), expected, **EXACT)
    assert compiled.explain().unbiased


# Groups and members: plates in plates

GROUPS = {"global": real(0.4), "group": real(-0.3), "member": real(0.2, 0.9)}


def hierarchical(members: int, outer: str = "identity") -> sg.Graph:
    """A latent for all, one for each group, one for each member; log q in the cost, a function of each group's mean."""

    @sg.graph
    def bound(theta):
        top = sg.sample("global", Bernoulli, logits=theta["global"][0])
        group = sg.sample("group", Bernoulli, logits=theta["group"][0] + top, n=2)
        logits = theta["member"][0] + theta["member"][1] * group - top
        member = sg.sample("member", Bernoulli, logits=logits, n=members)
        log_q = sg.apply(lambda m, logits: Bernoulli(logits=logits).log_prob(m), member, logits)
        inside = sg.mean(likelihood(member, group, top) - log_q, over="member")
        return sg.mean(getattr(torch, outer)(inside) if outer != "identity" else inside) - 0.3 * top

    return bound


def likelihood(member, group, top):
    return torch.cos(member + 2 * group) + 0.5 * member * top


def hierarchical_by_hand(members, outer):
    """The expected bound, summed over all outcomes of one group given the latent above: groups are independent."""

    def bound(theta):
        total = ZERO
        for top, group, *rest in itertools.product(real(0, 1), repeat=2 + members):
            member = torch.stack(rest)
            logits = theta["member"][0] + theta["member"][1] * group - top
            log_q = Bernoulli(logits=logits).log_prob(member)
            upper = Bernoulli(logits=theta["global"][0]).log_prob(top)
            middle = Bernoulli(logits=theta["group"][0] + top).log_prob(group)
            inside = (likelihood(member, group, top) - log_q).mean()
            value = (torch.exp(inside) if outer == "exp" else inside) - 0.3 * top
            total = total + (upper + middle + log_q.sum()).exp() * value
        return total

    return bound


@pytest.mark.parametrize(("outer", "estimator"), [("identity", "SF"), ("identity", "LSF"), ("exp", "SF")])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_groups_and_members_in_expectation(members, outer, estimator):
    compiled = hierarchical(members, outer).compile(getattr(sg, estimator)())
    verification = sg.verify(compiled, GROUPS)
    torch.testing.assert_close(
        verification.expectation, torch.func.grad(hierarchical_by_hand(members, outer))(GROUPS), **EXACT
    )
    assert compiled.explain().unbiased
    assert verification.outcomes == 2 * (2 * 2**members) ** 2


def test_members_linearised_inside_their_group():
    """Only members pass through the exponential below their mean; the groups above stay exactly counted."""
    compiled = hierarchical(2, "exp").compile({"global": sg.SF(), "group": sg.SF(), "member": sg.LSF()})
    counted = {(row.sample, row.counted) for row in compiled.explain().ledger if row.sample}
    assert counted == {("global", "once"), ("group", "once"), ("member", "linearized")}
    biases = []
    for members in (1, 2, 3, 4):
        bias = sg.verify(compiled, GROUPS, sizes={"group": 1, "member": members}).bias
        torch.testing.assert_close([bias["global"], bias["group"]], [real(0), real(0)], **EXACT)
        biases.append(float(bias["member"].norm()))
    assert biases == sorted(biases, reverse=True)
    assert biases[-1] > 1e-4


def test_groups_and_members_on_the_same_samples():
    """Pathwise groups, scored members: every term moves with its group and is scored by its own member alone."""

    @sg.graph
    def bound(theta):
        group = sg.sample("group", Normal, theta[0], torch.exp(theta[1]), n=5)
        member = sg.sample("member", Bernoulli, logits=theta[2] * group, n=3)
        log_q = sg.apply(lambda m, logits: Bernoulli(logits=logits).log_prob(m), member, theta[2] * group)
        return sg.mean(member * group - log_q) - 0.5 * sg.mean(group**2)

    theta = real(0.3, -0.4, 1.2)
    compiled = bound.compile({"group": sg.PW(), "member": sg.SF()})
    trace = compiled.sample(theta, generator=seed())
    group, member = trace.draws["group"].unsqueeze(1), trace.draws["member"]
    noise = (group - theta[0]) / theta[1].exp()
    logits = theta[2] * group
    weight = member * group - Bernoulli(logits=logits).log_prob(member) - 1  # less the score of log q itself
    residual = member - torch.sigmoid(logits)
    slope = member + weight * residual * theta[2] - group
    moved = torch.stack([slope, slope * noise * theta[1].exp(), weight * residual * group])
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(theta, trace), moved.mean((1, 2)), **EXACT)


@pytest.mark.parametrize("sizes", [{"row": 2, "column": 2}, {"row": 3, "column": 1}], ids=str)
def test_crossed_plates(sizes):
    """Two plates of latents and one draw for each pair: a factorisation of a binary table."""

    @sg.graph
    def bound(theta):
        row = sg.sample("row", Bernoulli, logits=theta[0], n=2)
        column = sg.sample("column", Bernoulli, logits=theta[1], n=2)
        cell = sg.sample("cell", Bernoulli, logits=theta[2] * row * column - theta[0])
        log_q = sg.apply(lambda r, t: Bernoulli(logits=t[0]).log_prob(r), row, theta)
        return sg.mean(torch.sin(1 + cell + 2 * row - column)) - sg.mean(log_q) + sg.mean(cell * column) ** 2

    theta = real(0.3, -0.4, 1.2)
    compiled = bound.compile(sg.SF())
    verification = sg.verify(compiled, theta, sizes=sizes)
    expected = torch.func.grad(lambda t: table_by_hand(t, **sizes))(theta)
    torch.testing.assert_close(verification.expectation, expected, **EXACT)
    assert verification.outcomes == 2 ** (sizes["row"] + sizes["column"] + sizes["row"] * sizes["column"])


def table_by_hand(theta, row, column):
    total = ZERO
    for outcome in itertools.product(real(0, 1), repeat=row + column + row * column):
        rows, columns = torch.stack(outcome[:row]), torch.stack(outcome[row : row + column])
        cells = torch.stack(outcome[row + column :]).reshape(row, column)
        r, c = rows[:, None], columns[None]
        log_q = Bernoulli(logits=theta[0]).log_prob(rows)
        log_cells = Bernoulli(logits=theta[2] * r * c - theta[0]).log_prob(cells)
        log_p = log_q.sum() + Bernoulli(logits=theta[1]).log_prob(columns).sum() + log_cells.sum()
        value = torch.sin(1 + cells + 2 * r - c).mean() - log_q.mean() + (cells * c).mean() ** 2
        total = total + log_p.exp() * value
    return total


# A variational autoencoder: networks as functions of their parameters

NETWORK = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
ROWS = normal(4, 2, number=3)


def autoencoder(n: int) -> sg.Graph:
    """One latent number for each row, the tighter bound of n draws; a network encodes, a linear map decodes."""

    @sg.graph
    def bound(theta, data):
        x = sg.apply(lambda values, i: values[i], data, sg.sample("row", Rows(len(ROWS)), n=len(ROWS)))
        code = sg.apply(lambda w, x: functional_call(NETWORK, w, (x,)), theta["encoder"], x)
        z = sg.sample("z", Normal, code[0], torch.exp(code[1]), n=n)
        log_q = sg.apply(lambda z, code: Normal(code[0], code[1].exp()).log_prob(z), z, code)
        weight = sg.apply(weigh, theta["decoder"], x, z) - log_q
        return sg.mean(sg.reduce(lambda w: torch.logsumexp(w, 0), weight, over="z"))

    return bound


def weigh(decoder, x, z):
    return Normal(ZERO, 1.0).log_prob(z) + Normal(decoder * z.unsqueeze(-1), 0.5).log_prob(x).sum(-1)


@pytest.mark.parametrize("pathwise", [True, False], ids=["PW", "SF"])
def test_autoencoder_on_the_same_samples(pathwise):
    encoder = {name: normal(*value.shape, number=5) for name, value in NETWORK.named_parameters()}
    theta = {"encoder": encoder, "decoder": real(0.7, -0.4)}
    compiled = autoencoder(3).compile({"z": sg.PW() if pathwise else sg.SF()})
    trace = compiled.sample(theta, ROWS, generator=seed())

    def by_hand(theta):
        code = functional_call(NETWORK, theta["encoder"], (ROWS,))
        loc, scale = code[:, :1], code[:, 1:].exp()
        noise = (trace.draws["z"] - loc.detach()) / scale.detach()
        z = loc + scale * noise if pathwise else trace.draws["z"]
        log_q = Normal(loc, scale).log_prob(z)
        bound = torch.logsumexp(weigh(theta["decoder"], ROWS.unsqueeze(1), z) - log_q, 1)
        return (bound if pathwise else bound + bound.detach() * log_q.sum(1)).mean()

    expected = torch.func.grad(by_hand)(theta)
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(theta, ROWS, trace), expected, **EXACT)
