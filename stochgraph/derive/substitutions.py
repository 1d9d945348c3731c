"""Other values in the place of draws: a term evaluated again with each of them, everything that follows recomputed.

Along the axes on which the term meets one draw only, all draws are replaced at once; along the other plates one at a
time, as in leave-one-out.

NOTE [what is drawn later]
The other draws stay. What the replaced draw feeds has another distribution then, and is reused with its likelihood
ratio, differentiable like any box. A ratio stands for fresh draws only if nothing is possible under the new value that
was impossible under the old one, and it is of use only if the two are not far apart. So direct children must be
discrete, with the same outcomes whatever the draw; others are refused, those with outcomes of probability 0 when that
is seen. Behind an update the parameters move a little, and any distribution is reused, as in leave-one-out.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Binomial, Distribution, Independent

from ..distributions.laws import DistributionLaw
from ..errors.exceptions import CompileError, SamplingError
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..ir.paths import moves_with, samples_in
from ..ir.programs import execute, schedule, split
from ..tensors.axes import Axes, Axis, describe, union, without
from ..tensors.trees import map_tensors, tensors
from .boxes import Kind, Pending, settled
from .deriving import Deriving
from .estimator import Site, replaces_terms
from .replays import as_drawn, in_chunks, refuse_moving_supports, stays, uncontrolled, weighted_in

_FIRST, _BEFORE_PLATES = -(10**9), -(10**6)  # in front of all axes come alternatives, then those of replays


def alternatives(sample: nd.Sample) -> Axis:
    """The axis of the values that are put in the place of a sample's draws."""
    return Axis(_FIRST - sample.index, f"{sample.name} alternative")


def replaced(plate: Axis) -> Axis:
    """The axis of the replays in which one draw of a plate after the other is replaced."""
    return Axis(_BEFORE_PLATES + plate.position, f"{plate.name} replaced")


def one_at_a_time(site: Site) -> Axes:
    """The plates of a site's sample along which the node meets several draws."""
    return without(site.sample.plates, site.independent)


def substitute(
    derivation: Deriving, site: Site, values: nd.Node, differentiable: bool, together: bool
) -> "Substituted":
    """The node of a site with other values for the sample's draws."""
    exact = derivation.exact
    root = exact.derive(site.node, _boxes(derivation, exact, site))
    children = checked_children(site, exact.drawing)
    plates = () if together else one_at_a_time(site)
    return Substituted(site, values, root, exact.drawing, differentiable, plates, children)


def _boxes(derivation: Deriving, exact: Deriving, site: Site) -> Pending:
    """The boxes in the replays of a draw: of all others but those whose own estimator will replace this term in turn.

    Of several that do, the later drawn is innermost: its replays are in those of the earlier ones, not the reverse.
    """
    reaching = exact.scope.reach[Kind.WEIGHT][site.node]
    boxed = [s for s in reaching if s != site.name and not _replaces(derivation, s, site)]
    # What a replay is multiplied with depends on the ancestors of the draw: their control variates have no zero mean.
    above = samples_in(schedule(site.sample.inputs))
    return settled(exact.scope.weighted(boxed), above.keys() | uncontrolled(exact, site))


def _replaces(derivation: Deriving, name: str, site: Site) -> bool:
    samples = derivation.scope.samples
    earlier = name in samples and samples[name].index < site.sample.index
    return earlier and replaces_terms(derivation.estimators[name])


def checked_children(site: Site, derivation: Deriving) -> list[nd.Node]:
    """Refuse draws that the replaced one feeds directly, and whose ratio does not stand for fresh ones.

    Returns:
        Nodes that refuse in a pass what is not known of before: the laws that functions build.
    """
    found: list[nd.Node] = []
    for child in _children(site, derivation.order):
        law = child.law
        if isinstance(law, DistributionLaw) and not law.is_class:
            found.append(CheckedChild(site, child, [derivation.derive(parent) for parent in child.inputs]))
        elif law.family is not None and not _reusable(law.family):
            raise CompileError(_not_reusable(site.sample, child, law.name))
    return found


def _children(site: Site, order: list[nd.Node]) -> list[nd.Sample]:
    held = [node for node in order if isinstance(node, nd.Update)]
    fed = moves_with([node for node in order if node not in held], [site.sample])
    samples = [node for node in samples_in(order).values() if node is not site.sample]
    return [node for node in samples if any(parent in fed for parent in node.inputs)]


def _reusable(family: type[Distribution]) -> bool:
    return bool(family.has_enumerate_support) and family is not Binomial


def _not_reusable(sample: nd.Sample, child: nd.Sample, law: str) -> str:
    return (
        f"sample {sample.name!r} (axes: {describe(sample.axes)}) feeds sample {child.name!r} ({law}) directly: "
        f"with another value of {sample.name!r} what was drawn for {child.name!r} is reused with its likelihood ratio, "
        f"which needs finitely many outcomes, the same for every value; use SF for {sample.name!r}, or PW for "
        f"{child.name!r}"
    )


