"""Surrogates as pure functions of (inputs, trace): replay, importance weights, transforms, traces, seeds, sizes."""

import pytest
import torch
from torch.distributions import Bernoulli, Cauchy, Gumbel, Laplace, Normal
from torch.utils import _pytree as pytree

import stochgraph as sg
from tests import problems
from tests.problems import F64, GRAPHS

ESTIMATORS = {"SF": sg.SF(), "LSF": sg.LSF(), "EMAML": sg.EMAML(), "SGMRL": sg.SGMRLPublished(), "FO": sg.FirstOrder()}


def seed(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(params=GRAPHS)
def problem(request):
    make, theta = GRAPHS[request.param]
    return make(), theta


def test_value_at_the_drawing_parameters(problem):
    graph, theta = problem
    compiled = graph.compile(sg.SF())
    trace = compiled.sample(theta, generator=seed())
    assert float(compiled.surrogate(theta, trace)) == pytest.approx(float(trace.value), abs=1e-12)


def test_one_pass_equals_sampling_and_replaying(problem):
    graph, theta = problem
    compiled = graph.compile(sg.SF())
    value, grad = compiled.value_and_grad(theta, generator=seed())
    trace = compiled.sample(theta, generator=seed())
    assert float(value) == pytest.approx(float(trace.value), abs=1e-12)
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(theta, trace), grad)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_autograd_and_functional_gradients_agree(name):
    compiled = problems.mdp(m=2).compile(ESTIMATORS[name])
    trace = compiled.sample(problems.MDP_THETA, generator=seed())
    theta = problems.MDP_THETA.clone().requires_grad_()
    (grad,) = torch.autograd.grad(compiled.surrogate(theta, trace), theta)
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(problems.MDP_THETA, trace), grad)


def test_second_derivatives_agree():
    compiled = problems.bandit(2).compile(sg.SF())
    trace = compiled.sample(problems.BANDIT_THETA, generator=seed())
    by_function = torch.func.hessian(lambda t: compiled.surrogate(t, trace))(problems.BANDIT_THETA)
    by_autograd = torch.autograd.functional.hessian(lambda t: compiled.surrogate(t, trace), problems.BANDIT_THETA)
    torch.testing.assert_close(by_function, by_autograd)


def test_a_surrogate_is_pure():
    compiled = problems.mdp(m=2).compile(sg.LSF())
    trace = compiled.sample(problems.MDP_THETA, generator=seed())
    before = pytree.tree_map(torch.clone, trace)
    first = compiled.surrogate(problems.MDP_THETA, trace)
    torch.manual_seed(99)
    assert torch.equal(first, compiled.surrogate(problems.MDP_THETA, trace))
    for one, other in zip(pytree.tree_leaves(trace), pytree.tree_leaves(before), strict=True):
        assert torch.equal(one, other)


def test_vmap_over_parameters():
    compiled = problems.bandit(2).compile(sg.SF())
    trace = compiled.sample(problems.BANDIT_THETA, generator=seed())
    shifts = torch.tensor([[0.0], [0.1], [-0.2]], dtype=F64)
    many = problems.BANDIT_THETA + shifts
    mapped = torch.func.vmap(compiled.surrogate, in_dims=(0, None))(many, trace)
    torch.testing.assert_close(mapped, torch.stack([compiled.surrogate(t, trace) for t in many]))


def test_vmap_over_traces():
    compiled = problems.mdp(m=2).compile(sg.LSF())
    traces = [compiled.sample(problems.MDP_THETA, generator=seed(i)) for i in range(3)]
    stacked = pytree.tree_map(lambda *leaves: torch.stack(leaves), *traces)
    mapped = torch.func.vmap(torch.func.grad(compiled.surrogate), in_dims=(None, 0))(problems.MDP_THETA, stacked)
    each = torch.stack([torch.func.grad(compiled.surrogate)(problems.MDP_THETA, trace) for trace in traces])
    torch.testing.assert_close(mapped, each)


