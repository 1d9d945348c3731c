r"""The constants in the theorems of meta-reinforcement learning: smoothness, variance, step sizes and penalties.

Three theories, each a class of its assumptions: `SGMRLConstants`, `LSFConstants` and `BOMRLConstants`. A figure that a
paper states is a method or a property, and has two values, a `Constant`: as printed, and corrected. Where nothing is
wrong in print they are equal. What is wrong, and how one sees it, is on the page `docs/errata.md`.

The constants are those of proofs, for the worst process and the worst policy that the assumptions allow. Steps taken by
them are safe, and many orders of magnitude smaller than those that learn.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from stochgraph.errors.checks import at_least, integer, more_than, require, require_known

_FRACTION = (lambda value: 0 <= value < 1, "at least 0 and below 1")


class Constant(NamedTuple):
    """A figure of a paper.

    Attributes:
        printed: what its formula gives as it stands.
        corrected: what it should give.
    """

    printed: float
    corrected: float


class Softmax(NamedTuple):
    """The smoothness of the logarithm of a softmax in its logits, whatever they are.

    Attributes:
        score: the largest norm of its gradient.
        curvature: the largest norm of its Hessian.
        third: the Lipschitz constant of its Hessian, for two actions.
    """

    score: float = math.sqrt(2)
    curvature: float = 0.5
    third: float = math.sqrt(2) / (3 * math.sqrt(3))


SOFTMAX_TABLE = Softmax()


@dataclass(frozen=True, kw_only=True)
class SGMRLConstants:
    r"""The convergence of SG-MRL: constants of the objective :math:`V_\zeta` and of its gradient's estimate.

    Args:
        reward: :math:`R`; rewards lie in `[0, R]`.
        score: :math:`G`, bounds the norm of :math:`\nabla \log \pi`. No Gaussian policy has one.
        curvature: :math:`L`, bounds that of :math:`\nabla^2 \log \pi`.
        third: :math:`\rho`, the Lipschitz constant of :math:`\nabla^2 \log \pi`.
        discount: :math:`\gamma`, below 1.
        last_time: :math:`H`; an episode has the times 0, ..., H.
        inner: :math:`D_{in}`, trajectories of an inner step.
        steps: :math:`\zeta`, inner steps.
        inner_rate: :math:`\alpha`; default: the largest one allowed.

    Raises:
        ValueError: a number out of its range; an inner rate above the largest one.

    References:
        Fallah et al. (2020), lemma 4.6, proposition 4.7, theorems 4.8, E.1 and F.1; (2021), lemma 1 to corollary 1.

    Example:
        >>> from stochgraph.algorithms.exact.convergence_constants import SGMRLConstants
        >>> theory = SGMRLConstants(
        ...     reward=1.0, score=2**0.5, curvature=0.5, third=0.2722, discount=0.9, last_time=1, inner=2
        ... )
        >>> round(theory.hessian_bound), [round(value) for value in theory.smoothness]
        (450, [2169, 8677])
    """

    reward: float
    score: float
    curvature: float
    third: float
    discount: float
    last_time: int
    inner: int
    steps: int = 1
    inner_rate: float | None = None

    def __post_init__(self) -> None:
        require(more_than(0), reward=self.reward, score=self.score)
        require(at_least(0), curvature=self.curvature, third=self.third)
        require(_FRACTION, discount=self.discount)
        require(integer(0), last_time=self.last_time)
        require(integer(1), inner=self.inner, steps=self.steps)
        largest = self.largest_inner_rate
        if self.inner_rate is not None and not 0 < self.inner_rate <= largest:
            raise ValueError(f"inner_rate={self.inner_rate}: must be above 0 and at most 1 / eta_H = {largest:.6g}")

    @property
    def return_bound(self) -> Constant:
        """The largest return: printed is the largest reward."""
        steps = self.last_time + 1
        return Constant(self.reward, self.reward * (1 - self.discount**steps) / (1 - self.discount))

    @property
    def gradient_bound(self) -> float:
        r""":math:`\eta_G`, bounds the norm of the policy gradient and of its estimates."""
        return self.score * self._ahead

    @property
    def hessian_bound(self) -> float:
        r""":math:`\eta_H`, bounds the norm of the Hessian of the return and of its estimates."""
        return ((self.last_time + 1) * self.score**2 + self.curvature) * self._ahead

    @property
    def hessian_lipschitz(self) -> float:
        r""":math:`\eta_\rho`, the Lipschitz constant of the estimates of the Hessian."""
        return (2 * (self.last_time + 1) * self.score * self.curvature + self.third) * self._ahead

    @property
    def largest_inner_rate(self) -> float:
        r""":math:`1 / \eta_H`."""
        return 1 / self.hessian_bound

    @property
    def meta_gradient_bound(self) -> Constant:
        r""":math:`G_V`, bounds the norm of the meta-gradient and of its estimates."""
        return Constant(*map(self._meta_gradient_bound, self.return_bound))

    @property
    def general_smoothness(self) -> Constant:
        r""":math:`L_V` of theorem E.1, for any number of steps: the Lipschitz constant of the meta-gradient."""
        return Constant(*map(self._smoothness, self.return_bound))

    @property
    def smoothness(self) -> Constant:
        r""":math:`L_V`; for one step printed in proposition 4.7, where it is smaller than theorem E.1 allows."""
        if self.steps != 1:
            return self.general_smoothness
        printed = self._rate * self.hessian_lipschitz * self.gradient_bound + 4 * self.hessian_bound
        spread = self.curvature + self.inner * self.score**2 * (self.last_time + 1)
        printed += 8 * self.reward * self.inner * (self.last_time + 1) * spread
        return Constant(printed, self.general_smoothness.corrected)

    @property
    def largest_rate(self) -> Constant:
        r""":math:`1 / L_V`, of the outer steps."""
        return Constant(*(1 / value for value in self.smoothness))

    def variance(self, tasks: int, outer: int) -> Constant:
        """The bound on the variance of the meta-gradient's estimate; outer trajectories of a task share its inner ones.

        Args:
            tasks: :math:`B`.
            outer: :math:`D_o`, trajectories per task after adaptation.
        """
        printed, corrected = (bound**2 for bound in self.meta_gradient_bound)
        return Constant(printed / (tasks * outer), corrected / tasks)

    def floor(self, rate: float, tasks: int, outer: int) -> Constant:
        r"""The squared norm of the gradient that steps of this size come down to.

        Args:
            rate: :math:`\beta`, of the outer steps.
            tasks: see `variance`.
            outer: see `variance`.
        """
        pairs = zip(self.variance(tasks, outer), self.smoothness, strict=True)
        return Constant(*(2 * variance * smooth * rate for variance, smooth in pairs))

    def iterations(self, rate: float, accuracy: float, tasks: int, outer: int) -> Constant:
        r"""The steps until the squared norm of the gradient is :math:`\epsilon^2` above the floor, up to O(1).

        Args:
            rate: see `floor`.
            accuracy: :math:`\epsilon`.
            tasks: see `variance`.
            outer: see `variance`.
        """
        pairs = zip(self.return_bound, self.floor(rate, tasks, outer), strict=True)
        return Constant(*(top / rate * min(accuracy**-2, 2 / floor) for top, floor in pairs))

    def tasks_for(self, accuracy: float, outer: int) -> Constant:
        r"""The number of tasks of a meta-batch with steps of the largest rate: :math:`8 G_V^2 / \epsilon^2`.

        Args:
            accuracy: see `iterations`.
            outer: see `variance`.
        """
        printed, corrected = (8 * bound**2 / accuracy**2 for bound in self.meta_gradient_bound)
        return Constant(printed / outer, corrected)

    @property
    def _ahead(self) -> float:
        return self.reward / (1 - self.discount) ** 2

    @property
    def _rate(self) -> float:
        return self.largest_inner_rate if self.inner_rate is None else self.inner_rate

    def _meta_gradient_bound(self, top: float) -> float:
        return 2**self.steps * (self.gradient_bound + self.inner * (self.last_time + 1) * self.score * top)

    def _smoothness(self, top: float) -> float:
        z, g, scored = self.steps, self.score, self.inner * (self.last_time + 1)
        bent = self._rate * self.hessian_lipschitz
        direct = z * 2 ** (z - 1) * bent * self.gradient_bound + 4**z * self.hessian_bound
        credited = 2**z * self.curvature + (z + 2**z) * scored * g**2 + (z - 1) * bent * g
        return direct + 2**z * scored * (top * credited + 2 ** (z + 1) * self.gradient_bound * g)


@dataclass(frozen=True, kw_only=True)
class LSFConstants:
    r"""The convergence of the linearised score function: bias, variance and smoothness.

    Args:
        reward: :math:`R`, bounds the size of a reward.
        score: :math:`G_1`, bounds the norm of :math:`\nabla \log \pi`.
        curvature: :math:`G_2`, bounds that of :math:`\nabla^2 \log \pi`.
        third: :math:`L`, bounds that of :math:`\nabla^3 V`.
        discount: :math:`\gamma`, below 1.
        horizon: :math:`H`, the number of steps.
        inner_rate: :math:`\eta`.

    Raises:
        ValueError: a number out of its range.

    References:
        Tang (2022), assumptions 9 and 10; propositions 23, 24, 27, 28 and lemma 29 of the appendix.

    Example:
        >>> from stochgraph.algorithms.exact.convergence_constants import LSFConstants
        >>> theory = LSFConstants(
        ...     reward=1.0, score=2**0.5, curvature=0.5, third=1.0, discount=0.9, horizon=2, inner_rate=0.1
        ... )
        >>> round(theory.return_bound, 2), round(theory.hessian_bound, 2)
        (1.9, 17.1)
    """

    reward: float
    score: float
    curvature: float
    third: float
    discount: float
    horizon: int
    inner_rate: float

    def __post_init__(self) -> None:
        require(more_than(0), reward=self.reward, score=self.score)
        require(at_least(0), curvature=self.curvature, third=self.third, inner_rate=self.inner_rate)
        require(_FRACTION, discount=self.discount)
        require(integer(1), horizon=self.horizon)

    @property
    def return_bound(self) -> float:
        """The largest return, in size."""
        return self.reward * (1 - self.discount**self.horizon) / (1 - self.discount)

    @property
    def hessian_bound(self) -> float:
        """:math:`L_1`, bounds the norm of the Hessian of the return."""
        return self.return_bound * (self.curvature * self.horizon + (self.score * self.horizon) ** 2)

    @property
    def gradient_deviation(self) -> float:
        r""":math:`\sigma_1`, bounds the standard deviation of a trajectory's policy gradient, and that gradient."""
        return self.return_bound * self.score * self.horizon

    @property
    def hessian_deviations(self) -> tuple[float, float]:
        r""":math:`\sigma_{21}, \sigma_{22}`, bound those of the two parts of a trajectory's Hessian estimate."""
        top = self.return_bound
        return top * self.curvature * self.horizon, top * (self.score * self.horizon) ** 2

    @property
    def meta_gradient_bound(self) -> float:
        r"""Bounds the norm of the gradient of :math:`F_\infty`."""
        return (1 + self.inner_rate * self.hessian_bound) * self.gradient_deviation

    @property
    def smoothness(self) -> Constant:
        r"""The Lipschitz constant of the gradient of :math:`F_\infty`: printed is a bound of the gradient itself."""
        grown = 1 + self.inner_rate * self.hessian_bound
        bent = self.inner_rate * self.third * self.gradient_deviation
        return Constant(self.meta_gradient_bound, grown**2 * self.hessian_bound + bent)

    def bias(self, inner: int) -> Constant:
        r"""The distance of the estimate's mean from the gradient of :math:`F_\infty`, at most: :math:`O(1 / \sqrt N)`.

        Args:
            inner: :math:`N`, trajectories of an inner step.
        """
        rate, bent, spread = self.inner_rate, self.hessian_bound, self.gradient_deviation
        first = (1 + rate * bent) * bent * rate * spread / math.sqrt(inner)
        second = bent * rate**2 * spread / inner
        return Constant(*(first + times * second for times in (math.sqrt(self._parts), math.sqrt(2 * self._parts))))

    def variance(self, tasks: int, inner: int, outer: int, parameters: int) -> Constant:
        """The bound on the variance of the estimate, in three parts: of outer and inner trajectories and of tasks.

        Args:
            tasks: :math:`B`.
            inner: see `bias`.
            outer: :math:`M`, trajectories of a task after adaptation.
            parameters: their number, :math:`D`.
        """
        rate, bent, spread = self.inner_rate, self.hessian_bound, self.gradient_deviation
        noise = 2 * rate**2 * self._parts / inner
        norm = (math.sqrt(parameters) + rate * bent) ** 2 + noise
        direction, slope = spread * math.sqrt(noise), (1 + rate * bent) * bent * spread / math.sqrt(inner)
        crossed = 2 * direction * slope  # printed with one inner rate, as `direction` has it
        printed = norm * (bent * spread) ** 2 / outer + direction**2 + slope**2 + crossed + spread**2 * norm / tasks
        moved = (direction + rate * slope) ** 2
        return Constant(printed, (norm * spread**2 / outer + moved + spread**2 * norm) / tasks)

    def rate(self, accuracy: float, bias: float, variance: float) -> Constant:
        r"""The size of outer steps, :math:`\min\{1 / L, (\epsilon + \psi^2) / (2 L \sigma^2)\}`.

        Args:
            accuracy: :math:`\epsilon`.
            bias: :math:`\psi`, of the estimate.
            variance: :math:`\sigma^2`, of the estimate.
        """
        return Constant(*(min(1.0, (accuracy + bias**2) / (2 * variance)) / smooth for smooth in self.smoothness))

    @property
    def _parts(self) -> float:
        one, other = self.hessian_deviations
        return one**2 + other**2


