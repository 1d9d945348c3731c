"""The page of a compiled graph: it fetches nothing, and a path lights up its nodes, its terms and its lines."""

import html
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, Normal

import stochgraph as sg
from stochgraph.explain.page import SCRIPT
from stochgraph.surrogate.terms import Term
from tests import problems
from tests.test_draw import crossed, sharpe, tasks

pytest.importorskip("matplotlib")
pytest.importorskip("latex2mathml")

BROWSER = shutil.which("chromium")


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.classes: set[str] = set()
        self.rows: dict[str, list[str]] = {}
        self.lines: dict[str, str] = {}
        self._line = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.classes.update(values.get("class", "").split())
        self._line = values["id"] if tag == "span" and "id" in values else ""
        if "id" in values:
            self.ids.append(values["id"])
        if "data-lit" in values:
            self.rows[values["id"]] = values["data-lit"].split(", ")
        for name in ("src", "href"):
            assert values.get(name, "#").startswith("#"), f"{tag} fetches {values[name]}"

    def handle_data(self, data: str) -> None:
        if self._line:
            self.lines[self._line] = self.lines.get(self._line, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._line = ""


def page_of(compiled: sg.Compiled, folder: Path) -> Page:
    return Page(compiled.report(folder / "report.html").read_text(encoding="utf-8"))


COMPILED = {
    "sharpe": lambda: sharpe.compile({"first": sg.LSF(), "second": sg.MAML(), "last": sg.SF()}),
    "tasks": lambda: tasks.compile(sg.LSF()),
    "crossed": lambda: crossed.compile({"u": sg.SF(), "v": sg.PW(), "w": sg.SF()}, wrt=("theta", "rate")),
    "additive": lambda: problems.additive().compile(sg.LOO()),
    "bandit": lambda: problems.bandit(2).compile(sg.SGMRLPublished()),
    "task_bandit": lambda: problems.task_bandit().compile(sg.Enumerate()),
    "mdp": lambda: problems.mdp().compile(sg.LVC()),
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_lights_up_is_there(name: str, tmp_path: Path) -> None:
    compiled = COMPILED[name]()
    page = page_of(compiled, tmp_path)
    ledger = compiled.explain().ledger
    assert list(page.rows) == [f"path-{i}" for i in range(len(ledger))]
    assert len(set(page.ids)) == len(page.ids)
    for row, lit in zip(ledger, page.rows.values(), strict=True):
        assert {selector[1:] for selector in lit if selector[0] == "#"} <= set(page.ids)
        terms = {selector[1:] for selector in lit if selector[0] == "."}
        assert terms <= page.classes
        said = row.counted != "dropped" and bool(row.sample or (row.update and name != "task_bandit"))
        assert len(terms) == said  # the terms of `Enumerate` do not write out the updates behind a draw
        assert any(selector.startswith("#line-") for selector in lit)


def test_with_inputs_the_ledger_has_shares(tmp_path: Path) -> None:
    compiled = COMPILED["bandit"]()
    text = compiled.report(tmp_path / "report.html", problems.BANDIT_THETA, sizes={"D2": 1}).read_text(encoding="utf-8")
    explained = compiled.explain(problems.BANDIT_THETA, sizes={"D2": 1})
    assert "<th>share</th>" in text
    assert all(f"<td>{group.in_words()}</td>" in text for group in explained.rows)
    assert "<th>share</th>" not in compiled.report(tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_nodes_the_terms_and_the_lines_of_a_path(tmp_path: Path) -> None:
    page = page_of(COMPILED["sharpe"](), tmp_path)
    numbers = {node.name: i for i, node in enumerate(sharpe.order)}
    lit = page.rows["path-0"]
    path = ["theta", "first", "mean(sin)", "theta'", "theta''", "last", "sub_3"]
    nodes = [selector for selector in lit if selector.startswith("#node-")]
    assert nodes == [f"#node-{numbers[name]}" for name in path]
    edges = [selector for selector in lit if selector.startswith("#edge-")]
    ends = itertools.pairwise(path)
    assert edges == [f"#edge-{numbers[parent]}-{numbers[child]}" for parent, child in ends]
    assert [selector for selector in lit if selector[0] == "."] == [f".box-{numbers['first']}"]
    lines = [page.lines[selector[1:]].strip().split("(")[0] for selector in lit if selector.startswith("#line-")]
    assert lines == ["arms = say.sample", "adapted = say.ascend", "last = say.apply", "return say.mean"]
    dropped = page.rows["path-2"]
    assert not [selector for selector in dropped if selector[0] == "."]


def test_terms_of_draws_and_of_directions(tmp_path: Path) -> None:
    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        new = sg.ascend(theta, sg.mean(-((x - theta) ** 2)), lr=0.1, name="new")
        return sg.sample("y", Normal, new, 1.0) ** 2

    compiled = objective.compile({"x": sg.PW(), "y": sg.SF()})
    page = page_of(compiled, tmp_path)
    numbers = {node.name: i for i, node in enumerate(objective.order)}
    terms = [[part for part in lit if part[0] == "."] for lit in page.rows.values()]
    expected = {("pathwise", "x"): f".draw-{numbers['x']}", ("distribution", "y"): f".box-{numbers['y']}"}
    direction = f".direction-{numbers['new']}"
    for row, found in zip(compiled.explain().ledger, terms, strict=True):
        assert found == [expected.get((row.kind, row.sample), direction)]


def test_names_are_escaped(tmp_path: Path) -> None:
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample('<b> & "q"', Normal, theta, 1.0, n=2))

    text = objective.compile(sg.SF()).report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    assert html.escape('<b> & "q"') in text


def test_a_function_without_a_file_has_no_lines(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"sg": sg, "Normal": Normal}
    exec("objective = sg.graph(lambda theta: sg.mean(sg.sample('x', Normal, theta, 1.0, n=2)))", namespace)
    page = page_of(namespace["objective"].compile(sg.SF()), tmp_path)
    assert page.lines == {}
    assert page.rows["path-0"][-1] == ".box-1"


def test_words_said_in_a_function_that_is_called_are_its_lines(tmp_path: Path) -> None:
    def pulls(theta, name):
        return sg.sample(name, Categorical, logits=theta, n=2)

    @sg.graph
    def objective(theta):
        return sg.mean(torch.sin(pulls(theta, "a")))

    page = page_of(objective.compile(sg.SF()), tmp_path)
    lit = [page.lines[part[1:]].strip() for part in page.rows["path-0"] if part.startswith("#line")]
    assert lit == [
        "return sg.sample(name, Categorical, logits=theta, n=2)",
        'return sg.mean(torch.sin(pulls(theta, "a")))',
    ]


def test_without_latex2mathml_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    with pytest.raises(ImportError, match=r"pip install stochgraph\[plot\]"):
        COMPILED["additive"]().report(tmp_path / "report.html")


def test_the_script_is_short() -> None:
    assert len(SCRIPT.strip().splitlines()) < 60


# What a visitor does, in turn, and what is lit after each.
VISIT = """
const page = document.querySelector("iframe").contentDocument, seen = [];
const look = () => seen.push([...page.querySelectorAll(".lit")].map(e => e.id || [...e.classList].join(" ")));
const row = i => page.getElementById("path-" + i), point = (i, to) => row(i).dispatchEvent(new Event("mouse" + to));
look(); point(0, "enter"); look(); point(0, "leave"); look();
row(0).click(); look(); point(2, "enter"); look(); point(2, "leave"); look(); row(0).click(); look();
document.title = JSON.stringify(seen);
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_a_click_in_a_browser_lights_up_the_path(tmp_path: Path) -> None:
    page = page_of(COMPILED["sharpe"](), tmp_path)
    frame = tmp_path / "frame.html"
    frame.write_text(f"<body><iframe src='report.html' onload='{VISIT}'></iframe></body>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [str(BROWSER), *options, "--virtual-time-budget=4000", "--dump-dom", frame.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title is not None, shown[:500]
    seen = [set(lit) for lit in json.loads(html.unescape(title[1]))]
    first = {"path-0", *(part[1:] for part in page.rows["path-0"] if part[0] == "#"), "box-2 lit"}
    third = {"path-2", *(part[1:] for part in page.rows["path-2"] if part[0] == "#")}
    assert seen == [set(), first, set(), first, third, first, set()]


def test_the_formula_of_a_term_is_latex() -> None:
    assert Term.formula(SimpleNamespace(kind="kind"), "x", "i") == r"\mathrm{kind}_{i}\big(x\big)"  # type: ignore[arg-type]
