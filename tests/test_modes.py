"""What surrounds a call: torch's inference mode, and other threads."""

import os
import signal
import threading
import warnings

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


def test_chunks_in_inference_mode():
    @sg.graph
    def tasks(theta):
        task = sg.sample("task", Normal, 0.0, 1.0, n=4)
        data = sg.sample("data", Normal, theta + task, 1.0, n=3)
        better = sg.ascend(theta, -sg.mean((data - task) ** 2, over="data"), lr=0.1)
        return sg.mean((better - task) ** 2)

    compiled = tasks.compile(sg.SF())
    trace = compiled.sample(THETA, generator=seeded())
    value, grad = sg.accumulate(compiled, THETA, over="task", chunk=2, trace=trace)
    with torch.inference_mode():
        found = sg.accumulate(compiled, THETA, over="task", chunk=2, trace=trace)
    assert found == (value, grad)
    assert grad.abs() > 1e-3


class Acting(sg.Sampler):
    """Draws as policies often do."""

    @torch.inference_mode()
    def draw(self, batch_shape, mean):
        return mean + torch.randn(batch_shape, dtype=mean.dtype)

    def log_prob(self, value, mean):
        return -((value - mean) ** 2) / 2


def test_samplers_may_draw_in_inference_mode():
    @sg.graph
    def objective(theta):
        return sg.mean(theta * sg.sample("x", Acting(), theta, n=3))

    value, grad = objective.compile(sg.SF()).value_and_grad(THETA, generator=seeded())
    assert torch.isfinite(value)
    assert torch.isfinite(grad)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_while_another_thread_draws():
    compiled = adapted.compile(sg.SF())
    inside, done = threading.Event(), threading.Event()

    class Slow(Acting):
        def draw(self, batch_shape, mean):
            inside.set()
            done.wait(60)
            return super().draw(batch_shape, mean)

    @sg.graph
    def slow(theta):
        return sg.mean(sg.sample("x", Slow(), theta, n=3))

    thread = threading.Thread(target=slow.compile(sg.SF()).sample, args=(THETA,))
    thread.start()
    assert inside.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads, which is the point
        child = os.fork()
    if not child:
        signal.alarm(30)
        compiled.sample(THETA)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == 0
