"""Nodes that the user names: their names everywhere, their values in traces, and traces made by hand."""

import functools
import io
import pickle
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, Exponential, Normal
from torch.utils import _pytree as pytree

import stochgraph as sg
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, TASK_REWARD

THETA = torch.tensor(0.3, dtype=F64)
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def bandits(word: Any = sg.ascend) -> sg.Graph:
    """Two tasks, with a name for each kind of node that takes one."""
    sign = 1.0 if word is sg.ascend else -1.0

    @sg.graph
    def objective(theta: Any) -> Any:
        task = sg.sample("task", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=4)
        pulls = sg.sample("D", lambda t, _: Categorical(logits=t), theta, task, n=3)
        pay = sg.apply(lambda a, i: sign * TASK_REWARD[i, a], pulls, task, name="pay")
        adapted = word(theta, sg.mean(pay, over="D"), 0.7, name="adapted")
        last = sg.sample("tau", Categorical, logits=adapted, n=2)
        outcome = sg.apply(lambda a, i: {"reward": TASK_REWARD[i, a]}, last, task, name="outcome")
        return sg.mean(sg.reduce(lambda r: r.min(0).values, outcome["reward"], over="tau", name="worst"))

    return objective


# Their names


@pytest.mark.parametrize("word", [sg.ascend, sg.descend])
def test_names_in_ledger_formula_picture_and_table(word: Any) -> None:
    graph = bandits(word)
    explained = graph.compile(sg.SF()).explain()
    assert "theta → D → pay → adapted → tau → outcome → worst → objective" in str(explained)
    assert r"\log p(\tau_{ik} \mid \mathrm{adapted})" in explained.latex
    assert any("pay" in row.path and "adapted" in row.path for row in explained.ledger)
    for text in (r"\mathrm{adapted} &= \theta", r"\mathrm{pay}(D_{ij}", r"{\mathrm{worst}}_{k}(", r"\mathrm{outcome}("):
        assert text in explained.latex
    assert {"pay", "adapted", "outcome", "worst"} <= set(graph.networkx.nodes)
    assert f"adapted = {word.__name__}(theta, mean(pay))" in repr(graph)
    pytest.importorskip("matplotlib")
    drawn = {text.get_text() for text in graph.draw().axes[0].texts}
    assert {"pay", f"adapted\n{word.__name__}", "worst over tau"} <= drawn


def test_the_name_of_a_solution() -> None:
    @sg.graph
    def objective(phi):
        psi = sg.unknown("psi", like=phi)
        inner = sg.apply(lambda p, q: -((p - 2 * q) ** 2), psi, phi, name="inner")
        return sg.argmax(inner, over=psi, name="solved") ** 2

    trace = objective.compile({}).sample(THETA)
    assert "solved = argmax(psi, inner)" in repr(objective)
    torch.testing.assert_close(trace.nodes["solved"], 2 * THETA)
    assert list(trace.nodes) == ["solved"]  # a function of the unknown has no value of its own


def test_the_name_in_errors() -> None:
    def body(theta):
        pay = sg.apply(lambda x: x.nothing, sg.sample("x", Normal, theta, 1.0, n=3), name="pay")
        return sg.mean(pay)

    with pytest.raises(Exception, match="nothing") as caught:
        sg.graph(body).compile(sg.SF()).sample(THETA)
    assert "'pay'" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])

    def open_plate(theta):
        return sg.apply(torch.exp, sg.sample("x", Normal, theta, 1.0, n=3), name="pay")

    with pytest.raises(sg.DeclarationError, match=r"the objective 'pay' .* still has the axes \(x\)"):
        sg.graph(open_plate)


def named_twice(word: str) -> Any:
    def body(theta: Any) -> Any:
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        loss = sg.mean((x - theta) ** 2)
        psi = sg.unknown("psi", like=theta)
        words = {
            "apply": lambda: sg.apply(torch.exp, x, name="x"),
            "reduce": lambda: sg.reduce(torch.sum, x, name="x"),
            "ascend": lambda: sg.ascend(theta, loss, 0.1, name="x"),
            "descend": lambda: sg.descend(theta, loss, 0.1, name="x"),
            "argmax": lambda: sg.argmax(-((psi - theta) ** 2), over=psi, name="x"),
        }
        return words[word]()

    return body


@pytest.mark.parametrize("word", ["apply", "reduce", "ascend", "descend", "argmax"])
def test_a_name_that_is_taken(word: str) -> None:
    with pytest.raises(sg.DeclarationError, match=rf"two nodes of the name 'x': give what sg\.{word} makes a name of"):
        sg.graph(named_twice(word))


