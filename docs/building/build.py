"""Build the site: `python docs/building/build.py FOLDER`. Strict: a warning fails.

Sphinx with MyST, since docstrings, their mathematics included, are read as they are, pages are the Markdown that code
hosts show and the tests run, and `-W` fails on every broken link.
"""

import sys
import tempfile
from pathlib import Path

from pages import write_sources
from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).resolve().parent


def build(output: Path) -> int:
    """Put the pages together and have Sphinx make the site; 0 if nothing was wrong."""
    with tempfile.TemporaryDirectory() as sources:
        write_sources(Path(sources))
        strict = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env"]
        doctrees = str(Path(sources) / "_doctrees")
        return sphinx([*strict, "-b", "html", "-c", str(HERE), "-d", doctrees, sources, str(output)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1])))
