"""Every algorithm against the truth of a small meta-problem: the bias is exactly of the class that its ledger states.

`python tests/test_templates.py` writes the table of `docs/biases.md` anew.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import stochgraph as sg
from stochgraph.algorithms.emaml import emaml, emaml_published
from stochgraph.algorithms.inner_steps.advantages import LinearBaseline
from stochgraph.algorithms.loo import loo
from stochgraph.algorithms.maml import maml
from stochgraph.algorithms.optimizers.vectors import Vector
from stochgraph.algorithms.sgmrl import sgmrl
from stochgraph.algorithms.training.settings import META_ALGORITHMS
from tests.small_meta_problem import THETA, THETA_AND_RATES, meta_problem, with_learned_rates

PAGE = Path(__file__).parents[1] / "docs" / "biases.md"
CASES = {"K = 1, N = 2": (1, 2), "K = 1, N = 4": (1, 4), "K = 2, N = 2": (2, 2)}
EXACT = 1e-12
# What holds constant what the policy made is measured against the truth of the same steps with nothing held constant.
MOVING = {"bomrl-practical": "bomrl-fixed-sample"}


class Row(NamedTuple):
    """One algorithm: its bias class, how the path of the first inner batch is counted, relative biases."""

    name: str
    stated: str
    counted: str
    biases: tuple[float, ...]


def compiled(name: str, **changes: Any) -> tuple[sg.Compiled, dict[str, Tensor]]:
    learned = name == "meta-sgd"
    problem = with_learned_rates(**changes) if learned else meta_problem(**changes)
    return META_ALGORITHMS[name](problem).compile(), THETA_AND_RATES if learned else THETA


def row(name: str) -> Row:
    ledger = compiled(name)[0].explain()
    counted = {each.counted for each in ledger.ledger if each.sample == "D1"}
    found = tuple(relative_bias(name, steps=k, inner=n) for k, n in CASES.values())
    return Row(name, ledger.bias, " and ".join(sorted(counted)), found)


def relative_bias(name: str, **changes: Any) -> float:
    """How far the expected estimate is from the gradient of the expected return, relative to that."""
    found = sg.verify(*compiled(name, **changes))
    if name not in MOVING:
        return found.relative_bias
    expected, truth = (Vector(each).flat for each in (found.expectation, truth_of(MOVING[name], **changes)))
    return float((expected - truth).norm() / truth.norm())


def truth_of(name: str, **changes: Any) -> Any:
    return sg.verify(*compiled(name, **changes)).truth


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {name: row(name) for name in META_ALGORITHMS}


def page(rows: dict[str, Row]) -> str:
    heads = ["algorithm", "inner samples counted", "bias, as the ledger has it", *CASES]
    lines = [heads, ["---"] * 3 + ["---:"] * len(CASES)]
    lines += [
        [f"`{each.name}`", each.counted, each.stated, *("0" if b < EXACT else f"{100 * b:.2g} %" for b in each.biases)]
        for each in rows.values()
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# The bias of every algorithm, exactly

The expectation of the estimate against the gradient of the expected return after adaptation, by enumeration of all
outcomes of a small meta-problem: two tasks, two states, two actions, trajectories of two steps, a softmax table; K
inner steps on N trajectories each. Relative error of the gradient; 0 is below 1e-12. `tests/test_templates.py` makes
this table, and fails where an algorithm is not what its ledger says.

{table}

The classes say how a bias falls with N: `0` is exact, `O(1/sqrt(N))` vanishes, `O(1)` stays. What is counted here is
the distribution of the inner samples. The derivative of an implicit inner step (`bomrl`) is the implicit function
theorem's in the truth as well; `tests/test_bomrl.py` holds it against finite differences. `bomrl-practical` also holds
constant what stands under its ratios, probabilities that the policy made; its truth is that of `bomrl-fixed-sample`.

Names are not always those of a paper. What Fallah et al. print as MAML (2020, algorithm 2; 2021, eq. 16) has the full
estimate of the Hessian, outer products of scores included: its row is `lsf`, and `maml` is what Finn et al.
implemented.
<!-- tests/test_whole_trajectories.py::test_what_they_print_as_maml_is_lsf -->
Errors in print are on a [page](errata.md) of their own.
"""


def test_the_page_shows_what_is_found(rows):
    assert PAGE.read_text(encoding="utf-8") == page(rows), "python tests/test_templates.py writes it anew"


