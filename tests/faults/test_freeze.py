"""Freeze, kill everything, start again in whatever order and with whatever is left of the store: nobody gets a candidate.

Two servers, each with a disk of its own, share a store. One is told to freeze and acknowledges; then both are gone without a word. The
store comes back as it was, as it had been before the freeze, or empty, before the servers, after them, or between them. The real
thing, with kill -9 and a SQLite file, is in `test_kill.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import two_arms
from tests.engine.fleet import Fleet


def trial(disk: Path, seed: int) -> tuple[str, str]:
    """One freeze and what follows. Returns what became of the store, and who started when."""
    rng = random.Random(seed)
    fleet = Fleet(disk, seed)
    for name in "ab":
        fleet.start(name)
    fleet.run("a", two_arms())
    before = fleet.kept_copy()
    for _ in range(rng.randrange(3)):
        name = rng.choice("ab")
        fleet.report(name, [fleet.decide(name) for _ in range(20)], error=0.0)
        fleet.tick(seconds=rng.uniform(0.5, 3))
    teller = rng.choice("ab")
    gone = rng.random() < 0.3  # the store is gone when the freeze comes: the server's own disk takes it
    fleet.lines[teller].cut = gone
    fleet.engines[teller].commands.freeze("ranker", actor="ann", reason=f"trial {seed}")
    assert fleet.arms(teller) == {"old"}
    for name in "ab":
        fleet.kill(name)
    fleet.clock.pass_(rng.uniform(0, 60))

    fate = rng.choice(["as it was", "as before the freeze", "empty"])
    if fate == "as before the freeze":
        fleet.store = before
    elif fate == "empty":
        fleet.store = fleet.new_store()
    order = [*rng.sample("ab", 2)]
    with_store = rng.randrange(3)  # how many servers start before the store answers
    for place, name in enumerate(order):
        fleet.start(name, cut=place < with_store)
        if name == teller:  # its own disk knows, with the store or without
            assert fleet.arms(name) == {"old"}, f"seed {seed}"
    for line in fleet.lines.values():
        line.cut = False
    for _ in range(4):
        fleet.tick(seconds=1)
    for name in "ab":
        if "default/ranker" in fleet.engines[name].live.snapshot.entries:
            arms = fleet.arms(name)
            assert arms == {"old"}, f"seed {seed}: {name} serves {arms}; the store came back {fate}, gone at the freeze: {gone}"
        else:
            assert fate == "empty"
    for name in "ab":
        fleet.kill(name)
    return fate, f"{with_store} before the store"


def trials(tmp_path: Path, count: int) -> None:
    found = Counter(trial(tmp_path / str(seed), seed) for seed in range(count))
    assert len(found) == 9, "each fate is to meet each order"
    print(f"\n{count} freezes, everything killed, started again: forgotten 0. {dict(Counter(fate for fate, _ in found.elements()))}")


def test_no_freeze_is_forgotten_in_60_deaths_of_everything(tmp_path):
    trials(tmp_path, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_freeze_is_forgotten_in_200_deaths_of_everything(tmp_path):
    trials(tmp_path, 200)
