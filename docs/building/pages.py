"""The pages of the site that are made: one an estimator, one an algorithm, the reference.

What can be read off the library is not written a second time in `docs/`: definitions are the docstrings, ledgers and
figures are made by the library, exact biases are the rows of the page of biases.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from figures import ESTIMATORS, bias_and_variance, compiled, svg

import stochgraph as sg

ROOT = Path(__file__).resolve().parents[2]
ALGORITHMS = {
    "maml": "MAML",
    "emaml": "E-MAML",
    "lsf": "LSF, DiCE-MAML",
    "loo": "LOO",
    "sgmrl": "SG-MRL",
    "promp": "ProMP",
    "tmaml": "TMAML",
    "meta_sgd": "Meta-SGD",
    "bomrl": "BO-MRL",
    "reinforce": "REINFORCE",
    "a2c": "A2C",
    "ppo": "PPO",
}
REFERENCE = {
    "declare": "graph sample data mean expect sum reduce logmeanexp apply log_prob stop ascend descend momentum adam "
    "unknown argmax vectorize",
    "compile": "Graph Compiled Trace accumulate chunks chunk_size",
    "explain": "Explanation Row",
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
    pages = {"figures/start.svg": svg(declared_in("index").draw()), "reproduced.md": _reproduced()}
    pages["figures/sharpe.svg"] = svg(declared_in("showing").draw(fold=True))
    for name in ESTIMATORS:
        pages[f"estimators/{name}.md"] = _estimator(name)
        pages[f"figures/{name}.svg"] = bias_and_variance(name)
    pages |= {f"algorithms/{name}.md": _algorithm(name) for name in ALGORITHMS}
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
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.DOTALL)
    if code is None:
        raise ValueError(f"docs/{page}.md declares no graph")
    namespace: dict[str, Any] = {}
    exec(code[1], namespace)
    return next(value for value in namespace.values() if isinstance(value, sg.Graph))


def _directive(kind: str, name: str) -> str:
    return f"```{{eval-rst}}\n.. {kind}:: {name}\n```\n"


def _estimator(name: str) -> str:
    explanation = compiled(name, 2).explain()
    shown = (
        "Measured on the square of the mean of N normal draws, 400 estimates a point."
        if name == "PW"
        else "Exact, over all outcomes: the return of a random walk after one inner step on N walks; of an estimator "
        "of expectations, after one step on their expectation."
    )
    return "\n".join(
        [
            f"# {name}\n",
            _directive("autofunction", f"stochgraph.{name}"),
            f"## Its ledger\n\n{explanation._repr_markdown_()}\n",
            f"## Its bias and variance\n\n{shown}\n\n![Bias and variance of {name}](../figures/{name}.svg)\n",
        ]
    )


def _algorithm(name: str) -> str:
    table = [line for line in (ROOT / "docs" / "biases.md").read_text().splitlines() if line.startswith("| ")]
    functions = set(
        re.findall(r"^def ([a-z]\w*)\(", (ROOT / "algorithms" / f"{name}.py").read_text(), flags=re.MULTILINE)
    )
    rows = [line for line in table[2:] if not functions.isdisjoint(_spellings(line))]
    found = "[How it was computed](../biases.md), and [what was reproduced](../reproduced.md) of the papers' curves."
    # Without an inner step there is none of the paths that the table is about.
    bias = ["## Exact bias\n", *table[:2], *rows, f"\n{found}"] if rows else []
    return "\n".join(
        [
            f"# {ALGORITHMS[name]}\n",
            _directive("automodule", f"stochgraph.algorithms.{name}"),
            *bias,
        ]
    )


def _spellings(row: str) -> list[str]:
    """The functions that a row of the table of biases may be about: its words stand in either order."""
    words = row.split("`")[1].split("-")
    return ["_".join(words), "_".join([*words[1:], words[0]])]


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
