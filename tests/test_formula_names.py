"""Names in formulas: characters that LaTeX has other uses for are shown as they are."""

import re
import xml.dom.minidom

import pytest
import torch
from torch.distributions import Normal

import stochgraph as sg
from stochgraph.explain.symbols import symbol

SHOWN = str.maketrans("^", "\N{LOGICAL AND}")
SPECIAL = {"50%": r"50\%", "a#b": r"a\#b", "p&q": r"p\&q", "$k$": r"\$k\$", "h{": r"h\{", "}": r"\}", "u_v": r"u\_v"}


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("name", [*SPECIAL, "a\\b", "\\frac", "x^y", "x~y", "%", "\\"])
def test_a_report_shows_them(name, updated, tmp_path) -> None:
    pytest.importorskip("latex2mathml")

    @sg.graph
    def objective(theta):
        x = sg.sample(name, Normal, theta, 1.0, n=2)
        moved = sg.ascend(theta, sg.mean(x), 0.1) if updated else theta
        return sg.apply(torch.sin, sg.mean(x) * moved, name=f"of {name}") ** 2

    compiled = objective.compile(sg.SF())
    page = compiled.report(tmp_path / "report.html").read_text()
    formula = re.search("<math.*</math>", page, re.DOTALL)
    assert formula is not None
    written = xml.dom.minidom.parseString(formula[0]).documentElement
    words = "".join(node.data for node in texts(written))
    assert words.count(name.translate(SHOWN)) >= 3


def texts(element):
    """All texts of a document."""
    for child in element.childNodes:
        if child.nodeType == child.TEXT_NODE:
            yield child
        else:
            yield from texts(child)


@pytest.mark.parametrize("name", SPECIAL)
def test_latex_says_them_escaped(name) -> None:
    assert SPECIAL[name] in symbol(name)
