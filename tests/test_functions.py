"""Functions that nodes keep: they see the variables of their declaration, in whatever they are wrapped."""

# ruff: noqa: B023 -- functions that do not bind the variable of their loop are what is tested

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import stochgraph as sg
from tests.problems import F64

SCALES = (1.0, 10.0)
THETA = torch.tensor(0.3, dtype=F64)


def scaled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as users write them."""

    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


def called(fn: Callable[..., Any], t: Tensor) -> Tensor:
    return fn(t)


def also_called(t: Tensor, *, fn: Callable[..., Any]) -> Tensor:
    return fn(t)


class Scale:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, t: Tensor) -> Tensor:
        return self.by * t


# Each declares, in a loop, a node that is SCALES[i] times its argument; variables change behind its back.


def by_lambda(theta):
    for i in range(2):
        yield sg.apply(lambda t: SCALES[i] * t, theta)


def by_definition(theta):
    for i in range(2):

        def node(t):
            return SCALES[i] * t

        yield sg.apply(node, theta)


def by_a_name_bound_again(theta):
    scale = SCALES[0]
    yield sg.apply(lambda t: scale * t, theta)
    scale = SCALES[1]
    yield sg.apply(lambda t: scale * t, theta)
    scale = 1e3


def by_a_name_deleted(theta):
    for i in range(2):
        scale = SCALES[i]
        yield sg.apply(lambda t: scale * t, theta)  # noqa: F821
        del scale


def by_a_function_that_is_called(theta):
    for i in range(2):

        def inner(t):
            return SCALES[i] * t

        yield sg.apply(lambda t: inner(t), theta)


def by_a_function_two_calls_away(theta):
    for scale in SCALES:

        def inner(t):
            return scale * t

        def outer(t):
            return inner(t)

        yield sg.apply(lambda t: outer(t), theta)


def by_partial(theta):
    for i in range(2):
        yield sg.apply(functools.partial(lambda power, t: SCALES[i] * t**power, 1), theta)


def by_a_function_in_a_partial(theta):
    for i in range(2):
        inner: Any = lambda t: SCALES[i] * t  # noqa: E731
        yield sg.apply(functools.partial(called, inner), theta)


def by_a_keyword_of_a_partial(theta):
    for i in range(2):
        inner: Any = lambda t: SCALES[i] * t  # noqa: E731
        yield sg.apply(functools.partial(also_called, fn=inner), theta)


def by_decoration(theta):
    for i in range(2):
        yield sg.apply(scaled(lambda t: SCALES[i] * t), theta)


def by_a_transform_of_torch(theta):
    for i in range(2):
        square: Any = lambda t: SCALES[i] * t**2 / 2  # noqa: E731
        yield sg.apply(torch.func.grad(square), theta)


def by_a_method(theta):
    for i in range(2):

        class Local:
            def scale(self, t):
                return SCALES[i] * t

        yield sg.apply(Local().scale, theta)


def by_a_default(theta):
    for i in range(2):

        def node(t, f=lambda t: SCALES[i] * t, *, g=lambda t: SCALES[i] * t):
            return (f(t) + g(t)) / 2

        yield sg.apply(node, theta)


def by_a_tuple_of_functions(theta):
    for i in range(2):
        pair: Any = (lambda t: SCALES[i] * t, 0.0)
        yield sg.apply(lambda t: pair[0](t) + pair[1], theta)


def by_a_list_of_functions(theta):
    for i in range(2):
        layers = [lambda t: SCALES[i] * t, lambda t: t]
        yield sg.apply(lambda t: functools.reduce(lambda x, layer: layer(x), layers, t), theta)


def by_a_dictionary_of_functions(theta):
    for i in range(2):
        layers = {"first": lambda t: SCALES[i] * t}
        yield sg.apply(lambda t: layers["first"](t), theta)


def by_a_constant_argument(theta):
    for i in range(2):
        yield sg.apply(lambda f, t: f(t), lambda t: SCALES[i] * t, theta)


def by_recursion(theta):
    for i in range(2):

        def node(t, depth=3):
            return SCALES[i] * t if depth == 0 else node(t, depth - 1)

        yield sg.apply(node, theta)


def by_mutual_recursion(theta):
    for i in range(2):

        def even(t, depth=4):
            return SCALES[i] * t if depth == 0 else odd(t, depth - 1)

        def odd(t, depth):
            return even(t, depth - 1)

        yield sg.apply(even, theta)


def by_an_instance(theta):
    for scale in SCALES:
        instance = Scale(scale)
        yield sg.apply(lambda t: instance(t), theta)


def by_reduce(theta):
    for i in range(2):
        x = sg.sample(f"x{i}", Normal, theta, 1.0, n=3)
        yield sg.reduce(lambda whole: SCALES[i] * whole.mean(), x)


def by_sample(theta):
    for i in range(2):
        yield sg.sample(f"x{i}", lambda t: Normal(SCALES[i] * t, 1.0), theta)


def by_sample_in_a_plate(theta):
    for i in range(2):
        task = sg.sample(f"task{i}", Normal, torch.zeros((), dtype=F64), 1.0, n=2)
        yield sg.mean(sg.sample(f"x{i}", lambda t, k: Normal(SCALES[i] * t + 0 * k, 1.0), theta, task))


def by_a_closed_form(theta):
    for i in range(2):
        psi = sg.unknown(None, like=theta)
        scale = sg.apply(Scale(SCALES[i]), theta)
        solution = sg.solvers.ClosedForm(lambda t: SCALES[i] * t, theta)
        yield sg.argmax(-((psi - scale) ** 2), over=psi, solver=solution)


WAYS = [way for name, way in sorted(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_function_has_the_variables_of_its_declaration(way):
    @sg.graph
    def total(theta):
        first, second = way(theta)
        return first + second

    compiled = total.compile(sg.PW())
    _, grad = compiled.value_and_grad(THETA)
    assert float(grad) == pytest.approx(11.0, abs=1e-12)
    trace = compiled.sample(THETA)
    assert float(torch.func.grad(compiled.surrogate)(THETA, trace)) == pytest.approx(11.0, abs=1e-12)


def test_a_chain_of_draws_in_a_loop():
    """Each draw has its own scale, also where it is scored: against the closed form on the same samples."""

    @sg.graph
    def chain(theta):
        t = theta
        for i, scale in enumerate((0.5, 2.0, -1.0)):
            t = sg.sample(f"x{i}", lambda t: Normal(scale * t, 1.0), t)
        return t**2

    compiled = chain.compile(sg.SF())
    trace = compiled.sample(THETA, generator=torch.Generator().manual_seed(0))
    first, last = trace.draws["x0"], trace.draws["x2"]
    expected = last**2 * 0.5 * (first - 0.5 * THETA)
    assert float(torch.func.grad(compiled.surrogate)(THETA, trace)) == pytest.approx(float(expected), abs=1e-10)


def test_a_variable_that_is_not_bound_yet_is_read_at_the_call():
    @sg.graph
    def late(theta):
        node = sg.apply(lambda t: scale * t, theta)
        scale = 7.0
        return node

    assert float(late.compile({}).value_and_grad(THETA)[1]) == 7.0


def test_what_a_function_reads_from_its_module_and_from_tensors_is_read_at_the_call():
    weight = torch.tensor(2.0, dtype=F64)

    @sg.graph
    def live(theta):
        return sg.apply(lambda t: factor() * weight * t, theta)

    compiled = live.compile({})
    assert float(compiled.value_and_grad(THETA)[1]) == 2.0
    weight.mul_(3.0)
    assert float(compiled.value_and_grad(THETA)[1]) == 6.0


def factor() -> float:
    return 1.0


def test_a_variable_that_functions_write_is_shared_with_them():
    """`nonlocal` says that the variable is not the function's own: readers beside the writer see what it writes."""
    calls = 0

    def count():
        nonlocal calls
        calls += 1

    def so_far():
        return calls

    def node(t):
        before = so_far()
        count()
        return t * (so_far() - before)

    @sg.graph
    def counted(theta):
        return sg.apply(node, theta)

    compiled = counted.compile({})
    assert [float(compiled.value_and_grad(THETA)[1]) for _ in range(2)] == [1.0, 1.0]
    assert calls == 2


