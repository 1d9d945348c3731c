"""Every algorithm runs on every environment, or says why not."""

from typing import Any

import pytest
import torch

from stochgraph.algorithms.training import Configuration, ConfigurationError, Problem
from stochgraph.algorithms.training.settings import ALGORITHMS, ENVIRONMENTS, PLAIN_ALGORITHMS

PAIRS = {(algorithm, environment) for algorithm in ALGORITHMS for environment in ("navigation", "frozen-lake")}
PAIRS |= {(algorithm, environment) for algorithm in ("lsf", "promp", "meta-sgd") for environment in ENVIRONMENTS}


@pytest.mark.parametrize(("algorithm", "environment"), sorted(PAIRS - {("bomrl-tabular", "navigation")}))
def test_a_meta_gradient_of_every_algorithm_on_every_environment(algorithm, environment):
    pytest.importorskip("mujoco" if environment in ("half-cheetah", "ant", "walker2d", "swimmer") else "gymnasium")
    options: dict[str, Any] = {"horizon": 2, "hidden": (3,), "tasks": 2, "inner": 2, "outer": 2}
    if algorithm == "tmaml":
        options |= {"inner_baseline": None, "standardise": False}
    if algorithm in PLAIN_ALGORITHMS:
        options |= {"steps": 0}
    if algorithm == "bomrl-tabular":
        options |= {"policy": "table"}
    problem = Problem(Configuration(algorithm=algorithm, environment=environment, **options))
    theta = problem.initial()
    batch = problem.draw(theta, 0)
    value, gradient = batch.value_and_grad(theta)
    assert torch.isfinite(value)
    assert gradient.keys() == theta.keys()
    assert all(torch.isfinite(leaf).all() for leaf in gradient.values())
    assert environment == "frozen-lake" or any((leaf != 0).any() for leaf in gradient.values())
    problem.learner(theta).step(theta, batch)
    assert all(torch.isfinite(leaf).all() for leaf in theta.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "bomrl-tabular"}, "tabular_bomrl improves a table of logits: .*in a run: --policy table"),
        ({"algorithm": "bomrl-tabular", "policy": "table"}, "an action of Navigation is a vector of 2"),
        ({"algorithm": "bomrl", "algorithm_options": {"gain": "clip"}}, "gain='clip' is not known: choose one of"),
        ({"algorithm": "bomrl-practical", "algorithm_options": {"lr": 1}}, "it takes penalty, distance, adam_steps"),
        ({"algorithm": "tmaml"}, "tmaml puts a baseline into the derivative of steps on plain returns"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        Problem(Configuration(**options))
