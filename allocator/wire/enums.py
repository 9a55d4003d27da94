"""Enum names without their prefix: `STICKY` in files and in the core, `ASSIGNMENT_STICKY` on the wire.

In: an enum's descriptor or a member. Out: the short name, the number, and what is allowed. The prefix is what buf STANDARD asks for: the
enum's name in upper snake case.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import cache
from typing import TypeVar

from google.protobuf.descriptor import EnumDescriptor

from allocator.v1 import allocator_pb2 as pb

E = TypeVar("E", bound=Enum)


@cache
def prefix(descriptor: EnumDescriptor) -> str:
    """The prefix of every value of the enum, e.g. `REWARD_MODEL_`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", descriptor.name).upper() + "_"


@cache
def short_names(descriptor: EnumDescriptor) -> dict[str, int]:
    """Short name to number, UNSPECIFIED left out."""
    cut = len(prefix(descriptor))
    return {value.name[cut:]: value.number for value in descriptor.values if value.number != 0}


@cache
def _by_number(descriptor: EnumDescriptor) -> dict[int, str]:
    return {number: name for name, number in short_names(descriptor).items()}


def to_number(member: Enum) -> int:
    """The wire number of a core enum's member; the wire enum has the same class name."""
    return _numbers(type(member))[member.name]


def from_number(enum: type[E], number: int, default: E) -> E:
    """The core member of a wire number; `default` for 0 (nothing was said). An unknown number raises ValueError."""
    if number == 0:
        return default
    return enum[_by_number(_descriptor(WIRE_NAMES.get(enum.__name__, enum.__name__)))[number]]


@cache
def _numbers(enum: type[Enum]) -> dict[str, int]:
    return short_names(_descriptor(WIRE_NAMES.get(enum.__name__, enum.__name__)))


WIRE_NAMES = {"State": "ExperimentState"}


def _descriptor(name: str) -> EnumDescriptor:
    return pb.DESCRIPTOR.enum_types_by_name[name]
