"""Reports of one outcome each at a fixed rate, from a generator that costs a few microseconds a call.

In: an address, raw requests, a rate. Out: the raw answers. A client of grpcio costs about as much for a call as the server does, so on two
cores it would take from the server what is to be measured. This one speaks just enough HTTP/2 (RFC 9113) and HPACK (RFC 7541): one
connection, header blocks that are the same bytes each time, no table, no padding, no priorities; it keeps to the server's connection
window, and gives the server one that does not run out.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIRST_WINDOW = 65_535
TICK_SECONDS = 0.002
PATIENCE_SECONDS = 10.0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def text(value: bytes) -> bytes:
    """A string of HPACK, of fewer than 127 bytes, uncoded."""
    assert len(value) < 127
    return bytes((len(value),)) + value


def header_block(path: bytes, authority: bytes) -> bytes:
    """POST, http, and literals that enter no table: names 4, 1 and 31 of the static one, and `te`, which is not in it."""
    literals = b"\x04" + text(path) + b"\x01" + text(authority) + b"\x0f\x10" + text(b"application/grpc")
    return b"\x83\x86" + literals + b"\x00" + text(b"te") + text(b"trailers")


class Sender:
    """One connection. `send` queues a call, `flush` sends what is queued; `answers` grows by the message of each answer."""

    def __init__(self, address: str, path: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = header_block(path.encode(), address.encode())
        self._out = [PREFACE, frame(SETTINGS, 0, 0, b""), frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - FIRST_WINDOW))]
        self._stream, self._window, self._in = -1, FIRST_WINDOW, b""
        self._parts: dict[int, bytes] = {}
        self.open = 0
        self.answers: list[bytes] = []

    def send(self, message: bytes) -> None:
        body = b"\0" + struct.pack(">I", len(message)) + message
        while self._window < len(body):
            self.flush()
            self.receive(PATIENCE_SECONDS)
        self._window -= len(body)
        self._stream += 2
        self.open += 1
        self._out += (frame(HEADERS, END_HEADERS, self._stream, self._headers), frame(DATA, END_STREAM, self._stream, body))

    def flush(self) -> None:
        if self._out:
            self._socket.settimeout(PATIENCE_SECONDS)
            self._socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self, seconds: float) -> None:
        """Take what comes within this time, at most once."""
        self._socket.settimeout(max(seconds, 1e-4))
        try:
            found = self._socket.recv(1 << 16)
        except TimeoutError:
            return
        assert found, "the server hung up"
        self._in += found
        while len(self._in) >= 9 and len(self._in) >= 9 + (length := int.from_bytes(self._in[:3], "big")):
            kind, flags, stream = self._in[3], self._in[4], int.from_bytes(self._in[5:9], "big")
            self._take(kind, flags, stream, self._in[9 : 9 + length])
            self._in = self._in[9 + length :]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert kind not in (RESET, GOAWAY), (kind, payload)
        if kind == SETTINGS and not flags & ACK:
            self._out.append(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
        elif kind == DATA:
            self._parts[stream] = self._parts.get(stream, b"") + payload
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.open -= 1
            self.answers.append(self._parts.pop(stream, b"")[5:])  # none: the trailers told an error

    def close(self) -> None:
        """Wait for the answers that are missing, then hang up."""
        until = time.perf_counter() + PATIENCE_SECONDS
        while self.open and time.perf_counter() < until:
            self.flush()
            self.receive(0.1)
        self._socket.close()


@contextmanager
def sending(address: str, path: str, messages: Sequence[bytes], rate: float) -> Iterator[list[bytes]]:
    """Send these one after another, at this rate, while the block lasts; yields the answers, which are whole when it has ended.

    Calls are sent on time, whether or not earlier ones have come back.
    """
    sender, stop = Sender(address, path), threading.Event()

    def run() -> None:
        begun, sent = time.perf_counter(), 0
        while not stop.is_set():
            due = int((time.perf_counter() - begun) * rate)
            assert due <= len(messages), f"{len(messages)} messages are too few"
            while sent < due:
                sender.send(messages[sent])
                sent += 1
            sender.flush()
            sender.receive(TICK_SECONDS)
        sender.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sender.answers
    finally:
        stop.set()
        thread.join()
        assert not sender.open, f"{sender.open} calls were not answered"
