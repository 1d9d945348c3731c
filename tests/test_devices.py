"""Where tensors live. There may be no accelerator: torch's "meta" device shows where tensors would be made."""

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.overrides import TorchFunctionMode

import stochgraph as sg
from stochgraph.algorithms.commands.command_line import main
from stochgraph.algorithms.environments import CornerNavigation, LineNavigation, Navigation, RandomMDP
from stochgraph.algorithms.policies import CategoricalMLP, GaussianMLP, TabularSoftmax
from stochgraph.algorithms.rollouts import Rollouts
from stochgraph.algorithms.training import Configuration, ConfigurationError, Problem, load_result, train
from stochgraph.algorithms.training.devices import device_named
from tests.training_cases import SMALL

ELSEWHERE = "cuda:99"  # on no machine


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "device='gpu' is not known: choose 'cpu', 'cuda'"),
        ("meta", "device='meta' is not supported: choose 'cpu', 'cuda'"),
        (ELSEWHERE, "device='cuda:99' is not there: torch finds"),
    ],
)
def test_devices_are_refused_before_anything_runs(name, words, tmp_path):
    with pytest.raises(ConfigurationError, match=words):
        Problem(SMALL.replace(device=name))
    with pytest.raises(ConfigurationError, match=words):
        train(SMALL.replace(device=name, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_machine_without_an_accelerator_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigurationError, match="device='cuda' is not there: torch finds none: choose 'cpu'"):
        device_named("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigurationError, match="torch finds 2 of them, from 'cuda:0'"):
        device_named("cuda:2")


def test_results_are_read_on_a_machine_without_the_device(tmp_path):
    """A run of another machine, evaluated and continued on this one."""
    run = SMALL.replace(output=str(tmp_path), iterations=2)
    train(run, reporters=[])
    run.replace(device=ELSEWHERE).save(tmp_path / "run.json")
    said: list[str] = []
    result = load_result(tmp_path, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("device='cuda:99' is not there")
    assert said[0].endswith("the CPU takes its place")
    assert all(leaf.device.type == "cpu" for leaf in result.theta.values())
    found = CliRunner().invoke(main, ["evaluate", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert train(run.replace(iterations=3), reporters=[]).iteration == 3


def test_distributions_of_nothing_are_built_where_the_inputs_are():
    @sg.graph
    def objective(theta):
        task = sg.sample("task", RandomMDP(3, 2).task_distribution, n=4)
        return sg.mean(task.sum() * theta)

    trace = objective.compile(sg.SF()).sample(torch.zeros((), device="meta"))
    assert trace.draws["task"].device.type == trace.value.device.type == "meta"


@pytest.mark.parametrize(
    "policy", [GaussianMLP(2, 2), CategoricalMLP(2, 2), TabularSoftmax(2, 2)], ids=lambda p: type(p).__name__
)
def test_policies_stay_on_their_device(policy):
    theta = policy.initial(torch.Generator().manual_seed(0), device="meta")
    observation = torch.zeros(3, 2, device="meta")
    action, log_prob = policy.sample(theta, observation, policy.noise((3,), observation))
    found = [*theta.values(), action, log_prob, policy.kl(theta, theta, observation)]
    assert {leaf.device.type for leaf in found} == {"meta"}


class Made(TorchFunctionMode):
    """Notes the calls that make tensors without saying where."""

    _makers = frozenset(
        getattr(torch, name) for name in "zeros ones full empty eye rand randn randint arange tensor linspace".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, fn, types, args=(), kwargs=None):
        if fn in self._makers and "device" not in (kwargs or {}):
            self.found.append(fn.__name__)
        return fn(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "environment", [Navigation(), CornerNavigation(), LineNavigation(), RandomMDP(2, 2)], ids=lambda e: type(e).__name__
)
def test_steps_make_nothing_elsewhere(environment):
    """Rollouts, and their scores, say of every tensor that they make where it is to be."""
    sizes = (environment.observation_size, environment.action_size)
    policy = CategoricalMLP(*sizes) if environment.discrete else GaussianMLP(*sizes)
    walks, theta = Rollouts(environment, policy, horizon=3), policy.initial(torch.Generator().manual_seed(0))
    task: Tensor = environment.task_distribution().sample(torch.Size([2]))
    with Made() as made:
        tau = walks.draw(torch.Size([2]), {name: leaf.unsqueeze(0) for name, leaf in theta.items()}, task)
        walks.log_prob(tau, theta, task)
    assert made.found == []


def test_a_run_lives_where_it_is_told(monkeypatch):
    """Parameters are asked for on the device of the configuration."""
    asked: list[str] = []
    initial = GaussianMLP.initial

    def noted(self, generator=None, dtype=None, device="cpu"):
        asked.append(device)
        return initial(self, generator, dtype)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(GaussianMLP, "initial", noted)
    Problem(Configuration(horizon=3, tasks=2, inner=2, outer=2, hidden=(3,), device="cuda:1"))
    assert "cuda:1" in asked


@pytest.mark.parametrize(("rank", "index"), [("0", 0), ("1", 1), ("2", 0)])
def test_ranks_share_out_the_devices_of_a_machine(monkeypatch, rank, index):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert device_named("cuda") == torch.device("cuda", index)
    assert device_named("cuda:1") == torch.device("cuda", 1)
    assert device_named("cpu") == torch.device("cpu")