def mapped_estimates(compiled, many, number=0):
    generator = seed(number)

    def one(theta):
        trace = compiled.sample(theta, generator=generator)
        return torch.func.grad(compiled.surrogate)(theta, trace), trace

    return torch.vmap(one, randomness="different")(many)


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO()], ids=["SF", "LSF", "LOO"])
@pytest.mark.parametrize("name", ["bandit", "MDP"])
def test_vmap_over_sampling(name, estimator):
    graph, theta = (
        (problems.bandit(2), problems.BANDIT_THETA) if name == "bandit" else (problems.mdp(m=2), problems.MDP_THETA)
    )
    compiled = graph.compile(estimator)
    many = torch.stack([theta + 0.1 * k for k in range(4)])
    grads, traces = mapped_estimates(compiled, many)
    again, _ = mapped_estimates(compiled, many)
    other, _ = mapped_estimates(compiled, many, number=1)
    assert torch.equal(grads, again)
    assert not torch.equal(grads, other)
    for k, theta_k in enumerate(many):
        trace = pytree.tree_map(lambda leaf, k=k: leaf[k], traces)
        torch.testing.assert_close(torch.func.grad(compiled.surrogate)(theta_k, trace), grads[k])


@pytest.mark.parametrize("estimator", [sg.SF(), sg.PW()], ids=["SF", "PW"])
@pytest.mark.parametrize("dist", [Normal, Laplace, Cauchy, Gumbel], ids=lambda dist: dist.__name__)
def test_vmap_over_sampling_gives_every_element_its_own_noise(dist, estimator):
    @sg.graph
    def objective(theta):
        z = sg.sample("z", dist, 0.0, 1.0, n=3)  # no parameter is mapped
        return sg.mean(sg.sample("x", lambda t, z: dist(t + z, 1.0), theta, z, n=2)) ** 2

    compiled = objective.compile({"z": sg.SF(), "x": estimator})
    many = torch.full((4,), 0.3, dtype=F64)
    grads, traces = mapped_estimates(compiled, many)
    for draws in traces.draws.values():
        assert draws.unique().numel() == draws.numel()
    for k in range(4):
        trace = pytree.tree_map(lambda leaf, k=k: leaf[k], traces)
        torch.testing.assert_close(torch.func.grad(compiled.surrogate)(many[k], trace), grads[k])


def test_noise_that_a_transform_cannot_write_in_place_is_not_passed_over():
    class InPlace(sg.Sampler):
        def draw(self, batch_shape, mean):
            noise = torch.zeros(batch_shape, dtype=mean.dtype)
            noise.normal_()
            return mean + noise

        def log_prob(self, x, mean):
            return -0.5 * (x - mean) ** 2

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", InPlace(), theta, n=2)) ** 2

    compiled = objective.compile(sg.SF())
    _, traces = mapped_estimates(compiled, torch.zeros(3, dtype=F64))
    assert traces.draws["x"].isnan().all()
    _, trace = torch.func.grad_and_value(lambda theta: (theta, compiled.sample(theta)), has_aux=True)(
        torch.tensor(0.0, dtype=F64)
    )[1]
    assert trace.draws["x"].isfinite().all()
    assert trace.draws["x"].ne(0).all()


@pytest.mark.parametrize("name", ["additive", "bandit, 2 steps", "MDP, horizon 2, sampled outcome", "fork", "extreme"])
def test_importance_weighting_is_exact(name):
    """Draws from theta, surrogate at theta + d: mean value and mean gradient are those at theta + d."""
    make, theta = GRAPHS[name]
    compiled = make().compile(sg.SF())
    shift = 0.3 * torch.linspace(-1, 1, theta.numel(), dtype=F64).reshape(theta.shape)
    truth = sg.verify(compiled, theta + shift)

    # The estimator "draw at theta, weight to theta + d" as a surrogate of the shift: exact mean over all outcomes.
    moved = sg.verify(compiled, theta, surrogate=lambda t, trace: compiled.surrogate(t + shift, trace))
    torch.testing.assert_close(moved.expectation, truth.truth, rtol=1e-11, atol=1e-13)


def test_importance_weights_in_closed_form():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=50))

    compiled = objective.compile(sg.SF())
    theta, other = torch.tensor(0.3, dtype=F64), torch.tensor(0.8, dtype=F64)
    trace = compiled.sample(theta, generator=seed())
    x = trace.draws["x"]
    weights = (Normal(other, 1.0).log_prob(x) - Normal(theta, 1.0).log_prob(x)).exp()
    assert float(compiled.surrogate(other, trace)) == pytest.approx(float((weights * x).mean()), abs=1e-12)


