"""Leave-one-out control variates: every term replayed with one draw left out of the means.

A term of which draw i is left out does not depend on draw i, so it is a control variate for the score of that draw
alone. What was drawn later under other parameters than the replay's is reused, weighted with the importance ratio.
The replays are forward evaluations: their values are constants of the surrogate.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors.exceptions import CompileError, SamplingError
from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Scale
from ..ir.operations import Linearity
from ..ir.paths import averaging_plate, descends_from, samples_in
from ..ir.programs import execute, schedule, split
from ..surrogate.steps import CompiledUpdate, all_axes
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axes, Axis, at_least_two, describe
from ..tensors.left_out import LeftOut
from ..tensors.trees import map_tensors
from .boxes import Kind, Pending, settled
from .deriving import Deriving
from .estimator import Site

_CELLS = 16384  # how many numbers a node may have in one chunk of replays


def left_out_axis(plate: Axis) -> Axis:
    """The axis of the replays."""
    return Axis(-1 - plate.position, f"{plate.name} left out")


def replay(derivation: Deriving, site: Site, plate: Axis) -> "Replay":
    """The node's replays: with everything that was drawn on the way boxed, whatever the estimators of those draws.

    NOTE [later plates]
    Without one draw of D1 the parameters that drew D2 are others, by O(1/N), so that the ratio of D2's whole plate
    varies: all D1's replays together would vary like the score function of D2. Where D2 is left-one-out too, its own
    replays are the control variate of that ratio, which leaves the variance O(1/N).

    Where a later sample has a baseline, the ratios of its draws are compared with it as their scores are. Without one
    a replay adds the noise of those ratios times the mean cost, however small the effect of the draw left out.
    """
    exact = derivation.exact
    root = exact.derive(site.node, _ratios(exact, site))
    return Replay(site.node, site.name, plate, root, exact.drawing)


def _ratios(exact: Deriving, site: Site) -> Pending:
    """The boxes in the replays of a site, by kind: the draws' own plate plainly, others with their controls."""
    pending = exact.scope.weighted(exact.scope.reach[Kind.WEIGHT][site.node])
    return settled(pending, {site.name} | uncontrolled(exact, site))


def uncontrolled(exact: Deriving, site: Site) -> set[str]:
    """The samples whose control variate is for replays of earlier draws on another plate only, which these are not."""
    after, plate = descends_from(exact.order, site.sample), averaging_plate(site.sample)
    found = set()
    for name, sample in exact.scope.samples.items():
        control = exact.estimators[name].control
        later = sample in after and averaging_plate(sample) != plate
        if control and control.later_only and not later:
            found.add(name)
    return found


class Replay(nd.Node):
    """A term with each draw of a plate left out in turn; shape `(N, *axes, ...)`."""

    kind = "replay"
    linear = Linearity.NOWHERE

    def __init__(self, node: nd.Node, name: str, plate: Axis, root: nd.Node, derivation: Deriving) -> None:
        self.sample, self.root = derivation.scope.samples[name], root
        self.plate, self.left_out = plate, left_out_axis(plate)
        self.node = node
        self.term_axes = node.axes
        self.program, self.captured = _split(root, plate, name)
        self.programs, self.names = [self.program], weighted_in(self.program)
        refuse_moving_supports(self.program)
        declared = samples_in(derivation.order)
        drawn = [n.name for n in self.program if isinstance(n, nd.Sample)]
        inputs: list[nd.Node] = [derivation.score(declared[s]) for s in self.names]
        inputs += [as_drawn(n, declared, derivation) for n in self.captured]
        inputs += [derivation.derive(declared[s]) for s in drawn]  # drawn before they are replayed
        super().__init__(f"replay({node.name})", node.index, inputs)

    def infer_axes(self) -> Axes:
        return (self.left_out, *self.term_axes)

    @property
    def mixes(self) -> Axes:
        return (self.plate,)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        count = run.sizes[self.plate]
        if count < 2:
            raise SamplingError(plate_of_one(self.sample.name, self.sample.axes, self.plate))
        constants = map_tensors(Tensor.detach, values)
        scores, captured = constants[: len(self.names)], constants[len(self.names) :]
        recorded = {**dict(zip(self.names, scores, strict=True)), **run.log_probs}
        known = dict(zip(self.captured, captured, strict=False))

        def one(index: Tensor) -> Any:
            return self._one(run, LeftOut(self.plate, index, count), recorded, known)

        with torch.no_grad():
            return in_chunks(one, torch.arange(count, device=run.device), self.program, run)

    def _one(
        self, run: nd.Pass, left_out: LeftOut, recorded: Mapping[str, Tensor], known: Mapping[nd.Node, Any]
    ) -> Any:
        values = dict(known)
        execute(self.program, run.leaving_out(left_out, recorded), values)
        value = values[self.root]
        if self.plate not in self.term_axes:
            return value
        # Leaving draw i out of the means does not take it out of its own entry, which is compared with nothing.
        return map_tensors(lambda leaf: left_out.replaced(leaf, self.term_axes, 0.0), value)


