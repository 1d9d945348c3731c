"""The formula of every kind of node, declared and derived. A kind that has none here is refused by name."""

from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Protocol

from ..derive.controls import ControlVariate, Uncovered, ZeroMean
from ..derive.populations import Corrected
from ..derive.replays import Replay
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Logarithm
from ..surrogate.expansions import OtherScores
from ..surrogate.steps import CompiledDirection, CompiledStep, CompiledUpdate, Placeholder
from ..surrogate.terms import Box, Controlled, ScoreTerm, Term, Total, Weight
from ..tensors.axes import Axis, describe
from .symbols import constant, function, symbol

_ATOMS = (nd.Sample, nd.Input, nd.Data, nd.Select, Placeholder, Box)
_PARAMETERS = (nd.Input, nd.Data, nd.Select, Placeholder, CompiledUpdate)
_MOST_SCORES = 4


class Writing(Protocol):
    """The formula that is being written."""

    @property
    def index(self) -> Mapping[Axis, str]:
        """The letters of axes."""

    def text(self, node: nd.Node, depth: int = 0) -> str:
        """A node as a formula; cut short at some depth."""

    def bracket(self, node: nd.Node, depth: int = 0) -> str:
        """The same, in brackets where it is more than one symbol."""

    def indexed(self, node: nd.Sample, renamed: dict[str, str] | None = None) -> str:
        """The draws of a sample."""

    def update(self, node: CompiledUpdate) -> str:
        """The name of an update, its line made."""

    def marked(self, word: str, names: Iterable[str], text: str) -> str:
        """A part that can be pointed at: the "box" or "draw" of samples, the "direction" of an update."""


def is_atom(node: nd.Node) -> bool:
    """True for what needs no brackets."""
    return isinstance(node, _ATOMS)


@singledispatch
def written(node: nd.Node, writing: Writing, depth: int) -> str:
    """The formula of a node at some depth.

    Raises:
        CompileError: a kind of node that has none.
    """
    raise _unknown(node)


def _unknown(node: nd.Node) -> CompileError:
    return CompileError(
        f"node {node.name!r} (axes: {describe(node.axes)}): {type(node).__name__} has no formula. What an estimator "
        "puts in the place of terms is a Term or a ZeroMean, whose method `formula` says how it is written"
    )


@written.register(nd.Input)
@written.register(nd.Unknown)
@written.register(nd.Update)
@written.register(Placeholder)
def _name(node: nd.Node, writing: Writing, depth: int) -> str:
    return symbol(node.name)


@written.register
def _sample(node: nd.Sample, writing: Writing, depth: int) -> str:
    return writing.indexed(node)


@written.register
def _zero(node: nd.Zero, writing: Writing, depth: int) -> str:
    return "0"


@written.register
def _data(node: nd.Data, writing: Writing, depth: int) -> str:
    return f"{{{writing.text(node.inputs[0], depth + 1)}}}_{{{writing.index[node.plate]}}}"


@written.register
def _select(node: nd.Select, writing: Writing, depth: int) -> str:
    base = writing.text(node.part_of, depth + 1)
    if not node.attribute:
        return f"{base}[{node.key}]"
    return f"{base}." + rf"\mathrm{{{node.key}}}".replace("_", r"\_")


@written.register
def _reduction(node: nd.Reduction, writing: Writing, depth: int) -> str:
    signs = []
    for axis in node.over:
        i = writing.index[axis]
        discount = "" if node.discount is None else rf"{float(node.discount):g}^{{{i}}}\,"
        signs.append(rf"\frac{{1}}{{N_{{{i}}}}}\sum_{{{i}}}" if node.mean else rf"\sum_{{{i}}} {discount}")
    return " ".join(signs) + " " + writing.bracket(node.inputs[0], depth + 1)


