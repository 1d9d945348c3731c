"""Runs whose meta-gradients are flat programs: the same run, and one that stays what it is."""

import pytest
import torch

import stochgraph as sg
from stochgraph.algorithms.training import Configuration, ConfigurationError, Problem, train
from tests.training_cases import SMALL, Hook, newest, same, same_runs, timeless


def programs(compiled: sg.Compiled) -> list[int]:
    """How often each of its programs has been trusted."""
    assert compiled._lowering is not None
    assert all(entry.refusal is None for entry in compiled._lowering._entries.values())
    return [entry.hit for entry in compiled._lowering._entries.values()]


@pytest.mark.parametrize("algorithm", ["lsf", "promp"])
def test_a_flat_run_is_the_interpreted_one(tmp_path, algorithm):
    """To the bit, parameters and metrics; by "auto" from the 20th chunk of a task on."""
    runs = {
        word: SMALL.replace(output=str(tmp_path / word), algorithm=algorithm, lowering=word, iterations=9, chunk=1)
        for word in ("never", "auto", "flat")
    }
    for run in runs.values():
        train(run, reporters=[])
    for word in ("auto", "flat"):
        assert same(newest(runs[word].output)["learner"], newest(runs["never"].output)["learner"])
        assert timeless(runs[word].output) == timeless(runs["never"].output)


@pytest.mark.parametrize(
    "changes", [{}, {"algorithm": "promp"}, {"algorithm": "loo"}, {"environment": "frozen-lake", "policy_options": {}}]
)
def test_meta_gradients_are_lowered(changes):
    """In chunks of tasks, the last of which is another program; none is refused, and none falls back."""
    run = SMALL.replace(lowering="flat", tasks=5, chunk=2, **changes)
    problem = Problem(run)
    theta = problem.initial()
    for iteration in range(4):
        problem.learner(theta).step(theta, problem.draw(theta, iteration))
    for compiled in filter(None, [problem.compiled if problem.objective is None else None, problem.objective]):
        assert len(programs(compiled)) == 2
        assert min(programs(compiled)) > 0


def test_how_a_run_is_lowered_does_not_change(tmp_path):
    run = SMALL.replace(output=str(tmp_path / "run"), lowering="flat", iterations=2)
    train(run, reporters=[])
    assert Configuration.load(tmp_path / "run" / "run.json").lowering == "flat"
    with pytest.raises(ConfigurationError, match="lowering='flat' not 'never': continue it with the configuration in"):
        train(run.replace(lowering="never", iterations=4), reporters=[])


def test_a_lowered_run_is_continued_as_it_would_have_gone_on(tmp_path):
    whole = SMALL.replace(output=str(tmp_path / "whole"), lowering="flat", iterations=4)
    part = whole.replace(output=str(tmp_path / "part"))
    train(whole, reporters=[])
    for iterations in (2, 4):
        train(part.replace(iterations=iterations), reporters=[])
    assert same_runs(whole.output, part.output)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports of torch
def test_a_compiled_run(tmp_path):
    """Its parameters are those of the interpreted one to rounding; how long it took is said."""
    hook = Hook()
    runs = [SMALL.replace(output=str(tmp_path / word), lowering=word, iterations=2) for word in ("inductor", "never")]
    one, other = (train(run, reporters=[hook]).theta for run in runs)
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in other)
    assert any("torch.compile of" in text for text in hook.said)
    assert any("compiled in" in text for text in hook.said)
    torch.compiler.reset()
