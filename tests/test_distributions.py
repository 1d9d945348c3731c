"""`torch.distributions` as they are: under any plates a node draws, scores and differentiates as a slow loop does.

The loop calls the distribution for one draw at a time, with torch's own argument checks on. Every distribution is
declared twice, as a class with its parents and through a function that builds it: the library treats the two
differently (batched parameters; one draw mapped by vmap and rebuilt), and must not let it show.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import transforms as tt

import stochgraph as sg
from tests.distribution_cases import BATCHES, CASES, THETA, Case, transformed
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
PLATES = {"a": 3, "b": 2}  # the parents' plates and their sizes
OWN = 2  # the size of the plate of the node itself

# The plates of the first parent, those of the other parents, and the size of the node's own plate.
LAYOUTS = {
    "alone": ("", "", None),
    "plate": ("", "", OWN),
    "nested": ("a", "a", OWN),
    "half": ("", "a", OWN),
    "crossed": ("b", "a", OWN),
    "two and one": ("ab", "a", None),
}


def cost(x: Tensor) -> Tensor:
    """Some function of a draw."""
    return torch.sin(1.0 + x.to(F64)).sum()


def declare(case: Case, layout: tuple[str, str, int | None], as_function: bool = False) -> sg.Graph:
    """`E[cost(x)]`; the parameters of a draw are shifted by what was drawn in its parents' plates."""
    first, others, n = layout
    dist = (lambda *args, **kwargs: case.dist(*args, **kwargs)) if as_function else case.dist
    bound = torch.tensor(0.2, dtype=F64)

    @sg.graph
    def objective(theta: Any) -> Any:
        drawn = {name: sg.sample(name, td.Uniform, -bound, bound, n=size, within=()) for name, size in PLATES.items()}

        def parent(fn: Any, i: int) -> Any:
            return sg.apply(fn, sum((drawn[plate] for plate in (others if i else first)), theta))

        args, kwargs = case.arguments(parent)
        x = sg.sample("x", dist, *args, n=n, **kwargs)
        value = sg.apply(cost, x)
        return sg.mean(value) if axes_of(case, layout) else value

    return objective


def axes_of(case: Case, layout: tuple[str, str, int | None]) -> list[str]:
    """The plates of the draw, outermost first."""
    first, others, n = layout
    there = first + others if case.varying > 1 else first
    return [*(plate for plate in PLATES if plate in there), *([] if n is None else ["x"])]


def loop(case: Case, layout: tuple[str, str, int | None], theta: Tensor, trace: sg.Trace) -> Tensor:
    """The log-probability of every draw, by one distribution for each."""
    first, others, _ = layout
    plates, draws = axes_of(case, layout), trace.draws["x"]
    found = []
    for index in itertools.product(*map(range, draws.shape[: len(plates)])):
        place = dict(zip(plates, index, strict=True))

        def parent(fn: Any, i: int, place: Any = place) -> Any:
            return fn(sum((trace.draws[plate][place[plate]] for plate in (others if i else first)), theta))

        args, kwargs = case.arguments(parent)
        found.append(case.dist(*args, **kwargs).log_prob(draws[index]).sum())
    return torch.stack(found).reshape(draws.shape[: len(plates)])


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def shape_of_one(case: Case) -> torch.Size:
    args, kwargs = case.arguments(lambda fn, i: fn(THETA))
    return case.dist(*args, **kwargs).sample().shape


def check(case: Case, layout: tuple[str, str, int | None], as_function: bool, **sizes: int) -> None:
    """Shapes, scores, the gradient in one pass, and value and gradient replayed elsewhere: all as in the loop."""
    compiled = declare(case, layout, as_function).compile(sg.SF())
    trace = compiled.sample(THETA, generator=seed(), sizes=sizes)
    wanted = {**PLATES, "x": OWN, **sizes}
    assert trace.draws["x"].shape == (*(wanted[plate] for plate in axes_of(case, layout)), *shape_of_one(case))

    costs = torch.sin(1 + trace.draws["x"].to(F64)).reshape(*trace.log_probs["x"].shape, -1).sum(-1)
    theta = THETA.clone().requires_grad_()
    log_prob = loop(case, layout, theta, trace)
    torch.testing.assert_close(trace.log_probs["x"], log_prob.detach(), **EXACT)
    by_hand = torch.autograd.grad((costs * log_prob).mean(), theta)[0]
    torch.testing.assert_close(compiled.value_and_grad(THETA, generator=seed(), sizes=sizes)[1], by_hand, **EXACT)
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(THETA, trace), by_hand, **EXACT)

    theta = (THETA + torch.tensor([0.1, -0.2, 0.05, 0.3], dtype=F64)).requires_grad_()
    weighted = (costs * torch.exp(loop(case, layout, theta, trace) - log_prob.detach())).mean()
    grad, value = torch.func.grad_and_value(compiled.surrogate)(theta.detach(), trace)
    torch.testing.assert_close(value, weighted.detach(), **EXACT)
    torch.testing.assert_close(grad, torch.autograd.grad(weighted, theta)[0], **EXACT)


