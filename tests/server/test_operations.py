"""What runs around the calls: health, reflection, metrics, settings, draining, listening."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from allocator.core.experiment import Policy, PolicyKind
from allocator.errors import InvalidArgument, Unavailable
from allocator.server import main
from allocator.server.config import Config
from allocator.server.edge import Edge, EdgeConfig
from allocator.server.main import Server
from allocator.v1 import allocator_service_pb2 as service_pb
from tests.processes import free_address
from tests.server.test_end_to_end import started


async def fetch(address: str, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_health_and_reflection_answer(running):
    health = health_pb2_grpc.HealthStub(running.channel)
    for service in ("", "allocator.v1.AllocatorService", "allocator.v1.OperatorService"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stream = reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo()
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await stream.read()).list_services_response.service}
    assert {"allocator.v1.AllocatorService", "allocator.v1.OperatorService", "grpc.health.v1.Health"} <= names
    stream.cancel()


async def test_metrics_tell_what_happened_and_never_a_unit(running):
    await started(running, policy=Policy(PolicyKind.FIXED, shares={"old": 0.5, "new": 0.5}))
    for i in range(200):
        decision = await running.client.decide("ranker", f"secret-unit-{i}")
        await running.client.report(decision.id, reward=1.0, metrics={"error": 0.0})
    running.engine.planner.replan(running.engine.registry.get("ranker").uid)
    await asyncio.to_thread(running.engine.planner.tick)
    status, text = await fetch(running.server.metrics_address, "/metrics")
    assert status == 200
    assert "secret-unit" not in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    value = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    made = sum(v for k, v in value.items() if k.startswith('allocator_decisions_total{arm="') and 'reason="ALLOCATED"' in k)
    assert made == 200
    assert value['allocator_outcomes_total{result="ACCEPTED"}'] == 200
    assert value['allocator_experiment_state{experiment="default/ranker",state="RUNNING"}'] == 1
    assert value['allocator_exposure_cap_ratio{arm="new",experiment="default/ranker"}'] == 0.5
    exposed = value['allocator_exposure_ratio{arm="new",experiment="default/ranker"}']
    assert 0.3 < exposed < 0.7
    assert value["allocator_decision_duration_seconds_count"] == 200
    assert value["allocator_ingest_commit_duration_seconds_count"] >= 200
    assert 0 <= value["allocator_snapshot_age_seconds"] < 10
    for name in ("allocator_weight_ratio", "allocator_prob_best_ratio", "allocator_guardrail_evidence_ratio"):
        assert any(key.startswith(name) for key in value)


async def test_the_web_address_says_alive_and_ready_and_nothing_else(running):
    assert (await fetch(running.server.metrics_address, "/livez"))[0] == 200
    assert (await fetch(running.server.metrics_address, "/readyz"))[0] == 200
    assert (await fetch(running.server.metrics_address, "/etc/passwd"))[0] == 404


async def test_a_server_without_its_store_is_ready_and_one_that_drains_is_not(tmp_path):
    gone = f"redis://{free_address()}"
    server = Server(Config(listen="127.0.0.1:0", metrics="127.0.0.1:0", store=gone, state=str(tmp_path), drain_seconds=0.5))
    await server.start()
    assert not server.engine.live.snapshot.entries
    assert (await fetch(server.metrics_address, "/readyz"))[0] == 200
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)  # it has begun
    assert (await fetch(server.metrics_address, "/readyz"))[0] == 503
    assert (await fetch(server.metrics_address, "/livez"))[0] == 200
    await stopping


async def test_calls_under_way_end_while_the_server_drains(running):
    await started(running)
    health = health_pb2_grpc.HealthStub(running.channel)
    watching = running.allocator.WatchSnapshots(service_pb.WatchSnapshotsRequest())
    await watching.read()
    server = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0.2))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stream = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop())
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stream.cancel()
        await stopping
    assert (await health.Check(health_pb2.HealthCheckRequest(service=""))).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()


async def test_a_second_server_on_the_same_port_is_refused_at_once(running):
    other = Server(Config(listen=running.server.address, metrics="", store="memory:"))
    with pytest.raises(Unavailable, match="another process has the port"):
        await other.start()


async def test_a_second_server_on_the_same_file_is_refused_at_once(tmp_path):
    store = f"sqlite:{tmp_path}/a.db"
    first = Server(Config(listen="127.0.0.1:0", metrics="", store=store, drain_seconds=0))
    await first.start()
    second = Server(Config(listen="127.0.0.1:0", metrics="", store=store))
    with pytest.raises(Unavailable) as caught:
        await second.start()
    assert caught.value.reason == "STORE_LOCKED"
    await first.stop()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"listen": "nowhere"}, "listen"),
        ({"listen": "0.0.0.0:50051"}, "listen"),
        ({"listen": "127.0.0.1:99999"}, "listen"),
        ({"listen": "127.0.0.1:²"}, "listen"),
        ({"store": "postgres:x"}, "store"),
        ({"store": "sqlite:"}, "store"),
        ({"log_format": "xml"}, "log-format"),
        ({"refresh_seconds": 0.0}, "refresh"),
        ({"drain_seconds": -1.0}, "drain"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, field):
    with pytest.raises(InvalidArgument) as caught:
        Config(**settings)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("edge", [False, True])
async def test_a_server_that_strangers_can_reach_says_so_at_the_start_each_minute_and_to_prometheus(running, monkeypatch, edge):
    monkeypatch.setattr(main, "INSECURE_SECONDS", 0.01)
    if edge:
        config = EdgeConfig(running.server.address, listen="0.0.0.0:0", metrics="127.0.0.1:0", insecure=True, drain_seconds=0)
        server = Edge(config)
    else:
        server = Server(Config(listen="0.0.0.0:0", metrics="127.0.0.1:0", store="memory:", insecure=True, drain_seconds=0))
    with capture_logs() as logs:
        await server.start()
        found: list = []
        while len(found) < 3:
            await asyncio.sleep(0.01)
            found = [entry for entry in logs if entry["event"] == ("edge.insecure" if edge else "server.insecure")]
        text = (await fetch(server.metrics_address, "/metrics"))[1]
        await server.stop()
    assert {(entry["log_level"], entry["address"], entry["lacking"]) for entry in found} == {
        ("warning", server.address, "encrypted and authenticated")
    }
    assert "\nallocator_insecure 1.0\n" in text


async def test_a_server_that_only_this_machine_reaches_or_that_asks_for_tls_and_tokens_is_not_insecure(running):
    assert "\nallocator_insecure 0.0\n" in (await fetch(running.server.metrics_address, "/metrics"))[1]
    assert Config(listen="127.0.0.1:1", insecure=True).insecurity == ""
    assert Config(listen="0.0.0.0:1", tls_cert="c", tls_key="k", access="tokens", insecure=True).insecurity == ""
    assert Config(listen="0.0.0.0:1", tls_cert="c", tls_key="k", insecure=True).insecurity == "authenticated"
    assert EdgeConfig("x:1", listen="[::]:1", callers="tokens", insecure=True).insecurity == "encrypted"


@pytest.mark.parametrize(("metrics", "told"), [("0.0.0.0:0", True), ("127.0.0.1:0", False), ("localhost:0", False)])
async def test_metrics_that_other_machines_can_read_are_told_at_the_start(metrics, told):
    server = Server(Config(listen="127.0.0.1:0", metrics=metrics, store="memory:", drain_seconds=0))
    with capture_logs() as logs:
        await server.start()
        await server.stop()
    found = [entry for entry in logs if entry["event"] == "metrics.beyond_loopback"]
    assert [(entry["log_level"], entry["address"]) for entry in found] == [("warning", server.metrics_address)] * told


def test_listening_to_other_machines_must_be_insisted_on():
    assert Config(listen="0.0.0.0:50051", insecure=True).listen == "0.0.0.0:50051"
