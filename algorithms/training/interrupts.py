"""Signals that ask a run to end: what they break off, and what they do not.

Broken off is what leaves nothing behind, or is taken back: a draw, an evaluation, a step. Writing is always finished.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP")  # a person, a scheduler, a terminal that was closed


class BrokenOff(KeyboardInterrupt):
    """A signal has ended what was under way. Nobody takes it for an error of what was."""


class Interrupts:
    """Within it, Ctrl-C, SIGTERM and SIGHUP ask the run to end. A second Ctrl-C is a `KeyboardInterrupt` as usual.

    Signals that are ignored stay so: those of a process under nohup, or in the background of a script. They can be
    heard in the main thread alone; in another one nothing is changed.

    Args:
        say: is told of the first signal, at once.
        enough: how many signals break something off.

    Attributes:
        asked: whether there was one.

    Example:
        >>> import os, signal
        >>> from stochgraph.algorithms.training.interrupts import Interrupts
        >>> with Interrupts(print) as interrupts:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        SIGTERM: what is under way is finished, then the run is saved and ends; Ctrl-C ends it at once
        >>> interrupts.asked
        True
    """

    def __init__(self, say: Callable[[str], None], enough: int = 1) -> None:
        self.asked = False
        self._say = say
        self._enough = enough
        self._heard = 0
        self._breakable = self._over = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            there = (getattr(signal, name) for name in _ASKING if hasattr(signal, name))
            before = {number: signal.getsignal(number) for number in there}
            # None is a handler of a library, which nobody could put back.
            self._before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Within it, what is under way leaves nothing behind, and a signal ends it.

        Raises:
            BrokenOff: enough signals have been heard, here or before.
        """
        self._breakable = True
        try:
            self._break()
            yield
        finally:
            self._breakable = False

    def over(self) -> None:
        """From here on no signal is heard: the run ends, and is being saved."""
        self._over = True

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        self._heard += 1
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.asked = not self.asked, True
        if first:
            now = self._breakable and self._heard >= self._enough
            under_way = "broken off" if now else "finished"
            self._say(
                f"{signal.Signals(number).name}: what is under way is {under_way}, then the run is saved and ends; "
                "Ctrl-C ends it at once"
            )
        self._break()

    def _break(self) -> None:
        if self._breakable and self._heard >= self._enough:
            raise BrokenOff
