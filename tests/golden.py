"""Numbers and texts of every graph of the tests under every estimator, in a file: what a redesign may not move.

python -m tests.golden write golden.json         before
python -m tests.golden compare golden.json       after each step
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import stochgraph as sg
from tests.problems import F64, GRAPHS

ESTIMATORS: dict[str, Any] = {
    "SF": sg.SF(),
    "SF, loo": sg.SF(baseline="loo"),
    "SF, mean": sg.SF(baseline="mean"),
    "SF, linear": sg.SF(baseline="linear"),
    "SF, critic": sg.SF(baseline=lambda trace: torch.tensor(0.3, dtype=F64)),
    "LSF": sg.LSF(),
    "LSF, control variate": sg.LSF(control_variate=True),
    "LOO": sg.LOO(),
    "LVC": sg.LVC(),
    "LoadedDiCE": sg.LoadedDiCE(0.5),
    "LoadedDiCE, critic": sg.LoadedDiCE(0.5, baseline=lambda trace: torch.tensor(0.3, dtype=F64)),
    "LoadedDiCE, loo": sg.LoadedDiCE(0.5, baseline="loo"),
    "Taylor": sg.Taylor(),
    "MAML": sg.MAML(),
    "EMAML": sg.EMAML(),
    "SGMRLPublished": sg.SGMRLPublished(),
    "FirstOrder": sg.FirstOrder(),
    "FirstOrder, cost": sg.FirstOrder("cost"),
    "PW": sg.PW(),
    "LOO and SF, loo": None,  # by sample, in turns
    "LSF and LOO": None,
}
IN_TURNS = {"LOO and SF, loo": (sg.LOO(), sg.SF(baseline="loo")), "LSF and LOO": (sg.LSF(), sg.LOO())}
Entry = dict[str, Any]


def entry(graph: sg.Graph, theta: torch.Tensor, estimators: Any) -> Entry:
    """What one compiled graph gives, or its refusal."""
    try:
        compiled = graph.compile(estimators)
    except sg.CompileError as error:
        return {"refused": str(error)}
    found: Entry = {"size": len(compiled._program)}
    for key, explained in (("ledger", str), ("formula", lambda e: e.latex)):
        found[key] = explained(compiled.explain())
    try:
        generator = torch.Generator().manual_seed(3)
        trace = compiled.sample(theta, generator=generator)
        shift = 0.1 * torch.cos(torch.arange(theta.numel(), dtype=F64)).reshape(theta.shape)
        grad = torch.func.grad(compiled.surrogate)
        found["gradient"] = grad(theta, trace).flatten().tolist()
        found["elsewhere"] = grad(theta + shift, trace).flatten().tolist()
        first = lambda t: grad(t, trace).flatten()[0]  # noqa: E731
        found["hessian"] = torch.func.grad(first)(theta).flatten().tolist()
    except (RuntimeError, ValueError) as error:
        found["failed"] = str(error)
    return found


def entries() -> Iterator[tuple[str, Entry]]:
    """All of them."""
    for graph_name, (make, theta) in GRAPHS.items():
        for name, estimator in ESTIMATORS.items():
            graph = make()
            chosen = estimator
            if estimator is None:
                pair = IN_TURNS[name]
                chosen = {sample: pair[i % 2] for i, sample in enumerate(graph.samples)}
            yield f"{graph_name} | {name}", entry(graph, theta, chosen)


def differences(before: dict[str, Entry], after: dict[str, Entry]) -> Iterator[str]:
    """What moved, a line each: texts at all, numbers by more than rounding."""
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, {}), after.get(key, {})
        for field in sorted(old.keys() | new.keys()):
            if not _equal(old.get(field), new.get(field)):
                yield f"{key} | {field}\n  before {old.get(field)}\n  after  {new.get(field)}"


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return torch.allclose(torch.tensor(old), torch.tensor(new), rtol=1e-10, atol=1e-12, equal_nan=True)
    return bool(old == new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--fields", default="", help="only these, separated by commas")
    chosen = parser.parse_args()
    found = dict(entries())
    if chosen.action == "write":
        chosen.file.write_text(json.dumps(found, indent=0))
        return
    before = json.loads(chosen.file.read_text())
    fields = set(chosen.fields.split(",")) - {""}
    if fields:
        before, found = (
            {k: {f: v for f, v in e.items() if f in fields} for k, e in each.items()} for each in (before, found)
        )
    lines = list(differences(before, found))
    print("\n".join(lines))
    print(f"{len(found)} entries, {len(lines)} differences")


if __name__ == "__main__":
    main()
