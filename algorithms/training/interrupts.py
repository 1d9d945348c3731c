"""A first Ctrl-C asks, a second one insists."""

import signal
import threading
from types import FrameType
from typing import Any, Self

_ASKING = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Within it, the first Ctrl-C (or SIGTERM) only sets `asked`; the next one is a `KeyboardInterrupt` as usual.

    Signals can be heard in the main thread alone; in another one nothing is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
