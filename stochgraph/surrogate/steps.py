"""Updates as the compiler has them: their inner objective is a surrogate, a function of a placeholder.

NOTE [the two places of an update]
The gradient inside an update is taken at a placeholder psi, a copy of the parameters theta. A score-function term
`log p(x; psi) * cost` is differentiated at psi through the score only: its cost is evaluated at theta. So the update
is exactly the function of theta that it is for a fixed sample, and its Jacobian is right even where costs depend on
theta.

NOTE [scores that two places share]
The log-probabilities that make an update's direction are taken at psi, which is a copy of theta. Boxes of later costs
ask for the same numbers at theta. Where draws have no other parent between theta and them, the update hands its own
over (`Run.found`), with their derivatives: the costliest part of a meta-gradient is not computed twice. Therefore
scores are scheduled as late as possible.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors.exceptions import SamplingError
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..ir.programs import dependent, execute
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, describe, union, without
from ..tensors.indexing import in_transform
from ..tensors.pieces import Cut, find_cut
from ..tensors.trees import map_tensors, tensors
from .terms import Score

OF_A_BATCH = (
    "A dimension is left that no plate stands for. Of a batch among the inputs, declare the rows, rows = "
    'sg.data("row", rows), and reduce them, sg.mean(..., over="row"); of one draw, reduce it in a function, x.sum()'
)
_FROM_NODE = object()  # marks a step size that a node gives


class Placeholder(nd.Node):
    """The argument of an update's inner objective: a copy of the parameters for every remaining plate."""

    kind = "placeholder"
    linear = Linearity.NOWHERE
    transparent = True

    def __init__(self, update: nd.Update, axes: Axes) -> None:
        self.wanted = axes
        super().__init__(update.variable.name, update.index, [])

    def prepare(self) -> None:
        super().prepare()
        self.free = frozenset([self])

    def infer_axes(self) -> Axes:
        return self.wanted


class CompiledUpdate(nd.Node):
    """Base class: an update with its inner objective replaced by the surrogate, a function of `psi`.

    Where control variates stand in the surrogate, `surrogates` has the plain one behind it.
    """

    kind = "update"
    linear = Linearity.NOWHERE

    def __init__(
        self,
        update: nd.Update,
        params: nd.Node,
        rates: Sequence[nd.Node],
        psi: nd.Node,
        surrogates: Sequence[nd.Node],
        detach: bool,
        shared: Sequence[tuple[Score, Score]] = (),
    ) -> None:
        self.update = update
        self.psi = psi
        self.surrogates = surrogates
        self.detach = detach
        self.shared = shared  # scores at psi, and the same at the parameters
        self.rate_count = len(rates)
        parts = [dependent(surrogate, psi) for surrogate in surrogates]
        self.programs = [program for program, _ in parts]
        captured = dict.fromkeys(node for _, needed in parts for node in needed)
        super().__init__(update.name, update.index, [params, *rates, *captured])

    @property
    def expected(self) -> Axes:
        return union(*(node.expected for program in self.programs for node in program))

    @property
    def starts_matter(self) -> bool:
        """True if the result is a function of the parameters that it starts from."""
        return True

    @property
    def carried(self) -> Sequence[nd.Node]:
        return (*self.inputs[: 1 + self.rate_count], self.surrogate)

    @property
    def surrogate(self) -> nd.Node:
        """The surrogate of the inner objective."""
        return self.surrogates[0]

    @property
    def program(self) -> list[nd.Node]:
        """The nodes that compute the surrogate from `psi`."""
        return self.programs[0]

    @property
    def inner(self) -> Sequence[nd.Node]:  # type: ignore[override]
        return self.program

    def infer_axes(self) -> Axes:
        rates = self.inputs[1 : 1 + self.rate_count]
        return union(self.psi.axes, self.inputs[0].axes, *(node.axes for node in rates))

    def copies(self, run: nd.Pass, params: object) -> Any:
        """One copy of the parameters for every remaining plate."""
        axes, target = self.inputs[0].axes, self.psi.axes
        if axes == target:
            return params
        sizes = [run.sizes[axis] for axis in target]

        def copies(leaf: Tensor) -> Tensor:
            aligned, shape = vz.align(leaf, axes, target), (*sizes, *leaf.shape[len(axes) :])
            return aligned if aligned.shape == shape else aligned.expand(shape)

        return map_tensors(copies, params)

    def known(self, captured: Sequence[Any]) -> dict[nd.Node, Any]:
        """The values that the programs read, from those of the inputs behind the step sizes."""
        return dict(zip(self.inputs[1 + self.rate_count :], captured, strict=True))

    def objective(self, run: nd.Pass, known: dict[nd.Node, Any], psi: object, which: int = 0) -> Tensor:
        """A surrogate at `psi`, shape `(*axes,)`. What is computed on the way is added to `known`."""
        known[self.psi] = psi
        execute(self.programs[which], run, known)
        root = self.surrogates[which]
        if run.watch is not None and not in_transform():
            run.watch.look(self.programs[which], root, known, self.update.objective)
        value: Tensor = known[root]
        own = len(root.axes)
        is_tensor = isinstance(value, Tensor)
        if not is_tensor or value.dim() != own:
            got = f"the shape {tuple(value.shape[own:])}" if is_tensor else type(value).__name__
            raise SamplingError(
                f"update {self.update.name!r}: the inner objective {self.update.objective.name!r} must be a number per "
                f"draw, got {got}: take its sum or its mean" + (f". {OF_A_BATCH}" if is_tensor else "")
            )
        return value


