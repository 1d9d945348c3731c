"""BO-MRL: hypergradients against differences and closed forms, exact verification, special cases, and the bounds."""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

import stochgraph as sg
from stochgraph.algorithms.bomrl import bomrl, every_task, exact_bomrl, practical_bomrl, tabular_bomrl
from stochgraph.algorithms.environments import Navigation, RandomMDP
from stochgraph.algorithms.environments.tabular import Dynamics
from stochgraph.algorithms.exact import optimality
from stochgraph.algorithms.exact import processes as exact
from stochgraph.algorithms.inner_steps.policy_gradient import ascend_advantages
from stochgraph.algorithms.inner_steps.proximal import proximal_step, quadratic_divergence
from stochgraph.algorithms.inner_steps.tabular_steps import SOLUTIONS, StateByState, improve_table, tabular_step
from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem
from stochgraph.algorithms.objectives.replays import adapted_divergence
from stochgraph.algorithms.policies import GaussianMLP, TabularSoftmax
from stochgraph.algorithms.rollouts import Rollouts
from tests.problems import DISCOUNT, F64, MDP_THETA, TwoStateMDP, mdp_value
from tests.test_exact import lakes, random_processes

PENALTY, HORIZON = 0.5, 2
CLOSE: dict[str, Any] = {
    "solver": sg.solvers.Newton(tolerance=1e-12),
    "linear_solver": sg.solvers.ConjugateGradient(tolerance=1e-14),
}


def table(states=4, actions=3, seed=0):
    return torch.randn(states, actions, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Exact values: the hypergradient of proposition 1


def known_step(distance, processes, phi):
    """The adapted tables of all tasks, by the solution as a differentiable function."""
    return SOLUTIONS[distance](PENALTY, phi, exact.action_values(processes, phi.softmax(-1)))


def exact_value(processes, distance, **options):
    compiled = exact_bomrl(processes, PENALTY, distance, **options).compile()
    return lambda phi: compiled.surrogate(phi, every_task(processes))


def differences(value, at, step=1e-5):
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        way = torch.zeros_like(at).view(-1)
        way[i] = step
        found.view(-1)[i] = (value(at + way.view_as(at)) - value(at - way.view_as(at))) / (2 * step)
    return found


@pytest.mark.parametrize("distance", ["D1", "D2", "D3"])
def test_hypergradient_against_differences(distance):
    value = exact_value(random_processes(tasks=3), distance, **(CLOSE if distance == "D3" else {}))
    found, expected = torch.func.grad(value)(table()), differences(value, table())
    assert float((found - expected).norm() / expected.norm()) < 1e-7


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("distance", ["D1", "D2"])
def test_exact_values_give_the_exact_gradient(distance, steps):
    """The implicit function theorem against autograd through the solution, found without a solver."""
    processes = random_processes(tasks=3)
    linear: dict[str, Any] = {"linear_solver": sg.solvers.ConjugateGradient(tolerance=1e-13)}
    compiled = exact_bomrl(processes, PENALTY, distance, steps=steps, **linear).compile()

    def expected(phi):
        for _ in range(steps):
            phi = known_step(distance, processes, phi)
        return exact.returns(processes, phi.softmax(-1)).mean()

    def found(phi):
        return compiled.surrogate(phi, every_task(processes))

    torch.testing.assert_close(found(table()), expected(table()), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.func.grad(found)(table()), torch.func.grad(expected)(table()), rtol=0, atol=1e-9)
    ledger = compiled.explain()
    assert ledger.unbiased
    assert {row.counted for row in ledger.ledger} == {"once"}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_tables_have_a_derivative(seed):
    """Some states hardly curve any more, others do: conjugate gradients give up, and states solved apart are exact."""
    pytest.importorskip("gymnasium")
    processes, phi = lakes(20, 0.1, slippery=False, goal="pays"), 6 * table(16, 4, seed)

    def expected(phi):
        return exact.returns(processes, known_step("D2", processes, phi).softmax(-1)).mean()

    found = torch.func.grad(exact_value(processes, "D2"))(phi)
    torch.testing.assert_close(found, torch.func.grad(expected)(phi), rtol=0, atol=1e-12)
    assert found.abs().max() > 1e-2
    with pytest.raises(sg.SolverError, match="after 250 steps of conjugate gradients"):
        torch.func.grad(exact_value(processes, "D2", linear_solver=sg.solvers.ConjugateGradient()))(phi)


@pytest.mark.parametrize("copies", [(), (5,)])
def test_states_are_solved_apart(copies):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(*copies, 4, 3, 3, generator=generator, dtype=F64)
    blocks = root @ root.mT + 0.1 * torch.eye(3, dtype=F64)
    rhs = torch.randn(*copies, 12, generator=generator, dtype=F64)

    def product(v):
        return (blocks @ v.unflatten(-1, (4, 3)).unsqueeze(-1)).squeeze(-1).flatten(-2)

    torch.testing.assert_close(StateByState(3).solve(product, rhs), sg.solvers.Dense().solve(product, rhs))
    flat = rhs.unflatten(-1, (4, 3)) - rhs.unflatten(-1, (4, 3)).mean(-1, keepdim=True)
    centred = torch.eye(3, dtype=F64) - 1 / 3

    def softmax_like(v):
        return (centred @ v.unflatten(-1, (4, 3)).unsqueeze(-1)).squeeze(-1).flatten(-2)

    torch.testing.assert_close(StateByState(3).solve(softmax_like, flat.flatten(-2)), flat.flatten(-2))
    with pytest.raises(sg.SolverError, match=r"no strict maximum in (\d) of \1 solutions"):
        StateByState(3).solve(softmax_like, rhs)
    with pytest.raises(sg.SolverError, match="Take a larger penalty"):
        StateByState(3).solve(lambda v: -product(v), rhs)


def test_the_root_under_D1_normalises_however_unlikely_the_best_action_is():
    logits = torch.tensor([[0.0, 0.0, -200.0], [0.0, -800.0, 3.0], [0.0, 0.0, 0.0]], dtype=F64)
    values = torch.tensor([[0.0, 0.1, 5.0], [0.0, 9.0, 0.0], [2.0, 2.0, 2.0]], dtype=F64)
    for dtype in (F64, torch.float32):
        total = SOLUTIONS["D1"](0.3, logits.to(dtype), values.to(dtype)).exp().sum(-1)
        torch.testing.assert_close(total, torch.ones(3, dtype=dtype), rtol=0, atol=1e-5)


def improved(distance, values, solver):
    @sg.graph
    def objective(phi):
        better = improve_table(phi, values, torch.ones(4, dtype=F64), PENALTY, distance, solver=solver)
        return sg.apply(lambda t: (t.softmax(-1) * values).sum(), better)

    return objective


@pytest.mark.parametrize("distance", ["D1", "D2"])
def test_closed_forms_are_what_solvers_find(distance):
    values, phi = table(seed=3), table()
    ends = []
    for solver in (None, sg.solvers.Newton(tolerance=1e-12)):
        ends.append(improved(distance, values, solver).compile({}).sample(phi).value)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-11)


