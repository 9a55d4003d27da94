"""The checker finds what it is there to find: a good history with a good file passes, and each planted fault is told by its number."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from allocator.core.outcome import Outcome
from allocator.stores.sqlite import SqliteStore
from tests.conftest import ManualClock, two_arms
from tests.engine.conftest import Rehearsal
from tests.faults import checker
from tests.faults.history import History, calls
from tests.faults.servers import RANKER
from tests.test_doors import imports_of

Lines = list[dict]


@pytest.fixture
def told(tmp_path) -> tuple[Path, Path]:
    """A file and a history in which everything is right: 300 decisions and reports, some sent twice, and a freeze."""
    path, rng = tmp_path / "store.db", random.Random(5)
    rehearsal = Rehearsal(SqliteStore(path), ManualClock())
    with History(tmp_path / "history.jsonl") as history:
        start = history.invoke("ann", "start", actor="ann", reason="")
        rehearsal.run(two_arms())
        history.end(start, "ok")
        for number in range(30):
            units = [f"{number}-{i}" for i in range(10)]
            call = history.invoke("client", "decide", units=units)
            made = [rehearsal.decide(unit=unit) for unit in units]
            arms, reasons = [d.arm for d in made], [d.reason.name for d in made]
            slots, version = [round(d.propensity * 65_536) for d in made], rehearsal.record().version
            history.end(call, "ok", arms=arms, reasons=reasons, slots=slots, version=version)
            outcomes = [(d.id, float(rng.random() < 0.3), {"error": float(i == 0 and number < 2)}) for i, d in enumerate(made)]
            for _ in range(1 + (number % 5 == 0)):
                call = history.invoke("client", "report", outcomes=outcomes)
                results = rehearsal.report([Outcome(*outcome) for outcome in outcomes])
                history.end(call, "ok", statuses=[result.status.value for result in results])
            rehearsal.plan()
        freeze = history.invoke("ann", "freeze", actor="ann", reason="enough")
        rehearsal.engine.commands.freeze("ranker", actor="ann", reason="enough")
        history.end(freeze, "ok")
        call = history.invoke("client", "decide", units=["late"])
        late = rehearsal.decide(unit="late")
        history.end(call, "ok", arms=[late.arm], reasons=[late.reason.name], slots=[65_536], version=rehearsal.record().version)
    rehearsal.engine.close()
    return path, history.path


def judged(path: Path, history: Path) -> list[str]:
    return checker.check(RANKER, checker.of_sqlite(path), history)


def test_what_is_right_passes(told):
    assert judged(*told) == []
    figures = checker.figures(told[1])
    assert figures["acknowledged"] == 300
    assert figures["decisions"] == 301
    assert len(checker.of_sqlite(told[0]).seen) == 300


SOME = "(SELECT nonce FROM seen ORDER BY nonce LIMIT 1)"


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        (f"DELETE FROM seen WHERE nonce = {SOME}", "I1"),
        (f"UPDATE seen SET metrics = 1 WHERE nonce = {SOME}", "I1"),
        ("UPDATE cells SET count = count - 1 WHERE stream = '_reward' AND arm = 0", "I1"),
        ("UPDATE cells SET count = count + 1 WHERE stream = '_reward' AND arm = 0", "I2"),
        ("INSERT INTO seen SELECT experiment, bucket, 12345, metrics FROM seen LIMIT 1", "I2"),
        ("UPDATE cells SET total = total + 1 WHERE stream = '_reward' AND arm = 1", "I3"),
        ("UPDATE cells SET square_low = square_low + 1 WHERE stream = '_reward' AND arm = 1", "I3"),
        ("UPDATE cells SET total = total + 1 WHERE stream LIKE 'errors@%'", "I3"),
        ("INSERT INTO settled SELECT * FROM cells WHERE stream = '_reward'", "settled"),
        ("UPDATE records SET document = replace(document, '\"FROZEN\"', '\"RUNNING\"')", "I5"),
        ("UPDATE audit SET reason = 'another' WHERE action = 'experiment.freeze'", "I9"),
        ("DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)", "I9"),
        ("DELETE FROM audit WHERE sequence = 2", "I9"),
        ("UPDATE audit SET sequence = -1 WHERE sequence = 2", "I9"),
    ],
)
def test_a_fault_planted_in_the_file_is_found(told, statement, rule):
    path, history = told
    with closing(sqlite3.connect(path)) as db:
        for trigger in ("audit_is_appended", "audit_is_not_changed", "audit_is_not_deleted"):
            db.execute(f"DROP TRIGGER {trigger}")
        assert db.execute(statement).rowcount > 0
        db.commit()
    found = judged(path, history)
    assert any(rule in line for line in found), found


def first(lines: Lines, op: str, type_: str = "ok") -> dict:
    """The line that ends the first call of a kind so."""
    number = next(line["id"] for line in lines if line.get("op") == op)
    return next(line for line in lines if line["id"] == number and line["type"] == type_)


def double(lines: Lines) -> None:
    """A report that was a DUPLICATE is told to be ACCEPTED, twice over."""
    for line in lines:
        if "DUPLICATE" in line.get("statuses", ()):
            line["statuses"] = ["ACCEPTED"] * len(line["statuses"])
            lines.append({**line, "id": 10_000 + line["id"]})
            begun = next(begun for begun in lines if begun["id"] == line["id"] and begun["type"] == "invoke")
            lines.insert(0, {**begun, "id": 10_000 + line["id"]})
            return


def another_value(lines: Lines) -> None:
    """Of a report that was sent once: the third."""
    [line for line in lines if line.get("op") == "report"][2]["outcomes"][0][1] = 0.5


def candidate_after_the_freeze(lines: Lines) -> None:
    lines[-1].update(arms=["new"], reasons=["ALLOCATED"], slots=[100])


def resumed_and_served(lines: Lines) -> None:
    """Not a fault: after a resume, candidates may come again."""
    t = lines[-1]["t"]
    lines += [
        {"t": t + 1, "proc": "ann", "op": "freeze", "id": 900, "type": "invoke", "actor": "ann", "reason": "never acknowledged"},
        {"t": t + 2, "id": 900, "type": "info"},
    ]


PLANTS: dict[str, tuple[Callable[[Lines], object], str]] = {
    "a decision that was not answered": (lambda lines: first(lines, "decide").update(type="info", error="UNAVAILABLE"), "I6"),
    "an answer too short": (lambda lines: first(lines, "decide")["arms"].pop(), "I6"),
    "an arm that does not exist": (lambda lines: first(lines, "decide")["arms"].__setitem__(0, "newer"), "I6"),
    "two arms for one unit": (lambda lines: first(lines, "decide", "invoke")["units"].__setitem__(slice(None), ["u"] * 10), "I7"),
    "another share under one version": (lambda lines: first(lines, "decide")["slots"].__setitem__(0, 5), "I4"),
    "a share above the cap": (lambda lines: first(lines, "decide").update(slots=[40_000] * 10, arms=["new"] * 10), "I4"),
    "an outcome counted twice": (double, "I2"),
    "a candidate after a freeze": (candidate_after_the_freeze, "I5"),
    "a value that was never stored": (another_value, "I3"),
    "an acknowledgement of what was never stored": (lambda lines: first(lines, "report", "invoke")["outcomes"][0][2].update(m=1.0), "I1"),
    "a command nobody recorded": (lambda lines: first(lines, "start", "invoke").update(actor="eve"), "I9"),
    "a freeze in doubt, and no fault": (resumed_and_served, ""),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_fault_planted_in_the_history_is_found(told, plant):
    path, history = told
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    change, rule = PLANTS[plant]
    change(lines)
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = judged(path, history)
    assert any(line.startswith(rule) for line in found) if rule else found == [], found


def test_a_budget_granted_past_its_limit_is_found():
    dump = checker.Dump(grants={(1, "requests"): 101, (1, "units"): 5})
    subject = checker.Subject(("old", "new"), "old", "click", 30.0, limits={"requests": 100, "units": 5})
    (line,) = checker.check(subject, dump)
    assert line.startswith("I4: 101 requests")


def test_a_call_that_never_ended_is_of_unknown_fate(tmp_path):
    with History(tmp_path / "history.jsonl") as history:
        history.invoke("a", "report", outcomes=[])
    ((_, ended),) = calls(history.path)
    assert (ended["type"], ended["t"]) == ("info", float("inf"))


def test_the_checker_shares_nothing_with_the_product():
    for name in ("checker.py", "history.py"):
        assert not any(module.partition(".")[0] == "allocator" for module in imports_of(Path(__file__).parent / name))
