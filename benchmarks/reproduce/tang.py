"""Figure 1(a) and 1(b) of Tang et al. (2022): a one-dimensional objective, estimators of its gradient, updates by them.

The objective is L(theta) = E[-(mean of N draws of N(theta, 1) - 1)^2] = -(theta - 1)^2 - 1/N. One call writes
`result.json` to a folder; what is in it already is not computed again.

    python benchmarks/reproduce/tang.py gradients FOLDER
    python benchmarks/reproduce/tang.py updates FOLDER
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

# Behind an installed package, which is what is run.
sys.path.append(str(Path(__file__).resolve().parents[2]))

import stochgraph as sg
from benchmarks.reproduce.claims import verdict, write_result

STARTS = (0.0, 2.0)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
ESTIMATORS: dict[str, Callable[[], Any]] = {"SF": sg.SF, "LSF": sg.LSF, "LOO": sg.LOO, "PW": sg.PW}
REPEATS, STEPS, RATE = 100, 100, 0.1


@sg.graph
def objective(theta: Any) -> Any:
    """The objective, with as many draws as it is asked for."""
    x = sg.sample("x", Normal, theta, 1.0, n=2)
    return -((sg.mean(x) - 1.0) ** 2)


def value(theta: Tensor, size: int) -> Tensor:
    """The objective, exactly."""
    return -((theta - 1) ** 2) - 1 / size


def gradients(estimator: str, theta: Tensor, size: int) -> Tensor:  # (estimates,) -> (estimates,)
    """One estimate at each of these parameters, all independent."""
    compiled = objective.compile(ESTIMATORS[estimator]())

    def one(at: Tensor) -> Tensor:
        trace = compiled.sample(at, sizes={"x": size})
        return torch.func.grad(compiled.surrogate)(at, trace)

    found: Tensor = torch.vmap(one, randomness="different")(theta)
    return found


def expected_error(estimator: str, start: float, size: int) -> float:
    """The mean squared error of one estimate of the gradient, in closed form."""
    mu, n = start - 1, size
    if estimator == "SF":
        return mu**4 * n + 14 * mu**2 + 15 / n
    if estimator == "LSF":
        terms = mu**2 * (start**2 + 2) / n, (2 * mu * start * (n + 4) + 3 * start**2) / n**2, (n + 2) * (n + 4) / n**3
        return 4 * sum(terms)
    return 4 / n if estimator == "PW" else math.nan


def of_gradients(estimator: str, start: float, size: int) -> dict[str, float]:
    """Figure 1(a): errors against the mean of 1000 pathwise estimates."""
    true = gradients("PW", torch.full((1000,), start, dtype=torch.float64), size).mean()
    found = gradients(estimator, torch.full((REPEATS,), start, dtype=torch.float64), size)
    figures = {"mse": float((found - true).square().mean()), "variance": float(found.var())}
    exact = expected_error(estimator, start, size)
    return figures if math.isnan(exact) else {**figures, "exact_mse": exact}


def of_updates(estimator: str, start: float, size: int) -> dict[str, float]:
    """Figure 1(b): the objective after 100 steps of Adam, each along one estimate."""
    theta = torch.full((REPEATS,), start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=RATE, maximize=True)  # elementwise: every repeat has a state of its own
    for _ in range(STEPS):
        theta.grad = gradients(estimator, theta.detach(), size)
        optimizer.step()
    reached = value(theta.detach(), size)
    return {"mean": float(reached.mean()), "std": float(reached.std())}


KINDS: dict[str, Callable[[str, float, int], dict[str, float]]] = {"gradients": of_gradients, "updates": of_updates}


def cases() -> list[tuple[str, float, int]]:
    """Every estimator at every start with every number of draws; leaving one out needs another."""
    return [(e, s, n) for s in STARTS for e in ESTIMATORS for n in SIZES if not (e == "LOO" and n == 1)]


def read(points: dict[str, dict[str, float]], figure: str) -> Callable[[str, float, int], float]:
    """One figure of a point."""
    return lambda estimator, start, size: points[key(estimator, start, size)][figure]


def key(estimator: str, start: float, size: int) -> str:
    """The name of a point."""
    return f"{estimator}, start {start:g}, N {size}"


def claims_on_gradients(points: dict[str, dict[str, float]]) -> dict[str, bool]:
    """What the paper says of figure 1(a), and whether it is so here."""
    mse = read(points, "mse")
    return {
        "SF's error at N = 1000 is above that at N = 10": all(mse("SF", s, 1000) > mse("SF", s, 10) for s in STARTS),
        "LSF's falls with every tenfold N": all(
            mse("LSF", s, n) > mse("LSF", s, 10 * n) for s in STARTS for n in (1, 10, 100)
        ),
        "PW's is the lowest": all(
            mse("PW", s, n) <= min(mse(e, s, n) for e in ("SF", "LSF")) for s in STARTS for n in SIZES
        ),
        "LSF is above SF at N = 1": all(mse("LSF", s, 1) > mse("SF", s, 1) for s in STARTS),
        "LSF is below SF from N = 10 on": all(mse("LSF", s, n) < mse("SF", s, n) for s in STARTS for n in SIZES[3:]),
    }


def claims_on_updates(points: dict[str, dict[str, float]]) -> dict[str, bool]:
    """What the paper says of figure 1(b), and whether it is so here; of the distance to the optimum, -1/N."""

    def missed(estimator: str, start: float, size: int) -> float:
        return -1 / size - points[key(estimator, start, size)]["mean"]

    return {
        "SF is further from the optimum at N = 1000 than at N = 10": all(
            missed("SF", s, 1000) > missed("SF", s, 10) for s in STARTS
        ),
        "LSF comes nearer to it with every tenfold N": all(
            missed("LSF", s, n) > missed("LSF", s, 10 * n) for s in STARTS for n in (1, 10, 100)
        ),
        "LSF is below SF at N = 1": all(missed("LSF", s, 1) > missed("SF", s, 1) for s in STARTS),
        "LSF is where PW is at N = 1000, to .01": all(
            abs(missed("LSF", s, 1000) - missed("PW", s, 1000)) < 0.01 for s in STARTS
        ),
    }


def claims_of(result: dict[str, Any]) -> dict[str, bool]:
    """What the paper says of a figure, and whether it is so in a result."""
    return (claims_on_gradients if result["kind"] == "gradients" else claims_on_updates)(result["points"])


def in_words(result: dict[str, Any]) -> str:
    """A few of the figures, from the start where LSF is above SF for more than one draw."""
    figure, words = ("mse", "error") if result["kind"] == "gradients" else ("mean", "objective")
    found = read(result["points"], figure)
    parts = (f"{name} {found(name, STARTS[-1], 10):.3g} and {found(name, STARTS[-1], 1000):.3g}" for name in ESTIMATORS)
    return f"{words} from {STARTS[-1]:g} at N = 10 and 1000: {'; '.join(parts)} (means of {result['repeats']} repeats)"


def plot(result: dict[str, Any], picture: Any) -> None:
    """The figure, a panel a start."""
    figure, label = ("mse", "mean squared error") if result["kind"] == "gradients" else ("mean", "objective reached")
    for axes, start in zip(picture.subplots(1, len(STARTS)), STARTS, strict=True):
        for i, name in enumerate(ESTIMATORS):
            sizes = [n for e, s, n in cases() if (e, s) == (name, start)]
            found = [result["points"][key(name, start, n)] for n in sizes]
            axes.plot(sizes, [point[figure] for point in found], "o-", markersize=3, color=f"C{i}", label=name)
            if figure == "mean":
                low, high = ([p["mean"] + sign * p["std"] for p in found] for sign in (-1, 1))
                axes.fill_between(sizes, low, high, color=f"C{i}", alpha=0.12, linewidth=0)
            elif name in ("SF", "LSF"):
                exact = [point["exact_mse"] for point in found]
                axes.plot(sizes, exact, ":", color=f"C{i}", label=f"{name}, exactly")
        axes.set(xscale="log", yscale="log" if figure == "mse" else "linear", xlabel="N", ylabel=label)
        if figure == "mean":
            axes.set_ylim(-3.4, 0.2)
        axes.set_title(f"start {start:g}", fontsize="medium")
        axes.legend(frameon=False, fontsize="small")


def main(kind: str, folder: Path) -> None:
    """Compute what is missing of a figure, point by point; each has randomness of its own."""
    path = folder / "result.json"
    points = json.loads(path.read_text())["points"] if path.is_file() else {}
    for i, (estimator, start, size) in enumerate(cases()):
        name = key(estimator, start, size)
        if name not in points:
            torch.manual_seed(i)
            points[name] = KINDS[kind](estimator, start, size)
            write_result(path, {"kind": kind, "points": points})
    claims = claims_of({"kind": kind, "points": points})
    shown = {"repeats": REPEATS, "claims": claims, "verdict": verdict(claims)}
    write_result(path, {"kind": kind, **shown, "points": points})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
