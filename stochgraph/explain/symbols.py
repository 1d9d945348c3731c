"""The names of nodes, axes and functions in formulas."""

import re
from collections.abc import Callable
from typing import Any

import torch

_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi "
    "omega".split()
)
_LETTERS = "ijklmnpqrs"
_SPECIAL = {letter: f"\\{letter}" for letter in "%#&${}_"}
_ESCAPES = str.maketrans({**_SPECIAL, "\\": r"\backslash ", "^": r"\wedge ", "~": r"\sim "})
_NUMBERED = re.compile(r"(.*)\[(\d+)\]")


def symbol(name: str, index: str = "") -> str:
    """A node's name in maths: Greek letters by name, primes kept, a trailing number and the index as subscripts.

    Of many primes there is the number: theta[4] is the fourth of a chain of updates.
    """
    stem = name.rstrip("'")
    primes = name[len(stem) :]
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        stem, primes = numbered[1], f"^{{({numbered[2]})}}"
    letters = stem.rstrip("0123456789_")
    number = stem[len(letters) :].strip("_")
    if letters in _GREEK:
        text = "\\" + letters
    else:
        text = escaped(letters) if len(letters) == 1 else r"\mathrm{" + escaped(letters) + "}"
    subscripts = ", ".join(part for part in (number, index) if part)
    return text + primes + (f"_{{{subscripts}}}" if subscripts else "")


def escaped(words: str) -> str:
    """Words as LaTeX shows them."""
    return words.translate(_ESCAPES)


def letter(i: int) -> str:
    """The index of a plate, of which there may be many."""
    return _LETTERS[i] if i < len(_LETTERS) else f"i_{{{i}}}"


def function(fn: Callable[..., Any]) -> str:
    """The name of a function, `f` if it has none."""
    name = getattr(fn, "__name__", type(fn).__name__).strip("_<>")
    return "f" if name in ("lambda", "Method") else escaped(name)


def constant(value: object) -> str:
    """A constant: a number as it is, a tensor as `c`."""
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return "c" if isinstance(value, torch.Tensor) else str(value)
