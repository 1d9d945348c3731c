"""Expectations as targets: which plates are expected, who may estimate them, and the correction of the whole estimate.

NOTE [the plug-in and its corrections]
With the mean of N draws in place of an expectation, a surrogate is that of the linearised score function: its bias
against the gradient of f(E x) is c/N + O(1/N^2), from f's curvature and from nothing else. So corrections combine the
same surrogate on parts of the draws. What is drawn later, from parameters that other draws have made, is reused with
its likelihood ratio, term by term.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..ir.paths import averaging_plate, samples_in
from ..ir.programs import execute, schedule, split
from ..tensors.axes import Axes, Axis, describe, union
from .deriving import Deriving
from .estimator import GradientEstimator
from .replays import as_drawn, in_chunks, refuse_moving_supports, stays, weighted_in


class Replayed(NamedTuple):
    """A surrogate that can be had on some of its draws.

    Attributes:
        whole: on all of them.
        sizes: the sizes of the plates that are expected.
        on: from weights that sum to 1, `(draws,)` for each plate, to the surrogate where these count.
        mean: from a plate and rows of such weights to the mean of the surrogate over the rows.
        noise: what was drawn besides the samples, by name.
    """

    whole: Tensor
    sizes: Mapping[Axis, int]
    on: Callable[[Mapping[Axis, Tensor]], Tensor]
    mean: Callable[[Axis, Tensor], Tensor]
    noise: Mapping[str, Sequence[Tensor]]


class Pass(Protocol):
    """A pass, as an estimator sees it before it begins."""

    wanted: Mapping[str, int]
    draws: dict[str, Any]
    noise: dict[str, list[Tensor]]
    portions: Mapping[Axis, nd.Portion]
    sizes: dict[Axis, int]


class PopulationEstimator(GradientEstimator, ABC):
    """An estimator of the gradient of a function of expectations: the plug-in, and what it combines it to.

    Attributes:
        draws_sizes: whether it draws how many draws there are, so that their number is in no declaration.
    """

    population = True
    draws_sizes: ClassVar[bool] = False

    def begin(self, run: Pass, expectations: "Expectations") -> None:
        """Before a pass: say how many draws there are, and which of them count in what is drawn later."""
        return

    def refuse_enumeration(self, expectations: "Expectations") -> None:
        """Refuse to be verified where the outcomes of the samples are not all that is random."""
        return

    @property
    @abstractmethod
    def correction(self) -> str:
        """The correction of the plug-in's bias, in words; empty: there is none."""

    @property
    @abstractmethod
    def bias(self) -> str:
        """The order of the bias that is left; empty: that of a linearised path."""

    @abstractmethod
    def combined(self, replayed: Replayed) -> Tensor:
        """The surrogate whose gradient is the estimate. Its value is not used."""

    @abstractmethod
    def formula(self, text: str) -> str:
        """The estimator as LaTeX, from the formula of the surrogate."""


class Expectations(NamedTuple):
    """The expectations of a graph.

    Attributes:
        estimator: that of all of them.
        plates: those that are expected.
        samples: the names of what is drawn in them.
        followed: whether anything is drawn after an expectation, from parameters that its draws have made.
    """

    estimator: PopulationEstimator
    plates: Axes
    samples: tuple[str, ...]
    followed: bool


class Corrected(nd.Node):
    """A surrogate with the value that it has, and the derivatives that an estimator of its expectations gives it."""

    kind = "corrected"
    linear = Linearity.IN_FIRST
    transparent = True

    def __init__(self, root: nd.Node, expectations: Expectations, derivation: Deriving) -> None:
        self.root, self.plates, self.estimator = root, expectations.plates, expectations.estimator
        self.program, captured = split(root, _recomputed)
        refuse_moving_supports(self.program)
        declared = samples_in(derivation.order)
        self.scores = {name: derivation.score(declared[name]) for name in weighted_in(self.program)}
        self.captured = {node: as_drawn(node, declared, derivation) for node in captured}
        drawn = [derivation.derive(declared[n.name]) for n in self.program if isinstance(n, nd.Sample)]
        inputs = [root, *self.scores.values(), *self.captured.values(), *drawn]
        super().__init__("corrected", root.index, list(dict.fromkeys(inputs)))

    @property
    def carried_places(self) -> Sequence[int]:
        return [0]

    @property
    def mixes(self) -> Axes:
        return self.plates

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        value_of = dict(zip(self.inputs, values, strict=True))
        recorded = {name: value_of[score].detach() for name, score in self.scores.items()} | dict(run.log_probs)
        known = {node: value_of[drawn] for node, drawn in self.captured.items()}

        def on(weights: Mapping[Axis, Tensor]) -> Tensor:
            other = run.replaying(recorded)
            other.portions = {**run.portions, **{axis: nd.Portion(w, (axis,)) for axis, w in weights.items()}}
            found = dict(known)
            execute(self.program, other, found)
            return found[self.root]

        def mean(axis: Axis, rows: Tensor) -> Tensor:
            return in_chunks(lambda row: on({axis: row}), rows, self.program, run).mean(0)

        sizes = {axis: run.sizes[axis] for axis in self.plates}
        estimate = self.estimator.combined(Replayed(values[0], sizes, on, mean, run.noise))
        return values[0].detach() + estimate - estimate.detach()


