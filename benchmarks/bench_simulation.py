"""How many steps a second does a rehearsal take?

Three questions. The bare kernel: Thompson sampling on five Bernoulli arms, a posterior draw at each step, beside the same loop in numpy, in
MABWiser and in river. The full path: an experiment of three arms with two guardrails through the core that serves, one plan a simulated
second of 1,000 requests. And what the plan's share of that is: the same at 100 and at 10,000 requests a second.

Steps are counted by CPU time of one core, because replications run side by side on as many cores as there are; the wall clock stands
beside it. Each is measured several times: median, and the span from the slowest to the fastest.

Run: pip install '.[sim,dev,bench]' && pytest benchmarks/bench_simulation.py -s
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest

from allocator.core.experiment import Arm, BreachAction, Exposure, Guardrail, Reward
from allocator.core.experiment_rules import checked
from allocator.simulation import world as w
from allocator.simulation.bandit import simulate
from allocator.simulation.bandit import warm_up as warm_kernels
from allocator.simulation.parallel import child, root_seed
from allocator.simulation.run import rehearse
from allocator.simulation.scenario import Scenario

MEANS = (0.10, 0.11, 0.12, 0.13, 0.14)
SAID: list[tuple[str, int, list[tuple[float, float]]]] = []
PART = 1.0  # of the steps that give steady figures
TINY = {"PART": 0.005}


def measure(name: str, steps: int, play, rounds: int) -> None:
    """Call `play` so often; keep steps per second of CPU and of wall clock."""
    rounds = rounds if PART == 1.0 else 1
    play()
    speeds = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        play()
        speeds.append((steps / (time.process_time() - cpu), steps / (time.perf_counter() - wall)))
    SAID.append((name, steps, speeds))


def numpy_loop(steps: int) -> None:
    """Thompson sampling as one writes it down: a Beta draw of all arms at each step."""
    rng = np.random.default_rng(1)
    a, b, means = np.ones(5), np.ones(5), np.array(MEANS)
    for _ in range(steps):
        arm = int(rng.beta(a, b).argmax())
        if rng.random() < means[arm]:
            a[arm] += 1
        else:
            b[arm] += 1


def test_bare_kernel():
    warm_kernels()
    steps = int(1_000_000 * PART)
    measure("kernel, K = 5", steps, lambda: simulate(MEANS, steps, replications=1, checkpoints=[steps]), 9)


def test_numpy_loop():
    steps = int(20_000 * PART)
    measure("numpy loop, K = 5", steps, lambda: numpy_loop(steps), 5)


def test_mabwiser():
    mab = pytest.importorskip("mabwiser.mab", reason="MABWiser is not installed: pip install mabwiser")
    rng, steps = np.random.default_rng(1), max(int(500 * PART), 2)

    def play() -> None:
        bandit = mab.MAB(list(range(5)), mab.LearningPolicy.ThompsonSampling(), seed=1)
        bandit.fit(list(range(5)), [0, 1, 0, 0, 1])
        for _ in range(steps):
            arm = bandit.predict()
            bandit.partial_fit([arm], [int(rng.random() < MEANS[arm])])

    measure("MABWiser, K = 5", steps, play, 5)


def test_river():
    bandit = pytest.importorskip("river.bandit", reason="river is not installed: pip install river")
    from river import proba

    rng, steps = np.random.default_rng(1), max(int(2000 * PART), 2)

    def play() -> None:
        policy = bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=1)
        for _ in range(steps):
            arm = policy.pull(range(5))
            policy.update(arm, bool(rng.random() < MEANS[arm]))

    measure("river, K = 5", steps, play, 5)


@pytest.mark.parametrize(("rate", "seconds"), [(100, 120), (1000, 120), (10_000, 30)])
def test_full_path(rate, seconds):
    seconds = max(int(seconds * PART), 10)
    spec = checked(
        name="bench",
        arms=(Arm("old", incumbent=True), Arm("a"), Arm("b")),
        reward=Reward("click"),
        exposure=Exposure(total=0.5, strict=True),
        guardrails=(
            Guardrail("errors", "error", max=0.02),
            Guardrail("tail", "latency_ms", quantile=0.99, max=250.0, on_breach=BreachAction.DRAIN),
        ),
    )

    def arms(*levels: float) -> dict[str, w.Curve]:
        return {arm.name: w.Curve(level) for arm, level in zip(spec.arms, levels, strict=True)}

    metrics = {
        "click": w.Metric(arms(0.10, 0.12, 0.11)),
        "error": w.Metric(arms(0.01, 0.01, 0.01)),
        "latency_ms": w.Metric(arms(100.0, 100.0, 100.0), w.Law.LOG_NORMAL, 0.3),
    }
    world = w.World(metrics, w.Traffic(w.Curve(float(rate)), poisson=False), w.Reports(5.0))
    scenario = Scenario.checked(experiment=spec, world=world, duration_seconds=float(seconds))
    seed = child(root_seed(1), 0)
    measure(f"full path, {rate}/s", rate * seconds, lambda: rehearse(seed, scenario=scenario, policy="SPEC"), 5)


@pytest.fixture(scope="module", autouse=True)
def _speeds_at_the_end(request):
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{'steps a second':<24}{'CPU, one core':>16}{'slowest':>14}{'fastest':>14}{'wall clock':>16}")
        for name, _, speeds in SAID:
            cpu = [speed for speed, _ in speeds]
            wall = statistics.median(speed for _, speed in speeds)
            print(f"{name:<24}{statistics.median(cpu):>16,.0f}{min(cpu):>14,.0f}{max(cpu):>14,.0f}{wall:>16,.0f}")
