"""What surrounds a call: torch's inference mode, and other threads."""

import threading

import pytest
import torch
from torch.distributions import Normal

import stochgraph as sg
from tests.problems import F64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


ESTIMATORS = {"SF": sg.SF(), "LOO": sg.LOO(), "LSF": sg.LSF(), "PW": sg.PW()}


@sg.graph
def adapted(theta):
    data = sg.sample("data", Normal, theta, 1.0, n=3)
    better = sg.ascend(theta, -sg.mean((data - 1.0) ** 2), lr=0.1)
    return sg.mean(sg.sample("last", Normal, better, 1.0, n=4)) ** 2


@sg.graph
def solved(theta):
    data = sg.sample("data", Normal, theta, 1.0, n=3)
    psi = sg.unknown("psi", like=theta)
    near = sg.argmax(psi * sg.mean(data) - (psi - theta) ** 2, over=psi)
    return sg.mean(sg.sample("last", Normal, near, 1.0, n=4)) ** 2


THETA = torch.tensor(0.3, dtype=F64)


@pytest.mark.parametrize("graph", [adapted, solved], ids=["ascend", "argmax"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_inference_mode_changes_nothing(name, graph):
    compiled = graph.compile(ESTIMATORS[name])
    trace = compiled.sample(THETA, generator=seeded())
    value, grad = compiled.value_and_grad(THETA, generator=seeded())
    with torch.inference_mode():
        again = compiled.sample(THETA, generator=seeded())
        found = compiled.value_and_grad(THETA + 0.0, generator=seeded())  # made in inference mode
        replayed = compiled.surrogate(THETA, again)
    assert (again.value, replayed, found[0], found[1]) == (trace.value, trace.value, value, grad)
    assert grad.abs() > 1e-3
    assert not again.value.is_inference()
    assert not again.value.requires_grad


def test_transforms_work_in_inference_mode():
    compiled = adapted.compile(sg.SF())
    trace = compiled.sample(THETA, generator=seeded())
    expected = torch.func.grad(compiled.surrogate)(THETA, trace)
    with torch.inference_mode():
        assert torch.func.grad(compiled.surrogate)(THETA, trace) == expected


def test_gradients_stay_off_where_they_are():
    compiled = adapted.compile(sg.SF())
    theta = THETA.clone().requires_grad_()
    trace = compiled.sample(theta, generator=seeded())
    with torch.inference_mode():
        assert not compiled.surrogate(theta, trace).requires_grad
    assert compiled.surrogate(theta, trace).requires_grad


def test_threads_draw_what_their_generators_say():
    compiled = adapted.compile(sg.SF())
    expected = [compiled.sample(THETA, generator=seeded(i)).draws["data"] for i in range(200)]
    found = {}

    def draw(own):
        for i in own:
            found[i] = compiled.sample(THETA, generator=seeded(i)).draws["data"]

    before = torch.get_rng_state()
    threads = [threading.Thread(target=draw, args=(range(k, 200, 4),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(200))
    assert torch.equal(torch.get_rng_state(), before)
