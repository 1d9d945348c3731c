"""Functions of one draw mean the same under any plates and times: every operation against a loop over single draws.

`x` has the plate "x" and draws of shape (3,), `m` the same plate and draws of shape (2, 3), `y` the plate "y" and
`k` the plate "k" and draws without dimensions; `k` is an index. Plates of size 3 are those that could be taken for
dimensions of a draw, plates of size 1 those that could be lost.
"""

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.nn import functional

import stochgraph as sg
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
ROW = torch.tensor([1.0, 2.0, -3.0], dtype=F64)
MATRIX = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.2]], dtype=F64)
TWO = torch.tensor(2.0, dtype=F64)
SIZES = [{"x": 4, "y": 2, "k": 2}, {"x": 3, "y": 3, "k": 3}, {"x": 1, "y": 2, "k": 1}]

Operation = Callable[[Any, Any, Any, Any], Any]

# Each line is an operation on x, y, m and k, on nodes and on tensors of single draws alike.
OPERATIONS: dict[str, Operation] = {
    # operators; events of different ranks, numbers and constant tensors on both sides
    "x + y": lambda x, y, m, k: x + y,
    "y - x": lambda x, y, m, k: y - x,
    "m * y": lambda x, y, m, k: m * y,
    "x / m": lambda x, y, m, k: x / m,
    "m + x * y": lambda x, y, m, k: m + x * y,
    "x * k": lambda x, y, m, k: x * k,
    "(1 - x) / 2": lambda x, y, m, k: (1 - x) / 2,
    "2 / (1 + x**2)": lambda x, y, m, k: 2 / (1 + x**2),
    "2**x": lambda x, y, m, k: 2**x,
    "abs(x) ** y": lambda x, y, m, k: abs(x) ** y,
    "-x": lambda x, y, m, k: -x,
    "+x": lambda x, y, m, k: +x,
    "x // 0.3 + 5 // x": lambda x, y, m, k: x // 0.3 + 5 // x,
    "x % 0.7": lambda x, y, m, k: x % 0.7,
    "5 % y": lambda x, y, m, k: 5 % y,
    "tensor(2) - x": lambda x, y, m, k: TWO - x,
    "tensor(2) / x": lambda x, y, m, k: TWO / x,
    "tensor(2) ** x": lambda x, y, m, k: TWO**x,
    "tensor(2) % y": lambda x, y, m, k: TWO % y,
    "row * y": lambda x, y, m, k: ROW * y,
    "y - row": lambda x, y, m, k: y - ROW,
    "x * row": lambda x, y, m, k: x * ROW,
    "matrix * y": lambda x, y, m, k: MATRIX * y,
    "matrix - x": lambda x, y, m, k: MATRIX - x,
    "x - matrix": lambda x, y, m, k: x - MATRIX,
    # comparisons
    "x < y": lambda x, y, m, k: x < y,
    "tensor(0) >= x": lambda x, y, m, k: x <= 0 * TWO,
    "row == k": lambda x, y, m, k: k == ROW,
    "(x > 0) & ~(y > 0)": lambda x, y, m, k: (x > 0) & ~(y > 0),
    "(x > 0) | (y > 0)": lambda x, y, m, k: (x > 0) | (y > 0),
    "(x > 0) ^ (y > 0)": lambda x, y, m, k: (x > 0) ^ (y > 0),
    # elementwise functions and methods, with their keywords
    "exp": lambda x, y, m, k: torch.exp(x),
    "x.exp()": lambda x, y, m, k: x.exp(),
    "x.pow(y)": lambda x, y, m, k: x.abs().pow(y),
    "pow(2, x)": lambda x, y, m, k: torch.pow(2.0, x),
    "atan2": lambda x, y, m, k: torch.atan2(x, y),
    "maximum": lambda x, y, m, k: torch.maximum(y, x),
    "maximum with a row": lambda x, y, m, k: torch.maximum(y, ROW),
    "clamp": lambda x, y, m, k: torch.clamp(x, min=-0.2, max=0.3),
    "clamp by a node": lambda x, y, m, k: torch.clamp(x, min=y),
    "clamp by a row": lambda x, y, m, k: torch.clamp(y, max=ROW),
    "x.clamp()": lambda x, y, m, k: x.clamp(-0.2, max=0.3),
    "where": lambda x, y, m, k: torch.where(x > y, m, y),
    "where, a number": lambda x, y, m, k: torch.where(y > 0, x, 0.0),
    "where, rows": lambda x, y, m, k: torch.where(y > 0, ROW, -ROW),
    "x.where()": lambda x, y, m, k: x.where(y > 0, y),
    "add, alpha": lambda x, y, m, k: torch.add(x, y, alpha=2),
    "sub, alpha": lambda x, y, m, k: torch.sub(x, y, alpha=2),
    "x.add(), alpha": lambda x, y, m, k: x.add(y, alpha=2),
    "x.sub(), alpha": lambda x, y, m, k: x.sub(y, alpha=2),
    "div, rounding": lambda x, y, m, k: torch.div(x, y, rounding_mode="floor"),
    "round, decimals": lambda x, y, m, k: x.round(decimals=1),
    "xlogy": lambda x, y, m, k: torch.xlogy(x, y.abs()),
    "softplus": lambda x, y, m, k: functional.softplus(x, beta=2),
    "logsigmoid": lambda x, y, m, k: functional.logsigmoid(x * y),
    "x.float()": lambda x, y, m, k: x.float(),
    # functions of whole draws
    "x.sum()": lambda x, y, m, k: x.sum(),
    "m.sum(0)": lambda x, y, m, k: m.sum(0),
    "sum, dim": lambda x, y, m, k: torch.sum(m, dim=1) * y,
    "x.mean()": lambda x, y, m, k: x.mean(),
    "max": lambda x, y, m, k: torch.max(x),
    "argmax": lambda x, y, m, k: m.argmax(1),
    "softmax": lambda x, y, m, k: torch.softmax(x * y, 0),
    "cumsum": lambda x, y, m, k: torch.cumsum(m, 0),
    "flip": lambda x, y, m, k: x.flip(0),
    "norm": lambda x, y, m, k: torch.linalg.norm(x),
    "sort": lambda x, y, m, k: torch.sort(x).values,
    "stack": lambda x, y, m, k: torch.stack([x, x * y]),
    "stack of a list": lambda x, y, m, k: torch.stack([x[0], y]),
    "cat": lambda x, y, m, k: torch.cat([x, y[None]]),
    "reshape": lambda x, y, m, k: m.reshape(3, 2),
    "unsqueeze": lambda x, y, m, k: x.unsqueeze(0) * ROW.unsqueeze(1),
    "m @ x": lambda x, y, m, k: m @ x,
    "x @ x": lambda x, y, m, k: x @ x,
    "matrix @ x": lambda x, y, m, k: MATRIX @ x,
    "x @ matrix": lambda x, y, m, k: x @ MATRIX.mT * y,
    "m @ m.mT": lambda x, y, m, k: m @ m.mT,
    "m.T": lambda x, y, m, k: m.T,
    "einsum": lambda x, y, m, k: torch.einsum("ij,j->i", m, x),
    "outer": lambda x, y, m, k: torch.outer(x, m[0]),
    "linear": lambda x, y, m, k: functional.linear(x, MATRIX),
    "one_hot": lambda x, y, m, k: functional.one_hot(k, 3) * y,
    # indexing, with constants and with nodes
    "x[0] * y": lambda x, y, m, k: x[0] * y,
    "x[-1]": lambda x, y, m, k: x[-1],
    "x[1:]": lambda x, y, m, k: x[1:],
    "x[::2]": lambda x, y, m, k: x[::2],
    "x[None]": lambda x, y, m, k: x[None],
    "x[..., 0]": lambda x, y, m, k: x[..., 0],
    "m[:, 1]": lambda x, y, m, k: m[:, 1],
    "m[0, 1]": lambda x, y, m, k: m[0, 1],
    "m[0][1]": lambda x, y, m, k: m[0][1],
    "m[[1, 0]]": lambda x, y, m, k: m[[1, 0]],
    "x[tensor(1)]": lambda x, y, m, k: x[torch.tensor(1)],
    "x[tensor([1, 0])]": lambda x, y, m, k: x[torch.tensor([1, 0])],
    "x[mask]": lambda x, y, m, k: x[torch.tensor([True, False, True])],
    "x[k]": lambda x, y, m, k: x[k],
    "m[:, k]": lambda x, y, m, k: m[:, k],
    "m[0, k]": lambda x, y, m, k: m[0, k] * y,
    "m[..., k]": lambda x, y, m, k: m[..., k],
    "m[k % 2, k]": lambda x, y, m, k: m[k % 2, k],
    "gather": lambda x, y, m, k: x.gather(0, k[None]),
}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def drawn(theta: Any, sizes: dict[str, int]) -> list[Any]:
    """The four nodes. The parameters enter through values alone."""
    x = sg.sample("x", Normal, torch.zeros(3, dtype=F64), 1.0, n=sizes["x"], within=()) * torch.exp(theta[0])
    y = sg.sample("y", Normal, torch.zeros((), dtype=F64), 1.0, n=sizes["y"], within=()) + theta[1]
    k = sg.sample("k", Categorical, torch.ones(3, dtype=F64), n=sizes["k"], within=())
    return [x, y, sg.apply(lambda row: torch.outer(ROW[:2], row.cos()), x), k]


