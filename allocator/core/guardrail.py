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

from allocator.core import evidence as ev
from allocator.core.experiment import BreachAction, Experiment, Guardrail, Per
from allocator.core.lifecycle import Status
from allocator.core.record import Stream

ALL = -1  # the segment of a stream over all segments together
SAFETY_ALPHA = 0.05
RUN_LENGTH_SECONDS = 30 * 86400.0  # a false warning about once in this time, on average
LEAST_RUN_LENGTH = 100_000.0  # outcomes; for experiments too young for their traffic to be known
LEAST_REPORTED = 0.5  # of decisions whose window has passed; with less, nobody knows how the arm does
STALE_BUCKETS = 3


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
    """What one guardrail says of one arm (and segment). Logs are natural. `observed` is in the metric's own units, NaN unknown."""

    guardrail: str
    arm: int
    segment: int
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
    message: str = ""
    alpha: float = 0.0


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

    streams: those folded so far, with their warnings brought up to date. environment: does the incumbent warn as well?
    """

    findings: tuple[Finding, ...]
    judgements: Mapping[int, Judgement]
    streams: Mapping[tuple[str, int, int], Stream]
    began: tuple[tuple[str, int, int], ...] = ()
    ended: tuple[tuple[str, int, int], ...] = ()
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


def review(
    experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, now: float, running_seconds: float
) -> Review:
    """Look at every guardrail now.

    streams: as stored, over settled buckets. counts: open buckets of this activation. now: seconds since the epoch.
    running_seconds: since the start, for the traffic that warnings are scaled to. Pure; call it as often as you like.
    """
    held = {(s.stream, s.arm, s.segment): s for s in streams}
    cases = _cases(experiment, status, held)
    if not cases:
        return Review((), {arm: _no_guardrail(experiment, status, arm) for arm in _candidates(experiment)}, held)
    columns = [_column(experiment, case, counts, now) for case in cases]
    folded = _fold(experiment, status, cases, columns)
    findings, after = [], dict(held)
    began, ended, environment = [], [], set()
    for case, column, (breach, detector) in zip(cases, columns, folded, strict=True):
        finding, stream = _find(experiment, status, case, column, breach, detector, now, running_seconds)
        key = (stream.stream, stream.arm, stream.segment)
        if (stream.warning_since > 0) != (case.stream.warning_since > 0):
            (began if stream.warning_since else ended).append(key)
            after[key] = stream
        if finding.verdict is Verdict.WARN and case.arm == experiment.incumbent:
            environment.add(case.guardrail.name)
        findings.append(finding)
    judgements = {arm: _judge(experiment, status, arm, findings) for arm in _candidates(experiment)}
    weighted = _with_thresholds(experiment, status, findings)
    return Review(tuple(weighted), judgements, after, tuple(began), tuple(ended), frozenset(environment))


def settle(experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, stage_bucket: int) -> tuple[Stream, ...]:
    """The streams with the buckets of `counts` folded for good; they must be older than any outcome that may still come.

    stage_bucket: first bucket that lies wholly in the present stage; only from there on do outcomes prove safety.
    """
    held = {(s.stream, s.arm, s.segment): s for s in streams}
    cases = _cases(experiment, status, held)
    if not cases or not counts.buckets.size:
        return tuple(held.values())
    columns = [_column(experiment, case, counts, math.inf) for case in cases]
    for case, column, (breach, detector) in zip(cases, columns, _fold(experiment, status, cases, columns), strict=True):
        recent = counts.buckets >= max(stage_bucket, _bucket_after(experiment, case.stream.warning_since))
        safe = _safe(case, column, recent)
        held[case.stream.stream, case.arm, case.segment] = replace(
            case.stream,
            breach=breach,
            detector=detector,
            safe_count=safe[0],
            safe_events=safe[1],
            safe_denominators=safe[2],
        )
    return tuple(held.values())


def close(experiment: Experiment, status: Status, streams: Iterable[Stream], counts: Counts, now: float) -> tuple[Stream, ...]:
    """Every stream with its evidence as of `now`, open buckets included: what is kept of an activation that ends."""
    cases = _cases(experiment, status, {(s.stream, s.arm, s.segment): s for s in streams})
    columns = [_column(experiment, case, counts, now) for case in cases]
    return tuple(
        replace(case.stream, breach=breach, detector=detector, log_evidence=_log_level(_grid(experiment, case.guardrail), breach))
        for case, (breach, detector) in zip(cases, _fold(experiment, status, cases, columns) if cases else (), strict=True)
    )


def forget_safety(streams: Iterable[Stream]) -> tuple[Stream, ...]:
    """The streams with nothing proven: a new stage asks for recent evidence."""
    return tuple(replace(s, safe_count=0.0, safe_events=0.0, safe_denominators=()) for s in streams)


# ------------------------------------------------------------------------------------------------------ one stream


@dataclass(frozen=True, slots=True)
class _Case:
    guardrail: Guardrail
    index: int
    arm: int
    segment: int
    stream: Stream


@dataclass(frozen=True, slots=True)
class _Column:
    """One stream's buckets: exposed, reported, events (B,); matured: (B,) bool, no outcome can come any more."""

    buckets: NDArray[np.int64]
    exposed: NDArray[np.float64]
    reported: NDArray[np.float64]
    events: NDArray[np.float64]
    matured: NDArray[np.bool_]
    labels: tuple[ev.LabelSums, ...] = ()
    safe_labels: tuple[ev.LabelSums, ...] = ()


