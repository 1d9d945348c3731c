"""The package as it was at a commit, in an environment of its own: work on the code does not touch what runs with it.

A wheel is built of the commit's own files, and installed without dependencies: those are the packages of the
interpreter that runs this.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class BuildError(RuntimeError):
    """A commit could not be found, or no wheel be built of it."""


def full_name(commit: str, checkout: Path = ROOT) -> str:
    """The forty digits of a commit, a branch or a tag."""
    return _said(["git", "-C", str(checkout), "rev-parse", "--verify", f"{commit}^{{commit}}"]).decode().strip()


def cache_folder() -> Path:
    """Where environments are kept, unless another place is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stochgraph" / "reproduce"


def python_of(commit: str, cache: Path, checkout: Path = ROOT) -> Path:
    """The interpreter of the environment of a commit, which is made if it is not there yet.

    Args:
        commit: its forty digits.
        cache: the folder of all environments.
        checkout: a checkout of the repository.

    Raises:
        BuildError: it cannot be made.
    """
    place = cache / commit
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ready").exists():  # what was broken off is made anew
            _make(place, commit, checkout)
            (place / "ready").touch()
    return place / "venv" / "bin" / "python"


def sources_of(commit: str, cache: Path) -> Path:
    """The files of a commit, beside its environment."""
    return cache / commit / "sources"


def _make(place: Path, commit: str, checkout: Path) -> None:
    for name in ("sources", "venv"):
        shutil.rmtree(place / name, ignore_errors=True)
    archive = _said(["git", "-C", str(checkout), "archive", commit])
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(place / "sources", filter="data")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    packages = next((place / "venv" / "lib").glob("python*")) / "site-packages"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(place / "sources", Path(scratch) / "sources", symlinks=True)
        _said([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, str(copy)])
        wheels = [str(path) for path in Path(scratch).glob("*.whl")]
        _said([*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(packages), *wheels])
    here = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in here))  # behind the wheel


def _said(command: Sequence[str]) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip() or error.stdout.decode(errors="replace").strip()
        raise BuildError(f"{' '.join(command)}: {words}") from error
