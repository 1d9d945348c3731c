"""The tanh of the policies' networks, against torch's."""

import pytest
import torch
from torch.func import grad, grad_and_value, jvp, vmap

from stochgraph.algorithms.policies.networks import tanh

POINTS = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([-1e3, 0.0, 1e3]).double()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_torch_to_twice_the_rounding_of_one(dtype):
    x = POINTS.to(dtype)
    assert (tanh(x) - x.tanh()).abs().max() <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_have_the_same_bits_with_derivatives_without_and_mapped(dtype):
    x = POINTS.to(dtype)
    with torch.no_grad():
        bare = tanh(x)
    assert torch.equal(tanh(x), bare)
    assert torch.equal(tanh(x.clone().requires_grad_()), bare)
    assert torch.equal(vmap(tanh)(x), bare)
    assert torch.equal(vmap(grad_and_value(tanh))(x)[1], bare)


def test_its_argument_stays_as_it_is():
    x = POINTS.clone()
    tanh(x)
    assert torch.equal(x, POINTS)


def test_derivatives_to_the_third_order_backward_and_forward():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(tanh, x)
    ours, torchs = x, x
    for _ in range(3):
        (ours,) = torch.autograd.grad(tanh(x).sum() if ours is x else ours.sum(), x, create_graph=True)
        (torchs,) = torch.autograd.grad(x.tanh().sum() if torchs is x else torchs.sum(), x, create_graph=True)
        torch.testing.assert_close(ours, torchs, rtol=1e-13, atol=1e-13)


def forward(function):
    return lambda x: jvp(function, (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize("modes", ["f", "r", "ff", "fr", "rf", "rr", "fff", "ffr", "frf", "rff", "rrf", "rrr"])
def test_forward_and_reverse_mode_nest_in_every_order(modes):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    ours, torchs = tanh, torch.tanh
    for mode in modes:
        differentiate = forward if mode == "f" else grad
        ours, torchs = differentiate(ours), differentiate(torchs)
    torch.testing.assert_close(vmap(ours)(x), vmap(torchs)(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(ours(x[0]), torchs(x[0]), rtol=1e-13, atol=1e-13)


def test_forward_derivatives_without_a_graph():
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    with torch.no_grad():
        tangent = jvp(tanh, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, 1 - x.tanh().square(), rtol=1e-13, atol=1e-13)


def test_gradients_of_a_gradient_keep_no_more_memory_than_with_torch():
    def kept(function):
        saved = []

        def pack(leaf):
            saved.append(leaf.numel())
            return leaf

        x = torch.ones(100, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda leaf: leaf):
            torch.autograd.grad(function(x).sum(), x, create_graph=True)
        return sum(saved)

    assert kept(tanh) <= kept(torch.tanh)


def test_other_numbers_are_torchs():
    x = torch.tensor([0.3 + 0.5j, -1.0 + 0.0j], dtype=torch.complex128)
    assert torch.equal(tanh(x), x.tanh())
    torch.testing.assert_close(forward(tanh)(x), forward(torch.tanh)(x))
    assert torch.equal(tanh(torch.tensor([0, 1])), torch.tensor([0, 1]).tanh())
