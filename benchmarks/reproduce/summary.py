"""The page of what was reproduced, from the files of results: a row an experiment, and every run with its files.

    python benchmarks/reproduce/summary.py

writes README.md and figures/ beside this file. No number on the page is from anywhere else than a file that it names.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.reproduce import lakes, tang  # noqa: E402
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
        returns: the last return of each.
    """

    name: str
    runs: tuple[Job, ...]
    asked: int
    returns: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return fmean(self.returns)

    def __str__(self) -> str:
        deviation = f" ± {stdev(self.returns):.3f}" if len(self.returns) > 1 else ""
        return f"{self.mean:.3f}{deviation}"


def last_return(job: Job) -> float:
    """The return on held-out tasks after adaptation, averaged over the last evaluations of a run."""
    lines = map(json.loads, (job.folder / "metrics.jsonl").read_text().splitlines())
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    return fmean(line["returns"][-1] for line in evaluations[-job.experiment.averaged :])


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
            found.append(Reached(variant, runs, len(jobs), tuple(map(last_return, runs))))
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
            yield (
                f"{above} is {'above' if one.mean > other.mean else 'not above'} {below} "
                f"({one.mean - other.mean:+.3f}, {won} of {len(both)} seeds)"
            )
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
        result = of_script(experiment, results)
        ours = "not run yet" if result is None else SCRIPTS[experiment.script[0]].in_words(result)
        verdict = "" if result is None else result["verdict"]
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
    yield "| variant | final return | seeds | iterations | minutes a run | commit |\n|---|---|---|---|---|---|"
    for each in reached(experiment, results):
        seeds = ", ".join(f"[{job.seed}](results/{job.name}/metrics.jsonl)" for job in each.runs)
        iterations = ", ".join(sorted({str(done(job)["iterations"]) for job in each.runs}))
        minutes = fmean(done(job)["seconds"] for job in each.runs) / 60
        count = f"{len(each.runs)} of {each.asked}: {seeds}"
        yield f"| {each.name} | {each} | {count} | {iterations} | {minutes:.1f} | {_commits(each.runs)} |"


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


def draw(experiment: Experiment, results: Path, figures: Path) -> None:
    """The figure of an experiment, if there is something to draw."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 4) if experiment.script else (7, 4.5), layout="constrained")
    if experiment.script:
        result = of_script(experiment, results)
        if result is None:
            return
        SCRIPTS[experiment.script[0]].plot(result, picture)
    else:
        from stochgraph.algorithms.training import compare

        found = reached(experiment, results)
        learned = [each for each in found if each.name not in experiment.lines]
        if not learned:
            return
        axes = picture.add_subplot()
        compare([run.folder.parent for each in learned for run in each.runs[:1]]).plot(axes)
        for each, style in zip([each for each in found if each not in learned], ":-", strict=False):
            axes.axhline(each.mean, color="grey", linestyle=style, linewidth=1, label=each.name)
        axes.legend(frameon=False, fontsize="small")
    figures.mkdir(exist_ok=True)
    picture.savefig(figures / f"{experiment.name}.png", dpi=110, metadata={"Software": None})


def main() -> None:
    """Write the page and its figures."""
    results, figures = HERE / "results", HERE / "figures"
    for experiment in EXPERIMENTS:
        draw(experiment, results, figures)
    (HERE / "README.md").write_text(page(EXPERIMENTS, results, figures))


if __name__ == "__main__":
    main()
