"""The term that a sum over other values of the draws makes, shared by the estimators that have one.

NOTE [one draw at a time]
Let x_1, x_2, ... be the draws in any fixed order that respects parents. The change of an expectation with the
parameters is a telescoping sum, draw by draw, the earlier ones from the new distribution and the later ones from the
old: `E'[F] - E[F] = sum over i of E[box(L_1 + ... + L_{i-1}) sum over k of c_ik F(x_{-i}, k)]`, where the sum over k of
`c_ik` at the alternatives k is the change of the distribution of x_i. With a box before i that is differentiated, and
ratios after i that are not, it holds for any order of derivatives that the coefficients c do. At other parameters than
those of the draws, the ratios are those to the distribution that drew; the term itself is weighted with all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..derive.estimator import Site
from ..derive.substitutions import alternatives, one_at_a_time, replaced
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..surrogate.terms import Term
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, union, without
from ..tensors.trees import map_tensors, tensors


class AtParents(nd.Node):
    """The result of a function of a sample's distribution at the parents' values: `(alternatives, *plates, ...)`.

    Args:
        site: where it is used.
        name: what it is.
        fn: `fn(sample, drawn, parents, run)`, given the sample node, its draws and the values of its parents.
    """

    kind = "alternatives"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site, name: str, fn: Callable[[nd.Sample, Any, Sequence[Any], Any], Any]) -> None:
        self.sample, self.fn = site.sample, fn
        super().__init__(f"{name}({site.name})", site.sample.index, [site.drawn, *site.parents()])

    def infer_axes(self) -> Axes:
        return union([alternatives(self.sample)], self.sample.plates)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        return self.fn(self.sample, values[0], values[1:], run)


class Replaced(Term):
    """`term + sum over draws i and alternatives k of c_ik * box(draws before i) * (term with x_i = k)`.

    Args:
        site: where it stands.
        coefficients: `c`, of value 0, shape `(alternatives, *plates)`.
        replays: the term with each of the alternatives.
        own: whether the alternatives are functions of the draw that they replace, so that its ratio weights them too.
    """

    kind = "replaced"

    def __init__(self, site: Site, coefficients: nd.Node, replays: nd.Node, own: bool) -> None:
        self.sample, self.own = site.sample, own
        self.plates = one_at_a_time(site)
        self.together = without(site.sample.plates, self.plates)
        super().__init__(site, [site.ratio(site.sample.plates), coefficients, replays])

    @property
    def mixes(self) -> Axes:
        return self.plates

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        term, ratio, coefficients, replays = values
        ratio = ratio.permute([self.sample.plates.index(plate) for plate in (*self.plates, *self.together)])
        apart = tuple(range(len(self.plates)))
        whole = ratio.detach().sum(apart).exp() if apart else ratio.detach().exp()
        changes = iter(tensors(map_tensors(lambda leaf: self._sum(leaf, coefficients, self._weights(ratio)), replays)))
        return map_tensors(lambda leaf: self._times(leaf, whole) + next(changes), term)

    def _weights(self, ratio: Tensor) -> Tensor:
        """For every draw the box of those before it, times the ratios of those after it; draws one at a time first."""
        flat = ratio.reshape(-1, *ratio.shape[len(self.plates) :])
        before = flat.cumsum(0) - flat
        after = flat.sum(0) - before - (0.0 if self.own else flat)
        return (before + after.detach()).exp().reshape(ratio.shape)

    def _sum(self, replays: Tensor, coefficients: Tensor, weights: Tensor) -> Tensor:
        order = [1 + self.sample.plates.index(plate) for plate in (*self.plates, *self.together)]
        factor = coefficients.permute(0, *order) * weights
        axes = (alternatives(self.sample), *map(replaced, self.plates), *self.together)
        found = torch.mul(*vz.broadcast([factor, replays], [axes, self.input_axes[3]], self.input_axes[3]))
        return found.sum(tuple(range(1 + len(self.plates))))

    def _times(self, term: Tensor, whole: Tensor) -> Tensor:
        return torch.mul(*vz.broadcast([term, whole], [self.own_axes, self.together], self.own_axes))