def test_a_trace_is_a_pytree_that_can_be_saved(tmp_path):
    compiled = problems.mdp(m=2).compile(sg.SF())
    trace = compiled.sample(problems.MDP_THETA, generator=seed())
    torch.save(tuple(pytree.tree_leaves(trace)), tmp_path / "leaves.pt")
    leaves = torch.load(tmp_path / "leaves.pt")
    again = pytree.tree_unflatten(list(leaves), pytree.tree_structure(trace))
    assert torch.equal(compiled.surrogate(problems.MDP_THETA, again), compiled.surrogate(problems.MDP_THETA, trace))
    torch.save(trace, tmp_path / "trace.pt")
    whole = torch.load(tmp_path / "trace.pt", weights_only=False)
    assert torch.equal(whole.draws["D"].reward, trace.draws["D"].reward)


def test_no_gradient_is_attached_to_a_trace():
    theta = problems.MDP_THETA.clone().requires_grad_()
    trace = problems.mdp(m=2).compile(sg.SF()).sample(theta)
    assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(trace))


def test_generators():
    compiled = problems.bandit(2, n=20).compile(sg.SF())
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    generator = seed(1)
    first = compiled.sample(problems.BANDIT_THETA, generator=generator)
    second = compiled.sample(problems.BANDIT_THETA, generator=generator)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's default generator is left alone
    assert not torch.equal(first.draws["D1"], second.draws["D1"])  # the given one moves on
    again = compiled.sample(problems.BANDIT_THETA, generator=seed(1))
    assert torch.equal(first.draws["D1"], again.draws["D1"])
    compiled.sample(problems.BANDIT_THETA)
    assert not torch.equal(torch.random.get_rng_state(), state)


def test_a_generator_is_left_as_it_was_by_an_error():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, -1.0, n=3))

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with pytest.raises(sg.SamplingError):
        objective.compile(sg.SF()).sample(torch.tensor(0.0), generator=seed())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sizes():
    compiled = problems.task_bandit(1).compile(sg.LSF())
    trace = compiled.sample(problems.BANDIT_THETA, sizes={"D1": 7, "task": 3})
    assert trace.draws["D1"].shape == (3, 7)
    assert trace.draws["tau"].shape == (3,)
    grad = torch.func.grad(compiled.surrogate)(problems.BANDIT_THETA, trace)
    _, one_pass = compiled.value_and_grad(problems.BANDIT_THETA, sizes={"D1": 7, "task": 3})
    assert grad.shape == one_pass.shape == (3,)


def test_wrt():
    @sg.graph
    def objective(theta, scale):
        return sg.mean(sg.sample("x", Normal, theta, scale, n=10)) ** 2

    theta, scale = torch.tensor(0.5, dtype=F64), torch.tensor(2.0, dtype=F64)
    trace = objective.compile(sg.SF()).sample(theta, scale, generator=seed())
    expected = torch.func.grad(objective.compile(sg.SF()).surrogate, argnums=(0, 1))(theta, scale, trace)
    for wrt, index in (("theta", 0), ("scale", 1), (("theta", "scale"), (0, 1))):
        _, grads = objective.compile(sg.SF(), wrt=wrt).value_and_grad(theta, scale, generator=seed())
        torch.testing.assert_close(grads, expected if index == (0, 1) else expected[index])


def test_parameters_may_be_any_pytree():
    @sg.graph
    def objective(parameters):
        x = sg.sample("x", Normal, parameters["mean"][0], torch.exp(parameters["log_std"]), n=10)
        return sg.mean(x) ** 2

    parameters = {"mean": [torch.tensor(0.5)], "log_std": torch.tensor(-0.3), "count": torch.tensor(3)}
    _, grads = objective.compile(sg.SF()).value_and_grad(parameters, generator=seed())
    assert grads["mean"][0].shape == ()
    assert grads["count"] is None  # integers have no gradient


def test_learned_step_sizes():
    """Meta-SGD: the step sizes are an input, one per parameter; exact by enumeration for both inputs."""

    @sg.graph
    def objective(theta, rates):
        pulls = sg.sample("D", Bernoulli, logits=theta["a"], n=2)
        theta = sg.ascend(theta, sg.mean(pulls * theta["b"]), rates)
        return theta["a"] ** 2 + torch.exp(theta["b"])

    inputs = [{"a": torch.tensor(0.3, dtype=F64), "b": torch.tensor(-0.2, dtype=F64)} for _ in range(2)]
    assert sg.verify(objective.compile(sg.SF(), wrt=("theta", "rates")), *inputs).relative_bias < 1e-12


