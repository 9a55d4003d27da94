"""A store of each kind, and rows to put into it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from allocator.core.audit import AuditEntry
from allocator.core.record import Cell, Record
from allocator.ports import Contribution, ExposureRow, OutcomeRow, Store
from allocator.stores.memory import MemoryStore
from allocator.stores.redis import RedisStore
from allocator.stores.sqlite import SqliteStore
from tests.conftest import SeededEntropy, two_arms
from tests.redis_servers import Node

UID = "0123456789abcdef"
OTHER = "fedcba9876543210"
CLICK, ERROR = 0, 1  # bits of two metrics


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[Node]:
    """One server for the whole session; each store in it has a prefix of its own."""
    with Node(tmp_path_factory.mktemp("redis")) as server:
        yield server


_prefixes = count()


def new_url(server: Node, **options: object) -> str:
    """The URL of a new, empty store in this server."""
    return f"{server.url}?prefix=test-{next(_prefixes)}" + "".join(f"&{name}={value}" for name, value in options.items())


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make_store(request, tmp_path, clock) -> Iterator[Callable[[], Store]]:
    """Makes a new, empty store of one kind at each call, and closes them all."""
    made: list[Store] = []
    numbers = count()

    def make() -> Store:
        if request.param == "memory":
            made.append(MemoryStore(SeededEntropy(), clock))
        elif request.param == "redis":
            made.append(RedisStore(new_url(request.getfixturevalue("redis_server"), timeout_ms=5000), SeededEntropy()))
        else:
            made.append(SqliteStore(tmp_path / f"{next(numbers)}.db", SeededEntropy(), clock))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store) -> Store:
    return make_store()


@pytest.fixture
def peer(store) -> Iterator[Store]:
    """The same data, as another server has it."""
    if isinstance(store, SqliteStore):
        pytest.skip("one process has the file")
    if isinstance(store, RedisStore):
        with contextlib.closing(RedisStore(store.url)) as other:
            yield other
    else:
        yield store


@pytest.fixture
def pass_time(store, clock, request) -> Callable[[float], None]:
    """Lets time pass for the terms of `store`."""
    if not isinstance(store, RedisStore):
        return clock.pass_

    def pass_(seconds: float) -> None:
        """The server has its own clock: the end of the term comes nearer."""
        leader = f"{{{store.address.prefix}}}:leader"
        with request.getfixturevalue("redis_server").client() as client:
            left = client.pttl(leader) - int(seconds * 1e3)
            if left > 0:
                client.pexpire(leader, left)
            else:
                client.delete(leader)

    return pass_


def nonce(number: int) -> bytes:
    return number.to_bytes(8, "big")


def cell(bucket: int = 10, total: int = 1_000_000, *, arm: int = 1, segment: int = 0, stream: str = "_reward") -> Cell:
    return Cell(bucket, arm, segment, stream, 1, total, 3, 5)


def outcome(number: int, bucket: int = 10, metrics: tuple[int, ...] = (CLICK,), *, uid: str = UID, total: int = 1_000_000) -> OutcomeRow:
    """An outcome with one contribution for each metric, to the stream `m<metric>`."""
    contributions = tuple(Contribution(metric, cell(bucket, total, stream=f"m{metric}")) for metric in metrics)
    return OutcomeRow(uid, nonce(number), bucket, sum(1 << metric for metric in metrics), contributions)


def exposure(bucket: int = 10, decisions: int = 1, *, uid: str = UID) -> ExposureRow:
    return ExposureRow(uid, Cell(bucket, 1, 0, "_exposures", decisions, decisions * 32_768, 0, 0))


def record(name: str = "ranker", version: int = 1, *, uid: str = UID, **changes: Any) -> Record:
    return Record(uid=uid, experiment=two_arms(name=name), salt=b"\x00salt\xff", version=version, **changes)


def entry(action: str = "apply", name: str = "default/ranker", seconds: float = 1_800_000_000.123456) -> AuditEntry:
    return AuditEntry(seconds, "ann", action, name, "because", "{}", '{"a": 1}')


def sums(cells: list[Cell]) -> dict[tuple, tuple[int, int, int, int]]:
    """Cells by their key; each key once."""
    found = {found[:4]: found[4:] for found in cells}
    assert len(found) == len(cells)
    return found
