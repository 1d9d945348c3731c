"""The memory that the iterations and the evaluations of a run need at least; see `memory`."""

import torch

from .memory import COPIES, Need, bytes_of_parameters
from .problem import Problem
from .ranks import Ranks

_ADAPTED = 2  # adapted parameters, and the gradient that makes them


def need_of(problem: Problem, ranks: Ranks) -> Need:
    """The memory that the iterations and the evaluations of a run need on this rank."""
    run, rollouts, dtype = problem.configuration, problem.rollouts, getattr(torch, problem.configuration.precision)
    per_task = run.steps * run.inner + run.outer
    shards = problem.shards()
    held = sum(size for _, size in ranks.own(list(enumerate(shards))))
    steps = run.steps if run.evaluation_steps is None else run.evaluation_steps
    trajectories = max(held * per_task, problem.held_out_at_once() * (steps * run.inner + run.outer))
    together = min(problem.chunk or run.tasks, max(shards))
    hidden = sum(getattr(rollouts.policy, "sizes", ())[1:-1])
    copies = COPIES + (_ADAPTED * max(shards) if run.steps else 0)
    return Need(
        parameters=copies * bytes_of_parameters(rollouts.policy, dtype),
        draws=trajectories * rollouts.horizon * _bytes_of_a_step(problem),
        derivatives=together * per_task * rollouts.horizon * hidden * dtype.itemsize,
    )


def _bytes_of_a_step(problem: Problem) -> int:
    """Observation, action, reward, mask, and the log-probability as it was drawn and as it is scored; what follows."""
    environment, size = problem.rollouts.environment, getattr(torch, problem.configuration.precision).itemsize
    action = torch.int64.itemsize if environment.discrete else environment.action_size * size
    after = environment.observation_size + 1 if problem.configuration.bootstrap else 0
    return (environment.observation_size + 4 + after) * size + action
