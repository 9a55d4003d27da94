"""A caller's trace context comes out in the events of its call, and nothing malformed does."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc
import pytest
import structlog

from allocator.server import tracing
from allocator.v1 import operator_service_pb2 as pb
from allocator.v1 import operator_service_pb2_grpc as rpc
from allocator.wire import spec
from allocator.wire.convert import experiment_to_message
from tests.processes import served, until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPEC = Path(__file__).parents[2] / "allocator" / "assets" / "examples" / "minimal.yaml"


@pytest.fixture(autouse=True)
def clean():
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()


def test_a_trace_context_is_bound_and_goes_along_to_other_threads() -> None:
    tracing.bind((("other", "x"), ("traceparent", f"00-{TRACE}-{SPAN}-01")))
    assert structlog.contextvars.get_contextvars() == {"trace_id": TRACE, "span_id": SPAN}
    found: list[dict] = []
    thread = threading.Thread(target=tracing.here(lambda: found.append(structlog.contextvars.get_contextvars())))
    thread.start()
    thread.join()
    assert found == [{"trace_id": TRACE, "span_id": SPAN}]


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\nevil",
        b"\xff",
    ],
)
def test_a_malformed_trace_context_is_left_aside(value: str | bytes) -> None:
    tracing.bind((("traceparent", value),))
    assert structlog.contextvars.get_contextvars() == {}


def test_a_later_version_may_say_more() -> None:
    tracing.bind((("traceparent", f"01-{TRACE}-{SPAN}-01-more"),))
    assert structlog.contextvars.get_contextvars()["trace_id"] == TRACE


def test_a_command_is_logged_with_its_trace() -> None:
    with served("memory:", "--drain", "0", "--grace", "0") as server:
        experiment = experiment_to_message(spec.load_file(SPEC)[0].experiment)
        with grpc.insecure_channel(server.address) as channel:
            operator = rpc.OperatorServiceStub(channel)
            request = pb.ApplyExperimentRequest(experiment=experiment, actor="tess")
            operator.ApplyExperiment(request, metadata=(("traceparent", f"00-{TRACE}-{SPAN}-01"),), timeout=10)
            operator.StartExperiment(pb.StartExperimentRequest(experiment="minimal", actor="tess"), timeout=10)
        until(lambda: server.events("experiment.start"), "the start is logged")
        (created,), (started,) = server.events("experiment.create"), server.events("experiment.start")
        assert (created["trace_id"], created["span_id"], created["actor"]) == (TRACE, SPAN, "tess")
        assert "trace_id" not in started
