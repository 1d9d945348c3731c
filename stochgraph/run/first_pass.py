"""The ends of a pass's derivatives, which only a pass can tell. Asked once, at the first one that is differentiated.

A declaration shows which functions there are, and not what they do. Autograd's graph of a pass shows whether anything
arrives at the objective from a pathwise draw, and whether derivatives lead to tensors that the graph captures. Later
passes call the same functions, so that they need not be asked.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils import _pytree as pytree

from ..distributions.families import collect
from ..distributions.laws import DistributionLaw
from ..errors.exceptions import CompileError, DeclarationError
from ..ir import nodes as nd
from ..ir.paths import samples_in
from ..language.functions import all_tensors, constant_in_words
from ..surrogate.steps import CompiledUpdate
from ..surrogate.terms import Score
from ..tensors.axes import describe
from ..tensors.indexing import in_transform
from ..tensors.trees import tensors

# Autograd has a step for these functions, and it multiplies with zero.
_FLAT = frozenset(f"{name}Backward{i}" for name in "Floor Ceil Round Trunc Sign Sgn".split() for i in range(2))
_CONSTANT = ("stop", "baseline", "replay", "update")  # nodes through which no derivative goes, or not here

Values = Mapping[nd.Node, Any]


class Watch:
    """Goes with a first pass into its updates.

    Attributes:
        objectives: the inner objectives that the pass itself does not differentiate through.
    """

    def __init__(self) -> None:
        self.objectives: list[Tensor] = []

    def look(self, program: Sequence[nd.Node], root: nd.Node, values: Values, goal: nd.Node) -> None:
        """Refuse pathwise draws that have no derivative at an inner objective, `goal` as it is declared."""
        check_pathwise(program, root, values, goal)


def check_pathwise(program: Sequence[nd.Node], root: nd.Node, values: Values, goal: nd.Node) -> None:
    """Refuse pathwise draws that should have a derivative at the root, or in an update, and have none.

    Args:
        program: the nodes of a surrogate, in order.
        root: the last of them.
        values: their values.
        goal: the declared objective that the root stands for.

    Raises:
        CompileError: with the node behind which there is none.
    """
    read = dict.fromkeys(parent for node in program for parent in node.inputs)
    moved = [node for node in read if node.pathwise and values[node].requires_grad]
    arrived = _behind(tensors(values[root])) if moved else set()
    for source in moved:
        passing = _passing(program, source)
        # The log-probability of a draw moves with its parameters, whether it is made of the draw or of its noise.
        scored = any(node.kind == "log_prob" and node.inputs[0] is source for node in passing)
        entries = [] if root in passing else _entries(program, passing)
        silent = not scored and (root in passing or bool(entries)) and _maker(values[source]) not in arrived
        if silent and not any(_arrives(source, entry, values) for entry in entries):
            lost = _lost(program, source, passing, values)
            raise CompileError(
                f"PW on sample {source.name!r} (axes: {describe(source.axes)}): the draw has no differentiable path to "
                f"the objective {goal.name!r}. There is no derivative behind {lost.name!r} (axes: "
                f"{describe(lost.axes)}), which takes the draw by its jumps, or detached. Use SF for this node"
            )


def _passing(program: Sequence[nd.Node], source: nd.Node) -> set[nd.Node]:
    """The nodes to which a value passes on its way from the source, as far as the next updates."""
    found = {source}
    for node in program:
        if node.kind not in _CONSTANT and not node.held and any(parent in found for parent in node.inputs):
            found.add(node)
    return found


def _entries(program: Sequence[nd.Node], passing: set[nd.Node]) -> list[nd.Node]:
    """The values that go into updates that are differentiated. What becomes of them there, their objectives tell."""
    updates = [node for node in program if isinstance(node, CompiledUpdate) and not node.detach]
    return [parent for update in updates for parent in update.inputs if parent in passing]


def _arrives(source: nd.Node, end: nd.Node, values: Values) -> bool:
    return _maker(values[source]) in _behind(tensors(values[end]))


def _lost(program: Sequence[nd.Node], source: nd.Node, passing: set[nd.Node], values: Values) -> nd.Node:
    """The first node with a value that depends on the draw in the declaration, and not in autograd's graph."""
    whole: set[nd.Node] = {source}
    steps = [node for node in program if node in passing and isinstance(node, (nd.Apply, nd.Reduce, nd.Select, Score))]
    for node in (node for node in program if node in passing and any(parent in whole for parent in node.inputs)):
        if _arrives(source, node, values):
            whole.add(node)
        elif node in steps:
            return node.sample if isinstance(node, Score) else node
    return source


