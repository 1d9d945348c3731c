"""A function that is being written: its lines, and the text that every node has in it.

What is used once, and short, stands where it is used; everything else gets a line and a name.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..ir import nodes as nd
from ..tensors.axes import Axis
from .names import Names
from .text import Text, split

WIDTH = 100
_INLINE = 60


class Written(NamedTuple):
    """A node as text: the expression, a name if it needs one, and what there is to say above its line."""

    text: Text
    stem: str
    comment: str = ""
    keep: bool = False  # a line of its own, whatever its length
    cheap: bool = False  # written anew at every use


class LeftOut(NamedTuple):
    """The plate of which a function leaves one draw out, and the name of that draw's index."""

    plate: Axis
    draw: str


class Scope:
    """The lines of one function.

    Args:
        names: those of the function.
        outer: the function around it, whose names it can read.
        left_out: the draw that it leaves out of its means, if it does.
    """

    def __init__(self, names: Names, outer: "Scope | None" = None, left_out: LeftOut | None = None) -> None:
        self.names, self.outer = names, outer
        self.left_out: LeftOut | None = left_out or (outer.left_out if outer else None)
        self.depth: int = outer.depth + 1 if outer else 1
        self.lines: list[str] = []
        self.texts: dict[nd.Node, Text] = {}
        self.waiting: dict[nd.Node, Written] = {}
        self.boxes: dict[nd.Node, Text] = {}  # boxes by their exponents, ratios by log-probabilities
        self.recorded: dict[str, Text] = dict(outer.recorded) if outer else {}  # in replays: what ratios compare with

    def text(self, node: nd.Node) -> Text:
        """The text that stands for a node here."""
        if node in self.texts:
            return self.texts[node]
        assert self.outer is not None, f"{node!r} is written after its use"
        return self.outer.text(node)

    def named(self, node: nd.Node) -> Text | None:
        """The name that something made of a node has been given here, or around here if the node is from there."""
        if node in self.boxes or node in self.texts or self.outer is None:
            return self.boxes.get(node)
        return self.outer.named(node)

    def line(self, code: str, comment: str = "") -> None:
        """Add a line; a comment goes above it."""
        space = "    " * self.depth
        if comment:
            self.lines += [f"{space}# {part}" for part in wrapped(comment, WIDTH - len(space) - 2)]
        self.lines += [f"{space}{part}" if part else "" for part in split(code, WIDTH - len(space))]

    def unique(self, stem: str) -> str:
        """A name; one that says so where a draw is left out."""
        return self.names.unique(f"{stem}_{self.left_out.draw}" if self.left_out else stem)

    def let(self, stem: str, text: Text, comment: str = "") -> Text:
        """Give an expression a line of its own, and a name."""
        name = self.unique(stem)
        self.line(f"{name} = {text.code}", comment)
        return Text(name)

    def write(self, program: Sequence[nd.Node], one: Callable[["Scope", nd.Node], Written]) -> None:
        """The nodes of a program, in order."""
        uses = Counter(parent for node in program for parent in node.inputs)
        for node in program:
            if node in self.texts:
                continue
            written = self._short(node, one)
            self.texts[node] = written.text
            cheap = written.text.is_name or (written.cheap and not node.named)
            if not cheap and (written.keep or node.named or uses[node] > 1):
                self.texts[node] = self.let(written.stem, written.text, written.comment)
            elif not cheap:
                self.waiting[node] = written

    def _short(self, node: nd.Node, one: Callable[["Scope", nd.Node], Written]) -> Written:
        """A node as text, its longest inputs on lines of their own where it would be long."""
        written = one(self, node)
        while len(written.text.code) > _INLINE:
            inline = [parent for parent in dict.fromkeys(node.inputs) if parent in self.waiting]
            if not inline:
                return written
            self.settle(max(inline, key=lambda parent: len(self.texts[parent].code)))
            written = one(self, node)
        return written

    def settle(self, node: nd.Node) -> None:
        """Give a node a line, if it has none."""
        written = self.waiting.pop(node, None)
        if written is not None:
            self.texts[node] = self.let(written.stem, written.text, written.comment)

    def settle_all(self, nodes: Iterable[nd.Node]) -> None:
        """The same for all that a function inside of this one reads."""
        for node in nodes:
            self.settle(node)


def wrapped(text: str, width: int) -> list[str]:
    """A comment in lines."""
    lines: list[str] = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
