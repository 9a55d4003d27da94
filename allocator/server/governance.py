"""The operator's service, second half: proposals, revisions, notes, the audit log and tokens.

In: messages. Out: messages. `OperatorServicer` is this and the commands; every method runs in a thread, because it waits for the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from allocator.core.audit import AuditRecord, first_broken
from allocator.core.snapshot import full_name
from allocator.engine import history
from allocator.engine.engine import Engine
from allocator.engine.tokens import OVERLAP_SECONDS, Tokens
from allocator.errors import InvalidArgument, NotFound
from allocator.ports import Store
from allocator.v1 import operator_service_pb2 as pb
from allocator.wire import convert
from allocator.wire.governance import revision_to_message, roles_from_numbers, token_to_message
from allocator.wire.scalars import seconds_of

DEFAULT_PAGE, MAX_PAGE = 50, 1000
MAX_CHECKPOINTS = 10_000
ANONYMOUS = "anonymous"


class Governance:
    """Needs `_store`, `_tokens`, `_in_thread` and (but for tokens and the log) `_engine` of the class that it is mixed into."""

    _store: Store
    _engine: Engine
    _tokens: Tokens
    _in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]

    async def reject_proposal(self, request: pb.RejectProposalRequest) -> pb.RejectProposalResponse:
        """RejectProposal."""
        record = await self._in_thread(
            lambda: self._engine.commands.reject(
                request.experiment, revision=request.revision, actor=actor_of(request.actor), reason=request.reason
            )
        )
        return pb.RejectProposalResponse(experiment=convert.record_to_message(record))

    async def annotate_experiment(self, request: pb.AnnotateExperimentRequest) -> pb.AnnotateExperimentResponse:
        """AnnotateExperiment."""
        record = await self._in_thread(
            lambda: self._engine.commands.annotate(request.experiment, actor=actor_of(request.actor), text=request.text)
        )
        return pb.AnnotateExperimentResponse(experiment=convert.record_to_message(record))

    async def list_revisions(self, request: pb.ListRevisionsRequest) -> pb.ListRevisionsResponse:
        """ListRevisions, oldest first; the page token is the last number of the page before."""
        size, after = page_size(request.page_size), number_of(request.page_token)
        record = self._engine.registry.get(request.experiment)
        found = await self._in_thread(lambda: history.revisions(self._store, record.name))
        found = [each for each in found if each.number > after]
        reply = pb.ListRevisionsResponse(revisions=[revision_to_message(each) for each in found[:size]])
        if len(found) > size:
            reply.next_page_token = str(found[size - 1].number)
        return reply

    async def get_revision(self, request: pb.GetRevisionRequest) -> pb.GetRevisionResponse:
        """GetRevision."""
        record = self._engine.registry.get(request.experiment)
        found = await self._in_thread(lambda: history.revision(self._store, record.name, request.revision))
        return pb.GetRevisionResponse(
            revision=revision_to_message(found), experiment=convert.experiment_to_message(found.experiment)
        )

    async def reconcile_store(self, request: pb.ReconcileStoreRequest) -> pb.ReconcileStoreResponse:
        """ReconcileStore."""
        done = await self._in_thread(
            lambda: self._engine.commands.reconcile(actor=actor_of(request.actor), reason=request.reason, force=request.force)
        )
        return pb.ReconcileStoreResponse(epoch=done.epoch, restored=done.restored, notes=done.notes)

    async def list_audit_records(self, request: pb.ListAuditRecordsRequest) -> pb.ListAuditRecordsResponse:
        """ListAuditRecords, oldest first; the page token is the last sequence of the page before. NotFound for a name that never was."""
        size, after = page_size(request.page_size), number_of(request.page_token)
        name = full_name(request.experiment) if request.experiment else None
        prefix = f"{request.namespace}/" if request.namespace else ""

        def page() -> list[AuditRecord]:
            found: list[AuditRecord] = []
            for record in self._audit(after, name):
                if record.entry.experiment.startswith(prefix):
                    found.append(record)
                if len(found) > size:
                    break
            return found

        records = await self._in_thread(page)
        if name is not None and not records and not after:
            await self._in_thread(lambda: self._check_known(name))
        reply = pb.ListAuditRecordsResponse(records=[convert.audit_to_message(record) for record in records[:size]])
        if len(records) > size:
            reply.next_page_token = str(records[size - 1].sequence)
        return reply

    async def verify_audit_records(self, request: pb.VerifyAuditRecordsRequest) -> pb.VerifyAuditRecordsResponse:
        """VerifyAuditRecords: one pass over all of them, a page in memory at a time."""
        if len(request.checkpoints) > MAX_CHECKPOINTS:
            raise InvalidArgument.of_field("checkpoints", f"got {len(request.checkpoints)}; at most {MAX_CHECKPOINTS} are allowed")
        wanted = [(head.sequence, head.digest) for head in request.checkpoints]

        def verify() -> pb.VerifyAuditRecordsResponse:
            held: dict[int, str] = dict.fromkeys((sequence for sequence, _ in wanted), "")
            count, head = 0, ""

            def seen() -> Iterator[AuditRecord]:
                nonlocal count, head
                for record in self._audit():
                    if record.sequence in held:
                        held[record.sequence] = record.digest
                    count, head = count + 1, record.digest
                    yield record

            records = seen()
            broken = first_broken(records)
            for _ in records:  # to its end also when it is broken, for the count
                pass
            missing = min((sequence for sequence, digest in wanted if held[sequence] != digest), default=0)
            return pb.VerifyAuditRecordsResponse(
                intact=broken == 0 and missing == 0,
                records=count,
                first_broken=broken,
                head=head,
                missing_checkpoint=missing,
            )

        return await self._in_thread(verify)

    async def create_token(self, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
        """CreateToken."""
        asked = {name: getattr(request, name) for name in ("decide_rate", "report_rate") if getattr(request, name)}
        if request.HasField("lifetime"):
            asked["lifetime_seconds"] = seconds_of(request.lifetime)
        token, text = await self._in_thread(
            lambda: self._tokens.create(
                request.principal,
                roles_from_numbers(list(request.roles)),
                tuple(request.namespaces),
                actor=actor_of(request.actor),
                reason=request.reason,
                **asked,
            )
        )
        return pb.CreateTokenResponse(token=token_to_message(token), text=text)

    async def list_tokens(self, request: pb.ListTokensRequest) -> pb.ListTokensResponse:
        """ListTokens, oldest first; the page token is the last id of the page before."""
        size = page_size(request.page_size)
        tokens = await self._in_thread(self._tokens.all)
        ids = [token.id for token in tokens]
        if request.page_token and request.page_token not in ids:
            raise NotFound("the list has changed: ask for its first page again", reason="UNKNOWN_PAGE")
        tokens = tokens[ids.index(request.page_token) + 1 :] if request.page_token else tokens
        reply = pb.ListTokensResponse(tokens=[token_to_message(token) for token in tokens[:size]])
        if len(tokens) > size:
            reply.next_page_token = tokens[size - 1].id
        return reply

    async def revoke_token(self, request: pb.RevokeTokenRequest) -> pb.RevokeTokenResponse:
        """RevokeToken."""
        token = await self._in_thread(
            lambda: self._tokens.revoke(request.id, actor=actor_of(request.actor), reason=request.reason)
        )
        return pb.RevokeTokenResponse(token=token_to_message(token))

    async def rotate_token(self, request: pb.RotateTokenRequest) -> pb.RotateTokenResponse:
        """RotateToken."""
        overlap = seconds_of(request.overlap) if request.HasField("overlap") else OVERLAP_SECONDS
        token, text = await self._in_thread(
            lambda: self._tokens.rotate(
                request.id, actor=actor_of(request.actor), reason=request.reason, overlap_seconds=overlap
            )
        )
        return pb.RotateTokenResponse(token=token_to_message(token), text=text)

    def _check_known(self, name: str) -> None:
        """Raise NotFound unless there is an experiment of this full name, or records of one: they stay for ever."""
        if not self._knows(name) and not self._store.audit(0, 1, name):
            what = f"there is no experiment {name[:200]!r}, and no record of one"
            raise NotFound(what, reason="UNKNOWN_EXPERIMENT", experiment=name)

    def _knows(self, name: str) -> bool:
        return self._store.record(name) is not None

    def _audit(self, after: int = 0, name: str | None = None) -> Iterator[AuditRecord]:
        while page := self._store.audit(after, MAX_PAGE, name):
            yield from page
            after = page[-1].sequence


def actor_of(actor: str) -> str:
    """Who a request says it comes from."""
    return actor or ANONYMOUS


def page_size(asked: int) -> int:
    """How many to answer with. Raises InvalidArgument for a negative number."""
    if asked < 0:
        raise InvalidArgument.of_field("page_size", f"got {asked}; a number of at least 0 is allowed")
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def number_of(page_token: str) -> int:
    """The number that a page token of a numbered list is; 0 for none."""
    if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) <= 18):
        raise InvalidArgument.of_field("page_token", f"got {page_token[:40]!r}; a token from an earlier answer is allowed")
    return int(page_token or 0)