def each(cases: dict[str, Case], layouts: str, through_a_function: str) -> Any:
    """Every case in the layouts: as it is, and, if it is a class, through a function in some of them."""
    rows = [pytest.param(c, w, False, id=f"{name}-{w}") for name, c in cases.items() for w in layouts.split(", ")]
    for (name, case), where in itertools.product(cases.items(), through_a_function.split(", ")):
        if isinstance(case.dist, type):
            rows.append(pytest.param(case, where, True, id=f"{name}-{where}-through a function"))
    return pytest.mark.parametrize(("case", "where", "as_function"), rows)


@each(CASES, "alone, nested, half, crossed", "nested, crossed")
def test_one_draw_at_a_time(case, where, as_function):
    check(case, LAYOUTS[where], as_function)


@each(BATCHES, "alone, nested, crossed", "crossed")
def test_a_batch_within_one_draw(case, where, as_function):
    """Dimensions that a distribution's own parameters have are part of one draw, and summed in its score."""
    check(case, LAYOUTS[where], as_function)


SOME = {
    name: CASES[name]
    for name in ("Beta", "Categorical", "Independent", "MultivariateNormal", "Normal", "affine map", "mixture")
}


@each(SOME, "plate, two and one", "two and one")
def test_further_plates(case, where, as_function):
    check(case, LAYOUTS[where], as_function)


@pytest.mark.parametrize("sizes", [{"a": 1, "b": 4, "x": 1}, {"a": 1, "b": 1, "x": 3}], ids=str)
@each(SOME, "nested, crossed", "crossed")
def test_plates_of_other_sizes(case, where, as_function, sizes):
    """Sizes are data: plates of one draw, and plates larger than declared."""
    check(case, LAYOUTS[where], as_function, **{plate: sizes[plate] for plate in axes_of(case, LAYOUTS[where])})


def one_hot(m):
    return torch.stack([m <= 0, m > 0]).to(m.dtype)


TINY = 1e-9
# Distributions that are all but certain, as functions of one number of plate "a" and one of plate "b", and their draw.
CERTAIN: dict[str, tuple[Any, list[Any], Any]] = {
    "Bernoulli": (td.Bernoulli, [lambda a, b: (a + b > 0).to(F64)], lambda a, b: a + b > 0),
    "Categorical": (td.Categorical, [lambda a, b: one_hot(a + b)], lambda a, b: a + b > 0),
    "Gamma": (td.Gamma, [lambda a, b: 1e18 * a.exp(), lambda a, b: 1e18 * b.exp()], lambda a, b: (a - b).exp()),
    "MultivariateNormal": (
        td.MultivariateNormal,
        [lambda a, b: torch.stack([a, b]), lambda a, b: TINY**2 * torch.eye(2, dtype=F64) * a.exp()],
        lambda a, b: torch.stack([a, b]),
    ),
    "Normal": (td.Normal, [lambda a, b: a, lambda a, b: TINY * b.exp()], lambda a, b: a),
    "OneHotCategorical": (td.OneHotCategorical, [lambda a, b: one_hot(b)], lambda a, b: one_hot(b)),
    "affine map": (
        lambda m, s: transformed(td.Normal(m, TINY), tt.AffineTransform(s, 2.0)),
        [lambda a, b: a, lambda a, b: b],
        lambda a, b: 2 * a + b,
    ),
    "mixture": (
        lambda w, m: td.MixtureSameFamily(td.Categorical(w), td.Normal(m, TINY)),
        [lambda a, b: one_hot(a), lambda a, b: torch.stack([b, b + 5])],
        lambda a, b: b + 5 * (a > 0),
    ),
}


