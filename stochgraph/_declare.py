"""The words of a declaration. They build nodes; nothing is sampled or computed.

A declaration is a plain function that runs once on symbols. A `Symbol` is what a user holds in place of a value:
operators, `torch` functions, attributes, indexing and method calls on it become deterministic nodes. To a type checker
the words take and return `Any`: a symbol stands wherever a tensor would.
"""

import inspect
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from . import _node as nd
from ._axes import Axes, Axis, describe, union
from ._derive import between
from ._errors import DeclarationError
from ._law import DistributionLaw, SamplerLaw
from ._sampler import Sampler

_current: ContextVar["Declaration | None"] = ContextVar("declaration", default=None)


class Declaration:
    """The nodes declared so far, with unique names."""

    def __init__(self) -> None:
        self.nodes: list[nd.Node] = []
        self.names: set[str] = set()
        self.selected: dict[tuple[nd.Node, str, bool], Symbol] = {}
        self.positions = 0

    def unique(self, stem: str) -> str:
        """`stem`, or `stem_2`, `stem_3`... if it is taken."""
        name, count = stem, 1
        while name in self.names:
            count += 1
            name = f"{stem}_{count}"
        return name

    def axis(self, name: str, time: bool = False) -> Axis:
        self.positions += 1
        return Axis(self.positions, name, time)

    def add(self, node: nd.Node) -> "Symbol":
        self.nodes.append(node)
        self.names.add(node.name)
        return Symbol(node, self)

    def __enter__(self) -> "Declaration":
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def current(word: str) -> Declaration:
    """The declaration being made; `word` is what the user called."""
    declaration = _current.get()
    if declaration is None:
        raise DeclarationError(f"sg.{word} was called outside a declaration: call it in a function under @sg.graph")
    return declaration


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    fn = getattr(operator, name)

    def forward(self: "Symbol", *others: Any) -> "Symbol":
        return _apply(name.strip("_"), fn, (self, *others), {})

    def backward(self: "Symbol", other: Any) -> "Symbol":
        return _apply(name.strip("_"), fn, (other, self), {})

    return backward if reflected else forward


