"""The record of an experiment as a decider sees it.

In: a record. Out: the `Entry` of the snapshot. State, stage, drained arms and pins are worked out here, once a plan, so that deciding asks
nothing but what it finds in a table.
"""

from __future__ import annotations

from allocator.core.budget import leases_requests, leases_units
from allocator.core.decision import Reason
from allocator.core.experiment import Experiment, UnitContribution
from allocator.core.lifecycle import State
from allocator.core.record import Record, served
from allocator.core.snapshot import Entry, Table


def entry_of(record: Record) -> Entry:
    """The record as a decider sees it."""
    e, status = record.experiment, record.status
    stage = e.stages[status.stage]
    running = status.state is State.RUNNING
    only: tuple[int, int] | None = None
    if status.state is State.FROZEN or (running and status.frozen):
        only = (e.incumbent, Reason.FROZEN)
    elif status.state is State.CONCLUDED and status.winner and status.winner != e.arms[e.incumbent].name:
        only = (next(i for i, arm in enumerate(e.arms) if arm.name == status.winner), Reason.ALLOCATED)
    elif not running or stage.cap == 0 or not record.layouts:
        only = (e.incumbent, Reason.INCUMBENT_ONLY)
    drained = {index for index, arm in enumerate(e.arms) if arm.name in status.drained}
    strict = running and e.exposure.strict
    return Entry(
        experiment=record.name,
        uid=bytes.fromhex(record.uid),
        version=record.version,
        state=status.state.value,
        sticky=e.assignment.value == "STICKY",
        salt=record.salt,
        arms=tuple(arm.name for arm in e.arms),
        model_uris=tuple(arm.model_uri for arm in e.arms),
        incumbent=e.incumbent,
        tables=tuple(
            Table(layout.ends, layout.owners, served(slots, e.incumbent, drained))
            for layout, slots in zip(record.layouts, record.slots, strict=True)
        ),
        only=only,
        drained=sum(1 << index for index in drained),
        counted=status.state is not State.DRAFT,
        shadow_arms=tuple(i for i in range(len(e.arms)) if i != e.incumbent and i not in drained)
        if running and stage.shadow and not status.frozen
        else (),
        activation=status.activation,
        segment_names=e.segment_names,
        segments=tuple({key: frozenset(values) for key, values in segment.match.items()} for segment in e.segments),
        target={key: frozenset(values) for key, values in e.target.items()},
        opt_out=e.opt_out,
        pins={unit.encode(): _index(e, arm) for unit, arm in e.pins.items() if _index(e, arm) not in drained}
        if running and not status.frozen
        else {},
        lease_seconds=e.lease_seconds,
        window_seconds=e.reward.window_seconds,
        bucket_seconds=e.bucket_width_seconds,
        first_only=e.unit_contribution is UnitContribution.FIRST,
        strict=strict,
        cap=min(stage.cap, e.exposure.total),
        cap_per_candidate=e.exposure.per_candidate,
        burst=e.exposure.burst,
        leased_requests=leases_requests(e),
        leased_units=leases_units(e),
        stage=status.stage,
    )


def _index(experiment: Experiment, name: str) -> int:
    return next(index for index, arm in enumerate(experiment.arms) if arm.name == name)
