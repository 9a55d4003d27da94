"""Keeps an in-process decider's leases of budgets filled, out of what the server sets aside.

In: the table, and what the decider has spent. Out: what to ask the server for, and blocks handed to the decider once it has answered.
Values only: no thread, no transport. Who was told "nothing left" asks again later and later, so that a budget that is used up costs the
server little.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from allocator.core.decider import Decider
from allocator.core.gate import REQUESTS, UNITS
from allocator.core.leasing import Lease
from allocator.core.snapshot import Snapshot
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.exposures import NUMBERS

AGAIN_SECONDS = (0.5, 8.0)  # the first pause after "nothing left", and the longest
MAX_LEASES = 1000  # in one request


class Wanted(NamedTuple):
    """What to ask for."""

    uid: bytes
    arm: int
    kind: str
    exposures: int


class Leases:
    """The leases of one decider. For one thread."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._leases: dict[tuple[bytes, int, str], Lease] = {}
        self._again: dict[tuple[bytes, int, str], tuple[float, float]] = {}  # when to ask again, and the pause after that

    def wanted(self, snapshot: Snapshot, now: float) -> list[Wanted]:
        """What the decider needs more of. now: monotonic seconds."""
        found = []
        for uid in self._decider.leasing():
            entry = snapshot.by_uid.get(uid)
            if entry is None or entry.only is not None:
                continue
            for arm in range(len(entry.arms)):
                if arm == entry.incumbent or not any(arm < len(table.served) and table.served[arm] for table in entry.tables):
                    continue
                for kind, leased in ((REQUESTS, entry.leased_requests), (UNITS, entry.leased_units)):
                    at, _ = self._again.get((uid, arm, kind), (float("-inf"), 0.0))
                    if not leased or now < at:
                        continue
                    lease = self._leases.setdefault((uid, arm, kind), Lease())
                    more = lease.wanted(entry.activation, self._decider.budget(uid).spent(kind, arm))
                    if more:
                        found.append(Wanted(uid, arm, kind, more))
        return found[:MAX_LEASES]

    def granted(self, wanted: list[Wanted], reply: service_pb.LeaseExposureResponse, now: float) -> None:
        """Hand the decider what the server set aside for it."""
        for (uid, arm, kind, _), grant in zip(wanted, reply.grants, strict=False):
            key = (uid, arm, kind)
            lease = self._leases[key]
            if grant.exposures > 0 and grant.activation == lease.activation:
                self._decider.budget(uid).post(kind, arm, lease.block(grant.exposures))
                self._again.pop(key, None)
            else:
                _, pause = self._again.get(key, (0.0, AGAIN_SECONDS[0]))
                self._again[key] = now + random.uniform(0.5, 1.0) * pause, min(2 * pause, AGAIN_SECONDS[1])


def request_of(wanted: list[Wanted]) -> service_pb.LeaseExposureRequest:
    """As a message."""
    return service_pb.LeaseExposureRequest(
        leases=[
            service_pb.ExposureLease(uid=uid.hex(), arm=arm, kind=NUMBERS[kind], exposures=exposures)  # type: ignore[arg-type]
            for uid, arm, kind, exposures in wanted
        ]
    )
