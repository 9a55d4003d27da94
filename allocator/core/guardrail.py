"""Guardrails of one experiment: counts of outcomes in, verdicts and what must be done about them out.

In: what each bucket of decision time holds (`Counts`), the evidence folded over settled buckets (`Stream`), the status. Out: a `Finding`
for each guardrail and arm (and segment), a `Judgement` for each candidate, and the streams folded further when buckets settle.

The idea. Exposures count when decided, outcomes in the bucket of their decision, so evidence is a function of sums: `guardrail_streams`
folds them, a finding compares them with the thresholds of one stream, and `judgement` weighs the findings of one candidate together. What
nobody measured is HOLD, never "clear".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from allocator.core.evidence import detector_threshold, log_level
from allocator.core.experiment import Experiment
from allocator.core.guardrail_counts import Counts
from allocator.core.guardrail_streams import Group, candidates, folded_states, grouped, levels_of, matured_outcomes, safety_of
from allocator.core.judgement import Finding, Judgement, Verdict, alpha_of, judge, stream_share, unguarded
from allocator.core.lifecycle import Status
from allocator.core.record import Stream

SAFETY_ALPHA = 0.05
RUN_LENGTH_SECONDS = 30 * 86400.0  # a false warning about once in this time, on average
LEAST_RUN_LENGTH = 100_000.0  # outcomes; for experiments too young for their traffic to be known
LEAST_REPORTED = 0.5  # of decisions whose window has passed; with less, nobody knows how the arm does
HEARD_FADES = 0.8  # weight of earlier buckets, at each settling, in how much is reported


@dataclass(frozen=True, slots=True)
class Review:
    """One look at all guardrails: findings, a judgement for each candidate by arm index, warnings begun and ended.

    streams: those folded so far, with their warnings brought up to date. began: keys of streams that now warn; ended: keys of those that
    recovered, and whether the incumbent had warned meanwhile. environment: guardrails of which the incumbent warns now.
    """

    findings: tuple[Finding, ...]
    judgements: Mapping[int, Judgement]
    streams: Mapping[tuple[str, int, int], Stream]
    began: tuple[tuple[str, int, int], ...] = ()
    ended: tuple[tuple[tuple[str, int, int], bool], ...] = ()
    environment: frozenset[str] = frozenset()


def review(experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, now: float, running_seconds: float) -> Review:
    """Look at every guardrail now.

    streams: as stored, over settled buckets. counts: open buckets of this activation. now: seconds since the epoch.
    running_seconds: since the start, for the traffic that warnings are scaled to. Pure; call it as often as you like.
    """
    held = {(s.stream, s.arm, s.segment): s for s in streams}
    groups = grouped(experiment, status, held, counts, now)
    if not groups:
        return Review((), {arm: unguarded(experiment, status, arm) for arm in candidates(experiment)}, held)
    alpha = alpha_of(experiment, status.activation)
    findings: list[Finding] = []
    warnings: list[tuple[Stream, Finding, float]] = []
    found = zip(groups, levels_of(experiment, status, groups), _totals(experiment, status, groups), strict=True)
    for group, levels, totals in found:
        for stream, finding, warning_since in _find(experiment, group, levels, totals, alpha, status.drained, now, running_seconds):
            findings.append(finding)
            if warning_since or stream.warning_since:
                warnings.append((stream, finding, warning_since))
    environment = frozenset(f.guardrail for _, f, since in warnings if since and f.arm == experiment.incumbent)
    after, began, ended = dict(held), [], []
    for stream, finding, since in warnings:
        key = (stream.stream, stream.arm, stream.segment)
        common = (stream.common and stream.warning_since > 0) or (finding.guardrail in environment and finding.arm != experiment.incumbent)
        if not stream.warning_since:
            began.append(key)
            stream = replace(stream, safe_count=0.0, safe_events=0.0, safe_denominators=())
        elif not since:
            ended.append((key, common))
        after[key] = replace(stream, warning_since=since, common=common and since > 0)
    judgements = {arm: judge(experiment, alpha, arm, findings) for arm in candidates(experiment)}
    return Review(tuple(findings), judgements, after, tuple(began), tuple(ended), environment)


def settle(experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, stage_bucket: int) -> tuple[Stream, ...]:
    """The streams with the buckets of `counts` folded for good; they must be older than any outcome that may still come.

    stage_bucket: first bucket that lies wholly in the present stage; only from there on do outcomes prove safety.
    """
    held = {(s.stream, s.arm, s.segment): s for s in streams}
    if not counts.buckets.size:
        return tuple(held.values())
    groups = grouped(experiment, status, held, counts, math.inf)
    for group, folded in zip(groups, folded_states(experiment, status, groups), strict=True):
        safe = matured_outcomes(experiment, group, stage_bucket)
        columns = zip(group.streams, folded, safe, group.asked.sum(axis=1), group.reported.sum(axis=1), strict=True)
        for stream, (breach, detector), (count, events, denominators), asked, heard in columns:
            held[stream.stream, stream.arm, stream.segment] = replace(
                stream,
                breach=breach,
                detector=detector,
                safe_count=count,
                safe_events=events,
                safe_denominators=denominators,
                asked=HEARD_FADES * stream.asked + float(asked),
                heard=HEARD_FADES * stream.heard + float(heard),
            )
    return tuple(held.values())


def close(experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, now: float) -> tuple[Stream, ...]:
    """Every stream with its evidence as of `now`, open buckets included: what is kept of an activation that ends."""
    held = {(s.stream, s.arm, s.segment): s for s in streams}
    closed = []
    groups = grouped(experiment, status, held, counts, now)
    for group, folded in zip(groups, folded_states(experiment, status, groups), strict=True):
        for stream, (breach, detector) in zip(group.streams, folded, strict=True):
            closed.append(replace(stream, breach=breach, detector=detector, log_evidence=log_level(group.grid, breach)))
    return tuple(closed)


def forget_safety(streams: Iterable[Stream]) -> tuple[Stream, ...]:
    """The streams with nothing proven: a new stage asks for recent evidence."""
    return tuple(replace(s, safe_count=0.0, safe_events=0.0, safe_denominators=()) for s in streams)


# --------------------------------------------------------------------------------------------------- one guardrail


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over one group's buckets, lists of N: exposed includes what is settled; missing: why an arm cannot be judged, or ""."""

    exposed: list[float]
    reported: list[float]
    events: list[float]
    missing: list[str]
    log_safety: list[float]


