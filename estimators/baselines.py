"""Baselines: what a draw's cost is compared with, computed without the draw.

Each control here makes the control variate of one sample for one term; all of them have zero mean because no baseline
looks at the draw that it is for.
"""

from collections.abc import Callable
from math import prod
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..derive.controls import control_variate
from ..derive.estimator import Control, Site
from ..derive.papers import ICML, Paper
from ..errors.exceptions import CompileError, SamplingError
from ..ir import nodes as nd
from ..ir.operations import Linearity
from ..ir.traces import Trace
from ..tensors.axes import Axes, Axis, at_least_two, describe, union
from ..tensors.trees import map_tensors

_HALF = (torch.float16, torch.bfloat16)
RIDGE, _CLIP = 1e-5, 10.0  # as in the feature baseline of Duan et al. (2016)


MAO_2019 = Paper(
    "mao2019baseline",
    "Jingkai Mao and Jakob Foerster and Tim Rocktäschel and Maruan Al-Shedivat and Gregory Farquhar and "
    "Shimon Whiteson",
    "A baseline for any order gradient estimation in stochastic computation graphs",
    ICML,
    2019,
)
DUAN_2016 = Paper(
    "duan2016benchmarking",
    "Yan Duan and Xi Chen and Rein Houthooft and John Schulman and Pieter Abbeel",
    "Benchmarking deep reinforcement learning for continuous control",
    ICML,
    2016,
)

Baseline = Literal["mean", "loo", "linear"] | Callable[[Any], Any]


def check_baseline(baseline: Baseline) -> None:
    """Refuse what is neither the name of a baseline nor a function."""
    if not callable(baseline) and baseline not in ("mean", "loo", "linear"):
        raise ValueError(
            f'baseline={baseline!r} is not known: choose "mean", "loo", "linear" or a function of the trace'
        )


def baseline_control(baseline: Baseline) -> Control:
    """The control variates of a baseline, given by name or as a function of the trace."""
    if callable(baseline):
        return FunctionOfTrace(baseline)
    return Linear() if baseline == "linear" else MeanOfOthers(innermost=baseline == "loo")


def papers_of(baseline: Baseline) -> tuple[Paper, ...]:
    """The papers of a baseline: of all of them that for any order of derivatives, of the fitted one its features'."""
    return (MAO_2019, DUAN_2016) if baseline == "linear" else (MAO_2019,)


class MeanOfOthers(Control):
    """The mean cost of the other draws: of the innermost plate, or of all plates."""

    def __init__(self, innermost: bool) -> None:
        self.innermost = innermost

    def check(self, site: Site) -> None:
        sample, node = site.sample, site.place
        if not shared_plates(site):
            raise CompileError(
                f"sample {site.name!r} (axes: {describe(sample.axes)}): its draws have no costs of their own at "
                f"{node.name!r} (axes: {describe(node.axes)}), so there is no mean of the other draws' costs to "
                "compare with; use a function of the trace as the baseline, or none; or LOO for this node, if its "
                "mean follows"
            )

    def node(self, site: Site) -> nd.Node:
        plates = shared_plates(site)
        return others(site, plates[-1:] if self.innermost else plates)


class FunctionOfTrace(Control):
    """The prediction of a function of the trace."""

    whole = True

    def __init__(self, fn: Callable[[Trace], Any]) -> None:
        self.fn = fn

    def node(self, site: Site) -> nd.Node:
        return control_variate(site, Called(site, self.fn), site.kept, _own_time(site))


class Linear(Control):
    """Returns-to-go, fitted to features of the observations."""

    def check(self, site: Site) -> None:
        sample, node = site.sample, site.node
        if _own_time(site) is None or set(node.axes) != set(sample.axes) or not sample.plates:
            raise CompileError(
                f"sample {site.name!r} (axes: {describe(sample.axes)}): the linear feature baseline is fitted to the "
                f"costs of trajectories, one for each draw and time step, but at {node.name!r} the costs have the axes "
                f"{describe(node.axes)}; use another baseline for this node"
            )

    def node(self, site: Site) -> nd.Node:
        time = _own_time(site)
        assert time is not None
        fitted = Fitted(site.term, site.drawn, site.sample, site.discount(time))
        return control_variate(site, fitted, site.kept, time)