class CompiledGradient(CompiledUpdate):
    """Base class: the gradient of the surrogate is taken at the parameters, and something made of it."""

    @cached_property
    def separate(self) -> Axes:
        """The plates whose entries are steps of their own: nothing that is computed on the way combines them."""
        nodes = [node for program in self.programs for node in program]
        whole = any(node.is_draw or node.inner for node in nodes)  # they read more than inputs
        return () if whole else without(self.psi.axes, [axis for node in nodes for axis in node.mixes])

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        if not (torch.is_grad_enabled() or run.log_probs):
            cut = find_cut(values, self.input_axes, self.separate)
            if cut is not None:
                return self._in_pieces(run, cut, values)
        first = 1 + self.rate_count
        captured = values[first:]
        start, known = self.copies(run, values[0]), self.known(captured)
        again = not self.detach and _is_differentiated((start, captured))
        grads = gradient(lambda psi: self.objective(run, known, psi).sum(), start, again)
        self._hand_over(run, known, again)
        if len(self.surrogates) > 1:  # control variates change the derivative of a direction, and not the direction
            fresh = self.known(captured)
            plain = gradient(lambda psi: self.objective(run, fresh, psi, 1).sum(), start, False)
            grads = pytree.tree_map(lambda one, other: one + (other - one).detach(), grads, plain)
        return self._step(run, start, grads, values[1:first])

    def _step(self, run: nd.Pass, start: Any, grads: Any, rates: Sequence[Any]) -> Any:
        """The value of the update, from the parameters, the gradient and the step sizes."""
        raise NotImplementedError

    def _in_pieces(self, run: nd.Pass, cut: Cut, values: list[Any]) -> Any:
        parts, found = [], []
        for length, part in cut.parts(values, self.input_axes):
            within = run.within(cut.plate, length)
            parts.append(self.evaluate(within, part))
            found.append(within.found)
        for _, outer in self.shared:
            if all(outer in scores for scores in found):
                run.found[outer] = cut.joined([scores[outer] for scores in found], outer.axes)
        return cut.joined(parts, self.axes)

    def _hand_over(self, run: nd.Pass, known: dict[nd.Node, Any], again: bool) -> None:
        """Give the scores at psi to whoever asks for them at the parameters; values inside a transform stay there."""
        if in_transform() or (torch.is_grad_enabled() and not again):
            return
        for inner, outer in self.shared:
            run.found[outer] = known[inner] if again else known[inner].detach()


class CompiledDirection(CompiledGradient):
    """The gradient itself."""

    @property
    def starts_matter(self) -> bool:
        return not self.detach

    def _step(self, run: nd.Pass, start: Any, grads: Any, rates: Sequence[Any]) -> Any:
        return grads


