"""What hand-written policy-gradient losses estimate: by enumeration, against autograd of the expected loss itself."""

import itertools
import re
from pathlib import Path

import pytest
import torch

import stochgraph as sg
from tests.problems import F64

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"
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
    before = torch.get_default_dtype()
    space: dict[str, dict[tuple[str, str], sg.Verification]] = {}
    try:
        exec(code, space)
    finally:
        torch.set_default_dtype(before)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert {(row[0].removeprefix("| "), row[1]) for row in rows} == space["RESULTS"].keys()
    for row in rows:
        found = space["RESULTS"][row[0].removeprefix("| "), row[1]]
        bias = "0" if found.relative_bias < 1e-12 else f"{100 * found.relative_bias:.2g} %"
        assert row[2:] == [bias, f"{found.scale:.3f}", f"{found.cosine:.4f} |"]
