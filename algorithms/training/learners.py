"""Learners: they move the parameters of a run, given the draws of a meta-batch."""

import copy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.errors.checks import at_least, between, integer, more_than, require, require_known

from ..optimizers.trust_region import trust_region_step
from ..policies.families import Parameters
from .batches import Batch
from .checkpoints import fits


class Learner(Protocol):
    """The interface of learners, which move the parameters: `Ascent`, `TrustRegion`, or anything with these methods."""

    def step(self, theta: Parameters, batch: Batch) -> dict[str, float]:
        """Change the parameters in place; figures to show, such as "gradient_norm", or "kl"."""

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers, of tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember that, or raise a `ValueError` if it is not what `state_dict` returns."""


class Ascent:
    """Steps of an optimiser of `torch.optim` along the meta-gradient, clipped.

    Several epochs are steps on the draws of one meta-batch: the surrogate, or the objective that the algorithm climbs
    in its place, is replayed at the parameters as they move.

    Args:
        optimizer: made for the parameters, with `maximize=True`.
        clip: the largest norm; `None` for any.
        epochs: the number of steps.
        objective: what is climbed in place of the surrogate, compiled: a function of the parameters and of those that
            drew the meta-batch.
        divergence: the graph of `adapted_divergence`, compiled: measured at the end of several epochs.

    References:
        Rothfuss et al. (2019), ProMP, algorithm 1, for the epochs.

    Example:
        >>> from stochgraph.algorithms.training import Configuration, Problem
        >>> small = Configuration(horizon=3, tasks=4, inner=4, outer=4, hidden=(4,), algorithm="promp")
        >>> problem = Problem(small)
        >>> theta = problem.initial()
        >>> figures = problem.learner(theta).step(theta, problem.draw(theta, iteration=0))
        >>> sorted(figures)
        ['gradient_norm', 'kl']
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip: float | None = None,
        epochs: int = 1,
        objective: sg.Compiled | None = None,
        divergence: sg.Compiled | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.clip = clip
        self.epochs = epochs
        self.objective = objective
        self.divergence = divergence

    def step(self, theta: Parameters, batch: Batch) -> dict[str, float]:
        anchor = {name: leaf.clone() for name, leaf in theta.items()}
        norms = [self.ascend(theta, self._gradient(theta, anchor, batch)) for _ in range(self.epochs)]
        figures = {"gradient_norm": norms[0]}
        if self.epochs > 1 and self.divergence is not None:
            figures["kl"] = float(batch.value(self.divergence, theta, anchor))
        return figures

    def _gradient(self, theta: Parameters, anchor: Parameters, batch: Batch) -> Parameters:
        if self.objective is None:
            return batch.value_and_grad(theta)[1]
        return batch.replayed(self.objective, theta, anchor)[1]

    def ascend(self, theta: Parameters, gradient: Parameters) -> float:
        """One step along this gradient, in place; its norm before clipping."""
        norm = torch.nn.utils.get_total_norm(gradient.values())
        if not torch.isfinite(norm):
            broken = [name for name, leaf in gradient.items() if not torch.isfinite(leaf).all()]
            raise sg.SamplingError(f"the meta-gradient of {', '.join(broken) or 'all parameters'} is not finite")
        for name, leaf in theta.items():
            leaf.grad = gradient[name]
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(theta.values(), self.clip, norm)
        self.optimizer.step()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember that. Options such as the step size are not in question: they stay as they are."""
        fresh, found = self.optimizer.state_dict(), state.get("state")
        before_any_step: dict[Any, Any] = {}
        if not any(_same_form(found, expected) for expected in (before_any_step, fresh["state"], self._memory())):
            raise ValueError(f"what the optimiser {type(self.optimizer).__name__} remembers has another form")
        self.optimizer.load_state_dict({**fresh, "state": found})

    def _memory(self) -> Any:
        """The optimiser's memory after a step, of a copy that takes one."""
        other = copy.deepcopy(self.optimizer)
        for leaf in (leaf for group in other.param_groups for leaf in group["params"]):
            leaf.grad = torch.zeros_like(leaf)
        other.step()
        return other.state_dict()["state"]


