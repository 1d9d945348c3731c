"""The nodes of a stochastic computation graph.

A node knows its inputs, its axes and how to compute its value from the values of its inputs. Nodes are immutable: the
compiler derives a surrogate by building new nodes (`with_inputs`) around the declared ones, never by changing them.

The kinds are few on purpose: an input, its rows (`Data`), a sample, a deterministic function of one draw (`Apply`,
`Select`), a reduction over axes (`Reduction`: linear; `Reduce`: anything else), an inner update (a gradient step, or
the solution for an unknown) and a stop-gradient.
"""

import copy
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..distributions.interfaces import SampleNode, Surroundings
from ..distributions.laws import Law
from ..errors.exceptions import CompileError, SamplingError
from ..errors.failures import raise_in_words
from ..solvers import LinearSolver, Solver
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, Axis, describe, union, without
from ..tensors.left_out import LeftOut
from ..tensors.trees import map_tensors, tensors
from .operations import Linearity, operation

# Integers that wrap around, and booleans, on which torch's + is an `or`: both are counted in whole numbers.
_SMALL = frozenset([torch.bool, torch.uint8, torch.int8, torch.int16])

_T = TypeVar("_T")


class Arguments:
    """The arguments of a call: a pytree of nodes and constants, with the nodes taken out in order."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.leaves, self.spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Node))
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Node)]
        self.nodes: tuple[Node, ...] = tuple(self.leaves[i] for i in self.places)
        self.positional = len(args)
        self.keywords = tuple(kwargs)
        self.given = [leaf for i, leaf in enumerate(self.leaves) if i not in self.places]
        self.constants = [leaf for leaf in self.given if isinstance(leaf, Tensor)]
        self.constant_dims = max((constant.dim() for constant in self.constants), default=0)
        given = [*args, *kwargs.values()]
        self.flat = len(given) == len(self.leaves) and all(map(operator.is_, given, self.leaves))
        self.simple = self.flat and not kwargs

    def fill(self, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """The call's `(args, kwargs)` with each node replaced by its value."""
        filled = self.leaves.copy()
        for place, value in zip(self.places, values, strict=True):
            filled[place] = value
        if self.simple:
            return filled, {}
        if self.flat:  # nothing is nested: no need of the pytree machinery, which costs more than a small torch call
            return filled[: self.positional], dict(zip(self.keywords, filled[self.positional :], strict=True))
        args, kwargs = pytree.tree_unflatten(filled, self.spec)
        return args, kwargs

    def mapped(self, values: Sequence[_T], constant: Callable[[Any], _T]) -> list[_T]:
        """The leaves in order: a value for each node, and what a function makes of each constant."""
        of_nodes = dict(zip(self.places, values, strict=True))
        return [of_nodes[i] if i in of_nodes else constant(leaf) for i, leaf in enumerate(self.leaves)]

    def bind(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` with the constants in their places: a function of the nodes' values alone."""
        bare = self.simple and len(self.places) == len(self.leaves)
        return fn if bare else partial(self._call, fn)

    def _call(self, fn: Callable[..., Any], *values: object) -> Any:
        args, kwargs = self.fill(values)
        return fn(*args, **kwargs)


class Ratio(Protocol):
    """A log-ratio in a box, as those read it who count it: `stochgraph.surrogate.terms.Weight`."""

    @property
    def sample(self) -> "Sample":
        """The sample whose draws it is of."""

    @property
    def aligned(self) -> Axes:
        """The axes that it is kept along."""

    @property
    def summed(self) -> Axes:
        """The sample's axes that are reduced."""

    @property
    def average(self) -> bool:
        """True if plates are averaged, not summed."""

    @property
    def across_time(self) -> str:
        """The number of times that products of scores at two time steps are counted."""


class Line(NamedTuple):
    """A line of a user's file, and the first one of the function that it is in."""

    file: str
    function: int
    number: int


class Watch(Protocol):
    """An observer that goes with a first pass into its updates, to see where derivatives lead."""

    objectives: list[Tensor]  # those that the pass itself does not differentiate through

    def look(self, program: Sequence["Node"], root: "Node", values: Mapping["Node", Any], goal: "Node") -> None:
        """Look at the values of a program whose root stands for a declared objective."""


class Place(Protocol):
    """An account of the node that is computed."""

    def enter(self, node: "Node") -> None:
        """From here on a node is computed."""


class Pass(Surroundings, Protocol):
    """A pass through a program, as the nodes see it that are evaluated in it.

    Attributes:
        draws: the draws so far, by sample.
        noise: the noise of the pathwise ones.
        values: the values so far.
        kept: what scores can reuse of the draws, by the node that drew.
        found: scores that updates hand over.
        edges: the samples with a probability at the edge, and whether it is differentiated.
        left_out: the draw that is left out, in a replay without it.
        portions: which draws of a plate count in its expectations, where not all do alike.
    """

    draws: dict[str, Any]
    noise: dict[str, list[Tensor]]
    values: dict["Node", Any]
    kept: dict["Node", Any]
    found: dict["Node", Tensor]
    edges: dict[SampleNode, bool]
    left_out: LeftOut | None
    portions: Mapping[Axis, "Portion"]

    @property
    def watch(self) -> Watch | None:
        """The observer of a first pass."""

    @property
    def place(self) -> Place | None:
        """The account of the node that is computed, where that is recorded."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The inputs, by name."""

    @property
    def log_probs(self) -> Mapping[str, Tensor]:
        """The recorded log-probabilities, by sample."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs."""

    @property
    def device(self) -> torch.device | None:
        """The device of the inputs."""

    def rows(self, plate: Axis, value: object, dim: int) -> Any:
        """The rows of this pass, of data whose rows are along a dimension."""

    def draw(self, node: "Sample", values: list[Any]) -> Any:
        """The value of a sample node."""

    def score(self, sample: "Sample", inputs: Sequence["Node"], values: list[Any]) -> Tensor:
        """The log-probability of each draw; `inputs` are the node that drew, or what stands for it, and the parents."""

    def leaving_out(self, left_out: LeftOut, log_probs: Mapping[str, Tensor]) -> "Pass":
        """This pass with one draw left out."""

    def replaying(self, log_probs: Mapping[str, Tensor]) -> "Pass":
        """This pass with other values in the place of draws."""

    def within(self, plate: Axis, size: int) -> "Pass":
        """This pass for some entries of a plate."""


class Node:
    """Base class. `index` is the place in the declaration; derived nodes keep the index of the node they stand for.

    Every kind states in which inputs it is linear: boxes, the ledger and chunks go by that, and refuse what does not.
    """

    kind = "node"
    moves_boxes = False  # whether a box may become boxes of the inputs in which the value is linear
    adds = False  # whether it has summands, constants among them, which a draw may miss
    flat = False  # whether its derivative is zero wherever it has one
    vanishes = False  # whether it is zero, whatever its inputs are
    transparent = False  # whether it is no station on the paths through it, being added by the compiler
    over: Axes = ()  # the axes that are reduced
    totals: Axes = ()  # those of them that are summed, not averaged
    averages: Axes = ()  # those of them that a linear mean is taken over
    is_draw = False  # whether it is drawn: its value stays where its parents move, unless it is pathwise
    pathwise = False  # whether it is drawn, and the draw itself moves with its parents
    relaxed = False  # whether it is pathwise, and drawn from another law than the declared one
    stops = False  # whether it is a constant by declaration
    solves: frozenset["Node"] = frozenset()  # the unknowns that it solves for
    opens: frozenset["Node"] = frozenset()  # the unknown that it is
    within: Axes | None = None  # of a draw the plates that it says it lies in; nothing said: `None`
    inner: Sequence["Node"] = ()  # the program that it evaluates inside of itself
    given: Sequence[object] = ()  # the functions and constants that the user gave it
    counts: Sequence["Ratio"] = ()  # the ratios with which it boxes what it carries: distributions that are counted
    compares: frozenset[str] = frozenset()  # the samples whose costs are compared in it, so that no scores are summed
    compares_below: frozenset[str] = frozenset()  # the same of the boxes in what it carries
    late = False  # whether it is evaluated as late as its users allow, and not in the order of the declaration
    carries = True  # whether its value depends on its inputs in a way that any result depends on
    named = False  # whether the user gave it its name, with name=
    declared_at: Line | None = None
    programs: Sequence[list["Node"]] = ()  # the nodes that it evaluates on its own, in order
    free: frozenset["Node"]  # the placeholders of updates that the value depends on

    def __init__(self, name: str, index: int, inputs: Sequence["Node"]) -> None:
        self.name = name
        self.index = index
        self.inputs: tuple[Node, ...] = tuple(inputs)
        self.prepare()

    def prepare(self) -> None:
        """Work out all that can be known from the inputs' axes, once, so that no evaluation needs to."""
        self.axes: Axes = self.infer_axes()
        self.input_axes = [node.axes for node in self.inputs]
        self.free = frozenset[Node]().union(*(node.free for node in self.inputs))
        in_line = len(self.inputs) == 2 and all(axes in ((), self.axes) for axes in self.input_axes)
        self._lead = len(self.input_axes[0]) - len(self.input_axes[1]) if in_line else None

    def infer_axes(self) -> Axes:
        """The axes of the value, from the axes of the inputs."""
        return union(*(node.axes for node in self.inputs))

    @property
    def mixes(self) -> Axes:
        """The axes along which one entry of the value depends on other entries of the inputs."""
        return ()

    @property
    def expected(self) -> Axes:
        """The plates over which it takes an expectation, estimated with the mean of the draws."""
        return ()

    @property
    def held(self) -> bool:
        """True for a draw that stays as it was drawn."""
        return self.is_draw and not self.pathwise

    @property
    def shares(self) -> Axes:
        """The axes whose entries cannot each have a copy of the inputs to themselves: the node combines them."""
        return self.over

    @property
    def new_plate(self) -> Axis | None:
        """The plate that it adds, if it adds one."""
        return None

    def role(self, i: int) -> str:
        """The role of an input, in pictures."""
        return "value"

    @property
    def carried_places(self) -> Sequence[int]:
        """The inputs whose value is carried on in its own."""
        return [i for i, node in enumerate(self.inputs) if node.carries]

    @property
    def carried(self) -> Sequence["Node"]:
        """The nodes whose value is carried on in its own: what lies on the paths of derivatives."""
        return [self.inputs[i] for i in self.carried_places]

    @property
    def part_of(self) -> "Node | None":
        """The node that it is a field or an entry of, if it is one."""
        return None

    @property
    def spelling(self) -> str:
        """The value as Python of torch, with `{}` for each input, of an estimator's node; empty: it has none."""
        return ""

    @property
    def linear(self) -> Linearity:
        """The inputs in which the value is affine."""
        raise CompileError(
            f"node {self.name!r} (axes: {describe(self.axes)}): {type(self).__name__} does not say in which inputs it "
            "is linear, so that nothing can be said of what passes through it. Give the class an attribute `linear`, "
            "one of stochgraph.ir.operations.Linearity; NOWHERE is right for anything"
        )

    def linear_in(self, touched: Collection[int]) -> bool:
        """True if the value is affine in the inputs at these places together, the others held."""
        return self.linear.holds(touched)

    def with_inputs(self, inputs: Sequence["Node"]) -> "Node":
        """This node on other inputs; itself if they are the same."""
        if all(new is old for new, old in zip(inputs, self.inputs, strict=True)):
            return self
        node = copy.copy(self)
        node.inputs = tuple(inputs)
        node.prepare()
        return node

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        """The value, from the values of the inputs."""
        raise NotImplementedError

    def broadcast(self, values: list[Any]) -> list[Any]:
        """The values of the inputs, aligned for an elementwise operation."""
        if self._lead is not None:  # two operands in line: broadcasting is torch's own if their events have one rank
            left, right = values
            if isinstance(left, Tensor) and isinstance(right, Tensor) and left.dim() - right.dim() == self._lead:
                return values
        return values if len(values) == 1 else vz.broadcast(values, self.input_axes, self.axes)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} axes={self.axes}>"


class Input(Node):
    """A parameter (a pytree of tensors) or data handed to the graph."""

    kind = "input"
    linear = Linearity.NOWHERE

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        return run.inputs[self.name]


class Data(Node):
    """An input, or a part of one, whose leading dimension is a plate."""

    kind = "data"
    linear = Linearity.IN_ALL

    def __init__(self, name: str, index: int, base: Node, plate: Axis) -> None:
        self.plate = plate
        super().__init__(name, index, [base])

    def infer_axes(self) -> Axes:
        return union(self.inputs[0].axes, self.shares)

    @property
    def new_plate(self) -> Axis:
        return self.plate

    @property
    def shares(self) -> Axes:
        return (self.plate,)

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        """The rows of the pass. In an update of the input itself its copies may have plates in front of them."""
        dim, place = len(self.input_axes[0]), self.axes.index(self.plate)
        value = run.rows(self.plate, values[0], dim)
        return value if dim == place else map_tensors(lambda leaf: leaf.movedim(dim, place), value)


class Apply(Node):
    """A deterministic function of one draw, mapped over every axis of its inputs."""

    kind = "apply"
    moves_boxes = True

    def __init__(self, name: str, index: int, fn: Callable[..., Any], arguments: Arguments) -> None:
        self.fn = fn
        self.arguments = arguments
        self.given = [fn, *arguments.given]
        self.operation = operation(fn)
        self.adds, self.flat = bool(self.operation.signs), self.operation.flat
        # Broadcasting would take the dimensions of a constant tensor for plates: vmap tells them apart.
        self.elementwise = arguments.flat and not arguments.constant_dims and self.operation.elementwise
        self._call = arguments.bind(fn)
        super().__init__(name, index, arguments.nodes)

    @property
    def linear(self) -> Linearity:
        """In nodes that are operands themselves; nothing is known of those inside of a pytree."""
        return self.operation.linear if self.arguments.simple else Linearity.NOWHERE

    def linear_in(self, touched: Collection[int]) -> bool:
        return self.linear.holds([self.arguments.places[i] for i in touched])

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        if self.operation.whole:
            values = [v.long() if isinstance(v, Tensor) and v.dtype in _SMALL else v for v in values]
        if self.elementwise:
            try:
                return self._call(*self.broadcast(values))
            except Exception as error:
                raise_in_words(error, _label(self), "its operation", self.fn, values, len(self.axes))
        aligned = [vz.align_tree(v, axes, self.axes) for v, axes in zip(values, self.input_axes, strict=True)]
        if not self.axes:  # a function may change its own containers, and not those of the trace
            aligned = [map_tensors(lambda leaf: leaf, value) for value in aligned]
        with _named(self, self.fn, aligned, len(self.axes), self.arguments.constants):
            return vz.vectorize(self._call, len(self.axes))(*aligned)


class Select(Node):
    """One field or one constant index of a value: `tau.reward`, `theta["w"]`, `x[0]`."""

    kind = "select"
    linear = Linearity.IN_ALL

    def __init__(self, name: str, index: int, base: Node, key: Any, attribute: bool) -> None:
        self.key = key
        self.attribute = attribute
        super().__init__(name, index, [base])

    def prepare(self) -> None:
        """Also the key with the dimensions of the axes in front. A lone integer stays one: torch is faster with it."""
        super().prepare()
        own = self.key if isinstance(self.key, tuple) else (self.key,)
        lone = isinstance(self.key, int) and not self.axes
        self._place = self.key if lone else (slice(None),) * len(self.axes) + own

    @property
    def part_of(self) -> Node:
        return self.inputs[0]

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        return self.read(values[0])

    def read(self, value: Any) -> Any:
        """The field of a value."""
        try:
            if self.attribute:
                return self._attribute(value)
            return value[self._place if isinstance(value, Tensor) else self.key]
        except (AttributeError, LookupError) as error:
            base = self.inputs[0]
            error.add_note(f"node {base.name!r} (axes: {describe(base.axes)}) has no {self.key!r} in one draw")
            raise

    def _attribute(self, value: object) -> Any:
        """A field of a pytree; or what a tensor says of itself, which here means: of one draw."""
        if not isinstance(value, Tensor) or not self.axes:
            return getattr(value, self.key)
        one = getattr(value[(0,) * len(self.axes)], self.key)
        mapped = vz.vectorize(lambda draw: getattr(draw, self.key), len(self.axes))
        return mapped(value) if isinstance(one, Tensor) else one


class Portion(NamedTuple):
    """Which draws of a plate count in its expectations: weights that sum to 1 along the plate, and their axes."""

    weights: Tensor
    axes: Axes


class Reduction(Node):
    """A linear reduction over axes: a mean over plates, or a sum over time, discounted or not.

    Of a mean with `population` the expectation is meant, which its draws estimate.
    """

    kind = "reduction"
    linear = Linearity.IN_ALL
    moves_boxes = True

    def __init__(
        self,
        name: str,
        index: int,
        base: Node,
        over: Axes,
        mean: bool,
        discount: float | Tensor | None = None,
        population: bool = False,
    ) -> None:
        self.over = over
        self.averages, self.totals = (over, ()) if mean else ((), over)
        self.mean = mean
        self.population = population
        # A tensor is a constant: nothing is differentiated with respect to it.
        self.discount = discount.detach() if isinstance(discount, Tensor) else discount
        super().__init__(name, index, [base])

    def infer_axes(self) -> Axes:
        return without(self.inputs[0].axes, self.over)

    @property
    def mixes(self) -> Axes:
        return self.over

    def prepare(self) -> None:
        super().prepare()
        self._dims = tuple(i for i, axis in enumerate(self.input_axes[0]) if axis in self.over)

    @property
    def expected(self) -> Axes:
        return self.over if self.population else ()

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        return map_tensors(lambda leaf: self._reduce(leaf, run), values[0])

    def _reduce(self, value: Tensor, run: Pass) -> Tensor:
        if not self._dims:
            return value
        counts = not (value.is_floating_point() or value.is_complex())
        if counts and (self.mean or self.discount is not None):
            value = value.to(run.dtype)
        if run.left_out is not None and run.left_out.plate in self.over:
            return self._reduce_without(value, run.left_out)
        portions = [run.portions[axis] for axis in self.expected if axis in run.portions]
        if portions:
            return self._expectation(value, portions)
        if self.mean:
            whole = value.dim() == len(self._dims)  # has a derivative of its own, which is cheaper
            return value.mean() if whole else value.mean(self._dims)
        if self.discount is not None:
            value = value * _powers(self.discount, value, self._dims[-1])
        return value.sum(self._dims)

    def _expectation(self, value: Tensor, portions: Sequence[Portion]) -> Tensor:
        """The weighted mean; plates of which all draws count have equal weights."""
        axes, event = self.input_axes[0], value.dim() - len(self.input_axes[0])
        counts = prod(value.shape[d] for d in self._dims)
        for weights, own in portions:
            count = value.shape[axes.index(own[-1])]
            aligned = vz.align(weights, own, axes)
            value = value * aligned.reshape([*aligned.shape, *[1] * event]).to(value.dtype)
            counts //= count
        return value.sum(self._dims) / counts

    def _reduce_without(self, value: Tensor, left_out: LeftOut) -> Tensor:
        """Means are over the other draws; sums are scaled up to as many draws as there are."""
        mean = left_out.mean(value, self.input_axes[0], self._dims)
        return mean if self.mean else mean * prod(value.shape[d] for d in self._dims)


def _powers(base: float | Tensor, value: Tensor, dim: int) -> Tensor:
    """`base**t` along a dimension of `value`."""
    steps = torch.arange(value.shape[dim], dtype=value.dtype, device=value.device)
    return (base**steps).reshape([-1] + [1] * (value.dim() - dim - 1))


class Reduce(Node):
    """Any other function of whole axes: `fn` sees the reduced axes as leading dimensions of its argument."""

    kind = "reduce"
    linear = Linearity.NOWHERE

    def __init__(self, name: str, index: int, base: Node, over: Axes, fn: Callable[..., Any]) -> None:
        self.over = self.totals = over
        self.fn = fn
        self.given = [fn]
        super().__init__(name, index, [base])

    def infer_axes(self) -> Axes:
        return without(self.inputs[0].axes, self.over)

    @property
    def mixes(self) -> Axes:
        return self.over

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        axes = self.inputs[0].axes
        kept = [i for i, axis in enumerate(axes) if axis not in self.over]
        value = map_tensors(lambda leaf: leaf.movedim(kept, tuple(range(len(kept)))), values[0])
        with _named(self, self.fn, [value], len(kept)):
            return vz.vectorize(self.fn, len(kept))(value)


@contextmanager
def _named(
    node: Node, fn: Callable[..., Any], values: list[Any], dims: int, constants: Sequence[Tensor] = ()
) -> Iterator[None]:
    """Errors of a user's function, in words; and a refusal of functions that write into their arguments."""
    read = [*values, *constants]
    before = _versions(read)
    try:
        yield
    except Exception as error:
        raise_in_words(error, _label(node), "its function", fn, values, dims)
    if _versions(read) != before:
        raise SamplingError(
            f"{_label(node)}: its function changes one of its arguments in place, which other nodes read, and the "
            "trace. What it has written stays there: make inputs and traces anew. Use the operation that makes a new "
            "tensor, or x.clone() first"
        )


def _label(node: Node) -> str:
    return f"node {node.name!r} (axes: {describe(node.axes)})"


def _versions(values: list[Any]) -> list[int]:
    """The number of times that each tensor was written into. What was made in inference mode does not count it."""
    return [leaf._version for value in values for leaf in tensors(value) if not leaf.is_inference()]


class Stop(Node):
    """Stop-gradient: the value is held constant; the distribution that it was drawn from is still accounted for."""

    kind = "stop"
    linear = Linearity.IN_ALL
    stops = True
    flat = True

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        return map_tensors(Tensor.detach, values[0])


class Zero(Node):
    """Zeros like the values of its input: what is left of a summand that a draw does not reach."""

    kind = "zero"
    linear = Linearity.IN_ALL
    vanishes = True
    carries = False

    def __init__(self, base: Node) -> None:
        super().__init__(f"0 * {base.name}", base.index, [base])

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        return map_tensors(torch.zeros_like, values[0])


class Sample(Node):
    """A draw from `law(*parents)`, with an i.i.d. plate of its own if `plate` is given.

    `within` holds plates that it is drawn in whether or not a parent is; `None` if nothing was said of them.
    """

    kind = "sample"
    linear = Linearity.NOWHERE
    is_draw = True

    def __init__(
        self,
        name: str,
        index: int,
        law: Law,
        arguments: Arguments,
        plate: Axis | None,
        time: Axis | None,
        n: int | None,
        within: Axes | None = None,
    ) -> None:
        self.law = law
        self.arguments = arguments
        self.plate = plate
        self.time = time
        self.n = n
        self.within = within
        self.given = [law.source, *arguments.given]
        self.declared = self  # also of copies with other parents: what is recorded has the axes of this one
        self.event_dims = law.event_dims(arguments)
        super().__init__(name, index, arguments.nodes)

    @property
    def new_plate(self) -> Axis | None:
        return self.plate

    def role(self, i: int) -> str:
        return "parent"

    def infer_axes(self) -> Axes:
        own = [axis for axis in (self.plate, self.time) if axis is not None]
        return union(*(node.axes for node in self.inputs), self.within or (), own)

    def prepare(self) -> None:
        """Work out four more.

        `parent_axes`: the axes along which the draws have parents of their own. `plates`: the axes of whole draws, all
        but the draw's own time axis. `repeats`: those along which draws of the same parents are repeated. `drawn_axes`:
        the axes in the order in which torch draws, what is repeated in front.
        """
        super().prepare()
        self.parent_axes = union(*self.input_axes)
        self.plates = without(self.axes, [self.time] if self.time else [])
        self.repeats = without(self.plates, self.parent_axes)
        self.drawn_axes = (*self.repeats, *self.parent_axes)

    def evaluate(self, run: Pass, values: list[Any]) -> Any:
        return run.draw(self, values)


class LogProb(Node):
    """The log-probability of each draw of a sample node, and of each of its time steps."""

    kind = "log_prob"
    linear = Linearity.NOWHERE

    def __init__(self, name: str, index: int, sample: Sample) -> None:
        self.sample = sample
        super().__init__(name, index, [sample, *sample.inputs])

    def evaluate(self, run: Pass, values: list[Any]) -> Tensor:
        return run.score(self.sample, self.inputs, values)


class Update(Node):
    """Base class: new parameters from old ones and an inner objective."""

    kind = "update"
    linear = Linearity.NOWHERE
    roles = ("params", "objective")  # what the first inputs are; those that follow are step sizes
    scores = True  # whether its direction is made of the scores of what is drawn from its parameters

    def role(self, i: int) -> str:
        return self.roles[i] if i < 2 else "rate"

    @property
    def params(self) -> Node:
        """The parameters before the update."""
        return self.inputs[0]

    @property
    def objective(self) -> Node:
        """The declared inner objective."""
        return self.inputs[1]

    @property
    def variable(self) -> Node:
        """The node that the inner objective is a function of: the compiler puts a placeholder in its place."""
        return self.params

    @property
    def before(self) -> Node:
        """The parameters that it makes new ones of: one step of a chain of updates back."""
        return self.params

    @property
    def origin(self) -> Node:
        """The start of the chain of updates that it is part of."""
        node: Node = self
        while isinstance(node, Update):
            node = node.before
        return node

    @property
    def word(self) -> str:
        """The word that declares it."""
        raise NotImplementedError


class Step(Update):
    """`params + sign * lr * gradient of objective`, the gradient being that of the objective's own surrogate."""

    def __init__(self, name: str, index: int, params: Node, objective: Node, lr: Arguments, sign: int) -> None:
        self.lr = lr
        self.given = lr.given
        self.sign = sign
        super().__init__(name, index, [params, objective, *lr.nodes])

    @property
    def word(self) -> str:
        return "ascend" if self.sign > 0 else "descend"


class Direction(Update):
    """The gradient of the objective's own surrogate itself: what optimisers make a step of."""

    word = "gradient"


class Unknown(Node):
    """Stands for the parameters that an implicit update solves for. It has no value outside the update's objective."""

    kind = "unknown"
    linear = Linearity.NOWHERE

    def __init__(self, name: str, index: int, like: Node) -> None:
        self.like = like  # no input: the unknown does not depend on what it is like
        super().__init__(name, index, [])
        self.opens = frozenset([self])

    def infer_axes(self) -> Axes:
        return self.like.axes


class Argmax(Update):
    """The unknown that maximises the objective. The solver starts at `params`, which is a `Stop`."""

    word = "argmax"
    roles = ("init", "objective")
    scores = False

    def __init__(
        self,
        name: str,
        index: int,
        params: Stop,
        objective: Node,
        unknown: Unknown,
        solver: Solver,
        linear_solver: LinearSolver,
    ) -> None:
        self.unknown = unknown
        self.solves = frozenset([unknown])
        self.solver = solver
        self.linear_solver = linear_solver
        super().__init__(name, index, [params, objective])

    def infer_axes(self) -> Axes:
        return union(self.unknown.axes, self.objective.axes)

    @property
    def variable(self) -> Node:
        return self.unknown

    @property
    def before(self) -> Node:
        return self.unknown.like
