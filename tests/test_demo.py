"""The demonstration: what it prints and draws, and that no interrupt and no full disk loses or spoils anything."""

import contextlib
import io
import re
import stat
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from matplotlib.figure import Figure

import stochgraph as sg
from stochgraph.algorithms import demo

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
    assert [file.name for file in path.parent.iterdir()] == ["navigation.png"]

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

    for name in ("LSF", "SF"):
        assert re.search(
            rf"^{name}: return -?\d+\.\d\d before, -?\d+\.\d\d after adaptation; -?\d+\.\d\d without meta-training$",
            printed,
            re.MULTILINE,
        )
    assert printed.endswith(f"figure: {path}\n")


def test_the_table_is_that_of_verify():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        demo.print_biases()
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    found = sg.verify(demo.bandit(2, 1).compile(sg.LSF()), theta).relative_bias
    row = next(line for line in printed.getvalue().splitlines() if line.startswith("LSF"))
    assert row.split()[4] == f"{found:.1e}"
    assert "2 steps, N = 1" in printed.getvalue().splitlines()[1]


def test_one_seed_one_run(quiet, tmp_path):
    one, same, other = (demo.train(1, seed) for seed in (3, 3, 4))
    for name in ("LSF", "SF"):
        assert one[name].iterations == [0, 1]
        assert one[name].returns == same[name].returns
        assert one[name].returns != other[name].returns
        assert one[name].returns["after"][0] != one[name].returns["after"][1]


def test_steps_go_up(monkeypatch):
    """The optimiser maximises: on an objective with a known gradient every parameter moves along it."""
    learner = demo.Learner(demo.navigation(1).compile(sg.LSF()), demo.navigation(0).compile(sg.SF()), 0)
    before = {name: leaf.clone() for name, leaf in learner.theta.items()}
    gradient = {name: torch.ones_like(leaf) for name, leaf in learner.theta.items()}
    monkeypatch.setattr(sg.Compiled, "value_and_grad", lambda *_, **__: (torch.tensor(0.0), gradient))
    learner.step()
    for name, leaf in learner.theta.items():
        torch.testing.assert_close(leaf, before[name] + 1e-3, rtol=0.0, atol=1e-5)


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Let a method work `after` times, and be interrupted in the next call."""
    original, calls = getattr(owner, name), []

    def method(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(("method", "after"), [("step", 2), ("step", 0), ("step", 3), ("evaluate", 2), ("evaluate", 3)])
def test_an_interrupt_ends_the_training_and_shows_what_there_is(quiet, monkeypatch, tmp_path, method, after):
    interrupt(monkeypatch, demo.Learner, method, after)
    printed = run("--iterations", 50, "--out", tmp_path / "figure.png")
    assert "interrupted: showing what has been learned so far" in printed
    assert len(re.findall(r"after adaptation; -?\d+\.\d\d without meta-training$", printed, re.MULTILINE)) == 2
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("after", [2, 3, 5, 6, 7])
def test_an_interrupt_within_an_evaluation(quiet, monkeypatch, tmp_path, after):
    """An evaluation samples twice; between the two the curves of a learner have different lengths."""
    learners = {}

    def train(iterations, seed, original=demo.train):
        with monkeypatch.context() as patched:
            interrupt(patched, sg.Compiled, "sample", after)
            learners.update(original(iterations, seed))
        return learners

    monkeypatch.setattr(demo, "train", train)
    run("--iterations", 50, "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    for learner in learners.values():
        assert {len(curve) for curve in learner.returns.values()} == {len(learner.iterations)}


def test_an_interrupt_before_anything_was_learned(quiet, monkeypatch, tmp_path):
    interrupt(monkeypatch, demo.Learner, "evaluate", 0)
    printed = run("--iterations", 2, "--out", tmp_path / "figure.png")
    assert "interrupted" in printed
    assert "figure:" not in printed
    assert not list(tmp_path.iterdir())


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
        demo.save(Figure(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"] * there
    assert not there or path.read_bytes() == b"an older figure"


def test_a_figure_is_as_readable_as_any_new_file(tmp_path):
    demo.save(Figure(), tmp_path / "figure.png")
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
    interrupt(monkeypatch, demo.Learner, "evaluate", 0)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--iterations", "1", "--out", str(tmp_path / where)])
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["matplotlib", "tqdm"])
def test_what_is_not_installed_is_said_before_training(capsys, monkeypatch, tmp_path, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    interrupt(monkeypatch, demo.Learner, "evaluate", 0)
    with pytest.raises((SystemExit, ImportError)) as stopped:
        demo.main(["--iterations", "1", "--out", str(tmp_path / "figure.png")])
    assert re.search(r"pip install .*stochgraph\[.*\]", str(stopped.value) + capsys.readouterr().err)
