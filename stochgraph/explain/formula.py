"""The derived surrogate as a formula."""

from collections.abc import Iterable

from ..ir import nodes as nd
from ..surrogate.steps import CompiledUpdate
from ..tensors.axes import Axis
from .derived import Derived
from .notation import direction, is_atom, written
from .symbols import letter, symbol

_DEEPEST = 12
_MOST_UPDATES = 12


def latex(compiled: Derived) -> str:
    r"""The estimator as LaTeX: one line per update, then the gradient. `\square(L)` stands for `exp(L - stop(L))`.

    Raises:
        CompileError: a kind of node that has no formula.
    """
    return Printer(compiled).print()


class Printer:
    """Writes the nodes of a compiled graph."""

    def __init__(self, compiled: Derived) -> None:
        self.root = compiled._root
        self.wrt = ", ".join(symbol(name) for name in compiled.wrt)
        self.updates: dict[nd.Node, str] = {}
        axes: dict[Axis, None] = {}
        for node in compiled.graph.order:
            axes.update(dict.fromkeys(node.axes))
        plates = [axis for axis in axes if not axis.time]
        times = [axis for axis in axes if axis.time]
        self.index = {axis: letter(i) for i, axis in enumerate(plates)}
        self.index |= {axis: "t" + "'" * i for i, axis in enumerate(times)}

    def print(self) -> str:
        """The updates, then the gradient."""
        objective = self.text(self.root)
        updates = list(self.updates.values())
        if len(updates) > _MOST_UPDATES:
            updates = [*updates[:2], r"&\;\;\vdots", *updates[-2:]]
        lines = [*updates, rf"\hat g &= \nabla_{{{self.wrt}}} \Big[ {objective} \Big]"]
        if len(lines) == 1:
            return lines[0].replace("&=", "=", 1)
        return r"\begin{aligned}" + r" \\ ".join(lines) + r"\end{aligned}"

    def text(self, node: nd.Node, depth: int = 0) -> str:
        """The node as a formula. Long chains are cut short: a formula is for reading."""
        return r"\cdots" if depth > _DEEPEST else written(node, self, depth)

    def bracket(self, node: nd.Node, depth: int = 0) -> str:
        """The same, in brackets where it is more than one symbol."""
        text = self.text(node, depth)
        return text if is_atom(node) else rf"\big({text}\big)"

    def indexed(self, node: nd.Sample, renamed: dict[str, str] | None = None) -> str:
        """The draws of a sample."""
        letters = [self.index[axis] for axis in node.axes]
        subscript = "".join((renamed or {}).get(i, i) for i in letters)
        return self.marked("draw", [node.name], symbol(node.name, subscript))

    def marked(self, word: str, names: Iterable[str], text: str) -> str:
        """A part that can be pointed at, in a formula that is to be."""
        return text

    def update(self, node: CompiledUpdate) -> str:
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
        start, word = direction(node, self)
        self.updates[node] = ""  # keep the place: updates inside come first
        moved = rf"{word}_{{{symbol(node.psi.name)}}} \Big[ {self.text(node.surrogate)} \Big]"
        if node.detach:
            moved = rf"\mathrm{{stop}}\big({moved}\big)"
        del self.updates[node]
        self.updates[node] = f"{symbol(node.name)} &= {self.marked('direction', [node.name], start + moved)}"