def _candidates(experiment: Experiment) -> list[int]:
    return [index for index in range(len(experiment.arms)) if index != experiment.incumbent]


def _cases(experiment: Experiment, status: Status, held: Mapping[tuple[str, int, int], Stream]) -> list[_Case]:
    cases = []
    for index, guardrail in enumerate(experiment.guardrails):
        name = key_of(guardrail, status.activation)
        for arm in range(len(experiment.arms)):
            if guardrail.relative and arm == experiment.incumbent:
                continue
            for segment in segments_of(experiment, guardrail):
                stream = held.get((name, arm, segment))
                if stream is None:
                    grid = _grid(experiment, guardrail)
                    stream = Stream(name, arm, segment, ev.no_restarts(grid), ev.no_restarts(grid))
                cases.append(_Case(guardrail, index, arm, segment, stream))
    return cases


def _grid(experiment: Experiment, guardrail: Guardrail) -> ev.RateGrid | ev.LabelGrid:
    if guardrail.max_ratio is not None:
        return ev.label_grid(guardrail.max_ratio)
    return ev.rate_grid(guardrail.loss_limit(*_range(experiment, guardrail)))


def _range(experiment: Experiment, guardrail: Guardrail) -> tuple[float, float]:
    if guardrail.metric == experiment.reward.metric:
        return experiment.reward.low, experiment.reward.upper
    return experiment.metric_range(guardrail.metric)


def _column(experiment: Experiment, case: _Case, counts: Counts, now: float) -> _Column:
    chosen = slice(None) if case.segment == ALL else [case.segment]
    reported = counts.reported[:, case.index, case.arm, chosen].sum(axis=1)
    events = np.minimum(counts.events[:, case.index, case.arm, chosen].sum(axis=1), reported)
    exposed = np.maximum(counts.exposed[:, case.arm, chosen].sum(axis=1), reported)
    ends = (counts.buckets + 1) * experiment.bucket_width_seconds
    matured = ends + experiment.guardrail_window_seconds(case.guardrail) <= now
    if not case.guardrail.relative:
        return _Column(counts.buckets, exposed, reported, events, matured)
    incumbent = counts.exposed[:, experiment.incumbent, chosen].sum(axis=1)
    both = np.where(matured, exposed + np.maximum(incumbent, 0.0), 0.0)
    labels = _label_buckets(experiment, case, counts, matured, above=True)
    both = np.maximum(both, np.array([float(sums.events) for sums in labels]) if labels else 0.0)
    return _Column(
        counts.buckets, both, reported, events, matured, labels, _label_buckets(experiment, case, counts, matured, above=False)
    )


