"""The things that the functions of a graph name, at one moment: a recording holds as long as they are the same.

A recording freezes the Python of a function: its numbers, the branch that it took, the tensors that it captured. So a
function is recorded only if all that its code names, in its closure, its defaults and its globals, is known for what it
is: tensors (the same ones, whatever they hold), numbers and words (by value), containers and objects of these, torch,
and functions of the same kind. Anything else may be another thing at the next call without a trace: arrays of NumPy,
generators, files, other modules. It is refused by name.
"""

import builtins
import dis
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from enum import Enum
from functools import partial
from itertools import dropwhile, takewhile
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import Module, Parameter

from ..errors.exceptions import LoweringError
from ..ir.nodes import Node
from ..language.functions import codes
from ..language.symbols import Symbol

_BY_VALUE = (int, float, complex, bool, str, bytes, type(None), type(...), slice, range, torch.Size, torch.device)
_CONSTANTS = (
    CodeType,
    Node,
    Symbol,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    Enum,
    type(NotImplemented),
)
_MODULES = frozenset(
    ["torch", "math", "cmath", "operator", "_operator", "functools", "itertools", "typing", "stochgraph"]
)
_BUILTINS = frozenset(
    "abs all any bool complex dict divmod enumerate filter float frozenset int isinstance issubclass iter len list map "
    "max min next object pow property range repr reversed round set slice sorted str sum super tuple type zip".split()
)
# Of torch: what has a state of its own, or reads what may be another thing at the next call.
_STATEFUL = frozenset(
    "manual_seed seed initial_seed get_rng_state set_rng_state fork_rng Generator load from_file hub set_default_dtype "
    "set_default_device set_num_threads get_num_threads from_numpy frombuffer backends get_float32_matmul_precision "
    "are_deterministic_algorithms_enabled is_inference_mode_enabled to_dlpack".split()
)
_OF_NO_ACCOUNT = frozenset(
    "__dict__ __weakref__ __doc__ __module__ __qualname__ __annotations__ __abstractmethods__ _abc_impl __slots__ "
    "__parameters__ __orig_bases__ __match_args__ __dataclass_fields__ __dataclass_params__ __firstlineno__ "
    "__static_attributes__ __hash__ __repr__ __eq__ __reduce__ __annotate__ __annotations_cache__ "
    "__annotate_func__".split()
)
_MAKERS = frozenset(["__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__del__"])
_MISSING: Any = object()
_NO_STEPS = frozenset(["PRECALL", "PUSH_NULL", "EXTENDED_ARG", "CACHE", "NOP", "RESUME"])
_OF_A_VALUE = frozenset(["LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_ATTR"])
_MANY = 1000
_BUILTIN_NAMES = vars(builtins)


