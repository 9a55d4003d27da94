"""What does one refresh of the guardrails cost, and what the reports beside it?

    pytest benchmarks/bench_evidence.py

A refresh folds the open buckets of every stream anew from its last settled state: here 16 streams of 60 buckets, the loops alone and
with the Python around them, next to the same recursion written in numpy. Bucket sizes differ because a restart is added for every 50
outcomes: with 10 outcomes a bucket one in five adds one, with 1,000 each does.
"""

from __future__ import annotations

import numpy as np
import pytest

from allocator.core import confidence, evidence, evidence_labels, evidence_rates
from allocator.core.kernels import evidence as kernels
from allocator.core.sample_ratio import log_fixed_sample_ratio

STREAMS, BUCKETS = 16, 60


def _counts(size: int) -> tuple[np.ndarray, np.ndarray]:
    exposed = np.full((STREAMS, BUCKETS), float(size))
    return exposed, np.random.default_rng(1).binomial(size, 0.008, exposed.shape).astype(float)


def _plain(grid: evidence_rates.RateGrid, exposed: np.ndarray, events: np.ndarray) -> np.ndarray:
    """The recursion of WEIGHTED restarts over all streams at once, one bucket after another."""
    terms = np.full((STREAMS, grid.log_weight.size), -np.inf)
    restarts, in_block, out = np.zeros(STREAMS), np.zeros(STREAMS), np.empty(exposed.shape)
    for b in range(BUCKETS):
        opens = in_block == 0.0
        restarts += opens
        with np.errstate(divide="ignore"):
            log_weight = -np.log(2.109742801236892 * (restarts + 1.0) * np.log(restarts + 1.0) ** 2)
        terms = np.where(opens[:, None], np.logaddexp(terms, log_weight[:, None]), terms)
        terms = terms + events[:, b, None] * grid.log_event + (exposed[:, b] - events[:, b])[:, None] * grid.log_clear
        in_block += exposed[:, b]
        in_block[in_block >= evidence.BLOCK] = 0.0
        out[:, b] = np.logaddexp.reduce(grid.log_weight + terms, axis=1)
    return out


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    evidence_rates.warm_up()
    evidence_labels.warm_up()
    confidence.warm_up()


@pytest.mark.benchmark(group="16 streams x 60 open buckets")
@pytest.mark.parametrize("size", [10, 60, 1000])
def test_loops_alone(benchmark, size):
    grid, (exposed, events) = evidence_rates.rate_grid(0.01), _counts(size)
    rows = [np.tile(part, (STREAMS, 1)) for part in (grid.log_weight, grid.log_event, grid.log_clear)]
    out, uncapped = np.empty(exposed.shape), np.full(STREAMS, np.inf)

    def fresh():
        terms = np.full(rows[0].shape, evidence.LOG_ZERO)
        return (*rows, terms, np.zeros(STREAMS, np.int64), np.zeros(STREAMS), exposed, events, 0, 50.0, uncapped, out), {}

    benchmark.pedantic(kernels.fold_rates, setup=fresh, rounds=500)


@pytest.mark.benchmark(group="16 streams x 60 open buckets")
@pytest.mark.parametrize("size", [10, 60, 1000])
def test_fold_many(benchmark, size):
    grid, counts = evidence_rates.rate_grid(0.01), _counts(size)
    _, found = benchmark(evidence_rates.fold_many, [grid] * STREAMS, [evidence.no_restarts(grid)] * STREAMS, *counts)
    assert np.allclose(found, _plain(grid, *counts), rtol=1e-10)


@pytest.mark.benchmark(group="16 streams x 60 open buckets")
@pytest.mark.parametrize("size", [10, 60, 1000])
def test_the_same_in_numpy(benchmark, size):
    benchmark(_plain, evidence_rates.rate_grid(0.01), *_counts(size))


@pytest.mark.benchmark(group="one call")
def test_fold_one_stream(benchmark):
    grid, (exposed, events) = evidence_rates.rate_grid(0.01), _counts(60)
    benchmark(evidence_rates.fold, grid, evidence.no_restarts(grid), exposed[0], events[0])


@pytest.mark.benchmark(group="one call")
def test_log_evidence_of_one_pair(benchmark):
    benchmark(evidence_rates.log_evidence, evidence_rates.rate_grid(0.01), 1000, 10)


@pytest.mark.benchmark(group="one call")
def test_label_evidence_of_a_hundred_cells(benchmark):
    grid, rng = evidence_labels.label_grid(1.0), np.random.default_rng(2)
    cells = rng.integers(0, 5, 100), rng.integers(0, 50, 100), rng.uniform(0.01, 0.5, 100)
    benchmark(lambda: evidence_labels.log_label_evidence(grid, evidence_labels.label_sums(grid, *cells)))


@pytest.mark.benchmark(group="one call")
@pytest.mark.parametrize("total", [1e3, 1e9])
def test_confidence_sequences_of_a_hundred_arms(benchmark, total):
    benchmark(confidence.confidence_sequence, np.linspace(0.0, total, 100), total, 0.05)


@pytest.mark.benchmark(group="one call")
@pytest.mark.parametrize("total", [1e3, 1e9])
def test_empirical_bernstein_of_one_arm(benchmark, total):
    benchmark(confidence.empirical_bernstein, total, 0.5 * total, 0.26 * total, 0.5, 0.05, 0.01 * total)


@pytest.mark.benchmark(group="one call")
def test_relative_risk_of_a_hundred_cells(benchmark):
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 5, 100), rng.integers(0, 50, 100), rng.uniform(0.01, 0.5, 100)
    benchmark(confidence.relative_risk, *cells, 0.05)


@pytest.mark.benchmark(group="one call")
def test_sample_ratio_of_ten_arms(benchmark):
    benchmark(log_fixed_sample_ratio, np.arange(1000, 1010), np.full(10, 0.1))
