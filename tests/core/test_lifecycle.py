"""The table of states and events, walked pair by pair, and the freeze as a latch."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.core.lifecycle import NEXT, Event, State, Status, merge_latch, step
from allocator.errors import Refused


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=lambda value: value.name)
def test_every_pair_does_what_the_table_says_and_an_absent_one_is_refused(state, event):
    before = Status(state=state)
    if (state, event) in NEXT:
        after = step(before, event, reason="why", now=5.0)
        assert (after.state, after.reason, after.since_seconds) == (NEXT[state, event], "why", 5.0)
    else:
        with pytest.raises(Refused) as caught:
            step(before, event, reason="why", now=5.0)
        assert caught.value.reason == "WRONG_STATE"
        assert caught.value.metadata == {"state": state.value, "event": event.value}


def test_the_ends_have_no_way_out():
    assert not [pair for pair in NEXT if pair[0] in (State.ROLLED_BACK, State.CONCLUDED)]


def test_only_a_resume_opens_the_latch_and_it_begins_an_activation():
    status = step(Status(), Event.STARTED, reason="", now=0.0)
    assert not status.frozen
    for activation in range(1, 5):
        assert status.activation == activation
        status = step(status, Event.BREACHED, reason="x", now=1.0)
        assert status.frozen
        status = step(status, Event.FROZEN, reason="again", now=2.0)
        assert status.frozen
        status = step(status, Event.RESUMED, reason="y", now=3.0)
        assert not status.frozen
        assert (status.drained, status.approvals) == ((), ())


running = st.builds(
    Status,
    state=st.sampled_from([State.RUNNING, State.FROZEN]),
    freeze_epoch=st.integers(0, 6),
    resume_epoch=st.integers(0, 6),
)


@given(running, running)
def test_merging_forgets_no_freeze_and_is_the_same_either_way(one, other):
    merged, back = merge_latch(one, other), merge_latch(other, one)
    assert (merged.freeze_epoch, merged.resume_epoch) == (back.freeze_epoch, back.resume_epoch)
    assert merge_latch(merged, other) == merged
    if merged.frozen:
        assert merged.state is State.FROZEN
    latest = max((one, other), key=lambda s: max(s.freeze_epoch, s.resume_epoch))
    if latest.frozen and latest.freeze_epoch >= max(one.resume_epoch, other.resume_epoch):
        assert merged.frozen  # a freeze wins a tie
