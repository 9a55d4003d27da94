import datetime

from allocator.v1 import allocator_pb2 as _allocator_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_KIND_UNSPECIFIED: _ClassVar[LeaseKind]
    LEASE_KIND_REQUESTS: _ClassVar[LeaseKind]
    LEASE_KIND_UNITS: _ClassVar[LeaseKind]
LEASE_KIND_UNSPECIFIED: LeaseKind
LEASE_KIND_REQUESTS: LeaseKind
LEASE_KIND_UNITS: LeaseKind

class DecideRequest(_message.Message):
    __slots__ = ("experiment", "unit", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    unit: str
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, experiment: _Optional[str] = ..., unit: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class DecideResponse(_message.Message):
    __slots__ = ("decision",)
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decision: _allocator_pb2.Decision
    def __init__(self, decision: _Optional[_Union[_allocator_pb2.Decision, _Mapping]] = ...) -> None: ...

class BatchDecideRequest(_message.Message):
    __slots__ = ("experiment", "units", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    units: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, experiment: _Optional[str] = ..., units: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class BatchDecideResponse(_message.Message):
    __slots__ = ("arms", "arm_index", "slots", "reasons", "ids", "snapshot_version", "incumbent_index", "shadow_arms", "segment")
    ARMS_FIELD_NUMBER: _ClassVar[int]
    ARM_INDEX_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCUMBENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SHADOW_ARMS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    arms: _containers.RepeatedScalarFieldContainer[str]
    arm_index: _containers.RepeatedScalarFieldContainer[int]
    slots: _containers.RepeatedScalarFieldContainer[int]
    reasons: _containers.RepeatedScalarFieldContainer[_allocator_pb2.Reason]
    ids: _containers.RepeatedScalarFieldContainer[str]
    snapshot_version: int
    incumbent_index: int
    shadow_arms: _containers.RepeatedScalarFieldContainer[str]
    segment: str
    def __init__(self, arms: _Optional[_Iterable[str]] = ..., arm_index: _Optional[_Iterable[int]] = ..., slots: _Optional[_Iterable[int]] = ..., reasons: _Optional[_Iterable[_Union[_allocator_pb2.Reason, str]]] = ..., ids: _Optional[_Iterable[str]] = ..., snapshot_version: _Optional[int] = ..., incumbent_index: _Optional[int] = ..., shadow_arms: _Optional[_Iterable[str]] = ..., segment: _Optional[str] = ...) -> None: ...

class ReportOutcomesRequest(_message.Message):
    __slots__ = ("request_id", "outcomes", "exposures")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    EXPOSURES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    outcomes: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.Outcome]
    exposures: _containers.RepeatedCompositeFieldContainer[ExposureBatch]
    def __init__(self, request_id: _Optional[str] = ..., outcomes: _Optional[_Iterable[_Union[_allocator_pb2.Outcome, _Mapping]]] = ..., exposures: _Optional[_Iterable[_Union[ExposureBatch, _Mapping]]] = ...) -> None: ...

class ReportOutcomesResponse(_message.Message):
    __slots__ = ("results", "lost_exposures")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    LOST_EXPOSURES_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.OutcomeResult]
    lost_exposures: int
    def __init__(self, results: _Optional[_Iterable[_Union[_allocator_pb2.OutcomeResult, _Mapping]]] = ..., lost_exposures: _Optional[int] = ...) -> None: ...

class ExposureBatch(_message.Message):
    __slots__ = ("id", "life", "counts")
    ID_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    life: int
    counts: _containers.RepeatedCompositeFieldContainer[ExposureCount]
    def __init__(self, id: _Optional[bytes] = ..., life: _Optional[int] = ..., counts: _Optional[_Iterable[_Union[ExposureCount, _Mapping]]] = ...) -> None: ...

