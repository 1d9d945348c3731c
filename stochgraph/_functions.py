"""Functions that users give: what they capture, kept as it was when the node was declared.

NOTE [cells]
Python reads the variables of a closure when it is called, and a node's function is called long after its declaration:
of functions made in a loop, all would see the last turn. A node therefore keeps a copy of the function whose cells hold
what they hold at the declaration, and so on through the functions that it calls by such variables, defaults, `partial`,
bound methods, tuples, lists and dictionaries. Globals, tensors and the attributes of instances stay as Python reads
them. So does a cell without a value, which is filled later, and one that a function writes (`nonlocal`), which it
shares.
"""

import dis
from collections.abc import Iterable, Iterator
from functools import WRAPPER_ASSIGNMENTS, partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

_WRAPPERS = (FunctionType, MethodType, partial, dict, tuple, list)
_WRITES = frozenset({"STORE_DEREF", "DELETE_DEREF"})


def held(thing: Any) -> Any:
    """A function with its variables as they are now, in whatever it is wrapped; anything else is itself."""
    return _Copies(thing).of(thing) if isinstance(thing, _WRAPPERS) else thing


def captured(thing: Any) -> Iterator[tuple[str, Any]]:
    """What a function reaches through variables, defaults and bound arguments, with the name that it has there."""
    seen, stack = {id(thing)}, [("", thing)]
    while stack:
        name, found = stack.pop()
        yield name, found
        for part in reversed(_parts(name, found)):
            if id(part[1]) not in seen:
                seen.add(id(part[1]))
                stack.append(part)


def _parts(name: str, thing: Any) -> list[tuple[str, Any]]:
    """One step of that."""
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
    own = {step.argval for step in dis.get_instructions(code) if step.opname in _WRITES}
    return own.union(*inner) & set(code.co_freevars)


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
    """Whether the function has variables, or a default that has."""
    return any(isinstance(part, FunctionType) and part.__closure__ for _, part in captured(fn))


def _differ(ones: Iterable[Any], others: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(ones, others, strict=True))
