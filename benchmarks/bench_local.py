"""What does a decision in the caller's own process cost, while the snapshot changes every second?

`LocalClient.decide` with its id, propensity and exposure count, against a real server whose snapshot changes each second;
`LocalClient.arm`, the arm alone; and beside them, in the same process and in alternating slices so that noise hits all alike, what people
use for the same question: GrowthBook's SDK evaluating an experiment, OpenFeature's in-memory provider, MABWiser's predict. Also four
threads at once, and the time that importing the client takes in a fresh process.

Run: pytest benchmarks/bench_local.py -s      (peers: pip install 'allocator[bench]')
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from allocator.client import LocalClient
from tests.client.conftest import QUICK, Service

SLICES = 10
CALLS = 20_000
THREADS = 4
IMPORTS = 5
TINY = {"SLICES": 2, "CALLS": 200, "IMPORTS": 1}


@pytest.fixture(scope="module")
def service():
    service = Service()
    service.apply()
    stop = threading.Event()

    def change() -> None:
        live = service.engine.live
        while not stop.wait(1.0):
            entry = live.snapshot.entries["default/ranker"]
            live.publish([dataclasses.replace(entry, version=entry.version + 1)])

    changing = threading.Thread(target=change)
    changing.start()
    yield service
    stop.set()
    changing.join()
    service.close()


@pytest.fixture(scope="module")
def client(service):
    with LocalClient(service.address, pause=QUICK) as client:
        assert client.wait_ready(30)
        yield client


def growthbook() -> Callable[[str], object] | None:
    if importlib.util.find_spec("growthbook") is None:
        return None
    from growthbook import Experiment, GrowthBook

    experiment = Experiment(key="ranker", variations=["old", "new"], weights=[0.5, 0.5])

    def evaluate(unit: str) -> object:
        return GrowthBook(attributes={"id": unit}).run(experiment)

    return evaluate


def openfeature() -> Callable[[str], object] | None:
    if importlib.util.find_spec("openfeature") is None:
        return None
    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

    api.set_provider(InMemoryProvider({"ranker": InMemoryFlag("new", {"old": "old", "new": "new"})}))
    asking = api.get_client()
    return lambda unit: asking.get_string_details("ranker", "old", EvaluationContext(unit))


def mabwiser() -> Callable[[str], object] | None:
    if importlib.util.find_spec("mabwiser") is None:
        return None
    from mabwiser.mab import MAB, LearningPolicy

    bandit = MAB(["old", "new"], LearningPolicy.ThompsonSampling(), seed=1)
    bandit.fit(np.array(["old", "new"] * 50), np.array([0, 1] * 50))
    return lambda _: bandit.predict()


def timed(call: Callable[[str], object], first: int) -> list[int]:
    """Nanoseconds of each of CALLS calls, the clock's own cost included."""
    clock, taken = time.perf_counter_ns, []
    for unit in [f"user-{number}" for number in range(first, first + CALLS)]:
        began = clock()
        call(unit)
        taken.append(clock() - began)
    return taken


def told(name: str, slices: list[list[int]]) -> float:
    """Print one line; the p50 in microseconds: the median of the slices', and their spread."""
    p50 = [float(np.quantile(taken, 0.5)) / 1e3 for taken in slices]
    p99 = [float(np.quantile(taken, 0.99)) / 1e3 for taken in slices]
    middle = statistics.median(p50)
    print(
        f"  {name:34} p50 {middle:6.2f} us ({min(p50):.2f} to {max(p50):.2f})   p99 {statistics.median(p99):6.1f} us"
        f" ({min(p99):.1f} to {max(p99):.1f})"
    )
    return middle


def test_a_decision_in_process_beside_its_peers(benchmark, client):
    makers = {"GrowthBook run": growthbook, "OpenFeature in memory": openfeature, "MABWiser predict": mabwiser}
    calls: dict[str, Callable[[str], object]] = {
        "decide: id, propensity, count": lambda unit: client.decide("ranker", unit),
        "arm alone": lambda unit: client.arm("ranker", unit),
    }
    calls |= {name: call for name, make in makers.items() if (call := make()) is not None}
    print(f"\n{SLICES} slices of {CALLS} calls each, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}:")

    def run() -> dict[str, list[list[int]]]:
        found: dict[str, list[list[int]]] = {name: [] for name in calls}
        for number in range(SLICES):
            for name, call in calls.items():
                found[name].append(timed(call, number * CALLS))
        return found

    found = benchmark.pedantic(run, rounds=1, iterations=1)
    medians = {name: told(name, slices) for name, slices in found.items()}
    for name in makers:
        if name in medians:
            print(f"  {name}: {medians[name] / medians['decide: id, propensity, count']:.1f} x a decision")
        else:
            print(f"  {name}: skipped, its package is not installed (extra bench)")
    benchmark.extra_info.update(medians)
    assert client.statistics().streams >= 1


def test_threads_that_decide_at_once(benchmark, client):
    def run() -> tuple[float, list[int]]:
        taken: list[list[int]] = [[] for _ in range(THREADS)]

        def work(mine: list[int], first: int) -> None:
            mine += timed(lambda unit: client.decide("ranker", unit), first)

        threads = [threading.Thread(target=work, args=(mine, CALLS * number)) for number, mine in enumerate(taken)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began, [each for mine in taken for each in mine]

    seconds, taken = benchmark.pedantic(run, rounds=1, iterations=1)
    print(f"\n{THREADS} threads, {CALLS} decisions each: {len(taken) / seconds:,.0f} decisions/s")
    told("decide", [taken])
    assert client.flush(30)


def test_importing_the_client(benchmark):
    code = "import time; began = time.perf_counter(); import allocator.client; print(time.perf_counter() - began)"

    def run() -> list[float]:
        done = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(IMPORTS))
        return [float(each.stdout) * 1e3 for each in done]

    found = benchmark.pedantic(run, rounds=1, iterations=1)
    print(f"\nimporting the client: {statistics.median(found):.0f} ms ({min(found):.0f} to {max(found):.0f}), {IMPORTS} fresh processes")
    assert len(found) == IMPORTS
