"""A flat program as a function of Python: one call a line, of what torch calls fastest.

An operation by its overload (`torch.ops.aten.mul.Tensor`) is looked up by its schema at every call. Most have a binding
of their own (`torch.mul`), which takes half of that time and runs the same kernel. A number beside a tensor becomes a
tensor of its dtype at every call: here it is one from the start.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
# Operations whose binding takes the arguments of the schema, in its order.
_BOUND = frozenset(
    "abs add addmm amax amin any argmax bernoulli bitwise_and bitwise_not bitwise_or bmm cat clamp clamp_max clamp_min "
    "clone cos cumsum detach div eq erf exp expand expm1 flip floor gather ge gt index_select isnan le lgamma "
    "log log1p logical_and logical_not logical_or logsumexp lt maximum mean minimum mm mul multinomial ne neg permute "
    "pow reciprocal relu rsqrt scatter scatter_add select sgn sigmoid sign sin split sqrt squeeze stack sub sum t tanh "
    "transpose unbind unsqueeze view where".split()
)
_WITH_A_NUMBER = {
    _aten.add.Tensor: "add",
    _aten.sub.Tensor: "sub",
    _aten.mul.Tensor: "mul",
    _aten.div.Tensor: "div",
    _aten.mul.Scalar: "mul",
    _aten.div.Scalar: "div",
}
_LITERALS = (bool, int, type(None))


def emitted(module: fx.GraphModule) -> Callable[..., Any]:
    """A function of the program's inputs, with its results; a tensor is let go of after its last use."""
    writer = _Writer(module)
    source = "\n    ".join([f"def program({', '.join(writer.inputs())}):", *writer.lines()])
    exec(compile(source, "<flat program>", "exec"), writer.names)
    program: Callable[..., Any] = writer.names["program"]
    return program


class _Writer:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.names: dict[str, Any] = {}
        self.last = self._last_uses()

    def inputs(self) -> list[str]:
        return [node.name for node in self.graph.nodes if node.op == "placeholder"]

    def lines(self) -> Iterator[str]:
        for node in self.graph.nodes:
            if node.op == "get_attr":
                self.names[node.name] = getattr(self.module, node.target)
            elif node.op == "output":
                yield f"return {self._word(node.args[0])}"
            elif node.op == "call_function":
                yield f"{node.name} = {self._call(node)}"
                if node in self.last:
                    yield f"{' = '.join(self.last[node])} = None"

    def _last_uses(self) -> dict[fx.Node, list[str]]:
        """The names that nobody reads after a node."""
        found: dict[fx.Node, list[str]] = {}
        kept = {"get_attr", "placeholder", "output"}
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            if node.op not in kept:
                last = max([node, *node.users], key=order.__getitem__)
                if last.op != "output":
                    found.setdefault(last, []).append(node.name)
        return found

    def _call(self, node: fx.Node) -> str:
        if not isinstance(node.target, torch._ops.OpOverload):  # a part of several results
            source, place = node.args
            return f"{source}[{place}]"
        number = self._number(node)
        if number is not None:
            return (
                f"{self._held('torch_' + _WITH_A_NUMBER[node.target], _bound(_WITH_A_NUMBER[node.target]))}({number})"
            )
        given = [*map(self._word, node.args), *(f"{name}={self._word(value)}" for name, value in node.kwargs.items())]
        return f"{self._function(node.target)}({', '.join(given)})"

    def _function(self, target: torch._ops.OpOverload) -> str:
        name = target._schema.name.removeprefix("aten::")
        if target.namespace == "aten" and name in _BOUND:
            return self._held("torch_" + name, _bound(name))
        return self._held("aten_" + name + "_" + target._overloadname, target._op)

    def _number(self, node: fx.Node) -> str | None:
        """The arguments of an operation of a tensor and a number, the number as a tensor; `None` of any other."""
        if node.target not in _WITH_A_NUMBER or node.kwargs or len(node.args) != 2:
            return None
        source, number = node.args
        if not isinstance(source, fx.Node) or type(number) not in (int, float):
            return None
        dtype = source.meta["dtype"]
        fits = dtype in (torch.float32, torch.float64) or (dtype is torch.int64 and type(number) is int)
        if not fits or node.meta["dtype"] is not dtype:
            return None
        return f"{source}, {self._word(torch.tensor(number, dtype=dtype))}"

    def _word(self, value: object) -> str:
        """A value as it stands in the source; what has no literal is held under a name."""
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, (list, tuple)):
            inner = ", ".join(map(self._word, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
        if type(value) in _LITERALS:
            return repr(value)
        return self._held(f"held_{len(self.names)}", value)

    def _held(self, name: str, value: object) -> str:
        self.names[name] = value
        return name


def _bound(name: str) -> Any:
    return getattr(torch._C._VariableFunctions, name, None) or getattr(Tensor, name)
