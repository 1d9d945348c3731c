"""The demonstration: what it prints and draws, and that no interrupt and no full disk loses or spoils anything."""

import contextlib
import io
import os
import re
import signal
import stat
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from matplotlib.figure import Figure

import stochgraph as sg
from stochgraph.algorithms.commands import demo
from stochgraph.algorithms.training.curves import save_figure
from stochgraph.algorithms.training.reports import ProgressBar

PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments: Any) -> str:
    """What the demonstration prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        demo.main([str(argument) for argument in arguments])
    return printed.getvalue()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small numbers of everything, so that a run takes a second."""
    for name, value in {"HORIZON": 4, "TASKS": 3, "TRAJECTORIES": 3}.items():
        monkeypatch.setattr(demo, name, value)


@pytest.fixture
def quiet(monkeypatch):
    """Only the training."""
    monkeypatch.setattr(demo, "print_ledgers", lambda: None)
    monkeypatch.setattr(demo, "print_biases", lambda: None)


def test_a_whole_run(tmp_path):
    """Ledgers of five estimators, a table of exact biases, both returns of both learners, and a figure."""
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    path = tmp_path / "new" / "navigation.png"
    printed = run("--iterations", 2, "--out", path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert path.read_bytes().startswith(PNG)
    assert sorted(file.name for file in path.parent.iterdir()) == ["navigation", "navigation.png"]

    ledgers, table = printed.split("Exact relative bias by enumeration")
    sections = dict(zip(*[iter(re.split(r"^--- (.+)$", ledgers, flags=re.MULTILINE)[1:])] * 2, strict=True))
    words = {
        "SF": ("once", "unbiased; variance O(N)"),
        "LSF": ("linearized", "biased, O(1/sqrt(N)); variance O(1/N)"),
        "MAML": ("dropped", "biased, O(1); variance O(1/N)"),
        "E-MAML as implemented": ("scaled", "biased, O(1); variance O(1/N)"),
        "SG-MRL as printed": ("twice", "biased, O(1); variance O(N)"),
    }
    assert list(sections) == list(words)
    for name, (counted, verdict) in words.items():
        assert re.search(rf"^D1 .*→ objective +{counted} ", sections[name], flags=re.MULTILINE)
        assert f"\n{verdict}" in sections[name]

    rows = {name: re.search(rf"^{re.escape(name)}  +(.+)$", table, flags=re.MULTILINE) for name in words}
    biases = {name: [float(cell) for cell in row[1].split()] for name, row in rows.items() if row is not None}
    assert list(biases) == list(words)
    assert all(len(row) == 5 for row in biases.values())
    assert max(biases["SF"]) < 1e-12
    assert all(1e-3 < bias < 0.05 for bias in biases["LSF"])
    assert all(bias > 0.05 for name in ("MAML", "SG-MRL as printed") for bias in biases[name])
    assert biases["E-MAML as implemented"][0] < 1e-12 < 0.01 < biases["E-MAML as implemented"][1]

    number = r"-?\d+\.\d\d"
    returns = rf"return {number} before, {number} after adaptation; {number} without meta-training"
    for name in ("LSF", "SF"):
        assert re.search(rf"^{name}, (\d+) of \1 iterations: {returns}$", printed, re.MULTILINE)
    assert printed.endswith(f"figure: {path}\n")


def test_the_table_is_that_of_verify():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        demo.print_biases()
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    found = sg.verify(demo.bandit(2, 1).compile(sg.LSF()), theta).relative_bias
    row = next(line for line in printed.getvalue().splitlines() if line.startswith("LSF"))
    assert row.split()[4] == f"{found:.1e}"
    assert "2 steps, N = 1" in printed.getvalue().splitlines()[1]


def test_an_interrupt_ends_the_training_and_shows_what_there_is(quiet, monkeypatch, tmp_path):
    """The run under way is saved and shown, the other one does not begin; the same command goes on with both."""

    def interrupt(self, record, original=ProgressBar.trained):
        original(self, record)
        if record["iteration"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "trained", interrupt)
        printed = run("--iterations", 3, "--out", tmp_path / "figure.png")
    assert "LSF: interrupted, and saved after 2 iterations" in printed
    assert re.findall(r"^(L?SF), (\d) of 3 iterations: return", printed, re.MULTILINE) == [
        ("LSF", "1")
    ]  # the last evaluation
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    printed = run("--iterations", 3, "--out", tmp_path / "figure.png")
    assert "LSF: continuing after 2 iterations" in printed
    found = re.findall(r"^(L?SF), (\d) of 3 iterations: return", printed, re.MULTILINE)
    assert found == [("LSF", "3"), ("SF", "3")]


def test_another_seed_is_not_mixed_with_what_is_there(quiet, tmp_path, capsys):
    run("--iterations", 1, "--out", tmp_path / "figure.png")
    with pytest.raises(SystemExit) as stopped:
        run("--iterations", 1, "--seed", 1, "--out", tmp_path / "figure.png")
    assert stopped.value.code == 2
    assert "holds a run with seed=0 not 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError("no space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"]
)
@pytest.mark.parametrize("there", [True, False], ids=["over an old figure", "anew"])
def test_a_figure_that_cannot_be_written_leaves_nothing_behind(monkeypatch, tmp_path, there, error):
    path = tmp_path / "figure.png"
    if there:
        path.write_bytes(b"an older figure")

    def savefig(self, name, **options):
        with open(name, "wb") as file:
            file.write(PNG)
        raise error

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(type(error)):
        save_figure(Figure(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"] * there
    assert not there or path.read_bytes() == b"an older figure"


def test_a_figure_is_as_readable_as_any_new_file(tmp_path):
    save_figure(Figure(), tmp_path / "figure.png")
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("figure.png", "other")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "0"], "--iterations must be at least 1"),
        (["--iterations", "-2"], "--iterations must be at least 1"),
        (["--iterations", "many"], "argument --iterations: invalid int value: 'many'"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--out", "figure.pdf"], "--out must end in .png"),
        (["--out", "figure"], "--out must end in .png"),
        (["--steps", "2"], "unrecognized arguments: --steps 2"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        demo.main(arguments)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("where", ["directory.png", "file.txt/figure.png"])
def test_a_place_that_cannot_be_written_is_refused_before_training(quiet, capsys, monkeypatch, tmp_path, where):
    (tmp_path / "directory.png").mkdir()
    (tmp_path / "file.txt").touch()
    monkeypatch.setattr(demo, "meta_train", None)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--iterations", "1", "--out", str(tmp_path / where)])
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["matplotlib", "tqdm"])
def test_what_is_not_installed_is_said_before_training(capsys, monkeypatch, tmp_path, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(demo, "meta_train", None)
    with pytest.raises((SystemExit, ImportError)) as stopped:
        demo.main(["--iterations", "1", "--out", str(tmp_path / "figure.png")])
    assert re.search(r"pip install .*stochgraph\[.*\]", str(stopped.value) + capsys.readouterr().err)
