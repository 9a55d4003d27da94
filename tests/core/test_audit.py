"""The chain of audit records: whatever is edited, removed or swapped no longer fits."""

from __future__ import annotations

import random
from dataclasses import replace

from allocator.core.audit import GENESIS, AuditEntry, AuditRecord, first_broken, seal


def chain(count: int) -> list[AuditRecord]:
    records, digest = [], GENESIS
    for number in range(1, count + 1):
        entry = AuditEntry(1.5 * number, f"actor{number}", "experiment.freeze", "default/ranker", "why", '{"a": 1}', '{"a": 2}')
        records.append(seal(number, digest, entry))
        digest = records[-1].digest
    return records


def test_an_honest_chain_is_intact():
    assert first_broken(chain(50)) == 0
    assert first_broken([]) == 0


def test_every_edit_removal_and_swap_before_the_tail_is_found():
    rng = random.Random(3)
    for _ in range(1000):
        records = chain(12)
        place = rng.randrange(11)
        kind = rng.randrange(4)
        if kind == 0:
            field = rng.choice(["actor", "action", "experiment", "reason", "before", "after"])
            entry = records[place].entry
            records[place] = replace(records[place], entry=replace(entry, **{field: getattr(entry, field) + "x"}))
        elif kind == 1:
            records[place] = replace(records[place], entry=replace(records[place].entry, seconds=rng.random()))
        elif kind == 2:
            del records[place]
        else:
            records[place], records[place + 1] = records[place + 1], records[place]
        assert first_broken(records) in (place + 1, place + 2)


def test_moving_text_between_fields_changes_the_digest():
    one = seal(1, GENESIS, AuditEntry(0.0, "ab", "c", "d"))
    other = seal(1, GENESIS, AuditEntry(0.0, "a", "bc", "d"))
    assert one.digest != other.digest
