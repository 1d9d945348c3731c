"""Exact verification: every joint outcome of a small discrete graph, weighted with its probability.

The truth is the derivative of `sum over outcomes D of p(D; theta) * value(D; theta)`: forward values and
log-probabilities, with the derivative of an update taken for fixed draws. No box, no estimator has a part in it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.derivation import Derivation
from ..derive.estimator import SCORED
from ..derive.populations import expected_plates
from ..distributions.mends import at_edge, edge_message
from ..errors.exceptions import VerificationError
from ..errors.failures import short_tracebacks
from ..ir import nodes as nd
from ..ir.programs import schedule
from ..ir.traces import Trace
from ..language.data import data_sizes
from ..run.compiled import Compiled, watched
from ..run.passes import Run
from ..tensors import vectorize as vz
from ..tensors.axes import Axis, describe, union

_CHUNK = 4096
_ZERO = 1e-12  # of the mean size of an estimate: a truth below it is zero, but for rounding


@dataclass(frozen=True)
class Verification:
    """Exact figures of an estimator, from `verify`.

    Attributes:
        truth: the derivative of the expected objective.
        expectation: the exact mean of the estimator.
        bias: `expectation - truth`.
        variance: the exact variance of the estimator, coordinate by coordinate.
        relative_bias: Euclidean norm of `bias` over that of `truth`; where that is zero, but for rounding, over the
            mean norm of an estimate.
        relative_to: which of the two `relative_bias` is relative to, "truth" or "estimates".
        outcomes: how many joint outcomes of positive probability there are.
        order: the order of the derivative.

    For first derivatives `truth`, `expectation`, `bias` and `variance` are pytrees like the differentiated input (a
    tuple of them if there are several). For order k they are tensors of shape `(*input.shape,) * k` if one tensor is
    differentiated, else `(P,) * k` over the P concatenated parameters.
    """

    truth: Any
    expectation: Any
    bias: Any
    variance: Any
    relative_bias: float
    relative_to: Literal["truth", "estimates"]
    outcomes: int
    order: int
    _total_variance: float = field(repr=False)

    @property
    def total_variance(self) -> float:
        """The variance summed over all coordinates."""
        return self._total_variance

    @property
    def cosine(self) -> float:
        """The cosine of the angle between `expectation` and `truth`; NaN where one of them is 0."""
        expectation, truth = _vector(self.expectation), _vector(self.truth)
        return float(expectation @ truth / (expectation.norm() * truth.norm()))

    @property
    def scale(self) -> float:
        """The factor of the truth in `expectation`, by projection: 1 if there is no bias; NaN if the truth is 0."""
        expectation, truth = _vector(self.expectation), _vector(self.truth)
        return float(expectation @ truth / (truth @ truth))

    def __str__(self) -> str:
        return (
            f"order {self.order}, {self.outcomes} outcomes: relative bias {self.relative_bias:.3e}{self._of}, "
            f"total variance {self.total_variance:.4g}"
        )

    @property
    def _of(self) -> str:
        return "" if self.relative_to == "truth" else " (of the mean size of an estimate, the truth being 0)"

    def _repr_markdown_(self) -> str:
        return (
            "| order | outcomes | relative bias | total variance |\n|---|---|---|---|\n"
            f"| {self.order} | {self.outcomes} | {self.relative_bias:.3e}{self._of} | {self.total_variance:.4g} |"
        )


@short_tracebacks()
def verify(
    compiled: Compiled,
    *inputs: Any,
    order: int = 1,
    sizes: Mapping[str, int] | None = None,
    surrogate: Callable[..., Tensor] | None = None,
    max_outcomes: int = 1_000_000,
) -> Verification:
    r"""The exact bias and variance of an estimator, by enumeration of all joint outcomes.

    .. math:: \text{truth} = \nabla^k_\theta \sum_D p(D; \theta) \, f(D; \theta), \qquad
              \text{expectation} = \sum_D p(D; \theta) \, \nabla^k_\theta S(\theta, D)

    Args:
        compiled: the estimator. Every sample node must be discrete with finitely many outcomes.
        *inputs: the inputs; use float64.
        order: the order of the derivative, 1 or more.
        sizes: sizes of plates by name.
        surrogate: a surrogate written by hand, `surrogate(*inputs, trace)`, to be verified for this graph in place of
            the derived one.
        max_outcomes: refuse graphs with more joint outcomes.

    Raises:
        VerificationError: a node that cannot be enumerated, too many outcomes, or outcomes whose probabilities do
            not sum to 1.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def objective(logit):
        ...     x = sg.sample("x", Bernoulli, logits=logit, n=3)
        ...     return sg.mean(x) ** 2
        >>> logit = torch.tensor(0.3, dtype=torch.float64)
        >>> sg.verify(objective.compile(sg.SF()), logit).relative_bias < 1e-12
        True
        >>> sg.verify(objective.compile(sg.LSF()), logit).relative_bias > 0.01
        True
    """
    if not isinstance(compiled, Compiled):
        raise TypeError(f"verify takes a compiled graph, graph.compile(sg.SF()), got {type(compiled).__name__}")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    pathwise = sorted(compiled._derivation.pathwise)
    if pathwise:
        raise VerificationError(
            f"sample {pathwise[0]!r} is pathwise, so continuous: it cannot be enumerated; see sg.profile"
        )
    if compiled._expectations is not None:
        compiled._expectations.estimator.refuse_enumeration(compiled._expectations)
    outcomes = _Outcomes(compiled, inputs, sizes or {}, max_outcomes)
    outcomes.enumerate()
    flat, restore = _flatten(compiled, inputs)
    plates = expected_plates(compiled.graph.order)
    meant = outcomes if not plates else _Expected(compiled, inputs, sizes or {}, max_outcomes, plates)
    if plates:
        meant.enumerate()
    truth = _truth(meant, restore, flat, order)
    probability, log_probs = outcomes.probabilities(flat, restore)
    if abs(float(probability.sum()) - 1) > 1e-6:
        raise VerificationError(
            f"the probabilities of all outcomes of {compiled.graph.name} sum to {float(probability.sum()):.8f}, not 1: "
            "an enumeration is incomplete, or a distribution is not normalised"
        )
    estimates = _estimates(surrogate or compiled.surrogate, outcomes, restore, flat, log_probs, order)
    weights = probability.reshape(-1, *[1] * order)
    mean = (weights * estimates).sum(0)
    variance = (weights * (estimates - mean) ** 2).sum(0)
    shape = _shaper(compiled, inputs, order)
    bias = mean - truth
    size = (probability * estimates.flatten(1).norm(dim=1)).sum()
    return Verification(
        shape(truth),
        shape(mean),
        shape(bias),
        shape(variance),
        *relative(bias, truth, size),
        len(probability),
        order,
        float(variance.sum()),
    )


def _vector(tree: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(tree)])


def relative(bias: Tensor, truth: Tensor, size: Tensor) -> tuple[float, Literal["truth", "estimates"]]:
    """How large the bias is, and relative to what; `size` is the mean norm of an estimate."""
    if float(truth.norm()) < _ZERO * float(size):
        return float(bias.norm() / size), "estimates"
    return float(bias.norm() / truth.norm()) if bool(bias.any()) else 0.0, "truth"


class _Outcomes:
    """All joint outcomes of the sample nodes, built node by node in the order of declaration."""

    def __init__(self, compiled: Compiled, inputs: Any, sizes: Mapping[str, int], limit: int) -> None:
        self.names, self.inputs, self.limit = compiled.graph.inputs, inputs, limit
        run = compiled._run(inputs, sizes)  # refuses wrong inputs and sizes
        self.watched, self.differentiated = list(watched(run.inputs, compiled.wrt).values()), set(compiled.estimators)
        self.wanted = {**sizes, **data_sizes(compiled.graph.data, run.inputs)}
        order = compiled.graph.order
        self.samples = [node for node in order if isinstance(node, nd.Sample)]
        value = Derivation(order, {node.name: SCORED for node in self.samples})
        self.objective = value.derive(compiled.graph.objective)
        self.scores = {node.name: value.score(node) for node in self.samples}
        self.program = schedule([self.objective, *self.scores.values()])
        self.draws: dict[str, Any] = {}
        self.count = 1  # a graph without draws has one outcome

    def enumerate(self) -> None:
        for node in self.samples:
            if node.name in self.differentiated:
                self._refuse_edges(node)
            self._extend(node)
            self._drop_impossible(node)

    def _extend(self, node: nd.Sample) -> None:
        """Every outcome so far, times every joint outcome of the node's draws."""
        support, own = self._support(node)
        leaves, spec = pytree.tree_flatten(support)
        lead = len(node.parent_axes)
        shape = leaves[0].shape
        sizes = [self.wanted.get(axis.name, axis.n or 1) for axis in node.repeats]
        cells = [*shape[2 : 2 + lead], *sizes, *shape[2 + lead : 2 + lead + own]]
        choices, n = shape[1], prod(cells)
        if self.count * choices**n > self.limit:
            raise VerificationError(
                f"sample {node.name!r} (axes: {describe(node.axes)}) has {choices} outcomes for each of its {n} draws: "
                f"{self.count} * {choices}**{n} joint outcomes are more than max_outcomes={self.limit}. "
                "Make plates or horizons smaller"
            )
        index = torch.arange(choices**n)[:, None] // choices ** torch.arange(n) % choices
        combined = [_combine(leaf, lead, own, sizes, cells, index) for leaf in leaves]
        # What is repeated is now behind the axes of the parents: each goes to its place among the plates.
        places = [1 + node.plates.index(axis) for axis in (*node.parent_axes, *node.repeats)]
        grown = [leaf.movedim(list(range(1, 1 + len(places))), places) for leaf in combined]
        repeats = len(index)
        self.draws = pytree.tree_map(lambda x: x.repeat_interleave(repeats, 0), self.draws)
        self.draws[node.name] = pytree.tree_unflatten(grown, spec)
        self.count *= repeats

    def _refuse_edges(self, node: nd.Sample) -> None:
        """Refuse an impossible outcome whose probability moves: the sum over outcomes would not see it."""
        with torch.enable_grad():
            margins = self._at_parents(node, node.law.margins, self.watched)
        if any(margin.requires_grad for margin in at_edge(margins)):
            raise VerificationError(edge_message(node))

    def _support(self, node: nd.Sample) -> tuple[Any, int]:
        own: list[int] = []
        trials = int(self._at_parents(node, node.law.trials).max())

        def outcomes(*place: Any) -> Any:
            found, dims = node.law.outcomes(*place, trials)
            own[:] = [dims]
            return found

        try:
            support = self._at_parents(node, outcomes)
        except NotImplementedError as error:
            raise VerificationError(
                f"sample {node.name!r} ({node.law.name}) cannot be enumerated exactly: {error}. "
                "Use a distribution with finitely many outcomes, or measure with sg.profile"
            ) from None
        return support, own[0]

    def _at_parents(self, node: nd.Sample, fn: Callable[..., Any], inputs: Any = None) -> Any:
        """`fn(node, values of its parents, run)` for every outcome."""
        parents = self.scores[node.name].inputs[1:]
        program = schedule(parents)

        def one(draws: dict[str, Any]) -> Any:
            run = self._run(self.inputs if inputs is None else inputs, draws)
            values = run.execute(program)
            return fn(node, [values[parent] for parent in parents], run)

        return self.map(one)

    def _drop_impossible(self, node: nd.Sample) -> None:
        score = self.scores[node.name]
        program = schedule([score])

        def one(draws: dict[str, Any]) -> Tensor:
            return self._run(self.inputs, draws).execute(program)[score].sum()

        possible = self.map(one) > -torch.inf
        if not bool(possible.all()):
            self.draws = pytree.tree_map(lambda x: x[possible], self.draws)
            self.count = int(possible.sum())

    def map(self, fn: Callable[..., Any], *more: Any, chunk: int | None = None) -> Any:
        """`fn(draws, *more)` for every outcome; `more` has one entry for each."""
        number = torch.arange(self.count)  # something to map over, in a graph without draws
        mapped = torch.vmap(lambda _, draws, *others: fn(draws, *others), chunk_size=chunk)
        return mapped(number, self.draws, *more)

    def some(self, start: int) -> "_Outcomes":
        """The outcomes from a place on, as many as are evaluated at once."""
        part = copy.copy(self)
        part.draws = pytree.tree_map(lambda x: x[start : start + _CHUNK], self.draws)
        part.count = min(_CHUNK, self.count - start)
        return part

    def _run(self, inputs: Any, draws: dict[str, Any]) -> Run:
        trace = Trace(draws=draws)
        return Run(dict(zip(self.names, inputs, strict=True)), self.wanted, trace)

    def evaluate(self, inputs: Any, draws: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The value of the objective and the log-probabilities, for one outcome."""
        run = self._run(inputs, draws)
        values = run.execute(self.program)
        return values[self.objective], {name: values[score] for name, score in self.scores.items()}

    def probabilities(self, flat: Tensor, restore: Callable[[Tensor], Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The probability of every outcome, and the log-probability of every draw in it."""
        log_probs = self.map(lambda draws: self.evaluate(restore(flat), draws)[1], chunk=_CHUNK)
        totals = (x.reshape(self.count, -1).sum(1) for x in log_probs.values())
        return sum(totals, start=flat.new_zeros(self.count)).exp(), log_probs


class _Expected(_Outcomes):
    """Outcomes of what is not expected; of a plate that is, every outcome of one draw, with its probability."""

    def __init__(
        self, compiled: Compiled, inputs: Any, sizes: Mapping[str, int], limit: int, plates: Sequence[Axis]
    ) -> None:
        super().__init__(compiled, inputs, sizes, limit)
        self.expected: dict[Axis, nd.Sample] = {}
        for node in self.samples:
            for plate in set(plates).intersection(node.plates):
                if plate in self.expected:
                    raise VerificationError(
                        f"samples {self.expected[plate].name!r} and {node.name!r} share the plate {plate.name!r}, "
                        "which is expected: the outcomes of one draw are enumerated for one sample of a plate. Draw "
                        "both in one, or measure with sg.profile"
                    )
                self.expected[plate] = node

    def _extend(self, node: nd.Sample) -> None:
        plate = next((plate for plate, sample in self.expected.items() if sample is node), None)
        if plate is None:
            super()._extend(node)
            return
        support, own = self._support(node)
        leaves, spec = pytree.tree_flatten(support)
        if own and prod(leaves[0].shape[2 + len(node.parent_axes) :][:own]) > 1:
            raise VerificationError(
                f"sample {node.name!r} (axes: {describe(node.axes)}): a draw of its expected plate has several "
                "entries, whose outcomes are not combined here. Draw one Categorical of their combinations, or measure "
                "with sg.profile"
            )
        sizes = {axis: self.wanted.get(axis.name, axis.n or 1) for axis in node.repeats if axis != plate}
        laid = [self._laid_out(leaf, own, node, plate, sizes) for leaf in leaves]
        self.draws[node.name] = pytree.tree_unflatten(laid, spec)

    def _laid_out(self, leaf: Tensor, own: int, node: nd.Sample, plate: Axis, sizes: Mapping[Axis, int]) -> Tensor:
        """A leaf `(outcomes, choices, *parents, *own, ...)` as draws `(outcomes, *plates, ...)`."""
        axes = union([plate], node.parent_axes)
        lead = 1 + len(axes)
        leaf = leaf.reshape(*leaf.shape[:lead], *leaf.shape[lead + own :]).movedim(1, 1 + axes.index(plate))
        outcomes, event = leaf.shape[0], leaf.shape[lead:]
        aligned = torch.vmap(lambda one: vz.align(one, axes, node.plates))(leaf)
        known = dict(zip(axes, leaf.shape[1:lead], strict=True)) | dict(sizes)
        return aligned.expand(outcomes, *(known[axis] for axis in node.plates), *event)

    def _drop_impossible(self, node: nd.Sample) -> None:
        if node not in self.expected.values():
            super()._drop_impossible(node)

    def _run(self, inputs: Any, draws: dict[str, Any]) -> Run:
        """A pass in which the probabilities of the outcomes are the weights of the expectations."""
        run = super()._run(inputs, draws)
        found: dict[Axis, nd.Portion] = {}
        run.portions = found
        for plate, node in self.expected.items():
            if node.name in draws:
                score = self.scores[node.name]
                log_prob = run.execute(schedule([score]))[score]
                if node.time is not None:
                    log_prob = log_prob.sum(score.axes.index(node.time))
                found[plate] = nd.Portion(log_prob.exp(), node.plates)
        return run

    def evaluate(self, inputs: Any, draws: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        value, log_probs = super().evaluate(inputs, draws)
        expected = {node.name for node in self.expected.values()}
        return value, {name: log_prob for name, log_prob in log_probs.items() if name not in expected}


def _combine(leaf: Tensor, lead: int, own: int, sizes: list[int], cells: list[int], index: Tensor) -> Tensor:
    """Leaf `(outcomes, choices, *parents, *own, ...)` to `(outcomes * combinations, *parents, *sizes, *own, ...)`."""
    event = leaf.shape[2 + lead + own :]
    leaf = leaf.reshape(*leaf.shape[: 2 + lead], *[1] * len(sizes), *leaf.shape[2 + lead :])
    flat = leaf.expand(*leaf.shape[:2], *cells, *event).reshape(*leaf.shape[:2], prod(cells), *event)
    chosen = flat[:, index.to(leaf.device), torch.arange(prod(cells), device=leaf.device)]
    return chosen.reshape(-1, *cells, *event)


def _flatten(compiled: Compiled, inputs: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The differentiated inputs as one vector, and the way back to all inputs."""
    names = compiled.graph.inputs
    leaves, spec = pytree.tree_flatten([inputs[names.index(name)] for name in compiled.wrt])
    leaves = [torch.as_tensor(leaf) for leaf in leaves]
    sizes = [leaf.numel() for leaf in leaves]

    def restore(flat: Tensor) -> Any:
        parts = flat.split(sizes)
        trees = pytree.tree_unflatten([p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)], spec)
        replaced = dict(zip(compiled.wrt, trees, strict=True))
        return [replaced.get(name, value) for name, value in zip(names, inputs, strict=True)]

    return torch.cat([leaf.detach().reshape(-1) for leaf in leaves]), restore


def _shaper(compiled: Compiled, inputs: Any, order: int) -> Callable[[Tensor], Any]:
    """From derivatives of the vector to the form that `Verification` describes."""
    _, restore = _flatten(compiled, inputs)
    names = compiled.graph.inputs
    chosen = [inputs[names.index(name)] for name in compiled.wrt]
    if order == 1:

        def as_tree(vector: Tensor) -> Any:
            trees = [restore(vector)[names.index(name)] for name in compiled.wrt]
            return trees[0] if len(trees) == 1 else tuple(trees)

        return as_tree
    if len(chosen) == 1 and isinstance(chosen[0], Tensor):
        return lambda tensor: tensor.reshape(chosen[0].shape * order)
    return lambda tensor: tensor


def _derivative(fn: Callable[..., Tensor], order: int) -> Callable[..., Tensor]:
    """The derivative of a scalar function of a vector, in reverse mode: not every torch function has the other."""
    derived = torch.func.grad(fn)
    for _ in range(order - 1):
        derived = torch.func.jacrev(derived)
    return derived


def _truth(outcomes: _Outcomes, restore: Callable[[Tensor], Any], flat: Tensor, order: int) -> Tensor:
    """The derivative of `sum_D p(D; theta) value(D; theta)`."""
    parts = [outcomes.some(start) for start in range(0, outcomes.count, _CHUNK)]
    return torch.stack([_expected_value(part, restore, flat, order) for part in parts]).sum(0)


def _expected_value(outcomes: _Outcomes, restore: Callable[[Tensor], Any], flat: Tensor, order: int) -> Tensor:
    def total(vector: Tensor) -> Tensor:
        def one(draws: dict[str, Any]) -> Tensor:
            value, log_probs = outcomes.evaluate(restore(vector), draws)
            return sum((x.sum() for x in log_probs.values()), start=vector.new_zeros(())).exp() * value

        return outcomes.map(one).sum()

    return _derivative(total, order)(flat)


def _estimates(
    surrogate: Callable[..., Tensor],
    outcomes: _Outcomes,
    restore: Callable[[Tensor], Any],
    flat: Tensor,
    log_probs: dict[str, Tensor],
    order: int,
) -> Tensor:
    """The estimate that every outcome gives, `(outcomes, P, ...)`."""

    def one(draws: dict[str, Any], recorded: dict[str, Tensor]) -> Tensor:
        trace = Trace(draws=draws, log_probs=recorded)
        return _derivative(lambda vector: surrogate(*restore(vector), trace), order)(flat)

    return outcomes.map(one, log_probs, chunk=_CHUNK).detach()
