"""Names in the written module: identifiers for declared names, and for what the caller hands over."""

import builtins
import keyword
import re
from json import dumps
from types import FunctionType
from typing import NamedTuple

import torch

from .helpers import HELPERS

_TAKEN = frozenset(
    [
        *"torch trace draws log_probs noise surrogate FUNCTIONS Replay TorchFunctionMode tree_map tree_leaves".split(),
        *HELPERS,
        *torch.distributions.__all__,
    ]
)
_PARAMETERS = ("draw", *"abcdefgh")
_MODULES = {
    "torch": torch,
    "torch.nn.functional": torch.nn.functional,
    "torch.special": torch.special,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
    "torch.Tensor": torch.Tensor,
}


class Names:
    """Identifiers of one function, none of them used by the functions around it."""

    def __init__(self, outer: "Names | None" = None) -> None:
        self.used: set[str] = set(outer.used if outer else _TAKEN)
        self.anywhere: set[str] = outer.anywhere if outer else set(_TAKEN)  # in any function of the module

    def inner(self) -> "Names":
        """The names of a function in this one."""
        return Names(self)

    def unique(self, stem: str) -> str:
        """`stem`, or `stem_2`, `stem_3` ... if it is taken."""
        name, count = stem, 1
        while name in self.used or keyword.iskeyword(name) or hasattr(builtins, name):
            count += 1
            name = f"{stem}_{count}"
        self.used.add(name)
        self.anywhere.add(name)
        return name

    def everywhere(self, stem: str) -> str:
        """A name that no function of the module has: all of them can read it."""
        name, count = stem, 1
        while name in self.anywhere or name != self.unique(name):
            count += 1
            name = f"{stem}_{count}"
        return name

    def numbered(self, stem: str) -> str:
        """`stem_1`, `stem_2` ..., which all functions of the module can read."""
        count = 1
        while f"{stem}_{count}" in self.anywhere:
            count += 1
        return self.everywhere(f"{stem}_{count}")


def identifier(name: str) -> str:
    """A declared name as an identifier: `theta''` is `theta_2`."""
    counted = re.sub("'+", lambda primes: f"_{len(primes[0])}", name)
    words = re.sub(r"\W+", "_", counted).strip("_") or "value"
    return f"_{words}" if words[0].isdigit() else words


class Given(NamedTuple):
    """Something that the caller of the written function hands over."""

    name: str
    value: object
    description: str


class Handed:
    """The parts of a declaration that text cannot hold: functions, the `log_prob` of samplers, large constants."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.given: list[Given] = []

    def name(self, value: object, stem: str, description: str) -> str:
        """The name under which something is handed over: one for equal functions."""
        for known in self.given:
            if _equal(known.value, value):
                return known.name
        stem = f"function_{stem}" if stem in _PARAMETERS else stem  # of lambdas, which would hide it
        numbered = stem in ("cost", "constant")
        found = self.names.numbered(stem) if numbered else self.names.everywhere(stem)
        self.given.append(Given(found, value, description))
        return found

    def function(self, fn: object, description: str) -> str:
        """The place of a function: in torch, or among what is handed over."""
        known = public_name(fn)
        if known is not None:
            return known
        stem = getattr(fn, "__name__", type(fn).__name__.lower())
        return self.name(fn, stem if stem.isidentifier() else "cost", description)


def public_name(fn: object) -> str | None:
    """The name of a function of torch, if it is one."""
    name = getattr(fn, "__name__", "")
    return next((f"{path}.{name}" for path, module in _MODULES.items() if getattr(module, name, None) is fn), None)


def _equal(one: object, other: object) -> bool:
    """True if two functions are the same: one object, or one text with the same variables."""
    if not (isinstance(one, FunctionType) and isinstance(other, FunctionType)):
        return one is other or (callable(one) and one == other)
    return one is other or (one.__code__ is other.__code__ and _variables(one) == _variables(other))


def _variables(fn: FunctionType) -> list[int]:
    cells = [id(cell.cell_contents) for cell in fn.__closure__ or ()]
    held = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values(), fn.__globals__]
    return [*cells, *map(id, held)]


def constant(value: object, handed: Handed) -> str:
    """A constant as text, a small tensor with its numbers; a large one is handed over."""
    if isinstance(value, torch.Tensor):
        if value.numel() <= 8 and not value.requires_grad and value.device.type == "cpu":
            return f"torch.tensor({value.tolist()!r}, dtype={value.dtype})"
        return handed.name(value, "constant", f"a tensor of shape {tuple(value.shape)}")
    if isinstance(value, str):
        return dumps(value)
    if value is None or isinstance(value, (bool, int, float, complex, torch.dtype, slice)):
        text = repr(value)
        return f'float("{text}")' if text in ("inf", "-inf", "nan") else text
    if callable(value):
        return handed.function(value, "a function that is an argument")
    return handed.name(value, "constant", f"a {type(value).__name__}")
