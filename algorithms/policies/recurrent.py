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
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stochgraph.errors.checks import integer, require

from .families import FreeGaussianPolicy, Policy, SoftmaxPolicy
from .networks import Parameters, affine, tanh


class Recurrent(Policy, Protocol):
    """The further needs of rollouts from a recurrent policy: see the note above. `batched` is as for any policy."""

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
        """The state after one step, `(batch, width)`, and the outputs, `(batch, outputs)`."""
        weights = self._weights(parameters)
        state = _next(weights, state, *_given(weights, observation))
        return state, affine(state, parameters["out.weight"], parameters["out.bias"])

    def along(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The outputs at every step of episodes, `(..., time, outputs)`."""
        plates = observation.shape[:-2]
        kept = parameters["weight_ih"].dim() - 2  # 1 if parameters are stacked
        episodes = observation.reshape(*plates[:kept], -1, *observation.shape[-2:])
        steps = episodes.transpose(-2, -3)  # (..., time, batch, observation): a step is one piece of memory
        found = self._out(parameters, self._states(parameters, steps))
        return found.transpose(-2, -3).reshape(*plates, observation.shape[-2], self.outputs)

    def _out(self, parameters: Parameters, states: Tensor) -> Tensor:
        outputs: Tensor = _in_one(lambda x: affine(x, parameters["out.weight"], parameters["out.bias"]), states)
        return outputs

    def _states(self, parameters: Parameters, steps: Tensor) -> Tensor:
        weights, state, states = self._weights(parameters), self.start(parameters, steps.select(-3, 0)), []
        for given in zip(*(part.unbind(-3) for part in _in_one(partial(_given, weights), steps)), strict=True):
            state = _next(weights, state, *given)
            states.append(state)
        return torch.stack(states, -3)

    def _weights(self, parameters: Parameters) -> "_Weights":
        size = [2 * self.width, self.width]
        seen, kept = (parameters[name].split(size, -2) for name in ("weight_ih", "weight_hh"))
        of_seen, of_kept = (parameters[name].split(size, -1) for name in ("bias_ih", "bias_hh"))
        return _Weights(seen[0], of_seen[0] + of_kept[0], seen[1], of_seen[1], kept[0], kept[1], of_kept[1])


class _Weights(NamedTuple):
    """Those of the gates r and z, whose biases are one, and those of n: for what is seen, and for the state."""

    gates: Tensor
    gates_bias: Tensor
    new: Tensor
    new_bias: Tensor
    gates_kept: Tensor
    new_kept: Tensor
    new_kept_bias: Tensor


def _given(weights: _Weights, observation: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of the gates and of n that do not depend on the state."""
    gates = affine(observation, weights.gates, weights.gates_bias)
    return gates, affine(observation, weights.new, weights.new_bias)


def _next(weights: _Weights, state: Tensor, gates: Tensor, new: Tensor) -> Tensor:
    """The next state. Operations are few, for each of them is recorded at every step."""
    plus = torch.addmm if weights.new.dim() == 2 else torch.baddbmm
    reset, update = plus(gates, state, weights.gates_kept.mT).sigmoid().chunk(2, -1)
    proposed = tanh(torch.addcmul(new, reset, affine(state, weights.new_kept, weights.new_kept_bias)))
    return torch.lerp(proposed, state, update)


def _in_one(layer: Callable[[Tensor], Any], x: Tensor) -> Any:
    """Layers at all steps, each as one product: `x` is `(time, batch, in)`, or `(sets, time, batch, in)`."""
    return pytree.tree_map(lambda leaf: leaf.unflatten(-2, x.shape[-3:-1]), layer(x.flatten(-3, -2)))


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
