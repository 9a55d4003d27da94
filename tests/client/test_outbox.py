"""What is held, what is sent, what is given up: every outcome and every decision is accounted for once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.client.outbox import MAX_BYTES, MAX_EXPOSURES, MAX_OUTCOMES, Outbox
from allocator.errors import Violation
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb

ACCEPTED = pb.OUTCOME_STATUS_ACCEPTED


def told(number, **metrics):
    return f"id-{number}", 1.0, metrics or None


def exposure(arm=0, bucket=1, count=1):
    return service_pb.ExposureCount(
        uid="75", activation=1, bucket=bucket, arm=arm, segment=0, count=count, units=count, drawn=count, expected=count << 15,
        variance=count << 30,
    )  # fmt: skip


def answer(batch):
    return service_pb.ReportOutcomesResponse(results=[pb.OutcomeResult(status=ACCEPTED)] * len(batch.outcomes))


def test_a_batch_stays_the_same_until_it_is_settled():
    box = Outbox(10, 7)
    box.put(told(1))
    first = box.batch()
    box.put(told(2))
    box.put_exposures([exposure()])
    assert box.batch() is first
    box.settle(answer(first))
    second = box.batch()
    assert (second.outcomes, second.exposures) == ([told(2)], [exposure()])
    assert second.id != first.id
    box.settle(answer(second))
    assert box.batch() is None
    assert (box.pending, box.results["ACCEPTED"]) == (0, 2)


def test_what_is_counted_of_a_cell_that_is_being_sent_goes_with_the_next_batch():
    box = Outbox(10, 7)
    box.put_exposures([exposure(count=2)])
    first = box.batch()
    request = first.request(7)
    box.put_exposures([exposure(count=3), exposure(count=4)])
    assert box.batch().request(7) == request
    assert first.exposures == [exposure(count=2)]
    box.settle(answer(first))
    assert box.batch().exposures == [exposure(count=7)]


def test_batches_are_bounded_in_number_and_in_bytes():
    box = Outbox(10_000, 7)
    for number in range(2500):
        box.put(told(number))
    box.put_exposures([exposure(bucket=bucket) for bucket in range(MAX_EXPOSURES + 1)])
    sizes = []
    while (batch := box.batch()) is not None:
        sizes.append((len(batch.outcomes), len(batch.exposures)))
        box.settle(answer(batch))
    assert sizes == [(MAX_OUTCOMES, MAX_EXPOSURES), (MAX_OUTCOMES, 1), (500, 0)]
    for number in range(1000):
        box.put(told(number, **{f"metric-{i}-{'x' * 100}": 1.0 for i in range(60)}))
    assert box.batch().request(7).ByteSize() < 1.2 * MAX_BYTES


def test_the_oldest_go_when_there_is_no_room_and_are_counted():
    box = Outbox(3, 7)
    for number in range(5):
        box.put(told(number))
    assert (box.pending, box.dropped) == (3, 2)
    assert box.batch().outcomes == [told(2), told(3), told(4)]


def test_exposures_are_added_up():
    box = Outbox(3, 7)
    box.put_exposures([exposure(), exposure(count=4), exposure(arm=1)])
    assert box.batch().exposures == [exposure(count=5), exposure(arm=1)]


def test_what_a_refusal_names_is_taken_out_and_one_that_names_nothing_takes_all():
    box = Outbox(10, 7)
    for number in range(4):
        box.put(told(number))
    box.put_exposures([exposure()])
    first = box.batch()
    box.refuse([Violation("outcomes[1].reward", ""), Violation("outcomes[3]", ""), Violation("outcomes[99]", "")])
    assert box.batch() == (first.id, [told(0), told(2)], [exposure()])
    box.refuse([Violation("exposures[0].counts[0].count", "")])
    assert box.batch() == (first.id, [told(0), told(2)], [])
    box.refuse([])
    assert box.batch() is None
    assert (box.results["REFUSED"], box.lost_exposures, box.pending) == (4, 1, 0)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5)), st.tuples(st.just("expose"), st.integers(1, 5)), st.just(("send", 0)),
        st.just(("fail", 0)), st.tuples(st.just("refuse"), st.lists(st.integers(0, 8))), st.just(("drop", 0)),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(steps)
def test_every_outcome_and_every_decision_is_accounted_for_once(done):
    box, put, exposed, sent = Outbox(6, 7), 0, 0, 0
    for what, value in done:
        batch = box.batch() if what in ("send", "fail", "refuse") else None
        if what == "put":
            for _ in range(value):
                box.put(told(put))
                put += 1
        elif what == "expose":
            box.put_exposures([exposure(arm=value, count=value)])
            exposed += value
        elif what == "drop":
            box.drop()
        elif batch is not None and what == "send":
            sent += sum(e.count for e in batch.exposures)
            box.settle(answer(batch))
        elif batch is not None and what == "refuse":
            box.refuse([Violation(f"outcomes[{index}]", "") for index in value])
        assert put == box.pending + box.dropped + sum(box.results.values())
        assert exposed == box.pending_exposures + sent + box.dropped_exposures + box.lost_exposures