def one_draw(theta: Tensor, draws: dict[str, Tensor], place: dict[str, int]) -> list[Any]:
    """The same for single draws, as far as there are any."""
    found = {name: draws[name][index] for name, index in place.items()}
    x = found["x"] * torch.exp(theta[0]) if "x" in found else None
    y = found["y"] + theta[1] if "y" in found else None
    return [x, y, None if x is None else torch.outer(ROW[:2], x.cos()), found.get("k")]


def shown(graph: Callable[[Any, Any], Any]) -> tuple[Tensor, Any, sg.Trace]:
    """The value of the node that `graph` declares, and the compiled graph of its mean, with a trace."""
    seen: list[Tensor] = []

    def show(value: Tensor) -> Tensor:
        seen.append(value)
        return value.to(F64).sin().mean()

    @sg.graph
    def objective(theta: Any) -> Any:
        return graph(theta, show) + 0 * theta.sum()

    compiled = objective.compile(sg.SF())
    trace = compiled.sample(THETA, generator=seed())
    return seen[0], compiled, trace


THETA = torch.tensor([0.2, -0.3], dtype=F64)


def loop(operation: Operation, theta: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """The operation for one combination of draws after the other, plates outermost first."""
    plates = [plate for plate in ("x", "y", "k") if plate in draws]
    sizes = [draws[plate].shape[0] for plate in plates]
    rows = [
        operation(*one_draw(theta, draws, dict(zip(plates, index, strict=True))))
        for index in itertools.product(*map(range, sizes))
    ]
    return torch.stack(rows).reshape(*sizes, *rows[0].shape)


WITHOUT_DERIVATIVE = {"x // 0.3 + 5 // x", "5 % y"}  # torch has none


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_a_loop(name, sizes):
    operation = OPERATIONS[name]
    value, compiled, trace = shown(lambda theta, show: sg.reduce(show, operation(*drawn(theta, sizes))))
    expected = loop(operation, THETA, trace.draws)
    assert value.dtype == expected.dtype
    torch.testing.assert_close(value, expected, **EXACT)
    if not expected.is_floating_point() or name in WITHOUT_DERIVATIVE:
        return
    near: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10 if expected.dtype == F64 else 1e-6}
    theta = THETA.clone().requires_grad_()
    total = loop(operation, theta, trace.draws).to(F64).sin().mean() + 0 * theta.sum()
    grad = torch.autograd.grad(total, theta)[0]
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(THETA, trace), grad, **near)
    many = THETA + torch.tensor([[0.0], [0.1], [-0.4]], dtype=F64)
    for fn in (compiled.surrogate, torch.func.grad(compiled.surrogate)):
        mapped = torch.func.vmap(fn, in_dims=(0, None))(many, trace)
        torch.testing.assert_close(mapped, torch.stack([fn(t, trace) for t in many]), **near)


