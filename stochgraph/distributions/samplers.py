"""The protocol for structured draws: trajectories, data sets, simulators."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..tensors.vectorize import vectorize


class Sampler(ABC):
    """A distribution over structured draws (pytrees), for `stochgraph.sample`.

    Fields of the drawn pytree are read with attributes in a declaration (`tau.reward`), so a `NamedTuple` of tensors
    is a natural value. With `time = True` every tensor of a draw has a leading time dimension of the same length,
    and the sample node `tau` gets the time axis `tau.time`. What happens at step t must not depend on what is drawn
    after t: rewards are credited to earlier draws only.

    With `batched = True`, `log_prob` takes draws that share their parents with plates in front, and returns scores with
    the same plates in front: it is then mapped only over plates on which a parent varies, which saves time. A function
    of torch operations that reduce the last dimensions alone is batched as it stands. `log_prob_stacked` is what maps
    it over such a plate, and may be replaced by one batched product of matrices.

    With `traceable = True`, `draw` is a function of torch operations on its arguments alone, with noise of torch's
    default generators: it may be recorded with the rest of the graph, see `Compiled.lower`. Others are always called.

    Example:
        >>> import torch
        >>> import stochgraph as sg
        >>> class Coins(sg.Sampler):
        ...     '''Three tosses of a coin with log-odds `logit`.'''
        ...     time = True
        ...     def draw(self, batch_shape, logit):
        ...         return torch.bernoulli(torch.sigmoid(logit).unsqueeze(-1).expand(*batch_shape, 3))
        ...     def log_prob(self, value, logit):
        ...         return torch.distributions.Bernoulli(logits=logit.expand(3), validate_args=False).log_prob(value)
        >>> @sg.graph
        ... def objective(logit):
        ...     return sg.mean(sg.sum(sg.sample("toss", Coins(), logit, n=5)))
        >>> value, grad = objective.compile(sg.SF()).value_and_grad(torch.tensor(0.5))
        >>> grad.shape
        torch.Size([])
    """

    time: bool = False
    batched: bool = False
    traceable: bool = False

    @abstractmethod
    def draw(self, batch_shape: torch.Size, *parents: Any) -> Any:
        """Draw a batch.

        Args:
            batch_shape: the plates of the sample node, outermost first.
            *parents: the values of the parents. Each tensor has `len(batch_shape)` leading dimensions, of size 1
                along plates on which the parent does not vary. `stochgraph.vectorize` maps a function of one draw
                over them.

        Returns:
            A pytree of tensors of shape `(*batch_shape, ...)`, or `(*batch_shape, time, ...)` with `time = True`.
            Draw with torch's default generators: they carry the generator that the caller passed.
        """

    @abstractmethod
    def log_prob(self, value: Any, *parents: Any) -> Tensor:
        """Score one draw: a scalar, or shape `(time,)` with `time = True`. Mapped over plates by `torch.vmap`.

        With `batched = True`, `value` may have any plates in front, and so has the result.
        """

    def log_prob_stacked(self, value: Any, *parents: Any) -> Tensor:
        """Score draws of several sets of parents at once; asked with `batched = True` only.

        Args:
            value: shape `(sets, *plates, ...)`, or `(sets, *plates, time, ...)`.
            *parents: shape `(sets, ...)`, or `(1, ...)` where a parent is the same for all sets.

        Returns:
            Shape `(sets, *plates)`, or `(sets, *plates, time)`.
        """
        return vectorize(self.log_prob, 1)(value, *parents)

    def enumerate(self, *parents: Any) -> Any:
        """All outcomes of one draw, stacked along a leading dimension; optional, for `stochgraph.verify`.

        Their number must not depend on the values of the parents. Outcomes of probability zero are allowed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not enumerate its outcomes")
