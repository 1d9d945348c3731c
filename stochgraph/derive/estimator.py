"""The interface of gradient estimators: what the compiler asks of one, and the site that it offers in return.

A sample's distribution carries the gradient along every route from the draw to the objective. By default a route is
counted by a *box*, the draw's likelihood ratio, of value 1, in front of the term that the draw reaches. An estimator
says where its box waits (`crosses`), what the ratio is (`ratio`), what takes the place of the boxed term (`term`), what
of zero mean is added to it (`control`), what happens in updates that the draws feed (`inside`), and what stands for it
where a part of the graph is evaluated again (`exact`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from typing import ClassVar, NamedTuple, TypeVar

from torch import Tensor

from ..distributions.laws import moving_support_message
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..surrogate.terms import Score, Weight
from ..tensors.axes import Axis
from .papers import ICML, NEURIPS, Paper
from .routes import Routes

SCHULMAN_2015 = Paper(
    "schulman2015gradient",
    "John Schulman and Nicolas Heess and Theophane Weber and Pieter Abbeel",
    "Gradient estimation using stochastic computation graphs",
    NEURIPS,
    2015,
)
FOERSTER_2018 = Paper(
    "foerster2018dice",
    "Jakob Foerster and Gregory Farquhar and Maruan Al-Shedivat and Tim Rocktäschel and Eric Xing and Shimon Whiteson",
    "{DiCE}: The infinitely differentiable {Monte Carlo} estimator",
    ICML,
    2018,
)

Made = TypeVar("Made")


class Crossing(Enum):
    """The fate of a box at a node that its sample reaches."""

    ON = "it waits beyond the node"
    BELOW = "it stands at the node's inputs"
    DROPPED = "there is none"


class Where(Enum):
    """The places where a ratio is used."""

    OUTSIDE = "in the objective"
    DATA = "in an update's objective, of a sample that was drawn before it"
    OWN = "in an update's objective, of a sample whose scores make the update's direction"


class Drawn(NamedTuple):
    """A sample, the node that draws it, and its log-probability; `None` where no input moves its distribution."""

    sample: nd.Sample
    node: nd.Node
    score: Score | None


class Site(ABC):
    """A term that a sample reaches, where its box, or what takes its place, stands.

    Attributes:
        sample: the sample.
        place: the declared node.
        node: the part of it that the sample's box covers: of `x + 300` the `x`.
        term: the derived form of `node`, the boxes of other samples in it.
        kept: the axes along which the node depends on the sample draw by draw.
        independent: those of them along which it meets no other draw, on whatever route.
    """

    sample: nd.Sample
    place: nd.Node
    node: nd.Node
    term: nd.Node
    kept: frozenset[Axis]
    independent: frozenset[Axis]

    @property
    def name(self) -> str:
        """The sample's name."""
        return self.sample.name

    @property
    @abstractmethod
    def drawn(self) -> nd.Node:
        """The node that draws the sample."""

    @property
    @abstractmethod
    def noise(self) -> nd.Node:
        """The sample that the estimator of this one draws beside it."""

    @abstractmethod
    def parents(self) -> Sequence[nd.Node]:
        """The parents of the sample's distribution, derived."""

    @abstractmethod
    def ratio(self, kept: Iterable[Axis] | None = None) -> Weight:
        """The log-ratio of the draws, kept along some of their axes (default: `kept`), reduced over the others."""

    @abstractmethod
    def ratio_at_parameters(self) -> Weight:
        """In an update's objective: the same, not as a function of the update's parameters but at their values."""

    @abstractmethod
    def ancestors(self) -> tuple[tuple[Weight, ...], nd.Node | None]:
        """The log-ratios of the sample's strict ancestors as they box the node, and their sum."""

    @abstractmethod
    def earlier(self) -> Sequence[Drawn]:
        """All that is drawn before the place."""

    @abstractmethod
    def discount(self, time: Axis) -> float | Tensor:
        """The discount of the sum over a time axis that the place goes into."""

    @abstractmethod
    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """One node for one key in the whole surrogate: what is equal is computed once."""

    @abstractmethod
    def leave_out(self, plate: Axis) -> nd.Node:
        """The node with each draw of a plate left out of the plate's means in turn: constants."""

    @abstractmethod
    def put(self, values: nd.Node, differentiable: bool = True, together: bool = False) -> nd.Node:
        r"""The node with other values put in the place of the sample's draws, all that follows from them recomputed.

        What is drawn later is reused with its likelihood ratio.

        Args:
            values: a node of draws with one more axis in front, `alternatives(sample)`.
            differentiable: whether derivatives go through it; else it is a constant.
            together: whether all draws are replaced at once, along every plate.

        Returns:
            A node with, in front of the axes of the term, that axis and an axis `replaced(plate)` for each plate of the
            sample along which one draw is replaced at a time. Along the independent axes all are at once, and along all
            of them where they are replaced together.

        Raises:
            CompileError: the draw feeds another one directly that cannot be reused.
        """


