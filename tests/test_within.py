"""Draws within plates that no parent is in, and the warning of draws that the entries of a plate share unsaid."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

import stochgraph as sg
from tests.problems import BANDIT_THETA, F64, TASK_REWARD

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
ESTIMATORS = {
    "SF": sg.SF(),
    "loo": sg.SF("loo"),
    "LSF": sg.LSF(),
    "LSF, compared": sg.LSF(control_variate=True),
    "LOO": sg.LOO(),
    "MAML": sg.MAML(),
    "EMAML": sg.EMAML(),
    "FirstOrder": sg.FirstOrder(),
}
ZERO, ONE = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# Where the draws are


class Coin(sg.Sampler):
    """One toss."""

    def draw(self, batch_shape: torch.Size, *parents: Tensor) -> Tensor:
        return torch.bernoulli(parents[0].sigmoid().expand(batch_shape))

    def log_prob(self, value: Tensor, *parents: Tensor) -> Tensor:
        return Bernoulli(logits=parents[0], validate_args=False).log_prob(value)

    def enumerate(self, *parents: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0], dtype=F64)


LAWS: dict[str, Any] = {
    "class": lambda t: (Normal, t, 1.0),
    "function": lambda t: (lambda m: Normal(m, 1.0), t),
    "vector": lambda t: (lambda m: torch.distributions.MultivariateNormal(m + torch.ones(2), torch.eye(2)), t),
    "sampler": lambda t: (Coin(), t),
}
# The plates of the parent, those that are said, the size of the draw's own plate, and the axes that come of it.
LAYOUTS = {
    "no parent": ("", "a", 2, "ax"),
    "no parent, no plate": ("", "a", None, "a"),
    "two plates": ("", ("b", "a"), 2, "abx"),
    "the parent outside": ("a", "b", 2, "abx"),
    "the parent inside": ("b", "a", 2, "abx"),
    "the parent inside, no plate": ("b", "a", None, "ab"),
    "the parent in between": ("b", ("a", "c"), None, "abc"),
    "the parent there": ("a", "a", 2, "ax"),
    "none": ("b", (), 2, "bx"),
}
SIZES = {"a": 3, "b": 4, "c": 2}


def drawn(law: str, layout: str) -> sg.Graph:
    """The mean of `x * theta` and of what it depends on; every plate has another size."""
    parents, within, n, _ = LAYOUTS[layout]

    @sg.graph
    def objective(theta: Any) -> Any:
        plates = {k: sg.sample(k, Normal, ZERO, ONE, n=size, within=()) for k, size in SIZES.items()}
        mean = sum((plates[k] for k in parents), theta)
        dist, *given = LAWS[law](mean)
        x = sg.sample("x", dist, *given, n=n, within=within)
        return sg.mean(x.sum() * theta + 0.1 * (plates["a"] + plates["b"] + plates["c"]))

    return objective


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("law", LAWS)
def test_draws_and_their_scores_by_a_loop(law: str, layout: str) -> None:
    """Every draw is one of its own, scored with the parents of its entry of the plates."""
    parents, _, _, axes = LAYOUTS[layout]
    compiled = drawn(law, layout).compile(sg.SF())
    trace = compiled.sample(torch.tensor(0.3), generator=seed())
    sizes = {**SIZES, "x": 2}
    x = trace.draws["x"]
    lead = [sizes[axis] for axis in axes]
    assert list(x.shape[: len(axes)]) == lead
    if law != "sampler":
        assert x.unique().numel() == x.numel()
    for index in itertools.product(*map(range, lead)):
        place = dict(zip(axes, index, strict=True))
        mean = 0.3 + sum(trace.draws[k][place[k]] for k in parents)
        dist, *given = LAWS[law](torch.as_tensor(mean))
        one = dist.log_prob(x[index], *given) if isinstance(dist, Coin) else dist(*given).log_prob(x[index])
        torch.testing.assert_close(trace.log_probs["x"][index], one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("law", ["class", "function", "vector"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pathwise_noise_goes_where_the_draws_are(law: str, layout: str) -> None:
    """A replay is the draw again, moved as its parents are; so is one in chunks of a plate."""
    axes = LAYOUTS[layout][-1]
    compiled = drawn(law, layout).compile(sg.PW())
    theta = torch.tensor(0.3, dtype=F64)
    trace = compiled.sample(theta, generator=seed())
    x = trace.draws["x"]
    torch.testing.assert_close(compiled.surrogate(theta, trace), trace.value)
    event = x.numel() / torch.Size([{**SIZES, "x": 2}[a] for a in axes]).numel()
    expected = x.sum() / (x.numel() / event) + event * theta
    gradient = torch.func.grad(compiled.surrogate)(theta, trace)
    torch.testing.assert_close(gradient, expected.to(F64), rtol=1e-6, atol=1e-6)
    for plate in axes:
        found = sg.accumulate(compiled, theta, over=plate, trace=trace, chunk=2)[1]
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-6)


def test_a_plate_brings_those_that_it_lies_in() -> None:
    @sg.graph
    def objective(theta):
        task = sg.sample("task", Normal, ZERO, ONE, n=3)
        x = sg.sample("x", Normal, task, 1.0, n=4)
        noise = sg.sample("noise", Normal, ZERO, ONE, within="x")
        return sg.mean((x + noise) * theta)

    assert objective.networkx.nodes["noise"]["axes"] == ("task", "x")
    draws = objective.compile({}).sample(ONE, generator=seed(), sizes={"task": 2}).draws
    assert draws["noise"].shape == (2, 4)


def test_the_plate_of_a_sample_that_nothing_reads() -> None:
    @sg.graph
    def objective(theta):
        sg.sample("task", Normal, ZERO, ONE, n=3)
        return sg.mean(sg.sample("x", Normal, theta, ONE, n=2, within="task"))

    compiled = objective.compile(sg.SF())
    trace = compiled.sample(ONE, generator=seed())
    assert list(trace.draws) == ["x"]
    assert trace.draws["x"].shape == (3, 2)
    assert compiled.sample(ONE, sizes={"task": 5}).draws["x"].shape == (5, 2)
    expected = torch.func.grad(compiled.surrogate)(ONE, trace)
    torch.testing.assert_close(sg.accumulate(compiled, ONE, over="task", trace=trace, chunk=2)[1], expected, **EXACT)
    pytest.importorskip("matplotlib")
    assert "task, N = 3" in {text.get_text() for text in objective.draw().axes[0].texts}


# The same as a parent that the distribution ignores


def bandits(said: bool, steps: int = 1, linear: bool = False) -> sg.Graph:
    """Adapted pulls of two bandits; the plate of the bandits is said, or comes with a parent that does nothing."""

    def pulls(name: str, logits: Any, task: Any, n: int | None) -> Any:
        if said:
            return sg.sample(name, lambda t: Categorical(logits=t), logits, n=n, within="task")
        return sg.sample(name, lambda t, _: Categorical(logits=t), logits, task, n=n)

    @sg.graph
    def objective(theta: Any) -> Any:
        task = sg.sample("task", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=2)
        for k in range(1, steps + 1):
            reward = sg.apply(lambda a, i: TASK_REWARD[i, a], pulls(f"D{k}", theta, task, 2), task)
            theta = sg.ascend(theta, sg.mean(reward, over=f"D{k}"), 0.7)
        earned = sg.mean(sg.apply(lambda a, i: TASK_REWARD[i, a], pulls("tau", theta, task, None), task))
        return earned if linear else earned**2

    return objective


@pytest.mark.parametrize("name", ESTIMATORS)
def test_exactly_as_with_a_parent_that_does_nothing(name: str) -> None:
    linear = name == "loo"
    inner, outer = (sg.SF(), sg.SF("loo")) if linear else (ESTIMATORS[name], sg.SF())
    graphs = [bandits(said, linear=linear).compile({"D1": inner, "tau": outer}) for said in (True, False)]
    said, parent = (sg.verify(compiled, BANDIT_THETA) for compiled in graphs)
    for one, other in ((said.truth, parent.truth), (said.expectation, parent.expectation)):
        torch.testing.assert_close(one, other, **EXACT)
    torch.testing.assert_close(said.variance, parent.variance, **EXACT)
    assert said.outcomes == parent.outcomes


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "loo"])
def test_the_same_surrogate_at_other_parameters_and_in_chunks(name: str) -> None:
    estimators, away = {"D1": ESTIMATORS[name], "D2": sg.SF(), "tau": sg.SF()}, BANDIT_THETA + 0.1
    graphs = [bandits(said, steps=2, linear=True).compile(estimators) for said in (True, False)]
    trace = graphs[1].sample(BANDIT_THETA, generator=seed(), sizes={"task": 3, "D1": 4})
    found = []
    for compiled in graphs:
        found.append(torch.func.grad(compiled.surrogate)(away, trace))
        found.append(torch.func.vmap(torch.func.grad(compiled.surrogate), (0, None))(away[None], trace)[0])
        found.append(sg.accumulate(compiled, away, over="task", trace=trace, chunk=2)[1])
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], **EXACT)
    assert graphs[0].explain().ledger == graphs[1].explain().ledger


def test_every_element_of_a_vmap_draws_for_itself() -> None:
    compiled = bandits(True).compile(sg.SF())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        traces = torch.vmap(compiled.sample, randomness="different")(BANDIT_THETA.expand(20, 3))
    assert traces.draws["D1"].shape == (20, 2, 2)
    assert len({tuple(one.flatten().tolist()) for one in traces.draws["D1"]}) > 5


# What warns


def cross(theta: Any, x: Any, task: Any) -> Any:
    return sg.mean(torch.sin(x + task) * theta)


def tasks(**said: Any) -> Any:
    return sg.sample("task", Normal, 0.0, 1.0, n=3, **said)


def batch(theta: Any) -> Any:
    task = tasks()
    return cross(theta, sg.sample("x", Normal, torch.zeros(5, 1), 1.0).sum(), task)


def plate(theta: Any) -> Any:
    task = tasks()
    return cross(theta, sg.sample("x", Normal, 0.0, 1.0, n=5), task)


def declared_before(theta: Any) -> Any:
    x = sg.sample("x", Normal, 0.0, 1.0)
    return cross(theta, x * 2.0, tasks())


def behind_operations(theta: Any) -> Any:
    task = tasks()
    x = sg.apply(torch.exp, sg.sample("x", Normal, 0.0, 1.0, n=5)) + theta
    return cross(theta, x, task)


def as_a_parent(theta: Any) -> Any:
    task = tasks()
    x = sg.sample("x", Normal, 0.0, 1.0)
    return sg.mean(sg.sample("y", Normal, x, torch.exp(task)) * theta)


def in_an_update(theta: Any) -> Any:
    task = tasks()
    x = sg.sample("x", Normal, 0.0, 1.0, n=5)
    adapted = sg.descend(theta, sg.mean((theta * x - task) ** 2, over="x"), 0.1)
    return sg.mean((adapted - task) ** 2)


def a_step_size(theta: Any) -> Any:
    task = tasks()
    adapted = sg.descend(theta, (theta - task) ** 2, sg.sample("x", Normal, 0.1, 0.01))
    return sg.mean((adapted - task) ** 2)


def a_sampler(theta: Any) -> Any:
    task = tasks()
    return cross(theta, sg.sample("x", Coin(), 0.0 * torch.ones(()), n=5), task)


def along_time(theta: Any) -> Any:
    task = tasks()
    x = sg.sample("x", Tosses(), n=5)
    return cross(theta, sg.sum(x), task)


class Tosses(sg.Sampler):
    """Three fair tosses."""

    time = True

    def draw(self, batch_shape: torch.Size) -> Tensor:
        return torch.bernoulli(torch.full((*batch_shape, 3), 0.5))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


WARNS: list[Callable[[Any], Any]] = [
    batch,
    plate,
    declared_before,
    behind_operations,
    as_a_parent,
    in_an_update,
    a_step_size,
    a_sampler,
    along_time,
]


@pytest.mark.parametrize("body", WARNS, ids=lambda body: body.__name__)
def test_a_draw_that_all_entries_share_unsaid(body: Callable[[Any], Any]) -> None:
    message = r"sample 'x' .*meets the plate 'task' at .*within='task'.*within=\(\)"
    with pytest.warns(UserWarning, match=message) as found:
        sg.graph(body)
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("body", [b for b in WARNS if b is not declared_before], ids=lambda body: body.__name__)
@pytest.mark.parametrize("within", ["task", ("task",), ()], ids=repr)
def test_what_is_said_is_not_warned_of(body: Any, within: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Any = sg.sample

    def said(name: str, *args: Any, **options: Any) -> Any:
        return plain(name, *args, **options, **({"within": within} if name == "x" else {}))

    monkeypatch.setattr(sg, "sample", said)
    graph = sg.graph(body)
    assert ("task" in graph.networkx.nodes["x"]["axes"]) is bool(within)
    graph.compile(sg.SF()).value_and_grad(torch.tensor(0.3))


def test_the_message_for_several_plates_and_for_one_declared_later() -> None:
    def body(theta):
        task = tasks()
        group = sg.sample("group", Normal, task, 1.0, n=2)
        x = sg.sample("x", Normal, 0.0, 1.0)
        return sg.mean(x * group * theta)

    with pytest.warns(UserWarning, match=r"the plate 'task' and 'group' at 'mul'.*say within=\('task', 'group'\)"):
        sg.graph(body)
    with pytest.warns(UserWarning, match=r"declare it after 'task', with within='task'"):
        sg.graph(declared_before)


def test_two_crossing_plates_warn_once() -> None:
    """Of the draw that is declared later, which can be put within the plate of the other."""

    def body(theta):
        x = sg.sample("x", Normal, 0.0, 1.0, n=5)
        return cross(theta, x, tasks())

    with pytest.warns(UserWarning, match="sample 'task'.*meets the plate 'x'.*say within='x'") as found:
        sg.graph(body)
    assert len(found) == 1


def test_data_that_the_tasks_share() -> None:
    """The draws have a parent, but none in the plate of the tasks, which have no parents: the tasks are warned of."""

    def body(theta, **said):
        task = tasks()
        x = sg.sample("x", Normal, theta, 1.0, n=5, **said)
        adapted = sg.ascend(theta, sg.mean(x * task, over="x"), lr=0.1)
        return sg.mean((adapted - task) ** 2)

    with pytest.warns(UserWarning, match="sample 'task'.*meets the plate 'x'.*give 'x' within='task'") as found:
        sg.graph(lambda theta: body(theta))
    assert len(found) == 1
    sg.graph(lambda theta: body(theta, within="task"))
    sg.graph(lambda theta: body(theta, within=()))


# What has nothing to warn of


def children(theta: Any) -> Any:
    """The plate is drawn from the draw."""
    x = sg.sample("x", Normal, 0.0, 1.0)
    y = sg.sample("y", Normal, x * theta, 1.0, n=3)
    return sg.mean(x * y)


def grandchildren(theta: Any) -> Any:
    task = tasks()
    adapted = sg.ascend(theta, (theta - task) ** 2, 0.1)
    y = sg.sample("y", Normal, adapted, 1.0, n=3)
    return sg.mean(y * task)


def nested(theta: Any) -> Any:
    task = tasks()
    x = sg.sample("x", Normal, 0.0, 1.0, n=5, within="task")
    return cross(theta, x, task)


def one_of_two_says_so(theta: Any) -> Any:
    return cross(theta, sg.sample("x", Normal, 0.0, 1.0, n=5, within=()), tasks())


def the_other_says_so(theta: Any) -> Any:
    x = sg.sample("x", Normal, 0.0, 1.0, n=5)
    return cross(theta, x, tasks(within=()))


def training_and_test(theta: Any) -> Any:
    """What is learned from one data set is measured on another."""
    x = sg.sample("x", Normal, 0.0, 1.0, n=5)
    adapted = sg.descend(theta, sg.mean((theta - x) ** 2), 0.1)
    y = sg.sample("y", Normal, 0.0, 1.0, n=4)
    return sg.mean((adapted - y) ** 2)


def a_mean_of_the_plate(theta: Any) -> Any:
    x = sg.sample("x", Normal, 0.0, 1.0, n=5)
    y = sg.sample("y", Normal, theta, 1.0, n=4)
    return sg.mean((y - sg.mean(x)) ** 2)


def with_a_parent(theta: Any) -> Any:
    task = tasks()
    return cross(theta, sg.sample("x", Normal, theta, 1.0), task)


def along_the_same_plate(theta: Any) -> Any:
    x = sg.sample("x", Normal, 0.0, 1.0, n=5)
    return sg.mean((x - sg.mean(x)) ** 2 * theta)


def only_time(theta: Any) -> Any:
    x = sg.sample("x", Normal, 0.0, 1.0)
    return sg.sum(sg.sample("y", Coins(), theta) * x)


class Coins(sg.Sampler):
    """Three tosses."""

    time = True

    def draw(self, batch_shape: torch.Size, *parents: Tensor) -> Tensor:
        return torch.bernoulli(parents[0].sigmoid().unsqueeze(-1).expand(*batch_shape, 3))

    def log_prob(self, value: Tensor, *parents: Tensor) -> Tensor:
        return Bernoulli(logits=parents[0].expand(3), validate_args=False).log_prob(value)


def not_in_the_objective(theta: Any) -> Any:
    task = tasks()
    cross(theta, sg.sample("x", Normal, 0.0, 1.0), task)
    return sg.mean(task * theta)


SILENT: list[Callable[[Any], Any]] = [
    children,
    grandchildren,
    nested,
    one_of_two_says_so,
    the_other_says_so,
    training_and_test,
    a_mean_of_the_plate,
    with_a_parent,
    along_the_same_plate,
    only_time,
    not_in_the_objective,
]


@pytest.mark.parametrize("body", SILENT, ids=lambda body: body.__name__)
def test_no_false_alarm(body: Callable[[Any], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.graph(body).compile(sg.SF()).value_and_grad(torch.tensor(0.3))


# What is refused


@pytest.mark.parametrize(
    ("within", "message"),
    [
        ("tsk", r"sample 'x': within='tsk' is not a plate that is declared before it; there are 'task', 'D'"),
        ("x", "within='x' is not a plate"),
        ("D.time", "within='D.time' is not a plate"),
        (("task", "tsk"), "within='tsk' is not a plate"),
        (3, "within=3 is not a plate"),
        ((3,), "within=3 is not a plate"),
        ([["task"]], r"within=\['task'\] is not a plate"),
    ],
)
def test_plates_that_there_are_not(within: Any, message: str) -> None:
    def body(theta):
        task = tasks()
        data = sg.sample("D", Coins(), theta, n=2)
        x = sg.sample("x", Normal, 0.0, 1.0, n=2, within=within)
        return sg.mean(x * task) * sg.mean(sg.sum(data))

    with pytest.raises(sg.DeclarationError, match=message):
        sg.graph(body)


def test_no_plate_yet() -> None:
    with pytest.raises(sg.DeclarationError, match="there is none yet"):
        sg.graph(lambda theta: sg.sample("x", Normal, theta, 1.0, within="task"))


def test_a_trace_whose_draws_disagree() -> None:
    compiled = bandits(True).compile(sg.SF())
    trace = compiled.sample(BANDIT_THETA, generator=seed())
    other = compiled.sample(BANDIT_THETA, generator=seed(), sizes={"task": 3})
    mixed = trace._replace(draws={**trace.draws, "tau": other.draws["tau"]})
    with pytest.raises(sg.SamplingError, match=r"sample 'tau' .*3 entries .*'task', and 2 of what was drawn before it"):
        compiled.surrogate(BANDIT_THETA, mixed)


def test_pictures_and_tables() -> None:
    graph = bandits(True)
    assert "tau ~ lambda(theta')   axes: (task)" in repr(graph)
    nodes = graph.networkx.nodes
    assert nodes["D1"]["axes"] == ("task", "D1")
    assert nodes["tau"]["axes"] == ("task",)
