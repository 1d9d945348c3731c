"""Draws that an estimator makes beside a sample: their distribution, and the node that draws them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..distributions.interfaces import Call, Node, SampleNode, Surroundings
from ..distributions.laws import Law
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..tensors.axes import Axes


class LawBeside(Law):
    """The law of what is drawn beside a sample, which is recorded and never differentiated.

    Attributes:
        sample: the sample.
        name: what is drawn, in words.
    """

    def __init__(self, sample: nd.Sample, name: str) -> None:
        self.sample, self._name = sample, name

    @property
    def name(self) -> str:
        return self._name

    def event_dims(self, arguments: Call) -> None:
        return None

    @abstractmethod
    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Any, None]:
        """The draw, with the plates of the sample in front, and nothing that a score can reuse."""

    def score(
        self,
        node: SampleNode,
        value: Any,
        inputs: Sequence[Node],
        values: Sequence[Any],
        run: Surroundings,
        kept: object = None,
    ) -> Tensor:
        return self.log_prob(value, values, run)

    @abstractmethod
    def log_prob(self, value: Any, values: Sequence[Any], run: Surroundings) -> Tensor:
        """The log-probability of what was drawn beside every draw, `(*plates,)`; `values` are those of its parents."""

    @abstractmethod
    def outcomes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int) -> tuple[Any, int]:
        """All outcomes, in front, and how many dimensions behind the plates have outcomes of their own.

        Raises:
            NotImplementedError: it is continuous, and has nodes.
        """


class Made(nd.Node):
    """That a sample is drawn, and nothing of what.

    What is drawn beside it comes after it, so that a generator gives the same draws in whatever program; and it has its
    plates, without the time of trajectories.
    """

    kind = "made"
    linear = Linearity.NOWHERE
    carries = False

    def __init__(self, sample: nd.Sample) -> None:
        self.plates = sample.plates
        super().__init__(f"made({sample.name})", sample.index, [sample])

    def infer_axes(self) -> Axes:
        return self.plates

    def evaluate(self, run: nd.Pass, values: list[Any]) -> None:
        return None


def drawn_beside(sample: nd.Sample, name: str, law: Law, given: Sequence[nd.Node]) -> nd.Sample:
    """The node that draws beside a sample, "x partner" of x; the law is given the values of some nodes."""
    return nd.Sample(f"{sample.name} {name}", sample.index, law, nd.Arguments(tuple(given), {}), None, None, None)
