"""What was drawn: the record that a surrogate is a function of."""

from typing import Any, NamedTuple

from torch import Tensor


class Trace(NamedTuple):
    """The draws of one pass through a graph. A pytree: map over it, move it, save it, replay it.

    `torch.save` writes it; `torch.load(file, weights_only=False)` reads it back, being more than bare tensors.

    Attributes:
        value: the value of the objective for these draws, a scalar.
        draws: for every sample node its draw, shape `(*axes, ...)`, outermost plate first.
        log_probs: for every sample node whose distribution depends on an input, the log-probability of each draw (and
            time step) under the parameters that drew it, shape `(*axes,)`.
        noise: for every pathwise node the noise that its draw is a function of; where that depends on parameters, what
            was drawn and those parameters.
    """

    value: Tensor
    draws: dict[str, Any]
    log_probs: dict[str, Tensor]
    noise: dict[str, list[Tensor]]