@pytest.mark.parametrize("read", ["shape", "ndim"])
def test_what_a_node_says_of_itself_is_said_of_one_draw_or_not_at_all(read):
    """The leading dimensions are the library's: a declaration that could read them would depend on them."""

    def graph(theta, show):
        x = drawn(theta, SIZES[0])[0]
        size = x.shape[0] if read == "shape" else x.ndim
        return sg.reduce(show, sg.apply(lambda v, n: v * n, x, size))

    with contextlib.suppress(sg.StochgraphError):
        value, _, trace = shown(graph)
        one = 3 if read == "shape" else 1
        torch.testing.assert_close(value, trace.draws["x"] * torch.exp(THETA[0]) * one, **EXACT)


class Pair(NamedTuple):
    left: Tensor
    right: dict[str, Tensor]


def test_apply_on_pytrees():
    """Arguments and results may be pytrees; constants in them are left alone; fields keep their axes."""

    def halves(pair, options, scale=1.0):
        return Pair(scale * pair["x"] + options[0], {"both": pair["x"] * pair["y"], "flag": pair["y"] > options[1]})

    def graph(theta, show):
        x, y, _, _ = drawn(theta, SIZES[1])
        result = sg.apply(halves, {"x": x, "y": y}, (1.5, 0.0), scale=y)
        chosen = sg.apply(lambda p: torch.where(p.right["flag"], p.left, p.right["both"]), result)
        return sg.reduce(show, result.left + chosen * result.right["both"])

    value, compiled, trace = shown(graph)

    def by_hand(x, y, m, k):
        left = y * x + 1.5
        return left + torch.where(y > 0, left, x * y) * (x * y)

    expected = loop(by_hand, THETA, {name: trace.draws[name] for name in "xy"})
    torch.testing.assert_close(value, expected, **EXACT)
    many = THETA + torch.tensor([[0.0], [0.1]], dtype=F64)
    mapped = torch.func.vmap(torch.func.grad(compiled.surrogate), in_dims=(0, None))(many, trace)
    for theta, grad in zip(many, mapped, strict=True):
        leaf = theta.clone().requires_grad_()
        total = loop(by_hand, leaf, {name: trace.draws[name] for name in "xy"}).sin().mean()
        torch.testing.assert_close(grad, torch.autograd.grad(total, leaf)[0], rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("over", ["x", "y", ("x", "y"), ("y", "x"), None])
def test_reductions_over_some_of_the_plates(over):
    """`reduce`, `mean` and `sum` with the same plates, on a pytree; the function sees the outermost plate first."""

    def log_mean(value):
        dims = tuple(range(2 if over is None or len(over) > 1 else 1))
        first = torch.arange(len(value["w"]), dtype=F64).reshape(-1, *[1] * (len(dims) - 1))
        count = math.prod(value["v"].shape[: len(dims)])
        return torch.logsumexp(value["v"], dims) - math.log(count) + (first * value["w"]).sum()

    def graph(theta, show):
        _, y, m, _ = drawn(theta, SIZES[0])
        tree = sg.apply(lambda m, y: {"v": m[0] * y, "w": y + m[0, 0]}, m, y)
        kept = sg.reduce(log_mean, tree, over) + sg.mean(tree, over)["v"] - 2 * sg.sum(tree["v"], over or ("x", "y"))
        return sg.reduce(show, kept) if over in ("x", "y") else sg.apply(show, kept)

    value, compiled, trace = shown(graph)

    def by_hand(theta):
        places = [[{"x": i, "y": j} for j in range(2)] for i in range(4)]
        draws = [[one_draw(theta, trace.draws, place) for place in row] for row in places]
        v = torch.stack([torch.stack([m[0] * y for _, y, m, _ in row]) for row in draws])
        w = torch.stack([torch.stack([y + m[0, 0] for _, y, m, _ in row]) for row in draws])
        dims = {"x": (0,), "y": (1,)}.get(over, (0, 1))
        w = w * (torch.arange(2, dtype=F64) if over == "y" else torch.arange(4, dtype=F64)[:, None])
        w = w.sum(dims).unsqueeze(-1)
        return v.exp().mean(dims).log() + w + v.mean(dims) - 2 * v.sum(dims)

    torch.testing.assert_close(value, by_hand(THETA), **EXACT)
    theta = THETA.clone().requires_grad_()
    grad = torch.autograd.grad(by_hand(theta).sin().mean(), theta)[0]
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(THETA, trace), grad, rtol=0.0, atol=1e-10)


