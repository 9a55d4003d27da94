"""What callers of an in-process client hand in: outcomes, attributes, settings; checked, and as plain values.

In: anything at all, for callers make mistakes. Out: the same as plain values, or InvalidArgument by the name of the argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from allocator.client.remote import Value, attribute_text
from allocator.errors import InvalidArgument, Violation

MAX_METRICS, MAX_NAME = 64, 256


def checked_outcome(decision_id: Any, reward: Any, metrics: Any) -> tuple[str, float | None, dict[str, float] | None]:
    """The outcome with plain values. Raises InvalidArgument or what conversion raises."""
    if type(decision_id) is not str or len(decision_id) > MAX_NAME:
        raise InvalidArgument.of_field("decision_id", "the id of a decision is needed")
    number = None if reward is None else _finite("reward", reward)
    if not metrics:
        return decision_id.encode().decode(), number, None
    if len(metrics) > MAX_METRICS:
        raise InvalidArgument.of_field("metrics", f"got {len(metrics)}; at most {MAX_METRICS} are allowed")
    for name in metrics:
        if type(name) is not str or len(name.encode()) > MAX_NAME:
            raise InvalidArgument.of_field("metrics", f"got a name that is no text of at most {MAX_NAME} bytes")
    return decision_id.encode().decode(), number, {name: _finite(f"metrics[{name}]", value) for name, value in metrics.items()}


def texts(attributes: Mapping[str, Value]) -> Mapping[str, str]:
    """Attributes as the decider compares them; the same mapping when all are texts already. Raises InvalidArgument."""
    for value in attributes.values():
        if type(value) is not str:
            return {name: attribute_text(name, each) for name, each in attributes.items()}
    return attributes  # type: ignore[return-value]


def check_settings(address: str, capacity: int, burst: int, pause: tuple[float, float]) -> None:
    """Raise InvalidArgument with everything that is wrong with the settings of a client."""
    found = []
    if not isinstance(address, str) or not address:
        found.append(Violation("address", f"got {address!r}; host:port is allowed"))
    for name, value in (("capacity", capacity), ("burst", burst)):
        if type(value) is not int or value < (name == "capacity"):
            found.append(Violation(name, f"got {value!r}; a whole number of at least {int(name == 'capacity')} is allowed"))
    if not 0 <= pause[0] <= pause[1] < math.inf:
        found.append(Violation("pause", f"got {pause!r}; two numbers of seconds, the first at most the second, are allowed"))
    if found:
        raise InvalidArgument(violations=found)


def _finite(field: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InvalidArgument.of_field(field, f"got {number}; a finite number is allowed")
    return number
