"""The pages of algorithms: graph, equations and ledger are made by the library, curves are those of reproduced runs."""

import re
from pathlib import Path

from stochgraph.algorithms.environments import Navigation, RandomMDP
from stochgraph.algorithms.meta_sgd import LearnedRates
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.objectives.template import Template
from stochgraph.algorithms.policies import ActorCritic, GaussianMLP, TabularSoftmax
from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training.settings import ALGORITHMS as FUNCTIONS
from stochgraph.algorithms.training.settings import PLAIN_ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
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
# The figures of the experiments that an algorithm was run in.
CURVES = {
    "maml": ["fallah-line", "fallah-table-1", "xu-zhu-lakes-many-holes", "xu-zhu-lakes-few-holes"],
    "lsf": ["tang-figure-1a", "tang-figure-1b", "fallah-line"],
    "loo": ["tang-figure-1a", "tang-figure-1b"],
    "sgmrl": ["fallah-line", "fallah-table-1"],
    "bomrl": [f"xu-zhu-{lakes}-{holes}-holes" for lakes in ("exact-lakes", "lakes") for holes in ("many", "few")],
}


def described(name: str) -> str:
    """The page of a module of algorithms."""
    module = f"```{{eval-rst}}\n.. automodule:: stochgraph.algorithms.{name}\n```\n"
    return "\n".join([f"# {NAMES[name]}\n", module, *_bias(name), *_graph(name), *_equations(name), *_curves(name)])


def graphs() -> dict[str, str]:
    """The graph of the first algorithm of every module, by the name of its file."""
    return {f"figures/{name}-graph.svg": _template(_functions(name)[0]).graph.draw(fold=True).svg() for name in NAMES}


def _functions(name: str) -> list[str]:
    """The algorithms of a module, as runs call them, its own name first."""
    found = [called for called, fn in FUNCTIONS.items() if fn.__module__.rpartition(".")[2] == name]
    return sorted(found, key=lambda called: called.replace("-", "_") != name)


def _template(called: str) -> Template:
    """An algorithm on a small problem: two tasks, four trajectories of three steps."""
    environment = RandomMDP(2, 2) if called.startswith("bomrl") else Navigation()
    policy = TabularSoftmax(2, 2) if called.startswith("bomrl") else GaussianMLP(2, 2, hidden=())
    if called == "meta-sgd":
        policy = LearnedRates(policy, 0.1)
    if called in ("a2c", "ppo"):
        policy = ActorCritic(policy, 2, ())
    walks = Rollouts(environment, policy, horizon=3)
    problem = MetaProblem(
        trajectories=walks,
        tasks=lambda: environment.declare_tasks(2),
        policy=policy,
        steps=0 if called in PLAIN_ALGORITHMS else 1,
        inner=4,
        outer=4,
        discount=0.9,
    )
    return FUNCTIONS[called](problem)


def _graph(name: str) -> list[str]:
    steps = "without an inner step" if name in PLAIN_ALGORITHMS else "with one inner step"
    return [f"## Its graph\n\nOn two tasks, {steps}.\n\n![The graph](../figures/{name}-graph.svg)\n"]


def _equations(name: str) -> list[str]:
    """What every algorithm of the module estimates, and how it counts paths."""
    parts = ["## Its equations\n\nThe estimator, read off what was compiled, and how it counts every path.\n"]
    for called in _functions(name):
        parts.append(f"### `{called}`\n\n{_template(called).compile().explain()._repr_markdown_()}\n")
    return parts


def _bias(name: str) -> list[str]:
    """The rows of the page of biases that are about the module. Without an inner step there are none."""
    table = [line for line in (ROOT / "docs" / "biases.md").read_text().splitlines() if line.startswith("| ")]
    functions = [f"`{called}`" for called in _functions(name)]
    rows = [line for line in table[2:] if any(called in line for called in functions)]
    return ["## Exact bias\n", *table[:2], *rows, "\n[How it was computed](../biases.md).\n"] if rows else []


def _curves(name: str) -> list[str]:
    """What was reproduced of the papers' figures."""
    text = (ROOT / "benchmarks" / "reproduce" / "README.md").read_text()
    shown = []
    for experiment in CURVES.get(name, []):
        caption = re.search(rf"!\[([^\]]*)\]\(figures/{experiment}\.png\)", text)
        if caption is None:
            raise ValueError(f"benchmarks/reproduce/README.md shows no figure of {experiment}")
        shown.append(f"### {experiment}\n\n![{caption[1]}](../figures/{experiment}.png)\n")
    return ["## Its curves\n\n[What was reproduced, and how](../reproduced.md).\n", *shown] if shown else []
