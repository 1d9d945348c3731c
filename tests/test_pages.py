"""The pages in docs/: their code runs, what they show is what it prints, their links and tests exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, Normal

import stochgraph as sg
from stochgraph.algorithms.training import settings
from tests import problems
from tests.test_baselines import walks
from tests.test_documentation import blocks

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OURS = ["choosing", "estimators", "promises", "writing"]


def without_rounding(text: str) -> str:
    """Errors of rounding differ between machines: a zero for each."""
    return re.sub(r"\d\.\d+e-1[3-9]", "0", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for table in ("ENVIRONMENTS", "POLICIES"):  # a page may add to them
        monkeypatch.setattr(settings, table, dict(getattr(settings, table)))
    text = page.read_text()
    namespace: dict[str, Any] = {"__name__": page.stem}
    for line, code in blocks(text):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    printed = without_rounding(capsys.readouterr().out)
    for shown in re.findall(r"^```text\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        assert without_rounding(shown) in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("figures/"):  # the site makes them; tests/test_site.py
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tests_that_claims_name_exist(page: Path) -> None:
    for file, name in re.findall(r"(tests/\w+\.py)::(\w+)", page.read_text()):
        assert re.search(rf"def {name}\(", (ROOT / file).read_text()), f"{file}::{name}"


def test_the_pages_are_there() -> None:
    assert {page.stem for page in PAGES} >= set(OURS)
    for name in OURS:
        assert blocks((ROOT / "docs" / f"{name}.md").read_text())


# Claims of the pages that no other test makes


def test_pathwise_does_not_see_a_jump() -> None:
    """The mean of x, and of 1 where x is positive: its derivative is 1 + phi(theta), of which the jump is phi."""

    @sg.graph
    def objective(theta: Any) -> Any:
        return sg.mean(sg.apply(lambda x: torch.where(x > 0, x + 1, x), sg.sample("x", Normal, theta, 1.0, n=3)))

    _, gradient = objective.compile(sg.PW()).value_and_grad(torch.tensor(0.3))
    assert float(gradient) == pytest.approx(1.0)


@pytest.mark.parametrize("horizon", [2, 3])
def test_less_memory_of_scores_is_less_variance(horizon: int) -> None:
    found = [
        sg.verify(problems.mdp(horizon).compile(estimator), problems.MDP_THETA).total_variance
        for estimator in (sg.LSF(), sg.LoadedDiCE(0.5), sg.LVC())
    ]
    assert found[0] > 1.2 * found[1] > 1.2**2 * found[2]


def adapted_pay(lr: float) -> sg.Graph:
    """The problem of the page on choosing, with another step size: two pulls for the step, two after it."""
    reward = torch.tensor([0.1, 1.0, -0.6], dtype=torch.float64)

    @sg.graph
    def pay(theta: Any) -> Any:
        pulls = sg.sample("D", Categorical, logits=theta, n=2)
        adapted = sg.ascend(theta, sg.mean(sg.apply(lambda arm: reward[arm], pulls)), lr=lr)
        return sg.mean(sg.apply(lambda arm: reward[arm], sg.sample("tau", Categorical, logits=adapted, n=2)))

    return pay


def variance(graph: sg.Graph, inner: Any, outer: Any) -> float:
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    return float(sg.verify(graph.compile({"D": inner, "tau": outer}), theta).total_variance)


def test_replays_far_from_the_draws_vary_more() -> None:
    near, far = adapted_pay(0.1), adapted_pay(10.0)
    assert variance(near, sg.LOO(), sg.SF("loo")) < 1.01 * variance(near, sg.LSF(), sg.SF("loo"))
    assert variance(far, sg.LOO(), sg.SF("loo")) > 20 * variance(far, sg.LSF(), sg.SF("loo"))


def test_two_draws_are_few_to_compare_with() -> None:
    graph = adapted_pay(0.7)
    assert variance(graph, sg.LSF(control_variate=True), sg.SF()) > 1.01 * variance(graph, sg.LSF(), sg.SF())
    assert variance(graph, sg.LSF(), sg.SF("loo")) > 2 * variance(graph, sg.LSF(), sg.SF())


@pytest.mark.parametrize("n", [2, 3])
def test_a_fitted_baseline_needs_data(n: int) -> None:
    fitted, others = (
        sg.verify(walks(n).compile(sg.SF(b)), problems.MDP_THETA).total_variance for b in ("linear", "loo")
    )
    assert fitted > 1.3 * others
