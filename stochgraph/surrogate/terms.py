"""The nodes that the compiler adds to a graph: scores, weights, boxes and their sums.

NOTE [the box]
`box(L) = exp(L - recorded L)`. At the parameters that drew the trace its value is 1 and its derivative is that of L;
at other parameters it is the importance ratio. So one surrogate serves for gradients of any order, for line searches
and for replays.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, without
from ..tensors.left_out import LeftOut
from ..tensors.trees import map_tensors


class Score(nd.Node):
    """The log-probability of a draw under given parents; inputs are the draw and the parents."""

    kind = "score"
    linear = Linearity.NOWHERE
    late = True

    def __init__(self, sample: nd.Sample, drawn: nd.Node, parents: Sequence[nd.Node]) -> None:
        self.sample = sample
        super().__init__(f"log p({sample.name})", sample.index, [drawn, *parents])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        found = run.found.get(self)
        return run.score(self.sample, self.inputs, values) if found is None else found


class Weight(nd.Node):
    """A score relative to its recorded value, reduced to the axes along which a term depends on the draw.

    Axes in `aligned` are kept: plates elementwise, time cumulatively. All others are summed; with `average` plates are
    averaged instead.
    """

    kind = "weight"
    linear = Linearity.NOWHERE
    late = True
    label = ""  # the subscript of its box in formulas: none of a plain likelihood ratio
    across_time = "1"  # how often products of scores at two time steps are counted

    def __init__(self, score: Score, aligned: Axes, average: bool) -> None:
        self.sample = score.sample
        self.aligned = aligned
        self.average = average
        super().__init__(f"weight({score.sample.name})", score.index, [score])

    def infer_axes(self) -> Axes:
        return without(self.inputs[0].axes, self.summed)

    @property
    def key(self) -> Any:
        """Its identity: equal ratios are one node."""
        return (self.inputs[0], self.aligned, self.average)

    @property
    def summed(self) -> Axes:
        """The sample's own axes that are reduced; axes that only the parents have stay."""
        return without(self.sample.axes, self.aligned)

    @property
    def mixes(self) -> Axes:
        return self.summed

    def prepare(self) -> None:
        """Also the dimensions of the score to accumulate, to sum and to average over."""
        super().prepare()
        places = list(enumerate(self.input_axes[0]))
        gone = self.summed
        self._cumulated = [d for d, axis in places if axis.time and axis in self.aligned]
        self._gone = tuple(d for d, axis in places if axis in gone)
        self._averaged = [d for d, axis in places if self.average and axis in gone and not axis.time]

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        score = values[0]
        recorded = run.log_probs.get(self.sample.name)
        before = score.detach() if recorded is None else vz.align(recorded, self.sample.axes, self.input_axes[0])
        return self._reduce(score - before, run.left_out)

    def _reduce(self, value: Tensor, left_out: LeftOut | None) -> Tensor:
        for d in self._cumulated:
            value = value.cumsum(d)
        if left_out is not None and left_out.plate in self.summed:
            return left_out.sum(value, self.input_axes[0], self._gone)
        scale = 1.0
        for d in self._averaged:
            scale /= value.shape[d]
        value = value.sum(self._gone) if self._gone else value
        return value * scale if self._averaged else value

    def excess(self, value: Tensor) -> Tensor:
        """The box of a weight of this value, less 1."""
        return value.expm1()


class Box(nd.Node):
    """`base * exp(exponent)`."""

    kind = "box"
    linear = Linearity.IN_FIRST
    transparent = True

    def __init__(self, base: nd.Node, exponent: nd.Node, weights: tuple[Weight, ...]) -> None:
        self.weights = weights
        super().__init__(f"box({base.name})", base.index, [base, exponent])

    @property
    def counts(self) -> Sequence[Weight]:  # type: ignore[override]
        return self.weights

    @property
    def carried_places(self) -> Sequence[int]:
        return (0,)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        factor = self.factor(values[1])
        return map_tensors(lambda leaf: torch.mul(*self.broadcast([leaf, factor])), values[0])

    def factor(self, weight: Tensor) -> Tensor:
        """The factor of the base: the likelihood ratio."""
        return weight.exp()


