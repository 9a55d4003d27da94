"""What the Redis store does beyond the contract, over one real server: faults of the line, crashes between two steps, lost data, terms.

The expectations are those of `ports.Store` and of the README's section on Redis. Where a reply is to be lost, a TCP proxy cuts it; a crash
between two steps is a store object of which the second step never comes.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from allocator.core.audit import first_broken
from allocator.core.lifecycle import State, Status
from allocator.core.record import Cell
from allocator.errors import AlreadyExists, Conflict, Overloaded, Unavailable
from allocator.ports import Contribution, Counted, OutcomeRow, Save, Settle
from allocator.stores.redis import RedisStore, link, saving
from allocator.stores.redis.link import Breaker, Call, Link
from tests.faults.proxy import Proxy
from tests.redis_servers import Node, until
from tests.stores.conftest import OTHER, UID, entry, exposure, new_url, nonce, outcome, record, sums

ACCEPTED, DUPLICATE = Counted.ACCEPTED, Counted.DUPLICATE
Open = Callable[[str], RedisStore]


@pytest.fixture
def open_() -> Iterator[Open]:
    """Opens a store at a URL, and closes it in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda url: stack.enter_context(contextlib.closing(RedisStore(url)))


@pytest.fixture
def url(redis_server) -> str:
    return new_url(redis_server, timeout_ms=5000)


@pytest.fixture
def two(open_, url) -> tuple[RedisStore, RedisStore]:
    """Two servers' objects of one store."""
    return open_(url), open_(url)


@pytest.fixture
def proxy(redis_server) -> Iterator[Proxy]:
    with Proxy(redis_server.address) as found:
        yield found


def through(proxy: Proxy, url: str, **options: object) -> str:
    """The same store, reached through the proxy."""
    return re.sub(r"//[^?]*", f"//{proxy.address}", url) + "".join(f"&{name}={value}" for name, value in options.items())


def keys_of(server: Node, store: RedisStore, pattern: str = "*") -> list[str]:
    return sorted(server.ask("KEYS", f"{{{store.address.prefix}*{pattern}"))


def erase(server: Node, store: RedisStore, pattern: str = "*") -> None:
    server.ask("DEL", *keys_of(server, store, pattern))


class Died(BaseException):
    """The end of a process, as far as a store object is concerned."""


# The line


def test_an_outcome_whose_reply_was_lost_counts_once(open_, url, proxy):
    store = open_(through(proxy, url))
    store.add([outcome(0)])
    for number in range(1, 4):
        proxy.cut_replies()
        with pytest.raises(Unavailable) as caught:
            store.add([outcome(number)])
        assert caught.value.reason == "STORE_UNREACHABLE"
        proxy.heal()
        until(lambda number=number: _is(store.add, [outcome(number)], [DUPLICATE]), "the store answers again")
    assert sums(store.cells(UID)) == {(10, 1, 0, "m0"): (4, 4_000_000, 12, 20)}


def test_exposures_whose_reply_was_lost_count_once(open_, url, proxy):
    store = open_(through(proxy, url))
    store.add([], [exposure(decisions=1)])
    proxy.cut_replies()
    assert store.add([], [exposure(decisions=10)]) == []  # from now on the store's to deliver
    proxy.heal()
    until(lambda: _is(store.add, [outcome(1)], [ACCEPTED], [DUPLICATE]), "the store answers again")
    store.add([], [exposure(decisions=100)])
    assert sums(store.cells(UID))[10, 1, 0, "_exposures"] == (111, 111 * 32_768, 0, 0)


def test_exposures_that_came_with_refused_outcomes_are_still_the_callers(open_, url, proxy):
    store = open_(through(proxy, url))
    store.add([outcome(0)])
    proxy.cut_replies()
    with pytest.raises(Unavailable):
        store.add([outcome(1)], [exposure(decisions=10)])
    with pytest.raises(Unavailable):
        store.add([], [exposure(decisions=10)])  # the breaker is open: nothing is sent
    proxy.heal()
    until(lambda: _is(store.add, [outcome(1)], [DUPLICATE]), "the store answers again")
    assert (10, 1, 0, "_exposures") not in sums(store.cells(UID))


def test_exposures_of_a_store_that_closes_are_sent_before(open_, url, proxy):
    store = open_(through(proxy, url))
    store.secret()
    proxy.cut_replies()
    store.add([], [exposure(decisions=10)])
    proxy.heal()
    until(lambda: store.news(0), "the store answers again")
    store.close()
    assert sums(open_(url).cells(UID)) == {(10, 1, 0, "_exposures"): (10, 10 * 32_768, 0, 0)}


