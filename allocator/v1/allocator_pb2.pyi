import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Assignment(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ASSIGNMENT_UNSPECIFIED: _ClassVar[Assignment]
    ASSIGNMENT_STICKY: _ClassVar[Assignment]
    ASSIGNMENT_PER_REQUEST: _ClassVar[Assignment]

class RewardModel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REWARD_MODEL_UNSPECIFIED: _ClassVar[RewardModel]
    REWARD_MODEL_BERNOULLI: _ClassVar[RewardModel]
    REWARD_MODEL_GAUSSIAN: _ClassVar[RewardModel]
    REWARD_MODEL_POISSON: _ClassVar[RewardModel]

class Goal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GOAL_UNSPECIFIED: _ClassVar[Goal]
    GOAL_MAXIMISE: _ClassVar[Goal]
    GOAL_MINIMISE: _ClassVar[Goal]

class PolicyKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_KIND_UNSPECIFIED: _ClassVar[PolicyKind]
    POLICY_KIND_THOMPSON: _ClassVar[PolicyKind]
    POLICY_KIND_TOP_TWO: _ClassVar[PolicyKind]
    POLICY_KIND_EXPLORATION: _ClassVar[PolicyKind]
    POLICY_KIND_FIXED: _ClassVar[PolicyKind]

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_POOLED: _ClassVar[Pooling]
    POOLING_PER_SEGMENT: _ClassVar[Pooling]

class BreachAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BREACH_ACTION_UNSPECIFIED: _ClassVar[BreachAction]
    BREACH_ACTION_FREEZE: _ClassVar[BreachAction]
    BREACH_ACTION_DRAIN: _ClassVar[BreachAction]
    BREACH_ACTION_HOLD: _ClassVar[BreachAction]
    BREACH_ACTION_ALERT: _ClassVar[BreachAction]

class Per(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PER_UNSPECIFIED: _ClassVar[Per]
    PER_ARM: _ClassVar[Per]
    PER_SEGMENT: _ClassVar[Per]

class UnitContribution(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNIT_CONTRIBUTION_UNSPECIFIED: _ClassVar[UnitContribution]
    UNIT_CONTRIBUTION_FIRST: _ClassVar[UnitContribution]
    UNIT_CONTRIBUTION_ALL: _ClassVar[UnitContribution]

class ConcludeAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONCLUDE_ACTION_UNSPECIFIED: _ClassVar[ConcludeAction]
    CONCLUDE_ACTION_RECOMMEND: _ClassVar[ConcludeAction]
    CONCLUDE_ACTION_PROMOTE: _ClassVar[ConcludeAction]

class ExperimentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPERIMENT_STATE_UNSPECIFIED: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_DRAFT: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_RUNNING: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_FROZEN: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_ROLLED_BACK: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_CONCLUDED: _ClassVar[ExperimentState]

class ArmState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARM_STATE_UNSPECIFIED: _ClassVar[ArmState]
    ARM_STATE_ACTIVE: _ClassVar[ArmState]
    ARM_STATE_SHADOW: _ClassVar[ArmState]
    ARM_STATE_DRAINED: _ClassVar[ArmState]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_CLEAR: _ClassVar[Verdict]
    VERDICT_WARN: _ClassVar[Verdict]
    VERDICT_BREACH: _ClassVar[Verdict]
    VERDICT_HOLD: _ClassVar[Verdict]

class ProposalKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROPOSAL_KIND_UNSPECIFIED: _ClassVar[ProposalKind]
    PROPOSAL_KIND_REVISE: _ClassVar[ProposalKind]
    PROPOSAL_KIND_START: _ClassVar[ProposalKind]
    PROPOSAL_KIND_RESUME: _ClassVar[ProposalKind]
    PROPOSAL_KIND_CONCLUDE: _ClassVar[ProposalKind]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_ALLOCATED: _ClassVar[Reason]
    REASON_INCUMBENT_ONLY: _ClassVar[Reason]
    REASON_CAPPED: _ClassVar[Reason]
    REASON_FROZEN: _ClassVar[Reason]
    REASON_DRAINED: _ClassVar[Reason]
    REASON_OPTED_OUT: _ClassVar[Reason]
    REASON_NOT_TARGETED: _ClassVar[Reason]
    REASON_PINNED: _ClassVar[Reason]
    REASON_STALE: _ClassVar[Reason]
    REASON_UNKNOWN_EXPERIMENT: _ClassVar[Reason]
    REASON_INVALID_REQUEST: _ClassVar[Reason]

class OutcomeStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_STATUS_UNSPECIFIED: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_ACCEPTED: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_DUPLICATE: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_LATE: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_REFUSED: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_IGNORED: _ClassVar[OutcomeStatus]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_DECIDE: _ClassVar[Role]
    ROLE_REPORT: _ClassVar[Role]
    ROLE_WATCH: _ClassVar[Role]
    ROLE_VIEW: _ClassVar[Role]
    ROLE_OPERATE: _ClassVar[Role]
    ROLE_AUTHOR: _ClassVar[Role]
    ROLE_APPROVE: _ClassVar[Role]
    ROLE_ADMIN: _ClassVar[Role]
ASSIGNMENT_UNSPECIFIED: Assignment
ASSIGNMENT_STICKY: Assignment
ASSIGNMENT_PER_REQUEST: Assignment
REWARD_MODEL_UNSPECIFIED: RewardModel
REWARD_MODEL_BERNOULLI: RewardModel
REWARD_MODEL_GAUSSIAN: RewardModel
REWARD_MODEL_POISSON: RewardModel
GOAL_UNSPECIFIED: Goal
GOAL_MAXIMISE: Goal
GOAL_MINIMISE: Goal
POLICY_KIND_UNSPECIFIED: PolicyKind
POLICY_KIND_THOMPSON: PolicyKind
POLICY_KIND_TOP_TWO: PolicyKind
POLICY_KIND_EXPLORATION: PolicyKind
POLICY_KIND_FIXED: PolicyKind
POOLING_UNSPECIFIED: Pooling
POOLING_POOLED: Pooling
POOLING_PER_SEGMENT: Pooling
BREACH_ACTION_UNSPECIFIED: BreachAction
BREACH_ACTION_FREEZE: BreachAction
BREACH_ACTION_DRAIN: BreachAction
BREACH_ACTION_HOLD: BreachAction
BREACH_ACTION_ALERT: BreachAction
PER_UNSPECIFIED: Per
PER_ARM: Per
PER_SEGMENT: Per
UNIT_CONTRIBUTION_UNSPECIFIED: UnitContribution
UNIT_CONTRIBUTION_FIRST: UnitContribution
UNIT_CONTRIBUTION_ALL: UnitContribution
CONCLUDE_ACTION_UNSPECIFIED: ConcludeAction
CONCLUDE_ACTION_RECOMMEND: ConcludeAction
CONCLUDE_ACTION_PROMOTE: ConcludeAction
EXPERIMENT_STATE_UNSPECIFIED: ExperimentState
EXPERIMENT_STATE_DRAFT: ExperimentState
EXPERIMENT_STATE_RUNNING: ExperimentState
EXPERIMENT_STATE_FROZEN: ExperimentState
EXPERIMENT_STATE_ROLLED_BACK: ExperimentState
EXPERIMENT_STATE_CONCLUDED: ExperimentState
ARM_STATE_UNSPECIFIED: ArmState
ARM_STATE_ACTIVE: ArmState
ARM_STATE_SHADOW: ArmState
ARM_STATE_DRAINED: ArmState
VERDICT_UNSPECIFIED: Verdict
VERDICT_CLEAR: Verdict
VERDICT_WARN: Verdict
VERDICT_BREACH: Verdict
VERDICT_HOLD: Verdict
PROPOSAL_KIND_UNSPECIFIED: ProposalKind
PROPOSAL_KIND_REVISE: ProposalKind
PROPOSAL_KIND_START: ProposalKind
PROPOSAL_KIND_RESUME: ProposalKind
PROPOSAL_KIND_CONCLUDE: ProposalKind
REASON_UNSPECIFIED: Reason
REASON_ALLOCATED: Reason
REASON_INCUMBENT_ONLY: Reason
REASON_CAPPED: Reason
REASON_FROZEN: Reason
REASON_DRAINED: Reason
REASON_OPTED_OUT: Reason
REASON_NOT_TARGETED: Reason
REASON_PINNED: Reason
REASON_STALE: Reason
REASON_UNKNOWN_EXPERIMENT: Reason
REASON_INVALID_REQUEST: Reason
OUTCOME_STATUS_UNSPECIFIED: OutcomeStatus
OUTCOME_STATUS_ACCEPTED: OutcomeStatus
OUTCOME_STATUS_DUPLICATE: OutcomeStatus
OUTCOME_STATUS_LATE: OutcomeStatus
OUTCOME_STATUS_REFUSED: OutcomeStatus
OUTCOME_STATUS_IGNORED: OutcomeStatus
ROLE_UNSPECIFIED: Role
ROLE_DECIDE: Role
ROLE_REPORT: Role
ROLE_WATCH: Role
ROLE_VIEW: Role
ROLE_OPERATE: Role
ROLE_AUTHOR: Role
ROLE_APPROVE: Role
ROLE_ADMIN: Role

class Experiment(_message.Message):
    __slots__ = ("api_version", "kind", "metadata", "spec", "status")
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    api_version: str
    kind: str
    metadata: Metadata
    spec: ExperimentSpec
    status: ExperimentStatus
    def __init__(self, api_version: _Optional[str] = ..., kind: _Optional[str] = ..., metadata: _Optional[_Union[Metadata, _Mapping]] = ..., spec: _Optional[_Union[ExperimentSpec, _Mapping]] = ..., status: _Optional[_Union[ExperimentStatus, _Mapping]] = ...) -> None: ...

class Metadata(_message.Message):
    __slots__ = ("name", "namespace", "labels", "uid", "revision", "etag", "create_time", "update_time")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    labels: _containers.ScalarMap[str, str]
    uid: str
    revision: int
    etag: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., uid: _Optional[str] = ..., revision: _Optional[int] = ..., etag: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ExperimentSpec(_message.Message):
    __slots__ = ("owner", "hypothesis", "lineage", "arms", "assignment", "reward", "policy", "exposure", "guardrails", "alpha", "segments", "opt_out", "ramp", "conclude", "metrics", "target", "pins", "unit_contribution", "bucket", "lease", "approval")
    class LineageEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class PinsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    OWNER_FIELD_NUMBER: _ClassVar[int]
    HYPOTHESIS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    EXPOSURE_FIELD_NUMBER: _ClassVar[int]
    GUARDRAILS_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    OPT_OUT_FIELD_NUMBER: _ClassVar[int]
    RAMP_FIELD_NUMBER: _ClassVar[int]
    CONCLUDE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    UNIT_CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    owner: str
    hypothesis: str
    lineage: _containers.ScalarMap[str, str]
    arms: _containers.RepeatedCompositeFieldContainer[Arm]
    assignment: Assignment
    reward: Reward
    policy: Policy
    exposure: Exposure
    guardrails: _containers.RepeatedCompositeFieldContainer[Guardrail]
    alpha: float
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    opt_out: OptOut
    ramp: _containers.RepeatedCompositeFieldContainer[RampStage]
    conclude: Conclude
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    target: Target
    pins: _containers.ScalarMap[str, str]
    unit_contribution: UnitContribution
    bucket: _duration_pb2.Duration
    lease: _duration_pb2.Duration
    approval: Approval
    def __init__(self, owner: _Optional[str] = ..., hypothesis: _Optional[str] = ..., lineage: _Optional[_Mapping[str, str]] = ..., arms: _Optional[_Iterable[_Union[Arm, _Mapping]]] = ..., assignment: _Optional[_Union[Assignment, str]] = ..., reward: _Optional[_Union[Reward, _Mapping]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., exposure: _Optional[_Union[Exposure, _Mapping]] = ..., guardrails: _Optional[_Iterable[_Union[Guardrail, _Mapping]]] = ..., alpha: _Optional[float] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., opt_out: _Optional[_Union[OptOut, _Mapping]] = ..., ramp: _Optional[_Iterable[_Union[RampStage, _Mapping]]] = ..., conclude: _Optional[_Union[Conclude, _Mapping]] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., pins: _Optional[_Mapping[str, str]] = ..., unit_contribution: _Optional[_Union[UnitContribution, str]] = ..., bucket: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class Arm(_message.Message):
    __slots__ = ("name", "incumbent", "model_uri")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCUMBENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_URI_FIELD_NUMBER: _ClassVar[int]
    name: str
    incumbent: bool
    model_uri: str
    def __init__(self, name: _Optional[str] = ..., incumbent: bool = ..., model_uri: _Optional[str] = ...) -> None: ...

class Approval(_message.Message):
    __slots__ = ("required", "expiry")
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_FIELD_NUMBER: _ClassVar[int]
    required: int
    expiry: _duration_pb2.Duration
    def __init__(self, required: _Optional[int] = ..., expiry: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Reward(_message.Message):
    __slots__ = ("metric", "model", "window", "missing", "goal", "min", "max", "prior", "warm_start")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    WARM_START_FIELD_NUMBER: _ClassVar[int]
    metric: str
    model: RewardModel
    window: _duration_pb2.Duration
    missing: float
    goal: Goal
    min: float
    max: float
    prior: Prior
    warm_start: WarmStart
    def __init__(self, metric: _Optional[str] = ..., model: _Optional[_Union[RewardModel, str]] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., missing: _Optional[float] = ..., goal: _Optional[_Union[Goal, str]] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., prior: _Optional[_Union[Prior, _Mapping]] = ..., warm_start: _Optional[_Union[WarmStart, _Mapping]] = ...) -> None: ...

class Prior(_message.Message):
    __slots__ = ("successes", "failures", "mean", "strength", "shape", "scale", "rate")
    SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    successes: float
    failures: float
    mean: float
    strength: float
    shape: float
    scale: float
    rate: float
    def __init__(self, successes: _Optional[float] = ..., failures: _Optional[float] = ..., mean: _Optional[float] = ..., strength: _Optional[float] = ..., shape: _Optional[float] = ..., scale: _Optional[float] = ..., rate: _Optional[float] = ...) -> None: ...

class WarmStart(_message.Message):
    __slots__ = ("experiment", "discount")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    DISCOUNT_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    discount: float
    def __init__(self, experiment: _Optional[str] = ..., discount: _Optional[float] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("kind", "floor", "half_life", "power", "beta", "floor_schedule", "shares", "weights")
    class SharesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    HALF_LIFE_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    FLOOR_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    kind: PolicyKind
    floor: float
    half_life: _duration_pb2.Duration
    power: float
    beta: float
    floor_schedule: bool
    shares: _containers.ScalarMap[str, float]
    weights: Pooling
    def __init__(self, kind: _Optional[_Union[PolicyKind, str]] = ..., floor: _Optional[float] = ..., half_life: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., power: _Optional[float] = ..., beta: _Optional[float] = ..., floor_schedule: bool = ..., shares: _Optional[_Mapping[str, float]] = ..., weights: _Optional[_Union[Pooling, str]] = ...) -> None: ...

class Exposure(_message.Message):
    __slots__ = ("per_candidate", "total", "strict", "burst", "budget", "max_loss")
    PER_CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    MAX_LOSS_FIELD_NUMBER: _ClassVar[int]
    per_candidate: float
    total: float
    strict: bool
    burst: int
    budget: Budget
    max_loss: float
    def __init__(self, per_candidate: _Optional[float] = ..., total: _Optional[float] = ..., strict: bool = ..., burst: _Optional[int] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., max_loss: _Optional[float] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("requests", "units", "loss")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    units: int
    loss: float
    def __init__(self, requests: _Optional[int] = ..., units: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class Guardrail(_message.Message):
    __slots__ = ("name", "metric", "max", "min", "quantile", "max_ratio", "on_breach", "per", "persistence", "window")
    NAME_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_FIELD_NUMBER: _ClassVar[int]
    MAX_RATIO_FIELD_NUMBER: _ClassVar[int]
    ON_BREACH_FIELD_NUMBER: _ClassVar[int]
    PER_FIELD_NUMBER: _ClassVar[int]
    PERSISTENCE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    metric: str
    max: float
    min: float
    quantile: float
    max_ratio: float
    on_breach: BreachAction
    per: Per
    persistence: int
    window: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., metric: _Optional[str] = ..., max: _Optional[float] = ..., min: _Optional[float] = ..., quantile: _Optional[float] = ..., max_ratio: _Optional[float] = ..., on_breach: _Optional[_Union[BreachAction, str]] = ..., per: _Optional[_Union[Per, str]] = ..., persistence: _Optional[int] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "min", "max")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    name: str
    min: float
    max: float
    def __init__(self, name: _Optional[str] = ..., min: _Optional[float] = ..., max: _Optional[float] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("name", "match")
    class MatchEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.ListValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.ListValue, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    name: str
    match: _containers.MessageMap[str, _struct_pb2.ListValue]
    def __init__(self, name: _Optional[str] = ..., match: _Optional[_Mapping[str, _struct_pb2.ListValue]] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("match",)
    class MatchEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.ListValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.ListValue, _Mapping]] = ...) -> None: ...
    MATCH_FIELD_NUMBER: _ClassVar[int]
    match: _containers.MessageMap[str, _struct_pb2.ListValue]
    def __init__(self, match: _Optional[_Mapping[str, _struct_pb2.ListValue]] = ...) -> None: ...

class OptOut(_message.Message):
    __slots__ = ("attribute",)
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    def __init__(self, attribute: _Optional[str] = ...) -> None: ...

class RampStage(_message.Message):
    __slots__ = ("cap", "shadow", "min_duration", "min_outcomes", "approvals")
    CAP_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    MIN_DURATION_FIELD_NUMBER: _ClassVar[int]
    MIN_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    cap: float
    shadow: bool
    min_duration: _duration_pb2.Duration
    min_outcomes: int
    approvals: int
    def __init__(self, cap: _Optional[float] = ..., shadow: bool = ..., min_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., min_outcomes: _Optional[int] = ..., approvals: _Optional[int] = ...) -> None: ...

class Conclude(_message.Message):
    __slots__ = ("prob_best", "max_expected_loss", "action")
    PROB_BEST_FIELD_NUMBER: _ClassVar[int]
    MAX_EXPECTED_LOSS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    prob_best: float
    max_expected_loss: float
    action: ConcludeAction
    def __init__(self, prob_best: _Optional[float] = ..., max_expected_loss: _Optional[float] = ..., action: _Optional[_Union[ConcludeAction, str]] = ...) -> None: ...

class ExperimentStatus(_message.Message):
    __slots__ = ("state", "reason", "freeze_epoch", "resume_epoch", "activation", "stage", "snapshot_version", "arms", "winner", "proposal")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FREEZE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESUME_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    WINNER_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    state: ExperimentState
    reason: str
    freeze_epoch: int
    resume_epoch: int
    activation: int
    stage: int
    snapshot_version: int
    arms: _containers.RepeatedCompositeFieldContainer[ArmStatus]
    winner: str
    proposal: Proposal
    def __init__(self, state: _Optional[_Union[ExperimentState, str]] = ..., reason: _Optional[str] = ..., freeze_epoch: _Optional[int] = ..., resume_epoch: _Optional[int] = ..., activation: _Optional[int] = ..., stage: _Optional[int] = ..., snapshot_version: _Optional[int] = ..., arms: _Optional[_Iterable[_Union[ArmStatus, _Mapping]]] = ..., winner: _Optional[str] = ..., proposal: _Optional[_Union[Proposal, _Mapping]] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("digest", "kind", "author", "reason", "create_time", "expire_time", "required", "approvers", "risks", "spec", "winner")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    APPROVERS_FIELD_NUMBER: _ClassVar[int]
    RISKS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WINNER_FIELD_NUMBER: _ClassVar[int]
    digest: str
    kind: ProposalKind
    author: str
    reason: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    required: int
    approvers: _containers.RepeatedScalarFieldContainer[str]
    risks: _containers.RepeatedScalarFieldContainer[str]
    spec: ExperimentSpec
    winner: str
    def __init__(self, digest: _Optional[str] = ..., kind: _Optional[_Union[ProposalKind, str]] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., required: _Optional[int] = ..., approvers: _Optional[_Iterable[str]] = ..., risks: _Optional[_Iterable[str]] = ..., spec: _Optional[_Union[ExperimentSpec, _Mapping]] = ..., winner: _Optional[str] = ...) -> None: ...

class ArmStatus(_message.Message):
    __slots__ = ("arm", "state", "slots")
    ARM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    arm: str
    state: ArmState
    slots: int
    def __init__(self, arm: _Optional[str] = ..., state: _Optional[_Union[ArmState, str]] = ..., slots: _Optional[int] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("arm", "propensity", "reason", "id", "snapshot_version", "model_uri", "incumbent", "shadow_arm", "segment")
    ARM_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_URI_FIELD_NUMBER: _ClassVar[int]
    INCUMBENT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_ARM_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    arm: str
    propensity: float
    reason: Reason
    id: str
    snapshot_version: int
    model_uri: str
    incumbent: str
    shadow_arm: str
    segment: str
    def __init__(self, arm: _Optional[str] = ..., propensity: _Optional[float] = ..., reason: _Optional[_Union[Reason, str]] = ..., id: _Optional[str] = ..., snapshot_version: _Optional[int] = ..., model_uri: _Optional[str] = ..., incumbent: _Optional[str] = ..., shadow_arm: _Optional[str] = ..., segment: _Optional[str] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("decision_id", "reward", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    reward: float
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, decision_id: _Optional[str] = ..., reward: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class OutcomeResult(_message.Message):
    __slots__ = ("status", "reason", "message")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    status: OutcomeStatus
    reason: str
    message: str
    def __init__(self, status: _Optional[_Union[OutcomeStatus, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class SnapshotEntry(_message.Message):
    __slots__ = ("experiment", "uid", "version", "state", "assignment", "salt", "arms", "incumbent", "tables", "segments", "opt_out", "target", "pins", "only_reason", "shadow_arms", "lease", "window", "strict", "cap", "cap_per_candidate", "burst", "only_arm", "bucket", "counted", "first_only", "activation", "leased_requests", "leased_units", "stage")
    class PinsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    INCUMBENT_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    OPT_OUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    ONLY_REASON_FIELD_NUMBER: _ClassVar[int]
    SHADOW_ARMS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    CAP_PER_CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    ONLY_ARM_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    FIRST_ONLY_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    LEASED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LEASED_UNITS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    uid: str
    version: int
    state: ExperimentState
    assignment: Assignment
    salt: bytes
    arms: _containers.RepeatedCompositeFieldContainer[SnapshotArm]
    incumbent: int
    tables: _containers.RepeatedCompositeFieldContainer[SnapshotTable]
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    opt_out: OptOut
    target: Target
    pins: _containers.ScalarMap[str, str]
    only_reason: Reason
    shadow_arms: _containers.RepeatedScalarFieldContainer[int]
    lease: _duration_pb2.Duration
    window: _duration_pb2.Duration
    strict: bool
    cap: float
    cap_per_candidate: float
    burst: int
    only_arm: int
    bucket: _duration_pb2.Duration
    counted: bool
    first_only: bool
    activation: int
    leased_requests: bool
    leased_units: bool
    stage: int
    def __init__(self, experiment: _Optional[str] = ..., uid: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[ExperimentState, str]] = ..., assignment: _Optional[_Union[Assignment, str]] = ..., salt: _Optional[bytes] = ..., arms: _Optional[_Iterable[_Union[SnapshotArm, _Mapping]]] = ..., incumbent: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[SnapshotTable, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., opt_out: _Optional[_Union[OptOut, _Mapping]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., pins: _Optional[_Mapping[str, str]] = ..., only_reason: _Optional[_Union[Reason, str]] = ..., shadow_arms: _Optional[_Iterable[int]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., strict: bool = ..., cap: _Optional[float] = ..., cap_per_candidate: _Optional[float] = ..., burst: _Optional[int] = ..., only_arm: _Optional[int] = ..., bucket: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., counted: bool = ..., first_only: bool = ..., activation: _Optional[int] = ..., leased_requests: bool = ..., leased_units: bool = ..., stage: _Optional[int] = ...) -> None: ...

class SnapshotArm(_message.Message):
    __slots__ = ("name", "model_uri", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_URI_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_uri: str
    state: ArmState
    def __init__(self, name: _Optional[str] = ..., model_uri: _Optional[str] = ..., state: _Optional[_Union[ArmState, str]] = ...) -> None: ...

class SnapshotTable(_message.Message):
    __slots__ = ("ends", "owners", "served")
    ENDS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    ends: _containers.RepeatedScalarFieldContainer[int]
    owners: _containers.RepeatedScalarFieldContainer[int]
    served: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ends: _Optional[_Iterable[int]] = ..., owners: _Optional[_Iterable[int]] = ..., served: _Optional[_Iterable[int]] = ...) -> None: ...

class AuditRecord(_message.Message):
    __slots__ = ("sequence", "time", "actor", "action", "experiment", "reason", "before", "after", "digest")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    actor: str
    action: str
    experiment: str
    reason: str
    before: str
    after: str
    digest: str
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., experiment: _Optional[str] = ..., reason: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("revision", "time", "author", "reason", "approvers", "digest", "changes", "sequence")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    APPROVERS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    time: _timestamp_pb2.Timestamp
    author: str
    reason: str
    approvers: _containers.RepeatedScalarFieldContainer[str]
    digest: str
    changes: _containers.RepeatedScalarFieldContainer[str]
    sequence: int
    def __init__(self, revision: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., approvers: _Optional[_Iterable[str]] = ..., digest: _Optional[str] = ..., changes: _Optional[_Iterable[str]] = ..., sequence: _Optional[int] = ...) -> None: ...

class Annotation(_message.Message):
    __slots__ = ("time", "actor", "action", "text")
    TIME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    actor: str
    action: str
    text: str
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class AuditHead(_message.Message):
    __slots__ = ("sequence", "digest")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    digest: str
    def __init__(self, sequence: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "principal", "roles", "namespaces", "create_time", "expire_time", "creator", "decide_rate", "report_rate")
    ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    DECIDE_RATE_FIELD_NUMBER: _ClassVar[int]
    REPORT_RATE_FIELD_NUMBER: _ClassVar[int]
    id: str
    principal: str
    roles: _containers.RepeatedScalarFieldContainer[Role]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    creator: str
    decide_rate: float
    report_rate: float
    def __init__(self, id: _Optional[str] = ..., principal: _Optional[str] = ..., roles: _Optional[_Iterable[_Union[Role, str]]] = ..., namespaces: _Optional[_Iterable[str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., creator: _Optional[str] = ..., decide_rate: _Optional[float] = ..., report_rate: _Optional[float] = ...) -> None: ...
