"""Tokens at an edge: let in are those whom the upstream would let in, a second late at most, also while the upstream is gone."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf import message_factory

from allocator.client import Access, AsyncClient, LocalClient
from allocator.core.token import Role, Token
from allocator.errors import InvalidArgument, Overloaded, Unauthenticated, Unavailable
from allocator.server import access, introspection
from allocator.server.access import Unasked
from allocator.server.config import Config
from allocator.server.edge import Edge, EdgeConfig
from allocator.server.introspection import Introspected
from allocator.server.main import Server
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire.governance import token_to_message
from tests.client.conftest import QUICK
from tests.conftest import START, ManualClock, two_arms
from tests.processes import until
from tests.server.test_access import DENIED, ELSEWHERE, EVERYWHERE_ONLY, HOME, MAY, METHODS, Guarded

SERVED = {path: method for path, method in METHODS.items() if "Reflection" not in path}


@asynccontextmanager
async def edge_of(upstream: str, token: str, **settings):
    values = {"listen": "127.0.0.1:0", "drain_seconds": 0, "grace_seconds": 0, "pause": QUICK, "operator": True, "callers": "tokens"}
    edge = Edge(EdgeConfig(upstream=upstream, access=Access(token=token), **{**values, **settings}))
    await asyncio.wait_for(edge.start(), 60)
    try:
        yield edge
    finally:
        await edge.stop()


@asynccontextmanager
async def guarded_edge(upstream_access: str = "tokens"):
    """A server, an edge of it that asks for tokens, and a channel to the edge."""
    config = Config(
        listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0, grace_seconds=0, access=upstream_access, refresh_seconds=0.1
    )
    server = Server(config)
    await server.start()
    for namespace in (HOME, ELSEWHERE):
        await asyncio.to_thread(server.engine.commands.apply, two_arms(namespace=namespace), actor="ann")
        await asyncio.to_thread(server.engine.commands.start, f"{namespace}/ranker", actor="ann")
    entry = server.engine.live.snapshot.entries["default/ranker"]
    decision_id = server.engine.decider.decide(entry, b"u", {}, server.engine.clock.now(), b"nonce678", stale=False).id
    _, own = await asyncio.to_thread(server.tokens.create, "edge", (Role.WATCH, Role.REPORT), ("*",), actor="test")
    async with edge_of(server.address, own) as edge, grpc.aio.insecure_channel(edge.address) as channel:
        yield Guarded(server, channel, decision_id, server.engine.registry.get("ranker").uid), edge
    await server.stop()


async def refused(guarded: Guarded, path: str, token: str) -> None:
    """Wait until the edge refuses this token."""
    async with asyncio.timeout(20):
        while await guarded.call(path, token) is not grpc.StatusCode.UNAUTHENTICATED:
            pass


@pytest.mark.parametrize("upstream_access", ["tokens", "open"])
async def test_no_call_gets_past_the_table_at_an_edge(upstream_access):
    """Every RPC of an edge x every role x {good, none, expired, revoked, wrong namespace, malformed}."""
    counts: Counter[str] = Counter()
    async with guarded_edge(upstream_access) as (guarded, _):
        for role in Role:
            _, good = await guarded.make(role)
            _, foreign = await guarded.make(role, namespaces=(ELSEWHERE,))
            _, everywhere = await guarded.make(role, namespaces=("*",))
            expired = await guarded.make_expired(role)
            gone, revoked = await guarded.make(role)
            known = f"{access.ALLOCATOR}{'IntrospectTokens' if role in (Role.WATCH, Role.ADMIN) else 'Decide'}"
            assert await guarded.call(known, revoked) is not grpc.StatusCode.UNAUTHENTICATED, "the edge knows it"
            await asyncio.to_thread(guarded.server.tokens.revoke, gone, actor="test")
            await refused(guarded, known, revoked)
            for path, method in SERVED.items():
                open_to_all = "Health" in path
                may = role is Role.ADMIN or open_to_all or role.name in MAY.get(method.name, ())
                expectations = [
                    ("none", None, open_to_all),
                    ("revoked", revoked, open_to_all),
                    ("expired", expired, open_to_all),
                    ("malformed", good[:-1], open_to_all),
                    ("malformed", "", open_to_all),
                    ("good", good, may and method.name not in EVERYWHERE_ONLY),
                    ("everywhere", everywhere, may),
                ]
                if method.name == "IntrospectTokens":
                    expectations.append(("any namespace", foreign, may))
                elif not open_to_all:
                    expectations.append(("wrong namespace", foreign, False))
                for kind, token, let_in in expectations:
                    raw = None
                    if method.name in ("RollbackExperiment", "ConcludeExperiment") and let_in:
                        raw = message_factory.GetMessageClass(method.input_type)(experiment=f"{HOME}/nobody").SerializeToString()
                    async with asyncio.timeout(20):
                        while (code := await guarded.call(path, token, raw)) is grpc.StatusCode.UNAVAILABLE:
                            pass  # this machine was too busy to answer the edge in time
                    assert (code not in DENIED) is let_in, (path, role, kind, code)
                    counts[f"{kind}: {'let in' if let_in else 'refused'}"] += 1
    print(f"\n{len(SERVED)} RPCs x {len(Role)} roles at an edge, {sum(counts.values())} calls, 0 bypasses:", dict(counts))


async def test_a_revoked_tokens_stream_at_an_edge_ends_by_itself():
    async with guarded_edge() as (guarded, _):
        token_id, text = await guarded.make(Role.WATCH)
        stream = guarded.channel.unary_stream(f"{access.ALLOCATOR}WatchSnapshots")(
            b"", metadata=(("authorization", f"Bearer {text}"),), timeout=20
        )
        first = service_pb.WatchSnapshotsResponse.FromString(await stream.read())
        assert {entry.experiment for entry in first.change.entries} == {"default/ranker"}, "a stream shows its namespaces alone"
        await asyncio.to_thread(guarded.server.tokens.revoke, token_id, actor="test")

        async def to_its_end() -> None:
            while await stream.read() is not grpc.aio.EOF:
                pass

        with pytest.raises(grpc.RpcError) as caught:
            await to_its_end()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("upstream_access", ["tokens", "open"])
async def test_who_acts_through_an_edge_is_who_the_token_says(upstream_access):
    async with guarded_edge(upstream_access) as (guarded, _):
        _, text = await guarded.make(Role.OPERATE)
        request = operator_pb.FreezeExperimentRequest(experiment="ranker", actor="the pope", reason="x")
        assert await guarded.call(f"{access.OPERATOR}FreezeExperiment", text, request.SerializeToString()) is grpc.StatusCode.OK
        record = guarded.server.engine.store.audit()[-1]
        assert (record.entry.action, record.entry.actor) == ("experiment.freeze", "ann")


async def test_clients_with_tokens_use_an_edge_of_an_edge_as_they_use_a_server():
    async with guarded_edge() as (guarded, near):
        _, own = await guarded.make(Role.WATCH, Role.REPORT, namespaces=("*",))
        _, app = await guarded.make(Role.DECIDE, Role.REPORT)
        _, embedded = await guarded.make(Role.WATCH, Role.REPORT)
        async with edge_of(near.address, own) as far:
            async with AsyncClient(far.address, decide_timeout=5, report_timeout=10, access=Access(token=app)) as client:
                decision = await client.decide("ranker", "u1")
                assert (await client.report(decision.id, reward=1.0)).status == "ACCEPTED"
            assert far.metrics.outcomes.labels("ACCEPTED").count == 1
            with LocalClient(far.address, pause=QUICK, access=Access(token=embedded)) as local:
                assert await asyncio.to_thread(local.wait_ready, 30)
                local.report(local.decide("ranker", "u2").id, reward=1.0)
                assert await asyncio.to_thread(local.flush, 30)
                assert local.statistics().accepted == 1


async def test_while_its_upstream_is_gone_an_edge_lets_in_whom_it_knows_and_nobody_else():
    async with guarded_edge() as (guarded, edge):
        _, known = await guarded.make(Role.DECIDE)
        _, stranger = await guarded.make(Role.DECIDE)
        path, raw = f"{access.ALLOCATOR}Decide", service_pb.DecideRequest(experiment="ranker", unit="u").SerializeToString()
        assert await guarded.call(path, known, raw) is grpc.StatusCode.OK
        await guarded.server._grpc.stop(0)
        await asyncio.to_thread(until, lambda: edge.tokens._away_until > edge._clock.monotonic())
        assert await guarded.call(path, known, raw) is grpc.StatusCode.OK
        assert await guarded.call(path, stranger, raw) is grpc.StatusCode.UNAVAILABLE


# Told the time.


class Upstream:
    """Answers for the tokens that it is given; None: it is gone."""

    def __init__(self) -> None:
        self.tokens: dict[bytes, Token] | None = {}
        self.asked: list[list[bytes]] = []

    async def __call__(self, digests):
        self.asked.append(list(digests))
        if self.tokens is None:
            raise Unavailable("gone")
        told = [
            service_pb.IntrospectedToken(digest=digest, token=token_to_message(self.tokens[digest]))
            for digest in digests
            if digest in self.tokens
        ]
        return service_pb.IntrospectTokensResponse(tokens=told, checks_calls=True)

    def add(self, text: str, **changes: float) -> bytes:
        digest = hashlib.sha256(text.encode()).digest()
        values = {"expires_seconds": START + 600.0, **changes}
        self.tokens[digest] = Token("00000000", "ann", (Role.DECIDE,), ("default",), digest.hex(), START, **values)
        return digest


@pytest.fixture
def upstream():
    return Upstream()


async def look_up(tokens: Introspected, digest: bytes) -> Token | None:
    """As a call does: ask if need be, and take what is there then."""
    try:
        return tokens.find(digest)
    except Unasked as unasked:
        await unasked.ask()
    return tokens.find(digest)


async def test_an_answer_holds_for_a_second_and_a_token_is_told_whole(upstream, clock):
    tokens = Introspected(upstream, clock)
    good, unknown = upstream.add("good"), b"?" * 32
    assert await look_up(tokens, good) == upstream.tokens[good]
    assert await look_up(tokens, unknown) is None
    assert tokens.checked_upstream
    clock.pass_(1.0)
    assert await look_up(tokens, good) is not None
    assert await look_up(tokens, unknown) is None
    assert upstream.asked == [[good], [unknown]]
    clock.pass_(0.01)
    for digest in (good, unknown):
        with pytest.raises(Unasked, match="no valid token"):
            tokens.find(digest)


async def test_a_revoked_token_is_refused_at_the_next_refresh_and_a_used_one_never_makes_a_call_wait(upstream, clock):
    tokens = Introspected(upstream, clock)
    digest = upstream.add("good")
    await look_up(tokens, digest)
    for _ in range(10):
        clock.pass_(introspection.REFRESH_SECONDS)
        before = tokens.by_digest
        await tokens.refresh()
        assert tokens.by_digest is not before, "what checks remember by header is looked up again"
        assert tokens.find(digest) is not None
    del upstream.tokens[digest]
    clock.pass_(introspection.REFRESH_SECONDS)
    await tokens.refresh()
    assert tokens.find(digest) is None
    assert digest not in tokens.by_digest


async def test_without_its_upstream_what_is_known_holds_until_it_expires(upstream, clock):
    tokens = Introspected(upstream, clock)
    unknown = b"?" * 32
    upstream.add("good", expires_seconds=START + 60.0)
    table = access.Access(tokens, lambda uid: "", clock)
    gate = table.gate(f"{access.ALLOCATOR}Decide")
    metadata = (("authorization", "Bearer good"),)
    await gate.admit(metadata)
    upstream.tokens = None
    while clock.at < START + 59:
        clock.pass_(introspection.REFRESH_SECONDS)
        await tokens.refresh()
        assert gate.enter(metadata).principal == "ann", "nobody waits for an upstream that is gone"
        with pytest.raises(Unavailable):
            tokens.find(unknown)
    clock.pass_(1.0)
    with pytest.raises(Unauthenticated):
        gate.enter(metadata)
    upstream.tokens = {}
    clock.pass_(introspection.AWAY_SECONDS)
    late = upstream.add("late")
    assert await look_up(tokens, late) is not None, "it is back"


async def test_a_token_revoked_while_nobody_used_it_is_not_let_in_when_the_upstream_is_gone(upstream, clock):
    tokens = Introspected(upstream, clock)
    digest = upstream.add("good")
    await look_up(tokens, digest)
    clock.pass_(300)
    del upstream.tokens[digest]
    await tokens.refresh()
    upstream.tokens = None
    clock.pass_(5)
    await tokens.refresh()
    with pytest.raises(Unavailable):
        await look_up(tokens, digest)


async def test_a_token_that_nobody_used_for_an_hour_is_asked_for_no_more(upstream, clock):
    tokens = Introspected(upstream, clock)
    digest = upstream.add("good", expires_seconds=START + 1e6)
    await look_up(tokens, digest)
    clock.pass_(introspection.FORGET_SECONDS)
    await tokens.refresh()
    asked = len(upstream.asked)
    clock.pass_(1.0)
    await tokens.refresh()
    assert len(upstream.asked) == asked == 2


async def test_callers_with_one_token_ask_once_and_a_flood_of_unknown_ones_stays_outside(clock):
    answered, asked = asyncio.Event(), []

    async def slow(digests):
        asked.extend(digests)
        await answered.wait()
        return service_pb.IntrospectTokensResponse()

    tokens = Introspected(slow, clock)
    calls = [asyncio.create_task(look_up(tokens, bytes([i % introspection.MAX_ASKING]) * 32)) for i in range(3 * introspection.MAX_ASKING)]
    while len(asked) < introspection.MAX_ASKING:
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    with pytest.raises(Overloaded):
        await look_up(tokens, b"\xff" * 32)
    answered.set()
    assert set(await asyncio.gather(*calls)) == {None}
    assert len(asked) == introspection.MAX_ASKING


def test_a_server_that_knows_no_tokens_yet_does_not_say_that_there_are_none():
    from allocator.engine.tokens import Tokens
    from allocator.stores.memory import MemoryStore
    from tests.conftest import SeededEntropy

    clock = ManualClock()
    tokens = Tokens(MemoryStore(), clock, SeededEntropy())
    request = service_pb.IntrospectTokensRequest(digests=[bytes(32)])
    with pytest.raises(Unavailable, match="not reached its store"):
        introspection.answer(request, tokens, clock.now(), checks_calls=True)
    token, text = tokens.create("ann", (Role.DECIDE,), ("default",), actor="x", lifetime_seconds=60)
    request.digests.append(hashlib.sha256(text.encode()).digest())
    assert [told.token.id for told in introspection.answer(request, tokens, clock.now(), checks_calls=True).tokens] == [token.id]
    assert not introspection.answer(request, tokens, clock.now() + 60, checks_calls=True).tokens, "an expired one is not good"
    for digests in ([b"short"], [bytes(32)] * 1001):
        with pytest.raises(InvalidArgument, match="digests"):
            introspection.answer(service_pb.IntrospectTokensRequest(digests=digests), tokens, 0.0, checks_calls=True)


def test_a_lent_token_is_in_no_list_and_no_store_and_lives_through_a_refresh():
    from allocator.engine.tokens import Tokens
    from allocator.stores.memory import MemoryStore
    from tests.conftest import SeededEntropy

    store = MemoryStore()
    tokens = Tokens(store, ManualClock(), SeededEntropy())
    digest = hashlib.sha256(tokens.lend("worker", (Role.WATCH,)).encode()).digest()
    tokens.refresh()
    assert tokens.find(digest).principal == "worker"
    assert (tokens.all(), tokens.remembered(), store.items("token")) == ([], {"token": {}}, {})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"callers": "some"}, "access"),
        ({"listen": "0.0.0.0:1", "callers": "tokens"}, "listen"),
        ({"listen": "0.0.0.0:1", "tls_cert": "c", "tls_key": "k"}, "listen"),
        ({"tls_cert": "c"}, "tls-key"),
    ],
)
def test_an_edge_that_other_machines_reach_needs_what_a_server_needs(settings, field):
    with pytest.raises(InvalidArgument) as caught:
        EdgeConfig(**{"upstream": "127.0.0.1:1", **settings})
    assert caught.value.violations[0].field == field
    assert EdgeConfig(upstream="127.0.0.1:1", listen="0.0.0.0:1", tls_cert="c", tls_key="k", callers="tokens")
