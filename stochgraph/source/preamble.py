"""The first lines of the written function: what it takes out of the trace, and sizes that are read off it."""

from collections.abc import Sequence
from json import dumps

from ..ir import nodes as nd
from ..tensors.axes import Axis
from .names import Names, identifier


class Preamble:
    """Names for the inputs, the draws, the sizes of plates and the dtype.

    Attributes:
        inputs: the names of the inputs, by their declared ones.
        lines: the lines, in order.
    """

    def __init__(self, names: Names, inputs: Sequence[str]) -> None:
        self.names = names
        self.inputs = {name: names.everywhere(name) for name in inputs}
        self.lines: list[str] = []
        self._draws: dict[str, str] = {}
        self._sizes: dict[Axis, str] = {}
        self._sources: dict[Axis, str] = {}
        self._dtype = ""

    @property
    def reads_draws(self) -> bool:
        """True if anything is drawn that is not made of its noise."""
        return bool(self._draws)

    def draw(self, node: nd.Sample, is_tensor: bool) -> str:
        """The name of what a sample has drawn."""
        if node.name not in self._draws:
            name = self._let(identifier(node.name), f"draws[{dumps(node.name)}]", _axes(node))
            self._draws[node.name] = name
            self.measures(node.declared.axes, name if is_tensor else f"tree_leaves({name})[0]")
        return self._draws[node.name]

    def measures(self, axes: Sequence[Axis | None], tensor: str) -> None:
        """Note a tensor whose leading dimensions are those of axes."""
        for place, axis in enumerate(axes):
            if axis is not None:
                self._sources.setdefault(axis, f"{tensor}.shape[{place}]")

    def size(self, axis: Axis) -> str | None:
        """The number of entries of a plate; `None` if nothing tells it."""
        if axis not in self._sizes and axis in self._sources:
            self._sizes[axis] = self._let(f"n_{identifier(axis.name)}", self._sources[axis])
        return self._sizes.get(axis)

    def dtype(self) -> str:
        """The dtype of the inputs."""
        if not self._dtype:
            leaves = f"tree_leaves([{', '.join(self.inputs.values())}])"
            self._dtype = self._let("dtype", f"next(x.dtype for x in {leaves} if x.is_floating_point())")
        return self._dtype

    def _let(self, stem: str, code: str, comment: str = "") -> str:
        name = self.names.everywhere(stem)
        self.lines.append(f"    {name} = {code}{comment}")
        return name


def _axes(node: nd.Sample) -> str:
    axes = ", ".join(axis.name for axis in node.declared.axes)
    return f"  # axes: {axes}" if axes else ""
