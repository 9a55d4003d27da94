"""Guardrails of one experiment: counts of outcomes in, verdicts and what must be done about them out.

In: what each bucket of decision time holds (`Counts`), the evidence folded over settled buckets (`Stream`), the status. Out: a `Finding`
for each guardrail and arm (and segment), a `Judgement` for each candidate, and the streams folded further when buckets settle.

The idea. Exposures count when decided, outcomes in the bucket of their decision, so evidence is a function of sums: settled buckets are
folded once, open ones are folded anew at each look from the settled state. A candidate's stopping evidence is one weighted average of
e-processes over its guardrails and segments; at 1/alpha it is a breach, and closed testing names the guardrails to blame. HOLD and
ALERT guardrails are judged each by itself, so that an alert cannot freeze. What nobody measured is HOLD, never "clear".

A relative guardrail folds a bucket only once its reporting window has passed: the two arms may report at different speeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from allocator.core.evidence import Restarts, Schedule, detector_threshold, log_level, no_restarts, persistence_cap
from allocator.core.evidence_labels import LabelGrid, LabelSums, fold_labels, label_grid, label_sums, log_label_evidence, stack
from allocator.core.evidence_rates import RateGrid, fold_many, log_safety_many, look_many, rate_grid, safety_grid
from allocator.core.evidence_streams import to_blame
from allocator.core.experiment import BreachAction, Experiment, Guardrail, Per
from allocator.core.lifecycle import Status
from allocator.core.record import Stream

ALL = -1  # the segment of a stream over all segments together
SAFETY_ALPHA = 0.05
RUN_LENGTH_SECONDS = 30 * 86400.0  # a false warning about once in this time, on average
LEAST_RUN_LENGTH = 100_000.0  # outcomes; for experiments too young for their traffic to be known
LEAST_REPORTED = 0.5  # of decisions whose window has passed; with less, nobody knows how the arm does
Safe = Sequence[tuple[float, float, tuple[float, ...]]]  # of each stream: outcomes, bad ones, label denominators

HEARD_FADES = 0.8  # weight of earlier buckets, at each settling, in how much is reported
STOPPING = (BreachAction.FREEZE, BreachAction.DRAIN)


class Verdict(Enum):
    CLEAR = "CLEAR"
    WARN = "WARN"
    BREACH = "BREACH"
    HOLD = "HOLD"


@dataclass(frozen=True, slots=True)
class Labels:
    """Bad outcomes of one relative guardrail: which arm had them, and the weights in force when it was decided.

    bucket, arm, segment: (rows,) int64. weight: (rows,) bad outcomes, may be fractional. slots: (rows, arms) of 65,536.
    """

    bucket: NDArray[np.int64]
    arm: NDArray[np.int64]
    segment: NDArray[np.int64]
    weight: NDArray[np.float64]
    slots: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Counts:
    """What each bucket of decision time holds, for the guardrails of one activation.

    buckets: (B,) ascending. exposed: (B, arms, segments), decisions that count in guardrails. reported, events: (B, guardrails,
    arms, segments), outcomes that came and the bad ones among them (fractions allowed). labels: by index of relative guardrails.
    """

    buckets: NDArray[np.int64]
    exposed: NDArray[np.float64]
    reported: NDArray[np.float64]
    events: NDArray[np.float64]
    labels: Mapping[int, Labels] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one guardrail says of one arm (and segment). Logs are natural.

    observed: mean over open buckets in the metric's own units (of quantiles and ratios, the share of bad outcomes); NaN unknown.
    log_threshold: a breach by this stream alone, whose share of the error budget is `alpha`. held: data is missing.
    """

    guardrail: str
    arm: int
    segment: int
    action: BreachAction
    verdict: Verdict
    limit: float
    observed: float
    exposed: float
    events: float
    log_evidence: float
    log_threshold: float
    log_warning: float
    log_safety: float
    proven_safe: bool
    held: bool
    share: float
    alpha: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the guardrails say of one candidate together. action: None without a breach. blamed: names of guardrails."""

    arm: int
    log_evidence: float
    log_threshold: float
    action: BreachAction | None
    blamed: tuple[str, ...]
    warned: tuple[str, ...]
    held: tuple[str, ...]
    unproven: tuple[str, ...]
    message: str = ""


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


def key_of(guardrail: Guardrail, activation: int) -> str:
    """Name of the guardrail's stream in an activation: evidence starts again with each."""
    return f"{guardrail.stream}#{activation}"


