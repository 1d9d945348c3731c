"""The word for what a mean of draws estimates: the expectation over the distribution that they come from."""

from collections.abc import Iterable
from typing import Any

from ..errors.exceptions import DeclarationError
from ..tensors.axes import describe
from .words import _choose, _node, _reduction


def expect(x: Any, over: str | Iterable[str] | None = None) -> Any:
    r"""The expectation of `x` over the draws of a plate, :math:`E[x]`: the target is a function of it.

    `sg.mean` declares :math:`J_N = E f(\frac1N \sum_i x_i)`, the expected outcome of an agent that has N draws; this
    word declares :math:`J_\infty = f(E x)`, for which N draws are a means of estimation. The two differ by O(1/N) where
    f is not linear. Values are those of the draws that were made, :math:`f(\frac1N \sum_i x_i)`, and so biased.

    Each sample of the plate needs an estimator of this target: `Plugin`, `Jackknife` or `Multilevel`.

    Args:
        x: a node with at least one plate of draws.
        over: names of the plates; default: every plate of `x`. A plate is expected or averaged, not both.

    Raises:
        DeclarationError: `x` does not have the axis; a time axis, or a plate of data, which nothing is drawn for.

    References:
        Fallah et al. (2021), eq. 3, for an inner step on the expected return; Tang (2022), section 3, for both targets;
        Hu, Chen and He (2021), conditional stochastic optimisation.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     return sg.expect(sg.sample("x", Bernoulli, logits=logit, n=4)) ** 2
        >>> logit = torch.tensor(0.3, dtype=torch.float64)
        >>> truth = sg.verify(objective.compile(sg.Plugin()), logit).truth
        >>> p = logit.sigmoid()
        >>> bool((truth - 2 * p * p * (1 - p)).abs() < 1e-12)
        True
    """
    node = _node(x, "expect")
    chosen = _choose(x, over, tuple(axis for axis in node.axes if not axis.time), "expect", "plate")
    for axis in chosen:
        if axis.time or axis.data:
            what = "a time axis" if axis.time else "a plate of data, whose rows are given and not drawn"
            raise DeclarationError(
                f"sg.expect of {node.name!r} (axes: {describe(node.axes)}): {axis.name!r} is {what}; use "
                f"{'sg.sum' if axis.time else 'sg.mean'}(..., over={axis.name!r})"
            )
    return _reduction("expect", x, chosen, mean=True, population=True)
