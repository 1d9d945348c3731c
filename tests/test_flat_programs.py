"""Flat programs: what is taken away from a record, and the function of Python that it becomes, move no bit."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stochgraph.lower.emission import _BOUND
from stochgraph.lower.recording import Flat, record

aten = torch.ops.aten


def matrix(seed: int = 0) -> Tensor:
    return torch.rand(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def recorded(fn: Callable[..., Sequence[Tensor]], *arguments: Tensor) -> Flat:
    return record(lambda: fn(*arguments), arguments).flat


def operations(flat: Flat) -> list[str]:
    """The names of the operations of a program, in order."""
    targets = [node.target for node in flat.module.graph.nodes if node.op == "call_function"]
    return [target._schema.name.removeprefix("aten::") for target in targets]


def agree(fn: Callable[..., Sequence[Tensor]], *arguments: Tensor) -> Flat:
    """The program of a function, which gives the same bits at the arguments and at others."""
    flat = recorded(fn, *arguments)
    for scale in (1.0, 2.5):
        others = [argument * scale if argument.is_floating_point() else argument for argument in arguments]
        found, expected = flat(others), fn(*others)
        assert found is not None
        assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
    return flat


def test_views_that_undo_each_other_go():
    flat = agree(
        lambda x: [torch.exp(x.unsqueeze(0).squeeze(0).mT.mT.detach().reshape(9).view(3, 3).expand(3, 3))], matrix()
    )
    assert operations(flat) == ["exp"]


def test_the_same_view_and_the_same_operation_are_made_once():
    flat = agree(lambda x: [x[0].exp() + x.select(0, 0).exp(), x**1.0 + x.mT], matrix())
    assert sorted(operations(flat)) == ["add", "add", "exp", "select", "transpose"]


def test_a_shape_that_is_given_in_place_is_a_view():
    flat = agree(lambda x: [(x @ x).unsqueeze(0).squeeze_(0).exp() + (x @ x).exp()], matrix())
    assert sorted(operations(flat)) == ["add", "exp", "mm"]


def test_inputs_that_share_memory_are_told_apart():
    """What is the same tensor in one call may be two in the next."""
    x = matrix()
    flat = recorded(lambda x, y: [x.view(9) - y.view(9)], x, x.detach())
    found = flat([matrix(1), matrix(2)])
    assert found is not None
    assert torch.equal(found[0], (matrix(1) - matrix(2)).view(9))


def test_what_is_made_of_sizes_alone_is_kept():
    flat = agree(lambda x: [torch.ones_like(x).div(9).cumsum(0) * x], matrix())
    assert operations(flat) == ["mul"]


def test_a_kept_result_is_nobody_elses():
    """Results, what is written into, and what is captured are made anew, or read anew, at every call."""
    captured = torch.ones(3, dtype=torch.float64)

    def fn(x: Tensor) -> list[Tensor]:
        total = torch.zeros(3, dtype=torch.float64)
        seen = total[:2]
        total += x.sum(0)
        return [torch.ones(3), total, captured + 1, (seen.exp() + 1).log() * x[0, 0]]

    flat = agree(fn, matrix())
    for _ in range(3):
        found = flat([matrix()])
        assert found is not None
        for result in found:
            result += 1.0
    captured += 1.0
    agreed = flat([matrix()])
    assert agreed is not None
    assert all(torch.equal(left, right) for left, right in zip(agreed, fn(matrix()), strict=True))


def test_what_is_written_is_read_in_its_order():
    def fn(x: Tensor) -> list[Tensor]:
        y = x * 2
        first = y[0].exp()
        y += 1.0
        y[1] = first
        return [y[0].exp() + first, y.view(9), x * 2]

    agree(fn, matrix())


def test_numbers_beside_tensors():
    """Of every dtype, and where the number gives the result another one."""
    for x in (matrix(), matrix().float(), matrix().half(), torch.arange(9).reshape(3, 3)):
        agree(lambda x: [x * 0.1, x + 3, x - 0.7, x / 3, x * 2, 2 * x, x * True, x.sum() * 0.1, -0.0 * x], x)


def test_what_is_not_needed_is_let_go_of():
    """A program holds no more of its intermediate results at once than the function: here one, of forty."""

    def fn(x: Tensor) -> list[Tensor]:
        for _ in range(40):
            x = x.exp().log()
        return [x.sum()]

    x = torch.ones(1000)
    flat = recorded(fn, x)
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profiler:
        flat([x])
    held, most = 0, 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 4000 <= most <= 13000


def test_recording_holds_no_results():
    """What the function itself lets go of is let go of while it is recorded."""
    alive: list[weakref.ref[Tensor]] = []

    def fn(x: Tensor) -> list[Tensor]:
        for _ in range(10):
            x = x.exp().log()
            alive.append(weakref.ref(x))
        assert sum(each() is not None for each in alive) == 1
        return [x.sum()]

    agree(fn, matrix())


X, Y, V = matrix(), matrix(1), matrix(2)[0]
PLACES, B = torch.tensor([[0, 2, 1]] * 3), torch.tensor([[True, False, True]] * 3)
CALLS: dict[str, list[tuple[Any, ...]]] = {
    "add.Tensor": [(X, Y), (X, 2.0)],
    "addmm.default": [(V, X, Y)],
    "amax.default": [(X, [0]), (X, [0], True)],
    "amin.default": [(X, [0], True)],
    "any.default": [(B,)],
    "any.dim": [(B, 0, True)],
    "argmax.default": [(X, 0, True)],
    "bitwise_and.Tensor": [(B, ~B)],
    "bitwise_not.default": [(B,)],
    "bitwise_or.Tensor": [(B, ~B)],
    "bmm.default": [(X[None], Y[None])],
    "cat.default": [([X, Y], 1)],
    "clamp.default": [(X, 0.2, 0.5)],
    "clamp_max.default": [(X, 0.2)],
    "clamp_min.default": [(X, 0.2)],
    "clone.default": [(X,)],
    "cumsum.default": [(X, 1)],
    "div.Tensor": [(X, Y), (X, 3)],
    "expand.default": [(V, [4, 3])],
    "flip.default": [(X, [0, 1])],
    "gather.default": [(X, 1, PLACES)],
    "index_select.default": [(X, 1, PLACES[0])],
    "logsumexp.default": [(X, [1], True)],
    "maximum.default": [(X, Y)],
    "mean.default": [(X,)],
    "mean.dim": [(X, [0], True)],
    "minimum.default": [(X, Y)],
    "mm.default": [(X, Y)],
    "mul.Scalar": [(X, 2.0)],
    "permute.default": [(X[None], [2, 0, 1])],
    "pow.Scalar": [(2.0, X)],
    "pow.Tensor_Scalar": [(X, 2), (X, 0.5)],
    "pow.Tensor_Tensor": [(X, Y)],
    "scatter.src": [(X, 1, PLACES, Y)],
    "scatter.value": [(X, 1, PLACES, 0.5)],
    "scatter_add.default": [(X, 1, PLACES, Y)],
    "select.int": [(X, 1, 2)],
    "split.Tensor": [(X, 2, 1)],
    "squeeze.dim": [(X[None], 0)],
    "squeeze.dims": [(X[None], [0, 1])],
    "stack.default": [([X, Y], -1)],
    "sub.Tensor": [(X, Y), (X, 0.1)],
    "sum.default": [(X,)],
    "sum.dim_IntList": [(X, [1], True)],
    "t.default": [(X,)],
    "transpose.int": [(X, 0, 1)],
    "unbind.int": [(X, 1)],
    "unsqueeze.default": [(X, 2)],
    "view.default": [(X, [9])],
    "where.self": [(B, X, Y)],
    "bernoulli.default": [(X / 2,)],
    "multinomial.default": [(X, 4, True)],
    "logical_and.default": [(B, ~B)],
    "logical_or.default": [(B, ~B)],
}
COMPARED = [("Tensor", Y), ("Scalar", 0.5)]
CALLS |= {f"{name}.{kind}": [(X, given)] for name in "eq ge gt le lt ne".split() for kind, given in COMPARED}
OF_ONE = "abs cos detach erf exp expm1 floor isnan lgamma log log1p logical_not neg reciprocal relu rsqrt sgn sigmoid "
CALLS |= {f"{name}.default": [(X,)] for name in (OF_ONE + "sign sin sqrt tanh").split()}


@pytest.mark.parametrize("name", CALLS)
def test_bindings_take_what_the_overloads_take(name):
    packet, overload = name.split(".")
    called = getattr(getattr(aten, packet), overload)
    for given in CALLS[name]:
        places = [i for i, value in enumerate(given) if isinstance(value, Tensor)]

        def fn(*tensors: Tensor, given: Any = given, places: Any = places) -> list[Tensor]:
            values = [tensors[places.index(i)] if i in places else value for i, value in enumerate(given)]
            found = called(*values)
            parts = found if isinstance(found, (tuple, list)) else [found]
            return [part.clone() for part in parts]  # what is a view of an input as well

        tensors = [given[i] for i in places]
        flat = recorded(fn, *tensors)
        torch.manual_seed(1)
        found = flat(tensors)
        torch.manual_seed(1)
        expected = fn(*tensors)
        assert found is not None
        assert all(
            torch.equal(left, right) and left.stride() == right.stride()
            for left, right in zip(found, expected, strict=True)
        )


def test_every_binding_is_compared():
    assert {name.partition(".")[0] for name in CALLS} == _BOUND