def alpha_of(experiment: Experiment, activation: int) -> float:
    """A candidate's error budget in an activation; over all activations they sum to `experiment.alpha`."""
    return experiment.alpha * 6 / (math.pi * activation) ** 2


def segments_of(experiment: Experiment, guardrail: Guardrail) -> tuple[int, ...]:
    """The segments that a guardrail judges apart: (-1,) for all together."""
    return tuple(range(len(experiment.segments) + 1)) if guardrail.per is Per.SEGMENT else (ALL,)


def review(experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, now: float, running_seconds: float) -> Review:
    """Look at every guardrail now.

    streams: as stored, over settled buckets. counts: open buckets of this activation. now: seconds since the epoch.
    running_seconds: since the start, for the traffic that warnings are scaled to. Pure; call it as often as you like.
    """
    held = {(s.stream, s.arm, s.segment): s for s in streams}
    groups = _groups(experiment, status, held, counts, now)
    if not groups:
        return Review((), {arm: _no_guardrail(experiment, status, arm) for arm in _candidates(experiment)}, held)
    alpha = alpha_of(experiment, status.activation)
    findings: list[Finding] = []
    warnings: list[tuple[Stream, Finding, float]] = []
    found = zip(groups, _levels(experiment, status, groups), _totals(experiment, status, groups), strict=True)
    for group, levels, totals in found:
        for stream, finding, warning_since in _find(experiment, group, levels, totals, alpha, status.drained, now, running_seconds):
            findings.append(finding)
            if warning_since or stream.warning_since:
                warnings.append((stream, finding, warning_since))
    environment = frozenset(f.guardrail for _, f, since in warnings if since and f.arm == experiment.incumbent)
    after, began, ended = dict(held), [], []
    for stream, finding, since in warnings:
        key = (stream.stream, stream.arm, stream.segment)
        common = (stream.common and stream.warning_since > 0) or (
            finding.guardrail in environment and finding.arm != experiment.incumbent
        )
        if not stream.warning_since:
            began.append(key)
            stream = replace(stream, safe_count=0.0, safe_events=0.0, safe_denominators=())
        elif not since:
            ended.append((key, common))
        after[key] = replace(stream, warning_since=since, common=common and since > 0)
    judgements = {arm: _judge(experiment, alpha, arm, findings) for arm in _candidates(experiment)}
    return Review(tuple(findings), judgements, after, tuple(began), tuple(ended), environment)


def settle(experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, stage_bucket: int) -> tuple[Stream, ...]:
    """The streams with the buckets of `counts` folded for good; they must be older than any outcome that may still come.

    stage_bucket: first bucket that lies wholly in the present stage; only from there on do outcomes prove safety.
    """
    held = {(s.stream, s.arm, s.segment): s for s in streams}
    if not counts.buckets.size:
        return tuple(held.values())
    groups = _groups(experiment, status, held, counts, math.inf)
    for group, folded in zip(groups, _fold(experiment, status, groups), strict=True):
        safe = _safe(experiment, group, stage_bucket)
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
    groups = _groups(experiment, status, held, counts, now)
    for group, folded in zip(groups, _fold(experiment, status, groups), strict=True):
        for stream, (breach, detector) in zip(group.streams, folded, strict=True):
            closed.append(replace(stream, breach=breach, detector=detector, log_evidence=log_level(group.grid, breach)))
    return tuple(closed)


def forget_safety(streams: Iterable[Stream]) -> tuple[Stream, ...]:
    """The streams with nothing proven: a new stage asks for recent evidence."""
    return tuple(replace(s, safe_count=0.0, safe_events=0.0, safe_denominators=()) for s in streams)


# --------------------------------------------------------------------------------------------------- one guardrail


