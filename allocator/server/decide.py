"""What stands behind Decide: from the bytes of a request to those of its answer.

It reads the snapshot and this process's own counts, nothing else. What the answers of one plan share is built once, `Answer`; what is left
is to find the experiment, choose, count and sign. All of it is one function with what it needs at hand: between two calls gRPC's own code
goes through the processor's caches, so each object looked at and each function called costs several times what it does in a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from allocator.core.decision import Decision, Reason, check_unit
from allocator.core.decision_id import NONCE_BYTES
from allocator.core.snapshot import Entry, full_name
from allocator.engine.engine import Engine
from allocator.engine.live import Live
from allocator.errors import InvalidArgument, NotFound
from allocator.server.metrics import Metrics
from allocator.server.tallies import NOTED_AT_ONCE, Cell
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.decide_request import beginning
from allocator.wire.snapshots import decide_response_around

if TYPE_CHECKING:  # it brings pyarrow along, which a server without a log need not have
    from allocator.server.decision_log import DecisionLog

MAX_ATTRIBUTES = 64
NONCES_AT_ONCE = 512
MAX_BEGINNINGS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A DecideResponse before and after the id, how many such decisions were made, and why."""

    before: bytes
    after: bytes
    made: Cell
    reason: Reason


def deciding(engine: Engine, metrics: Metrics, log: DecisionLog | None = None) -> Callable[[bytes], bytes]:
    """The function. It raises InvalidArgument or NotFound, and belongs to the thread of the decider, whose forms it dresses."""
    live, decider = engine.live, engine.decider
    now, monotonic, random = engine.clock.now, engine.clock.monotonic, engine.entropy.bytes
    noted, count = metrics.decision_duration.noted, metrics.decision_duration.count
    names: dict[bytes, str] = {}  # of experiments, by the beginnings of requests
    nonces: list[bytes] = []
    nothing: Mapping[str, str] = {}

    def dress(experiment: str, decision: Decision) -> Answer:
        return Answer(*decide_response_around(decision), metrics.decided(experiment, decision), decision.reason)

    def parsed(raw: bytes) -> tuple[Entry, bytes, Mapping[str, str]]:
        request = service_pb.DecideRequest.FromString(raw)
        entry = entry_of(live, request.experiment)
        if len(request.attributes) > MAX_ATTRIBUTES:
            raise InvalidArgument.of_field("attributes", f"got {len(request.attributes)}; at most {MAX_ATTRIBUTES} are allowed")
        unit = check_unit(request.unit)
        begun = beginning(raw)
        if begun is not None:
            if len(names) >= MAX_BEGINNINGS:
                names.clear()
            names[begun] = entry.experiment
        return entry, unit, request.attributes

    def decide(raw: bytes) -> bytes:
        started = monotonic()
        end = raw[1] + 3 if len(raw) > 1 else 0
        entry = live.snapshot.entries.get(names.get(raw[:end]))
        unit, attributes = raw[end + 1 :], nothing
        if entry is None or not unit or raw[end] != len(unit) or not raw.isascii():
            entry, unit, attributes = parsed(raw)
        if not nonces:
            pool = random(NONCE_BYTES * NONCES_AT_ONCE)  # the operating system is asked once for many
            nonces.extend(pool[at : at + NONCE_BYTES] for at in range(0, len(pool), NONCE_BYTES))
        stale = started - live.confirmed > entry.lease_seconds
        form, token = decider.answer(entry, unit, attributes, now(), nonces.pop(), stale)
        answer = form.dressed
        answer.made.count += 1
        if log is not None:
            log.decided(entry, token, unit, attributes, answer.reason)
        noted.append(monotonic() - started)
        if len(noted) >= NOTED_AT_ONCE:
            count()
        return answer.before + token + answer.after

    decider.dress = dress
    return decide


def entry_of(live: Live, experiment: str) -> Entry:
    """The row of the snapshot, by the experiment's name, with or without its namespace. Raises InvalidArgument or NotFound."""
    entries = live.snapshot.entries
    entry = entries.get(experiment) or entries.get(full_name(experiment))
    if entry is None:
        if not experiment:
            raise InvalidArgument.of_field("experiment", "got nothing; the name of an experiment is needed")
        raise NotFound(f"there is no experiment {experiment[:200]!r}", reason="UNKNOWN_EXPERIMENT", experiment=experiment)
    return entry