class Held:
    """All that some functions and constants name, as it is now.

    Args:
        things: functions, samplers, constants, each with the words for it.
        called: names of members that are called without being named in their code.

    Raises:
        LoweringError: one of them names what may change unseen.
    """

    def __init__(self, things: Iterable[tuple[str, Any]], called: Iterable[str] = ()) -> None:
        self._places: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self._seen: dict[int, Any] = {}
        self._attributes = {"forward", *called}
        self._members: list[tuple[Callable[[str], Any], str, str]] = []  # held as soon as code names them
        for words, thing in things:
            self._hold(thing, words)
        self._hold_members()

    def _hold_members(self) -> None:
        """Members of objects and classes, those that the code so far names, until there is no more such code."""
        while wanted := [member for member in self._members if member[1] in self._attributes]:
            self._members = [member for member in self._members if member[1] not in self._attributes]
            for read, name, words in wanted:
                self._place(read, name, words)

    def changed(self) -> Any:
        """The name of what is another thing now, if there is one; `None` otherwise."""
        for read, key, value in self._places:
            now = read(key)
            if now is not value and not _equal(now, value):
                return key
        return None

    def _hold(self, thing: object, words: str) -> None:
        if (isinstance(thing, (*_BY_VALUE, *_CONSTANTS)) and not isinstance(thing, tuple)) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        hold = next((hold for kinds, hold in self._kinds() if isinstance(thing, kinds)), self._hold_object)
        hold(thing, words)

    def _kinds(self) -> Iterator[tuple[Any, Callable[[Any, str], None]]]:
        yield Tensor, self._hold_tensor
        yield FunctionType, self._hold_function
        yield MethodType, lambda method, words: self._hold_all([method.__func__, method.__self__], words)
        yield partial, lambda call, words: self._hold_all([call.func, call.args, call.keywords], words)
        yield dict, self._hold_dict
        yield (list, tuple), self._hold_list
        yield (set, frozenset), self._hold_set
        yield (staticmethod, classmethod), lambda method, words: self._hold(method.__func__, words)
        yield property, lambda method, words: self._hold(method.fget, words)
        yield type, self._hold_class
        yield ModuleType, self._hold_module
        yield (BuiltinFunctionType, type(torch.Tensor.add), type(str.join)), self._hold_builtin

    def _hold_all(self, things: Iterable[Any], words: str) -> None:
        for thing in things:
            self._hold(thing, words)

    def _place(self, read: Callable[[Any], Any], key: Hashable, words: str) -> None:
        value = read(key)
        self._places.append((read, key, value))
        self._hold(value, words)

    def _hold_tensor(self, tensor: Tensor, words: str) -> None:
        if type(tensor) not in (Tensor, Parameter):
            _refuse(words, f"a {type(tensor).__name__}")
        for name in ("shape", "dtype", "device"):
            self._place(partial(getattr, tensor), name, words)
        self._place(lambda _: torch.Size(tensor.stride()), "stride", words)

    def _hold_dict(self, mapping: dict[Any, Any], words: str) -> None:
        _refuse_long(mapping, words)
        self._places.append((lambda _: len(mapping), words, len(mapping)))
        for key in list(mapping):
            self._place(partial(_read, mapping), key, words)

    def _hold_list(self, items: Sequence[Any], words: str) -> None:
        _refuse_long(items, words)
        if isinstance(items, list):
            self._places.append((lambda _: len(items), words, len(items)))
            read = lambda i: items[i] if i < len(items) else _MISSING  # noqa: E731
            for i in range(len(items)):
                self._place(read, i, words)
        else:
            self._hold_all(items, words)
        if type(items) not in (list, tuple):
            self._hold(type(items), words)

    def _hold_set(self, items: Set[Any], words: str) -> None:
        copy = set(items)
        self._places.append((lambda _: items == copy, words, True))
        self._hold_all(copy, words)

    def _hold_function(self, fn: FunctionType, words: str) -> None:
        self._place(partial(getattr, fn), "__code__", words)
        self._place(partial(getattr, fn), "__defaults__", words)
        self._place(partial(getattr, fn), "__kwdefaults__", words)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            self._hold_cell(cell, name, f"{name!r}, which {fn.__name__} names")
        if not _is_trusted(fn.__module__):
            names, attributes, asking = _named(fn.__code__, words)
            self._attributes |= attributes
            for name in asking:
                self._places.append((partial(_read, fn.__globals__), name, _MISSING))
                if name in fn.__globals__:
                    _refuse(f"{name!r}, which {fn.__name__} names", "no longer the function of Python")
            if "type" in names or "__class__" in attributes:  # code that can make another object of the same class
                self._attributes |= _MAKERS
            for name in names:
                self._hold_global(fn, name)

    def _hold_cell(self, cell: CellType, name: str, words: str) -> None:
        if name == "__class__" and isinstance(_inside(cell, name), type):  # for super(), which makes no object
            self._places.append((partial(_inside, cell), name, _inside(cell, name)))
            self._hold_class(_inside(cell, name), words, is_made=False)
        else:
            self._place(partial(_inside, cell), name, words)

    def _hold_global(self, fn: FunctionType, name: str) -> None:
        words = f"{name!r}, which {fn.__name__} names"
        own = fn.__globals__
        if name in own:
            self._place(partial(_read, own), name, words)
            return
        self._places.append((partial(_read, own), name, _MISSING))
        value = _BUILTIN_NAMES.get(name, _MISSING)
        if name not in _BUILTINS and not (isinstance(value, type) and issubclass(value, BaseException)):
            _refuse(words, "a function of Python with effects" if value is not _MISSING else "not there")

    def _hold_class(self, kind: type, words: str, is_made: bool = True) -> None:
        """A class by its members; by those that make an object if one may be made, as where code names the class."""
        for base in kind.__mro__:
            if base is object or _is_trusted(base.__module__) or base.__module__ in ("builtins", "abc", "enum"):
                continue
            self._places.append((partial(_count, base), words, len(vars(base))))
            generated = issubclass(base, tuple) or "__dataclass_fields__" in vars(base)
            read = partial(_read, vars(base))
            for name in list(vars(base)):
                if name in _OF_NO_ACCOUNT or (generated and name.startswith("_")) or _is_slot(read(name)):
                    continue
                whole = name.startswith("__") or issubclass(base, (Distribution, Module))  # torch calls what it likes
                whole = whole and (is_made or name not in _MAKERS)
                self._hold_member(read, name, f"{base.__name__}.{name} of {words}", whole)

    def _hold_member(self, read: Callable[[str], Any], name: str, words: str, now: bool) -> None:
        if now:
            self._place(read, name, words)
        else:
            self._members.append((read, name, words))

    def _hold_module(self, module: ModuleType, words: str) -> None:
        if module.__name__.partition(".")[0] not in _MODULES:
            _refuse(words, f"the module {module.__name__}, whose members may be others at the next call")

    def _hold_builtin(self, fn: Callable[..., Any], words: str) -> None:
        owner = getattr(fn, "__self__", None) or getattr(fn, "__objclass__", None)
        if isinstance(owner, (ModuleType, type)) or owner is None:
            module = owner.__name__ if isinstance(owner, ModuleType) else getattr(owner, "__module__", None)
            if _is_trusted(module or getattr(fn, "__module__", None) or "") or owner in (Tensor, torch._C.TensorBase):
                return
            if module == "builtins" and (fn.__name__ in _BUILTINS or isinstance(owner, type)):
                return
        _refuse(words, f"{fn!r}")

    def _hold_object(self, thing: object, words: str) -> None:
        """An object by its members and the code of its class: those that code names, all of one of torch's."""
        kind = type(thing)
        if not hasattr(thing, "__dict__") or kind.__module__.partition(".")[0] in ("numpy", "random", "builtins"):
            _refuse(words, f"a {kind.__module__}.{kind.__name__}")
        self._hold_class(kind, f"{words} ({kind.__name__})", is_made=False)
        members = vars(thing)
        whole = isinstance(thing, Module) or _is_trusted(kind.__module__)
        self._places.append((lambda _: len(members), words, len(members)))
        for name in list(members):
            self._hold_member(partial(_read, members), name, f"{name!r}, a member of {words} ({kind.__name__})", whole)


