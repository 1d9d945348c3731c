"""The pages of the site that are made: one an estimator, one an algorithm, the reference.

What can be read off the library is not written a second time in `docs/`: definitions are the docstrings, ledgers and
figures are made by the library, exact biases are the rows of the page of biases.
"""

import contextlib
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from algorithm_pages import NAMES, described, graphs
from figures import ESTIMATORS, bias_and_variance, compiled

import stochgraph as sg

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "PW": "Measured on the square of the mean of N normal draws, 400 estimates a point.",
    "DisARM": "Exact, over all outcomes: the exponential of the mean of N coins.",
    "Plugin": "Exact, over all outcomes: the return of a random walk after one step on the expectation of walks.",
    "Jackknife": "Exact, over all outcomes: the return of a random walk after one step on the expectation of walks.",
    "REBAR": "By quadrature of their noise: the exponential of the mean of N coins, at a temperature of 1.",
    "RELAX": "By quadrature of their noise: the exponential of the mean of N coins, at a temperature of 1.",
    "Relaxed": "By quadrature of their noise: the exponential of the mean of N coins, at a temperature of 1.",
}
REFERENCE = {
    "declare": "graph sample data mean expect sum reduce logmeanexp apply log_prob stop ascend descend momentum "
    "adam unknown argmax vectorize",
    "compile": "Graph Compiled Trace accumulate chunks chunk_size",
    "explain": "Explanation Row Group",
    "prove": "verify Verification verify_loss tune Tuning Trial profile Profile Figures",
    "samplers": "Sampler",
    "errors": "StochgraphError DeclarationError CompileError InputError FunctionError SamplingError SolverError "
    "VerificationError",
}
PARTS = {
    "solvers": ["stochgraph.solvers"],
    "algorithms": [
        "stochgraph.algorithms.objectives.meta_policy_gradient",
        "stochgraph.algorithms.objectives.template",
        "stochgraph.algorithms.objectives.learned_return",
        "stochgraph.algorithms.inner_steps.policy_gradient",
        "stochgraph.algorithms.inner_steps.advantages",
        "stochgraph.algorithms.environments",
        "stochgraph.algorithms.policies",
        "stochgraph.algorithms.rollouts",
        "stochgraph.algorithms.training",
    ],
}


def write_sources(folder: Path) -> None:
    """Everything that Sphinx reads, what is written by hand and what is made."""
    for name in ("estimators", "algorithms", "reference", "figures", "notebooks"):
        (folder / name).mkdir()
    shutil.copytree(ROOT / "benchmarks" / "reproduce" / "figures", folder / "figures", dirs_exist_ok=True)
    for page in (ROOT / "docs").glob("*.md"):
        (folder / page.name).write_text(page.read_text().replace("](../notebooks/", "](notebooks/"))
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        text = notebook.read_text().replace("](../docs/", "](../")
        text = text.replace("](../benchmarks/reproduce/README.md)", "](../reproduced.md)")
        (folder / "notebooks" / notebook.name).write_text(text)
    for name, text in made().items():
        (folder / name).write_text(text)


def made() -> dict[str, str]:
    """The texts of the files that are made, by their names."""
    pages = {"figures/start.svg": declared_in("index").draw().svg(), "reproduced.md": _reproduced()}
    pages |= _shown()
    for name in ESTIMATORS:
        pages[f"estimators/{name}.md"] = _estimator(name)
        pages[f"figures/{name}.svg"] = bias_and_variance(name)
    pages |= {f"algorithms/{name}.md": described(name) for name in NAMES} | graphs()
    pages |= {f"reference/{part}.md": _exports(part, names.split()) for part, names in REFERENCE.items()}
    pages["reference/more.md"] = _exports("more", _unlisted())
    pages |= {f"reference/{part}.md": _modules(part, names) for part, names in PARTS.items()}
    return pages


def _unlisted() -> list[str]:
    """The public names that stand nowhere else."""
    listed = {*ESTIMATORS, *PARTS, *" ".join(REFERENCE.values()).split()}
    return [name for name in sg.__all__ if name not in listed]


def declared_in(page: str) -> sg.Graph:
    """The graph of a page, as it is declared there first."""
    return next(value for value in _run(page, most=1).values() if isinstance(value, sg.Graph))


def _run(page: str, most: int | None = None) -> dict[str, Any]:
    """What the first blocks of code of a page leave behind, or all of them."""
    path = ROOT / "docs" / f"{page}.md"
    text, namespace = path.read_text(), dict[str, Any]()
    for block in list(re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL))[:most]:
        above = "\n" * text.count("\n", 0, block.start(1))  # so that its lines are those of the page
        exec(compile(above + block[1], str(path), "exec"), namespace)
    return namespace


def _shown() -> dict[str, str]:
    """The pictures and the report of the page on showing a graph, as its code makes them."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        made = _run("showing")
        return {
            "figures/sharpe.svg": made["figure"].svg(),
            "figures/profile.svg": made["profile"].plot().svg(),
            "figures/report.html": Path("report.html").read_text(encoding="utf-8"),
        }


def _directive(kind: str, name: str) -> str:
    return f"```{{eval-rst}}\n.. {kind}:: {name}\n```\n"


def _estimator(name: str) -> str:
    explanation = compiled(name, 2).explain()
    shown = EXAMPLES.get(name, "Exact, over all outcomes: the return of a random walk after one inner step on N walks.")
    return "\n".join(
        [
            f"# {name}\n",
            _directive("autofunction", f"stochgraph.{name}"),
            f"## Its ledger\n\n{explanation._repr_markdown_()}\n",
            f"## Its bias and variance\n\n{shown}\n\n![Bias and variance of {name}](../figures/{name}.svg)\n",
        ]
    )


def _exports(part: str, names: list[str]) -> str:
    kinds = ["autoclass" if isinstance(getattr(sg, name), type) else "autofunction" for name in names]
    described = [
        f"## {name}\n\n{_directive(kind, f'stochgraph.{name}')}" for name, kind in zip(names, kinds, strict=True)
    ]
    return "\n".join([f"# {part.capitalize()}\n", *described])


def _modules(part: str, names: list[str]) -> str:
    titles = (name.removeprefix("stochgraph.").removeprefix("algorithms.") for name in names)
    described = [f"## {title}\n\n{_directive('automodule', name)}" for title, name in zip(titles, names, strict=True)]
    return "\n".join([f"# {part.capitalize()}\n", *described])


def _reproduced() -> str:
    """The page of what was reproduced; the files of results stay in the repository."""
    text = (ROOT / "benchmarks" / "reproduce" / "README.md").read_text()
    return re.sub(r"\[([^\]]*)\]\(results/[^)]*\)", r"\1", text)
