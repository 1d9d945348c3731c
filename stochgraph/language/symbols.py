"""Symbols: what a user holds in place of values while a graph is declared.

Operators, `torch` functions, attributes, indexing and method calls on a symbol become deterministic nodes. What cannot
be known of a value that does not exist yet is refused, with what to do instead.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import singledispatch
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from ..errors.exceptions import DeclarationError
from ..ir import nodes as nd
from ..ir.operations import ELEMENTWISE
from ..tensors.axes import Axis, describe
from ..tensors.trees import tensors
from .functions import called_module, constant_in_words, held, surely_read, variable_of

_BETWEEN = ("stochgraph.language.", "torch.")
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

    def name(self, word: str, given: str | None, stem: str) -> str:
        """The name that the user gave a node, which must be free; one made of `stem` if none was given."""
        if given is None:
            return self.unique(stem)
        if not isinstance(given, str) or not given:
            raise DeclarationError(
                f"sg.{word}: name={given!r} is not a name of a node: give a string. An argument of the function that "
                "is called `name` is handed over by position, or in a lambda"
            )
        if given in self.names:
            raise DeclarationError(f"two nodes of the name {given!r}: give what sg.{word} makes a name of its own")
        return given

    def axis(self, name: str, time: bool = False, n: int | None = None) -> Axis:
        self.positions += 1
        return Axis(self.positions, name, time, n)

    def add(self, node: nd.Node, named: bool = False) -> "Symbol":
        node.named = named
        node.declared_at = _caller()
        strange = [parent.name for parent in node.inputs if parent not in self.nodes[parent.index : parent.index + 1]]
        if strange or _current.get() is not self:
            raise DeclarationError(
                f"{node.name!r}: its arguments belong to different declarations, or to one that is over"
                + (f" ({', '.join(map(repr, strange))})" if strange else "")
                + ". A node is used in the function that declares it: declare it anew, or call one function from both"
            )
        self.nodes.append(node)
        self.names.add(node.name)
        return Symbol(node, self)

    def __enter__(self) -> "Declaration":
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def _caller() -> nd.Line | None:
    """The line that says a word, or applies an operation or a function of torch to a symbol."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_BETWEEN):
        frame = frame.f_back
    return frame and nd.Line(frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lineno)


def name_after(node: nd.Node) -> str:
    """The name of what an update makes of parameters: theta', theta'', theta''', then theta[4], theta[5] and so on."""
    if node.name.endswith("'''"):
        return f"{node.name[:-3]}[4]"
    stem, _, count = node.name.removesuffix("]").rpartition("[")
    if node.kind == "update" and not node.named and stem and count.isdigit():  # theta[4] may be an entry of theta
        return f"{stem}[{int(count) + 1}]"
    return node.name + "'"


