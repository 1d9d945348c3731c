"""Declared nodes as text."""

from collections.abc import Sequence

from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Logarithm, Scale
from ..tensors.axes import Axes, without
from .calls import applied, operands
from .names import constant, identifier
from .noise import moved_draw
from .scope import Scope, Written
from .stems import stem_of, stem_of_call
from .text import ATOM, PRODUCT, SUM, Text, call, detached, infix, mapped, method, reduced
from .writer import Writer


def given(writer: Writer, scope: Scope, node: nd.Input) -> Written:
    """An input, by its name."""
    name = writer.preamble.inputs[node.name]
    return Written(Text(name), name)


def data(writer: Writer, scope: Scope, node: nd.Data) -> Written:
    """The rows of an input are what is handed over."""
    if node.inputs[0].axes:
        raise writer.refuse(node.name, "has rows of an input that an update copies")
    text = scope.text(node.inputs[0])
    writer.preamble.measures([node.plate], f"tree_leaves({text.code})[0]")
    return Written(text, identifier(node.name))


def sample(writer: Writer, scope: Scope, node: nd.Sample) -> Written:
    """A draw: what the trace has of it, or made of its noise."""
    if not node.pathwise:
        drawn = writer.preamble.draw(node, node in writer.shapes.tensors)
        return Written(Text(drawn), drawn)
    return Written(moved_draw(writer, scope, node), identifier(node.name), keep=True)


def deterministic(writer: Writer, scope: Scope, node: nd.Apply) -> Written:
    """A function of one draw, mapped."""
    return Written(applied(writer, scope, node), stem_of_call(writer, node))


def select(writer: Writer, scope: Scope, node: nd.Select) -> Written:
    """A field of a pytree, or an entry of one draw."""
    base, (parent,) = scope.text(node.inputs[0]), node.inputs
    stem = identifier(node.name)
    if node.attribute:
        if parent in writer.shapes.tensors and parent.axes:
            return Written(mapped(f"lambda draw: draw.{node.key}", [(base, parent.axes)], parent.axes), stem)
        return Written(Text(f"{base.within(ATOM)}.{node.key}"), stem, cheap=base.is_name)
    if isinstance(node.key, str) or not node.axes:
        return Written(Text(f"{base.within(ATOM)}[{_key(writer, node.key)}]"), stem, cheap=base.is_name)
    if parent in writer.shapes.tensors:
        places = [*[":"] * len(node.axes), _key(writer, node.key)]
        return Written(Text(f"{base.within(ATOM)}[{', '.join(places)}]"), stem)
    one = f"lambda draw: draw[{_key(writer, node.key)}]"
    return Written(mapped(one, [(base, parent.axes)], parent.axes), stem)


def _key(writer: Writer, key: object) -> str:
    """An index as Python writes it."""
    if isinstance(key, tuple):
        return ", ".join(_key(writer, part) for part in key)
    if isinstance(key, slice):
        parts = ["" if part is None else str(part) for part in (key.start, key.stop, key.step)]
        return ":".join(parts if key.step is not None else parts[:2])
    return "..." if key is Ellipsis else constant(key, writer.handed)


def reduction(writer: Writer, scope: Scope, node: nd.Reduction) -> Written:
    """A mean over plates, or a sum over time."""
    (parent,) = node.inputs
    base = scope.text(parent)
    dims = [i for i, axis in enumerate(parent.axes) if axis in node.over]
    stem = f"{'mean' if node.mean else 'sum'}_{stem_of(parent)}"
    if writer.numbers.is_integer(parent) and dims:
        base = method(base, "to", writer.preamble.dtype())
    if node.discount is not None:
        rate = constant(node.discount, writer.handed)
        base = call(writer.helper("discounted"), base.code, rate, str(dims[0]))
    left_out = scope.left_out
    if left_out is None or left_out.plate not in node.over:
        return Written(_over(writer, parent, base, "mean" if node.mean else "sum", dims), stem)
    mean = without_draw(writer, scope, base, parent.axes, dims, "mean")
    if node.mean:
        return Written(mean, stem)
    sizes = [writer.size(axis) for axis in parent.axes if axis in node.over]
    return Written(infix("*", PRODUCT, mean, Text(" * ".join(sizes), PRODUCT)), stem)


def _over(writer: Writer, parent: nd.Node, base: Text, word: str, dims: Sequence[int]) -> Text:
    """A mean or a sum; without dimensions where that is of all numbers there are."""
    whole = len(dims) == len(parent.axes) > 0 and writer.shapes.ranks.get(parent) == 0
    return method(base, word) if whole else reduced(base, word, dims)


def without_draw(writer: Writer, scope: Scope, base: Text, axes: Axes, dims: Sequence[int], word: str) -> Text:
    """A mean or a sum over dimensions, the draw that the function leaves out not in it."""
    assert scope.left_out is not None
    place = axes.index(scope.left_out.plate)
    text = call(writer.helper(f"{word}_without"), base.code, scope.left_out.draw, str(place))
    return reduced(text, word, [d - (d > place) for d in dims if d != place])


def reduce_by_function(writer: Writer, scope: Scope, node: nd.Reduce) -> Written:
    """A function of whole plates, which see its argument in front; mapped over the other axes."""
    (parent,) = node.inputs
    function = writer.handed.function(node.fn, f"a function of all {' and '.join(a.name for a in node.over)} at once")
    kept = list(parent.axes)
    places = []
    for axis in without(parent.axes, node.over):
        places.append(kept.index(axis))
        kept.remove(axis)
    for place in reversed(places):
        function = f"torch.vmap({function}, in_dims={place})" if place else f"torch.vmap({function})"
    return Written(call(function, scope.text(parent).code), stem_of_call(writer, node))


def stop(writer: Writer, scope: Scope, node: nd.Stop) -> Written:
    """A constant."""
    (parent,) = node.inputs
    return Written(detached(scope.text(parent), parent in writer.shapes.tensors), identifier(node.name))


def zero(writer: Writer, scope: Scope, node: nd.Zero) -> Written:
    """The rest of a summand that a draw does not reach."""
    return Written(call("torch.zeros_like", scope.text(node.inputs[0]).code), "zero")


def scale(writer: Writer, scope: Scope, node: Scale) -> Written:
    """The largest entry of some plates, a constant."""
    if scope.left_out is not None and scope.left_out.plate in node.plates:
        raise writer.refuse(node.name, "is the scale of a log-mean-exp of which one draw is left out")
    (parent,) = node.inputs
    dims = tuple(i for i, axis in enumerate(parent.axes) if axis in node.plates)
    largest = method(method(scope.text(parent), "detach"), "amax", str(dims if len(dims) > 1 else dims[0]))
    finite = method(largest, "nan_to_num", "0.0", "0.0", "0.0")  # a plate of infinities has no scale
    return Written(finite, f"largest_{stem_of(parent)}", keep=True)


def exponential(writer: Writer, scope: Scope, node: Exponential) -> Written:
    """The exponential of a value less the scale of its plate."""
    base, scale = operands(writer, scope, node)
    return Written(call("torch.exp", infix("-", SUM, base, scale).code), identifier(node.name))


def logarithm(writer: Writer, scope: Scope, node: Logarithm) -> Written:
    """The logarithm of a mean of such exponentials, the scale added again."""
    mean, scale = operands(writer, scope, node)
    return Written(infix("+", SUM, method(mean, "log"), scale), identifier(node.name))
