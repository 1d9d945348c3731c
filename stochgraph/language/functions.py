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
from collections.abc import Callable, Iterable, Iterator
from functools import WRAPPER_ASSIGNMENTS, partial
from itertools import islice
from types import CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor
from torch.nn import Module

_MOST = 10_000
_OURS = ("stochgraph.", "torch.")
_WRAPPERS = (FunctionType, MethodType, partial, dict, tuple, list)


def held(thing: Any) -> Any:
    """A function with its variables as they are now, in whatever it is wrapped; anything else is itself."""
    return _Copies(thing).of(thing) if isinstance(thing, _WRAPPERS) else thing


def captured(thing: Any) -> Iterator[tuple[str, Any]]:
    """The values that a function reaches through variables, defaults and bound arguments, with their names there."""
    return _walk(thing, _parts)


def surely_read(thing: Any) -> Iterator[tuple[str, Any]]:
    """The same with the globals of its module, and without lists and dictionaries, of which it may read a part."""
    return _walk(thing, _parts_and_globals)


def all_tensors(thing: Any) -> Iterator[tuple[str, Tensor, str]]:
    """The tensors that a function may read, with names; those of modules with the module's.

    Instances may hold whole programs: what is further away than many steps is left out.
    """
    for name, found in islice(_walk(thing, _parts_of_anything), _MOST):
        if isinstance(found, Tensor):
            yield name, found, ""
        elif isinstance(found, Module):
            module = name or "module"
            yield from ((f"{module}.{part}", parameter, module) for part, parameter in found.named_parameters())


def _walk(thing: Any, parts: Callable[[str, Any], list[tuple[str, Any]]]) -> Iterator[tuple[str, Any]]:
    seen, stack = {id(thing)}, [("", thing)]
    while stack:
        name, found = stack.pop()
        yield name, found
        for part in reversed(parts(name, found)):
            if id(part[1]) not in seen:
                seen.add(id(part[1]))
                stack.append(part)


def _parts(name: str, thing: Any) -> list[tuple[str, Any]]:
    """One step through variables, defaults, arguments and containers."""
    if isinstance(thing, FunctionType):
        variables = [(variable, cell.cell_contents) for variable, cell in _variables(thing) if not _is_empty(cell)]
        code, defaults = thing.__code__, thing.__defaults__ or ()
        named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        return [*variables, *zip(named, defaults, strict=True), *(thing.__kwdefaults__ or {}).items()]
    if type(thing) is partial:
        return [(name, thing.func), *((name, part) for part in thing.args), *thing.keywords.items()]
    if isinstance(thing, MethodType):
        return [(name, thing.__func__), (name, thing.__self__)]
    if type(thing) is tuple:
        return [(f"{name}[{i}]", part) for i, part in enumerate(thing)]
    # What else is in a list or a dictionary may change until the function is called.
    inside = list(enumerate(thing)) if type(thing) is list else list(thing.items()) if type(thing) is dict else []
    return [(f"{name}[{key!r}]", part) for key, part in inside if isinstance(part, _WRAPPERS)]


def _parts_and_globals(name: str, thing: Any) -> list[tuple[str, Any]]:
    """One step, to tensors and functions of the same module too: those of others are what is called, not given."""
    if not isinstance(thing, FunctionType):
        return [] if type(thing) in (list, dict) else _parts(name, thing)
    known = thing.__globals__
    near = [
        part
        for part in _globals(thing)
        if isinstance(part[1], Tensor) or getattr(part[1], "__globals__", None) is known
    ]
    return [*_parts(name, thing), *near]


def _parts_of_anything(name: str, thing: Any) -> list[tuple[str, Any]]:
    """One step, through whatever may hold tensors: instances too, and the globals that a function names."""
    if isinstance(thing, FunctionType):
        return [*_parts(name, thing), *_globals(thing)]
    if isinstance(thing, (partial, MethodType)):
        return _parts(name, thing)
    if type(thing) in (list, tuple):
        return [(f"{name}[{i}]", part) for i, part in enumerate(thing)]
    if type(thing) is dict:
        return [(f"{name}[{key!r}]", part) for key, part in thing.items()]
    known = isinstance(thing, (type, ModuleType, Module, Tensor)) or not hasattr(thing, "__dict__")
    return [] if known else [(f"{name or type(thing).__name__}.{key}", part) for key, part in vars(thing).items()]


def _globals(fn: FunctionType) -> list[tuple[str, Any]]:
    """The globals that a function, or a function in it, names."""
    steps = [step for code in codes(fn.__code__) for step in dis.get_instructions(code)]
    read = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"} & fn.__globals__.keys()
    return [(name, fn.__globals__[name]) for name in sorted(read)]


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions in it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from codes(part)


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
    inner = [_written(part) for part in code.co_consts if isinstance(part, CodeType)]
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_DEREF", "DELETE_DEREF")}
    return own.union(*inner) & set(code.co_freevars)


def called_module(fn: Any) -> Module:
    """The module that a function is, or a method of; an empty one if there is none."""
    while isinstance(fn, (partial, MethodType)):
        fn = fn.func if isinstance(fn, partial) else fn.__self__
    return fn if isinstance(fn, Module) else Module()


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

    def __init__(self, thing: Any) -> None:
        functions = [part for _, part in captured(thing) if isinstance(part, FunctionType)]
        self.cells = {id(cell): CellType() for fn in functions for _, cell in _variables(fn)}
        for fn in functions:
            written = _written(fn.__code__)
            shared = [cell for name, cell in _variables(fn) if name in written or _is_empty(cell)]
            self.cells.update((id(cell), cell) for cell in shared)
        self.made: dict[int, Any] = {id(fn): self._bare(fn) for fn in functions if _is_copied(fn)}
        for fn in functions:
            if id(fn) in self.made:
                self._fill(fn, self.made[id(fn)])

    def of(self, thing: Any) -> Any:
        """The copy; the thing itself where nothing in it is copied."""
        if not isinstance(thing, _WRAPPERS):
            return thing
        if id(thing) not in self.made:
            self.made[id(thing)] = thing  # a container may hold itself
            self.made[id(thing)] = self._rewrapped(thing)
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

    def _rewrapped(self, thing: Any) -> Any:
        """A wrapper or container around the copies of what it holds, if there are any."""
        if type(thing) is partial:
            inside = (thing.func, thing.args, thing.keywords)
            func, args, keywords = map(self.of, inside)
            copy = partial(func, *args, **keywords)
            copy.__dict__.update(thing.__dict__)
            return copy if _differ((func, args, keywords), inside) else thing
        if isinstance(thing, MethodType):
            function = self.of(thing.__func__)
            return thing if function is thing.__func__ else MethodType(function, thing.__self__)
        if type(thing) is dict:
            values = list(map(self.of, thing.values()))
            return dict(zip(thing, values, strict=True)) if _differ(values, thing.values()) else thing
        if type(thing) in (tuple, list):
            elements = list(map(self.of, thing))
            return type(thing)(elements) if _differ(elements, thing) else thing
        return thing  # a function without variables, a container of another type


def _is_copied(fn: FunctionType) -> bool:
    """True if the function has variables, or a default that has."""
    return any(isinstance(part, FunctionType) and part.__closure__ for _, part in captured(fn))


def _differ(ones: Iterable[Any], others: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(ones, others, strict=True))
