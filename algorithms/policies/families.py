"""Policies as pure functions of a dictionary of parameters.

Two families, split by what is random: a Gaussian policy has a mean and a log standard deviation, a softmax policy has
logits. What computes them is the subclass: a tanh network, a table, or any `torch.nn.Module`. The log standard
deviation is a free vector, the same at all observations, or an output of the network like the mean (heteroscedastic).

A policy draws its actions from noise that is handed in: all randomness of a rollout is drawn in one call, and what is
done in each step is a pure function. It is written for one set of parameters, and `torch.vmap` maps it over one set per
task. The policies here with `batched = True` take stacked sets as they are, which saves most of the time of a small
network: a layer is then one batched product of matrices and nothing else.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from stochgraph.errors.checks import at_least, require

from .networks import Parameters as Parameters
from .networks import layer_sizes, module_parameters, tanh_network, tanh_parameters


class Policy(Protocol):
    """The interface of policies: all that rollouts and algorithms need.

    Methods take one set of parameters, and batches of observations and actions. With an attribute `batched` that is
    true, `sample` and `log_prob` also take `sets` of parameters, stacked, and as many batches of observations, `(sets,
    batch, observation)`; without it, `torch.vmap` maps them over the sets. It cannot map what draws random numbers of
    its own (dropout), decides by values (`if`, `.item()`), leaves torch, or changes buffers (batch normalisation). With
    an attribute `recurrent` that is true, a policy looks along time: see `Recurrent`.
    """

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """Parameters to start from."""

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The noise with which `sample` draws `shape` actions, from torch's default generators: `(*shape, ...)`."""

    def sample(self, parameters: Parameters, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions, and their log-probabilities of shape `(...)`, at observations `(..., observation)`."""

    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """The log-probability or log-density of actions, shape `(...)`."""

    def kl(self, old: Parameters, new: Parameters, observation: Tensor) -> Tensor:
        r"""The divergence :math:`KL(\pi_{old} \| \pi_{new})` at each observation, shape `(...)`."""


# --- continuous actions


class GaussianPolicy(ABC):
    r"""A policy :math:`a \sim N(\mu_\theta(o), \mathrm{diag}(e^{2 s_\theta(o)}))`: what all subclasses share.

    Args:
        action: size of an action.
    """

    batched = False

    def __init__(self, action: int) -> None:
        self.action = action

    @abstractmethod
    def moments(self, parameters: Parameters, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The mean `(..., action)` and the log standard deviation, which broadcasts to it."""

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal noise, `(*shape, action)`."""
        return torch.randn(*shape, self.action, dtype=like.dtype, device=like.device)

    def sample(self, parameters: Parameters, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `(..., action)` and their log-densities `(...)`."""
        return self.chosen(*self.moments(parameters, observation), noise)

    def chosen(self, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actions that this noise makes, and their log-densities."""
        action = mean + log_std.exp() * noise
        return action, self._log_density(action - mean, log_std)

    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """The log-density of actions, shape `(...)`."""
        mean, log_std = self.moments(parameters, observation)
        return self._log_density(action - mean, log_std)

    def kl(self, old: Parameters, new: Parameters, observation: Tensor) -> Tensor:
        r"""The divergence :math:`KL(\pi_{old} \| \pi_{new})` at each observation, shape `(...)`."""
        (mean, before), (other, after) = self.moments(old, observation), self.moments(new, observation)
        ratio = ((mean - other).square() + (2 * before).exp()) * (-2 * after).exp()
        return (after - before + 0.5 * (ratio - 1)).sum(-1)

    def entropy(self, parameters: Parameters, observation: Tensor) -> Tensor:
        r"""The entropy :math:`\sum_k s_k + \tfrac12 \log 2 \pi e` at each observation, shape `(...)`."""
        mean, log_std = self.moments(parameters, observation)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(mean).sum(-1)

    def _log_density(self, deviation: Tensor, log_std: Tensor) -> Tensor:
        constant = log_std.sum(-1) + 0.5 * math.log(2 * math.pi) * self.action
        return -0.5 * (deviation * torch.exp(-log_std)).square().sum(-1) - constant


class FreeGaussianPolicy(GaussianPolicy, ABC):
    r"""A Gaussian policy whose standard deviation is the same at all observations.

    Its logarithm is the free vector of parameters `log_std`; it counts as `least_log_std` where it is below. With
    `learn_std=False` it is no parameter: it stays what it is at first.

    Args:
        action: size of an action.
        log_std: initial value of the log standard deviation.
        least_log_std: its floor.
        learn_std: whether it is learned.
    """

    def __init__(self, action: int, log_std: float = 0.0, least_log_std: float = -5.0, learn_std: bool = True) -> None:
        super().__init__(action)
        self.log_std = log_std
        self.least_log_std = least_log_std
        self.learn_std = learn_std

    @abstractmethod
    def mean(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The mean action, shape `(..., action)`, of observations of shape `(..., observation)`."""

    def std(self, parameters: Parameters) -> Tensor:
        """The standard deviation, shape `(action,)`."""
        return self._log_std(parameters).exp()

    def moments(self, parameters: Parameters, observation: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(parameters, observation), self._log_std(parameters)

    def _log_std(self, parameters: Parameters) -> Tensor:  # (action,), or (sets, 1, action)
        if not self.learn_std:
            like = next(iter(parameters.values()))
            held = max(self.log_std, self.least_log_std)
            return torch.full((self.action,), held, dtype=like.dtype, device=like.device)
        log_std = parameters["log_std"].clamp(min=self.least_log_std)
        return log_std if log_std.dim() == 1 else log_std.unsqueeze(1)

    def _free(self, dtype: torch.dtype | None, device: str) -> Parameters:
        """The parameters besides those of the mean."""
        return (
            {"log_std": torch.full((self.action,), self.log_std, dtype=dtype, device=device)} if self.learn_std else {}
        )


class GaussianMLP(FreeGaussianPolicy):
    r"""A Gaussian policy whose mean is a tanh network.

    Args:
        observation: size of an observation.
        action: size of an action.
        hidden: sizes of the hidden layers; none for a linear policy.
        log_std: initial value of the log standard deviation.
        least_log_std: its floor.
        learn_std: whether it is learned, or stays as it is.
        output_scale: of the last layer's first weights, against Glorot's; 0 for a mean that is zero at first.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> policy = GaussianMLP(2, 2, hidden=(8,))
        >>> parameters = policy.initial(torch.Generator().manual_seed(0))
        >>> policy.mean(parameters, torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    batched = True

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int] = (64, 64),
        log_std: float = 0.0,
        least_log_std: float = -5.0,
        learn_std: bool = True,
        output_scale: float = 0.1,
    ) -> None:
        super().__init__(action, log_std, least_log_std, learn_std)
        require(at_least(0), output_scale=output_scale)
        self.sizes = layer_sizes(observation, hidden, action)
        self.output_scale = output_scale

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """Fresh parameters: Glorot-uniform weights, the last layer's times `output_scale`, and zero biases."""
        return tanh_parameters(self.sizes, generator, dtype, device, self.output_scale) | self._free(dtype, device)

    def mean(self, parameters: Parameters, observation: Tensor) -> Tensor:
        return tanh_network(parameters, observation)


class GaussianModule(FreeGaussianPolicy):
    """A Gaussian policy whose mean is any module, through `torch.func.functional_call`.

    Args:
        module: maps observations `(..., observation)` to means `(..., action)`. Its buffers stay as they are, and it is
            mapped by `torch.vmap`: see `Policy`.
        action: size of an action.
        log_std: initial value of the log standard deviation.
        least_log_std: its floor.
        learn_std: whether it is learned, or stays as it is.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import GaussianModule
        >>> policy = GaussianModule(torch.nn.Linear(3, 2), action=2)
        >>> sorted(policy.initial())
        ['bias', 'log_std', 'weight']
    """

    def __init__(
        self,
        module: torch.nn.Module,
        action: int,
        log_std: float = 0.0,
        least_log_std: float = -5.0,
        learn_std: bool = True,
    ) -> None:
        super().__init__(action, log_std, least_log_std, learn_std)
        if "log_std" in dict(module.named_parameters()):
            raise ValueError("the module has a parameter log_std, which is the policy's own: rename the module's")
        self.module = module

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """The module's own parameters, copied, whatever the generator."""
        return module_parameters(self.module, dtype, device) | self._free(dtype, device)

    def mean(self, parameters: Parameters, observation: Tensor) -> Tensor:
        weights = {name: leaf for name, leaf in parameters.items() if name != "log_std"}
        mean = functional_call(self.module, weights, (observation,))
        if mean.shape[-1:] != (self.action,):
            raise ValueError(
                f"GaussianModule: the module returns means {tuple(mean.shape)}, for actions of size {self.action}"
            )
        return mean


class HeteroscedasticMLP(GaussianPolicy):
    r"""A Gaussian policy whose mean and log standard deviation are outputs of one tanh network.

    Args:
        observation: size of an observation.
        action: size of an action; the network has twice as many outputs, the means first.
        hidden: sizes of the hidden layers; none for a linear policy.
        log_std: initial value of the log standard deviation, up to the small weights of the last layer.
        least_log_std: its floor.

    References:
        Xu and Zhu (2024), appendix B, have a network that gives means and variances.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import HeteroscedasticMLP
        >>> policy = HeteroscedasticMLP(2, 3, hidden=(8,), log_std=-0.5)
        >>> mean, log_std = policy.moments(policy.initial(torch.Generator().manual_seed(0)), torch.zeros(5, 2))
        >>> mean.shape, log_std[0]
        (torch.Size([5, 3]), tensor([-0.5000, -0.5000, -0.5000]))
    """

    batched = True

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int] = (64, 64),
        log_std: float = 0.0,
        least_log_std: float = -5.0,
    ) -> None:
        super().__init__(action)
        self.sizes = layer_sizes(observation, hidden, 2 * action)
        self.log_std = log_std
        self.least_log_std = least_log_std

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """Fresh parameters as those of `GaussianMLP`; the last biases have the log standard deviation."""
        parameters = tanh_parameters(self.sizes, generator, dtype, device)
        parameters[f"{2 * len(self.sizes) - 4}.bias"][self.action :] = self.log_std
        return parameters

    def moments(self, parameters: Parameters, observation: Tensor) -> tuple[Tensor, Tensor]:
        return _halves(tanh_network(parameters, observation), self.action, self.least_log_std)


class HeteroscedasticModule(GaussianPolicy):
    """A Gaussian policy whose mean and log standard deviation are outputs of any module.

    Args:
        module: maps observations `(..., observation)` to `(..., 2 * action)`, the means first. Its buffers stay as they
            are, and it is mapped by `torch.vmap`: see `Policy`.
        action: size of an action.
        least_log_std: the floor of the log standard deviation.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import HeteroscedasticModule
        >>> policy = HeteroscedasticModule(torch.nn.Linear(3, 4), action=2)
        >>> [part.shape for part in policy.moments(policy.initial(), torch.zeros(5, 3))]
        [torch.Size([5, 2]), torch.Size([5, 2])]
    """

    def __init__(self, module: torch.nn.Module, action: int, least_log_std: float = -5.0) -> None:
        super().__init__(action)
        self.module = module
        self.least_log_std = least_log_std

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """The module's own parameters, copied, whatever the generator."""
        return module_parameters(self.module, dtype, device)

    def moments(self, parameters: Parameters, observation: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(self.module, parameters, (observation,))
        if outputs.shape[-1:] != (2 * self.action,):
            raise ValueError(
                f"HeteroscedasticModule: the module returns {tuple(outputs.shape)}, for actions of size {self.action}: "
                f"{2 * self.action} outputs are expected, means and log standard deviations"
            )
        return _halves(outputs, self.action, self.least_log_std)


def _halves(outputs: Tensor, action: int, least: float) -> tuple[Tensor, Tensor]:
    """Means and log standard deviations."""
    mean, log_std = outputs.split(action, -1)
    return mean, log_std.clamp(min=least)


# --- discrete actions


class SoftmaxPolicy(ABC):
    r"""A policy :math:`\pi_\theta(a \mid o) \propto e^{z_\theta(o)_a}`: what all subclasses share.

    Args:
        actions: the number of actions.
    """

    batched = False

    def __init__(self, actions: int) -> None:
        self.actions = actions

    @abstractmethod
    def logits(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Unnormalised log-probabilities, shape `(..., actions)`, at observations of shape `(..., observation)`."""

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard Gumbel noise, `(*shape, actions)`: the largest of logits plus Gumbel noise is a softmax draw."""
        return -torch.empty(*shape, self.actions, dtype=like.dtype, device=like.device).exponential_().log()

    def sample(self, parameters: Parameters, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `(...)`, integers, and their log-probabilities `(...)`."""
        return self.chosen(self.logits(parameters, observation), noise)

    def chosen(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actions that this noise makes, and their log-probabilities."""
        action = (logits + noise).argmax(-1)
        return action, _score(logits, action)

    def log_prob(self, parameters: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """The log-probability of actions, shape `(...)`."""
        return _score(self.logits(parameters, observation), action)

    def kl(self, old: Parameters, new: Parameters, observation: Tensor) -> Tensor:
        r"""The divergence :math:`KL(\pi_{old} \| \pi_{new})` at each observation, shape `(...)`."""
        before = self.logits(old, observation).log_softmax(-1)
        after = self.logits(new, observation).log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)

    def entropy(self, parameters: Parameters, observation: Tensor) -> Tensor:
        r"""The entropy :math:`-\sum_a \pi_a \log \pi_a` at each observation, shape `(...)`."""
        log_prob = self.logits(parameters, observation).log_softmax(-1)
        return -(log_prob.exp() * log_prob).sum(-1)


def _score(logits: Tensor, action: Tensor) -> Tensor:
    """The log-probability of each action."""
    return logits.log_softmax(-1).gather(-1, action.long().unsqueeze(-1)).squeeze(-1)


class TabularSoftmax(SoftmaxPolicy):
    r"""A softmax over a table of logits :math:`\theta_{s,a}`, zero at first. States are observed as indicator vectors.

    Args:
        states: the number of states.
        actions: the number of actions.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import TabularSoftmax
        >>> policy = TabularSoftmax(3, 2)
        >>> policy.log_prob(policy.initial(), torch.eye(3), torch.tensor([0, 1, 1])).exp()
        tensor([0.5000, 0.5000, 0.5000])
    """

    batched = True

    def __init__(self, states: int, actions: int) -> None:
        super().__init__(actions)
        self.states = states

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """The uniform policy, whatever the generator."""
        return {"logits": torch.zeros(self.states, self.actions, dtype=dtype, device=device)}

    def logits(self, parameters: Parameters, observation: Tensor) -> Tensor:
        return observation @ parameters["logits"]


class CategoricalMLP(SoftmaxPolicy):
    """A softmax over the outputs of a tanh network.

    Args:
        observation: size of an observation.
        actions: the number of actions.
        hidden: sizes of the hidden layers; none for a linear policy.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import CategoricalMLP
        >>> policy = CategoricalMLP(4, 3, hidden=(8,))
        >>> policy.logits(policy.initial(), torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    batched = True

    def __init__(self, observation: int, actions: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(actions)
        self.sizes = layer_sizes(observation, hidden, actions)

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """Fresh parameters: Glorot-uniform weights, zero biases, a last layer a tenth as large."""
        return tanh_parameters(self.sizes, generator, dtype, device)

    def logits(self, parameters: Parameters, observation: Tensor) -> Tensor:
        return tanh_network(parameters, observation)


class CategoricalModule(SoftmaxPolicy):
    """A softmax over the outputs of any module, through `torch.func.functional_call`.

    Args:
        module: maps observations `(..., observation)` to logits `(..., actions)`. Its buffers stay as they are, and it
            is mapped by `torch.vmap`: see `Policy`.
        actions: the number of actions.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import CategoricalModule
        >>> policy = CategoricalModule(torch.nn.Linear(3, 2), actions=2)
        >>> policy.logits(policy.initial(), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, module: torch.nn.Module, actions: int) -> None:
        super().__init__(actions)
        self.module = module

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """The module's own parameters, copied, whatever the generator."""
        return module_parameters(self.module, dtype, device)

    def logits(self, parameters: Parameters, observation: Tensor) -> Tensor:
        return functional_call(self.module, parameters, (observation,))
