"""How many steps of an environment a second makes: rollouts, against Gymnasium and against MuJoCo alone.

Twenty tasks with twenty trajectories each, a 64x64 policy with parameters of its own for every task. Sides:

- rollouts: `Rollouts` draws whole trajectories, with all that it records;
- loop: one Gymnasium environment, one call of the policy per step;
- vector: Gymnasium's `SyncVectorEnv` of all 400, one call of the policy for all of them; with --async another side,
  `AsyncVectorEnv`;
- raw: MuJoCo alone, on as many threads: `mujoco.batch.Batch.step` with recorded actions, one call per step, without
  policy, observations and rewards;
- open loop: the same in one call for all steps of all simulations, `mujoco.batch.Batch.rollout`. No policy can ask for
  that, since all actions are given beforehand; its threads never wait for each other.

Everything in one process, torch on one thread. A round times every side once, in alternating order; a ratio is the
median of its rounds' ratios, so that slow moments of the machine hit both sides. Only steps of running episodes count.
Where other programs want the processors too, threads wait for each other and for them: the rate per second of processor
time, all threads together, is then the figure to trust. It says nothing about how well threads are kept busy.

Then the share of each part of a step, and the sampler's share in an iteration of `stochgraph train` on 2-D navigation,
which draws 800 trajectories twice: with one set of parameters, and with one for every task.

Run from the checkout: python benchmarks/stepping.py [--rounds 7] [--only ant] [--async]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._machine import quiet_machine
from stochgraph.algorithms.environments import Locomotion, ant, half_cheetah
from stochgraph.algorithms.environments._simulation import Quiet
from stochgraph.algorithms.policies import GaussianMLP
from stochgraph.algorithms.rollouts import Rollouts, acting
from stochgraph.algorithms.training import Configuration, Problem

TASKS, TRAJECTORIES, HORIZON = 20, 20, 50
EPISODES = TASKS * TRAJECTORIES
PLATES = torch.Size([TASKS, TRAJECTORIES])


class Case(NamedTuple):
    """One robot, here and in Gymnasium."""

    name: str
    environment: Locomotion
    gymnasium: str
    options: dict[str, Any]


def cases() -> list[Case]:
    contactless = {"contact_cost_weight": 0.0, "include_cfrc_ext_in_observation": False}
    return [
        Case("HalfCheetah", half_cheetah(), "HalfCheetah-v5", {}),
        Case("Ant", ant(), "Ant-v5", contactless),
    ]


class Setting(NamedTuple):
    """What all sides of a case share."""

    case: Case
    policy: GaussianMLP
    parameters: dict[str, Tensor]  # (tasks, 1, ...)
    task: Tensor  # (tasks, 1)


def setting(case: Case) -> Setting:
    policy = GaussianMLP(case.environment.observation_size, case.environment.action_size)
    each = [policy.initial(torch.Generator().manual_seed(i)) for i in range(TASKS)]
    parameters = {name: torch.stack([one[name] for one in each]).unsqueeze(1) for name in each[0]}
    return Setting(case, policy, parameters, case.environment.task_distribution().sample(torch.Size([TASKS, 1])))


Side = Callable[[], int]  # makes some steps, and says how many


class Rate(NamedTuple):
    """Steps per second, by the clock and of processor time."""

    clock: float
    processor: float


def rollouts_side(given: Setting) -> Side:
    sampler = Rollouts(given.case.environment, given.policy, HORIZON)

    def run() -> int:
        return int(sampler.draw(PLATES, given.parameters, given.task).mask.sum())

    return run


def loop_side(given: Setting) -> Side:
    import gymnasium

    with silence():
        single = gymnasium.make(given.case.gymnasium, **given.case.options)
    parameters = {name: leaf[0, 0] for name, leaf in given.parameters.items()}

    def run() -> int:
        observation, _ = single.reset()
        for _ in range(EPISODES):
            seen = torch.from_numpy(observation).float()
            action, _ = given.policy.sample(parameters, seen, given.policy.noise((), seen))
            observation, _, terminated, truncated, _ = single.step(action.numpy())
            if terminated or truncated:
                observation, _ = single.reset()
        return EPISODES

    return run


def vector_side(given: Setting, mode: str, steps: int = 5) -> Side:
    import gymnasium

    make = {"sync": gymnasium.vector.SyncVectorEnv, "async": gymnasium.vector.AsyncVectorEnv}[mode]
    with silence():
        vector = make([lambda: gymnasium.make(given.case.gymnasium, **given.case.options)] * EPISODES)
    act = acting(given.policy, given.parameters, PLATES)
    state = {"observation": vector.reset(seed=0)[0]}

    def run() -> int:
        for _ in range(steps):
            seen = torch.from_numpy(state["observation"]).float()
            action, _ = act(seen, given.policy.noise((EPISODES,), seen))
            state["observation"] = vector.step(action.numpy())[0]
        return steps * EPISODES

    return run


def recorded_controls(given: Setting) -> "np.ndarray[Any, Any]":
    """Actions of the policy, `(episodes, time, action)`: without a policy they are drawn beforehand."""
    drawn = Rollouts(given.case.environment, given.policy, HORIZON).draw(PLATES, given.parameters, given.task)
    return drawn.action.flatten(0, 1).double().numpy()


def raw_side(given: Setting) -> Side:
    environment, controls = given.case.environment, recorded_controls(given)
    simulation = environment.simulation

    def run() -> int:
        environment.reset(given.task.expand(PLATES).flatten())
        with simulation._quiet:
            for k in range(HORIZON):
                simulation._control[:] = controls[:, k]
                simulation._batch.step(None, nstep=simulation.frame_skip)
        return EPISODES * HORIZON

    return run


def open_loop_side(given: Setting) -> Side:
    environment = given.case.environment
    simulation = environment.simulation
    controls = recorded_controls(given).repeat(simulation.frame_skip, axis=1)

    def run() -> int:
        environment.reset(given.task.expand(PLATES).flatten())
        with simulation._quiet:
            simulation._batch.rollout(controls.shape[1], controls, record=())
        return EPISODES * HORIZON

    return run


def silence() -> Any:
    import mujoco

    return Quiet(mujoco)


def sides(given: Setting, with_async: bool) -> dict[str, Side]:
    found = {"rollouts": rollouts_side(given), "raw": raw_side(given)}
    found |= {"open loop": open_loop_side(given), "loop": loop_side(given)}
    found["vector"] = vector_side(given, "sync")
    if with_async:
        found["async"] = vector_side(given, "async")
    return found


def rate(run: Side) -> Rate:
    clock, processor = time.perf_counter(), time.process_time()
    steps = run()
    return Rate(steps / (time.perf_counter() - clock), steps / (time.process_time() - processor))


def compare(chosen: dict[str, Side], rounds: int) -> dict[str, list[Rate]]:
    """The rates of each side in each round."""
    rates: dict[str, list[Rate]] = {name: [] for name in chosen}
    with torch.no_grad():
        for run in chosen.values():
            run()
        for k in range(rounds):
            for name in list(chosen) if k % 2 else list(chosen)[::-1]:
                rates[name].append(rate(chosen[name]))
    return rates


@contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """The seconds of every call of a method, from here on."""
    method, seconds = getattr(owner, name), []

    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = method(*arguments)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, name, call)
    try:
        yield seconds
    finally:
        setattr(owner, name, method)


def shares(given: Setting) -> dict[str, float]:
    """The shares of policy, environment and all else in the time of a draw."""
    environment, policy = given.case.environment, given.policy
    sampler = Rollouts(environment, policy, HORIZON)
    with timed(environment, "step") as steps, timed(policy, "sample") as samples:
        start = time.perf_counter()
        sampler.draw(PLATES, given.parameters, given.task)
        whole = time.perf_counter() - start
    spent = {"policy": sum(samples) / whole, "environment": sum(steps) / whole}
    return spent | {"other": 1 - sum(spent.values())}


class Iterations(NamedTuple):
    """Medians over iterations of meta-training, in seconds."""

    whole: float
    draws: list[float]  # by their order in an iteration
    share: float  # of all draws


def iterations(rounds: int, threads: int) -> Iterations:
    """Meta-training on navigation with 40 trajectories a task; the draws are timed within the iterations."""
    problem = Problem(Configuration(tasks=TASKS, inner=40, outer=40))
    theta = problem.initial()
    learner = problem.learner(theta)
    torch.set_num_threads(threads)
    found = []
    for k in range(rounds + 1):
        with timed(Rollouts, "draw") as draws:
            start = time.perf_counter()
            learner.step(theta, problem.draw(theta, k))
            found.append((time.perf_counter() - start, draws))
    torch.set_num_threads(1)
    kept = found[1:]  # the first one builds what later ones have
    by_order = zip(*(draws for _, draws in kept), strict=True)
    share = median(sum(draws) / whole for whole, draws in kept)
    return Iterations(median(whole for whole, _ in kept), [median(one) for one in by_order], share)


def report(case: Case, rounds: int, with_async: bool) -> None:
    given = setting(case)
    rates = compare(sides(given, with_async), rounds)
    print(f"\n{case.name}: {EPISODES} episodes, {case.environment.simulation.threads} threads, {rounds} rounds\n")
    print("| side | steps per second | of processor time | rollouts are faster by | of processor time |")
    print("|---|---:|---:|---:|---:|")
    for name, found in rates.items():
        pairs = list(zip(rates["rollouts"], found, strict=True))
        cells = [f"{median(one[k] for one in found):,.0f}" for k in range(2)]
        cells += [f"{median(ours[k] / theirs[k] for ours, theirs in pairs):.2f}" for k in range(2)]
        print(f"| {name} | {' | '.join(cells)} |")
    parts = [shares(given) for _ in range(rounds)]
    listed = ", ".join(f"{name} {median(part[name] for part in parts):.1%}" for name in parts[0])
    print(f"\nshares of a draw: {listed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements per side")
    parser.add_argument("--only", default="", help="robots whose name contains this")
    parser.add_argument("--async", dest="with_async", action="store_true", help="AsyncVectorEnv, too: 400 processes")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    for case in cases():
        if options.only.lower() in case.name.lower():
            report(case, options.rounds, options.with_async)
    found = iterations(options.rounds, threads)
    speed = TASKS * 40 * 100 / found.draws[1]
    print(
        f"\nMeta-training on 2-D navigation, {threads} threads: {found.whole:.3f} s an iteration. In it,\n"
        f"800 trajectories of 100 steps are drawn with one policy in {found.draws[0]:.3f} s,\n"
        f"and with a policy per task in {found.draws[1]:.3f} s, {speed:,.0f} steps per second.\n"
        f"The sampler's share: {found.share:.1%}"
    )


if __name__ == "__main__":
    with quiet_machine():
        main()