def test_the_mean_of_integers_and_of_truths():
    def graph(theta, show):
        x, y, _, k = drawn(theta, SIZES[0])
        return sg.apply(show, torch.stack([sg.mean(k), sg.mean((x[0] > y) & (y < 1))]))

    value, _, trace = shown(graph)
    x = trace.draws["x"][:, 0] * torch.exp(THETA[0])
    y = trace.draws["y"] + THETA[1]
    share = ((x[:, None] > y) & (y < 1)).double().mean()
    expected = torch.stack([trace.draws["k"].double().mean(), share])
    assert value.is_floating_point()
    torch.testing.assert_close(value.to(F64), expected, rtol=1e-6, atol=0.0)


class Steps(sg.Sampler):
    """A draw of shape (time, 2)."""

    time = True

    def __init__(self, length: int) -> None:
        self.length = length

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Tensor:
        return torch.randn(*batch_shape, self.length, 2, dtype=F64)

    def log_prob(self, value: Tensor, *parents: Any) -> Tensor:
        return Normal(parents[0], 1.0).log_prob(value).sum(-1)


@pytest.mark.parametrize("discount", [None, 1.0, 0.9, 0.0])
def test_a_sum_over_time(discount):
    """The time axis lies between a plate and the event, and is weighted from its own start on."""

    def graph(theta, show):
        goal = sg.sample("goal", Normal, torch.zeros((), dtype=F64), 1.0, n=3)
        steps = sg.sample("steps", Steps(4), goal, n=2)
        return sg.reduce(show, sg.sum(steps * goal, discount=discount))

    value, _, trace = shown(graph)
    goal, steps = trace.draws["goal"], trace.draws["steps"]
    assert steps.shape == (3, 2, 4, 2)
    weights = [1.0 if discount is None else discount**t for t in range(4)]
    for i, j in itertools.product(range(3), range(2)):
        expected = torch.stack([w * steps[i, j, t] * goal[i] for t, w in enumerate(weights)]).sum(0)
        torch.testing.assert_close(value[i, j], expected, **EXACT)


