"""Functions that users give: what they capture, which is constant, kept as it was when the node was declared.

NOTE [cells]
Python reads the variables of a closure when it is called, and a node's function is called long after its declaration:
of functions made in a loop, all would see the last turn. A node therefore keeps a copy of the function whose cells hold
what they hold at the declaration, and so on through the functions that it calls by such variables, defaults, `partial`,
bound methods, tuples, lists and dictionaries. Globals, tensors and the attributes of instances stay as Python reads
them. So does a cell without a value, which is filled later, and one that a function writes (`nonlocal`), which it
shares.
"""

import dis
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import WRAPPER_ASSIGNMENTS, partial, singledispatch
from itertools import islice
from types import CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import Module

_MOST = 10_000
_OURS = ("stochgraph.", "torch.")

_Part = tuple[str, Any]
_Steps = Mapping[type, Callable[[str, Any], list[_Part]]]


def held(thing: object) -> Any:
    """A function with its variables as they are now, in whatever it is wrapped; anything else is itself."""
    return _Copies(thing).of(thing) if type(thing) in _INSIDE else thing


def captured(thing: object) -> Iterator[_Part]:
    """The values that a function reaches through variables, defaults and bound arguments, with their names there."""
    return _walk(thing, _INSIDE, _nothing)


def surely_read(thing: object) -> Iterator[_Part]:
    """The same with the globals of its module, and without lists and dictionaries, of which it may read a part."""
    return _walk(thing, _SURELY, _nothing)


def all_tensors(thing: object) -> Iterator[tuple[str, Tensor, str]]:
    """The tensors that a function may read, with names; those of modules with the module's.

    Instances may hold whole programs: what is further away than many steps is left out.
    """
    for name, found in islice(_walk(thing, _ANYTHING, _attributes), _MOST):
        yield from _own_tensors(found, name)


@singledispatch
def _own_tensors(thing: object, name: str) -> Iterable[tuple[str, Tensor, str]]:
    return ()


@_own_tensors.register
def _itself(thing: Tensor, name: str) -> Iterable[tuple[str, Tensor, str]]:
    return [(name, thing, "")]


@_own_tensors.register
def _parameters(thing: Module, name: str) -> Iterable[tuple[str, Tensor, str]]:
    module = name or "module"
    return [(f"{module}.{part}", parameter, module) for part, parameter in thing.named_parameters()]


def _walk(thing: object, steps: _Steps, otherwise: Callable[[str, Any], list[_Part]]) -> Iterator[_Part]:
    """All that is reached in steps that go by the type of a thing, `otherwise` from one whose type has none."""
    seen, stack = {id(thing)}, [("", thing)]
    while stack:
        name, found = stack.pop()
        yield name, found
        for part in reversed(steps.get(type(found), otherwise)(name, found)):
            if id(part[1]) not in seen:
                seen.add(id(part[1]))
                stack.append(part)


def _nothing(name: str, thing: object) -> list[_Part]:
    return []


def _variables_and_defaults(name: str, fn: FunctionType) -> list[_Part]:
    variables = [(variable, cell.cell_contents) for variable, cell in _variables(fn) if not _is_empty(cell)]
    code, defaults = fn.__code__, fn.__defaults__ or ()
    named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    return [*variables, *zip(named, defaults, strict=True), *(fn.__kwdefaults__ or {}).items()]


def _bound_arguments(name: str, thing: "partial[Any]") -> list[_Part]:
    return [(name, thing.func), *((name, part) for part in thing.args), *thing.keywords.items()]


def _method(name: str, thing: MethodType) -> list[_Part]:
    return [(name, thing.__func__), (name, thing.__self__)]


def _elements(name: str, thing: Sequence[Any]) -> list[_Part]:
    return [(f"{name}[{i}]", part) for i, part in enumerate(thing)]


def _items(name: str, thing: dict[Any, Any]) -> list[_Part]:
    return [(f"{name}[{key!r}]", part) for key, part in thing.items()]


