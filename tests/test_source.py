"""The surrogate as readable Python: it runs without the library, and is the surrogate."""

import subprocess
import sys
from functools import partial
from inspect import ismethod
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal
from torch.utils import _pytree as pytree

import stochgraph as sg
from stochgraph.surrogate.terms import Term
from tests import problems
from tests.problems import F64, GRAPHS
from tests.source_cases import CASES

README = Path(__file__).parents[1] / "README.md"
ESTIMATORS = {"SF": sg.SF(), "LSF": sg.LSF(), "LOO": sg.LOO(), "PW": sg.PW(), "MAML": sg.MAML()}
TABLE = [(graph, estimator) for graph in GRAPHS for estimator in ESTIMATORS]
# What is not there to be written: refused when it is compiled, and by `source`, with the words that say why.
NOT_COMPILED = {
    **{(graph, "PW"): "no differentiable path" for graph in GRAPHS},
    ("extreme", "LSF"): "which is not a mean",
    ("extreme", "LOO"): "which is not a mean",
    ("nested update", "LOO"): "leave-one-out on a plate of one",
}
NOT_WRITTEN = {("implicit update", name): "is an argmax" for name in ("SF", "LSF", "LOO", "MAML")}
WRITTEN = [key for key in TABLE if key not in NOT_COMPILED and key not in NOT_WRITTEN]

ALONE = """
import sys
sys.modules["stochgraph"] = None  # an import of it fails
import cloudpickle, torch
with open(sys.argv[1], "rb") as file:
    tasks = cloudpickle.load(file)
found = {}
for key, (text, functions, points, traces) in tasks.items():
    module = {}
    exec(text, module)
    assert set(module["FUNCTIONS"]) == set(functions)
    for at, theta in enumerate(points):
        theta = theta.clone().requires_grad_()
        for which, trace in enumerate(traces):
            value = module["surrogate"](theta, trace, **functions)
            (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
            (row,) = torch.autograd.grad(gradient.flatten()[0], theta, allow_unused=True, materialize_grads=True)
            found[key, at, which] = value.detach(), gradient.detach(), row
try:
    import stochgraph
except ImportError:
    found["blocked"] = True
with open(sys.argv[2], "wb") as file:
    cloudpickle.dump(found, file)
"""


def points(theta: Tensor) -> list[Tensor]:
    """Where the trace is drawn, and elsewhere."""
    return [theta, theta + 0.1 * torch.cos(torch.arange(theta.numel(), dtype=F64)).reshape(theta.shape)]


def traces(compiled: sg.Compiled, *inputs: Any) -> list[dict[str, Any]]:
    """A trace as a dict, and one made by hand, without log-probabilities."""
    trace = compiled.sample(*inputs, generator=torch.Generator().manual_seed(3))
    by_hand = {"draws": dict(trace.draws), "noise": dict(trace.noise)}
    return [{**by_hand, "log_probs": dict(trace.log_probs)}, by_hand]


def plain(fn: Any) -> Any:
    """A function that holds no sampler."""
    return partial(fn.__func__, None) if ismethod(fn) else fn


@pytest.fixture(scope="module")
def compiled_table() -> dict[Any, sg.Compiled]:
    return {(graph, name): GRAPHS[graph][0]().compile(ESTIMATORS[name]) for graph, name in WRITTEN}


@pytest.fixture(scope="module")
def alone(compiled_table, tmp_path_factory) -> dict[Any, Any]:
    """Values, gradients and rows of Hessians, computed where the library cannot be imported."""
    tasks = {}
    for key, compiled in compiled_table.items():
        theta, text = GRAPHS[key[0]][1], compiled.source()
        functions = {name: plain(fn) for name, fn in text.functions.items()}
        tasks[key] = str(text), functions, points(theta), traces(compiled, theta)
    folder = tmp_path_factory.mktemp("source")
    cloudpickle.register_pickle_by_value(problems)
    try:
        (folder / "tasks").write_bytes(cloudpickle.dumps(tasks))
    finally:
        cloudpickle.unregister_pickle_by_value(problems)
    command = [sys.executable, "-c", ALONE, str(folder / "tasks"), str(folder / "found")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env={}, check=False)
    assert done.returncode == 0, done.stderr
    return cloudpickle.loads((folder / "found").read_bytes())


def test_the_library_is_out_of_reach(alone) -> None:
    assert alone["blocked"]


def test_almost_all_of_the_table_is_written() -> None:
    assert len(TABLE) == 90
    assert len(WRITTEN) == 65


