"""Inner steps of declared optimisers: what Adam and momentum written by hand give, counted as plain steps are."""

import itertools

import pytest
import torch
from torch.distributions import Categorical

import stochgraph as sg
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, TASK_REWARD

EXACT = 1e-12
RATE, DECAY, BETAS, EPS = 0.5, 0.8, (0.7, 0.9), 0.05
OPTIMIZERS = {
    "momentum": (lambda theta, loss, state: sg.momentum(theta, loss, RATE, state, DECAY)),
    "adam": (lambda theta, loss, state: sg.adam(theta, loss, RATE, state, BETAS, EPS)),
}
TORCH = {
    "momentum": lambda params: torch.optim.SGD(params, RATE, momentum=DECAY),
    "adam": lambda params: torch.optim.Adam(params, RATE, betas=BETAS, eps=EPS),
}


def bandit(optimizer, steps=2, n=2):
    """Inner steps of an optimiser on a softmax bandit, and what the adapted policy earns."""

    @sg.graph
    def objective(theta):
        state = None
        for k in range(1, steps + 1):
            pulls = sg.sample(f"D{k}", Categorical, logits=theta, n=n)
            theta, state = optimizer(theta, -sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), state)
        return sg.apply(lambda t: t.softmax(-1) @ BANDIT_REWARD, theta, name="pay")

    return objective


def tasks(optimizer):
    """The same with an adapted policy, and a state of its own, for each of two tasks."""

    @sg.graph
    def objective(theta):
        task, state = sg.sample("task", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=2), None
        for k in "12":
            pulls = sg.sample(f"D{k}", lambda logits, _: Categorical(logits=logits), theta, task, n=1)
            pay = sg.apply(lambda a, i: TASK_REWARD[i, a], pulls, task)
            theta, state = optimizer(theta, -sg.mean(pay, over=f"D{k}"), state)
        return sg.mean(sg.apply(lambda t, i: t.softmax(-1) @ TASK_REWARD[i], theta, task))

    return objective


def by_hand(name, theta, draws):
    """The pay after two steps on given pulls, and the log-probability of the pulls, in plain torch."""
    log_prob, mean, square = theta.new_zeros(()), torch.zeros_like(theta), torch.zeros_like(theta)
    for k, pulls in enumerate(draws, start=1):
        scores = torch.eye(3, dtype=F64)[pulls] - theta.softmax(-1)
        log_prob = log_prob + theta.log_softmax(-1)[pulls].sum()
        gradient = -(scores * BANDIT_REWARD[pulls, None]).mean(0)
        if name == "momentum":
            mean = DECAY * mean + gradient
            theta = theta - RATE * mean
        else:
            mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
            square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
            root = (square / (1 - BETAS[1] ** k)).sqrt()
            theta = theta - RATE * mean / (1 - BETAS[0] ** k) / (root + EPS)
    return theta.softmax(-1) @ BANDIT_REWARD, log_prob


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_of_what_is_written_by_hand(name):
    """The sum over all outcomes of the pulls, in plain torch."""

    def expected(theta):
        found = [by_hand(name, theta, torch.tensor(d).reshape(2, 2)) for d in itertools.product(range(3), repeat=4)]
        return sum(log_prob.exp() * pay for pay, log_prob in found)

    truth = torch.func.grad(expected)(BANDIT_THETA)
    found = sg.verify(bandit(OPTIMIZERS[name]).compile(sg.SF()), BANDIT_THETA)
    assert torch.allclose(found.truth, truth, rtol=0, atol=1e-13)
    assert torch.allclose(found.expectation, truth, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_are_those_of_torch(name):
    compiled = bandit(OPTIMIZERS[name], steps=5, n=3).compile(sg.SF())
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(0))
    theta = BANDIT_THETA.clone().requires_grad_()
    optimizer = TORCH[name]([theta])
    for k in range(1, 6):
        optimizer.zero_grad()
        pulls = trace.draws[f"D{k}"]
        (-(theta.log_softmax(-1)[pulls] * BANDIT_REWARD[pulls]).mean()).backward()
        optimizer.step()
    assert float(theta.detach().softmax(-1) @ BANDIT_REWARD) == pytest.approx(float(trace.value), abs=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("make", "estimator"),
    [(bandit, sg.SF()), (bandit, sg.LOO()), (bandit, sg.Enumerate()), (tasks, sg.SF()), (tasks, sg.Enumerate())],
)
def test_unbiased(make, estimator, name):
    compiled = make(OPTIMIZERS[name]).compile(estimator)
    assert compiled.explain().unbiased
    assert sg.verify(compiled, BANDIT_THETA).relative_bias < EXACT


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_second_derivatives(name):
    compiled = bandit(OPTIMIZERS[name], n=1).compile(sg.SF())
    assert sg.verify(compiled, BANDIT_THETA, order=2).relative_bias < EXACT