def test_a_server_that_failed_is_left_alone_but_for_a_probe_at_a_time(open_, url, proxy, monkeypatch):
    store = open_(through(proxy, url, timeout_ms=100).replace("timeout_ms=5000&", "").replace("&timeout_ms=5000", ""))
    store.add([outcome(0)])
    failed: list[object] = []
    fail = Breaker.fail
    monkeypatch.setattr(Breaker, "fail", lambda breaker, why=None: failed.append(breaker) or fail(breaker, why))
    proxy.black_hole()

    def attempt(number: int) -> str:
        with pytest.raises(Unavailable) as caught:
            store.add([outcome(number)])
        return caught.value.reason

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(attempt, range(1000))) == {"STORE_UNREACHABLE"}
    assert len(failed) < 40  # went out: 8 that were under way when it began, and probes
    proxy.heal()
    until(lambda: _is(store.add, [outcome(1)], [ACCEPTED]), "the store answers again")


def test_a_store_object_needs_no_server_to_begin_with(open_, tmp_path):
    with Node(tmp_path / "a") as server:
        url = server.url
        server.kill()
        store = open_(url)
        for call in (store.secret, store.records, lambda: store.add([outcome(1)]), lambda: store.save([Save(record(), None)])):
            with pytest.raises(Unavailable) as caught:
                call()
            assert caught.value.reason == "STORE_UNREACHABLE"
        server.start()
        until(lambda: _is(store.add, [outcome(1)], [ACCEPTED]), "the store answers")


def test_flushed_scripts_are_loaded_again_and_the_call_goes_through(open_, url, redis_server):
    store = open_(url)
    assert store.add([outcome(1)]) == [ACCEPTED]
    redis_server.ask("SCRIPT", "FLUSH")
    assert store.add([outcome(1), outcome(2)]) == [DUPLICATE, ACCEPTED]
    redis_server.ask("SCRIPT", "FLUSH")
    assert store.save([Save(record(), None), Save(record(version=2), 1)]) == [None, None]


def test_a_listener_hears_again_after_the_line_broke(open_, url, proxy):
    listening, telling = open_(through(proxy, url)), open_(url)
    called = _Counter()
    listening.listen(called)
    telling.add([outcome(1)])
    until(lambda: called.count, "the listener is called")
    proxy.reset()
    until(lambda: called.count > 1, "the listener is called after the gap")
    before = called.count
    telling.add([outcome(2)])
    until(lambda: called.count > before, "the listener hears")


def test_a_loss_is_told_though_another_thread_has_noted_the_change_meanwhile(two, monkeypatch):
    store, other = two
    called = _Counter()
    other.listen(called)
    store.add([outcome(9, total=0)])
    counting = store._counting
    announce = counting.announce

    def later(changes, *, urgent=False):
        monkeypatch.setattr(counting, "announce", announce)
        store.add([outcome(2)._replace(contributions=())])
        announce(changes, urgent=urgent)

    monkeypatch.setattr(counting, "announce", later)
    store.add([outcome(1)])
    until(lambda: called.count, "the listener is called")


def test_a_store_does_not_hear_itself(open_, two):
    store, other = two
    called = _Counter()
    store.listen(called)
    store.add([outcome(1)])
    other.add([outcome(2)])
    until(lambda: called.count, "the listener is called")
    assert called.count == 1


@pytest.fixture
def three_sentinels(monkeypatch) -> Iterator[Callable[[Callable[[], dict]], link.Sentinels]]:
    """Three Sentinels, each of which answers what a function says; let go at the end."""

    def make(answer: Callable[[], dict]) -> link.Sentinels:
        monkeypatch.setattr(redis.Redis, "sentinel_masters", lambda _: answer())
        return link.Sentinels([("127.0.0.1", port) for port in (1, 2, 3)], sentinel_kwargs={"socket_timeout": 0.05})

    return make


def master(**state: object) -> dict:
    alive = {"is_master": True, "is_sdown": False, "is_odown": False, "num-other-sentinels": 2}
    return {"m": {"ip": "10.0.0.1", "port": 6379, **alive, **state}}


def test_all_sentinels_are_asked_at_once(three_sentinels):
    together = threading.Barrier(3)

    def answer() -> dict:
        together.wait(20)  # none answers before all were asked
        return master()

    sentinels = three_sentinels(answer)
    sentinels.sentinel_kwargs["socket_timeout"] = 20
    assert sentinels.discover_master("m") == ("10.0.0.1", 6379)


def test_silent_sentinels_cost_one_timeout_and_one_that_answers_is_enough(three_sentinels):
    end = threading.Event()
    try:
        with pytest.raises(redis.ConnectionError, match="3 of 3 Sentinels are silent"):
            three_sentinels(lambda: end.wait() and {}).discover_master("m")
        first = iter([master()])
        sentinels = three_sentinels(lambda: next(first, None) or (end.wait() and {}))
        sentinels.sentinel_kwargs["socket_timeout"] = 20
        assert sentinels.discover_master("m") == ("10.0.0.1", 6379)
    finally:
        end.set()