# Data: every outcome of two trajectories of a tiny process


class Steps(NamedTuple):
    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor


class Walks(TwoStateMDP):
    """The two-state process with the fields that algorithms read; its parents are parameters and, unread, a task."""

    def draw(self, batch_shape: torch.Size, *parents: Any) -> Any:
        return steps(super().draw(batch_shape, spread(parents[0])))

    def log_prob(self, value: Any, *parents: Any) -> Tensor:
        path = (value.observation.argmax(-1), value.action.long(), value.reward)
        return super().log_prob(type(super().enumerate())(*path), spread(parents[0]))

    def enumerate(self, *parents: Any) -> Any:
        return steps(super().enumerate())


def spread(parameters):
    """One row of logits may serve both states."""
    logits = parameters["logits"]
    return logits.expand(*logits.shape[:-2], 2, 2)


def steps(path: Any) -> Steps:
    return Steps(
        torch.nn.functional.one_hot(path.state, 2).to(F64), path.action, path.reward, torch.ones_like(path.reward)
    )


PARAMETERS = {"logits": MDP_THETA}
POLICY = TabularSoftmax(2, 2)


class SameEverywhere(TabularSoftmax):
    """One row for both states: divergences in any state determine it, as they do not for a state that is not seen."""

    def logits(self, parameters, observation):
        return super().logits({"logits": spread(parameters)}, observation)


SHARED = SameEverywhere(2, 2)


