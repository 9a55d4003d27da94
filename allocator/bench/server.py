"""A server of one's own to measure: a process on a free loopback port, a store in memory, one experiment with two arms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from allocator.errors import AllocatorError
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc

EXPERIMENT = "bench"
STOP_SECONDS = 10.0
CALL_SECONDS = 10.0


@contextmanager
def own_server() -> Iterator[tuple[str, int]]:
    """Address and process id of a server that runs until the end of the block. Raises AllocatorError when it does not start."""
    command = [sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", "--metrics", "none", "--store", "memory:"]
    command += ["--log-format", "json", "--drain", "0"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}  # settings of other servers
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=plain)
    reader = None
    try:
        address = _address(process)
        with grpc.insecure_channel(address) as channel:
            stub = operator_grpc.OperatorServiceStub(channel)
            stub.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=two_arms(), actor=EXPERIMENT), timeout=CALL_SECONDS)
            start = operator_pb.StartExperimentRequest(experiment=EXPERIMENT, actor=EXPERIMENT, reason="to be measured")
            stub.StartExperiment(start, timeout=CALL_SECONDS)
        reader = threading.Thread(target=deque, args=(process.stderr, 0))  # a log that nobody reads fills its pipe, and the server waits
        reader.start()
        yield address, process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if reader is not None:
            reader.join()
        process.stderr.close()


def two_arms() -> pb.Experiment:
    """An incumbent, a candidate with half of the requests, and a guardrail."""
    message = pb.Experiment(api_version="allocator/v1", kind="Experiment")
    message.metadata.name = EXPERIMENT
    message.spec.arms.add(name="old", incumbent=True)
    message.spec.arms.add(name="new")
    message.spec.reward.metric = "click"
    message.spec.exposure.total = 0.5
    message.spec.guardrails.add(name="errors", metric="error", max=0.02)
    return message


def _address(process: subprocess.Popen[str]) -> str:
    said = []
    for line in process.stderr:
        said.append(line.rstrip())
        if line.startswith("{") and (event := json.loads(line)).get("event") == "server.ready":
            return event["address"]
    raise AllocatorError("the server did not start; it said:\n" + "\n".join(said[-20:]), reason="SERVER_FAILED")