def test_a_local_variable_of_the_same_name_is_another_one():
    """What an inner function binds for itself does not make the outer variable shared."""

    @sg.graph
    def total(theta):
        found = 0.0
        for i in range(2):

            def node(t):
                def inner():
                    i = 5
                    return lambda: i

                return SCALES[i] * t * inner()() / 5

            found = found + sg.apply(node, theta)
        return found

    assert float(total.compile({}).value_and_grad(THETA)[1]) == pytest.approx(11.0)


def test_lists_and_dictionaries_of_values_are_shared():
    seen: list[int] = []
    options: dict[str, float] = {}

    @sg.graph
    def graph(theta):
        return sg.apply(lambda t: seen.append(1) or options["scale"] * t, theta)  # type: ignore[func-returns-value]

    options["scale"] = 3.0
    assert float(graph.compile({}).value_and_grad(THETA)[1]) == 3.0
    assert seen == [1]


def test_composed_functions_may_be_nested_as_deep_as_they_can_be_called():
    def deeper(inner):
        return lambda t: inner(t) + 1

    fn = lambda t: t  # noqa: E731
    for _ in range(400):
        fn = deeper(fn)

    @sg.graph
    def graph(theta):
        return sg.apply(fn, theta)

    assert float(graph.compile({}).sample(THETA).value) == pytest.approx(400.3)


