"""What a graph captures is constant: a tensor that requires grad, or a module to be trained, is an input or refused."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

import stochgraph as sg
from tests.problems import F64

THETA = torch.tensor(0.3, dtype=F64)
GLOBAL = torch.nn.Parameter(torch.tensor(2.0, dtype=F64))
NETWORK = torch.nn.Linear(1, 1).double()


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(2.0, dtype=F64))


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).double()


def drawn(theta: Any) -> Any:
    return sg.sample("x", Normal, theta, 1.0, n=3)


def of_a_global(x: Tensor) -> Tensor:
    return GLOBAL * x


def of_a_global_two_calls_away(x: Tensor) -> Tensor:
    return of_a_global(x)


class Holder:
    """Holds a tensor, and is called, or has a method that is."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * x

    def method(self, x: Tensor) -> Tensor:
        return self.weight * x

    def other(self, x: Tensor) -> Tensor:
        return 2 * x


class Walk(sg.Sampler):
    """Draws around a mean that the sampler holds."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def draw(self, batch_shape: torch.Size, *parents: Tensor) -> Tensor:
        return torch.randn(batch_shape, dtype=F64)

    def log_prob(self, value: Tensor, *parents: Tensor) -> Tensor:
        mean = self.weight(torch.ones(1, dtype=F64)).sum() if callable(self.weight) else self.weight
        return Normal(mean + sum(parents), 1.0).log_prob(value)


# Bodies that capture a tensor that requires grad, what it is called, and where. Each is told while declaring.


def in_a_cell(theta):
    w = parameter()
    return sg.mean(sg.apply(lambda x: w * x, drawn(theta)))


def in_a_cell_two_calls_away(theta):
    w = parameter()
    inner = lambda x: w * x  # noqa: E731
    return sg.mean(sg.apply(lambda x: inner(x), drawn(theta)))


def in_a_partial(theta):
    w = parameter()
    return sg.mean(sg.apply(functools.partial(torch.mul, w), drawn(theta)))


def in_a_default(theta):
    return sg.mean(sg.apply(lambda x, w=parameter(): w * x, drawn(theta)))  # noqa: B008


def in_a_global(theta):
    return sg.mean(sg.apply(of_a_global, drawn(theta)))


def in_a_global_two_calls_away(theta):
    return sg.mean(sg.apply(lambda x: of_a_global_two_calls_away(x), drawn(theta)))


def in_a_reduction(theta):
    w = parameter()
    return sg.reduce(lambda whole: w * whole.median(), drawn(theta))


def in_a_factory(theta):
    w = parameter()
    return sg.mean(sg.sample("y", lambda: Normal(w, 1.0), n=3)) ** 2 + 0 * theta


def as_a_parent(theta):
    w = parameter()
    return sg.mean(sg.sample("y", Normal, w, 1.0, n=3)) ** 2 + 0 * theta


def as_a_named_parent(theta):
    w = parameter()
    return sg.mean(sg.sample("y", Normal, loc=w, scale=1.0, n=3)) ** 2 + 0 * theta


def as_an_argument(theta):
    w = parameter()
    return sg.mean(sg.apply(torch.mul, drawn(theta), w))


def as_a_named_argument(theta):
    w = parameter()
    return sg.mean(sg.apply(lambda x, other: x * other, drawn(theta), other=w))


def as_an_operand(theta):
    w = parameter()
    return sg.mean(w * drawn(theta))


def as_an_index(theta):
    table, k = torch.ones(2, dtype=F64, requires_grad=True), sg.sample("k", Categorical, torch.ones(2, dtype=F64))
    return sg.apply(lambda w, k: w[k], table, k) + theta


def among_the_leaves_of_an_argument(theta):
    net = network()
    return sg.mean(
        sg.apply(
            lambda p, x: torch.func.functional_call(net, p, (x[None],)), dict(net.named_parameters()), drawn(theta)
        )
    )


def as_a_step_size(theta):
    w = parameter()
    return sg.ascend(theta, -((theta - 1) ** 2), lr=w)


def as_a_step_size_of_a_leaf(theta):
    w = parameter()
    start = sg.apply(lambda t: {"a": t}, theta)
    return sg.ascend(start, -(start["a"] ** 2), lr={"a": w})["a"]


def computed_from_a_parameter(theta):
    w = parameter() * 2
    return sg.mean(sg.apply(lambda x: w * x, drawn(theta)))


def in_a_closed_form(theta):
    w, psi = parameter(), sg.unknown("psi", like=theta)
    return sg.argmax(-((psi - theta) ** 2), over=psi, solver=sg.solvers.ClosedForm(lambda t: t + 0 * w, theta))


TENSORS: dict[Callable[..., Any], str] = {
    in_a_cell: r"sg\.apply of 'lambda': .*'w'",
    in_a_cell_two_calls_away: r"sg\.apply of 'lambda': .*'w'",
    in_a_partial: r"sg\.apply of 'apply': .*'w'",
    in_a_default: r"sg\.apply of 'lambda': .*'w'",
    in_a_global: r"sg\.apply of 'of_a_global': .*'GLOBAL'",
    in_a_global_two_calls_away: r"sg\.apply of 'lambda': .*'GLOBAL'",
    in_a_reduction: r"sg\.reduce of .*'w'",
    in_a_factory: r"sample 'y': .*'w'",
    as_a_parent: r"sample 'y': .*'w'",
    as_a_named_parent: r"sample 'y': .*'w'",
    as_an_argument: r"sg\.apply of 'mul': .*'w'",
    as_a_named_argument: r"sg\.apply of 'lambda': .*'w'",
    as_an_operand: r"sg\.apply of 'mul': .*'w'",
    as_an_index: r"sg\.apply of 'lambda': .*'table'",
    among_the_leaves_of_an_argument: r"sg\.apply of 'lambda': .*'net\.0\.weight'",
    as_a_step_size: r"sg\.ascend of 'theta': .*'w'",
    as_a_step_size_of_a_leaf: r"sg\.ascend of .*'w'",
    computed_from_a_parameter: r"sg\.apply of 'lambda': .*'w'",
    in_a_closed_form: r"sg\.apply of 'lambda': .*'w'",
}


@pytest.mark.parametrize("body", TENSORS, ids=lambda body: body.__name__)
def test_a_captured_tensor_that_requires_grad(body):
    with pytest.raises(sg.DeclarationError, match=TENSORS[body] + r".* requires grad.*an input of the graph"):
        sg.graph(body)


# The same where only a pass can tell: a module may be called with other parameters than its own.


def a_module_in_a_cell(net):
    return lambda theta: sg.mean(sg.apply(lambda x: net(x[None]).sum(), drawn(theta)))


def a_module_that_an_instance_holds(net):
    holder = Holder(net)
    return lambda theta: sg.mean(sg.apply(lambda x: holder.weight(x[None]).sum(), drawn(theta)))


def a_module_in_a_list(net):
    layers = [net]
    return lambda theta: sg.mean(sg.apply(lambda x: layers[0](x[None]).sum(), drawn(theta)))


def a_module_of_a_file(net):
    return lambda theta: sg.mean(sg.apply(lambda x: NETWORK(x[None]).sum(), drawn(theta)))


def a_module_in_a_reduction(net):
    return lambda theta: sg.reduce(lambda whole: net(whole[:, None]).median(), drawn(theta))


def a_module_in_a_factory(net):
    return lambda theta: sg.mean(sg.sample("y", lambda x: Normal(net(x[None]).sum(), 1.0), drawn(theta)))


def a_module_in_a_factory_without_parents(net):
    start = torch.ones(1, dtype=F64)
    return lambda theta: sg.mean(theta * sg.sample("y", lambda: Normal(net(start).sum(), 1.0), n=3))


def a_module_in_a_sampler(net):
    return lambda theta: sg.mean(sg.sample("y", Walk(net), theta, n=3))


def a_module_in_a_sampler_without_parents(net):
    return lambda theta: sg.mean(theta * sg.sample("y", Walk(net), n=3))


def a_module_in_an_inner_objective(net):
    return lambda theta: sg.descend(theta, sg.apply(lambda t: net(t[None]).sum(), theta), lr=0.1)


def a_module_in_an_implicit_step(net):
    def body(theta):
        psi = sg.unknown("psi", like=theta)
        return sg.argmax(sg.apply(lambda p, t: -((p - t - net(t[None])) ** 2).sum(), psi, theta), over=psi)

    return body


MODULES = [
    a_module_in_a_cell,
    a_module_that_an_instance_holds,
    a_module_in_a_list,
    a_module_of_a_file,
    a_module_in_a_reduction,
    a_module_in_a_factory,
    a_module_in_a_factory_without_parents,
    a_module_in_a_sampler,
    a_module_in_a_sampler_without_parents,
    a_module_in_an_inner_objective,
    a_module_in_an_implicit_step,
]
WORDS = r"requires grad.*an input of the graph.*functional_call.*requires_grad_\(False\)"


@pytest.mark.parametrize("body", MODULES, ids=lambda body: body.__name__)
def test_a_captured_module_that_is_trained(body):
    compiled = sg.graph(body(network())).compile(sg.SF())
    with pytest.raises(sg.DeclarationError, match=WORDS):
        compiled.value_and_grad(THETA)


@pytest.mark.parametrize("body", MODULES, ids=lambda body: body.__name__)
def test_a_captured_module_that_is_frozen(body):
    if body is a_module_of_a_file:
        NETWORK.requires_grad_(False)
    try:
        compiled = sg.graph(body(network().requires_grad_(False))).compile(sg.SF())
        value, grad = compiled.value_and_grad(THETA)
    finally:
        NETWORK.requires_grad_(True)
    assert torch.isfinite(value)
    assert torch.isfinite(grad)


def through(net: torch.nn.Module) -> Callable[..., Any]:
    return lambda p, x: torch.func.functional_call(net, p, (x[None],)).sum()


@pytest.mark.parametrize("call", ["surrogate", "grad", "verify"])
def test_whoever_differentiates(call):
    """A replay, a transform, and enumeration see it too."""
    net = network()

    @sg.graph
    def graph(theta):
        k = sg.sample("k", Categorical, logits=theta, n=2)
        return sg.mean(sg.apply(lambda k: net(k[None].double()).sum(), k))

    compiled, theta = graph.compile(sg.SF()), torch.zeros(2, dtype=F64)
    trace = compiled.sample(theta)
    runs: dict[str, Callable[[], Any]] = {
        "surrogate": lambda: compiled.surrogate(theta.requires_grad_(), trace),
        "grad": lambda: torch.func.grad(compiled.surrogate)(theta, trace),
        "verify": lambda: sg.verify(compiled, theta),
    }
    with pytest.raises(sg.DeclarationError, match=r"node 'lambda' \(axes: \(k\)\).*'net\.\d\.\w+'.*" + WORDS):
        runs[call]()


@pytest.mark.parametrize("fn", ["module", "method", "partial"])
def test_a_module_that_is_the_function(fn):
    net = torch.nn.Linear(1, 1).double()
    functions: dict[str, Any] = {"module": net, "method": net.forward, "partial": functools.partial(net)}
    body = lambda theta: sg.mean(sg.apply(functions[fn], theta * torch.ones(1, dtype=F64)).sum() + drawn(theta))  # noqa: E731
    with pytest.raises(sg.DeclarationError, match=r"sg\.apply of .*" + WORDS):
        sg.graph(body)
    net.requires_grad_(False)
    sg.graph(body).compile(sg.SF()).value_and_grad(THETA)


def test_a_module_that_is_called_with_an_input():
    """The remedy: its own parameters are then not in use, whether they require grad or not."""
    net = network()
    compiled = sg.graph(lambda p: sg.apply(through(net), p, torch.ones((), dtype=F64))).compile({})
    grads = compiled.value_and_grad(dict(net.named_parameters()))[1]
    net(torch.ones(1, dtype=F64)).sum().backward()
    for name, leaf in net.named_parameters():
        torch.testing.assert_close(grads[name], leaf.grad)


@pytest.mark.parametrize("way", ["detached", "without grad", "another attribute", "made inside", "an input"])
def test_what_is_no_constant_that_is_trained(way):
    holder = Holder(parameter())

    @torch.enable_grad()
    def differentiated_inside(x):
        y = x.detach().requires_grad_()
        return torch.autograd.grad((y**3).sum(), y, create_graph=True)[0] * x

    def without_grad(x):
        with torch.no_grad():
            weight = holder.weight * 1
        return weight * x

    functions: dict[str, Any] = {
        "detached": lambda x: holder.weight.detach() * x,
        "without grad": without_grad,
        "another attribute": holder.other,
        "made inside": differentiated_inside,
        "an input": lambda x: x,
    }
    compiled = sg.graph(lambda theta: sg.apply(functions[way], theta)).compile({})
    theta = THETA.clone().requires_grad_()
    assert torch.isfinite(compiled.value_and_grad(theta)[1])
    loss = compiled.surrogate(theta * 1, compiled.sample(theta))
    loss.backward()
    assert theta.grad is not None


def test_a_baseline_may_be_trained_by_itself():
    """Its numbers are constants for the estimate; a critic is fitted elsewhere."""
    critic = network()

    def baseline(trace):
        return critic(trace.draws["k"].double()[:, None]).squeeze(-1) * 0 + 1

    @sg.graph
    def graph(theta):
        return sg.mean(sg.sample("k", Categorical, logits=theta, n=2).double())

    graph.compile(sg.SF(baseline)).value_and_grad(torch.zeros(2, dtype=F64))


def test_a_constant_discount_may_be_a_parameter():
    """It is a constant by its documentation: `tests/test_refusals.py` has its values."""
    sg.graph(lambda theta: sg.mean(sg.sum(sg.sample("x", Steps(), theta, n=2), discount=parameter())))


class Steps(sg.Sampler):
    time = True

    def draw(self, batch_shape: torch.Size, *parents: Tensor) -> Tensor:
        return torch.randn(*batch_shape, 3)

    def log_prob(self, value: Tensor, *parents: Tensor) -> Tensor:
        return Normal(parents[0], 1.0).log_prob(value)