class Symbol:
    """A node as the declaring function holds it: no value yet, only a place in the graph."""

    __slots__ = ("_declaration", "_node")

    def __init__(self, node: nd.Node, declaration: Declaration) -> None:
        self._node = node
        self._declaration = declaration

    def __getattr__(self, name: str) -> "Symbol":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _select(self, name, attribute=True)

    def __getitem__(self, key: Any) -> "Symbol":
        parts = key if isinstance(key, tuple) else (key,)
        if _nodes_in(key) or _holds_tensors(key) or any(isinstance(part, (list, np.ndarray)) for part in parts):
            return apply(operator.getitem, self, key)
        return _select(self, key, attribute=False)

    def __call__(self, *args: Any, **kwargs: Any) -> "Symbol":
        node = self._node
        if not (isinstance(node, nd.Select) and node.attribute):
            raise DeclarationError(f"{node.name!r} is a symbolic node, not a function: use sg.apply(fn, node)")
        _refuse_in_place(str(node.key), node.inputs[0])
        # x.where(condition, other) has its arguments in another order than torch.where.
        known = {**nd.ELEMENTWISE, **_CANONICAL}.get(node.key) if node.key != "where" and not kwargs else None
        base = Symbol(node.inputs[0], self._declaration)
        return _apply(node.key, known or _Method(node.key), (base, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, fn: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        _refuse_distribution_built_inside(_nodes_in((args, kwargs)))
        _refuse_in_place(getattr(fn, "__name__", ""), _nodes_in((args, kwargs))[0])
        return _apply(getattr(fn, "__name__", "apply").strip("_"), fn, args, kwargs or {})

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_in_place("__setitem__", self._node)

    def __bool__(self) -> bool:
        raise self._no_value("a Python branch (if, while, and, or) on it", "torch.where")

    def __iter__(self) -> Any:
        raise self._no_value("iterating over it", "indexing: x[0], x[1]")

    def __len__(self) -> int:
        raise self._no_value("len() of it", "a constant")

    def __float__(self) -> float:
        raise self._no_value("float() of it", "the node itself")

    __int__ = __index__ = __float__

    def _no_value(self, what: str, instead: str) -> DeclarationError:
        node = self._node
        _refuse_distribution_built_inside([node])
        return DeclarationError(
            f"node {node.name!r} (axes: {describe(node.axes)}) has no value while the graph is declared: {what} is "
            f"impossible. Use {instead}"
        )

    def __repr__(self) -> str:
        return f"<{self._node.kind} {self._node.name!r}, axes: {describe(self._node.axes)}>"

    __add__, __radd__ = _operator("add"), _operator("add", reflected=True)
    __sub__, __rsub__ = _operator("sub"), _operator("sub", reflected=True)
    __mul__, __rmul__ = _operator("mul"), _operator("mul", reflected=True)
    __truediv__, __rtruediv__ = _operator("truediv"), _operator("truediv", reflected=True)
    __floordiv__, __rfloordiv__ = _operator("floordiv"), _operator("floordiv", reflected=True)
    __mod__, __rmod__ = _operator("mod"), _operator("mod", reflected=True)
    __pow__, __rpow__ = _operator("pow"), _operator("pow", reflected=True)
    __matmul__, __rmatmul__ = _operator("matmul"), _operator("matmul", reflected=True)
    __and__, __rand__ = _operator("and_"), _operator("and_", reflected=True)
    __or__, __ror__ = _operator("or_"), _operator("or_", reflected=True)
    __xor__, __rxor__ = _operator("xor"), _operator("xor", reflected=True)
    __neg__, __pos__, __abs__, __invert__ = (_operator(name) for name in ("neg", "pos", "abs", "invert"))
    __lt__, __le__, __gt__, __ge__ = (_operator(name) for name in ("lt", "le", "gt", "ge"))
    __eq__, __ne__ = _operator("eq"), _operator("ne")
    __hash__ = object.__hash__


class _Method:
    """A tensor method as a function of its tensor."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, self.name)(*args, **kwargs)


def sample(name: str, dist: Any, *parents: Any, n: int | None = None, **parameters: Any) -> Any:
    """A sample node: `name ~ dist(*parents)`.

    Args:
        name: the name of the node, unique in the graph, and of its plate if it has one.
        dist: a `torch.distributions` class, any function of one draw's parents that returns a distribution, or a
            `stochgraph.Sampler`.
        *parents: nodes (or pytrees of them) and constants. The draw has every axis that a parent has.
        n: the number of independent draws: adds a plate called `name`. `None` draws once and adds none.
        **parameters: parents by name, as in `sg.sample("x", Bernoulli, logits=theta)`.

    Returns:
        The draw; its fields, if it has any, are read with attributes.

    Raises:
        DeclarationError: a name taken, a distribution already built, a plate of less than one draw.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
        ...     return -(sg.mean(x) - 1.0) ** 2
        >>> objective.compile(sg.SF()).sample(torch.tensor(0.0)).draws["x"].shape
        torch.Size([100])
    """
    declaration = current("sample")
    if isinstance(dist, type) and issubclass(dist, Sampler):
        raise DeclarationError(
            f"sample {name!r}: {dist.__name__} is a Sampler class; pass an instance, {dist.__name__}(...)"
        )
    if isinstance(dist, Distribution):
        raise DeclarationError(_built_inside(f"sample {name!r}", type(dist).__name__))
    if not callable(dist) and not isinstance(dist, Sampler):
        raise DeclarationError(f"sample {name!r}: {dist!r} is neither a distribution class, a function nor a Sampler")
    if name in declaration.names:
        raise DeclarationError(f"two nodes of the name {name!r}: give every sample a name of its own")
    _refuse_captured(dist, f"sample {name!r}")
    _check_call(name, dist, parents, parameters)
    if n is not None and (not isinstance(n, int) or n < 1):
        raise DeclarationError(f"sample {name!r}: a plate needs n >= 1 draws, got n={n!r}")
    law: DistributionLaw | SamplerLaw
    law = SamplerLaw(dist) if isinstance(dist, Sampler) else DistributionLaw(dist)
    plate = None if n is None else declaration.axis(name)
    time = declaration.axis(f"{name}.time", time=True) if law.time else None
    arguments = nd.Arguments(_to_nodes(parents), _to_nodes(parameters))
    return declaration.add(nd.Sample(name, len(declaration.nodes), law, arguments, plate, time, n))


def mean(x: Any, over: str | Iterable[str] | None = None) -> Any:
    """The mean of `x` over plates: `(1/N) sum_i x_i`. A linear operation.

    Args:
        x: a node with at least one plate.
        over: names of the plates; default: every plate of `x`. A time axis must be named to be averaged.

    Raises:
        DeclarationError: `x` does not have the axis.
    """
    plates = tuple(axis for axis in _node(x, "mean").axes if not axis.time)
    return _reduction("mean", x, _choose(x, over, plates, "mean", "plate"), mean=True)


def sum(x: Any, over: str | Iterable[str] | None = None, discount: float | None = None) -> Any:
    """The sum of `x` over time: `sum_t discount**t * x_t`. A linear operation.

    Args:
        x: a node with at least one time axis.
        over: names of axes; default: every time axis of `x`. A plate must be named to be summed.
        discount: the factor per time step (no unit); needs exactly one time axis.

    Raises:
        DeclarationError: `x` does not have the axis, or a discount was given for several axes.
    """
    times = tuple(axis for axis in _node(x, "sum").axes if axis.time)
    chosen = _choose(x, over, times, "sum", "time axis")
    if discount is not None and (len(chosen) != 1 or not chosen[0].time):
        raise DeclarationError(
            f"sg.sum of {x._node.name!r}: a discount needs exactly one time axis, not {describe(chosen)}"
        )
    return _reduction("sum", x, chosen, mean=False, discount=discount)


def reduce(fn: Callable[..., Any], x: Any, over: str | Iterable[str] | None = None) -> Any:
    """Any function of whole plates: a quantile, a maximum, a log-sum-exp.

    `fn` gets the reduced axes as leading dimensions of its argument, outermost first, and no others. The score
    function and the pathwise derivative go through it; estimators that linearise at a plate mean do not.

    Args:
        fn: from a pytree of tensors of shape `(*over, ...)` to a tensor.
        x: a node with the axes.
        over: names of axes; default: every plate of `x`.
    """
    plates = tuple(axis for axis in _node(x, "reduce").axes if not axis.time)
    chosen = _choose(x, over, plates, "reduce", "plate")
    declaration = x._declaration
    name = declaration.unique(f"{getattr(fn, '__name__', 'reduce')}({x._node.name})")
    return declaration.add(nd.Reduce(name, len(declaration.nodes), x._node, chosen, fn))


def apply(fn: Callable[..., Any], *nodes: Any, **constants: Any) -> Any:
    """A deterministic node `fn(*nodes)`. `fn` is written for one draw; plates and time are mapped over it.

    Args:
        fn: any function of tensors or pytrees that `torch.vmap` can map.
        *nodes: nodes, pytrees of nodes, constants.
        **constants: further arguments by name.

    Note:
        `sg.apply(torch.clone, theta)` gives a copy of parameters on which nothing drawn from `theta` depends. An
        inner update of the copy descends a loss at fixed data, however the data were drawn.
    """
    return _apply(getattr(fn, "__name__", "apply").strip("_<>"), fn, nodes, constants)


def stop(x: Any) -> Any:
    """Stop-gradient: the value of `x` is a constant by declaration. How it was drawn is still accounted for."""
    node = _node(x, "stop")
    declaration = x._declaration
    return declaration.add(nd.Stop(declaration.unique(f"stop({node.name})"), len(declaration.nodes), [node]))


def ascend(params: Any, objective: Any, lr: Any) -> Any:
    """One inner step up the gradient: `params + lr * gradient of objective with respect to params`.

    The gradient is that of the objective's own surrogate: the score function of every sample that was drawn from
    `params`, plus the gradient through values. What is left of the objective's plates (the tasks, say) becomes a
    plate of the result: one adapted copy per task.

    Args:
        params: a node: a tensor or a pytree of tensors.
        objective: a declared inner objective, a scalar per draw, without time axes.
        lr: the step size: a number, a node, or a pytree of them with the structure of `params` (Meta-SGD).

    Raises:
        DeclarationError: the objective does not depend on `params`, or has a time axis left.
    """
    return _update("ascend", params, objective, lr, +1)


def descend(params: Any, objective: Any, lr: Any) -> Any:
    """One inner step down the gradient: `params - lr * gradient of objective`. See `ascend`."""
    return _update("descend", params, objective, lr, -1)


def declare(fn: Callable[..., Any]) -> tuple[list[nd.Input], nd.Node]:
    """Run `fn` once on symbols; its inputs and its objective."""
    declaration = Declaration()
    with declaration:
        inputs = [declaration.add(nd.Input(p, i, [])) for i, p in enumerate(_parameters(fn))]
        result = fn(*inputs)
    if not isinstance(result, Symbol):
        raise DeclarationError(
            f"{fn.__name__} must return a node, the objective; it returned {type(result).__name__}"
            + (", a constant: nothing in it depends on a sample or an input" if result is not None else "")
        )
    node = result._node
    if node.axes:
        word = "sg.sum" if any(axis.time for axis in node.axes) else "sg.mean"
        raise DeclarationError(
            f"the objective {node.name!r} of {fn.__name__} still has the axes {describe(node.axes)}: reduce them "
            f"with {word}(..., over={node.axes[0].name!r})"
        )
    return [symbol._node for symbol in inputs], node  # type: ignore[misc]


def _parameters(fn: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(fn).parameters.values()
    bad = [
        p.name
        for p in parameters
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY) or p.default is not p.empty
    ]
    if bad or not parameters:
        raise DeclarationError(
            f"{fn.__name__} needs plain positional inputs, at least one; "
            + (f"{bad[0]!r} is not one: no defaults, no *; pass a pytree instead" if bad else "it has none")
        )
    return [p.name for p in parameters]


def _node(x: Any, word: str) -> nd.Node:
    if not isinstance(x, Symbol):
        raise DeclarationError(f"sg.{word} takes a node of the graph, got {type(x).__name__}")
    return x._node


def _apply(label: str, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Symbol:
    symbols = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Symbol)]
    if not symbols:
        raise DeclarationError(f"sg.apply of {label!r}: no argument is a node, so there is nothing to declare")
    declaration = current(label)
    _refuse_captured(fn, f"sg.apply of {label!r}")
    if any(symbol._declaration is not declaration for symbol in symbols):
        raise DeclarationError(f"{label!r}: its arguments belong to different declarations")
    arguments = nd.Arguments(_to_nodes(tuple(args)), _to_nodes(dict(kwargs)))
    return declaration.add(
        nd.Apply(declaration.unique(label or "apply"), len(declaration.nodes), fn if kwargs else _plain(fn), arguments)
    )


_CANONICAL: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "subtract": operator.sub,
    "mul": operator.mul,
    "multiply": operator.mul,
    "div": operator.truediv,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "truediv": operator.truediv,
    "neg": operator.neg,
    "negative": operator.neg,
    "pow": operator.pow,
}


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The operator or torch function behind a torch function or a tensor method: the same operation, one spelling."""
    name = getattr(fn, "__name__", "").strip("_")
    method = isinstance(fn, type(torch.Tensor.add)) or "Tensor" in getattr(fn, "__qualname__", "")
    if method or fn is getattr(torch, name, None):
        return _CANONICAL.get(name) or (nd.ELEMENTWISE.get(name, fn) if method else fn)
    return fn


def _select(symbol: Symbol, key: Any, attribute: bool) -> Symbol:
    node, declaration = symbol._node, symbol._declaration
    known = declaration.selected.get((node, repr(key), attribute))
    if known is not None:  # the same field is the same node, so that it can be updated and read in one graph
        return known
    name = declaration.unique(f"{node.name}.{key}" if attribute else f"{node.name}[{key!r}]")
    declaration.selected[node, repr(key), attribute] = declaration.add(
        nd.Select(name, len(declaration.nodes), node, key, attribute)
    )
    return declaration.selected[node, repr(key), attribute]


def _reduction(word: str, x: Symbol, over: Axes, mean: bool, discount: float | None = None) -> Symbol:
    declaration = x._declaration
    name = declaration.unique(f"{word}({x._node.name})")
    return declaration.add(nd.Reduction(name, len(declaration.nodes), x._node, over, mean, discount))


def _choose(x: Symbol, over: str | Iterable[str] | None, default: Axes, word: str, noun: str) -> Axes:
    """The axes that `over` names, or the default ones."""
    node = x._node
    if over is None:
        if not default:
            raise DeclarationError(
                f"sg.{word} of {node.name!r}: it has no {noun} (axes: {describe(node.axes)}); "
                f"leave sg.{word} out, or name an axis with over="
            )
        return default
    wanted = [over] if isinstance(over, str) else list(over)
    by_name = {axis.name: axis for axis in node.axes}
    for name in wanted:
        if name not in by_name:
            raise DeclarationError(
                f"sg.{word} of {node.name!r} over {name!r}: the node does not have this axis "
                f"(axes: {describe(node.axes)}); choose one of them"
            )
    return union([by_name[name] for name in wanted])


def _update(word: str, params: Symbol, objective: Symbol, lr: Any, sign: int) -> Symbol:
    start, goal = _node(params, word), _node(objective, word)
    times = [axis for axis in goal.axes if axis.time]
    if times:
        raise DeclarationError(
            f"sg.{word} of {start.name!r}: the inner objective {goal.name!r} still has the time axis "
            f"{times[0].name!r}: sum over it first, sg.sum(..., over={times[0].name!r})"
        )
    if not _depends(goal, start):
        raise DeclarationError(
            f"sg.{word} of {start.name!r}: the inner objective {goal.name!r} does not depend on {start.name!r}, "
            "neither through values nor through a distribution; its gradient would be zero"
        )
    _refuse_mixed_copies(word, start, goal)
    rate = nd.Arguments((_to_nodes(lr),), {})
    declaration = params._declaration
    name = declaration.unique(start.name + "'")
    return declaration.add(nd.Update(name, len(declaration.nodes), start, goal, rate, sign))


def _refuse_mixed_copies(word: str, start: nd.Node, goal: nd.Node) -> None:
    """Each plate that is left gets its own copy of the parameters: nothing that depends on them may mix its draws."""
    copied = set(goal.axes) - set(start.axes)
    for node in between(start, goal):
        mixed = copied & set(getattr(node, "over", ()))
        if mixed:
            raise DeclarationError(
                f"sg.{word} of {start.name!r}: the inner objective {goal.name!r} keeps the plate {min(mixed).name!r}, "
                f"so each of its draws gets its own copy of {start.name!r}; but {node.name!r} reduces that plate of "
                "something that depends on the copies. Reduce the plate in the whole objective, or compute "
                f"{node.name!r} from parameters that are not updated, sg.apply(torch.clone, params)"
            )


def _depends(node: nd.Node, source: nd.Node) -> bool:
    """Whether `source` is among the ancestors of `node`."""
    seen, stack = set(), [node]
    while stack:
        top = stack.pop()
        if top is source:
            return True
        fresh = [parent for parent in top.inputs if parent not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _to_nodes(tree: Any) -> Any:
    return pytree.tree_map(_to_node, tree)


def _to_node(leaf: Any) -> Any:
    """A symbol's node; a constant as it is, arrays as tensors."""
    if isinstance(leaf, np.ndarray):
        return torch.as_tensor(leaf)
    return leaf._node if isinstance(leaf, Symbol) else leaf


def _nodes_in(tree: Any) -> Sequence[nd.Node]:
    return [leaf._node for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Symbol)]


def _holds_tensors(tree: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(tree))


def _check_call(name: str, dist: Any, parents: tuple[Any, ...], parameters: dict[str, Any]) -> None:
    """Refuse parents that the distribution does not take."""
    called = dist.log_prob if isinstance(dist, Sampler) else dist
    given = (None, *parents) if isinstance(dist, Sampler) else parents
    try:
        inspect.signature(called).bind(*given, **parameters)
    except TypeError as error:
        word = type(dist).__name__ if isinstance(dist, Sampler) else getattr(dist, "__name__", repr(dist))
        raise DeclarationError(f"sample {name!r}: its parents do not fit {word}: {error}") from None
    except ValueError:  # a builtin without a signature
        pass


def _refuse_in_place(name: str, node: nd.Node) -> None:
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        raise DeclarationError(
            f"node {node.name!r}: {name} works in place, but values of nodes must not change. Use the form without the "
            "underscore, or build the tensor with torch.stack or torch.where inside sg.apply"
        )


def _refuse_captured(fn: Any, where: str) -> None:
    """A node inside a function's closure would reach it without its value."""
    for cell in getattr(fn, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        if isinstance(content, Symbol):
            name = content._node.name
            raise DeclarationError(f"{where}: the function captures the node {name!r}; pass it as an argument")


def _built_inside(where: str, dist: str) -> str:
    return (
        f"{where}: the distribution {dist} was built inside the declaration. Pass the class and its parents: "
        f"sg.sample(name, {dist}, ...) instead of sg.sample(name, {dist}(...))"
    )


def _refuse_distribution_built_inside(nodes: Sequence[nd.Node]) -> None:
    """Constructors of distributions branch on their arguments; say what really went wrong there."""
    frame = sys._getframe(1)
    while frame is not None:
        built = frame.f_locals.get("self")
        if frame.f_globals.get("__name__", "").startswith("torch.distributions.") and isinstance(built, Distribution):
            names = ", ".join(repr(node.name) for node in nodes)
            raise DeclarationError(_built_inside(f"node {names}", type(built).__name__))
        frame = frame.f_back  # type: ignore[assignment]
