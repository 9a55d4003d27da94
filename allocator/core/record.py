"""What is kept of one experiment: its spec, where it stands, the plan in force, and the evidence folded so far.

A value that the engine reads, replaces and saves whole; `version` grows by one with each save, and a save that expected another version is
refused. What changes with every outcome is not in it: those are cells, which the store adds up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from allocator.core.approval import Proposal
from allocator.core.assignment import SLOTS, Layout
from allocator.core.evidence import Restarts
from allocator.core.experiment import Experiment
from allocator.core.lifecycle import State, Status

EXPOSURES = "_exposures"  # count: decisions of the arm
RATIO = "_ratio"  # count: draws of the arm; total: their expected number x 65,536; squares: its variance x 65,536 squared
UNITS = "_units"  # count: first decisions of a unit within the window
REWARD = "_reward"


class Cell(NamedTuple):
    """Additive integer sums of one stream, for one arm, segment and bucket of decision time.

    total: in micro-units; squares: micro-units squared, as square_high x 1,000,000 + square_low.
    """

    bucket: int
    arm: int
    segment: int
    stream: str
    count: int
    total: int
    square_high: int = 0
    square_low: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """Evidence of one guardrail on one arm (and segment; -1: all together), folded over settled buckets.

    stream: `Guardrail.stream`, "#" and the activation. breach: weighted restarts; detector: the warning's. warning_since: time at which
    the present warning began, 0 without one; common: the incumbent has warned meanwhile.
    safe_count, safe_events: matured outcomes since the stage was entered or the warning began; safe_denominators: the same of a relative
    guardrail's label sums, one number for each alternative.
    log_evidence: as it stood when the activation ended, open buckets included. asked, heard: settled decisions and reports of them, the
    recent ones weighing most: is anybody still reporting?
    """

    stream: str
    arm: int
    segment: int
    breach: Restarts
    detector: Restarts
    warning_since: float = 0.0
    common: bool = False
    safe_count: float = 0.0
    safe_events: float = 0.0
    safe_denominators: tuple[float, ...] = ()
    log_evidence: float = 0.0
    asked: float = 0.0
    heard: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """One experiment as stored. uid: 16 hexadecimal digits. settled_through: last bucket that takes no outcome any more.

    metrics: names in the order in which their bits stand in the deduplication mask; it only ever grows. past_evidence: of earlier
    activations, as it stood at each resume. warm: count, total and squares (counted units) of an earlier experiment, for each arm. author:
    who wrote the present revision. proposal: a riskier change that waits for approvals. digest: of the snapshot's entry that its writer
    made of it, "" before it is written.
    """

    uid: str
    experiment: Experiment
    salt: bytes
    revision: int = 1
    version: int = 1
    status: Status = field(default_factory=Status)
    layouts: tuple[Layout, ...] = ()
    slots: tuple[tuple[int, ...], ...] = ()
    evidence: tuple[Stream, ...] = ()
    past_evidence: tuple[Stream, ...] = ()
    settled_through: int = -1
    metrics: tuple[str, ...] = ()
    warm: tuple[tuple[float, float, float], ...] = ()
    created_seconds: float = 0.0
    updated_seconds: float = 0.0
    author: str = ""
    proposal: Proposal | None = None
    digest: str = ""

    @property
    def name(self) -> str:
        """`namespace/name`."""
        return self.experiment.full_name

    @property
    def served(self) -> tuple[int, ...]:
        """Of 65,536 slots, those that each arm serves now (of the first table): its propensity."""
        e, status = self.experiment, self.status
        names = [arm.name for arm in e.arms]
        only = names.index(status.winner) if status.winner else e.incumbent
        if status.state is not State.RUNNING or e.stages[status.stage].cap == 0 or not self.slots:
            return tuple(SLOTS * (arm == only) for arm in range(len(names)))
        slots = (*self.slots[0], *(0,) * (len(names) - len(self.slots[0])))
        return served(slots, e.incumbent, {arm for arm, name in enumerate(names) if name in status.drained})


def served(slots: Sequence[int], incumbent: int, drained: Collection[int]) -> tuple[int, ...]:
    """Slots as served: those of drained arms are the incumbent's."""
    kept = [0 if arm in drained else count for arm, count in enumerate(slots)]
    kept[incumbent] += SLOTS - sum(kept)
    return tuple(kept)
