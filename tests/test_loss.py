"""`compiled.loss`: the objective as a scalar of torch, whose backward pass hands over the estimate."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

import stochgraph as sg
from stochgraph.run import cuts as _cuts
from tests.problems import F64
from tests.test_navigation import meta, parameters

ESTIMATORS = {"SF": sg.SF(), "LOO": sg.LOO(), "LSF": sg.LSF(), "PW": sg.PW()}


def seed(number=0):
    return torch.Generator().manual_seed(number)


def leaf(value, dtype=F64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


@sg.graph
def objective(theta):
    x = sg.sample("x", Normal, theta["mean"], torch.exp(theta["scale"]), n=4)
    return sg.mean((x - 1.0) ** 2) + sg.mean(x) ** 2 * theta["mean"]


def theta(dtype=F64):
    return {"mean": leaf(0.3, dtype), "scale": leaf(-0.2, dtype)}


def bare(tree):
    return pytree.tree_map(torch.Tensor.detach, tree)


def expected_at(compiled, *inputs, **options):
    """The value, and the gradient leaf by leaf."""
    value, gradient = compiled.value_and_grad(*bare(inputs), generator=seed(), **options)
    return value, pytree.tree_leaves(gradient)


def grads(tree):
    return [each.grad for each in pytree.tree_leaves(tree)]


def same_bits(found, expected):
    return all(one is other is None or torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# --- the estimate


@pytest.mark.parametrize("name", ESTIMATORS)
def test_backward_hands_over_the_estimate(name):
    compiled, start = objective.compile(ESTIMATORS[name]), theta()
    value, gradient = expected_at(compiled, start)
    loss = compiled.loss(start, generator=seed())
    assert (loss.shape, loss.dtype, loss.requires_grad) == ((), F64, True)
    assert torch.equal(loss.detach(), value)
    assert grads(start) == [None, None]
    loss.backward()
    assert same_bits(grads(start), gradient)


@pytest.mark.parametrize("factor", [3.0, -0.5, 0.0])
def test_the_estimate_is_scaled_by_what_comes_in(factor):
    compiled, start = objective.compile(sg.SF()), theta()
    _, gradient = expected_at(compiled, start)
    (compiled.loss(start, generator=seed()) * factor + 7.0).backward()
    assert same_bits(grads(start), [factor * each for each in gradient])


def test_losses_are_divided_in_place():
    compiled, start = objective.compile(sg.SF()), theta()
    _, gradient = expected_at(compiled, start)
    loss = compiled.loss(start, generator=seed())
    loss /= 4.0
    loss.backward()
    assert same_bits(grads(start), [each / 4.0 for each in gradient])


def test_a_second_backward_adds_it_again():
    """Without `retain_graph`, and whatever became of the first `.grad`."""
    compiled, start = objective.compile(sg.SF()), theta()
    _, gradient = expected_at(compiled, start)
    loss = compiled.loss(start, generator=seed())
    loss.backward()
    loss.backward()
    assert same_bits(grads(start), [each + each for each in gradient])
    for each in pytree.tree_leaves(start):
        each.grad.zero_()
    loss.backward(retain_graph=True)
    assert same_bits(grads(start), gradient)
    (loss * 3.0).backward()
    assert same_bits(grads(start), [each + 3.0 * each for each in gradient])
    assert same_bits(torch.autograd.grad(loss, list(start.values())), gradient)


def test_losses_add_up():
    """Gradient accumulation, and sums of losses of several graphs with a regulariser of torch."""
    compiled, start = objective.compile(sg.SF()), theta()
    other = sg.graph(lambda t: sg.mean(sg.sample("y", Bernoulli, logits=t["mean"], n=3) * t["scale"])).compile(sg.SF())
    one, two = expected_at(compiled, start)[1], expected_at(other, start)[1]
    total = compiled.loss(start, generator=seed()) + 2.0 * other.loss(start, generator=seed()) + start["mean"] ** 2
    total.backward()
    compiled.loss(start, generator=seed()).backward()
    found = [2.0 * a + 2.0 * b for a, b in zip(one, two, strict=True)]
    found[0] = found[0] + 2.0 * bare(start)["mean"]
    for each, right in zip(grads(start), found, strict=True):
        torch.testing.assert_close(each, right, rtol=1e-14, atol=0.0)


def test_several_inputs_and_leaves_of_every_kind():
    @sg.graph
    def several(first, data, second):
        x = sg.sample("x", Normal, first["list"][0] + second, 1.0, n=3)
        return sg.mean(x * first["list"][1][0][1]) * first["count"] + data + sg.mean(x) * first["frozen"]

    first: dict[str, Any] = {
        "list": [leaf(0.3), (leaf([0.5, 0.1]),)],
        "count": torch.tensor(3),
        "frozen": torch.tensor(0.7, dtype=F64),
    }
    second, data = leaf(-0.4), torch.tensor(2.0, dtype=F64)
    compiled = several.compile(sg.SF(), wrt=("first", "second"))
    value, gradient = compiled.value_and_grad(*bare((first, data, second)), generator=seed())
    loss = compiled.loss(first, data, second, generator=seed())
    assert torch.equal(loss.detach(), value)
    loss.backward()
    assert same_bits([first["list"][0].grad, first["list"][1][0].grad], pytree.tree_leaves(gradient[0]["list"]))
    assert torch.equal(second.grad, gradient[1])
    assert first["count"].grad is first["frozen"].grad is data.grad is None


def test_frozen_parameters_get_no_gradient():
    compiled, start = objective.compile(sg.SF()), theta()
    _, gradient = expected_at(compiled, start)
    start["scale"].requires_grad_(False)
    compiled.loss(start, generator=seed()).backward()
    torch.testing.assert_close(start["mean"].grad, gradient[0], rtol=1e-14, atol=0.0)
    assert start["scale"].grad is None


def test_tied_parameters_get_the_sum():
    compiled, one = objective.compile(sg.SF()), leaf(0.3)
    value, gradient = expected_at(compiled, {"mean": one, "scale": one})
    loss = compiled.loss({"mean": one, "scale": one}, generator=seed())
    loss.backward()
    assert torch.equal(loss.detach(), value)
    assert torch.equal(one.grad, gradient[0] + gradient[1])


def test_the_gradient_flows_on_to_what_inputs_are_made_of():
    compiled, base = objective.compile(sg.SF()), leaf([0.1, -0.2])
    made = {"mean": 3.0 * base[0], "scale": base[1].exp()}
    _, gradient = expected_at(compiled, made)
    compiled.loss(made, generator=seed()).backward()
    factors = torch.tensor([3.0, math.exp(-0.2)], dtype=F64)
    torch.testing.assert_close(base.grad, torch.stack(gradient) * factors, rtol=1e-14, atol=0.0)


def test_views_of_parameters():
    """One flat vector of parameters, looked at in pieces."""
    compiled, flat = objective.compile(sg.SF()), nn.Parameter(torch.tensor([0.3, -0.2], dtype=F64))
    _, gradient = expected_at(compiled, {"mean": flat[0], "scale": flat[1]})
    compiled.loss({"mean": flat[0], "scale": flat[1]}, generator=seed()).backward()
    assert same_bits([flat.grad], [torch.stack(gradient)])


def test_an_estimator_that_drops_every_path_hands_over_zeros():
    graph = sg.graph(lambda t: sg.stop(sg.mean(sg.sample("x", Bernoulli, logits=t, n=2))))
    start: Any = leaf(0.3)
    graph.compile(sg.LSF()).loss(start).backward()
    assert same_bits([start.grad], [torch.zeros((), dtype=F64)])


@pytest.mark.parametrize(
    "dtypes", [(torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.float32,) * 2, (F64, torch.float16)]
)
def test_gradients_have_the_precision_of_their_leaves(dtypes):
    graph = sg.graph(lambda t: sg.mean(sg.sample("x", Bernoulli, logits=t["mean"], n=4) * t["scale"].sum()))
    start = {"mean": leaf(0.3, dtypes[0]), "scale": leaf([-0.2, 0.4], dtypes[1])}
    compiled = graph.compile(sg.SF())
    _, gradient = expected_at(compiled, start)
    (compiled.loss(start, generator=seed()) * 2.0).backward()
    assert same_bits(grads(start), [2 * each for each in gradient])
    assert tuple(each.grad.dtype for each in start.values()) == dtypes


# --- the call


def test_generator_sizes_and_the_trace():
    compiled, start = meta(1).compile(sg.LSF()), pytree.tree_map(torch.Tensor.requires_grad_, parameters())
    one, other = seed(), seed()
    loss, trace = compiled.loss(start, generator=one, sizes={"task": 2}, return_trace=True)
    expected = compiled.sample(start, generator=other, sizes={"task": 2})
    assert torch.equal(one.get_state(), other.get_state())
    assert same_bits(pytree.tree_leaves(tuple(trace)), pytree.tree_leaves(tuple(expected)))
    assert not any(each.requires_grad for each in pytree.tree_leaves(tuple(trace)))
    loss.backward()
    replayed = torch.func.grad(compiled.surrogate)(bare(start), trace)
    for each, right in zip(grads(start), replayed.values(), strict=True):
        torch.testing.assert_close(each, right, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("return_trace", [False, True])
def test_large_graphs_are_cut_as_in_value_and_grad(return_trace, monkeypatch):
    monkeypatch.setitem(_cuts._NUMBERS, "cpu", 120)
    compiled, start = meta(1).compile(sg.LSF()), pytree.tree_map(torch.Tensor.requires_grad_, parameters())
    value, gradient = expected_at(compiled, start, sizes={"task": 7})
    loss = compiled.loss(start, generator=seed(), sizes={"task": 7}, return_trace=return_trace)
    loss = loss[0] if return_trace else loss
    loss.backward()
    assert torch.equal(loss.detach(), value)
    assert same_bits(grads(start), gradient)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_value_alone_where_gradients_are_off(context):
    compiled, start = objective.compile(sg.SF()), theta()
    value, _ = expected_at(compiled, start)
    with context():
        loss = compiled.loss(start, generator=seed())
        again, trace = compiled.loss(start, generator=seed(), return_trace=True)
    assert torch.equal(loss, value)
    assert torch.equal(again, trace.value)
    assert not loss.requires_grad


def test_the_value_alone_where_no_leaf_requires_a_gradient():
    compiled, start = objective.compile(sg.SF()), bare(theta())
    loss = compiled.loss(start, generator=seed())
    assert torch.equal(loss, expected_at(compiled, start)[0])
    assert not loss.requires_grad


def test_gradients_are_those_of_the_call():
    """What becomes of the parameters afterwards does not matter."""
    compiled, start = objective.compile(sg.SF()), theta()
    _, gradient = expected_at(compiled, start)
    loss = compiled.loss(start, generator=seed())
    with torch.no_grad():
        start["mean"].fill_(9.0)
    loss.backward()
    assert same_bits(grads(start), gradient)


# --- modules and optimisers


def encoder_and_decoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), nn.Linear(2, 3).double()


def elbo(encoder, decoder):
    """One row, eight draws; a discrete code."""

    @sg.graph
    def bound(phi, psi, row):
        logits = sg.apply(lambda p, x: functional_call(encoder, p, (x,)), phi, row)
        z = sg.sample("z", bits_of, logits, n=8)

        def log_ratio(z, psi, logits, row):
            likelihood = Bernoulli(logits=functional_call(decoder, psi, (z,))).log_prob(row).sum()
            prior, posterior = Bernoulli(logits=torch.zeros(2, dtype=F64)), Bernoulli(logits=logits)
            return likelihood + prior.log_prob(z).sum() - posterior.log_prob(z).sum()

        return -sg.mean(sg.apply(log_ratio, z, psi, logits, row))

    return bound


ROW = torch.tensor([1.0, 0.0, 1.0], dtype=F64)


def test_a_loop_of_torch_is_a_loop_over_value_and_grad():
    """Ten steps of Adam over two modules: the same bits as gradients that are copied by hand."""
    encoder, decoder = encoder_and_decoder()
    compiled = elbo(encoder, decoder).compile(sg.SF("loo"), wrt=("phi", "psi"))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.05)
    generator = seed()
    for _ in range(10):
        optimizer.zero_grad()
        compiled.loss(
            dict(encoder.named_parameters()), dict(decoder.named_parameters()), ROW, generator=generator
        ).backward()
        optimizer.step()

    by_hand = encoder_and_decoder()
    phi, psi = (dict(module.named_parameters()) for module in by_hand)
    optimizer, generator = torch.optim.Adam([*phi.values(), *psi.values()], lr=0.05), seed()
    for _ in range(10):
        _, found = compiled.value_and_grad(phi, psi, ROW, generator=generator)
        for parameter, gradient in zip([*phi.values(), *psi.values()], pytree.tree_leaves(found), strict=True):
            parameter.grad = gradient
        optimizer.step()
    ends = [[p for module in pair for p in module.parameters()] for pair in ((encoder, decoder), by_hand)]
    assert same_bits(*ends)
    assert not same_bits(ends[0], [p for module in encoder_and_decoder() for p in module.parameters()])


def bits_of(logits):
    return Independent(Bernoulli(logits=logits), 1)


def test_an_autoencoder_on_batches_of_a_loader_is_hand_written_rloo():
    """Four draws a row, the prior a constant inside the mean, a smaller last batch: the same draws, the same steps."""
    log_prior = -2.0 * math.log(2.0)
    pictures: Any = (torch.rand(22, 3, generator=seed()) < 0.4).double()

    def start():
        networks = encoder_and_decoder()
        torch.manual_seed(1)
        optimizer = torch.optim.Adam([p for network in networks for p in network.parameters()], lr=0.05)
        return *networks, optimizer, DataLoader(pictures, batch_size=8, shuffle=True)

    encoder, decoder, optimizer, loader = start()

    @sg.graph
    def loss(phi, psi, batch):
        row = sg.data("row", batch)
        code = sg.sample("code", bits_of, sg.apply(lambda p, x: functional_call(encoder, p, x), phi, row), n=4)
        logits = sg.apply(lambda p, z: functional_call(decoder, p, z), psi, code)
        return -sg.mean(sg.apply(lambda t, x: bits_of(t).log_prob(x), logits, row) + log_prior - sg.log_prob(code))

    compiled = loss.compile(sg.SF("loo"), wrt=("phi", "psi"))
    for batch in [batch for _ in range(5) for batch in loader]:
        optimizer.zero_grad()
        compiled.loss(*(dict(network.named_parameters()) for network in (encoder, decoder)), batch).backward()
        optimizer.step()
    found = [*encoder.parameters(), *decoder.parameters()]

    encoder, decoder, optimizer, loader = start()
    for batch in [batch for _ in range(5) for batch in loader]:
        q = bits_of(encoder(batch))
        code = q.sample((4,))
        bound = bits_of(decoder(code)).log_prob(batch) + log_prior - q.log_prob(code)
        compared = bound - (bound.sum(0) - bound) / 3.0
        optimizer.zero_grad()
        (-(bound + compared.detach() * q.log_prob(code)).mean()).backward()
        optimizer.step()
    for one, other in zip(found, [*encoder.parameters(), *decoder.parameters()], strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-10)


def test_a_gradient_scaler():
    compiled, start = objective.compile(sg.SF()), theta(torch.float32)
    _, gradient = expected_at(compiled, start)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(start.values(), lr=1.0)
    scaler.scale(compiled.loss(start, generator=seed())).backward()
    assert same_bits(grads(start), [1024.0 * each for each in gradient])
    before = [each.detach().clone() for each in start.values()]
    scaler.step(optimizer)
    assert same_bits(list(bare(start).values()), [old - step for old, step in zip(before, gradient, strict=True)])


# --- refusals

NO_DERIVATIVE = r"loss of 'objective': .*create_graph=True.*compiled\.surrogate"


def second_derivatives(loss, start):
    first = torch.autograd.grad(loss, list(start.values()), create_graph=True)
    return torch.autograd.grad(torch.stack(first).sum(), list(start.values()))


@pytest.mark.parametrize(
    "differentiate",
    [second_derivatives, lambda loss, start: (loss**2).backward(create_graph=True)],
    ids=["autograd.grad", "backward"],
)
def test_it_has_no_second_derivative(differentiate):
    start = theta()
    with pytest.raises(sg.SamplingError, match=NO_DERIVATIVE):
        differentiate(objective.compile(sg.SF()).loss(start), start)


@pytest.mark.parametrize(
    "transform",
    [
        lambda fn: torch.func.grad(fn)(bare(theta())),
        lambda fn: torch.func.hessian(fn)(bare(theta())),
        lambda fn: torch.func.jvp(fn, (bare(theta()),), (bare(theta()),)),
        lambda fn: torch.vmap(fn, randomness="different")(pytree.tree_map(lambda x: x.expand(3), bare(theta()))),
        lambda fn: torch.autograd.functional.hessian(lambda m: fn({"mean": m, "scale": m}), leaf(0.3)),
    ],
    ids=["grad", "hessian", "jvp", "vmap", "functional.hessian"],
)
def test_inside_transforms(transform):
    compiled = objective.compile(sg.SF())
    with pytest.raises(sg.SamplingError, match=r"loss of 'objective'.*compiled\.s(ample|urrogate)"):
        transform(compiled.loss)


def test_forward_derivatives():
    compiled, start = objective.compile(sg.SF()), theta()
    with torch.autograd.forward_ad.dual_level():
        made = torch.autograd.forward_ad.make_dual(start["mean"], torch.ones((), dtype=F64))
        with pytest.raises(sg.SamplingError, match=NO_DERIVATIVE.replace("create_graph=True", "")):
            compiled.loss({**start, "mean": made})


@pytest.mark.parametrize("wrt", ["first", ("first",)])
def test_inputs_that_are_not_differentiated_and_require_a_gradient(wrt):
    @sg.graph
    def several(first, second, third, fourth):
        return sg.mean(sg.sample("x", Normal, first * second["w"], 1.0, n=2)) * third + fourth

    compiled = several.compile(sg.SF(), wrt=wrt)
    inputs: list[Any] = [leaf(0.3), {"w": nn.Parameter(torch.tensor(1.0))}, torch.tensor(1.0), leaf(0.1)]
    remedy = r"inputs 'second', 'fourth' .*wrt=\('first', 'second', 'fourth'\)"
    with pytest.raises(sg.SamplingError, match=remedy):
        compiled.loss(*inputs)
    with torch.no_grad():
        compiled.loss(*inputs)
    compiled.loss(*inputs[:1], *bare(inputs[1:])).backward()
    assert inputs[0].grad is not None


def test_complex_leaves():
    graph = sg.graph(lambda t: sg.mean(sg.sample("x", Normal, t["a"], 1.0, n=2)) * t["b"].abs())
    start = {"a": leaf(0.3), "b": torch.tensor(1.0 + 2.0j, requires_grad=True)}
    with pytest.raises(sg.SamplingError, match=r"a leaf of the input 't' .*torch.complex64"):
        graph.compile(sg.SF()).loss(start)


def test_no_leaf_to_differentiate():
    with pytest.raises(TypeError, match="no leaf of the input 'theta' is a floating-point tensor"):
        objective.compile(sg.SF()).loss({"mean": torch.tensor(1), "scale": torch.tensor(2)})


def test_what_sample_refuses():
    compiled = objective.compile(sg.SF())
    with pytest.raises(sg.SamplingError, match="'y' is not a plate"):
        compiled.loss(theta(), sizes={"y": 3})
    with pytest.raises(TypeError, match="takes 1 inputs"):
        compiled.loss()
    with pytest.raises(TypeError, match=r"a torch.Generator is expected"):
        compiled.loss(theta(), generator=3)  # type: ignore[arg-type]
