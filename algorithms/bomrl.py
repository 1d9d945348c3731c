r"""BO-MRL: meta-learn the policy that implicit inner steps start from (Xu and Zhu, 2024).

The meta-objective is :math:`E_\tau J_\tau(\theta'_\tau(\phi))`. Adaptation to a task is itself an optimum,

.. math:: \theta' = \arg\max_\psi E_{s \sim \nu^\phi} \sum_a \pi_\psi(a|s) Q^\phi(s, a) - \lambda D^2(\phi, \psi),

differentiated by the implicit function theorem. :math:`\phi` reaches it through values (the distance, the ratios, a
:math:`Q` that is computed) and through the distribution of the data that estimate :math:`Q`. Five algorithms, by what
is known and what is counted:

- `exact_bomrl`: tables, :math:`Q` from the known process. No data: nothing to count, the gradient is exact.
- `tabular_bomrl`: tables, :math:`Q` by Monte Carlo; the distribution of the data is counted once.
- `bomrl`: any policy, on advantages; the distribution of the data is counted once.
- `practical_bomrl`, the published one: a soft ratio, a fixed budget of solver steps, and the distance alone is
  differentiated in :math:`\phi`. The ratios are those to recorded probabilities, and the distribution is dropped.
- `fixed_sample_bomrl`: the same, differentiated wherever :math:`\phi` stands at fixed samples, in the ratios too.

Their inner steps are in `tabular_steps` and `proximal`, for use with any other graph, environment or estimator. With
`gain="linear"` they are the policy gradient (`distance="D3"`) and the natural one (`"quadratic"`).
"""

from functools import partial
from typing import Any

import torch
from torch.distributions import Categorical

import stochgraph as sg

from .exact.processes import Process, action_values, returns, visitation
from .inner_steps.proximal import practical_solvers, proximal_step
from .inner_steps.tabular_steps import StateByState, improve_table, tabular_step
from .objectives.meta_policy_gradient import MetaProblem
from .objectives.template import Template
from .policies.families import TabularSoftmax

# --- eq. 1: tables


def exact_bomrl(
    processes: Process, penalty: float, distance: str = "D2", *, steps: int = 1, tasks: int = 20, **solvers: Any
) -> Template:
    r"""Eq. 1 with exact values: :math:`E_\tau J_\tau(\theta'_\tau(\phi))`, its input a table of logits.

    Tasks are drawn uniformly from those given. They do not depend on the policy, so no estimator is needed; on
    `every_task` the objective and its gradient are exact.

    Args:
        processes: one for every task there is, stacked.
        penalty: see `improve_table`.
        distance: see `improve_table`.
        steps: the number of inner steps, each with the values of the policy before it.
        tasks: how many are drawn.
        **solvers: `solver` and `linear_solver` of `improve_table`; by default states are solved apart.

    References:
        Xu and Zhu (2024), eq. 1, algorithm 1 and proposition 1.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.bomrl import every_task, exact_bomrl
        >>> from stochgraph.algorithms.environments.tabular import RandomMDP
        >>> from stochgraph.algorithms.exact import process, returns
        >>> environment = RandomMDP(states=3, actions=2)
        >>> tables, _ = environment.dynamics(environment.task_distribution().sample((4,)))
        >>> processes, table = process(tables, discount=0.9), torch.zeros(3, 2)
        >>> adapted = exact_bomrl(processes, penalty=0.5).compile().surrogate(table, every_task(processes))
        >>> bool(adapted > returns(processes, table.softmax(-1)).mean())
        True
    """
    count = len(processes.start)
    solvers = {"linear_solver": StateByState(processes.reward.shape[-1])} | solvers

    def objective(phi: Any) -> Any:
        task = sg.sample("task", Categorical, torch.full((count,), 1 / count, device=processes.start.device), n=tasks)
        for _ in range(steps):
            values = sg.apply(lambda i, t: action_values(processes.at(i), t.softmax(-1)), task, phi)
            weight = sg.apply(lambda i, t: visitation(processes.at(i), t.softmax(-1)), task, phi)
            phi = improve_table(phi, values, weight, penalty, distance, **solvers)
        return sg.mean(sg.apply(lambda i, t: returns(processes.at(i), t.softmax(-1)), task, phi))

    return Template(sg.graph(objective), {})


def every_task(processes: Process) -> sg.Trace:
    """A trace of `exact_bomrl` in which every task comes up once; see there."""
    return sg.Trace(torch.tensor(0.0), {"task": torch.arange(len(processes.start))}, {}, {})


def tabular_bomrl(problem: MetaProblem, *, penalty: float = 0.5, distance: str = "D2") -> Template:
    """Eq. 1 with values by Monte Carlo, its input the parameters of a `TabularSoftmax`: unbiased.

    Args:
        problem: what is asked; its policy is a table. The returns that followed an action are its value, so there are
            no inner advantages, and no inner rate.
        penalty: see `improve_table`.
        distance: see `improve_table`.

    Raises:
        ValueError: another policy than a table.

    References:
        Xu and Zhu (2024), eq. 1 and algorithm 1.

    Example:
        >>> from stochgraph.algorithms.bomrl import tabular_bomrl
        >>> from stochgraph.algorithms.environments import RandomMDP
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import TabularSoftmax
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(RandomMDP(states=3, actions=2), TabularSoftmax(3, 2), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=4, outer=4)
        >>> tabular_bomrl(problem).compile().explain().unbiased
        True
    """
    if not isinstance(problem.policy, TabularSoftmax):
        raise ValueError(
            "tabular_bomrl improves a table of logits: give a TabularSoftmax as policy (in a run: --policy table, on "
            "an environment with discrete states such as frozen-lake or random-mdp)"
        )
    options: dict[str, Any] = {"penalty": penalty, "distance": distance, "discount": problem.discount}
    options |= {"linear_solver": StateByState(problem.policy.actions)}
    return problem.replace(adapt=partial(tabular_step, **options)).template(sg.SF())


