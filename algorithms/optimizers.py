"""Any optimiser of torch for a pytree of parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Optimizer:
    """A `torch.optim` optimiser that steps on gradients as compiled graphs return them.

    Args:
        parameters: a pytree of tensors; leaves that are not floating-point stay as they are.
        make: from a list of tensors to an optimiser, such as `torch.optim.Adam`.
        maximize: whether to climb.
        clip: the largest norm of a gradient; longer ones are scaled down. `None`: any.
        **options: further arguments of `make`.

    Attributes:
        parameters: the current parameters. A step replaces them; it never writes into tensors handed out before.
        optimizer: torch's own, for learning-rate schedules and `state_dict`.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.optimizers import Optimizer
        >>> optimizer = Optimizer({"w": torch.tensor(1.0)}, torch.optim.SGD, lr=0.5)
        >>> optimizer.step({"w": torch.tensor(2.0)})
        {'w': tensor(2.)}
    """

    def __init__(
        self,
        parameters: Any,
        make: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        maximize: bool = True,
        clip: float | None = None,
        **options: Any,
    ) -> None:
        leaves, self._spec = pytree.tree_flatten(parameters)
        self._floats = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves]
        self._leaves = [leaf.detach().clone() if f else leaf for leaf, f in zip(leaves, self._floats, strict=True)]
        self.clip = clip
        self.optimizer = make(self._moving(), maximize=maximize, **options)

    @property
    def parameters(self) -> Any:
        """The current parameters, copied."""
        copies = [leaf.clone() if f else leaf for leaf, f in zip(self._leaves, self._floats, strict=True)]
        return pytree.tree_unflatten(copies, self._spec)

    def step(self, gradient: Any) -> Any:
        """One step; returns the new parameters.

        Args:
            gradient: a pytree like the parameters, `None` at leaves that are not floating-point.
        """
        given = pytree.tree_leaves(gradient, is_leaf=lambda leaf: leaf is None)
        for leaf, slope, is_float in zip(self._leaves, given, self._floats, strict=True):
            if is_float:
                leaf.grad = slope.detach().clone()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._moving(), self.clip)
        self.optimizer.step()
        return self.parameters

    def _moving(self) -> list[Tensor]:
        return [leaf for leaf, is_float in zip(self._leaves, self._floats, strict=True) if is_float]