def shared_plates(site: Site) -> Axes:
    """The plates along which a term has draws of its own, and meets no others."""
    return tuple(axis for axis in site.sample.plates if axis in site.independent and not axis.time)


def others(site: Site, plates: Axes) -> nd.Node:
    """The control variate that compares a term with the mean of the others of some plates."""
    return control_variate(site, Others(site.term, site.sample, plates), site.kept)


def _own_time(site: Site) -> Axis | None:
    return site.sample.time if site.sample.time in site.kept else None


class Others(nd.Node):
    """For each draw the mean of a term over all other draws of some plates."""

    kind = "baseline"
    linear = Linearity.NOWHERE

    def __init__(self, term: nd.Node, sample: nd.Sample, plates: Axes) -> None:
        self.sample, self.plates = sample, plates
        super().__init__(f"mean of the others({term.name})", term.index, [term])

    @property
    def mixes(self) -> Axes:
        return self.plates

    @property
    def spelling(self) -> str:
        return f"mean_of_others({{}}.detach(), {tuple(self.axes.index(axis) for axis in self.plates)})"

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Any:
        return map_tensors(lambda leaf: self._others(leaf.detach(), run), values[0])

    def _others(self, value: Tensor, run: nd.Pass) -> Tensor:
        dims = tuple(self.axes.index(axis) for axis in self.plates)
        count = prod(run.sizes[axis] for axis in self.plates)
        if count < 2:
            raise SamplingError(
                f"sample {self.sample.name!r} (axes: {describe(self.sample.axes)}): a baseline that leaves one draw "
                f"out, on a plate of one: {describe(self.plates)}. Give it {at_least_two(self.plates)}, or no baseline"
            )
        value = value if value.is_floating_point() or value.is_complex() else value.to(run.dtype)
        wide = value.float() if value.dtype in _HALF else value  # a mean of half precision may have a sum beyond it
        return ((wide.sum(dims, keepdim=True) - wide) / (count - 1)).to(value.dtype)


class Called(nd.Node):
    """A function of the trace: one number, or one for each draw and time step with a cost of its own."""

    kind = "baseline"
    linear = Linearity.NOWHERE

    def __init__(self, site: Site, fn: Callable[[Trace], Any]) -> None:
        self.fn, self.sample, self.term = fn, site.sample, site.place
        self.wanted = tuple(axis for axis in self.sample.axes if axis in site.kept)
        before = site.earlier()  # what is drawn later may depend on the term, so a baseline cannot see that
        self.names = [drawn.sample.name for drawn in before]
        self.scored = [drawn.sample.name for drawn in before if drawn.score]
        scores = [drawn.score for drawn in before if drawn.score]
        super().__init__(f"baseline({site.name})", site.place.index, [*scores, *(drawn.node for drawn in before)])

    def infer_axes(self) -> Axes:
        return self.wanted

    @property
    def mixes(self) -> Axes:
        return union(*self.input_axes)

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        with torch.no_grad():
            result = self.fn(self._trace(run, values))
        if not isinstance(result, Tensor | Real):
            raise SamplingError(
                f"baseline of sample {self.sample.name!r}: a number or a tensor is expected, its function returned "
                f"{type(result).__name__}"
            )
        found = torch.as_tensor(result, dtype=run.dtype, device=run.device)
        sizes = [run.sizes[axis] for axis in self.axes]
        if found.dim() and list(found.shape) != sizes:
            raise SamplingError(
                f"baseline of sample {self.sample.name!r}: at {self.term.name!r} it must be one number or have the "
                f"axes {describe(self.axes)}, shape {tuple(sizes)}; got shape {tuple(found.shape)}"
            )
        return found.expand(sizes)

    def _trace(self, run: nd.Pass, values: list[Any]) -> Trace:
        scores = {s: run.log_probs.get(s, v.detach()) for s, v in zip(self.scored, values, strict=False)}
        unknown = torch.tensor(float("nan"), dtype=run.dtype, device=run.device)
        noise = {name: run.noise[name] for name in self.names if name in run.noise}
        return Trace(unknown, {name: run.draws[name] for name in self.names}, scores, noise)


