"""What a flat program does not need: copies that only autograd needed, operations made twice, results nobody reads.

None of this moves a bit: an operation goes where another one has made the same tensor, or where nobody reads it. What
is written into is left alone, and so is whatever draws.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

_aten = torch.ops.aten
_SAME = frozenset([_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default])
# These return their argument where its shape is already what they are asked for.
_SAME_IN_SHAPE = frozenset([_aten.view.default, _aten.expand.default, _aten._unsafe_view.default, _aten.squeeze.dim])


def simplify(graph: fx.Graph, wanted: Iterable[fx.Node]) -> None:
    """Take away what the wanted nodes do not need."""
    kept = set(wanted)
    written = {node.meta.get("storage") for call in graph.nodes for node in _written_nodes(call)}
    _merge(graph, kept, written)
    for node in reversed(graph.nodes):
        if node.op != "placeholder" and not node.users and node not in kept and not _matters(node):
            graph.erase_node(node)


def written_by(func: Any, args: Any, kwargs: Any) -> Iterator[Any]:
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
    """Whether a node does more than return its value: it writes, or moves a generator on."""
    func = node.target
    return isinstance(func, torch._ops.OpOverload) and (
        func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags
    )


def _merge(graph: fx.Graph, kept: set[fx.Node], written: set[Any]) -> None:
    """Read an earlier node of the same value in the place of a later one."""
    made: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or _matters(node) or node in kept or _touches(node, written):
            continue
        key = repr((node.target, node.args, node.kwargs))  # in which 0.0 is not -0.0, nor 1 True
        same = node.args[0] if _returns_argument(node) else made.get(key)
        if isinstance(same, fx.Node):
            node.replace_all_uses_with(same)
        elif "storage" in node.meta:  # parts of several results are told apart by their number
            made[key] = node


def _touches(node: fx.Node, written: set[Any]) -> bool:
    read = (parent.meta.get("storage") for parent in node.all_input_nodes)
    return node.meta.get("storage") in written or not written.isdisjoint(read)


def _returns_argument(node: fx.Node) -> bool:
    if node.target in _SAME:
        return True
    (source, *_) = node.args or (None,)
    known = isinstance(source, fx.Node) and "shape" in source.meta
    return known and node.target in _SAME_IN_SHAPE and source.meta["shape"] == node.meta["shape"]  # type: ignore[union-attr]
