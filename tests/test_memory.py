"""How much memory a run needs: counted before it is drawn, held against what there is, refused where it cannot fit."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from stochgraph.algorithms.policies import (
    ActorCritic,
    CategoricalGRU,
    CategoricalMLP,
    CategoricalModule,
    GaussianMLP,
    GaussianModule,
    Policy,
    TabularSoftmax,
)
from stochgraph.algorithms.training import ConfigurationError, Problem, Ranks, Trainer, train
from stochgraph.algorithms.training import memory as memory_module
from stochgraph.algorithms.training.memory import (
    Memory,
    _group_limits,
    _machine,
    gigabytes,
    memory_of,
    need_of_parameters,
)
from stochgraph.algorithms.training.run_memory import need_of
from stochgraph.algorithms.training.settings import META_ALGORITHMS, PLAIN_ALGORITHMS
from tests.training_cases import FORKS, SMALL, Hook

CPU = torch.device("cpu")
POLICIES: dict[str, Policy] = {
    "GaussianMLP": GaussianMLP(3, 2, (5, 4)),
    "fixed deviation": GaussianMLP(3, 2, (), learn_std=False),
    "CategoricalMLP": CategoricalMLP(3, 2),
    "CategoricalGRU": CategoricalGRU(3, 2, 4),
    "ActorCritic": ActorCritic(CategoricalMLP(3, 2), 3),
    "TabularSoftmax": TabularSoftmax(3, 2),
    "GaussianModule": GaussianModule(torch.nn.Linear(3, 2), 2),
    "CategoricalModule": CategoricalModule(torch.nn.Linear(3, 2), 2),
}


def size_of(tree):
    """The bytes of all tensors in a tree."""
    return sum(leaf.numel() * leaf.itemsize for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", POLICIES)
def test_parameters_are_counted_without_being_made(name, dtype):
    policy = POLICIES[name]
    assert need_of_parameters(policy, dtype).parameters == 4 * size_of(policy.initial(dtype=dtype))


TABULAR = {"environment": "random-mdp", "policy": "table", "policy_options": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"steps": 3, "tasks": 5, "shards": 2}, {"steps": 0}, {"precision": "float64"}, TABULAR,
        {"environment": "corner-navigation"}, {"environment": "swimmer", "environment_options": {"threads": 1}},
        {"evaluation_tasks": 30, "evaluation_steps": 4},
        *({"algorithm": name} for name in sorted(META_ALGORITHMS) if name != "bomrl-tabular"),
        *({"algorithm": name, "steps": 0} for name in PLAIN_ALGORITHMS),
        {"algorithm": "ppo", "steps": 0, "bootstrap": True},
        {"algorithm": "bomrl-tabular", **TABULAR},
    ],
    ids=str,
)  # fmt: skip
def test_trajectories_are_counted_as_they_are_kept(changes):
    """All of a meta-batch, with their log-probabilities; or those of a shard of held-out tasks, if these are more."""
    if changes.get("environment") == "swimmer":
        pytest.importorskip("mujoco")
    problem = Problem(SMALL.replace(**{"evaluation_tasks": 1, "horizon": 5, **changes}))
    theta = problem.initial()
    if "evaluation_steps" in changes:
        traces = [problem._draw(problem._evaluated, theta, 20, "", ("held-out", 0))]
    else:
        traces = [trace for _, trace in problem.draw(theta, 0).shards]
    drawn = [(trace.draws[name], trace.log_probs[name]) for trace in traces for name in trace.draws if name != "task"]
    assert need_of(problem, Ranks()).draws == size_of(drawn)


def test_ranks_share_the_trajectories():
    problem = Problem(SMALL.replace(tasks=8, shards=4, evaluation_tasks=1))
    alone, *shared = (need_of(problem, ranks) for ranks in (Ranks(), Ranks(0, 2), Ranks(1, 2)))
    assert [need.draws for need in shared] == [alone.draws // 2] * 2


LARGE: dict[str, dict[str, Any]] = {
    "parameters": {"hidden": (1100, 1100), "tasks": 2},
    "adapted parameters": {"hidden": (400, 400), "tasks": 100},
    "trajectories": {"horizon": 1000, "tasks": 50, "inner": 20, "outer": 20},
    "shards": {"horizon": 1000, "tasks": 50, "inner": 20, "outer": 20, "shards": 5},
    "derivatives": {"horizon": 100, "tasks": 40, "inner": 20, "outer": 20, "hidden": (64, 64), "chunk": 40},
}


def iterate(configuration):
    problem = Problem(configuration)
    theta = problem.initial()
    problem.learner(theta).step(theta, problem.draw(theta, 0))


def measure(configuration, answers):
    """By how much the largest memory of this process grows in an iteration, in bytes."""
    torch.set_num_threads(1)
    iterate(SMALL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    iterate(configuration)
    answers.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the unit of ru_maxrss differs between systems")
@pytest.mark.parametrize("name", LARGE)
def test_a_run_takes_what_is_counted_and_not_many_times_more(name):
    """So that nothing is refused that could have been held."""
    large = SMALL.replace(**LARGE[name])
    need = need_of(Problem(large), Ranks()).total
    receiver, sender = FORKS.Pipe()
    process = FORKS.Process(target=measure, args=(large, sender))
    process.start()
    sender.close()
    taken = receiver.recv()
    process.join()
    assert need > 3e7
    assert need <= taken <= 6 * need


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": (10**6, 10**6)}, r"needs 16000\.\d GB .16000\.\d for parameters, 0\.0 .* smaller hidden layers"),
        ({"hidden": (3000, 3000), "tasks": 10**6, "inner": 2, "outer": 2}, r"needs 72\d{3}\.\d GB .* more shards"),
        ({"tasks": 10**7, "horizon": 10**4}, r"needs 1\d{4}\.\d GB .*\d for trajectories.* fewer tasks, inner or"),
        ({"evaluation_steps": 3, "horizon": 10**5, "inner": 10**6}, r"\d for trajectories.* a shorter horizon"),
        ({"tasks": 10**4, "chunk": 10**4, "hidden": (2000, 2000), "steps": 0, "horizon": 10**4}, "der.* smaller chunk"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(tmp_path, changes, words):
    run = SMALL.replace(**changes, output=str(tmp_path / "run"))
    with pytest.raises(ConfigurationError, match=words) as caught:
        train(run, reporters=[])
    most = memory_of(CPU)
    assert most is not None
    found = float(str(caught.value).split("there are ")[1].split()[0])
    assert found == pytest.approx(most.most / 1e9, abs=1.0)
    assert not (tmp_path / "run").exists()


def with_little(configuration, room, answers):
    """Train where the process can have so many bytes more than it has; what is said if it cannot."""
    addressed = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (addressed + room, addressed + room))
    try:
        train(configuration, reporters=[])
        answers.send("")
    except ConfigurationError as error:
        answers.send(str(error))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no way to ask for addresses in use")
@pytest.mark.parametrize(("tasks", "fits"), [(3, True), (5000, False)])
def test_a_limit_of_the_process_is_what_there_is(tmp_path, tasks, fits):
    run = SMALL.replace(output=str(tmp_path / "run"), tasks=tasks, inner=20, outer=20, horizon=1000, iterations=1)
    run = run.replace(**({"inner": 2, "outer": 2, "horizon": 3} if fits else {}))
    receiver, sender = FORKS.Pipe()
    process = FORKS.Process(target=with_little, args=(run, 2 * 10**9, sender))
    process.start()
    sender.close()
    said = receiver.recv()
    process.join()
    assert said == "" if fits else "needs 6.4 GB" in said and "there are 2.0 GB" in said, said


def test_a_large_run_says_what_it_needs(tmp_path, monkeypatch):
    run = SMALL.replace(iterations=1)
    need = need_of(Problem(run), Ranks())
    for free, said in ((need.total * 5, False), (need.total * 3, True), (0, True)):
        monkeypatch.setattr(f"{Trainer.__module__}.memory_of", lambda _, free=free: Memory(10**9, free))
        hook = Hook()
        train(run.replace(output=str(tmp_path / str(free))), reporters=[hook])
        expected = f"needs {need} of memory at least; {gigabytes(free)} GB are free"
        assert (expected in hook.said) == said


def test_what_is_not_known_is_not_in_the_way(tmp_path, monkeypatch):
    """A system that does not say how much memory it has; a policy that does what fakes cannot do."""
    monkeypatch.setattr(memory_module, "_machine", lambda: None)
    assert memory_of(CPU) is None
    assert train(SMALL.replace(output=str(tmp_path / "run"), iterations=1), reporters=[]).finished

    class Stubborn(GaussianMLP):
        def initial(self, *arguments, **options):
            return {name: torch.tensor(leaf.tolist()) for name, leaf in super().initial().items()}

    assert need_of_parameters(Stubborn(2, 2), torch.float32).total == 0


def test_the_memory_of_a_machine(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 300 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n")
    assert _machine(path) == Memory(1050 * 1024, 320 * 1024)
    path.write_text("something else\n")
    other = _machine(path)
    assert other is not None
    assert other.most == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("group", "files", "limits"),
    [
        ("0::/job/step", {"job/step/memory.max": "max", "job/memory.max": "700", "memory.max": "900"}, [700, 900]),
        ("0::/", {"memory.max": "5000"}, [5000]),
        ("0::/job", {}, []),
        ("4:memory:/job\n0::/", {"memory/job/memory.limit_in_bytes": "300"}, [300]),
        ("3:cpu,memory:/", {"memory/memory.limit_in_bytes": "300"}, [300]),
        ("3:cpu:/", {"memory/memory.limit_in_bytes": "300"}, []),
    ],
)
def test_the_limits_of_control_groups(tmp_path, group, files, limits):
    (tmp_path / "groups").write_text(group + "\n")
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert list(_group_limits(tmp_path / "groups", tmp_path / "root")) == limits


def test_ranks_on_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory_module, "_machine", lambda: Memory(8 * 10**9, 6 * 10**9))
    monkeypatch.setattr(memory_module, "_own", lambda: (0, 0))
    monkeypatch.setattr(memory_module, "_group_limits", lambda: iter([]))
    monkeypatch.setattr(memory_module, "_process_limits", lambda: iter([]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of(CPU) == Memory(2 * 10**9, 15 * 10**8)