class Control(ABC):
    """A control variate: a node of zero mean that is added where a sample's box stands.

    Attributes:
        whole: it predicts the cost as declared, and not the part of it that the sample's box covers.
        later_only: replays of another sample have it only if its own sample is drawn later, on another plate.
    """

    whole: ClassVar[bool] = False
    later_only: ClassVar[bool] = False

    def check(self, site: Site) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse a site that there is no control variate for; all those of a term are asked before any is made.

        Raises:
            CompileError: with the sample, and what to use in its place.
        """

    @abstractmethod
    def node(self, site: Site) -> nd.Node | None:
        """The node of zero mean; `None` where there is nothing to compare with."""


class Inside:
    """The part of an estimator in the objective of an update that its draws feed. By default: scores at fixed samples.

    Attributes:
        stopped: the direction of the update is a constant.
        boxes: the terms of the objective are boxed, besides the scores that make the direction.
        control: a control variate in the derivative of the direction, never in the direction.
    """

    stopped: ClassVar[bool] = False
    boxes: ClassVar[bool] = False

    @property
    def control(self) -> Control | None:
        """A control variate of the scores that make the direction; `None`: there is none."""
        return None

    def ratio(self, score: Score, kept: tuple[Axis, ...], where: Where) -> Weight | None:
        """The log-ratio of the boxes, kept along some axes; `None`: the estimator's own."""
        return None

    def factor(self, site: Site) -> nd.Node:
        """The boxed term of a site, with a factor of value 1 where there is one."""
        return site.term


_SCORES = Inside()


class GradientEstimator(ABC):  # noqa: B024 - every answer has a default, the score function's
    r"""The way a sample node's distribution is differentiated. What is not overridden is the score function's.

    .. math:: \nabla_\theta E[f] = E\big[\nabla f + f \, \textstyle\sum_i \nabla_\theta \log p(x_i; \theta)\big]

    Attributes:
        scored: whether the draw is a constant whose distribution is differentiated; if not, the draw itself is.
        population: whether it is for plates that are expected, `sg.expect`, and not for means of N draws.
        control: the control variate of its boxes, if it has one. The compiler asks for it long before it is made.
        inside: what happens in updates that the draws feed.

    References:
        Schulman et al. (2015), Gradient estimation using stochastic computation graphs, for the default; Foerster et
        al. (2018), DiCE, for the box.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> class DroppedAtUpdates(sg.estimators.GradientEstimator):
        ...     def crosses(self, sample, node):
        ...         dropped = node.kind == "update"
        ...         return sg.estimators.Crossing.DROPPED if dropped else sg.estimators.Crossing.ON
        >>> @sg.graph
        ... def objective(logit):
        ...     x = sg.sample("x", Bernoulli, logits=logit, n=2)
        ...     return sg.ascend(logit, sg.mean(x), 0.1) ** 2
        >>> {row.counted for row in objective.compile(DroppedAtUpdates()).explain().ledger if row.sample == "x"}
        {'dropped'}
    """

    scored: ClassVar[bool] = True
    population: ClassVar[bool] = False

    @property
    def papers(self) -> tuple[Paper, ...]:
        """The papers to cite: by default those of boxes in stochastic computation graphs."""
        return (SCHULMAN_2015, FOERSTER_2018)

    @property
    def control(self) -> Control | None:
        """The control variate of its boxes; `None`: there is none."""
        return None

    @property
    def inside(self) -> Inside:
        """The part of the estimator in updates that the draws feed."""
        return _SCORES

    def check(self, sample: nd.Sample, routes: Routes) -> None:
        """Refuse a sample that the estimator is not right for.

        Raises:
            CompileError: with the sample, and what to use in its place.
        """
        if sample.law.has_moving_support:
            raise CompileError(moving_support_message(sample))

    def draw(self, sample: nd.Sample) -> nd.Sample:
        """The sample that is drawn in this one's place."""
        return sample

    def noise(self, sample: nd.Sample) -> nd.Sample | None:
        """A sample that is drawn beside the estimator's own, and recorded with it; `None`: there is none."""
        return None

    def crosses(self, sample: nd.Sample, node: nd.Node) -> Crossing:
        """The fate of the box at a declared node that the sample reaches.

        Raises:
            CompileError: where the estimator has no answer.
        """
        return Crossing.ON

    def ratio(self, score: Score, kept: tuple[Axis, ...], where: Where) -> Weight:
        """The log-ratio in the box: kept along some of the sample's axes, reduced over the others."""
        return Weight(score, kept, average=False)

    def orders(self, sample: nd.Sample) -> int | None:
        """The highest order of derivatives that `term` is right for; `None`: all of them. Beyond it, it is refused."""
        return None

    def term(self, site: Site) -> nd.Node | None:
        """The node in the place of the boxed term in the objective; `None`: a box, merged with the others there."""
        return None

    def exact(self) -> "GradientEstimator":
        """The estimator that stands for it in replays, where every draw must be weighted with its likelihood ratio."""
        return Exact()


class Exact(GradientEstimator):
    """A box with the draws' likelihood ratio behind everything that they reach."""

    def exact(self) -> GradientEstimator:
        return self


SCORED = Exact()


def plain(estimators: Mapping[str, GradientEstimator]) -> dict[str, GradientEstimator]:
    """The estimators where nothing is boxed: every node has the value that the declaration gives it."""
    return {name: SCORED if estimator.scored else estimator for name, estimator in estimators.items()}


def replaces_terms(estimator: GradientEstimator) -> bool:
    """True if an estimator has something to put in the place of boxed terms."""
    return type(estimator).term is not GradientEstimator.term
