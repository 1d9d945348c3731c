"""What hand-written policy-gradient losses estimate: by enumeration, against autograd of the expected loss itself."""

import itertools
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch.distributions import Categorical

import stochgraph as sg
from tests.problems import F64
from tests.test_documentation import blocks

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "losses.ipynb"
THETA = torch.tensor([0.1, 0.4, -0.3], dtype=F64)
REWARDS = torch.tensor([[1.0, 0.0, 0.5]], dtype=F64)


def model(theta):
    """One prompt, three completions of one token."""
    return theta.log_softmax(-1)[None, :, None]


def centred(log_probs, old_log_probs, reference_log_probs, rewards, mask):
    advantage = rewards - rewards.mean(-1, keepdim=True)
    return -(advantage[..., None] * log_probs).sum(-1).mean()


def compared(log_probs, old_log_probs, reference_log_probs, rewards, mask):
    others = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
    return -((rewards - others)[..., None] * log_probs).sum(-1).mean()


@pytest.mark.parametrize("group", [2, 3, 4])
def test_the_group_mean_scales_the_gradient(group):
    found = sg.verify_loss(centred, model, THETA, rewards=REWARDS, group=group)
    assert found.scale == pytest.approx(1 - 1 / group, abs=1e-12)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.relative_bias == pytest.approx(1 / group, abs=1e-12)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_leaving_one_out_is_unbiased(group):
    found = sg.verify_loss(compared, model, THETA, rewards=REWARDS, group=group)
    assert found.relative_bias < 1e-12
    assert found.outcomes == 3**group


def by_hand(loss, theta, group):
    """The mean and total variance of a loss's gradient, one backward pass an outcome."""
    probability = theta.softmax(-1)
    weights, gradients = [], []
    for chosen in itertools.product(range(3), repeat=group):
        index = torch.tensor(chosen)
        point = theta.clone().requires_grad_()
        taken = model(point)[:, index]
        loss(taken, taken.detach(), taken.detach(), REWARDS[:, index], torch.ones_like(taken)).backward()
        weights.append(probability[index].prod())
        gradients.append(-point.grad)
    weight, gradient = torch.stack(weights), torch.stack(gradients)
    mean = weight @ gradient
    return mean, float((weight @ (gradient - mean) ** 2).sum())


@pytest.mark.parametrize("loss", [centred, compared])
def test_mean_and_variance_are_those_of_plain_autograd(loss):
    found = sg.verify_loss(loss, model, THETA, rewards=REWARDS, group=3)
    mean, variance = by_hand(loss, THETA, 3)
    torch.testing.assert_close(found.expectation, mean, rtol=1e-12, atol=1e-14)
    assert found.total_variance == pytest.approx(variance, rel=1e-12)


def test_the_truth_is_the_gradient_of_the_expected_reward():
    found = sg.verify_loss(compared, model, THETA, rewards=REWARDS, group=2)
    expected = torch.func.grad(lambda t: (t.softmax(-1) * REWARDS[0]).sum())(THETA)
    torch.testing.assert_close(found.truth, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": REWARDS[0]}, r"rewards have \(3,\).*of a single prompt x\[None\]"),
        ({"mask": torch.ones(1, 3)}, r"the mask has shape \(1, 3\)"),
        ({"group": 11}, r"177147 joint outcomes, more than max_outcomes=100000"),
        ({"model": lambda t: t[None, :, None]}, r"sum to .*, not 1"),
        ({"loss": lambda p, *_: p.sum(-1)}, r"the loss must be a scalar, got shape \(1, 2\)"),
        ({"loss": lambda p, *_: torch.tensor(0.0)}, r"does not depend on log_probs"),
    ],
    ids=["rewards", "mask", "too many", "no distribution", "no scalar", "no gradient"],
)
def test_what_cannot_be_is_refused(changes, words):
    given = {"loss": compared, "model": model, "rewards": REWARDS, "group": 2, **changes}
    with pytest.raises(sg.VerificationError, match=words):
        sg.verify_loss(given.pop("loss"), given.pop("model"), THETA, **given)


