"""Replications side by side: seeds, order, and that nothing is made before it is needed."""

from __future__ import annotations

import socket
import threading

import pytest

from allocator.errors import InvalidArgument, Unavailable
from allocator.simulation import parallel
from allocator.simulation.parallel import dask_cluster, replicate

LAST = 15
MOVED = threading.Event()


def number_of(seed):
    return seed.spawn_key[-1]


def last_one_waits(seed):
    """True, unless the last replication has to run before a first one was handed over."""
    return number_of(seed) != LAST or MOVED.wait(10.0)


@pytest.mark.parametrize(("workers", "backend"), [(1, "sequential"), (1, "loky"), (3, "threading"), (2, "loky")])
def test_results_come_in_the_order_of_replications(workers, backend):
    assert replicate(number_of, 50, workers=workers, backend=backend) == list(range(50))


def test_a_bar_moves_while_replications_run(monkeypatch):
    moves_under(monkeypatch, "threading")


def test_a_bar_moves_while_a_dask_cluster_works(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs the package distributed")
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        moves_under(monkeypatch, "dask")


def moves_under(monkeypatch, backend):
    shown = parallel._shown

    def moving(done, total, title):
        for chunk in shown(done, total, title):
            MOVED.set()
            yield chunk

    MOVED.clear()
    monkeypatch.setattr(parallel, "_shown", moving)
    assert all(replicate(last_one_waits, LAST + 1, workers=2, backend=backend))


def test_a_cluster_that_is_not_there_is_said_not_to_be(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs the package distributed")
    monkeypatch.setattr(parallel, "CONNECT_SECONDS", 0.2)
    with pytest.raises(Unavailable, match=r"no Dask scheduler answers at tcp://127.0.0.1:1"), dask_cluster("tcp://127.0.0.1:1"):
        pass
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match="no Dask scheduler answers"), dask_cluster(address):
            pass
    with pytest.raises(InvalidArgument, match=r"an address like tcp://HOST:PORT is allowed"), dask_cluster("carrier pigeon"):
        pass
    with distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=None) as idle:  # noqa: SIM117
        with pytest.raises(Unavailable, match="has no worker"), dask_cluster(idle.scheduler_address):
            pass


def test_without_a_cluster_dask_is_no_backend():
    pytest.importorskip("distributed", reason="needs the package distributed")
    with pytest.raises(InvalidArgument, match="that is ready, is allowed"):
        replicate(number_of, 2, backend="dask")


def test_tasks_are_made_as_they_are_needed(monkeypatch):
    """A mistyped number of replications begins to work at once, and can be interrupted, instead of filling the memory with tasks."""
    monkeypatch.setattr(parallel, "CHUNKS_PER_WORKER", 10**12)

    def fails(seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replicate(fails, 10**11, backend="sequential")
