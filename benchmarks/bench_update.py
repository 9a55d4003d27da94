"""How many outcomes per second does the update kernel take from arrays, beside numpy's bincount and MABWiser's partial_fit?

    pytest benchmarks/bench_update.py

All get the same million outcomes of ten arms. The kernel refuses a wrong outcome and adds exact integers (count, total, squares);
bincount does neither: it adds floating point and looks at nothing. MABWiser (Thompson sampling, hence 0/1 rewards) is left out,
with the reason, where it is not installed.
"""

from __future__ import annotations

import numpy as np
import pytest

from allocator.core.best_arm import warm_up
from allocator.core.statistics import CELL, add_outcomes

ARMS, OUTCOMES = 10, 1_000_000
RNG = np.random.default_rng(0)
WHO = RNG.integers(0, ARMS, OUTCOMES)
REWARDS = {"rewards in [0, 1]": RNG.random(OUTCOMES), "rewards 0 or 1": (RNG.random(OUTCOMES) < 0.05).astype(np.float64)}
SPEED: dict[tuple[str, str], float] = {}


def _bincount(who: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    return np.array([np.bincount(who, minlength=ARMS), np.bincount(who, rewards, ARMS), np.bincount(who, rewards * rewards, ARMS)])


def _measure(benchmark, kind: str, way: str, call, *arguments, rounds: int = 30):
    benchmark.group = kind
    got = benchmark.pedantic(call, arguments, rounds=rounds, warmup_rounds=1)
    SPEED[kind, way] = OUTCOMES / benchmark.stats.stats.median
    return got


@pytest.mark.parametrize("kind", REWARDS)
def test_kernel(benchmark, kind):
    warm_up()
    got = _measure(benchmark, kind, "kernel", add_outcomes, np.zeros((ARMS, CELL), np.int64), WHO, REWARDS[kind])
    np.testing.assert_allclose(got[:, 1] / 1e6, _bincount(WHO, REWARDS[kind])[1], rtol=1e-6)


@pytest.mark.parametrize("kind", REWARDS)
def test_bincount(benchmark, kind):
    _measure(benchmark, kind, "bincount", _bincount, WHO, REWARDS[kind])


def test_mabwiser(benchmark):
    mab = pytest.importorskip("mabwiser.mab", reason="MABWiser is not installed: pip install mabwiser")
    kind = "rewards 0 or 1"
    bandit = mab.MAB(list(range(ARMS)), mab.LearningPolicy.ThompsonSampling())
    bandit.fit(WHO[:1000], REWARDS[kind][:1000])
    _measure(benchmark, kind, "MABWiser", bandit.partial_fit, WHO, REWARDS[kind], rounds=5)


@pytest.fixture(scope="module", autouse=True)
def _speeds_at_the_end(request):
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nmillion outcomes per second, median     kernel   bincount   MABWiser   kernel over each")
        for kind in REWARDS:
            ways = [SPEED.get((kind, way), np.nan) / 1e6 for way in ("kernel", "bincount", "MABWiser")]
            ratios = ", ".join(f"{ways[0] / way:.1f}" for way in ways[1:] if way == way)
            print(f"{kind:<36}" + "".join(f"{way:>11.1f}" for way in ways) + f"   {ratios}")
