"""The reporters of a run, told together: one that fails is left out, and the run goes on."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from .errors import TrainingError
from .reports import Reporter


class Audience:
    """Reporters that are told the same.

    Args:
        reporters: those that are told at first.
    """

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = list(reporters)

    def tell(self, call: Callable[[Reporter], None]) -> None:
        """Call every reporter.

        Raises:
            TrainingError: a reporter ends the run.
        """
        for reporter in list(self._reporters):
            try:
                call(reporter)
            except TrainingError:  # what a reporter raises to end the run
                raise
            except Exception as error:
                self._leave_out(reporter, error)

    def say(self, text: str) -> None:
        """Something that a person should read."""
        self.tell(lambda reporter: reporter.say(text))

    def _leave_out(self, reporter: Reporter, error: Exception) -> None:
        """A reporter that has failed is told nothing any more. One that speaks says so, or it stands in the errors."""
        self._reporters.remove(reporter)
        with suppress(Exception):
            reporter.end()
        text = f"{type(reporter).__name__} is left out from here on ({type(error).__name__}: {error}); training goes on"
        if not any(type(other).say is not Reporter.say for other in self._reporters):
            with suppress(OSError, ValueError):
                print(text, file=sys.stderr)
        self.say(text)


@contextmanager
def hearing(say: Callable[[str], None]) -> Iterator[None]:
    """Within it, what the library notes for its users, such as a compilation that takes long, is said."""
    log, handler = logging.getLogger("stochgraph"), _Saying(say)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


class _Saying(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
