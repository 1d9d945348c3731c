"""Traces of draws: the record that a surrogate is a function of."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.fx.immutable_collections import immutable_dict

_NOTHING: Any = immutable_dict()  # all traces share it: writing into it is an error


class Trace(NamedTuple):
    """The draws of one pass through a graph. A pytree: map over it, move it, save it, replay it.

    `torch.save` writes it; `torch.load(file, weights_only=False)` reads it back, being more than bare tensors. One made
    by hand needs the draws, and the noise of pathwise ones: without log-probabilities the draws are taken to come from
    the parameters that they are replayed at.

    Attributes:
        value: the value of the objective for these draws, a scalar; `None` where a trace is made by hand.
        draws: for every sample node its draw, shape `(*axes, ...)`, outermost plate first.
        log_probs: for every sample node whose distribution depends on an input, the log-probability of each draw (and
            time step) under the parameters that drew it, shape `(*axes,)`.
        noise: for every pathwise node the noise that its draw is a function of; where that depends on parameters, what
            was drawn and those parameters.
        nodes: for every node that was named with `name=` its value, shape `(*axes, ...)`. A record: surrogates compute
            theirs anew. What depends on an unknown has no value of its own, and is not among them.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=2)
        ...     return sg.mean(sg.apply(torch.square, x, name="cost"))
        >>> compiled = objective.compile(sg.SF())
        >>> compiled.sample(torch.tensor(0.0)).nodes["cost"].shape
        torch.Size([2])
        >>> float(compiled.surrogate(torch.tensor(0.0), sg.Trace(draws={"x": torch.tensor([1.0, 3.0])})))
        5.0
    """

    value: Any = None
    draws: dict[str, Any] = _NOTHING
    log_probs: dict[str, Tensor] = _NOTHING
    noise: dict[str, list[Tensor]] = _NOTHING
    nodes: dict[str, Any] = _NOTHING