@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
@pytest.mark.parametrize("name", CERTAIN)
def test_every_draw_is_made_with_its_own_parameters(name, as_function):
    """Scores cannot show it: they are right for any draw. All plates have the same size, so shapes cannot either."""
    dist, parents, draw = CERTAIN[name]

    @sg.graph
    def objective(theta):
        a = sg.sample("a", td.Normal, torch.tensor(0.0, dtype=F64), 1.0, n=4)
        b = sg.sample("b", td.Normal, torch.tensor(0.0, dtype=F64), 1.0, n=4, within=())
        given = [sg.apply(fn, a, b + 0 * a) for fn in parents]
        x = sg.sample("x", (lambda *p: dist(*p)) if as_function else dist, *given, n=4)
        return sg.mean(sg.apply(cost, x)) * theta

    drawn = objective.compile({}).sample(torch.tensor(1.0), generator=seed(2)).draws
    assert all(drawn[plate].min() < 0 < drawn[plate].max() for plate in "ab")
    for i, j, k in itertools.product(range(4), repeat=3):
        expected = draw(drawn["a"][i], drawn["b"][j]).to(F64)
        torch.testing.assert_close(drawn["x"][i, j, k].to(F64), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_draws_of_different_plates_are_different_draws(case):
    """With one seed, as a class and through a function alike; 60 equal draws in a row would be no coincidence."""
    sizes = {plate: 2 if plate == "a" else 60 for plate in axes_of(case, LAYOUTS["nested"])}
    graphs = [declare(case, LAYOUTS["nested"], as_function) for as_function in (False, True)]
    one, other = (graph.compile(sg.SF()).sample(THETA, generator=seed(), sizes=sizes).draws["x"] for graph in graphs)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
    assert not torch.equal(one[0], one[1])
    assert not (one[:, 0] == one[:, 1:].movedim(1, 0)).all()
    assert one[0].unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("case", [*CASES.values(), *BATCHES.values()], ids=[*CASES, *(f"{b}, batch" for b in BATCHES)])
def test_a_plate_is_torchs_own_sample(case):
    args, kwargs = case.arguments(lambda fn, i: fn(THETA))
    dist = case.dist(*args, **kwargs)
    for where, shape in (("alone", ()), ("plate", (5,))):
        sizes = dict.fromkeys(axes_of(case, LAYOUTS[where]), 5)
        trace = declare(case, LAYOUTS[where]).compile(sg.SF()).sample(THETA, generator=seed(7), sizes=sizes)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            assert torch.equal(trace.draws["x"], dist.sample(shape))


REPARAMETERISED = (
    "Cauchy|ContinuousBernoulli|Exponential|Gumbel|HalfCauchy|HalfNormal|Kumaraswamy|Laplace|LogNormal|LogisticNormal|"
    "LowRankMultivariateNormal|MultivariateNormal|MultivariateNormal(precision)|MultivariateNormal(scale_tril)|Normal|"
    "RelaxedBernoulli|RelaxedBernoulli(t, logits)|RelaxedOneHotCategorical|Weibull"
).split("|")


@pytest.mark.parametrize("where", ["nested", "crossed"])
@pytest.mark.parametrize("name", REPARAMETERISED)
def test_pathwise_as_a_class_and_through_a_function(name, where):
    found = []
    for as_function in (False, True):
        compiled = declare(CASES[name], LAYOUTS[where], as_function).compile(sg.PW())
        trace = compiled.sample(THETA, generator=seed())
        torch.testing.assert_close(compiled.surrogate(THETA, trace), trace.value, **EXACT)
        found.append((trace.draws["x"], torch.func.grad(compiled.surrogate)(THETA + 0.1, trace)))
    torch.testing.assert_close(*found, **EXACT)
    assert found[0][1].norm() > 0


@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
@pytest.mark.parametrize("name", SOME)
def test_under_transforms(name, as_function):
    """Many parameters at once, and second derivatives: the same as one by one, and as autograd's."""
    compiled = declare(CASES[name], LAYOUTS["crossed"], as_function).compile(sg.SF())
    trace = compiled.sample(THETA, generator=seed())
    many = THETA + torch.tensor([[0.0], [0.1], [-0.3]], dtype=F64)
    for fn in (compiled.surrogate, torch.func.grad(compiled.surrogate), torch.func.hessian(compiled.surrogate)):
        mapped = torch.func.vmap(fn, in_dims=(0, None))(many, trace)
        torch.testing.assert_close(mapped, torch.stack([fn(theta, trace) for theta in many]), **EXACT)
    second = torch.autograd.functional.hessian(lambda theta: compiled.surrogate(theta, trace), THETA)
    torch.testing.assert_close(torch.func.hessian(compiled.surrogate)(THETA, trace), second, **EXACT)


@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
@pytest.mark.parametrize("case", [*CASES.values(), *BATCHES.values()], ids=[*CASES, *(f"{b}, batch" for b in BATCHES)])
def test_scores_can_be_mapped(case, as_function):
    """Over parameters and over traces, though some of torch's own log-probabilities look at values."""
    compiled = declare(case, LAYOUTS["half"], as_function).compile(sg.SF())
    sizes = dict.fromkeys(axes_of(case, LAYOUTS["half"]), 2)
    traces = [compiled.sample(THETA, generator=seed(k), sizes=sizes) for k in range(2)]
    many = THETA + torch.tensor([[0.0], [0.1]], dtype=F64)
    stacked = torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *traces)
    for fn in (torch.func.grad(compiled.surrogate), torch.func.jacrev(torch.func.grad(compiled.surrogate))):
        for dims, number in (((0, None), (many, traces[0])), ((None, 0), (THETA, stacked)), ((0, 0), (many, stacked))):
            mapped = torch.func.vmap(fn, in_dims=dims)(*number)
            at = [(many[k] if dims[0] == 0 else THETA, traces[k if dims[1] == 0 else 0]) for k in range(2)]
            torch.testing.assert_close(mapped, torch.stack([fn(*one) for one in at]), rtol=1e-10, atol=1e-10)


