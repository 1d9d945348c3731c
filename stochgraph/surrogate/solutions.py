"""Implicit updates: the solution of an inner problem, and its derivatives by the implicit function theorem.

At a maximum the gradient `g(x, context)` of the objective is zero, whatever the context (outer parameters, data). So
`dx = -H^-1 dg`, `H` the Hessian at the solution and `dg` the change of the gradient with the context, `x` held still.

NOTE [where the loops run]
Solvers loop until they are done and look at values, which transforms forbid. They run in the `forward` of an autograd
function: there torch has taken off every `torch.func` transform, mapped dimensions have become leading dimensions of
the problem, and errors can be raised. The derivatives are written in terms of the same two functions, `_Root` and
`_Linear`, so that there are derivatives of any order.

NOTE [forward mode]
`torch.func.hessian` is forward mode over reverse mode, so both functions have a forward rule. Inside two levels of
forward mode, torch (2.13) takes the derivative of such a rule for zero; that is refused.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors.exceptions import SolverError
from ..ir import nodes as nd
from ..solvers import LinearSolver, Problem, Solver
from ..solvers._base import worst
from ..tensors.autograd import Context, Mapped
from ..tensors.axes import Axes, describe, without
from ..tensors.indexing import in_transform, transform_rules
from ..tensors.trees import map_tensors
from .steps import CompiledUpdate


class CompiledArgmax(CompiledUpdate):
    """The placeholder's value that maximises the surrogate, one for every plate that the surrogate has left."""

    update: nd.Argmax

    @property
    def starts_matter(self) -> bool:
        return False

    @property
    def mixes(self) -> Axes:
        """Plates of the unknown that the objective does not have: it is solved for all of their entries at once."""
        return without(self.psi.axes, self.surrogate.axes)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        start = self.copies(run, values[0])
        if run.watch is not None and not (self.detach or in_transform()):  # the solution hides what its objective reads
            run.watch.objectives.append(self.objective(run, self.known(values[1:]), start))
        packing = _Packing(start, self.psi.axes, self.surrogate.axes)
        left_out = run.left_out
        # A torch function of its own sees mapped values as such only if they are its arguments.
        leaves, spec = pytree.tree_flatten((values[1:], left_out and left_out.index))
        if self.detach:
            leaves = map_tensors(Tensor.detach, leaves)
        # The solution is one of the values of a run, and draws depend on it: a copy with them would never be freed.
        apart = copy.copy(run)
        apart.values, apart.kept, apart.draws = {}, {}, dict(run.draws)

        def value(x: Tensor, *context: object) -> Tensor:
            captured, index = pytree.tree_unflatten(list(context), spec)
            apart.left_out = left_out and replace(left_out, index=index)
            with transform_rules():
                return packing.per_copy(self.objective(apart, self.known(captured), packing.unpack(x)))

        problem = _Implicit(value, self.update.solver, self.update.linear_solver, self._label())
        return packing.unpack(_root(problem, packing.start, *leaves))

    def _label(self) -> str:
        node = self.update
        return (
            f"argmax {node.name!r} (axes: {describe(node.axes)}) of {node.objective.name!r} over {node.unknown.name!r}"
        )


class _Packing:
    """A pytree with axes as a matrix, `(*copies, P)`: the copies are along the axes that are left in the objective."""

    def __init__(self, start: object, axes: Axes, left: Axes) -> None:
        self.leaves, self.spec = pytree.tree_flatten(start)
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.front = [axes.index(axis) for axis in left]
        moved = [self._to_front(self.leaves[i]) for i in self.places]
        self.shapes = [leaf.shape for leaf in moved]
        self.copies = self.shapes[0][: len(left)]
        self.start = torch.cat([leaf.reshape(*self.copies, -1) for leaf in moved], -1).detach()

    def _to_front(self, leaf: Tensor) -> Tensor:
        return leaf.movedim(self.front, tuple(range(len(self.front))))

    def unpack(self, x: Tensor) -> Any:
        """The pytree."""
        filled = list(self.leaves)
        sizes = [shape[len(self.copies) :].numel() for shape in self.shapes]
        for i, shape, part in zip(self.places, self.shapes, x.split(sizes, -1), strict=True):
            leaf = part.reshape(shape).movedim(tuple(range(len(self.front))), self.front)
            filled[i] = leaf.to(self.leaves[i].dtype)
        return pytree.tree_unflatten(filled, self.spec)

    def per_copy(self, objective: Tensor) -> Tensor:
        """The objective with one value per copy: it may have one for all."""
        return objective.expand(self.copies)


