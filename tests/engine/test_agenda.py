"""What the planner looks at next. Expectations from the agenda's own docstrings, the numbers from its constants."""

from __future__ import annotations

import math

import pytest

from allocator.engine.agenda import QUIET_SECONDS, ROUTINE_A_SECOND, ROUTINE_AT_ONCE, Agenda, Due, Turn

MANY = [f"e{number}" for number in range(1000)]


@pytest.fixture
def agenda() -> Agenda:
    return Agenda()


def test_what_was_asked_for_comes_before_losses_and_those_before_other_outcomes_and_what_is_due(agenda):
    agenda.set("due", 5.0)
    agenda.counted({"outcomes", "loss"}, {"outcomes", "loss"}, {"loss"})
    agenda.ask("asked")
    agenda.ask("asked")
    agenda.changed(["outcomes", "loss"], 10.0, shared=False)
    assert agenda.waiting()
    assert agenda.take(10.0, 0.0, 100) == Turn(["asked"], ["loss"], ["outcomes", "due"])
    assert not agenda.waiting()
    assert agenda.take(10.0, 0.0, 100) == Turn([], [], [])
    agenda.ask("asked")
    assert agenda.waiting()


def test_what_only_decisions_came_to_waits_but_not_for_ever(agenda):
    agenda.counted(set(), {"quiet"}, set())
    agenda.changed(["quiet"], 100.0, shared=False)
    assert agenda.take(100.0 + QUIET_SECONDS - 0.01, 0.0, 100).then == []
    assert agenda.take(100.0 + QUIET_SECONDS, 0.0, 100).then == ["quiet"]


def test_what_nobody_here_counted_was_counted_elsewhere_and_does_not_wait(agenda):
    agenda.counted(set(), {"quiet"}, set())
    agenda.changed(["elsewhere", "quiet"], 100.0, shared=False)
    assert agenda.take(100.0, 0.0, 100).then == ["elsewhere"]


def test_where_others_count_too_nothing_that_changed_waits(agenda):
    agenda.counted(set(), {"quiet"}, set())
    agenda.changed(["quiet"], 100.0, shared=True)
    assert agenda.take(100.0, 0.0, 100).then == ["quiet"]


def test_outcomes_that_are_told_after_the_look_that_found_them_do_not_wait(agenda):
    agenda.counted(set(), {"a"}, set())
    agenda.changed(["a"], 100.0, shared=False)  # the outcomes are in the store, and nobody has said so yet
    agenda.counted({"a"}, set(), set())
    agenda.changed([], 100.0, shared=False)
    assert agenda.take(100.0, 0.0, 100).then == ["a"]
    assert agenda.take(200.0, 0.0, 100).then == ["a"]  # due too; that is one look too many, and none too few


def test_who_was_quiet_once_is_not_quiet_for_ever(agenda):
    agenda.counted(set(), {"a"}, set())
    agenda.changed(["a"], 100.0, shared=False)
    agenda.changed(["a"], 101.0, shared=False)
    assert agenda.take(101.0, 0.0, 100).then == ["a"]


def test_what_was_counted_tells_of_one_look_at_the_store_only(agenda):
    agenda.counted({"a"}, {"a"}, set())
    agenda.changed([], 100.0, shared=False)
    agenda.counted(set(), {"a"}, set())
    agenda.changed(["a"], 100.0, shared=False)
    assert agenda.take(100.0, 0.0, 100).then == []


def test_a_pass_takes_no_more_than_it_may_and_losses_always(agenda):
    agenda.everything(MANY)
    agenda.counted(set(), set(), MANY[-3:])
    turn = agenda.take(0.0, 0.0, 2)
    assert sorted(turn.losses) == sorted(MANY[-3:])
    assert turn.then == []
    found = []
    for _ in range(10):
        found += agenda.take(0.0, 0.0, 256).then
    assert found == MANY[:-3]
    assert not agenda.waiting()


def test_no_kind_keeps_another_waiting_for_ever(agenda):
    agenda.everything(["unseen"])
    agenda.set("due", 1.0)
    agenda.again(MANY)
    then = agenda.take(2.0, 0.0, 64).then
    assert len(then) == 64
    assert 0 < then.index("unseen") < 60
    assert 0 < then.index("due") < 60
    assert [uid for uid in then if uid in set(MANY)] == MANY[:62]


def test_after_a_takeover_news_comes_before_what_is_looked_at_once(agenda):
    agenda.everything(MANY)
    assert agenda.take(0.0, 0.0, 3).then == MANY[:3]
    agenda.changed([MANY[0], MANY[500]], 1.0, shared=False)
    assert agenda.take(1.0, 1.0, 4).then == [MANY[0], MANY[3], MANY[500], MANY[4]]
    rest = agenda.take(1.0, 1.0, 1000).then
    assert rest == [uid for uid in MANY[5:] if uid != MANY[500]]
    assert not agenda.waiting()


def test_what_is_merely_due_is_looked_at_a_few_a_second(agenda):
    for uid in MANY:
        agenda.set(uid, 1.0)
    assert len(agenda.take(2.0, 50.0, 1000).then) == ROUTINE_AT_ONCE
    assert agenda.take(2.0, 50.0, 1000).then == []
    assert len(agenda.take(2.0, 52.0, 1000).then) == 2 * ROUTINE_A_SECOND
    agenda.everything(["seen"])
    assert agenda.take(1e9, 1e9, 1000).then == ["seen"]


def test_a_pass_that_failed_gives_back_what_it_took(agenda):
    agenda.ask("asked")
    agenda.counted({"b"}, set(), {"loss"})
    agenda.changed(["b"], 0.0, shared=False)
    turn = agenda.take(0.0, 0.0, 10)
    assert not agenda.waiting()
    agenda.give_back(turn)
    assert agenda.waiting()
    assert agenda.take(0.0, 0.0, 10) == turn == Turn(["asked"], ["loss"], ["b"])


def test_who_does_not_plan_forgets(agenda):
    agenda.ask("asked")
    agenda.counted({"b"}, {"c"}, {"loss"})
    agenda.everything(["d"])
    agenda.again(["e"])
    agenda.forget()
    assert not agenda.waiting()
    agenda.changed(["c"], 0.0, shared=False)
    assert agenda.take(0.0, 0.0, 10) == Turn([], [], ["c"])


def test_what_is_due_comes_in_order_of_time_and_once():
    due = Due()
    due.set("a", 5.0)
    due.set("b", 3.0)
    due.set("a", 9.0)
    due.sooner("b", 4.0)
    due.sooner("c", 8.0)
    due.set("d", math.inf)
    assert due.take(2.9, 10) == []
    assert due.take(8.5, 1) == ["b"]
    assert due.take(8.5, 10) == ["c"]
    assert due.take(100.0, 10) == ["a"]
    assert due.take(math.inf, 10) == []


def test_times_that_are_moved_again_and_again_are_not_kept():
    due = Due()
    for number in range(10_000):
        due.set("a", 1e6 - number)
    assert len(due._heap) < 100
    assert due.take(1e6, 10) == ["a"]