def test_step_sizes_per_task():
    @sg.graph
    def objective(theta):
        task = sg.sample("task", Bernoulli, torch.tensor(0.4, dtype=F64), n=2)
        pulls = sg.sample("D", lambda p, _: Bernoulli(logits=p), theta[0], task, n=2)
        adapted = sg.descend(theta, sg.mean(pulls * task, over="D") * theta.sum(), 0.1 + task)
        return sg.mean((adapted**2).sum())

    assert sg.verify(objective.compile(sg.SF()), torch.tensor([0.3, 0.5], dtype=F64)).relative_bias < 1e-12


def test_a_supervised_update_is_plain_maml():
    """No distribution depends on the parameters: the meta-gradient is that of differentiating through the step."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, torch.tensor(1.0, dtype=F64), 1.0, n=5)
        adapted = sg.descend(theta, sg.mean((theta - x) ** 2), 0.1)
        y = sg.sample("y", Normal, torch.tensor(2.0, dtype=F64), 1.0, n=5)
        return sg.mean((adapted - y) ** 2)

    theta = torch.tensor(0.3, dtype=F64)
    trace = objective.compile(sg.SF()).sample(theta, generator=seed())
    x, y = trace.draws["x"], trace.draws["y"]
    adapted = theta - 0.2 * (theta - x.mean())
    for estimator, jacobian in ((sg.SF(), 0.8), (sg.MAML(), 0.8)):
        grad = torch.func.grad(objective.compile(estimator).surrogate)(theta, trace)
        assert float(grad) == pytest.approx(float(2 * (adapted - y.mean()) * jacobian), abs=1e-12)


def test_first_order_without_distribution_paths():
    """Supervised data carry no score, but an estimator given to them still says how the update is differentiated."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, torch.tensor(1.0, dtype=F64), 1.0, n=5)
        return sg.descend(theta, sg.mean((theta - x) ** 2), 0.1) ** 2

    theta = torch.tensor(0.3, dtype=F64)
    trace = objective.compile(sg.SF()).sample(theta, generator=seed())
    adapted = theta - 0.2 * (theta - trace.draws["x"].mean())
    for estimator, jacobian in ((sg.MAML(), 0.8), (sg.FirstOrder(), 1.0), ({"x": sg.FirstOrder()}, 1.0)):
        compiled = objective.compile(estimator)
        grad = torch.func.grad(compiled.surrogate)(theta, trace)
        assert float(grad) == pytest.approx(float(2 * adapted * jacobian), abs=1e-12)
        assert compiled.explain().unbiased == (jacobian == 0.8)


BATCH = torch.tensor([0.4, -1.1, 0.9], dtype=F64)


def squared(theta, batch):
    return sg.apply(lambda t, b: ((t - b) ** 2).mean(), theta, batch)


def captured_batch(descend, theta, batch):
    return descend(theta, squared(theta, BATCH)) ** 2


def batch_as_an_input(descend, theta, batch):
    return descend(theta, squared(theta, batch)) ** 2


def two_steps(descend, theta, batch):
    adapted = descend(theta, squared(theta, batch))
    return descend(adapted, squared(adapted, batch)) ** 2


def data_without_parameters(descend, theta, batch):
    task = sg.sample("task", Normal, torch.tensor(1.0, dtype=F64), 1.0, n=2)
    return sg.mean(descend(theta, squared(theta * task, batch)) ** 2)


def an_outcome_that_is_scored(descend, theta, batch):
    y = sg.sample("y", Normal, descend(theta, squared(theta, batch)), 1.0, n=4)
    return sg.mean(y**2)


def behind_an_update_with_draws(descend, theta, batch):
    x = sg.sample("x", Normal, theta, 1.0, n=3)
    adapted = descend(theta, sg.mean((theta - x) ** 2))
    return descend(adapted, squared(adapted, batch)) ** 2


SUPERVISED = [
    captured_batch,
    batch_as_an_input,
    two_steps,
    data_without_parameters,
    an_outcome_that_is_scored,
    behind_an_update_with_draws,
]


def plain_step(params, objective):
    return sg.descend(params, objective, 0.1)


def declared_first_order(params, objective):
    return params + sg.stop(plain_step(params, objective) - params)


