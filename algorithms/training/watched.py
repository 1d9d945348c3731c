"""Trajectories under watch: whatever goes wrong in an environment is said with its name, and where."""

import copy
from typing import Any

import torch

import stochgraph as sg


class EnvironmentFailure(sg.SamplingError):
    """An environment raised an error, or something in a trajectory is not a finite number."""


def watched(sampler: sg.Sampler, name: str) -> sg.Sampler:
    """A copy of a sampler of trajectories whose failures name the environment.

    Args:
        sampler: the sampler.
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
            return super().draw(batch_shape, *parents)  # type: ignore[safe-super]  # the sampler's own class is next
        except sg.SamplingError as error:
            raise EnvironmentFailure(f"environment {self._watched_as!r}: {error}") from error
        except Exception as error:  # an environment may raise anything
            raise EnvironmentFailure(
                f"environment {self._watched_as!r} raised {type(error).__name__}: {error}"
            ) from error
