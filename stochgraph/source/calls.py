"""Deterministic functions as text: operators, torch's functions, and what the user gave."""

import operator
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils import _pytree as pytree

from ..ir import nodes as nd
from ..language.symbols import Method
from .names import constant, identifier, parameters
from .scope import Scope
from .text import ATOM, COMPARISON, POWER, PRODUCT, SIGN, SUM, Text, aligned, call, infix, mapped, method
from .writer import Writer

_LOGIC = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and_": "&", "or_": "|", "xor": "^"}
_INFIX = {
    operator.add: ("+", SUM),
    operator.sub: ("-", SUM),
    operator.mul: ("*", PRODUCT),
    operator.truediv: ("/", PRODUCT),
    operator.floordiv: ("//", PRODUCT),
    operator.mod: ("%", PRODUCT),
    operator.matmul: ("@", PRODUCT),
    operator.pow: ("**", POWER),
    **{getattr(operator, name): (sign, COMPARISON) for name, sign in _LOGIC.items()},
}
_SHOWN = 6  # names of what a function is called with
_PREFIX = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}


def applied(writer: Writer, scope: Scope, node: nd.Apply) -> Text:
    """The call of a deterministic node, mapped over its axes."""
    texts = [scope.text(parent) for parent in node.inputs]
    if not node.axes:
        return expression(writer, node, _checked(writer, node, texts))
    if node.elementwise:
        operands = broadcast(writer, node, texts)
        if operands is not None:
            return expression(writer, node, _checked(writer, node, operands))
    pairs = list(zip(texts, (parent.axes for parent in node.inputs), strict=True))
    return mapped(_of_one_draw(writer, node), pairs, node.axes)


def broadcast(writer: Writer, node: nd.Node, texts: Sequence[Text]) -> list[Text] | None:
    """The inputs of a node, lined up for an elementwise operation; `None` if too little is known of their shapes."""
    ranks = [writer.shapes.ranks.get(parent) for parent in node.inputs]
    in_line = len(texts) == 1 or all(rank is not None for rank in ranks)
    if not in_line:
        return None
    most = max((rank for rank in ranks if rank is not None), default=0)
    found = zip(texts, node.inputs, ranks, strict=True)
    return [aligned(t, p.axes, node.axes, most - r if r is not None else 0) for t, p, r in found]


def operands(writer: Writer, scope: Scope, node: nd.Node) -> list[Text]:
    """The inputs of a node that adds them, lined up."""
    found = broadcast(writer, node, [scope.text(parent) for parent in node.inputs])
    if found is None:
        raise writer.refuse(node.name, "adds values of which the dimensions are not known")
    return found


def expression(writer: Writer, node: nd.Apply, texts: Sequence[Text]) -> Text:
    """`fn(*args, **kwargs)` with texts in the places of the nodes."""
    leaves = node.arguments.mapped(texts, lambda leaf: _constant(writer, leaf))
    args, kwargs = pytree.tree_unflatten(leaves, node.arguments.spec)
    if not kwargs:
        found = _operation(node.fn, args)
        if found is not None:
            return found
    shown = [_literal(arg) for arg in args]
    named = [f"{name}={_literal(value)}" for name, value in kwargs.items()]
    if type(node.fn) is Method:
        return method(args[0], node.fn.name, *shown[1:], *named)
    return call(writer.handed.function(node.fn, _described(node)), *shown, *named)


def _described(node: nd.Apply) -> str:
    called = f"{node.name}: " if node.named else ""
    names = [identifier(parent.name) for parent in node.inputs]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return f"{called}a function of one draw of {', '.join([*names[:_SHOWN], *more])}"


def _operation(fn: Callable[..., object], args: Sequence[Text]) -> Text | None:
    if fn in _INFIX and len(args) == 2:
        return infix(*_INFIX[fn], *args)
    if fn in _PREFIX:
        return Text(_PREFIX[fn] + args[0].within(ATOM), SIGN)
    if fn is operator.abs:
        return method(args[0], "abs")
    if fn is operator.getitem:
        return Text(f"{args[0].within(ATOM)}[{_literal(args[1])}]")
    return None


def _constant(writer: Writer, leaf: object) -> Text:
    code = constant(leaf, writer.handed)
    return Text(code, SIGN if code.startswith("-") else ATOM)


def _literal(tree: object) -> str:
    """A pytree of texts as Python writes it."""
    if isinstance(tree, Text):
        return tree.code
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {_literal(value)}" for key, value in tree.items()) + "}"
    if type(tree) is list:
        return f"[{', '.join(map(_literal, tree))}]"
    if type(tree) is tuple:
        return f"({', '.join(map(_literal, tree))}{',' if len(tree) == 1 else ''})"
    return repr(tree)


def _checked(writer: Writer, node: nd.Apply, texts: Sequence[Text]) -> list[Text]:
    """Operands as numbers: where nothing says that one is, all may be truth values."""
    numbers, leaves = writer.numbers, node.arguments.leaves
    known = any(isinstance(leaf, float) or (isinstance(leaf, Tensor) and leaf.is_floating_point()) for leaf in leaves)
    if not node.operation.whole or known or any(map(numbers.is_real, node.inputs)):
        return list(texts)
    unsure = zip(texts, node.inputs, strict=True)
    return [t if numbers.is_number(parent) else call(writer.helper("number"), t.code) for t, parent in unsure]


def _of_one_draw(writer: Writer, node: nd.Apply) -> str:
    """A function of the values of one draw."""
    bare = node.arguments.simple and len(node.arguments.leaves) == len(node.inputs)
    special = node.elementwise or node.fn is operator.getitem or type(node.fn) is Method
    if bare and not special and node.fn not in _INFIX:
        return writer.handed.function(node.fn, _described(node))
    letters = parameters(len(node.inputs))
    operands = _checked(writer, node, [Text(letter) for letter in letters])
    return f"lambda {', '.join(letters)}: {expression(writer, node, operands).code}"
