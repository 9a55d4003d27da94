"""The commonest DecideRequest, a name and a unit in ASCII, read from its bytes.

To build a message for it costs more than the whole decision. Where all bytes are ASCII each length is one byte, and any text is valid, so a
request that begins as one that was parsed before, names the length of what is left, and is ASCII asks for the same experiment: what is left
is the unit. Source: the wire format of protocol buffers, https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

EXPERIMENT, UNIT = 1 << 3 | 2, 2 << 3 | 2  # tags: the number of the field, and that a length follows


def beginning(raw: bytes) -> bytes | None:
    """All before the unit's length; None when there is anything else in it, or in another order or form than that of every library.

    It ends at `raw[1] + 3`, the unit begins a byte later, and neither the experiment nor the unit is empty.
    """
    if raw.isascii() and len(raw) >= 6 and raw[0] == EXPERIMENT:
        end = raw[1] + 3
        if 3 < end < len(raw) - 1 and raw[end - 1] == UNIT and end + 1 + raw[end] == len(raw):
            return raw[:end]
    return None
