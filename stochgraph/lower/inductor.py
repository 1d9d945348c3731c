"""A flat program through `torch.compile`: kernels that are written for it, compiled for this machine.

The draws stay those of torch's default generators, by the operations that make them uncompiled: a seed gives the same
draws, and results agree to rounding. What is compiled is kept on disk, by torch, for the next process.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..errors.checks import shortened
from ..errors.exceptions import LoweringError
from .recording import Flat

_LOG = logging.getLogger("stochgraph")
_WITHOUT_A_COMPILER = ("C++ compiler", "InvalidCxxCompiler", "Compiler: ")


class Compilation:
    """A flat program, compiled.

    Attributes:
        flat: the program; its results are those of the one that it is made of to rounding.
        seconds: how long it took.
    """

    def __init__(self, flat: Flat, arguments: Sequence[Tensor], name: str) -> None:
        """Compile a program, which is called once with these arguments for it.

        Raises:
            LoweringError: there is no C++ compiler, or torch cannot compile the program.
        """
        count = len(flat.module.graph.nodes)
        _LOG.info("%s: torch.compile of %d operations, which takes from seconds to minutes", name, count)
        start = time.perf_counter()
        try:
            with _checks_as_they_are():
                call = torch.compile(flat.module, fullgraph=True, dynamic=False, options={"fallback_random": True})
                self.flat = Flat(flat.module, flat.expected, call)
                self.flat(arguments)
        except Exception as error:  # torch's own, of many kinds
            raise LoweringError(_in_words(error)) from error
        self.seconds = time.perf_counter() - start
        _LOG.info("%s: compiled in %.1f s", name, self.seconds)


@contextmanager
def _checks_as_they_are() -> Iterator[None]:
    """Torch's compiler turns the argument checks of all distributions off when it is first used: turn them on again."""
    before = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _in_words(error: Exception) -> str:
    words = f"{type(error).__name__}: {error}"
    if any(mark in words for mark in _WITHOUT_A_COMPILER):
        return (
            "torch.compile found no C++ compiler. Install one (g++, clang++) or name it in the environment variable "
            'CXX; lowering="flat" needs none'
        )
    return f"torch.compile refuses it: {shortened(' '.join(words.split()), 300)}"
