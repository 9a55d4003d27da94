"""The immutable table that a decider reads: one `Entry` for each experiment, replaced whole when a plan changes it.

In: what the planner decided. Out: all that `decide` needs, as indices, tuples and frozen sets, so that a decision costs two hashes and
a bisection. The digest of an entry is a SHA-256 over its fields: two deciders with the same version and another digest must not
both be believed. Standard library only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

Match = Mapping[str, frozenset[str]]


class Table(NamedTuple):
    """Who owns the slots. Run k is [ends[k-1], ends[k]) and belongs to arm owners[k]; the last end is 65,536.

    served: slots of each arm as served, those of drained arms added to the incumbent's; sums to 65,536.
    """

    ends: tuple[int, ...]
    owners: tuple[int, ...]
    served: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One experiment as a decider sees it.

    version: grows with each published change. state: the lifecycle's word. only: (arm, reason number) when everyone gets one arm.
    tables: one, or one for each segment with `other` last. drained: arms that get nothing, a bit for each. counted: do decisions
    teach anything (not before the start)? shadow_arms: in a shadow stage, the arms to mirror to, one for each unit.
    activation: guardrail evidence starts again with each, and what a decider had leased in an earlier one is lost. leased_requests,
    leased_units: a candidate serves only what this decider holds a lease of: exposures, units that meet it for the first time. stage: of
    the ramp; no decision depends on it, whoever explains one wants it.
    """

    experiment: str
    uid: bytes
    version: int
    state: str
    sticky: bool
    salt: bytes
    arms: tuple[str, ...]
    model_uris: tuple[str, ...]
    incumbent: int
    tables: tuple[Table, ...]
    only: tuple[int, int] | None = None
    drained: int = 0
    counted: bool = True
    shadow_arms: tuple[int, ...] = ()
    activation: int = 1
    segment_names: tuple[str, ...] = ("other",)
    segments: tuple[Match, ...] = ()
    target: Match = field(default_factory=dict)
    opt_out: str = ""
    pins: Mapping[bytes, int] = field(default_factory=dict)
    lease_seconds: float = 15.0
    window_seconds: float = 1800.0
    bucket_seconds: float = 30.0
    first_only: bool = True
    strict: bool = False
    cap: float = 1.0
    cap_per_candidate: float = 1.0
    burst: int = 50
    leased_requests: bool = False
    leased_units: bool = False
    stage: int = 0

    def digest(self) -> str:
        """SHA-256 over every field that is not at its default, hexadecimal: a later version that adds one agrees where it is not used."""
        parts = [(name, value) for name, default in _DEFAULTS if (value := getattr(self, name)) != default and name not in _ORDERLESS]
        parts += [("segments", list(map(_sorted, self.segments))), ("target", _sorted(self.target)), ("pins", _sorted(self.pins))]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every experiment's entry by `namespace/name`. sequence: grows by one with each change of any entry.

    epoch: the life of the store that the entries are of, "" where that is not known. Versions grow within one life; a store that was
    restored from a backup begins another, with versions that were there before.
    """

    sequence: int = 0
    entries: MappingProxyType[str, Entry] = field(default_factory=lambda: MappingProxyType({}))
    by_uid: MappingProxyType[bytes, Entry] = field(default_factory=lambda: MappingProxyType({}))
    epoch: str = ""

    def replaced(self, entries: Iterable[Entry], removed: Iterable[str] = ()) -> Snapshot:
        """A snapshot with these entries new or changed. An entry older than the one it would replace is left out."""
        table, by_uid = self.entries.copy(), self.by_uid.copy()  # of 10,000 entries, some 60 us each; a tree would slow every decision
        for name in removed:
            gone = table.pop(name, None)
            if gone is not None:
                by_uid.pop(gone.uid, None)
        for entry in entries:
            known = table.get(entry.experiment)
            if known is None or known.uid != entry.uid or known.version < entry.version:
                if known is not None:
                    by_uid.pop(known.uid, None)
                table[entry.experiment] = by_uid[entry.uid] = entry
        return Snapshot(self.sequence + 1, MappingProxyType(table), MappingProxyType(by_uid), self.epoch)

    def begun(self, epoch: str, entries: Iterable[Entry]) -> Snapshot:
        """The snapshot of another life: these entries and no others, whatever their versions."""
        table = {entry.experiment: entry for entry in entries}
        by_uid = {entry.uid: entry for entry in table.values()}
        return Snapshot(self.sequence + 1, MappingProxyType(table), MappingProxyType(by_uid), epoch)


def full_name(experiment: str) -> str:
    """`namespace/name` of what a caller wrote: a bare name is in the namespace `default`."""
    return experiment if "/" in experiment else f"default/{experiment}"


def _sorted(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """The same in the same order, whatever order a mapping and its sets were built in."""
    return sorted((key, sorted(held) if isinstance(held, frozenset) else held) for key, held in value.items())


def _default(of: Field[object]) -> object:
    return of.default_factory() if of.default_factory is not MISSING else of.default


_ORDERLESS = ("segments", "target", "pins")
_DEFAULTS = [(of.name, _default(of)) for of in fields(Entry)]