@dataclass(frozen=True)
class _Implicit:
    """An inner problem as a function of its context, and what it is solved with."""

    value: Callable[..., Tensor]  # (*copies, P), *context -> (*copies,)
    solver: Solver
    linear_solver: LinearSolver
    label: str

    def at(self, context: Sequence[Any]) -> Problem:
        """The problem in one context."""
        fixed = map_tensors(Tensor.detach, list(context))
        return Problem(lambda x: self.value(x, *fixed))

    def mapped(self, dims: Sequence[int | None]) -> "_Implicit":
        """The problem with one more leading dimension of copies; `dims` are those of the context."""
        return replace(self, value=torch.vmap(self.value, in_dims=(0, *dims)))

    def gradient(self, x: Tensor, *context: object) -> Tensor:
        """The gradient, differentiable in everything."""
        return torch.func.grad(lambda point: self.value(point, *context).sum())(x)

    def product(self, v: Tensor, x: Tensor, *context: object) -> Tensor:
        """The Hessian times `v`, differentiable in everything."""
        _, pull = _vjp(lambda point: self.gradient(point, *context), x)
        return pull(v)[0]

    def solve(self, start: Tensor, context: Sequence[Any]) -> Tensor:
        problem = self.at(context)
        x = self.solver.solve(problem, start).clone()  # a solver may return the start, which torch forbids
        norm = problem.gradient(x).norm(dim=-1)
        far = ~(norm <= self.solver.tolerance)
        if bool(far.any()):
            raise SolverError(
                f"{self.label}: {type(self.solver).__name__} ended where the objective's gradient has norm "
                f"{worst(far, norm)}, tolerance {self.solver.tolerance:.1e}: take more or other steps, start "
                "nearer, make the objective more concave (it is maximised: a loss needs a minus), or state a larger "
                "tolerance"
            )
        return x

    def solve_linear(self, x: Tensor, v: Tensor, context: Sequence[Any]) -> Tensor:
        """`-H^-1 v`."""
        try:
            return self.linear_solver.solve(self.at(context).curvature(x), v).clone()
        except SolverError as error:
            raise SolverError(f"{self.label}: {error}") from None


class _Context(Context, Protocol):
    problem: _Implicit
    others: list[tuple[Any] | None]  # what is no tensor, in its place among the values

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """The arguments that a gradient is wanted for."""


class _Root(torch.autograd.Function):
    """The solution as a function of the context: `(problem, start, *context) -> x`."""

    @staticmethod
    def forward(problem: _Implicit, start: Tensor, *context: object) -> Tensor:
        return problem.solve(start, context)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs[0], [output, *inputs[2:]])

    @staticmethod
    def backward(ctx: _Context, v: Tensor) -> tuple[Any, ...]:
        x, *context = _saved(ctx)
        u = _linear(ctx.problem, x, v, *context)
        wanted = _wanted(ctx.needs_input_grad[2:], context)
        return None, None, *_pull(partial(ctx.problem.gradient, x), context, wanted, u)

    @staticmethod
    def jvp(ctx: _Context, _: None, __: Tensor | None, *tangents: object) -> Tensor:
        _refuse_forward_over_forward(ctx.problem)
        x, *context = _saved(ctx)
        return _linear(ctx.problem, x, _push(partial(ctx.problem.gradient, x), context, tangents), *context)

    @staticmethod
    def vmap(
        info: Mapped, in_dims: tuple[Any, ...], problem: _Implicit, start: Tensor, *context: object
    ) -> tuple[Tensor, int]:
        return _map(_root, info.batch_size, in_dims[1:], problem, (start,), context)