class ToyVariances(NamedTuple):
    """Of estimates of the derivative of a mean of draws from a normal distribution; see `toy_variances`."""

    score_function: Constant
    linearized: Constant
    pathwise: Constant


def toy_variances(mean: float, std: float, draws: int) -> ToyVariances:
    r"""Variances of the estimates of :math:`\nabla_\mu E \bar X_N`, with :math:`X_i \sim N(\mu, \sigma^2)`.

    Args:
        mean: :math:`\mu`.
        std: :math:`\sigma`.
        draws: :math:`N`.

    References:
        Tang (2022), lemma 14.

    Example:
        >>> from stochgraph.algorithms.exact.convergence_constants import toy_variances
        >>> toy_variances(1.0, 1.0, 10).score_function
        Constant(printed=10.2, corrected=12.0)
    """
    square = (mean / std) ** 2
    linearized, pathwise = square / draws + 2 / draws, 0.0
    score_function = Constant(square * draws + 2 / draws, square * draws + 2)
    return ToyVariances(score_function, Constant(linearized, linearized), Constant(pathwise, pathwise))


def line_errors(theta: float, draws: int) -> tuple[float, float]:
    r"""Mean squared errors of SF and LSF for the gradient of :math:`E[-(\bar X_N - 1)^2]`.

    The draws :math:`X_i` are from :math:`N(\theta, 1)`. The bias of LSF is :math:`-2 \theta / N`.

    Args:
        theta: :math:`\theta`.
        draws: :math:`N`.

    References:
        Tang (2022), figure 1(a), of which these are the expectations.

    Example:
        >>> from stochgraph.algorithms.exact.convergence_constants import line_errors
        >>> line_errors(0.0, 1)
        (30.0, 68.0)
    """
    n, mu = draws, theta - 1
    score_function = mu**4 * n + 14 * mu**2 + 15 / n
    second = (2 * mu * theta * (n + 4) + 3 * theta**2) / n**2
    return score_function, 4 * (mu**2 * (theta**2 + 2) / n + second + (n + 2) * (n + 4) / n**3)


