"""One machine for what is timed and for what takes days: benchmarks have it alone, long work stands still meanwhile.

Two locks, which the system lets go of when a process ends, however it ends. A benchmark takes the first, which says
that quiet is wanted, then waits for the second, which everybody holds who works. Workers look at the first every
second, stand still while it is taken, and let go of the second.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

VARIABLE = "STOCHGRAPH_LOCKS"  # another folder for the locks: tests have machines of their own


def _lock(name: str) -> IO[str]:
    folder = Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir()) / "stochgraph-locks")
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / name).open("a")


@contextmanager
def quiet_machine() -> Iterator[None]:
    """Have the machine alone among those that ask here: wait for other benchmarks, and until workers stand still."""
    with _lock("wanted") as wanted, _lock("working") as working:
        fcntl.flock(wanted, fcntl.LOCK_EX)
        fcntl.flock(working, fcntl.LOCK_EX)
        yield


class Working:
    """The right of long work to use the machine, which it gives up while somebody wants quiet."""

    def __init__(self) -> None:
        self._wanted, self._working = _lock("wanted"), _lock("working")
        self.held = False

    def asked_to_stop(self) -> bool:
        """Whether somebody wants quiet, or has it."""
        if not _try(self._wanted, fcntl.LOCK_SH):
            return True
        fcntl.flock(self._wanted, fcntl.LOCK_UN)
        return False

    def take(self) -> bool:
        """Begin to work, or go on with it; whether that is allowed now."""
        self.held = not self.asked_to_stop() and _try(self._working, fcntl.LOCK_SH)
        return self.held

    def give(self) -> None:
        """Stand still from here on."""
        fcntl.flock(self._working, fcntl.LOCK_UN)
        self.held = False

    def close(self) -> None:
        """Be no worker any more."""
        self._wanted.close()
        self._working.close()


def _try(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
