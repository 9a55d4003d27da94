"""How fast and how exact is P(best), beside 10,000 Monte Carlo draws of the same posteriors?

    pytest benchmarks/bench_best_arm.py

Each case is timed as callers see it, Python wrapper included, both P(best) and expected loss, next to numpy drawing and counting.
Errors are the largest over the arms against composite Gauss-Legendre in extended precision, with panels a quarter of the narrowest
posterior wide and densities written as in a textbook.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from allocator.core.best_arm import best_arm, warm_up
from allocator.core.posterior import BetaPosterior

DRAWS = 10_000
ERRORS: dict[tuple[str, str], float] = {}


def _counts(arms: int, outcomes: int) -> tuple[np.ndarray, np.ndarray]:
    """Arms whose true rates differ by about what `outcomes` outcomes each can tell."""
    rng = np.random.default_rng(arms)
    rates = 0.05 * np.exp(rng.normal(size=arms) / np.sqrt(0.05 * max(outcomes, 1000)))
    successes = rng.binomial(outcomes, rates)
    return successes + 1.0, outcomes - successes + 1.0


CASES = {f"K={arms:<3} n={n:<10,}": _counts(arms, n) for arms in (3, 10, 100) for n in (0, 1000, 1_000_000, 1_000_000_000)}


@functools.cache
def _reference(case: str) -> np.ndarray:
    a, b = (counts.astype(np.longdouble) for counts in CASES[case])
    centre, width = np.log(a / b), np.minimum(1, np.sqrt(1 / a + 1 / b))
    tail = 45 / np.minimum(np.minimum(a, b), 2)  # of a prior, exponential; of many counts, 13 widths
    reach = np.where(np.minimum(a, b) < 30, tail, 13 * width)
    left, right = (centre - reach).min(), (centre + reach).max()
    edges = np.linspace(left, right, int(4 * (right - left) / width.min()) + 2, dtype=np.longdouble)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    order = np.arange(20)
    legendre = np.polynomial.legendre.legvander(nodes, 20)
    up = (legendre[:, 1:] - np.column_stack([-np.ones(20), legendre])[:, :20]) / (2 * order + 1)  # integrals of P_n from -1
    integral = ((2 * order + 1) / 2 * weights[:, None] * legendre[:, :20]) @ up.T / 2
    step = np.diff(edges)[:, None]
    y = edges[:-1, None] + step * (nodes + 1) / 2  # (panels, nodes)
    mode = a * centre - (a + b) * np.log1p(np.exp(centre))
    density = np.exp(a[:, None, None] * y - (a + b)[:, None, None] * np.log1p(np.exp(y)) - mode[:, None, None])
    mass = (density * step * weights / 2).sum(axis=2)
    before = np.cumsum(mass, axis=1) - mass
    total = mass.sum(axis=1)[:, None, None]
    density, below = density / total, (before[:, :, None] + step * (density @ integral)) / total
    prob = np.array(
        [(density[i] * np.delete(below, i, axis=0).prod(axis=0) * step * weights / 2).sum() for i in range(a.size)], np.longdouble
    )
    assert abs(prob.sum() - 1) < 1e-13
    return prob.astype(float)


def _draw(posterior: BetaPosterior, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    draws = rng.beta(posterior.a, posterior.b, (DRAWS, posterior.a.size))
    best = draws.max(axis=1)
    return np.bincount(draws.argmax(axis=1), minlength=posterior.a.size) / DRAWS, best.mean() - draws.mean(axis=0)


@pytest.mark.parametrize("case", CASES)
def test_quadrature(benchmark, case):
    warm_up()
    posterior = BetaPosterior(*CASES[case])
    benchmark.group = case
    got = benchmark(best_arm, posterior)
    ERRORS[case, "quadrature"] = abs(got.prob_best - _reference(case)).max()


@pytest.mark.parametrize("case", CASES)
def test_ten_thousand_draws(benchmark, case):
    posterior, rng = BetaPosterior(*CASES[case]), np.random.default_rng(1)
    benchmark.group = case
    prob, _ = benchmark.pedantic(_draw, (posterior, rng), rounds=10, warmup_rounds=1)
    ERRORS[case, "draws"] = abs(prob - _reference(case)).max()


@pytest.fixture(scope="module", autouse=True)
def _errors_at_the_end(request):
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nlargest error of P(best)     quadrature      10,000 draws")
        for case in CASES:
            print(f"{case:<24}" + "".join(f"{ERRORS.get((case, way), np.nan):>16.1e}" for way in ("quadrature", "draws")))
