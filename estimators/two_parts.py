"""The two parts that most estimators are made of.

A sample node's distribution carries the gradient along every route from the draw to the objective. An estimator says
how those routes are counted: `curvature` within the updates that the draws feed, `influence` on everything that comes
later. A baseline or a control variate changes how much an estimate varies, and not how a route is counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..derive.estimator import Control, Crossing, GradientEstimator, Inside, Where
from ..derive.papers import ICML, Paper
from ..ir import nodes as nd
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axes
from .baselines import Baseline, baseline_control, check_baseline, papers_of

FINN_2017 = Paper(
    "finn2017model",
    "Chelsea Finn and Pieter Abbeel and Sergey Levine",
    "Model-agnostic meta-learning for fast adaptation of deep networks",
    ICML,
    2017,
)


@dataclass(frozen=True)
class Influence(GradientEstimator):
    """The way the draws count behind the updates that they feed.

    Attributes:
        word: its name in `Estimator`.
        expands: the curvature's expansion takes the place of its ratio outside of updates as well.
        baseline: what the costs of a draw are compared with.
    """

    word: ClassVar[str]
    expands: ClassVar[bool] = False

    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        if self.baseline is not None:
            check_baseline(self.baseline)

    @property
    def control(self) -> Control | None:
        return None if self.baseline is None else baseline_control(self.baseline)

    @property
    def papers(self) -> tuple[Paper, ...]:
        return () if self.baseline is None else papers_of(self.baseline)

    def options(self) -> Mapping[str, Any]:
        """The arguments it was made with, other than defaults."""
        return {} if self.baseline is None else {"baseline": self.baseline}


@dataclass(frozen=True)
class Curvature(Inside):
    """The way the direction of an update that the draws feed is differentiated."""

    word: str

    @property
    def papers(self) -> tuple[Paper, ...]:
        """Its own papers."""
        return ()

    def options(self) -> Mapping[str, Any]:
        """The arguments it was made with, other than defaults."""
        return {}


@dataclass(frozen=True)
class Stopped(Curvature):
    """The direction of an update is a constant."""

    word: str = "stop"
    stopped: ClassVar[bool] = True

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (FINN_2017,)


LOG = Curvature("log")


@dataclass(frozen=True, repr=False)
class TwoParts(GradientEstimator):
    """An influence with a curvature."""

    curvature_part: Curvature
    influence_part: Influence
    source: tuple[Paper, ...] = field(default=(), compare=False)  # of the two parts together

    @property
    def curvature(self) -> str:
        """The word for what happens in updates."""
        return self.curvature_part.word

    @property
    def influence(self) -> str:
        """The word for what is boxed behind them."""
        return self.influence_part.word

    @property
    def options(self) -> Mapping[str, Any]:
        """The arguments it was made with besides the two words, other than defaults."""
        return {**self.curvature_part.options(), **self.influence_part.options()}

    @property
    def baseline(self) -> Baseline | None:
        """The baseline that costs are compared with."""
        return self.options.get("baseline")

    @property
    def control_variate(self) -> bool:
        """True if each term of a mean is compared with the mean of the others."""
        return self.options.get("control_variate", False)

    @property
    def decay(self) -> float:
        """The factor per time step of the curvature `"loaded"`."""
        return self.options.get("decay", 1.0)

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (*self.source, *self.curvature_part.papers, *self.influence_part.papers, *super().papers)

    @property
    def control(self) -> Control | None:
        return self.influence_part.control

    @property
    def inside(self) -> Inside:
        return self.curvature_part

    def crosses(self, sample: nd.Sample, node: nd.Node) -> Crossing:
        return self.influence_part.crosses(sample, node)

    def ratio(self, score: Score, kept: Axes, where: Where) -> Weight:
        inside = where is not Where.OUTSIDE or self.influence_part.expands
        expanded = self.curvature_part.ratio(score, kept, where) if inside else None
        return expanded or self.influence_part.ratio(score, kept, where)

    def exact(self) -> GradientEstimator:
        exact = self.influence_part.exact()
        return self if exact is self.influence_part and not self.curvature_part.boxes else exact

    def __repr__(self) -> str:
        words = {"curvature": self.curvature, "influence": self.influence}
        shown = {**words, **dict(sorted(self.options.items()))}
        return f"Estimator({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