# What else is in a list or a dictionary may change until the function is called.
def _functions_among(
    parts: Callable[[str, Any], list[_Part]],
) -> Callable[[str, Any], list[_Part]]:
    return lambda name, thing: [part for part in parts(name, thing) if type(part[1]) in _INSIDE]


def _and_globals_of_its_module(name: str, fn: FunctionType) -> list[_Part]:
    """Tensors and functions of the same module too: those of others are what is called, not given."""
    known = fn.__globals__
    near = [part for part in _globals(fn) if getattr(part[1], "__globals__", None) is known or _is_tensor(part[1])]
    return [*_variables_and_defaults(name, fn), *near]


def _and_globals(name: str, fn: FunctionType) -> list[_Part]:
    return [*_variables_and_defaults(name, fn), *_globals(fn)]


def _attributes(name: str, thing: object) -> list[_Part]:
    """The attributes of an instance; classes, modules and tensors hold what is no function's."""
    known = isinstance(thing, (type, ModuleType, Module, Tensor)) or not hasattr(thing, "__dict__")
    return [] if known else [(f"{name or type(thing).__name__}.{key}", part) for key, part in vars(thing).items()]


def _is_tensor(thing: object) -> bool:
    return isinstance(thing, Tensor)


# One step, by the type of what it goes from: to variables, defaults, arguments and containers.
_INSIDE: _Steps = {
    FunctionType: _variables_and_defaults,
    partial: _bound_arguments,
    MethodType: _method,
    tuple: _elements,
    list: _functions_among(_elements),
    dict: _functions_among(_items),
}
_SURELY: _Steps = {**_INSIDE, FunctionType: _and_globals_of_its_module, list: _nothing, dict: _nothing}
# Through whatever may hold tensors: instances too, and the globals that a function names.
_ANYTHING: _Steps = {**_INSIDE, FunctionType: _and_globals, list: _elements, dict: _items}


def _globals(fn: FunctionType) -> list[tuple[str, Any]]:
    """The globals that a function, or a function in it, names."""
    steps = [step for code in codes(fn.__code__) for step in dis.get_instructions(code)]
    read = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"} & fn.__globals__.keys()
    return [(name, fn.__globals__[name]) for name in sorted(read)]


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions in it."""
    yield code
    for part in _inner(code):
        yield from codes(part)


def _inner(code: CodeType) -> list[CodeType]:
    """The code of the functions in a function."""
    return [part for part in code.co_consts if isinstance(part, CodeType)]


def _variables(fn: FunctionType) -> Iterator[tuple[str, CellType]]:
    return zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)


def _is_empty(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _written(code: CodeType) -> set[str]:
    """The variables of enclosing scopes that the code, or a function in it, binds."""
    inner = map(_written, _inner(code))
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_DEREF", "DELETE_DEREF")}
    return own.union(*inner) & set(code.co_freevars)


def called_module(fn: object) -> Module:
    """The module that a function is, or a method of; an empty one if there is none."""
    bare = _unbound(fn)
    return bare if isinstance(bare, Module) else Module()


def _unbound(fn: object) -> object:
    """The instance that a function is bound to, or the function that a partial one is made of."""
    while isinstance(fn, partial):
        fn = fn.func
    return _unbound(fn.__self__) if isinstance(fn, MethodType) else fn


def variable_of(tensor: Tensor) -> str:
    """The name that the running functions have for a tensor, or the module that has it; empty if none of them does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        scopes = [] if frame.f_globals.get("__name__", "").startswith(_OURS) else [frame.f_locals, frame.f_globals]
        for name, value in (item for scope in scopes for item in scope.items()):
            named = value.named_parameters() if isinstance(value, Module) else ()
            inside = [part for part, parameter in named if parameter is tensor]
            if value is tensor or inside:
                return ".".join([name, *inside[:1]])
        frame = frame.f_back
    return ""


