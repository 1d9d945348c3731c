"""A choice by measurement: the estimator of every sample node with the least mean squared error at equal time.

The ledger prunes, which costs nothing: what a graph refuses, and what is biased where that is not wanted. What is left
is measured in turn, with common random numbers: in each round every candidate makes as many estimates, and the better
half goes on. So the time goes to those between which the decision is.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .. import estimators as es
from ..derive.populations import expected_plates
from ..errors.exceptions import CompileError, StochgraphError
from ..explain.explanation import bias_of
from ..ir.declaration import Declaration
from ..ir.paths import averaging_plate, descends_from, samples_in
from ..run.compiled import Compiled
from .profiling import Figures, Reference, figures_of, reference_of
from .shares import shares
from .vectors import vector

_MOST = 16  # combinations that are measured against each other
_FEWEST = 4  # estimates of each candidate in a round
_SIZES_SHARE = 0.3  # of the budget
_FACTORS = (0.5, 2.0, 4.0)
_QUANTILE = 1.645  # of intervals of 90 %

_MEANS: dict[str, Callable[[], es.GradientEstimator]] = {
    "sg.SF()": es.SF,
    'sg.SF("loo")': lambda: es.SF("loo"),
    'sg.SF("linear")': lambda: es.SF("linear"),
    "sg.LOO()": es.LOO,
    "sg.PW()": es.PW,
    "sg.Enumerate()": es.Enumerate,
    "sg.DisARM()": es.DisARM,
    "sg.MVD()": es.MVD,
    "sg.LSF()": es.LSF,
    "sg.LSF(control_variate=True)": lambda: es.LSF(control_variate=True),
    "sg.LVC()": es.LVC,
    "sg.MAML()": es.MAML,
    "sg.FirstOrder()": es.FirstOrder,
}
_EXPECTATIONS: dict[str, Callable[[], es.GradientEstimator]] = {
    "sg.Multilevel()": es.Multilevel,
    "sg.Jackknife()": es.Jackknife,
    "sg.Plugin()": es.Plugin,
}
_OF_TRAJECTORIES = frozenset(['sg.SF("linear")', "sg.LVC()"])


class Trial(NamedTuple):
    """A candidate, and what was measured of it.

    Attributes:
        estimators: the estimator of every sample node, as it is written.
        sizes: sizes of plates other than the declared ones.
        mse: the mean squared error of the average of as many estimates as a second allows.
        error: half the width of its 90 % interval.
        seconds: per estimate.
        estimates: how many were made.
        unbiased: whether the ledger says so.
    """

    estimators: Mapping[str, str]
    sizes: Mapping[str, int]
    mse: float
    error: float
    seconds: float
    estimates: int
    unbiased: bool

    @property
    def at_worst(self) -> float:
        """The upper end of the interval, by which trials are ranked: a bias that few estimates hide is no merit."""
        return self.mse + self.error


@dataclass(frozen=True, repr=False)
class Tuning:
    """The result of `tune`: it prints as a choice that can be pasted, with the table behind it.

    Attributes:
        choice: an estimator for every sample node that needs one, for `Graph.compile`.
        sizes: the sizes of plates to draw with, where others than the declared ones are better.
        table: what was measured, the choice first, then by how long it was measured and how well it did.
        pruned: what was not measured, and why: by how it is written, for which sample.
    """

    choice: dict[str, es.GradientEstimator]
    sizes: dict[str, int]
    table: tuple[Trial, ...]
    pruned: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """The table in Markdown."""
        head = "| estimators | sizes | MSE at one second | ± | ms per estimate | estimates | unbiased |"
        rows = [
            f"| {_written(trial.estimators)} | {_sizes_written(trial.sizes)} | {trial.mse:.3g} | {trial.error:.1g} | "
            f"{1e3 * trial.seconds:.3g} | {trial.estimates} | {'yes' if trial.unbiased else 'no'} |"
            for trial in self.table
        ]
        return "\n".join([head, "|---|---|---:|---:|---:|---:|---|", *rows])

    def __repr__(self) -> str:
        best = self.table[0]
        sizes = f"\nsizes={dict(best.sizes)}" if best.sizes else ""
        note = "±: half the width of a 90 % interval; MSE at one second: of the mean of all estimates that fit into it"
        return f"graph.compile({{{_written(best.estimators)}}}){sizes}\n\n{self.to_markdown()}\n\n{note}"

    def _repr_markdown_(self) -> str:
        return f"```python\ngraph.compile({{{_written(self.table[0].estimators)}}})\n```\n\n{self.to_markdown()}"


def tune(
    graph: Declaration,
    *inputs: object,
    budget: float = 10.0,
    unbiased: bool = True,
    generator: torch.Generator | None = None,
) -> Tuning:
    r"""Choose estimators by measurement: the least mean squared error at equal time.

    .. math:: \min_e \; \|\mathrm{bias}_e\|^2 + \operatorname{tr} \mathrm{Var}_e \cdot \text{seconds}_e

    That is the error of the mean of all estimates that fit into a second. Candidates are combinations of the library's
    estimators, one for each sample node. Sizes of plates vary only where a plate reaches the objective through linear
    operations, or is expected: elsewhere another size is another objective.

    Times are those of this machine at this moment, and the parameters are the given ones: tune again after many steps.

    Args:
        graph: the declared graph.
        *inputs: its inputs; the first is differentiated.
        budget: seconds. Every candidate makes at least a few estimates, whatever they take.
        unbiased: consider only what the ledger calls unbiased. If not, the bias is measured, against the mean of an
            unbiased candidate.
        generator: source of randomness.

    Returns:
        The choice, and the table of what was measured.

    Raises:
        CompileError: no estimator is possible for a sample, or none that is unbiased.
        ValueError: a budget that is not positive.

    References:
        Jamieson and Talwalkar (2016), Non-stochastic best arm identification, for successive halving.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return sg.mean(sg.sample("x", Bernoulli, logits=logit, n=4)) ** 2
        >>> found = sg.tune(objective, torch.tensor(0.3), budget=0.2)
        >>> objective.compile(found.choice).explain().unbiased
        True
    """
    if not budget > 0:
        raise ValueError(f"budget={budget!r}: tune needs some seconds to measure in")
    start = time.perf_counter()
    race = _Race(graph, inputs, unbiased, int(torch.randint(2**62, (), generator=generator)))
    pruning = _Pruning(graph, unbiased)
    slots = pruning.slots
    if math.prod(len(slot.written) for slot in slots) > _MOST:
        slots = _narrowed(pruning, race, start, budget / 2)
    chosen = race.run([_Entry(found, {}) for found in _combined(slots)], start + (1 - _SIZES_SHARE) * budget)
    entries = [_Entry(chosen[0].estimators, sizes) for sizes in other_sizes(graph, chosen[0].estimators)]
    if entries:
        sized = race.run([_Entry(chosen[0].estimators, {}), *entries], start + budget)
        chosen = [*sized, *(trial for trial in chosen if trial.estimators != sized[0].estimators)]
    best = chosen[0]
    choice = {name: _make(written) for name, written in best.estimators.items()}
    return Tuning(choice, dict(best.sizes), tuple(chosen), pruning.pruned)


def candidates(graph: Declaration, unbiased: bool = True) -> dict[str, Compiled]:
    """All combinations of estimators that come into question, as they are written."""
    found = {}
    for estimators in _combined(_Pruning(graph, unbiased).slots):
        try:
            found[_written(estimators)] = _compiled(graph, estimators)
        except CompileError:  # two that do not go together
            continue
    return {written: one for written, one in found.items() if one.explain().unbiased or not unbiased}


class _Slot(NamedTuple):
    """Samples that have one estimator, and those that come into question, as they are written."""

    samples: tuple[str, ...]
    written: tuple[str, ...]


class _Entry(NamedTuple):
    """A choice of estimators and sizes that takes part in a race."""

    estimators: Mapping[str, str]
    sizes: Mapping[str, int]

    @property
    def key(self) -> str:
        """The entry as it is written."""
        return f"{_written(self.estimators)}; {_sizes_written(self.sizes)}"


def _make(written: str) -> es.GradientEstimator:
    return {**_MEANS, **_EXPECTATIONS}[written]()


def _compiled(graph: Declaration, estimators: Mapping[str, str]) -> Compiled:
    return Compiled(graph, {name: _make(written) for name, written in estimators.items()}, None, "never", shares)


class _Pruning:
    """The word of the ledger and the compiler on every estimator at every sample, the others at their defaults."""

    def __init__(self, graph: Declaration, unbiased: bool) -> None:
        self.graph, self.unbiased = graph, unbiased
        self.pruned: dict[tuple[str, str], str] = {}
        moving = descends_from(graph.order, graph.sources[0])
        self.samples = {s: n for s, n in samples_in(graph.order).items() if set(n.inputs) & moving}
        plates = set(expected_plates(graph.order))
        together = tuple(name for name, node in self.samples.items() if averaging_plate(node) in plates)
        groups = [together] if together else []
        groups += [(name,) for name in self.samples if name not in together]
        self.defaults = {name: next(iter(self._candidates(group))) for group in groups for name in group}
        self.slots = [_Slot(group, self._possible(group)) for group in groups]

    def _candidates(self, group: tuple[str, ...]) -> Iterable[str]:
        node = self.samples[group[0]]
        if averaging_plate(node) in expected_plates(self.graph.order):
            return _EXPECTATIONS
        return [written for written in _MEANS if node.time is not None or written not in _OF_TRAJECTORIES]

    def _possible(self, group: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for written in self._candidates(group):
            reason = self._reason(group, written)
            if reason:
                self.pruned[written, group[0]] = reason
            else:
                found.append(written)
        if not found:
            reasons = "; ".join(why for (_, sample), why in self.pruned.items() if sample == group[0])
            raise CompileError(
                f"tune: no{' unbiased' if self.unbiased else ''} estimator is possible for sample {group[0]!r}: "
                + reasons
            )
        return tuple(found)

    def _reason(self, group: tuple[str, ...], written: str) -> str:
        """Why an estimator is out of the question; empty if it is not."""
        try:
            compiled = _compiled(self.graph, {**self.defaults, **dict.fromkeys(group, written)})
        except CompileError as error:
            return str(error)
        rows = [row for row in compiled.explain().ledger if row.sample in group]
        biased = [row.counted for row in rows if bias_of(row) != "0"]
        return f"biased: {biased[0]}" if biased and self.unbiased else ""


def _combined(slots: Sequence[_Slot]) -> list[dict[str, str]]:
    """All combinations of the estimators of some slots."""
    return [
        {name: written for slot, written in zip(slots, chosen, strict=True) for name in slot.samples}
        for chosen in product(*(slot.written for slot in slots))
    ]


def _narrowed(pruning: _Pruning, race: "_Race", start: float, seconds: float) -> list[_Slot]:
    """The slots with so few estimators that all combinations can be measured.

    Slot after slot, beside the best that is known of the others: beside a noisy one nothing can be told apart. Then all
    of them once more.
    """
    count, slots = max(2, int(_MOST ** (1 / len(pruning.slots)))), list(pruning.slots)
    beside = dict(pruning.defaults)
    for turn in range(2 * len(slots)):
        place = turn % len(slots)
        slot, end = slots[place], start + seconds * (turn + 1) / (2 * len(slots))
        trials = race.run([_Entry({**beside, **dict.fromkeys(slot.samples, one)}, {}) for one in slot.written], end)
        ranked = [trial.estimators[slot.samples[0]] for trial in trials]
        beside |= dict.fromkeys(slot.samples, ranked[0])
        slots[place] = slot._replace(written=tuple(ranked if turn < len(slots) else ranked[:count]))
    return slots


def other_sizes(graph: Declaration, chosen: Mapping[str, str]) -> list[dict[str, int]]:
    """Other sizes of the plates that may have them, one at a time.

    A plate reaches the objective through linear operations only where the linearised score function linearises nothing.
    """
    samples, found = samples_in(graph.order), []
    plates = expected_plates(graph.order)
    free = [name for name, written in chosen.items() if averaging_plate(samples[name]) in plates]
    others = {name: "sg.LSF()" if name not in free else written for name, written in chosen.items()}
    try:
        ledger = _compiled(graph, others).explain().ledger
    except CompileError:
        ledger = ()
    bent = {row.sample for row in ledger if row.counted != "once"}
    linear = {row.sample for row in ledger} - bent
    for name in chosen:
        node = samples[name]
        plate = node.plate
        drawn = name in free and _make(chosen[name]).population and chosen[name] == "sg.Multilevel()"
        if plate is None or plate != averaging_plate(node) or drawn or (name not in free and name not in linear):
            continue
        size, least = plate.n or 1, min(2, plate.n or 1)
        found += [{plate.name: n} for f in _FACTORS if (n := round(size * f)) >= least and n != size]
    return found


class _Race:
    """Measures entries in turn, the better half going on.

    Args:
        graph: the declared graph.
        inputs: its inputs.
        unbiased: whether all entries have to be unbiased.
        seed: of the random numbers, which all entries have in common.
    """

    def __init__(self, graph: Declaration, inputs: Sequence[object], unbiased: bool, seed: int) -> None:
        self.graph, self.inputs, self.unbiased, self.seed = graph, inputs, unbiased, seed
        self.known: dict[str, _Runner] = {}

    def run(self, entries: Sequence[_Entry], end: float) -> list[Trial]:
        """The trials, the best first. It is over at a time, but for the fewest estimates of each."""
        runners = {entry.key: runner for entry in entries if (runner := self._runner(entry)) is not None}
        alive, ended = dict(runners), list[Trial]()
        rounds = max(1, math.ceil(math.log2(max(1, len(alive)))))
        for left in range(rounds, 0, -1):
            now = time.perf_counter()
            self._round(list(alive.values()), now + (end - now) / left)
            alive = {key: runner for key, runner in alive.items() if not runner.failed}
            if not alive:
                raise CompileError(f"tune: no combination of estimators of {self.graph.name} can be drawn from")
            ranked = self._ranked(alive)
            going = list(ranked)[: math.ceil(len(ranked) / 2)]
            ended = [trial for key, trial in ranked.items() if key not in going] + ended
            alive = {key: runners[key] for key in going}
        return [*self._ranked(alive).values(), *sorted(ended, key=lambda trial: trial.at_worst)]

    def _runner(self, entry: _Entry) -> "_Runner | None":
        try:
            compiled = _compiled(self.graph, entry.estimators)
        except CompileError:
            return None
        runner = _Runner(entry, compiled, self.inputs, self.seed)
        return runner if runner.unbiased or not self.unbiased else None

    def _round(self, runners: Sequence["_Runner"], end: float) -> None:
        while time.perf_counter() < end or any(runner.is_new for runner in runners):
            for runner in runners:
                runner.estimate()
            if all(runner.failed for runner in runners):
                return

    def _ranked(self, runners: Mapping[str, "_Runner"]) -> dict[str, Trial]:
        """The trials of some entries, ranked. Of equal estimates, the fastest are measured on."""
        stacked = {key: runner.stacked for key, runner in runners.items()}
        reference = self.reference_of(runners)
        trials = {
            key: runner.trial(
                figures_of(stacked[key], reference, runner.seconds, key, runner.compiled, None, tuple), stacked[key]
            )
            for key, runner in runners.items()
        }
        fresh: dict[str, Trial] = {}
        for key in sorted(trials, key=lambda key: trials[key].at_worst):
            alike = [other for other in fresh if trials[other].sizes == trials[key].sizes]
            if not any(_equal(stacked[key], stacked[other]) for other in alike):
                fresh[key] = trials[key]
        return fresh

    def reference_of(self, runners: Mapping[str, "_Runner"]) -> Reference:
        """The reference of the biases: the unbiased entry that varies least, of all that have been measured."""
        unbiased = {key: runner for key, runner in runners.items() if runner.unbiased} | self.known
        if not unbiased:
            raise CompileError("tune: nothing that is unbiased is possible, to measure biases against; see sg.profile")
        found = reference_of(
            {key: runner.compiled for key, runner in unbiased.items()},
            {key: runner.stacked for key, runner in unbiased.items()},
            None,
        )
        self.known = {found.name: unbiased[found.name]}
        return found


class _Runner:
    """The estimates of an entry."""

    def __init__(self, entry: _Entry, compiled: Compiled, inputs: Sequence[object], seed: int) -> None:
        self.entry, self.compiled, self.inputs, self.seed = entry, compiled, inputs, seed
        self.unbiased: bool = compiled.explain().unbiased
        self.estimates: list[Tensor] = []
        self.times: list[float] = []
        self.failed = False

    @property
    def is_new(self) -> bool:
        """True if it has fewer estimates than anything can be said of."""
        return not self.failed and len(self.estimates) < _FEWEST

    @property
    def stacked(self) -> Tensor:
        """The estimates, `(estimates, parameters)`."""
        return torch.stack(self.estimates).double().cpu()

    def estimate(self) -> None:
        """One more. The first call of a torch function is slow: it is not counted."""
        try:
            if not self.estimates:
                self._one(0)
            start = time.perf_counter()
            self.estimates.append(self._one(len(self.estimates)))
            self.times.append(time.perf_counter() - start)
        except (StochgraphError, ValueError):
            self.failed = True

    def _one(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed + number) % 2**62)
        return vector(self.compiled.value_and_grad(*self.inputs, generator=generator, sizes=self.entry.sizes)[1])

    @property
    def seconds(self) -> float:
        """The median of the times."""
        return float(torch.tensor(self.times).median())

    def trial(self, figures: Figures, estimates: Tensor) -> Trial:
        """The measurements, with the interval of the variance and of the squared bias."""
        distances = (estimates - estimates.mean(0)).square().sum(1)
        error = figures.seconds * float(distances.std()) / math.sqrt(len(distances))
        return Trial(
            self.entry.estimators,
            self.entry.sizes,
            figures.mse_per_second,
            _QUANTILE * math.hypot(error, figures.mse_per_second_error),
            figures.seconds,
            len(estimates),
            figures.unbiased,
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    """True if two entries give the same estimates, as far as both have been measured."""
    count = min(len(one), len(other))
    return torch.allclose(one[:count], other[:count], rtol=1e-9, atol=1e-12)


def _written(estimators: Mapping[str, str]) -> str:
    return ", ".join(f'"{name}": {written}' for name, written in estimators.items())


def _sizes_written(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {size}" for name, size in sizes.items()) or "as declared"