def test_a_sample_of_a_name_that_is_given_already() -> None:
    def body(theta):
        sg.apply(torch.exp, theta, name="x")
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=3))

    with pytest.raises(sg.DeclarationError, match="two nodes of the name 'x'"):
        sg.graph(body)


@pytest.mark.parametrize("name", [3, "", torch.ones(2), ("a",)], ids=repr)
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(sg.DeclarationError, match=r"sg\.apply: name=.* is not a name of a node: give a string"):
        sg.graph(lambda theta: sg.apply(torch.exp, theta, name=name))


# Functions that take a name themselves


def labelled(x: Any, name: str = "plain") -> Any:
    return x * len(name)


def only_by_name(x: Any, *, name: str) -> Any:
    return x * len(name)


@pytest.mark.parametrize(
    ("fn", "args"),
    [(labelled, ()), (only_by_name, ()), (functools.partial(labelled, name="xyz"), ()), (only_by_name, ("more",))],
    ids=["optional", "by name", "partial", "positions do not fill it"],
)
def test_a_function_that_takes_a_name_itself(fn: Any, args: Any) -> None:
    with pytest.raises(sg.DeclarationError, match=r"takes an argument `name` itself.*in a lambda"):
        sg.graph(lambda theta: sg.apply(fn, theta, *args, name="node"))


@pytest.mark.parametrize(
    ("fn", "args", "factor"),
    [
        (labelled, ("four",), 4),
        (lambda x: only_by_name(x, name="four"), (), 4),
        (labelled, (), 5),
        (lambda x, *name: x * len(name), ("a", "b"), 2),
    ],
    ids=["by position", "in a lambda", "without a name", "any number"],
)
def test_ways_to_hand_it_over(fn: Any, args: Any, factor: int) -> None:
    given = {} if fn is labelled and not args else {"name": "node"}
    graph = sg.graph(lambda theta: sg.apply(fn, theta, *args, **given))
    trace = graph.compile({}).sample(THETA)
    torch.testing.assert_close(trace.value, factor * THETA)
    assert list(trace.nodes) == list(given.values())


def test_a_parent_that_is_named() -> None:
    @sg.graph
    def objective(theta):
        rate = sg.apply(torch.exp, theta, name="rate")
        return sg.mean(sg.sample("x", Exponential, rate, n=3))

    assert r"\log p(x_{i} \mid \mathrm{rate})" in objective.compile(sg.SF()).explain().latex


# Their values


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO(), sg.MAML()], ids=str)
def test_values_of_a_pass(estimator: Any) -> None:
    compiled = bandits().compile({"D": estimator, "tau": sg.SF()})
    theta = BANDIT_THETA.clone().requires_grad_()
    trace = compiled.sample(theta, generator=seed())
    task, pulls, last = (trace.draws[s] for s in ("task", "D", "tau"))
    pay = TASK_REWARD[task[:, None], pulls]
    score = torch.nn.functional.one_hot(pulls, 3) - theta.softmax(-1)
    adapted = theta + 0.7 * (score * pay.unsqueeze(-1)).mean(1)
    reward = TASK_REWARD[task[:, None], last]
    expected = {"pay": pay, "adapted": adapted, "outcome": {"reward": reward}, "worst": reward.min(1).values}
    assert set(trace.nodes) == set(expected)
    for name, value in expected.items():
        pytree.tree_map(lambda one, other: torch.testing.assert_close(one, other, **EXACT), trace.nodes[name], value)
    assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(trace.nodes))
    torch.testing.assert_close(trace.nodes["worst"].mean(), trace.value, **EXACT)


def test_naming_changes_no_draw_and_no_estimate() -> None:
    def body(named: bool) -> Any:
        given = {"name": "pay"} if named else {}

        @sg.graph
        def objective(theta: Any) -> Any:
            pay = sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("D", Categorical, logits=theta, n=3), **given)
            adapted = sg.ascend(theta, sg.mean(pay), 0.7)
            return sg.mean(sg.apply(lambda a: BANDIT_REWARD[a], sg.sample("tau", Categorical, logits=adapted, n=2)))

        return objective.compile({"D": sg.LOO(), "tau": sg.SF("loo")})

    (one, grad), (other, expected) = (body(n).value_and_grad(BANDIT_THETA, generator=seed()) for n in (True, False))
    assert torch.equal(one, other)
    assert torch.equal(grad, expected)


def test_an_input_that_is_named_is_no_alias_with_a_gradient() -> None:
    graph = sg.graph(lambda theta: sg.apply(lambda t: t, theta, name="same") ** 2)
    trace = graph.compile({}).sample(THETA.clone().requires_grad_())
    assert not trace.nodes["same"].requires_grad


