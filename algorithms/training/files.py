"""Files that are never half there: whole files by renaming, logs line by line, and one writer at a time.

File systems lack this or that. What protects against a loss of power alone is done where it can be, and what protects
against a second writer in one way or another.
"""

import contextlib
import errno
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

_MARK = ".temporary-"
# What is answered where there are no locks: by Lustre without its option flock, by NFS without its lock daemon, ...
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Where a folder cannot be waited for: it may not be read, or is nothing that the system would write out.
_NO_WAITING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}
_NO_WAITING |= {errno.EACCES, errno.EPERM, errno.EISDIR}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; at the end it is on the disk and becomes `path`, on any error it is removed.

    Example:
        >>> import pathlib, tempfile
        >>> from stochgraph.algorithms.training.files import replacing
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "new" / "file.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_MARK}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _synchronise(temporary)
        os.replace(temporary, path)
        synchronise_names(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def synchronise_names(folder: Path) -> str | None:
    """Wait until the names in a folder are on the disk; what is in the way of it, where the file system cannot."""
    if os.name == "nt":
        return None
    try:
        _synchronise(folder)
    except OSError as error:
        if error.errno not in _NO_WAITING:
            raise
        return error.strerror
    return None


def remove_temporaries(folder: Path, names: str) -> None:
    """Remove what writers that were killed have left directly in a folder. Files of others are not touched.

    Args:
        folder: where they are; it need not be there.
        names: of the files that were to be written, a regular expression.
    """
    for path in files_in(folder, rf"{re.escape(_MARK)}[0-9]{{1,9}}-({names})"):
        writer = int(path.name.removeprefix(_MARK).partition("-")[0])
        if writer == os.getpid() or not _runs(writer):  # this process has not begun to write there
            path.unlink(missing_ok=True)


def files_in(folder: Path, names: str) -> list[Path]:
    """The files directly in a folder whose whole names match; none if there is no folder. Other errors are raised.

    `Path.glob` takes a folder that cannot be listed for an empty one.
    """
    try:
        with os.scandir(folder) as entries:
            return [folder / each.name for each in entries if re.fullmatch(names, each.name) and not each.is_dir()]
    except FileNotFoundError:
        return []


def set_aside(path: Path, why: str) -> Path:
    """Rename what is in the way and must not be lost: `name.why`, or `name.why-2`, ... where there is one already."""
    names = (f"{path.name}.{why}", *(f"{path.name}.{why}-{i}" for i in range(2, 10**6)))
    free = next(path.with_name(name) for name in names if not is_there(path.with_name(name)))
    path.rename(free)
    return free


def is_there(path: Path) -> bool:
    """True if there is a file, a folder or a link of this name; an error where that cannot be told.

    `Path.exists` takes what cannot be looked at, and links to a disk that is away, for nothing.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def content(path: Path) -> bytes:
    """The content of a file, nothing if there is none; an error where that cannot be told. Devices hold nothing."""
    try:
        return path.read_bytes() if stat.S_ISREG(os.stat(path).st_mode) else b""
    except FileNotFoundError:
        return b""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder; a second holder is refused.

    The system lets go of the file `.lock` when the process ends, however it ends. On a file system without such locks,
    which a warning says, the file `.lock.holder` says who holds the folder, and is removed at the end. One of a process
    on this host that is gone is taken over. One of another host is refused: nobody here knows whether that runs.
    Another warning says where folders cannot be waited for.

    Raises:
        BlockingIOError: another process holds the folder, or may do so.
    """
    lock = _lock(folder)
    try:
        missing = synchronise_names(folder)
        if missing:
            _warn(folder, f"cannot write out a folder ({missing}): its newest files may not survive a loss of power")
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> BaseFileLock:
    """The lock that holds a folder, of the system where it has one."""
    lock = FileLock(folder / ".lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(errno.EAGAIN, "another process is writing to this folder", str(folder)) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn(folder, f"has no locks ({error.strerror}): the file .lock.holder says who holds the folder")
        return _soft_lock(folder / ".lock.holder")
    return lock


def _warn(folder: Path, lack: str) -> None:
    warnings.warn(f"{folder}: this file system {lack}", RuntimeWarning, stacklevel=5)


def _soft_lock(path: Path) -> BaseFileLock:
    """Hold a folder by a file in it that says who holds it."""
    lock = SoftFileLock(path, timeout=0)
    try:
        with contextlib.suppress(Timeout):
            lock.acquire()
            return lock
        _remove_of_the_dead(path)
        lock.acquire()
    except Timeout as error:
        process, host = [*_record(Path(error.lock_file)), "?", "?"][:2]
        raise BlockingIOError(
            errno.EAGAIN,
            f"another process is writing to this folder, number {process} on {host}; if it is gone, remove "
            f"{error.lock_file}",
            str(path.parent),
        ) from error
    return lock


def _remove_of_the_dead(path: Path) -> None:
    """Remove the file of a holder on this host that is gone. SoftFileLock does, where the file system exchanges names.

    One process at a time does so: two could each take for the old file what the other has made in the meantime.
    """
    with SoftFileLock(path.with_suffix(".removal"), timeout=0) as guard:
        _, here, *_ = _record(Path(guard.lock_file))
        process, host, *_ = [*_record(path), "", ""]
        if host == here and process.isdecimal() and not _runs(int(process)):
            path.unlink(missing_ok=True)


def _record(path: Path) -> list[str]:
    """The lines in the file of a soft lock: process, host, and what tells it from another process of that number."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []


def _runs(process: int) -> bool:
    """True if there is a process of this number on this machine; where that cannot be asked, there is."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


class Folder:
    """A folder as it is now, whatever is done to its name.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Where folders cannot be opened nobody can rename one that is in use. O_PATH asks for no right to list it.
        self._descriptor = None if os.name == "nt" else os.open(path, getattr(os, "O_PATH", os.O_RDONLY))

    def is_there(self) -> bool:
        """True if it is still the one of its name; an error where that cannot be told."""
        return self._descriptor is None or _is_file(self._descriptor, self.path)

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    """True if an open file, or folder, is the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


class Lines:
    """A file of JSON objects, one a line, that is appended to. A line is in it whole or not at all.

    Args:
        path: the file. It ends with a line's end: see `write_lines`.

    Example:
        >>> import pathlib, tempfile
        >>> from stochgraph.algorithms.training.files import Lines
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with contextlib.closing(Lines(path)) as lines:
        ...     lines.append({"iteration": 0, "value": float("nan")})
        >>> Lines.read(path)
        [{'iteration': 0, 'value': None}]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = self._opened()

    def is_there(self) -> bool:
        """True if the file is still the one of its name."""
        return _is_file(self._descriptor, self.path)

    def reopen(self) -> None:
        """Go on in the file of the name, behind what is in it."""
        before = content(self.path)
        self.close()
        self._descriptor = self._opened()
        if before and not before.endswith(b"\n"):
            os.write(self._descriptor, b"\n")

    def content(self) -> bytes:
        """All that has been written, also where the file has no name any more."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def append(self, record: dict[str, Any]) -> None:
        """Add a line."""
        line = (json.dumps({name: _plain(value) for name, value in record.items()}) + "\n").encode()
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def synchronise(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The objects in a file; none if there is no file."""
        return [value for _, value in json_lines(content(path)) if isinstance(value, dict)]


def json_lines(written: bytes) -> list[tuple[bytes, Any]]:
    r"""The lines of a file, each with the JSON value in it, or `None` where there is something else.

    Blank lines do not count, nor does a last one that was cut short.

    Example:
        >>> from stochgraph.algorithms.training.files import json_lines
        >>> json_lines(b'{"iteration": 0}\nhello\n\n{"itera')
        [(b'{"iteration": 0}', {'iteration': 0}), (b'hello', None)]
    """
    *lines, last = [(line, _value(line)) for line in written.split(b"\n")]
    whole = lines if last[1] is None else [*lines, last]
    return [(line, value) for line, value in whole if line.strip()]


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Let a file have these lines; where they are its first ones it is cut, and otherwise written anew as a whole."""
    before, after = content(path), b"".join(line + b"\n" for line in lines)
    if before != after and before.startswith(after):
        os.truncate(path, len(after))
    elif before != after:
        with replacing(path.resolve()) as temporary:
            temporary.write_bytes(after)


def _plain(value: Any) -> Any:
    """The value as JSON knows it, which has no infinities."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
