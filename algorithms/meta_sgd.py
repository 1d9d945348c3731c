"""Meta-SGD: a step size for each parameter, learned along with the parameters to start from.

The step sizes are inputs of the graph like the parameters, so nothing new is needed: a policy carries them along
(`LearnedRates`), and the inner step reads them. The paper differentiates inner steps at fixed samples, as MAML does: in
the ledger, the path of the inner batches is dropped. `meta_sgd(problem).with_estimator(sg.LOO())` counts it.

References:
    Li, Zhou, Chen and Li (2017), Meta-SGD: Learning to learn quickly for few-shot learning, eq. 1 and algorithm 2.
"""

from typing import Any

import torch

import stochgraph as sg

from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template
from .policies.carrying import CarryingPolicy
from .policies.families import Parameters, Policy

_RATE = "rate."  # the name of a parameter's step size is this and the parameter's own


def meta_sgd(problem: MetaProblem) -> Template:
    r"""The return after inner steps with learned step sizes.

    .. math:: \theta' = \theta + \alpha \circ \nabla J(\theta; D)

    Args:
        problem: what is asked; its trajectories are those of a policy with `LearnedRates`. Its own inner rate is not
            used.

    Raises:
        ValueError: no inner steps, so that no step size matters.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.meta_sgd import LearnedRates, meta_sgd
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), LearnedRates(GaussianMLP(2, 2, hidden=()), rate=0.1), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, inner=4, outer=4)
        >>> value, gradient = meta_sgd(problem).compile().value_and_grad(walks.policy.initial())
        >>> sorted(gradient)
        ['0.bias', '0.weight', 'log_std', 'rate.0.bias', 'rate.0.weight', 'rate.log_std']
    """
    if problem.steps < 1:
        raise ValueError(f"steps={problem.steps}: meta_sgd learns the rates of inner steps, and needs at least one")
    return problem.replace(inner_rate=learned_rates).template(sg.MAML())


def learned_rates(parameters: Any) -> Any:
    """Declare the step sizes in the parameters of a policy with `LearnedRates`."""
    return sg.apply(_rates, parameters)


def _rates(parameters: Parameters) -> Parameters:
    """A step size for every parameter; those of the step sizes themselves are zero."""
    if not any(name.startswith(_RATE) for name in parameters):
        raise ValueError(f"no step sizes among the parameters {', '.join(parameters)}: wrap the policy in LearnedRates")
    return {name: parameters.get(_RATE + name, torch.zeros_like(leaf)) for name, leaf in parameters.items()}


class LearnedRates(CarryingPolicy):
    """A policy whose parameters carry along a step size for each of them; they do not act.

    Args:
        policy: what acts.
        rate: the step sizes to start from.

    Example:
        >>> from stochgraph.algorithms.meta_sgd import LearnedRates
        >>> from stochgraph.algorithms.policies import TabularSoftmax
        >>> LearnedRates(TabularSoftmax(1, 2), rate=0.5).initial()
        {'logits': tensor([[0., 0.]]), 'rate.logits': tensor([[0.5000, 0.5000]])}
    """

    prefix = _RATE

    def __init__(self, policy: Policy, rate: float = 0.1) -> None:
        super().__init__(policy)
        self.rate = rate

    def initial(
        self, generator: torch.Generator | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Parameters:
        """The parameters of the policy, and the step sizes."""
        own = self.policy.initial(generator, dtype=dtype, device=device)
        return own | {_RATE + name: torch.full_like(leaf, self.rate) for name, leaf in own.items()}
