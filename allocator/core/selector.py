"""Labels asked for: `team=search,tier!=gold,reviewed,!retired`.

In: the text of a selector. Out: a function that says whether labels fit it: every part must hold. `key=value` and `key!=value` compare
(without the label, only `!=` holds), `key` asks that there is such a label, `!key` that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from allocator.errors import InvalidArgument

MAX_CHARACTERS = 1000


def selector(text: str) -> Callable[[Mapping[str, str]], bool]:
    """The test that a selector means; an empty one fits all. Raises InvalidArgument, field `selector`."""
    if len(text) > MAX_CHARACTERS:
        raise _wrong(text[:40])
    parts = [_part(part.strip()) for part in text.split(",") if part.strip()]
    return lambda labels: all(part(labels) for part in parts)


def _part(text: str) -> Callable[[Mapping[str, str]], bool]:
    if "!=" in text:
        key, value = _pair(text, "!=")
        return lambda labels: labels.get(key) != value
    if "=" in text:
        key, value = _pair(text, "==" if "==" in text else "=")
        return lambda labels: labels.get(key) == value
    absent = text.startswith("!")
    name = text.removeprefix("!").strip()
    if not name:
        raise _wrong(text)
    return lambda labels: (name in labels) != absent


def _pair(text: str, sign: str) -> tuple[str, str]:
    key, _, value = (part.strip() for part in text.partition(sign))
    if not key or "=" in value:
        raise _wrong(text)
    return key, value


def _wrong(text: str) -> InvalidArgument:
    return InvalidArgument.of_field("selector", f"got {text!r}; key=value, key!=value, key or !key is allowed, with commas between several")
