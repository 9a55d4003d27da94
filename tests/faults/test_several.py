"""Two servers on one Redis: one is told to end, paused past its term, or killed; no caller notices, and no stale plan is stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time

import grpc

from allocator.client import AsyncClient
from allocator.client.remote import OPTIONS, SERVICE_CONFIG
from allocator.errors import AllocatorError
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from tests.faults import checker
from tests.faults.history import History
from tests.faults.servers import RANKER, STATUSES, Caller, allocates
from tests.processes import served
from tests.redis_servers import Node


def test_a_server_that_is_told_to_end_under_load_costs_its_callers_nothing(tmp_path):
    """Callers that know both addresses, with gRPC's own round robin and health checks, as the README says."""
    config = json.loads(SERVICE_CONFIG) | {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
    options = [*(option for option in OPTIONS if option[0] != "grpc.service_config"), ("grpc.service_config", json.dumps(config))]
    with Node(tmp_path / "redis") as node, History(tmp_path / "history.jsonl") as history, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(served(node.url, "--state", str(tmp_path / name))) for name in "ab"]

        async def story() -> tuple[int, int, list[str]]:
            decided, reported, wrong = 0, 0, []
            async with Caller(servers[0].address, history, "ann") as ann, Caller(servers[1].address, history, "ben") as ben:
                await ann.begin()
                await allocates(ann)
                await allocates(ben)
            ended, more = asyncio.Event(), asyncio.Event()
            target = "ipv4:" + ",".join(server.address for server in servers)
            async with grpc.aio.insecure_channel(target, options=options) as channel:
                stub = service_grpc.AllocatorServiceStub(channel)

                async def call(worker: int) -> None:
                    nonlocal decided, reported
                    number = 0
                    while not ended.is_set():
                        number += 1
                        try:
                            units = [f"{worker}-{number}-{i}" for i in range(10)]
                            begun = history.invoke(f"worker-{worker}", "decide", units=units)
                            reply = await stub.BatchDecide(service_pb.BatchDecideRequest(experiment="ranker", units=units), timeout=5)
                            reasons = [pb.Reason.Name(reason).removeprefix("REASON_") for reason in reply.reasons]
                            arms = [reply.arms[index] for index in reply.arm_index]
                            history.end(begun, "ok", arms=arms, reasons=reasons, slots=list(reply.slots), version=reply.snapshot_version)
                            decided += len(units)
                            more.set()
                            outcomes = [(id_, 1.0, {"error": 0.0}) for id_ in reply.ids]
                            begun = history.invoke(f"worker-{worker}", "report", outcomes=outcomes)
                            request = service_pb.ReportOutcomesRequest()
                            for id_, reward, metrics in outcomes:
                                request.outcomes.add(decision_id=id_, reward=reward, metrics=metrics)
                            answer = await stub.ReportOutcomes(request, timeout=5)
                            statuses = [STATUSES[result.status] for result in answer.results]
                            history.end(begun, "ok", statuses=statuses)
                            reported += len(outcomes)
                        except grpc.RpcError as error:
                            wrong.append(f"{error.code().name}: {error.details()}")

                async def progress() -> None:
                    more.clear()
                    await asyncio.wait_for(more.wait(), 30)

                async def end_one() -> None:
                    while decided < 2_000:
                        await progress()
                    servers[0].signal(signal.SIGTERM)
                    code = await asyncio.get_running_loop().run_in_executor(None, servers[0].process.wait, 60)
                    assert code == 0
                    before = decided
                    while decided < before + 1_000:
                        await progress()
                    ended.set()

                await asyncio.gather(end_one(), *(call(worker) for worker in range(8)))
            return decided, reported, wrong

        decided, reported, wrong = asyncio.run(story())
        assert servers[1].stop() == 0
        assert checker.check(RANKER, checker.of_redis(node.port), history.path) == []
    print(f"\nSIGTERM under load with two servers: {decided:,} decisions and {reported:,} outcomes, errors that callers saw: {len(wrong)}")
    assert wrong == []


def test_a_planner_that_was_paused_past_its_term_stores_nothing_stale_and_another_takes_over(tmp_path):
    rng = random.Random(17)
    with Node(tmp_path / "redis") as node, History(tmp_path / "history.jsonl") as history, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(served(node.url, "--state", str(tmp_path / name), "--refresh", "0.2")) for name in "ab"]

        async def story() -> list[float]:
            took = []
            async with Caller(servers[0].address, history, "ann") as ann, Caller(servers[1].address, history, "ben") as ben:
                await ann.begin()
                await allocates(ben)
                callers = {0: ann, 1: ben}
                for _ in range(2):
                    holder = node.ask("GET", "{allocator}:leader")
                    assert holder, "nobody plans"
                    for index, server in enumerate(servers):  # whoever is paused: if it was the planner, another holds the term soon
                        term = node.ask("HGET", "{allocator}:store", "term")
                        server.signal(signal.SIGSTOP)
                        begun = time.perf_counter()
                        other = callers[1 - index]
                        while time.perf_counter() - begun < 15:
                            assert await other.serve(rng, 20, may_fail=False)
                            if node.ask("HGET", "{allocator}:store", "term") != term:
                                took.append(time.perf_counter() - begun)
                                break
                        assert await other.command("freeze", f"while {index} slept {len(took)}")
                        assert await other.command("resume", f"while {index} slept {len(took)}")
                        server.signal(signal.SIGCONT)
                        for _ in range(5):
                            assert await callers[index].serve(rng, 20, may_fail=False)
                        if took:
                            break
                assert await ann.intact()
                assert await ben.command("freeze", "the end")
            return took

        took = asyncio.run(story())
        assert checker.of_redis(node.port).states == {"default/ranker": "FROZEN"}
        refused = sum(len(server.events("term.over")) + len(server.events("term.stale")) for server in servers)
    assert took, "the planner was never the one that was paused"
    print(f"\npaused planner: taken over after {max(took):.1f} s, {refused} passes ended by a term that was over, stale plans stored 0")


def test_the_python_client_goes_on_with_the_other_server_when_one_is_killed(tmp_path):
    with Node(tmp_path / "redis") as node, History(tmp_path / "history.jsonl") as history, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(served(node.url, "--state", str(tmp_path / name))) for name in "ab"]

        async def story() -> tuple[int, int]:
            async with Caller(servers[0].address, history, "ann") as ann, Caller(servers[1].address, history, "ben") as ben:
                await ann.begin()
                await allocates(ann)
                await allocates(ben)
            failed, stale = 0, 0
            async with AsyncClient("ipv4:" + ",".join(server.address for server in servers), decide_timeout=2) as client:
                for number in range(600):
                    if number == 300:
                        servers[0].kill()
                    try:
                        decision = await client.decide("ranker", f"unit-{number}", fallback="old")
                    except AllocatorError:
                        failed += 1
                    else:
                        stale += decision.reason.name == "STALE"
            return failed, stale

        failed, stale = asyncio.run(story())
    print(f"\none of two servers killed: 600 decisions, raised {failed}, answered from memory {stale}")
    assert failed == 0
