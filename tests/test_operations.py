"""The operations table says what is true, and a kind of node that states nothing is refused by name."""

import itertools
import math
import operator

import pytest
import torch
from torch.distributions import Bernoulli, Normal

import stochgraph as sg
from stochgraph.explain.formula import latex
from stochgraph.ir.nodes import Node
from stochgraph.ir.operations import OPERATIONS, Linearity
from stochgraph.language.symbols import Symbol, current
from stochgraph.surrogate.terms import Term

LINEAR = [fn for fn, row in OPERATIONS.items() if row.linear is not Linearity.NOWHERE]
FLAT = [fn for fn, row in OPERATIONS.items() if row.flat]
ELEMENTWISE = [fn for fn, row in OPERATIONS.items() if row.elementwise]
UNARY, LOGICAL = (operator.neg, operator.pos), (operator.and_, operator.or_, operator.xor, operator.invert)


def called(fn):
    return f"{getattr(fn, '__module__', None)}.{fn.__name__}"


def is_affine(fn, count, places):
    """Whether the midpoint goes to the midpoint, the operands at other places held."""
    points = [torch.tensor([0.3, 1.7, 2.2], dtype=torch.float64) + i for i in range(count)]
    others = [point * 1.9 + 0.1 if i in places else point for i, point in enumerate(points)]
    middle = [(one + other) / 2 for one, other in zip(points, others, strict=True)]
    return torch.allclose(fn(*middle), (fn(*points) + fn(*others)) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fn", LINEAR, ids=called)
def test_an_operation_is_affine_exactly_where_the_table_says(fn):
    count = 1 if fn in UNARY else 2
    for size in range(1, count + 1):
        for places in itertools.combinations(range(count), size):
            assert is_affine(fn, count, places) == OPERATIONS[fn].linear.holds(places), places


def operands(fn, value):
    """As many as the function takes."""
    for count in (1, 2, 3):
        given = [value] * count
        if fn is torch.where:
            given = [value > 1.5, value, value]
        try:
            fn(*given)
        except (TypeError, RuntimeError, ValueError):
            continue
        return given
    return [value, 0.1]


@pytest.mark.parametrize("fn", FLAT, ids=called)
def test_a_flat_operation_has_no_derivative_but_zero(fn):
    value = torch.tensor([0.3, 1.7, 2.2], dtype=torch.float64, requires_grad=True)
    given = operands(fn, (value > 1) if fn in LOGICAL else value)
    result = fn(*given)
    if result.requires_grad:
        assert torch.autograd.grad(result.sum(), value)[0].count_nonzero() == 0
    else:
        assert fn in LOGICAL or not result.is_floating_point()


@pytest.mark.parametrize("fn", ELEMENTWISE, ids=called)
def test_an_elementwise_operation_takes_every_element_alone(fn):
    value = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    given = operands(fn, (value > 0.5) if fn in LOGICAL else value)
    whole = fn(*given)
    alone = [fn(*(x[i] if isinstance(x, torch.Tensor) else x for x in given)) for i in range(3)]
    assert torch.equal(whole.nan_to_num(), torch.stack(alone).nan_to_num())


def test_a_function_named_like_a_jump_is_a_function():
    def sign(x):
        return 3.0 * x

    @sg.graph
    def objective(theta):
        return sg.mean(sg.apply(sign, sg.sample("x", Normal, theta, 1.0, n=2)))

    _, gradient = objective.compile(sg.PW()).value_and_grad(torch.tensor(0.5))
    assert math.isclose(gradient, 3.0)


def test_a_field_of_a_mean_is_linear_in_it():
    @sg.graph
    def objective(logit):
        x = sg.sample("x", Bernoulli, logits=logit, n=2)
        return sg.mean(sg.apply(lambda x: torch.stack([x, 2 * x]), x))[1]

    compiled = objective.compile(sg.LSF())
    assert {row.counted for row in compiled.explain().ledger if row.sample} == {"once"}
    assert sg.verify(compiled, torch.tensor(0.3, dtype=torch.float64)).relative_bias < 1e-12


def kinds(base=Node):
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_kind_of_node_in_the_library_states_where_it_is_linear():
    own = [kind for kind in kinds() if kind.__module__.startswith("stochgraph.")]
    assert len(own) > 20
    assert [kind.__name__ for kind in own if kind.linear is Node.linear] == []


class Foreign(Node):
    """A kind of node that says nothing of itself."""

    kind = "foreign"

    def evaluate(self, run, values):
        return values[0] + 0.0


class InItsPlace(sg.estimators.GradientEstimator):
    def term(self, site):
        return Foreign("foreign", site.term.index, [site.term])


@sg.graph
def with_an_estimator(theta):
    return sg.mean(sg.sample("x", Normal, theta, 1.0, n=4) ** 2)


def test_a_declared_kind_that_states_nothing_is_not_derived():
    @sg.graph
    def declared(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=4)
        place = current("foreign")
        assert isinstance(x, Symbol)
        return sg.mean(place.add(Foreign("mine", len(place.nodes), [x._node])))

    with pytest.raises(sg.CompileError, match=r"'mine' .axes: .x.*Foreign does not say in which inputs it is linear"):
        declared.compile(sg.SF())


@pytest.mark.parametrize(
    "read",
    [
        lambda compiled: compiled.explain(),
        lambda compiled: sg.accumulate(compiled, torch.tensor(0.5), over="x", chunk=2),
        lambda compiled: sg.chunk_size(compiled, compiled.sample(torch.tensor(0.5)), "x"),
    ],
    ids=["ledger", "accumulate", "chunk_size"],
)
def test_a_derived_kind_that_states_nothing_is_refused_where_it_is_read(read):
    compiled = with_an_estimator.compile(InItsPlace())
    compiled.value_and_grad(torch.tensor(0.5))
    with pytest.raises(sg.CompileError, match=r"'foreign' .*Foreign does not say in which inputs it is linear"):
        read(compiled)


def test_a_kind_without_a_formula_is_refused_by_name():
    compiled = with_an_estimator.compile(InItsPlace())
    with pytest.raises(sg.CompileError, match=r"node 'foreign' .*Foreign has no formula"):
        latex(compiled)


class Stated(Term):
    """A term that leaves its formula to the base class."""

    kind = "stated"

    def __init__(self, site):
        super().__init__(site, [])

    def evaluate(self, run, values):
        return values[0] + 0.0


class InTermsPlace(sg.estimators.GradientEstimator):
    def term(self, site):
        return Stated(site)


def test_a_term_that_states_no_formula_is_written_by_its_kind():
    assert r"\mathrm{stated}_{x_{i}}\big(x_{i}^{2}\big)" in latex(with_an_estimator.compile(InTermsPlace()))