@pytest.mark.parametrize("state", [{"is_sdown": True}, {"is_odown": True}, {"is_master": False}], ids=str)
def test_a_master_that_is_down_or_none_is_not_taken_from_a_sentinel(three_sentinels, state):
    with pytest.raises(redis.ConnectionError, match="knows no master 'm' in force"):
        three_sentinels(lambda: master(**state)).discover_master("m")


# The server's settings


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_refused_until_it_does_not(open_, tmp_path, policy):
    with Node(tmp_path, maxmemory_policy=policy) as server:
        store = open_(server.url)
        with pytest.raises(Unavailable, match=f"maxmemory-policy {policy}") as caught:
            store.add([outcome(1)])
        assert caught.value.reason == "STORE_EVICTS"
        assert server.ask("DBSIZE") == 0
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        until(lambda: _is(store.add, [outcome(1)], [ACCEPTED]), "the store is taken")


def test_an_evicting_policy_that_is_set_while_the_store_is_in_use_is_noticed_at_a_look_and_said_to_everybody(open_, tmp_path, monkeypatch):
    monkeypatch.setattr(link, "INSPECT_SECONDS", 0.0)
    with Node(tmp_path) as server:
        store = open_(server.url)
        assert store.add([outcome(1)]) == [ACCEPTED]
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        for call in (lambda: store.news(0), *[lambda: store.add([outcome(2)]), lambda: store.records()] * 3):
            with pytest.raises(Unavailable, match=r"maxmemory-policy allkeys-lru.*set noeviction") as caught:
                call()
            assert (caught.value.reason, caught.value.metadata) == ("STORE_EVICTS", {"policy": "allkeys-lru"})
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        until(lambda: _is(store.add, [outcome(2)], [ACCEPTED]), "the store is taken again")


def test_a_look_at_the_settings_costs_a_question_every_few_seconds_and_warns_once(open_, tmp_path, monkeypatch, caplog):
    inspected: list[str] = []
    judge = Link._judge
    monkeypatch.setattr(Link, "_judge", lambda link, place, *found: inspected.append(place) or judge(link, place, *found))
    with Node(tmp_path, appendonly="no") as server, caplog.at_level(logging.WARNING):
        store = open_(server.url)
        for number in range(20):
            store.news(0)
            store.add([outcome(number)])
        assert len(inspected) == 1
        monkeypatch.setattr(link, "INSPECT_SECONDS", 0.0)
        for number in range(20, 40):
            store.add([outcome(number)])
        assert len(inspected) == 1, "those that somebody waits for never ask"
        for _ in range(3):
            store.news(0)
        assert len(inspected) == 4
        assert caplog.text.count("does not append to a file") == 1


def test_a_server_that_comes_back_evicting_is_refused_before_it_is_used(open_, tmp_path):
    with Node(tmp_path) as server:
        store = open_(server.url)
        store.add([outcome(1)])
        server.kill()
        server.options["maxmemory-policy"] = "allkeys-lru"
        server.start()
        for number in range(2, 50):  # the first finds its connection dead, and another server behind the next
            with pytest.raises(Unavailable) as caught:
                store.add([outcome(number)])
            assert caught.value.reason == "STORE_EVICTS"
        assert [server.ask("HLEN", key) for key in keys_of(server, store, ":seen:*")] == [1]


def test_a_server_that_was_started_again_between_two_calls_counts_as_an_outage(open_, tmp_path):
    """redis-py connects again by itself: no call fails, and yet the server may have come back as it was an hour ago."""
    with Node(tmp_path) as server:
        store = open_(server.url)
        store.save([Save(record(), None)])
        mark = store.news(0).mark
        assert store.news(mark).names == ()
        server.restart()
        store.news(mark)
        assert store.news(mark).names == ("default/ranker",), "after an outage everything is compared"


def test_the_policy_is_found_where_config_is_forbidden(open_, tmp_path):
    with Node(tmp_path, maxmemory_policy="allkeys-lru") as server:
        server.ask("ACL", "SETUSER", "default", "-config")
        with pytest.raises(Unavailable) as caught:
            open_(server.url).secret()
        assert caught.value.reason == "STORE_EVICTS"


@pytest.mark.parametrize("append", ["yes", "no"])
def test_a_server_that_keeps_nothing_on_disk_is_warned_of(open_, tmp_path, caplog, append):
    with Node(tmp_path, appendonly=append) as server, caplog.at_level(logging.WARNING):
        open_(server.url).secret()
        assert ("does not append to a file" in caplog.text) == (append == "no")


