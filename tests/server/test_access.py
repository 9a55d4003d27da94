"""Who may call what: every RPC that the server has, with every role and every kind of bad token. Nothing gets past the table."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from allocator.core.token import Role, text_of
from allocator.errors import Overloaded
from allocator.server import access
from allocator.server.access import RULES
from allocator.server.config import Config
from allocator.server.main import Server
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from tests.conftest import START, two_arms

SERVICES = (
    service_pb.DESCRIPTOR.services_by_name["AllocatorService"],
    operator_pb.DESCRIPTOR.services_by_name["OperatorService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
HOME, ELSEWHERE = "default", "elsewhere"
EVERYWHERE_ONLY = {"VerifyAuditRecords", "ReconcileStore", "CreateToken", "ListTokens", "RevokeToken", "RotateToken"}
LOOK = frozenset({"VIEW", "OPERATE", "AUTHOR", "APPROVE"})
MAY = {  # written down a second time, in other words than the table's: a mistake there must be made twice
    **dict.fromkeys(("Decide", "BatchDecide"), frozenset({"DECIDE"})),
    "ReportOutcomes": {"REPORT"},
    **dict.fromkeys(("WatchSnapshots", "LeaseExposure", "IntrospectTokens"), frozenset({"WATCH"})),
    **dict.fromkeys(("GetExperiment", "ListExperiments", "DescribeExperiment", "ListAuditRecords", "VerifyAuditRecords"), LOOK),
    **dict.fromkeys(("ListRevisions", "GetRevision", "GetStatistics", "ReadDecision", "ServerReflectionInfo"), LOOK),
    "ApplyExperiment": {"AUTHOR"},
    "ApproveExperiment": {"APPROVE"},
    **{f"{verb}Experiment": {"OPERATE"} for verb in ("Start", "Advance", "Freeze", "Resume", "Rollback", "Conclude")},
    **dict.fromkeys(("RejectProposal", "AnnotateExperiment"), LOOK - {"VIEW"}),
    **dict.fromkeys(("CreateToken", "ListTokens", "RevokeToken", "RotateToken", "ReconcileStore"), frozenset()),
}


@dataclass
class Guarded:
    """A server that asks for tokens, and one good decision id of its experiment."""

    server: Server
    channel: grpc.aio.Channel
    decision_id: str
    uid: str

    async def make(self, *roles: Role, namespaces: tuple[str, ...] = (HOME,), **more: float) -> tuple[str, str]:
        """Id and text of a new token."""
        token, text = await asyncio.to_thread(
            lambda: self.server.tokens.create("ann", roles, namespaces, actor="test", **more)
        )
        return token.id, text

    async def make_expired(self, *roles: Role) -> str:
        """The text of a token that was good until a moment ago."""
        token_id, text = await self.make(*roles)
        store = self.server.engine.store
        stored = store.items("token")[token_id]
        ended = {**json.loads(stored), "expires_seconds": self.server.engine.clock.now()}
        await asyncio.to_thread(store.put, "token", token_id, json.dumps(ended), stored)
        await asyncio.to_thread(self.server.tokens.refresh)
        return text

    async def call(self, path: str, token: str | None, raw: bytes | None = None) -> grpc.StatusCode:
        """How the server answers a call of this RPC with this token."""
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        raw = self.request(path) if raw is None else raw
        try:
            if METHODS[path].client_streaming:
                stream = self.channel.stream_stream(path)(iter([raw]), metadata=metadata, timeout=20)
                await stream.read()
                stream.cancel()
            elif METHODS[path].server_streaming:
                stream = self.channel.unary_stream(path)(raw, metadata=metadata, timeout=20)
                await stream.read()
                stream.cancel()
            else:
                await self.channel.unary_unary(path)(raw, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def request(self, path: str, namespace: str = HOME) -> bytes:
        """A request of this RPC about the experiment of a namespace; it need not succeed once it is let in."""
        message = message_factory.GetMessageClass(METHODS[path].input_type)()
        names = METHODS[path].input_type.fields_by_name
        if path.endswith("/ApplyExperiment"):
            message.experiment.metadata.name, message.experiment.metadata.namespace = "other", namespace
        elif "experiment" in names:
            message.experiment = f"{namespace}/ranker"
        elif "namespaces" in names and "WatchSnapshots" in path:
            message.namespaces.append(namespace)
        elif "namespace" in names:
            message.namespace = namespace
        if path.endswith("/ReportOutcomes"):
            message.outcomes.add(decision_id=self.decision_id, reward=1.0)
        elif path.endswith("/IntrospectTokens"):
            message.digests.append(bytes(32))
        elif path.endswith("/LeaseExposure"):
            message.leases.add(uid=self.uid, kind=1, exposures=1)
        elif path.endswith("/ReadDecision"):
            message.decision_id = self.decision_id
        elif path.endswith("/ServerReflectionInfo"):
            message.list_services = ""
        return message.SerializeToString()


@pytest.fixture
async def guarded():
    server = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0, access="tokens"))
    await server.start()
    for namespace in (HOME, ELSEWHERE):
        await asyncio.to_thread(server.engine.commands.apply, two_arms(namespace=namespace), actor="ann")
        await asyncio.to_thread(server.engine.commands.start, f"{namespace}/ranker", actor="ann")
    record = server.engine.registry.get("ranker")
    entry = server.engine.live.snapshot.entries["default/ranker"]
    decision_id = server.engine.decider.decide(entry, b"u", {}, server.engine.clock.now(), b"nonce678", stale=False).id
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Guarded(server, channel, decision_id, record.uid)
    await server.stop()


def test_every_rpc_has_a_row_and_every_row_an_rpc():
    assert set(RULES) == set(METHODS)
    assert {path for path, rule in RULES.items() if not rule.roles} == {path for path in METHODS if "Health" in path}
    assert all(Role.ADMIN in rule.roles for rule in RULES.values() if rule.roles)
    acting = {path for path, method in METHODS.items() if "actor" in method.input_type.fields_by_name}
    assert {path for path, rule in RULES.items() if rule.acts} == acting, "who acts must be who the token says"


async def test_no_call_gets_past_the_table(guarded):
    """Every RPC x every role x {good, none, expired, revoked, wrong namespace, malformed}."""
    counts: Counter[str] = Counter()
    for role in Role:
        _, good = await guarded.make(role)
        _, foreign = await guarded.make(role, namespaces=(ELSEWHERE,))
        _, everywhere = await guarded.make(role, namespaces=("*",))
        expired = await guarded.make_expired(role)
        gone, revoked = await guarded.make(role)
        await asyncio.to_thread(guarded.server.tokens.revoke, gone, actor="test")
        malformed = [good[:-1], good + "x", good.upper(), "alc_00000000_" + "A" * 43 + "_00000000", "", " ", "Bearer " + good]
        for path, method in METHODS.items():
            open_to_all = "Health" in path
            may = role is Role.ADMIN or open_to_all or role.name in MAY.get(method.name, ())
            home = may and (method.name not in EVERYWHERE_ONLY)
            expectations = [
                ("none", None, open_to_all),
                ("revoked", revoked, open_to_all),
                ("expired", expired, open_to_all),
                *(("malformed", text, open_to_all) for text in malformed),
                ("good", good, home),
                ("everywhere", everywhere, may),
            ]
            if method.name == "IntrospectTokens":  # whoever has a digest has seen the token
                expectations.append(("any namespace", foreign, may))
            elif not open_to_all and method.name != "ServerReflectionInfo":
                expectations.append(("wrong namespace", foreign, False))
            for kind, token, let_in in expectations:
                if kind in ("good", "everywhere") and method.name in ("RollbackExperiment", "ConcludeExperiment") and let_in:
                    raw = message_factory.GetMessageClass(method.input_type)(experiment=f"{HOME}/nobody").SerializeToString()
                    code = await guarded.call(path, token, raw)
                else:
                    code = await guarded.call(path, token)
                assert (code not in DENIED) is let_in, (path, role, kind, code)
                counts[f"{kind}: {'let in' if let_in else 'refused'}"] += 1
        for token in list(guarded.server.tokens.all()):
            await asyncio.to_thread(guarded.server.tokens.revoke, token.id, actor="test")
    print(f"\n{len(METHODS)} RPCs x {len(Role)} roles, {sum(counts.values())} calls, 0 bypasses:", dict(counts))


async def test_all_failures_to_say_who_one_is_read_the_same(guarded):
    _, good = await guarded.make(Role.VIEW)
    gone, revoked = await guarded.make(Role.VIEW)
    await asyncio.to_thread(guarded.server.tokens.revoke, gone, actor="test")
    told = set()
    for header in (None, f"Bearer {revoked}", f"Basic {good}", good, "Bearer", "Bearer alc_x", f"Bearer  {good}"):
        metadata = () if header is None else (("authorization", header),)
        with pytest.raises(grpc.RpcError) as caught:
            await guarded.channel.unary_unary(f"{access.OPERATOR}ListExperiments")(b"", metadata=metadata, timeout=20)
        told.add((caught.value.code(), caught.value.details(), str(caught.value.trailing_metadata())))
    assert len(told) == 1
    assert next(iter(told))[1] == "no valid token came with this call"


async def test_a_revoked_tokens_stream_ends_by_itself(guarded):
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


async def test_a_token_revoked_by_another_server_is_refused_here(guarded):
    """The copy is refreshed from the store: revoke behind its back, and wait until it is gone."""
    token_id, text = await guarded.make(Role.VIEW)
    path = f"{access.OPERATOR}ListExperiments"
    assert await guarded.call(path, text) is grpc.StatusCode.OK
    store = guarded.server.engine.store
    await asyncio.to_thread(lambda: store.put("token", token_id, None, store.items("token")[token_id]))
    async with asyncio.timeout(10):
        while await guarded.call(path, text) is grpc.StatusCode.OK:
            pass


async def test_the_actor_is_the_tokens_principal_whatever_the_request_claims(guarded):
    _, text = await guarded.make(Role.OPERATE)
    request = operator_pb.FreezeExperimentRequest(experiment="ranker", actor="the pope", reason="x")
    assert await guarded.call(f"{access.OPERATOR}FreezeExperiment", text, request.SerializeToString()) is grpc.StatusCode.OK
    record = guarded.server.engine.store.audit()[-1]
    assert (record.entry.action, record.entry.actor) == ("experiment.freeze", "ann")


async def test_break_glass_is_for_admins_alone(guarded):
    await asyncio.to_thread(guarded.server.engine.commands.freeze, "ranker", actor="x", reason="x")
    request = operator_pb.ResumeExperimentRequest(experiment="ranker", reason="x", break_glass=True).SerializeToString()
    path = f"{access.OPERATOR}ResumeExperiment"
    _, operate = await guarded.make(Role.OPERATE)
    _, admin = await guarded.make(Role.ADMIN)
    assert await guarded.call(path, operate, request) is grpc.StatusCode.PERMISSION_DENIED
    assert await guarded.call(path, admin, request) is grpc.StatusCode.OK


async def test_a_warm_start_reads_no_other_namespace(guarded):
    _, text = await guarded.make(Role.AUTHOR)
    request = operator_pb.ApplyExperimentRequest()
    request.experiment.metadata.name = "spy"
    request.experiment.spec.reward.warm_start.experiment = "elsewhere/ranker"
    path = f"{access.OPERATOR}ApplyExperiment"
    assert await guarded.call(path, text, request.SerializeToString()) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_list_without_a_namespace_is_of_the_only_one_or_refused(guarded):
    path = f"{access.OPERATOR}ListExperiments"
    _, one = await guarded.make(Role.VIEW)
    _, two = await guarded.make(Role.VIEW, namespaces=(HOME, ELSEWHERE))
    reply = await guarded.channel.unary_unary(path)(b"", metadata=(("authorization", f"bearer {one}"),), timeout=20)
    assert [e.metadata.namespace for e in operator_pb.ListExperimentsResponse.FromString(reply).experiments] == [HOME]
    assert await guarded.call(path, two, b"") is grpc.StatusCode.PERMISSION_DENIED


async def test_a_token_has_its_rate(guarded):
    _, text = await guarded.make(Role.DECIDE, decide_rate=3.0)
    request = service_pb.DecideRequest(experiment="ranker", unit="u").SerializeToString()
    codes = [await guarded.call(f"{access.ALLOCATOR}Decide", text, request) for _ in range(30)]
    assert codes[:3] == [grpc.StatusCode.OK] * 3
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes


def test_a_rate_fills_up_again_and_says_when():
    token, _ = _token(decide_rate=2.0)
    buckets = access.Caller(token, lambda uid: "", 0.0).buckets
    for at in (0.0, 0.0):
        buckets["decide_rate"].spend(at)
    with pytest.raises(Overloaded) as caught:
        buckets["decide_rate"].spend(0.25)
    assert caught.value.retry_after_seconds == pytest.approx(0.25)
    buckets["decide_rate"].spend(0.5)
    for _ in range(2000):
        buckets["report_rate"].spend(100.0)


def _token(**more: float):
    from allocator.engine.tokens import Tokens
    from allocator.stores.memory import MemoryStore
    from tests.conftest import ManualClock, SeededEntropy

    return Tokens(MemoryStore(), ManualClock(), SeededEntropy()).create("ann", (Role.DECIDE,), ("default",), actor="x", **more)


def test_tokens_differ_and_only_their_digests_are_known():
    token, text = _token()
    assert token.seconds == START
    assert text.startswith(f"alc_{token.id}_")
    assert text not in repr(token)
    assert len({text_of("00000000", bytes([a, b]) * 16) for a, b in itertools.product(range(16), range(16))}) == 256