def in_chunks(one: Callable[[Tensor], Any], indices: Tensor, program: Iterable[nd.Node], run: nd.Pass) -> Any:
    """A function that evaluates a program, mapped over indices: in chunks in which no node has too many numbers."""
    cells = max((prod(run.sizes.get(axis, 1) for axis in axes) for axes in all_axes(program)), default=1)
    chunk = max(1, _CELLS // cells)
    return torch.vmap(one, chunk_size=None if chunk >= len(indices) else chunk)(indices)


def stays(node: nd.Node) -> bool:
    """True for what replays take as it was: other replays, and draws, but pathwise ones, which move."""
    return isinstance(node, Replay) or (isinstance(node, nd.Sample) and not node.pathwise)


def read(node: nd.Node) -> Sequence[nd.Node]:
    """The inputs that replays look at: what is behind a node that stays is not evaluated again on its account."""
    return () if stays(node) else node.inputs


def _split(root: nd.Node, plate: Axis, name: str) -> tuple[list[nd.Node], list[nd.Node]]:
    """The nodes whose value changes when a draw is left out of the plate's means, in order, and what else they read."""

    def moves(node: nd.Node, touched: bool) -> bool:
        return not stays(node) and (touched or _reduces(node, plate))

    _refuse_other_reductions(schedule([root], read), plate, name)
    return split(root, moves, read=read)


def _reduces(node: nd.Node, plate: Axis) -> bool:
    """True if a node takes a mean or a sum over the plate."""
    if isinstance(node, CompiledUpdate):
        return any(_reduces(inner, plate) for inner in node.program)
    if isinstance(node, Weight):
        return plate in node.summed
    if isinstance(node, (Scale, Exponential)):
        return plate in node.plates
    return isinstance(node, nd.Reduction) and plate in node.over


def _refuse_other_reductions(program: Iterable[nd.Node], plate: Axis, name: str) -> None:
    for node in program:
        if isinstance(node, CompiledUpdate):
            _refuse_other_reductions(node.program, plate, name)
        if isinstance(node, nd.Reduce) and plate in node.over:
            raise CompileError(
                f"sample {name!r} reaches {node.name!r} (axes reduced: {describe(node.over)}), which is not a mean: "
                "there is no mean to leave one draw out of; use SF for this node"
            )


def refuse_moving_supports(program: Iterable[nd.Node]) -> None:
    """Refuse draws that no importance ratio reuses."""
    for node in [scored.sample for scored in program if isinstance(scored, Score)]:
        if node.law.has_moving_support:
            raise CompileError(
                f"sample {node.name!r} (axes: {describe(node.axes)}): the support of {node.law.name} moves with the "
                "draws that leave-one-out leaves out, so no importance ratio reuses it; use SF in place of LOO"
            )


def weighted_in(program: Sequence[nd.Node]) -> list[str]:
    """The samples whose log-probabilities a program compares with the recorded ones."""
    names = [node.sample.name for node in program if isinstance(node, (Score, Weight))]
    return list(dict.fromkeys(names))


def as_drawn(node: nd.Node, declared: Mapping[str, nd.Sample], derivation: Deriving) -> nd.Node:
    """A draw is the surrogate's own, whoever its parents are in the replay."""
    return derivation.derive(declared[node.name]) if isinstance(node, nd.Sample) else node


def plate_of_one(name: str, axes: Axes, plate: Axis) -> str:
    """Why a draw that is alone on its plate cannot be left out."""
    return (
        f"sample {name!r} (axes: {describe(axes)}): leave-one-out on a plate of one: without its only draw the plate "
        f"{plate.name!r} has no mean. Give it {at_least_two((plate,))}, or use SF for this node"
    )