class CheckedChild(nd.Node):
    """Refuses draws of a law that a function builds, where they cannot be reused. Nothing reads its value."""

    kind = "check"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site, child: nd.Sample, parents: list[nd.Node]) -> None:
        self.sample, self.child = site.sample, child
        super().__init__(f"check({child.name})", child.index, parents)

    def infer_axes(self) -> Axes:
        return ()

    @property
    def mixes(self) -> Axes:
        return union(*self.input_axes)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        law = self.child.law
        assert isinstance(law, DistributionLaw)
        built = law.build(self.child, self.inputs, values, self.child.parent_axes, run, validate=False)
        while isinstance(built, Independent):
            built = built.base_dist
        if not _reusable(type(built)):
            raise SamplingError(_not_reusable(self.sample, self.child, f"{law.name}, a {type(built).__name__}"))
        return torch.zeros(())


class Substituted(nd.Node):
    """A term with other values in the place of draws; axes: alternatives, plates one at a time, then its own."""

    kind = "replay"
    linear = Linearity.NOWHERE

    def __init__(
        self,
        site: Site,
        values: nd.Node,
        root: nd.Node,
        derivation: Deriving,
        differentiable: bool,
        plates: Axes,
        children: list[nd.Node],
    ) -> None:
        self.sample, self.root, self.differentiable = site.sample, root, differentiable
        self.alternatives, self.plates = alternatives(site.sample), plates
        # Under the parents of the replays a draw is another node, with the value that was drawn.
        self.put_for = [n for n in schedule([root]) if isinstance(n, nd.Sample) and n.name == site.name]
        self.program, self.captured = split(root, _recomputed, self.put_for)
        refuse_moving_supports(self.program)
        self.programs, self.names = [self.program], weighted_in(self.program)
        declared = samples_in(derivation.order)
        pathwise = [derivation.derive(declared[n.name]) for n in self.program if isinstance(n, nd.Sample)]
        scores = [derivation.score(declared[name]) for name in self.names]
        captured = [as_drawn(node, declared, derivation) for node in self.captured]
        super().__init__(
            f"{site.node.name} with another {site.name}",
            site.node.index,
            [values, site.drawn, *scores, *captured, *pathwise, *children],
        )

    def infer_axes(self) -> Axes:
        return union([self.alternatives], map(replaced, self.plates), self.root.axes)

    @property
    def mixes(self) -> Axes:
        return union(self.plates, *(node.mixes for node in self.program))

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        self._refuse_impossible(run)
        if not self.differentiable:
            with torch.no_grad():
                return self._all(run, values)
        return self._all(run, values)

    def _all(self, run: nd.Pass, values: list[Any]) -> Any:
        candidates, drawn, *rest = values
        scores, captured = rest[: len(self.names)], rest[len(self.names) :]
        recorded = {name: score.detach() for name, score in zip(self.names, scores, strict=True)} | dict(run.log_probs)
        known = dict(zip(self.captured, captured, strict=False))
        sizes = [run.sizes[axis] for axis in self.plates]
        count, places = tensors(candidates)[0].shape[0], prod(sizes)

        def one(index: Tensor) -> Any:
            put = self._put(candidates, drawn, index // places, index % places, sizes)
            return self._one(run, put, recorded, known)

        indices = torch.arange(count * places, device=tensors(drawn)[0].device)
        found = in_chunks(one, indices, self.program, run)
        return map_tensors(lambda leaf: leaf.reshape(count, *sizes, *leaf.shape[1:]), found)

    def _put(self, candidates: object, drawn: object, choice: Tensor, place: Tensor, sizes: list[int]) -> Any:
        """The draws, those at one place along the plates (all, where there is none) replaced by one of the values."""
        mine = torch.arange(prod(sizes), device=place.device) == place
        shape = dict(zip(self.plates, sizes, strict=True))
        mask = mine.reshape([shape.get(axis, 1) for axis in self.sample.plates])
        chosen = iter([leaf.index_select(0, choice.reshape(1)).squeeze(0) for leaf in tensors(candidates)])

        def put(leaf: Tensor) -> Tensor:
            return torch.where(mask.reshape([*mask.shape, *[1] * (leaf.dim() - mask.dim())]), next(chosen), leaf)

        return map_tensors(put, drawn)

    def _one(self, run: nd.Pass, put: object, recorded: Mapping[str, Tensor], known: Mapping[nd.Node, Any]) -> Any:
        values: dict[nd.Node, Any] = {**known, **dict.fromkeys(self.put_for, put)}
        execute(self.program, run.replaying(recorded), values)
        return values[self.root]

    def _refuse_impossible(self, run: nd.Pass) -> None:
        """Refuse to reuse draws of which some outcome has probability 0: it may be possible under another value."""
        names = set(self.names)
        for node in run.edges:
            if node.name in names:
                raise SamplingError(
                    f"sample {self.sample.name!r} is replaced in {self.root.name!r}, and {node.name!r} (axes: "
                    f"{describe(node.axes)}), which it feeds, has outcomes of probability 0: its draws cannot be "
                    f"reused for other values of {self.sample.name!r}; use SF for {self.sample.name!r}"
                )


def _recomputed(node: nd.Node, touched: bool) -> bool:
    """True if a node has another value with another draw. Draws themselves stay, pathwise ones aside."""
    return touched and not stays(node)