class ExposureCount(_message.Message):
    __slots__ = ("uid", "activation", "bucket", "arm", "segment", "count", "units", "drawn", "expected", "variance")
    UID_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    DRAWN_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_FIELD_NUMBER: _ClassVar[int]
    uid: str
    activation: int
    bucket: int
    arm: int
    segment: int
    count: int
    units: int
    drawn: int
    expected: int
    variance: int
    def __init__(self, uid: _Optional[str] = ..., activation: _Optional[int] = ..., bucket: _Optional[int] = ..., arm: _Optional[int] = ..., segment: _Optional[int] = ..., count: _Optional[int] = ..., units: _Optional[int] = ..., drawn: _Optional[int] = ..., expected: _Optional[int] = ..., variance: _Optional[int] = ...) -> None: ...

class WatchSnapshotsRequest(_message.Message):
    __slots__ = ("namespaces", "keys")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    keys: int
    def __init__(self, namespaces: _Optional[_Iterable[str]] = ..., keys: _Optional[int] = ...) -> None: ...

class WatchSnapshotsResponse(_message.Message):
    __slots__ = ("change", "heartbeat", "keys", "elapsed")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    change: SnapshotChange
    heartbeat: Heartbeat
    keys: DecisionKeys
    elapsed: _duration_pb2.Duration
    def __init__(self, change: _Optional[_Union[SnapshotChange, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., keys: _Optional[_Union[DecisionKeys, _Mapping]] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DecisionKeys(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[DecisionKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[DecisionKey, _Mapping]]] = ...) -> None: ...

class DecisionKey(_message.Message):
    __slots__ = ("number", "key")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    number: int
    key: bytes
    def __init__(self, number: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class SnapshotChange(_message.Message):
    __slots__ = ("sequence", "entries", "removed", "complete", "age", "full", "epoch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    entries: _containers.RepeatedCompositeFieldContainer[_allocator_pb2.SnapshotEntry]
    removed: _containers.RepeatedScalarFieldContainer[str]
    complete: bool
    age: _duration_pb2.Duration
    full: bool
    epoch: str
    def __init__(self, sequence: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[_allocator_pb2.SnapshotEntry, _Mapping]]] = ..., removed: _Optional[_Iterable[str]] = ..., complete: bool = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., full: bool = ..., epoch: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence", "age")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    age: _duration_pb2.Duration
    def __init__(self, sequence: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LeaseExposureRequest(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[ExposureLease]
    def __init__(self, leases: _Optional[_Iterable[_Union[ExposureLease, _Mapping]]] = ...) -> None: ...

class ExposureLease(_message.Message):
    __slots__ = ("uid", "arm", "kind", "exposures")
    UID_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPOSURES_FIELD_NUMBER: _ClassVar[int]
    uid: str
    arm: int
    kind: LeaseKind
    exposures: int
    def __init__(self, uid: _Optional[str] = ..., arm: _Optional[int] = ..., kind: _Optional[_Union[LeaseKind, str]] = ..., exposures: _Optional[int] = ...) -> None: ...

class LeaseExposureResponse(_message.Message):
    __slots__ = ("grants",)
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    grants: _containers.RepeatedCompositeFieldContainer[LeaseGrant]
    def __init__(self, grants: _Optional[_Iterable[_Union[LeaseGrant, _Mapping]]] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("exposures", "activation")
    EXPOSURES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    exposures: int
    activation: int
    def __init__(self, exposures: _Optional[int] = ..., activation: _Optional[int] = ...) -> None: ...

class IntrospectTokensRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class IntrospectTokensResponse(_message.Message):
    __slots__ = ("tokens", "checks_calls")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHECKS_CALLS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[IntrospectedToken]
    checks_calls: bool
    def __init__(self, tokens: _Optional[_Iterable[_Union[IntrospectedToken, _Mapping]]] = ..., checks_calls: bool = ...) -> None: ...

class IntrospectedToken(_message.Message):
    __slots__ = ("digest", "token")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    token: _allocator_pb2.Token
    def __init__(self, digest: _Optional[bytes] = ..., token: _Optional[_Union[_allocator_pb2.Token, _Mapping]] = ...) -> None: ...
