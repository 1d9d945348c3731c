r"""BO-MRL: meta-learn the policy that implicit inner steps start from (Xu and Zhu, 2024).

The meta-objective is :math:`E_\tau J_\tau(\theta'_\tau(\phi))`. Adaptation to a task is itself an optimum,

.. math:: \theta' = \arg\max_\psi E_{s \sim \nu^\phi} \sum_a \pi_\psi(a|s) Q^\phi(s, a) - \lambda D^2(\phi, \psi),

differentiated by the implicit function theorem. :math:`\phi` reaches it through values (the distance, the ratios, a
:math:`Q` that is computed) and through the distribution of the data that estimate :math:`Q`. Four algorithms, by what
is known and what is counted:

- `exact_bomrl`: tables, :math:`Q` from the known process. No data: nothing to count, the gradient is exact.
- `tabular_bomrl`: tables, :math:`Q` by Monte Carlo; the distribution of the data is counted once.
- `derived_bomrl`: any policy, on advantages; the distribution of the data is counted once.
- `practical_bomrl`: the same with a soft ratio and a fixed budget of solver steps; the distribution is dropped, as in
  the published algorithm.

Their inner steps are in `tabular_steps` and `proximal`, for use with any other graph, environment or estimator.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.distributions import Categorical

import stochgraph as sg

from .advantages import Baseline
from .exact import Process, action_values, returns, visitation
from .meta_policy_gradient import adapted_return
from .proximal import practical_solvers, proximal_step
from .tabular_steps import improve_table, tabular_step
from .template import Template

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
        **solvers: `solver` and `linear_solver` of `improve_table`.

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


def tabular_bomrl(
    trajectories: sg.Sampler,
    tasks: Callable[[], Any],
    penalty: float,
    distance: str = "D2",
    *,
    discount: float,
    estimator: Any = None,
    solvers: dict[str, Any] | None = None,
    **sizes: Any,
) -> Template:
    """Eq. 1 with values by Monte Carlo, its input the parameters of a `TabularSoftmax`.

    Args:
        trajectories: a sampler with the parents `(parameters, task)`.
        tasks: declares the plate of tasks.
        penalty: see `improve_table`.
        distance: see `improve_table`.
        discount: per time step.
        estimator: of the inner data; default: `sg.SF()`, which counts their distribution once.
        solvers: `solver` and `linear_solver` of `improve_table`.
        **sizes: `steps`, `inner`, `outer` (2 or more) and `reference` of `adapted_return`.

    References:
        Xu and Zhu (2024), eq. 1 and algorithm 1.
    """
    adapt = partial(tabular_step, penalty=penalty, distance=distance, discount=discount, **(solvers or {}))
    graph = adapted_return(trajectories, tasks, inner_rate=0.0, discount=discount, adapt=adapt, **sizes)
    return _template(graph, sg.SF() if estimator is None else estimator, sizes.get("steps", 1))


# --- eqs. 2 and 8: any policy


def derived_bomrl(
    trajectories: sg.Sampler,
    tasks: Callable[[], Any],
    policy: Any,
    penalty: float,
    distance: str = "D3",
    *,
    discount: float = 1.0,
    gain: str = "ratio",
    baseline: Baseline | None = None,
    estimator: Any = None,
    solvers: dict[str, Any] | None = None,
    **sizes: Any,
) -> Template:
    """Eq. 2: how the law of the data depends on the policy is kept, and counted once.

    Args:
        trajectories: a sampler with the parents `(parameters, task)`.
        tasks: declares the plate of tasks.
        policy: see `proximal_step`.
        penalty: see `proximal_step`.
        distance: see `proximal_step`.
        discount: per time step, inside and outside.
        gain: see `proximal_step`.
        baseline: of the inner advantages.
        estimator: of the inner data; default: `sg.SF()`. `sg.LOO()` varies less and costs more.
        solvers: `solver` and `linear_solver` of `proximal_step`.
        **sizes: `steps`, `inner`, `outer` (2 or more) and `reference` of `adapted_return`.

    References:
        Xu and Zhu (2024), eq. 2 and proposition 2.

    Example:
        >>> from stochgraph.algorithms.bomrl import derived_bomrl
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> derived_bomrl(walks, tasks, walks.policy, 0.5, inner=4, outer=4).compile().explain().unbiased
        True
    """
    options = {"gain": gain, "distance": distance, "baseline": baseline, "discount": discount, **(solvers or {})}
    adapt = partial(proximal_step, policy=policy, penalty=penalty, **options)
    graph = adapted_return(trajectories, tasks, inner_rate=0.0, discount=discount, adapt=adapt, **sizes)
    return _template(graph, sg.SF() if estimator is None else estimator, sizes.get("steps", 1))


def practical_bomrl(
    trajectories: sg.Sampler,
    tasks: Callable[[], Any],
    policy: Any,
    penalty: float = 0.5,
    distance: str = "D3",
    *,
    discount: float = 0.99,
    baseline: Baseline | None = None,
    standardise: bool = True,
    solvers: dict[str, Any] | None = None,
    **sizes: Any,
) -> Template:
    """Eq. 8: a soft ratio, fifty steps of Adam, and the law of the data held fixed: "dropped" in the ledger.

    The default distance is the one whose curvature bounds the problem in every direction. With divergences give the
    linear solver a damping; few data do not determine all parameters of a network.

    Args:
        trajectories: a sampler with the parents `(parameters, task)`.
        tasks: declares the plate of tasks.
        policy: see `proximal_step`.
        penalty: see `proximal_step`.
        distance: see `proximal_step`.
        discount: per time step, inside and outside.
        baseline: of the inner advantages.
        standardise: the inner advantages.
        solvers: default: `practical_solvers()`.
        **sizes: `steps`, `inner`, `outer` (2 or more) and `reference` of `adapted_return`.

    References:
        Xu and Zhu (2024), eq. 8 and algorithm 2.

    Example:
        >>> from stochgraph.algorithms.bomrl import practical_bomrl
        >>> from stochgraph.algorithms.environments import Navigation
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.rollouts import Rollouts
        >>> walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=()), horizon=3)
        >>> tasks = lambda: walks.environment.declare_tasks(2)
        >>> ledger = practical_bomrl(walks, tasks, walks.policy, inner=4, outer=4).compile().explain().ledger
        >>> {row.counted for row in ledger if row.sample == "D1"}
        {'dropped'}
    """
    adapt = partial(
        proximal_step,
        policy=policy,
        penalty=penalty,
        gain="soft",
        distance=distance,
        baseline=baseline,
        discount=discount,
        standardise=standardise,
        **(practical_solvers() if solvers is None else solvers),
    )
    graph = adapted_return(trajectories, tasks, inner_rate=0.0, discount=discount, adapt=adapt, **sizes)
    return _template(graph, sg.MAML(), sizes.get("steps", 1))


def _template(graph: sg.Graph, inner: Any, steps: int) -> Template:
    """The outcome by the score function, with what the trajectories of the other draws earned as its baseline."""
    return Template(graph, {**{f"D{k}": inner for k in range(1, steps + 1)}, "tau": sg.SF(baseline="loo")})
