"""Laws of sample nodes, to draw, score and enumerate by: torch distributions as they are, and samplers.

A distribution of one draw becomes a distribution of a whole plate in one of two ways. A class from
`torch.distributions` takes batched parameters, once each is viewed with its batch dimensions where the others have
theirs. Any other function is mapped by `torch.vmap` over one draw's parents, and the distribution that it builds is
rebuilt around the mapped parameters. Either way the draw itself is one batched call.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import ContinuousBernoulli, Distribution, Pareto, Uniform

from ..errors.exceptions import SamplingError
from ..errors.failures import raise_in_words
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, describe, union, without
from ..tensors.indexing import in_transform
from ..tensors.pieces import find_cut
from ..tensors.trees import map_tensors, recordable, tensors
from .families import (
    Rebuilding,
    collect,
    finite_support,
    inverts,
    is_straight_through,
    most_trials,
    moving,
    moving_support,
    named_families,
    noise_parameters,
    parts_of,
)
from .interfaces import Call, Node, SampleNode, Surroundings
from .kept import Kept
from .mends import is_plain, margins, mended
from .noise import NoiseTape, straight_through_message
from .samplers import Sampler

MOVING_SUPPORT = (Uniform, Pareto)
_LOOKS_ANYWAY = (ContinuousBernoulli,)  # torch's looks at its probabilities whenever `validate_args` is given


class Law(Protocol):
    """The interface of distributions: all that a sample node needs.

    Attributes:
        source: the class, function or sampler that the user gave, if there is one.
        family: the class of distributions that it is, if it is one: then all is known of it before anything is built.
        time: whether a draw has a time axis of its own.
        fixed_support: whether its support is known to stay before anything is built.
    """

    source: object = None
    family: type[Distribution] | None = None
    time: bool = False
    fixed_support: bool = True

    @property
    def name(self) -> str:
        """Its name: that of the class, function or sampler."""

    @property
    def is_torchs_own(self) -> bool:
        """True if all is known of how it draws before it does."""
        return False

    @property
    def has_moving_support(self) -> bool:
        """True if the support is known to move with the parameters before anything is drawn."""
        return False

    def noise_parents(self, arguments: Call) -> list[Any]:
        """The nodes that the noise of a pathwise draw is known to depend on: in them there is one derivative only."""
        return []

    def event_dims(self, arguments: Call) -> list[int] | None:
        """The event dimensions of each parent, if batches of them can be passed as they are."""

    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Any, Any]:
        """A draw `(*node.axes, ...)`, and whatever `score` can reuse."""

    def draw_pathwise(
        self, node: SampleNode, values: Sequence[Any], run: Surroundings, noise: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor], Kept]:
        """A draw that is differentiated, of fresh or of recorded noise; the noise, and what `score` can reuse."""
        why = no_path(node, self.name)
        raise SamplingError(why)

    def score(
        self,
        node: SampleNode,
        value: Any,
        inputs: Sequence[Node],
        values: Sequence[Any],
        run: Surroundings,
        kept: Kept | None = None,
    ) -> Tensor:
        """The log-probability of each draw, shape `(*axes of node and inputs)`; `inputs` are the parents' nodes."""

    def margins(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> list[Tensor]:
        """The distance of probabilities from the edge: 0 where an outcome is impossible."""
        return []

    def trials(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> Tensor:
        """The number of trials of a draw, where that of its outcomes follows from it: the most of all draws."""
        return torch.zeros(())

    def outcomes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int) -> tuple[Any, int]:
        """All outcomes of every draw, `(outcomes, *parent_axes, *batch, ...)`, and the number of batch dimensions."""

    def nodes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, count: int) -> tuple[Any, Tensor, int]:
        """Nodes that stand for a continuous draw, the logarithm of their weights, both in front, and as in outcomes."""
        why = f"{self.name} has no nodes"
        raise NotImplementedError(why)


