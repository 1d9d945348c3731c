"""A configuration as a compiled graph, and its meta-batches: draws in shards, each with randomness of its own."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.tensors.pieces import draws_at_once

from ..inner_steps.advantages import LinearBaseline
from ..objectives.replays import adapted_divergence, adapted_gain, meta_divergence
from ..objectives.template import Template
from ..policies.families import Parameters
from .batches import Batch
from .configuration import Configuration, ConfigurationError
from .devices import device_named
from .learners import Ascent, Learner, Measures
from .randomness import generator_for
from .ranks import ALONE, Ranks
from .settings import check_draws, estimator_of, optimizer_of, problem_of, rollouts_of, template_of, trust_region_of
from .watched import EnvironmentFailure, watched

_HELD_OUT = 20  # tasks in a shard of held-out tasks


class Problem:
    """A configuration made real: a graph, its estimators, parameters to start from. Made before anything runs.

    Raises:
        ConfigurationError: the configuration names what there is not, or what does not fit together.

    Example:
        >>> from stochgraph.algorithms.training import Configuration, Problem
        >>> problem = Problem(Configuration(horizon=3, tasks=4, inner=2, outer=2, hidden=(4,), shards=2))
        >>> theta = problem.initial()
        >>> value, gradient = problem.draw(theta, iteration=0).value_and_grad(theta)
        >>> gradient.keys() == theta.keys()
        True
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.device = device_named(configuration.device)
        self.rollouts = rollouts_of(configuration)
        trajectories = watched(self.rollouts, configuration.environment)
        self.asked = problem_of(configuration, trajectories, self.rollouts)
        self.template = template_of(configuration, self.asked)
        self.compiled = self._compiled(self.template)
        self._check()

    def compile(self, estimator: str) -> sg.Compiled:
        """The graph with another estimator of its inner samples, by name."""
        return self._compiled(self.template.with_estimator(estimator_of(estimator)))

    def _compiled(self, template: Template) -> sg.Compiled:
        try:
            return template.compile(self.configuration.lowering)
        except sg.StochgraphError as error:
            raise ConfigurationError(f"algorithm={self.configuration.algorithm!r}: {error}") from error

    def initial(self) -> Parameters:
        """The parameters to start from."""
        generator = generator_for(self.configuration.seed, "parameters")
        dtype = getattr(torch, self.configuration.precision)
        return self.rollouts.policy.initial(generator, dtype=dtype, device=str(self.device))

    def learner(self, theta: Parameters) -> Learner:
        """The learner that moves these parameters."""
        run = self.configuration
        if run.optimizer == "TRPO":
            return trust_region_of(run, self.template, self.measures)
        epochs = run.epochs or self.template.epochs
        divergence = self.divergence if epochs > 1 else None
        return Ascent(optimizer_of(run, list(theta.values())), run.gradient_clip, epochs, self.objective, divergence)

    @cached_property
    def objective(self) -> sg.Compiled | None:
        """The objective that is climbed in place of the surrogate, where the algorithm has one of its own."""
        replayed = self.template.replayed
        return None if replayed is None else replayed.compile({}, lowering=self.configuration.lowering)

    @cached_property
    def divergence(self) -> sg.Compiled:
        """The divergence of the adapted policies from those of an anchor, on recorded trajectories."""
        asked = self.asked
        return adapted_divergence(
            asked.tasks,
            self.rollouts.policy,
            self.template.adapt,
            steps=asked.steps,
            inner_reference=asked.inner_reference,
        ).compile({})

    @cached_property
    def measures(self) -> Measures:
        """The measures of a trust region, on recorded trajectories."""
        asked = self.asked
        gain = adapted_gain(
            asked.tasks,
            self.rollouts.policy,
            self.template.adapt,
            steps=asked.steps,
            baseline=LinearBaseline() if asked.baseline == "linear" else None,
            discount=asked.discount,
            reference=asked.reference,
            inner_reference=asked.inner_reference,
        )
        meta = meta_divergence(asked.tasks, self.rollouts.policy, steps=asked.steps)
        return Measures(self.divergence, meta.compile({}), gain.compile({}))

    def draw(self, theta: Parameters, iteration: int, ranks: Ranks = ALONE) -> Batch:
        """The meta-batch of an iteration; each rank draws its own shards of it."""
        run = self.configuration
        shards = [
            (size / run.tasks, self._draw(self.compiled, theta, size, f"shard {i}", (run.seed, "draws", iteration, i)))
            for i, size in ranks.own(list(enumerate(self.shards())))
        ]
        return Batch(self.compiled, shards, ranks, self.chunk, run.shards)

    @cached_property
    def chunk(self) -> int | None:
        """Tasks differentiated at a time; none: all, because something compares tasks."""
        run = self.configuration
        try:
            for compiled in (self.compiled, self.divergence, self.objective):
                if compiled is not None:
                    sg.chunks(compiled, sg.Trace(torch.tensor(0.0), {}, {}, {}), over="task", chunk=1)
        except sg.CompileError as error:
            if run.chunk is not None:
                raise ConfigurationError(f"chunk={run.chunk}: {error}") from error
            return None
        steps = max(run.inner, run.outer) * self.rollouts.horizon
        return run.chunk or max(1, draws_at_once(self.device) // steps)

    def evaluate(self, theta: Parameters, ranks: Ranks = ALONE, tasks: int | None = None) -> Tensor:
        """Returns on held-out tasks after 0, 1, ... adaptation steps, `(tasks, 1 + steps)`; the same tasks for all."""
        tasks = tasks or self.configuration.evaluation_tasks
        sizes = [min(_HELD_OUT, tasks - start) for start in range(0, tasks, _HELD_OUT)]
        found = [
            self.returns(self._draw(self._evaluated, theta, size, f"held-out shard {i}", ("held-out", i)))
            for i, size in ranks.own(list(enumerate(sizes)))
        ]
        return torch.cat(ranks.gathered(found))

    def returns(self, trace: sg.Trace) -> Tensor:
        """The returns of a meta-batch before, between and after the inner steps, as they are shown."""
        return task_returns(trace, self.configuration.evaluation_discount)

    def shards(self) -> list[int]:
        """The numbers of tasks that the shards of a meta-batch have."""
        return split(self.configuration.tasks, self.configuration.shards)

    def held_out_at_once(self) -> int:
        """The number of held-out tasks that are drawn at once."""
        return min(_HELD_OUT, self.configuration.evaluation_tasks)

    @cached_property
    def _evaluated(self) -> sg.Compiled:
        """A graph with as many steps as are evaluated: its inner data are the trajectories of all steps before."""
        steps = self.configuration.evaluation_steps
        asked = self.asked if steps is None else self.asked.replace(steps=steps)
        return template_of(self.configuration, asked).graph.compile(sg.SF())

    def _check(self) -> None:
        """Refuse now what would be refused at the first meta-batch, or at the first evaluation."""
        run = self.configuration
        check_draws(run, self.template, min(self.shards()))
        self.learner(self.initial())
        try:
            self._evaluated  # noqa: B018
        except ConfigurationError as error:
            raise ConfigurationError(f"evaluation_steps={self.configuration.evaluation_steps}: {error}") from error
        self.chunk  # noqa: B018

    def _draw(
        self, compiled: sg.Compiled, theta: Parameters, tasks: int, part: str, purpose: Sequence[Any]
    ) -> sg.Trace:
        try:
            return compiled.sample(theta, generator=generator_for(*purpose), sizes={"task": tasks})
        except EnvironmentFailure as error:
            raise EnvironmentFailure(f"{error} ({part}, of {tasks} tasks)") from error


def task_returns(trace: sg.Trace, discount: float = 1.0) -> Tensor:
    """The mean return of each task before, between and after the inner steps: `(tasks, 1 + steps)`."""
    names = sorted((name for name in trace.draws if name.startswith("D")), key=lambda name: int(name[1:]))
    rewards = [trace.draws[name].reward for name in (*names, "tau")]
    weight = discount ** torch.arange(rewards[-1].shape[-1], dtype=rewards[-1].dtype, device=rewards[-1].device)
    return torch.stack([(reward * weight).sum(-1).mean(-1) for reward in rewards], dim=1)


def standard_errors(returns: Tensor) -> Tensor:
    """The standard errors of the means over tasks, `(1 + steps,)`; zero for a single task."""
    return returns.std(0, correction=min(1, len(returns) - 1)) / len(returns) ** 0.5


def split(count: int, parts: int) -> list[int]:
    """Sizes of `parts` parts that differ by one at most.

    Example:
        >>> from stochgraph.algorithms.training.problem import split
        >>> split(10, 4)
        [2, 3, 2, 3]
    """
    return [end - start for start, end in pairwise(i * count // parts for i in range(parts + 1))]
