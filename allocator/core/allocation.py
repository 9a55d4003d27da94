"""From wanted weights to the slots that arms own: caps, floors, holds and budgets, and what they refused, in words.

In: the record, the status, what was learned, the judgements. Out: slots and layout of each table, and a note for whatever is not what the
policy wanted. A plan that would move next to nothing moves nothing: a snapshot that differs by a handful of slots is not worth sending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from allocator.core import exposure as limits
from allocator.core.assignment import SLOTS, Layout, first_layout, move
from allocator.core.checked import Floats
from allocator.core.experiment import BreachAction, Experiment
from allocator.core.judgement import Judgement
from allocator.core.learning import Learned
from allocator.core.lifecycle import Status
from allocator.core.record import Record

UNMOVED_SLOTS = 64  # a plan that moves fewer than 0.1 % of the units is not worth a new snapshot


def allocate(
    record: Record,
    status: Status,
    learned: Sequence[Learned],
    judgements: Sequence[Judgement],
    eligible: NDArray[np.bool_],
    finished: frozenset[int],
) -> tuple[tuple[tuple[int, ...], ...], tuple[Layout, ...], tuple[str, ...]]:
    """Slots and layout of each table, and why they are not what the policy wanted."""
    experiment = record.experiment
    stage, x = experiment.stages[status.stage], experiment.exposure
    cap, per_candidate = min(stage.cap, x.total), x.per_candidate
    if x.strict:
        cap, per_candidate = limits.steered(cap), limits.steered(per_candidate)
    arms, incumbent = len(experiment.arms), experiment.incumbent
    same_stage = (record.status.stage, record.status.activation) == (status.stage, status.activation)
    floors = np.full(arms, min(experiment.policy.floor, per_candidate))
    held_all = any(j.action is BreachAction.HOLD for j in judgements)
    held = {j.arm for j in judgements if j.held or held_all}
    notes = []
    for judgement in judgements:
        name = experiment.arms[judgement.arm].name
        if judgement.warned:
            floors[judgement.arm] = 0.0
            notes.append(f"{name} has no floor while {', '.join(judgement.warned)} warns")
        if judgement.arm in held and same_stage and record.slots:
            because = f"{', '.join(judgement.held)} lacks data" if judgement.held else "a guardrail that holds is breached"
            notes.append(f"the weight of {name} may not rise: {because}")
    notes += [f"{experiment.arms[arm].name} has used up its budget of {x.budget.requests} requests" for arm in sorted(finished)]
    done_slots, done_layouts = [], []
    for index, table in enumerate(learned):
        before = record.slots[index] if index < len(record.slots) else None
        if before is not None and len(before) < arms:
            before = (*before, *(0,) * (arms - len(before)))
        caps = np.full(arms, per_candidate)
        caps[list(finished)] = 0.0
        if before is not None and same_stage:
            for arm in held:
                caps[arm] = min(caps[arm], before[arm] / SLOTS)
        least = np.minimum(floors, caps)
        least[incumbent] = 0.0
        weights = limits.allowed(table.wanted, incumbent, cap, caps, least, eligible)
        if index == 0:
            notes.extend(_cap_notes(experiment, table.wanted, weights, cap, finished))
        target = list(limits.to_slots(weights, np.where(eligible, least, 0.0), incumbent, cap, caps))
        if before is not None:
            for arm in range(arms):
                if not eligible[arm] and arm != incumbent:
                    target[arm] = min(before[arm], target[incumbent])
                    target[incumbent] -= target[arm]
        chosen = tuple(target)
        if before is not None and _not_worth_moving(before, chosen, caps, cap, incumbent, eligible):
            chosen = before
        done_slots.append(chosen)
        done_layouts.append(move(record.layouts[index], chosen) if before is not None else first_layout(chosen))
    return tuple(done_slots), tuple(done_layouts), tuple(notes)


def _not_worth_moving(
    before: Sequence[int], after: Sequence[int], caps: Floats, cap: float, incumbent: int, eligible: NDArray[np.bool_]
) -> bool:
    moved = sum(abs(a - b) for a, b in zip(before, after, strict=True)) // 2
    if moved >= UNMOVED_SLOTS:
        return False
    served = [count for arm, count in enumerate(before) if arm != incumbent and eligible[arm]]
    full = [after[arm] >= math.floor(caps[arm] * SLOTS) for arm in range(len(after)) if arm != incumbent]
    within = all(before[arm] <= caps[arm] * SLOTS for arm in range(len(before)) if arm != incumbent and eligible[arm])
    at_cap = any(full) or SLOTS - after[incumbent] >= math.floor(cap * SLOTS)
    return within and sum(served) <= cap * SLOTS and (moved <= 1 or not at_cap)


def _cap_notes(experiment: Experiment, wanted: Floats, weights: Floats, cap: float, finished: frozenset[int]) -> list[str]:
    notes = []
    for arm, (want, have) in enumerate(zip(wanted, weights, strict=True)):
        if arm not in (experiment.incumbent, *finished) and want > have + 0.001:
            notes.append(
                f"{experiment.arms[arm].name} would get {want:.1%}; caps and the stage allow {have:.1%} (all candidates: {cap:.1%})"
            )
    return notes
