"""A policy and a value network in one dictionary of parameters, so that one optimiser moves both."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .carrying import CarryingPolicy
from .families import Policy
from .networks import Parameters, layer_sizes, tanh_network, tanh_parameters


class ActorCritic(CarryingPolicy):
    r"""A policy :math:`\pi_\theta`, whose parameters carry along a value network :math:`v_\theta`: actor and critic.

    The two share no layer. The value network is a tanh network like those of the policies here; it does not act.

    Args:
        policy: what acts.
        observation: size of an observation.
        hidden: sizes of the value network's hidden layers; none for a linear one.

    References:
        Schulman et al. (2017), PPO, section 6.1, for networks that share no parameters.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import ActorCritic, CategoricalMLP
        >>> policy = ActorCritic(CategoricalMLP(4, 2, hidden=()), 4, hidden=())
        >>> parameters = policy.initial(torch.Generator().manual_seed(0))
        >>> sorted(parameters)
        ['0.bias', '0.weight', 'value.0.bias', 'value.0.weight']
        >>> policy.value(parameters, torch.ones(5, 4)).shape
        torch.Size([5])
    """

    prefix = "value."

    def __init__(self, policy: Policy, observation: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(policy)
        self.sizes = layer_sizes(observation, hidden, 1)

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """The parameters of the policy, and those of the value network."""
        own = self.policy.initial(generator, dtype=dtype, device=device)
        critic = tanh_parameters(self.sizes, generator, dtype, device)
        return own | {self.prefix + name: leaf for name, leaf in critic.items()}

    def value(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The value of observations `(..., observation)`, shape `(...)`."""
        critic = {
            name.removeprefix(self.prefix): leaf for name, leaf in parameters.items() if name.startswith(self.prefix)
        }
        return tanh_network(critic, observation).squeeze(-1)

    def entropy(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """As the policy has it."""
        return self.policy.entropy(self._acting(parameters), observation)