def test_a_full_server_refuses_outcomes_and_budgets_takes_saves_and_terms_and_recovers_by_itself(open_, tmp_path):
    with Node(tmp_path) as server:
        needs_flags(server)
        store, other = open_(server.url), open_(server.url)
        store.add([outcome(1)])
        assert store.save([Save(record(), None)]) == [None]
        term = store.lead("store", 60)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for call in (lambda: store.add([outcome(2)]), lambda: store.grant(UID, 1, "requests", 1, 1)):
            with pytest.raises(Overloaded) as caught:
                call()
            assert caught.value.reason == "STORE_FULL"
        assert len(store.cells(UID)) == 1  # reading goes on
        beat = other.news(0).beat
        assert store.lead("store", 60) == term
        assert other.news(0).beat > beat
        assert store.save([Save(record(version=2, status=Status(State.FROZEN)), 1, (entry("freeze"),))]) == [None]
        store.put("token", "ann", "1")
        store.resign("store")
        later = other.lead("other", 60)
        assert later > term
        assert store.save([Save(record(version=3), 2)], term)[0].reason == "STALE_TERM"
        assert other.save([Save(record(version=3, status=Status(State.FROZEN)), 2, settle=Settle(10))], later) == [None]
        assert [found.entry.action for found in other.audit()] == ["freeze"]
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert store.add([outcome(2, bucket=11)]) == [ACCEPTED]


def needs_flags(server: Node) -> None:
    """Redis 7 or Valkey."""
    version = server.ask("INFO", "server")["redis_version"]
    if int(str(version).split(".")[0]) < 7:
        pytest.skip(f"Redis {version} knows no flags of scripts")


def test_a_server_that_knows_no_flags_of_scripts_gets_them_without(open_, tmp_path, monkeypatch):
    """As Redis before 7 does: it takes the first line for Lua. Then a full one refuses saves and terms as well."""
    read = link.read_scripts
    monkeypatch.setattr(link, "read_scripts", lambda **how: {name: text.replace(b"#!lua", b"#!old") for name, text in read(**how).items()})
    with Node(tmp_path) as server:
        store, other = open_(server.url), open_(server.url)
        exercise(store, other)
        server.ask("SCRIPT", "FLUSH")
        assert store.save([Save(record("late"), None)]) == [None]
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for call in (lambda: store.save([Save(record("later"), None)]), lambda: store.lead("store", 60)):
            with pytest.raises(Overloaded) as caught:
                call()
            assert caught.value.reason == "STORE_FULL"
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert store.lead("store", 60)


def test_exposures_that_a_full_server_refused_are_counted_once_when_there_is_room(open_, tmp_path, caplog):
    with Node(tmp_path) as server, caplog.at_level(logging.INFO):
        store = open_(server.url)
        store.add([], [exposure(decisions=1), exposure(decisions=2, uid=OTHER)])
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for _ in range(3):
            store.add([], [exposure(decisions=10), exposure(decisions=20, uid=OTHER)])
        assert "did not get through" in caplog.text
        assert "dropped" not in caplog.text
        server.ask("CONFIG", "SET", "maxmemory", "0")
        store.add([], [exposure(decisions=100)])
        store.changed(0)
        assert sums(store.cells(UID))[10, 1, 0, "_exposures"][0] == 131
        assert sums(store.cells(OTHER))[10, 1, 0, "_exposures"][0] == 62
        assert "are counted" in caplog.text


def test_exposures_that_would_not_fit_into_a_sum_are_dropped_with_a_word_and_hold_up_no_others(open_, url, caplog):
    store = open_(url)
    big = exposure()._replace(cell=Cell(10, 1, 0, "r", 1, 2**62, 0, 0))
    store.add([], [big])
    with caplog.at_level(logging.ERROR):
        store.add([], [big])
        store.add([], [exposure(decisions=1)])
    assert "are dropped" in caplog.text
    assert sums(store.cells(UID)) == {(10, 1, 0, "r"): (1, 2**62, 0, 0), (10, 1, 0, "_exposures"): (1, 32_768, 0, 0)}


def test_keys_of_another_program_are_not_touched(open_, url, redis_server):
    store = open_(url)
    redis_server.ask("SET", f"{{{store.address.prefix}}}:store", "theirs")
    with pytest.raises(Unavailable) as caught:
        store.secret()
    assert caught.value.reason == "STORE_FOREIGN"


def test_a_store_that_asks_for_replicas_that_are_not_there_takes_nothing(open_, redis_server):
    store = open_(new_url(redis_server, wait=1, wait_ms=10))
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            store.add([outcome(1)])
        assert caught.value.reason == "NOT_REPLICATED"
    assert not [key for key in keys_of(redis_server, store) if not key.endswith(":store")]


# Sums and keys


