"""Arithmetic as one node: operations that feed operations alone are written out in the formula of what they feed.

What stays a node is what has a meaning of its own: inputs, samples, updates, what the user named, the objective, what
several formulas use, and what would make a formula too long to read.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
import torch

from ..ir import nodes as nd
from ..ir.declaration import Declaration
from .grid import SUPERSCRIPTS, raised, without_selects

LONGEST = 60  # letters of a formula
_LINE = 32  # letters of one that is not broken
_SHORT = 14  # letters of what is written out wherever it is used
_SUM, _PRODUCT, _POWER, _CALL = range(4)  # how tightly a formula binds, the loosest first
_MINUS = "\N{MINUS SIGN}"
# The sign, how tightly it binds, and how tightly its right side has to.
_INFIX: dict[Callable[..., object], tuple[str, int, int]] = {
    operator.add: ("+", _SUM, _SUM),
    operator.sub: (_MINUS, _SUM, _PRODUCT),
    operator.mul: ("·", _PRODUCT, _PRODUCT),
    operator.truediv: ("/", _PRODUCT, _POWER),
    operator.matmul: ("@", _PRODUCT, _POWER),
}
_SIGNS = [sign for sign, _, _ in _INFIX.values()]
_NEGATIVE: tuple[Callable[..., object], ...] = (operator.neg, torch.neg)
_POWERS: tuple[Callable[..., object], ...] = (operator.pow, torch.pow, torch.square)


@dataclass(frozen=True)
class Formula:
    """A text, and how tightly it binds."""

    text: str
    binds: int = _CALL

    def within(self, binds: int) -> str:
        """The text, in brackets where what is around it binds more tightly."""
        return self.text if self.binds >= binds else f"({self.text})"


def folded(graph: Declaration) -> nx.DiGraph:
    """The graph without selects in which arithmetic is folded; what is folded has its text as `formula`."""
    shown, formulas = without_selects(graph), _Formulas(graph)
    for name in [node.name for node in graph.order if node.kind in _WRITERS and node.name in shown]:
        for parent in shown.predecessors(name):
            shown.edges[parent, name]["label"] = ""  # the formula has the field
        if name in formulas.gone:
            _bypass(shown, name)
        else:
            shown.nodes[name]["formula"] = formulas.line(name)
    return shown


def _bypass(graph: nx.DiGraph, node: str) -> None:
    """The inputs of a node go straight to what it feeds."""
    for parent in graph.predecessors(node):
        graph.add_edges_from((parent, child, {"role": "value", "label": ""}) for child in graph.successors(node))
    graph.remove_node(node)


class _Formulas:
    """The formulas of all operations, and the names of those that are written out where they are used."""

    def __init__(self, graph: Declaration) -> None:
        self.objective = graph.objective
        self.own: dict[str, Formula] = {}
        self.gone: set[str] = set()
        self.called: set[str] = set()  # what a formula says by its name
        self.named = {node.name for node in graph.order if node.named}
        self.users: dict[nd.Node, list[nd.Node]] = {}
        for node in graph.order:
            for parent in node.inputs:
                self.users.setdefault(parent, []).append(node)
        for node in graph.order:
            if node.kind in _WRITERS:
                self.own[node.name] = self._formula(node)
                if self._dissolves(node):
                    self.gone.add(node.name)

    def line(self, name: str) -> str:
        """The formula, with the name where another formula says it, in two lines if it is long."""
        text = self.own[name].text
        return _in_lines(f"{name} = {text}" if name in self.called - self.named else text)

    def _dissolves(self, node: nd.Node) -> bool:
        """Fields do always: they are no nodes of a picture."""
        if node is self.objective or node.named:
            return False
        readers = set(self._readers(node))
        short = len(self.own[node.name].text) <= _SHORT
        alone = all(reader.kind in _WRITERS for reader in readers) and (short or len(readers) == 1)
        return node.kind == "select" or alone

    def _readers(self, node: nd.Node) -> Iterator[nd.Node]:
        """The nodes that use the node, or a field of it."""
        for user in self.users.get(node, []):
            if user.kind == "select" and user is not self.objective:
                yield from self._readers(user)
            else:
                yield user

    def _formula(self, node: nd.Node) -> Formula:
        """Written out as far as there is room."""
        parents = [parent for parent in node.inputs if parent.carries]
        while True:
            parts = [self.own[p.name] if p.name in self.gone else _said(p) for p in parents]
            formula = _WRITERS[node.kind](node, parts)
            long = [p for p in parents if p.name in self.gone and p.kind != "select"]
            longest = max(long, key=lambda p: len(self.own[p.name].text), default=None)
            if longest is None or len(formula.text) <= LONGEST or len(self.own[longest.name].text) <= _SHORT:
                self.called.update(p.name for p in parents if p.name in self.own and p.name not in self.gone)
                return formula
            self.gone.remove(longest.name)


def _said(node: nd.Node) -> Formula:
    return Formula(raised(node.name) if node.kind == "update" else node.name)


def _in_lines(text: str) -> str:
    """Two lines of about the same length, if one would be long: before a sign or behind a comma, in few brackets."""
    gaps = [i for i, letter in enumerate(text) if letter == " " and (text[i + 1] in _SIGNS or text[i - 1] in ",=")]
    if len(text) <= _LINE or not gaps:
        return text
    off = {i: abs(i / len(text) - 0.5) for i in gaps}
    middle = min(gaps, key=lambda i: (off[i] > 0.2, text.count("(", 0, i) - text.count(")", 0, i), off[i]))
    return text[:middle] + "\n" + text[middle + 1 :]


def _applied(node: nd.Apply, parts: Sequence[Formula]) -> Formula:
    args, kwargs = node.arguments.fill(parts)
    written = [_written(value) for value in args]
    if node.named:
        return _call(node.name, written, kwargs)
    if node.fn in _INFIX and len(written) == 2:
        sign, binds, right = _INFIX[node.fn]
        return Formula(f"{written[0].within(binds)} {sign} {written[1].within(right)}", binds)
    if node.fn in _NEGATIVE:
        return Formula(_MINUS + written[0].within(_PRODUCT), _SUM)
    if node.fn in _POWERS and not kwargs:
        return _power(written[0], written[1] if len(written) > 1 else Formula("2"))
    if node.fn is operator.getitem:
        return Formula(f"{written[0].within(_CALL)}[{written[1].text}]")
    return _call(_function(node.fn), written, kwargs)


def _power(base: Formula, exponent: Formula) -> Formula:
    digits = exponent.text.removeprefix("-").isdigit()
    above = exponent.text.translate(SUPERSCRIPTS) if digits else f"^{exponent.within(_CALL)}"
    return Formula(base.within(_CALL) + above, _POWER)


def _call(word: str, written: Sequence[Formula], kwargs: dict[str, object]) -> Formula:
    named = [f"{key}={_written(value).text}" for key, value in kwargs.items()]
    return Formula(f"{word}({', '.join([*(part.text for part in written), *named])})")


def _written(value: object) -> Formula:
    """An argument of a call: a formula, a constant, or a pytree of them."""
    if isinstance(value, Formula):
        return value
    if isinstance(value, (list, tuple)):
        return Formula(f"[{', '.join(_written(entry).text for entry in value)}]")
    if isinstance(value, dict):
        return Formula(f"{{{', '.join(f'{key}: {_written(entry).text}' for key, entry in value.items())}}}")
    if isinstance(value, torch.Tensor):
        return Formula(f"{value.item():g}" if value.numel() == 1 else "constant")
    if isinstance(value, float):
        return Formula(f"{value:g}", _CALL if value >= 0 else _SUM)
    return Formula(getattr(value, "__name__", str(value)))


def _function(fn: Callable[..., object]) -> str:
    name = getattr(fn, "__name__", "") or getattr(fn, "name", "f")
    return str(name).strip("_<>")


def _field(node: nd.Select, parts: Sequence[Formula]) -> Formula:
    return Formula(parts[0].within(_CALL) + (f".{node.key}" if node.attribute else f"[{node.key!r}]"))


def _reduced(node: nd.Reduction, parts: Sequence[Formula]) -> Formula:
    word = "mean" if node.mean else "sum"
    part = {axis.time for axis in node.over} & {axis.time for axis in node.axes}
    over = " over " + ", ".join(axis.name for axis in node.over) if part else ""
    discount = "" if node.discount is None else f", discount={float(node.discount):g}"
    return Formula(f"{word}({parts[0].text}{over}{discount})")


def _folded_plate(node: nd.Reduce, parts: Sequence[Formula]) -> Formula:
    return _call(node.name if node.named else _function(node.fn), parts, {})


def _word(word: str) -> Callable[[nd.Node, Sequence[Formula]], Formula]:
    """A function that is written before the first of its inputs."""
    return lambda node, parts: Formula(f"{word}({parts[0].text})")


_WRITERS: dict[str, Callable[..., Formula]] = {
    "apply": _applied,
    "select": _field,
    "reduction": _reduced,
    "reduce": _folded_plate,
    "stop": _word("stop"),
    "log_prob": _word("log p"),
    "exponential": _word("exp"),
    "logarithm": _word("log"),
}
