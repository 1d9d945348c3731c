"""Control variates: terms of zero mean that make an estimate vary less.

Each has the form `- baseline * box(ancestors) * (box(L) - 1)`, L the log-probability of one draw. Its value is zero. At
the parameters that drew the trace its derivatives of every order have zero mean, provided that the baseline does not
depend on the draw that L scores. The ancestors' box changes no mean: it is there for second derivatives, in which the
baseline then takes part as the cost does (Mao et al. 2019). Time steps before a draw's own are among its ancestors;
where all draws of a plate are boxed together, so are the draws before it: of each draw what it adds to the box is
compared, and a baseline for every one of them accounts for the whole box.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..surrogate.terms import Controlled, Weight
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, Axis, union, without
from ..tensors.trees import map_tensors, tensors
from .boxes import Key, Kind
from .deriving import Deriving
from .estimator import Control, Site
from .parts import part_of
from .sites import DerivedSite


class ZeroMean(nd.Node, ABC):
    """A node of zero mean that an estimator makes by itself.

    Attributes:
        sample: the sample whose box it is for.
        part: the declared node that the box covers.
        gone: the plates of the sample along which the term depends on all draws.

    Args:
        word: what it is, the first word of its name.
        site: where it stands.
        inputs: what it is made of.
    """

    kind = "control variate"
    linear = Linearity.NOWHERE
    left_out = None

    def __init__(self, word: str, site: Site, inputs: Sequence[nd.Node]) -> None:
        self.sample, self.part = site.sample, site.node
        self.gone = without(site.sample.plates, site.kept)
        self._term_axes = site.term.axes
        super().__init__(f"{word}({site.node.name}, {site.name})", site.node.index, inputs)

    def infer_axes(self) -> Axes:
        return self._term_axes

    @property
    def mixes(self) -> Axes:
        return self.gone

    @abstractmethod
    def formula(self, term: str, sample: str) -> str:
        """The summand, with its sign, as LaTeX, from the formulas of the part and of the sample."""


class ControlVariate(nd.Node):
    """`- baseline * box(ancestors) * (box(weight) - 1)` for a term, summed over axes that the term does not have.

    Args:
        term: the node that the control variate is added to.
        baseline: detached here. Its axes are axes of the term, and perhaps `left_out`.
        weight: the log-probabilities of the draws.
        above: the log-probabilities of the draws' strict ancestors.
        total: their sum; `None` if there are none.
        stepwise: the time axis whose steps have a baseline each, boxed with the log-probability of that step.
        left_out: for a plate of the draws that the term sums over, the axis that takes its place.
    """

    kind = "control variate"
    linear = Linearity.NOWHERE

    def __init__(
        self,
        term: nd.Node,
        baseline: nd.Node,
        weight: Weight,
        above: tuple[Weight, ...],
        total: nd.Node | None,
        stepwise: Axis | None = None,
        left_out: tuple[Axis, Axis] | None = None,
    ) -> None:
        self.term_axes = term.axes
        self.sample, self.weight, self.above = weight.sample, weight, above
        self.stepwise = stepwise
        self.left_out = left_out
        inputs = [baseline, weight] + ([total] if total else [])
        super().__init__(f"control variate({term.name}, {weight.sample.name})", term.index, inputs)

    def infer_axes(self) -> Axes:
        """Those of the term; in an update also the plates that only the copies of its parameters have."""
        return self.term_axes if self.left_out else union(self.term_axes, *(node.axes for node in self.inputs))

    @property
    def mixes(self) -> Axes:
        return () if self.left_out is None else self.left_out[:1]

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        axes = self.axes if self.left_out is None else (self.left_out[1], *self.axes)
        factor = vz.align(*self._draws(values[1]), axes)
        for ancestors in values[2:]:
            factor = factor * vz.align(ancestors, self.input_axes[2], axes).exp()
        return map_tensors(lambda leaf: self._product(leaf, factor, axes), values[0])

    def _product(self, baseline: Tensor, factor: Tensor, axes: Axes) -> Tensor:
        product = -torch.mul(*vz.broadcast([baseline.detach(), factor], [self.input_axes[0], axes], axes))
        return product if self.left_out is None else product.sum(0)

    def _draws(self, weight: Tensor) -> tuple[Tensor, Axes]:
        """`box(weight) - 1`, or its increase step by step; with the axis that takes the plate's place in front."""
        axes = self.input_axes[1]
        if self.left_out is None:
            factor = self.weight.excess(weight)
            return factor if self.stepwise is None else _increase(factor, axes.index(self.stepwise)), axes
        plate, axis = self.left_out
        dim = axes.index(plate)
        factor = _increase(self.weight.excess(weight.cumsum(dim)), dim)
        return factor.movedim(dim, 0), (axis, *(a for a in axes if a != plate))


