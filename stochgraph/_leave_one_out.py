"""Leave-one-out control variates: every term replayed with one draw left out of the means.

A term of which draw i is left out does not depend on draw i, so it is a control variate for the score of that draw
alone. What was drawn later under other parameters than the replay's is reused, weighted with the importance ratio.
The replays are forward evaluations: their values are constants of the surrogate.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import _node as nd
from ._axes import Axes, Axis, describe, union
from ._control import control_variate
from ._derive import COST, Derivation, Kind, Rule, Site, averaging_plate, descends_from, samples_in
from ._errors import CompileError, SamplingError
from ._surrogate import CompiledUpdate, Score, Weight, execute, schedule

_CELLS = 8192  # how many numbers a node may have in one chunk of replays


def leave_one_out(site: Site) -> nd.Node | None:
    """The control variate of a sample for a term that sums its scores over its plate; `None` for any other term."""
    sample, derivation = site.sample, site.derivation
    plate = averaging_plate(sample)
    if plate is None or plate in site.aligned:
        return None
    if sample.plate is plate and sample.n == 1:
        raise CompileError(_plate_of_one(sample.name, sample.axes, plate))
    left_out = Axis(-1 - plate.position, f"{plate.name} left out")
    replay = derivation.share(("replay", site.node, plate), lambda: _replay(site, plate, left_out))
    return control_variate(site, replay, site.aligned | {plate}, left_out=(plate, left_out))


def _replay(site: Site, plate: Axis, left_out: Axis) -> "Replay":
    """The node's replays: with everything that was drawn on the way boxed, whatever the estimators of those draws."""
    derivation, node = site.derivation, site.node
    exact = derivation.share("replays", lambda: _weighting_everything(derivation))
    pending = frozenset((s, Kind.WEIGHT) for s in exact.reach[Kind.WEIGHT][node])
    return Replay(node, site.name, plate, left_out, exact.derive(node, pending), derivation)


def _weighting_everything(derivation: Derivation) -> Derivation:
    """Boxes costs with every sample that is scored or descends from one: leaving a draw out moves its distribution."""
    moving, drawn = descends_from(derivation.order, *derivation.samples.values()), samples_in(derivation.order)
    names = [s for s, node in drawn.items() if s in derivation.rules or node in moving]
    if len(names) == len(derivation.rules) and all(_boxes_all(rule) for rule in derivation.rules.values()):
        return derivation
    rules = {s: Rule(pathwise=True) if s in derivation.pathwise else COST for s in names}
    return Derivation(derivation.order, rules, shared=derivation.shared)


def _boxes_all(rule: Rule) -> bool:
    return rule.pathwise or (rule.boxes_costs and not rule.averages and not rule.boxes_terms)


class LeftOut:
    """Which draw of which plate is left out: `mask` is 0 for that draw and 1 for all others."""

    def __init__(self, plate: Axis, mask: Tensor) -> None:
        self.plate = plate
        self.mask = mask

    def hide(self, value: Tensor, axes: Axes) -> Tensor:
        """The value with zeros for the draw left out. Shape `(*axes, ...)`."""
        own = [self.plate if axis == self.plate else None for axis in axes]
        shape = [-1 if axis else 1 for axis in own] + [1] * (value.dim() - len(axes))
        return value * self.mask.reshape(shape).to(value.dtype if value.is_floating_point() else self.mask.dtype)

    @property
    def scale(self) -> float:
        """From a mean in which one of N draws counts as zero to the mean of the others."""
        count = self.mask.shape[0]
        return count / (count - 1)