@pytest.mark.parametrize("name", META_ALGORITHMS)
def test_the_bias_is_of_the_class_that_the_ledger_states(rows, name):
    _, stated, counted, (two, four, steps) = rows[name]
    assert stated in ("0", "O(1/sqrt(N))", "O(1)")
    if stated == "0":
        assert counted == "once"
        assert max(two, four, steps) < EXACT
    elif stated == "O(1)":
        assert min(two, four, steps) > 0.05
        assert four > 0.85 * two
    else:
        assert counted == "linearized"
        assert 1e-3 < four < two / 2**0.5
        assert 1e-3 < steps < 0.1


def test_what_is_unbiased_is_said_to_be(rows):
    assert {name for name, each in rows.items() if each.stated == "0"} == {
        "emaml",
        "sgmrl",
        "loo",
        "bomrl",
        "bomrl-tabular",
    }
    assert all(compiled(name)[0].explain().unbiased == (each.stated == "0") for name, each in rows.items())


# --- single terms


def gradient(template: Any, trace: sg.Trace) -> Tensor:
    found: Tensor = torch.func.grad(template.compile().surrogate)(THETA, trace)["logits"]
    return found


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_published_credit_of_emaml_is_one_part_in_n_of_the_derived(n, steps):
    problem = meta_problem(inner=n, steps=steps)
    trace = emaml(problem).compile().sample(THETA, generator=torch.Generator().manual_seed(n))
    derived, published, without = (gradient(make(problem), trace) for make in (emaml, emaml_published, maml))
    assert (derived - without).abs().max() > 1e-3
    torch.testing.assert_close(n * (published - without), derived - without, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_normalised_advantages_leave_the_credit_of_inner_draws_intact(n):
    """The credit is of later returns: what MAML lacks is there in full, whatever the inner advantages are."""
    problem = meta_problem(inner=n, standardise=True)
    found = sg.verify(sgmrl(problem).compile(), THETA)
    dropped = sg.verify(maml(problem).compile(), THETA)
    assert found.relative_bias < EXACT
    credit = pytree.tree_map(torch.sub, found.expectation, dropped.expectation)["logits"]
    missing = pytree.tree_map(torch.sub, dropped.truth, dropped.expectation)["logits"]
    assert dropped.relative_bias > 0.1
    torch.testing.assert_close(credit, missing, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [2, 3])
def test_leave_one_out_is_exact_with_advantages_of_any_kind(n):
    options = {"standardise": True, "inner_baseline": LinearBaseline(), "decay": 0.9}
    assert sg.verify(loo(meta_problem(inner=n, **options)).compile(), THETA).relative_bias < 1e-10


@pytest.mark.parametrize("make", [emaml, sgmrl])
def test_a_baseline_of_the_credit_moves_no_expectation(make):
    plain = sg.verify(make(meta_problem()).compile(), THETA)
    compared = sg.verify(make(meta_problem(baseline=None), credit_baseline="mean").compile(), THETA, sizes={"task": 2})
    assert compared.relative_bias < EXACT
    assert plain.relative_bias < EXACT
    assert "baseline" in repr(make(meta_problem(), credit_baseline="mean").estimators["D1"])


if __name__ == "__main__":
    PAGE.write_text(page({name: row(name) for name in META_ALGORITHMS}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": -1}, "steps=-1: must be an integer of at least 0"),
        ({"steps": 1.5}, r"steps=1\.5: must be an integer"),
        ({"inner_rate": -0.1}, r"inner_rate=-0\.1: must be finite and at least 0"),
        ({"inner_rate": float("nan")}, "inner_rate=nan: must be finite"),
        ({"inner_rate": torch.tensor([0.1, -0.1])}, "inner_rate=.*: must be finite and at least 0"),
        ({"discount": 1.1}, r"discount=1\.1: must be between 0 and 1"),
        ({"discount": float("nan")}, "discount=nan: must be between 0 and 1"),
        ({"inner_baseline": "linear"}, r"inner_baseline='linear': give a baseline itself, such as LinearBaseline\(\)"),
    ],
)
def test_meta_problems_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        meta_problem(**changes)


def test_rates_that_are_tensors_and_functions():
    for rate in (0, torch.tensor(0.1), lambda theta: theta["logits"].sum()):
        assert meta_problem(inner_rate=rate).inner_rate is rate
