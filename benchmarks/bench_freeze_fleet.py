"""How long until the last of 2 servers x 50 in-process clients stops serving a candidate that the evidence condemns?

Two real servers, processes of their own, on one real Redis (append only, synced always), and 50 `LocalClient`s of each in this process.
Each trial has an experiment of its own whose candidate errs on every request. Outcomes are reported through one server until the next must
freeze; then that one. Trials take turns with the servers, so that in half of them the planner is the other. From the acknowledgement, and
so from the commit, every client is asked again and again for a unit that the candidate had; printed is the time of the last answer that
still named the candidate, in any client. Asking all 100 once takes about a millisecond, with as long a pause after it: the 100 clients
follow in threads of this one process, and a loop without pauses would keep the interpreter from them, 5 ms at a time.

Run: pytest benchmarks/bench_freeze_fleet.py -s
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

from allocator.client import Client, LocalClient
from allocator.core.evidence import freeze_threshold, no_restarts
from allocator.core.evidence_rates import fold, rate_grid
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.processes import served
from tests.redis_servers import Node

TRIALS = 60
CLIENTS = 50  # of each server
TINY = {"TRIALS": 2, "CLIENTS": 3}
LIMIT, ALPHA = 0.02, 0.001
PATIENCE_SECONDS = 60.0
PASS_SECONDS = 0.001


@dataclass(frozen=True)
class Trial:
    """Seconds from the deciding outcome's acknowledgement to the last candidate decision in any client; how many there were."""

    last: float
    served: int


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """Two servers of one store."""
    directory = tmp_path_factory.mktemp("fleet")
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(Node(directory / "redis", appendonly="yes", appendfsync="always"))
        found = []
        for number in range(2):
            server = stack.enter_context(served(node.url, "--state", str(directory / f"state-{number}")))
            found.append(server.address)
        yield found


def failures_to_freeze() -> int:
    """Failures in a row, of as many requests, that the evidence needs in a first activation."""
    grid = rate_grid(LIMIT)
    _, evidence = fold(grid, no_restarts(grid), np.ones(20), np.ones(20))
    return 1 + int((evidence >= freeze_threshold(ALPHA)).argmax())


def start(operator: operator_grpc.OperatorServiceStub, name: str) -> None:
    """A running experiment: half the traffic to a candidate, errors bounded."""
    message = pb.Experiment(api_version="allocator/v1", kind="Experiment")
    message.metadata.name = name
    message.spec.arms.add(name="old", incumbent=True)
    message.spec.arms.add(name="new")
    message.spec.reward.metric = "click"
    message.spec.reward.window.FromSeconds(86_400)
    message.spec.exposure.total = 0.5
    message.spec.alpha = ALPHA
    message.spec.guardrails.add(name="errors", metric="error", max=LIMIT)
    operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="bench"))
    operator.StartExperiment(operator_pb.StartExperimentRequest(experiment=name, actor="bench"))


def trial(name: str, operator: operator_grpc.OperatorServiceStub, reporter: Client, clients: list[LocalClient], failures: int) -> Trial:
    """One experiment from its start to its freeze everywhere."""
    start(operator, name)
    end = time.monotonic() + PATIENCE_SECONDS
    units = [f"unit-{number}" for number in range(100)]
    while not all(any(client.arm(name, unit) == "new" for unit in units) for client in clients):
        assert time.monotonic() < end, "the experiment never reached every client"
    decisions = (clients[0].decide(name, f"condemned-{number}") for number in itertools.count())
    condemned = list(itertools.islice((decision for decision in decisions if decision.arm == "new"), failures))
    polled = next(unit for unit in units if clients[0].arm(name, unit) == "new")
    for decision in condemned[:-1]:
        reporter.report(decision.id, metrics={"error": 1.0})
    threading.Event().wait(random.uniform(0.03, 0.13))  # so that it meets the planner in every phase
    assert clients[0].arm(name, polled) == "new"
    reporter.report(condemned[-1].id, metrics={"error": 1.0})
    acknowledged = last = time.perf_counter()
    served, going = 0, list(clients)
    while going:
        assert time.monotonic() < end, "some client never heard of the freeze"
        still = [client for client in going if client.arm(name, polled) == "new"]
        if still:
            last, served = time.perf_counter(), served + len(still)
        going = still
        time.sleep(PASS_SECONDS)
    return Trial(last - acknowledged, served)


@pytest.mark.timeout(900)
def test_the_last_candidate_decision_anywhere(benchmark, addresses):
    failures = failures_to_freeze()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(LocalClient(address)) for _ in range(CLIENTS) for address in addresses]
        assert all(client.wait_ready(60) for client in clients)
        channels = [stack.enter_context(grpc.insecure_channel(address)) for address in addresses]
        operator = operator_grpc.OperatorServiceStub(channels[0])
        reporters = [stack.enter_context(Client(address, report_timeout=10)) for address in addresses]

        def run() -> list[Trial]:
            return [trial(f"fleet-{number}", operator, reporters[number % 2], clients, failures) for number in range(TRIALS)]

        found = benchmark.pedantic(run, rounds=1, iterations=1)
    print(f"\n{TRIALS} trials, 2 servers x {CLIENTS} clients, failure {failures} decides:")
    print(f"  {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, trials in (("reported to one server", found[::2]), ("reported to the other", found[1::2]), ("both", found)):
        low, high, most = np.quantile([each.last * 1e3 for each in trials], (0.5, 0.99, 1.0))
        print(f"  {name:24} last candidate decision anywhere: p50 {low:6.1f}  p99 {high:6.1f}  max {most:6.1f} ms")
    benchmark.extra_info.update(p99_ms=float(np.quantile([each.last for each in found], 0.99) * 1e3))
    assert len(found) == TRIALS
