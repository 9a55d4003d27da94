"""Exposures → rows of the store: this process's own, and batches that deciders elsewhere have counted.

In: exposures as `core/decider.py` counts them. Out: cells to add. What this process counted is added once because it is handed over once. A
batch from elsewhere may come again, since its sender never learns whether a reply was lost; each experiment and bucket of it becomes an
`OutcomeRow` that the store counts once for the batch's id, like an outcome.

Draws of sticky units are judged for each life of a decider by itself (`core/sample_ratio.py`). Hundreds of in-process deciders would
be hundreds of streams to keep and judge, so the draws of the first 32 lives of an activation are kept, whoever they are: a sample that
does not depend on what was drawn. All exposures are counted.

Dropped: the highest sequence number of each decider, instead of a row for each batch (the store would need one more thing to keep for each
process that ever decided); refusing a batch with a foreign entry (an experiment that was just replaced would hold up all others).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from allocator.core.decider import Exposure
from allocator.core.outcome import Contract
from allocator.core.record import EXPOSURES, UNITS, Cell
from allocator.core.statistics import MICRO
from allocator.core.tally import draw_stream
from allocator.engine.registry import Registry
from allocator.errors import Violation
from allocator.ports import Contribution, ExposureRow, OutcomeRow

BATCH_ID_BYTES = 8
MAX_COUNTS = 10_000  # in one report
MAX_COUNT = 1_000_000_000  # of one count: its variance still fits into 63 bits
MAX_LIVES = 32  # of which draws are kept, for each experiment and activation
ONE_BIT = 1  # a batch is one metric of its row


class ExposureBatch(NamedTuple):
    """What one decider elsewhere has counted. id: 8 bytes, the same when it is sent again. life: see `core/decider.py`."""

    id: bytes
    life: int
    counts: tuple[Exposure, ...]


class Lives:
    """The lives whose draws are kept. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bytes, tuple[int, set[int]]] = {}  # by experiment: its latest activation, the lives in it

    def kept(self, uid: bytes, activation: int, life: int) -> bool:
        """Is there room for this life?"""
        with self._lock:
            latest, lives = self._kept.get(uid, (-1, set()))
            if activation > latest:
                latest, lives = activation, set()
                self._kept[uid] = latest, lives
            if activation != latest or (life not in lives and len(lives) >= MAX_LIVES):
                return False
            lives.add(life)
            return True


def exposure_rows(exposures: Iterable[Exposure]) -> list[ExposureRow]:
    """Exposures as cells to add."""
    rows = []
    for e in exposures:
        uid = e.uid.hex()
        if e.count:
            rows.append(ExposureRow(uid, Cell(e.bucket, e.arm, e.segment, EXPOSURES, e.count, 0)))
        if e.units:
            rows.append(ExposureRow(uid, Cell(e.bucket, e.arm, e.segment, f"{UNITS}#{e.activation}", e.units, 0)))
        if e.drawn or e.expected:
            stream = draw_stream(e.activation, e.life)
            rows.append(ExposureRow(uid, Cell(e.bucket, e.arm, e.segment, stream, e.drawn, e.expected, *divmod(e.variance, MICRO))))
    return rows


def batch_rows(
    batches: Sequence[ExposureBatch], registry: Registry, lives: Lives, latest: float, found: list[Violation]
) -> tuple[list[tuple[OutcomeRow, int]], int]:
    """A row for each experiment and bucket of each batch, with the decisions in it; and the decisions that fit no experiment here.

    latest: seconds since the epoch, after which no decision can have been made. Adds to `found` what breaks the contract.
    """
    rows: list[tuple[OutcomeRow, int]] = []
    foreign = 0
    if sum(len(batch.counts) for batch in batches) > MAX_COUNTS:
        found.append(Violation("exposures", f"got more than {MAX_COUNTS} counts; at most that many in one report are allowed"))
        return rows, 0
    for index, batch in enumerate(batches):
        path = f"exposures[{index}]"
        if len(batch.id) != BATCH_ID_BYTES:
            found.append(Violation(f"{path}.id", f"got {len(batch.id)} bytes; {BATCH_ID_BYTES} are allowed"))
        if not 0 <= batch.life < 1 << 62:
            found.append(Violation(f"{path}.life", f"got {batch.life}; microseconds since the epoch are allowed"))
        together: dict[tuple[bytes, int], list[Exposure]] = {}
        for place, exposure in enumerate(batch.counts):
            found += _faults(f"{path}.counts[{place}]", exposure)
            contract = registry.contract(exposure.uid)
            if contract is None or not _fits(contract, exposure, latest):
                foreign += exposure.count
                continue
            together.setdefault((exposure.uid, exposure.bucket), []).append(_judged(exposure, contract.sticky, batch.life, lives))
        if not found:
            rows += [(_row(batch.id, uid, bucket, counts), sum(e.count for e in counts)) for (uid, bucket), counts in together.items()]
    return rows, foreign


def _fits(contract: Contract, e: Exposure, latest: float) -> bool:
    """Can the experiment have made these decisions? Another server may know of an activation that this one has yet to hear of."""
    return contract.fits(e.arm, e.segment) and e.activation <= contract.activation + 1 and e.bucket * contract.bucket_seconds <= latest


def _judged(exposure: Exposure, sticky: bool, life: int, lives: Lives) -> Exposure:
    """The exposure with its draws under the right life, or without them."""
    if not sticky:
        return exposure._replace(life=0)
    if (exposure.drawn or exposure.expected) and not lives.kept(exposure.uid, exposure.activation, life):
        return exposure._replace(drawn=0, expected=0, variance=0)
    return exposure._replace(life=life)


def _row(batch: bytes, uid: bytes, bucket: int, counts: list[Exposure]) -> OutcomeRow:
    cells = tuple(Contribution(0, row.cell) for row in exposure_rows(counts))
    return OutcomeRow(uid.hex(), batch, bucket, ONE_BIT, cells)


def _faults(path: str, e: Exposure) -> list[Violation]:
    wrong = []
    if not 0 <= e.count <= MAX_COUNT:
        wrong.append(("count", e.count, f"0 to {MAX_COUNT}"))
    most = min(max(e.count, 0), MAX_COUNT)
    if not 0 <= e.units <= most:
        wrong.append(("units", e.units, f"0 to its count, {most},"))
    if not 0 <= e.drawn <= MAX_COUNT:  # some may come after their decisions
        wrong.append(("drawn", e.drawn, f"0 to {MAX_COUNT}"))
    if not 0 <= e.expected <= MAX_COUNT << 16:
        wrong.append(("expected", e.expected, f"0 to {MAX_COUNT << 16}"))
    if not 0 <= e.variance <= MAX_COUNT << 32:
        wrong.append(("variance", e.variance, f"0 to {MAX_COUNT << 32}"))
    if e.activation < 0 or not 0 <= e.bucket < 1 << 40:
        wrong.append(("bucket", e.bucket, "a bucket and an activation of at least 0"))
    return [Violation(f"{path}.{name}", f"got {value}; {allowed} is allowed") for name, value, allowed in wrong]
