"""The draws of a meta-batch, in shards, and averages over all of them wherever they are.

Floating-point sums depend on their order. So every average is a sum of whole shards, added in the order of the shards,
whoever has which: its bits depend on the number of shards, and not on that of the ranks.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import stochgraph as sg

from ..optimizers.trust_region import Parts, replay
from ..policies.families import Parameters
from .ranks import Ranks


class Batch:
    """The draws of one meta-batch, shared out among the ranks. The objective is a mean over tasks.

    What an optimiser may ask of it: an average over all shards, wherever they are. That covers gradients, values in a
    line search, divergences, and products with a curvature. A rank computes its shards one by one.

    Args:
        compiled: the compiled graph.
        shards: this rank's traces, each with its share of the tasks as its weight.
        ranks: who has the others.
        chunk: the tasks differentiated at a time; `None`: all of a shard.
        count: how many shards all ranks have together; `None`: those given.
    """

    def __init__(
        self,
        compiled: sg.Compiled,
        shards: list[tuple[float, sg.Trace]],
        ranks: Ranks,
        chunk: int | None = None,
        count: int | None = None,
    ) -> None:
        self.compiled = compiled
        self.shards = shards
        self.ranks = ranks
        self._chunk = chunk
        self._count = len(shards) if count is None else count

    def sum(self, trees: Iterable[Any]) -> Any:
        """The sum of pytrees of tensors over all shards, of which this rank gives one for each of its own."""
        return self.ranks.sum(trees, self._count)

    def average(self, fn: Callable[[sg.Trace], Any]) -> Any:
        """The average of a function of the trace, a pytree of tensors; shards count with their share of the tasks."""

        def part(weight: float, trace: sg.Trace) -> Any:
            return pytree.tree_map(lambda leaf: weight * leaf.detach(), fn(trace))

        return self.sum(part(weight, trace) for weight, trace in self.shards)

    def parts(self, compiled: sg.Compiled, *others: Any) -> list[Parts]:
        """A surrogate on this rank's draws as a function of the parameters: weights and functions, for each shard.

        Args:
            compiled: a graph whose sample nodes have the names of those that were drawn.
            *others: its inputs after the parameters.
        """
        plate = None if self._chunk is None else "task"
        return [
            [
                (weight * share, function)
                for share, function in replay(compiled, trace, *others, over=plate, chunk=self._chunk)
            ]
            for weight, trace in self.shards
        ]

    def value(self, compiled: sg.Compiled, theta: Parameters, *others: Any) -> Tensor:
        """The value of a surrogate on these draws."""
        with torch.no_grad():
            shards = self.parts(compiled, *others)
            value: Tensor = self.sum(torch.stack([weight * part(theta) for weight, part in s]).sum() for s in shards)
        return value

    def value_and_grad(self, theta: Parameters) -> tuple[Tensor, Parameters]:
        """The value of the objective for these draws, and the estimate of its gradient."""
        return self.replayed(self.compiled, theta)

    def replayed(self, compiled: sg.Compiled, theta: Parameters, *others: Any) -> tuple[Tensor, Parameters]:
        """The value of a surrogate on these draws, and its gradient."""
        value, gradient = self.average(lambda trace: self._replayed(compiled, trace, theta, *others))
        return value, gradient

    def _replayed(
        self, compiled: sg.Compiled, trace: sg.Trace, theta: Parameters, *others: Any
    ) -> tuple[Tensor, Parameters]:
        if self._chunk is not None:
            return sg.accumulate(compiled, theta, *others, over="task", trace=trace, chunk=self._chunk)
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        loss = compiled.surrogate(leaves, *others, trace)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), dict(zip(leaves, found, strict=True))
