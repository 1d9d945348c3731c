"""Citations of the three papers: the year of a version that there is, and equations that this version has."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributions import Normal

import stochgraph as sg
from stochgraph.estimators import GradientEstimator

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *(path for folder in ("algorithms", "estimators", "stochgraph") for path in sorted((ROOT / folder).glob("*.py"))),
    *sorted((ROOT / "algorithms" / "environments").glob("*.py")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Who, when: the last numbered equation. Fallah et al. 2020 is the text on arXiv, 2021 that of NeurIPS.
LAST_EQUATION = {
    ("Fallah et al.", "2020"): 91,
    ("Fallah et al.", "2021"): 17,
    ("Tang", "2022"): 13,
    ("Xu and Zhu", "2024"): 51,
}
AUTHORS = "|".join(re.escape(who) for who in dict.fromkeys(who for who, _ in LAST_EQUATION))
CITATION = re.compile(rf"\b({AUTHORS}) \((\d{{4}})\)((?:(?!(?:{AUTHORS}) \(|\. [A-Z]|;).)*)")
MORE = re.compile(r"^; \((\d{4})\)((?:(?!\. [A-Z]|;).)*)")
EQUATIONS = re.compile(r"\beqs?\. ((?:\d+(?:, | and | to |, and )?)+)")


def citations(text: str) -> list[tuple[str, str, list[int]]]:
    """Author, year and equations, as far as a sentence or a semicolon; a year alone is the same author's."""
    text, found = " ".join(text.split()), []
    for match in CITATION.finditer(text):
        author, year, about = match.groups()
        end = match.end()
        while author:
            numbers = [int(n) for part in EQUATIONS.findall(about) for n in re.findall(r"\d+", part)]
            found.append((author, year, numbers))
            again = MORE.match(text[end:])
            if again is None:
                break
            year, about = again.groups()
            end += again.end()
    return found


def test_citations_are_found():
    text = "Fallah et al. (2021), eqs. 8, 9 and 13; (2020), eqs. 11 to 18, and eq. 44. Tang (2022), eq. 8; Mao (2019)."
    assert citations(text) == [
        ("Fallah et al.", "2021", [8, 9, 13]),
        ("Fallah et al.", "2020", [11, 18, 44]),
        ("Tang", "2022", [8]),
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_cited_is_there(path):
    for author, year, equations in citations(path.read_text(encoding="utf-8")):
        assert (author, year) in LAST_EQUATION, f"{author} ({year}) is no version that is cited here"
        assert all(n <= LAST_EQUATION[author, year] for n in equations), f"{author} ({year}), {equations}"


def test_all_four_are_cited():
    found = {(who, year) for path in FILES for who, year, _ in citations(path.read_text(encoding="utf-8"))}
    assert found == LAST_EQUATION.keys()


# The papers that a compiled graph names

MAKERS: list[Callable[[], GradientEstimator]] = [
    *(sg.SF, sg.LSF, sg.LOO, sg.PW, sg.Enumerate, sg.MVD, sg.DisARM, sg.LVC, sg.LoadedDiCE, sg.Taylor),
    *(sg.MAML, sg.EMAML, sg.SGMRLPublished, sg.FirstOrder, sg.Relaxed, sg.REBAR),
]


def of_boxes() -> set[str]:
    """The keys of the papers that every estimator has that does not say otherwise."""

    class Plain(GradientEstimator):
        pass

    return {paper.key for paper in Plain().papers}


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_the_first_paper_is_among_the_references_of_its_estimator(make):
    first, text = make().papers[0], " ".join((make.__doc__ or "").split())
    author = first.authors.split(" and ")[0].split()[-1]
    assert first.key not in of_boxes()
    assert re.search(rf"{author}[^;.]*(et al\.)? \({first.year}\)", text), f"{author} ({first.year})"


def test_one_key_is_one_paper():
    papers = {paper for make in MAKERS for paper in make().papers} | set(sg.SF("linear").papers)
    assert len({paper.key for paper in papers}) == len(papers)
    for paper in papers:
        assert paper.bibtex.count("{") == paper.bibtex.count("}")
        assert str(paper.year) in paper.key


def test_each_paper_is_cited_once_with_its_samples():
    @sg.graph
    def objective(theta):
        x, y = (sg.sample(name, Normal, theta, 1.0, n=2) for name in "xy")
        z = sg.sample("z", Normal, theta, 1.0, n=2)
        return sg.mean(x) * sg.mean(y) * sg.mean(z)

    text = objective.compile({"x": sg.LSF(), "y": sg.LSF(control_variate=True), "z": sg.PW()}).citation()
    assert re.findall(r"^% (.*)\n@\w+\{(\w+),", text, flags=re.MULTILINE) == [
        ("x, y", "tang2022biased"),
        ("x, y", "schulman2015gradient"),
        ("x, y", "foerster2018dice"),
        ("z", "kingma2014auto"),
        ("z", "rezende2014stochastic"),
    ]


def test_a_name_for_two_parts_does_not_make_them_another_estimator():
    named = sg.SGMRLPublished()
    assert named == sg.Estimator("dice", "cost")
    assert hash(named) == hash(sg.Estimator("dice", "cost"))
    assert named.papers[0].key == "fallah2021convergence"
