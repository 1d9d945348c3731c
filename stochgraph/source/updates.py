"""Updates and replays as text: functions within the written function."""

from collections.abc import Sequence
from typing import NoReturn

from ..derive.replays import Replay
from ..surrogate.solutions import CompiledArgmax
from ..surrogate.steps import CompiledStep
from ..tensors.axes import Axes
from .names import identifier
from .scope import LeftOut, Scope, Written
from .text import ATOM, PRODUCT, SUM, Text, aligned, call, detached, infix, method
from .writer import Writer


def step(writer: Writer, scope: Scope, node: CompiledStep) -> Written:
    """A gradient step: the inner surrogate as a function, and its gradient at the parameters."""
    if len(node.surrogates) > 1:
        raise writer.refuse(node.name, "is an update with control variates of its own, LSF(control_variate=True)")
    if node.axes != node.psi.axes:
        raise writer.refuse(node.name, "has step sizes along plates that its parameters do not have")
    scope.settle_all(node.inputs)
    function = _objective(writer, scope, node)
    start = _copies(writer, scope, node)
    gradient = call(f"torch.func.grad({function})", start.code)
    if node.detach:
        gradient = detached(gradient, node in writer.shapes.tensors)
    return Written(_moved(writer, scope, node, start, gradient), identifier(node.name), keep=True)


def solution(writer: Writer, scope: Scope, node: CompiledArgmax) -> NoReturn:
    """The solution of an inner problem, found by a solver and differentiated implicitly: no few lines of torch."""
    raise writer.refuse(node.name, "is an argmax: its solver and its implicit derivative are the library's")


def _objective(writer: Writer, scope: Scope, node: CompiledStep) -> str:
    """Write the function whose gradient is the direction of the step; its name."""
    name = scope.unique(f"{'gain' if node.update.sign > 0 else 'loss'}_of_{identifier(node.name)}")
    inner = Scope(scope.names.inner(), scope)
    psi = inner.names.unique("psi")
    inner.texts[node.psi] = Text(psi)
    inner.write(node.program, writer.write)
    result = inner.text(node.surrogate)
    scope.line("")
    scope.line(f"def {name}({psi}):")
    plates = ", ".join(axis.name for axis in node.surrogate.axes)
    each = f" for every {plates}" if plates else ""
    scope.line(f'    """The gradient of this is the direction of {identifier(node.name)}{each}."""')
    scope.lines += inner.lines
    summed = method(result, "sum") if node.surrogate.axes else result
    scope.line(f"    return {summed.code}")
    scope.line("")
    return name


def _copies(writer: Writer, scope: Scope, node: CompiledStep) -> Text:
    """The parameters, one copy for every entry of the plates that the inner objective keeps."""
    params, target = node.inputs[0], node.psi.axes
    start = scope.text(params)
    if params.axes == target:
        return start
    sizes = [writer.size(axis) for axis in target]
    if params in writer.shapes.tensors:
        return scope.let(f"{identifier(node.psi.name)}_copies", _expanded(start, params.axes, target, sizes))
    one = _expanded(Text("p"), params.axes, target, sizes)
    return scope.let(f"{identifier(node.psi.name)}_copies", call("tree_map", f"lambda p: {one.code}", start.code))


def _expanded(tensor: Text, axes: Axes, target: Axes, sizes: Sequence[str]) -> Text:
    """A tensor `(*axes, ...)` with the sizes of all of `target` in front."""
    rest = f"*{tensor.within(ATOM)}.shape" + (f"[{len(axes)}:]" if axes else "")
    return method(aligned(tensor, axes, target), "expand", *sizes, rest)


def _moved(writer: Writer, scope: Scope, node: CompiledStep, start: Text, gradient: Text) -> Text:
    """`params + lr * gradient`."""
    update = node.update
    leaves, rates = update.lr.leaves, node.inputs[1 : 1 + node.rate_count]
    if not update.lr.flat or any(rate.axes for rate in rates):
        raise writer.refuse(node.name, "has step sizes that are a pytree, or that vary with a plate")
    sign = "+" if update.sign > 0 else "-"
    rate = scope.text(rates[0]) if rates else Text(repr(leaves[0]))
    if not rates and not isinstance(leaves[0], (int, float)):
        raise writer.refuse(node.name, "has a constant step size that is no number")
    if rates and rates[0] not in writer.shapes.tensors:
        gradient = scope.let(f"direction_of_{identifier(node.name)}", gradient)
        signed = rate.code if update.sign > 0 else f"tree_map(torch.neg, {rate.code})"
        return call(writer.helper("moved"), start.code, gradient.code, signed)
    if node in writer.shapes.tensors:
        return infix(sign, SUM, start, infix("*", PRODUCT, rate, gradient))
    gradient = scope.let(f"direction_of_{identifier(node.name)}", gradient)
    moved = f"lambda p, g: p {sign} {rate.within(PRODUCT)} * g"
    return call("tree_map", moved, start.code, gradient.code)


def replay(writer: Writer, scope: Scope, node: Replay) -> Written:
    """A term with each draw of a plate left out in turn: a function of the index of the draw, mapped."""
    scope.settle_all(node.inputs)
    plate = identifier(node.plate.name)
    name = scope.names.unique(f"without_{plate}")
    names = scope.names.inner()
    index = names.unique("i")
    inner = Scope(names, scope, LeftOut(node.plate, index))
    inner.recorded |= {s: scope.text(score) for s, score in zip(node.names, node.inputs, strict=False)}
    inner.write(node.program, writer.write)
    result = inner.text(node.root)
    if node.plate in node.term_axes:
        own = node.term_axes.index(node.plate)
        result = call(writer.helper("zero_at"), result.code, index, str(own))
    scope.line("")
    scope.line(f"def {name}({index}):")
    scope.line(f'    """The cost as it is with draw {index} of {node.plate.name} left out of all means."""')
    scope.lines += inner.lines
    scope.line(f"    return {result.code}")
    scope.line("")
    mapped = call(f"torch.vmap({name})", f"torch.arange({writer.size(node.plate)})")
    return Written(detached(mapped, node in writer.shapes.tensors), f"replays_of_{plate}", keep=True)
