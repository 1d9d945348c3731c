"""What was tried to make a flat program lie: every call gives what the interpreter gives, or an error in words."""

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Gamma, Normal

import stochgraph as sg
from stochgraph.lower.held import Held
from stochgraph.run.lowered import _MISSES, _PROGRAMS, same_bits
from tests.problems import BANDIT_REWARD, BANDIT_THETA, F64, task_bandit

THETA = torch.tensor(0.4, dtype=F64)
SCALE = 2.0
TABLE = torch.tensor([1.0, -2.0], dtype=F64)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def toss(cost: Any, n: int = 4) -> sg.Graph:
    """A Bernoulli draw and what a function makes of it."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta, n=n)
        return sg.mean(sg.apply(cost, x, theta))

    return objective


def same(found: Any, expected: Any) -> bool:
    return same_bits((found[0], [found[1]]), (expected[0], [expected[1]]))


class Both:
    """A graph lowered at its first call, and the same interpreted."""

    def __init__(self, graph: sg.Graph, estimator: Any = None, warm: Any = (THETA,), lowering: str = "flat") -> None:
        estimator = estimator or sg.SF()
        self.flat, self.interpreted = graph.compile(estimator, lowering=lowering), graph.compile(estimator)
        for number in range(4 if warm else 0):
            self.agree(*warm, number=number)

    def agree(self, *inputs: Any, number: int = 0, **kwargs: Any) -> Any:
        one, other = seed(number), seed(number)
        found = self.flat.value_and_grad(*inputs, generator=one, **kwargs)
        assert same(found, self.interpreted.value_and_grad(*inputs, generator=other, **kwargs))
        assert torch.equal(one.get_state(), other.get_state())
        return found

    @property
    def entries(self) -> list[Any]:
        assert self.flat._lowering is not None
        return list(self.flat._lowering._entries.values())

    @property
    def hits(self) -> int:
        return sum(entry.hit for entry in self.entries)


def test_a_number_behind_a_name_changes(monkeypatch):
    both = Both(toss(lambda x, t: SCALE * x * t))
    before = both.agree(THETA)
    monkeypatch.setattr(f"{__name__}.SCALE", 3.0)
    after = both.agree(THETA)
    assert float(after[0]) == 1.5 * float(before[0])


@pytest.mark.parametrize("other", [2, True, -0.0, float("nan")])
def test_a_number_of_another_kind(monkeypatch, other):
    """1 is not True, nor 0.0 -0.0: each is another program."""
    monkeypatch.setattr(f"{__name__}.SCALE", {2: 2.0, True: 1.0}.get(other, 0.0))
    both = Both(toss(lambda x, t: torch.atan2(x * 0.0, x * 0.0 + SCALE) + SCALE * x * t))
    monkeypatch.setattr(f"{__name__}.SCALE", other)
    if other == other:
        both.agree(THETA)
    else:
        assert bool(both.flat.value_and_grad(THETA)[0].isnan())


def test_a_tensor_behind_a_name_changes(monkeypatch):
    """The name is another tensor's, or the tensor holds other numbers."""
    both = Both(toss(lambda x, t: TABLE[x.long()] * t))
    hits = both.hits
    first = both.agree(THETA)
    assert both.hits == hits + 1
    table = TABLE.clone()
    monkeypatch.setattr(f"{__name__}.TABLE", table)
    for _ in range(4):
        both.agree(THETA)
    hits = both.hits
    table += 5.0
    assert not same(both.agree(THETA), first)
    assert both.hits == hits + 1  # what a tensor holds is read at every call


def test_containers_and_members_change():
    class Price:
        def __init__(self) -> None:
            self.scale = 1.0

        def __call__(self, x: Any, t: Any) -> Any:
            return self.scale * x * t

    price = Price()
    options: dict[str, Any] = {"slope": 2.0, "steps": [1.0, 2.0]}
    both, other = Both(toss(lambda x, t: x * t * options["slope"] * sum(options["steps"]))), Both(toss(price))
    values = [both.agree(THETA)[0]]
    options["slope"] = 7.0
    values.append(both.agree(THETA)[0])
    options["steps"].append(3.0)
    values.append(both.agree(THETA)[0])
    assert len({float(value) for value in values}) == 3
    first = other.agree(THETA)
    price.scale = 3.0
    assert not same(other.agree(THETA), first)