def _totals(experiment: Experiment, status: Status, groups: Sequence[Group]) -> list[_Totals]:
    """Of each group. The arrays of all groups are summed together: a dozen small sums cost more than a large one."""
    stage_bucket = math.ceil(status.stage_since_seconds / experiment.bucket_width_seconds)
    settled = np.array([stream.breach.outcomes for group in groups for stream in group.streams])
    exposed, reported, events = (np.concatenate([getattr(group, name) for group in groups]) for name in ("exposed", "reported", "events"))
    all_reported = reported.sum(axis=1)
    missing = [because for group in groups for because in _missing(group)]
    columns = ((settled + exposed.sum(axis=1)).tolist(), all_reported.tolist(), events.sum(axis=1).tolist(), missing)
    safety = safety_of(groups, [matured_outcomes(experiment, group, stage_bucket) for group in groups])
    done, at = [], 0
    for group, logs in zip(groups, safety, strict=True):
        upto = at + len(group.streams)
        done.append(_Totals(*(column[at:upto] for column in columns), logs))
        at = upto
    return done


def _find(
    experiment: Experiment,
    group: Group,
    levels: NDArray[np.float64],
    totals: _Totals,
    alpha: float,
    drained: tuple[str, ...],
    now: float,
    running_seconds: float,
) -> list[tuple[Stream, Finding, float]]:
    """Of each stream: the stream, what it says now, and since when it warns (0: it does not). A drained arm begins no warning."""
    g, relative = group.guardrail, group.guardrail.relative
    limit = next(v for v in (g.max, g.min, g.max_ratio) if v is not None)
    share = stream_share(experiment, g)
    log_threshold = -math.log(alpha * share)
    breach_levels, detector_levels = levels.tolist()
    done = []
    for row, stream in enumerate(group.streams):
        log_breach, reported, events = breach_levels[row], totals.reported[row], totals.events[row]
        run_length = max(LEAST_RUN_LENGTH, totals.exposed[row] / max(running_seconds, 1.0) * RUN_LENGTH_SECONDS)
        log_warning = detector_threshold(run_length)
        proven = totals.log_safety[row] >= -math.log(SAFETY_ALPHA)
        warning = stream.warning_since
        if detector_levels[row] < log_warning:
            warning = 0.0 if proven else warning
        elif not warning and experiment.arms[stream.arm].name not in drained:
            warning = now
        verdict, message = Verdict.CLEAR, "" if proven else "not proven safe yet"
        if stream.arm != experiment.incumbent and log_breach >= log_threshold:
            verdict, message = Verdict.BREACH, "the limit is exceeded"
        elif totals.missing[row]:
            verdict, message = Verdict.HOLD, totals.missing[row]
        elif warning:
            verdict, message = Verdict.WARN, "evidence of a change for the worse; waiting for proof of recovery"
        observed = math.nan
        if reported:
            observed = events / reported
            if g.quantile is None and not relative:
                observed = group.low + (group.high - group.low) * (1 - observed if g.min is not None else observed)
        finding = Finding(
            guardrail=g.name,
            arm=stream.arm,
            segment=stream.segment,
            action=g.on_breach,
            verdict=verdict,
            limit=limit,
            observed=observed,
            exposed=totals.exposed[row],
            events=events + (0.0 if relative else stream.breach.events),
            log_evidence=log_breach,
            log_threshold=log_threshold,
            log_warning=log_warning,
            log_safety=totals.log_safety[row],
            proven_safe=proven and not warning,
            held=bool(totals.missing[row]),
            share=share,
            alpha=alpha * share,
            message=message,
        )
        done.append((stream, finding, warning))
    return done


def _missing(group: Group) -> list[str]:
    """Of each stream: why nobody can say how the arm does, or "". Completeness is judged where no report can come any more."""
    heard_ever = group.reported.sum(axis=1)
    asked, heard = (group.asked * group.matured).sum(axis=1), (group.reported * group.matured).sum(axis=1)
    found = []
    for row, stream in enumerate(group.streams):
        all_asked, all_heard = float(asked[row]) + stream.asked, float(heard[row]) + stream.heard
        because = ""
        if heard_ever[row] == 0 and stream.heard == 0:
            because = "no outcome carries this metric yet"
        elif all_heard < LEAST_REPORTED * all_asked:
            because = (
                f"only {all_heard / all_asked:.0%} of recent decisions were reported within the window;"
                f" at least {LEAST_REPORTED:.0%} are needed"
            )
        elif group.one_sided is not None and group.one_sided[row]:
            because = "no outcome of the incumbent carries this metric, so there is nothing to compare with"
        found.append(because)
    return found
