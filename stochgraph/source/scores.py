"""Draws and their log-probabilities as text."""

from collections.abc import Sequence

from torch.distributions import TransformedDistribution

from ..distributions.laws import DistributionLaw, SamplerLaw
from ..ir import nodes as nd
from ..tensors.axes import Axes, Axis, union, without
from .names import constant, identifier
from .scope import Scope
from .text import Text, aligned, call, mapped, method
from .writer import Writer

_UNCHECKED = "validate_args=False"


def log_prob(writer: Writer, scope: Scope, node: nd.Node, sample: nd.Sample) -> Text:
    """`log p(draw | parents)` for every draw; the inputs of the node are the draw and the parents."""
    law = sample.law
    if isinstance(law, SamplerLaw):
        return _by_sampler(writer, scope, node, sample, law)
    assert isinstance(law, DistributionLaw)
    moves = getattr(node.inputs[0], "pathwise", False)
    if moves and (law.family is None or issubclass(law.family, TransformedDistribution)):
        # The library scores it by what its transforms have mapped: inverses lose that, or are infinite.
        raise writer.refuse(sample.name, f"is a pathwise draw from {law.name} whose log-probability is asked for")
    in_line = sample.event_dims is not None and (_is_known(writer, node, sample) or _is_in_line(node))
    if not (law.is_torchs_own and in_line):
        return _by_function(writer, scope, node, sample, law)
    texts = [aligned(scope.text(parent), parent.axes, node.axes).code for parent in node.inputs[1:]]
    unchecked = [_UNCHECKED] if scope.left_out else []
    built = call(_name(writer, sample), *arguments_of(writer, sample, texts), *unchecked)
    found = method(built, "log_prob", aligned(scope.text(node.inputs[0]), sample.axes, node.axes).code)
    known = _is_known(writer, node, sample)
    return found if known else call(writer.helper("per_draw"), found.code, str(len(node.axes)))


def _name(writer: Writer, sample: nd.Sample) -> str:
    writer.distributions.add(sample.law.name)
    return str(sample.law.name)


def _is_known(writer: Writer, node: nd.Node, sample: nd.Sample) -> bool:
    """True if one draw is known to have no batch of its own."""
    dims = sample.event_dims or ()
    return all(writer.shapes.ranks.get(parent) == d for parent, d in zip(node.inputs[1:], dims, strict=True))


def _is_in_line(node: nd.Node) -> bool:
    """True if parameters are in line with the draws whatever batch they have: one has axes, or none has."""
    parents = node.inputs[1:]
    return len(parents) == 1 or not any(parent.axes for parent in parents)


def arguments_of(writer: Writer, sample: nd.Sample, texts: Sequence[str]) -> list[str]:
    """The arguments of a sample's distribution, with texts in the places of its parents."""
    arguments = sample.arguments
    if not arguments.flat:
        raise writer.refuse(sample.name, "has arguments in containers: hand them over one by one")
    bare = not (arguments.nodes or arguments.constants)  # numbers alone say nothing of the dtype
    leaves = arguments.mapped(texts, lambda leaf: _number(writer, leaf) if bare else constant(leaf, writer.handed))
    named = zip(arguments.keywords, leaves[arguments.positional :], strict=True)
    return [*leaves[: arguments.positional], *(f"{name}={text}" for name, text in named)]


def _number(writer: Writer, leaf: object) -> str:
    """A number as a tensor of the inputs' dtype."""
    code = constant(leaf, writer.handed)
    return f"torch.tensor({code}, dtype={writer.preamble.dtype()})" if isinstance(leaf, float) else code


def builder(writer: Writer, sample: nd.Sample, law: DistributionLaw) -> str:
    """The function that builds the distribution of one draw from its parents."""
    letters = list("abcdefgh"[: len(sample.inputs)])
    function = _name(writer, sample) if law.is_torchs_own else _handed(writer, sample, law)
    if sample.arguments.simple and len(sample.arguments.leaves) == len(sample.inputs):
        return function
    return f"lambda {', '.join(letters)}: {function}({', '.join(arguments_of(writer, sample, letters))})"


def _handed(writer: Writer, sample: nd.Sample, law: DistributionLaw) -> str:
    """The user's function that builds a distribution."""
    stem = getattr(law.factory, "__name__", "")
    parents = ", ".join(identifier(parent.name) for parent in sample.inputs)
    return writer.handed.name(
        law.factory,
        stem if stem.isidentifier() else f"distribution_of_{identifier(sample.name)}",
        f"the distribution of {sample.name}, a function of {parents}",
    )


def _by_function(writer: Writer, scope: Scope, node: nd.Node, sample: nd.Sample, law: DistributionLaw) -> Text:
    """The log-probability of one draw, mapped: of what a function builds, or of a class of which little is known."""
    function = f"{writer.helper('log_prob_of')}({builder(writer, sample, law)})"
    pairs = [(scope.text(parent), parent.axes) for parent in node.inputs]
    if not node.axes:
        return call(function, *(text.code for text, _ in pairs))
    return mapped(function, pairs, node.axes)


def _by_sampler(writer: Writer, scope: Scope, node: nd.Node, sample: nd.Sample, law: SamplerLaw) -> Text:
    """A sampler's `log_prob` of one draw, which has the time axis itself."""
    described = f"the log_prob of the sampler {law.name}, which draws {sample.name}"
    name = writer.handed.name(law.sampler.log_prob, f"log_prob_of_{identifier(sample.name)}", described)
    axes = union(without(sample.axes, _time(sample)), *(parent.axes for parent in node.inputs[1:]))
    if sample.time in axes or (sample.time and any(axis > sample.time for axis in axes)):
        raise writer.refuse(sample.name, "has parents along axes inside of its time axis")
    return _of_one_draw(writer, scope, node, sample, name, axes)


def _of_one_draw(writer: Writer, scope: Scope, node: nd.Node, sample: nd.Sample, function: str, axes: Axes) -> Text:
    """A function of one draw and its parents, mapped; constants among the parents are put in their places."""
    pairs = [(scope.text(parent), parent.axes) for parent in node.inputs]
    bare = sample.arguments.simple and len(sample.arguments.leaves) == len(sample.inputs)
    if not axes:
        draw, *parents = (text.code for text, _ in pairs)
        return call(function, draw, *arguments_of(writer, sample, parents))
    letters = ["draw", *"abcdefgh"[: len(node.inputs) - 1]]
    inner = (
        f"lambda {', '.join(letters)}: {function}({', '.join(['draw', *arguments_of(writer, sample, letters[1:])])})"
    )
    return mapped(function if bare else inner, pairs, axes)


def _time(sample: nd.Sample) -> list[Axis]:
    return [sample.time] if sample.time else []