class CompiledStep(CompiledGradient):
    """A gradient step."""

    update: nd.Step

    def _rates(self, values: Sequence[Any], spec: pytree.TreeSpec) -> list[tuple[Any, bool]]:
        """The step size of every leaf of the parameters, and whether it has the plates in front."""
        nodes = self.inputs[1 : 1 + self.rate_count]
        aligned = [vz.align_tree(v, node.axes, self.axes) for v, node in zip(values, nodes, strict=True)]
        marked = [pytree.tree_map(lambda _: _FROM_NODE, value) for value in values]
        rates, marks = (self._by_leaf(self.update.lr.fill(filled)[0][0], spec) for filled in (aligned, marked))
        return [(rate, mark is _FROM_NODE) for rate, mark in zip(rates, marks, strict=True)]

    def _by_leaf(self, rates: object, spec: pytree.TreeSpec) -> list[Any]:
        """One step size for all leaves, or one for each, matched by structure and names."""
        if pytree.tree_structure(rates).is_leaf():
            return [rates] * spec.num_leaves
        try:
            return spec.flatten_up_to(rates)
        except ValueError as error:
            raise ValueError(
                f"update {self.update.name!r}: lr is neither one step size nor a pytree like the parameters: {error}"
            ) from None

    def _step(self, run: nd.Pass, start: object, grads: object, rates: Sequence[Any]) -> Any:
        leaves, spec = pytree.tree_flatten(start)
        found = zip(leaves, pytree.tree_leaves(grads), self._rates(rates, spec), strict=True)
        sizes = [run.sizes[axis] for axis in self.axes]
        return pytree.tree_unflatten([self._move(leaf, step, *rate, sizes) for leaf, step, rate in found], spec)

    def _move(self, leaf: Tensor, step: Tensor, rate: object, plates: bool, sizes: list[int]) -> Tensor:
        if self.axes != self.psi.axes:
            leaf, step = (vz.align(t, self.psi.axes, self.axes) for t in (leaf, step))
            leaf = leaf.expand(*sizes, *leaf.shape[len(sizes) :])
        if isinstance(rate, Real):
            return torch.add(leaf, step, alpha=self.update.sign * float(rate))
        if not isinstance(rate, Tensor):
            raise ValueError(f"update {self.update.name!r}: a step size is a number or a tensor of them, got {rate!r}")
        if plates:
            rate = vz.align(rate, self.axes, self.axes, leaf.dim() - len(self.axes))
        self._check_rate(rate, [*sizes, *leaf.shape[len(sizes) :]])
        return leaf + self.update.sign * rate.to(leaf.dtype) * step

    def _check_rate(self, rate: Tensor, whole: list[int]) -> None:
        """Refuse step sizes that would change the shape of the parameters."""
        surplus = rate.dim() - len(whole)
        sizes = zip(rate.shape, whole[-surplus:], strict=False)
        if surplus > 0 or any(own not in (1, size) for own, size in sizes):
            raise ValueError(
                f"update {self.update.name!r} (axes: {describe(self.axes)}): step sizes of the shape "
                f"{tuple(rate.shape)} do not fit parameters of the shape {tuple(whole)}, axes in front: give a number, "
                "or one for every parameter"
            )


def all_axes(program: Iterable[nd.Node]) -> Iterator[Axes]:
    """The axes of every node, those inside of updates included."""
    for node in program:
        yield node.axes
        yield from all_axes(node.inner)


def _is_differentiated(tree: object) -> bool:
    """True if a derivative may be taken through the values: inside transforms there is no telling, so it may."""
    if in_transform():
        return True
    watched = any(leaf.requires_grad for leaf in tensors(tree))
    return watched and torch.is_grad_enabled()


def gradient(fn: Callable[[Any], Tensor], start: object, again: bool) -> Any:
    """The gradient of `fn` at `start`; differentiable once more if `again`.

    Outside `torch.func` transforms plain reverse mode is several times faster than `torch.func.grad`; inside them only
    the latter works.
    """
    if in_transform():
        grads = torch.func.grad(fn)(start)
        return grads if again else pytree.tree_map(Tensor.detach, grads)
    with torch.enable_grad():
        psi = map_tensors(lambda x: x.view_as(x) if x.requires_grad and again else x.detach().requires_grad_(), start)
        total = fn(psi)
        if not total.requires_grad:
            return map_tensors(torch.zeros_like, start)
        copies = tensors(psi)
        found = torch.autograd.grad(total, copies, create_graph=again, allow_unused=True, materialize_grads=True)
    grads = iter(found)
    return map_tensors(lambda _: next(grads) if again else next(grads).detach(), start)