def test_the_page_shows_what_is_found():
    """The table of the page is printed by its own code."""
    text = PAGE.read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    space: dict[str, dict[tuple[str, str], sg.Verification]] = {}
    exec(code, space)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert {(row[0].removeprefix("| "), row[1]) for row in rows} == space["RESULTS"].keys()
    for row in rows:
        found = space["RESULTS"][row[0].removeprefix("| "), row[1]]
        bias = "0" if found.relative_bias < 1e-12 else f"{100 * found.relative_bias:.2g} %"
        assert row[2:] == [bias, f"{found.scale:.3f}", f"{found.cosine:.4f} |"]


@pytest.fixture(scope="module")
def page():
    """The names that the page defines, the results of its table among them."""
    namespace: dict[str, Any] = {"__name__": "losses"}
    for _, code in blocks(PAGE.read_text()):
        exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


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
    assert {name for name, v in results.items() if v.relative_bias < 1e-12} == UNBIASED
    assert all(v.relative_bias > 0.01 for name, v in results.items() if name not in UNBIASED)
    assert all(v.outcomes == 4**4 for v in results.values())


@pytest.fixture(scope="module")
def notebook():
    """The names that the notebook defines, for another model than that of the page."""
    namespace: dict[str, Any] = {"__name__": "losses"}
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        patch.setattr("matplotlib.pyplot.show", lambda: None)
        try:
            for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
                if cell.cell_type == "code":
                    exec(compile(cell.source, str(NOTEBOOK), "exec"), namespace)
        finally:  # what the notebook sets for itself
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
    return namespace


@pytest.mark.slow
def test_another_model_has_the_same_unbiased_losses(page, notebook):
    results = notebook["RESULTS"]
    assert page["RESULTS"].keys() < results.keys()
    assert {name for name, v in results.items() if v.relative_bias < 1e-12} == UNBIASED
    assert all(v.relative_bias > 0.01 for name, v in results.items() if name not in UNBIASED)


@pytest.mark.slow
def test_a_penalty_that_is_not_detached_is_caught(notebook):
    """What the notebook says of its wrong loss: its bias, and the objective whose gradient it is."""
    problem, kl = notebook["problem"], notebook["kl"]
    meant = sg.verify_loss(notebook["mine"], notebook["model"], **problem, **kl)
    other = sg.verify_loss(notebook["mine"], notebook["model"], **problem, **notebook["other"])
    assert meant.relative_bias == pytest.approx(0.2013, abs=1e-4)
    assert other.relative_bias < 1e-12


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


@pytest.mark.parametrize("loss", [centred, compared])
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
    found = sg.verify_loss(loss, model, THETA, rewards=REWARDS, group=3)
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
    def two_prompts(parameters):
        logits = torch.stack([parameters["both"], parameters["both"] + parameters["second"]])
        return logits.log_softmax(-1)[..., None]

    parameters = {"both": THETA, "second": torch.tensor([0.3, 0.0, 0.1], dtype=F64)}
    rewards = torch.cat([REWARDS, REWARDS.flip(1)])
    v = sg.verify_loss(compared, two_prompts, parameters, rewards=rewards, group=2)
    assert v.outcomes == 3**4
    assert v.relative_bias < 1e-12
    assert set(v.truth) == set(v.variance) == {"both", "second"}


def test_what_follows_the_end_is_not_looked_at():
    """Log-probabilities of padding may be anything; their gradient is nothing."""

    def padded(theta):
        return torch.cat([model(theta), 7.0 * theta[None, :, None]], -1)

    mask = torch.tensor([[[1.0, 0.0]] * 3], dtype=F64)
    found = sg.verify_loss(compared, padded, THETA, rewards=REWARDS, group=2, mask=mask)
    expected = sg.verify_loss(compared, model, THETA, rewards=REWARDS, group=2)
    torch.testing.assert_close(found.expectation, expected.expectation, rtol=0, atol=1e-15)


def test_a_loss_may_branch_on_values():
    """As trainers' losses do: groups without a difference are left out, tokens chosen by a boolean mask."""

    def loss(p, old, ref, r, mask):
        if bool((r == r[0, 0]).all()):
            return 0.0 * p.sum()
        return compared(p, old, ref, r, mask) + 0.0 * p[mask.bool()].sum()

    v = sg.verify_loss(loss, model, THETA, rewards=REWARDS, group=3)
    assert v.relative_bias < 1e-12  # an advantage is 0 where all rewards are the same
