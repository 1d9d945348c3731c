"""The pathwise derivative: the draw as a function of its parameters and of noise."""

from ._base import Pathwise


def PW() -> Pathwise:
    r"""The pathwise derivative (reparameterisation): :math:`x = g(\theta, \epsilon)`, differentiated through.

    Unbiased where the objective is continuous along the draw. A function of the draw without a derivative is refused:
    at compile where it is one of torch's, else at the first pass in which nothing arrives at the objective. A jump
    beside something smooth is not seen (the page on choosing says how to check). Needs a distribution with `rsample`:

    - Most families of torch draw :math:`\epsilon` without their parameters (`Normal`, `LogNormal`, `Uniform`, `Gumbel`,
      relaxed ones, transforms of these). It is recorded in the trace: a surrogate can be replayed at other parameters,
      the draw moving with them, and has derivatives of any order.
    - `Gamma`, `Chi2`, `Beta`, `Dirichlet`, `StudentT`, `FisherSnedecor`, `InverseGamma`, `Wishart`: the noise depends
      on the shape (concentration, degrees of freedom), and the draw is differentiated implicitly,
      :math:`\partial x / \partial \theta = - F_\theta(x) / F_x(x)` with the distribution function F. That is of order 1
      and at the parameters that drew: a second derivative, an update that takes the first, and a replay at another
      shape are refused. In the other parameters (rate, location, scale) there is no bound.
    - Discrete draws are refused, and so are straight-through ones (`OneHotCategoricalStraightThrough`, or a class of
      one's own): their derivative is that of something else, and biased.

    A class of torch is refused when it is compiled, what a function builds when it draws. The log-probability of a
    pathwise draw, `stochgraph.log_prob`, needs no inverse of a transform: it is exact where, say, a hyperbolic tangent
    has become 1.

    References:
        Kingma and Welling (2014), eq. 4; Rezende et al. (2014); Figurnov et al. (2018) for implicit draws.

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
