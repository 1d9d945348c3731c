"""The log-probability of draws that are mapped: pathwise, what was mapped is known, and nothing has to be inverted.

Every chain of maps comes with its density as a function of the noise, written by hand. It is compared far from where a
map is steep: there the draw says little of what was mapped, in single precision nothing.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import transforms as tt
from torch.nn.functional import logsigmoid, softplus

import stochgraph as sg
from tests.problems import F64

F32 = torch.float32


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def log_normal(e: Tensor) -> Tensor:
    return -(e**2) / 2 - math.log(2 * math.pi) / 2


def log_slope_of_tanh(u: Tensor) -> Tensor:
    return 2 * (math.log(2) - u - softplus(-2 * u))


def log_slope_of_sigmoid(u: Tensor) -> Tensor:
    return logsigmoid(u) + logsigmoid(-u)


def mapped(base: Any, *maps: Any) -> td.TransformedDistribution:
    return td.TransformedDistribution(base, list(maps))


class Chain(NamedTuple):
    """A distribution of two numbers, parameters far out, and the log-density as a function of noise and parameters."""

    dist: Callable[[Tensor, Tensor], Any]
    far: tuple[float, float]
    by_hand: Callable[[Tensor, Tensor, Tensor], Tensor]


def logistic_normal(e, m, s):
    """Two breaks of a stick, at normal draws around m."""
    u = m + s * e - torch.tensor([2.0, 1.0], dtype=e.dtype).log()
    left = logsigmoid(-u).cumsum(-1)
    return (log_normal(e) - s.log() - logsigmoid(u) - left).sum(-1)


def relaxed_bernoulli(e, t, logits):
    noise = e.log() - (-e).log1p()
    u = (noise + logits) / t
    return t.log() - noise + 2 * logsigmoid(noise) - log_slope_of_sigmoid(u)


def kumaraswamy(e, a, b):
    """The draw to the power a is 1 - e**(1/b)."""
    return a.log() + b.log() + (a - 1) / a * (-(e ** (1 / b))).log1p() + (b - 1) / b * e.log()


def stretched_tanh(e, m, s):
    u = 2 * (m + s * e) - 3
    return log_normal(e) - s.log() - math.log(2.0) - log_slope_of_tanh(u)


remembered = tt.TanhTransform(cache_size=1)
CHAINS = {
    "tanh": Chain(
        lambda m, s: mapped(td.Normal(m, s), tt.TanhTransform()),
        (10.0, 1.0),
        lambda e, m, s: log_normal(e) - s.log() - log_slope_of_tanh(m + s * e),
    ),
    "tanh with a cache": Chain(
        lambda m, s: mapped(td.Normal(m, s), remembered),
        (10.0, 1.0),
        lambda e, m, s: log_normal(e) - s.log() - log_slope_of_tanh(m + s * e),
    ),
    "tanh, on the other side": Chain(
        lambda m, s: mapped(td.Normal(m, s), tt.TanhTransform(cache_size=1)),
        (-12.0, 0.5),
        lambda e, m, s: log_normal(e) - s.log() - log_slope_of_tanh(m + s * e),
    ),
    "sigmoid": Chain(
        lambda m, s: mapped(td.Normal(m, s), tt.SigmoidTransform()),
        (20.0, 1.0),
        lambda e, m, s: log_normal(e) - s.log() - log_slope_of_sigmoid(m + s * e),
    ),
    "affine and tanh": Chain(
        lambda m, s: mapped(td.Normal(m, s), tt.AffineTransform(-3.0, 2.0), tt.TanhTransform()),
        (8.0, 1.0),
        stretched_tanh,
    ),
    "composed": Chain(
        lambda m, s: mapped(
            td.Normal(m, s), tt.ComposeTransform([tt.AffineTransform(-3.0, 2.0), tt.TanhTransform(cache_size=1)])
        ),
        (8.0, 1.0),
        stretched_tanh,
    ),
    "moved by parameters": Chain(
        lambda m, s: mapped(td.Normal(torch.zeros_like(m), 1.0), tt.AffineTransform(m, s), tt.SigmoidTransform()),
        (20.0, 1.0),
        lambda e, m, s: log_normal(e) - s.log() - log_slope_of_sigmoid(m + s * e),
    ),
    "sigmoid and its inverse": Chain(
        lambda m, s: mapped(
            td.Normal(m, s), tt.SigmoidTransform(), tt.SigmoidTransform().inv, tt.ExpTransform().inv.inv
        ),
        (3.0, 0.5),
        lambda e, m, s: log_normal(e) - s.log() - (m + s * e),
    ),
    "map of a map": Chain(
        lambda m, s: mapped(mapped(td.Normal(m, s), tt.TanhTransform()), tt.AffineTransform(1.0, 3.0)),
        (10.0, 1.0),
        lambda e, m, s: log_normal(e) - s.log() - log_slope_of_tanh(m + s * e) - math.log(3.0),
    ),
    "vector": Chain(
        lambda m, s: td.Independent(mapped(td.Normal(m.expand(3), s), tt.TanhTransform()), 1),
        (10.0, 1.0),
        lambda e, m, s: (log_normal(e) - s.log() - log_slope_of_tanh(m + s * e)).sum(-1),
    ),
    "map of a vector": Chain(
        lambda m, s: mapped(
            td.Independent(td.Normal(m.expand(3), s), 1), tt.IndependentTransform(tt.TanhTransform(), 1)
        ),
        (10.0, 1.0),
        lambda e, m, s: (log_normal(e) - s.log() - log_slope_of_tanh(m + s * e)).sum(-1),
    ),
    "stick-breaking": Chain(lambda m, s: td.LogisticNormal(m.expand(2), s.expand(2)), (20.0, 1.0), logistic_normal),
    "LogNormal": Chain(td.LogNormal, (60.0, 3.0), lambda e, m, s: log_normal(e) - s.log() - (m + s * e)),
    "Kumaraswamy": Chain(td.Kumaraswamy, (3.0, 0.02), kumaraswamy),
    "Weibull": Chain(td.Weibull, (2.0, 40.0), lambda e, scale, k: k.log() - scale.log() + (k - 1) / k * e.log() - e),
    "Gumbel": Chain(
        td.Gumbel,
        (3.0, 0.5),
        lambda e, m, s: (-e.log()).log() + e.log() - s.log() + 0 * m,
    ),
    "RelaxedBernoulli": Chain(lambda t, odds: td.RelaxedBernoulli(t, logits=odds), (0.05, 1.5), relaxed_bernoulli),
}
CLASSES = [name for name, chain in CHAINS.items() if isinstance(chain.dist, type)]
SPELLINGS = [(name, f) for name in CHAINS for f in (False, True) if f or name in CLASSES]
each = pytest.mark.parametrize(
    ("name", "as_function"), SPELLINGS, ids=[f"{name}-{'function' if f else 'class'}" for name, f in SPELLINGS]
)


def spelled(name: str, as_function: bool) -> Any:
    dist = CHAINS[name].dist
    return (lambda *p: dist(*p)) if as_function else dist


def entropy(name: str, as_function: bool, n: int | None = None) -> sg.Compiled:
    @sg.graph
    def objective(theta):
        log_p = sg.log_prob(sg.sample("x", spelled(name, as_function), theta[0], theta[1], n=n))
        return log_p if n is None else sg.mean(log_p)

    return objective.compile(sg.PW())


def far(name: str, dtype: torch.dtype = F64) -> Tensor:
    return torch.tensor(CHAINS[name].far, dtype=dtype)


def noise_of(trace: sg.Trace) -> Tensor:
    (noise,) = trace.noise["x"]
    return noise.double()


def by_hand(name: str, noise: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda theta: CHAINS[name].by_hand(noise, theta[0], theta[1]).mean()


@pytest.mark.parametrize("n", [None, 5])
@pytest.mark.parametrize("dtype", [F32, F64])
@each
def test_values_and_gradients_far_out(name, as_function, dtype, n):
    compiled, theta = entropy(name, as_function, n), far(name, dtype)
    accuracy: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-4} if dtype is F32 else {"rtol": 1e-9, "atol": 1e-9}
    trace = compiled.sample(theta, generator=seed())
    expected = by_hand(name, noise_of(trace))
    gradient = torch.func.grad(expected)(theta.double())
    value, found = compiled.value_and_grad(theta, generator=seed())
    for one in (value, trace.value, compiled.surrogate(theta, trace)):
        torch.testing.assert_close(one.double(), expected(theta.double()), **accuracy)
    for grad in (
        found,
        torch.func.grad(compiled.surrogate)(theta, trace),
        torch.func.jacfwd(compiled.surrogate)(theta, trace),
    ):
        torch.testing.assert_close(grad.double(), gradient, **accuracy)


@each
def test_replays_and_second_derivatives(name, as_function):
    compiled, theta = entropy(name, as_function, 4), far(name)
    trace = compiled.sample(theta, generator=seed())
    expected = by_hand(name, noise_of(trace))
    for at in (theta, theta * 1.1, theta * 0.7):
        torch.testing.assert_close(compiled.surrogate(at, trace), expected(at), rtol=1e-9, atol=1e-9)
        hessian = torch.func.hessian(compiled.surrogate)(at, trace)
        torch.testing.assert_close(hessian, torch.func.hessian(expected)(at), rtol=1e-8, atol=1e-8)


@each
def test_under_vmap(name, as_function):
    compiled, theta = entropy(name, as_function, 4), far(name)
    trace = compiled.sample(theta, generator=seed())
    expected = torch.func.grad(by_hand(name, noise_of(trace)))
    many = torch.stack([theta, theta * 1.1])
    found = torch.func.vmap(torch.func.grad(compiled.surrogate), in_dims=(0, None))(many, trace)
    torch.testing.assert_close(found, torch.stack([expected(t) for t in many]), rtol=1e-9, atol=1e-9)
    drawn = torch.func.vmap(compiled.sample, randomness="different")(many)
    found = torch.func.vmap(torch.func.grad(compiled.surrogate))(many, drawn)
    by_row = [
        torch.func.grad(by_hand(name, noise.double()))(t) for t, noise in zip(many, drawn.noise["x"][0], strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(by_row), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [F32, F64])
@each
def test_in_plates(name, as_function, dtype):
    """Draws in the plate of their parents, and in one of their own, each with its own parameters."""

    @sg.graph
    def objective(theta):
        z = sg.sample("z", td.Uniform, torch.tensor(0.8, dtype=dtype), torch.tensor(1.2, dtype=dtype), n=2)
        x = sg.sample("x", spelled(name, as_function), theta[0] * z, theta[1] / z, n=3)
        return sg.mean(z * sg.log_prob(x))

    compiled, theta = objective.compile({"x": sg.PW()}), far(name, dtype)
    trace = compiled.sample(theta, generator=seed())
    z, noise = trace.draws["z"].double(), noise_of(trace).movedim(0, 1)  # torch draws the own plate in front

    def expected(t):
        rows = [[CHAINS[name].by_hand(noise[i, k], t[0] * z[i], t[1] / z[i]) for k in range(3)] for i in range(2)]
        return (z[:, None] * torch.stack([torch.stack(row) for row in rows])).mean()

    accuracy: dict[str, Any] = {"rtol": 1e-4, "atol": 5e-4} if dtype is F32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(trace.value.double(), expected(theta.double()), **accuracy)
    gradient = torch.func.grad(expected)(theta.double())
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(theta, trace).double(), gradient, **accuracy)
    for plate in "zx":
        _, found = sg.accumulate(compiled, theta, over=plate, trace=trace, chunk=1)
        torch.testing.assert_close(found.double(), gradient, **accuracy)


@each
def test_inside_an_update_and_after_it(name, as_function):
    """The draw of the update's own copy of the parameters, its log-probability too; and that of the parameters' own."""
    dist = spelled(name, as_function)

    @sg.graph
    def objective(theta):
        x = sg.sample("x", dist, theta[0], theta[1], n=3)
        adapted = sg.ascend(theta, sg.mean(sg.log_prob(x)), 1e-5)
        y = sg.sample("y", dist, adapted[0], adapted[1], n=2)
        return sg.mean(sg.log_prob(y)) + sg.mean(sg.log_prob(x))

    compiled, theta = objective.compile(sg.PW()), far(name)
    trace = compiled.sample(theta, generator=seed())
    first, second = (by_hand(name, trace.noise[node][0]) for node in "xy")

    def expected(t):
        adapted = t + 1e-5 * torch.func.grad(first)(t)
        return second(adapted) + first(t)

    for at in (theta, theta * 1.05):
        torch.testing.assert_close(compiled.surrogate(at, trace), expected(at), rtol=1e-9, atol=1e-9)
        found = torch.func.grad(compiled.surrogate)(at, trace)
        torch.testing.assert_close(found, torch.func.grad(expected)(at), rtol=1e-8, atol=1e-8)
    found = compiled.value_and_grad(theta, generator=seed())[1]
    torch.testing.assert_close(found, torch.func.grad(expected)(theta), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "expected"), [("tanh", -2.0), ("tanh with a cache", -2.0), ("sigmoid", -1.0)])
def test_the_entropy_in_single_precision(name, expected):
    """Its derivative is minus the mean slope of the logarithm of the map's slope: NaN and +4.06 by the inverse."""
    graph = sg.graph(lambda m: -sg.mean(sg.log_prob(sg.sample("x", CHAINS[name].dist, m, torch.tensor(1.0), n=100))))
    _, found = graph.compile(sg.PW()).value_and_grad(far(name, F32)[0], generator=seed())
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_maps_of_the_user_are_left_alone():
    """A transform with a cache belongs to whoever made it."""
    owned = tt.TanhTransform(cache_size=1)
    owned(torch.tensor(0.5))
    before = owned._cached_x_y
    graph = sg.graph(lambda m: sg.log_prob(sg.sample("x", lambda m: mapped(td.Normal(m, 1.0), owned), m)))
    compiled = graph.compile(sg.PW())
    compiled.value_and_grad(torch.tensor(0.3))
    compiled.surrogate(torch.tensor(0.4), compiled.sample(torch.tensor(0.3)))
    assert owned._cached_x_y is before