def test_what_is_held_of_a_function():
    """Cells, defaults and code; a declaration keeps the first two of a function as they were, others may not."""
    offset = 1.0

    def cost(x, power=2.0, *, scale=3.0):
        return offset * x**power * scale

    held = Held([("the cost", cost)])
    assert held.changed() is None
    offset = 2.0
    assert held.changed() == "offset"
    held = Held([("the cost", cost)])
    cost.__defaults__ = (4.0,)
    assert held.changed() == "__defaults__"
    held = Held([("the cost", cost)])
    cost.__kwdefaults__ = {"scale": 1.0}
    assert held.changed() == "__kwdefaults__"
    held = Held([("the cost", cost)])
    cost.__code__ = (lambda y: lambda x, power, *, scale: y)(1).__code__
    assert held.changed() == "__code__"


def test_a_number_is_compared_with_its_kind():
    for before, after in ((1, True), (1, 1.0), (0.0, -0.0), ("1", 1), (1.0, torch.tensor(1.0))):
        numbers: list[Any] = [before]
        held = Held([("numbers", numbers)])
        numbers[0] = after
        assert held.changed() == 0


def counts_calls() -> Any:
    calls: list[int] = []

    def cost(x, t):
        calls.append(1)
        return len(calls) * x * t

    return cost


def counts_with_a_name() -> Any:
    count = 0

    def cost(x, t):
        nonlocal count
        count += 1
        return count * x * t

    return cost


def draws_from(source: Any) -> Any:
    return lambda x, t: source() * x * t


SINE = "in"
NUMPY = np.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (counts_calls(), "changes while the graph is computed"),
        (counts_with_a_name(), "changes while the graph is computed"),
        (lambda x, t: random.random() * x * t, "the module random"),
        (lambda x, t: np.random.rand() * x * t, "the module numpy"),
        (draws_from(random.random), "built-in method random"),
        (draws_from(np.random.default_rng(0).random), "'source', which <lambda> names"),
        (lambda x, t: NUMPY[1] * x * t, "a numpy.ndarray"),
        (lambda x, t: torch.get_num_threads() * x * t, "'get_num_threads'"),
        (lambda x, t: globals()["SCALE"] * x * t, "a function of Python with effects"),
        (lambda x, t: print(end="") or x * t, "a function of Python with effects"),
        (lambda x, t: getattr(torch, "s" + SINE)(x) * t, "a function of Python with effects"),
        (lambda x, t: getattr(torch, "manual_seed", None) is None or x * t, "'manual_seed'"),
    ],
)
def test_what_may_change_unseen_is_refused_in_words(cost, message):
    """By "flat" and `lower` with an error; by "auto", which interprets."""
    graph = toss(cost)
    with pytest.raises(sg.LoweringError, match=message):
        graph.compile(sg.SF()).lower(THETA)
    strict = graph.compile(sg.SF(), lowering="flat")
    with pytest.raises(sg.LoweringError, match=message):
        strict.value_and_grad(THETA)
    auto = graph.compile(sg.SF(), lowering="auto")
    for _ in range(23):
        auto.value_and_grad(THETA)
    assert auto._lowering is not None
    (entry,) = auto._lowering._entries.values()
    assert message in str(entry.refusal)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda rewards: torch.tensor(rewards.tolist(), dtype=F64).mean(), "tolist"),
        (lambda rewards: torch.tensor(float(rewards.detach().numpy()[0])), "numpy"),
        (lambda rewards: rewards[rewards > 0.2].sum(), "the size of what aten.index.Tensor returns"),
        (lambda rewards: rewards.nonzero().sum() * rewards.mean(), "the size of what aten.nonzero"),
    ],
)
def test_values_that_leave_torch_are_refused(cost, message):
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Categorical, logits=theta, n=3)
        return sg.reduce(cost, sg.apply(lambda a: BANDIT_REWARD[a], x)) * theta.sum()

    with pytest.raises(sg.LoweringError, match=message):
        objective.compile(sg.SF()).lower(BANDIT_THETA)


