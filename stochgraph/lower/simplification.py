"""The parts a flat program can spare: copies that only autograd needed, operations made twice, results nobody reads.

None of this moves a bit: an operation goes where another one has made the same tensor, where its result is the same at
every call, or where nobody reads it. What is written into is left alone, and so is whatever draws.

NOTE [the same tensor]
Two views of one tensor with the same shape, strides and offset are the same entries of memory, whatever is written
there: the later one is read as the earlier one. Memory is told apart by the operation that made it, not by its address:
in another call two inputs may share theirs, or not.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

_aten = torch.ops.aten
_OF_SIZES_ALONE = frozenset(
    "zeros ones full arange eye linspace scalar_tensor zeros_like ones_like full_like new_zeros new_ones "
    "new_full".split()
)
_LARGEST_CONSTANT = 1 << 16  # bytes that a program keeps, for a result that it need not compute


def simplify(graph: fx.Graph, root: torch.nn.Module, wanted: Iterable[fx.Node]) -> None:
    """Take away what a program does not need.

    Args:
        graph: of operations, each with what `describe` notes.
        root: where constants are kept.
        wanted: its results, each of which stays a tensor of its own.
    """
    kept = set(wanted)
    written = {node.meta.get("storage") for call in graph.nodes for node in _written_nodes(call)}
    _merge(graph, kept, written)
    _fold(graph, root, kept, written)
    for node in reversed(graph.nodes):
        node.meta.pop("tensor", None)
        if node.op not in ("placeholder", "output") and not node.users and not _matters(node):
            graph.erase_node(node)


def describe(node: fx.Node, tensor: Tensor, storage: object) -> None:
    """Note what is known of a node's value: its memory, shape and dtype; the value itself, of a small constant.

    Args:
        node: a node of a program.
        tensor: its value.
        storage: stands for the memory that it shows.
    """
    node.meta["storage"] = storage
    node.meta["dtype"], node.meta["shape"] = tensor.dtype, tensor.shape
    if not (tensor.is_conj() or tensor.is_neg()):
        node.meta["place in memory"] = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    if _is_constant(node) and tensor.untyped_storage().nbytes() <= _LARGEST_CONSTANT:
        node.meta["tensor"] = tensor


def _is_constant(node: fx.Node) -> bool:
    """True if a value is the same at every call: it is made of sizes and numbers alone, small ones on the way."""
    if node.op != "call_function" or _matters(node):
        return False
    return _of_sizes_alone(node) or (
        bool(node.all_input_nodes) and all("tensor" in n.meta for n in node.all_input_nodes)
    )


def written_by(func: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operation writes into, tensors or what stands for them."""
    if not isinstance(func, torch._ops.OpOverload) or not func._schema.is_mutable:
        return
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from pytree.tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name))


def _written_nodes(call: fx.Node) -> Iterator[fx.Node]:
    found = written_by(call.target, call.args, call.kwargs)
    return (node for node in found if isinstance(node, fx.Node))


def _matters(node: fx.Node) -> bool:
    """True if a node does more than return its value: it writes, or moves a generator on."""
    func = node.target
    return isinstance(func, torch._ops.OpOverload) and (
        func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags
    )


def _merge(graph: fx.Graph, kept: set[fx.Node], written: set[Any]) -> None:
    """Read an earlier node of the same value in the place of a later one."""
    made: dict[Hashable, fx.Node] = {}
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        roots[node] = roots.get(_viewed(node), node)
        keys: list[Hashable] = [(roots[node], node.meta["place in memory"])] if "place in memory" in node.meta else []
        if node.op == "call_function" and not _matters(node) and not _touches(node, written):
            keys += _calls(node)
        same = _copied(node, written) or next((made[key] for key in keys if key in made), None)
        if same is None or node in kept or node.op != "call_function" or _matters(node):
            made.update((key, node) for key in keys if key not in made)
        else:
            node.replace_all_uses_with(same)


def _viewed(node: fx.Node) -> Any:
    """The node whose memory this one shows, if it is not its own."""
    storage = node.meta.get("storage")
    return next((parent for parent in node.all_input_nodes if parent.meta.get("storage", node) == storage), None)


def _calls(node: fx.Node) -> list[Hashable]:
    """The function with its arguments; parts of several results are told apart by their number."""
    given = repr((node.target, node.args, node.kwargs))  # in which 0.0 is not -0.0, nor 1 True
    return [given] if "storage" in node.meta else []


def _copied(node: fx.Node, written: set[Any]) -> fx.Node | None:
    """The argument that the result is a copy of, if neither is written into."""
    first_power = node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1
    if not (first_power or node.target is _aten.clone.default) or _touches(node, written):
        return None
    (source,) = node.all_input_nodes
    return source if _layout(source) == _layout(node) else None


def _layout(node: fx.Node) -> Any:
    _, *layout = node.meta.get("place in memory", (0, torch.Size(), (), node.meta["dtype"]))
    return layout


def _touches(node: fx.Node, written: set[Any]) -> bool:
    read = (parent.meta.get("storage") for parent in node.all_input_nodes)
    return node.meta.get("storage") in written or not written.isdisjoint(read)


def _fold(graph: fx.Graph, root: torch.nn.Module, kept: set[fx.Node], written: set[Any]) -> None:
    """Keep small results that are the same at every call."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        made_alike = _of_sizes_alone(node) or constant.issuperset(node.all_input_nodes)
        if "tensor" in node.meta and made_alike and not _touches(node, written):
            constant.add(node)
    for node in constant - kept:
        if not constant.issuperset(node.users):
            _hold(graph, root, node)


def _of_sizes_alone(node: fx.Node) -> bool:
    func = node.target
    return isinstance(func, torch._ops.OpOverload) and func._schema.name.removeprefix("aten::") in _OF_SIZES_ALONE


def _hold(graph: fx.Graph, root: torch.nn.Module, node: fx.Node) -> None:
    name = f"kept_{node.name}"
    root.register_buffer(name, node.meta["tensor"])
    with graph.inserting_before(node):
        held = graph.get_attr(name)
    held.meta.update(node.meta)
    node.replace_all_uses_with(held)
