"""Flat programs of a compiled graph: recorded for a signature, compared with the interpreter, guarded at every call.

The interpreter is the reference, and what is called wherever a program may not be used: other shapes, dtypes or sizes,
another function behind a name, a transform or a mode of torch, a check that fails. So a call is slower there, and never
another result. Draws are made in the order of the declaration by the same operations: a generator gives the same draws.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol, cast

import torch
from torch import Tensor

from ..derive.estimator import GradientEstimator
from ..distributions.laws import SamplerLaw
from ..errors.checks import require_known
from ..errors.exceptions import CompileError, LoweringError
from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..ir.traces import Trace
from ..lower.held import Held, is_own
from ..lower.inductor import Compilation
from ..lower.recording import Flat, record
from ..lower.signatures import Arguments, in_mode
from ..tensors.trees import map_tensors
from .gradient import Point
from .inputs import Inputs
from .passes import Place, Run, recorded, seeded
from .values import Values

_PROGRAMS = 8  # signatures that a graph keeps; the oldest goes
_AFTER = 20  # calls of a signature before it is recorded of itself
_BACKENDS = ("flat", "inductor")
_TRIALS = 2  # calls that are made both ways before a program is trusted
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}  # by which compiled results may differ, of their largest entry
_MISSES = 10  # calls in which a check failed, beyond those that succeeded, before a program is given up

Found = tuple[Tensor, list[Tensor]]


class Gradients(Protocol):
    """The gradients of a compiled graph, as the interpreter computes them."""

    def one_pass(self, point: Point, run: Run) -> Found:
        """The value and gradient of one pass."""

    def is_first(self, run: Run) -> bool:
        """True if the interpreter has not looked yet where the derivatives of such a pass lead."""

    def is_large(self, run: Run, point: Point) -> bool:
        """True if the interpreter cuts a pass."""


class Interpreter(Protocol):
    """A compiled graph."""

    graph: Declaration
    estimators: dict[str, GradientEstimator]
    _inputs: Inputs
    _values: Values
    _program: list[nd.Node]

    @property
    def _estimates(self) -> Gradients:
        """Its gradients."""


class Program:
    """A gradient as a flat program, of fresh draws or at a trace, for one signature.

    Attributes:
        flat: the program.
        signature: what it was recorded for.
        draws: whether it draws: nobody else may meanwhile.
        seconds: how long torch.compile took; `None` without it.
        same: whether results are those of the interpreter: the same bits, or to rounding if it is compiled.
    """

    def __init__(
        self, compiled: Interpreter, point: Point, arguments: Arguments, run: Run, backend: str = "flat"
    ) -> None:
        self.signature, self.draws = arguments.signature, not run.draws
        self.seconds: float | None = None
        self.same: Callable[[Found, Found], bool] = same_bits
        self.held = Held(_named_by(compiled, run), ["log_prob", "log_prob_stacked", *([] if run.draws else ["draw"])])
        run.place = Place()

        def gradient() -> Sequence[Tensor]:
            value, found = compiled._estimates.one_pass(point, run)
            return [value, *found]

        self.flat: Flat = record(gradient, arguments.tensors, run.place.name).flat
        changed = self.held.changed()
        if changed is not None:
            raise LoweringError(f"{changed!r} changes while the graph is computed: a function has effects")
        if backend == "inductor":
            self._compile(arguments, compiled.graph.name)

    def _compile(self, arguments: Arguments, name: str) -> None:
        compilation = Compilation(self.flat, arguments.tensors, name)
        self.flat, self.seconds, self.same = compilation.flat, compilation.seconds, same_to_rounding

    def __call__(self, arguments: Arguments) -> Found | None:
        """The value and gradient; `None` where a check failed, or an operation: the interpreter says what is wrong."""
        try:
            results = self.flat(arguments.tensors)
        except (RuntimeError, IndexError, ValueError):
            return None
        return None if results is None else (results[0], results[1:])


class Lowered:
    """A gradient of a compiled graph as a flat program, for inputs of one signature. Made by `Compiled.lower`.

    A check that fails, and a transform or a mode of torch, is the interpreter's: it gives the same draws and results,
    or says in words what is wrong.

    Attributes:
        module: the program, a `torch.fx.GraphModule` of operations below autograd. It returns its results, the value
            first, and what Python has looked at.
        code: the program as text, with the name of the declared node that every operation belongs to; `d x` is the
            derivative of `x`.
        notes: what is not in the program, and why; how long its compilation took.
    """

    def __init__(
        self, compiled: Interpreter, point: Point, sizes: Mapping[str, int], trace: Trace | None, backend: str = "flat"
    ) -> None:
        require_known(_BACKENDS, backend=backend)
        self._compiled, self._sizes, self._at_trace = compiled, dict(sizes), trace is not None
        cut = [] if trace is not None else cut_samplers(compiled)
        self._apart = bool(cut)
        with seeded(None, ()), torch.random.fork_rng(devices=[]):
            self._pass(point, self._drawn(point, trace))  # a first pass looks where derivatives lead
            seen = self._drawn(point, trace)
            self._program = Program(compiled, point, self._arguments(point, seen), self._run(point, seen), backend)
            for _ in range(_TRIALS):
                self._compare(point, self._drawn(point, trace))
        took = self._program.seconds
        self.notes = (*cut, *([] if took is None else [f"torch.compile took {took:.1f} s"]))
        self.module, self.code = self._program.flat.module, self._program.flat.code

    def value_and_grad(self, *inputs: object, generator: torch.Generator | None = None) -> tuple[Tensor, Any]:
        """One estimate, as `Compiled.value_and_grad` makes it.

        Args:
            *inputs: the inputs of the graph, of the shapes and dtypes that it was lowered for.
            generator: source of randomness; default: torch's default generators.

        Raises:
            LoweringError: the signature is another one, a function of the graph names other things now, or the program
                is one at a trace.
        """
        if self._at_trace:
            self._refuse("it was lowered at a trace, which .grad and .surrogate are functions of")
        with recorded():
            point = self._compiled._inputs.point("value_and_grad", inputs)
            with seeded(generator, point.named):
                value, gradient = self._found(point, self._drawn(point, None))
            return value, point.shaped(gradient)

    def grad(self, *inputs_and_trace: object) -> Any:
        """The gradient of `Compiled.surrogate` at a trace: `grad(*inputs, trace)`.

        Raises:
            LoweringError: as for `value_and_grad`; the program is not one at a trace.
        """
        with recorded():
            point, trace = self._given("grad", inputs_and_trace)
            return point.shaped(self._found(point, trace)[1])

    def surrogate(self, *inputs_and_trace: object) -> Tensor:
        """The value of `Compiled.surrogate` at a trace, a constant: `surrogate(*inputs, trace)`. See `grad`."""
        with recorded():
            return self._found(*self._given("surrogate", inputs_and_trace))[0]

    def _given(self, word: str, inputs_and_trace: Sequence[object]) -> tuple[Point, Trace]:
        *inputs, trace = inputs_and_trace
        if not self._at_trace:
            self._refuse("it was lowered for fresh draws, value_and_grad; hand a trace to lower(*inputs, trace=trace)")
        return self._compiled._inputs.point(word, inputs), held_still(cast(Trace, trace))

    def _drawn(self, point: Point, trace: Trace | None) -> Trace | None:
        """The trace that the program is given beside the inputs, or draws that are made apart."""
        apart = trace is None and self._apart
        return drawn(self._compiled._values.draw_program, Run(point.named, self._sizes)) if apart else trace

    def _found(self, point: Point, trace: Trace | None) -> Found:
        if in_mode():
            return self._pass(point, trace)
        arguments = self._arguments(point, trace)
        if arguments.signature != self._program.signature:
            self._refuse("shapes, dtypes, numbers or the structure of the inputs are others: lower it for these")
        changed = self._program.held.changed()
        if changed is not None:
            self._refuse(f"{changed!r} is another thing now: lower it again")
        before = torch.default_generator.get_state()
        found = self._program(arguments)
        if found is None and self._program.draws:
            torch.default_generator.set_state(before)
        return self._pass(point, trace) if found is None else found

    def _compare(self, point: Point, trace: Trace | None) -> None:
        before = torch.default_generator.get_state()
        found = self._program(self._arguments(point, trace))
        if not against_interpreter(found, before, lambda: self._pass(point, trace), self._program.same).same:
            self._refuse("its results are not those of the interpreter")

    def _arguments(self, point: Point, trace: Trace | None) -> Arguments:
        if trace is None:
            return fresh_arguments(point, self._sizes)
        return trace_arguments(list(self._compiled._values.draws), point, trace)

    def _run(self, point: Point, trace: Trace | None) -> Run:
        return Run(point.named, self._sizes if trace is None else {}, trace)

    def _pass(self, point: Point, trace: Trace | None) -> Found:
        return self._compiled._estimates.one_pass(point, self._run(point, trace))

    def _refuse(self, why: str) -> NoReturn:
        raise LoweringError(f"the flat program of {self._compiled.graph.name}: {why}")


@dataclass
class _Entry:
    """The record of one signature."""

    calls: int = 0
    program: Program | None = None
    agreed: int = 0
    missed: int = 0
    hit: int = 0
    is_cut: bool = False
    refusal: str | None = None


class Mode(NamedTuple):
    """A way to lower: after how many calls of a signature, whether to raise where it cannot be, and by what."""

    after: int
    strict: bool
    backend: str = "flat"


_MODES = {"auto": Mode(_AFTER, False), "flat": Mode(0, True), "inductor": Mode(0, True, "inductor")}
LOWERINGS = ("never", *_MODES)


class Lowering:
    """Which calls of a compiled graph run as flat programs: those of a signature that has been called often enough.

    Args:
        compiled: the compiled graph.
        mode: how it is lowered.
    """

    def __init__(self, compiled: Interpreter, mode: Mode) -> None:
        self.compiled, self.mode = compiled, mode
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._cut = bool(cut_samplers(compiled))
        self._is_due = False  # whether the present call is one of a signature that has been called often enough

    @property
    def draws_apart(self) -> bool:
        """True if draws come first, being cut out, and then a program at the trace: as long as none is refused."""
        return self._cut and self._is_due and all(entry.refusal is None for entry in list(self._entries.values()))

    def fresh(self, point: Point, sizes: Mapping[str, int]) -> Found | None:
        """The value and gradient for fresh draws, if there is a program; the lock of draws is held."""
        if self._cut:
            self._count(point, sizes)
            return None
        return self._choose(point, lambda: Run(point.named, sizes), lambda: fresh_arguments(point, sizes))

    def _count(self, point: Point, sizes: Mapping[str, int]) -> None:
        """Count a call whose draws are cut out."""
        try:
            entry = self._entry(fresh_arguments(point, sizes).signature)
        except LoweringError:
            self._is_due = False
            return
        entry.calls += 1
        self._is_due = entry.calls > self.mode.after

    def at(self, point: Point, trace: Trace) -> Found | None:
        """The value and gradient at a trace, if there is a program."""
        trace = held_still(trace)
        names = list(self.compiled._values.draws)
        return self._choose(point, lambda: Run(point.named, {}, trace), lambda: trace_arguments(names, point, trace))

    def _choose(self, point: Point, run: Callable[[], Run], arguments: Callable[[], Arguments]) -> Found | None:
        """The results of a program; `None` where the call is to be interpreted."""
        if in_mode():
            return None
        try:
            given = arguments()
            entry = self._entry(given.signature)
            self._prepare(entry, point, given, run)
        except LoweringError:
            if self.mode.strict:
                raise
            return None
        return (
            None
            if entry.program is None
            else self._run(entry, given, lambda: self.compiled._estimates.one_pass(point, run()))
        )

    def _entry(self, signature: Hashable) -> _Entry:
        entry = self._entries.pop(signature, None) or _Entry()
        self._entries[signature] = entry  # the last one used
        while len(self._entries) > _PROGRAMS:
            self._entries.popitem(last=False)
        return entry

    def _prepare(self, entry: _Entry, point: Point, given: Arguments, run: Callable[[], Run]) -> None:
        """Record a program where it is time for one; let go of one whose functions name other things now."""
        entry.calls += 1
        if entry.refusal is not None:
            if self.mode.strict:
                raise LoweringError(entry.refusal)
            return
        if entry.program is not None and entry.program.held.changed() is not None:
            entry.program, entry.agreed = None, 0
        if entry.program is None and entry.calls > self.mode.after:
            with seeded(None, ()), torch.random.fork_rng(devices=[]):
                self._record(entry, point, given, run)

    def _record(self, entry: _Entry, point: Point, given: Arguments, run: Callable[[], Run]) -> None:
        """Record a program, but of a pass that is cut: its chunks have programs of their own."""
        if not entry.is_cut and not run().draws:
            entry.is_cut = self.compiled._estimates.is_large(run(), point)
        if entry.is_cut:
            return
        if self.compiled._estimates.is_first(run()):  # which looks where derivatives lead
            self.compiled._estimates.one_pass(point, run())
        try:
            entry.program = Program(self.compiled, point, given, run(), self.mode.backend)
        except LoweringError as error:
            entry.refusal = f"{self.compiled.graph.name} has no flat program: {error}"
            raise LoweringError(entry.refusal) from error

    def _run(self, entry: _Entry, given: Arguments, interpreted: Callable[[], Found]) -> Found:
        assert entry.program is not None
        if entry.agreed < _TRIALS:
            with seeded(None, ()):  # nobody else may draw while the same draws are made twice
                return self._try(entry, entry.program, given, interpreted)
        before = torch.default_generator.get_state()
        found = entry.program(given)
        if found is None:
            if entry.program.draws:
                torch.default_generator.set_state(before)
            self._miss(entry)
            return interpreted()
        entry.hit += 1
        return found

    def _try(self, entry: _Entry, program: Program, given: Arguments, interpreted: Callable[[], Found]) -> Found:
        """The call made both ways."""
        before = torch.default_generator.get_state()
        found = program(given)
        compared = against_interpreter(found, before, interpreted, program.same)
        if found is None:
            self._miss(entry)
        elif compared.same:
            entry.agreed += 1
            return found
        else:
            self._give_up(entry, "its results were not those of the interpreter")
        return compared.expected

    def _miss(self, entry: _Entry) -> None:
        entry.missed += 1
        if entry.missed > entry.hit + _MISSES:
            self._give_up(entry, "what Python looks at is another value in most calls")

    def _give_up(self, entry: _Entry, why: str) -> None:
        entry.program = None
        entry.refusal = f"{self.compiled.graph.name} has no flat program: {why}"


def lowering_of(compiled: Interpreter, word: str) -> Lowering | None:
    """The lowering that `compile(lowering=...)` stands for; `None`: never.

    Raises:
        CompileError: another word.
    """
    if word not in LOWERINGS:
        raise CompileError(f"lowering={word!r} of {compiled.graph.name}: one of {', '.join(map(repr, LOWERINGS))}")
    return None if word == "never" else Lowering(compiled, _MODES[word])


class Compared(NamedTuple):
    """The results of the interpreter, and whether a program's, if it had any, were the same, the generator's too."""

    expected: Found
    same: bool


def against_interpreter(
    found: Found | None, before: Tensor, interpreted: Callable[[], Found], same: Callable[[Found, Found], bool]
) -> Compared:
    """Make a program's call again with the interpreter, from the generator's state before it."""
    after = torch.default_generator.get_state()
    torch.default_generator.set_state(before)
    expected = interpreted()
    drawn_alike = torch.equal(after, torch.default_generator.get_state())
    return Compared(expected, found is None or (drawn_alike and same(found, expected)))


def same_bits(found: Found, expected: Found) -> bool:
    """True if two values and gradients are the same, to the last bit; what is not a number is the same as itself."""
    pairs = zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True)
    return all(_same(left, right) for left, right in pairs)


def _same(left: Tensor, right: Tensor) -> bool:
    if (left.dtype, left.shape, left.stride()) != (right.dtype, right.shape, right.stride()):
        return False
    return left.detach().numpy().tobytes() == right.detach().numpy().tobytes()


def same_to_rounding(found: Found, expected: Found) -> bool:
    """True if two values and gradients differ by rounding alone, relative to the largest number among them."""
    lefts, rights = ([leaf.detach() for leaf in (value, *gradient)] for value, gradient in (found, expected))
    pairs = list(zip(lefts, rights, strict=True))
    if any((left.dtype, left.shape) != (right.dtype, right.shape) for left, right in pairs):
        return False
    finite = [right.isfinite() for right in rights]
    largest = max(
        (float(right[known].abs().max()) for right, known in zip(rights, finite, strict=True) if known.any()),
        default=0.0,
    )
    return all(
        torch.equal(left.isfinite(), known)
        and bool(((left - right)[known].abs() <= _ROUNDING.get(left.dtype, 0.0) * largest).all())
        for (left, right), known in zip(pairs, finite, strict=True)
    )


def cut_samplers(compiled: Interpreter) -> list[str]:
    """The samplers that may not be recorded: their draws are made apart, and the gradient is recorded at the trace."""
    samples = [node for node in compiled.graph.order if isinstance(node, nd.Sample)]
    return [
        f"sample {node.name!r} is drawn apart: {node.law.name} does not say traceable = True"
        for node in samples
        if isinstance(node.law, SamplerLaw) and not node.law.sampler.traceable
    ]


def drawn(program: Sequence[nd.Node], run: Run) -> Trace:
    """The draws of a pass, those that it has made already included."""
    run = run.continued()
    with torch.no_grad():
        run.execute(program)
    return Trace(draws=run.draws, noise=run.noise)


def fresh_arguments(point: Point, sizes: Mapping[str, int]) -> Arguments:
    """The arguments of a program of fresh draws."""
    return Arguments(list(point.named.values()), ["fresh", *sorted(sizes.items()), *point.wanted])


def held_still(trace: Trace) -> Trace:
    """The parts of a trace that a surrogate reads, as constants."""
    draws, log_probs, noise = map_tensors(_constant, (dict(trace.draws), dict(trace.log_probs), dict(trace.noise)))
    return Trace(draws=draws, log_probs=log_probs, noise=noise)


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def trace_arguments(names: Sequence[str], point: Point, trace: Trace) -> Arguments:
    """The arguments of a program at a trace."""
    recorded = [[found.get(name) for name in names] for found in (trace.draws, trace.log_probs, trace.noise)]
    return Arguments([list(point.named.values()), recorded], ["at a trace", *point.wanted])


def _named_by(compiled: Interpreter, run: Run) -> Iterator[tuple[str, Any]]:
    """Whatever a user has given to the graph, in words: of what draws, if it is asked."""
    asked = {node.sample.name for node in compiled.graph.order if hasattr(node, "sample")} | set(compiled.estimators)
    for node in dict.fromkeys([*compiled.graph.order, *_nested(compiled._program)]):
        if not is_own(type(node).__module__):
            raise LoweringError(f"{node.name!r} is a {type(node).__name__}, a node of one's own, whose code may change")
        is_silent = node.name in run.draws and node.name not in asked  # it was drawn, and nothing scores it
        law = None if is_silent else getattr(node, "law", None)
        arguments = getattr(node, "arguments", None) or getattr(node, "lr", None)
        given = [getattr(node, "fn", None), getattr(law, "factory", None), getattr(law, "sampler", None)]
        given += [getattr(node, name, None) for name in ("solver", "linear_solver", "discount")]
        given += [leaf for leaf in arguments.leaves if not isinstance(leaf, nd.Node)] if arguments else []
        for thing in given:
            yield f"what {node.name!r} is given", thing
    for name, estimator in compiled.estimators.items():
        yield f"the estimator of {name!r}", estimator


def _nested(program: Iterable[nd.Node]) -> Iterator[nd.Node]:
    """The nodes of a program, and those that nodes compute inside of themselves."""
    for node in program:
        yield node
        for inner in (*getattr(node, "programs", ()), getattr(node, "program", ())):
            yield from _nested(inner)
