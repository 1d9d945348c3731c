"""Runs on file systems that lack locks, or cannot write out the names in a folder: with a warning, and one writer."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stochgraph.algorithms.training import TrainingError, train
from stochgraph.algorithms.training.files import only_writer, replacing
from tests.training_cases import FORKS, SMALL, Hook, python_environment, same_runs

NO_LOCKS = "this file system has no locks"
NO_WAITING = "this file system cannot write out a folder"


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get)
def lockless(request, monkeypatch):
    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def alone(tmp_path):
    return train(SMALL.replace(output=str(tmp_path / "alone")), reporters=[]).folder


def test_without_locks_a_folder_has_one_writer_all_the_same(tmp_path, lockless):
    holder = tmp_path / ".lock.holder"
    message = rf"writing to this folder, number {os.getpid()} on .*; if it is gone, remove {holder}"
    with (
        pytest.warns(RuntimeWarning, match=NO_LOCKS),
        only_writer(tmp_path),
        pytest.raises(BlockingIOError, match=message),
        only_writer(tmp_path),
    ):
        pass
    assert not holder.exists()
    with pytest.warns(RuntimeWarning, match=NO_LOCKS), only_writer(tmp_path):
        assert holder.exists()


def held_by(folder, process=None, host=None):
    """A file that says that a process holds a folder: as this one would write it, but for these."""
    holder = folder / ".lock.holder"
    with pytest.warns(RuntimeWarning, match=NO_LOCKS), only_writer(folder):
        lines = holder.read_text().splitlines()
    lines[:2] = [str(process or lines[0]), host or lines[1]]
    holder.write_text("\n".join(lines) + "\n")
    return holder


def gone():
    """The number of a process that is gone."""
    process = FORKS.Process(target=print)
    process.start()
    process.join()
    return process.pid


@pytest.mark.parametrize("exchange", [True, False])
def test_the_lock_of_a_dead_process_on_this_host_is_taken_over(tmp_path, lockless, monkeypatch, exchange):
    """NFS does not exchange two names, which the library needs for it."""
    if not exchange:
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    holder = held_by(tmp_path, process=gone())
    with pytest.warns(RuntimeWarning, match=NO_LOCKS), only_writer(tmp_path):
        assert holder.read_text().startswith(f"{os.getpid()}\n")
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("whose", ["another host's", "nobody's", "a living process's"])
def test_the_lock_of_another_host_is_refused_with_the_name_of_the_file(
    tmp_path, lockless, monkeypatch, whose, exchange
):
    if not exchange:
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    if whose == "nobody's":
        holder, words = tmp_path / ".lock.holder", r"number \? on \?"
        holder.touch()
    elif whose == "another host's":
        process = gone()
        holder, words = held_by(tmp_path, process, "elsewhere"), rf"number {process} on elsewhere"
    else:
        holder, words = held_by(tmp_path, os.getppid()), rf"number {os.getppid()} on "
        holder.write_text("\n".join(holder.read_text().splitlines()[:2]) + "\n")  # without the time of its start
    before = holder.read_text()
    with (
        pytest.warns(RuntimeWarning, match=NO_LOCKS),
        pytest.raises(BlockingIOError, match=rf"{words}.*; if it is gone, remove {holder}"),
        only_writer(tmp_path),
    ):
        pass
    assert holder.read_text() == before
    with pytest.warns(RuntimeWarning, match=NO_LOCKS), pytest.raises(TrainingError, match=rf"remove {holder}"):
        train(SMALL.replace(output=str(tmp_path)), reporters=[])


def test_another_error_of_a_lock_is_none_of_a_file_system_without(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), only_writer(tmp_path):
        pass


@pytest.mark.parametrize(
    ("code", "survives"),
    [(errno.EINVAL, True), (errno.ENOSYS, True), (errno.EACCES, True), (errno.EIO, False), (errno.ENOSPC, False)],
    ids=lambda code: errno.errorcode.get(code, code),
)
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_folders_whose_names_cannot_be_written_out(tmp_path, monkeypatch, call, code, survives):
    """A folder may not even be read. What is broken is another matter."""
    original = getattr(os, call)

    def fail(what, *arguments, **options):
        if os.path.isdir(what):
            raise OSError(code, os.strerror(code))
        return original(what, *arguments, **options)

    monkeypatch.setattr(os, call, fail)
    broken = pytest.raises(OSError, match=r"rror|space")
    with contextlib.nullcontext() if survives else broken, replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    with pytest.warns(RuntimeWarning, match=NO_WAITING) if survives else broken, only_writer(tmp_path):
        pass
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "file"}


LACKING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/syscall.h>

int flock(int file, int operation) { errno = ENOLCK; return -1; }

int fsync(int file) {
    static int (*original)(int);
    struct stat found;
    if (!original) original = dlsym(RTLD_NEXT, "fsync");
    if (!fstat(file, &found) && S_ISDIR(found.st_mode)) { errno = EINVAL; return -1; }
    return original(file);
}

long syscall(long number, ...) {  /* renameat2, which exchanges two names */
    static long (*original)(long, ...);
    long a[6];
    va_list given;
    va_start(given, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(given, long);
    va_end(given);
    if (!original) original = dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_renameat2 && a[4]) { errno = EINVAL; return -1; }
    return original(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""
HOLDING = """
import os, signal, sys, warnings
from stochgraph.algorithms.training import Configuration, train
from stochgraph.algorithms.training.reports import ProgressBar

def killed(record):
    if record["iteration"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

bar = ProgressBar()
if "killed" in sys.argv:
    bar.trained = killed
train(Configuration.load(sys.argv[1]), reporters=[bar])
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="a C compiler is needed, on Linux")
def test_a_run_on_a_file_system_without_locks_and_without_written_out_names(tmp_path, alone):
    """Killed, started again beside one that runs, and to the end: the bits of a run that was left alone."""
    (tmp_path / "lacking.c").write_text(LACKING)
    library, script, run = tmp_path / "lacking.so", tmp_path / "holding.py", tmp_path / "run.json"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "lacking.c", "-ldl"], check=True)
    script.write_text(HOLDING)
    SMALL.replace(output=str(tmp_path / "run")).save(run)
    environment = {**python_environment(), "LD_PRELOAD": str(library)}

    def start(*arguments):
        command = [sys.executable, str(script), str(run), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    assert start("killed").returncode == -signal.SIGKILL
    holder = tmp_path / "run" / ".lock.holder"
    left = holder.read_text()
    assert not _alive(int(left.splitlines()[0]))
    holder.write_text(left.replace(left.splitlines()[0], str(os.getpid())))
    refused = start()
    assert refused.returncode == 1
    assert f"if it is gone, remove {holder}" in refused.stderr
    holder.write_text(left)
    done = start()
    assert done.returncode == 0, done.stderr
    assert "continuing after 2 iterations" in done.stdout
    assert done.stderr.count(NO_LOCKS) == done.stderr.count(NO_WAITING) == 1
    assert same_runs(tmp_path / "run", alone)
    assert {path.name for path in Path(tmp_path / "run").iterdir() if path.name.startswith(".")} == {".lock"}


def _alive(process):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def test_locks_of_the_system_need_no_other(tmp_path):
    """And leave no word in the folder of who has held it."""
    with only_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    outcome = train(SMALL.replace(output=str(tmp_path)), reporters=[Hook()])
    assert outcome.finished
