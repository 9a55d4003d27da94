"""What every store does. The expectations are those of `ports.Store`; sums are checked against a plain fold written down here."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allocator.core.lifecycle import State, Status
from allocator.core.record import Cell
from allocator.errors import AlreadyExists, Conflict, InvalidArgument, Overloaded, Unavailable
from allocator.ports import Contribution, Counted, ExposureRow, OutcomeRow, Save, Settle
from tests.conftest import SeededEntropy
from tests.stores.conftest import CLICK, ERROR, OTHER, UID, cell, entry, exposure, nonce, outcome, record, sums

ACCEPTED, DUPLICATE, LATE = Counted.ACCEPTED, Counted.DUPLICATE, Counted.LATE
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fold(rows: Iterable[tuple[str, int, int, int, str, tuple[int, int, int, int]]]) -> dict[str, dict[tuple, tuple]]:
    """Sums by uid and key, the slow way."""
    found: dict[str, dict[tuple, tuple]] = {}
    for uid, *key, values in rows:
        of_uid = found.setdefault(uid, {})
        before = of_uid.get(tuple(key), (0, 0, 0, 0))
        of_uid[tuple(key)] = tuple(a + b for a, b in zip(before, values, strict=True))
    return found


# Outcomes


def test_an_outcome_counts_once_however_often_it_arrives(store):
    assert store.add([outcome(1)]) == [ACCEPTED]
    for _ in range(3):
        assert store.add([outcome(1)]) == [DUPLICATE]
    assert store.cells(UID) == [Cell(10, 1, 0, "m0", 1, 1_000_000, 3, 5)]


def test_an_outcome_counts_once_within_a_batch(store):
    assert store.add([outcome(1), outcome(2), outcome(1), outcome(1)]) == [ACCEPTED, ACCEPTED, DUPLICATE, DUPLICATE]
    assert store.cells(UID) == [Cell(10, 1, 0, "m0", 2, 2_000_000, 6, 10)]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_second_report_with_another_metric_adds_that_metric_only(store, at_once):
    reports = [outcome(1, metrics=(CLICK,)), outcome(1, metrics=(CLICK, ERROR), total=7), outcome(1, metrics=(ERROR,))]
    answers = store.add(reports) if at_once else [store.add([report])[0] for report in reports]
    assert answers == [ACCEPTED, ACCEPTED, DUPLICATE]
    assert sums(store.cells(UID)) == {(10, 1, 0, "m0"): (1, 1_000_000, 3, 5), (10, 1, 0, "m1"): (1, 7, 3, 5)}


def test_what_is_added_without_waiting_is_answered_alike(store):
    assert store.add_soon([outcome(1), outcome(2)], [exposure(decisions=4)]).result(30) == [ACCEPTED, ACCEPTED]
    assert store.add_soon([outcome(1), outcome(3)]).result(30) == [DUPLICATE, ACCEPTED]
    assert store.add([outcome(2), outcome(3)]) == [DUPLICATE, DUPLICATE]
    assert sum(found.count for found in store.cells(UID)) == 3 + 4
    store.close()
    with pytest.raises(Unavailable):
        store.add_soon([outcome(4)]).result(30)


def test_rows_made_ready_count_like_others_and_among_them(store):
    store.add([], [exposure(), exposure(uid=OTHER)])
    ready = store.ready([exposure(decisions=2), exposure(11), exposure(decisions=3), exposure(uid=OTHER), exposure(uid="03" * 8)])
    assert [row[:2] for row in ready] == [
        row[:2] for row in [exposure(decisions=2), exposure(11), exposure(decisions=3), exposure(uid=OTHER), exposure(uid="03" * 8)]
    ]
    assert store.add_soon([outcome(1)], [exposure(decisions=4), *ready]).result(30) == [ACCEPTED]
    count = {key[:1]: values[0] for key, values in sums(store.cells(UID)).items() if key[3] == "_exposures"}
    assert count == {(10,): 1 + 2 + 3 + 4, (11,): 1}
    assert [sum(found.count for found in store.cells(uid)) for uid in (OTHER, "03" * 8)] == [2, 1]
    assert store.changed(0)[1]


def test_rows_made_ready_before_their_bucket_was_settled_go_to_the_settled_cells(store):
    store.add([], [exposure(), exposure(uid=OTHER)])
    ready = store.ready([exposure(), exposure(12), exposure(uid=OTHER)])
    assert store.save([Save(record(), None, settle=Settle(11, 2))]) == [None]
    store.add([], ready)
    assert sums(store.settled(UID)) == {(5, 1, 0, "_exposures"): (2, 65_536, 0, 0)}
    assert sums(store.cells(UID)) == {(12, 1, 0, "_exposures"): (1, 32_768, 0, 0)}
    assert sums(store.cells(OTHER)) == {(10, 1, 0, "_exposures"): (2, 65_536, 0, 0)}


def test_a_metric_that_adds_to_no_stream_is_remembered_too(store):
    silent = OutcomeRow(UID, nonce(1), 10, 1 << 5, ())
    assert store.add([silent]) == [ACCEPTED]
    assert store.add([silent]) == [DUPLICATE]
    assert store.add([silent._replace(metrics=1 << 5 | 1 << 6)]) == [ACCEPTED]
    assert store.cells(UID) == []


def test_one_metric_may_add_to_several_streams(store):
    row = OutcomeRow(UID, nonce(1), 10, 1, (Contribution(0, cell(stream="a")), Contribution(0, cell(stream="b", arm=0))))
    store.add([row, row])
    assert sums(store.cells(UID)) == {(10, 1, 0, "a"): (1, 1_000_000, 3, 5), (10, 0, 0, "b"): (1, 1_000_000, 3, 5)}


def test_the_last_of_62_metrics_counts_like_the_first(store):
    assert store.add([outcome(1, metrics=(0, 61))]) == [ACCEPTED]
    assert store.add([outcome(1, metrics=(61,))]) == [DUPLICATE]
    assert store.add([outcome(1, metrics=(60, 61))]) == [ACCEPTED]
    assert {stream for _, _, _, stream in sums(store.cells(UID))} == {"m0", "m60", "m61"}


def test_the_same_nonce_in_another_experiment_or_bucket_is_another_decision(store):
    assert store.add([outcome(1), outcome(1, uid=OTHER), outcome(1, bucket=11)]) == [ACCEPTED] * 3
    assert len(store.cells(UID)) == 2
    assert len(store.cells(OTHER)) == 1


@pytest.mark.parametrize("edge", [b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\x00" * 7])
def test_every_nonce_is_told_from_its_neighbours(store, edge):
    others = [edge[:-1] + bytes([edge[-1] ^ 1]), bytes([edge[0] ^ 0x80]) + edge[1:]]
    rows = [outcome(1)._replace(nonce=value) for value in (edge, *others)]
    assert store.add(rows) == [ACCEPTED] * 3
    assert store.add(rows) == [DUPLICATE] * 3


@pytest.mark.parametrize("wrong", [b"", b"1234567", b"123456789"])
def test_a_nonce_of_another_length_is_refused(store, wrong):
    with pytest.raises(InvalidArgument, match="nonce"):
        store.add([outcome(1), outcome(2)._replace(nonce=wrong)])
    assert store.cells(UID) == []


def test_names_with_any_character_come_back(store):
    uid, stream = 'a"b\\ü\u2028😀', "[x] 'y' {z}\n"
    store.add([OutcomeRow(uid, nonce(1), 10, 1, (Contribution(0, cell(stream=stream)),))])
    assert store.cells(uid) == [cell(stream=stream)]
    assert store.changed(0)[1] == [uid]


def test_nothing_is_known_of_an_experiment_without_rows(store):
    assert store.cells(UID) == store.settled(UID) == store.records() == store.audit() == []
    assert store.record("default/ranker") is None
    assert store.changed(0)[1] == []
    assert store.add([]) == []


def test_exposures_add_up(store):
    store.add([outcome(1)], [exposure(decisions=3), exposure(decisions=4), exposure(bucket=11), exposure(uid=OTHER)])
    store.add([], [exposure(decisions=5)])
    assert sums(store.cells(UID))[10, 1, 0, "_exposures"] == (12, 12 * 32_768, 0, 0)
    assert sums(store.cells(UID))[11, 1, 0, "_exposures"] == (1, 32_768, 0, 0)
    assert sums(store.cells(OTHER)) == {(10, 1, 0, "_exposures"): (1, 32_768, 0, 0)}


# Settling


def test_an_outcome_of_a_settled_bucket_is_late_and_counts_for_nothing(store):
    store.add([outcome(1, bucket=10), outcome(2, bucket=11)])
    assert store.save([Save(record(), None, settle=Settle(10))]) == [None]
    before = store.cells(UID), store.settled(UID), store.changed(0)
    assert store.add([outcome(1, bucket=10), outcome(3, bucket=10), outcome(4, bucket=3), outcome(2, bucket=11)]) == [
        LATE,
        LATE,
        LATE,
        DUPLICATE,
    ]
    assert (store.cells(UID), store.settled(UID), store.changed(0)) == before
    assert store.add([outcome(5, bucket=11)]) == [ACCEPTED]


def test_exposures_of_a_settled_bucket_go_to_the_settled_cells(store):
    store.save([Save(record(), None, settle=Settle(10, coarsen=4))])
    store.add([], [exposure(bucket=9), exposure(bucket=7), exposure(bucket=10, decisions=2), exposure(bucket=11)])
    assert sums(store.settled(UID)) == {
        (2, 1, 0, "_exposures"): (3, 3 * 32_768, 0, 0),
        (1, 1, 0, "_exposures"): (1, 32_768, 0, 0),
    }
    assert [found.bucket for found in store.cells(UID)] == [11]


@pytest.mark.parametrize("coarsen", [0, 1, 4, 60])
def test_settling_moves_sums_exactly_into_coarser_buckets(store, coarsen):
    rows = [outcome(n, bucket=n % 23 - 6, metrics=(n % 3,), total=n * n) for n in range(200)]
    store.add(rows)
    store.save([Save(record(), None, settle=Settle(9, coarsen))])

    def expected(settled: bool) -> dict:
        found = fold(
            (UID, (row.bucket // coarsen if coarsen else 0) if settled else row.bucket, 1, 0, f"m{n % 3}", (1, n * n, 3, 5))
            for n, row in enumerate(rows)
            if (row.bucket <= 9) is settled
        )
        return found[UID]

    assert sums(store.settled(UID)) == expected(True)
    assert sums(store.cells(UID)) == expected(False)


def test_settling_again_adds_to_what_is_settled_and_opens_nothing(store):
    store.add([outcome(n, bucket=n) for n in range(10)])
    store.save([Save(record(version=1), None, settle=Settle(4))])
    store.save([Save(record(version=2), 1, settle=Settle(7))])
    store.save([Save(record(version=3), 2, settle=Settle(2))])
    assert sums(store.settled(UID)) == {(0, 1, 0, "m0"): (8, 8_000_000, 24, 40)}
    assert sorted(found.bucket for found in store.cells(UID)) == [8, 9]
    assert store.add([outcome(99, bucket=7), outcome(99, bucket=8)]) == [LATE, ACCEPTED]


def test_settling_one_experiment_leaves_the_others(store):
    store.add([outcome(1), outcome(1, uid=OTHER)])
    store.save([Save(record(), None, settle=Settle(10))])
    assert store.cells(UID) == store.settled(OTHER) == []
    assert len(store.cells(OTHER)) == 1
    assert store.add([outcome(1, uid=OTHER), outcome(2, uid=OTHER)]) == [DUPLICATE, ACCEPTED]


# Records and the audit


def test_a_record_comes_back_as_it_was_saved(store):
    frozen = record(status=Status(State.FROZEN, reason="errors", freeze_epoch=3), metrics=("click", "error"), settled_through=17)
    assert store.save([Save(frozen, None), Save(record("alpha", uid=OTHER), None)]) == [None, None]
    assert store.record("default/ranker") == frozen
    assert [found.name for found in store.records()] == ["default/alpha", "default/ranker"]
    assert store.records()[1] == frozen


def test_a_save_that_saw_another_version_is_refused(store):
    assert isinstance(store.save([Save(record(), 1)])[0], Conflict)
    assert store.save([Save(record(version=1), None)]) == [None]
    assert isinstance(store.save([Save(record(version=9), None)])[0], AlreadyExists)
    assert store.save([Save(record(version=2), 1)]) == [None]
    for stale in (1, 3):
        assert isinstance(store.save([Save(record(version=9), stale)])[0], Conflict)
    assert store.record("default/ranker").version == 2


def test_a_conflict_leaves_no_trace_and_does_not_touch_the_others(store):
    store.save([Save(record(), None)])
    store.add([outcome(1), outcome(1, uid=OTHER)])
    mark, _ = store.changed(0)
    answers = store.save(
        [
            Save(record("first"), None, (entry("first"),)),
            Save(record(version=2, uid=UID), 7, (entry("refused"),), Settle(10)),
            Save(record("last", uid=OTHER), None, (entry("last"),), Settle(10)),
        ]
    )
    assert answers[0] is None
    assert isinstance(answers[1], Conflict)
    assert answers[2] is None
    assert [found.entry.action for found in store.audit()] == ["first", "last"]
    assert store.record("default/ranker").version == 1
    assert len(store.cells(UID)) == 1
    assert store.settled(UID) == store.cells(OTHER) == []
    assert store.changed(mark)[1] == [OTHER]


def test_a_save_sees_what_the_one_before_it_in_the_same_call_did(store):
    answers = store.save([Save(record(version=1), None), Save(record(version=2), 1), Save(record(version=3), 1)])
    assert answers[:2] == [None, None]
    assert isinstance(answers[2], Conflict)
    assert store.record("default/ranker").version == 2


def test_of_two_who_save_the_same_version_one_wins(store):
    store.save([Save(record(), None)])
    barrier = threading.Barrier(8)

    def attempt(number: int) -> object:
        barrier.wait()
        return store.save([Save(record(version=2, revision=number), 1, (entry(f"try {number}"),))])[0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(8)))
    (winner,) = (number for number, answer in enumerate(answers) if answer is None)
    assert sum(isinstance(answer, Conflict) for answer in answers) == 7
    assert store.record("default/ranker").revision == winner
    assert [found.entry.action for found in store.audit()] == [f"try {winner}"]


def test_audit_records_are_sealed_in_order_with_the_change_they_tell_of(store):
    store.save([Save(record(), None, (entry("one"), entry("two", seconds=0.1 + 0.2)))])
    store.save([Save(record(version=2), 1, (replace(entry("three"), reason="a \x00 NUL, ü and 😀", seconds=5),))])
    records = store.audit()
    assert [(found.sequence, found.entry.action) for found in records] == [(1, "one"), (2, "two"), (3, "three")]
    assert records[1].entry == entry("two", seconds=0.1 + 0.2)
    digest = "0" * 64
    for found in records:  # the chain as core/audit.py describes it, worked out again
        e = found.entry
        hasher = hashlib.sha256(digest.encode())
        for text in (repr(found.sequence), repr(e.seconds), e.actor, e.action, e.experiment, e.reason, e.before, e.after):
            hasher.update(len(text.encode()).to_bytes(8, "big") + text.encode())
        digest = hasher.hexdigest()
        assert found.digest == digest


def test_audit_records_are_read_in_pages_and_by_experiment(store):
    for number in range(7):
        name = "default/a" if number % 3 == 0 else "default/b"
        store.save([Save(record(f"e{number}"), None, (entry(str(number), name),))])
    assert [found.sequence for found in store.audit(after=2, limit=3)] == [3, 4, 5]
    assert [found.sequence for found in store.audit(after=6)] == [7]
    assert [found.sequence for found in store.audit(experiment="default/a")] == [1, 4, 7]
    assert [found.sequence for found in store.audit(after=1, limit=1, experiment="default/a")] == [4]
    assert store.audit(after=7) == store.audit(limit=0) == store.audit(limit=-1) == store.audit(experiment="default/c") == []


def test_the_secret_is_32_bytes_of_the_entropy_given(store):
    assert store.secret() == SeededEntropy().bytes(32)
    assert store.secret() == store.secret()


# Budgets


def test_a_grant_is_what_is_left_of_the_limit_and_never_more_than_was_asked(store):
    assert [store.grant(UID, 1, "requests", 40, 100) for _ in range(4)] == [40, 40, 20, 0]
    assert store.granted(UID) == {(1, "requests"): 100}


def test_a_limit_that_grows_grants_more_and_one_that_falls_takes_nothing_back(store):
    assert store.grant(UID, 1, "requests", 10, 10) == 10
    assert store.grant(UID, 1, "requests", 10, 5) == 0
    assert store.grant(UID, 1, "requests", 10, 13) == 3
    assert store.grant(UID, 1, "requests", 0, 100) == 0
    assert store.granted(UID) == {(1, "requests"): 13}


def test_each_experiment_arm_and_kind_has_an_account_of_its_own(store):
    for account in ((UID, 1, "requests"), (UID, 2, "requests"), (UID, 1, "units"), (OTHER, 1, "requests")):
        assert store.grant(*account, 5, 5) == 5
    assert store.granted(UID) == {(1, "requests"): 5, (2, "requests"): 5, (1, "units"): 5}
    assert store.granted(OTHER) == {(1, "requests"): 5}
    assert store.granted("0" * 16) == {}


def test_a_grant_changes_no_cell(store):
    mark, _ = store.changed(0)
    store.grant(UID, 1, "requests", 5, 5)
    assert store.changed(mark) == (mark, [])


def test_of_eight_threads_that_ask_at_once_none_gets_what_another_got(store):
    with ThreadPoolExecutor(8) as threads:
        granted = list(threads.map(lambda amount: store.grant(UID, 1, "requests", amount, 500), [1 + i % 7 for i in range(200)]))
    assert sum(granted) == 500 == store.granted(UID)[1, "requests"]


# What changed


def test_a_mark_tells_which_cells_changed_after_it(store):
    store.add([outcome(1)])
    first, uids = store.changed(0)
    assert uids == [UID]
    assert store.changed(first) == (first, [])
    store.add([outcome(2, uid=OTHER)])
    second, uids = store.changed(first)
    assert uids == [OTHER]
    assert store.changed(0)[1] == [OTHER, UID]
    store.add([], [exposure()])
    assert store.changed(0)[1] == [UID, OTHER]
    third, uids = store.changed(second)
    assert uids == [UID]
    store.save([Save(record(), None, settle=Settle(10))])
    fourth, uids = store.changed(third)
    assert uids == [UID]
    store.add([], [exposure(bucket=1)])
    assert store.changed(fourth)[1] == [UID]
    assert 0 < first < second < third < fourth


def test_a_mark_does_not_move_when_no_cell_changes(store):
    store.add([outcome(1)])
    mark, _ = store.changed(0)
    store.add([outcome(1)])
    store.add([OutcomeRow(OTHER, nonce(1), 10, 1, ())])
    store.save([Save(record(), None, (entry(),), Settle(5))])
    assert store.changed(mark) == (mark, [])


# All or nothing


@pytest.mark.parametrize("limit", [2**63 - 1, -(2**63)])
@pytest.mark.parametrize("field", [1, 2, 3])
def test_a_sum_may_reach_the_ends_of_64_bits_and_not_pass_them(store, limit, field):
    def row(number: int, value: int) -> OutcomeRow:
        values = [1, 0, 0, 0]
        values[field] = value
        return OutcomeRow(UID, nonce(number), 10, 1, (Contribution(0, Cell(10, 1, 0, "m0", *values)),))

    step = 1 if limit > 0 else -1
    assert store.add([row(1, limit - step), row(2, step)]) == [ACCEPTED, ACCEPTED]
    (before,) = store.cells(UID)
    assert before[4 + field] == limit
    for number, value in ((3, step), (4, limit)):
        with pytest.raises(Overloaded) as caught:
            store.add([row(5, 0), row(number, value)])
        assert caught.value.reason == "SUM_OVERFLOW"
    with pytest.raises(Overloaded):
        store.add([row(6, 10 * limit)._replace(uid=OTHER)])
    assert store.cells(UID) == [before]
    assert store.cells(OTHER) == []
    assert store.add([row(5, 0)]) == [ACCEPTED]  # it had not been counted with its neighbour


def test_a_batch_with_one_impossible_row_counts_nothing(store):
    store.add([outcome(1)])
    mark, _ = store.changed(0)
    with pytest.raises(Overloaded):
        store.add([outcome(2), outcome(3, uid=OTHER)], [exposure(), ExposureRow(OTHER, cell(total=2**63))])
    assert store.cells(UID) == [cell(stream="m0")]
    assert store.cells(OTHER) == []
    assert store.changed(mark) == (mark, [])
    assert store.add([outcome(2), outcome(3, uid=OTHER)]) == [ACCEPTED, ACCEPTED]


def test_a_save_whose_settling_would_overflow_is_refused_alone(store):
    high = 2**62
    store.add([outcome(n, bucket=n, total=high) for n in range(3)])
    before = sums(store.cells(UID))
    answers = store.save(
        [
            Save(record("other", uid=OTHER), None, (entry("kept"),)),
            Save(record(), None, (entry("refused"),), Settle(10)),
            Save(record("third", uid=OTHER), None),
        ]
    )
    assert isinstance(answers[1], Overloaded)
    assert answers[0] is answers[2] is None
    assert [found.name for found in store.records()] == ["default/other", "default/third"]
    assert [found.entry.action for found in store.audit()] == ["kept"]
    assert sums(store.cells(UID)) == before
    assert store.settled(UID) == []
    assert store.add([outcome(0, bucket=0), outcome(7, bucket=0)]) == [DUPLICATE, ACCEPTED]


# Order and company


def test_eight_threads_lose_nothing_and_double_nothing(store):
    shared = [outcome(n, bucket=n % 5, metrics=(n % 2,), total=n) for n in range(400)]
    barrier = threading.Barrier(8)

    def report(thread: int) -> Counter:
        own = [outcome(1_000 * (thread + 1) + n, bucket=n % 5, total=n) for n in range(300)]
        rows = [row for pair in zip(own, shared[thread * 10 :] + shared[: thread * 10], strict=False) for row in pair]
        counted: Counter = Counter()
        barrier.wait()
        for start in range(0, len(rows), 37):
            batch = rows[start : start + 37]
            for row, answer in zip(batch, store.add(batch, [exposure(bucket=start)]), strict=True):
                counted[row[:3], answer] += 1
        return counted

    with ThreadPoolExecutor(8) as pool:
        counted = sum(pool.map(report, range(8)), Counter())
    accepted = Counter({decision: times for (decision, answer), times in counted.items() if answer is ACCEPTED})
    own = [outcome(1_000 * (thread + 1) + n, bucket=n % 5, total=n) for thread in range(8) for n in range(300)]
    expected = [row for row in [*own, *shared] if row[:3] in accepted]
    assert set(accepted.values()) == {1}
    assert len(expected) == len(accepted) >= 2_400 + 300
    assert (
        sums([found for found in store.cells(UID) if found.stream != "_exposures"])
        == (fold((UID, r.bucket, 1, 0, f"m{r.metrics - 1}", r.contributions[0].cell[4:]) for r in expected)[UID])
    )
    assert sum(found.count for found in store.cells(UID) if found.stream == "_exposures") == 8 * 17


numbers = st.integers(0, 11)
reports = st.builds(
    lambda number, metrics, uid: outcome(number, bucket=number % 4, metrics=tuple(sorted(metrics)), uid=uid, total=number * 1_000_003),
    numbers,
    st.sets(st.integers(0, 2), min_size=1),
    st.sampled_from([UID, OTHER]),
)


@MANY
@given(data=st.data(), rows=st.lists(reports, max_size=30))
def test_any_order_and_partition_of_the_same_outcomes_gives_the_same_cells(make_store, data, rows):
    """And each metric of a decision counts once: what one outcome adds depends on its number alone."""
    again = data.draw(st.lists(st.sampled_from(rows), max_size=10)) if rows else []
    order = data.draw(st.permutations(rows + again))
    store = make_store()
    while order:
        size = data.draw(st.integers(1, len(order)))
        store.add(order[:size])
        order = order[size:]
    distinct = {(row.uid, row.nonce, c.metric): c.cell for row in rows for c in row.contributions}
    expected = fold((uid, *found[:4], found[4:]) for (uid, _, _), found in distinct.items())
    for uid in (UID, OTHER):
        assert sums(store.cells(uid)) == expected.get(uid, {})


steps = st.one_of(
    st.tuples(
        st.just("add"), st.lists(reports, max_size=8), st.lists(st.builds(exposure, st.integers(0, 3), st.integers(1, 5)), max_size=3)
    ),
    st.tuples(st.just("settle"), st.integers(-1, 3), st.sampled_from([0, 1, 2])),
)


@MANY
@given(history=st.lists(steps, max_size=12))
def test_any_history_of_adding_and_settling_agrees_with_a_plain_fold(make_store, history):
    store = make_store()
    seen: set = set()
    opened: dict[tuple, tuple] = {}
    settled: dict[tuple, tuple] = {}
    through, coarsen, version = -2, 0, 0
    waiting: list[ExposureRow] = []

    def put(cells: dict, key: tuple, values: tuple) -> None:
        cells[key] = tuple(a + b for a, b in zip(cells.get(key, (0, 0, 0, 0)), values, strict=True))

    for kind, first, second in history:
        if kind == "settle":
            saved = store.save([Save(record(version=version + 1), version or None, settle=Settle(first, second))])
            assert saved == [None]
            version, through, coarsen = version + 1, max(through, first), second
            for key in [key for key in opened if key[0] <= through]:
                put(settled, (key[0] // coarsen if coarsen else 0, *key[1:]), opened.pop(key))
            continue
        waiting = [*waiting, *store.ready(second[1:])]  # made ready now, added later, when their buckets may be settled
        now, waiting = (waiting[:2], waiting[2:]) if len(first) % 2 else ([], waiting)
        second = [*second[:1], *now]
        for row, answer in zip(first, store.add(first, second), strict=True):
            late = row.uid == UID and row.bucket <= through
            fresh = [] if late else [c for c in row.contributions if (row.uid, row.nonce, c.metric) not in seen]
            assert answer is (LATE if late else ACCEPTED if fresh else DUPLICATE)
            for c in fresh:
                seen.add((row.uid, row.nonce, c.metric))
                if row.uid == UID:
                    put(opened, c.cell[:4], c.cell[4:])
        for _, found, _ in second:
            if found.bucket <= through:
                put(settled, (found.bucket // coarsen if coarsen else 0, *found[1:4]), found[4:])
            else:
                put(opened, found[:4], found[4:])
    assert sums(store.cells(UID)) == opened
    assert sums(store.settled(UID)) == settled


# The end


def test_a_closed_store_answers_that_it_is_closed(store):
    store.save([Save(record(), None)])
    store.close()
    store.close()
    calls = [
        store.secret,
        store.records,
        lambda: store.record("default/ranker"),
        lambda: store.save([]),
        lambda: store.add([outcome(1)]),
        lambda: store.cells(UID),
        lambda: store.settled(UID),
        lambda: store.changed(0),
        lambda: store.grant(UID, 1, "requests", 1, 1),
        lambda: store.granted(UID),
        store.audit,
    ]
    for call in calls:
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.reason == "STORE_CLOSED"
