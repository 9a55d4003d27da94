"""What every store promises to several servers: one planner at a time, news, small items, new lives. Expectations from `ports.Store`.

`store` stands for each server's connection; `tests/stores/conftest.py` makes one of each kind.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from allocator.errors import Conflict
from allocator.ports import Counted, Save, Settle, Store
from tests.processes import until
from tests.stores.conftest import UID, entry, exposure, outcome, record

SECONDS = 5.0


def nothing_after(store: Store, mark: int) -> bool:
    """Is there no news after the mark?"""
    found = store.news(mark)
    return (found.mark, found.names, found.items) == (mark, (), ())


# Terms


def test_while_a_term_lasts_nobody_else_leads_and_its_holder_stays(store):
    first = store.lead("a", SECONDS)
    assert isinstance(first, int)
    assert store.lead("b", SECONDS) is None
    assert store.lead("a", SECONDS) == first
    assert store.lead("b", SECONDS) is None


def test_a_renewed_term_lasts_from_the_renewal(store, pass_time):
    first = store.lead("a", SECONDS)
    pass_time(0.6 * SECONDS)
    assert store.lead("a", SECONDS) == first
    pass_time(0.6 * SECONDS)
    assert store.lead("b", SECONDS) is None


@pytest.mark.parametrize("seconds", [3_600.0, -3_600.0])
def test_a_wall_clock_that_is_set_neither_ends_a_term_nor_prolongs_it(store, clock, pass_time, seconds):
    assert store.lead("a", SECONDS)
    clock.set_wall(seconds)
    assert store.lead("b", SECONDS) is None
    pass_time(1.1 * SECONDS)
    assert store.lead("b", SECONDS)


def test_a_term_that_ran_out_makes_room_for_a_larger_number(store, pass_time):
    first = store.lead("a", SECONDS)
    pass_time(1.1 * SECONDS)
    second = store.lead("b", SECONDS)
    assert second > first
    assert store.lead("a", SECONDS) is None


def test_who_resigns_makes_room_at_once_and_nobody_resigns_for_another(store):
    first = store.lead("a", SECONDS)
    store.resign("b")
    assert store.lead("b", SECONDS) is None
    store.resign("a")
    assert store.lead("b", SECONDS) > first


def test_of_eight_that_would_lead_at_once_one_does(store):
    barrier = threading.Barrier(8)

    def attempt(number: int) -> int | None:
        barrier.wait()
        return store.lead(f"server-{number}", SECONDS)

    with ThreadPoolExecutor(8) as pool:
        terms = list(pool.map(attempt, range(8)))
    assert sum(term is not None for term in terms) == 1


def test_a_save_of_a_stale_term_is_refused_whole(store, pass_time):
    store.save([Save(record(), None)])
    store.add([outcome(1)])
    old = store.lead("a", SECONDS)
    assert store.save([Save(record(version=2), 1)], old) == [None]
    pass_time(1.1 * SECONDS)
    new = store.lead("b", SECONDS)
    (refused,) = store.save([Save(record(version=3), 2, (entry("stale"),), Settle(10))], old)
    assert isinstance(refused, Conflict)
    assert refused.reason == "STALE_TERM"
    assert store.record("default/ranker").version == 2
    assert len(store.cells(UID)) == 1
    assert store.audit() == []
    assert store.save([Save(record(version=3), 2)], new) == [None]
    assert store.save([Save(record(version=4), 3)]) == [None]  # a person needs no term


def test_a_term_that_ran_out_may_still_save_while_no_other_has_begun(store, pass_time):
    term = store.lead("a", SECONDS)
    pass_time(1.1 * SECONDS)
    assert store.save([Save(record(), None)], term) == [None]


def test_each_renewal_makes_the_beat_grow_and_nothing_else_does(store):
    store.lead("a", SECONDS)
    beats = [store.news(0).beat]
    store.save([Save(record(), None)])
    store.lead("b", SECONDS)
    beats.append(store.news(0).beat)
    store.lead("a", SECONDS)
    beats.append(store.news(0).beat)
    assert beats[0] == beats[1] < beats[2]


# News


def test_news_name_what_was_saved_after_a_mark_and_only_that(store):
    assert store.news(0).names == ()
    store.save([Save(record("a"), None), Save(record("b"), None)])
    everything = store.news(0)
    assert set(everything.names) == {"default/a", "default/b"}
    assert nothing_after(store, everything.mark)
    store.save([Save(record("b", version=2), 1)])
    later = store.news(everything.mark)
    assert later.names == ("default/b",)
    assert later.mark > everything.mark


def test_a_save_that_was_refused_is_no_news(store):
    store.save([Save(record(), None)])
    mark = store.news(0).mark
    store.save([Save(record(version=9), 7)])
    assert nothing_after(store, mark)


def test_counting_is_no_news(store):
    store.save([Save(record(), None)])
    mark = store.news(0).mark
    store.add([outcome(1)], [exposure()])
    store.grant(UID, 1, "requests", 5, 5)
    assert nothing_after(store, mark)


def test_no_save_is_missed_between_two_looks_however_many_write(store):
    names = [f"e{number}" for number in range(40)]
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        mark = 0
        while True:
            last = done.is_set()
            found = store.news(mark)
            mark = found.mark
            seen.extend(found.names)
            if last:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.save([Save(record(name), None)]), names))
    done.set()
    watcher.join()
    assert set(seen) == {f"default/{name}" for name in names}


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.save([Save(record(), None)]),
        lambda store: store.add([outcome(1)]),
        lambda store: store.put("token", "ann", "1"),
    ],
    ids=["save", "add", "put"],
)
def test_who_listens_hears_of_what_another_server_did_until_it_stops(store, peer, change):
    called = threading.Event()
    stop = store.listen(called.set)
    change(peer)
    assert called.wait(5)
    stop()
    stop()
    called.clear()
    peer.lead("a", SECONDS)
    assert not called.is_set()


def test_who_listens_hears_of_losses_alone_though_all_that_was_counted_has_changed(store, peer):
    called = []
    store.listen(lambda: called.append(1))
    mark, _ = store.changed(0)
    assert peer.add([outcome(1, total=0)]) == peer.add([outcome(2)._replace(contributions=())]) == [Counted.ACCEPTED]
    peer.add([], [exposure()])
    assert store.changed(mark)[1] == [UID]
    peer.put("token", "ann", "1")
    until(lambda: called, "the item is heard of")
    assert called == [1]
    peer.add([outcome(3), outcome(4, total=0)])
    until(lambda: called == [1, 1], "the loss is heard of")


# Items


def test_an_item_is_written_replaced_and_removed(store):
    assert store.items("token") == {}
    store.put("token", "ann", "1")
    store.put("token", "bob", "2")
    store.put("proposal", "ann", "other kind")
    assert store.items("token") == {"ann": "1", "bob": "2"}
    store.put("token", "ann", "3", expected="1")
    store.put("token", "bob", None, expected="2")
    assert store.items("token") == {"ann": "3"}
    assert store.items("proposal") == {"ann": "other kind"}


@pytest.mark.parametrize("expected", [None, "other"])
def test_an_item_that_is_not_what_its_writer_saw_is_left_alone(store, expected):
    store.put("token", "ann", "1", audit=[entry("made")])
    mark = store.news(0).mark
    for value in ("2", None):
        with pytest.raises(Conflict):
            store.put("token", "ann", value, expected=expected, audit=[entry("refused")])
    with pytest.raises(Conflict):
        store.put("token", "nobody", "2", expected="1")
    assert store.items("token") == {"ann": "1"}
    assert [found.entry.action for found in store.audit()] == ["made"]
    assert nothing_after(store, mark)


def test_an_items_audit_goes_into_the_same_chain(store):
    store.save([Save(record(), None, (entry("saved"),))])
    store.put("token", "ann", "1", audit=[entry("put"), entry("and told")])
    store.save([Save(record(version=2), 1, (entry("saved again"),))])
    assert [(found.sequence, found.entry.action) for found in store.audit()] == [
        (1, "saved"),
        (2, "put"),
        (3, "and told"),
        (4, "saved again"),
    ]


def test_news_name_the_kinds_of_items_that_were_put_or_removed(store):
    store.put("token", "ann", "1")
    mark = store.news(0).mark
    assert store.news(mark).items == ()
    store.put("proposal", "p", "1")
    store.put("token", "ann", None, expected="1")
    assert sorted(store.news(mark).items) == ["proposal", "token"]
    assert store.news(mark).names == ()


def test_items_hold_any_text(store):
    text = 'a "b" \\ \n ü 😀 \u2028'
    store.put(text, text, text)
    assert store.items(text) == {text: text}


def test_of_eight_who_put_the_same_item_one_wins(store):
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        barrier.wait()
        try:
            store.put("token", "ann", str(number))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert store.items("token") == {"ann": str(won.index(True))}
    assert sum(won) == 1


# Lives


def test_a_store_is_one_life_until_another_begins(store):
    epoch = store.news(0).epoch
    assert epoch
    store.save([Save(record(), None, (entry(),))])
    store.put("token", "ann", "1")
    assert store.news(0).epoch == epoch
    begun = store.begin(b"k" * 32)
    assert begun not in ("", epoch)
    assert store.news(0).epoch == begun
    assert store.secret() == b"k" * 32
    assert [found.name for found in store.records()] == ["default/ranker"]
    assert store.items("token") == {"ann": "1"}
    assert len(store.audit()) == 1