def after(adapt, n=2):
    """The exact return after one inner step on sampled data."""

    @sg.graph
    def objective(theta):
        adapted = adapt(theta, sg.sample("D", Walks(HORIZON), theta, n=n), "D")
        return sg.apply(lambda t: mdp_value(spread(t), HORIZON), adapted)

    return objective


D3_CLOSE: dict[str, dict[str, Any]] = {"D1": {}, "D2": {}, "D3": CLOSE}
ADAPTS = {
    **{
        f"table, {distance}": partial(
            tabular_step, penalty=PENALTY, distance=distance, discount=DISCOUNT, **D3_CLOSE[distance]
        )
        for distance in ("D1", "D2", "D3")
    },
    "ratio, D3": partial(proximal_step, policy=POLICY, penalty=PENALTY, distance="D3", discount=DISCOUNT, **CLOSE),
    "soft, D2": partial(
        proximal_step, policy=SHARED, penalty=2.0, gain="soft", distance="D2", discount=DISCOUNT, **CLOSE
    ),
    "ratio, D1": partial(proximal_step, policy=SHARED, penalty=2.0, distance="D1", discount=DISCOUNT, **CLOSE),
    "linear, D3": partial(
        proximal_step, policy=POLICY, penalty=PENALTY, gain="linear", distance="D3", discount=DISCOUNT, **CLOSE
    ),
}


@pytest.mark.parametrize("name", ADAPTS)
def test_counted_once_is_unbiased_and_dropped_is_not(name):
    graph = after(ADAPTS[name])
    for estimator, exactly in ((sg.SF(), True), (sg.LOO(), True), (sg.MAML(), False)):
        compiled = graph.compile(estimator)
        shared = ADAPTS[name].keywords.get("policy") is SHARED
        found = sg.verify(compiled, {"logits": MDP_THETA[:1]} if shared else PARAMETERS)
        assert compiled.explain().unbiased == exactly
        assert (found.relative_bias < 1e-8) == exactly, (estimator, found.relative_bias)


@pytest.mark.parametrize("name", ADAPTS)
def test_hypergradient_on_data_against_differences(name):
    """Proposition 2: the data held fixed, so that the implicit function theorem stands alone."""
    shared = ADAPTS[name].keywords.get("policy") is SHARED
    start = MDP_THETA[:1] if shared else MDP_THETA
    compiled = after(ADAPTS[name], n=6).compile(sg.MAML())
    trace = compiled.sample({"logits": start}, generator=torch.Generator().manual_seed(0))

    def value(logits):
        return compiled.surrogate({"logits": logits}, trace)

    found, expected = torch.func.grad(value)(start), differences(value, start)
    assert float(expected.norm()) > 1e-3
    assert float((found - expected).norm() / expected.norm()) < 1e-5


# Special cases


def value_and_grad(graph, estimator):
    value, grad = graph.compile(estimator).value_and_grad(PARAMETERS, generator=torch.Generator().manual_seed(0))
    return value, grad["logits"]


@pytest.mark.parametrize("estimator", [sg.MAML(), sg.SF(), sg.LOO()], ids=["MAML", "SF", "LOO"])
def test_linear_and_D3_is_the_policy_gradient(estimator):
    gradient = partial(ascend_advantages, policy=POLICY, rate=1 / (2 * PENALTY) / HORIZON, discount=DISCOUNT)
    found, expected = (value_and_grad(after(adapt, n=5), estimator) for adapt in (ADAPTS["linear, D3"], gradient))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def natural_step(phi, data, penalty):
    """Fisher's matrix on the states that were seen, inverted on its range."""
    gain = _slope(phi, data) / data.mask.sum()

    def fisher():
        seen = data.observation.reshape(-1, 2).mean(0)
        policy = phi.softmax(-1)
        blocks = seen[:, None, None] * (torch.diag_embed(policy) - policy[:, :, None] * policy[:, None, :])
        return torch.block_diag(*blocks)

    return phi + (torch.linalg.pinv(fisher(), rtol=1e-10) @ gain.reshape(-1)).reshape(2, 2) / penalty


def _slope(phi, data):
    to_go = data.reward + DISCOUNT * torch.cat([data.reward[:, 1:], torch.zeros_like(data.reward[:, :1])], 1)

    def gain(table):
        return (POLICY.log_prob({"logits": table}, data.observation, data.action) * to_go).sum()

    return torch.func.grad(gain)(phi)


