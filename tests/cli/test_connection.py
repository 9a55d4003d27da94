"""Servers that cannot be talked to as one tried: the error says why, and the hint what to change."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Said, said
from tests.processes import Server, served
from tests.server.test_tls import Papers


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Papers]:
    folder = tmp_path_factory.mktemp("papers")
    return {name: Papers(folder, name) for name in ("server", "clients")}


@pytest.fixture(scope="module")
def encrypted(papers: dict[str, Papers]) -> Iterator[Server]:
    with served("memory:", "--tls-cert", papers["server"].cert, "--tls-key", papers["server"].key, "--drain", "0") as server:
        yield server
        server.stop()


@pytest.fixture(scope="module")
def choosy(papers: dict[str, Papers]) -> Iterator[Server]:
    """It asks clients for a certificate as well."""
    flags = ("--tls-cert", papers["server"].cert, "--tls-key", papers["server"].key, "--tls-client-ca", papers["clients"].ca_file)
    with served("memory:", *flags, "--drain", "0") as server:
        yield server
        server.stop()


def ask(server: Server, *flags: str) -> Said:
    return said("get", "--timeout", "20", *flags, server=server.address.replace("127.0.0.1", "localhost"))


def test_who_asks_in_plain_text_where_tls_is_spoken_is_told_the_flags(encrypted: Server, choosy: Server, papers: dict[str, Papers]) -> None:
    for server in (encrypted, choosy):
        told = ask(server)
        assert (told.code, told.out) == (7, "")
        assert " hung up: Socket closed\nhint: if it asks for TLS, say --tls, or --tls-ca FILE" in told.err
        assert "allocator serve" not in told.err
    assert ask(encrypted, "--tls-ca", papers["server"].ca_file).code == 0


def test_who_trusts_another_authority_is_told_to_name_the_right_one(encrypted: Server, papers: dict[str, Papers]) -> None:
    for flags in (("--tls",), ("--tls-ca", papers["clients"].ca_file)):
        told = ask(encrypted, *flags)
        assert told.code == 7
        assert told.err.startswith("error: the certificate of the server at localhost:")
        assert "is not trusted: unable to get local issuer certificate\nhint: name the authority" in told.err
        assert "--tls-ca" in told.err


def test_who_shows_no_certificate_where_one_is_asked_for_is_told(choosy: Server, papers: dict[str, Papers]) -> None:
    told = ask(choosy, "--tls-ca", papers["server"].ca_file)
    assert told.code == 7
    assert "\nhint: if it asks who you are, name a certificate" in told.err
    theirs = papers["clients"]
    assert ask(choosy, "--tls-ca", papers["server"].ca_file, "--tls-cert", theirs.cert, "--tls-key", theirs.key).code == 0


def test_who_speaks_tls_where_nobody_does_is_told(server: Server, papers: dict[str, Papers]) -> None:
    told = ask(server, "--tls-ca", papers["server"].ca_file)
    assert told.code == 7
    assert " speaks no TLS\nhint: take --tls" in told.err


def test_a_name_that_nobody_knows_is_no_matter_of_tls() -> None:
    told = said("get", server="no-such-host.invalid:50051")
    assert told.code == 7
    assert "--tls" not in told.err


def test_a_server_that_hangs_up_at_once_gets_the_hint_as_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # the test is over
                    return
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        told = said("get", server=f"127.0.0.1:{listening.getsockname()[1]}")
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert told.code == 7
    assert "hung up" in told.err
    assert "--tls-ca" in told.err
