"""The estimate that a hand-written policy-gradient loss makes, by enumeration of every group of completions.

A loss reaches the parameters through the log-probabilities of the tokens and nothing else. So its gradient in them,
one group at a time, is all that is asked of it; the Jacobian of the model, taken once, does the rest. Each call is
plain autograd: whatever runs in a trainer runs here, in-place operations and Python branches on values included.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors.exceptions import VerificationError
from ..errors.failures import short_tracebacks
from .vectors import flattened
from .verification import Verification, relative

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def expected_reward(log_probs: Tensor, reference_log_probs: Tensor, rewards: Tensor) -> Tensor:
    """The mean over prompts of the expected reward; all three are `(prompts, completions)`."""
    return (log_probs.exp() * rewards).sum(-1).mean()


@short_tracebacks()
def verify_loss(
    loss: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    model: Callable[[Any], Tensor],
    theta: object,
    *,
    rewards: Tensor,  # (prompts, completions)
    group: int,
    mask: Tensor | None = None,  # (prompts, completions, tokens)
    old: object = None,
    reference: object = None,
    objective: Objective = expected_reward,
    max_outcomes: int = 100_000,
) -> Verification:
    r"""The exact bias and variance of a hand-written policy-gradient loss, on a small sequence model.

    For every prompt a group of :math:`G` completions is drawn from the model at the old parameters. All
    :math:`D \in \{1..S\}^{P \times G}` are enumerated, with :math:`L` the loss and :math:`p` the model:

    .. math:: \text{truth} = \nabla_\theta J(p_\theta), \qquad
              \text{expectation} = -\sum_D p_{\text{old}}(D) \, \nabla_\theta L(\theta, D)

    Args:
        loss: `loss(log_probs, old_log_probs, reference_log_probs, rewards, mask)`, a scalar to be minimised. Rewards
            are `(prompts, group)`, the others `(prompts, group, tokens)`. Only `log_probs` require grad.
        model: from parameters to the log-probability of every token of every possible completion,
            `(prompts, completions, tokens)`, each given the tokens in front of it. What the mask leaves out is not
            looked at.
        theta: the parameters, a pytree of tensors; use float64.
        rewards: of every possible completion, `(prompts, completions)`.
        group: the number of completions that are drawn for a prompt.
        mask: 1 for the tokens of a completion, 0 behind its end. Default: all of one length.
        old: the parameters that draw. Default: `theta`, one update for a batch.
        reference: the parameters of the reference model. Default: `theta`.
        objective: what is meant to be maximised, `objective(log_probs, reference_log_probs, rewards)`, a scalar: exact,
            of whole completions, all `(prompts, completions)`. Default: the expected reward.
        max_outcomes: refuse more joint outcomes. Each is one call of the loss.

    Returns:
        The figures. `scale` and `cosine` tell a factor, harmless, from another direction.

    Raises:
        VerificationError: shapes that do not fit, probabilities that do not sum to 1, a loss that is no scalar or does
            not depend on `log_probs`, too many outcomes.

    References:
        Kool, van Hoof and Welling (2019) for leave-one-out advantages; Shao et al. (2024), DeepSeekMath, eqs. 3 and 4,
        for those of a group and the penalty k3; Schulman (2020), "Approximating KL divergence", for k1, k2 and k3.

    Example:
        >>> import torch, stochgraph as sg
        >>> def model(theta):  # one prompt, three completions of one token
        ...     return theta.log_softmax(-1)[None, :, None]
        >>> def group_mean(log_probs, old_log_probs, reference_log_probs, rewards, mask):
        ...     advantage = rewards - rewards.mean(-1, keepdim=True)
        ...     return -(advantage[..., None] * log_probs).sum(-1).mean()
        >>> theta = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64)
        >>> rewards = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
        >>> v = sg.verify_loss(group_mean, model, theta, rewards=rewards, group=4)
        >>> round(v.scale, 12), round(v.cosine, 12)  # 1 - 1/4 of the gradient
        (0.75, 1.0)
    """
    flat, restore = flattened(theta)
    behaviour = _Model(model, rewards, mask, theta if old is None else old)
    log_ref = behaviour.tokens(theta if reference is None else reference)

    def tokens(vector: Tensor) -> Tensor:
        return behaviour.tokens(restore(vector))

    truth = torch.func.grad(lambda v: objective(tokens(v).sum(-1), log_ref.sum(-1), rewards))(flat)
    jacobian = torch.func.jacrev(tokens)(flat).flatten(0, 2)  # (prompts * completions * tokens, P)
    draws = _Draws(behaviour, group, max_outcomes)
    now = tokens(flat).detach()
    found = [draws.gradient(loss, now, log_ref, index) for index in draws]
    estimates = -torch.stack(found) @ jacobian
    probability = torch.stack([draws.probability(index) for index in draws])
    mean = probability @ estimates
    variance = probability @ (estimates - mean) ** 2
    size = probability @ estimates.norm(dim=1)
    return Verification(
        restore(truth),
        restore(mean),
        restore(mean - truth),
        restore(variance),
        *relative(mean - truth, truth, size),
        len(probability),
        1,
        float(variance.sum()),
    )


@dataclass(frozen=True)
class _Model:
    """The model and what is known of its completions; refuses what does not fit together."""

    model: Callable[[Any], Tensor]
    rewards: Tensor
    given_mask: Tensor | None
    old: Any

    def __post_init__(self) -> None:
        found = self.model(self.old)
        if found.dim() != 3 or self.rewards.shape != found.shape[:2]:
            raise VerificationError(
                f"verify_loss: the model gives log-probabilities of shape {tuple(found.shape)}, the rewards have "
                f"{tuple(self.rewards.shape)}. They must be (prompts, completions, tokens) and (prompts, completions); "
                "of a single prompt x[None]"
            )
        if self.given_mask is not None and self.given_mask.shape != found.shape:
            raise VerificationError(
                f"verify_loss: the mask has shape {tuple(self.given_mask.shape)}, the log-probabilities have "
                f"{tuple(found.shape)}; they must be the same"
            )
        total = self.log_old.sum(-1).exp().sum(-1)
        if bool(((total - 1).abs() > 1e-6).any()):
            raise VerificationError(
                f"verify_loss: the probabilities of all completions of a prompt sum to {total.tolist()}, not 1. The "
                "model must list every completion once, and the mask must end where a completion ends"
            )

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.model(self.old)) if self.given_mask is None else self.given_mask

    @property
    def log_old(self) -> Tensor:
        return self.tokens(self.old).detach()

    def tokens(self, parameters: object) -> Tensor:
        """Log-probabilities of tokens, 0 behind the end of a completion: `(prompts, completions, tokens)`."""
        found = self.model(parameters)
        return found if self.given_mask is None else torch.where(self.given_mask.bool(), found, 0.0)


class _Draws:
    """Every joint outcome of the groups of all prompts: indices of completions, `(prompts, group)`."""

    def __init__(self, model: _Model, group: int, limit: int) -> None:
        self.log_old, self.mask, self.rewards = model.log_old, model.mask, model.rewards
        self.prompts, self.completions = self.rewards.shape
        self.group = group
        count = self.completions ** (self.prompts * group)
        if count > limit:
            raise VerificationError(
                f"verify_loss: {self.completions} completions in {self.prompts} groups of {group} are {count} joint "
                f"outcomes, more than max_outcomes={limit}. Make the group, the prompts or the completions fewer"
            )

    def __iter__(self) -> Iterator[Tensor]:
        for chosen in itertools.product(range(self.completions), repeat=self.prompts * self.group):
            yield torch.tensor(chosen).reshape(self.prompts, self.group)

    def probability(self, index: Tensor) -> Tensor:
        return self.log_old.sum(-1).gather(1, index).sum().exp()

    def gradient(self, loss: Callable[..., Tensor], now: Tensor, reference: Tensor, index: Tensor) -> Tensor:
        """The gradient of the loss in the log-probability of every token: one entry for each of `now`."""
        rows = torch.arange(self.prompts)[:, None]
        log_probs = now[rows, index].requires_grad_()
        others = [x[rows, index].detach() for x in (self.log_old, reference, self.rewards, self.mask)]
        found = loss(log_probs, *others)
        if not isinstance(found, Tensor) or found.dim():
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise VerificationError(f"verify_loss: the loss must be a scalar, got {got}; take its mean or its sum")
        if not found.requires_grad:
            raise VerificationError("verify_loss: the loss does not depend on log_probs, its first argument")
        (gradient,) = torch.autograd.grad(found, log_probs)
        return torch.zeros_like(now).index_put((rows, index), gradient, accumulate=True).flatten()
