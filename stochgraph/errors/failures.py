"""Failures in functions that a user gave, in words: the node, the user's line, and what to write instead.

NOTE [whose error it is]
A function of one draw runs under `torch.vmap`, far below the user's call, and what torch raises there names neither. It
becomes a `FunctionError`, raised from the original, whose traceback begins in the user's function. What the function
raises itself (`raise`, `assert`), and errors that are not of Python's own types, stay as they are: the user knows them.
"""

import dis
import linecache
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import ContextDecorator
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from .exceptions import FunctionError, StochgraphError

# What torch says, as a pattern, and what that means for a function of one draw.
_CAUSES = (
    (
        r"called random operation",
        "it draws random numbers of its own (dropout, torch.randn), which would be in no trace. Declare what is drawn "
        "with sg.sample; switch dropout off, module.eval()",
    ),
    (
        r"\.item\(\)|element can be converted|element tensors can be converted|cannot be converted to Scalar",
        "it asks for the number in a tensor (.item(), float(), int(), a function of Python's math, an index into a "
        "list), and there is one for every draw. Keep the tensor: functions of torch, and a tensor as table, table[k]",
    ),
    (
        r"data-dependent control flow|Boolean value of Tensor",
        "Python decides by the value of a tensor (if, while, and, or, max, sorted), and there is one for every draw. "
        "Use torch.where(condition, a, b), torch.maximum, torch.sort",
    ),
    (
        r"dynamic shape|boolean mask",
        "the size of a result depends on values (x[mask], nonzero, unique) and would differ from draw to draw. Keep "
        "the size and blank out what is not wanted: torch.where(mask, x, 0.0)",
    ),
    (
        r"data pointer|numpy\(\)",
        "values leave torch (.numpy(), .tolist(), a function of NumPy). Use functions of torch; what can only run "
        "outside of it is drawn, by a sg.Sampler, whose draw is not mapped",
    ),
    (
        r"batch norm|running_mean|more than 1 value per channel",
        "batch normalisation would compare draws, and the function sees one. Use module.eval(), or a normalisation "
        "within a draw, torch.nn.LayerNorm",
    ),
    (
        r"batching rule(?: not implemented)? for (?P<what>[\w:]+)",
        "torch.vmap cannot map {what}, or only slowly. Write it in operations that it can: a recurrent network "
        "(nn.GRU, nn.LSTM, nn.RNN) as a loop over its steps of torch.nn.functional.linear, torch.sigmoid, torch.tanh",
    ),
    (
        r"in-?place|doesn't match the broadcast shape",
        "it writes what belongs to one draw into a tensor that all draws share. Make a new one: torch.stack, "
        "torch.cat, torch.where",
    ),
    (r"must only return Tensors, got type <class '(?P<what>[^']*)", "it returns {what}. Return a tensor, or several"),
)
_PACKAGE, _TORCH = f"{Path(__file__).parents[1]}{os.sep}", f"{Path(torch.__file__).parent}{os.sep}"
_ALGORITHMS = f"{_PACKAGE}algorithms{os.sep}"  # they are written as a user writes, on top of the rest
_INSTALLED = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def raise_in_words(error: Exception, where: str, what: str, fn: object, values: Sequence[Any], dims: int) -> NoReturn:
    """Raise the error of a function of one draw: as it is with a note, or as a `FunctionError`.

    Args:
        error: what was raised.
        where: the node with its axes, as messages name it.
        what: what the function is to the node.
        fn: the function.
        values: its arguments.
        dims: how many of their leading dimensions are axes, which the function does not see.
    """
    if _is_known(error):
        error.add_note(f"while computing {where}, written for one draw")
        raise error
    line = _place(error, fn)
    raised = FunctionError(f"{where}: {what} fails{line and f' at {line}'}: {_cause(error, values, dims)}")
    raised.add_note(f"while computing {where}: {type(error).__name__}: {error}")
    raise raised from error.with_traceback(_from_the_user_on(error))


class short_tracebacks(ContextDecorator):
    """Decorates what users call: a `FunctionError` arrives there without our frames, its cause having the user's."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, FunctionError):
            error.__traceback__ = None


def _is_known(error: Exception) -> bool:
    """True for errors that users know: stochgraph's own, those of their own types, those that the function raised."""
    if isinstance(error, StochgraphError) or type(error).__module__ != "builtins":
        return True
    *_, last = _steps(error)
    raising = last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raising and not _file(last).startswith(_TORCH)


def _place(error: Exception, fn: object) -> str:
    """The innermost line of the user's, or else that of the function's definition: `file:line`, with its text."""
    lines = [(_file(step), step.tb_lineno) for step in _steps(error) if _is_users(_file(step))]
    code = _code_of(fn)
    if not lines and code is not None:
        lines = [(code.co_filename, code.co_firstlineno)]
    if not lines:
        return ""
    file, number = lines[-1]
    text = linecache.getline(file, number).strip()
    return f"{file}:{number}" + (f", `{text}`" if text else "")


def _code_of(fn: object) -> Any:
    while isinstance(fn, (partial, MethodType)):
        fn = fn.func if isinstance(fn, partial) else fn.__func__
    return fn.__code__ if isinstance(fn, FunctionType) and _is_users(fn.__code__.co_filename) else None


def _cause(error: Exception, values: Sequence[Any], dims: int) -> str:
    for pattern, words in _CAUSES:
        found = re.search(pattern, str(error), re.IGNORECASE)
        if found:
            return words.format(**found.groupdict())
    seen = ", ".join(_shape(value, dims) for value in values) or "no argument"
    return f"{type(error).__name__}: {str(error).rstrip('.')}. It sees one draw: {seen}"


def _shape(value: object, dims: int) -> str:
    return f"shape {tuple(value.shape[dims:])}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _from_the_user_on(error: Exception) -> TracebackType | None:
    """The traceback without the frames that led to the user's function: the compiler's, and those of vmap."""
    steps = list(_steps(error))
    outside = [step for step in steps if not _file(step).startswith(_TORCH) and not _is_core(_file(step))]
    return (outside or steps[-1:])[0]


def _steps(error: Exception) -> Iterator[TracebackType]:
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next


def _file(step: TracebackType) -> str:
    return step.tb_frame.f_code.co_filename


def _is_core(file: str) -> bool:
    return file.startswith(_PACKAGE) and not file.startswith(_ALGORITHMS)


def _is_users(file: str) -> bool:
    return not file.startswith((_PACKAGE, _TORCH, *_INSTALLED))