def test_numbers_as_parents():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", td.Normal, 0.0, 1.0, n=4)
        y = sg.sample("y", lambda m: td.Normal(m, 2.0), 3.0)
        z = sg.sample("z", td.Normal, loc=x, scale=0.5)
        return sg.mean(theta * x * z) + y

    trace = objective.compile({}).sample(torch.tensor(2.0), generator=seed(3))
    assert {name: tuple(draw.shape) for name, draw in trace.draws.items()} == {"x": (4,), "y": (), "z": (4,)}
    assert {draw.dtype for draw in trace.draws.values()} == {torch.get_default_dtype()}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.equal(trace.draws["x"], td.Normal(0.0, 1.0).sample((4,)))
    x, y, z = trace.draws.values()
    assert float(trace.value) == pytest.approx(float((2 * x * z).mean() + y), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
@pytest.mark.parametrize("name", ["Bernoulli", "Gamma", "Independent", "MultivariateNormal", "Poisson", "affine map"])
def test_dtype_is_that_of_the_parents(name, as_function, dtype):
    case = CASES[name]
    dist = (lambda *args: case.dist(*args)) if as_function else case.dist

    @sg.graph
    def objective(theta):
        z = sg.sample("z", td.Normal, theta[0], 1.0, n=3)
        parents = [sg.apply(fn, theta + 0.1 * torch.tanh(z)) for fn in case.args]
        return sg.mean(sg.apply(torch.sum, sg.sample("x", dist, *parents, n=2)))

    compiled = objective.compile(sg.SF())
    trace = compiled.sample(THETA.to(dtype), generator=seed())
    _, grad = compiled.value_and_grad(THETA.to(dtype), generator=seed())
    assert {t.dtype for t in (*trace.draws.values(), *trace.log_probs.values(), trace.value, grad)} == {dtype}


def test_a_parent_may_be_a_pytree():
    def policy(parameters, goal):
        return td.Normal(parameters["mean"] @ goal["at"], parameters["log_std"].exp())

    @sg.graph
    def objective(theta):
        goals = sg.sample("goals", td.Normal, torch.zeros(2, dtype=F64), 1.0, n=3)
        parents = {"mean": theta["mean"], "log_std": theta["log_std"] + 0 * goals[0]}
        action = sg.sample("action", policy, parents, goal={"at": goals, "unused": 1.0}, n=2)
        return sg.mean(torch.sin(action))

    theta = {"mean": torch.tensor([0.3, -0.5], dtype=F64), "log_std": torch.tensor(-0.2, dtype=F64)}
    compiled = objective.compile(sg.SF())
    trace = compiled.sample(theta, generator=seed())
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    goals, actions = trace.draws["goals"], trace.draws["action"]
    assert (goals.shape, actions.shape) == ((3, 2), (3, 2))
    rows = [[policy(leaves, {"at": goals[i]}).log_prob(actions[i, k]) for k in range(2)] for i in range(3)]
    by_hand = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(trace.log_probs["action"], by_hand.detach(), **EXACT)
    grads = torch.autograd.grad((torch.sin(actions) * by_hand).mean(), [leaves["mean"], leaves["log_std"]])
    found = torch.func.grad(compiled.surrogate)(theta, trace)
    torch.testing.assert_close([found["mean"], found["log_std"]], list(grads), **EXACT)


@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
def test_draws_as_parents(as_function):
    """A drawn index chooses the parameters, a drawn count is the number of trials."""
    binomial = (lambda n, p: td.Binomial(n, p)) if as_function else td.Binomial

    @sg.graph
    def objective(theta):
        kind = sg.sample("kind", td.Categorical, logits=theta[:3], n=4)
        count = sg.sample("count", td.Poisson, sg.apply(lambda t, k: 3 * t[k].exp(), theta, kind))
        success = sg.sample("success", binomial, count, torch.sigmoid(theta[3]), n=2)
        return sg.mean(torch.sin(success))

    def score(theta, trace):
        kinds, counts, successes = (trace.draws[name] for name in ("kind", "count", "success"))
        rows = []
        for kind, count, row in zip(kinds, counts, successes, strict=True):
            above = td.Categorical(logits=theta[:3]).log_prob(kind) + td.Poisson(3 * theta[kind].exp()).log_prob(count)
            trials = td.Binomial(count, theta[3].sigmoid(), validate_args=False)
            rows.append(torch.stack([above + trials.log_prob(x) for x in row]))
        return torch.stack(rows)

    compiled = objective.compile(sg.SF())
    trace = compiled.sample(THETA, generator=seed())
    assert trace.draws["success"].shape == (4, 2)
    assert trace.draws["count"].unique().numel() > 2
    theta = THETA.clone().requires_grad_()
    (by_hand,) = torch.autograd.grad((score(theta, trace) * torch.sin(trace.draws["success"])).mean(), theta)
    torch.testing.assert_close(torch.func.grad(compiled.surrogate)(THETA, trace), by_hand, **EXACT)


@pytest.mark.parametrize("kinds", [3, 4])
def test_a_temperature_per_draw_is_refused(kinds):
    """Torch's RelaxedOneHotCategorical would line it up with the categories, silently where there are as many."""

    @sg.graph
    def objective(theta):
        z = sg.sample("z", td.Normal, torch.zeros((), dtype=F64), 1.0, n=kinds)
        x = sg.sample("x", td.RelaxedOneHotCategorical, torch.exp(z), logits=theta[:3])
        return sg.mean(sg.apply(cost, x))

    with pytest.raises(sg.SamplingError, match=r"'x'.* temperature"):
        objective.compile(sg.SF()).sample(THETA)


def test_a_function_may_ignore_the_parent_whose_plates_it_takes():
    @sg.graph
    def objective(theta):
        task = sg.sample("task", td.Normal, 0.0, 1.0, n=3)
        x = sg.sample("x", lambda mean, _: td.Normal(mean, 1.0), theta, task, n=60)
        return sg.mean(x)

    trace = objective.compile(sg.SF()).sample(torch.tensor(0.3, dtype=F64), generator=seed())
    x = trace.draws["x"]
    assert x.shape == trace.log_probs["x"].shape == (3, 60)
    assert x.unique().numel() == 180
    torch.testing.assert_close(trace.log_probs["x"], td.Normal(torch.tensor(0.3, dtype=F64), 1.0).log_prob(x), **EXACT)


def test_constant_supports_of_uniform():
    """Without parents that move, a uniform draw needs no estimator; in a plate its bounds may be drawn."""
    low, high = torch.tensor([-1.0, 2.0], dtype=F64), torch.tensor([1.0, 5.0], dtype=F64)

    @sg.graph
    def objective(theta):
        corner = sg.sample("corner", td.Uniform, low, high, n=3)
        inside = sg.sample("inside", td.Uniform, corner, corner + 1e-3, n=2)
        return sg.mean(theta * inside.sum())

    trace = objective.compile({}).sample(torch.tensor(1.0, dtype=F64), generator=seed())
    corner, inside = trace.draws["corner"], trace.draws["inside"]
    assert (corner.shape, inside.shape) == ((3, 2), (3, 2, 2))
    assert ((low <= corner) & (corner < high)).all()
    above = inside - corner.unsqueeze(1)
    assert ((above >= 0) & (above < 1e-3)).all()
    assert trace.log_probs == {}


@pytest.mark.parametrize("as_function", [False, True], ids=["as it is", "through a function"])
def test_the_default_of_argument_checks_is_left_alone(as_function):
    normal = (lambda m, s: td.Normal(m, s)) if as_function else td.Normal

    @sg.graph
    def objective(theta):
        z = sg.sample("z", td.Normal, 0.0, 1.0, n=3)
        return sg.mean(sg.sample("x", normal, theta * z, theta))

    before = td.Distribution._validate_args
    compiled = objective.compile(sg.SF())
    compiled.surrogate(torch.tensor(1.0), compiled.sample(torch.tensor(1.0)))
    assert td.Distribution._validate_args is before
    with pytest.raises(sg.SamplingError, match=r"sample 'x' \(axes: \(z\)\)"):
        compiled.sample(torch.tensor(-1.0))
    assert td.Distribution._validate_args is before
