"""The derived surrogate as a formula."""

import operator
import re
from typing import Any

import torch

from ..derive.controls import Uncovered, ZeroMean
from ..derive.populations import Corrected
from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Logarithm
from ..surrogate.expansions import Expansion, OtherScores
from ..surrogate.steps import CompiledStep, CompiledUpdate, Placeholder
from ..surrogate.terms import Box, Controlled, ScoreTerm, Term, Total, Weight
from ..tensors.axes import Axis

_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi "
    "omega".split()
)
_INFIX = {
    operator.add: "{} + {}",
    operator.sub: "{} - {}",
    operator.mul: r"{} \, {}",
    operator.truediv: r"\frac{{{}}}{{{}}}",
}
_LETTERS = "ijklmnpqrs"
_NUMBERED = re.compile(r"(.*)\[(\d+)\]")
_MOST_UPDATES = 12


def latex(compiled: Any) -> str:
    r"""The estimator as LaTeX: one line per update, then the gradient. `\square(L)` stands for `exp(L - stop(L))`."""
    return _Printer(compiled).print()


def symbol(name: str, index: str = "") -> str:
    """A node's name in maths: Greek letters by name, primes kept, a trailing number and the index as subscripts.

    Of many primes there is the number: theta[4] is the fourth of a chain of updates.
    """
    stem = name.rstrip("'")
    primes = name[len(stem) :]
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        stem, primes = numbered[1], f"^{{({numbered[2]})}}"
    letters = stem.rstrip("0123456789_")
    number = stem[len(letters) :].strip("_")
    if letters in _GREEK:
        text = "\\" + letters
    else:
        text = letters if len(letters) == 1 else r"\mathrm{" + letters.replace("_", r"\_") + "}"
    subscripts = ", ".join(part for part in (number, index) if part)
    return text + primes + (f"_{{{subscripts}}}" if subscripts else "")


