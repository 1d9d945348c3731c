"""Policies against torch's distributions. The one z-test here fails by chance with a probability of 2e-6."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from stochgraph.algorithms.policies import (
    CategoricalMLP,
    CategoricalModule,
    GaussianMLP,
    GaussianModule,
    HeteroscedasticMLP,
    HeteroscedasticModule,
    Parameters,
    TabularSoftmax,
)
from stochgraph.algorithms.training import Configuration, Problem
from tests.problems import F64

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
NETWORK = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
WIDE = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 8)).double()
GAUSSIAN: dict[str, Any] = {
    "network": GaussianMLP(3, 4, hidden=(5,)),
    "linear": GaussianMLP(3, 4, hidden=()),
    "module": GaussianModule(NETWORK, 4),
    "floor": GaussianMLP(3, 4, hidden=(5, 6), least_log_std=0.1),
    "held": GaussianMLP(3, 4, hidden=(5,), log_std=-1.0, learn_std=False),
    "held module": GaussianModule(NETWORK, 4, log_std=0.3, learn_std=False),
    "variances": HeteroscedasticMLP(3, 4, hidden=(5, 6), least_log_std=-1.0),
    "variances of a module": HeteroscedasticModule(WIDE, 4),
}
SOFTMAX: dict[str, Any] = {
    "network": CategoricalMLP(3, 4, hidden=(5,)),
    "linear": CategoricalMLP(3, 4, hidden=()),
    "module": CategoricalModule(NETWORK, 4),
    "table": TabularSoftmax(3, 4),
}
ALL = [*GAUSSIAN.values(), *SOFTMAX.values()]
NAMES = [*(f"Gaussian {name}" for name in GAUSSIAN), *(f"softmax {name}" for name in SOFTMAX)]


def some(policy: Any, number: int) -> Parameters:
    generator = torch.Generator().manual_seed(number)
    initial = policy.initial(generator, dtype=F64)
    return {name: torch.randn(leaf.shape, generator=generator, dtype=F64) for name, leaf in initial.items()}


def distribution(policy: Any, theta: Parameters, observation: Tensor) -> Any:
    if policy in SOFTMAX.values():
        return Categorical(logits=policy.logits(theta, observation))
    mean, log_std = policy.moments(theta, observation)
    if hasattr(policy, "std"):
        assert torch.equal(mean, policy.mean(theta, observation))
        assert torch.equal(log_std.exp(), policy.std(theta))
    return Independent(Normal(mean, log_std.exp()), 1)


@pytest.mark.parametrize("policy", ALL, ids=NAMES)
def test_against_torchs_distributions(policy):
    torch.manual_seed(0)
    observation = torch.randn(7, 2, 3, dtype=F64)
    old, new = some(policy, 0), some(policy, 1)
    expected = distribution(policy, old, observation)
    action, log_prob = policy.sample(old, observation, policy.noise((7, 2), observation))
    assert action.shape == expected.sample().shape
    torch.testing.assert_close(log_prob, expected.log_prob(action), **EXACT)
    torch.testing.assert_close(policy.log_prob(old, observation, action), log_prob, **EXACT)
    divergence = kl_divergence(expected, distribution(policy, new, observation))
    torch.testing.assert_close(policy.kl(old, new, observation), divergence, **EXACT)
    assert policy.kl(old, old, observation).abs().max() < 1e-12
    assert divergence.min() > 1e-3


@pytest.mark.parametrize("policy", ALL, ids=NAMES)
def test_stacked_parameters(policy):
    """With a set per task, `sample` does what a loop over tasks does: stacked as they are, or mapped."""
    torch.manual_seed(0)
    sets = [some(policy, i) for i in range(4)]
    stacked = {name: torch.stack([one[name] for one in sets]) for name in sets[0]}
    observation = torch.randn(4, 6, 3, dtype=F64)
    noise = policy.noise((4, 6), observation)
    loop = [policy.sample(*each) for each in zip(sets, observation, noise, strict=True)]
    expected = tuple(torch.stack(parts) for parts in zip(*loop, strict=True))
    torch.testing.assert_close(torch.vmap(policy.sample)(stacked, observation, noise), expected, **EXACT)
    if policy.batched:
        torch.testing.assert_close(policy.sample(stacked, observation, noise), expected, **EXACT)


@pytest.mark.parametrize("policy", ALL, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_initial_parameters(policy, dtype):
    one, same, other = (policy.initial(torch.Generator().manual_seed(i), dtype) for i in (0, 0, 1))
    assert {leaf.dtype for leaf in one.values()} == {dtype}
    assert all(torch.equal(one[name], same[name]) for name in one)
    random = policy in (GAUSSIAN["network"], SOFTMAX["network"])
    assert not random or any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e3, 1e100])
def test_a_network_is_that_of_torch(scale):
    """With derivatives and without, where activations are tiny and where they saturate."""
    policy = GAUSSIAN["module"]
    theta, observation = some(policy, 0), scale * torch.randn(5, 3, dtype=F64)
    expected = policy.mean(theta, observation)
    torch.testing.assert_close(GAUSSIAN["network"].mean(theta, observation), expected, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(GAUSSIAN["network"].mean(theta, observation), expected, **EXACT)


def test_a_policys_parameters_are_copies_of_the_modules():
    policy = GAUSSIAN["module"]
    before = [leaf.clone() for leaf in NETWORK.parameters()]
    policy.initial()["0.weight"].zero_()
    assert all(torch.equal(leaf, was) for leaf, was in zip(NETWORK.parameters(), before, strict=True))


def test_the_first_layers_are_not_mistaken_for_the_last():
    """Only the last layer starts a tenth as large, also where hidden layers are as wide as an action."""
    theta = GaussianMLP(2, 2, hidden=(2, 2)).initial(torch.Generator().manual_seed(0))
    assert theta["0.weight"].abs().max() > 0.2
    assert theta["2.weight"].abs().max() > 0.2
    assert theta["4.weight"].abs().max() < 0.2


def test_the_floor():
    policy = GAUSSIAN["floor"]
    theta = {**some(policy, 0), "log_std": torch.tensor([-3.0, 0.1, 0.2, -0.5], dtype=F64)}
    torch.testing.assert_close(policy.std(theta).log(), torch.tensor([0.1, 0.1, 0.2, 0.1], dtype=F64), **EXACT)


def test_a_standard_deviation_that_is_held_fixed():
    """The one-dimensional navigation of Fallah et al.: the mean is linear, with an intercept, and sigma is .1."""
    options = {"learn_std": False, "log_std": math.log(0.1)}
    run = Configuration(environment="line-navigation", hidden=(), policy_options=options, tasks=2, inner=2, outer=2)
    problem = Problem(run)
    theta = problem.initial()
    assert {name: leaf.shape for name, leaf in theta.items()} == {"0.weight": (1, 1), "0.bias": (1,)}
    policy: Any = problem.rollouts.policy
    torch.testing.assert_close(policy.std(theta), torch.tensor([0.1]))
    assert problem.draw(theta, iteration=0).value_and_grad(theta)[1].keys() == theta.keys()
    assert GaussianMLP(1, 1, log_std=-9.0, learn_std=False).std(theta).log() == -5.0  # the floor holds for it too


@pytest.mark.parametrize(
    "policy",
    [GAUSSIAN["variances"], GAUSSIAN["variances of a module"], HeteroscedasticMLP(3, 4, hidden=())],
    ids=["network", "module", "linear"],
)
def test_the_network_gives_variances(policy):
    """By hand: the second half of the outputs, which depends on the observation, not below the floor."""
    theta, observation = some(policy, 0), torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    layers = len(theta) // 2
    outputs = observation
    for k in range(layers):
        outputs = outputs @ theta[f"{2 * k}.weight"].mT + theta[f"{2 * k}.bias"]
        outputs = torch.tanh(outputs) if k < layers - 1 else outputs
    mean, log_std = policy.moments(theta, observation)
    torch.testing.assert_close(mean, outputs[:, :4], **EXACT)
    torch.testing.assert_close(log_std, outputs[:, 4:].clamp(min=policy.least_log_std), **EXACT)
    assert log_std.std(0).min() > 0.1


def test_variances_start_where_they_are_asked_to():
    policy = HeteroscedasticMLP(3, 4, hidden=(5,), log_std=-0.7)
    theta = policy.initial(torch.Generator().manual_seed(0), F64)
    mean, log_std = policy.moments(theta, torch.zeros(2, 3, dtype=F64))
    assert torch.equal(mean, torch.zeros(2, 4, dtype=F64))
    torch.testing.assert_close(log_std, torch.full((2, 4), -0.7, dtype=F64), **EXACT)
    with pytest.raises(ValueError, match=r"returns \(1, 4\), for actions of size 4: 8 outputs are expected"):
        HeteroscedasticModule(NETWORK, 4).moments(dict(NETWORK.named_parameters()), torch.zeros(1, 3, dtype=F64))


@pytest.mark.parametrize("algorithm", ["lsf", "bomrl-practical", "promp"])
def test_runs_with_variances_of_the_network(algorithm):
    run = Configuration(policy="network-with-variances", algorithm=algorithm, horizon=4, hidden=(3,), tasks=2, inner=3)
    problem = Problem(run.replace(outer=3))
    theta = problem.initial()
    assert theta["2.bias"].shape == (4,)
    before = {name: leaf.clone() for name, leaf in theta.items()}
    problem.learner(theta).step(theta, problem.draw(theta, iteration=0))
    assert all((leaf != before[name]).any() for name, leaf in theta.items())


def test_a_module_with_a_log_std_of_its_own():
    module = torch.nn.Linear(3, 4)
    module.register_parameter("log_std", torch.nn.Parameter(torch.zeros(4)))
    with pytest.raises(ValueError, match="log_std, which is the policy's own: rename the module's"):
        GaussianModule(module, 4)


def test_choices_have_the_frequencies_of_the_policy():
    policy = SOFTMAX["table"]
    theta, torch_seed, draws = some(policy, 3), 0, 20000
    torch.manual_seed(torch_seed)
    state = torch.eye(3, dtype=F64)[:1].expand(draws, 3)
    action, _ = policy.sample(theta, state, policy.noise((draws,), state))
    share = theta["logits"][0].softmax(-1)
    z = (action.bincount(minlength=4) - draws * share) / (draws * share * (1 - share)).sqrt()
    assert z.abs().max() < 5


def test_impossible_actions_are_never_chosen():
    policy = TabularSoftmax(1, 3)
    theta = {"logits": torch.tensor([[0.0, -torch.inf, 0.0]])}
    state = torch.ones(5000, 1)
    action, log_prob = policy.sample(theta, state, policy.noise((5000,), state))
    assert set(action.tolist()) == {0, 2}
    torch.testing.assert_close(log_prob, torch.full_like(log_prob, 0.5).log())


def test_a_mean_that_is_zero_at_first():
    policy = GaussianMLP(2, 1, hidden=(3,), output_scale=0.0)
    theta = policy.initial(torch.Generator().manual_seed(0))
    assert bool((policy.mean(theta, torch.randn(5, 2)) == 0).all())
    assert bool(theta["0.weight"].all())
    with pytest.raises(ValueError, match="output_scale"):
        GaussianMLP(2, 1, output_scale=-1.0)
