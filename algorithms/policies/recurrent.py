r"""Policies with a memory: what they do depends on all that they have seen in an episode.

NOTE [time in recurrent policies]
A policy without memory takes observations one by one, in any arrangement. A recurrent one (`recurrent = True`) takes
whole episodes: the dimension before the last of its observations is time, and its state is zero before the first step.
So `log_prob`, `kl` and `entropy` of a trajectory are what they are for any policy, functions of `(time, observation)`;
`Rollouts` alone, which has no more than one step at a time, asks for `start` and `act`.

The cell is written as products of matrices, not as torch's fused one: `torch.func` maps products over a set of
parameters for each task in one call, and would take the fused cell apart. The products with the observations are one
for all steps; what is left in the loop over time is a product with the state.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from stochgraph.errors.checks import integer, require

from .families import FreeGaussianPolicy, Policy, SoftmaxPolicy
from .networks import Parameters, affine


class Recurrent(Policy, Protocol):
    """What rollouts need of a recurrent policy besides: see the note above. `batched` is as for any policy."""

    recurrent: bool

    def start(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The state before the first step of episodes with the observations `(..., observation)`: `(..., width)`."""

    def act(
        self, parameters: Parameters, state: Tensor, observation: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state after this step, the actions and their log-probabilities, at observations `(..., observation)`."""


class GRU:
    r"""A gated recurrent unit, and a linear layer on its state.

    .. math:: r, z = \sigma(W x_t + b + U h_{t-1} + c), \quad n = \tanh(W_n x_t + b_n + r (U_n h_{t-1} + c_n)), \quad
              h_t = n + z (h_{t-1} - n)

    Parameters have torch's names and arrangement, `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`, and `out.weight`,
    `out.bias`. They may be stacked, `(sets, ...)`; observations are then `(sets, batch, ...)`.

    Args:
        observation: size of an observation.
        width: size of the state.
        outputs: the number of outputs.

    References:
        Cho et al. (2014), Learning phrase representations using RNN encoder-decoder, eqs. 5 to 8, in the form of
        `torch.nn.GRU`.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies.recurrent import GRU
        >>> cell = GRU(3, 8, 2)
        >>> parameters = cell.initial(torch.Generator().manual_seed(0), None, "cpu")
        >>> cell.along(parameters, torch.ones(5, 10, 3)).shape
        torch.Size([5, 10, 2])
    """

    def __init__(self, observation: int, width: int, outputs: int) -> None:
        require(integer(1), width=width)
        self.observation, self.width, self.outputs = observation, width, outputs

    def initial(self, generator: torch.Generator | None, dtype: torch.dtype | None, device: str) -> Parameters:
        """Fresh parameters: Glorot-uniform weights of each gate, zero biases, outputs a tenth as large."""
        made = "cpu" if generator is None else generator.device  # the same numbers on every device
        width = self.width

        def uniform(rows: int, columns: int, bound: float) -> Tensor:
            drawn = torch.rand(rows, columns, generator=generator, dtype=dtype, device=made)
            return (bound * (2 * drawn - 1)).to(device)

        def zeros(size: int) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return {
            "weight_ih": uniform(3 * width, self.observation, math.sqrt(6 / (self.observation + width))),
            "weight_hh": uniform(3 * width, width, math.sqrt(3 / width)),
            "bias_ih": zeros(3 * width),
            "bias_hh": zeros(3 * width),
            "out.weight": uniform(self.outputs, width, 0.1 * math.sqrt(6 / (width + self.outputs))),
            "out.bias": zeros(self.outputs),
        }

    def start(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The state before the first step, zeros `(..., width)`."""
        return observation.new_zeros(*observation.shape[:-1], self.width)

    def step(self, parameters: Parameters, state: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The state after one step, `(..., width)`, and the outputs, `(..., outputs)`."""
        state = self._next(parameters, state, affine(observation, parameters["weight_ih"], parameters["bias_ih"]))
        return state, affine(state, parameters["out.weight"], parameters["out.bias"])

    def along(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The outputs at every step of episodes, `(..., time, outputs)`."""
        single = observation.dim() == 2
        steps = (observation.unsqueeze(0) if single else observation).transpose(-2, -3)  # (..., time, batch, _)
        found = self._along(parameters, steps).transpose(-2, -3)
        return found.squeeze(0) if single else found

    def _along(self, parameters: Parameters, steps: Tensor) -> Tensor:
        gates = _in_one(steps, parameters["weight_ih"], parameters["bias_ih"])
        state, states = self.start(parameters, steps.select(-3, 0)), []
        for gate in gates.unbind(-3):
            state = self._next(parameters, state, gate)
            states.append(state)
        return _in_one(torch.stack(states, -3), parameters["out.weight"], parameters["out.bias"])

    def _next(self, parameters: Parameters, state: Tensor, given: Tensor) -> Tensor:
        own = affine(state, parameters["weight_hh"], parameters["bias_hh"])
        size = [2 * self.width, self.width]
        (given, new), (kept, own_new) = given.split(size, -1), own.split(size, -1)
        reset, update = (given + kept).sigmoid().chunk(2, -1)
        new = torch.addcmul(new, reset, own_new).tanh()
        return torch.lerp(new, state, update)


def _in_one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A layer at all steps: `x` is `(..., time, batch, in)`, with stacked weights `(sets, time, batch, in)`."""
    if weight.dim() == 2:
        return affine(x, weight, bias)
    return affine(x.flatten(1, 2), weight, bias).unflatten(1, x.shape[1:3])


class CategoricalGRU(SoftmaxPolicy):
    """A softmax over the outputs of a gated recurrent unit.

    Args:
        observation: size of an observation.
        actions: the number of actions.
        width: size of the state.

    References:
        Duan et al. (2016), RL²: Fast reinforcement learning via slow reinforcement learning, section 2.3.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import CategoricalGRU
        >>> policy = CategoricalGRU(4, 3, width=8)
        >>> episodes, actions = torch.zeros(5, 10, 4), torch.zeros(5, 10)
        >>> policy.log_prob(policy.initial(), episodes, actions).shape
        torch.Size([5, 10])
    """

    batched = recurrent = True

    def __init__(self, observation: int, actions: int, width: int = 64) -> None:
        super().__init__(actions)
        self.cell = GRU(observation, width, actions)
        self.sizes = (observation, width, actions)

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """Fresh parameters; see `GRU`."""
        return self.cell.initial(generator, dtype, device)

    def logits(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Unnormalised log-probabilities along episodes `(..., time, observation)`: `(..., time, actions)`."""
        return self.cell.along(parameters, observation)

    def start(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The state before the first step, zeros."""
        return self.cell.start(parameters, observation)

    def act(
        self, parameters: Parameters, state: Tensor, observation: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step: the state, actions and their log-probabilities."""
        state, logits = self.cell.step(parameters, state, observation)
        return state, *self.chosen(logits, noise)


class GaussianGRU(FreeGaussianPolicy):
    """A Gaussian policy whose mean is the output of a gated recurrent unit.

    Args:
        observation: size of an observation.
        action: size of an action.
        width: size of the state.
        log_std: initial value of the log standard deviation.
        least_log_std: its floor.
        learn_std: whether it is learned, or stays as it is.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import GaussianGRU
        >>> policy = GaussianGRU(4, 2, width=8)
        >>> policy.mean(policy.initial(), torch.zeros(5, 10, 4)).shape
        torch.Size([5, 10, 2])
    """

    batched = recurrent = True

    def __init__(
        self,
        observation: int,
        action: int,
        width: int = 64,
        log_std: float = 0.0,
        least_log_std: float = -5.0,
        learn_std: bool = True,
    ) -> None:
        super().__init__(action, log_std, least_log_std, learn_std)
        self.cell = GRU(observation, width, action)
        self.sizes = (observation, width, action)

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """Fresh parameters; see `GRU`."""
        return self.cell.initial(generator, dtype, device) | self._free(dtype, device)

    def mean(self, parameters: Parameters, observation: Tensor) -> Tensor:
        return self.cell.along(parameters, observation)

    def moments(self, parameters: Parameters, observation: Tensor) -> tuple[Tensor, Tensor]:
        log_std = self._log_std(parameters)
        return self.mean(parameters, observation), log_std if log_std.dim() == 1 else log_std.unsqueeze(1)

    def start(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The state before the first step, zeros."""
        return self.cell.start(parameters, observation)

    def act(
        self, parameters: Parameters, state: Tensor, observation: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step: the state, actions and their log-densities."""
        state, mean = self.cell.step(parameters, state, observation)
        return state, *self.chosen(mean, self._log_std(parameters), noise)