class Replay(nd.Node):
    """A term with each draw of a plate left out in turn; shape `(N, *axes, ...)`."""

    kind = "replay"

    def __init__(
        self, node: nd.Node, name: str, plate: Axis, left_out: Axis, root: nd.Node, derivation: Derivation
    ) -> None:
        self.sample, self.plate, self.left_out, self.root = derivation.samples[name], plate, left_out, root
        self.term_axes = node.axes
        self.program, self.captured = split(root, plate, name)
        self.names = _weighted_in(self.program)
        _refuse_moving_supports(self.program)
        declared = samples_in(derivation.order)
        drawn = [n.name for n in self.program if isinstance(n, nd.Sample)]
        inputs: list[nd.Node] = [derivation.score(declared[s]) for s in self.names]
        inputs += [_as_drawn(n, declared, derivation) for n in self.captured]
        inputs += [derivation.derive(declared[s]) for s in drawn]  # drawn before they are replayed
        super().__init__(f"replay({node.name})", node.index, inputs)

    def infer_axes(self) -> Axes:
        return (self.left_out, *self.term_axes)

    def evaluate(self, run: Any, values: list[Any]) -> Any:
        count = run.sizes[self.plate]
        if count < 2:
            raise SamplingError(_plate_of_one(self.sample.name, self.sample.axes, self.plate))
        constants = pytree.tree_map_only(Tensor, Tensor.detach, values)
        scores, captured = constants[: len(self.names)], constants[len(self.names) :]
        recorded = {**dict(zip(self.names, scores, strict=True)), **run.log_probs}
        known = dict(zip(self.captured, captured, strict=False))
        masks = 1 - torch.eye(count, dtype=run.dtype, device=run.device)
        with torch.no_grad():
            one = torch.vmap(lambda mask: self._one(run, mask, recorded, known), chunk_size=self._chunk(run))
            return one(masks)

    def _one(self, run: Any, mask: Tensor, recorded: Mapping[str, Tensor], known: Mapping[nd.Node, Any]) -> Any:
        left_out = LeftOut(self.plate, mask)
        values = dict(known)
        execute(self.program, run.leaving_out(left_out, recorded), values)
        value = values[self.root]
        if self.plate not in self.term_axes:
            return value
        # The term's own draw i is not left out by leaving i out of the means: it has its own part in no baseline.
        return pytree.tree_map_only(Tensor, lambda leaf: left_out.hide(leaf, self.term_axes), value)

    def _chunk(self, run: Any) -> int:
        cells = max((prod(run.sizes[axis] for axis in axes) for axes in _all_axes(self.program)), default=1)
        return max(1, _CELLS // cells)


def split(root: nd.Node, plate: Axis, name: str) -> tuple[list[nd.Node], list[nd.Node]]:
    """The nodes whose value changes when a draw is left out of the plate's means, in order, and what else they read."""
    moving: set[nd.Node] = set()
    program = []
    order = schedule([root])
    _refuse_other_reductions(order, plate, name)
    for node in order:
        held = isinstance(node, nd.Sample) and not node.pathwise
        if not held and (_reduces(node, plate) or any(parent in moving for parent in node.inputs)):
            moving.add(node)
            program.append(node)
    needed = [] if root in moving else [root]
    needed += [parent for node in program for parent in node.inputs if parent not in moving]
    return program, list(dict.fromkeys(needed))


def _reduces(node: nd.Node, plate: Axis) -> bool:
    """Whether a node takes a mean or a sum over the plate."""
    if isinstance(node, CompiledUpdate):
        return any(_reduces(inner, plate) for inner in node.program)
    if isinstance(node, Weight):
        return plate in node.summed
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


def _refuse_moving_supports(program: Iterable[nd.Node]) -> None:
    for node in [scored.sample for scored in program if isinstance(scored, Score)]:
        if node.law.has_moving_support:
            raise CompileError(
                f"sample {node.name!r} (axes: {describe(node.axes)}): the support of {node.law.name} moves with the "
                "draws that leave-one-out leaves out, so no importance ratio reuses it; use SF in place of LOO"
            )


def _weighted_in(program: Sequence[nd.Node]) -> list[str]:
    """The samples whose log-probabilities a program compares with the recorded ones."""
    names = [node.sample.name for node in program if isinstance(node, (Score, Weight))]
    return list(dict.fromkeys(names))


def _all_axes(program: Iterable[nd.Node]) -> Iterable[Axes]:
    for node in program:
        yield union(node.axes, *node.input_axes)
        if isinstance(node, CompiledUpdate):
            yield from _all_axes(node.program)


def _as_drawn(node: nd.Node, declared: Mapping[str, nd.Sample], derivation: Derivation) -> nd.Node:
    """A draw is the surrogate's own, whoever its parents are in the replay."""
    return derivation.derive(declared[node.name]) if isinstance(node, nd.Sample) else node


def _plate_of_one(name: str, axes: Axes, plate: Axis) -> str:
    return (
        f"sample {name!r} (axes: {describe(axes)}): leave-one-out on a plate of one: without its only draw the plate "
        f"{plate.name!r} has no mean. Give it at least two draws, or use SF for this node"
    )