def _recomputed(node: nd.Node, touched: bool) -> bool:
    """True if a node has another value where other draws count: draws stay, but pathwise ones."""
    return not stays(node) and (touched or bool(node.expected))


def corrected(derivation: Deriving, root: nd.Node, expectations: Expectations | None) -> nd.Node:
    """The surrogate of a graph, and what the estimator of its expectations makes of it."""
    if expectations is None or not expectations.estimator.correction:
        return root
    return Corrected(root, expectations, derivation)


def expected_plates(order: Iterable[nd.Node]) -> Axes:
    """The plates of a graph that are expected."""
    return union(*(node.expected for node in order))


def is_bent(order: Iterable[nd.Node], plate: Axis) -> bool:
    """True if the expectation over a plate goes into anything that is not affine in it.

    There the mean of its draws is biased also where they have no score: f(E x) is not E f(mean of x). Operands that are
    means over other plates are taken for dependent, an update for no affine function of its objective.
    """
    affine: set[nd.Node] = set()
    for node in order:
        touched = [place for place, parent in enumerate(node.inputs) if parent in affine]
        if touched and not node.linear_in(touched):
            return True
        if touched or plate in node.expected:
            affine.add(node)
    return False


def expectations_of(
    order: Sequence[nd.Node], given: Mapping[str, GradientEstimator], assigned: Mapping[str, GradientEstimator]
) -> Expectations | None:
    """The expectations of a graph; `None`: there are none, or nothing that is drawn for them has an estimator.

    Args:
        order: the declared nodes.
        given: what the user said of sample nodes.
        assigned: the estimators of those that are scored.

    Raises:
        CompileError: an estimator for another target than the declared one, two estimators of expectations, a plate
            that is expected and averaged, or expected with draws that have plates of their own inside it.
    """
    plates, samples = expected_plates(order), samples_in(order)
    for name in samples:
        plate = averaging_plate(samples[name])
        if name in given and plate not in plates and given[name].population and name in assigned:
            raise CompileError(
                f"{given[name]} on sample {name!r} (axes: {describe(samples[name].axes)}): it estimates functions of "
                "an expectation, and the graph declares none over these draws: declare sg.expect in place of sg.mean, "
                "or use sg.LSF() or sg.LOO() for the mean of N draws"
            )
    if not plates:
        return None
    _check_plates(order, plates)
    found: dict[str, Any] = {}
    for name, node in samples.items():
        inside = [plate for plate in plates if plate in node.plates]
        if not inside:
            continue
        _check_sample(node, inside[-1], given.get(name), name in assigned)
        if name in given:
            found[name] = given[name]
    kinds = {repr(estimator): name for name, estimator in found.items()}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise CompileError(
            f"samples {first!r} and {second!r} are expected, with {one} and {other}: expectations of one graph are "
            "corrected together. Give all of them one estimator"
        )
    if not found:
        return None
    drawn = tuple(name for name, node in samples.items() if averaging_plate(node) in plates)
    followed = any(before.expected for node in samples.values() for before in schedule(node.inputs))
    return Expectations(next(iter(found.values())), plates, drawn, followed)


def _check_plates(order: Sequence[nd.Node], plates: Axes) -> None:
    for node in order:
        both = [axis for axis in node.mixes if axis in plates and axis not in node.expected]
        if both:
            expecting = next(other.name for other in order if both[0] in other.expected)
            raise CompileError(
                f"the plate {both[0].name!r} is expected in {expecting!r} and reduced in {node.name!r} (axes: "
                f"{describe(node.axes)}): a plate is expected or averaged, not both. Draw two plates, or use sg.expect "
                "in both places"
            )


def _check_sample(node: nd.Sample, plate: Axis, estimator: GradientEstimator | None, scored: bool) -> None:
    if averaging_plate(node) != plate:
        raise CompileError(
            f"sample {node.name!r} (axes: {describe(node.axes)}): the plate {plate.name!r} is expected, and the sample "
            "has a plate of its own inside it. Expect what has no further plates: draw one of it for each entry of "
            f"{plate.name!r}"
        )
    if estimator is not None and scored and not estimator.population:
        raise CompileError(
            f"{estimator} on sample {node.name!r} (axes: {describe(node.axes)}): its plate is expected, and the "
            "estimator is for the mean of N draws, whose gradient is another one. Use sg.Plugin(), sg.Jackknife() or "
            "sg.Multilevel() for this node, or declare sg.mean"
        )
