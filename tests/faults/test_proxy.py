"""The proxy does to a connection what it says, and nothing when all is well."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy


class Echo(socketserver.BaseRequestHandler):
    """Answers what it is sent, and remembers it."""

    heard: bytes

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self.request.recv(65_536):
                self.server.heard += piece
                self.request.sendall(piece)


@pytest.fixture
def echo() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        server.heard = b""
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(echo) -> Iterator[Proxy]:
    with Proxy("{}:{}".format(*echo.server_address)) as proxy:
        yield proxy


@contextlib.contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    host, _, port = proxy.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        yield sock


def echoed(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    found = b""
    while len(found) < len(data) and (piece := sock.recv(65_536)):
        found += piece
    return found


def ending(sock: socket.socket) -> tuple[bytes, str]:
    """What still comes, and how the connection ends: "closed" or "reset"."""
    found = b""
    try:
        while piece := sock.recv(65_536):
            found += piece
    except ConnectionResetError:
        return found, "reset"
    return found, "closed"


def refused(proxy: Proxy) -> bool:
    """Is a new connection reset, at once or a moment later?"""
    try:
        with connected(proxy) as sock:
            return ending(sock) == (b"", "reset")
    except ConnectionResetError:
        return True


def silent(sock: socket.socket, data: bytes) -> bool:
    """Nothing comes back for a while, and the connection stands."""
    sock.sendall(data)
    sock.settimeout(0.2)
    try:
        return sock.recv(10) is None
    except TimeoutError:
        return True
    finally:
        sock.settimeout(10)


def test_when_all_is_well_everything_comes_through_in_order(proxy):
    data = bytes(range(256)) * 4_000
    with connected(proxy) as one, connected(proxy) as two:
        sender = threading.Thread(target=one.sendall, args=(data,))
        sender.start()
        found = b""
        while len(found) < len(data):
            found += one.recv(65_536)
        sender.join()
        assert found == data
        assert echoed(two, b"x") == b"x"
        assert proxy.open == 2
    assert proxy.accepted == 2


def test_latency_delays_each_way_and_pieces_do_not_wait_for_one_another(proxy):
    with connected(proxy) as sock:
        proxy.latency(0.1)
        begun = time.monotonic()
        assert echoed(sock, b"a") == b"a"
        assert time.monotonic() - begun >= 0.2
        proxy.heal()
        assert echoed(sock, b"b") == b"b"  # nothing was lost: the connection stands


def test_a_black_hole_swallows_both_ways_and_healing_resets_what_has_a_hole(proxy, echo):
    with connected(proxy) as sock:
        proxy.black_hole()
        assert silent(sock, b"lost")
        assert echo.heard == b""
        proxy.heal()
        assert ending(sock) == (b"", "reset")
    with connected(proxy) as sock:
        assert echoed(sock, b"y") == b"y"


def test_half_open_requests_arrive_and_answers_do_not(proxy, echo):
    with connected(proxy) as sock:
        proxy.half_open()
        assert silent(sock, b"heard")
        assert echo.heard == b"heard"


def test_a_cut_reply_ends_after_so_many_bytes_with_a_reset(proxy, echo):
    with connected(proxy) as sock:
        proxy.cut_replies(3)
        sock.sendall(b"abcdef")
        found, how = ending(sock)
        assert (found in (b"", b"abc"), how) == (True, "reset")  # a reset may overtake the bytes before it
        assert echo.heard == b"abcdef"


def test_a_reset_ends_open_connections_and_new_ones_work(proxy):
    with connected(proxy) as sock:
        assert echoed(sock, b"a") == b"a"
        proxy.reset()
        assert ending(sock) == (b"", "reset")
    with connected(proxy) as sock:
        assert echoed(sock, b"b") == b"b"


def test_a_partition_swallows_and_refuses_until_it_is_healed(proxy):
    with connected(proxy) as sock:
        assert echoed(sock, b"a") == b"a"
        proxy.partition()
        assert silent(sock, b"b")
        assert refused(proxy)
    proxy.heal()
    with connected(proxy) as sock:
        assert echoed(sock, b"d") == b"d"


def test_a_drip_lets_so_many_bytes_a_second_through(proxy):
    with connected(proxy) as sock:
        proxy.drip(2_000)
        begun = time.monotonic()
        assert echoed(sock, b"x" * 400) == b"x" * 400
        assert time.monotonic() - begun >= 0.2


def test_an_address_where_nobody_listens_refuses(proxy):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy.move("{}:{}".format(*free.getsockname()))
        assert refused(proxy)
