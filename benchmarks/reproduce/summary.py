"""The page of what was reproduced, from the files of results: a row an experiment, and every run with its files.

    python benchmarks/reproduce/summary.py

writes README.md and figures/ beside this file. No number on the page is from anywhere else than a file that it names.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.reproduce import lakes, tang  # noqa: E402
from benchmarks.reproduce.claims import verdict as verdict_of  # noqa: E402
from benchmarks.reproduce.experiments import EXPERIMENTS, Experiment  # noqa: E402
from benchmarks.reproduce.jobs import Job, jobs_of  # noqa: E402

SCRIPTS: dict[str, Any] = {"lakes.py": lakes, "tang.py": tang}  # each puts its result in words and draws it
HEAD = """# What was reproduced

Made by `python benchmarks/reproduce/summary.py` from the files in `results/`; nothing here is typed in. "Published" is
what the paper prints, "ours" the return on held-out tasks after the last adaptation step, at the end of training: mean
± standard deviation over seeds. A command does what is missing of an experiment; what is done it leaves alone.
"""


@dataclass(frozen=True)
class Reached:
    """What the runs of a variant reached.

    Attributes:
        name: of the variant.
        runs: those that are whole.
        asked: how many there will be.
        by_step: the last return of each after 0, 1, ... adaptation steps.
    """

    name: str
    runs: tuple[Job, ...]
    asked: int
    by_step: tuple[list[float], ...]

    @property
    def returns(self) -> list[float]:
        """The last return of each after all adaptation steps."""
        return [each[-1] for each in self.by_step]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return fmean(self.returns)

    def means(self) -> list[float]:
        """The mean over seeds after 0, 1, ... adaptation steps."""
        return [fmean(values) for values in zip(*self.by_step, strict=True)]

    def __str__(self) -> str:
        deviation = f" ± {stdev(self.returns):.3f}" if len(self.returns) > 1 else ""
        return f"{self.mean:.3f}{deviation}"


def last_returns(job: Job) -> list[float]:
    """Returns on held-out tasks after 0, 1, ... adaptation steps, averaged over the last evaluations of a run."""
    found = [line["returns"] for line in evaluations(job)[-job.experiment.averaged :]]
    return [fmean(values) for values in zip(*found, strict=True)]


def evaluations(job: Job) -> list[dict[str, Any]]:
    """The lines of evaluations of a run."""
    lines = map(json.loads, (job.folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "evaluation"]


def done(job: Job) -> dict[str, Any]:
    """What was written down when a run was whole."""
    found: dict[str, Any] = json.loads((job.folder / "done.json").read_text())
    return found


def reached(experiment: Experiment, results: Path) -> list[Reached]:
    """The variants of an experiment of which a run is whole."""
    found = []
    for variant in experiment.variants:
        jobs = [job for job in jobs_of([experiment], results) if job.variant == variant]
        runs = tuple(job for job in jobs if job.done())
        if runs:
            found.append(Reached(variant, runs, len(jobs), tuple(map(last_returns, runs))))
    return found


def compared(experiment: Experiment, found: Iterable[Reached]) -> Iterator[str]:
    """What the paper says that is above something else, with by how much it is here."""
    by_name = {each.name: each for each in found}
    for above, below in experiment.above:
        if above in by_name and below in by_name:
            one, other = by_name[above], by_name[below]
            mine = {run.seed: value for run, value in zip(one.runs, one.returns, strict=True)}
            theirs = {run.seed: value for run, value in zip(other.runs, other.returns, strict=True)}
            both = mine.keys() & theirs.keys()
            won = sum(mine[seed] > theirs[seed] for seed in both)
            words = f"{one.mean - other.mean:+.3f}, {won} of {len(both)} seeds"
            if len(one.means()) > 2:
                higher = [k for k, (a, b) in enumerate(zip(one.means(), other.means(), strict=True)) if k and a > b]
                words += f", above after {', '.join(map(str, higher)) or 'none'} of the steps"
            yield f"{above} is {'above' if one.mean > other.mean else 'not above'} {below} ({words})"
    learned = [each for name, each in by_name.items() if name not in experiment.lines]
    for line in experiment.lines if learned else ():
        if line in by_name:
            best, value = max(learned, key=lambda each: each.mean), by_name[line].mean
            yield f"best against {line} ({value:.3f}): {best.name}, {best.mean - value:+.3f}"


def command(experiment: Experiment) -> str:
    """What does an experiment."""
    return f"python benchmarks/reproduce/run.py --only {experiment.name}"


def of_script(experiment: Experiment, results: Path) -> dict[str, Any] | None:
    """The result of a script, if it is whole."""
    (job,) = jobs_of([experiment], results)
    return json.loads((job.folder / "result.json").read_text()) if job.done() else None


def row(experiment: Experiment, results: Path) -> list[str]:
    """The cells of an experiment in the first table."""
    if experiment.script:
        result, script = of_script(experiment, results), SCRIPTS[experiment.script[0]]
        ours = "not run yet" if result is None else script.in_words(result)
        verdict = "" if result is None else verdict_of(script.claims_of(result))
    else:
        found = reached(experiment, results)
        ours = "; ".join(f"{each.name} {each} ({len(each.runs)} seeds)" for each in found) or "not run yet"
        verdict = "; ".join(compared(experiment, found))
    name = f"[{experiment.name}](#{experiment.name})"
    return [name, experiment.paper, experiment.shows, experiment.published, ours, verdict, f"`{command(experiment)}`"]


def section(experiment: Experiment, results: Path, figures: Path) -> Iterator[str]:
    """An experiment with all its runs and their files."""
    jobs = jobs_of([experiment], results)
    whole = [job for job in jobs if job.done()]
    yield f"\n## {experiment.name}\n\n{experiment.paper}, {experiment.shows}. Ours: {experiment.ours}.\n"
    yield f"{len(whole)} of {len(jobs)} runs are done.\n"
    if (figures / f"{experiment.name}.png").is_file():
        yield f"![{experiment.shows}](figures/{experiment.name}.png)\n"
    if not whole:
        return
    if experiment.script:
        for job in whole:
            yield f"[result](results/{job.name}/result.json), with {_commits([job])}\n"
        return
    steps = len(reached(experiment, results)[0].means())
    after = f" after {', '.join(map(str, range(steps)))} steps" if steps > 2 else ""
    yield f"| variant | final return{after} | seeds | iterations | minutes a run | commit |\n|---|---|---|---|---|---|"
    for each in reached(experiment, results):
        value = ", ".join(f"{mean:.3f}" for mean in each.means()[:-1]) + f", {each}" if after else each
        seeds = ", ".join(f"[{job.seed}](results/{job.name}/metrics.jsonl)" for job in each.runs)
        iterations = ", ".join(sorted({str(done(job)["iterations"]) for job in each.runs}))
        minutes = fmean(done(job)["seconds"] for job in each.runs) / 60
        count = f"{len(each.runs)} of {each.asked}: {seeds}"
        yield f"| {each.name} | {value} | {count} | {iterations} | {minutes:.1f} | {_commits(each.runs)} |"


def _commits(jobs: Iterable[Job]) -> str:
    return ", ".join(sorted({f"`{(job.commit() or '')[:12]}`" for job in jobs}))


def page(experiments: Iterable[Experiment], results: Path, figures: Path) -> str:
    """The whole page."""
    experiments = list(experiments)
    heads = ["experiment", "paper", "shows", "published", "ours", "verdict", "command"]
    lines = [heads, ["---"] * len(heads), *(row(each, results) for each in experiments)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    sections = "\n".join(line for each in experiments for line in section(each, results, figures))
    return f"{HEAD}\n{table}\n{sections}\n"


def plot(axes: Any, found: Iterable[Reached]) -> None:
    """Returns by adaptation steps if there are some, by iterations else: means, and bands that hold all seeds."""
    for i, each in enumerate(found):
        by_step = len(each.by_step[0]) > 2
        curves: Iterable[Sequence[float]] = each.by_step
        places: Sequence[int] = range(len(each.by_step[0]))
        if not by_step:
            curves = [[line["returns"][-1] for line in evaluations(run)] for run in each.runs]
            places = [line["iteration"] for line in evaluations(each.runs[0])]
        bands: tuple[Callable[[Iterable[float]], float], ...] = (fmean, min, max)
        mean, low, high = ([take(values) for values in zip(*curves, strict=True)] for take in bands)
        label = f"{each.name}, {len(each.runs)} seed{'s' * (len(each.runs) > 1)}"
        axes.plot(places, mean, ":" if each.name.endswith("untrained") else "-", color=f"C{i}", label=label)
        axes.fill_between(places, low, high, color=f"C{i}", alpha=0.12, linewidth=0)
        axes.set(xlabel="adaptation steps" if by_step else "meta-iteration", ylabel="return, held-out tasks")
        if by_step:
            axes.set_xticks(places)


def draw(experiment: Experiment, results: Path, picture: Any) -> bool:
    """Draw an experiment on an empty figure; whether there is something to draw."""
    if experiment.script:
        result = of_script(experiment, results)
        if result is not None:
            SCRIPTS[experiment.script[0]].plot(result, picture)
        return result is not None
    found = reached(experiment, results)
    learned = [each for each in found if each.name not in experiment.lines]
    if not learned:
        return False
    axes = picture.add_subplot()
    plot(axes, learned)
    for each, style in zip([each for each in found if each not in learned], ":-", strict=False):
        axes.axhline(each.mean, color="grey", linestyle=style, linewidth=1, label=each.name)
    axes.legend(frameon=False, fontsize="small")
    return True


def save_figure(experiment: Experiment, results: Path, figures: Path) -> None:
    """Write the figure of an experiment, if there is something to draw."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 4) if experiment.script else (7, 4.5), layout="constrained")
    if draw(experiment, results, picture):
        figures.mkdir(exist_ok=True)
        picture.savefig(figures / f"{experiment.name}.png", dpi=110, metadata={"Software": None})


def main() -> None:
    """Write the page and its figures."""
    results, figures = HERE / "results", HERE / "figures"
    for experiment in EXPERIMENTS:
        save_figure(experiment, results, figures)
    (HERE / "README.md").write_text(page(EXPERIMENTS, results, figures))


if __name__ == "__main__":
    main()
