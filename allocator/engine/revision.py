"""What of a started experiment may be revised: the rest would mix outcomes of different questions.

In: a record and the spec that it would have. Out: nothing, or every field that may not change.
"""

from __future__ import annotations

import dataclasses

from allocator.core.experiment import Experiment
from allocator.core.lifecycle import State
from allocator.core.record import Record
from allocator.errors import InvalidArgument, Refused, Violation


def check_revision(before: Record, after: Experiment) -> None:
    """May a record's spec become `after`? Raises Refused when it has ended, InvalidArgument with every field that may not change."""
    state, old = before.status.state, before.experiment
    if state in (State.ROLLED_BACK, State.CONCLUDED):
        raise Refused(
            f"{before.name} is {state.value} and cannot be revised; apply it under another name", reason="WRONG_STATE", state=state.value
        )
    if state is State.DRAFT:
        return
    found = []
    why = "cannot change once the experiment has started; apply a new experiment under another name"
    for index, arm in enumerate(old.arms):
        if index >= len(after.arms) or after.arms[index] != arm:
            got = after.arms[index].name if index < len(after.arms) else "nothing"
            message = f"got {got} for {arm.name}: name, order, incumbent and modelUri {why}; arms may be added at the end"
            found.append(Violation(f"spec.arms[{index}]", message))
    if after.segments != old.segments:
        found.append(Violation("spec.segments", f"got others: they {why}"))
    for path, a, b in (
        ("spec.reward", dataclasses.replace(old.reward, warm_start=None), dataclasses.replace(after.reward, warm_start=None)),
        ("spec.reward.warmStart", old.reward.warm_start, after.reward.warm_start),
        ("spec.assignment", old.assignment, after.assignment),
        ("spec.policy.halfLife", old.policy.half_life_seconds, after.policy.half_life_seconds),
        ("spec.policy.weights", old.policy.pooling, after.policy.pooling),
        ("spec.bucket", old.bucket_seconds, after.bucket_seconds),
        ("spec.unitContribution", old.unit_contribution, after.unit_contribution),
    ):
        if a != b:
            found.append(Violation(path, f"got another value than the running one: it {why}"))
    a, b = old.exposure, after.exposure
    counted = a.budget.requests is not None or a.budget.loss is not None
    for path, kept, value in (
        ("budget.requests", counted, b.budget.requests),
        ("budget.loss", counted, b.budget.loss),
        ("budget.units", a.budget.units is not None, b.budget.units),
        ("maxLoss", a.max_loss is not None, b.max_loss),
    ):
        if value is not None and not kept:
            found.append(
                Violation(
                    f"spec.exposure.{path}",
                    f"got {value}, and the experiment began without: what candidates received since was not held against it. It can change"
                    " or go, but not come; apply a new experiment under another name",
                )
            )
    if before.status.stage >= len(after.stages):
        found.append(Violation("spec.ramp", f"got {len(after.stages)} stages, and the experiment is in stage {before.status.stage}"))
    if found:
        raise InvalidArgument(
            f"{before.name} is {state.value}; {len(found)} field{'s' if len(found) > 1 else ''} cannot be revised",
            violations=found,
            reason="CANNOT_REVISE",
        )