def test_linear_and_quadratic_is_the_natural_policy_gradient():
    """Value and derivative, the data held fixed."""
    adapt = partial(
        proximal_step, policy=POLICY, penalty=3.0, gain="linear", distance="quadratic", discount=DISCOUNT, **CLOSE
    )
    compiled = after(adapt, n=8).compile(sg.MAML())
    trace = compiled.sample(PARAMETERS, generator=torch.Generator().manual_seed(0))

    def expected(phi):
        return mdp_value(natural_step(phi, trace.draws["D"], 3.0), HORIZON)

    assert abs(float(expected(MDP_THETA) - mdp_value(MDP_THETA, HORIZON))) > 0.01
    torch.testing.assert_close(trace.value, expected(MDP_THETA), rtol=0, atol=1e-10)
    found = torch.func.grad(compiled.surrogate)(PARAMETERS, trace)["logits"]
    torch.testing.assert_close(found, differences(expected, MDP_THETA), rtol=0, atol=1e-8)


def test_the_quadratic_distance_is_the_divergence_to_second_order():
    data = steps(TwoStateMDP(HORIZON).enumerate())
    way = table(2, 2)
    sizes = []
    for size in (1e-2, 1e-3):
        psi = {"logits": MDP_THETA + size * way}
        whole = (POLICY.kl(PARAMETERS, psi, data.observation) * data.mask).sum()
        sizes.append(float((quadratic_divergence(POLICY, psi, PARAMETERS, data) / whole - 1).abs()))
    assert sizes[0] < 0.02
    assert sizes[1] < 0.11 * sizes[0]


# Templates


def two_tasks():
    return sg.sample("task", Categorical, torch.tensor([0.5, 0.5], dtype=F64), n=2)


def counted(template):
    return {row.counted for row in template.compile().explain().ledger if row.sample == "D1"}


def asked(**changes: Any) -> MetaProblem:
    given: dict[str, Any] = {"trajectories": Walks(HORIZON), "tasks": two_tasks, "policy": POLICY, "inner": 2}
    return MetaProblem(**given | {"outer": 2, "discount": DISCOUNT} | changes)


def test_what_the_templates_count():
    assert counted(bomrl(asked())) == counted(tabular_bomrl(asked())) == {"once"}
    assert counted(practical_bomrl(asked())) == {"dropped"}
    assert bomrl(asked(steps=2)).compile().explain().unbiased


@pytest.mark.parametrize("distance", ["D1", "D2", "D3"])
def test_several_steps_run_and_improve(distance):
    template = tabular_bomrl(asked(steps=2, inner=40, outer=9), penalty=PENALTY, distance=distance)
    trace = template.compile().sample(PARAMETERS, generator=torch.Generator().manual_seed(0))
    assert float(trace.value) > float(mdp_value(MDP_THETA, HORIZON))


def test_training_on_navigation_and_replays():
    """Single precision, a network, solvers with a budget; and the divergence that a trust region is measured with."""
    walks = Rollouts(Navigation(), GaussianMLP(2, 2, hidden=(4,)), horizon=6)
    tasks, theta = partial(walks.environment.declare_tasks, 2), walks.policy.initial(torch.Generator().manual_seed(0))
    problem = MetaProblem(trajectories=walks, tasks=tasks, policy=walks.policy, inner=6, outer=4, standardise=True)
    template = practical_bomrl(problem, adam_steps=10)
    compiled = template.compile()
    trace = compiled.sample(theta, generator=torch.Generator().manual_seed(0))
    grad = torch.func.grad(compiled.surrogate)(theta, trace)
    assert all(bool(leaf.isfinite().all()) and leaf.dtype == torch.float32 for leaf in grad.values())
    assert any(bool(leaf.abs().max() > 0) for leaf in grad.values())
    moved = adapted_divergence(tasks, walks.policy, template.adapt).compile({})
    assert abs(float(moved.surrogate(theta, theta, trace))) < 1e-6
    away = {name: leaf + 0.1 for name, leaf in theta.items()}
    assert float(moved.surrogate(away, theta, trace)) > 1e-4