def test_a_branch_on_a_value_is_taken_anew():
    """Python looks at the draws: where it sees something else, the call is interpreted."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Categorical, logits=theta, n=6)
        return sg.reduce(lambda r: r.sum() if r.max() > 0.5 else r.prod(), sg.apply(lambda a: BANDIT_REWARD[a], x))

    both = Both(objective, warm=(BANDIT_THETA,))
    for number in range(40):
        both.agree(BANDIT_THETA, number=number)
    assert sum(entry.missed for entry in both.entries) > 0
    assert both.hits > 0


def test_a_program_that_misses_most_calls_is_given_up():

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.reduce(lambda r: r.sum() * round(float(r[0].detach()), 6), x * theta)

    both = Both(objective)
    for number in range(_MISSES - 3):
        both.agree(THETA, number=number + 10)
    with pytest.raises(sg.LoweringError, match="another value in most calls"):
        both.flat.value_and_grad(THETA)
    (entry,) = both.entries
    assert (entry.hit, entry.missed, entry.program) == (0, _MISSES + 1, None)


def test_other_shapes_dtypes_strides_and_numbers_are_other_programs():
    @sg.graph
    def objective(theta, scale):
        x = sg.sample("x", Bernoulli, logits=theta.sum(), n=3)
        return sg.mean(sg.apply(lambda x, t, s: (x * t.reshape(-1).cumsum(0) * s).sum(), x, theta, scale))

    square = torch.arange(4, dtype=F64).reshape(2, 2) / 4
    given = [
        (square, 2.0),
        (square.T, 2.0),
        (square.float(), 2.0),
        (torch.ones(3, dtype=F64), 2.0),
        (square, torch.tensor(2)),
        (square, 3.0),
    ]
    both = Both(objective, warm=None)
    for inputs in given * 5:
        both.agree(*inputs)
    assert len(both.entries) == 5  # a number is a tensor
    assert all(entry.hit > 0 for entry in both.entries)


def test_other_plate_sizes_are_other_programs_and_few_are_kept():
    both = Both(task_bandit(1), sg.LSF(), warm=(BANDIT_THETA,))
    assert len(both.entries) == 1
    for size in range(2, 2 + 2 * _PROGRAMS):
        both.agree(BANDIT_THETA, sizes={"task": size})
    assert len(both.entries) == _PROGRAMS


def test_other_defaults_are_other_programs():
    both = Both(toss(lambda x, t: x.float() * torch.full((), 0.1) * t.float()), warm=None)
    for dtype in (torch.float32, torch.float64) * 5:
        torch.set_default_dtype(dtype)
        both.agree(THETA)
    assert len(both.entries) == 2


def test_inference_mode_and_no_grad_change_nothing():
    both = Both(task_bandit(1), sg.LSF(), warm=(BANDIT_THETA,))
    expected, hits = both.agree(BANDIT_THETA), both.hits
    with torch.inference_mode():
        assert same(both.flat.value_and_grad(BANDIT_THETA.clone(), generator=seed()), expected)
    with torch.no_grad():
        assert same(both.flat.value_and_grad(BANDIT_THETA, generator=seed()), expected)
    assert both.hits == hits + 2


@pytest.mark.parametrize("mode", [lambda: torch.autocast("cpu"), lambda: torch.device("cpu"), torch.no_grad])
def test_modes_of_torch_are_the_interpreters(mode):
    """Autocast, a default device: what they would change is not recorded."""
    both = Both(toss(lambda x, t: x * t))
    lowered, hits = both.interpreted.lower(THETA), both.hits
    with mode():
        assert same(lowered.value_and_grad(THETA, generator=seed()), both.agree(THETA))
    assert both.hits == hits + (mode is torch.no_grad)


def test_transforms_are_the_interpreters():
    compiled = task_bandit(1).compile(sg.LSF())
    trace = compiled.sample(BANDIT_THETA, generator=seed())
    lowered = compiled.lower(BANDIT_THETA, trace=trace)
    with pytest.raises(sg.SamplingError, match=r"inside a torch\.func transform"):
        torch.vmap(lambda t: lowered.grad(t, trace))(torch.stack([BANDIT_THETA, BANDIT_THETA]))


def test_two_threads_draw_for_themselves():
    both = Both(task_bandit(1), sg.LSF(), warm=(BANDIT_THETA,))
    expected = [both.interpreted.value_and_grad(BANDIT_THETA, generator=seed(number)) for number in range(40)]
    found: dict[int, Any] = {}

    def work(numbers: range) -> None:
        for number in numbers:
            found[number] = both.flat.value_and_grad(BANDIT_THETA, generator=seed(number))

    threads = [threading.Thread(target=work, args=(range(start, 40, 2),)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[number], expected[number]) for number in range(40))


def test_recording_leaves_the_default_generator_alone():
    torch.manual_seed(5)
    compiled = task_bandit(1).compile(sg.LSF())
    before = torch.get_rng_state()
    compiled.lower(BANDIT_THETA)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_wrong_is_said_as_today():
    """A parameter that is no number, one outside of its constraint, a log-probability that is not finite."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", lambda p: Bernoulli(probs=p), theta, n=3)
        y = sg.sample("y", Normal, x, theta + 1e-3)
        return sg.mean(y**2)

    both = Both(objective, warm=(THETA,))
    for wrong in (1.2, float("nan")):
        at, words = torch.tensor(wrong, dtype=F64), []
        for compiled in (both.flat, both.interpreted):
            with pytest.raises(sg.SamplingError) as error:
                compiled.value_and_grad(at, generator=seed())
            words.append(str(error.value))
        assert words[0] == words[1]
    both.agree(THETA)