def test_a_sum_beyond_what_a_double_holds_is_exact(open_, url):
    store = open_(url)
    big = 2**53
    store.add([], [exposure(decisions=1), exposure(decisions=0)._replace(cell=Cell(10, 1, 0, "r", 1, big, big + 1, 1))])
    store.add([], [exposure()._replace(cell=Cell(10, 1, 0, "r", 1, 1, 1, 0))])
    store.save([Save(record(), None, settle=Settle(10))])
    assert sums(store.settled(UID))[0, 1, 0, "r"] == (2, big + 1, big + 2, 1)


def test_masks_of_62_metrics_are_exact(open_, url):
    store = open_(url)
    every = (1 << 62) - 1
    row = OutcomeRow(UID, nonce(1), 10, every ^ 1, (Contribution(61, Cell(10, 1, 0, "m61", 1, 1)),))
    assert store.add([row]) == [ACCEPTED]
    assert store.add([row._replace(metrics=every)]) == [ACCEPTED]
    assert store.add([row._replace(metrics=every)]) == [DUPLICATE]
    assert store.cells(UID) == [Cell(10, 1, 0, "m61", 1, 1)]


def test_more_outcomes_than_lua_can_spread_in_one_command_are_counted(open_, url):
    store = open_(url)
    rows = [outcome(number, bucket=number % 2) for number in range(20_000)]
    assert set(store.add(rows)) == {ACCEPTED}
    assert set(store.add(rows)) == {DUPLICATE}
    assert sum(cell.count for cell in store.cells(UID)) == 20_000


def test_masks_of_settled_buckets_are_forgotten(open_, url, redis_server):
    store = open_(url)
    store.add([outcome(number, bucket=number) for number in range(5)])
    assert len(keys_of(redis_server, store, ":seen:*")) == 5
    store.save([Save(record(), None, settle=Settle(3))])
    (left,) = keys_of(redis_server, store, ":seen:*")
    assert left.endswith(":seen:4")


def test_the_keys_of_a_call_share_their_tag(open_, url, monkeypatch):
    calls: list[Call] = []
    run = Link.run
    monkeypatch.setattr(Link, "run", lambda link, some, **options: calls.extend(some) or run(link, some, **options))
    exercise(open_(url), open_(url))
    assert {call.what for call in calls} >= set(read_scripts_but("claim", "cancel"))
    for call in calls:
        assert len({re.search("{(.*?)}", key)[1] for key in call.keys}) == 1, call


def exercise(store: RedisStore, other: RedisStore) -> None:
    """Every method of a store, so that every script but those of mishaps runs."""
    uids = [f"{number:016x}" for number in range(20)]
    store.save([Save(record(f"e{uid}", uid=uid), None, (entry("made", f"default/e{uid}"),)) for uid in uids])
    assert store.add([outcome(1, uid=uid) for uid in uids], [exposure(uid=uid) for uid in uids]) == [ACCEPTED] * 20
    assert other.add([outcome(1, uid=uid) for uid in uids]) == [DUPLICATE] * 20
    assert len(other.records()) == 20
    assert len(other.audit()) == 20
    term = other.lead("other", 60)
    settles = [Save(record(f"e{uid}", version=2, uid=uid), 1, settle=Settle(10)) for uid in uids]
    assert other.save(settles, term) == [None] * 20
    assert store.lead("store", 60) is None
    assert len(store.settled(uids[0])) == 2
    assert store.grant(uids[0], 1, "requests", 5, 3) == 3
    store.put("token", "ann", "1", audit=[entry("put")])
    assert store.items("token") == {"ann": "1"}
    assert len(store.news(0).names) == 20
    assert len(store.changed(0)[1]) == 20
    other.resign("other")
    store.begin(b"k" * 32)
    assert other.add([outcome(2, bucket=11, uid=uid) for uid in uids]) == [ACCEPTED] * 20
    assert first_broken(store.audit()) == 0


def read_scripts_but(*names: str) -> set[str]:
    from allocator.stores.redis.link import read_scripts

    return read_scripts().keys() - set(names)


# Crashes between two steps


def test_a_save_that_was_never_finished_is_news_and_its_audit_is_chained_once(two, monkeypatch):
    dying, other = two
    other.save([Save(record(), None, (entry("before"),))])
    mark = other.news(0).mark
    monkeypatch.setattr(dying._saving, "_finish", _die)
    with pytest.raises(Died):
        dying.save([Save(record(version=2), 1, (entry("last words"),))])
    for _ in range(2):
        assert other.news(mark).names == ("default/ranker",)  # at every look, until it is finished
        assert [found.entry.action for found in other.audit()] == ["before", "last words"]
    monkeypatch.setattr(saving, "SILENT_SECONDS", -1)
    other.news(mark)
    found = other.news(mark)
    assert found.names == ("default/ranker",)
    assert found.mark > mark
    assert other.news(found.mark).names == ()
    other.save([Save(record(version=3), 2, (entry("after"),))])
    records = other.audit()
    assert [found.entry.action for found in records] == ["before", "last words", "after"]
    assert first_broken(records) == 0