class DistributionLaw(Law):
    """The law of `dist(*parents)`, `dist` being any function that returns a torch distribution of one draw."""

    def __init__(self, factory: Callable[..., Distribution]) -> None:
        self.factory = self.source = factory
        self.is_class = isinstance(factory, type) and issubclass(factory, Distribution)
        self.family = factory if self.is_class else None  # type: ignore[assignment]
        # A support that depends on parameters is a property, which the class itself holds unevaluated.
        self.fixed_support = self.family is not None and not isinstance(self.family.support, property)

    @property
    def has_moving_support(self) -> bool:
        return self.family is not None and issubclass(self.family, MOVING_SUPPORT)

    @property
    def name(self) -> str:
        return getattr(self.factory, "__name__", type(self.factory).__name__).strip("<>")

    @property
    def is_torchs_own(self) -> bool:
        return self.is_class and self.factory.__module__.startswith("torch.distributions.")

    def event_dims(self, arguments: Call) -> list[int] | None:
        """The event dimensions of the parameters given by nodes; `None` if they cannot simply be batched."""
        declared = getattr(self.factory, "arg_constraints", None) if self.is_class and arguments.flat else None
        if not isinstance(declared, dict):
            return None
        names = self.parameters(arguments)
        if not set(names) <= declared.keys():
            return None
        dims = [declared[name].event_dim for name in names]
        leaves = zip(dims, arguments.leaves, strict=True)
        constants = [leaf for d, leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > d]
        # The batch dimensions of a constant would be taken for plates: such a distribution is mapped instead.
        return None if constants else [dims[i] for i in arguments.places]

    def bound(self, parents: Sequence[object], parameters: Mapping[str, object]) -> inspect.BoundArguments:
        """Parents as they fit the class or function.

        Raises:
            TypeError: they do not.
            ValueError: it does not say what it takes.
        """
        return inspect.signature(self.factory).bind(*parents, **parameters)

    def parameters(self, arguments: Call) -> list[str]:
        """The names of the distribution's parameters, in the order of the arguments."""
        return [*list(inspect.signature(self.factory).parameters)[: arguments.positional], *arguments.keywords]

    def noise_parents(self, arguments: Call) -> list[Any]:
        names = noise_parameters(self.family) if self.family else ()
        known = names and not set(names).isdisjoint(inspect.signature(self.factory).parameters)
        if not (known and arguments.flat):
            return list(arguments.nodes) if names else []
        parameters = self.parameters(arguments)
        return [arguments.leaves[i] for i in arguments.places if parameters[i] in names]

    def straight_through(self) -> str | None:
        """The name of a straight-through class that draws here, as far as can be told before anything is built."""
        return next((family.__name__ for family in named_families(self.factory) if is_straight_through(family)), None)

    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Tensor, Kept]:
        built = self.build(node, node.inputs, values, node.parent_axes, run)
        if node.parent_axes:
            _refuse_temperatures(node, built)
        remembering = moving(built) if inverts(built) else built
        with run.placed():
            value = remembering.sample(torch.Size([run.sizes[axis] for axis in node.repeats]))
        value = value.detach() if value.requires_grad else value  # torch's own distributions hand out constants
        kept = Kept(node, built) if remembering is built else Kept(node, built, value, remembering)
        return arrange(value, node.drawn_axes, node.axes), kept

    def draw_pathwise(
        self, node: SampleNode, values: Sequence[Any], run: Surroundings, noise: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor], Kept]:
        """A reparameterised draw, from fresh noise or from recorded noise, the noise, and what `score` can reuse."""
        built = moving(self.build(node, node.inputs, values, node.parent_axes, run, validate=noise is None))
        if not built.has_rsample:
            raise SamplingError(no_path(node, type(built).__name__))
        if any(map(is_straight_through, parts_of(built))):
            raise SamplingError(straight_through_message(node, type(built).__name__))
        _refuse_temperatures(node, built)
        # The placeholder of an update may have plates that the draw does not have, and the draw's own plate as well.
        if noise is not None:
            noise = [arrange(x, node.declared.drawn_axes, node.drawn_axes) for x in noise]
        with NoiseTape(node, noise) as tape:
            value = built.rsample(torch.Size([run.sizes[axis] for axis in node.repeats]))
        return arrange(value, node.drawn_axes, node.axes), tape.recorded, Kept(node, built, value)

    def score(
        self,
        node: SampleNode,
        value: Any,
        inputs: Sequence[Node],
        values: Sequence[Any],
        run: Surroundings,
        kept: Kept | None = None,
    ) -> Tensor:
        if kept is not None and node.pathwise:
            return self._score_moved(node, kept)
        parent_axes, axes, drawn_axes = node.parent_axes, node.axes, node.drawn_axes
        if kept is None:
            parent_axes = union(*(parent.axes for parent in inputs))
            built = self.build(node, inputs, values, parent_axes, run, validate=False)
        else:
            built = kept.built
        if not self.fixed_support and moving_support(built):
            raise SamplingError(moving_support_message(node))
        if parent_axes != node.parent_axes:
            axes = union(parent_axes, node.axes)
            value = vz.align(value, node.axes, axes)
            # Parents that vary with the draw, copies of an update's parameters, have its plates in their batch.
            drawn_axes = (*without(axes, parent_axes), *parent_axes)
        log_prob = _summed(built, built.log_prob(arrange(value, axes, drawn_axes)), parent_axes)
        return arrange(log_prob, drawn_axes, axes)

    def _score_moved(self, node: SampleNode, kept: Kept) -> Tensor:
        """The log-probability of a pathwise draw, by the distribution that drew it.

        Its transforms know what they mapped. Inverses would not: in single precision the hyperbolic tangent of 10 is 1.
        """
        assert kept.draw is not None
        log_prob = _summed(kept.built, kept.built.log_prob(kept.draw), node.parent_axes)
        return arrange(log_prob, node.drawn_axes, node.axes)

    def trials(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> Tensor:
        return most_trials(self.build(node, node.inputs, values, node.parent_axes, run, validate=False))

    def outcomes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int) -> tuple[Tensor, int]:
        built = self.build(node, node.inputs, values, node.parent_axes, run, validate=False)
        found, batch = finite_support(built, trials)
        return found, batch - len(node.parent_axes)

    def margins(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> list[Tensor]:
        return margins(self._build(node, node.inputs, values, node.parent_axes, run, validate=False))

    def build(
        self,
        node: SampleNode,
        inputs: Sequence[Node],
        values: Sequence[Any],
        axes: Axes,
        run: Surroundings,
        validate: bool = True,
    ) -> Distribution:
        """The distribution with batch shape `(*axes, *batch of one draw)`, ready to be scored."""
        try:
            built = self._build(node, inputs, values, axes, run, validate)
        except RuntimeError as error:
            if not in_transform():
                raise
            raise SamplingError(
                f"sample {node.name!r} (axes: {describe(node.axes)}): {self.name} cannot be built inside a transform, "
                f"where values cannot be looked at: {error}"
            ) from error
        checks = validate or self.is_class  # a class has been told not to check
        if checks and is_plain(built):
            return built
        run.note_margins(node, margins(built))
        return mended(built, checks)

    def _build(
        self,
        node: SampleNode,
        inputs: Sequence[Node],
        values: Sequence[Any],
        axes: Axes,
        run: Surroundings,
        validate: bool,
    ) -> Distribution:
        """The distribution as torch makes it."""
        if axes:
            if node.event_dims is None:
                return self._map(node, inputs, values, axes)
            if len(values) > 1:  # a lone parameter has nothing to be in line with
                values = _pad_batches(values, [parent.axes for parent in inputs], axes, node.event_dims)
        args, kwargs = node.arguments.fill(values)
        if not self.is_class:
            with _validation(validate), run.placed(), _in_words(node, "its function", self.factory, values):
                return self.factory(*args, **kwargs)
        # Numbers say nothing of dtype and device. With axes, at least one parameter is a tensor.
        if self.is_class and not axes and not any(isinstance(v, Tensor) for v in (*args, *kwargs.values())):
            args = [run.number(v) for v in args]
            kwargs = {name: run.number(v) for name, v in kwargs.items()}
        if self.family and (validate or not issubclass(self.family, _LOOKS_ANYWAY)):
            kwargs = kwargs if validate else {**kwargs, "validate_args": False}
            return self.factory(*args, **kwargs)
        with _validation(validate), run.placed():
            return self.factory(*args, **kwargs)

    def _map(self, node: SampleNode, inputs: Sequence[Node], values: Sequence[Any], axes: Axes) -> Distribution:
        """Build one draw's distribution under vmap, and the plate's distribution from its mapped parameters."""
        template: list[Distribution] = []
        varies: list[bool] = []

        def parameters(*one: object) -> list[Tensor]:
            args, kwargs = node.arguments.fill(one)
            template[:] = [self.factory(*args, **kwargs)]
            leaves = collect(template[0])
            varies[:] = [torch._C._functorch.is_batchedtensor(leaf) for leaf in leaves]
            return leaves

        aligned = _aligned(values, inputs, axes)
        with _validation(False), _in_words(node, "its function", self.factory, aligned, len(axes)):
            mapped = vz.vectorize(parameters, len(axes))(*aligned)
        sizes = _sizes(aligned, len(axes))
        mapped = [leaf.expand(*sizes, *leaf.shape[len(axes) :]) for leaf in mapped]
        one = template[0]
        rank = len(one.batch_shape) + len(one.event_shape)
        return Rebuilding(iter(zip(mapped, varies, strict=True)), torch.Size(sizes), rank).distribution(one)


class SamplerLaw(Law):
    """The law of a `stochgraph.Sampler`."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = self.source = sampler
        self.time = sampler.time

    def event_dims(self, arguments: Call) -> None:
        return None

    @property
    def name(self) -> str:
        return type(self.sampler).__name__

    def bound(self, parents: Sequence[object], parameters: Mapping[str, object]) -> inspect.BoundArguments:
        """Parents as they fit the sampler's `log_prob`, behind a draw."""
        return inspect.signature(self.sampler.log_prob).bind(None, *parents, **parameters)

    def draw(self, node: SampleNode, values: Sequence[Any], run: Surroundings) -> tuple[Any, None]:
        plates = node.plates
        args, kwargs = node.arguments.fill(_aligned(values, node.inputs, plates))
        shape = torch.Size([run.sizes[axis] for axis in plates])
        with torch.no_grad():
            value = self.sampler.draw(shape, *args, **kwargs)
        value = map_tensors(recordable, value)
        self._check(node, value, shape)
        return value, None

    def score(
        self,
        node: SampleNode,
        value: Any,
        inputs: Sequence[Node],
        values: Sequence[Any],
        run: Surroundings,
        kept: Kept | None = None,
    ) -> Tensor:
        axes = union(node.plates, *(parent.axes for parent in inputs))
        full = axes if node.time is None else (*axes, node.time)
        own = [full, *(parent.axes for parent in inputs)]
        whole = [vz.align_tree(value, node.plates, axes), *values]
        cut = None if torch.is_grad_enabled() else find_cut(whole, own, axes)
        if cut is None:
            scored = self._score(node, whole, own, axes)
        else:
            parts = [self._score(node, part, own, axes) for _, part in cut.parts(whole, own)]
            scored = cut.joined(parts, axes)
        expected = len(axes) + self.time
        if scored.dim() != expected:
            raise SamplingError(
                f"sample {node.name!r}: {self.name}.log_prob of one draw must have "
                f"{'one dimension, the time axis' if self.time else 'no dimension'}, got {scored.dim() - len(axes)}"
            )
        self._check_path(node, scored, values)
        return scored.permute([full.index(axis) for axis in sorted(full)])

    def _score(self, node: SampleNode, values: Sequence[Any], own: Sequence[Axes], axes: Axes) -> Tensor:
        """Scores `(*axes, ...)` of draws `(*axes, ...)`; behind them in `values` and in `own` are the parents."""

        def bound(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def scored(one: object, *parents: object) -> Tensor:
                args, kwargs = node.arguments.fill(parents)
                return method(one, *args, **kwargs)

            return scored

        value, *parents = values
        log_prob = bound(self.sampler.log_prob)
        aligned = [vz.align_tree(parent, a, axes) for parent, a in zip(parents, own[1:], strict=True)]
        word = f"{self.name}.log_prob"
        with _in_words(node, word, self.sampler.log_prob, [value, *aligned], len(axes)):
            if not self.sampler.batched:
                return vz.vectorize(log_prob, len(axes))(value, *aligned)
            stacked = bound(self.sampler.log_prob_stacked)
            return vz.vectorize_shared(log_prob, stacked, value, parents, list(own[1:]), axes)

    def outcomes(self, node: SampleNode, values: Sequence[Any], run: Surroundings, trials: int) -> tuple[Any, int]:
        axes = node.parent_axes

        def enumerate_one(*parents: object) -> Any:
            args, kwargs = node.arguments.fill(parents)
            return self.sampler.enumerate(*args, **kwargs)

        aligned = _aligned(values, node.inputs, axes)
        with _in_words(node, f"{self.name}.enumerate", self.sampler.enumerate, aligned, len(axes)):
            value = vz.vectorize(enumerate_one, len(axes))(*aligned)
        return map_tensors(lambda leaf: leaf.movedim(len(axes), 0), value), 0

    def _check_path(self, node: SampleNode, scored: Tensor, parents: Sequence[Any]) -> None:
        """Warn of log-probabilities that are cut off from all parents; inside transforms there is no telling."""
        if scored.requires_grad or not torch.is_grad_enabled() or in_transform():
            return
        if any(leaf.requires_grad for leaf in tensors(list(parents))):
            warnings.warn(
                f"sample {node.name!r} (axes: {describe(node.axes)}): {self.name}.log_prob has no derivative with "
                "respect to its parents, so that no path through the draws is counted. Is something in it detached? If "
                "the draws do not depend on the parents, say so: sg.stop(parent)",
                stacklevel=2,
            )

    def _check(self, node: SampleNode, value: object, shape: torch.Size) -> None:
        lead = len(shape)
        leaves = tensors(value)
        lengths = {leaf.shape[lead : lead + 1] for leaf in leaves} if self.time else {torch.Size()}
        if any(leaf.shape[:lead] != shape for leaf in leaves) or len(lengths) != 1:
            raise SamplingError(
                f"sample {node.name!r}: {self.name}.draw must return tensors with the leading shape {tuple(shape)}"
                + (" and one time dimension of the same length after it" if self.time else "")
                + f"; got {[tuple(leaf.shape) for leaf in leaves]}"
            )


def moving_support_message(node: SampleNode) -> str:
    """Why a draw whose support moves is not scored."""
    return (
        f"sample {node.name!r} (axes: {describe(node.axes)}): the support of {node.law.name} moves with the "
        "parameters, so the score function is biased; use PW for this node, or a distribution with a fixed support"
    )


def no_path(node: SampleNode, dist: str) -> str:
    """Why a draw without a reparameterisation is not differentiated."""
    return (
        f"PW on sample {node.name!r} ({dist}): the draw has no differentiable path to its parameters, because {dist} "
        "is discrete or has no reparameterisation; use SF or LSF for this node"
    )


def _refuse_temperatures(node: SampleNode, built: Distribution) -> None:
    """Torch lines the temperatures of a relaxed categorical up with its categories: only one of them is right."""
    temperature = getattr(built, "temperature", None)
    if isinstance(temperature, Tensor) and temperature.dim() and built.event_shape:
        raise SamplingError(
            f"sample {node.name!r}: {type(built).__name__} takes one temperature for all draws; here it varies with a "
            "plate. Give it a temperature without plates"
        )


@contextmanager
def _in_words(
    node: SampleNode, what: str, fn: Callable[..., Any], values: Sequence[Any], dims: int = 0
) -> Iterator[None]:
    """Errors of a user's function, with the sample node, the user's line and what to write instead."""
    try:
        yield
    except Exception as error:
        raise_in_words(error, f"sample {node.name!r} (axes: {describe(node.axes)})", what, fn, values, dims)


@contextmanager
def _validation(wanted: bool) -> Iterator[None]:
    """Argument checks of distributions that a user's function builds. They branch on values, which vmap cannot."""
    before = Distribution._validate_args
    try:
        Distribution.set_default_validate_args(before and wanted)
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _summed(built: Distribution, log_prob: Tensor, parent_axes: Axes) -> Tensor:
    """The log-probability of whole draws: dimensions that one draw's parameters have are part of the draw."""
    own = len(built.batch_shape) - len(parent_axes)
    return log_prob.sum(tuple(range(-own, 0))) if own else log_prob


def arrange(value: Tensor, axes: Axes, target: Axes) -> Tensor:
    """View a tensor `(*axes, ...)` as `(*target, ...)`, with dimensions of size 1 for the axes that it lacks."""
    if axes == target:
        return value
    own = [axes.index(axis) for axis in target if axis in axes]
    value = value.permute([*own, *range(len(axes), value.dim())])
    return vz.align(value, tuple(axis for axis in target if axis in axes), target)


def _aligned(values: Sequence[Any], inputs: Sequence[Node], axes: Axes) -> list[Any]:
    return [vz.align_tree(v, node.axes, axes) for v, node in zip(values, inputs, strict=True)]


def _pad_batches(values: Sequence[Any], axes: Sequence[Axes], target: Axes, event_dims: list[int]) -> list[Any]:
    """View each parameter as `(*target, *batch, *event)` with as many batch dimensions as the widest has."""
    widest = max(v.dim() - len(a) - e for v, a, e in zip(values, axes, event_dims, strict=True))
    return [
        vz.align(v, a, target, widest + e) if a or v.dim() > e else v
        for v, a, e in zip(values, axes, event_dims, strict=True)
    ]


def _sizes(aligned: Sequence[Any], dims: int) -> list[int]:
    leaves = tensors(list(aligned))
    return [max(leaf.shape[d] for leaf in leaves) for d in range(dims)]
