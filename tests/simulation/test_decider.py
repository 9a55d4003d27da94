"""The batch decider against the server's: arms, flags and exposures of every request, whatever changes in between."""

from __future__ import annotations

import numpy as np
import pytest

from allocator.core.assignment import SLOTS, first_layout, unit_hash
from allocator.core.decider import Decider
from allocator.core.decision_id import read
from allocator.core.gate import REQUESTS, UNITS, Block
from allocator.core.kernels import serve
from allocator.core.snapshot import Entry, Table
from allocator.simulation.decider import Batch, BatchDecider

KEY, SALT = b"k" * 32, b"salt"
ARMS = ("old", "a", "b", "c")
START = 1_800_000_000.0


def table(rng):
    slots = rng.multinomial(SLOTS, rng.dirichlet([1.0] * len(ARMS))).tolist()
    layout = first_layout(slots)
    return Table(layout.ends, layout.owners, tuple(slots))


def entry_for(rng, **changes):
    values = {
        "experiment": "default/x", "uid": bytes(8), "version": 1, "state": "RUNNING", "sticky": True, "salt": SALT, "arms": ARMS,
        "model_uris": ("",) * len(ARMS), "incumbent": 0, "tables": (table(rng),), "window_seconds": 30.0, "bucket_seconds": 5.0,
    }  # fmt: skip
    return Entry(**{**values, **changes})


def both(rng, entry, ours, theirs, units, now, stale=False):
    """Decide on both sides; the same arms, flags and exposures."""
    nonces = [rng.bytes(8) for _ in units]
    hashes = [unit_hash(SALT, unit.to_bytes(8)) for unit in units]
    draws = hashes if entry.sticky else [unit_hash(SALT, nonce) for nonce in nonces]
    batch = Batch(
        np.array(units, np.int64),
        np.array([int.from_bytes(h) for h in hashes], np.uint64),
        np.array([int.from_bytes(d[:2]) for d in draws], np.int64),
        np.zeros(len(units), np.int64),
    )
    decided = ours.decide(entry, batch, now, stale=stale)
    said = [
        read(KEY, theirs.decide(entry, unit.to_bytes(8), {}, now, nonce, stale=stale).id) for unit, nonce in zip(units, nonces, strict=True)
    ]
    assert decided.arms.tolist() == [one.arm for one in said]
    flags = [serve.FIRST * one.first | serve.COUNTED * one.counted | serve.GATED * one.gated for one in said]
    assert decided.flags.tolist() == flags
    exposures, drawn = np.zeros((len(ARMS), 2), np.int64), np.zeros(len(ARMS), np.int64)
    for one in theirs.take():
        exposures[one.arm] += (one.count, one.units)
        drawn[one.arm] += one.drawn
    assert (decided.exposures[:, 0] == exposures).all()
    assert (decided.drawn[0] == drawn).all()
    return decided


@pytest.mark.parametrize("population", [0, 400], ids=["new units", "units that come back"])
@pytest.mark.parametrize("sticky", [True, False], ids=["sticky", "per request"])
def test_every_plan_is_served_as_the_server_would(population, sticky):
    rng = np.random.default_rng(1)
    ours, theirs = BatchDecider(len(ARMS), 1, population), Decider(KEY, restarted=False)
    now, first = START, 0
    for version in range(1, 60):
        entry = entry_for(
            rng,
            version=version,
            sticky=sticky,
            strict=version > 5,
            cap=float(rng.choice([0.0, 0.05, rng.random(), 1.0])),
            cap_per_candidate=float(rng.choice([0.0, rng.random(), 1.0])),
            burst=7,
            drained=int(rng.choice([0, 0, 0b10, 0b1010])),
            only=(0, 4) if rng.random() < 0.1 else None,
            counted=rng.random() > 0.05,
        )
        count = int(rng.integers(1, 300))
        units = rng.integers(0, population, count).tolist() if population else list(range(first, first + count))
        both(rng, entry, ours, theirs, units, now, stale=rng.random() < 0.1)
        first += count
        now += float(rng.integers(0, 8))


@pytest.mark.parametrize("burst", [0, 1, 1000])
@pytest.mark.parametrize("cap", [0.0, 1e-9, 0.03, 0.5, 1.0])
def test_a_strict_cap_closes_at_the_same_request(cap, burst):
    rng = np.random.default_rng(2)
    ours, theirs = BatchDecider(len(ARMS), 1), Decider(KEY, restarted=False)
    slots = (0, SLOTS // 2, SLOTS // 4, SLOTS // 4)  # the incumbent owns nothing: every request presses against the caps
    layout = first_layout(slots)
    entry = entry_for(rng, tables=(Table(layout.ends, layout.owners, slots),), strict=True, cap=cap, cap_per_candidate=0.4, burst=burst)
    decided = both(rng, entry, ours, theirs, list(range(5000)), START)
    candidates = np.cumsum(decided.arms != 0)
    assert (candidates <= cap * np.arange(1, 5001) + burst).all()
    assert decided.flags[-1] & serve.GATED or cap == 1.0


@pytest.mark.parametrize("population", [0, 100])
@pytest.mark.parametrize("kind", [REQUESTS, UNITS])
def test_a_lease_runs_out_and_low_at_the_same_request(kind, population):
    rng = np.random.default_rng(3)
    ours, theirs = BatchDecider(len(ARMS), 1, population), Decider(KEY, restarted=False)
    entry = entry_for(rng, sticky=False, leased_requests=kind == REQUESTS, leased_units=kind == UNITS, strict=True, cap=0.8, burst=5)
    said: dict[str, list[tuple[int, ...]]] = {"ours": [], "theirs": []}

    def refill(decider, name):
        serials = iter(range(1, 1000))

        def low():
            spent = tuple(decider.budget(entry.uid).spent(kind, arm) for arm in range(len(ARMS)))
            said[name].append(spent)
            if sum(spent) < 60:
                for arm in (1, 2):
                    decider.budget(entry.uid).post(kind, arm, Block(next(serials), 1, 8))

        return low

    ours.low, theirs.low = refill(ours, "ours"), refill(theirs, "theirs")
    units = (rng.integers(0, population, 1500) if population else np.arange(1500)).tolist()
    both(rng, entry, ours, theirs, units[:1], START)  # both learn of the entry
    ours.low()
    theirs.low()
    both(rng, entry, ours, theirs, units[1:], START)
    assert said["ours"] == said["theirs"]
    assert len(said["ours"]) > 4


def test_too_many_units_to_remember_are_sampled_alike():
    """More units in a window than a decider remembers, and more draws in an activation: both keep the same sample by hash."""
    rng = np.random.default_rng(4)
    ours, theirs = BatchDecider(len(ARMS), 1), Decider(KEY, restarted=False)
    entry = entry_for(rng)
    for part in range(5):
        decided = both(rng, entry, ours, theirs, list(range(part * 50_000, (part + 1) * 50_000)), START)
    counted = decided.flags & serve.FIRST
    assert 0.4 < counted.mean() < 0.6
    assert decided.drawn.sum() < 20_000
    later = both(rng, entry, ours, theirs, list(range(250_000, 251_000)), START + 30)
    assert 0.4 < (later.flags & serve.FIRST).mean() < 0.6