def test_a_moving_support_does_not_concern_a_pathwise_draw():
    graph = sg.graph(lambda high: sg.mean(sg.log_prob(sg.sample("x", td.Uniform, 0.0, high, n=3))))
    compiled = graph.compile(sg.PW())
    value, grad = compiled.value_and_grad(torch.tensor(2.0, dtype=F64))
    assert (float(value), float(grad)) == pytest.approx((-math.log(2.0), -0.5), abs=1e-12)


# Scored draws: what was mapped is not in the trace


@pytest.mark.parametrize("as_function", [False, True], ids=["in a plate of its own", "in one of its parents"])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "affine and tanh", "map of a map", "vector", "stick-breaking"])
def test_scored_draws_that_do_not_lead_back_are_refused(name, as_function):
    """By the inverse the score of a sigmoid's draw at 20 is that of one at 16, whatever was drawn."""

    @sg.graph
    def objective(theta):
        if as_function:
            z = sg.sample("z", td.Normal, 0.0 * theta[0], 1e-3, n=3)
            x = sg.sample("x", CHAINS[name].dist, theta[0] + z, theta[1])
        else:
            x = sg.sample("x", CHAINS[name].dist, theta[0], theta[1], n=3)
        return sg.mean(sg.apply(lambda v: torch.sin(v).sum(), x))

    compiled = objective.compile(sg.SF())
    message = (
        r"sample 'x' \(axes: \([xz]\)\): a draw of .* torch.float32, from which its transforms do not lead back.*PW"
    )
    for call in (compiled.sample, compiled.value_and_grad):
        with pytest.raises(sg.SamplingError, match=message):
            call(far(name, F32))
    compiled.value_and_grad(far(name, F32) * torch.tensor([0.1, 1.0]))