@dataclass(frozen=True, slots=True)
class _Group:
    """One guardrail's streams, N of them (arm by segment), and their B buckets.

    exposed, reported, events: (N, B). asked: (N, B), decisions of the stream's own arm. matured: (B,) bool, no outcome can come any more.
    labels, safe_labels: of a relative guardrail, by stream and bucket, against its two nulls. one_sided: (N,) bool, nothing is heard of
    the incumbent that the arm is compared with.
    """

    guardrail: Guardrail
    grid: RateGrid | LabelGrid
    low: float
    high: float
    streams: tuple[Stream, ...]
    buckets: NDArray[np.int64]
    exposed: NDArray[np.float64]
    reported: NDArray[np.float64]
    events: NDArray[np.float64]
    asked: NDArray[np.float64]
    matured: NDArray[np.bool_]
    labels: tuple[tuple[LabelSums, ...], ...] = ()
    safe_labels: tuple[tuple[LabelSums, ...], ...] = ()
    one_sided: NDArray[np.bool_] | None = None


def _candidates(experiment: Experiment) -> list[int]:
    return [index for index in range(len(experiment.arms)) if index != experiment.incumbent]


def _groups(
    experiment: Experiment, status: Status, held: Mapping[tuple[str, int, int], Stream], counts: Counts, now: float
) -> list[_Group]:
    pooled = (counts.exposed.sum(axis=2).T, counts.reported.sum(axis=3).transpose(1, 2, 0), counts.events.sum(axis=3).transpose(1, 2, 0))
    return [_group(experiment, status, held, counts, pooled, now, index) for index in range(len(experiment.guardrails))]


def _group(
    experiment: Experiment,
    status: Status,
    held: Mapping[tuple[str, int, int], Stream],
    counts: Counts,
    pooled: tuple[NDArray[np.float64], ...],
    now: float,
    index: int,
) -> _Group:
    """pooled: exposed (arms, B), reported and events (guardrails, arms, B), over all segments."""
    guardrail = experiment.guardrails[index]
    low, high = _range(experiment, guardrail)
    relative = guardrail.max_ratio is not None
    grid = label_grid(guardrail.max_ratio) if relative else rate_grid(guardrail.loss_limit(low, high))
    segments = segments_of(experiment, guardrail)
    arms = _candidates(experiment) if relative else list(range(len(experiment.arms)))
    name, fresh = key_of(guardrail, status.activation), no_restarts(grid)
    streams = tuple(held.get((name, arm, segment)) or Stream(name, arm, segment, fresh, fresh) for arm in arms for segment in segments)

    if segments == (ALL,):
        exposed, reported, events = pooled[0], pooled[1][index], pooled[2][index]
        if relative:
            exposed, reported, events = exposed[arms], reported[arms], events[arms]
    else:
        exposed, reported, events = (
            values.transpose(1, 2, 0)[arms].reshape(len(streams), -1)
            for values in (counts.exposed, counts.reported[:, index], counts.events[:, index])
        )
    events, exposed = np.minimum(events, reported), np.maximum(exposed, reported)
    ends = (counts.buckets + 1) * experiment.bucket_width_seconds
    matured = ends + experiment.guardrail_window_seconds(guardrail) <= now
    if not relative:
        return _Group(guardrail, grid, low, high, streams, counts.buckets, exposed, reported, events, exposed, matured)
    labels = tuple(_labels_of(experiment, guardrail, stream, counts, index, matured, above=True) for stream in streams)
    safe_labels = tuple(_labels_of(experiment, guardrail, stream, counts, index, matured, above=False) for stream in streams)
    both = np.where(matured, exposed + _of_incumbent(counts.exposed, experiment, segments, arms), 0.0)
    told = _of_incumbent(counts.reported[:, index], experiment, segments, arms)
    one_sided = (told.sum(axis=1) == 0) & (exposed.sum(axis=1) > 0)
    if counts.buckets.size:
        both = np.maximum(both, np.array([[float(sums.events) for sums in row] for row in labels]))
    return _Group(
        guardrail, grid, low, high, streams, counts.buckets, both, reported, events, exposed, matured, labels, safe_labels, one_sided
    )


