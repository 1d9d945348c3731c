"""The practical BO-MRL as published, against its equations written out: only the distance moves with the policy."""

from typing import Any

import pytest
import torch
from torch import Tensor

import stochgraph as sg
from stochgraph.algorithms.bomrl import fixed_sample_bomrl, practical_bomrl
from stochgraph.algorithms.inner_steps.proximal import proximal_step
from tests.small_meta_problem import F64, LOGITS, POLICY, THETA, meta_problem

DAMPING = 0.1
DISTANCES = ["D1", "D2", "D3"]
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}


def problem(**changes: Any) -> Any:
    return meta_problem(inner=5, outer=3, **changes)


def to_go(reward: Tensor, discount: float = 0.9) -> Tensor:
    """What followed each step, `(trajectories, time)`, by a double loop."""
    steps = range(reward.shape[-1])
    rows = [sum(discount ** (u - t) * reward[:, u] for u in steps if u >= t) for t in steps]
    return torch.stack(rows, -1)  # type: ignore[arg-type]


def divergence(one: Tensor, other: Tensor, data: Any) -> Tensor:
    """KL(one || other), averaged over the steps of the batch."""
    before, after = (data.observation @ table.log_softmax(-1) for table in (one, other))
    return (before.exp() * (before - after)).sum(-1).mean()


APART: dict[str, Any] = {
    "D1": lambda phi, psi, data: divergence(phi, psi, data),
    "D2": lambda phi, psi, data: divergence(psi, phi, data),
    "D3": lambda phi, psi, data: (phi - psi).square().sum(),
}


def inner_objective(phi: Tensor, psi: Tensor, data: Any, distance: str, penalty: float, recorded: bool) -> Tensor:
    """Eq. 7: the soft ratio times what followed, less the distance; the ratio's denominator recorded or of `phi`."""
    old = data.log_prob if recorded else POLICY.log_prob({"logits": phi}, data.observation, data.action)
    ratio = torch.exp(POLICY.log_prob({"logits": psi}, data.observation, data.action) - old)
    gained = 2 / (1 + torch.exp(-2 * (ratio - 1))) * to_go(data.reward)
    return gained.mean() - penalty * APART[distance](phi, psi, data)


def adapted(data: Any, distance: str, penalty: float) -> Tensor:
    """Fifty steps of torch's Adam on eq. 7."""
    psi = LOGITS.clone().requires_grad_()
    adam = torch.optim.Adam([psi], lr=0.01, maximize=True)
    for _ in range(50):
        adam.zero_grad()
        inner_objective(LOGITS, psi, data, distance, penalty, recorded=True).backward()
        adam.step()
    return psi.detach()


def outer_slope(psi: Tensor, tau: Any) -> Tensor:
    """The policy gradient at the adapted table: scores times what followed, discounted from the start."""
    weight = to_go(tau.reward) * 0.9 ** torch.arange(2, dtype=F64)

    def gain(table: Tensor) -> Tensor:
        return (POLICY.log_prob({"logits": table}, tau.observation, tau.action) * weight).sum(-1).mean()

    return torch.func.grad(gain)(psi).reshape(4)


def by_hand(trace: sg.Trace, distance: str, penalty: float, recorded: bool) -> Tensor:
    """Eq. 8: minus the mixed derivative, transposed, times the inverse Hessian, times the policy gradient."""
    data, tau = ([leaf[0] for leaf in trace.draws[name]] for name in ("D1", "tau"))
    data, tau = type(trace.draws["D1"])(*data), type(trace.draws["tau"])(*tau)
    psi = adapted(data, distance, penalty)

    def value(phi: Tensor, flat: Tensor) -> Tensor:
        return inner_objective(phi.reshape(2, 2), flat.reshape(2, 2), data, distance, penalty, recorded)

    hessian = torch.func.hessian(value, argnums=1)(LOGITS.reshape(4), psi.reshape(4))
    mixed = torch.func.jacrev(torch.func.grad(value, argnums=1), argnums=0)(LOGITS.reshape(4), psi.reshape(4))
    solved = torch.linalg.solve(DAMPING * torch.eye(4, dtype=F64) - hessian, outer_slope(psi, tau))
    return (mixed.mT @ solved).reshape(2, 2)


@pytest.mark.parametrize("penalty", [0.5, 0.1])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("make", [practical_bomrl, fixed_sample_bomrl])
def test_the_hypergradient_by_hand(make, distance, penalty):
    template = make(problem(), distance=distance, penalty=penalty, damping=DAMPING)
    compiled = template.compile()
    for seed in range(5):
        trace = compiled.sample(THETA, generator=torch.Generator().manual_seed(seed))
        found = torch.func.grad(compiled.surrogate)(THETA, trace)["logits"]
        expected = by_hand(trace, distance, penalty, recorded=make is practical_bomrl)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize(("penalty", "least", "most"), [(0.5, 0.01, 0.05), (0.1, 0.1, 0.4)])
def test_the_denominator_is_a_path_of_its_own(penalty, least, most):
    """How far the two are apart, in their exact expectations."""
    published, whole = (
        sg.verify(make(meta_problem(), penalty=penalty).compile(), THETA).expectation["logits"]
        for make in (practical_bomrl, fixed_sample_bomrl)
    )
    apart = float((published - whole).norm() / published.norm())
    assert least < apart < most


@pytest.mark.parametrize("make", [practical_bomrl, fixed_sample_bomrl])
def test_the_distribution_of_the_data_is_dropped(make):
    rows = make(meta_problem()).compile().explain().ledger
    assert {row.counted for row in rows if row.sample == "D1"} == {"dropped"}


def test_a_linear_gain_has_no_denominator():
    with pytest.raises(ValueError, match=r"recorded=True: .*gain='linear' has no ratio"):
        proximal_step(None, None, "D", POLICY, 0.5, gain="linear", recorded=True)
