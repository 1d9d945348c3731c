"""The objects that torch hands to the rules of an autograd function."""

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """The context of an autograd function: what its rules leave for each other. Functions add what else they leave."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that were saved."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Save tensors for reverse mode."""

    def save_for_forward(self, *tensors: Tensor) -> None:
        """Save tensors for forward mode."""


class Mapped(Protocol):
    """A dimension that `torch.vmap` maps over."""

    @property
    def batch_size(self) -> int:
        """Its size."""
