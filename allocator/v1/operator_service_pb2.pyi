import datetime

from allocator.v1 import allocator_pb2 as _allocator_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Statistic(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATISTIC_UNSPECIFIED: _ClassVar[Statistic]
    STATISTIC_DECISIONS: _ClassVar[Statistic]
    STATISTIC_REWARD: _ClassVar[Statistic]
    STATISTIC_LOSS: _ClassVar[Statistic]
    STATISTIC_UNITS: _ClassVar[Statistic]
STATISTIC_UNSPECIFIED: Statistic
STATISTIC_DECISIONS: Statistic
STATISTIC_REWARD: Statistic
STATISTIC_LOSS: Statistic
STATISTIC_UNITS: Statistic

class ApplyExperimentRequest(_message.Message):
    __slots__ = ("experiment", "validate_only", "etag", "request_id", "actor", "reason", "break_glass")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BREAK_GLASS_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    validate_only: bool
    etag: str
    request_id: str
    actor: str
    reason: str
    break_glass: bool
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ..., validate_only: bool = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., break_glass: bool = ...) -> None: ...

class ApplyExperimentResponse(_message.Message):
    __slots__ = ("experiment", "created", "changed", "pending")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    created: bool
    changed: bool
    pending: bool
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ..., created: bool = ..., changed: bool = ..., pending: bool = ...) -> None: ...

class GetExperimentRequest(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    def __init__(self, experiment: _Optional[str] = ...) -> None: ...

class GetExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ...) -> None: ...

class ListExperimentsRequest(_message.Message):
    __slots__ = ("namespace", "page_size", "page_token", "selector")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    page_size: int
    page_token: str
    selector: str
    def __init__(self, namespace: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., selector: _Optional[str] = ...) -> None: ...