class _Printer:
    def __init__(self, compiled: Any) -> None:
        self.root = compiled._root
        self.wrt = ", ".join(symbol(name) for name in compiled.wrt)
        self.updates: dict[nd.Node, str] = {}
        axes: dict[Axis, None] = {}
        for node in compiled.graph.order:
            axes.update(dict.fromkeys(node.axes))
        plates = [axis for axis in axes if not axis.time]
        times = [axis for axis in axes if axis.time]
        self.index = {axis: _letter(_LETTERS, i) for i, axis in enumerate(plates)}
        self.index |= {axis: "t" + "'" * i for i, axis in enumerate(times)}

    def print(self) -> str:
        objective = self.text(self.root)
        updates = list(self.updates.values())
        if len(updates) > _MOST_UPDATES:
            updates = [*updates[:2], r"&\;\;\vdots", *updates[-2:]]
        lines = [*updates, rf"\hat g &= \nabla_{{{self.wrt}}} \Big[ {objective} \Big]"]
        if len(lines) == 1:
            return lines[0].replace("&", "")
        return r"\begin{aligned}" + r" \\ ".join(lines) + r"\end{aligned}"

    def text(self, node: nd.Node) -> str:
        """The node as a formula. Long chains are cut short: a formula is for reading."""
        return self._text(node, 0)

    def _text(self, node: nd.Node, depth: int) -> str:
        if depth > 12:
            return r"\cdots"
        if isinstance(node, CompiledUpdate):
            return self._update(node)
        parts = [self._text(parent, depth + 1) for parent in self._shown(node)]
        if isinstance(node, Corrected):
            return node.estimator.formula(parts[0])
        if isinstance(node, Term):
            return node.formula(parts[0], self._indexed(node.weights[0].sample) if node.weights else "")
        if isinstance(node, Box):
            return rf"{self._factor(node)} \, {self._bracket(node.inputs[0], parts[0])}"
        if isinstance(node, ScoreTerm):
            return rf"\big({self._scores(node.weights)}\big) \, {self._bracket(node.inputs[0], parts[0])}"
        if isinstance(node, Controlled):
            return parts[0] + "".join(self._zero_mean(control) for control in node.controls)
        if isinstance(node, Total):
            return " + ".join(parts)
        return self._declared(node, parts)

    def _shown(self, node: nd.Node) -> tuple[nd.Node, ...]:
        if isinstance(node, (Box, Controlled, ScoreTerm, Corrected, Exponential, Logarithm)):
            return node.inputs[:1]
        return () if isinstance(node, (nd.Sample, nd.Update)) else node.inputs

    def _declared(self, node: nd.Node, parts: list[str]) -> str:
        if isinstance(node, nd.Sample):
            return self._indexed(node)
        if isinstance(node, (nd.Input, nd.Unknown, nd.Update, Placeholder)):
            return symbol(node.name)
        if isinstance(node, nd.Zero):
            return "0"
        if isinstance(node, nd.Data):
            return f"{{{parts[0]}}}_{{{self.index[node.plate]}}}"
        if isinstance(node, nd.Reduction):
            return self._reduction(node, parts[0])
        if isinstance(node, nd.Select):
            key = rf"\mathrm{{{node.key}}}".replace("_", r"\_") if node.attribute else f"[{node.key}]"
            return f"{parts[0]}.{key}" if node.attribute else parts[0] + key
        if isinstance(node, nd.LogProb):
            return rf"\log p({parts[0]})"
        if isinstance(node, nd.Stop):
            return rf"\mathrm{{stop}}({parts[0]})"
        if isinstance(node, (Exponential, Logarithm)):
            return rf"\{'exp' if isinstance(node, Exponential) else 'log'}\big({parts[0]}\big)"
        if isinstance(node, nd.Reduce):
            over = "".join(self.index[axis] for axis in node.over)
            called = f"{{{_called(node)}}}" if node.named else _called(node)  # a name may have a subscript itself
            return rf"{called}_{{{over}}}({parts[0]})"
        return self._applied(node, parts)

    def _applied(self, node: Any, parts: list[str]) -> str:
        supply = iter(zip(node.inputs, parts, strict=True))
        shown = [
            self._argument(*next(supply), node) if isinstance(x, nd.Node) else _constant(x)
            for x in node.arguments.leaves
        ]
        zeros = [i for i, parent in enumerate(node.inputs) if isinstance(parent, nd.Zero)]
        if zeros:  # of a sum that lost a summand the axes are left
            return shown[1 - zeros[0]] if node.fn is operator.add or zeros == [1] else f"-{shown[1]}"
        if node.named:
            return f"{_called(node)}({', '.join(shown)})"
        if node.fn in _INFIX and len(shown) == 2:
            return _INFIX[node.fn].format(*shown)
        if node.fn is operator.neg:
            return f"-{shown[0]}"
        if node.fn in (operator.pow, torch.pow, torch.square):
            return f"{shown[0]}^{{{shown[1] if len(shown) > 1 else 2}}}"
        if node.fn is torch.exp:
            return rf"\exp({shown[0]})"
        return f"{_called(node)}({', '.join(shown)})"

    def _argument(self, parent: nd.Node, text: str, user: Any) -> str:
        """Brackets around an operand where the operation binds more tightly than the operand."""
        sum_like = user.named or user.fn in (operator.add, operator.truediv)
        plain = user.fn not in _INFIX and user.fn not in (operator.neg, operator.pow, torch.pow, torch.square)
        return text if sum_like or plain else self._bracket(parent, text)

    def _bracket(self, node: nd.Node, text: str) -> str:
        atom = isinstance(node, (nd.Sample, nd.Input, nd.Data, nd.Select, Placeholder, Box))
        return text if atom else rf"\big({text}\big)"

    def _reduction(self, node: nd.Reduction, inner: str) -> str:
        signs = []
        for axis in node.over:
            i = self.index[axis]
            discount = "" if node.discount is None else rf"{float(node.discount):g}^{{{i}}}\,"
            signs.append(rf"\frac{{1}}{{N_{{{i}}}}}\sum_{{{i}}}" if node.mean else rf"\sum_{{{i}}} {discount}")
        return " ".join(signs) + " " + self._bracket(node.inputs[0], inner)

    def _zero_mean(self, control: nd.Node) -> str:
        """What is added to a term, with its sign."""
        if isinstance(control, Uncovered):
            cost, part = (self._text(node, 0) for node in control.inputs[:2])
            weight = control.weight
            aside = rf"\big({cost} - {self._bracket(control.inputs[1], part)}\big)"
            return rf" + {aside} \, \big(\square{_kind(weight)}({self._score(weight)}) - 1\big)"
        if isinstance(control, ZeroMean):
            return control.formula(self._text(control.part, 0), self._indexed(control.sample))
        return f" - {self._control(control)}"

    def _control(self, control: Any) -> str:
        """What is taken off a term: its baseline, boxed with the draw's ancestors, times the box of the draw less 1."""
        above = rf"\square\big({self._scores(control.above)}\big) \, " if control.above else ""
        kind = _kind(control.weight)
        before = rf"\square{kind}({self._score(control.weight, '<')})" if control.stepwise else "1"
        box = rf"{above}\big(\square{kind}({self._score(control.weight)}) - {before}\big)"
        if control.left_out is None:
            return rf"b \, {box}"
        i = self.index[control.left_out[0]]
        replayed = self._text(control.inputs[0].node, 0)
        return rf"\sum_{{{i}}} \mathrm{{stop}}\big({replayed}\big)_{{-{i}}} \, {box}"

    def _factor(self, box: Box) -> str:
        exponent = box.inputs[1]
        if isinstance(exponent, OtherScores):
            i = self.index[exponent.plate]
            others = rf"\frac{{1}}{{N_{{{i}}} - 1}} \sum_{{{i}' \ne {i}}}"
            return rf"\big(1 - {others} \big(\square({self._score(exponent.weight)}) - 1\big)\big)"
        return rf"\square{_kind(exponent)}\big({self._scores(box.weights)}\big)"

    def _scores(self, weights: tuple[Weight, ...]) -> str:
        terms = [self._score(weight) for weight in weights]
        if len(terms) > 4:
            terms = [terms[0], terms[1], r"\cdots", terms[-1]]
        return " + ".join(terms)

    def _score(self, weight: Weight, bound: str = r"\le") -> str:
        sample = weight.sample
        signs = ""
        for axis in sample.axes:
            i = self.index[axis]
            if axis in weight.summed:
                scale = rf"\frac{{1}}{{N_{{{i}}}}}" if weight.average and not axis.time else ""
                signs += rf"{scale}\sum_{{{i}}} "
            elif axis.time:
                signs += rf"\sum_{{s {bound} {i}}} "
        parents = [p for p in weight.inputs[0].inputs[1:] if not isinstance(p, nd.Sample)]
        given = ", ".join(self._parent(parent) for parent in parents)
        time = {self.index[sample.time]: "s"} if sample.time and sample.time not in weight.summed else {}
        return rf"{signs}\log p({self._indexed(sample, time)}" + (rf" \mid {given})" if given else ")")

    def _parent(self, node: nd.Node) -> str:
        if node.named:
            return symbol(node.name)
        named = isinstance(node, (nd.Input, nd.Data, Placeholder, nd.Select, CompiledUpdate))
        return self._text(node, 0) if named else r"\cdot"

    def _indexed(self, node: nd.Sample, renamed: dict[str, str] | None = None) -> str:
        letters = [self.index[axis] for axis in node.axes]
        subscript = "".join((renamed or {}).get(i, i) for i in letters)
        return symbol(node.name, subscript)

    def _update(self, node: CompiledUpdate) -> str:
        """The name of an update, its line made."""
        # The earlier ones first: a long history is neither cut short nor nested deeper than Python's stack.
        for one in [*reversed(self._history(node)), node]:
            if one not in self.updates:
                self._declare(one)
        return symbol(node.name)

    def _history(self, node: nd.Node) -> list[CompiledUpdate]:
        """The updates that an update's parameters come from, back to one that has its line."""
        found: list[CompiledUpdate] = []
        while node.inputs and node not in self.updates:
            node = node.inputs[0]
            if isinstance(node, CompiledUpdate):
                found.append(node)
        return found

    def _declare(self, node: CompiledUpdate) -> None:
        parts = [self.text(parent) for parent in node.inputs[: 1 + node.rate_count]]
        self.updates[node] = ""  # keep the place: updates inside come first
        moved = rf"{node.operator}_{{{symbol(node.psi.name)}}} \Big[ {self.text(node.surrogate)} \Big]"
        if node.detach:
            moved = rf"\mathrm{{stop}}\big({moved}\big)"
        start = self._step(node, parts) if isinstance(node, CompiledStep) else ""
        del self.updates[node]
        self.updates[node] = f"{symbol(node.name)} &= {start}{moved}"

    def _step(self, node: CompiledStep, parts: list[str]) -> str:
        """What stands in front of the gradient."""
        sign = "+" if node.update.sign > 0 else "-"
        rates = iter(parts[1:])
        leaves = node.update.lr.leaves
        rate = ", ".join(next(rates) if isinstance(x, nd.Node) else _constant(x) for x in leaves)
        return rf"{parts[0]} {sign} {rate} \, "


def _kind(weight: nd.Node) -> str:
    """The subscript of a box that is no plain likelihood ratio."""
    return rf"_{{{weight.curvature.label}}}" if isinstance(weight, Expansion) else ""


def _letter(letters: str, i: int) -> str:
    return letters[i] if i < len(letters) else f"i_{{{i}}}"


def _function(fn: Any) -> str:
    name = getattr(fn, "__name__", type(fn).__name__).strip("_<>")
    return "f" if name in ("lambda", "Method") else name.replace("_", r"\_")


def _called(node: Any) -> str:
    """The function of a node: its name, if the user gave one."""
    return symbol(node.name) if node.named else rf"\mathrm{{{_function(node.fn)}}}"


def _constant(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return "c" if isinstance(value, torch.Tensor) else str(value)