def constant_in_words(name: str, tensor: Tensor, module: str = "") -> str:
    """That a captured tensor requires grad, alone or as part of a module, and what to do."""
    called = repr(name) if name else f"a tensor of shape {tuple(tensor.shape)}"
    remedy = (
        f"Make dict({module}.named_parameters()) an input of the graph, and call torch.func.functional_call({module}, "
        f"parameters, (x,)); or freeze it, {module}.requires_grad_(False)"
        if module
        else f"Make it an input of the graph and hand its node on; as a constant, give {name or 'tensor'}.detach()"
    )
    return f"{called}, which requires grad, and nothing is differentiated with respect to what is captured. {remedy}"


class _Copies:
    """Copies of functions that may call each other: one of each function, and one of each variable."""

    def __init__(self, thing: object) -> None:
        functions = _functions_in(thing)
        self.cells = {id(cell): CellType() for fn in functions for _, cell in _variables(fn)}
        for fn in functions:
            written = _written(fn.__code__)
            shared = [cell for name, cell in _variables(fn) if name in written or _is_empty(cell)]
            self.cells.update((id(cell), cell) for cell in shared)
        self.made: dict[int, Any] = {id(fn): self._bare(fn) for fn in functions if _is_copied(fn)}
        for fn in functions:
            if id(fn) in self.made:
                self._fill(fn, self.made[id(fn)])

    def of(self, thing: object) -> Any:
        """The copy; the thing itself where nothing in it is copied."""
        rewrapped = self._rewrapping.get(type(thing))
        if id(thing) in self.made or rewrapped is None:
            return self.made.get(id(thing), thing)
        self.made[id(thing)] = thing  # a container may hold itself
        self.made[id(thing)] = rewrapped(self, thing)
        return self.made[id(thing)]

    def _bare(self, fn: FunctionType) -> FunctionType:
        cells = tuple(self.cells[id(cell)] for _, cell in _variables(fn))
        return FunctionType(fn.__code__, fn.__globals__, closure=cells)

    def _fill(self, fn: FunctionType, copy: FunctionType) -> None:
        for name in WRAPPER_ASSIGNMENTS:
            setattr(copy, name, getattr(fn, name))
        copy.__dict__.update(fn.__dict__)
        copy.__defaults__, copy.__kwdefaults__ = self.of(fn.__defaults__), self.of(fn.__kwdefaults__)
        for _, cell in _variables(fn):
            if self.cells[id(cell)] is not cell:
                self.cells[id(cell)].cell_contents = self.of(cell.cell_contents)

    def _partial(self, thing: "partial[Any]") -> "partial[Any]":
        inside = (thing.func, thing.args, thing.keywords)
        func, args, keywords = map(self.of, inside)
        copy = partial(func, *args, **keywords)
        copy.__dict__.update(thing.__dict__)
        return copy if _differ((func, args, keywords), inside) else thing

    def _method(self, thing: MethodType) -> MethodType:
        function = self.of(thing.__func__)
        return thing if function is thing.__func__ else MethodType(function, thing.__self__)

    def _dict(self, thing: dict[Any, Any]) -> dict[Any, Any]:
        values = list(map(self.of, thing.values()))
        return dict(zip(thing, values, strict=True)) if _differ(values, thing.values()) else thing

    def _sequence(self, thing: Any) -> Any:
        elements = list(map(self.of, thing))
        return type(thing)(elements) if _differ(elements, thing) else thing

    # A wrapper or container around the copies of what it holds, if there are any.
    _rewrapping: ClassVar[Mapping[type, Callable[["_Copies", Any], Any]]] = {
        partial: _partial,
        MethodType: _method,
        dict: _dict,
        tuple: _sequence,
        list: _sequence,
    }


def _functions_in(thing: object) -> list[FunctionType]:
    return [part for _, part in captured(thing) if isinstance(part, FunctionType)]


def _is_copied(fn: FunctionType) -> bool:
    """True if the function has variables, or a default that has."""
    return any(part.__closure__ for part in _functions_in(fn))


def _differ(ones: Iterable[Any], others: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(ones, others, strict=True))