def test_two_times():
    """A sum over all times by default, over one by name, a mean over a time only by name."""

    def graph(theta, show):
        one = sg.sample("one", Steps(3), theta[0], n=2)
        other = sg.sample("other", Steps(4), theta[0])
        product = one[0] * other[1]
        named = sg.sum(sg.sum(product, over="one.time", discount=0.5), over="other.time", discount=0.25)
        part = sg.mean(sg.sum(product, over="other.time"), over="one.time")
        return sg.reduce(show, torch.stack([sg.sum(product), named, part]))

    value, _, trace = shown(graph)
    for i in range(2):
        product = torch.outer(trace.draws["one"][i, :, 0], trace.draws["other"][:, 1])
        weights = torch.outer(0.5 ** torch.arange(3, dtype=F64), 0.25 ** torch.arange(4, dtype=F64))
        expected = torch.stack([product.sum(), (product * weights).sum(), product.sum(1).mean()])
        torch.testing.assert_close(value[i], expected, **EXACT)


def test_vectorize_maps_a_function_of_one_draw():
    """Leading dimensions of size 1 broadcast; pytrees, constants and several results are passed through."""

    def fn(parameters, goal, power, scale=1.0):
        moved = parameters["w"] @ goal + parameters["b"][0]
        return Pair(scale * moved**power, {"sum": moved.sum(), "none": parameters["b"][0]})

    w = torch.randn(4, 1, 2, 3, generator=seed(), dtype=F64)
    b = torch.randn(1, 5, 1, generator=seed(), dtype=F64)
    goal = torch.randn(4, 5, 3, generator=seed(), dtype=F64)
    found = sg.vectorize(fn, 2)({"w": w, "b": b}, goal, 2)
    assert found.left.shape == (4, 5, 2)
    assert found.right["sum"].shape == (4, 5)
    assert found.right["none"].shape == (4, 5)
    for i, j in itertools.product(range(4), range(5)):
        one = fn({"w": w[i, 0], "b": b[0, j]}, goal[i, j], 2)
        torch.testing.assert_close(found.left[i, j], one.left, **EXACT)
        torch.testing.assert_close(found.right["sum"][i, j], one.right["sum"], **EXACT)
        torch.testing.assert_close(found.right["none"][i, j], one.right["none"], **EXACT)


def test_vectorize_where_nothing_varies():
    """An axis along which no argument varies is of size 1 in the result, and the function is called once for it."""
    calls = []

    def fn(x):
        calls.append(tuple(x.shape))
        return x.sum()

    total = sg.vectorize(fn, 3)(torch.ones(1, 2, 1, 4))
    assert total.shape == (1, 2, 1)
    assert total.flatten().tolist() == [4.0, 4.0]
    assert calls == [(4,)]


def test_vectorize_without_leading_dimensions_is_the_function():
    def fn(x):
        return x.tolist()  # what vmap could not map

    assert sg.vectorize(fn, 0)(torch.tensor([1.0, 2.0])) == [1.0, 2.0]


def test_vectorize_under_transforms():
    def fn(w, x):
        return torch.tanh(w @ x).sum()

    w, x = (torch.randn(shape, generator=seed(), dtype=F64) for shape in ((4, 1, 2, 3), (4, 5, 3)))

    def total(w, x):
        return sg.vectorize(fn, 2)(w, x).mean()

    leaf = w.clone().requires_grad_()
    rows = [fn(leaf[i, 0], x[i, j]) for i, j in itertools.product(range(4), range(5))]
    by_hand = torch.autograd.grad(torch.stack(rows).mean(), leaf)[0]
    torch.testing.assert_close(torch.func.grad(total)(w, x), by_hand, **EXACT)
    many = torch.stack([w, 2 * w, -w])
    mapped = torch.func.vmap(torch.func.grad(total), in_dims=(0, None))(many, x)
    torch.testing.assert_close(mapped, torch.stack([torch.func.grad(total)(one, x) for one in many]), **EXACT)
