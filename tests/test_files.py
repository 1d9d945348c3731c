"""Files that are whole or not there."""

import contextlib
import errno
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from stochgraph.algorithms.training.checkpoints import CheckpointError, Checkpoints, read_checkpoint
from stochgraph.algorithms.training.files import (
    Lines,
    json_lines,
    only_writer,
    remove_temporaries,
    replacing,
    write_lines,
)
from tests.training_cases import FORKS, same


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_what_was_there(tmp_path, error, there):
    path = tmp_path / "file"
    if there:
        path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [each.name for each in tmp_path.iterdir()] == ["file"] * there
    assert not there or path.read_text() == "old"


def left_behind(path):
    """The temporary file of a writer in another process, which was killed and is gone."""
    process = FORKS.Process(target=write_and_die, args=(path,))
    process.start()
    process.join()
    return f".temporary-{process.pid}-{path.name}"


def write_and_die(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_writers_leave_is_removed(tmp_path):
    name = left_behind(tmp_path / "new" / "file")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    (tmp_path / "new" / "file").write_text("whole")
    (tmp_path / "new" / f".temporary-{os.getpid()}-file").touch()  # of a process with this number, before a restart
    remove_temporaries(tmp_path / "new", "file")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    remove_temporaries(tmp_path / "nowhere", "file")


def test_only_ones_own_temporaries_are_removed(tmp_path):
    """Not those in folders within, not those of other files, nor of processes that live, nor folders."""
    (tmp_path / "within").mkdir()
    gone = left_behind(tmp_path / "within" / "file")
    kept = {f".temporary-{os.getppid()}-file", ".temporary-1-file", ".temporary-file", ".temporary-mine-file"}
    kept |= {gone.replace("file", "notes"), f"x{gone}", f"{gone}.bak", ".temporary-0-file"}
    kept |= {f".temporary-{10**30}-file", ".temporary--1-file", ".temporary-²-file"}
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / gone).mkdir()
    remove_temporaries(tmp_path, "file")
    assert {path.name for path in tmp_path.iterdir()} == kept | {"within", gone}
    assert (tmp_path / "within" / gone).exists()


def test_one_writer(tmp_path):
    with (
        only_writer(tmp_path),
        pytest.raises(BlockingIOError, match="another process is writing"),
        only_writer(tmp_path),
    ):
        pass
    with only_writer(tmp_path):
        pass


