"""Compiled graphs: sampling, surrogates and gradients."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.derivation import Derivation
from ..derive.estimator import SCORED, GradientEstimator, plain
from ..derive.populations import corrected, expectations_of
from ..derive.reach import data_of
from ..derive.routes import Routes
from ..errors.checks import plate_size
from ..errors.exceptions import CompileError, InputError, LoweringError, SamplingError
from ..errors.failures import short_tracebacks
from ..explain.explanation import explain
from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..ir.paths import open_unknowns, plates_in, samples_in, scored_samples
from ..ir.programs import schedule
from ..ir.traces import Trace
from ..language.data import data_sizes
from ..surrogate.steps import OF_A_BATCH
from ..tensors.axes import Axis, describe
from ..tensors.indexing import in_transform
from ..tensors.trees import map_tensors, recordable, tensors
from .cuts import Cuts, Part
from .first_pass import Watch, check_captured, check_pathwise
from .gradient import Point
from .loss import hand_over, leaves_that_require_gradients
from .lowered import Lowered, drawn, held_still, lowering_of
from .passes import Run, recorded, seeded

_OF_A_MODULE = (
    "Of a module, the parameters are passed, dict(module.named_parameters()); the module is called with them in a "
    "function, torch.func.functional_call(module, parameters, (x,))"
)
_NUMBERS = (float, np.floating, np.ndarray)  # Python's own float stands for torch's default dtype


class Compiled:
    """A graph with an estimator per sample node, and the surrogate derived from the two. Made by `Graph.compile`.

    Attributes:
        graph: the declared graph.
        estimators: the estimator of every sample node whose distribution depends on an input, by name.
        wrt: the names of the differentiated inputs.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
        ...     return -(sg.mean(x) - 1.0) ** 2
        >>> compiled = objective.compile(sg.LSF())
        >>> theta = torch.tensor(0.0)
        >>> trace = compiled.sample(theta, generator=torch.Generator().manual_seed(0))
        >>> grad = torch.func.grad(compiled.surrogate)(theta, trace)
        >>> grad.shape
        torch.Size([])
    """

    def __init__(
        self,
        graph: Declaration,
        estimators: Any,
        wrt: str | tuple[str, ...] | None = None,
        lowering: str = "never",
    ) -> None:
        self.graph = graph
        self.wrt = _choose_inputs(graph, wrt)
        given = _given(graph, estimators)
        self.estimators = _assign(graph, given, self.wrt)
        _check(graph, self.estimators, self.wrt)
        order, objective = graph.order, graph.objective
        self._expectations = expectations_of(order, given, self.estimators)
        self._derivation = Derivation(order, self.estimators, _constant_updates(graph, estimators, given))
        self._root = corrected(self._derivation, self._derivation.surrogate(objective), self._expectations)
        # A pathwise draw that is used inside an update alone is still drawn outside of it.
        drawn = [
            self._derivation.derive(node) for s, node in samples_in(order).items() if s in self._derivation.pathwise
        ]
        self._program = schedule([self._root, *drawn, *graph.data])  # rows are counted, whoever reads them
        found = (self._derivation.noise(sample) for sample in self._derivation.scope.samples.values())
        self._noise = {node.name: node for node in found if node is not None}
        value = Derivation(order, plain(self.estimators))
        self._value_root = value.derive(objective)
        self._scores = {name: value.score(node) for name, node in value.scope.samples.items()}
        samples = {**samples_in(order), **self._noise}
        self._draws = {name: value.derive(node) for name, node in samples.items()}
        unsolved = open_unknowns(order)
        self._named_nodes = {n.name: value.derive(n) for n in order if n.named and not unsolved[n]}
        recorded = (*graph.data, *self._scores.values(), *self._draws.values(), *self._named_nodes.values())
        self._value_program = schedule([self._value_root, *recorded])
        self._unseen = {False, True}  # whether a pass outside of transforms, and one inside, is still the first
        self._support_program = schedule(s for s in self._scores.values() if not s.sample.law.fixed_support)
        self._cuts = Cuts(graph, samples, self._program, self._scores, self._named_nodes)
        if lowering != "never":
            self._refuse_drawn_sizes()
        self._lowering = lowering_of(self, lowering)

    @short_tracebacks()
    def sample(
        self, *inputs: Any, generator: torch.Generator | None = None, sizes: Mapping[str, int] | None = None
    ) -> Trace:
        """Draw every sample node once.

        Under `torch.vmap(..., randomness="different")` every element draws for itself. Inside a transform values cannot
        be looked at: log-probabilities that are not finite go unnoticed there.

        Args:
            *inputs: the inputs of the graph, pytrees of tensors.
            generator: source of randomness; default: torch's default generators. They, and the environments behind
                samplers, are the process's own, so that one thread draws at a time.
            sizes: sizes of plates by name, in place of the declared ones.

        Returns:
            What was drawn, and the value of the objective; no gradients attached.

        Raises:
            SamplingError: a distribution refused its parameters, or a log-probability is not finite.
        """
        with recorded():
            run = self._run(inputs, sizes)
            with seeded(generator, inputs):
                return self._sampled(self._begun(run))

    @short_tracebacks()
    def surrogate(self, *inputs_and_trace: Any) -> Tensor:
        """The scalar whose gradient with respect to the inputs is the estimate: `surrogate(*inputs, trace)`.

        A pure function. At the inputs that drew the trace its value is the objective's; at others it is importance
        weighted. Differentiable to any order; works under `torch.func` transforms.

        Raises:
            SamplingError: a log-probability is not finite, or the trace lacks a sample node.
        """
        *inputs, trace = inputs_and_trace
        missing = [name for name in self._draws if name not in getattr(trace, "draws", ())]
        if missing:
            raise SamplingError(
                f"surrogate of {self.graph.name!r}: the last argument must be a trace of this graph; "
                f"it has no draw of {missing[0]!r}. Make one with compiled.sample(...)"
            )
        silent = [name for name in self._derivation.pathwise if name not in trace.noise]
        if silent:
            raise SamplingError(
                f"surrogate of {self.graph.name!r}: PW replays the noise of {silent[0]!r}, and the trace has none: it "
                "was drawn with another estimator. Make one with the sample of this compiled graph"
            )
        with recorded():
            return self._surrogate(self._begun(self._run(inputs, None, trace)))

    @short_tracebacks()
    def value_and_grad(
        self, *inputs: Any, generator: torch.Generator | None = None, sizes: Mapping[str, int] | None = None
    ) -> tuple[Tensor, Any]:
        """One estimate, of any number of tasks.

        One pass: each distribution is built once, drawn from and scored. Where more numbers are computed than memory is
        fast for, draws come first, and then `accumulate` over the outermost plate that can be cut: memory grows with
        the draws alone. Sizes decide, never the number of threads.

        Args:
            *inputs: the inputs of the graph, pytrees of tensors.
            generator: source of randomness; default: torch's default generators.
            sizes: sizes of plates by name, in place of the declared ones.

        Returns:
            The value of the objective for the draws, and the gradient: a pytree like the differentiated input, or a
            tuple of them if `wrt` names several.

        Raises:
            SamplingError: inside a `torch.func` transform; `sample` and `surrogate` work there.
        """
        with recorded():
            point = self._point("value_and_grad", inputs)
            value, gradient = self._estimate(point, generator, sizes)
            return value, point.shaped(gradient)

    @short_tracebacks()
    def loss(
        self,
        *inputs: Any,
        generator: torch.Generator | None = None,
        sizes: Mapping[str, int] | None = None,
        return_trace: bool = False,
    ) -> Any:
        """The objective as a loss of torch: `compiled.loss(*inputs).backward()` fills `.grad` with the estimate.

        The gradient is that of `value_and_grad`, computed in the call, at the parameters of the call. `backward` hands
        it over, scaled by what comes in, to those leaves of the differentiated inputs that require a gradient, and
        through them to what they were made of; a second `backward` adds it again. Parameters of a module go in as
        `dict(module.named_parameters())`.

        Where gradients are off, or no leaf requires one, it is the value alone.

        Args:
            *inputs: the inputs of the graph, pytrees of tensors.
            generator: source of randomness; default: torch's default generators.
            sizes: sizes of plates by name, in place of the declared ones.
            return_trace: whether to return what was drawn as well.

        Returns:
            A scalar, the value of the objective for the draws; with `return_trace` that and the trace.

        Raises:
            SamplingError: inside a `torch.func` transform; an input that is not in `wrt` requires a gradient;
                when differentiated: with `create_graph=True`, the estimate having no derivative of its own.

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Bernoulli
            >>> @sg.graph
            ... def objective(theta):
            ...     x = sg.sample("x", Bernoulli, logits=theta["logits"], n=10)
            ...     return sg.mean((x - 0.2) ** 2)
            >>> compiled = objective.compile(sg.SF(baseline="loo"))
            >>> theta = {"logits": torch.nn.Parameter(torch.tensor(2.0))}
            >>> optimizer, generator = torch.optim.Adam(theta.values(), lr=0.1), torch.Generator().manual_seed(0)
            >>> for _ in range(100):
            ...     optimizer.zero_grad()
            ...     compiled.loss(theta, generator=generator).backward()
            ...     optimizer.step()
            >>> bool(theta["logits"] < -1.0)
            True
        """
        self._refuse_transforms("loss")
        given = self._named(inputs)
        self._require_floats(given)
        leaves = leaves_that_require_gradients(self.graph.name, given, self.wrt) if torch.is_grad_enabled() else []
        if not leaves:
            trace = self.sample(*inputs, generator=generator, sizes=sizes)
            return (trace.value, trace) if return_trace else trace.value
        point = Point(given, self.wrt, lambda leaf: isinstance(leaf, Tensor) and leaf.requires_grad)
        if return_trace:
            trace = self.sample(*inputs, generator=generator, sizes=sizes)
            found = self._replayed(point, trace._replace(log_probs={}))  # at the inputs that drew it
            return hand_over(self.graph.name, *found, leaves), trace
        return hand_over(self.graph.name, *self._estimate(point, generator, sizes), leaves)

    def _refuse_transforms(self, word: str) -> None:
        if in_transform():
            raise SamplingError(
                f"{word} of {self.graph.name!r} cannot run inside a torch.func transform. Use two calls there: "
                "trace = compiled.sample(*inputs), then torch.func.grad(compiled.surrogate)(*inputs, trace)"
            )

    def _point(self, word: str, inputs: Any) -> Point:
        """Where a gradient is taken, with respect to all that is a floating-point tensor."""
        self._refuse_transforms(word)
        given = self._named(inputs)
        self._require_floats(given)
        return Point(given, self.wrt, _floats)

    def _require_floats(self, given: Mapping[str, Any]) -> None:
        if not any(_floats(leaf) for name in self.wrt for leaf in pytree.tree_leaves(given[name])):
            raise InputError(
                f"{self.graph.name}: no leaf of the input {self.wrt[0]!r} is a floating-point tensor. {_OF_A_MODULE}"
            )

    def _estimate(
        self, point: Point, generator: torch.Generator | None, sizes: Mapping[str, int] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The value and gradient for fresh draws: of one pass, or of draws and then of chunks of a plate."""
        sizes = _check_sizes(self.graph, sizes or {})
        with seeded(generator, point.named):
            found = None if self._lowering is None else self._lowering.fresh(point, sizes)
            if found is not None:
                return found
            run = self._begun(Run(point.named, sizes))
            if not self._is_large(run, point) and not (self._lowering is not None and self._lowering.draws_apart):
                return self._pass(point, run)
            trace = drawn(self, run)
        return self._replayed(point, trace)

    def _is_large(self, run: Run, point: Point) -> bool:
        """Whether to cut a pass. Sizes of plates are known before it, lengths of trajectories once they are drawn."""
        plates = self._cuts.declared_sizes({**run.wanted, **self._rows(run.inputs)})
        if self._cuts.find(plates, point.entries) is not None:
            return True
        self._watches(run)
        for program in self._until_lengths:
            with torch.enable_grad():
                run.execute(program)
            if self._cuts.find({**plates, **run.sizes}, point.entries) is not None:
                return True
        return False

    @cached_property
    def _draw_program(self) -> list[nd.Node]:
        """What draws, and nothing else."""
        return schedule([*self.graph.data, *self._draws.values()])

    @cached_property
    def _until_lengths(self) -> list[list[nd.Node]]:
        """The parts of the program that end where a trajectory is drawn."""
        lengths = [i + 1 for i, node in enumerate(self._program) if isinstance(node, nd.Sample) and node.time]
        return [self._program[start:end] for start, end in pairwise([0, *lengths])]

    def _rows(self, named: Mapping[str, Any]) -> dict[str, int]:
        """How many rows every plate of data has in some inputs."""
        return data_sizes(self.graph.data, named) if self.graph.data else {}

    def _replayed(self, point: Point, trace: Trace) -> tuple[Tensor, list[Tensor]]:
        """The value and gradient at a trace, cut if it is large."""
        cut = self._cuts.find(self._cuts.sizes(trace, self._rows(point.named)), point.entries)
        return self._accumulated(point, [Part(1.0, trace)]) if cut is None else self._in_chunks(point, trace, *cut)

    def _in_chunks(self, point: Point, trace: Trace, plate: Axis, length: int) -> tuple[Tensor, list[Tensor]]:
        """The value and gradient at a trace, in chunks of a plate."""
        parts = list(self._cuts.parts(trace, plate, length, self._rows(point.named)))
        try:
            return self._accumulated(point, parts)
        except SamplingError:
            self._diagnose(self._begun(Run(point.named, {}, trace)))  # names a draw by its place in the whole
            raise

    def _accumulated(self, point: Point, parts: Iterable[Part]) -> tuple[Tensor, list[Tensor]]:
        """The weighted sum of the values and of the gradients of some chunks."""
        total: list[Tensor] = []
        for weight, trace, piece in parts:
            of_rows = piece is not None and piece.plate.data  # they are cut out of the inputs
            found = None if self._lowering is None or of_rows else self._lowering.at(point, trace)
            value, gradient = found or self._pass(point, self._begun(Run(point.named, {}, trace, piece)))
            scaled = [leaf * weight for leaf in (value, *gradient)]
            total = list(map(torch.add, total, scaled)) if total else scaled
        return total[0], total[1:]

    def _pass(self, point: Point, run: Run) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            loss = self._surrogate(run)
        return loss.detach(), point.gradient(loss)

    @short_tracebacks()
    def lower(self, *inputs: Any, trace: Trace | None = None, sizes: Mapping[str, int] | None = None) -> Lowered:
        """The gradient as a flat program of tensor operations, for inputs like these: the same bits, without Python.

        What is recorded is one call: its operations, below autograd and `torch.vmap`. A call whose shapes, dtypes or
        sizes are others, or whose functions name other things, is refused; one in which Python would decide otherwise
        is interpreted. Draws of samplers that do not say `traceable = True` are made apart.

        Args:
            *inputs: the inputs of the graph, tensors on the CPU and numbers.
            trace: draws of which the program is a function; default: it draws.
            sizes: for fresh draws, sizes of plates by name, in place of the declared ones.

        Returns:
            A `Lowered`, for `value_and_grad(*inputs)`, or with a trace for `grad` and `surrogate(*inputs, trace)`.

        Raises:
            LoweringError: a function names what may change without a trace, looks at values where no record can tell,
                or does not give the same bits twice.

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Bernoulli
            >>> @sg.graph
            ... def objective(theta):
            ...     x = sg.sample("x", lambda t: Bernoulli(logits=t), theta, n=10)
            ...     return sg.mean(sg.apply(lambda x, t: (x - t) ** 2, x, theta))
            >>> compiled, theta = objective.compile(sg.SF()), torch.tensor(0.3)
            >>> lowered = compiled.lower(theta)
            >>> one = compiled.value_and_grad(theta, generator=torch.Generator().manual_seed(0))
            >>> other = lowered.value_and_grad(theta, generator=torch.Generator().manual_seed(0))
            >>> one == other
            True
        """
        self._refuse_drawn_sizes()
        with recorded():
            point = self._point("lower", inputs)
            return Lowered(self, point, _check_sizes(self.graph, sizes or {}), trace and held_still(trace))

    def explain(self) -> Any:
        """How every gradient path is counted: the ledger, bias and variance class, the estimator as a formula."""
        return explain(self)

    def _refuse_drawn_sizes(self) -> None:
        if self._expectations is not None and self._expectations.estimator.draws_sizes:
            raise LoweringError(
                f"{self.graph.name} cannot be lowered: {self._expectations.estimator} draws how many draws there are, "
                'and a flat program is for one size. Leave lowering="never"'
            )

    def _named(self, inputs: Any) -> dict[str, Any]:
        names = self.graph.inputs
        if len(inputs) != len(names):
            raise InputError(f"{self.graph.name} takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")
        given = dict(zip(names, map(_as_input, inputs), strict=True))
        for name in self.wrt:
            found = [leaf for leaf in pytree.tree_leaves(given[name]) if isinstance(leaf, torch.nn.Module)]
            if found:
                raise InputError(
                    f"{self.graph.name}: the input {name!r} holds a module, {type(found[0]).__name__}, and is to be "
                    f"differentiated. {_OF_A_MODULE}"
                )
        data_sizes(self.graph.data, given)  # refuses batches of different sizes
        return given

    def _run(self, inputs: Any, sizes: Mapping[str, int] | None, trace: Any = None) -> Run:
        return Run(self._named(inputs), _check_sizes(self.graph, sizes or {}), trace)

    def _begun(self, run: Run) -> Run:
        """A pass, and what the estimator of expectations says before anything is drawn."""
        if self._expectations is not None:
            self._expectations.estimator.begin(run, self._expectations)
        return run

    def _sampled(self, run: Run) -> Trace:
        """What a pass draws, and what is recorded of it."""
        with torch.no_grad():
            values = run.execute(self._value_program)
            if not in_transform():
                run.check_scores()
        self._check_supports(run)
        self._check_edges(run)
        log_probs = {name: values[node].detach() for name, node in self._scores.items()}
        nodes = {name: map_tensors(Tensor.detach, values[node]) for name, node in self._named_nodes.items()}
        value = self._scalar(values[self._value_root], run)
        return Trace(value, dict(run.draws), log_probs, dict(run.noise), nodes)

    def _surrogate(self, run: Run) -> Tensor:
        first = self._watches(run)
        loss = self._scalar(run.execute(self._program)[self._root], run)
        if first:
            check_captured(self.graph.order, self._program, run, loss)
            if not in_transform():
                check_pathwise(self._program, self._root, run.values, self.graph.objective)
            self._unseen.discard(in_transform())
        run.check_edges()
        if not in_transform() and not bool(loss.isfinite()):
            self._diagnose(run)
        return loss

    def _watches(self, run: Run) -> bool:
        """Have a first pass watched; whether it is one."""
        if run.watch is None and self._is_first(run):
            run.watch = Watch()
        return run.watch is not None

    def _is_first(self, run: Run) -> bool:
        """Whether nobody has looked yet where the derivatives of such a pass lead."""
        if in_transform() not in self._unseen or not torch.is_grad_enabled():
            return False
        wanted = tensors([run.inputs[name] for name in self.wrt])
        return in_transform() or any(leaf.requires_grad for leaf in wanted)

    def _check_supports(self, run: Run) -> None:
        """Score once more with gradients where only a built distribution shows that its support moves."""
        if not self._support_program or in_transform():
            return
        with torch.enable_grad():
            run.again(watched(run.inputs, self.graph.inputs)).execute(self._support_program)

    def _check_edges(self, run: Run) -> None:
        """Score once more with gradients where probabilities are 0 or 1: do they move with what is differentiated?"""
        names = [node.name for node in run.edges]
        if not names:
            return
        with torch.enable_grad():
            again = run.again(watched(run.inputs, self.wrt))
            again.execute(schedule(self._scores.get(name, self._draws[name]) for name in names))
        again.check_edges()

    def _diagnose(self, run: Run) -> None:
        """Find the draw behind a surrogate that is not finite. Scores inside updates are looked at too."""
        again = run.again(run.inputs)
        with torch.no_grad():
            again.execute(self._value_program)
        again.check_scores()

    def _scalar(self, value: Any, run: Run) -> Tensor:
        if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
            value = value.to(run.dtype)
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise SamplingError(
                f"the objective {self.graph.objective.name!r} of {self.graph.name!r} must be a real scalar, got {got}"
                + (f". {OF_A_BATCH}" if isinstance(value, Tensor) and value.dim() else "")
            )
        return value

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}: {estimator}" for name, estimator in self.estimators.items())
        return f"<Compiled {self.graph.name} wrt {', '.join(self.wrt)}; {chosen}>"


