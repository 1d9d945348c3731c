"""Pathwise draws as text: functions of their parameters and of the noise that the trace has recorded."""

from json import dumps

from ..distributions.laws import DistributionLaw
from ..ir import nodes as nd
from .calls import broadcast
from .names import constant
from .scope import Scope
from .text import PRODUCT, SUM, Text, aligned, infix, method
from .writer import Writer

_PARAMETERS = {"Normal": ("loc", "scale"), "Uniform": ("low", "high")}
_UNIT = Text("1.0")


def moved_draw(writer: Writer, scope: Scope, node: nd.Sample) -> Text:
    """`start + width * noise`.

    Raises:
        CompileError: of another family, or of parameters whose dimensions are not known.
    """
    law, family = node.law, node.law.name
    if not (isinstance(law, DistributionLaw) and law.is_torchs_own and family in _PARAMETERS and node.arguments.flat):
        known = " and ".join(_PARAMETERS)
        raise writer.refuse(node.name, f"is a pathwise draw from {family}; only those from {known} are written")
    texts = broadcast(writer, node, [scope.text(parent) for parent in node.inputs])
    if texts is None:
        raise writer.refuse(node.name, "is a pathwise draw of parameters of which the dimensions are not known")
    leaves = node.arguments.mapped(texts, lambda leaf: Text(constant(leaf, writer.handed)))
    given = dict(zip(law.parameters(node.arguments), leaves, strict=True))
    start, width = (given[name] for name in _PARAMETERS[family])
    if family == "Uniform":
        width = infix("-", SUM, width, start)
    noise = aligned(_recorded(writer, node), node.declared.axes, node.axes)
    return infix("+", SUM, start, noise if width == _UNIT else infix("*", PRODUCT, width, noise))


def _recorded(writer: Writer, node: nd.Sample) -> Text:
    """The noise, in the order of the draw's axes; torch draws with repeated plates in front."""
    axes, drawn = node.declared.axes, node.declared.drawn_axes
    noise = Text(f"noise[{dumps(node.name)}][0]")
    writer.preamble.measures(drawn, noise.code)
    if axes == drawn:
        return noise
    return method(noise, "permute", *(str(drawn.index(axis)) for axis in axes))