def _label_buckets(
    experiment: Experiment, case: _Case, counts: Counts, matured: NDArray[np.bool_], *, above: bool
) -> tuple[ev.LabelSums, ...]:
    """The label sums of each bucket: rows of the candidate and the incumbent, both with a chance when they were drawn."""
    grid = ev.label_grid(case.guardrail.max_ratio, above=above)
    empty = ev.LabelSums(0.0, 0.0, np.zeros(grid.log_weight.size))
    rows = counts.labels.get(case.index)
    if rows is None or not rows.bucket.size:
        return (empty,) * counts.buckets.size
    pair = np.isin(rows.arm, (case.arm, experiment.incumbent))
    if case.segment != ALL:
        pair &= rows.segment == case.segment
    candidate, incumbent = rows.slots[:, case.arm], rows.slots[:, experiment.incumbent]
    pair &= (candidate > 0) & (incumbent > 0)
    sums = []
    for bucket, ripe in zip(counts.buckets, matured, strict=True):
        here = pair & (rows.bucket == bucket)
        if not ripe or not here.any():
            sums.append(empty)
            continue
        mine = rows.arm[here] == case.arm
        weight = rows.weight[here]
        pi = candidate[here] / (candidate[here] + incumbent[here])
        sums.append(ev.label_sums(grid, np.where(mine, weight, 0.0), np.where(mine, 0.0, weight), pi))
    return tuple(sums)


def _fold(
    experiment: Experiment, status: Status, cases: Sequence[_Case], columns: Sequence[_Column]
) -> list[tuple[ev.Restarts, ev.Restarts]]:
    """Breach and detector state of each stream after its buckets."""
    alpha = alpha_of(experiment, status.activation)
    rates = [i for i, case in enumerate(cases) if not case.guardrail.relative]
    states: dict[int, tuple[ev.Restarts, ev.Restarts]] = {}
    if rates:
        grids = [_grid(experiment, cases[i].guardrail) for i in rates]
        exposed = np.stack([columns[i].exposed for i in rates])
        events = np.stack([columns[i].events for i in rates])
        caps = [ev.persistence_cap(alpha, cases[i].guardrail.persistence) for i in rates]
        breach, _ = ev.fold_many(grids, [cases[i].stream.breach for i in rates], exposed, events, ev.Schedule.WEIGHTED, caps=caps)
        warn, _ = ev.fold_many(grids, [cases[i].stream.detector for i in rates], exposed, events, ev.Schedule.SHIRYAEV_ROBERTS)
        states.update({i: (b, w) for i, b, w in zip(rates, breach, warn, strict=True)})
    for i, (case, column) in enumerate(zip(cases, columns, strict=True)):
        if not case.guardrail.relative:
            continue
        if not column.buckets.size:
            states[i] = case.stream.breach, case.stream.detector
            continue
        grid, sums = ev.label_grid(case.guardrail.max_ratio), ev.stack(column.labels)
        cap = ev.persistence_cap(alpha, case.guardrail.persistence)
        states[i] = (
            ev.fold_labels(grid, case.stream.breach, column.exposed, sums, ev.Schedule.WEIGHTED, cap=cap)[0],
            ev.fold_labels(grid, case.stream.detector, column.exposed, sums, ev.Schedule.SHIRYAEV_ROBERTS)[0],
        )
    return [states[i] for i in range(len(cases))]


def _safe(case: _Case, column: _Column, recent: NDArray[np.bool_]) -> tuple[float, float, tuple[float, ...]]:
    """Matured outcomes of the present stage: their number, the bad ones, and a relative guardrail's label denominators."""
    use = recent & column.matured
    if not case.guardrail.relative:
        return (
            case.stream.safe_count + float(column.reported[use].sum()),
            case.stream.safe_events + float(column.events[use].sum()),
            (),
        )
    size = ev.label_grid(case.guardrail.max_ratio, above=False).log_weight.size
    total = ev.LabelSums(
        case.stream.safe_events, case.stream.safe_count, np.array(case.stream.safe_denominators or (0.0,) * size)
    )
    for sums, counts_here in zip(column.safe_labels, use, strict=True):
        if counts_here:
            total = total + sums
    return float(total.events), float(total.candidate_events), tuple(total.log_denominators.tolist())


