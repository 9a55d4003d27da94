"""A caller's OpenTelemetry trace goes along with its calls; a caller without one loads nothing for it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.sdk.trace import TracerProvider

from allocator.client import Client
from allocator.v1 import allocator_service_pb2 as pb
from allocator.v1 import allocator_service_pb2_grpc as rpc


class Recording(rpc.AllocatorServiceServicer):
    """Remembers the metadata of each call."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def Decide(self, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.DecideResponse:
        self.seen.append(dict(context.invocation_metadata()))
        return pb.DecideResponse()


def test_the_span_in_force_goes_along_as_traceparent() -> None:
    recording, server = Recording(), grpc.server(ThreadPoolExecutor(1))
    rpc.add_AllocatorServiceServicer_to_server(recording, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracer = TracerProvider().get_tracer("test")
    with Client(f"127.0.0.1:{port}", decide_timeout=10) as client:
        with tracer.start_as_current_span("serve") as span:
            client.decide("x", "u")
            context = span.get_span_context()
        client.decide("x", "u")
    server.stop(0)
    assert recording.seen[0]["traceparent"] == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert "traceparent" not in recording.seen[1]


def test_without_opentelemetry_nothing_of_it_is_loaded() -> None:
    code = "import sys; from allocator.client import trace; print(trace.context(), [m for m in sys.modules if 'opentelemetry' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "() []"
