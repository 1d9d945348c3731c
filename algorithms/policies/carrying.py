"""Policies whose parameters carry others along, which do not act."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from .families import Policy
from .networks import Parameters


class CarryingPolicy:
    """A policy with other parameters beside its own, told apart by the beginning of their names; it acts as before.

    Args:
        policy: what acts.
    """

    prefix: ClassVar[str]  # of the names of what is carried along

    def __init__(self, policy: Policy) -> None:
        self.policy: Any = policy  # which may be recurrent, or have an entropy
        self.batched = getattr(policy, "batched", False)
        self.recurrent = getattr(policy, "recurrent", False)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """As the policy has it."""
        return self.policy.noise(shape, like)

    def sample(self, parameters: Parameters, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As the policy has it."""
        return self.policy.sample(self._acting(parameters), observation, noise)

    def start(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """As the policy has it, if it is recurrent."""
        return self.policy.start(self._acting(parameters), observation)

    def act(
        self, parameters: Parameters, state: Tensor, observation: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the policy has it, if it is recurrent."""
        return self.policy.act(self._acting(parameters), state, observation, noise)

    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """As the policy has it."""
        return self.policy.log_prob(self._acting(parameters), observation, action)

    def kl(self, old: Parameters, new: Parameters, observation: Tensor) -> Tensor:
        """As the policy has it."""
        return self.policy.kl(self._acting(old), self._acting(new), observation)

    def _acting(self, parameters: Parameters) -> Parameters:
        return {name: leaf for name, leaf in parameters.items() if not name.startswith(self.prefix)}