def _log_safety(experiment: Experiment, case: _Case, safe: tuple[float, float, tuple[float, ...]]) -> float:
    count, events, denominators = safe
    if count == 0 and events == 0:
        return 0.0
    if case.guardrail.max_ratio is not None:
        grid = ev.label_grid(case.guardrail.max_ratio, above=False)
        return float(ev.log_label_evidence(grid, ev.LabelSums(events, count, np.array(denominators))))
    grid = ev.safety_grid(case.guardrail.loss_limit(*_range(experiment, case.guardrail)))
    return float(ev.log_safety(grid, count, min(events, count)))


def _bucket_after(experiment: Experiment, seconds: float) -> int:
    """First bucket that begins at or after `seconds`."""
    return math.ceil(seconds / experiment.bucket_width_seconds)


def _find(
    experiment: Experiment,
    status: Status,
    case: _Case,
    column: _Column,
    breach: ev.Restarts,
    detector: ev.Restarts,
    now: float,
    running_seconds: float,
) -> tuple[Finding, Stream]:
    g, stream = case.guardrail, case.stream
    grid = _grid(experiment, g)
    log_breach = _log_level(grid, breach)
    log_detector = _log_level(grid, detector)
    traffic = breach.outcomes / max(running_seconds, 1.0) * RUN_LENGTH_SECONDS
    log_warning = ev.detector_threshold(max(LEAST_RUN_LENGTH, traffic))
    from_bucket = max(
        _bucket_after(experiment, status.stage_since_seconds), _bucket_after(experiment, stream.warning_since)
    )
    safe = _safe(case, column, column.buckets >= from_bucket)
    log_safety = _log_safety(experiment, case, safe)
    proven = log_safety >= -math.log(SAFETY_ALPHA)
    missing = _missing(experiment, case, column, now)
    warning = stream.warning_since
    if log_detector >= log_warning and warning == 0:
        warning = now
        stream = replace(stream, warning_since=now, safe_count=0.0, safe_events=0.0, safe_denominators=())
    elif warning and proven and log_detector < log_warning:
        warning = 0.0
        stream = replace(stream, warning_since=0.0)
    verdict = Verdict.CLEAR
    message = "" if proven else "not proven safe yet"
    if missing:
        verdict, message = Verdict.HOLD, missing
    elif warning:
        verdict, message = Verdict.WARN, "evidence of a change for the worse; waiting for proof of recovery"
    low, high = _range(experiment, g)
    count = stream.breach.outcomes if g.relative else breach.outcomes
    reported, events = float(column.reported.sum()), float(column.events.sum())
    exposed = float(column.exposed.sum()) + (0.0 if g.relative else stream.breach.outcomes)
    if not g.relative:
        events += stream.breach.events
    observed = math.nan
    if g.quantile is not None or g.relative:
        observed = events / reported if reported else math.nan
    elif reported:
        share = float(column.events.sum()) / reported
        observed = low + (high - low) * (1 - share if g.min is not None else share)
    limit = next(v for v in (g.max, g.min, g.max_ratio) if v is not None)
    return (
        Finding(
            g.name,
            case.arm,
            case.segment,
            verdict,
            limit,
            observed,
            max(exposed, count),
            events,
            log_breach,
            math.inf,
            log_warning,
            log_safety,
            proven and not warning,
            message,
        ),
        stream,
    )


def _log_level(grid: ev.RateGrid | ev.LabelGrid, state: ev.Restarts) -> float:
    """ln of the mixture over the alternatives; 0 before the first outcome (an e-process starts at 1)."""
    if state.started == 0:
        return 0.0
    terms = grid.log_weight + np.array(state.log_terms)
    top = float(terms.max())
    return top + math.log(float(np.exp(terms - top).sum()))


