"""Whatever is sent is answered: parsers raise one error, handlers answer one of the codes for bad input, and nothing crashes.

A quarter of a minute by default; `pytest -m slow tests/server/test_fuzz.py` goes on for ten minutes, with other seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from importlib.resources import files

import grpc
import hypothesis.strategies as st
import pytest
from google.protobuf import message_factory
from hypothesis import HealthCheck, given, seed, settings

from allocator.cli.audit import guarded
from allocator.core import decision_id
from allocator.core.selector import selector
from allocator.core.token import Role
from allocator.errors import InvalidArgument, Unauthenticated
from allocator.server.access import Access
from allocator.server.config import Config
from allocator.server.main import Server
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire import spec
from tests.conftest import two_arms

SLOW_SECONDS = 600
WORDS = [
    *"{}[]:-,#&*!|>'\"%@`\n\t ", "? ", "- ", ": ", "...", "---", "<<", "~", "null", "1e999", "0x7f", ".nan",
    ".inf", "-0", "1:30", "2026-11-23",
    "!!python/object:os.system", "&a [*a]", "\x00", "\ufeff", "\ud7ff", "9" * 400, "99999999999999999999d", "1s", "NaN", "apiVersion",
    "kind",
    "metadata", "name", "spec", "arms", "incumbent", "true", "reward", "metric", "guardrails", "max", "ramp", "cap", "exposure",
]  # fmt: skip
EXAMPLES = sorted(path.read_text() for path in files("allocator").joinpath("assets/examples").iterdir() if path.name.endswith(".yaml"))
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for service in (service_pb.DESCRIPTOR.services_by_name["AllocatorService"], operator_pb.DESCRIPTOR.services_by_name["OperatorService"])
    for method in service.methods
]
CRASHES = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED}


def fuzzed(strategy: st.SearchStrategy, examples: int):
    """A test body run with `examples` values of a strategy, and other ones for another seed."""

    def wrap(body):
        def run(number: int, *arguments: object) -> None:
            @seed(number)
            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(strategy)
            def inner(value):
                body(value, *arguments)

            inner()

        return run

    return wrap


@st.composite
def mangled_specs(draw) -> str:
    """An example with words cut out and put in."""
    text = draw(st.sampled_from(EXAMPLES))
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(rng.randint(1, 8)):
        at, until = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        until = min(until, at + rng.choice((0, 0, 1, 5, 40)))
        text = text[:at] + "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 3))) + text[until:]
    return text


@fuzzed(mangled_specs() | st.text(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=40).map("".join), 120)
def a_spec_is_read_or_refused(text):
    for form in (text, text.encode("utf-8", "surrogatepass")):
        refused = None
        try:
            assert spec.load(form, "f.yaml")
        except InvalidArgument as error:
            refused = error
        assert refused is None or refused.violations
        assert refused is None or all(violation.field.startswith("f.yaml") for violation in refused.violations)


@fuzzed(st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")), 300)
def a_token_is_unknown(text, access):
    for header in (text, f"Bearer {text}", f"bearer alc_00000000_{text}"):
        with pytest.raises(Unauthenticated):
            access.caller((("authorization", header),))
    with pytest.raises(InvalidArgument):
        decision_id.read(b"k", text)
    assert not guarded(text).startswith(("=", "+", "-", "@"))
    with contextlib.suppress(InvalidArgument):
        selector(text)({"a": "b"})


def messages(descriptor) -> st.SearchStrategy:
    """Messages of a type with whatever values in its fields, two levels deep."""
    kind = message_factory.GetMessageClass(descriptor)
    chosen = ["", "ranker", "default/ranker", "a/b/c", "/", "x" * 300, "é\x00\n", "0" * 64, "1", "-1"]
    texts = st.sampled_from(chosen) | st.text(max_size=20)
    numbers = st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 7])

    @st.composite
    def made(draw):
        message = kind()
        for field in descriptor.fields:
            if draw(st.booleans()):
                continue
            target = getattr(message, field.name)
            if field.is_repeated and not (field.message_type and field.message_type.GetOptions().map_entry):
                for _ in range(draw(st.integers(0, 3))):
                    if field.message_type:
                        target.add().CopyFrom(draw(deeper(field.message_type)))
                    else:
                        target.append(draw(value_of(field)))
            elif field.message_type and not field.is_repeated:
                target.CopyFrom(draw(deeper(field.message_type)))
            elif not field.message_type:
                setattr(message, field.name, draw(value_of(field)))
        return message

    def value_of(field) -> st.SearchStrategy:
        if field.cpp_type == field.CPPTYPE_STRING:
            return texts.map(str.encode) if field.type == field.TYPE_BYTES else texts
        if field.cpp_type == field.CPPTYPE_BOOL:
            return st.booleans()
        if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
            return st.floats()
        return numbers.map(abs) if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else numbers

    return made()


@st.composite
def deeper(draw, descriptor):
    """A message inside a message: its bytes are noise that parses, or nothing."""
    kind = message_factory.GetMessageClass(descriptor)
    message = kind()
    for field in descriptor.fields:
        if field.cpp_type == field.CPPTYPE_STRING and not field.is_repeated and field.type != field.TYPE_BYTES:
            setattr(message, field.name, draw(st.sampled_from(["", "ranker", "a", "x" * 70, "é\n"])))
        elif field.cpp_type == field.CPPTYPE_DOUBLE and not field.is_repeated:
            setattr(message, field.name, draw(st.floats()))
        elif field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_INT32) and not field.is_repeated:
            setattr(message, field.name, draw(st.sampled_from([0, 1, -1, 2**31 - 1])))
    return message


@st.composite
def calls(draw):
    """A method, and bytes for it: a message, a mangled one, or noise."""
    path, method = draw(st.sampled_from(METHODS))
    raw = draw(messages(method.input_type)).SerializeToString()
    mangling = draw(st.sampled_from(["none", "none", "cut", "flip", "noise"]))
    if mangling == "cut":
        raw = raw[: draw(st.integers(0, len(raw)))]
    elif mangling == "flip" and raw:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([raw[at] ^ draw(st.integers(1, 255))]) + raw[at + 1 :]
    elif mangling == "noise":
        raw = draw(st.binary(max_size=200))
    return path, method.server_streaming, raw


@fuzzed(calls(), 250)
def a_call_is_answered(call, served):
    path, streaming, raw = call
    refused = None
    try:
        if streaming:
            stream = served.channel.unary_stream(path)(raw, metadata=served.metadata, timeout=30)
            next(stream, None)
            stream.cancel()
        else:
            served.channel.unary_unary(path)(raw, metadata=served.metadata, timeout=30)
    except grpc.RpcError as error:
        refused = error
    assert refused is None or refused.code() not in CRASHES, (path, raw, refused.code(), refused.details())
    assert refused is None or "Traceback" not in (refused.details() or "")


class Served:
    """A server in a thread, and a channel of an admin to it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0, access="tokens"))
        self.wait(self.server.start())
        self.server.engine.commands.apply(two_arms(), actor="ann")
        self.server.engine.commands.start("ranker", actor="ann")
        _, text = self.server.tokens.create("root", (Role.ADMIN,), ("*",), actor="x", decide_rate=1e9, report_rate=1e9)
        self.metadata = (("authorization", f"Bearer {text}"),)
        self.access = Access(self.server.tokens, self.server.engine.registry.namespace_of, self.server.engine.clock)
        self.channel = grpc.insecure_channel(self.server.address)

    def wait(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self) -> None:
        self.channel.close()
        self.wait(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


@pytest.fixture(scope="module")
def served():
    made = Served()
    yield made
    made.close()


def test_any_text_is_a_spec_or_told_what_is_wrong_with_it():
    a_spec_is_read_or_refused(0)


def test_no_text_is_a_token(served):
    a_token_is_unknown(0, served.access)


def test_any_request_is_answered_without_a_crash(served):
    a_call_is_answered(0, served)
    request = service_pb.DecideRequest(experiment="ranker", unit="u").SerializeToString()
    assert served.channel.unary_unary("/allocator.v1.AllocatorService/Decide")(request, metadata=served.metadata, timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(SLOW_SECONDS + 120)
def test_ten_minutes_of_it_crash_nothing(served):
    end, number = time.monotonic() + SLOW_SECONDS, 0
    while time.monotonic() < end:
        number += 1
        a_spec_is_read_or_refused(number)
        a_token_is_unknown(number, served.access)
        a_call_is_answered(number, served)
    print(f"\n{number} rounds: {120 * number} specs, {300 * number} tokens, {250 * number} calls; no crash")
