"""Does a revision make anything riskier for those who are served? The rules, one for each field of the spec.

In: the spec in force and the spec proposed. Out: a sentence for each thing that becomes riskier, none when all of it is as safe or safer.
Riskier is what lets a candidate serve more, sooner, to more people, or longer after it went wrong, and whatever makes that harder to judge.
A change that cannot be ordered (another metric, another policy) counts as riskier. `alpha` surprises: it is the chance of stopping a
*harmless* candidate, so a smaller one waits for more evidence of harm and is riskier.

A revision is judged whole: with one riskier part, its safer parts wait with it. Splitting it was dropped: what would then be in force is a
spec that nobody wrote. Whoever wants the safer part now applies it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields

from allocator.core.experiment import BreachAction, Conclude, ConcludeAction, Experiment, Guardrail, PolicyKind, RampStage

Sentences = Iterable[str]
STRENGTH = {BreachAction.FREEZE: 3, BreachAction.DRAIN: 2, BreachAction.HOLD: 1, BreachAction.ALERT: 0}


def riskier(before: Experiment, after: Experiment, stage: int = 0) -> list[str]:
    """What becomes riskier, a sentence each, in the order of the spec. stage: of the ramp, in force now."""
    found = [
        sentence
        for field in fields(Experiment)
        if getattr(before, field.name) != getattr(after, field.name)
        for sentence in RULES[field.name](before, after)
    ]
    if stage:
        found += _stage_in_force(before, after, stage)
    return list(dict.fromkeys(found))


def _neutral(_before: Experiment, _after: Experiment) -> Sentences:
    return ()


def _any(what: str) -> Callable[[Experiment, Experiment], Sentences]:
    return lambda _before, _after: (f"{what} changes",)


def _rises(what: str, before: float | None, after: float | None) -> Sentences:
    """Riskier when it rises; None is no limit."""
    if before is not None and (after is None or after > before):
        yield f"{what} rises from {before:g} to {'no limit' if after is None else f'{after:g}'}"


def _falls(what: str, before: float, after: float) -> Sentences:
    if after < before:
        yield f"{what} falls from {before:g} to {after:g}"


def _arms(before: Experiment, after: Experiment) -> Sentences:
    old = {arm.name: arm for arm in before.arms}
    for arm in after.arms:
        if arm.name not in old:
            yield f"arm {arm.name} is added"
        elif arm != old[arm.name]:
            yield f"arm {arm.name} becomes another version"
    for name in old.keys() - {arm.name for arm in after.arms}:
        yield f"arm {name} is removed"


def _policy(before: Experiment, after: Experiment) -> Sentences:
    old, new = before.policy, after.policy
    if old.kind is not new.kind:
        yield f"the policy changes from {old.kind.value} to {new.kind.value}"
    yield from _rises("policy.floor", old.floor, new.floor)
    for name in ("power", "beta"):  # more of it sharpens, less of it spreads: either way some candidate gets more
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            yield f"policy.{name} changes from {was:g} to {now:g}: some candidates get more"
    if new.floor_schedule and not old.floor_schedule:
        yield "policy.floorSchedule gives every candidate a share, whatever is known of it"
    if old.half_life_seconds != new.half_life_seconds:
        yield "policy.halfLife changes what is remembered"
    if old.pooling is not new.pooling:
        yield "policy.weights changes what is learned together"
    if old.kind is new.kind is PolicyKind.FIXED:
        incumbent = after.arms[after.incumbent].name
        for name, share in new.shares.items():
            if name != incumbent:
                yield from _rises(f"policy.shares of {name}", old.shares.get(name, 0.0), share)


def _exposure(before: Experiment, after: Experiment) -> Sentences:
    old, new = before.exposure, after.exposure
    yield from _rises("exposure.perCandidate", old.per_candidate, new.per_candidate)
    yield from _rises("exposure.total", old.total, new.total)
    if old.strict and not new.strict:
        yield "the caps hold on average only: exposure.strict goes"
    elif old.strict:
        yield from _rises("exposure.burst", old.burst, new.burst)
    for name in ("requests", "units", "loss"):
        yield from _rises(f"exposure.budget.{name}", getattr(old.budget, name), getattr(new.budget, name))
    yield from _rises("exposure.maxLoss", old.max_loss, new.max_loss)


def _guardrails(before: Experiment, after: Experiment) -> Sentences:
    new = {guardrail.name: guardrail for guardrail in after.guardrails}
    for guardrail in before.guardrails:
        if guardrail.name not in new:
            yield f"guardrail {guardrail.name} is dropped"
        elif guardrail != new[guardrail.name]:
            yield from _guardrail(guardrail, new[guardrail.name])


def _guardrail(old: Guardrail, new: Guardrail) -> Sentences:
    what = f"guardrail {old.name}"
    limits = [[name for name in ("max", "min", "max_ratio") if getattr(g, name) is not None] for g in (old, new)]
    if old.metric != new.metric or limits[0] != limits[1] or (old.quantile is None) != (new.quantile is None):
        yield f"{what} judges something else"
    else:
        yield from _rises(f"{what}: max", old.max, new.max)
        if old.min is not None and new.min is not None:
            yield from _falls(f"{what}: min", old.min, new.min)
        yield from _rises(f"{what}: maxRatio", old.max_ratio, new.max_ratio)
        if old.quantile is not None and new.quantile is not None:
            yield from _falls(f"{what}: quantile", old.quantile, new.quantile)
    if STRENGTH[new.on_breach] < STRENGTH[old.on_breach]:
        yield f"{what}: a breach leads to {new.on_breach.value}, not {old.on_breach.value}"
    if old.per is not new.per:
        yield f"{what} is judged per {new.per.value}, not per {old.per.value}"
    yield from _rises(f"{what}: persistence", old.persistence, new.persistence)
    if old.window_seconds != new.window_seconds:
        yield f"{what}: another window, so other outcomes count"


def _alpha(before: Experiment, after: Experiment) -> Sentences:
    if after.alpha < before.alpha:
        yield f"alpha falls from {before.alpha:g} to {after.alpha:g}: more evidence of harm is needed before anything stops"


def _metrics(before: Experiment, after: Experiment) -> Sentences:
    for name in sorted({guardrail.metric for guardrail in before.guardrails}):
        if before.metric_range(name) != after.metric_range(name):
            yield f"metric {name} has another range, and guardrails are judged on it"


def _opt_out(before: Experiment, _after: Experiment) -> Sentences:
    if before.opt_out:
        yield f"people can no longer opt out by {before.opt_out}"


def _target(before: Experiment, after: Experiment) -> Sentences:
    for attribute, values in before.target.items():
        allowed = after.target.get(attribute)
        if allowed is None:
            yield f"units of any {attribute} take part"
        elif more := sorted(set(allowed) - set(values)):
            yield f"units with {attribute} {', '.join(more)} take part"


def _pins(before: Experiment, after: Experiment) -> Sentences:
    incumbent = after.arms[after.incumbent].name
    to_candidates = sum(arm != incumbent and before.pins.get(unit) != arm for unit, arm in after.pins.items())
    if to_candidates:
        yield f"{to_candidates} more pinned to candidates"
    freed = sum(arm == incumbent and after.pins.get(unit) is None for unit, arm in before.pins.items())
    if freed:
        yield f"{freed} no longer pinned to the incumbent"


def _ramp(before: Experiment, after: Experiment) -> Sentences:
    """Stage by stage while there are as many; and, however the stages were cut, what it takes to get beyond each level of exposure.

    Without the second, a stage put in between would move an approval or a proof from the step that matters to one that does not.
    """
    old, new = before.stages, after.stages
    if len(old) == len(new):
        for index, (was, now) in enumerate(zip(old, new, strict=True)):
            yield from _rises(f"stage {index}: cap", was.cap, now.cap)
            yield from _falls(f"stage {index}: minDuration", was.min_duration_seconds, now.min_duration_seconds)
            yield from _falls(f"stage {index}: minOutcomes", was.min_outcomes, now.min_outcomes)
            yield from _falls(f"stage {index}: approvals", was.approvals, now.approvals)
    yield from _beyond(old, new)


def _stage_in_force(before: Experiment, after: Experiment, stage: int) -> Sentences:
    """What the new ramp changes at once, and on the rest of the way."""
    old, new = before.stages[stage:], after.stages[stage:]
    if old and new:
        yield from _rises(f"stage {stage}, which is in force: cap", old[0].cap, new[0].cap)
        yield from _beyond(old, new)


def _beyond(old: Sequence[RampStage], new: Sequence[RampStage]) -> Sentences:
    """What less is asked for before candidates get more than x, for every x at which it may differ."""
    caps = sorted({0.0, *(stage.cap for stage in (*old, *new))})
    for level in caps:
        at = [next((index for index, stage in enumerate(stages) if stage.cap > level), None) for stages in (old, new)]
        was, now = at
        if now is None:
            return
        what = f"beyond {level:.3g}"
        if was is None:
            yield f"{what}: candidates may get {max(stage.cap for stage in new):g} in the end, not {level:g}"
            return
        if was == 0:
            continue
        yield from _falls(f"{what}: approvals", old[was].approvals, new[now].approvals if now else 0)
        if not old[was - 1].shadow and (now == 0 or new[now - 1].shadow):
            yield f"{what}: no guardrail need be proven safe first"
        if len(old) == len(new):
            continue  # stage by stage they were compared already, and a stage with a lower cap is none that is missing
        for least in (each for each in caps if each <= level):
            passed = [[stage for stage in stages[:to] if stage.cap >= least] for stages, to in ((old, was), (new, now))]
            seconds = [sum(stage.min_duration_seconds for stage in stages) for stages in passed]
            outcomes = [sum(stage.min_outcomes for stage in stages if not stage.shadow) for stages in passed]
            yield from _falls(f"{what}: seconds spent at {least:.3g} or more", *seconds)
            yield from _falls(f"{what}: outcomes at {least:.3g} or more", *outcomes)


def _conclude(before: Experiment, after: Experiment) -> Sentences:
    new = after.conclude
    if new is None or new.action is not ConcludeAction.PROMOTE:
        return
    old = before.conclude or Conclude()
    if before.conclude is None or old.action is not ConcludeAction.PROMOTE:
        yield "the winner is promoted without a person"
        return
    yield from _falls("conclude.probBest", old.prob_best, new.prob_best)
    yield from _rises("conclude.maxExpectedLoss", old.max_expected_loss, new.max_expected_loss)


def _lease(before: Experiment, after: Experiment) -> Sentences:
    return _rises("lease", before.lease_seconds, after.lease_seconds)


def _approval(before: Experiment, after: Experiment) -> Sentences:
    yield from _falls("approval.required", before.approval.required, after.approval.required)
    if after.approval.required:
        yield from _rises("approval.expiry", before.approval.expiry_seconds, after.approval.expiry_seconds)


RULES: Mapping[str, Callable[[Experiment, Experiment], Sentences]] = {
    "name": _any("the name"),
    "namespace": _any("the namespace"),
    "arms": _arms,
    "reward": _any("the reward"),
    "labels": _neutral,
    "owner": _neutral,
    "hypothesis": _neutral,
    "lineage": _neutral,
    "assignment": _any("the assignment"),
    "policy": _policy,
    "exposure": _exposure,
    "guardrails": _guardrails,
    "alpha": _alpha,
    "segments": _any("who belongs to which segment"),
    "opt_out": _opt_out,
    "ramp": _ramp,
    "conclude": _conclude,
    "metrics": _metrics,
    "target": _target,
    "pins": _pins,
    "unit_contribution": _any("how often a unit counts in guardrails"),
    "bucket_seconds": _any("the width of buckets"),
    "lease_seconds": _lease,
    "approval": _approval,
}
