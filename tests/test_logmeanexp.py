"""The log of a mean of exponentials: the same at every shift, for every estimator, as multi-sample bounds need it."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

import stochgraph as sg
from tests.problems import F64

LOGIT = torch.tensor(0.4, dtype=F64)
SHIFTS = [0.0, -800.0, 800.0, -1e5]
WEIGHT = torch.tensor([0.14, 0.27], dtype=F64)


def bound(shift=0.0, n=3):
    @sg.graph
    def objective(logit):
        z = sg.sample("z", Bernoulli, logits=logit, n=n)
        return sg.logmeanexp(sg.apply(lambda v: WEIGHT.log()[v.long()], z) - sg.log_prob(z) + shift)

    return objective


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("estimator", [sg.LOO(), sg.SF()])
def test_the_bound_of_three_samples(shift, estimator):
    found = sg.verify(bound(shift).compile(estimator), LOGIT)
    assert found.relative_bias < 1e-9  # rounding of the shift itself, 1e5 times the precision of the bound
    assert float(found.expectation) == pytest.approx(0.0199527, abs=1e-7)


@pytest.mark.parametrize("shift", SHIFTS)
def test_leave_one_out_varies_alike_at_every_shift(shift):
    assert sg.verify(bound(shift).compile(sg.LOO()), LOGIT).total_variance == pytest.approx(0.0834, abs=5e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("estimator", [sg.LOO(), sg.SF(), sg.LSF(), sg.LSF(control_variate=True), sg.MAML()])
def test_it_is_the_logarithm_of_the_mean_of_exponentials(order, estimator):
    """The same estimate as of the three operations, where those do not overflow, at other parameters too."""

    @sg.graph
    def written_out(logit):
        z = sg.sample("z", Bernoulli, logits=logit, n=3)
        return torch.log(sg.mean(torch.exp(z * logit - sg.log_prob(z))))

    @sg.graph
    def stable(logit):
        z = sg.sample("z", Bernoulli, logits=logit, n=3)
        return sg.logmeanexp(z * logit - sg.log_prob(z))

    compiled = [graph.compile(estimator) for graph in (written_out, stable)]
    trace = compiled[0].sample(LOGIT, generator=torch.Generator().manual_seed(0))
    found = []
    for one in compiled:
        derivative = one.surrogate
        for _ in range(order):
            derivative = torch.func.grad(derivative)
        found.append([float(derivative(at, trace)) for at in (LOGIT, LOGIT - 0.3)])
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_the_formula_of_leave_one_out_on_the_same_samples():
    """Weights that differ by a factor of e^900 between draws: without the largest, the others are all that counts."""
    logs = torch.tensor([-900.0, -5.0, 0.0], dtype=F64)

    @sg.graph
    def objective(logits):
        return sg.logmeanexp(sg.apply(lambda a: logs[a], sg.sample("z", Categorical, logits=logits, n=4)))

    logits = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
    compiled = objective.compile(sg.LOO())
    drawn = torch.tensor([0, 0, 2, 0])
    trace = sg.Trace(torch.tensor(0.0), {"z": drawn}, {"z": logits.log_softmax(-1)[drawn]}, {})
    x = logs[drawn]
    whole = x.logsumexp(0) - torch.tensor(4.0, dtype=F64).log()
    others = torch.stack([torch.cat([x[:i], x[i + 1 :]]).logsumexp(0) for i in range(4)]) - torch.tensor(3.0).log()
    scores = torch.eye(3, dtype=F64)[drawn] - logits.softmax(-1)
    expected = ((whole - others)[:, None] * scores).sum(0)
    found = torch.func.grad(compiled.surrogate)(logits, trace)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_plates_that_are_left_stay_apart():
    """One scale for each data point: bounds of very different size in one batch."""

    @sg.graph
    def objective(logit):
        row = sg.sample("row", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=3)
        z = sg.sample("z", lambda t, i: Bernoulli(logits=t + 0.0 * i), logit, row, n=2)
        return sg.mean(sg.logmeanexp(z * logit - 1000.0 * row, over="z"))

    compiled = objective.compile({"row": sg.SF(), "z": sg.LOO()})
    trace = compiled.sample(LOGIT, generator=torch.Generator().manual_seed(1))
    z, row = trace.draws["z"], trace.draws["row"].to(F64)
    expected = ((z * LOGIT - 1000.0 * row[:, None]).logsumexp(1) - torch.tensor(2.0, dtype=F64).log()).mean()
    assert float(trace.value) == pytest.approx(float(expected), rel=1e-12)
    assert sg.verify(compiled, LOGIT).relative_bias < 1e-10
    _, gradient = sg.accumulate(compiled, LOGIT, over="row", trace=trace, chunk=2)
    assert float(gradient) == pytest.approx(float(torch.func.grad(compiled.surrogate)(LOGIT, trace)), rel=1e-10)


def test_pathwise_draws():
    @sg.graph
    def objective(scale):
        x = sg.sample("x", Normal, 0.0, scale, n=5)
        return sg.logmeanexp(x - 2000.0)

    scale = torch.tensor(0.7, dtype=F64)
    compiled = objective.compile(sg.PW())
    trace = compiled.sample(scale, generator=torch.Generator().manual_seed(0))
    noise = trace.draws["x"] / scale
    expected = (torch.softmax(trace.draws["x"], 0) * noise).sum()
    assert float(torch.func.grad(compiled.surrogate)(scale, trace)) == pytest.approx(float(expected), rel=1e-10)


def test_nothing_but_zeros():
    """A plate whose weights are all zero has the logarithm of zero, and no NaN."""

    @sg.graph
    def objective(logit):
        return torch.exp(
            sg.logmeanexp(sg.apply(lambda v: -torch.inf + 0.0 * v, sg.sample("z", Bernoulli, logits=logit, n=2)))
        )

    assert float(objective.compile(sg.SF()).sample(LOGIT).value) == 0.0


def test_inside_an_update():
    @sg.graph
    def objective(theta):
        pulls = sg.sample("D", Bernoulli, logits=theta, n=3)
        adapted = sg.ascend(theta, sg.logmeanexp(pulls * theta - 900.0), 0.5)
        return torch.sin(adapted)

    for estimator in (sg.SF(), sg.LOO()):
        assert sg.verify(objective.compile(estimator), LOGIT).relative_bias < 1e-10


def test_what_it_says():
    explanation = bound().compile(sg.LOO()).explain()
    assert explanation.unbiased
    assert [row.counted for row in explanation.ledger] == ["once"] * len(explanation.ledger)
    assert r"\log\big(\frac{1}{N_{i}}\sum_{i} \exp" in explanation.latex.replace(r"\big(\exp", r"\exp")
    assert "largest" not in str(bound().networkx.nodes)
    assert [row.counted for row in bound().compile(sg.LSF()).explain().ledger if row.sample] == ["linearized"]


def test_it_needs_a_plate():
    with pytest.raises(sg.DeclarationError, match=r"sg\.logmeanexp of 'z'.*has no plate"):

        @sg.graph
        def objective(logit):
            return sg.logmeanexp(sg.sample("z", Bernoulli, logits=logit))
