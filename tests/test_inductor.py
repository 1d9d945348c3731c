"""Programs through torch.compile: the draws of the interpreter, its results to rounding, and words where it cannot."""

import logging
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Distribution

import stochgraph as sg
from tests.problems import BANDIT_THETA, F64, GRAPHS, task_bandit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports of torch
FLOAT = torch.float32
WITHIN = {FLOAT: 1e-5, F64: 1e-12}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def toss(scale: float) -> sg.Graph:
    """A graph of a number of its own, so that no earlier compilation is found."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", lambda t: Bernoulli(logits=t), theta, n=4)
        return sg.mean(sg.apply(lambda x, t: scale * (x - t) ** 2, x, theta))

    return objective


def close(found: Any, expected: Any) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(
        float((left - right).abs().max()) <= WITHIN[right.dtype] * float(right.abs().max()) for left, right in pairs
    )


@pytest.fixture(autouse=True)
def fresh_compilations():
    yield
    torch.compiler.reset()


def test_draws_are_those_of_the_interpreter():
    """A seed gives the same draws, the generator ends alike, and results agree to rounding; the time is said."""
    compiled, checked = toss(0.7).compile(sg.SF()), Distribution._validate_args
    theta = torch.tensor(0.3)
    lowered = compiled.lower(theta, backend="inductor")
    (note,) = lowered.notes
    assert note.startswith("torch.compile took ")
    assert Distribution._validate_args == checked  # which torch's compiler turns off when it is first used
    for number in range(5):
        one, other = seed(number), seed(number)
        at = theta + 0.1 * number
        found, expected = lowered.value_and_grad(at, generator=one), compiled.value_and_grad(at, generator=other)
        assert close(found, expected)
        assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("two tasks, 1 step", F64), ("MDP, horizon 2", F64), ("implicit update", F64), ("chain", F64), ("chain", FLOAT)],
)
def test_gradients_at_a_trace(name, dtype):
    """At the parameters that drew it and away from them."""
    graph, theta = GRAPHS[name][0](), GRAPHS[name][1]
    compiled, theta = graph.compile(sg.LSF()), theta.to(dtype)
    trace = compiled.sample(theta, generator=seed())
    lowered = compiled.lower(theta, trace=trace, backend="inductor")
    for at in (theta, theta + 0.01):
        point = compiled._inputs.point("test", (at,))
        value, gradient = compiled._estimates.at(point, trace)
        assert close((lowered.surrogate(at, trace), lowered.grad(at, trace)), (value, gradient[0]))


@pytest.mark.slow
def test_calls_that_are_compiled_and_what_is_said_of_it(caplog):
    """From the first call of a signature on; a condition that fails is the interpreter's, in its words."""
    compiled, never = (task_bandit(1).compile(sg.LSF(), lowering=word) for word in ("inductor", "never"))
    with caplog.at_level(logging.INFO, "stochgraph"):
        for number in range(6):
            found = compiled.value_and_grad(BANDIT_THETA, generator=seed(number))
            assert close(found, never.value_and_grad(BANDIT_THETA, generator=seed(number)))
    assert compiled._lowering is not None
    (entry,) = compiled._lowering._entries.values()
    assert (entry.agreed, entry.hit, entry.missed, entry.refusal) == (2, 4, 0, None)
    before, after = caplog.messages
    assert "torch.compile of" in before
    assert "compiled in" in after
    with pytest.raises(sg.SamplingError, match="could not be drawn"):
        compiled.value_and_grad(BANDIT_THETA * float("nan"), generator=seed())


def test_without_a_compiler(monkeypatch, tmp_path):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = toss(0.8).compile(sg.SF())
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.raises(sg.LoweringError, match=r'no C\+\+ compiler\. Install one .* or name it in .* lowering="flat"'),
    ):
        compiled.lower(torch.tensor(0.3), backend="inductor")


def test_an_unknown_backend():
    with pytest.raises(ValueError, match="backend='xla' is not known: choose one of 'flat', 'inductor'"):
        toss(0.9).compile(sg.SF()).lower(torch.tensor(0.3), backend="xla")