@pytest.mark.parametrize("key", WRITTEN, ids=lambda key: f"{key[0]}-{key[1]}")
def test_value_gradient_and_curvature_are_those_of_the_surrogate(key, alone, compiled_table) -> None:
    compiled, theta = compiled_table[key], GRAPHS[key[0]][1]
    for at, point in enumerate(points(theta)):
        for which, trace in enumerate(traces(compiled, theta)):
            own = point.clone().requires_grad_()
            value = compiled.surrogate(own, sg.Trace(**trace))
            (gradient,) = torch.autograd.grad(value, own, create_graph=True)
            (row,) = torch.autograd.grad(gradient.flatten()[0], own, allow_unused=True, materialize_grads=True)
            for found, expected in zip(alone[key, at, which], (value, gradient, row), strict=True):
                torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", [*NOT_COMPILED, *NOT_WRITTEN], ids=lambda key: f"{key[0]}-{key[1]}")
def test_exceptions_are_refused_by_name(key) -> None:
    graph = GRAPHS[key[0]][0]()
    words = {**NOT_COMPILED, **NOT_WRITTEN}[key]
    with pytest.raises(sg.CompileError, match=words) as refused:
        graph.compile(ESTIMATORS[key[1]]).source()
    assert any(name in str(refused.value) for name in (*graph.samples, "theta'"))


def loaded(compiled: sg.Compiled) -> Any:
    """The written function, with the functions of the declaration."""
    source, module = compiled.source(), dict[str, Any]()
    exec(source, module)
    return partial(module["surrogate"], **source.functions)


def gradient(fn: Any, inputs: tuple[Any, ...], trace: Any) -> tuple[Tensor, ...]:
    """The value, and the derivatives in the first input."""
    own = pytree.tree_map(lambda leaf: leaf.clone().requires_grad_(), inputs[0])
    value = fn(own, *inputs[1:], trace)
    leaves = pytree.tree_leaves(own)
    return value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", CASES)
def test_every_form_of_text_gives_the_same_numbers(name) -> None:
    graph, (theta, *others), estimators = CASES[name]
    compiled = graph.compile(estimators)
    surrogate = loaded(compiled)
    for trace in traces(compiled, theta, *others):
        for shift in (0.0, 0.1):
            inputs = (pytree.tree_map(lambda leaf: leaf + shift, theta), *others)  # noqa: B023
            expected = gradient(compiled.surrogate, inputs, sg.Trace(**trace))
            for found, number in zip(gradient(surrogate, inputs, trace), expected, strict=True):
                torch.testing.assert_close(found, number, rtol=1e-12, atol=1e-12)


def test_the_text_follows_the_estimator(compiled_table) -> None:
    """A text of one estimator has not the gradient of another."""
    theta = GRAPHS["bandit, 2 steps"][1]
    trace = traces(compiled_table["bandit, 2 steps", "SF"], theta)[0]
    found = {}
    for name in ("SF", "LSF", "MAML"):
        found[name] = gradient(loaded(compiled_table["bandit, 2 steps", name]), (theta,), trace)[1]
    assert not any(torch.allclose(found[one], found[other]) for one, other in (("SF", "LSF"), ("LSF", "MAML")))


def test_texts_have_no_unused_names_and_short_lines(compiled_table, tmp_path) -> None:
    texts = [compiled.source() for compiled in compiled_table.values()]
    texts += [case.graph.compile(case.estimators).source() for case in CASES.values()]
    for i, text in enumerate(texts):
        (tmp_path / f"source_{i}.py").write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select=F,E", "--line-length=100"]
    checked = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_boxes_say_what_they_count(compiled_table) -> None:
    text = compiled_table["bandit, 2 steps", "LSF"].source()
    above = {
        line.split(" = ")[0].strip(): before
        for before, line in zip(text.split("\n"), text.split("\n")[1:], strict=False)
    }
    assert above["box_D1"].strip() == "# D1: counted once, linearised at the mean over D1"
    assert above["box_tau"].strip() == "# tau: counted exactly once"
    assert "not counted: the estimate ignores this path" in compiled_table["bandit, 2 steps", "MAML"].source()


def test_equal_functions_have_one_name() -> None:
    @sg.graph
    def objective(theta):
        for step in ("first", "second"):
            draw = sg.sample(step, Normal, theta, 1.0, n=2)
            theta = sg.descend(theta, sg.mean(sg.apply(lambda x: x**2, draw)), 0.1)

        def twice(x):
            return 2 * x

        return sg.apply(twice, theta)

    source = objective.compile(sg.SF()).source()
    assert list(source.functions) == ["cost_1", "twice"]
    assert source.functions["cost_1"](torch.tensor(3.0)) == 9.0


def test_names_that_are_taken_are_not_taken_again() -> None:
    def draw(x, a):
        return x * a

    @sg.graph
    def objective(trace, lambda_):
        x = sg.sample("torch", Normal, trace, 1.0, n=2)
        y = sg.sample("a", Normal, lambda_, 1.0, n=3)
        return sg.mean(sg.apply(draw, x, 2.0)) + sg.mean(sg.apply(lambda u, v: u * v, x, y))

    inputs = (torch.tensor(0.3, dtype=F64), torch.tensor(0.2, dtype=F64))
    compiled = objective.compile(sg.SF(), wrt=("trace", "lambda_"))
    trace = traces(compiled, *inputs)[0]
    found = loaded(compiled)(*inputs, trace)
    torch.testing.assert_close(found, compiled.surrogate(*inputs, sg.Trace(**trace)), rtol=1e-12, atol=1e-12)


