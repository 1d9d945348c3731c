"""Policies as pure functions of a pytree of parameters: one set per task, or one for all."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

Parameters = dict[str, Tensor]


class GaussianMLP:
    r"""A Gaussian policy whose mean is a tanh network: :math:`a \sim N(\mu_\theta(o), \mathrm{diag}(e^{2 s}))`.

    The logarithm of the standard deviation `s` is a free vector with a floor.

    Args:
        observation: size of an observation.
        action: size of an action.
        hidden: sizes of the hidden layers.
        log_std: initial value of the log standard deviation.
        least_log_std: its floor.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> policy = GaussianMLP(2, 2, hidden=(8,))
        >>> parameters = policy.initial(torch.Generator().manual_seed(0))
        >>> policy.mean(parameters, torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int] = (64, 64),
        log_std: float = 0.0,
        least_log_std: float = -5.0,
    ) -> None:
        sizes = [observation, *hidden]
        layers: list[torch.nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(before, after, device="meta"), torch.nn.Tanh()]
        self.network = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], action, device="meta"))
        self.action = action
        self.log_std = log_std
        self.least_log_std = least_log_std

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """Fresh parameters: Glorot-uniform weights, zero biases, a last layer a tenth as large."""
        named = list(self.network.named_parameters())
        parameters = {}
        for name, shape in ((name, leaf.shape) for name, leaf in named):
            if len(shape) == 1:
                parameters[name] = torch.zeros(shape, dtype=dtype)
                continue
            bound = math.sqrt(6 / (shape[0] + shape[1])) * (0.1 if shape[0] == self.action else 1.0)
            parameters[name] = bound * (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1)
        parameters["log_std"] = torch.full((self.action,), self.log_std, dtype=dtype)
        return {name: leaf.to(device) for name, leaf in parameters.items()}

    def mean(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The mean action, shape `(..., action)`, of observations of shape `(..., observation)`."""
        weights = {name: leaf for name, leaf in parameters.items() if name != "log_std"}
        return functional_call(self.network, weights, (observation,))

    def std(self, parameters: Parameters) -> Tensor:
        """The standard deviation, shape `(action,)`."""
        return parameters["log_std"].clamp(min=self.least_log_std).exp()

    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """The log-density of actions, shape `(...)`."""
        log_std = parameters["log_std"].clamp(min=self.least_log_std)
        standardized = (action - self.mean(parameters, observation)) * torch.exp(-log_std)
        constant = log_std.sum() + 0.5 * math.log(2 * math.pi) * self.action
        return -0.5 * standardized.square().sum(-1) - constant