class Fitted(nd.Node):
    """Returns-to-go predicted from observations, by least squares on all other trajectories of the plate."""

    kind = "baseline"
    linear = Linearity.NOWHERE

    def __init__(self, term: nd.Node, drawn: nd.Node, sample: nd.Sample, discount: float | Tensor) -> None:
        self.sample, self.discount = sample, discount
        super().__init__(f"linear baseline({term.name})", term.index, [term, drawn])

    @property
    def mixes(self) -> Axes:
        return self.axes[-2:]  # the trajectories of the innermost plate, and their time

    def evaluate(self, run: nd.Pass, values: list[Any]) -> Tensor:
        costs, draws = values
        if not hasattr(draws, "observation"):
            raise SamplingError(
                f"sample {self.sample.name!r}: the linear feature baseline reads the field `observation` of its draws, "
                f"and {type(draws).__name__} has none; use another baseline"
            )
        if costs.shape[-2] < 2:
            raise SamplingError(
                f"sample {self.sample.name!r} (axes: {describe(self.sample.axes)}): the linear feature baseline leaves "
                "one trajectory out, and the plate has only one. Give it at least two draws, or another baseline"
            )
        with torch.no_grad():
            features = observation_features(draws.observation.detach().double(), costs.dim())
            if hasattr(draws, "mask"):  # steps after the end of an episode teach nothing
                features = features * draws.mask.unsqueeze(-1)
            predicted = leave_one_out_fit(features, discounted_to_go(costs.detach().double(), self.discount))
        return predicted.to(costs.dtype)


def _sum_of_others(value: Tensor, dim: int) -> Tensor:
    """For each entry the sum of all others, from both sides: the total less the entry would keep a trace of it."""
    none = torch.zeros_like(value.narrow(dim, 0, 1))
    size = value.shape[dim] - 1
    before = torch.cat([none, value.narrow(dim, 0, size)], dim).cumsum(dim)
    after = torch.cat([value.narrow(dim, 1, size), none], dim).flip(dim).cumsum(dim).flip(dim)
    return before + after


def observation_features(observation: Tensor, lead: int) -> Tensor:
    """The features of Duan et al. (2016): o clipped, o squared, powers of time in hundreds of steps, and last 1.

    Args:
        observation: shape `(*plates, time, ...)` with `lead` dimensions in front.
        lead: the number of plates, plus one.
    """
    flat = observation.reshape(*observation.shape[:lead], -1).clamp(-_CLIP, _CLIP)
    time = torch.arange(flat.shape[-2], dtype=flat.dtype, device=flat.device) / 100
    powers = torch.stack([time, time**2, time**3, torch.ones_like(time)], -1)
    return torch.cat([flat, flat**2, powers.expand(*flat.shape[:-1], 4)], -1)


def discounted_to_go(costs: Tensor, discount: float | Tensor) -> Tensor:
    """`sum over u >= t of discount**(u - t) * costs_u`, along the last dimension."""
    steps = torch.arange(costs.shape[-1], dtype=costs.dtype, device=costs.device)
    ahead = steps - steps[:, None]
    return costs @ torch.where(ahead >= 0, discount ** ahead.clamp(min=0), 0.0).T


def leave_one_out_fit(features: Tensor, targets: Tensor) -> Tensor:
    """Ridge regression: each trajectory predicted with the coefficients fitted to all others.

    Args:
        features: shape `(..., trajectories, time, features)`.
        targets: shape `(..., trajectories, time)`.
    """
    moments, products = normal_equations(features, targets)
    return ridge_prediction(features, _sum_of_others(moments, -3), _sum_of_others(products, -2))


def normal_equations(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`X^T X` and `X^T y` of each trajectory: shapes `(..., features, features)` and `(..., features)`."""
    return features.mT @ features, (features.mT @ targets.unsqueeze(-1)).squeeze(-1)


def ridge_prediction(features: Tensor, moments: Tensor, products: Tensor, ridge: float = RIDGE) -> Tensor:
    """The features times the coefficients that solve summed normal equations, `(..., time)`.

    The last feature is the intercept, which is not penalised: what is added to all targets is added to the predictions.
    Without a step to fit it is zero.
    """
    penalty = torch.full_like(moments[..., 0], ridge)
    penalty[..., -1] = (moments[..., -1, -1] == 0).to(penalty)
    coefficients = torch.linalg.solve(moments + torch.diag_embed(penalty), products)
    return (features @ coefficients.unsqueeze(-1)).squeeze(-1)