def _of_incumbent(
    values: NDArray[np.float64], experiment: Experiment, segments: tuple[int, ...], arms: Sequence[int]
) -> NDArray[np.float64]:
    """(B, arms, segments) → (N, B): the incumbent's row beside each candidate's stream."""
    mine = values[:, experiment.incumbent]
    return np.tile(mine.sum(axis=1), (len(arms), 1)) if segments == (ALL,) else np.tile(mine.T, (len(arms), 1))


def _range(experiment: Experiment, guardrail: Guardrail) -> tuple[float, float]:
    if guardrail.metric == experiment.reward.metric:
        return experiment.reward.low, experiment.reward.upper
    return experiment.metric_range(guardrail.metric)


def _labels_of(
    experiment: Experiment,
    guardrail: Guardrail,
    stream: Stream,
    counts: Counts,
    index: int,
    matured: NDArray[np.bool_],
    *,
    above: bool,
) -> tuple[LabelSums, ...]:
    """The label sums of each bucket: bad outcomes of the candidate and the incumbent, both with a chance when they were drawn."""
    grid = label_grid(guardrail.max_ratio, above=above)
    empty = LabelSums(0.0, 0.0, np.zeros(grid.log_weight.size))
    rows = counts.labels.get(index)
    if rows is None or not rows.bucket.size:
        return (empty,) * counts.buckets.size
    pair = np.isin(rows.arm, (stream.arm, experiment.incumbent))
    if stream.segment != ALL:
        pair &= rows.segment == stream.segment
    candidate, incumbent = rows.slots[:, stream.arm], rows.slots[:, experiment.incumbent]
    pair &= (candidate > 0) & (incumbent > 0)
    sums = []
    for bucket, ripe in zip(counts.buckets, matured, strict=True):
        here = pair & (rows.bucket == bucket)
        if not ripe or not here.any():
            sums.append(empty)
            continue
        mine = rows.arm[here] == stream.arm
        weight = rows.weight[here]
        pi = candidate[here] / (candidate[here] + incumbent[here])
        sums.append(label_sums(grid, np.where(mine, weight, 0.0), np.where(mine, 0.0, weight), pi))
    return tuple(sums)


def _levels(experiment: Experiment, status: Status, groups: Sequence[_Group]) -> list[NDArray[np.float64]]:
    """Evidence now of each group's streams: (2, N), natural logs of breach and detector."""
    if not groups[0].buckets.size:
        return [
            np.array([[log_level(g.grid, s.breach) for s in g.streams], [log_level(g.grid, s.detector) for s in g.streams]])
            for g in groups
        ]
    alpha = alpha_of(experiment, status.activation)
    rates = [group for group in groups if not group.guardrail.relative]
    found: dict[int, NDArray[np.float64]] = {}
    if rates:
        grids, exposed, events, caps = _stacked(rates, alpha)
        streams = [stream for group in rates for stream in group.streams]
        levels = look_many(grids, [s.breach for s in streams], [s.detector for s in streams], exposed, events, caps=caps)
        at = 0
        for group in rates:
            found[id(group)] = levels[:, at : at + len(group.streams)]
            at += len(group.streams)
    for group in groups:
        if group.guardrail.relative:
            folded = _fold_labels(group, alpha)
            found[id(group)] = np.array([[log_level(group.grid, state) for state in states] for states in zip(*folded, strict=True)])
    return [found[id(group)] for group in groups]


def _fold(experiment: Experiment, status: Status, groups: Sequence[_Group]) -> list[list[tuple[Restarts, Restarts]]]:
    """Breach and detector state of each group's streams after their buckets."""
    alpha = alpha_of(experiment, status.activation)
    done = []
    for group in groups:
        if not group.buckets.size:
            done.append([(stream.breach, stream.detector) for stream in group.streams])
            continue
        if group.guardrail.relative:
            done.append(_fold_labels(group, alpha))
            continue
        grids, exposed, events, caps = _stacked([group], alpha)
        breach, _ = fold_many(grids, [s.breach for s in group.streams], exposed, events, Schedule.WEIGHTED, caps=caps)
        detector, _ = fold_many(grids, [s.detector for s in group.streams], exposed, events, Schedule.SHIRYAEV_ROBERTS)
        done.append(list(zip(breach, detector, strict=True)))
    return done


