"""Exposures and leases of in-process deciders ↔ messages. Loads neither numpy nor the rest of the core: the client lives on this."""

from __future__ import annotations

from allocator.core.decider import Exposure
from allocator.core.gate import REQUESTS, UNITS
from allocator.v1 import allocator_service_pb2 as service_pb

KINDS = {service_pb.LEASE_KIND_REQUESTS: REQUESTS, service_pb.LEASE_KIND_UNITS: UNITS}
NUMBERS = {kind: number for number, kind in KINDS.items()}
NO_UID = b""


def exposure_to_message(e: Exposure) -> service_pb.ExposureCount:
    """An exposure as a message; the life of its decider stands in the batch."""
    return service_pb.ExposureCount(
        uid=e.uid.hex(),
        activation=e.activation,
        bucket=e.bucket,
        arm=e.arm,
        segment=e.segment,
        count=e.count,
        units=e.units,
        drawn=e.drawn,
        expected=e.expected,
        variance=e.variance,
    )


def exposure_from_message(m: service_pb.ExposureCount, life: int) -> Exposure:
    """An exposure of this life. A uid that is none becomes that of no experiment."""
    return Exposure(
        uid_from_text(m.uid), m.activation, m.bucket, m.arm, m.segment, m.count, m.units, m.drawn, m.expected, m.variance, life
    )


def uid_from_text(uid: str) -> bytes:
    """The uid of an experiment, `NO_UID` for what is none."""
    try:
        return bytes.fromhex(uid)
    except ValueError:
        return NO_UID
