"""Timing of two sides of one estimate in pairs: the same draws, one process, one thread, alternating order.

A round times both sides of every case; a case's ratio is the median of its rounds' ratios, so that slow moments of the
machine hit both sides of a pair. Long work stands still meanwhile: see `_machine`.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks._machine import quiet_machine

TOLERANCE = 1e-5  # float32, sums of up to 80 costs
SPAN = 0.02  # seconds that one measurement of one side takes

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
Parameters = Any  # a tensor, or a pytree of them
Estimate = Callable[[Parameters], tuple[Tensor, Parameters]]


class Case(NamedTuple):
    """One estimate, both ways, and the parameters at which it is made."""

    name: str
    library: Estimate
    by_hand: Estimate
    theta: Parameters


def check(case: Case, gradients: bool = True) -> None:
    """Both sides must give the same value and gradient on the same draws."""
    for seed in range(3):
        torch.manual_seed(seed)
        value, grad = case.library(case.theta)
        torch.manual_seed(seed)
        expected_value, expected_grad = case.by_hand(case.theta)
        torch.testing.assert_close(
            value, expected_value, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda words: f"{case.name}: value: {words}"
        )
        if gradients:
            torch.testing.assert_close(
                grad, expected_grad, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda words: f"{case.name}: gradient: {words}"
            )


def measure(estimate: Estimate, theta: Parameters, calls: int, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    for _ in range(calls):
        estimate(theta)
    return (clock() - start) / calls


def calls_in_span(case: Case) -> int:
    """How many calls of the hand-written side fill a measurement; both sides warm afterwards."""
    measure(case.library, case.theta, 3)
    measure(case.by_hand, case.theta, 3)
    return max(1, round(SPAN / measure(case.by_hand, case.theta, 3)))


def compare(chosen: list[Case], rounds: int, clock: Clock = time.perf_counter) -> list[tuple[float, float, float]]:
    """Per case the medians over rounds: seconds by hand, seconds with the library, ratio pair by pair."""
    calls = [calls_in_span(case) for case in chosen]
    pairs: list[list[tuple[float, float]]] = [[] for _ in chosen]
    for k in range(rounds):
        for case, count, found in zip(chosen, calls, pairs, strict=True):
            sides = [case.by_hand, case.library]
            times = [measure(side, case.theta, count, clock) for side in (sides if k % 2 else sides[::-1])]
            hand, library = times if k % 2 else times[::-1]
            found.append((hand, library))
    return [
        (median(h for h, _ in found), median(m for _, m in found), median(m / h for h, m in found)) for found in pairs
    ]


def main(description: str, cases: list[Case]) -> None:
    """Check every case, time it, and print a table."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="measurements per case and side")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in cases if options.only.lower() in case.name.lower()]
    for case in chosen:
        check(case)
    show(chosen, options.rounds)


def show(cases: list[Case], rounds: int, clock: str = "wall") -> None:
    """Time cases that have been checked, and print a table; `clock` is one of `CLOCKS`."""
    print(f"One estimate; median of {rounds} rounds, {clock} time; torch {torch.__version__}, one thread.\n")
    print("| case | by hand, µs | library, µs | ratio |\n|---|---:|---:|---:|")
    with quiet_machine():
        found = compare(cases, rounds, CLOCKS[clock])
    for case, (hand, library, ratio) in zip(cases, found, strict=True):
        print(f"| {case.name} | {hand * 1e6:.0f} | {library * 1e6:.0f} | {ratio:.2f} |")