def test_a_nan_that_is_a_result_is_one():
    """The interpreter looks for a draw behind a value that is not finite; there is none, and the value is returned."""
    both = Both(toss(lambda x, t: torch.log(t) * x), warm=(THETA,))
    found = both.flat.value_and_grad(-THETA, generator=seed())
    expected = both.interpreted.value_and_grad(-THETA, generator=seed())
    assert bool(found[0].isnan())
    assert same(found, expected)


def test_results_may_be_written_into():
    """What a caller does with a gradient is not seen by the next call."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Bernoulli, logits=theta[0], n=3)
        return sg.mean(x) * 0.0 + theta.sum()

    both = Both(objective, warm=(TABLE,))
    for _ in range(3):
        value, gradient = both.agree(TABLE)
        value += 1.0
        gradient.clone() if gradient.stride() == (0,) else gradient.mul_(3.0)
    assert both.hits >= 3


def test_writing_into_what_is_captured_is_refused():
    total = torch.zeros((), dtype=F64)

    def cost(rewards):
        total.add_(rewards.detach().sum())
        return rewards.sum() + total

    @sg.graph
    def objective(theta):
        return sg.reduce(cost, sg.sample("x", Normal, theta, 1.0, n=3) * theta)

    with pytest.raises(sg.LoweringError, match="writes into an input, or into a tensor that the graph captures"):
        objective.compile(sg.SF()).lower(THETA)


def test_pathwise_draws_and_noise_that_depends_on_parameters():
    @sg.graph
    def objective(theta):
        x = sg.sample("x", lambda t: Normal(t, 1.0 + t * t), theta, n=3)
        y = sg.sample("y", Gamma, theta.exp(), 1.0, n=3, within=())
        return sg.mean(torch.sin(x)) + sg.mean(y**2)

    both = Both(objective, sg.PW())
    hits = both.hits
    for number in range(5):
        both.agree(THETA + number, number=number)
    assert both.hits == hits + 5


def test_loss_and_auto():
    """The 20th call of a signature is the last that is interpreted unseen; losses are lowered as well."""
    graph = task_bandit(1)
    auto, never = graph.compile(sg.LSF(), lowering="auto"), graph.compile(sg.LSF())
    for number in range(30):
        theta, other = (BANDIT_THETA.clone().requires_grad_() for _ in range(2))
        auto.loss(theta, generator=seed(number)).backward()
        never.loss(other, generator=seed(number)).backward()
        assert torch.equal(theta.grad, other.grad)  # type: ignore[arg-type]
    assert auto._lowering is not None
    (entry,) = auto._lowering._entries.values()
    assert (entry.calls, entry.agreed, entry.hit) == (30, 2, 8)


def test_lowered_says_what_it_is():
    compiled = task_bandit(1).compile(sg.LSF())
    lowered = compiled.lower(BANDIT_THETA)
    assert "# D1\n" in lowered.code
    assert "# d log p(D1)\n" in lowered.code
    assert isinstance(lowered.module, torch.fx.GraphModule)
    assert lowered.notes == ()
    with pytest.raises(sg.LoweringError, match="shapes, dtypes, numbers"):
        lowered.value_and_grad(BANDIT_THETA.float())
    with pytest.raises(sg.LoweringError, match=r"hand a trace to lower"):
        lowered.grad(BANDIT_THETA, compiled.sample(BANDIT_THETA))
    with pytest.raises(sg.CompileError, match="lowering='fast' of objective: one of 'never', 'auto', 'flat'"):
        task_bandit(1).compile(sg.LSF(), lowering="fast")


class Flips(sg.Sampler):
    """Some tosses in a row, drawn by operations of torch alone."""

    time = traceable = True

    def draw(self, batch_shape: torch.Size, logit: Any) -> Any:
        return torch.bernoulli(logit.sigmoid().unsqueeze(-1).expand(*batch_shape, 3))

    def log_prob(self, value: Any, logit: Any) -> Any:
        return torch.nn.functional.logsigmoid(logit * (2 * value - 1))


def test_trajectories_that_are_recorded_are_drawn_once():
    """How long they are is asked before a pass, by drawing them; a program draws as if nobody had."""

    @sg.graph
    def objective(theta):
        before = sg.sample("D", Flips(), theta, n=4)
        adapted = sg.ascend(theta, sg.mean(sg.sum(before)), 0.5)
        return sg.mean(sg.sum(sg.sample("tau", Flips(), adapted, n=4)))

    both = Both(objective, sg.LSF(), warm=(THETA,))
    hits = both.hits
    for number in range(5):
        both.agree(THETA + number, number=number)
    assert both.hits == hits + 5


def test_strides_of_what_is_captured():
    """A view that changes nothing for some strides does for others."""
    table = torch.ones((), dtype=F64).expand(2, 2)
    held = Held([("the table", table)])
    assert held.changed() is None
    table.data = torch.arange(4, dtype=F64).reshape(2, 2)
    assert held.changed() == "stride"


def test_estimators_of_ones_own_are_held():
    """With the code that may be called without being named."""

    known = sg.SF()

    class Own(type(known)):  # type: ignore[misc]
        def __call__(self) -> int:
            return 0

    lowered = toss(lambda x, t: x * t).compile(Own(**vars(known))).lower(THETA)
    lowered.value_and_grad(THETA)
    Own.__call__ = lambda self: 1  # type: ignore[method-assign]
    with pytest.raises(sg.LoweringError, match="is another thing now: lower it again"):
        lowered.value_and_grad(THETA)


def test_drawings_of_other_traces_are_read():
    """What an estimator draws beside the declared nodes is an argument of a program too."""
    compiled = task_bandit(1).compile({"D1": sg.LSF(), "tau": sg.LOO()})
    paired = toss(lambda x, t: (x - t) ** 2).compile(sg.DisARM())
    for one, theta in ((compiled, BANDIT_THETA), (paired, THETA)):
        first, second = (one.sample(theta, generator=seed(number)) for number in (1, 2))
        lowered = one.lower(theta, trace=first)
        for trace in (first, second):
            _, (expected,) = one._estimates.at(one._inputs.point("test", (theta,)), trace)
            assert torch.equal(lowered.grad(theta, trace), expected)