def test_large_constants_are_handed_over() -> None:
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Categorical, logits=theta, n=2)
        return sg.mean(sg.apply(lambda a, table: table[a], x, torch.arange(30.0, dtype=F64)))

    source = objective.compile(sg.SF()).source()
    assert '"constant_1": "a tensor of shape (30,)"' in source
    assert torch.equal(source.functions["constant_1"], torch.arange(30.0, dtype=F64))


class Doubled(Term):
    """A term of an estimator from outside, which derives from a box and is none."""

    def evaluate(self, run, values):
        return 2 * values[0]


class FromOutside(sg.estimators.GradientEstimator):
    """Puts that term in the place of boxed ones."""

    def term(self, site):
        return Doubled(site, [])


class Spelled(Doubled):
    """The same, with words for it."""

    @property
    def spelling(self):
        return "2 * {}"


class FromOutsideInWords(FromOutside):
    """Puts the one with words there."""

    def term(self, site):
        return Spelled(site, [])


def test_a_node_from_outside_may_say_how_it_is_written() -> None:
    theta = torch.tensor(0.3, dtype=F64)
    compiled = squared.compile(FromOutsideInWords())
    trace = traces(compiled, theta)[0]
    assert " = 2 * " in compiled.source()
    found = gradient(loaded(compiled), (theta,), trace)
    expected = gradient(compiled.surrogate, (theta,), sg.Trace(**trace))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@sg.graph
def squared(theta):
    """A draw behind a mean."""
    x = sg.sample("x", Bernoulli, logits=theta, n=2)
    return sg.mean(x * theta) ** 2


@sg.graph
def bound(theta):
    """A mean of exponentials."""
    return sg.logmeanexp(sg.sample("x", Bernoulli, logits=theta, n=2) * theta)


@sg.graph
def gammas(theta):
    """A draw whose noise depends on its parameters."""
    return sg.mean(sg.sample("x", torch.distributions.Gamma, torch.exp(theta), 1.0, n=2))


@sg.graph
def scored(theta):
    """The density of a draw that a transform has made, and that moves."""
    x = sg.sample("x", torch.distributions.LogNormal, theta, 1.0, n=2)
    return sg.mean(sg.log_prob(x))


@sg.graph
def rates(theta):
    """A step size for every leaf."""
    x = sg.sample("x", Normal, theta["a"], 1.0, n=2)
    return sg.descend(theta, sg.mean(x**2), lr={"a": 0.1})["a"]


@pytest.mark.parametrize(
    ("graph", "estimator", "words"),
    [
        (squared, FromOutside(), r"source of 'squared': 'term\(pow, x\)' is of the kind 'term' \(Doubled\)"),
        (squared, sg.SF(baseline=lambda trace: 0.3), r"source of 'squared': .* \(Called\), which is not written"),
        (squared, sg.Enumerate(), r"source of 'squared': .* which is not written"),
        (bound, sg.LOO(), "is the scale of a log-mean-exp of which one draw is left out"),
        (gammas, sg.PW(), "'x' is a pathwise draw from Gamma, whose noise depends on its parameters"),
        (scored, sg.PW(), "'x' is a pathwise draw from LogNormal whose log-probability is asked for"),
        (rates, sg.SF(), "has step sizes that are a pytree, or that vary with a plate"),
    ],
)
def test_what_is_not_written_is_refused_in_words(graph, estimator, words) -> None:
    with pytest.raises(sg.CompileError, match=words) as refused:
        graph.compile(estimator).source()
    assert str(refused.value).endswith("compiled.surrogate computes it all the same")


def test_the_readme_shows_a_source_as_it_is() -> None:
    shown, module = README.read_text(), dict[str, Any]()
    declared = shown[shown.index("rewards = torch.tensor([0.1") : shown.index("print(popular.explain(")]
    exec("import torch\nimport stochgraph as sg\nfrom torch.distributions import Categorical\n" + declared, module)
    source = module["popular"].source()
    assert f"```python\n{source[source.index('def surrogate') :]}```" in shown


def test_noise_that_a_function_hides_is_refused_when_it_runs() -> None:
    """Nothing is known of what a function builds before it does: a gamma draw is noticed by the noise that is left."""

    @sg.graph
    def objective(theta):
        return sg.sample("x", lambda t: torch.distributions.Gamma(torch.exp(t), 1.0), theta)

    theta = torch.tensor(0.3, dtype=F64)
    compiled = objective.compile(sg.PW())
    with pytest.raises(ValueError, match="no function of its noise alone"):
        loaded(compiled)(theta, traces(compiled, theta)[0])
