"""The inputs of a compiled graph: pytrees by name, tensors all of them, refused where they are not what it takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..derive.populations import Expectations
from ..errors.checks import plate_size
from ..errors.exceptions import InputError, SamplingError
from ..ir.declaration import Declaration
from ..ir.paths import plates_in
from ..ir.traces import Trace
from ..language.data import data_sizes
from ..tensors.indexing import in_transform
from ..tensors.trees import recordable
from .gradient import Point
from .passes import Run

_OF_A_MODULE = (
    "Of a module, the parameters are passed, dict(module.named_parameters()); the module is called with them in a "
    "function, torch.func.functional_call(module, parameters, (x,))"
)
_NUMBERS = (float, np.floating, np.ndarray)  # Python's own float stands for torch's default dtype


class Inputs:
    """The inputs that a graph takes.

    Args:
        graph: the declared graph.
        wrt: the names of the differentiated ones.
        expectations: those of the graph, whose estimator may say how many draws a pass has.
    """

    def __init__(self, graph: Declaration, wrt: Sequence[str], expectations: Expectations | None) -> None:
        self.graph, self.wrt, self.expectations = graph, wrt, expectations

    def named(self, inputs: Sequence[object]) -> dict[str, Any]:
        """The inputs by name.

        Raises:
            InputError: there are more or fewer than the graph takes, or a differentiated one holds a module.
        """
        names = self.graph.inputs
        if len(inputs) != len(names):
            raise InputError(f"{self.graph.name} takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")
        given = dict(zip(names, map(_as_input, inputs), strict=True))
        for name in self.wrt:
            found = [leaf for leaf in pytree.tree_leaves(given[name]) if isinstance(leaf, torch.nn.Module)]
            if found:
                raise InputError(
                    f"{self.graph.name}: the input {name!r} holds a module, {type(found[0]).__name__}, and is to be "
                    f"differentiated. {_OF_A_MODULE}"
                )
        data_sizes(self.graph.data, given)  # refuses batches of different sizes
        return given

    def rows(self, named: Mapping[str, Any]) -> dict[str, int]:
        """The number of rows of every plate of data in some inputs."""
        return data_sizes(self.graph.data, named) if self.graph.data else {}

    def run(self, inputs: Sequence[object], sizes: Mapping[str, int] | None, trace: Trace | None = None) -> Run:
        """A pass at some inputs."""
        return Run(self.named(inputs), checked_sizes(self.graph, sizes), trace)

    def begun(self, run: Run) -> Run:
        """A pass, as the estimator of expectations wants it before anything is drawn."""
        if self.expectations is not None:
            self.expectations.estimator.begin(run, self.expectations)
        return run

    def point(self, word: str, inputs: Sequence[object]) -> Point:
        """The point where a gradient is taken, with respect to all floating-point tensors; `word` says who asks."""
        self.refuse_transforms(word)
        given = self.named(inputs)
        self.require_floats(given)
        return Point(given, self.wrt, _floats)

    def refuse_transforms(self, word: str) -> None:
        """Refuse to run inside a transform of `torch.func`."""
        if in_transform():
            raise SamplingError(
                f"{word} of {self.graph.name!r} cannot run inside a torch.func transform. Use two calls there: "
                "trace = compiled.sample(*inputs), then torch.func.grad(compiled.surrogate)(*inputs, trace)"
            )

    def require_floats(self, given: Mapping[str, Any]) -> None:
        """Refuse differentiated inputs in which nothing can be differentiated."""
        if not any(_floats(leaf) for name in self.wrt for leaf in pytree.tree_leaves(given[name])):
            raise InputError(
                f"{self.graph.name}: no leaf of the input {self.wrt[0]!r} is a floating-point tensor. {_OF_A_MODULE}"
            )


def watched(inputs: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The inputs, with gradients for those of the names."""
    leaf = lambda x: x.detach().requires_grad_() if _floats(x) else x  # noqa: E731
    return {name: pytree.tree_map(leaf, value) if name in names else value for name, value in inputs.items()}


def checked_sizes(graph: Declaration, sizes: Mapping[str, int] | None) -> Mapping[str, int]:
    """The sizes of plates that a user asks for.

    Raises:
        SamplingError: a plate that the graph does not have, or whose size is not free.
    """
    plates = plates_in(graph.order) if sizes else {}
    for name, size in (sizes or {}).items():
        if name in plates and plates[name].data:
            _refuse_size(f"{name!r} is a plate of data: its size is the number of rows that the inputs have")
        if name not in plates:
            _refuse_size(f"{name!r} is not a plate of {graph.name}; its plates are {', '.join(map(repr, plates))}")
        if not plate_size(size):
            _refuse_size(f"plate {name!r} needs at least one draw, an integer; got {size!r}")
    return {name: int(size) for name, size in (sizes or {}).items()}


def _refuse_size(message: str) -> NoReturn:
    raise SamplingError(f"sizes: {message}")


def _floats(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _as_input(tree: object) -> Any:
    """Numbers as tensors, and tensors that can be differentiated."""
    if isinstance(tree, Tensor):
        return recordable(tree)
    if isinstance(tree, _NUMBERS):
        return torch.as_tensor(tree)
    return tree if pytree.tree_is_leaf(tree) else pytree.tree_map(_as_input, tree)