class _Linear(torch.autograd.Function):
    """`(problem, x, v, *context) -> -H^-1 v`, with `H` the Hessian at `x`, a function of the context too."""

    @staticmethod
    def forward(problem: _Implicit, x: Tensor, v: Tensor, *context: object) -> Tensor:
        return problem.solve_linear(x, v, context)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs[0], [output, inputs[1], *inputs[3:]])

    @staticmethod
    def backward(ctx: _Context, w: Tensor) -> tuple[Any, ...]:
        u, *place = _saved(ctx)
        solved = _linear(ctx.problem, place[0], w, *place[1:])
        wanted = _wanted((ctx.needs_input_grad[1], *ctx.needs_input_grad[3:]), place)
        x, *context = _pull(partial(ctx.problem.product, u), place, wanted, solved)
        return None, x, solved, *context

    @staticmethod
    def jvp(ctx: _Context, _: None, x_moved: Tensor | None, v_moved: Tensor | None, *tangents: object) -> Tensor:
        _refuse_forward_over_forward(ctx.problem)
        u, *place = _saved(ctx)
        moved = _push(partial(ctx.problem.product, u), place, (x_moved, *tangents))
        return _linear(ctx.problem, place[0], moved if v_moved is None else v_moved + moved, *place[1:])

    @staticmethod
    def vmap(info: Mapped, in_dims: tuple[Any, ...], problem: _Implicit, x: Tensor, v: Tensor, *context: object) -> Any:
        return _map(_linear, info.batch_size, in_dims[1:], problem, (x, v), context)


_root: Callable[..., Tensor] = _Root.apply
_linear: Callable[..., Tensor] = _Linear.apply


def _map(
    function: Callable[..., Tensor],
    size: int,
    dims: Sequence[int | None],
    problem: _Implicit,
    points: Sequence[Tensor],
    context: Sequence[Any],
) -> tuple[Tensor, int]:
    """Apply a function to mapped tensors: the mapped dimension comes first, and every copy gets a point of its own."""
    own = dims[: len(points)]
    front = [p.expand(size, *p.shape) if d is None else p.movedim(d, 0) for p, d in zip(points, own, strict=True)]
    shared = [leaf if d is None else leaf.movedim(d, 0) for leaf, d in zip(context, dims[len(points) :], strict=True)]
    inner = problem.mapped([None if d is None else 0 for d in dims[len(points) :]])
    return function(inner, *front, *shared), 0


def _save(ctx: _Context, problem: _Implicit, values: Sequence[Any]) -> None:
    """Tensors in torch's keeping, the rest beside them."""
    are_tensors = [isinstance(value, Tensor) for value in values]
    saved = list(compress(values, are_tensors))
    ctx.problem = problem
    ctx.others = [None if is_tensor else (value,) for value, is_tensor in zip(values, are_tensors, strict=True)]
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _saved(ctx: _Context) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.others]


def _wanted(needed: Sequence[bool], values: Sequence[Any]) -> list[int]:
    """The places of the values that a gradient is wanted for."""
    floats = [isinstance(value, Tensor) and value.is_floating_point() for value in values]
    return [i for i, (need, real) in enumerate(zip(needed, floats, strict=True)) if need and real]


def _of_some(fn: Callable[..., Tensor], values: Sequence[Any], places: Sequence[int]) -> Callable[..., Tensor]:
    """`fn(*values)` as a function of the values at some places."""

    def partly(*chosen: Tensor) -> Tensor:
        filled = list(values)
        for place, value in zip(places, chosen, strict=True):
            filled[place] = value
        return fn(*filled)

    return partly


def _pull(fn: Callable[..., Tensor], values: Sequence[Any], places: Sequence[int], cotangent: Tensor) -> list[Any]:
    """The gradient of `<cotangent, fn(*values)>` with respect to the values at `places`; `None` for the others."""
    result: list[Any] = [None] * len(values)
    if places:
        _, pull = _vjp(_of_some(fn, values, places), *[values[place] for place in places])
        for place, found in zip(places, pull(cotangent), strict=True):
            result[place] = found
    return result


def _push(fn: Callable[..., Tensor], values: Sequence[Any], tangents: Sequence[Any]) -> Tensor:
    """The derivative of `fn(*values)` along the tangents, by reverse mode twice: not every function has the other."""
    places = [i for i, tangent in enumerate(tangents) if isinstance(tangent, Tensor)]
    value, pull = _vjp(_of_some(fn, values, places), *[values[place] for place in places])
    _, transposed = _vjp(pull, torch.zeros_like(value))
    return transposed(tuple(tangents[place] for place in places))[0]


def _vjp(fn: Callable[..., Any], *values: object) -> tuple[Any, Callable[..., Any]]:
    return torch.func.vjp(fn, *values)[:2]


def _refuse_forward_over_forward(problem: _Implicit) -> None:
    stack = torch._C._functorch.get_interpreter_stack() or []
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise SolverError(
            f"{problem.label}: forward mode inside forward mode has no derivative through a solution. Take all but one "
            "derivative in reverse mode, torch.func.jacrev"
        )
