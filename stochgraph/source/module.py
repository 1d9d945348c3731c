"""The module: its heading, imports, helpers, and the function itself."""

from collections.abc import Mapping, Sequence
from json import dumps
from typing import Any

from ..ir import nodes as nd
from ..ir.programs import schedule
from .helpers import HELPERS, with_needed
from .nodes import KINDS
from .scope import Scope
from .writer import CompiledGraph, Writer

_UNCHECKED = {"log_prob_of", "replayed"}


class Source(str):
    """A Python module as text, which needs torch only.

    It defines `surrogate(*inputs, trace, **functions)`, with the value and the gradient of `Compiled.surrogate`; see
    `Compiled.source`.

    Attributes:
        functions: what `FUNCTIONS` names, as the declaration has it.
    """

    functions: Mapping[str, Any]

    def __new__(cls, text: str, functions: Mapping[str, object]) -> "Source":
        source = super().__new__(cls, text)
        source.functions = dict(functions)
        return source


def source(compiled: CompiledGraph) -> Source:
    """The surrogate of a compiled graph as a module.

    Raises:
        CompileError: something in it is not written: a solution of `argmax`, an estimator's own term.
    """
    root = compiled._root
    program = schedule([root], _read)
    writer = Writer(compiled, program, KINDS)
    scope = Scope(writer.names)
    scope.write(program, writer.write)
    scope.line(f"return {scope.text(root).code}")
    parts = ["\n\n".join([_heading(writer), _imports(writer, scope), _functions(writer)])]
    parts += [HELPERS[name].strip("\n") for name in with_needed(writer.helpers)]
    parts.append(_surrogate(writer, scope))
    text = "\n\n\n".join(part for part in parts if part) + "\n"
    return Source(text, {given.name: given.value for given in writer.handed.given})


def _read(node: nd.Node) -> Sequence[nd.Node]:
    """The nodes from which the value of a node is computed: a draw is read from the trace."""
    held = type(node) is nd.Sample and not node.pathwise
    return () if held else node.inputs


def _heading(writer: Writer) -> str:
    chosen = writer.counting.chosen(writer.compiled.estimators)
    inputs = ", ".join(writer.compiled.wrt)
    lines = [f"The surrogate of {writer.compiled.graph.name}: its gradient in {inputs} is the estimate."]
    lines += ["", *chosen] if chosen else []
    return '"""' + "\n".join(lines) + '\n"""'


def _imports(writer: Writer, scope: Scope) -> str:
    body = "\n".join([*scope.lines, *writer.preamble.lines, *(HELPERS[name] for name in writer.helpers)])
    distributions = writer.distributions | ({"Distribution"} if _UNCHECKED & writer.helpers else set())
    trees = [name for name in ("tree_leaves", "tree_map") if f"{name}(" in body]
    lines = ["import torch"]
    if distributions:
        lines.append(f"from torch.distributions import {', '.join(sorted(distributions))}")
    if "replayed" in writer.helpers:
        lines.append("from torch.overrides import TorchFunctionMode")
    if trees:
        lines.append(f"from torch.utils._pytree import {', '.join(trees)}")
    return "\n".join(lines)


def _functions(writer: Writer) -> str:
    """The functions that the caller hands over, with what they are in the declaration."""
    if not writer.handed.given:
        return "FUNCTIONS = {}"
    rows = [f'    "{given.name}": {dumps(given.description)},' for given in writer.handed.given]
    return "\n".join(["FUNCTIONS = {", *rows, "}"])


def _surrogate(writer: Writer, scope: Scope) -> str:
    graph = writer.compiled.graph
    given = [known.name for known in writer.handed.given]
    words = ", ".join([*writer.preamble.inputs.values(), "trace", *(["*", *given] if given else [])])
    body = "\n".join(scope.lines)
    first = ['    draws = trace["draws"]'] if writer.preamble.reads_draws else []
    first += ['    log_probs = trace.get("log_probs", {})'] if "log_probs" in body else []
    first += ['    noise = trace["noise"]'] if "noise[" in body else []
    lines = [*first, *writer.preamble.lines, "", *scope.lines]
    doc = f'    """The value of {graph.name}; its gradient in {", ".join(writer.compiled.wrt)} is the estimate."""'
    return "\n".join([f"def surrogate({words}):", doc, *_single_gaps(lines)])


def _single_gaps(lines: Sequence[str]) -> list[str]:
    """The lines without two empty ones on end."""
    return [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
