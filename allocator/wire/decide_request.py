"""The commonest DecideRequest, a name and a unit in ASCII, read from its bytes.

To build a message for it costs more than the whole decision. In: bytes. Out: the two fields where nothing else is there, in the order and
the form in which every protobuf library writes them; else None, and it has to be parsed. Source: the wire format of protocol buffers, a
field being its tag, its length and its bytes, https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

EXPERIMENT, UNIT = 1 << 3 | 2, 2 << 3 | 2  # tags: the number of the field, and that a length follows


def name_and_unit(raw: bytes) -> tuple[bytes, bytes] | None:
    """The experiment and the unit, neither of them empty.

    Where all bytes are ASCII each length is one byte, and either field is valid UTF-8.
    """
    if raw.isascii() and len(raw) >= 6 and raw[0] == EXPERIMENT:
        end = 2 + raw[1]
        if 2 < end < len(raw) - 2 and raw[end] == UNIT and end + 2 + raw[end + 1] == len(raw):
            return raw[2:end], raw[end + 2 :]
    return None
