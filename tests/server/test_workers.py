"""One planner and several deciders on one port: real processes, killed and told to end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import grpc
import pytest

from allocator.client import Access, AsyncClient, LocalClient
from allocator.core.token import Role
from allocator.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from allocator.server.config import Config
from allocator.server.workers import DEATHS, Workers, check_workers
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.client.conftest import QUICK
from tests.conftest import two_arms
from tests.processes import until


def config(**changes):
    values = {"listen": "127.0.0.1:0", "metrics": "", "store": "memory:", "drain_seconds": 0, "grace_seconds": 1, "log_format": "json"}
    return Config(**{**values, **changes})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def lets_in(address: str, door: Access) -> bool:
    """Is a decision answered, on a connection of its own?"""
    while True:
        async with AsyncClient(address, decide_timeout=5, access=door) as client:
            try:
                await client.decide("ranker", "u")
            except (Unauthenticated, PermissionDenied):
                return False
            except Unavailable:
                continue  # the worker has not had its upstream's answer in time: this machine is busy
        return True


async def soon(condition, seconds=60):
    await asyncio.to_thread(until, condition, seconds)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system lets no two processes share a port")
async def test_workers_share_a_port_are_replaced_when_killed_and_drain_when_told():
    service = Workers(config(), 2)
    await service.start()
    try:
        first = service.pids
        assert len(set(first)) == 2
        service.server.engine.commands.apply(two_arms(), actor="ann")
        async with grpc.aio.insecure_channel(service.address) as channel:
            operator = operator_grpc.OperatorServiceStub(channel)
            await operator.StartExperiment(operator_pb.StartExperimentRequest(experiment="ranker", actor="ann"))  # through a worker
        with LocalClient(service.address, pause=QUICK) as local:
            assert await asyncio.to_thread(local.wait_ready, 30)
            await soon(lambda: local.decide("ranker", "u").id != "")
            keys = set()
            for i in range(24):  # each on a connection of its own: the kernel spreads them
                async with AsyncClient(service.address, decide_timeout=5) as client:
                    decision = await client.decide("ranker", f"u{i}")
                    assert decision.arm == local.decide("ranker", f"u{i}").arm
                    keys.add(decision.id[1:7])  # the number of the key that made it: one for each worker
                    assert (await client.report(decision.id, reward=1.0)).status == "ACCEPTED"
            assert len(keys) == 2
        with pytest.raises(Unavailable, match="cannot listen"):
            await Workers(config(listen=service.address), 1).start()
        os.kill(first[0], signal.SIGKILL)
        await soon(lambda: len(service.pids) == 2 and first[0] not in service.pids and not alive(first[0]))
        async with AsyncClient(service.address, decide_timeout=5) as client:
            assert (await client.decide("ranker", "u")).id
    finally:
        pids = service.pids
        await service.stop()
    assert not any(map(alive, pids))


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system lets no two processes share a port")
async def test_workers_look_at_tokens_and_their_own_is_nowhere_to_be_seen():
    service = Workers(config(access="tokens"), 2)
    await service.start()
    try:
        server = service.server
        await asyncio.to_thread(server.engine.commands.apply, two_arms(), actor="ann")
        await asyncio.to_thread(server.engine.commands.start, "ranker", actor="ann")
        made = {
            name: await asyncio.to_thread(server.tokens.create, name, roles, ("default",), actor="test")
            for name, roles in {"app": (Role.DECIDE, Role.REPORT), "ben": (Role.OPERATE,), "local": (Role.WATCH, Role.REPORT)}.items()
        }
        app, local = (Access(token=made[name][1]) for name in ("app", "local"))
        client = LocalClient(service.address, pause=QUICK, access=local)
        try:
            await soon(lambda: client.decide("ranker", "u", fallback="old").id != "")
        finally:
            await asyncio.to_thread(client.close)  # it waits, and the planner is in this loop
        assert await lets_in(service.address, app)
        for i in range(12):  # each on a connection of its own: the kernel spreads them
            assert await lets_in(service.address, app)
            async with AsyncClient(service.address, decide_timeout=5, report_timeout=10, access=app) as client:
                decision = await client.decide("ranker", f"u{i}")
                assert (await client.report(decision.id, reward=1.0)).status == "ACCEPTED"
            for door in (Access(), local):
                assert not await lets_in(service.address, door)
        async with grpc.aio.insecure_channel(service.address) as channel:
            operator = operator_grpc.OperatorServiceStub(channel)
            request = operator_pb.FreezeExperimentRequest(experiment="ranker", actor="the pope", reason="a test")
            await operator.FreezeExperiment(request, metadata=Access(token=made["ben"][1]).metadata())
        assert server.engine.store.audit()[-1].entry.actor == "ben"
        assert service._token.startswith("alc_")
        for pid in service.pids:
            for file in ("cmdline", "environ"):
                assert service._token.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
        await asyncio.to_thread(server.tokens.revoke, made["app"][0].id, actor="test")
        async with asyncio.timeout(20):
            while await lets_in(service.address, app):
                pass
    finally:
        await service.stop()


async def test_workers_end_when_their_parent_is_gone(monkeypatch):
    service = Workers(config(), 1)
    await service.start()
    (pid,) = service.pids
    service._stopping = True  # nobody replaces it
    service._running[0].stdin.close()  # all that it can see of a parent that died
    await soon(lambda: service._running[0].returncode is not None)
    assert not alive(pid)
    await service.stop()


async def test_a_service_whose_workers_keep_dying_ends(monkeypatch):
    monkeypatch.setattr("allocator.server.workers.AGAIN_SECONDS", 0.0)
    service = Workers(config(), 1)
    await service.start()
    monkeypatch.setattr(Workers, "_command", lambda self, number: ["/bin/false"])
    os.kill(service.pids[0], signal.SIGKILL)
    await asyncio.wait_for(service.failed.wait(), 60)
    assert len(service._deaths) == DEATHS
    await service.stop()


@pytest.mark.parametrize(("settings", "workers"), [({}, 0), ({}, 65), ({"decision_log": "log"}, 2)])
def test_what_cannot_be_is_refused(settings, workers):
    with pytest.raises(InvalidArgument):
        check_workers(config(**settings), workers)