# --- eqs. 2, 7 and 8: any policy


def bomrl(
    problem: MetaProblem, *, penalty: float = 0.5, distance: str = "D3", gain: str = "soft", damping: float = 0.0
) -> Template:
    """Eq. 2: how the law of the data depends on the policy is kept, and counted once: unbiased.

    The default distance is the one whose curvature bounds the problem in every direction. With divergences give a
    damping; few data do not determine all parameters of a network. Where there is no strict maximum the linear solver
    refuses; `practical_bomrl` stops there and says so.

    Args:
        problem: what is asked; needs a policy, and has no inner rate.
        penalty: see `proximal_step`.
        distance: see `proximal_step`.
        gain: see `proximal_step`.
        damping: of the linear solver: added to the curvature in every direction. A bias, if it is not 0.

    References:
        Xu and Zhu (2024), eq. 2 and proposition 2.

    Example:
        >>> from stochgraph.algorithms.bomrl import bomrl
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=4, outer=4)
        >>> bomrl(problem).compile().explain().unbiased
        True
    """
    solvers = {"solver": sg.solvers.LBFGS(), "linear_solver": sg.solvers.ConjugateGradient(damping=damping)}
    return _proximal(problem, penalty, distance, gain, solvers).template(sg.SF())


def practical_bomrl(
    problem: MetaProblem,
    *,
    penalty: float = 0.5,
    distance: str = "D3",
    adam_steps: int = 50,
    adam_rate: float = 0.01,
    products: int = 10,
    damping: float | None = None,
) -> Template:
    r"""Eqs. 7 and 8: a soft ratio, fifty steps of Adam; of the inner problem the distance alone is differentiated.

    .. math:: \nabla_\phi \approx \lambda \, \big[\partial^2_{\phi\psi} D^2\big]
              \big[\partial^2_{\psi\psi} L\big]^{-1} \nabla J(\theta')

    with :math:`L` the function that is maximised; the print has the Hessian of a ratio that is not soft. Left out are
    the law of the data, "dropped" in the ledger, and the denominators of the ratios, recorded probabilities. To the
    ledger, which reads what is declared, those are data; that :math:`\phi` made them is counted by
    `fixed_sample_bomrl`, and is part of the bias that `docs/biases.md` states.

    Args:
        problem: what is asked; needs a policy, and has no inner rate.
        penalty: see `proximal_step`.
        distance: see `proximal_step`.
        adam_steps: of the inner problem.
        adam_rate: their size.
        products: Hessian-vector products of the linear solve.
        damping: of the linear solve; none: what the distance needs, see `practical_solvers`.

    References:
        Xu and Zhu (2024), eqs. 7 and 8 and algorithm 2.

    Example:
        >>> from stochgraph.algorithms.bomrl import practical_bomrl
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=4, outer=4)
        >>> {row.counted for row in practical_bomrl(problem).compile().explain().ledger if row.sample == "D1"}
        {'dropped'}
    """
    solvers = practical_solvers(distance, adam_steps, adam_rate, products, damping)
    return _proximal(problem, penalty, distance, "soft", solvers, recorded=True).template(sg.MAML())


def fixed_sample_bomrl(
    problem: MetaProblem,
    *,
    penalty: float = 0.5,
    distance: str = "D3",
    adam_steps: int = 50,
    adam_rate: float = 0.01,
    products: int = 10,
    damping: float | None = None,
) -> Template:
    """The practical algorithm with the whole derivative at fixed samples: the ratios' denominators move as well.

    Args:
        problem: see `practical_bomrl`, as for the others.
        penalty: of the distance.
        distance: a word.
        adam_steps: of the inner problem.
        adam_rate: their size.
        products: Hessian-vector products of the linear solve.
        damping: of the linear solve.

    References:
        Xu and Zhu (2024), proposition 2, without the derivative of the values of actions.

    Example:
        >>> from stochgraph.algorithms.bomrl import fixed_sample_bomrl
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=4, outer=4)
        >>> {row.counted for row in fixed_sample_bomrl(problem).compile().explain().ledger if row.sample == "D1"}
        {'dropped'}
    """
    solvers = practical_solvers(distance, adam_steps, adam_rate, products, damping)
    return _proximal(problem, penalty, distance, "soft", solvers).template(sg.MAML())


def _proximal(
    problem: MetaProblem, penalty: float, distance: str, gain: str, solvers: dict[str, Any], recorded: bool = False
) -> MetaProblem:
    """The problem with an implicit inner step on its advantages."""
    if problem.policy is None:
        raise ValueError("an implicit step scores recorded actions: give the problem a policy")
    adapt = partial(
        proximal_step,
        policy=problem.policy,
        penalty=penalty,
        gain=gain,
        distance=distance,
        baseline=problem.inner_baseline,
        discount=problem.discount,
        decay=problem.decay,
        standardise=problem.standardise,
        recorded=recorded,
        **solvers,
    )
    return problem.replace(adapt=adapt)
