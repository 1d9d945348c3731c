"""Trajectories under watch: whatever goes wrong in an environment is said with its name, and where."""

from typing import Any

import torch
from torch import Tensor

import stochgraph as sg


class EnvironmentFailure(sg.SamplingError):
    """An environment raised an error, or returned a reward that is not a finite number."""


def watched(sampler: sg.Sampler, name: str) -> sg.Sampler:
    """A sampler of trajectories whose failures name the environment, the task, the trajectory and the step.

    Args:
        sampler: a sampler with a field `reward` over time; its first plate is that of the tasks.
        name: the name of the environment.
    """
    kind = type(type(sampler).__name__, (_Watched,), {})  # graphs and errors show the class of a sampler
    found: sg.Sampler = kind(sampler, name)
    return found


class _Watched(sg.Sampler):
    def __init__(self, sampler: sg.Sampler, name: str) -> None:
        self.sampler = sampler
        self.name = name
        self.time = sampler.time

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Any:
        try:
            value = self.sampler.draw(batch_shape, *parents)
        except Exception as error:  # an environment may raise anything
            raise EnvironmentFailure(f"environment {self.name!r} raised {type(error).__name__}: {error}") from error
        self._check(value.reward)
        return value

    def log_prob(self, value: Any, *parents: Any) -> Tensor:
        return self.sampler.log_prob(value, *parents)

    def _check(self, reward: Tensor) -> None:
        broken = torch.nonzero(~torch.isfinite(reward))
        if len(broken):
            *plates, step = broken[0].tolist()
            place = [f"{word} {i}" for word, i in zip(("task", "trajectory"), plates, strict=False)]
            raise EnvironmentFailure(
                f"environment {self.name!r}: the reward is {float(reward[tuple(broken[0])])} at "
                + ", ".join([*place, f"step {step}"])
            )
