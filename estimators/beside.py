"""What an estimator draws beside a sample: the law of it, and the node that draws it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ir import nodes as nd
from ..tensors.axes import Axes


class LawBeside(ABC):
    """The law of what is drawn beside a sample, which is recorded and never differentiated.

    Attributes:
        sample: the sample.
        name: what is drawn, in words.
    """

    time = False
    fixed_support = True
    has_moving_support = False

    def __init__(self, sample: nd.Sample, name: str) -> None:
        self.sample, self.name = sample, name

    def event_dims(self, arguments: nd.Arguments) -> None:
        return None

    def margins(self, node: nd.Sample, values: Sequence[Any], run: Any) -> list[Tensor]:
        return []

    def trials(self, node: nd.Sample, values: Sequence[Any], run: Any) -> Tensor:
        return torch.zeros(())

    @abstractmethod
    def draw(self, node: nd.Sample, values: Sequence[Any], run: Any) -> tuple[Any, None]:
        """What is drawn, with the plates of the sample in front, and nothing that a score can reuse."""

    def score(
        self,
        node: nd.Sample,
        value: Any,
        inputs: Sequence[nd.Node],
        values: Sequence[Any],
        run: Any,
        kept: None = None,
    ) -> Tensor:
        return self.log_prob(value, values, run)

    @abstractmethod
    def log_prob(self, value: Any, values: Sequence[Any], run: Any) -> Tensor:
        """The log-probability of what was drawn beside every draw, `(*plates,)`; `values` are those of its parents."""

    def nodes(self, node: nd.Sample, values: Sequence[Any], run: Any, count: int) -> tuple[Any, Tensor, int]:
        """Nodes that stand for a continuous draw, and the logarithm of their weights, in front as outcomes are."""
        raise NotImplementedError(f"{self.name} have outcomes")

    @abstractmethod
    def outcomes(self, node: nd.Sample, values: Sequence[Any], run: Any, trials: int) -> tuple[Any, int]:
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
    carries = False

    def __init__(self, sample: nd.Sample) -> None:
        self.plates = sample.plates
        super().__init__(f"made({sample.name})", sample.index, [sample])

    def infer_axes(self) -> Axes:
        return self.plates

    def evaluate(self, run: Any, values: list[Any]) -> None:
        return None


def drawn_beside(sample: nd.Sample, name: str, law: Any, given: Sequence[nd.Node]) -> nd.Sample:
    """The node that draws beside a sample, "x partner" of x; the law is given the values of some nodes."""
    return nd.Sample(f"{sample.name} {name}", sample.index, law, nd.Arguments(tuple(given), {}), None, None, None)