@written.register
def _reduce(node: nd.Reduce, writing: Writing, depth: int) -> str:
    over = "".join(writing.index[axis] for axis in node.over)
    called = f"{{{_called(node)}}}" if node.named else _called(node)  # a name may have a subscript itself
    return rf"{called}_{{{over}}}({writing.text(node.inputs[0], depth + 1)})"


@written.register
def _log_prob(node: nd.LogProb, writing: Writing, depth: int) -> str:
    return rf"\log p({writing.text(node.sample, depth + 1)})"


@written.register
def _stop(node: nd.Stop, writing: Writing, depth: int) -> str:
    return rf"\mathrm{{stop}}({writing.text(node.inputs[0], depth + 1)})"


@written.register
def _exponential(node: Exponential, writing: Writing, depth: int) -> str:
    return rf"\exp\big({writing.text(node.inputs[0], depth + 1)}\big)"


@written.register
def _logarithm(node: Logarithm, writing: Writing, depth: int) -> str:
    return rf"\log\big({writing.text(node.inputs[0], depth + 1)}\big)"


@written.register
def _apply(node: nd.Apply, writing: Writing, depth: int) -> str:
    binds = node.operation.binds and not node.named
    operands = [(writing.bracket if binds else writing.text)(parent, depth + 1) for parent in node.inputs]
    shown = node.arguments.mapped(operands, constant)
    left = [text for text, parent in zip(operands, node.inputs, strict=True) if not parent.vanishes]
    if len(left) < len(operands):  # of a sum that lost a summand the axes are left
        subtracted = node.inputs[0].vanishes and node.operation.signs[1] < 0
        return f"-{left[0]}" if subtracted else left[0]
    if node.operation.formula and not node.named:
        return node.operation.formula.format(*shown)
    return f"{_called(node)}({', '.join(shown)})"


def _called(node: nd.Apply | nd.Reduce) -> str:
    """The function of a node: its name, if the user gave one."""
    return symbol(node.name) if node.named else rf"\mathrm{{{function(node.fn)}}}"


@written.register
def _total(node: Total, writing: Writing, depth: int) -> str:
    return " + ".join(writing.text(parent, depth + 1) for parent in node.inputs)


@written.register
def _box(node: Box, writing: Writing, depth: int) -> str:
    base = writing.bracket(node.inputs[0], depth + 1)  # its updates have their lines before those of the scores
    factor = writing.marked(
        "box", [weight.sample.name for weight in node.weights], _factor(node.inputs[1], node, writing)
    )
    return rf"{factor} \, {base}"


@singledispatch
def _factor(exponent: nd.Node, box: Box, writing: Writing) -> str:
    return rf"\square{_label(box.weights[0])}\big({_scores(box.weights, writing)}\big)"


@_factor.register
def _others(exponent: OtherScores, box: Box, writing: Writing) -> str:
    i = writing.index[exponent.plate]
    others = rf"\frac{{1}}{{N_{{{i}}} - 1}} \sum_{{{i}' \ne {i}}}"
    return rf"\big(1 - {others} \big(\square({_score(exponent.weight, writing)}) - 1\big)\big)"


@written.register
def _term(node: Term, writing: Writing, depth: int) -> str:
    sample = writing.indexed(node.weights[0].sample) if node.weights else ""
    formula = node.formula(writing.text(node.inputs[0], depth + 1), sample)
    return writing.marked("box", [weight.sample.name for weight in node.weights], formula)


@written.register
def _score_term(node: ScoreTerm, writing: Writing, depth: int) -> str:
    base = writing.bracket(node.inputs[0], depth + 1)
    return rf"\big({_scores(node.weights, writing)}\big) \, {base}"


@written.register
def _controlled(node: Controlled, writing: Writing, depth: int) -> str:
    return writing.text(node.inputs[0], depth + 1) + "".join(_added(control, writing) for control in node.controls)


@singledispatch
def _added(control: nd.Node, writing: Writing) -> str:
    """The formula of what is added to a term, with its sign."""
    raise _unknown(control)


