"""Pathwise draws as text: functions of their parameters and of the noise that the trace has recorded."""

from json import dumps

from ..distributions.laws import DistributionLaw
from ..ir import nodes as nd
from .calls import broadcast
from .names import constant
from .scope import Scope
from .scores import builder
from .text import PRODUCT, SUM, Text, aligned, call, infix, mapped, method
from .writer import Writer

_PARAMETERS = {"Normal": ("loc", "scale"), "Uniform": ("low", "high")}
_UNIT = Text("1.0")


def moved_draw(writer: Writer, scope: Scope, node: nd.Sample) -> Text:
    """A draw that moves with its parameters.

    Raises:
        CompileError: the noise depends on the parameters.
    """
    law = node.law
    assert isinstance(law, DistributionLaw)
    if law.noise_parents(node.arguments):
        raise writer.refuse(node.name, f"is a pathwise draw from {law.name}, whose noise depends on its parameters")
    writer.preamble.measures(node.declared.drawn_axes, f"noise[{dumps(node.name)}][0]")
    texts = broadcast(writer, node, [scope.text(parent) for parent in node.inputs])
    if law.is_torchs_own and law.name in _PARAMETERS and node.event_dims is not None and texts is not None:
        leaves = node.arguments.mapped(texts, lambda leaf: Text(constant(leaf, writer.handed)))
        given = dict(zip(law.parameters(node.arguments), leaves, strict=True))
        return _located(writer, node, *(given[name] for name in _PARAMETERS[law.name]))
    return _replayed(writer, scope, node, law)


def _located(writer: Writer, node: nd.Sample, start: Text, width: Text) -> Text:
    """`start + width * noise`."""
    if node.law.name == "Uniform":
        width = infix("-", SUM, width, start)
    noise, order = Text(f"noise[{dumps(node.name)}][0]"), _order(node)
    if order:
        noise = method(noise, "movedim", *_moves(order))
    noise = aligned(noise, node.declared.axes, node.axes)
    return infix("+", SUM, start, noise if width == _UNIT else infix("*", PRODUCT, width, noise))


def _replayed(writer: Writer, scope: Scope, node: nd.Sample, law: DistributionLaw) -> Text:
    """The `rsample` of one draw, its noise played back, mapped."""
    noise, order = Text(f"noise[{dumps(node.name)}]"), _order(node)
    if order:
        noise = Text(f"[{method(Text('x'), 'movedim', *_moves(order)).code} for x in {noise.code}]")
    pairs = [(noise, node.declared.axes), *((scope.text(parent), parent.axes) for parent in node.inputs)]
    function = f"{writer.helper('replayed')}({builder(writer, node, law)})"
    if not node.axes:
        return call(function, *(text.code for text, _ in pairs))
    return mapped(function, pairs, node.axes)


def _moves(order: list[int]) -> list[str]:
    """The arguments of `movedim`: the dimensions of one draw stay behind."""
    return [str(tuple(order)), str(tuple(range(len(order))))]


def _order(node: nd.Sample) -> list[int]:
    """The places of the draw's axes in the noise, where torch has drawn in another order: repeated plates in front."""
    axes, drawn = node.declared.axes, node.declared.drawn_axes
    return [] if axes == drawn else [drawn.index(axis) for axis in axes]
