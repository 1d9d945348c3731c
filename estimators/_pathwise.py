"""The pathwise derivative: the draw as a function of its parameters and of noise."""

from ._base import Pathwise


def PW() -> Pathwise:
    r"""The pathwise derivative (reparameterisation): :math:`x = g(\theta, \epsilon)`, differentiated through.

    Unbiased where the objective is continuous along the draw. A function of the draw without a derivative is refused:
    at compile where it is one of torch's, else at the first pass in which nothing arrives at the objective. A jump
    beside something smooth is not seen (see the page on choosing, for how to check). The noise is recorded in the
    trace, so a surrogate can be replayed at other parameters: the draw then moves with them. Needs a distribution with
    `rsample`.

    References:
        Kingma and Welling (2014), eq. 4; Rezende et al. (2014).

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=4))
        >>> value, grad = objective.compile(sg.PW()).value_and_grad(torch.tensor(0.0))
        >>> float(grad)
        1.0
    """
    return Pathwise()
