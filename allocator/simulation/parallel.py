"""Replications side by side: a function of one seed in, its results in order out, the same for any number of workers.

The seed of replication i is child i of the root `numpy.random.SeedSequence`, so it depends on nothing but the root and i. joblib carries
the work: its backends (`loky` processes, `threading` for kernels that let go of the interpreter, `sequential`, `dask` inside of
`dask_cluster`, and what else is registered with it, as Ray's) differ in where it runs, never in what comes out. Replications travel in
chunks, because a task that takes a millisecond would cost more to send than to run.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import numpy as np
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import get_active_backend

from allocator.errors import InvalidArgument, Unavailable, Violation

Seed = np.random.SeedSequence
RandomState = int | Seed | np.random.Generator | None
T = TypeVar("T")

CHUNKS_PER_WORKER = 8
LEAST_BAR = 2  # a single task needs no bar
CONNECT_SECONDS = 10


def root_seed(random_state: RandomState) -> Seed:
    """The root of all seeds. An int or a SeedSequence gives the same one each time; a Generator its next child; None fresh entropy.

    Raises InvalidArgument for anything else.
    """
    if isinstance(random_state, np.random.Generator):
        return random_state.bit_generator.seed_seq.spawn(1)[0]
    if isinstance(random_state, Seed):
        return random_state
    if random_state is None or (isinstance(random_state, int | np.integer) and not isinstance(random_state, bool) and random_state >= 0):
        return Seed(None if random_state is None else int(random_state))
    raise InvalidArgument.of_field(
        "random_state", f"got {random_state!r}; an integer of at least 0, a SeedSequence, a Generator or None is allowed"
    )


def child(root: Seed, index: int) -> Seed:
    """Child `index` of the root, as its `spawn` would make it, whatever was spawned before."""
    return Seed(root.entropy, spawn_key=(*root.spawn_key, index), pool_size=root.pool_size)


def key_of(seed: Seed) -> np.ndarray:
    """The key of a world's Philox numbers: uint64 (2,) below 2^32."""
    return seed.generate_state(2, np.uint32).astype(np.uint64)


def replicate(
    function: Callable[[Seed], T],
    replications: int,
    random_state: RandomState = 0,
    *,
    workers: int = 1,
    backend: str = "loky",
    title: str = "",
) -> list[T]:
    """`function` of each replication's seed, in the order of replications.

    function: can be pickled (for `loky` and clusters). workers: at least 1, or -1 for one a core. title: of a progress bar, which only a
    terminal gets to see; "" for none. Raises InvalidArgument, and whatever `function` raises.
    """
    found = []
    if not (isinstance(replications, int) and replications >= 1):
        found.append(Violation("replications", f"got {replications!r}; a whole number of at least 1 is allowed"))
    if not (isinstance(workers, int) and (workers >= 1 or workers == -1)):
        found.append(Violation("workers", f"got {workers!r}; a whole number of at least 1, or -1 for all cores, is allowed"))
    if found:
        raise InvalidArgument(violations=found)
    root = root_seed(random_state)
    with _carried(backend, workers):
        carrier = get_active_backend()[0]
        size = max(1, -(-replications // (carrier.effective_n_jobs(workers) * CHUNKS_PER_WORKER)))
        starts = range(0, replications, size)
        tasks = (delayed(_chunk)(function, root, range(start, min(start + size, replications))) for start in starts)
        # a backend that hands over everything at once, as Ray's, has a bar that moves at the end
        done = Parallel(return_as="generator" if carrier.supports_return_generator else "list")(tasks)
        return list(chain.from_iterable(_shown(done, len(starts), title)))


@contextmanager
def dask_cluster(scheduler: str = "", workers: int = 1) -> Iterator[None]:
    """Connect to a Dask cluster, which `replicate` with backend "dask" finds while the block runs.

    scheduler: its address (tcp://HOST:PORT); its workers need this package installed. "": a cluster of `workers` processes (-1: one a
    core) on this machine, gone with the block. Raises ModuleNotFoundError without the package distributed, InvalidArgument for what is no
    address, and Unavailable when nobody answers there or works there.
    """
    from distributed import Client, LocalCluster

    if not scheduler:
        count = None if workers == -1 else workers
        with LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
            yield
        return
    _greet(scheduler)
    with Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False) as client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as exc:
            raise Unavailable(f"the Dask scheduler at {scheduler} has no worker") from exc
        with client.as_current():
            yield


def _greet(scheduler: str) -> None:
    """Connect and hang up: a client that fails to be built cannot be closed, and may hang when it is collected."""
    from distributed.comm import connect

    async def call() -> None:
        comm = await asyncio.wait_for(connect(scheduler, timeout=CONNECT_SECONDS), CONNECT_SECONDS)  # it greets without a timeout
        comm.abort()

    try:
        with ThreadPoolExecutor(1) as apart:  # from whoever runs a loop already, as notebooks do
            apart.submit(asyncio.run, call()).result()
    except ValueError as exc:
        raise InvalidArgument.of_field("scheduler", f"got {scheduler!r}; an address like tcp://HOST:PORT is allowed") from exc
    except OSError as exc:
        raise Unavailable(f"no Dask scheduler answers at {scheduler}") from exc
    except Exception as exc:  # of whatever was made of another protocol's bytes
        raise Unavailable(f"what answers at {scheduler} is no Dask scheduler") from exc


def _carried(backend: str, workers: int) -> parallel_config:
    """joblib, told what carries the work."""
    what = f"got {backend!r}; loky, threading, sequential, or another that joblib knows and that is ready, is allowed"
    if not isinstance(backend, str):
        raise InvalidArgument.of_field("backend", what)
    try:
        return parallel_config(backend=backend, n_jobs=workers)
    except (ValueError, ImportError) as exc:
        raise InvalidArgument.of_field("backend", f"{what} ({' '.join(str(exc).split())})") from exc


def _chunk(function: Callable[[Seed], T], root: Seed, indices: Sequence[int]) -> list[T]:
    return [function(child(root, index)) for index in indices]


def _shown(done, total: int, title: str):
    """The chunks, counted by a bar on stderr where somebody looks."""
    if not title or total < LEAST_BAR or not sys.stderr.isatty():
        yield from done
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(done, total=total, description=title)
