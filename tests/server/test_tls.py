"""TLS at the listener: real handshakes with certificates of our own, renewed while the server runs."""

from __future__ import annotations

import asyncio
import socket
import ssl

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from allocator.client import Access, AsyncClient
from allocator.client.channel import aio_channel
from allocator.core.token import Role
from allocator.errors import InvalidArgument, Unavailable
from allocator.server.config import Config
from allocator.server.main import Server
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.conftest import two_arms

trustme = pytest.importorskip("trustme", reason="trustme is not installed (it comes with the dev extra)")


class Papers:
    """An authority, and the files of a certificate of it."""

    def __init__(self, folder, name: str) -> None:
        self.ca = trustme.CA()
        self.ca_file, self.cert, self.key = (str(folder / f"{name}.{kind}") for kind in ("ca", "cert", "key"))
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.issue()

    def issue(self) -> None:
        made = self.ca.issue_cert("localhost", "127.0.0.1")
        made.private_key_pem.write_to_path(self.key)
        with open(self.cert, "wb") as file:
            file.writelines(blob.bytes() for blob in made.cert_chain_pems)


async def serving(**settings: str) -> Server:
    server = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0, **settings))
    await server.start()
    return server


async def asks(server: Server, access: Access) -> grpc.StatusCode:
    async with aio_channel(f"localhost:{server.address.rpartition(':')[2]}", access) as channel:
        stub = operator_grpc.OperatorServiceStub(channel)
        try:
            await stub.ListExperiments(operator_pb.ListExperimentsRequest(), timeout=20, metadata=access.metadata())
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_a_client_decides_over_tls_with_a_token(tmp_path):
    papers = Papers(tmp_path, "server")
    server = await serving(tls_cert=papers.cert, tls_key=papers.key, access="tokens")
    await asyncio.to_thread(server.engine.commands.apply, two_arms(), actor="ann")
    _, text = await asyncio.to_thread(lambda: server.tokens.create("web", (Role.DECIDE, Role.REPORT), ("default",), actor="x"))
    (tmp_path / "token").write_text(text)
    address = f"localhost:{server.address.rpartition(':')[2]}"
    access = Access(tls_ca=papers.ca_file, token_file=str(tmp_path / "token"))
    async with AsyncClient(address, decide_timeout=20, access=access) as client:
        assert (await client.decide("ranker", "u1")).arm == "old"
    async with AsyncClient(address, decide_timeout=20, access=Access(tls_ca=papers.ca_file)) as client:
        with pytest.raises(Exception, match="no valid token"):
            await client.decide("ranker", "u1")
    await server.stop()


async def test_without_tls_or_with_another_authority_nothing_is_answered(tmp_path):
    papers, other = Papers(tmp_path, "server"), Papers(tmp_path, "other")
    server = await serving(tls_cert=papers.cert, tls_key=papers.key)
    assert await asks(server, Access(tls_ca=papers.ca_file)) is grpc.StatusCode.OK
    assert await asks(server, Access()) is grpc.StatusCode.UNAVAILABLE
    assert await asks(server, Access(tls_ca=other.ca_file)) is grpc.StatusCode.UNAVAILABLE
    await server.stop()


async def test_with_a_client_authority_only_its_certificates_get_in(tmp_path):
    papers, clients, other = (Papers(tmp_path, name) for name in ("server", "clients", "other"))
    server = await serving(tls_cert=papers.cert, tls_key=papers.key, tls_client_ca=clients.ca_file)
    assert await asks(server, Access(tls_ca=papers.ca_file, tls_cert=clients.cert, tls_key=clients.key)) is grpc.StatusCode.OK
    assert await asks(server, Access(tls_ca=papers.ca_file)) is grpc.StatusCode.UNAVAILABLE
    assert await asks(server, Access(tls_ca=papers.ca_file, tls_cert=other.cert, tls_key=other.key)) is grpc.StatusCode.UNAVAILABLE
    await server.stop()


async def test_a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not(tmp_path):
    papers = Papers(tmp_path, "server")
    server = await serving(tls_cert=papers.cert, tls_key=papers.key)
    old = Access(tls_ca=papers.ca_file)
    with open(papers.key, "w") as file:
        file.write("no key")
    assert await asks(server, old) is grpc.StatusCode.OK, "the certificate read last is still good"
    (tmp_path / "new").mkdir()
    renewed = Papers(tmp_path / "new", "server")
    for source, target in ((renewed.key, papers.key), (renewed.cert, papers.cert)):
        with open(source, "rb") as read, open(target, "wb") as write:
            write.write(read.read())
    assert await asks(server, Access(tls_ca=renewed.ca_file)) is grpc.StatusCode.OK
    assert await asks(server, old) is grpc.StatusCode.UNAVAILABLE
    await server.stop()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_tls_below_1_2_is_refused(tmp_path):
    papers = Papers(tmp_path, "server")
    server = await serving(tls_cert=papers.cert, tls_key=papers.key)
    host, _, port = server.address.rpartition(":")

    def shake(version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=papers.ca_file)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, int(port)), 20) as plain, context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            return wrapped.version()

    assert await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(OSError, match=r"(?i)version|protocol|reset|eof"):
        await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_1)
    await server.stop()


@pytest.mark.parametrize("broken", ["missing", "mismatched"])
async def test_a_server_with_broken_papers_does_not_start(tmp_path, broken):
    papers, other = Papers(tmp_path, "server"), Papers(tmp_path, "other")
    key = str(tmp_path / "nowhere") if broken == "missing" else other.key
    with pytest.raises(InvalidArgument, match="tls-key"):
        await serving(tls_cert=papers.cert, tls_key=key)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"listen": "0.0.0.0:1", "tls_cert": "c", "tls_key": "k"}, "listen"),
        ({"listen": "0.0.0.0:1", "access": "tokens"}, "listen"),
        ({"tls_cert": "c"}, "tls-key"),
        ({"tls_key": "k"}, "tls-cert"),
        ({"tls_client_ca": "c"}, "tls-client-ca"),
        ({"access": "maybe"}, "access"),
    ],
)
def test_half_a_protection_is_refused_by_name(settings, field):
    with pytest.raises(InvalidArgument) as caught:
        Config(**settings)
    assert caught.value.violations[0].field == field


def test_beyond_loopback_both_are_enough():
    assert Config(listen="0.0.0.0:1", tls_cert="c", tls_key="k", access="tokens")


async def test_reflection_answers_on_loopback_alone_unless_asked():
    here, everywhere = "127.0.0.1:0", "0.0.0.0:0"
    for listen, wanted, answers in ((here, None, True), (here, False, False), (everywhere, None, False), (everywhere, True, True)):
        server = Server(Config(listen=listen, metrics="", store="memory:", drain_seconds=0, insecure=True, reflection=wanted))
        try:
            await server.start()
        except Unavailable:
            pytest.skip("this machine cannot listen on all addresses")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.address.rpartition(':')[2]}") as channel:
            stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=20)
            try:
                await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))  # raises, too, when the refusal is quicker
                found = await stream.read() is not grpc.aio.EOF
            except grpc.RpcError:
                found = False
            stream.cancel()
        await server.stop()
        assert found is answers, (listen, wanted)