def test_functions_without_variables_stay_as_they_are():
    def plain(t):
        return 2 * t

    @sg.graph
    def graph(theta):
        return sg.apply(plain, theta) + sg.apply(torch.sin, theta) + sg.apply(functools.partial(plain), theta)

    assert plain in functions_of(graph)
    assert torch.sin in functions_of(graph)


def functions_of(graph: sg.Graph) -> list[Any]:
    return [fn for node in graph.order if (fn := getattr(node, "fn", None)) is not None]


def test_a_function_keeps_what_else_there_is_of_it():
    scale = 2.0

    def node(t: Tensor, *, power: int = 1) -> Tensor:
        """Doc."""
        return scale * t**power

    node.tag = "mine"  # type: ignore[attr-defined]

    @sg.graph
    def graph(theta):
        return sg.apply(node, theta)

    (copy,) = functions_of(graph)
    names = "__name__ __qualname__ __module__ __doc__ __kwdefaults__ __annotations__ __code__ tag".split()
    assert [getattr(copy, name) for name in names] == [getattr(node, name) for name in names]
    assert [n.name for n in graph.order] == ["theta", "node"]


@pytest.mark.parametrize("way", ["variable", "function", "partial", "method", "default", "tuple", "constant"])
def test_a_captured_node_is_seen_in_whatever_it_is_wrapped(way):
    def body(theta):
        class Local:
            def scale(self, t):
                return theta * t

        inner = lambda t: theta * t  # noqa: E731
        pair = (inner, 1.0)
        wrapped: Any = {
            "variable": inner,
            "function": lambda t: inner(t),
            "partial": functools.partial(inner),
            "method": Local().scale,
            "default": lambda t, f=inner: f(t),
            "tuple": lambda t: pair[0](t),
            "constant": None,
        }[way]
        one = sg.sample("x", Normal, 0.0, 1.0)
        return sg.apply(lambda f, t: f(t), inner, one) if wrapped is None else sg.apply(wrapped, one)

    with pytest.raises(sg.DeclarationError, match="captures the node 'theta'; pass it as an argument"):
        sg.graph(body)
