"""The Redis store behind Sentinels and over a Cluster: what differs from one server. Real servers that are killed, paused and reshaped.

What is lost when a failover picks a replica that lagged is Redis' own affair without `wait`; with `wait=1` nothing acknowledged may be.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator

import pytest

from allocator.core.audit import first_broken
from allocator.errors import Unavailable
from allocator.ports import Counted, Save
from allocator.stores.redis import RedisStore
from allocator.stores.redis.address import parse
from allocator.stores.redis.keys import Keys
from tests.redis_servers import Cluster, Sentinels, until
from tests.stores.conftest import OTHER, UID, entry, exposure, outcome, record, sums
from tests.stores.test_redis import exercise

ACCEPTED, DUPLICATE = Counted.ACCEPTED, Counted.DUPLICATE


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory) -> Iterator[Sentinels]:
    with Sentinels(tmp_path_factory.mktemp("sentinels")) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def two(request) -> Iterator[tuple[RedisStore, RedisStore]]:
    """Two servers' objects of one store behind the Sentinels or over the Cluster, whichever the test names."""
    kind = "cluster" if "cluster" in request.fixturenames else "sentinels"
    url = f"{request.getfixturevalue(kind).url}?prefix={re.sub('[^a-z_]', '', request.node.name)[-60:]}&timeout_ms=1000"
    if kind == "sentinels":
        # Of a dead master, the replica that knows most takes over: one is enough. A master that is told to hand over takes writes
        # meanwhile, and the one replica that acknowledges them may be the other.
        url += f"&wait={2 if 'failover]' in request.node.name else 1}&wait_ms=1000"
    with contextlib.closing(RedisStore(url)) as store, contextlib.closing(RedisStore(url)) as other:
        until(lambda: store.secret(), "the store answers")
        yield store, other


def ingest(store: RedisStore, first: int, count: int) -> None:
    """Report outcomes one by one as a client would: what was not acknowledged is sent again until it is."""
    for number in range(first, first + count):
        until(lambda number=number: store.add([outcome(number)], []), "the outcome is acknowledged")


# Sentinels


@pytest.mark.parametrize("fault", ["kill", "pause", pytest.param("failover", marks=pytest.mark.slow)])
def test_acknowledged_outcomes_survive_a_failover_and_count_once(sentinels, two, fault):
    store, other = two
    store.save([Save(record(), None, (entry("before"),))])
    done = threading.Event()
    counted = []

    def report() -> None:
        number = 0
        while not done.is_set():
            ingest(store, number, 1)
            number += 1
            counted.append(number)

    reporter = threading.Thread(target=report)
    reporter.start()
    until(lambda: len(counted) > 50, "outcomes are counted")
    before = sentinels.master()
    if fault == "failover":
        sentinels.failover()
    else:
        getattr(before, fault)()
        sentinels.wait_for_another(before)
    at_failover = len(counted)
    until(lambda: len(counted) > at_failover + 50, "outcomes are counted again")
    done.set()
    reporter.join()
    sentinels.rejoin(before)
    assert set(store.add([outcome(number) for number in range(len(counted))])) == {DUPLICATE}
    assert sums(other.cells(UID))[10, 1, 0, "m0"][0] == len(counted)
    assert [found.entry.action for found in other.audit()] == ["before"]


def test_an_answer_waits_for_a_replica_and_sending_again_counts_once(sentinels, two):
    store, other = two
    store.add([outcome(1)])
    replicas = [node for node in sentinels.data if node is not sentinels.master()]
    for node in replicas:
        node.pause()
    try:
        with pytest.raises(Unavailable) as caught:
            store.add([outcome(2)], [exposure(decisions=5)])
        assert caught.value.reason == "NOT_REPLICATED"
        with pytest.raises(Unavailable):
            store.grant(UID, 1, "requests", 5, 10)
    finally:
        for node in replicas:
            node.resume()
    until(lambda: store.add([outcome(2)], [exposure(decisions=5)]) == [DUPLICATE], "a replica acknowledges")
    assert {key[3]: values[0] for key, values in sums(other.cells(UID)).items()} == {"m0": 2, "_exposures": 5}
    assert other.granted(UID) == {}  # nothing was set aside that nobody may spend


def test_sentinels_that_are_partly_gone_still_name_the_master(sentinels, two):
    url = sentinels.url.replace("sentinel://", "sentinel://127.0.0.1:1,")
    with contextlib.closing(RedisStore(f"{url}?prefix=partly")) as store:
        assert store.add([outcome(1)]) == [ACCEPTED]