def check_captured(order: Iterable[nd.Node], program: Sequence[nd.Node], run: nd.Pass, loss: Tensor) -> None:
    """Refuse tensors that require grad and are no inputs: nothing would be differentiated with respect to them.

    Raises:
        DeclarationError: with the node that captures one, its name and the remedy.
    """
    assert run.watch is not None
    given = pytree.tree_leaves((dict(run.inputs), run.draws, dict(run.log_probs), run.noise))
    inputs = [p for leaf in given for p in (leaf.parameters() if isinstance(leaf, Module) else tensors(leaf))]
    apart = run.watch.objectives if run.watch is not None else []
    reached = _behind([loss, *apart, *_of_unscored(program, run)], inputs)
    leaves = [step for step in reached if isinstance(step, Tensor)]
    if not leaves:
        return
    for node in order:
        for name, tensor, module in _captures(node):
            if _maker(tensor) in reached:
                raise DeclarationError(f"{_where(node)}: it captures {constant_in_words(name, tensor, module)}")
    for leaf in (leaf for leaf in leaves if isinstance(leaf, Parameter)):  # other tensors a function makes for itself
        using = [_where(node) for node, value in run.values.items() if _maker(leaf) in _behind(tensors(value))]
        where = using[0] if using else "a distribution"
        raise DeclarationError(f"{where}: a function uses {constant_in_words('', leaf, 'module')}")


def _of_unscored(program: Sequence[nd.Node], run: nd.Pass) -> Iterator[Tensor]:
    """The tensors on which draws depend that have no score in the pass: only their distributions tell."""
    scored = {node.sample.name for node in _whole(program) if isinstance(node, Score)}
    for node in samples_in(program).values():
        if in_transform() or node.pathwise or node.name in scored:
            continue
        parents = [run.values[parent] for parent in node.inputs]
        with suppress(Exception):  # data may come from anywhere: what draws them need not be able to score them
            if not isinstance(node.law, DistributionLaw):
                yield node.law.score(node, run.values[node], node.inputs, parents, run)
            elif not node.law.is_class:
                yield from collect(node.law.build(node, node.inputs, parents, node.parent_axes, run, validate=False))


def _whole(program: Iterable[nd.Node]) -> Iterator[nd.Node]:
    """The nodes of a program, and of the updates in it."""
    for node in program:
        yield node
        yield from _whole(node.inner)


def _captures(node: nd.Node) -> Iterator[tuple[str, Tensor, str]]:
    """The tensors that the functions and constants of a node hold, by name, each with the module that it is part of."""
    return chain.from_iterable(map(all_tensors, node.given))


def _where(node: nd.Node) -> str:
    kind = node.kind if node.kind in ("sample", "update") else "node"
    return f"{kind} {node.name!r} (axes: {describe(node.axes)})"


def _behind(values: Iterable[Tensor], stop: Iterable[Tensor] = ()) -> set[Any]:
    """The steps and leaves of autograd's graph to which derivatives of some tensors lead, short of those of others."""
    ended = set(map(_maker, stop))
    found = set(map(_maker, values)) - ended - {None}
    stack = list(found)
    while stack:
        step = stack.pop()
        for parent, _ in () if isinstance(step, Tensor) else step.next_functions:
            maker = parent.variable if type(parent).__name__ == "AccumulateGrad" else parent
            if maker is not None and maker not in found and maker not in ended and parent.name() not in _FLAT:
                found.add(maker)
                stack.append(maker)
    return found


def _maker(tensor: Tensor) -> Any:
    """The step that made a tensor, a leaf itself; `None` if it requires no grad. Transforms are taken off first."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return (tensor.grad_fn or tensor) if tensor.requires_grad else None