def _stacked(
    groups: Sequence[_Group], alpha: float
) -> tuple[list[RateGrid], NDArray[np.float64], NDArray[np.float64], list[float | None]]:
    return (
        [group.grid for group in groups for _ in group.streams],
        np.concatenate([group.exposed for group in groups]),
        np.concatenate([group.events for group in groups]),
        [persistence_cap(alpha, group.guardrail.persistence) for group in groups for _ in group.streams],
    )


def _fold_labels(group: _Group, alpha: float) -> list[tuple[Restarts, Restarts]]:
    cap = persistence_cap(alpha, group.guardrail.persistence)
    done = []
    for stream, exposed, labels in zip(group.streams, group.exposed, group.labels, strict=True):
        if not group.buckets.size:
            done.append((stream.breach, stream.detector))
            continue
        sums = stack(labels)
        done.append(
            (
                fold_labels(group.grid, stream.breach, exposed, sums, Schedule.WEIGHTED, cap=cap)[0],
                fold_labels(group.grid, stream.detector, exposed, sums, Schedule.SHIRYAEV_ROBERTS)[0],
            )
        )
    return done


def _safe(experiment: Experiment, group: _Group, stage_bucket: int) -> Safe:
    """Matured outcomes of the present stage, of each stream: their number, the bad ones, a relative guardrail's denominators.

    Of a stream that warns, only those since the warning began.
    """
    width = experiment.bucket_width_seconds
    since = np.array([max(stage_bucket, math.ceil(stream.warning_since / width)) for stream in group.streams])
    use = group.matured & (group.buckets >= since[:, np.newaxis])
    if not group.guardrail.relative:
        count = np.array([stream.safe_count for stream in group.streams]) + (group.reported * use).sum(axis=1)
        events = np.array([stream.safe_events for stream in group.streams]) + (group.events * use).sum(axis=1)
        return [(c, e, ()) for c, e in zip(count.tolist(), np.minimum(events, count).tolist(), strict=True)]
    done = []
    size = label_grid(group.guardrail.max_ratio, above=False).log_weight.size
    for row, stream in enumerate(group.streams):
        total = LabelSums(stream.safe_events, stream.safe_count, np.array(stream.safe_denominators or (0.0,) * size))
        for sums, taken in zip(group.safe_labels[row], use[row], strict=True):
            if taken:
                total = total + sums
        done.append((float(total.events), float(total.candidate_events), tuple(total.log_denominators.tolist())))
    return done


def _log_safety(groups: Sequence[_Group], safe: Sequence[Safe]) -> list[list[float]]:
    """Evidence that each stream of each group is within its limit, natural logs; 0 without a matured outcome."""
    found = [[0.0] * len(group.streams) for group in groups]
    grids, counts, events, places = [], [], [], []
    for index, (group, rows) in enumerate(zip(groups, safe, strict=True)):
        for row, (count, bad, denominators) in enumerate(rows):
            if count == 0 and bad == 0:
                continue
            if group.guardrail.max_ratio is not None:
                grid = label_grid(group.guardrail.max_ratio, above=False)
                found[index][row] = float(log_label_evidence(grid, LabelSums(bad, count, np.array(denominators))))
                continue
            grids.append(safety_grid(group.guardrail.loss_limit(group.low, group.high)))
            counts.append(count)
            events.append(bad)
            places.append((index, row))
    if grids:
        for (index, row), log in zip(places, log_safety_many(grids, counts, events).tolist(), strict=True):
            found[index][row] = log
    return found


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over one group's buckets, lists of N: exposed includes what is settled; missing: why an arm cannot be judged, or ""."""

    exposed: list[float]
    reported: list[float]
    events: list[float]
    missing: list[str]
    log_safety: list[float]