@pytest.mark.parametrize(
    ("estimator", "word"), [(sg.LSF(), "linearized"), (sg.MAML(), "dropped"), (sg.FirstOrder(), "dropped")]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_biased_says_so(name, estimator, word):
    compiled = bandit(OPTIMIZERS[name]).compile(estimator)
    assert {row.counted for row in compiled.explain().ledger if row.sample} == {word}
    assert sg.verify(compiled, BANDIT_THETA).relative_bias > 1e-3


def test_adam_bends_more_than_a_plain_step():
    """The linearised estimator is further off, and the more so the smaller eps is."""
    plain = bandit(lambda theta, loss, state: (sg.descend(theta, loss, RATE), None))
    found = [plain, *(bandit(lambda t, loss, s, eps=eps: sg.adam(t, loss, RATE, s, eps=eps)) for eps in (0.3, 0.01))]
    biases = [sg.verify(graph.compile(sg.LSF()), BANDIT_THETA).relative_bias for graph in found]
    assert biases == sorted(biases)


def test_first_order_holds_every_gradient_constant():
    """With constant gradients every step moves with its parameters, so the derivative is that of the pay alone."""
    compiled = bandit(OPTIMIZERS["adam"]).compile(sg.FirstOrder())
    values = {row.update: row.counted for row in compiled.explain().ledger if row.kind == "value"}
    assert values == {"": "once", "gradient(theta)": "dropped", "gradient(theta')": "dropped"}
    trace = compiled.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(0))
    adapted = trace.nodes["theta''"]
    expected = torch.func.grad(lambda t: t.softmax(-1) @ BANDIT_REWARD)(adapted)
    assert torch.allclose(torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace), expected, atol=1e-14)


def test_without_decay_momentum_is_a_plain_step():
    @sg.graph
    def plain(theta):
        pulls = sg.sample("D1", Categorical, logits=theta, n=2)
        moved = sg.descend(theta, -sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], pulls)), RATE)
        return sg.apply(lambda t: t.softmax(-1) @ BANDIT_REWARD, moved)

    first, second = (g.compile(sg.LOO()) for g in (plain, bandit(OPTIMIZERS["momentum"], steps=1)))
    trace = first.sample(BANDIT_THETA, generator=torch.Generator().manual_seed(2))
    one, other = (torch.func.grad(c.surrogate)(BANDIT_THETA, trace) for c in (first, second))
    assert torch.allclose(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_stays_and_is_differentiated(name):
    """The square root of Adam's second moment has no derivative at 0: what is made of it is finite all the same."""

    @sg.graph
    def objective(theta):
        moved, _ = OPTIMIZERS[name](theta, (theta[0] - 1.0) ** 2 + 0.0 * theta[1], None)
        return moved[0] + 3.0 * moved[1]

    theta = torch.tensor([0.4, 0.7], dtype=F64)
    value, gradient = objective.compile({}).value_and_grad(theta)
    assert bool(value.isfinite() and gradient.isfinite().all())
    assert float(gradient[1]) == pytest.approx(3.0)


def test_parameters_and_step_sizes_in_a_tree():
    """A learned step size for each leaf; the derivative of the result in the step size is the step."""
    start = {"w": torch.tensor([0.3, -0.4], dtype=F64), "b": torch.tensor(0.2, dtype=F64)}
    rates = {"w": torch.tensor([0.1, 0.2], dtype=F64), "b": torch.tensor(0.3, dtype=F64)}

    @sg.graph
    def objective(rates, start):
        loss = sg.apply(lambda p: (p["w"] ** 3).sum() * p["b"], start)
        moved, _ = sg.adam(start, loss, rates, eps=EPS, name="moved")
        return sg.apply(lambda p: p["w"].sum() + p["b"], moved)

    _, gradient = objective.compile({}).value_and_grad(rates, start)
    slopes = {"w": 3 * start["w"] ** 2 * start["b"], "b": (start["w"] ** 3).sum()}
    for leaf, slope in slopes.items():
        assert torch.allclose(gradient[leaf], -slope / (slope.abs() + EPS), rtol=0, atol=1e-13)


def test_refusals():
    def declared(word):
        @sg.graph
        def objective(theta, other):
            return word(theta, other**2, 0.1)[0]

    for word in (sg.momentum, sg.adam):
        with pytest.raises(sg.DeclarationError, match=rf"sg.{word.__name__} of 'theta'.*does not depend on 'theta'"):
            declared(word)
    with pytest.raises(sg.DeclarationError, match="two nodes of the name 'theta'"):

        @sg.graph
        def objective(theta):
            return sg.adam(theta, theta**2, 0.1, name="theta")[0]


def test_chunks_of_tasks():
    compiled = tasks(OPTIMIZERS["adam"]).compile(sg.SF())
    trace = compiled.sample(BANDIT_THETA, sizes={"task": 6}, generator=torch.Generator().manual_seed(0))
    whole = torch.func.grad(compiled.surrogate)(BANDIT_THETA, trace)
    _, found = sg.accumulate(compiled, BANDIT_THETA, over="task", trace=trace, chunk=2)
    assert torch.allclose(found, whole, atol=1e-14)


def test_lowered_to_the_same_bits():
    compiled = bandit(OPTIMIZERS["adam"]).compile(sg.LOO())
    lowered = compiled.lower(BANDIT_THETA)
    one, other = (
        c.value_and_grad(BANDIT_THETA, generator=torch.Generator().manual_seed(3)) for c in (compiled, lowered)
    )
    assert torch.equal(one[1], other[1])