def _inside(cell: CellType, _: str) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return _MISSING


def _count(kind: type, _: str) -> int:
    return len(vars(kind))


def _read(mapping: Mapping[Any, Any], key: Hashable) -> Any:
    return mapping.get(key, _MISSING)


def _equal(now: object, value: object) -> bool:
    if type(now) is not type(value) or not isinstance(value, _BY_VALUE):
        return False
    by_value = isinstance(value, (torch.Size, torch.device))
    return now == value if by_value else repr(now) == repr(value)  # 0.0 is not -0.0


def is_own(module: str | None) -> bool:
    """True if a module is part of the library, but of its algorithms, which are made of what users may have as well."""
    module = module or ""
    return module.partition(".")[0] == "stochgraph" and not module.startswith("stochgraph.algorithms")


def _is_trusted(module: str | None) -> bool:
    """True if the code of a module has no state that its functions would be other functions by."""
    name = (module or "").partition(".")[0]
    return is_own(module) if name == "stochgraph" else name in _MODULES


def _is_slot(member: object) -> bool:
    return type(member).__name__ in ("_tuplegetter", "member_descriptor", "getset_descriptor")


def _named(code: CodeType, words: str) -> tuple[list[str], set[str], set[str]]:
    """The globals and the attributes that code names, and the functions in it; what it asks for attributes with."""
    names, attributes, asking = [], set(), set()
    for each in codes(code):
        steps = [step for step in dis.get_instructions(each) if step.opname not in _NO_STEPS]
        for i, step in enumerate(steps):
            asked = _attribute_in_words(steps[i:])
            if asked is not None:  # getattr(policy, "batched", False) names an attribute, as policy.batched does
                attributes.add(asked)
                asking.add(step.argval)
            elif step.opname == "LOAD_DEREF" and step.argval == "__class__" and steps[i - 1].argval != "super":
                attributes.add("__class__")
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                names.append(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"):
                if not (step.argval == each.co_name == "__init__" and _is_of_super(steps, i)):  # held with the class
                    attributes.add(step.argval)
            elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                _refuse(words, f"a function that changes the global {step.argval!r}")
            elif step.opname == "IMPORT_NAME" and step.argval.partition(".")[0] not in _MODULES:
                _refuse(words, f"a function that imports {step.argval}")
    if not _STATEFUL.isdisjoint(attributes):
        _refuse(words, f"a function that uses {min(_STATEFUL & attributes)!r}")
    return names, attributes, asking


def _is_of_super(steps: list[dis.Instruction], i: int) -> bool:
    """True if an attribute is one of `super()`."""
    return steps[i].opname == "LOAD_SUPER_ATTR" or (i > 1 and steps[i - 2].argval == "super" and steps[i - 1].arg == 0)


def _attribute_in_words(steps: list[dis.Instruction]) -> str | None:
    """The attribute that `getattr(value, "name")` or `hasattr(value, "name")` asks for, if these steps begin so."""
    if steps[0].opname != "LOAD_GLOBAL" or steps[0].argval not in ("getattr", "hasattr"):
        return None
    rest = list(dropwhile(lambda step: step.opname in _OF_A_VALUE, steps[1:]))
    constants = list(takewhile(lambda step: step.opname == "LOAD_CONST", rest))
    called = rest[len(constants) : len(constants) + 1]
    is_name = len(constants) in (1, 2) and isinstance(constants[0].argval, str)
    is_call = len(called) == 1 and called[0].opname == "CALL" and called[0].arg == 1 + len(constants)
    return constants[0].argval if is_name and is_call else None


def _refuse(words: str, what: str) -> None:
    raise LoweringError(f"{words}, is {what}: it may be another one at the next call, and no record would tell")


def _refuse_long(items: Sized, words: str) -> None:
    if len(items) > _MANY:
        _refuse(words, f"a {type(items).__name__} of {len(items)}, too long to be compared at every call")