class ListExperimentsResponse(_message.Message):
    __slots__ = ("experiments", "next_page_token")
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.Experiment]
    next_page_token: str
    def __init__(self, experiments: _Optional[_Iterable[_Union[_allocator_pb2.Experiment, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DescribeExperimentRequest(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    def __init__(self, experiment: _Optional[str] = ...) -> None: ...

class DescribeExperimentResponse(_message.Message):
    __slots__ = ("experiment", "arms", "guardrails", "stage", "notes", "plan_time", "past_guardrails", "sample_ratio_p_value", "annotations")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    GUARDRAILS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    PLAN_TIME_FIELD_NUMBER: _ClassVar[int]
    PAST_GUARDRAILS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATIO_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    arms: _containers.RepeatedCompositeFieldContainer[ArmDescription]
    guardrails: _containers.RepeatedCompositeFieldContainer[GuardrailDescription]
    stage: StageDescription
    notes: _containers.RepeatedScalarFieldContainer[str]
    plan_time: _timestamp_pb2.Timestamp
    past_guardrails: _containers.RepeatedCompositeFieldContainer[GuardrailDescription]
    sample_ratio_p_value: float
    annotations: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.Annotation]
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ..., arms: _Optional[_Iterable[_Union[ArmDescription, _Mapping]]] = ..., guardrails: _Optional[_Iterable[_Union[GuardrailDescription, _Mapping]]] = ..., stage: _Optional[_Union[StageDescription, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ..., plan_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., past_guardrails: _Optional[_Iterable[_Union[GuardrailDescription, _Mapping]]] = ..., sample_ratio_p_value: _Optional[float] = ..., annotations: _Optional[_Iterable[_Union[_allocator_pb2.Annotation, _Mapping]]] = ...) -> None: ...

class ArmDescription(_message.Message):
    __slots__ = ("arm", "state", "weight", "wanted_weight", "decisions", "exposure", "exposure_cap", "outcomes", "mean", "interval_low", "interval_high", "prob_best", "expected_loss", "pending")
    ARM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WANTED_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    EXPOSURE_FIELD_NUMBER: _ClassVar[int]
    EXPOSURE_CAP_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_LOW_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_HIGH_FIELD_NUMBER: _ClassVar[int]
    PROB_BEST_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_LOSS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    arm: str
    state: _allocator_pb2.ArmState
    weight: float
    wanted_weight: float
    decisions: int
    exposure: float
    exposure_cap: float
    outcomes: int
    mean: float
    interval_low: float
    interval_high: float
    prob_best: float
    expected_loss: float
    pending: int
    def __init__(self, arm: _Optional[str] = ..., state: _Optional[_Union[_allocator_pb2.ArmState, str]] = ..., weight: _Optional[float] = ..., wanted_weight: _Optional[float] = ..., decisions: _Optional[int] = ..., exposure: _Optional[float] = ..., exposure_cap: _Optional[float] = ..., outcomes: _Optional[int] = ..., mean: _Optional[float] = ..., interval_low: _Optional[float] = ..., interval_high: _Optional[float] = ..., prob_best: _Optional[float] = ..., expected_loss: _Optional[float] = ..., pending: _Optional[int] = ...) -> None: ...

class GuardrailDescription(_message.Message):
    __slots__ = ("guardrail", "arm", "segment", "verdict", "limit", "observed", "exposed", "events", "log_evidence", "log_threshold", "message", "proven_safe", "log_safety", "activation", "alpha")
    GUARDRAIL_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LOG_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    LOG_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PROVEN_SAFE_FIELD_NUMBER: _ClassVar[int]
    LOG_SAFETY_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    guardrail: str
    arm: str
    segment: str
    verdict: _allocator_pb2.Verdict
    limit: float
    observed: float
    exposed: int
    events: float
    log_evidence: float
    log_threshold: float
    message: str
    proven_safe: bool
    log_safety: float
    activation: int
    alpha: float
    def __init__(self, guardrail: _Optional[str] = ..., arm: _Optional[str] = ..., segment: _Optional[str] = ..., verdict: _Optional[_Union[_allocator_pb2.Verdict, str]] = ..., limit: _Optional[float] = ..., observed: _Optional[float] = ..., exposed: _Optional[int] = ..., events: _Optional[float] = ..., log_evidence: _Optional[float] = ..., log_threshold: _Optional[float] = ..., message: _Optional[str] = ..., proven_safe: bool = ..., log_safety: _Optional[float] = ..., activation: _Optional[int] = ..., alpha: _Optional[float] = ...) -> None: ...

class StageDescription(_message.Message):
    __slots__ = ("index", "count", "cap", "shadow", "entered_time", "waiting_for", "approvers")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    ENTERED_TIME_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    APPROVERS_FIELD_NUMBER: _ClassVar[int]
    index: int
    count: int
    cap: float
    shadow: bool
    entered_time: _timestamp_pb2.Timestamp
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    approvers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[int] = ..., count: _Optional[int] = ..., cap: _Optional[float] = ..., shadow: bool = ..., entered_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., waiting_for: _Optional[_Iterable[str]] = ..., approvers: _Optional[_Iterable[str]] = ...) -> None: ...

class StartExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason", "break_glass")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BREAK_GLASS_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    break_glass: bool
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., break_glass: bool = ...) -> None: ...

class StartExperimentResponse(_message.Message):
    __slots__ = ("experiment", "pending")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    pending: bool
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ..., pending: bool = ...) -> None: ...

class ApproveExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason", "revision")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    revision: str
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class ApproveExperimentResponse(_message.Message):
    __slots__ = ("experiment", "pending", "stage")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    pending: bool
    stage: bool
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ..., pending: bool = ..., stage: bool = ...) -> None: ...

class AdvanceExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason", "stage")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    stage: int
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., stage: _Optional[int] = ...) -> None: ...

class AdvanceExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ...) -> None: ...

class FreezeExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class FreezeExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ...) -> None: ...

class ResumeExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason", "break_glass")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BREAK_GLASS_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    break_glass: bool
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., break_glass: bool = ...) -> None: ...

class ResumeExperimentResponse(_message.Message):
    __slots__ = ("experiment", "pending")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    pending: bool
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ..., pending: bool = ...) -> None: ...

class RollbackExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RollbackExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ...) -> None: ...

class ConcludeExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason", "winner", "break_glass")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WINNER_FIELD_NUMBER: _ClassVar[int]
    BREAK_GLASS_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    winner: str
    break_glass: bool
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., winner: _Optional[str] = ..., break_glass: bool = ...) -> None: ...

class ConcludeExperimentResponse(_message.Message):
    __slots__ = ("experiment", "pending")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    pending: bool
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ..., pending: bool = ...) -> None: ...

class ListAuditRecordsRequest(_message.Message):
    __slots__ = ("experiment", "page_size", "page_token", "namespace")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    page_size: int
    page_token: str
    namespace: str
    def __init__(self, experiment: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., namespace: _Optional[str] = ...) -> None: ...

class ListAuditRecordsResponse(_message.Message):
    __slots__ = ("records", "next_page_token")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.AuditRecord]
    next_page_token: str
    def __init__(self, records: _Optional[_Iterable[_Union[_allocator_pb2.AuditRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class VerifyAuditRecordsRequest(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.AuditHead]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[_allocator_pb2.AuditHead, _Mapping]]] = ...) -> None: ...

class VerifyAuditRecordsResponse(_message.Message):
    __slots__ = ("intact", "records", "first_broken", "head", "missing_checkpoint")
    INTACT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BROKEN_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    MISSING_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    intact: bool
    records: int
    first_broken: int
    head: str
    missing_checkpoint: int
    def __init__(self, intact: bool = ..., records: _Optional[int] = ..., first_broken: _Optional[int] = ..., head: _Optional[str] = ..., missing_checkpoint: _Optional[int] = ...) -> None: ...

class RejectProposalRequest(_message.Message):
    __slots__ = ("experiment", "actor", "reason", "revision")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    reason: str
    revision: str
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class RejectProposalResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ...) -> None: ...

