"""Functions that cannot be mapped over draws: the node, the user's line, and what to write instead."""

import inspect
import math
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import stochgraph as sg

HERE = Path(__file__).name
THETA = torch.tensor([0.3, -0.2])
ALL = torch.zeros(2)
GRU, LSTM, RNN, CELL, DROPOUT, BATCH_NORM = (
    module.requires_grad_(False)
    for module in (
        torch.nn.GRU(2, 3),
        torch.nn.LSTM(2, 3),
        torch.nn.RNN(2, 3),
        torch.nn.GRUCell(2, 3),
        torch.nn.Dropout(),
        torch.nn.BatchNorm1d(2),
    )
)

# One draw of shape (2,) to a number, and what the message must say of it.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "gru": (lambda x: GRU(x[None])[0].sum(), r"torch\.vmap cannot map aten::gru, .*a loop over its steps"),
    "lstm": (lambda x: LSTM(x[None])[0].sum(), r"torch\.vmap cannot map aten::lstm, .*torch\.nn\.functional\.linear"),
    "rnn": (lambda x: RNN(x[None])[0].sum(), r"torch\.vmap cannot map aten::rnn_tanh, .*torch\.tanh"),
    "a slow cell": (lambda x: CELL(x).sum(), r"torch\.vmap cannot map aten::gru_cell, or only slowly"),
    "dropout": (lambda x: DROPOUT(x).sum(), r"it draws random numbers of its own .*sg\.sample; .*module\.eval\(\)"),
    "noise": (lambda x: (x + torch.randn(2)).sum(), r"it draws random numbers of its own .*sg\.sample"),
    "batch norm": (lambda x: BATCH_NORM(x[None]).sum(), r"batch normalisation .*module\.eval\(\)"),
    ".item()": (lambda x: x.sum() * x[0].item(), r"it asks for the number .*\.item\(\).*table\[k\]"),
    "float()": (lambda x: x.sum() * float(x[0]), r"it asks for the number .*float\(\)"),
    "float() of two": (lambda x: x.sum() * float(x), r"it asks for the number .*float\(\)"),
    "math": (lambda x: x.sum() * math.sin(x[0]), r"it asks for the number .*Python's math"),
    "a list": (lambda x: x.sum() * [1.0, 2.0][(x[0] > 0).long()], r"it asks for the number .*an index into a list"),
    "range": (lambda x: x.sum() * len(range((x[0] > 0).long())), r"it asks for the number"),
    "branch": (lambda x: x.sum() if x[0] > 0 else -x.sum(), r"Python decides .*torch\.where\(condition, a, b\)"),
    "branch on two": (lambda x: x.sum() if x > 0 else -x.sum(), r"Python decides .*torch\.where"),
    "max": (lambda x: max(x[0], x[1]), r"Python decides .*torch\.maximum"),
    "sorted": (lambda x: sorted([x[0], x[1]])[0], r"Python decides .*torch\.sort"),
    "mask": (lambda x: x[x > 0].sum(), r"the size of a result depends on values .*torch\.where\(mask, x, 0\.0\)"),
    "nonzero": (lambda x: torch.nonzero(x).sum() * x[0], r"the size of a result depends on values"),
    "numpy": (lambda x: torch.as_tensor(np.sin(np.asarray(x))).sum(), r"values leave torch .*sg\.Sampler"),
    ".numpy()": (lambda x: torch.as_tensor(x.numpy()).sum(), r"values leave torch \(\.numpy\(\)"),
    ".tolist()": (lambda x: torch.as_tensor(sum(x.tolist())), r"values leave torch"),
    "writes": (lambda x: ALL.add_(x).sum(), r"it writes what belongs to one draw .*torch\.stack"),
    "shapes": (lambda x: (x @ torch.ones(3, 4)).sum(), r"RuntimeError: .*It sees one draw: shape \(2,\)"),
    "sizes": (lambda x: (x + torch.ones(3)).sum(), r"RuntimeError: The size of .*one draw: shape \(2,\)"),
    "index": (lambda x: x[5], r"IndexError: index 5 is out of bounds .*It sees one draw: shape \(2,\)"),
    "dimension": (lambda x: x.sum(3).sum(), r"IndexError: Dimension out of range"),
    "dtypes": (lambda x: x.double() @ torch.ones(2), r"RuntimeError: .*dtype"),
    "attribute": (lambda x: x.shap, r"AttributeError: 'Tensor' object has no attribute"),  # type: ignore[attr-defined]
    "key": (lambda x: {"a": x}["b"].sum(), r"KeyError: 'b'"),
    "arguments": (lambda x: torch.sin(x, x), r"TypeError: sin\(\) takes 1 positional"),  # type: ignore[call-arg]
}  # fmt: skip


