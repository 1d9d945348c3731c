"""A flat program: the tensor operations of one call, recorded below autograd and transforms, in the order they ran.

NOTE [what Python has seen]
A recording has the operations, and none of the Python between them. Where Python looked at a value (`.item()`, `bool`,
`torch.equal`: the checks of distributions, those of log-probabilities, a solver's norm), the value that it saw is
recorded as a condition. A replay computes it anew; where it is another one, the replay is no result, and the call is
made by Python again. What Python can look at unseen is refused while recording: arrays of NumPy, lists, addresses, and
sizes that depend on values. What Python knows without tensors (numbers, functions, modes) is not seen here: `held` and
`signatures` compare it.

NOTE [what is written]
Operations in place are replayed as they are, in their order, on tensors that the program itself has made. Writing into
an input or into a tensor from outside would outlast the call, and is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors.exceptions import LoweringError
from ..tensors.indexing import getitem, in_transform
from .emission import emitted
from .simplification import describe, simplify, written_by

_LEAVES_TORCH = frozenset(
    getattr(Tensor, name) for name in "numpy tolist __array__ data_ptr untyped_storage storage __dlpack__".split()
)
_SIZED_BY_VALUES = (torch.Tag.dynamic_output_shape,)
_OF_ENTRIES = {  # what Python is told of all entries, and the operation that tells of each
    torch.ops.aten.equal.default: torch.ops.aten.eq.Tensor,
    torch.ops.aten.allclose.default: torch.ops.aten.isclose.default,
}
_NUMBER = (bool, int, float, complex)
_VIEWS_IN_PLACE = frozenset(["aten::squeeze_", "aten::unsqueeze_", "aten::t_", "aten::transpose_"])


class Flat:
    """A recorded program: a function of tensors, of the shapes and dtypes that it was recorded with.

    Attributes:
        module: the program; it returns its results, and the values of its conditions.
        expected: what the conditions must be.
    """

    def __init__(self, module: fx.GraphModule, expected: Sequence[Any], call: Callable[..., Any] | None = None) -> None:
        self.module, self.expected = module, list(expected)
        self._call = emitted(module) if call is None else call

    @property
    def code(self) -> str:
        """The program as text, an operation a line, with the name of the declared node that it belongs to."""
        return "\n".join(map(_line, self.module.graph.nodes))

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor] | None:
        """The results; `None` where a condition does not hold."""
        with torch.no_grad():
            results, numbers, flags = self._call(*arguments)
        seen = [number.item() for number in numbers]
        for together in flags:
            seen += together.tolist()
        return list(results) if seen == self.expected else None


class Recorded(NamedTuple):
    """The program, and the results of the call that it is a record of."""

    flat: Flat
    results: list[Tensor]


def record(fn: Callable[[], Sequence[Tensor]], arguments: Sequence[Tensor], place: Callable[[], str] = str) -> Recorded:
    """Call a function once, and record what it computes as a function of the arguments.

    Args:
        fn: a function of the arguments, which it has captured.
        arguments: what will be other tensors in other calls.
        place: names what is computed at the moment; every operation is labelled with it.

    Raises:
        LoweringError: the function does what a record would not tell.
    """
    recorder = _Recorder(arguments, place)
    with _Unseen(recorder.refuse), recorder:
        try:
            results = list(fn())
        except Exception as error:
            raise LoweringError(recorder.refusal or f"{type(error).__name__}: {error}") from error
    if recorder.refusal:  # whoever has caught it
        raise LoweringError(recorder.refusal)
    return Recorded(recorder.finish(results), results)


class _Unseen(TorchFunctionMode):
    """Refuses what Python sees of a tensor without an operation; an index of one entry is none of that."""

    def __init__(self, refuse: Callable[[str], NoReturn]) -> None:
        super().__init__()
        self.refuse = refuse

    def __torch_function__(
        self, fn: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if fn in _LEAVES_TORCH:
            self.refuse(f"values leave torch by .{fn.__name__}(), and what is computed of them is not recorded")
        one_entry = fn is Tensor.__getitem__ and not in_transform()  # in one torch itself looks at no value
        return getitem(*args) if one_entry else fn(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self, arguments: Sequence[Tensor], place: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.root, self.place = fx.Graph(), torch.nn.Module(), place
        self.known = WeakTensorKeyDictionary()  # the node of every tensor that still lives
        self.outside: set[object] = set()  # the memory of inputs and of what is captured
        self.conditions: list[tuple[fx.Node, Any]] = []
        self.refusal: str | None = None
        for i, argument in enumerate(arguments):
            self._know_outside(argument, self.graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # what is done here is no doing of the function that is recorded
            return self._record(func, args, kwargs or {})

    def refuse(self, why: str) -> NoReturn:
        """Stop. The first reason stays, whatever becomes of the error."""
        self.refusal = self.refusal or why
        raise LoweringError(why)

    def _record(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check(func, args, kwargs)
        node_args, node_kwargs = pytree.tree_map(self._node_of, (tuple(args), dict(kwargs)))
        result = func(*args, **kwargs)
        node = self.graph.call_function(_out_of_place(func), node_args, node_kwargs)
        node.meta["place"] = self.place()
        self._note(
            result, node, func, [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        )
        return result

    def _check(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(tag in func.tags for tag in _SIZED_BY_VALUES) and not _by_places(func, args):
            self.refuse(f"the size of what {func} returns depends on values")
        if kwargs.get("generator") is not None:
            self.refuse(f"{func} draws with a generator of its own")
        for written in written_by(func, args, kwargs):
            if self._is_outside(written):
                self.refuse(f"{func} writes into an input, or into a tensor that the graph captures")

    def _is_outside(self, tensor: Tensor) -> bool:
        return tensor not in self.known or self.known[tensor].meta["storage"] in self.outside

    def _node_of(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf not in self.known:  # captured, or made of numbers
            name = f"constant_{len(self.outside)}"
            self.root.register_buffer(name, leaf)
            self._know_outside(leaf, self.graph.get_attr(name))
        return self.known[leaf]

    def _note(self, result: Any, node: fx.Node, func: Any, read: Sequence[Tensor]) -> None:
        if isinstance(result, Tensor):
            self._know(result, node, read)
        elif isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._know(part, self.graph.call_function(_item, (node, i)), read)
        elif isinstance(result, _NUMBER):
            self._see(node, result, func)
        elif result is not None:
            self.refuse(f"{func} returns a {type(result).__name__}")

    def _see(self, node: fx.Node, value: Any, func: Any) -> None:
        """A value that Python has looked at becomes a condition, and its node the tensor that it was read from."""
        if value != value:
            self.refuse("Python has looked at a NaN")
        args: Any = node.args
        self.graph.erase_node(node)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.conditions.append((self._as_it_is(args[0]), value))
        elif func not in _OF_ENTRIES:
            self.refuse(f"{func} returns a {type(value).__name__}")
        elif func is not torch.ops.aten.equal.default or args[0].meta["shape"] == args[1].meta["shape"]:
            entries = self.graph.call_function(_OF_ENTRIES[func], args)
            self.conditions.append((self.graph.call_function(torch.ops.aten.all.default, (entries,)), value))

    def _as_it_is(self, source: fx.Node) -> fx.Node:
        """A number as it is at this place in the program, whatever is written there later."""
        number = self.graph.call_function(torch.ops.aten.view.default, (source, [])) if source.meta["shape"] else source
        number.meta.update(storage=source.meta["storage"], dtype=source.meta["dtype"])
        copy = self.graph.call_function(torch.ops.aten.clone.default, (number,))
        copy.meta.update(storage=object(), dtype=source.meta["dtype"])
        return copy

    def _know(self, tensor: Tensor, node: fx.Node, read: Sequence[Tensor] = ()) -> None:
        """A tensor, and what it was made of: it shows the memory of one of these, or memory of its own."""
        shown = (self.known[other].meta["storage"] for other in read if _storage(other) == _storage(tensor))
        describe(node, tensor, next(shown, object()))
        self.known[tensor] = node

    def _know_outside(self, tensor: Tensor, node: fx.Node) -> None:
        self._know(tensor, node)
        self.outside.add(node.meta["storage"])

    def finish(self, results: Sequence[Tensor]) -> Flat:
        """The program: results, numbers that Python has looked at, and flags, which are read all at once."""
        nodes = [self._result(result) for result in results]
        flags = [(node, value) for node, value in self.conditions if isinstance(value, bool)]
        numbers = [(node, value) for node, value in self.conditions if not isinstance(value, bool)]
        read = ([node for node, _ in flags],)
        together = [self.graph.call_function(torch.ops.aten.stack.default, read)] if flags else []
        self.graph.output((nodes, [node for node, _ in numbers], together))
        simplify(self.graph, self.root, nodes)
        module = fx.GraphModule(self.root, self.graph, "Flat")
        return Flat(module, [value for _, value in numbers + flags])

    def _result(self, tensor: Tensor) -> fx.Node:
        """A tensor that a caller may write into must not be one that the next call reads."""
        node = self._node_of(tensor)
        return self.graph.call_function(torch.ops.aten.clone.default, (node,)) if self._is_outside(tensor) else node


def _line(node: fx.Node) -> str:
    if node.op in ("placeholder", "get_attr"):
        dtype = str(node.meta["dtype"]).removeprefix("torch.")
        return f"{node.name}: {dtype}{list(node.meta['shape'])}"
    if node.op == "output":
        return f"return {node.args[0]}"
    given = [*map(str, node.args), *(f"{name}={value}" for name, value in node.kwargs.items())]
    called = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else "item"
    place = node.meta.get("place")
    return f"{node.name} = {called}({', '.join(given)})" + (f"  # {place}" if place else "")


def _item(parts: Sequence[Any], i: int) -> Any:
    return parts[i]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _out_of_place(func: OpOverload) -> Any:
    """Operations that give a tensor another shape are recorded as a view of it, which nobody has written into."""
    name = func._schema.name
    if name not in _VIEWS_IN_PLACE:
        return func
    return getattr(getattr(torch.ops.aten, name.removeprefix("aten::").removesuffix("_")), func._overloadname)


def _by_places(func: OpOverload, args: Sequence[Any]) -> bool:
    """True if an index picks entries by their places, and not those where a mask is true."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])
