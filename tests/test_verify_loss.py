"""What hand-written losses estimate: against `verify` of the same surrogate, closed forms, and the page of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical

import stochgraph as sg
from tests.problems import F64
from tests.test_documentation import blocks

EXACT = 1e-12
PAGE = Path(__file__).parents[1] / "docs" / "losses.md"
THETA = torch.tensor([0.1, 0.4, -0.3], dtype=F64)
REWARDS = torch.tensor([[1.0, 0.0, 0.5]], dtype=F64)


@pytest.fixture(scope="module")
def page():
    """The names that the page defines, the results of its table among them."""
    namespace: dict[str, Any] = {"__name__": "losses"}
    for _, code in blocks(PAGE.read_text()):
        exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


def one_token(theta):
    return theta.log_softmax(-1)[None, :, None]


def centred(p, old, ref, r, mask):
    return -((r - r.mean(-1, keepdim=True)) * p.sum(-1)).mean()


def leave_one_out(p, old, ref, r, mask):
    n = r.shape[-1]
    return -((n * r - r.sum(-1, keepdim=True)) / (n - 1) * p.sum(-1)).mean()


# The table


UNBIASED = {
    ("reward", "leave-one-out advantage"),
    ("reward", "clipped ratio of tokens, first update"),
    ("reward, old batch", "ratio of sequences"),
    ("reward less KL", "k1 in the reward"),
    ("reward less KL", "k2 as a loss"),
    ("reward less KL", "k1 as a loss, with ratio"),
    ("reward less KL", "k3 as a loss, with ratio"),
    ("pass in two", "paid the share of others that failed"),
}


def test_which_losses_are_unbiased(page):
    results = page["RESULTS"]
    assert {name for name, v in results.items() if v.relative_bias < EXACT} == UNBIASED
    assert all(v.relative_bias > 0.01 for name, v in results.items() if name not in UNBIASED)
    assert all(v.outcomes == 4**4 for v in results.values())


def test_penalties_as_losses_in_closed_form(page):
    """k1 as a loss has no gradient on average, k3 that of KL(reference, model): the bias is what is missing."""
    theta, reference, beta = page["problem"]["theta"], page["REFERENCE"], page["BETA"]

    def log_p(t):
        return (page["model"](t) * page["MASK"]).sum(-1)

    forward = torch.func.grad(lambda t: (log_p(t).exp() * (log_p(t) - log_p(reference))).sum())(theta)
    backward = torch.func.grad(lambda t: (log_p(reference).exp() * (log_p(reference) - log_p(t))).sum())(theta)
    results = {name: page["RESULTS"]["reward less KL", name] for name in ("k1 as a loss", "k3 as a loss")}
    torch.testing.assert_close(results["k1 as a loss"].bias, beta * forward, rtol=0, atol=1e-14)
    torch.testing.assert_close(results["k3 as a loss"].bias, beta * (forward - backward), rtol=0, atol=1e-14)
    assert results["k1 as a loss"].relative_bias == pytest.approx(0.2446, abs=1e-4)
    assert results["k3 as a loss"].relative_bias == pytest.approx(0.0947, abs=1e-4)


@pytest.mark.parametrize("group", [2, 3, 5])
def test_the_mean_of_the_group_scales_the_gradient(group):
    v = sg.verify_loss(centred, one_token, THETA, rewards=REWARDS, group=group)
    torch.testing.assert_close(v.expectation, (1 - 1 / group) * v.truth, rtol=0, atol=1e-15)
    assert v.scale == pytest.approx(1 - 1 / group, abs=EXACT)
    assert v.cosine == pytest.approx(1, abs=EXACT)
    assert v.relative_bias == pytest.approx(1 / group, abs=EXACT)


# The figures


@pytest.mark.parametrize("loss", [leave_one_out, centred])
def test_the_same_figures_as_verify(loss):
    """The same surrogate on a declared graph, whose truth and outcomes are the compiler's."""

    @sg.graph
    def graph(theta):
        x = sg.sample("x", Categorical, logits=theta, n=3)
        return sg.mean(sg.apply(lambda i: REWARDS[0][i], x))

    def surrogate(theta, trace):
        index = trace.draws["x"]
        p = theta.log_softmax(-1)[index][None, :, None]
        return -loss(p, p.detach(), p.detach(), REWARDS[:, index], torch.ones(()))

    expected = sg.verify(graph.compile(sg.SF()), THETA, surrogate=surrogate)
    found = sg.verify_loss(loss, one_token, THETA, rewards=REWARDS, group=3)
    for name in ("truth", "expectation", "bias", "variance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-14)
    assert found.outcomes == expected.outcomes == 27


def test_the_truth_against_finite_differences(page):
    step, theta = 1e-6, page["problem"]["theta"]
    reference = (page["model"](page["REFERENCE"]) * page["MASK"]).sum(-1)

    def value(t):
        return page["penalised"]((page["model"](t) * page["MASK"]).sum(-1), reference, page["problem"]["rewards"])

    shifts = step * torch.eye(3, dtype=F64)
    slopes = torch.stack([(value(theta + shift) - value(theta - shift)) / (2 * step) for shift in shifts])
    truth = page["RESULTS"]["reward less KL", "k1 in the reward"].truth
    torch.testing.assert_close(truth, slopes, rtol=0, atol=1e-9)


def test_several_prompts_and_a_pytree():
    def model(parameters):
        logits = torch.stack([parameters["both"], parameters["both"] + parameters["second"]])
        return logits.log_softmax(-1)[..., None]

    parameters = {"both": THETA, "second": torch.tensor([0.3, 0.0, 0.1], dtype=F64)}
    rewards = torch.cat([REWARDS, REWARDS.flip(1)])
    v = sg.verify_loss(leave_one_out, model, parameters, rewards=rewards, group=2)
    assert v.outcomes == 3**4
    assert v.relative_bias < EXACT
    assert set(v.truth) == set(v.variance) == {"both", "second"}


def test_what_follows_the_end_is_not_looked_at():
    """Log-probabilities of padding may be anything; their gradient is nothing."""

    def padded(theta):
        return torch.cat([one_token(theta), 7.0 * theta[None, :, None]], -1)

    mask = torch.tensor([[[1.0, 0.0]] * 3], dtype=F64)
    found = sg.verify_loss(leave_one_out, padded, THETA, rewards=REWARDS, group=2, mask=mask)
    expected = sg.verify_loss(leave_one_out, one_token, THETA, rewards=REWARDS, group=2)
    torch.testing.assert_close(found.expectation, expected.expectation, rtol=0, atol=1e-15)


def test_a_loss_may_branch_on_values():
    """As trainers' losses do: groups without a difference are left out, tokens chosen by a boolean mask."""

    def loss(p, old, ref, r, mask):
        if bool((r == r[0, 0]).all()):
            return 0.0 * p.sum()
        return leave_one_out(p, old, ref, r, mask) + 0.0 * p[mask.bool()].sum()

    v = sg.verify_loss(loss, one_token, THETA, rewards=REWARDS, group=3)
    assert v.relative_bias < EXACT  # an advantage is 0 where all rewards are the same


# What is refused


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too many": ({"group": 30}, "3 completions in 1 groups of 30 are .* more than max_outcomes=100000"),
    "rewards": ({"rewards": REWARDS[0]}, r"shape \(1, 3, 1\), the rewards have \(3,\)"),
    "a mask": ({"mask": torch.ones(3)}, r"the mask has shape \(3,\)"),
    "half": ({"model": lambda t: one_token(t) - 0.7}, "sum to .*0.49.* not 1"),
    "a vector": ({"loss": lambda p, *_: p.flatten()}, r"must be a scalar, got shape \(2,\)"),
    "a number": ({"loss": lambda *_: 1.0}, "must be a scalar, got float"),
    "no dependence": ({"loss": lambda p, old, *_: old.sum()}, "does not depend on log_probs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    changed, message = REFUSED[name]
    given: dict[str, Any] = {
        "loss": leave_one_out,
        "model": one_token,
        "theta": THETA,
        "rewards": REWARDS,
        "group": 2,
        **changed,
    }
    with pytest.raises(sg.VerificationError, match=message):
        sg.verify_loss(given.pop("loss"), given.pop("model"), given.pop("theta"), **given)