# A Cluster


def test_every_step_works_over_a_cluster_and_experiments_spread(cluster, two):
    store, other = two
    exercise(store, other)
    homes = {cluster.of_key(Keys(store.address.prefix).of(f"{number:016x}", "meta")).port for number in range(20)}
    assert len(homes) == 3
    assert parse(store.url).kind == "redis+cluster"


def test_who_listens_hears_over_a_cluster(cluster, two):
    store, other = two
    called = threading.Event()
    store.listen(called.set)
    for uid in (f"{number:016x}" for number in range(8)):
        called.clear()
        other.add([outcome(1, uid=uid)])
        assert called.wait(5)


def test_a_slot_that_moves_is_followed_while_it_moves_and_afterwards(cluster, two):
    store, _ = two
    store.save([Save(record(), None)])
    store.add([outcome(1)])
    key = Keys(store.address.prefix).of(OTHER, "meta")
    slot = int(cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key))
    source = cluster.of_key(key)
    target = next(node for node in cluster.nodes if node is not source)
    source_id, target_id = source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID")
    try:
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        assert store.cells(OTHER) == []  # the source has no such key, and sends to the target
        with pytest.raises(Unavailable, match="moving"):  # a server refuses steps over several keys meanwhile
            store.add([outcome(1, uid=OTHER)])
        assert store.add([outcome(2)]) == [ACCEPTED]  # the others are not touched
        for node in cluster.nodes:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        assert store.add([outcome(1, uid=OTHER), outcome(2, uid=OTHER), outcome(1)]) == [ACCEPTED, ACCEPTED, DUPLICATE]
        assert sums(store.cells(OTHER))[10, 1, 0, "m0"][0] == 2
    finally:
        for found in target.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            target.ask("DEL", found)
        for node in cluster.nodes:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", source_id)


def test_a_cluster_that_is_down_answers_unavailable_and_comes_back(cluster, two):
    store, other = two
    store.save([Save(record(), None, (entry("before"),))])
    store.add([outcome(1)])
    gone = cluster.of_key(Keys(store.address.prefix).of(UID, "meta"))
    gone.kill()
    left = next(node for node in cluster.nodes if node is not gone)
    until(lambda: "cluster_state:fail" in str(left.ask("CLUSTER", "INFO")), "the Cluster is down")
    for call in (
        lambda: store.add([outcome(2)]),
        lambda: store.add([outcome(2, uid=OTHER)]),
        lambda: store.save([Save(record(version=2), 1, (entry("during"),))]),
        lambda: store.records(),
    ):
        with pytest.raises(Unavailable):
            call()
    gone.start()
    cluster.wait_until_whole()
    until(lambda: store.add([outcome(1), outcome(2)]) in ([DUPLICATE, ACCEPTED], [DUPLICATE, DUPLICATE]), "the store answers again")
    until(lambda: store.save([Save(record(version=2), 1, (entry("after"),))])[0] is None, "a save goes through")
    until(lambda: len(other.audit()) == 2, "its audit is there")
    assert first_broken(other.audit()) == 0


def test_a_cluster_without_one_server_refuses_its_experiments_alone(tmp_path):
    with Cluster(tmp_path, cluster_require_full_coverage="no") as cluster, contextlib.closing(RedisStore(cluster.url)) as store:
        keys = Keys("allocator")
        uids = [f"{number:016x}" for number in range(30)]
        store.add([outcome(1, uid=uid) for uid in uids])
        home = cluster.of_key(keys.common("store"))
        gone = next(node for node in cluster.nodes if node is not home)
        there = [uid for uid in uids if cluster.of_key(keys.of(uid, "meta")) is gone]
        here = [uid for uid in uids if uid not in there]
        gone.kill()
        with pytest.raises(Unavailable):
            store.add([outcome(2, uid=uid) for uid in uids])
        assert set(store.add([outcome(2, uid=uid) for uid in here])) == {DUPLICATE}  # those had been counted
        saves = [Save(record(f"e{uid}", uid=uid), None) for uid in (here[0], there[0])]
        assert [type(answer) for answer in store.save(saves)] == [type(None), Unavailable]
        assert store.cells(here[0])
        gone.start()
        cluster.wait_until_whole()
        until(lambda: store.add([outcome(2, uid=uid) for uid in there]), "the server is found again")
        assert all(len(store.cells(uid)) == 1 and store.cells(uid)[0].count == 2 for uid in uids)
