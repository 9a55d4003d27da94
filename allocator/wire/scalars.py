"""The small parts that messages share with values: durations, times, and what attributes must match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue
from google.protobuf.timestamp_pb2 import Timestamp


def match_from_message(match: Mapping[str, ListValue]) -> dict[str, tuple[str, ...]]:
    """Attribute to allowed values; numbers and booleans as the text that a caller would send."""
    return {attribute: tuple(map(_text, values)) for attribute, values in match.items()}


def fill_match(target: Mapping[str, ListValue], match: Mapping[str, Iterable[str]]) -> None:
    """Put attribute to allowed values into a message's map."""
    for attribute, values in match.items():
        target[attribute].extend(list(values))


def duration(seconds: float) -> Duration:
    """Seconds as a Duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def seconds_of(duration: Duration) -> float:
    """A Duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp."""
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e6) * 1000)
    return stamp


def seconds_since_epoch(stamp: Timestamp) -> float:
    """A Timestamp in seconds since the epoch."""
    return stamp.seconds + stamp.nanos / 1e9


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)