def test_a_full_device():
    """/dev/full refuses every byte."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with (
        contextlib.closing(Lines(Path("/dev/full"))) as lines,
        pytest.raises(OSError, match=r"No space left.*/dev/full"),
    ):
        lines.append({"iteration": 0})


def test_a_line_that_is_cut_short_is_taken_back(tmp_path, monkeypatch):
    """A disk with room for some bytes takes those, and says so."""
    write = os.write
    with contextlib.closing(Lines(tmp_path / "lines")) as lines:
        lines.append({"iteration": 0})
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
            with pytest.raises(OSError, match="No space left"):
                lines.append({"iteration": 1})
        assert Lines.read(tmp_path / "lines") == [{"iteration": 0}]
        lines.append({"iteration": 1})
    assert Lines.read(tmp_path / "lines") == [{"iteration": 0}, {"iteration": 1}]


def test_a_line_that_is_taken_back_leaves_no_hole(tmp_path, monkeypatch):
    """The file was emptied meanwhile: it is cut to where the line began, and not to where it ended before that."""
    path, write = tmp_path / "lines", os.write
    with contextlib.closing(Lines(path)) as lines:
        lines.append({"iteration": 0})
        os.truncate(path, 0)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
            with pytest.raises(OSError, match="No space left"):
                lines.append({"iteration": 1})
        assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b"", []),
        (b'{"a": 1}\n[2]\n', [{"a": 1}, [2]]),
        (b'{"a": 1}\r\n\n  \n3', [{"a": 1}, 3]),
        (b'{"a": 1}\nx\n{"a"', [{"a": 1}, None]),
        (b"\xef\xbb\xbf1\n\xff\n", [1, None]),
        (b"\0\0\n", [None]),
    ],
)
def test_lines_and_what_is_in_them(written, found):
    """A last line without an end counts if it is whole. Blank ones do not."""
    assert [value for _, value in json_lines(written)] == found
    assert all(line.strip() in written for line, _ in json_lines(written))


def test_files_are_cut_where_that_is_enough(tmp_path):
    """So that there need be no room for a copy on the disk, and whoever follows the file goes on following it."""
    path = tmp_path / "lines"
    path.write_bytes(b"1\n2\n3")
    number = path.stat().st_ino
    write_lines(path, [b"1", b"2"])
    assert (path.read_bytes(), path.stat().st_ino) == (b"1\n2\n", number)
    write_lines(path, [b"2"])
    assert path.read_bytes() == b"2\n"
    link = tmp_path / "link"
    link.symlink_to(path)
    write_lines(link, [b"3"])
    assert (path.read_bytes(), link.is_symlink()) == (b"3\n", True)
    write_lines(tmp_path / "none", [])
    assert not (tmp_path / "none").exists()


def test_checkpoints_are_read_without_running_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("code has run",)

    torch.save({"theta": Evil()}, tmp_path / "00000001.pt")
    with pytest.raises(CheckpointError, match=r"00000001\.pt cannot be read"):
        read_checkpoint(tmp_path / "00000001.pt")


def test_checkpoints_that_are_not_the_state_of_a_run(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "00000001.pt")
    with pytest.raises(CheckpointError, match="holds Tensor, and not the state of a run"):
        read_checkpoint(tmp_path / "00000001.pt")


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), complex(0, float("inf"))])
@pytest.mark.parametrize("wrap", [lambda x: {"a": x}, lambda x: {"a": {0: [1, x]}}, lambda x: {"a": {"b": ("c", x)}}])
def test_checkpoints_are_finite(tmp_path, wrap, value):
    """What is not is not written. What was, by another version, is passed over."""
    checkpoints, where = Checkpoints(tmp_path), r"a(\.0\.1|\.b\.1|) is not finite"
    checkpoints.save(1, wrap(torch.ones(3)))
    broken = wrap(torch.tensor([0.0, value]))
    with pytest.raises(CheckpointError, match=rf"00000002\.pt is not written: {where}"):
        checkpoints.save(2, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001.pt"]
    torch.save(broken, tmp_path / "00000002.pt")
    said: list[str] = []
    assert same(checkpoints.newest(said.append), wrap(torch.ones(3)))
    assert re.search(rf"00000002\.pt .*{where}; going back to 00000001\.pt", said[0])
    (tmp_path / "00000001.pt").unlink()
    with pytest.raises(CheckpointError, match="No checkpoint is left"):
        checkpoints.newest()


@pytest.mark.parametrize("kept", [1, 2])
def test_what_somebody_puts_there_does_not_take_the_place_of_a_checkpoint(tmp_path, kept):
    """A file with the name of a later one: those that were just written are kept all the same."""
    checkpoints = Checkpoints(tmp_path, kept=kept)
    (tmp_path / "20251231.pt").touch()
    for iteration in (1, 2, 3):
        checkpoints.save(iteration, {"x": iteration})
    names = [path.name for path in checkpoints.paths()]
    assert names == [f"0000000{i}.pt" for i in range(4 - kept, 4)] + ["20251231.pt"]


def test_checkpoints_are_sorted_by_their_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path, kept=2)
    for iteration in (99_999_999, 100_000_000, 100_000_001):
        checkpoints.save(iteration, {"x": iteration})
    assert [path.name for path in checkpoints.paths()] == ["100000000.pt", "100000001.pt"]
    assert checkpoints.newest() == {"x": 100_000_001}


def test_other_files_among_the_checkpoints_do_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path, kept=1)
    for name in ("best.pt", "00000099.pt.unreadable", ".temporary-1-00000077.pt"):
        (tmp_path / name).touch()
    checkpoints.save(3, {"x": 1})
    checkpoints.save(12, {"x": 2})
    assert checkpoints.newest() == {"x": 2}
    assert len(list(tmp_path.iterdir())) == 4