def test_news_are_told_while_a_save_that_was_never_finished_cannot_be_finished(two, redis_server, monkeypatch):
    """A full Redis 6, say: whoever looks must hear what else there is, or its lease ends."""
    dying, other = two
    other.save([Save(record("before", uid=OTHER), None)])
    monkeypatch.setattr(dying._saving, "_finish", _die)
    with pytest.raises(Died):
        dying.save([Save(record(), None, (entry("last words"),))])
    monkeypatch.setattr(saving, "SILENT_SECONDS", -1)
    with monkeypatch.context() as refused:

        def full(*_: object) -> None:
            raise Overloaded("the store has no room; nothing was written", reason="STORE_FULL")

        refused.setattr(other._saving, "_chain", full)
        assert other.news(0).names == ("default/before", "default/ranker")
    other.news(0)
    assert [found.entry.action for found in other.audit()] == ["last words"]


def test_entries_left_behind_come_before_those_of_the_next_save(two, monkeypatch):
    dying, other = two
    with monkeypatch.context() as patch:
        patch.setattr(dying._saving, "_finish", _die)
        for version in (1, 2):
            with pytest.raises(Died):
                dying.save([Save(record(version=version), version - 1 or None, (entry(str(version)),))])
    assert other.save([Save(record(version=3), 2, (entry("3"),))]) == [None]
    assert [found.entry.action for found in other.audit()] == ["1", "2", "3"]
    assert first_broken(other.audit()) == 0


def test_the_next_planner_chains_what_a_crash_left_behind(two, monkeypatch, redis_server):
    dying, other = two
    monkeypatch.setattr(dying._saving, "_finish", _die)
    with pytest.raises(Died):
        dying.save([Save(record(), None, (entry("left"),))])
    other.lead("other", 60)
    assert redis_server.ask("HGET", f"{{{other.address.prefix}}}:store", "sequence") == "1"


def test_a_save_that_was_given_up_by_others_is_announced_again_before_it_is_made(two, monkeypatch):
    slow, other = two
    make = slow._saving._make
    paused = []

    def pause(*arguments: object) -> object:
        if not paused:
            paused.append(True)
            with monkeypatch.context() as patch:
                patch.setattr(saving, "SILENT_SECONDS", -1)
                other.news(0)
            assert other.news(0).names == ()
        return make(*arguments)

    monkeypatch.setattr(slow._saving, "_make", pause)
    assert slow.save([Save(record(), None, (entry(),))]) == [None]
    assert other.news(0).names == ("default/ranker",)
    assert len(other.audit()) == 1


def test_a_name_that_was_claimed_and_never_used_is_free(two, monkeypatch):
    dying, other = two
    monkeypatch.setattr(dying._saving, "_make", _die)
    with pytest.raises(Died):
        dying.save([Save(record(uid=UID), None)])
    assert other.record("default/ranker") is None
    assert other.save([Save(record(uid=OTHER), None)]) == [None]
    assert other.record("default/ranker").uid == OTHER


def test_of_two_who_create_one_name_the_slow_one_is_refused(two, monkeypatch):
    slow, other = two
    make = slow._saving._make

    def pause(*arguments: object) -> object:
        if other.record("default/ranker") is None:
            assert other.save([Save(record(uid=OTHER), None)]) == [None]
        return make(*arguments)

    monkeypatch.setattr(slow._saving, "_make", pause)
    (answer,) = slow.save([Save(record(uid=UID), None, (entry("too late"),))])
    assert isinstance(answer, AlreadyExists)
    assert other.record("default/ranker").uid == OTHER
    assert other.audit() == []


def test_outcomes_of_a_server_that_died_before_telling_are_told_when_they_come_again(two, monkeypatch):
    dying, other = two
    other.add([outcome(0)])
    mark, _ = other.changed(0)
    monkeypatch.setattr(dying._counting, "announce", _die)
    with pytest.raises(Died):
        dying.add([outcome(1)])
    assert other.changed(mark) == (mark, [])
    assert other.add([outcome(1)]) == [DUPLICATE]
    assert other.changed(mark)[1] == [UID]


def test_what_was_told_is_not_told_again_by_another_server(two):
    store, other = two
    store.add([outcome(1)])
    mark, _ = store.changed(0)
    assert other.add([outcome(1)]) == [DUPLICATE]
    assert other.changed(mark) == (mark, [])


