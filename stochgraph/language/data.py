"""Data: a mini-batch is an input whose rows are the entries of a plate.

Nothing is drawn for such a plate. Its size is that of the tensors at each call, and what is drawn for every row has the
rows for parents, or says so with `within=`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors.exceptions import DeclarationError, SamplingError
from ..ir import nodes as nd
from ..ir.paths import plates_in, samples_in
from ..tensors.axes import Axis, describe
from .symbols import Declaration, Symbol, current

_REMEDIES = {
    "sample": "Its draws have plates already: n= and within= add them",
    "update": "Adapted parameters have the plates that their objective has left",
    "data": "It is of a plate of data already: declare the input once, and use what sg.data returned",
}


def data(name: str, inputs: object) -> Any:
    """The leading dimension of inputs, declared as the plate `name`: a mini-batch is an input.

    Every tensor of the inputs has a row for each entry of the plate; what is written for one draw sees one row. The
    size of the plate is that of the tensors at each call, so that the last, smaller batch of a loader needs nothing.
    `accumulate` slices the inputs with the draws.

    Args:
        name: the name of the plate.
        inputs: an input of the graph, a part of one (`batch["x"]`), or a pytree of them. Their tensors have the shape
            `(rows, ...)`, integers too.

    Returns:
        The rows: nodes in the pytree's structure.

    Raises:
        DeclarationError: a name taken; something that is no input or part of one, or declared as data already.
        SamplingError: when the graph is called. A tensor without a leading dimension, a batch without rows, tensors
            that have different numbers of them.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def loss(weights, images, labels):
        ...     image, label = sg.data("row", (images, labels))
        ...     kept = sg.sample("kept", Bernoulli, logits=sg.apply(lambda w, x: w @ x, weights, image))
        ...     return sg.mean((kept - label) ** 2)
        >>> compiled = loss.compile(sg.SF("loo"))
        >>> batch = torch.ones(8, 3), torch.zeros(8)
        >>> value, gradient = compiled.value_and_grad(torch.zeros(3), *batch)
        >>> gradient.shape
        torch.Size([3])
    """
    declaration = current("data")
    _check_name(declaration, name)
    symbols, spec = pytree.tree_flatten(inputs)
    if not symbols:
        raise DeclarationError(f"sg.data {name!r}: it was given no input: name those whose rows are the plate")
    nodes: list[nd.Node] = []
    for symbol in symbols:
        nodes.append(_input_part(name, symbol))
        _refuse_twice(name, nodes[-1], [*_declared(declaration), *nodes[:-1]])
    plate = declaration.axis(name)
    return pytree.tree_unflatten([_declare(declaration, plate, node) for node in nodes], spec)


def data_sizes(nodes: Sequence[nd.Data], inputs: Mapping[str, Any]) -> dict[str, int]:
    """The size of every plate of data, read off the inputs.

    Raises:
        SamplingError: the tensors of a plate have no rows, or different numbers of them.
    """
    found: dict[Axis, dict[str, int]] = {}
    for node in nodes:
        rows = dict(_rows(node, _value(node.inputs[0], inputs)))
        found.setdefault(node.plate, {}).update(rows)
    for plate, rows in found.items():
        if len(set(rows.values())) > 1:
            listed = ", ".join(f"{leaf} has {count}" for leaf, count in rows.items())
            raise SamplingError(
                f"data {plate.name!r}: the leading dimension of its tensors is the plate, and they differ in it: "
                f"{listed}. Hand over as many rows of each, or declare what has rows of another kind under another name"
            )
    return {plate.name: next(iter(rows.values())) for plate, rows in found.items()}


def _value(node: nd.Node, inputs: Mapping[str, Any]) -> Any:
    """The value of an input, or of a part of one."""
    return node.read(_value(node.part_of, inputs)) if isinstance(node, nd.Select) else inputs[node.name]


def _rows(node: nd.Data, value: object) -> Iterator[tuple[str, int]]:
    """The name and the number of rows of every tensor in a batch."""
    leaves = pytree.tree_flatten_with_path(value)[0]
    base, plate = node.inputs[0].name, node.plate.name
    if not leaves:
        raise SamplingError(f"data {plate!r}: {base} holds no tensor, so that there are no rows")
    for path, leaf in leaves:
        name = base + pytree.keystr(path)
        if not isinstance(leaf, Tensor) or not leaf.dim():
            got = "a tensor without dimensions" if isinstance(leaf, Tensor) else f"{type(leaf).__name__} {leaf!r}"
            raise SamplingError(
                f"data {plate!r}: {name} is {got}, and the leading dimension of every tensor is the plate. Hand over "
                "what is the same for all rows as an input of its own"
            )
        if not leaf.shape[0]:
            raise SamplingError(
                f"data {plate!r}: {name} has no rows, shape {tuple(leaf.shape)}: there is nothing to take a mean of. "
                "Leave empty batches out"
            )
        yield name, leaf.shape[0]


def _check_name(declaration: Declaration, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise DeclarationError(f"sg.data: {name!r} is not the name of a plate: give a string, sg.data('row', inputs)")
    if name in samples_in(declaration.nodes) or name in plates_in(declaration.nodes):
        raise DeclarationError(
            f"two plates of the name {name!r}: give every plate a name of its own. Inputs of one plate are declared "
            f"together, sg.data({name!r}, (first, second))"
        )


def _input_part(name: str, symbol: object) -> nd.Node:
    """The node of an input or of a part of one."""
    if not isinstance(symbol, Symbol):
        raise DeclarationError(
            f"sg.data {name!r}: {type(symbol).__name__} is not an input of the graph: rows are handed over at each "
            "call. Make it an argument of the declaring function"
        )
    source = list(_chain(symbol._node))[-1]
    if source.kind == "input":
        return symbol._node
    axes = describe(symbol._node.axes)
    raise DeclarationError(
        f"sg.data {name!r}: {symbol._node.name!r} (axes: {axes}) is not an input or a part of one. "
        + _REMEDIES.get(source.kind, "Declare the input as data, and compute with what sg.data returns")
    )


def _chain(node: nd.Node) -> Iterator[nd.Node]:
    """A node and what it is a part of."""
    part: nd.Node | None = node
    while part is not None:
        yield part
        part = part.part_of


def _refuse_twice(name: str, node: nd.Node, others: Sequence[nd.Node]) -> None:
    for other in others:
        if node in _chain(other) or other in _chain(node):
            raise DeclarationError(
                f"sg.data {name!r}: {node.name!r} is declared as data already"
                + ("" if other is node else f", {other.name!r} being a part of it or it of {other.name!r}")
                + ": use what sg.data returned"
            )


def _declared(declaration: Declaration) -> list[nd.Node]:
    """The inputs, and their parts, that are data already."""
    return [node.inputs[0] for node in declaration.nodes if isinstance(node, nd.Data)]


def _declare(declaration: Declaration, plate: Axis, node: nd.Node) -> Symbol:
    name = declaration.unique(f"{node.name}[{plate.name}]")
    return declaration.add(nd.Data(name, len(declaration.nodes), node, plate))