def test_refusals():
    with pytest.raises(ValueError, match="distance='D4' is not known: choose one of 'D1', 'D2', 'D3'"):
        exact_bomrl(random_processes(), PENALTY, "D4")
    with pytest.raises(ValueError, match="penalty=0: must be a number more than 0"):
        exact_bomrl(random_processes(), 0)
    for words, message in (({"gain": "clip"}, "gain='clip' is not known"), ({"distance": "D0"}, "distance='D0'")):
        with pytest.raises(ValueError, match=message):
            bomrl(asked(), **words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"penalty=-1\.0: must be a number more than 0"):
        practical_bomrl(asked(), penalty=-1.0)
    with pytest.raises(ValueError, match="penalty='x': must be a number more than 0"):
        bomrl(asked(), penalty="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"steps=2\.5: must be an integer of at least 0"):
        practical_bomrl(asked(), adam_steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="damping=-1: must be a number of at least 0"):
        bomrl(asked(), damping=-1)
    with pytest.raises(ValueError, match="tabular_bomrl improves a table of logits"):
        tabular_bomrl(asked(policy=GaussianMLP(2, 2)))
    with pytest.raises(ValueError, match="scores recorded actions: give the problem a policy"):
        bomrl(asked(policy=None))


# The bounds


def adapted(processes, phi, penalty, distance):
    """One exact step in each task."""
    values = exact.action_values(processes, phi.softmax(-1))
    if distance != "D3":
        return SOLUTIONS[distance](penalty, phi, values)
    visits = exact.visitation(processes, phi.softmax(-1)).unsqueeze(-1)
    problem = sg.solvers.Problem(
        lambda x: (
            (x.unflatten(-1, phi.shape).softmax(-1) * values * visits).sum((-2, -1))
            - penalty * ((x - phi.flatten()) ** 2).sum(-1)
        )
    )
    found = sg.solvers.LBFGS(steps=500).solve(problem, phi.flatten().expand(len(values), -1))
    assert problem.gradient(found).norm(dim=-1).max() < 1e-5
    return found.unflatten(-1, phi.shape)


PROCESSES: dict[str, Any] = {
    "random": random_processes,
    "lakes .3": partial(lakes, 8, 0.3),
    "lakes .1": partial(lakes, 8, 0.1),
}


@pytest.mark.parametrize("distance", ["D1", "D2", "D3"])
@pytest.mark.parametrize("name", PROCESSES)
def test_gaps_are_within_their_bounds(name, distance):
    """At the table that attains the task variance, at the uniform one and at random ones."""
    if name != "random":
        pytest.importorskip("gymnasium")
    processes = PROCESSES[name]()
    variance, centre = optimality.task_variance(processes, distance)
    states, actions = centre.shape
    for phi in (centre, torch.zeros_like(centre), 0.5 * table(states, actions), 0.5 * table(states, actions, 1)):
        best = optimality.nearest_optimal(processes, phi, distance)
        least = float(optimality.gap_bound(processes, phi, best, 1.0, distance).least_penalty)
        bound = optimality.gap_bound(processes, phi, best, least, distance)
        after = adapted(processes, phi, least, distance).softmax(-1)
        gap = optimality.optimality_gap(processes, after)
        before = optimality.optimality_gap(processes, phi.softmax(-1))
        assert 0 <= gap < before
        assert gap - bound.lost <= bound.sharper <= bound.published
        assert variance <= bound.spread + 1e-9


@pytest.mark.parametrize("distance", ["D1", "D2"])
def test_a_bound_that_says_something(distance):
    """All states are visited and the future counts little: with the least penalty the bound is below the gap before."""
    processes = random_processes(states=2, discount=0.02)
    processes = processes._replace(start=torch.full_like(processes.start, 0.5), running=torch.ones(5, 2).bool())
    best = exact.optimal_policy(processes).log() if distance == "D2" else optimality.nearly_optimal(processes)
    phi = torch.zeros(2, 3, dtype=F64)
    least = float(optimality.gap_bound(processes, phi, best, 1.0, distance).least_penalty)
    bound = optimality.gap_bound(processes, phi, best, least, distance)
    gap = optimality.optimality_gap(processes, adapted(processes, phi, least, distance).softmax(-1))
    assert gap - bound.lost <= bound.sharper < optimality.optimality_gap(processes, phi.softmax(-1))


def test_visits_and_values_move_no_more_than_the_bound_assumes():
    """The inequality that the bounds rest on, between random policies, for all three distances."""
    processes = random_processes()
    for seed in range(20):
        phi, psi = table(seed=seed), table(seed=seed) + 0.5 * table(seed=100 + seed)
        policy, other = phi.softmax(-1), psi.softmax(-1)
        step = (exact.visitation(processes, policy).unsqueeze(-1) * other * exact.advantages(processes, policy)).sum(
            (-2, -1)
        )
        rest = exact.returns(processes, other) - exact.returns(processes, policy) - step / (1 - processes.discount)
        for distance in optimality.DISTANCES:
            least = optimality.gap_bound(processes, phi, psi.expand(5, 4, 3), 1.0, distance).least_penalty
            apart = optimality.squared_distance(processes, phi, psi.expand(5, 4, 3), distance)
            assert (rest.abs() <= least * apart / (1 - processes.discount)).all()


def test_too_small_a_penalty_has_no_bound():
    processes = random_processes()
    bound = optimality.gap_bound(processes, table(), optimality.nearly_optimal(processes), 1e-3, "D2")
    assert bound.least_penalty > 1e-3
    assert bound.sharper == torch.inf


def test_refusals_of_distances():
    processes = random_processes()
    best = exact.optimal_policy(processes).log()
    with pytest.raises(ValueError, match="distance='D4' is not known"):
        optimality.squared_distance(processes, table(), best, "D4")
    with pytest.raises(ValueError, match="greed must be at least 0 and below 1, got 1"):
        optimality.nearly_optimal(processes, 1.0)


def test_the_published_bound_is_that_of_its_own_penalty():
    """A large penalty adapts little: the gap outgrows a bound that does not depend on it, but not the sharper one."""
    reward, never = torch.tensor([1.0, 0.0], dtype=F64).reshape(1, 1, 2, 1), torch.tensor([[False]])
    paid = Dynamics(torch.ones(1, 1, 2, 1, dtype=F64), reward, never)
    processes = exact.process(paid, 0.5)
    best = optimality.nearly_optimal(processes, 0.9)
    phi = best[0] + torch.tensor([[-0.1, 0.1]], dtype=F64)
    bound = optimality.gap_bound(processes, phi, best, 50.0, "D2")
    adapted = exact_bomrl(processes, 50.0).compile().surrogate(phi, every_task(processes))
    gap = float(exact.returns(processes, best.softmax(-1)) - adapted)
    assert bound.published < gap < bound.sharper


# Tables whose logits are only known up to a constant


@pytest.mark.parametrize("distance", ["D1", "D2"])
@pytest.mark.parametrize("inner", [1, 2])
def test_what_does_not_move_a_policy_has_no_derivative(distance, inner):
    """The divergence of adapted policies at its minimum: its gradient is rounding, its Hessian is not."""
    walks = Rollouts(RandomMDP(2, 2, horizon=2), TabularSoftmax(2, 2))
    problem = MetaProblem(
        trajectories=walks, tasks=lambda: walks.environment.declare_tasks(4), policy=walks.policy, inner=inner, outer=2
    )
    template, theta = tabular_bomrl(problem, distance=distance), {"logits": torch.zeros(2, 2, dtype=F64)}
    trace = template.compile().sample(theta, generator=torch.Generator().manual_seed(0))
    divergence = adapted_divergence(problem.tasks, walks.policy, template.adapt).compile({})

    def value(logits):
        return divergence.surrogate({"logits": logits}, theta, trace)

    logits = theta["logits"]
    assert torch.func.grad(value)(logits).abs().max() < 1e-12
    curvature = torch.func.jacrev(torch.func.grad(value))(logits).reshape(4, 4)
    assert torch.linalg.eigvalsh(curvature).min() > -1e-12
    assert curvature.abs().max() > 1e-3


def test_a_single_trajectory_of_a_single_task_is_verified():
    """No plate is left to map the step over: it runs inside the transforms of `verify` alone."""
    walks = Rollouts(RandomMDP(2, 2, reward_std=0.0, horizon=2), TabularSoftmax(2, 2))
    task = walks.environment.task_distribution().sample((1,)).double()
    task[..., :-1] /= task[..., :-1].sum(-1, keepdim=True)
    problem = MetaProblem(
        trajectories=walks,
        tasks=lambda: walks.environment.declare_tasks(1, among=task),
        policy=walks.policy,
        inner=1,
        outer=1,
    )
    assert sg.verify(tabular_bomrl(problem).compile(), {"logits": table(2, 2)}).relative_bias < 1e-10