def test_constant_draws_that_do_not_lead_back_are_refused():
    """Their log-probability would be wrong as a value."""
    graph = sg.graph(
        lambda t: t * sg.log_prob(sg.sample("x", lambda: mapped(td.Normal(20.0, 1.0), tt.SigmoidTransform())))
    )
    with pytest.raises(sg.SamplingError, match="do not lead back"):
        graph.compile({}).sample(torch.tensor(1.0))


def test_the_remedy_of_the_refusal():
    """The same draw as a node that is mapped by another one: scored exactly, wherever the map is flat."""
    graph = sg.graph(lambda m: sg.mean(torch.tanh(sg.sample("u", td.Normal, m, 1.0, n=4)) ** 2))
    compiled, theta = graph.compile(sg.SF()), torch.tensor(10.0)
    trace = compiled.sample(theta, generator=seed())
    expected = (torch.tanh(trace.draws["u"]) ** 2 * (trace.draws["u"] - theta)).mean()
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(theta, trace), expected)


def test_a_log_probability_in_a_cost_that_is_not_finite_is_told():
    """A class of one's own may still have to invert."""

    class Squashed(td.Distribution):
        arg_constraints = {"loc": td.constraints.real}  # noqa: RUF012
        support = td.constraints.interval(-1.0, 1.0)
        has_rsample = True

        def __init__(self, loc, validate_args=None):
            self.loc = loc
            super().__init__(loc.shape, validate_args=validate_args)

        def rsample(self, sample_shape=()):
            return torch.tanh(self.loc + torch.randn(self._extended_shape(sample_shape)))

        def log_prob(self, value):
            u = torch.atanh(value)
            return td.Normal(self.loc, 1.0).log_prob(u) - log_slope_of_tanh(u)

    graph = sg.graph(lambda m: sg.mean(sg.log_prob(sg.sample("x", Squashed, m, n=3))))
    compiled = graph.compile(sg.PW())
    for call in (compiled.sample, compiled.value_and_grad):
        with pytest.raises(
            sg.SamplingError, match=r"sample 'x' \(axes: \(x\)\): the log-probability of draw \(0,\) is"
        ):
            call(torch.tensor(12.0))