def _totals(experiment: Experiment, status: Status, groups: Sequence[_Group]) -> list[_Totals]:
    """Of each group. The arrays of all groups are summed together: a dozen small sums cost more than a large one."""
    stage_bucket = math.ceil(status.stage_since_seconds / experiment.bucket_width_seconds)
    settled = np.array([stream.breach.outcomes for group in groups for stream in group.streams])
    exposed, reported, events = (np.concatenate([getattr(group, name) for group in groups]) for name in ("exposed", "reported", "events"))
    all_reported = reported.sum(axis=1)
    missing = [because for group in groups for because in _missing(group)]
    columns = ((settled + exposed.sum(axis=1)).tolist(), all_reported.tolist(), events.sum(axis=1).tolist(), missing)
    safety = _log_safety(groups, [_safe(experiment, group, stage_bucket) for group in groups])
    done, at = [], 0
    for group, logs in zip(groups, safety, strict=True):
        upto = at + len(group.streams)
        done.append(_Totals(*(column[at:upto] for column in columns), logs))
        at = upto
    return done


def _find(
    experiment: Experiment,
    group: _Group,
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
    share = _stream_share(experiment, g)
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


def _stream_share(experiment: Experiment, guardrail: Guardrail) -> float:
    """Weight of each of the guardrail's streams in a candidate's stopping evidence; 1 for guardrails that stop nothing.

    Half goes to the streams over all segments, half to those of single segments, equally within a half; all of it where there is one kind.
    """
    if guardrail.on_breach not in STOPPING:
        return 1.0
    whole, parts = 0, 0
    for g in experiment.guardrails:
        if g.on_breach in STOPPING:
            if g.per is Per.SEGMENT:
                parts += len(experiment.segments) + 1
            else:
                whole += 1
    if not whole or not parts:
        return 1.0 / (whole + parts)
    return 0.5 / (parts if guardrail.per is Per.SEGMENT else whole)


def _missing(group: _Group) -> list[str]:
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


# --------------------------------------------------------------------------------------------------- one candidate


def _judge(experiment: Experiment, alpha: float, arm: int, findings: Sequence[Finding]) -> Judgement:
    threshold = -math.log(alpha)
    mine = [f for f in findings if f.arm == arm]
    stops = [f for f in mine if f.action in STOPPING]
    level, action, blamed, message = 0.0, None, (), ""
    if stops:
        terms = [f.log_evidence + math.log(f.share) for f in stops]
        top = max(terms)
        level = top + math.log(math.fsum(math.exp(term - top) for term in terms))
        if level >= threshold:
            logs = np.array([f.log_evidence for f in stops])
            named = to_blame(logs, alpha)
            if not named.any():
                named = logs == logs.max()
            guilty = [f for f, is_named in zip(stops, named, strict=True) if is_named]
            blamed = _names(guilty)
            freezes = any(f.action is BreachAction.FREEZE for f in guilty)
            action = BreachAction.FREEZE if freezes else BreachAction.DRAIN
            message = _breach_message(experiment, max(guilty, key=lambda f: f.log_evidence), level, threshold)
    for kind in (BreachAction.HOLD, BreachAction.ALERT):
        guilty = [f for f in mine if f.action is kind and f.log_evidence >= threshold]
        if guilty and action is None:
            action, blamed = kind, _names(guilty)
            message = _breach_message(experiment, guilty[0], guilty[0].log_evidence, threshold)
    needed = [f for f in mine if f.action is not BreachAction.ALERT]
    return Judgement(
        arm,
        level,
        threshold,
        action,
        blamed,
        _names(f for f in mine if f.verdict is Verdict.WARN),
        _names(f for f in needed if f.held),
        _names(f for f in needed if not f.proven_safe),
        message,
    )


def _breach_message(experiment: Experiment, f: Finding, level: float, threshold: float) -> str:
    where = "" if f.segment == ALL else f" in segment {experiment.segment_names[f.segment]}"
    return (
        f"guardrail {f.guardrail} breached by {experiment.arms[f.arm].name}{where}: {f.events:g} bad of {f.exposed:g} decisions,"
        f" limit {f.limit:g}, evidence {level:.2f} >= {threshold:.2f}"
    )


def _no_guardrail(experiment: Experiment, status: Status, arm: int) -> Judgement:
    return Judgement(arm, 0.0, -math.log(alpha_of(experiment, status.activation)), None, (), (), (), ())


def _names(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f.guardrail for f in findings))