class Place(Protocol):
    """A term and the sample that reaches it, where its box, or what takes the box's place, stands."""

    @property
    def name(self) -> str:
        """The sample's name."""

    @property
    def node(self) -> nd.Node:
        """The declared node, or the part of it that the box covers."""

    @property
    def term(self) -> nd.Node:
        """Its derived form."""

    def ratio(self) -> Weight:
        """The log-ratio of the sample's draws, kept as the node depends on them."""


class Term(Box):
    r"""A node that an estimator puts in the place of a boxed term.

    Inputs are the derived term, first, and whatever else it reads. It has the term's axes, at the parameters that drew
    the term's value, and the derivatives that the estimator gives it. Subclasses have `evaluate`.

    Args:
        site: where it stands; the ratio of its sample says which distribution the term accounts for.
        inputs: the nodes that it reads, besides the term.
    """

    kind = "term"

    def __init__(self, site: Place, inputs: Sequence[nd.Node]) -> None:
        self.weights, self.own_axes = (site.ratio(),), site.term.axes
        nd.Node.__init__(self, f"{self.kind}({site.node.name}, {site.name})", site.term.index, [site.term, *inputs])

    @property
    def compares(self) -> frozenset[str]:  # type: ignore[override]
        """The samples whose draws' costs are compared with what they are for other draws."""
        return frozenset(weight.sample.name for weight in self.weights)

    def infer_axes(self) -> Axes:
        return self.own_axes

    @property
    def mixes(self) -> Axes:
        """The plates of the sample along which it reads the draws of others."""
        return self.weights[0].summed

    def formula(self, term: str, sample: str) -> str:
        """The node as LaTeX, from the formulas of the term and of the sample."""
        return rf"\mathrm{{{self.kind}}}_{{{sample}}}\big({term}\big)"


class ScoreTerm(nd.Node):
    """`base * sum of log-probabilities`: a score-function term, whose gradient alone is used."""

    kind = "score term"
    linear = Linearity.IN_FIRST
    transparent = True

    def __init__(self, base: nd.Node, scores: nd.Node, weights: tuple[Weight, ...]) -> None:
        self.weights = weights
        super().__init__(f"score({base.name})", base.index, [base, scores])

    @property
    def carried_places(self) -> Sequence[int]:
        return (0,)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        base, scores = self.broadcast(values)
        return base * scores


class Total(nd.Node):
    """The sum of its inputs."""

    kind = "total"
    linear = Linearity.IN_ALL
    transparent = True
    late = True

    def __init__(self, left: nd.Node, right: nd.Node) -> None:
        super().__init__("total", max(left.index, right.index), [left, right])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        left, right = self.broadcast(values)
        return left + right


class Controlled(nd.Node):
    """A term and its control variates: inputs after the first have zero mean."""

    kind = "controlled"
    linear = Linearity.IN_ALL
    transparent = True

    def __init__(self, term: nd.Node, controls: Sequence[Any]) -> None:
        self.controls = controls
        super().__init__(term.name, term.index, [term, *controls])
        self.compares_below = frozenset(control.sample.name for control in controls if control.left_out)

    @property
    def carried_places(self) -> Sequence[int]:
        return (0,)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        term, *controls = values
        for control, axes in zip(controls, self.input_axes[1:], strict=True):
            term = _add(term, control, self.axes, axes)
        return term


def _add(left: object, right: object, axes: Axes, right_axes: Axes) -> Any:
    """The sum of two pytrees of one structure; a tensor on the right goes to every leaf."""
    if isinstance(right, Tensor):
        right = pytree.tree_map(lambda _: right, left)
    return pytree.tree_map(
        lambda x, y: torch.add(*vz.broadcast([x, y], [axes, right_axes], axes)) if isinstance(x, Tensor) else x,
        left,
        right,
    )