def test_chunks_have_their_part_of_the_values() -> None:
    compiled = bandits().compile(sg.SF())
    trace = compiled.sample(BANDIT_THETA, generator=seed())
    parts = [part.nodes for _, part in sg.chunks(compiled, trace, over="task", chunk=3)]
    joined = pytree.tree_map(lambda *leaves: torch.cat(leaves), *parts)
    pytree.tree_map(lambda one, other: torch.testing.assert_close(one, other, **EXACT), joined, trace.nodes)


def test_values_under_vmap() -> None:
    compiled = bandits().compile(sg.SF())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        traces = torch.vmap(compiled.sample, randomness="different")(BANDIT_THETA.expand(5, 3))
    assert traces.nodes["adapted"].shape == (5, 4, 3)
    torch.testing.assert_close(traces.nodes["worst"].mean(-1), traces.value, **EXACT)


# Traces made by hand, and older ones


def pathwise() -> sg.Compiled:
    @sg.graph
    def objective(theta: Any) -> Any:
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.mean(sg.apply(torch.square, x, name="cost"))

    return objective.compile(sg.PW())


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.LOO(), sg.SF("loo")], ids=str)
def test_draws_are_enough(estimator: Any) -> None:
    """Without log-probabilities draws come from where they are replayed; without a value nobody asks for one."""
    graph = sg.graph(lambda theta: sg.mean(sg.sample("x", Normal, theta, 1.0, n=4) ** 2))
    compiled = graph.compile(estimator)
    drawn = compiled.sample(THETA, generator=seed())
    made = [sg.Trace(draws=drawn.draws), sg.Trace(None, drawn.draws, {}, {}), drawn._replace(value=None)]
    expected = torch.func.grad(compiled.surrogate)(THETA, drawn)
    for trace in made:
        assert trace.value is None
        torch.testing.assert_close(torch.func.grad(compiled.surrogate)(THETA, trace), expected, **EXACT)
        torch.testing.assert_close(compiled.surrogate(THETA, trace), drawn.value, **EXACT)
        if estimator == sg.SF():
            found = sg.accumulate(compiled, THETA, over="x", trace=trace, chunk=3)
            torch.testing.assert_close(found[1], expected, **EXACT)
            assert [part.draws["x"].shape for _, part in sg.chunks(compiled, trace, over="x", chunk=3)] == [(3,), (1,)]


def test_noise_is_enough_for_a_pathwise_draw() -> None:
    compiled = pathwise()
    drawn = compiled.sample(THETA, generator=seed())
    trace = sg.Trace(draws=drawn.draws, noise=drawn.noise)
    torch.testing.assert_close(compiled.surrogate(THETA, trace), drawn.value, **EXACT)


def test_traces_of_four_fields() -> None:
    """As older ones were saved, and as they are made by position."""
    compiled = bandits().compile(sg.SF())
    drawn = compiled.sample(BANDIT_THETA, generator=seed())
    four = sg.Trace(*tuple(drawn)[:4])
    loaded = sg.Trace.__new__(sg.Trace, *tuple(drawn)[:4])  # what unpickling calls
    for trace in (four, loaded, pickle.loads(pickle.dumps(four))):
        assert trace.nodes == {}
        assert torch.equal(compiled.surrogate(BANDIT_THETA, trace), compiled.surrogate(BANDIT_THETA, drawn))
        assert [w for w, _ in sg.chunks(compiled, trace, over="task", chunk=2)] == [0.5, 0.5]


def test_saving_and_mapping() -> None:
    trace = bandits().compile(sg.SF()).sample(BANDIT_THETA, generator=seed())
    file = io.BytesIO()
    torch.save(trace, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    pytree.tree_map(lambda one, other: torch.testing.assert_close(one, other, **EXACT), back, trace)
    moved = pytree.tree_map(lambda leaf: leaf.clone(), trace)
    assert moved.nodes.keys() == trace.nodes.keys()


def test_nothing_is_shared_by_traces_made_by_hand() -> None:
    trace = sg.Trace(draws={"x": THETA})
    with pytest.raises(TypeError):
        trace.log_probs["x"] = THETA
    assert sg.Trace().log_probs == {}


def test_more_than_three_updates_are_numbered():
    @sg.graph
    def objective(theta: Any) -> Any:
        for _ in range(6):
            theta = sg.ascend(theta, -(theta**2), 0.1)
        return theta

    updates = [node.name for node in objective.order if node.kind == "update"]
    assert updates == ["theta'", "theta''", "theta'''", "theta[4]", "theta[5]", "theta[6]"]


def test_an_entry_of_the_parameters_is_not_taken_for_an_update():
    @sg.graph
    def objective(theta: Any) -> Any:
        return sg.ascend(theta[4], -(theta[4] ** 2), 0.1)

    assert [node.name for node in objective.order if node.kind == "update"] == ["theta[4]'"]
