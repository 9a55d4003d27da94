"""What does it cost to say which arm serves a unit, beside a bare hash and beside drawing an arm at random?

    pytest benchmarks/bench_assignment.py -s

Prints two tables. The first: nanoseconds for one unit, the median of interleaved rounds and the spread between the 10th
and 90th percentile round, so that a busy machine slows all rows alike. The second: for plans that follow one another
thousands of times, how many runs a layout has and how long a move takes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from statistics import median, quantiles

from allocator.core.assignment import SLOTS, counts, first_layout, move, pick, point
from allocator.core.gate import CapGate

UNITS = [b"user-%08d" % number for number in range(2_000)]
ROUNDS = 200
SALT = bytes(range(16))
PLANS = {2: 10_000, 5: 10_000, 10: 10_000, 64: 1_000}
TINY = {"ROUNDS": 3, "PLANS": {2: 100, 5: 100, 64: 5}}


def main() -> None:
    print(f"{'one unit, 5 arms':<36}{'median ns':>12}{'p10 ns':>10}{'p90 ns':>10}")
    for name, times in interleaved(contestants()).items():
        deciles = quantiles(times, n=10)
        print(f"{name:<36}{median(times):>12.0f}{deciles[0]:>10.0f}{deciles[-1]:>10.0f}")
    print()
    print(f"{'arms':>4}  {'plans':<12}{'moves':>8}{'mean runs':>12}{'most runs':>12}{'median us':>12}{'p99 us':>10}")
    for arms, moves in PLANS.items():
        for kind, plans in (("unrelated", unrelated(arms)), ("drifting", drifting(arms))):
            runs, times = replanned(plans, moves)
            times.sort()
            print(
                f"{arms:>4}  {kind:<12}{moves:>8}{sum(runs) / moves:>12.1f}{max(runs):>12}"
                f"{median(times):>12.1f}{times[moves * 99 // 100]:>10.1f}"
            )


def contestants() -> dict[str, Callable[[], None]]:
    """Each runs once over all units."""
    layout = first_layout(next(unrelated(5)))
    for slots, _ in zip(drifting(5), range(1_000), strict=False):
        layout = move(layout, slots)
    slots = counts(layout, 5)
    shares = [count / SLOTS for count in slots]
    steps = [sum(shares[: arm + 1]) for arm in range(5)]
    arms, names = range(5), random.Random(1)
    served = [pick(layout, slots, point(SALT, unit))[0] for unit in UNITS]
    gate = CapGate(0, [0.3] * 5, 0.9)

    def bare_hash() -> None:
        for unit in UNITS:
            blake2b(unit, digest_size=8, key=SALT).digest()

    def point_alone() -> None:
        for unit in UNITS:
            point(SALT, unit)

    def point_and_pick() -> None:
        for unit in UNITS:
            pick(layout, slots, point(SALT, unit))

    def choices() -> None:
        for _ in UNITS:
            names.choices(arms, shares)

    def choices_of_running_sums() -> None:
        for _ in UNITS:
            names.choices(arms, cum_weights=steps)

    def strict_cap() -> None:
        for arm in served:
            gate.closed_mask()
            gate.admit(arm)

    return {
        "bare blake2b, keyed": bare_hash,
        "point": point_alone,
        "point and pick": point_and_pick,
        "random.choices, weights": choices,
        "random.choices, cum_weights": choices_of_running_sums,
        "strict caps: closed_mask and admit": strict_cap,
    }


def interleaved(runners: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Nanoseconds per unit of each runner, round by round."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, run in runners.items():
            start = time.perf_counter_ns()
            run()
            times[name].append((time.perf_counter_ns() - start) / len(UNITS))
    return times


def replanned(plans: Iterator[list[int]], moves: int) -> tuple[list[int], list[float]]:
    """Runs of the layout after each move, and microseconds of each move."""
    layout = first_layout(next(plans))
    runs, times = [], []
    for _ in range(moves):
        slots = next(plans)
        start = time.perf_counter_ns()
        layout = move(layout, slots)
        times.append((time.perf_counter_ns() - start) / 1_000)
        runs.append(len(layout.ends))
    return runs, times


def unrelated(arms: int) -> Iterator[list[int]]:
    """Plans that have nothing to do with one another: Dirichlet, from nearly even to nearly one arm."""
    rng = random.Random(arms)
    while True:
        concentration = rng.choice([0.1, 0.5, 1.0, 5.0])
        yield rounded([rng.gammavariate(concentration, 1.0) + 1e-12 for _ in range(arms)])


def drifting(arms: int) -> Iterator[list[int]]:
    """Plans that drift: each weight changes by some 10 % a plan."""
    rng = random.Random(arms)
    shares = [1.0] * arms
    while True:
        total = sum(shares)
        shares = [max(1e-5, share / total * math.exp(rng.gauss(0.0, 0.1))) for share in shares]
        yield rounded(shares)


def rounded(shares: list[float]) -> list[int]:
    slots = [int(share / sum(shares) * SLOTS) for share in shares]
    slots[0] += SLOTS - sum(slots)
    return slots


def test_point_pick_and_move(benchmark):
    benchmark.pedantic(main, rounds=1, iterations=1)
