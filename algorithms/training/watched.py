"""Trajectories under watch: whatever goes wrong in an environment is said with its name, and where."""

import copy
from typing import Any

import torch
from torch import Tensor

import stochgraph as sg


class EnvironmentFailure(sg.SamplingError):
    """An environment raised an error, or returned a reward that is not a finite number."""


def watched(sampler: sg.Sampler, name: str) -> sg.Sampler:
    """A copy of a sampler of trajectories whose failures name the environment, the task, the trajectory and the step.

    Args:
        sampler: a sampler with a field `reward` over time; its first plate is that of the tasks.
        name: the name of the environment.
    """
    found = copy.copy(sampler)
    kind = type(sampler)
    found.__class__ = type(kind.__name__, (_Watching, kind), {"_watched_as": name})
    return found


class _Watching(sg.Sampler):
    """Stands before the class of a sampler; all but `draw` is that class's."""

    _watched_as: str

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Any:
        try:
            value = super().draw(batch_shape, *parents)  # type: ignore[safe-super]  # the sampler's own class is next
        except Exception as error:  # an environment may raise anything
            raise EnvironmentFailure(
                f"environment {self._watched_as!r} raised {type(error).__name__}: {error}"
            ) from error
        self._check(value.reward)
        return value

    def _check(self, reward: Tensor) -> None:
        broken = torch.nonzero(~torch.isfinite(reward))
        if len(broken):
            *plates, step = broken[0].tolist()
            place = [f"{word} {i}" for word, i in zip(("task", "trajectory"), plates, strict=False)]
            raise EnvironmentFailure(
                f"environment {self._watched_as!r}: the reward is {float(reward[tuple(broken[0])])} at "
                + ", ".join([*place, f"step {step}"])
            )
