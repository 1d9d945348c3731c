"""Citations of the three papers: the year of a version that there is, and equations that this version has."""

import re
from pathlib import Path

import pytest

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
