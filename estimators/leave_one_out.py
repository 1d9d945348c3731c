"""Leave-one-out: the score function with each cost compared to what it is without the draw."""

from typing import ClassVar

from ..derive.controls import control_variate
from ..derive.estimator import Control, GradientEstimator, Site
from ..derive.papers import ICML, Paper
from ..derive.replays import left_out_axis, plate_of_one
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.paths import averaging_plate
from ..tensors.axes import Axis
from .two_parts import LOG, Influence, TwoParts

MNIH_2016 = Paper(
    "mnih2016variational",
    "Andriy Mnih and Danilo J. Rezende",
    "Variational inference for {Monte Carlo} objectives",
    ICML,
    2016,
)


class LeaveOneOut(Influence):
    """Boxes all costs, less what each of them is with the draw left out of the plate's means."""

    word: ClassVar[str] = "leave-one-out"

    @property
    def papers(self) -> tuple[Paper, ...]:
        return (MNIH_2016, *super().papers)

    @property
    def control(self) -> Control:
        return COMPARED_WITH_REPLAYS

    def exact(self) -> GradientEstimator:
        return self


class ComparedWithReplays(Control):
    """The control variate of a term that sums the draws' scores over their plate."""

    later_only = True

    def check(self, site: Site) -> None:
        plate = _compared_along(site)
        if plate and site.sample.plate is plate and site.sample.n == 1:
            raise CompileError(plate_of_one(site.name, site.sample.axes, plate))

    def node(self, site: Site) -> nd.Node | None:
        plate = _compared_along(site)
        if plate is None:
            return None
        left_out = (plate, left_out_axis(plate))
        return control_variate(site, site.leave_out(plate), site.kept | {plate}, left_out=left_out)


def _compared_along(site: Site) -> Axis | None:
    """The plate that draws are left out of; `None` where each draw has terms of its own."""
    plate = averaging_plate(site.sample)
    return None if plate in site.kept else plate


COMPARED_WITH_REPLAYS = ComparedWithReplays()


def LOO() -> TwoParts:
    r"""Leave-one-out: unbiased like `SF`, with a variance like that of `LSF` if later samples have a baseline.

    .. math:: \sum_i \big(f(\bar\phi) - f(\bar\phi_{-i})\big) \, \nabla_\theta \log p(x_i; \theta)

    :math:`f(\bar\phi_{-i})` is the objective with draw i left out of the mean over its plate. It does not depend on
    :math:`x_i`, so it is a control variate for the score of :math:`x_i` alone, and the difference is
    :math:`O(1/N)`: the variance is :math:`O(1/N)` where that of `SF` is :math:`\Theta(N)`. Linearised in the mean
    it is `LSF` with a leave-one-out control variate.

    Through updates the graph is replayed with one draw left out at a time: forward evaluations only, mapped over the N
    draws in chunks. What was drawn after an update is reused with the importance ratio of its log-probabilities at the
    replay's parameters. Give those samples a baseline, `SF(baseline="loo")` or `"linear"`: it goes into the replays as
    well, and without it the ratios' noise is multiplied with the mean cost. With several inner steps that ratio runs
    over whole later plates: their own replays are its control variate, so the variance stays :math:`O(1/N)`.

    A draw without a plate is in no mean: there, and on plates that reach the objective through linear operations only,
    it coincides with `SF`, and `explain` says so: a baseline, `SF(baseline="loo")`, compares what it does not.

    Raises:
        CompileError: when compiling, if a plate has one draw, or is reduced by anything but means and sums.
        SamplingError: when `sizes` makes a plate of one.

    References:
        Mnih and Rezende (2016), VIMCO, eqs. 8 and 9, is its relative for multi-sample bounds.

    Example:
        >>> import stochgraph as sg
        >>> sg.LOO()
        Estimator(curvature='log', influence='leave-one-out')
    """
    return TwoParts(LOG, LeaveOneOut())
