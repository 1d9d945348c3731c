"""The face of a declared graph: compile it, draw it."""

from collections.abc import Callable
from typing import Any

from .errors.exceptions import CompileError
from .explain.drawing import draw
from .explain.mermaid import mermaid
from .ir.declaration import Declaration
from .language.words import declare
from .prove.shares import shares
from .run.choices import Given
from .run.compiled import Compiled


def graph(fn: Callable[..., Any]) -> "Graph":
    """Declare a stochastic computation graph: a decorator. `fn` runs once, on symbols; nothing is sampled.

    Args:
        fn: takes the inputs (each a pytree of tensors), returns the objective, a node without axes.

    Raises:
        DeclarationError: what `fn` says is not a graph; the message names the node, its axes and the remedy.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
        ...     return -(sg.mean(x) - 1.0) ** 2
        >>> print(objective)
        Graph objective(theta)
          x ~ Normal(theta, 1.0)   axes: (x), n = 100
    """
    inputs, objective, data = declare(fn)
    return Graph(fn.__name__, fn.__doc__, inputs, objective, data)


class Graph(Declaration):
    """A stochastic computation graph with one objective. Made by `stochgraph.graph`."""

    def compile(
        self, estimators: Given | None = None, wrt: str | tuple[str, ...] | None = None, lowering: str = "auto"
    ) -> Compiled:
        """Derive the surrogate. See `stochgraph.Compiled`.

        Args:
            estimators: one estimator for all sample nodes, or a dict from names of sample nodes to estimators. Nodes
                whose distribution does not depend on an input need none.
            wrt: the inputs to differentiate, by name; default: the first.
            lowering: how gradients are computed. "never": interpreted; "auto", the default: by a flat program as soon
                as a signature has been called 20 times, the same bits; "flat": from the first call on, and it raises
                where it cannot; "inductor": the same through `torch.compile`, to rounding. See `Compiled.lower`.

        Raises:
            CompileError: no estimators, an estimator for a node that does not exist, a node without one, or an
                estimator that is wrong for its node; another word for lowering.
        """
        if estimators is None:
            raise CompileError(
                f"{self.name}: give an estimator, for instance sg.LOO(), or one for each sample node by name: "
                f"{self.name}.compile(sg.LOO())"
            )
        return Compiled(self, estimators, wrt, lowering, shares)

    def __call__(self, *inputs: object) -> Any:
        """A graph is no function of values: compile it first."""
        raise TypeError(f"{self.name} is a declared graph: compile it first, {self.name}.compile(sg.SF()).sample(...)")

    def draw(self, legend: bool = True, fold: bool = False) -> Any:
        """The graph as a `matplotlib` figure: plates as boxes, sample nodes round, updates marked.

        `savefig` writes it as SVG, PDF or PNG, as large as it needs to be.

        Args:
            legend: whether to say what the shapes and lines are: where the picture has room for it, else beside it.
            fold: whether operations that feed operations alone are written out in one formula. Inputs, samples,
                updates, what has a `name=`, and what several formulas use stay nodes.

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Normal
            >>> @sg.graph
            ... def objective(theta):
            ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
            ...     return -((sg.mean(x) - 1.0) ** 2)
            >>> figure = objective.draw(fold=True)
            >>> [text.get_text() for text in figure.axes[0].texts][-2:]
            ['−(mean(x) − 1)²', 'objective']
        """
        return draw(self, legend, fold)

    def to_mermaid(self, fold: bool = False, direction: str = "TD") -> str:
        """The graph as a Mermaid flowchart, which code hosts show where it stands in a page of Markdown.

        It stands there as a block of code in the language `mermaid`. Plates and times are subgraphs, samples are round,
        updates are hexagons; what goes into a sample or an update has thick lines.

        Args:
            fold: as for `draw`.
            direction: "TD", from the top down, or "LR", from left to right.

        Returns:
            The text of the flowchart.

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Normal
            >>> @sg.graph
            ... def objective(theta):
            ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=100))
            >>> print(objective.to_mermaid())
            flowchart TD
                n0["theta"]:::input
                n2[["mean over x<br/>objective"]]:::operation
                subgraph p1["x, N = 100"]
                    n1(["x<br/>~ Normal"]):::sample
                end
                n0 ==> n1
                n1 --> n2
                ...
        """
        return mermaid(self, fold, direction)

    def _repr_png_(self) -> bytes:
        return self.draw()._repr_png_()