class Measures(NamedTuple):
    """The measures of a trust region, compiled.

    Attributes:
        adapted: the graph of `adapted_divergence`.
        meta: the graph of `meta_divergence`.
        ratios: the graph of `adapted_gain`.
    """

    adapted: sg.Compiled
    meta: sg.Compiled
    ratios: sg.Compiled


class TrustRegion:
    """One step as far along the natural gradient as policies may move; see `trust_region_step`.

    It goes along the estimate of the meta-gradient. Nothing is remembered from one step to the next.

    Args:
        measures: what the region and the gain are measured with.
        radius: how far the policies may move, on average over tasks and time steps.
        damping: added to the curvature.
        iterations: of the conjugate gradients, at most.
        backtracking: the factor from one candidate to the next.
        tries: candidates at most.
        line_search: what a candidate must raise: "ratios", `adapted_gain`, or "product", the surrogate of the
            meta-objective replayed on the draws, whose rewards are weighted with products of ratios.
        policies: whose divergence the radius is for: "adapted", or "meta", those before adaptation.
        keep: see `trust_region_step`.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> from stochgraph.algorithms.training import Configuration, Problem
        >>> small = Configuration(horizon=3, tasks=4, inner=4, outer=4, hidden=(4,), optimizer="TRPO")
        >>> problem = Problem(small.replace(optimizer_options={"radius": 0.02}))
        >>> theta = problem.initial()
        >>> figures = problem.learner(theta).step(theta, problem.draw(theta, iteration=0))
        >>> 0 <= figures["kl"] <= 0.02
        True
    """

    def __init__(
        self,
        measures: Measures,
        *,
        radius: float = 0.01,
        damping: float = 1e-5,
        iterations: int = 10,
        backtracking: float = 0.8,
        tries: int = 15,
        line_search: str = "ratios",
        policies: str = "adapted",
        keep: bool = False,
    ) -> None:
        require(more_than(0), radius=radius)
        require(at_least(0), damping=damping)
        require(integer(1), iterations=iterations, tries=tries)
        require(between(0, 1), backtracking=backtracking)
        require_known(("ratios", "product"), line_search=line_search)
        require_known(("adapted", "meta"), policies=policies)
        self.divergence = measures.adapted if policies == "adapted" else measures.meta
        self.compared = measures.ratios if line_search == "ratios" else None
        self.options: dict[str, Any] = {"radius": radius, "damping": damping, "iterations": iterations}
        self.options |= {"backtracking": backtracking, "tries": tries, "keep": keep}

    def step(self, theta: Parameters, batch: Batch) -> dict[str, float]:
        anchor = {name: leaf.clone() for name, leaf in theta.items()}
        gain, divergence = batch.parts(batch.compiled), batch.parts(self.divergence, anchor)
        compared = None if self.compared is None else batch.parts(self.compared)
        step = trust_region_step(anchor, gain, divergence, compared=compared, reduce=batch.sum, **self.options)
        if not step.gradient_norm < float("inf"):
            raise sg.SamplingError("the meta-gradient is not finite")
        for name, leaf in theta.items():
            leaf.copy_(step.parameters[name])
        return {
            "gradient_norm": step.gradient_norm,
            "kl": step.divergence,
            "gain": step.gain,
            "tries": float(step.tries),
        }

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _same_form(found: Any, expected: Any) -> bool:
    """True if two trees have tensors of the same shapes in the same places; numbers may stand for scalars."""
    if isinstance(expected, dict):
        same = isinstance(found, dict) and found.keys() == expected.keys()
        return same and all(_same_form(found[key], expected[key]) for key in expected)
    if isinstance(expected, Tensor):
        number = expected.dim() == 0 and type(found) in (int, float)
        return number or fits(found, expected)
    return type(found) is type(expected)