class Scored(sg.Sampler):
    """Draws whose log-probability calls a function of one draw."""

    def __init__(self, fn: Callable[[Tensor], Any]) -> None:
        self.fn = fn

    def draw(self, batch_shape: torch.Size, *parents: Tensor) -> Tensor:
        return torch.randn(*batch_shape, 2)

    def log_prob(self, value: Tensor, *parents: Tensor) -> Tensor:
        return self.fn(value) + parents[0].sum()


class Listed(Scored):
    """Draws whose outcomes call the function."""

    def log_prob(self, value: Tensor, *parents: Tensor) -> Tensor:
        return parents[0].sum()

    def enumerate(self, *parents: Tensor) -> Tensor:
        return self.fn(parents[0])


def applied(fn: Any) -> sg.Graph:
    return sg.graph(lambda theta: sg.mean(sg.apply(fn, sg.sample("x", Normal, theta, 1.0, n=3))))


def reduced(fn: Any) -> sg.Graph:
    def body(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.mean(sg.reduce(fn, sg.sample("y", Normal, x[0], 1.0, n=2), over="y"))

    return sg.graph(body)


def drawn(fn: Any) -> sg.Graph:
    def body(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.mean(sg.sample("y", lambda one: Normal(fn(one), 1.0), x))

    return sg.graph(body)


def scored(fn: Any) -> sg.Graph:
    return sg.graph(lambda theta: sg.mean(sg.sample("x", Scored(fn), theta, n=3).sum()))


def inside_an_update(fn: Any) -> sg.Graph:
    def body(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.ascend(theta, sg.mean(sg.apply(lambda t, one: fn(t + one), theta, x)), lr=0.1).sum()

    return sg.graph(body)


PLACES: dict[str, tuple[Callable[[Any], sg.Graph], str]] = {
    "apply": (applied, "node 'lambda' (axes: (x)): its function fails"),
    "reduce": (reduced, "node '<lambda>(y)' (axes: (x)): its function fails"),
    "sample": (drawn, "sample 'y' (axes: (x)): its function fails"),
    "log_prob": (scored, "sample 'x' (axes: (x)): Scored.log_prob fails"),
    "update": (inside_an_update, "node 'lambda' (axes: (x)): its function fails"),
}


def ours(error: BaseException) -> list[str]:
    """The frames of an error that are in libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.filename for frame in frames if HERE not in frame.filename]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_cannot_be_mapped_is_said_in_words(name, place):
    (fn, words), (make, where) = FUNCTIONS[name], PLACES[place]
    compiled = make(fn).compile(sg.SF())
    with pytest.raises(sg.FunctionError) as caught:
        compiled.sample(THETA)
    check(caught.value, fn, where, words)


def check(error: Exception, fn: Callable[..., Any], where: str, words: str) -> None:
    """What an error says, and what its traceback shows."""
    lines, number = inspect.getsourcelines(fn)
    said = str(error).removeprefix(f"{where} at {Path(__file__)}:{number}, `{lines[0].strip()}`: ")
    assert len(said) < len(str(error))
    assert re.match(words, said)
    assert not ours(error)
    assert error.__cause__ is not None
    assert HERE in traceback.extract_tb(error.__cause__.__traceback__)[0].filename


@pytest.mark.parametrize("call", ["value_and_grad", "surrogate", "grad", "hessian", "accumulate", "verify"])
def test_whatever_runs_the_function(call):
    """Where draws are mapped over once more (`verify`) and where they are replayed, it is the same message."""
    fn, words = FUNCTIONS["branch"]

    @sg.graph
    def graph(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=3)
        return sg.mean(sg.apply(fn, x))

    compiled = graph.compile(sg.SF())
    draws = torch.zeros(3, 2)
    trace = sg.Trace(torch.tensor(0.0), {"x": draws}, {"x": torch.zeros(3)}, {})
    runs: dict[str, Callable[[], Any]] = {
        "value_and_grad": lambda: compiled.value_and_grad(THETA, generator=torch.Generator()),
        "surrogate": lambda: compiled.surrogate(THETA, trace),
        "grad": lambda: torch.func.grad(compiled.surrogate)(THETA, trace),
        "hessian": lambda: torch.func.hessian(compiled.surrogate)(THETA, trace),
        "accumulate": lambda: sg.accumulate(compiled, THETA, over="x", trace=trace),
        "verify": lambda: sg.verify(compiled, THETA),
    }
    with pytest.raises(sg.FunctionError) as caught:
        runs[call]()
    shown = [file for file in ours(caught.value) if "functorch" not in file]  # what the user calls may be torch's
    assert not shown
    assert re.search(words, str(caught.value))
    assert str(caught.value).startswith("node 'lambda' (axes: (x))")


class Impossible(Exception):
    """An error with a type of the user's own."""


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def fn(x: Tensor) -> Tensor:
        raise error

    return fn


def asserting(x: Tensor) -> Tensor:
    assert x.dim() > 5, "too flat"
    return x


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (raising(Impossible("so")), Impossible),
        (raising(ValueError("so")), ValueError),
        (raising(KeyError("so")), KeyError),
        (raising(RuntimeError("so")), RuntimeError),
        (asserting, AssertionError),
    ],
)
def test_what_a_function_raises_itself_keeps_its_type(fn, kind, place):
    """What a draw raises is the cause of a refusal to draw, whoever raised it."""
    with pytest.raises((kind, sg.SamplingError)) as caught:
        PLACES[place][0](fn).compile(sg.SF()).value_and_grad(THETA)
    wrapped = place == "sample" and issubclass(kind, (ValueError, RuntimeError))
    found = caught.value.__cause__ if wrapped else caught.value
    assert type(found) is kind
    assert any("(axes: (x)), written for one draw" in note for note in found.__notes__)


@pytest.mark.parametrize("fn", [torch.nn.Linear(3, 1).requires_grad_(False), torch.linalg.inv], ids=["module", "torch"])
def test_a_function_that_is_no_code_of_the_users(fn):
    with pytest.raises(sg.FunctionError, match=r"node '\w+' \(axes: \(x\)\): its function fails: RuntimeError: "):
        applied(fn).compile(sg.SF()).sample(THETA)


def test_an_operation_between_nodes():
    graph = sg.graph(lambda t: sg.mean((sg.sample("x", Normal, t["a"], 1.0, n=3) + t["b"]).sum()))
    with pytest.raises(sg.FunctionError) as caught:
        graph.compile(sg.SF()).sample({"a": THETA, "b": torch.ones(3)})
    words = r"node 'add' \(axes: \(x\)\): its operation fails: RuntimeError: The size .*: shape \(2,\), shape \(\)"
    assert re.match(words, str(caught.value))


def test_a_function_that_returns_no_tensor():
    def nothing(x: Tensor) -> None:
        x.sum()

    with pytest.raises(sg.FunctionError, match=rf"{HERE}:\d+, `def nothing.*`: it returns NoneType\. Return a tensor"):
        applied(nothing).compile(sg.SF()).sample(THETA)


def test_outcomes_that_cannot_be_listed():
    fn, words = FUNCTIONS["mask"]

    def body(theta):
        k = sg.sample("k", Bernoulli, logits=theta[0], n=2)
        return sg.mean(sg.sample("x", Listed(fn), torch.stack([k, k])))

    with pytest.raises(sg.FunctionError, match=r"sample 'x' \(axes: \(k\)\): Listed\.enumerate fails at") as caught:
        sg.verify(sg.graph(body).compile(sg.SF()), THETA)
    assert re.search(words, str(caught.value))


def test_a_distribution_that_refuses_its_parameters_in_a_function():
    """The user's line, and the value that began it."""

    def body(theta):
        x = sg.sample("x", Normal, theta[0], 1.0)
        bad = sg.apply(lambda one: one * torch.nan, x)
        return sg.sample("y", lambda mean: Normal(mean, 1.0), bad)

    with pytest.raises(sg.FunctionError) as caught:
        sg.graph(body).compile(sg.SF()).sample(THETA)
    assert re.search(r"sample 'y' .*`return sg\.sample.*`: ValueError: Expected parameter loc", str(caught.value))
    assert "The first value with a NaN is that of 'lambda'" in str(caught.value)