def control_variate(
    site: Site,
    baseline: nd.Node,
    kept: Iterable[Axis],
    stepwise: Axis | None = None,
    left_out: tuple[Axis, Axis] | None = None,
) -> ControlVariate:
    """The control variate of a box; the scores are kept along some axes."""
    above, total = site.ancestors()
    return ControlVariate(site.place, baseline, site.ratio(kept), above, total, stepwise, left_out)


class Uncovered(nd.Node):
    """`(cost - part) * (box(weight) - 1)`: the summands of a cost that a draw's box leaves aside, boxed all the same.

    Their mean is zero. A baseline that predicts the cost as declared, and not what the draw adds to it, is compared
    with them in.

    Args:
        cost: the derived cost.
        part: the derived part of it that the box covers.
        weight: the log-probabilities of the draws.
    """

    kind = "uncovered"
    linear = Linearity.IN_ALL
    left_out = None

    def __init__(self, cost: nd.Node, part: nd.Node, weight: Weight) -> None:
        self.sample, self.weight = weight.sample, weight
        super().__init__(f"uncovered({cost.name}, {weight.sample.name})", cost.index, [cost, part, weight])

    def linear_in(self, touched: Collection[int]) -> bool:
        return 2 not in touched

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        cost, part, weight = values
        covered = iter(tensors(part))
        factor = self.weight.excess(weight)
        return map_tensors(lambda leaf: self._boxed(leaf, next(covered), factor), cost)

    def _boxed(self, cost: Tensor, part: Tensor, factor: Tensor) -> Tensor:
        cost, part, factor = vz.broadcast([cost, part, factor], self.input_axes, self.axes)
        return (cost - part) * factor


def uncovered(site: Site, cost: nd.Node) -> Uncovered:
    """The part of the derived cost at a site that its box leaves aside."""
    return Uncovered(cost, site.term, site.ratio())


def _increase(value: Tensor, dim: int) -> Tensor:
    """The differences of neighbours along a dimension, the first entry kept."""
    first = torch.zeros_like(value.narrow(dim, 0, 1))
    return value - torch.cat([first, value.narrow(dim, 0, value.shape[dim] - 1)], dim)


def add_controls(term: nd.Node, controls: Iterable[nd.Node | None]) -> nd.Node:
    """A term and the control variates that there are."""
    made = [control for control in controls if control is not None]
    return Controlled(term, made) if made else term


class Controls:
    """The control variates of the objective of a graph.

    Replays that differ in the boxes that still wait have the others' control variates in common: one is made for every
    sample at every place.
    """

    def __init__(self, derivation: Deriving) -> None:
        self._derivation = derivation
        self._made: dict[Key, dict[str, list[nd.Node | None]]] = {}

    def added(self, place: Key, term: nd.Node, names: Sequence[str]) -> nd.Node:
        """A derived term, with what has zero mean and makes it vary less.

        Args:
            place: the declared node, and the boxes that are below.
            term: their derived form.
            names: the samples whose control variates stand here.
        """
        known = self._made.setdefault(place, {})
        sites = {name: self._site(place, name) for name in names if name not in known}
        for name, site in sites.items():
            self._control(name).check(site)
        for name in self._innermost_first(sites):
            known[name] = self._make(sites[name], term)
        return add_controls(term, [control for name in names for control in known[name]])

    def _site(self, place: Key, name: str) -> DerivedSite:
        derivation, (node, below) = self._derivation, place
        part = part_of(derivation, node, below, name)
        term = derivation.derive(part, derivation.scope.reaching(part, below))
        return DerivedSite(derivation, node, part, derivation.scope.samples[name], Kind.WEIGHT, term)

    def _innermost_first(self, names: Iterable[str]) -> list[str]:
        """The order in which they are made: those that replays of earlier draws have in them, last first.

        In the order of the draws each would be made inside of the one before it, as deep as there are draws.
        """
        inner = [name for name in names if self._control(name).later_only]
        return [name for name in names if name not in inner] + inner[::-1]

    def _make(self, site: DerivedSite, term: nd.Node) -> list[nd.Node | None]:
        control = self._control(site.name)
        return [control.node(site), uncovered(site, term) if control.whole and site.node is not site.place else None]

    def _control(self, name: str) -> Control:
        control = self._derivation.estimators[name].control
        assert control is not None
        return control
