"""Meta-gradients of the return itself: the discount and the step size that an agent should learn with.

An agent's updates climb a return with a discount of their own choosing; what it is judged by is another return, with
the discount that is asked for. So the former is a meta-parameter, learned by the gradient of what comes after the
updates, while the agent's own parameters are given. The paper differentiates updates at fixed samples, as MAML does:
of several updates, the path through the later ones' draws is dropped in the ledger, and `with_estimator(sg.LOO())`
counts it. With one update there is no such path: its draws come from the parameters that are given.

References:
    Xu, van Hasselt and Silver (2018), Meta-gradient reinforcement learning, eqs. 4 to 6, 10 and 11.
"""

from typing import Any

import torch
from torch import Tensor

import stochgraph as sg

from ..inner_steps.policy_gradient import ascend_advantages
from .meta_policy_gradient import MetaProblem
from .template import Template


def learned_return(problem: MetaProblem) -> Template:
    r"""The return after updates whose discount and step size are learned.

    .. math:: \nabla_\eta E\, \sum_t \bar\gamma^t r_t, \quad \tau \sim \pi_{\theta_K}, \qquad
              \theta_k = \theta_{k-1} + \alpha \nabla \frac1N \sum_{it} A_{it}(\gamma) \log \pi(a_{it} \mid o_{it})

    Inputs of the graph: the meta-parameters :math:`\eta` of `meta_parameters`, which are differentiated, and the
    parameters :math:`\theta_0` of the policy. The advantages are those of `ascend_advantages`, with a discount
    :math:`\gamma` that is a function of :math:`\eta`.

    Args:
        problem: what is asked; its `discount` is :math:`\bar\gamma`. Its own inner rate is not used.

    Raises:
        ValueError: no inner steps, so that nothing is learned with the meta-parameters; no policy.

    Example:
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.learned_return import learned_return, meta_parameters
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=4, outer=4)
        >>> compiled = learned_return(problem).compile()
        >>> value, gradient = compiled.value_and_grad(meta_parameters(0.9, 0.1), walks.policy.initial())
        >>> sorted(gradient)
        ['log_rate', 'logit_discount']
    """
    if problem.steps < 1 or problem.policy is None:
        raise ValueError(
            f"steps={problem.steps}, policy={problem.policy}: learned_return learns how updates of a policy are made; "
            "give at least one step, and the policy"
        )
    options: dict[str, Any] = {
        "baseline": problem.inner_baseline,
        "decay": problem.decay,
        "standardise": problem.standardise,
    }

    def objective(meta: Any, theta: Any) -> Any:
        task, discount, rate = problem.tasks(), torch.sigmoid(meta["logit_discount"]), torch.exp(meta["log_rate"])
        for k in range(1, problem.steps + 1):
            data = sg.sample(f"D{k}", problem.trajectories, theta, task, n=problem.inner)
            theta = ascend_advantages(theta, data, f"D{k}", problem.policy, rate, discount=discount, **options)
        tau = sg.sample("tau", problem.trajectories, theta, task, n=problem.outer)
        return sg.mean(sg.sum(tau.reward, discount=problem.discount))

    inner = {f"D{k}": sg.MAML() for k in range(1, problem.steps + 1)}
    return Template(sg.graph(objective), {**inner, "tau": sg.SF(baseline=problem.baseline)})


def meta_parameters(discount: float, rate: float) -> dict[str, Tensor]:
    """The meta-parameters at which updates have this discount and this step size.

    Args:
        discount: per time step, between 0 and 1, both excluded.
        rate: the step size, positive.

    Returns:
        The log-odds of the discount and the logarithm of the step size: any numbers are right.
    """
    return {"logit_discount": torch.tensor(discount).logit(), "log_rate": torch.tensor(rate).log()}
