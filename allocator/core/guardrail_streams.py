"""The streams of each guardrail (an arm, or an arm in a segment) with their buckets: what they hold, and evidence folded over them.

In: the spec, the streams as stored over settled buckets, the counts of open ones. Out: a `Group` for each guardrail, and for its streams
the evidence now, the states folded further, and the proof of safety from matured outcomes.

The idea. Settled buckets are folded once, open ones anew at each look from the settled state. The streams of all guardrails on a rate are
folded in one call. A relative guardrail folds a bucket only once its reporting window has passed: the two arms may report at different
speeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allocator.core.evidence import Restarts, Schedule, log_level, no_restarts, persistence_cap
from allocator.core.evidence_labels import LabelGrid, LabelSums, fold_labels, label_grid, label_sums, log_label_evidence, stack
from allocator.core.evidence_rates import RateGrid, fold_many, log_safety_many, look_many, rate_grid, safety_grid
from allocator.core.experiment import Experiment, Guardrail
from allocator.core.guardrail_counts import ALL, Counts, key_of, segments_of
from allocator.core.judgement import alpha_of
from allocator.core.lifecycle import Status
from allocator.core.record import Stream

Safe = Sequence[tuple[float, float, tuple[float, ...]]]  # of each stream: outcomes, bad ones, label denominators


@dataclass(frozen=True, slots=True)
class Group:
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


def candidates(experiment: Experiment) -> list[int]:
    """Indices of the arms that are not the incumbent."""
    return [index for index in range(len(experiment.arms)) if index != experiment.incumbent]


def grouped(experiment: Experiment, status: Status, held: Mapping[tuple[str, int, int], Stream], counts: Counts, now: float) -> list[Group]:
    """A group for each guardrail, in order. held: streams as stored, by key. now: seconds since the epoch, for what has matured."""
    pooled = (counts.exposed.sum(axis=2).T, counts.reported.sum(axis=3).transpose(1, 2, 0), counts.events.sum(axis=3).transpose(1, 2, 0))
    return [_group(experiment, status, held, counts, pooled, now, index) for index in range(len(experiment.guardrails))]


def levels_of(experiment: Experiment, status: Status, groups: Sequence[Group]) -> list[NDArray[np.float64]]:
    """Evidence now of each group's streams: (2, N), natural logs of breach and detector."""
    if not groups[0].buckets.size:
        return [
            np.array([[log_level(g.grid, s.breach) for s in g.streams], [log_level(g.grid, s.detector) for s in g.streams]]) for g in groups
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


def folded_states(experiment: Experiment, status: Status, groups: Sequence[Group]) -> list[list[tuple[Restarts, Restarts]]]:
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


def matured_outcomes(experiment: Experiment, group: Group, stage_bucket: int) -> Safe:
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


def safety_of(groups: Sequence[Group], safe: Sequence[Safe]) -> list[list[float]]:
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


# ---------------------------------------------------------------------------------------------------- helpers


def _group(
    experiment: Experiment,
    status: Status,
    held: Mapping[tuple[str, int, int], Stream],
    counts: Counts,
    pooled: tuple[NDArray[np.float64], ...],
    now: float,
    index: int,
) -> Group:
    """pooled: exposed (arms, B), reported and events (guardrails, arms, B), over all segments."""
    guardrail = experiment.guardrails[index]
    low, high = _range(experiment, guardrail)
    relative = guardrail.max_ratio is not None
    grid = label_grid(guardrail.max_ratio) if relative else rate_grid(guardrail.loss_limit(low, high))
    segments = segments_of(experiment, guardrail)
    arms = candidates(experiment) if relative else list(range(len(experiment.arms)))
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
        return Group(guardrail, grid, low, high, streams, counts.buckets, exposed, reported, events, exposed, matured)
    labels = tuple(_labels_of(experiment, guardrail, stream, counts, index, matured, above=True) for stream in streams)
    safe_labels = tuple(_labels_of(experiment, guardrail, stream, counts, index, matured, above=False) for stream in streams)
    both = np.where(matured, exposed + _of_incumbent(counts.exposed, experiment, segments, arms), 0.0)
    told = _of_incumbent(counts.reported[:, index], experiment, segments, arms)
    one_sided = (told.sum(axis=1) == 0) & (exposed.sum(axis=1) > 0)
    if counts.buckets.size:
        both = np.maximum(both, np.array([[float(sums.events) for sums in row] for row in labels]))
    return Group(
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


def _stacked(groups: Sequence[Group], alpha: float) -> tuple[list[RateGrid], NDArray[np.float64], NDArray[np.float64], list[float | None]]:
    return (
        [group.grid for group in groups for _ in group.streams],
        np.concatenate([group.exposed for group in groups]),
        np.concatenate([group.events for group in groups]),
        [persistence_cap(alpha, group.guardrail.persistence) for group in groups for _ in group.streams],
    )


def _fold_labels(group: Group, alpha: float) -> list[tuple[Restarts, Restarts]]:
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