class AnnotateExperimentRequest(_message.Message):
    __slots__ = ("experiment", "actor", "text")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    actor: str
    text: str
    def __init__(self, experiment: _Optional[str] = ..., actor: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class AnnotateExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: _allocator_pb2.Experiment
    def __init__(self, experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ...) -> None: ...

class ListRevisionsRequest(_message.Message):
    __slots__ = ("experiment", "page_size", "page_token")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    page_size: int
    page_token: str
    def __init__(self, experiment: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRevisionsResponse(_message.Message):
    __slots__ = ("revisions", "next_page_token")
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    revisions: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.Revision]
    next_page_token: str
    def __init__(self, revisions: _Optional[_Iterable[_Union[_allocator_pb2.Revision, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetRevisionRequest(_message.Message):
    __slots__ = ("experiment", "revision")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    revision: int
    def __init__(self, experiment: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class GetRevisionResponse(_message.Message):
    __slots__ = ("revision", "experiment")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    revision: _allocator_pb2.Revision
    experiment: _allocator_pb2.Experiment
    def __init__(self, revision: _Optional[_Union[_allocator_pb2.Revision, _Mapping]] = ..., experiment: _Optional[_Union[_allocator_pb2.Experiment, _Mapping]] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("principal", "roles", "namespaces", "lifetime", "decide_rate", "report_rate", "actor", "reason")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    DECIDE_RATE_FIELD_NUMBER: _ClassVar[int]
    REPORT_RATE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    principal: str
    roles: _containers.RepeatedScalarFieldContainer[_allocator_pb2.Role]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    lifetime: _duration_pb2.Duration
    decide_rate: float
    report_rate: float
    actor: str
    reason: str
    def __init__(self, principal: _Optional[str] = ..., roles: _Optional[_Iterable[_Union[_allocator_pb2.Role, str]]] = ..., namespaces: _Optional[_Iterable[str]] = ..., lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decide_rate: _Optional[float] = ..., report_rate: _Optional[float] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("token", "text")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    token: _allocator_pb2.Token
    text: str
    def __init__(self, token: _Optional[_Union[_allocator_pb2.Token, _Mapping]] = ..., text: _Optional[str] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTokensResponse(_message.Message):
    __slots__ = ("tokens", "next_page_token")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.Token]
    next_page_token: str
    def __init__(self, tokens: _Optional[_Iterable[_Union[_allocator_pb2.Token, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("id", "actor", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    actor: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeTokenResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: _allocator_pb2.Token
    def __init__(self, token: _Optional[_Union[_allocator_pb2.Token, _Mapping]] = ...) -> None: ...

class RotateTokenRequest(_message.Message):
    __slots__ = ("id", "overlap", "actor", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    overlap: _duration_pb2.Duration
    actor: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., overlap: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RotateTokenResponse(_message.Message):
    __slots__ = ("token", "text")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    token: _allocator_pb2.Token
    text: str
    def __init__(self, token: _Optional[_Union[_allocator_pb2.Token, _Mapping]] = ..., text: _Optional[str] = ...) -> None: ...

class GetStatisticsRequest(_message.Message):
    __slots__ = ("experiment", "by_bucket")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    BY_BUCKET_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    by_bucket: bool
    def __init__(self, experiment: _Optional[str] = ..., by_bucket: bool = ...) -> None: ...

class GetStatisticsResponse(_message.Message):
    __slots__ = ("uid", "time", "rows", "buckets")
    UID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    uid: str
    time: _timestamp_pb2.Timestamp
    rows: _containers.RepeatedCompositeFieldContainer[StatisticsRow]
    buckets: _containers.RepeatedCompositeFieldContainer[StatisticsRow]
    def __init__(self, uid: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[StatisticsRow, _Mapping]]] = ..., buckets: _Optional[_Iterable[_Union[StatisticsRow, _Mapping]]] = ...) -> None: ...

class StatisticsRow(_message.Message):
    __slots__ = ("arm", "segment", "statistic", "guardrail", "count", "total", "squares", "bucket_time", "bucket_width")
    ARM_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    STATISTIC_FIELD_NUMBER: _ClassVar[int]
    GUARDRAIL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SQUARES_FIELD_NUMBER: _ClassVar[int]
    BUCKET_TIME_FIELD_NUMBER: _ClassVar[int]
    BUCKET_WIDTH_FIELD_NUMBER: _ClassVar[int]
    arm: str
    segment: str
    statistic: Statistic
    guardrail: str
    count: int
    total: float
    squares: float
    bucket_time: _timestamp_pb2.Timestamp
    bucket_width: _duration_pb2.Duration
    def __init__(self, arm: _Optional[str] = ..., segment: _Optional[str] = ..., statistic: _Optional[_Union[Statistic, str]] = ..., guardrail: _Optional[str] = ..., count: _Optional[int] = ..., total: _Optional[float] = ..., squares: _Optional[float] = ..., bucket_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., bucket_width: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ReadDecisionRequest(_message.Message):
    __slots__ = ("decision_id", "unit")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    unit: str
    def __init__(self, decision_id: _Optional[str] = ..., unit: _Optional[str] = ...) -> None: ...

class ReadDecisionResponse(_message.Message):
    __slots__ = ("experiment", "uid", "unit_hash", "slot")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    UNIT_HASH_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    uid: str
    unit_hash: str
    slot: int
    def __init__(self, experiment: _Optional[str] = ..., uid: _Optional[str] = ..., unit_hash: _Optional[str] = ..., slot: _Optional[int] = ...) -> None: ...

class ReconcileStoreRequest(_message.Message):
    __slots__ = ("actor", "reason", "force")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    actor: str
    reason: str
    force: bool
    def __init__(self, actor: _Optional[str] = ..., reason: _Optional[str] = ..., force: bool = ...) -> None: ...

class ReconcileStoreResponse(_message.Message):
    __slots__ = ("epoch", "restored", "notes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    restored: _containers.RepeatedScalarFieldContainer[str]
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[str] = ..., restored: _Optional[_Iterable[str]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...