@_added.register
def _added_uncovered(control: Uncovered, writing: Writing) -> str:
    cost, part = control.inputs[:2]
    aside = rf"\big({writing.text(cost)} - {writing.bracket(part)}\big)"
    return rf" + {aside} \, \big(\square{_label(control.weight)}({_score(control.weight, writing)}) - 1\big)"


@_added.register
def _added_zero_mean(control: ZeroMean, writing: Writing) -> str:
    return control.formula(writing.text(control.part), writing.indexed(control.sample))


@_added.register
def _added_control_variate(control: ControlVariate, writing: Writing) -> str:
    """A baseline, boxed with the draw's ancestors, times the box of the draw less 1."""
    above = rf"\square\big({_scores(control.above, writing)}\big) \, " if control.above else ""
    label = _label(control.weight)
    before = rf"\square{label}({_score(control.weight, writing, '<')})" if control.stepwise else "1"
    box = rf"{above}\big(\square{label}({_score(control.weight, writing)}) - {before}\big)"
    return f" - {_baseline(control.inputs[0], writing)} {box}"


@singledispatch
def _baseline(node: nd.Node, writing: Writing) -> str:
    return r"b \,"


@_baseline.register
def _left_out(node: Replay, writing: Writing) -> str:
    i = writing.index[node.plate]
    return rf"\sum_{{{i}}} \mathrm{{stop}}\big({writing.text(node.node)}\big)_{{-{i}}} \,"


@written.register
def _corrected(node: Corrected, writing: Writing, depth: int) -> str:
    return node.estimator.formula(writing.text(node.inputs[0], depth + 1))


@written.register
def _update(node: CompiledUpdate, writing: Writing, depth: int) -> str:
    return writing.update(node)


@singledispatch
def direction(node: nd.Node, writing: Writing) -> tuple[str, str]:
    r"""The formula in front of an update's objective: its start, and `\nabla` or `\arg\max`."""
    return "", r"\arg\max"


@direction.register
def _gradient(node: CompiledDirection, writing: Writing) -> tuple[str, str]:
    return "", r"\nabla"


@direction.register
def _step(node: CompiledStep, writing: Writing) -> tuple[str, str]:
    start, *rates = [writing.text(parent) for parent in node.inputs[: 1 + node.rate_count]]
    sign = "+" if node.update.sign > 0 else "-"
    return rf"{start} {sign} {', '.join(node.update.lr.mapped(rates, constant))} \, ", r"\nabla"


def _label(weight: Weight) -> str:
    """The subscript of a box that is no plain likelihood ratio."""
    return f"_{{{weight.label}}}" if weight.label else ""


def _scores(weights: tuple[Weight, ...], writing: Writing) -> str:
    terms = [_score(weight, writing) for weight in weights]
    if len(terms) > _MOST_SCORES:
        terms = [terms[0], terms[1], r"\cdots", terms[-1]]
    return " + ".join(terms)


def _score(weight: Weight, writing: Writing, bound: str = r"\le") -> str:
    sample = weight.sample
    signs = ""
    for axis in sample.axes:
        i = writing.index[axis]
        if axis in weight.summed:
            scale = rf"\frac{{1}}{{N_{{{i}}}}}" if weight.average and not axis.time else ""
            signs += rf"{scale}\sum_{{{i}}} "
        elif axis.time:
            signs += rf"\sum_{{s {bound} {i}}} "
    given = ", ".join(_parameter(parent, writing) for parent in weight.inputs[0].inputs[1:] if parent.kind != "sample")
    time = {writing.index[sample.time]: "s"} if sample.time and sample.time not in weight.summed else {}
    return rf"{signs}\log p({writing.indexed(sample, time)}" + (rf" \mid {given})" if given else ")")


def _parameter(node: nd.Node, writing: Writing) -> str:
    if node.named:
        return symbol(node.name)
    return writing.text(node) if isinstance(node, _PARAMETERS) else r"\cdot"
