"""Which values are known to be real numbers, or whole ones, before there are any.

torch adds truth values by `or`, lets small integers wrap around, and has no mean of integers; the compiler takes all of
them for numbers. What is written says so where it may matter.
"""

from collections.abc import Callable, Mapping

from ..distributions.laws import DistributionLaw
from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Logarithm, Scale
from ..surrogate.expansions import ExpandedBox, OtherScores
from ..surrogate.steps import CompiledStep, Placeholder
from ..surrogate.terms import Box, Controlled, Score, ScoreTerm, Total, Weight

_BOOLEAN = frozenset("lt le gt ge eq ne invert and_ or_ xor".split())
_ONTO_REALS = frozenset("truediv sin cos exp log tanh sigmoid sqrt expm1 log1p".split())
_INTEGERS = ("Categorical",)


class Numbers:
    """The facts that are known of numbers; the inputs that are differentiated are real."""

    def __init__(self, differentiated: tuple[str, ...]) -> None:
        self.differentiated = differentiated

    def is_real(self, node: nd.Node) -> bool:
        """True if the value is known to be no integer and no truth value."""
        rule = _REAL.get(type(node))
        return rule is not None and rule(self, node)

    def is_integer(self, node: nd.Node) -> bool:
        """True if the value is known to be a whole number or a truth value, of which torch has no mean."""
        rule = _INTEGER.get(type(node))
        return rule is not None and rule(self, node)

    def is_number(self, node: nd.Node) -> bool:
        """True if arithmetic takes the value for the number that it is."""
        rule = _WHOLE.get(type(node))
        return self.is_real(node) or (rule is not None and rule(node))

    def input_is_real(self, node: nd.Input) -> bool:
        """True if an input is differentiated."""
        return node.name in self.differentiated

    def any_is_real(self, node: nd.Node) -> bool:
        """True if the value is as real as one of its inputs."""
        return any(map(self.is_real, node.inputs))

    def mean_is_real(self, node: nd.Reduction) -> bool:
        """True if a reduction is a mean, or a sum of real numbers."""
        return node.mean or self.any_is_real(node)

    def operation_is_real(self, node: nd.Apply) -> bool:
        """True if an elementwise operation has a real operand, or only real results."""
        name = getattr(node.fn, "__name__", "")
        if not node.elementwise or name in _BOOLEAN:
            return False
        constants = any(isinstance(leaf, float) for leaf in node.arguments.leaves)
        return constants or name in _ONTO_REALS or self.any_is_real(node)

    def operation_is_integer(self, node: nd.Apply) -> bool:
        """True if an operation compares, or counts whole numbers."""
        if getattr(node.fn, "__name__", "") in _BOOLEAN:
            return True
        whole = all(isinstance(leaf, (nd.Node, int)) for leaf in node.arguments.leaves)
        return node.operation.whole and whole and all(map(self.is_integer, node.inputs))


def _drawn_real(numbers: Numbers, node: nd.Sample) -> bool:
    return isinstance(node.law, DistributionLaw) and node.law.name not in _INTEGERS


def _drawn_integer(numbers: Numbers, node: nd.Sample) -> bool:
    return isinstance(node.law, DistributionLaw) and node.law.is_class and node.law.name in _INTEGERS


def _always(numbers: Numbers, node: nd.Node) -> bool:
    return True


_SURE = (Score, nd.LogProb, Weight, ScoreTerm, Exponential, Logarithm, Scale, OtherScores, CompiledStep, Placeholder)
_AS_ITS_INPUTS = (nd.Stop, nd.Zero, Box, ExpandedBox, Total, Controlled, nd.Select)
_REAL: Mapping[type[nd.Node], Callable[..., bool]] = {
    **dict.fromkeys(_SURE, _always),
    **dict.fromkeys(_AS_ITS_INPUTS, Numbers.any_is_real),
    nd.Input: Numbers.input_is_real,
    nd.Reduction: Numbers.mean_is_real,
    nd.Sample: _drawn_real,
    nd.Apply: Numbers.operation_is_real,
}
_INTEGER: Mapping[type[nd.Node], Callable[..., bool]] = {
    nd.Sample: _drawn_integer,
    nd.Apply: Numbers.operation_is_integer,
}
_WHOLE: Mapping[type[nd.Node], Callable[..., bool]] = {
    nd.Sample: lambda node: isinstance(node.law, DistributionLaw) and node.law.is_class,
    nd.Apply: lambda node: node.operation.whole,
}