def _floats(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def watched(inputs: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The inputs, with gradients for those of the names."""
    leaf = lambda x: x.detach().requires_grad_() if _floats(x) else x  # noqa: E731
    return {name: pytree.tree_map(leaf, value) if name in names else value for name, value in inputs.items()}


def _as_input(tree: Any) -> Any:
    """Numbers as tensors, and tensors that can be differentiated."""
    if isinstance(tree, Tensor):
        return recordable(tree)
    if isinstance(tree, _NUMBERS):
        return torch.as_tensor(tree)
    return tree if pytree.tree_is_leaf(tree) else pytree.tree_map(_as_input, tree)


def _choose_inputs(graph: Declaration, wrt: str | tuple[str, ...] | None) -> tuple[str, ...]:
    chosen = (graph.inputs[0],) if wrt is None else (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for name in chosen:
        if name not in graph.inputs:
            raise CompileError(f"wrt={name!r}: {graph.name} has no such input; choose from {', '.join(graph.inputs)}")
    if len(set(chosen)) < len(chosen):
        raise CompileError(f"wrt={chosen!r} names an input twice: name each one once")
    return chosen


def _given(graph: Declaration, estimators: Any) -> dict[str, Any]:
    """The estimators as the user gave them, by sample node."""
    known = samples_in(graph.order)
    given = dict(estimators) if isinstance(estimators, Mapping) else dict.fromkeys(known, estimators)
    for name, estimator in given.items():
        if name not in known:
            raise CompileError(
                f"an estimator is given for {name!r}, but {graph.name} has no such sample node; "
                f"it has {', '.join(map(repr, known)) or 'none'}"
            )
        _check_kind(f"sample {name!r}", estimator)
    if not isinstance(estimators, Mapping):  # it also says how updates without a sample are differentiated
        _check_kind(graph.name, estimators)
    return given


def _check_kind(where: str, estimator: Any) -> None:
    if not isinstance(estimator, GradientEstimator):
        raise CompileError(f"{where}: {estimator!r} is not an estimator; use sg.SF(), sg.LSF(), sg.PW() ...")


def _constant_updates(graph: Declaration, estimators: Any, given: Mapping[str, Any]) -> set[nd.Update]:
    """The updates whose direction is not differentiated: all of them, or those that a sample of the estimator feeds."""
    updates = {node for node in graph.order if isinstance(node, nd.Update)}
    stopping = {name for name, estimator in given.items() if _stops(estimator)}
    if not isinstance(estimators, Mapping):
        return updates if _stops(estimators) else set()
    return {node for node in updates if not stopping.isdisjoint(data_of(node))}


def _stops(estimator: GradientEstimator) -> bool:
    return estimator.inside.stopped


def _assign(graph: Declaration, given: Mapping[str, Any], wrt: tuple[str, ...]) -> dict[str, Any]:
    """The estimator of every sample node that is scored.

    Nodes that depend on other inputs than the differentiated ones carry no gradient. They are scored all the same, so
    that a surrogate at other inputs is importance weighted. Nodes drawn from the parameters of an update are scored
    because the update's direction is made of their scores.
    """
    pathwise = [name for name, estimator in given.items() if not estimator.scored]
    needed = scored_samples(graph.order, [node for node in graph.sources if node.name in wrt], pathwise)
    for name, node in needed.items():
        if name not in given:
            raise CompileError(
                f"sample {name!r} (axes: {describe(node.axes)}) has no estimator, and its distribution depends on a "
                "differentiated input: give it one, sg.SF() for instance"
            )
    others = scored_samples(graph.order, graph.sources, [name for name in pathwise if name in needed])
    weighted = {s: SCORED for s, node in others.items() if not node.law.has_moving_support}
    starts = [node.params for node in graph.order if isinstance(node, nd.Update) and node.scores]
    inner = {s: given.get(s, SCORED) for s in scored_samples(graph.order, starts, pathwise)}
    found = {**weighted, **inner, **{name: given[name] for name in needed}}
    return {name: found[name] for name in samples_in(graph.order) if name in found}


def _check(graph: Declaration, estimators: Mapping[str, GradientEstimator], wrt: tuple[str, ...]) -> None:
    samples = samples_in(graph.order)
    routes = Routes(graph, [name for name, estimator in estimators.items() if not estimator.scored])
    for name, estimator in estimators.items():
        estimator.check(samples[name], routes)
    inputs = {node.name: node for node in graph.sources}
    for name in wrt:
        if not routes.arrive(inputs[name]):
            raise CompileError(
                f"the objective {graph.objective.name!r} does not depend on the input {name!r}, neither through "
                "values nor through a distribution: leave it out of wrt, or use it in the graph"
            )


def _check_sizes(graph: Declaration, sizes: Mapping[str, int]) -> Mapping[str, int]:
    if not sizes:
        return sizes
    plates = plates_in(graph.order)
    for name, size in sizes.items():
        if name in plates and plates[name].data:
            _refuse_size(f"{name!r} is a plate of data: its size is the number of rows that the inputs have")
        if name not in plates:
            _refuse_size(f"{name!r} is not a plate of {graph.name}; its plates are {', '.join(map(repr, plates))}")
        if not plate_size(size):
            _refuse_size(f"plate {name!r} needs at least one draw, an integer; got {size!r}")
    return {name: int(size) for name, size in sizes.items()}


def _refuse_size(message: str) -> NoReturn:
    raise SamplingError(f"sizes: {message}")