def test_eight_servers_lose_no_audit_entry_and_keep_the_order_of_each_experiment(open_, url):
    def work(number: int) -> None:
        store = open_(url)
        for version in range(1, 11):
            name = f"e{number}"
            save = Save(record(name, version, uid=f"{number:016x}"), version - 1 or None, (entry(str(version), f"default/{name}"),))
            assert store.save([save]) == [None]
            store.put(
                "token", str(number), str(version), str(version - 1) if version > 1 else None, [entry(f"put {version}", f"item/{number}")]
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    store = open_(url)
    records = store.audit()
    assert len(records) == 160
    assert first_broken(records) == 0
    for number in range(8):
        assert [found.entry.action for found in store.audit(experiment=f"default/e{number}")] == [str(n) for n in range(1, 11)]


# Terms


def test_a_planner_that_slept_through_its_term_writes_nothing(open_, url, redis_server):
    planner, successor = open_(url), open_(url)
    planner.save([Save(record(), None)])
    planner.add([outcome(1)])
    leader = f"{{{planner.address.prefix}}}:leader"
    make = planner._saving._make
    version = 1
    for trial in range(100):
        old = planner.lead("planner", 60)
        new = []

        def sleep(*arguments: object, new: list[int] = new) -> object:
            redis_server.ask("DEL", leader)  # its time is over
            new.append(successor.lead("successor", 60))
            return make(*arguments)

        planner._saving._make = sleep
        (answer,) = planner.save([Save(record(version=version + 1), version, (entry("stale"),), Settle(10))], old)
        planner._saving._make = make
        assert isinstance(answer, Conflict), trial
        assert answer.reason == "STALE_TERM"
        assert new[0] > old
        assert successor.save([Save(record(version=version + 1), version)], new[0]) == [None]
        version += 1
        assert planner.save([Save(record(version=version + 1), version)], old)[0].reason == "STALE_TERM"
        successor.resign("successor")
    assert len(planner.cells(UID)) == 1
    assert planner.audit() == []
    assert planner.record("default/ranker").version == 101


def test_an_experiment_made_after_a_term_began_refuses_earlier_ones(two, redis_server):
    store, other = two
    old = store.lead("a", 60)
    redis_server.ask("DEL", f"{{{store.address.prefix}}}:leader")
    new = other.lead("b", 60)
    other.save([Save(record(), None)])
    found = redis_server.ask("HGET", f"{{{store.address.prefix}:{UID}}}:meta", "term")
    assert int(found) == new > old


def test_a_term_that_a_failover_forgot_is_not_given_out_again(two, redis_server):
    store, other = two
    first = store.lead("a", 60)
    redis_server.ask("HDEL", f"{{{store.address.prefix}}}:store", "term")
    redis_server.ask("DEL", f"{{{store.address.prefix}}}:leader")
    assert other.lead("b", 60) > first


# Lives


WRITES = {
    "add": lambda store: store.add([outcome(9)]),
    "save": lambda store: store.save([Save(record(version=2), 1)]),
    "create": lambda store: store.save([Save(record("new", uid=OTHER), None)]),
    "grant": lambda store: store.grant(UID, 1, "requests", 1, 9),
    "put": lambda store: store.put("token", "ann", "2", "1"),
    "lead": lambda store: store.lead("a", 60),
}


def fill(store: RedisStore) -> None:
    store.save([Save(record(), None)])
    store.add([outcome(1)])
    store.grant(UID, 1, "requests", 1, 9)
    store.put("token", "ann", "1")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("refilled", [False, True])
def test_who_knew_data_that_are_gone_writes_nothing(two, open_, redis_server, write, refilled):
    store, _ = two
    fill(store)
    epoch = store.news(0).epoch
    erase(redis_server, store)
    if refilled:
        fill(open_(store.url))  # a server that never knew the old data made the store anew
    before = keys_of(redis_server, store)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            write(store)
        assert caught.value.reason == "STORE_LOST"
    assert keys_of(redis_server, store) == before
    found = store.news(0).epoch
    assert found != epoch
    assert bool(found) == refilled


def test_a_save_that_is_to_be_finished_in_another_life_of_the_store_leaves_no_trace_there(two, open_, redis_server, monkeypatch):
    """Made, and then the store was emptied and begun anew by somebody else, before it was chained and told."""
    store, _ = two
    finish = store._saving._finish
    others: list[RedisStore] = []

    def emptied(*values: object) -> None:
        erase(redis_server, store)
        others.append(open_(store.url))
        fill(others[0])
        finish(*values)

    monkeypatch.setattr(store._saving, "_finish", emptied)
    store.save([Save(record("gone", uid=OTHER), None, (entry("create", "default/gone"),))])
    (other,) = others
    assert other.audit() == []
    assert other.news(0).names == ("default/ranker",)
    assert other.record("default/gone") is None


def test_after_an_outage_what_was_told_counts_as_untold_since_the_store_may_have_gone_back(open_, tmp_path):
    """Counts of changes that were announced come again in a store that is put back, and are then news to everybody."""
    directory = tmp_path / "redis"
    with Node(directory) as server:
        store, other = open_(server.url), open_(server.url)
        store.save([Save(record(), None)])
        server.stop()
        shutil.copytree(directory, tmp_path / "older")
        server.start()
        until(lambda: _is(store.add, [outcome(1)], [ACCEPTED]), "the store answers")
        assert other.changed(0)[1] == [UID]
        server.kill()
        shutil.rmtree(directory)
        shutil.copytree(tmp_path / "older", directory)
        server.start()
        until(lambda: _is(store.add, [outcome(2)], [ACCEPTED]), "the store answers")
        assert other.changed(0)[1] == [UID]


def test_exposures_of_a_store_that_lost_its_data_are_counted_in_its_next_life(two, redis_server):
    store, _ = two
    fill(store)
    erase(redis_server, store)
    assert store.add([], [exposure(decisions=5)]) == []
    assert keys_of(redis_server, store) == []
    store.begin(b"k" * 32)
    store.add([], [exposure(decisions=2)])
    assert sums(store.cells(UID)) == {(10, 1, 0, "_exposures"): (7, 7 * 32_768, 0, 0)}


def test_part_of_the_data_that_is_gone_is_noticed(two, redis_server):
    store, _ = two
    fill(store)
    erase(redis_server, store, f":{UID}}}:*")
    for write in (WRITES["add"], WRITES["save"], WRITES["grant"]):
        with pytest.raises(Unavailable) as caught:
            write(store)
        assert caught.value.reason == "STORE_LOST"
    assert store.add([outcome(1, uid=OTHER)]) == [ACCEPTED]
    store.begin(store.secret())
    assert store.add([outcome(1)]) == [ACCEPTED]


def test_who_is_not_the_first_to_write_of_an_experiment_takes_that_for_no_loss(two, monkeypatch):
    slow, other = two
    slow.secret()
    adopt = slow._life.adopt

    def pause(uid: str, found: str) -> None:
        other.save([Save(record(), None)])
        adopt(uid, found)

    monkeypatch.setattr(slow._life, "adopt", pause)
    assert slow.add([outcome(1)]) == [ACCEPTED]


def test_other_servers_follow_into_a_life_that_continues_theirs(two, open_, redis_server):
    store, other = two
    secret = store.secret()
    fill(store)
    assert other.add([outcome(1)]) == [DUPLICATE]
    erase(redis_server, store)
    fresh = open_(store.url)
    fresh.secret()
    epoch = store.begin(secret)
    assert fresh.news(0).epoch == epoch
    assert fresh.secret() == secret
    assert store.save([Save(record(), None)]) == [None]
    for server in (other, fresh):
        server.save([Save(record(f"of-{id(server)}", uid=OTHER), None)])
        assert server.secret() == secret
        assert server.news(0).epoch == epoch
        assert server.add([outcome(1)])[0] in (ACCEPTED, DUPLICATE)


def test_a_store_that_went_back_tells_everything_again(open_, tmp_path):
    with Node(tmp_path / "a", appendonly="no", save="3600 1") as server:
        store = open_(server.url)
        store.save([Save(record(), None)])
        store.add([outcome(1)])
        server.ask("SAVE")
        store.save([Save(record("later", uid=OTHER), None)])
        store.add([outcome(2)])
        mark, changed = store.news(0).mark, store.changed(0)[0]
        server.restart()
        until(lambda: store.news(0), "the store answers again")
        found = store.news(mark)
        assert found.mark < mark
        assert found.names == ("default/ranker",)
        assert store.changed(changed) == (1, [UID])
        assert store.add([outcome(1), outcome(2)]) == [DUPLICATE, ACCEPTED]


def test_after_an_outage_everything_is_told_once_even_if_the_marks_have_passed(open_, url, proxy):
    store = open_(through(proxy, url))
    fill(store)
    mark, changed = store.news(0).mark, store.changed(0)[0]
    proxy.cut_replies()
    with pytest.raises(Unavailable):
        store.add([outcome(2)])
    proxy.heal()
    until(lambda: store.records(), "the store answers again")
    assert store.news(mark).names == ("default/ranker",)
    assert store.news(mark).names == ()
    assert store.changed(changed)[1] == [UID]
    assert store.changed(store.changed(0)[0])[1] == []


class _Counter:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def _die(*_: object, **__: object) -> None:
    raise Died


def _is(call: Callable, argument: object, *expected: object) -> bool:
    """Does the call answer one of these, now that it can answer?"""
    try:
        found = call(argument)
    except Unavailable:
        return False
    assert found in expected
    return True
