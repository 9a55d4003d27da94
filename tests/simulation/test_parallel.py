"""Replications side by side: seeds, order, and that nothing is made before it is needed."""

from __future__ import annotations

import pytest

from allocator.simulation import parallel
from allocator.simulation.parallel import replicate


def number_of(seed):
    return seed.spawn_key[-1]


@pytest.mark.parametrize(("workers", "backend"), [(1, "sequential"), (1, "loky"), (3, "threading"), (2, "loky")])
def test_results_come_in_the_order_of_replications(workers, backend):
    assert replicate(number_of, 50, workers=workers, backend=backend) == list(range(50))


def test_tasks_are_made_as_they_are_needed(monkeypatch):
    """A mistyped number of replications begins to work at once, and can be interrupted, instead of filling the memory with tasks."""
    monkeypatch.setattr(parallel, "CHUNKS_PER_WORKER", 10**12)

    def fails(seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replicate(fails, 10**11, backend="sequential")
