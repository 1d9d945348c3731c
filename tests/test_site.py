"""The site: it is built strictly, holds a page of everything, fetches nothing, and works in a browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.slow


class Sources(HTMLParser):
    """What a page loads by itself: images, scripts, styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        source = values.get("href") if tag == "link" and values.get("rel") == "stylesheet" else values.get("src")
        if source and not source.startswith("data:"):
            self.found.append(source)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs" / "building" / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def pages(site: Path) -> Iterator[Path]:
    return (path for path in site.rglob("*.html") if "_modules" not in path.parts)


def test_everything_that_is_written_is_a_page(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page.stem
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{notebook.stem}.html").exists(), notebook.stem


def test_every_algorithm_has_a_page_with_its_exact_bias(site: Path) -> None:
    stems = {path.stem for path in (ROOT / "algorithms").glob("*.py")} - {"__init__"}
    assert {path.stem for path in (site / "algorithms").glob("*.html")} == stems
    for stem in stems - {"reinforce", "a2c", "ppo"}:  # which have no inner step
        table = (site / "algorithms" / f"{stem}.html").read_text().partition('<section id="exact-bias">')[2]
        assert "<tbody>" in table.partition("</section>")[0], stem


def test_every_algorithm_has_its_graph_its_equations_and_its_ledger(site: Path) -> None:
    for page in (site / "algorithms").glob("*.html"):
        text = page.read_text()
        assert f"{page.stem}-graph.svg" in text, page.stem
        equations = text.partition('<section id="its-equations">')[2]
        assert "<math" in equations, page.stem
        assert "counted" in equations, page.stem
    assert "fallah-line.png" in (site / "algorithms" / "sgmrl.html").read_text()


def test_the_page_on_showing_a_graph_has_a_report(site: Path) -> None:
    found = list(site.rglob("report.html"))
    assert len(found) == 1
    assert 'id="line-' in found[0].read_text()
    assert found[0].relative_to(site).as_posix() in (site / "showing.html").read_text()


def test_every_estimator_has_its_ledger_and_its_figure(site: Path) -> None:
    found = list((site / "estimators").glob("*.html"))
    assert len(found) >= 13
    for page in found:
        text = page.read_text()
        assert "counted" in text, page.stem
        assert f"{page.stem}.svg" in text, page.stem


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import stochgraph as sg

    text = "".join(
        page.read_text() for folder in ("reference", "estimators") for page in (site / folder).glob("*.html")
    )
    missing = [name for name in sg.__all__ if name != "solvers" and f'id="stochgraph.{name}"' not in text]
    assert missing == []


def test_nothing_is_fetched_and_nothing_is_missing(site: Path) -> None:
    for page in pages(site):
        reader = Sources()
        reader.feed(page.read_text())
        for source in reader.found:
            assert not re.match(r"(https?:)?//", source), f"{page.name} fetches {source}"
            assert (page.parent / source.split("?")[0]).exists(), f"{page.name} lacks {source}"


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.parametrize("name", ["index", "choosing", "estimators/LSF", "algorithms/maml", "reference/compile"])
def test_a_page_fits_a_phone(site: Path, name: str) -> None:
    """The page is framed, since headless windows have a least width."""
    frame = site / name
    frame = frame.with_name(f"frame-{frame.name}.html")
    measure = "document.title = 'wide ' + document.querySelector('iframe').contentDocument.documentElement.scrollWidth"
    frame.write_text(
        f'<body><iframe src="{Path(name).name}.html" width="390" height="800" style="border:0" '
        f'onload="{measure}"></iframe></body>'
    )
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [BROWSER, *options, "--virtual-time-budget=4000", "--dump-dom", frame.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    frame.unlink()
    found: Any = re.search(r"wide (\d+)", shown.split("<body")[0])
    assert found is not None, shown[:500]
    assert int(found[1]) <= 390


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_the_search_finds_a_page(site: Path) -> None:
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    address = f"{(site / 'search.html').as_uri()}?q=linearised"
    command = [BROWSER, *options, "--virtual-time-budget=10000", "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found: Any = re.search(r"found (\d+) pages? matching", shown)
    assert found is not None
    assert int(found[1]) > 0