def _missing(experiment: Experiment, case: _Case, column: _Column, now: float) -> str:
    """Why nobody can say how the arm does, or "". Judged on decisions old enough to have been reported."""
    width = experiment.bucket_width_seconds
    settled = case.stream.breach.outcomes
    reported = column.reported.sum()
    if reported == 0 and settled == 0:
        return "no outcome carries this metric yet"
    old = column.matured & (column.exposed > 0)
    if old.any() and not case.guardrail.relative:
        share = float(column.reported[old].sum() / column.exposed[old].sum())
        if share < LEAST_REPORTED:
            return f"only {share:.0%} of decisions were reported within the window; at least {LEAST_REPORTED:.0%} are needed"
    asked = column.buckets[column.exposed > 0]
    heard = column.buckets[column.reported > 0]
    if asked.size:
        last_heard = int(heard[-1]) if heard.size else int(asked[0]) - 1
        patience = STALE_BUCKETS + math.ceil(experiment.guardrail_window_seconds(case.guardrail) / width)
        oldest_unheard = asked[asked > last_heard]
        if oldest_unheard.size and (now / width) - float(oldest_unheard[0]) > patience:
            return f"no outcome of a decision younger than {now - (last_heard + 1) * width:.0f} s carries this metric"
    return ""


# --------------------------------------------------------------------------------------------------- one candidate


def _stopping(finding: Finding, experiment: Experiment) -> bool:
    return _action(finding, experiment) in (BreachAction.FREEZE, BreachAction.DRAIN)


def _action(finding: Finding, experiment: Experiment) -> BreachAction:
    return next(g.on_breach for g in experiment.guardrails if g.name == finding.guardrail)


def _shares(experiment: Experiment, arm: int, findings: Sequence[Finding]) -> list[tuple[int, float]]:
    """Index and weight of each finding that takes part in the candidate's stopping evidence."""
    mine = [i for i, f in enumerate(findings) if f.arm == arm and _stopping(f, experiment)]
    weights = ev.stream_weights([findings[i].segment != ALL for i in mine])
    return list(zip(mine, weights.tolist(), strict=True))


def _judge(experiment: Experiment, status: Status, arm: int, findings: Sequence[Finding]) -> Judgement:
    alpha = alpha_of(experiment, status.activation)
    threshold = -math.log(alpha)
    shares = _shares(experiment, arm, findings)
    level, action, blamed, message = 0.0, None, (), ""
    if shares:
        logs = np.array([findings[i].log_evidence for i, _ in shares])
        level = float(ev.log_average(logs, [share for _, share in shares]))
        if level >= threshold:
            named = ev.to_blame(logs, alpha)
            if not named.any():
                named = logs == logs.max()
            guilty = [findings[i] for (i, _), guilty in zip(shares, named, strict=True) if guilty]
            blamed = tuple(dict.fromkeys(f.guardrail for f in guilty))
            stops = {_action(f, experiment) for f in guilty}
            action = BreachAction.FREEZE if BreachAction.FREEZE in stops else BreachAction.DRAIN
            worst = max(guilty, key=lambda f: f.log_evidence)
            message = _breach_message(experiment, worst, level, threshold)
    mine = [f for f in findings if f.arm == arm]
    lone = [f for f in mine if not _stopping(f, experiment) and f.log_evidence >= threshold]
    for kind in (BreachAction.HOLD, BreachAction.ALERT):
        guilty = [f for f in lone if _action(f, experiment) is kind]
        if guilty and action is None:
            action, blamed = kind, tuple(dict.fromkeys(f.guardrail for f in guilty))
            message = _breach_message(experiment, guilty[0], guilty[0].log_evidence, threshold)
    needed = [f for f in mine if _action(f, experiment) is not BreachAction.ALERT]
    return Judgement(
        arm,
        level,
        threshold,
        action,
        blamed,
        _names(f for f in mine if f.verdict is Verdict.WARN),
        _names(f for f in needed if f.verdict is Verdict.HOLD),
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


def _with_thresholds(experiment: Experiment, status: Status, findings: Sequence[Finding]) -> list[Finding]:
    """Each finding with the evidence at which it alone would be a breach, and the share of the budget that this is."""
    alpha = alpha_of(experiment, status.activation)
    share_of = {i: share for arm in _candidates(experiment) for i, share in _shares(experiment, arm, findings)}
    done = []
    for index, f in enumerate(findings):
        mine = alpha * share_of.get(index, 1.0)
        verdict = Verdict.BREACH if f.arm != experiment.incumbent and f.log_evidence >= -math.log(mine) else f.verdict
        done.append(replace(f, verdict=verdict, log_threshold=-math.log(mine), alpha=mine))
    return done
