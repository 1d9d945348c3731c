"""Names for values that the declaration does not name."""

from ..ir import nodes as nd
from ..language.symbols import Method
from ..surrogate.expansions import ExpandedBox
from ..surrogate.terms import Box, Controlled, ScoreTerm
from .names import identifier
from .writer import Writer

_AROUND = (Box, ExpandedBox, ScoreTerm, Controlled)
_WORDS = {
    "add": "total",
    "sub": "difference",
    "mul": "product",
    "truediv": "quotient",
    "pow": "power",
    "neg": "negative",
    "apply": "cost",
}


def place_of(node: nd.Node) -> str:
    """The declared node that boxes and scores stand in front of."""
    while type(node) in _AROUND:
        node = node.inputs[0]
    return node.name


def stem_of(node: nd.Node) -> str:
    """A name for a term, from that of the declared node."""
    word = identifier(place_of(node).replace("lambda", "cost"))
    return _WORDS.get(word.rstrip("0123456789_"), word)


def stem_of_call(writer: Writer, node: nd.Apply | nd.Reduce) -> str:
    """A name for what a function returns: what it is to a distribution, or the function's own with its argument's."""
    role = writer.uses.roles.get(node)
    if role or node.named:
        return role or identifier(node.name)
    function = node.fn.name if isinstance(node.fn, Method) else getattr(node.fn, "__name__", "cost")
    if function in _WORDS:
        return _WORDS[function]
    function = function if function.isidentifier() else "cost"
    argument = stem_of(node.inputs[0])
    return function if argument in _WORDS.values() else f"{function}_of_{argument}"