@dataclass(frozen=True, kw_only=True)
class BOMRLConstants:
    r"""The convergence and the optimality of BO-MRL: penalties, step sizes and bounds on the gap.

    Args:
        distance: "D1", "D2" or "D3".
        reward: :math:`r_{max}`; rewards lie in `[0, r_max]`.
        advantage: :math:`A_{max}`, bounds :math:`|A(s, a)|` for all policies and tasks; at most
            :math:`r_{max} / (1 - \gamma)`.
        discount: :math:`\gamma`, below 1.
        visits: :math:`\epsilon`, the least discounted visitation of a state.
        penalty: :math:`\lambda`; default: that of the theorem on the gap.
        lipschitz: :math:`L_1, L_2, L_3`, Lipschitz constants of the function in the softmax and of its first two
            derivatives; for `"D3"` only. Default: those of a table.

    Raises:
        ValueError: a number out of its range, a distance that is not known, a penalty that has no convergence theorem.

    References:
        Xu and Zhu (2024), theorems 1 to 4; lemma 5 for the correction.

    Example:
        >>> from stochgraph.algorithms.exact.convergence_constants import BOMRLConstants
        >>> theory = BOMRLConstants(distance="D2", reward=1.0, advantage=1.0, discount=0.8, visits=0.1)
        >>> round(theory.gap_penalty, 6), round(theory.gap_factor, 6)
        (100.0, 900.0)
    """

    distance: str
    reward: float
    advantage: float
    discount: float
    visits: float
    penalty: float | None = None
    lipschitz: tuple[float, float, float] = (1.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        require_known(("D1", "D2", "D3"), distance=self.distance)
        require(more_than(0), reward=self.reward, advantage=self.advantage)
        require(_FRACTION, discount=self.discount)
        require((lambda value: 0 < value <= 1, "above 0 and at most 1"), visits=self.visits)
        if self.penalty is not None and not self._converges(self.penalty):
            raise ValueError(
                f"penalty={self.penalty}: the convergence theorem under {self.distance} is for penalties "
                f"{'above' if self.distance == 'D3' else 'of at least'} {self.least_penalty:.6g}"
            )

    @property
    def least_penalty(self) -> float:
        """From which penalty on the convergence theorem holds; for `"D3"` above it, where the hypergradient exists."""
        return self._multiple * self.advantage

    @property
    def safe_penalty(self) -> float:
        r""":math:`\lambda_0`: from it on no step makes a task worse. For `"D3"` another proof needs much less.

        See the note in `optimality`.
        """
        first = 2.0 if self.distance != "D3" else 4 * self.lipschitz[0] ** 2
        return first * self.discount * self.advantage / (self._ahead * self.visits)

    @property
    def gap_penalty(self) -> float:
        """The penalty of the theorem on the gap, which is for both."""
        return self._multiple * self.advantage / (self._ahead * self.visits)

    @property
    def gap_factor(self) -> float:
        """The bound on the gap, for the theorem's penalty, over the variance of the tasks."""
        return (self.gap_penalty + self.safe_penalty) / self._ahead

    @property
    def first_derivative(self) -> Constant:
        """:math:`C_i`, bounds the first derivative of adaptation."""
        if self.distance == "D1":
            return Constant(6 / self._ahead, 8 / self._ahead)
        value = 4 / self._ahead if self.distance == "D2" else 2 * self.lipschitz[0] * self._stretch / self._ahead
        return Constant(value, value)

    @property
    def second_derivative(self) -> Constant:
        """:math:`B_i`, bounds the second derivative of adaptation."""
        ahead, known = self._ahead, 16 * self.reward / (self._penalty * self._ahead**3)
        if self.distance == "D1":
            return Constant(*(known + n * (2 / ahead + 1 / self._penalty) for n in (12, 16)))
        first, second, third = self.lipschitz
        value = known + 18 / ahead**2
        if self.distance == "D3":
            value = (160 * first**3 + 56 * first * second + 4 * third) * self._stretch**2 / ahead**3
        return Constant(value, value)

    @property
    def gradient_bound(self) -> float:
        """:math:`G_i`, bounds the norm of the hypergradient."""
        if self.distance == "D3":
            return self.lipschitz[0] * self.advantage * self._stretch / self._ahead
        return (4 if self.distance == "D1" else 2) * self.advantage / self._ahead**2

    @property
    def smoothness(self) -> Constant:
        """:math:`S_i`, the Lipschitz constant of the hypergradient."""
        first, second = 2 * self.discount * self.reward / self._ahead**3, self.reward / self._ahead**2
        pairs = zip(self.first_derivative, self.second_derivative, strict=True)
        return Constant(*(second * b + first * c**2 for c, b in pairs))

    def rate(self, iterations: int) -> Constant:
        r"""The size of meta-steps, :math:`\min\{1 / S_i, 1 / (G_i \sqrt T)\}`.

        Args:
            iterations: :math:`T`.
        """
        by_noise = 1 / (self.gradient_bound * math.sqrt(iterations))
        return Constant(*(min(1 / smooth, by_noise) for smooth in self.smoothness))

    def squared_gradient(self, iterations: int) -> Constant:
        r"""The bound on the mean squared norm of the hypergradient, :math:`K_i / T + M_i / \sqrt T`.

        Args:
            iterations: :math:`T`, of which it is the mean.
        """
        pairs = zip(self.first_derivative, self.second_derivative, strict=True)
        sizes = ((b + 2 * c**2) * self.reward / self._ahead**4 for c, b in pairs)
        falls = 2 * self.reward / iterations + self.gradient_bound / math.sqrt(iterations)
        return Constant(*(size * falls for size in sizes))

    @property
    def policy_gradient_rate(self) -> Constant:
        r"""The step size, in units of :math:`(1 - \gamma) \nabla J`, that a linear gain under `"D3"` comes to."""
        return Constant(1 / self._penalty, 1 / (2 * self._penalty))

    @property
    def _ahead(self) -> float:
        return 1 - self.discount

    @property
    def _multiple(self) -> float:
        first, second, _ = self.lipschitz
        return 6 * first**2 + 2 * second if self.distance == "D3" else 2.0

    @property
    def _penalty(self) -> float:
        return self.gap_penalty if self.penalty is None else self.penalty

    @property
    def _stretch(self) -> float:
        """The factor by which adaptation under `"D3"` stretches differences."""
        grown = self._penalty + 2 * self.discount * self.lipschitz[0] ** 2 * self.advantage / self._ahead
        return grown / (self._penalty - self.least_penalty)

    def _converges(self, penalty: float) -> bool:
        return penalty > self.least_penalty if self.distance == "D3" else penalty >= self.least_penalty
