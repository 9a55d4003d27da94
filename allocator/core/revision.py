"""Revisions of a spec: the text that stands for one, its digest, how two differ; and what people wrote down about an experiment.

In: experiments. Out: JSON that is the same for the same spec, SHA-256 over it, and a line for each field that differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from allocator.core.experiment import Experiment


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of a spec. seconds: since the epoch. changes: against the one before. sequence: of its audit record."""

    number: int
    seconds: float
    author: str
    reason: str
    approvers: tuple[str, ...]
    changes: tuple[str, ...]
    sequence: int
    experiment: Experiment

    @property
    def digest(self) -> str:
        """SHA-256 of the spec, 64 hexadecimal digits."""
        return spec_digest(self.experiment)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a person wrote down. action: of the audit record."""

    seconds: float
    actor: str
    action: str
    text: str


def document(experiment: Experiment) -> str:
    """The spec as JSON, the same text for the same spec."""
    return json.dumps(dataclasses.asdict(experiment), default=_plain, sort_keys=True)


def spec_digest(experiment: Experiment) -> str:
    """SHA-256 of the spec, 64 hexadecimal digits."""
    return hashlib.sha256(document(experiment).encode()).hexdigest()


def differences(before: Experiment, after: Experiment) -> list[str]:
    """Each field that differs, as `path: old -> new`, in the order of the spec."""
    return list(_differences("", json.loads(document(before)), json.loads(document(after))))


def _differences(path: str, before: object, after: object) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _differences(f"{path}.{key}" if path else key, before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list) and all(isinstance(item, dict) for item in (*before, *after)):
        for index in range(max(len(before), len(after))):
            old = before[index] if index < len(before) else None
            new = after[index] if index < len(after) else None
            yield from _differences(f"{path}[{index}]", old, new)
    else:
        yield f"{path}: {_short(before)} -> {_short(after)}"


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")