@pytest.mark.parametrize(("influence", "counted"), [("none", sg.MAML()), ("cost", sg.SF())])
@pytest.mark.parametrize("body", SUPERVISED)
def test_first_order_for_the_whole_graph_stops_every_update(body, influence, counted):
    """At given data too: on the same draws, against the graph that declares its directions constant."""
    graph = sg.graph(lambda theta, batch: body(plain_step, theta, batch))
    declared = sg.graph(lambda theta, batch: body(declared_first_order, theta, batch)).compile(counted)
    compiled, theta = graph.compile(sg.FirstOrder(influence)), torch.tensor(0.3, dtype=F64)
    directions = [row for row in compiled.explain().ledger if row.update]
    assert directions
    assert {row.counted for row in directions} == {"dropped"}
    assert not compiled.explain().unbiased
    trace = compiled.sample(theta, BATCH, generator=seed())
    found, expected = (torch.func.grad(c.surrogate)(theta, BATCH, trace) for c in (compiled, declared))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(compiled.value_and_grad(theta, BATCH, generator=seed())[1], found)
    if not graph.samples:
        adapted = theta - 0.2 * (theta - BATCH.mean())
        adapted = adapted - 0.2 * (adapted - BATCH.mean()) if body is two_steps else adapted
        assert float(found) == pytest.approx(float(2 * adapted), abs=1e-12)


def test_first_order_for_a_sample_stops_the_updates_that_it_feeds():
    """Which update is meant is said by the data; one at given data is then differentiated whole."""
    graph = sg.graph(lambda theta, batch: behind_an_update_with_draws(plain_step, theta, batch))
    compiled = graph.compile({"x": sg.FirstOrder()})
    counted = {row.update: row.counted for row in compiled.explain().ledger if row.update}
    assert counted == {"theta'": "dropped", "theta''": "once"}
    alone = sg.graph(lambda theta, batch: batch_as_an_input(plain_step, theta, batch)).compile({})
    assert alone.explain().unbiased


def test_samples_that_depend_on_data_alone_need_no_estimator():
    """They carry no gradient, but a surrogate at other data is weighted for them."""

    @sg.graph
    def objective(theta, data):
        i = sg.sample("i", Bernoulli, probs=data[0], n=4)
        z = sg.sample("z", Normal, theta * i, 1.0)
        return sg.mean(z**2)

    theta, data = torch.tensor(0.5, dtype=F64), torch.tensor([0.25], dtype=F64)
    for estimators in (sg.PW(), {"z": sg.PW()}, {"z": sg.PW(), "i": sg.SF()}):
        compiled = objective.compile(estimators)
        trace = compiled.sample(theta, data, generator=seed())
        i, z = trace.draws["i"], trace.draws["z"]
        grad = torch.func.grad(compiled.surrogate)(theta, data, trace)
        assert float(grad) == pytest.approx(float((2 * z * i).mean()), abs=1e-12)
        ratio = i * 0.5 / 0.25 + (1 - i) * 0.5 / 0.75
        moved = compiled.surrogate(theta, torch.tensor([0.5], dtype=F64), trace)
        assert float(moved) == pytest.approx(float((ratio * z**2).mean()), abs=1e-12)


def test_dtype_is_that_of_the_inputs():
    for dtype in (torch.float32, torch.float64):
        value, grad = problems.additive().compile(sg.SF()).value_and_grad(torch.tensor([0.4, 0.7], dtype=dtype))
        assert value.dtype == grad.dtype == dtype


def test_long_chains_need_no_deep_recursion():
    @sg.graph
    def objective(theta):
        x = sg.sample("x0", Bernoulli, logits=theta)
        total = x * 1.0
        for t in range(1, 600):
            x = sg.sample(f"x{t}", Bernoulli, logits=theta * x)
            total = total + x
        return total

    value, grad = objective.compile(sg.SF()).value_and_grad(torch.tensor(0.1))
    assert torch.isfinite(grad)
    assert 0 <= float(value) <= 600


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_follows_the_device_of_the_inputs():
    compiled = problems.additive().compile(sg.SF())
    theta = torch.tensor([0.4, 0.7], device="cuda")
    trace = compiled.sample(theta, generator=seed())
    assert trace.draws["x"].is_cuda
    assert compiled.value_and_grad(theta, generator=seed())[1].is_cuda
    assert torch.equal(trace.draws["x"], compiled.sample(theta, generator=seed()).draws["x"])