def current(word: str) -> Declaration:
    """The declaration being made; `word` is what the user called."""
    declaration = _current.get()
    if declaration is None:
        raise DeclarationError(
            f"sg.{word} was called outside a declaration: call it in a function under @sg.graph. If it was called "
            "while the graph ran, a function that was given to it captures a node, perhaps in a list: pass the node to "
            "the function as an argument, sg.apply(fn, ..., node)"
        )
    return declaration


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    fn = getattr(operator, name)

    def forward(self: "Symbol", *others: object) -> "Symbol":
        return declare_apply(name.strip("_"), fn, (self, *others), {})

    def backward(self: "Symbol", other: object) -> "Symbol":
        return declare_apply(name.strip("_"), fn, (other, self), {})

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
        if _nodes_in(key) or tensors(key) or any(isinstance(part, (list, np.ndarray)) for part in parts):
            return declare_apply("getitem", operator.getitem, (self, key), {})
        return _select(self, key, attribute=False)

    def __call__(self, *args: object, **kwargs: object) -> "Symbol":
        node = self._node
        if not (isinstance(node, nd.Select) and node.attribute):
            raise DeclarationError(f"{node.name!r} is a symbolic node, not a function: use sg.apply(fn, node)")
        _refuse_in_place(str(node.key), node.inputs[0])
        # x.where(condition, other) has its arguments in another order than torch.where.
        known = {**ELEMENTWISE, **_CANONICAL}.get(node.key) if node.key != "where" and not kwargs else None
        base = Symbol(node.inputs[0], self._declaration)
        return declare_apply(node.key, known or Method(node.key), (base, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, fn: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        _refuse_distribution_built_inside(_nodes_in((args, kwargs)))
        _refuse_in_place(getattr(fn, "__name__", ""), _nodes_in((args, kwargs))[0])
        return declare_apply(getattr(fn, "__name__", "apply").strip("_"), fn, args, kwargs or {})

    def __setitem__(self, key: object, value: object) -> None:
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


class Method:
    """A tensor method as a function of its tensor."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: object, *args: object, **kwargs: object) -> Any:
        return getattr(value, self.name)(*args, **kwargs)


def declare_apply(
    label: str, fn: Callable[..., Any], args: Iterable[object], kwargs: dict[str, Any], name: str | None = None
) -> Symbol:
    """Declare the node `fn(*args, **kwargs)`, some of the arguments being symbols."""
    if not _nodes_in((args, kwargs)):
        raise DeclarationError(f"sg.apply of {label!r}: no argument is a node, so there is nothing to declare")
    declaration = current(label)
    refuse_captured([fn, args, kwargs], f"sg.apply of {label!r}")
    arguments = nd.Arguments(to_nodes(tuple(args)), to_nodes(dict(kwargs)))
    given = declaration.name("apply", name, label or "apply")
    kept = held(fn if kwargs else _plain(fn))
    return declaration.add(nd.Apply(given, len(declaration.nodes), kept, arguments), named=name is not None)


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
        return _CANONICAL.get(name) or (ELEMENTWISE.get(name, fn) if method else fn)
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


def to_nodes(tree: object) -> Any:
    """The tree with nodes in place of symbols."""
    return pytree.tree_map(_to_node, tree)


@singledispatch
def _to_node(leaf: object) -> Any:
    """A symbol's node; a constant as it is, arrays as tensors, functions with their variables."""
    return held(leaf)


@_to_node.register
def _to_its_node(leaf: Symbol) -> nd.Node:
    return leaf._node


@_to_node.register
def _to_tensor(leaf: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(leaf)


def _nodes_in(tree: object) -> Sequence[nd.Node]:
    return [leaf._node for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Symbol)]


def _refuse_in_place(name: str, node: nd.Node) -> None:
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        raise DeclarationError(
            f"node {node.name!r}: {name} works in place, but values of nodes must not change. Use the form without the "
            "underscore, or build the tensor with torch.stack or torch.where inside sg.apply"
        )


def refuse_captured(call: Sequence[Any], where: str) -> None:
    """Refuse what a call captures, a function and its arguments, and must not.

    A node would reach the function without its value, and a tensor that requires grad is no constant. A module may be
    called with other parameters than its own, unless it is what is called.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(list(call)) if not isinstance(leaf, Symbol)]
    for name, content in (found for leaf in leaves for found in surely_read(leaf)):
        if isinstance(content, Symbol):
            raise DeclarationError(
                f"{where}: the function captures the node {content._node.name!r}; pass it as an argument"
            )
        if isinstance(content, torch.Tensor) and content.requires_grad:
            variable = name or variable_of(content)
            raise DeclarationError(f"{where}: it captures {constant_in_words(variable, content)}")
    for name, parameter in called_module(call[0]).named_parameters():
        if parameter.requires_grad:
            variable = variable_of(parameter) or f"module.{name}"
            words = constant_in_words(variable, parameter, variable.removesuffix(f".{name}"))
            raise DeclarationError(f"{where}: it captures {words}")


def built_inside(where: str, dist: str) -> str:
    """Why a distribution that is built inside a declaration is refused."""
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
            raise DeclarationError(built_inside(f"node {names}", type(built).__name__))
        frame = frame.f_back  # type: ignore[assignment]
