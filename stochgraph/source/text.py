"""Python expressions as text, and the few forms that they are put together of."""

from collections.abc import Sequence
from typing import NamedTuple

from ..tensors.axes import Axes

# How tightly operators bind, from loose to tight; a call, an index or a name binds tightest.
COMPARISON, SUM, PRODUCT, SIGN, POWER, ATOM = range(6)


_LEAST = 10  # what is not worth a line of its own


class Text(NamedTuple):
    """An expression, and how tightly its outermost operator binds."""

    code: str
    level: int = ATOM

    def within(self, level: int) -> str:
        """The expression as an operand of an operator of this level."""
        return self.code if self.level >= level else f"({self.code})"

    @property
    def is_name(self) -> bool:
        """True if it costs nothing to write it twice."""
        return self.code.isidentifier()


def infix(sign: str, level: int, left: Text, right: Text) -> Text:
    """`left sign right`. Python takes operators of one level from the left, powers from the right."""
    left_level, right_level = (level + 1, level) if level == POWER else (level, level + 1)
    if level == COMPARISON:  # which Python takes in chains; the operators of bits bind more tightly
        left_level = right_level = ATOM
    return Text(f"{left.within(left_level)} {sign} {right.within(right_level)}", level)


def method(base: Text, name: str, *arguments: str) -> Text:
    """`base.name(arguments)`."""
    return Text(f"{base.within(ATOM)}.{name}({', '.join(arguments)})")


def call(function: str, *arguments: str) -> Text:
    """`function(arguments)`."""
    return Text(f"{function}({', '.join(arguments)})")


def detached(base: Text, is_tensor: bool) -> Text:
    """A constant of this value."""
    return method(base, "detach") if is_tensor else call("tree_map", "torch.Tensor.detach", base.code)


def reduced(base: Text, word: str, dims: Sequence[int]) -> Text:
    """A mean or a sum over dimensions; the value itself if there are none."""
    if not dims:
        return base
    return method(base, word, str(dims[0]) if len(dims) == 1 else f"({', '.join(map(str, dims))})")


def aligned(base: Text, axes: Axes, target: Axes, padding: int = 0) -> Text:
    """A value `(*axes, ...)` viewed as `(*target, *padding of 1, ...)`: dimensions of 1 for the axes that it lacks."""
    places = [":" if axis in axes else "None" for axis in target] + ["None"] * padding
    if not axes:
        return base
    while places[0] == "None":  # torch lines up the last dimensions by itself
        places.pop(0)
    if "None" not in places:
        return base
    while places[-1] == ":":
        places.pop()
    return Text(f"{base.within(ATOM)}[{', '.join(places)}]")


def split(code: str, width: int) -> list[str]:
    """A statement on one line, or on several where it is long: the last of its brackets opened that holds something."""
    if len(code) <= width:
        return [code]
    spans: list[tuple[int, int]] = []
    depth = start = 0
    for place, letter in enumerate(code):
        if letter in "([":
            start = start if depth else place
            depth += 1
        elif letter in ")]":
            depth -= 1
            spans += [] if depth or place - start < _LEAST else [(start, place)]
    if not spans:
        return [code]
    fitting = [span for span in spans if span[0] < width]
    start, end = fitting[-1] if fitting else spans[-1]
    inner = split(code[start + 1 : end], width - 4)
    return [code[: start + 1], *(f"    {line}" for line in inner), code[end:]]


def mapped(function: str, arguments: Sequence[tuple[Text, Axes]], axes: Axes) -> Text:
    """A function of one draw, mapped over axes: every argument has its own, in the order of `axes`, in front."""
    for axis in reversed(axes):
        places = ["0" if axis in own else "None" for _, own in arguments]
        shown = f", in_dims=({', '.join(places)})" if "None" in places else ""
        function = f"torch.vmap({function}{shown})"
    return call(function, *(text.code for text, _ in arguments))
