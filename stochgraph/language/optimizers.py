"""Optimisers as declared updates: inner steps with a memory, a state in and a state out.

The gradient is an update of the graph, differentiated as that of `descend` is; what an optimiser makes of it is a
function of one draw. So every estimator counts the gradient's data as it does for a plain step, and nothing has to be
known of optimisers anywhere else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..ir import nodes as nd
from .symbols import name_after
from .words import _node, apply, check_update

_Number = float | Tensor


class AdamState(NamedTuple):
    """The memory of Adam: the number of steps, and decaying means of the gradients and of their squares."""

    count: Any
    mean: Any
    square: Any


def momentum(
    params: Any, objective: Any, lr: object, state: object = None, decay: object = 0.9, name: str | None = None
) -> tuple[Any, Any]:
    r"""One inner step of gradient descent with momentum (Polyak's heavy ball), differentiated like `descend`.

    .. math:: v_k = \mu v_{k-1} + \nabla L(\theta_{k-1}), \qquad \theta_k = \theta_{k-1} - \eta v_k

    The gradient is that of `descend`: the score function of what was drawn from `params`, plus the gradient through
    values. To climb a return, descend its negative.

    Args:
        params: a node: a tensor or a pytree of tensors.
        objective: a declared inner objective, a scalar per draw, without time axes.
        lr: the step size :math:`\eta`: a number, a node, or a pytree of them with the structure of `params`.
        state: what the step before returned; `None` for the first, :math:`v_0 = 0`.
        decay: :math:`\mu`, a number or a node.
        name: the name of the new parameters, as in `apply`; default: that of `params` with a prime.

    Returns:
        The new parameters, and the state for the next step: :math:`v_k`, a pytree like the parameters.

    Raises:
        DeclarationError: the objective does not depend on `params`, or has a time axis left; a name taken.

    References:
        Polyak (1964), Some methods of speeding up the convergence of iteration methods, eq. 9; in this form, without
        dampening, `torch.optim.SGD`.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Categorical
        >>> reward = torch.tensor([0.1, 1.0, -0.6], dtype=torch.float64)
        >>> @sg.graph
        ... def adapted_pay(theta):
        ...     state = None
        ...     for k in "12":
        ...         pulls = sg.sample(f"D{k}", Categorical, logits=theta, n=2)
        ...         pay = sg.mean(sg.apply(lambda arm: reward[arm], pulls))
        ...         theta, state = sg.momentum(theta, -pay, lr=0.5, state=state)
        ...     return sg.apply(lambda t: t.softmax(-1) @ reward, theta)
        >>> sg.verify(adapted_pay.compile(sg.SF()), torch.zeros(3, dtype=torch.float64)).relative_bias < 1e-12
        True
    """
    gradient, given = _gradient("momentum", params, objective, name)
    velocity = apply(_velocity, gradient, state, decay)
    return apply(_moved, params, velocity, lr, name=given), velocity


def adam(
    params: Any,
    objective: Any,
    lr: object,
    state: object = None,
    betas: tuple[object, object] = (0.9, 0.999),
    eps: object = 1e-8,
    name: str | None = None,
) -> tuple[Any, Any]:
    r"""One inner step of Adam, differentiated like `descend`.

    .. math:: m_k = \beta_1 m_{k-1} + (1 - \beta_1) g_k, \qquad v_k = \beta_2 v_{k-1} + (1 - \beta_2) g_k^2, \qquad
              \theta_k = \theta_{k-1} - \eta \, \frac{m_k / (1 - \beta_1^k)}{\sqrt{v_k / (1 - \beta_2^k)} + \epsilon}

    :math:`g_k = \nabla L(\theta_{k-1})` is the gradient of `descend`. To climb a return, descend its negative. Where
    all gradients of a parameter were exactly 0 the root is a constant, so that the derivative of the step is
    :math:`-\eta / \epsilon`, finite: choose a larger :math:`\epsilon` where that happens.

    Args:
        params: a node: a tensor or a pytree of tensors.
        objective: a declared inner objective, a scalar per draw, without time axes.
        lr: the step size :math:`\eta`: a number, a node, or a pytree of them with the structure of `params`.
        state: what the step before returned; `None` for the first, of zeros.
        betas: :math:`(\beta_1, \beta_2)`, numbers or nodes.
        eps: :math:`\epsilon`, a number or a node.
        name: the name of the new parameters, as in `apply`; default: that of `params` with a prime.

    Returns:
        The new parameters, and the state for the next step, with the fields `count`, `mean` and `square`.

    Raises:
        DeclarationError: the objective does not depend on `params`, or has a time axis left; a name taken.

    References:
        Kingma and Ba (2015), Adam, algorithm 1.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Categorical
        >>> reward = torch.tensor([0.1, 1.0, -0.6], dtype=torch.float64)
        >>> @sg.graph
        ... def adapted_pay(theta):
        ...     pulls = sg.sample("D", Categorical, logits=theta, n=2)
        ...     pay = sg.mean(sg.apply(lambda arm: reward[arm], pulls))
        ...     theta, state = sg.adam(theta, -pay, lr=0.5, eps=0.01)
        ...     return sg.apply(lambda t: t.softmax(-1) @ reward, theta)
        >>> theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
        >>> sg.verify(adapted_pay.compile(sg.SF()), theta).relative_bias < 1e-12
        True
    """
    gradient, given = _gradient("adam", params, objective, name)
    moments = apply(_moments, gradient, state, betas)
    step = apply(_adam_step, moments, betas, eps)
    return apply(_moved, params, step, lr, name=given), moments


def _gradient(word: str, params: Any, objective: Any, name: str | None) -> tuple[Any, str]:
    """The gradient of an inner objective as a node, and the name of the parameters that it moves."""
    start, goal = _node(params, word), _node(objective, word)
    check_update(word, start, goal)
    declaration = params._declaration
    given = declaration.name(word, name, name_after(start))
    label = declaration.unique(f"gradient({start.name})")
    return declaration.add(nd.Direction(label, len(declaration.nodes), [start, goal])), given


def _velocity(gradient: object, state: object, decay: _Number) -> Any:
    if state is None:
        return gradient
    return pytree.tree_map(lambda g, v: decay * v + g, gradient, state)


def _moments(gradient: object, state: AdamState | None, betas: tuple[_Number, _Number]) -> AdamState:
    if state is None:
        zeros = pytree.tree_map(torch.zeros_like, gradient)
        state = AdamState(pytree.tree_leaves(zeros)[0].new_zeros(()), zeros, zeros)
    first, second = betas
    mean = pytree.tree_map(lambda m, g: first * m + (1 - first) * g, state.mean, gradient)
    square = pytree.tree_map(lambda v, g: second * v + (1 - second) * g.square(), state.square, gradient)
    return AdamState(state.count + 1, mean, square)


def _adam_step(state: AdamState, betas: tuple[_Number, _Number], eps: _Number) -> Any:
    first, second = (1 - beta**state.count for beta in betas)
    return pytree.tree_map(lambda m, v: m / first / (_root(v / second) + eps), state.mean, state.square)


def _root(square: Tensor) -> Tensor:
    """The square root, constant at 0, where its own derivative is infinite."""
    positive = square > 0
    return torch.where(positive, square.where(positive, torch.ones_like(square)).sqrt(), 0.0)


def _moved(params: object, step: object, lr: object) -> Any:
    """The parameters less the step, with one step size for all of them or one for each."""
    whole: Callable[[object], bool] = lambda tree: pytree.tree_structure(tree).is_leaf()  # noqa: E731
    rates = pytree.tree_map(lambda _: lr, params) if whole(lr) and not whole(params) else lr
    return pytree.tree_map(lambda p, s, rate: p - rate * s, params, step, rates)
