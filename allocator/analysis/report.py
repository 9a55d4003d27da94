"""The report of one experiment: what was decided and learned, how far to trust it, and what happened when.

In: a `Source` (what a server says: sums, guardrails, audit), and if there is one the decision log. Out: a `Report`: a document of plain
JSON values and the same as sections of a page, with figures. Estimates from sums need the server alone; those that hold under drift, off-
policy values and calibration need the log. What brands every number (a sample ratio alarm, lost log rows, a frozen experiment) comes
first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from allocator.analysis import decision_log, inference, off_policy
from allocator.analysis.inference import Interval, Scale, Sums
from allocator.analysis.page import Grid, Section, plain
from allocator.core.sample_ratio import ALPHA as SAMPLE_RATIO_ALPHA
from allocator.errors import AllocatorError


@dataclass(frozen=True, slots=True)
class Row:
    """Sums of one arm and segment. statistic: DECISIONS, REWARD or LOSS (of `guardrail`). bucket: begin, seconds, of rows by bucket."""

    arm: str
    segment: str
    statistic: str
    guardrail: str
    count: float
    total: float
    squares: float
    bucket: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """A record of the audit."""

    seconds: float
    actor: str
    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class Guardrail:
    """How one guardrail of one arm stands, as `describe` says it."""

    guardrail: str
    arm: str
    segment: str
    verdict: str
    limit: float
    observed: float | None
    exposed: int
    events: float
    log_evidence: float
    log_threshold: float
    proven_safe: bool
    message: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a server says of an experiment. seconds: when. counts: are rewards counts without squares? facts: state, owner, ..., as text."""

    experiment: str
    arms: tuple[str, ...]
    incumbent: str
    segments: tuple[str, ...]
    metric: str
    scale: Scale
    counts: bool
    maximise: bool
    missing: float | None
    window_seconds: float
    seconds: float
    sample_ratio_p_value: float
    rows: Sequence[Row]
    buckets: Sequence[Row] = ()
    guardrails: Sequence[Guardrail] = ()
    events: Sequence[Event] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """document: JSON values. sections: the same for people."""

    title: str
    lead: str
    document: Mapping[str, Any]
    sections: tuple[Section, ...]


def report(source: Source, logged: decision_log.Logged | None = None, alpha: float = 0.05, prediction: str = "prediction") -> Report:
    """Everything there is to say. prediction: the metric, or the logged attribute, that holds a model's predicted probability.

    Raises InvalidArgument for an alpha outside (0, 1), or a log of another experiment.
    """
    from allocator.analysis import figures

    candidates = [arm for arm in source.arms if arm != source.incumbent]
    sums = {arm: _sums(source, arm) for arm in source.arms}
    means = {arm: inference.mean_interval(sums[arm], source.scale, alpha) for arm in source.arms}
    lifts = {arm: inference.lift(sums[arm], sums[source.incumbent], source.scale, alpha) for arm in candidates}
    decisions = {arm: _decisions(source.rows, arm) for arm in source.arms}
    segments = _segments(source, alpha)
    log = _from_log(source, logged, alpha, prediction) if logged is not None else None
    warnings = _warnings(source, log)
    percent = f"{100 * (1 - alpha):g} %"
    total = max(sum(decisions.values()), 1)
    document = {
        "experiment": source.experiment,
        "seconds": source.seconds,
        "alpha": alpha,
        "metric": source.metric,
        "facts": dict(source.facts),
        "warnings": warnings,
        "arms": [
            {"arm": arm, "incumbent": arm == source.incumbent, "decisions": decisions[arm], "share": decisions[arm] / total,
             "outcomes": sums[arm].count, "mean": asdict(means[arm])}
            for arm in source.arms
        ],
        "lifts": [
            {"arm": arm, "ratio": asdict(lifts[arm].ratio) if lifts[arm].ratio else None, "difference": asdict(lifts[arm].difference)}
            for arm in candidates
        ],
        "sampleRatio": {"pValue": source.sample_ratio_p_value, "alarm": source.sample_ratio_p_value <= SAMPLE_RATIO_ALPHA},
        "segments": segments,
        "guardrails": [asdict(guardrail) for guardrail in source.guardrails],
        "timeline": [asdict(event) for event in source.events],
        "notes": list(source.notes),
        "log": log,
    }  # fmt: skip
    sections = [
        Section(
            "In short",
            [f"{name}: {text}" for name, text in source.facts.items() if text] + list(source.notes),
            warnings,
            [figures.means(means, source.incumbent, source.metric, percent)],
        ),
        _arms_section(source, decisions, sums, means, lifts, percent),
        _guardrails_section(source),
        _segments_section(segments, percent),
    ]
    if log is not None:
        sections += _log_sections(source, log, percent, figures)
    sections.append(_timeline_section(source, logged, figures))
    lead = f"As of {_time(source.seconds)}. Intervals hold at every look ({percent} each); naive ones stand beside them."
    return Report(f"Report of {source.experiment}", lead, plain(document), tuple(sections))


# ------------------------------------------------------------------------------------------------------- the numbers


def _sums(source: Source, arm: str, segment: str | None = None) -> Sums:
    rows = [r for r in source.rows if r.arm == arm and r.statistic == "REWARD" and segment in (None, r.segment)]
    squares = math.nan if source.counts else math.fsum(r.squares for r in rows)
    return Sums(sum(r.count for r in rows), math.fsum(r.total for r in rows), squares)


def _decisions(rows: Sequence[Row], arm: str) -> int:
    return int(sum(row.count for row in rows if row.arm == arm and row.statistic == "DECISIONS"))


def _segments(source: Source, alpha: float) -> list[dict[str, Any]]:
    """Means by arm and segment, and whether segments fare alike within each arm."""
    found = []
    for arm in source.arms if len(source.segments) > 1 else ():
        sums = {segment: _sums(source, arm, segment) for segment in source.segments}
        served = {segment: one for segment, one in sums.items() if one.count}
        impact = None
        if len(served) > 1:
            impact = inference.disparity(list(served.values()), source.scale, alpha, maximise=source.maximise)
        found.append(
            {
                "arm": arm,
                "segments": [
                    {"segment": segment, "outcomes": one.count, "mean": asdict(inference.mean_interval(one, source.scale, alpha))}
                    for segment, one in sums.items()
                ],
                "disparity": None if impact is None else {
                    "ratio": impact.ratio,
                    "overall": impact.overall.value,
                    "segments": [
                        {"segment": segment, "low": float(low), "high": float(high), "parity": parity.value}
                        for segment, low, high, parity in zip(served, impact.low, impact.high, impact.parity, strict=True)
                    ],
                },
            }
        )  # fmt: skip
    return found


def _from_log(source: Source, logged: decision_log.Logged, alpha: float, prediction: str) -> dict[str, Any]:
    """What only logged propensities can tell. Order of arms: the log's, where a name stands for the same index."""
    matured = logged.matured(source.missing, source.window_seconds, source.seconds)
    names = [arm for arm in logged.arms if arm in source.arms]
    incumbent = logged.arms.index(source.incumbent) if source.incumbent in logged.arms else None
    lifts = []
    for arm in names:
        if incumbent is None or arm == source.incumbent:
            continue
        found = inference.drift_proof_lift(matured, logged.arms.index(arm), incumbent, source.scale, alpha)
        lifts.append({"arm": arm, "ratio": asdict(found.ratio) if found.ratio else None, "difference": asdict(found.difference)})
    return {
        "decisions": int(logged.action.size),
        "outcomes": int((~np.isnan(logged.reward)).sum()),
        "draws": int(decision_log.draws(logged, np.ones(logged.action.size, np.bool_)).sum()),
        "strangers": logged.strangers,
        "lifts": lifts,
        "sampleRatio": dict(zip(logged.arms, inference.sample_ratio_p_values(logged), strict=True)),
        "joinedSampleRatio": dict(zip(logged.arms, inference.sample_ratio_p_values(matured, joined=True), strict=True)),
        "offPolicy": _off_policy(matured, source.scale, alpha),
        "calibration": _calibration(logged, prediction, alpha),
    }


def _off_policy(matured: decision_log.Logged, scale: Scale, alpha: float) -> list[dict[str, Any]]:
    """What every arm alone would have earned, and an even split."""
    number, found = len(matured.arms), []
    policies = [(f"{arm} alone", np.eye(number)[index]) for index, arm in enumerate(matured.arms)]
    for name, target in [*policies, ("an even split", np.full(number, 1.0 / number))]:
        one: dict[str, Any] = {"policy": name}
        try:
            made = off_policy.evaluate(decision_log.off_policy_rows(matured, target), alpha, low=scale.low, high=scale.high)
        except AllocatorError as error:
            one["refused"] = error.message
        else:
            one |= {"estimates": {name: asdict(each) for name, each in made.estimates.items()}, "rows": made.rows,
                    "effectiveRows": made.effective, "meanWeight": made.mean_weight, "maxWeight": made.max_weight,
                    "clipped": made.clipped, "unsupported": made.unsupported, "warnings": list(made.warnings)}  # fmt: skip
        found.append(one)
    return found


def _calibration(logged: decision_log.Logged, prediction: str, alpha: float) -> list[dict[str, Any]]:
    """Of each arm whose decisions carry a predicted probability of the reward, in a metric or in a logged attribute."""
    values = logged.metrics.get(prediction)
    if values is None:
        values = np.array([_number(row.get(prediction)) for row in logged.context])
    found = []
    with np.errstate(invalid="ignore"):
        use = (values >= 0.0) & (values <= 1.0) & (logged.reward >= 0.0) & (logged.reward <= 1.0)
    for index, arm in enumerate(logged.arms):
        mine = use & (logged.action == index)
        if mine.sum() < 20:
            continue
        evidence, diagram = inference.calibration(values[mine], logged.reward[mine], alpha)
        columns = ("total", "predicted", "observed", "low", "high")
        found.append(
            {
                "arm": arm,
                "outcomes": int(mine.sum()),
                "pValue": min(1.0, math.exp(-max(evidence.either, 0.0))),
                "levelLogEvidence": evidence.level,
                "slopeLogEvidence": evidence.slope,
                "error": diagram.error,
                "errorIfCalibrated": diagram.error_if_calibrated,
                "bins": [dict(zip(columns, row, strict=True)) for row in zip(*(getattr(diagram, name) for name in columns), strict=True)],
            }
        )
    return found


def _warnings(source: Source, log: Mapping[str, Any] | None) -> list[str]:
    found = []
    if source.sample_ratio_p_value <= SAMPLE_RATIO_ALPHA:
        found.append(
            f"Sample ratio: arms were not drawn as often as their weights say (p = {source.sample_ratio_p_value:.2g}). Whatever loses or"
            " adds decisions may bias every number below: find the cause first."
        )
    if log is not None:
        for what, name in (("sampleRatio", "decisions"), ("joinedSampleRatio", "decisions with an outcome")):
            astray = [arm for arm, p in log[what].items() if p <= SAMPLE_RATIO_ALPHA]
            if astray:
                found.append(f"Decision log: {name} of {', '.join(astray)} are not as many as the logged propensities say.")
        if log["strangers"]:
            found.append(
                f"{log['strangers']} decisions with outcomes are not in the log (in-process clients, or lost rows): what follows from the"
                " log leaves them out."
            )
    return found


# ------------------------------------------------------------------------------------------------------- for people


def _arms_section(
    source: Source,
    decisions: Mapping[str, int],
    sums: Mapping[str, Sums],
    means: Mapping[str, Interval],
    lifts: Mapping[str, inference.Lift],
    percent: str,
) -> Section:
    total = max(sum(decisions.values()), 1)
    arms = [
        (arm + (" (incumbent)" if arm == source.incumbent else ""), f"{decisions[arm]:,}", f"{decisions[arm] / total:.1%}",
         f"{sums[arm].count:,.0f}", *_shown(means[arm]))
        for arm in source.arms
    ]  # fmt: skip
    grids = [Grid(("arm", "decisions", "share", "outcomes", "mean", f"valid {percent}", f"naive {percent}"), arms, f"Mean {source.metric}")]
    for name, pick in (("Ratio to", lambda lift: lift.ratio), ("Difference from", lambda lift: lift.difference)):
        rows = [(arm, *_shown(pick(lift))) for arm, lift in lifts.items() if pick(lift) is not None]
        if rows:
            grids.append(Grid(("arm", "estimate", f"valid {percent}", f"naive {percent}"), rows, f"{name} {source.incumbent}"))
    text = [
        "The valid intervals hold at every look and under any allocation, while rates stay what they are. The naive ones are what a fixed"
        " test would print: they are wrong more often than they say as soon as weights follow results or anyone looks twice."
    ]
    return Section("Arms and lift", text, grids=grids)


def _guardrails_section(source: Source) -> Section:
    rows = [
        (g.guardrail, g.arm, g.segment or "all", g.verdict, f"{g.limit:g}", "" if g.observed is None else f"{g.observed:.4g}",
         f"{g.exposed:,}", f"{g.events:.6g}", f"{g.log_evidence:.2f} of {g.log_threshold:.2f}", "yes" if g.proven_safe else "no")
        for g in source.guardrails
    ]  # fmt: skip
    columns = ("guardrail", "arm", "segment", "verdict", "limit", "observed", "decisions", "events", "evidence", "proven safe")
    return Section("Guardrails", ["none"] if not rows else [], grids=[Grid(columns, rows)] if rows else [])


def _segments_section(segments: Sequence[Mapping[str, Any]], percent: str) -> Section:
    if not segments:
        return Section("Segments", ["The experiment has no segments."])
    rows, parity = [], []
    for one in segments:
        rows += [(one["arm"], s["segment"], f"{s['outcomes']:,.0f}", *_shown(Interval(**s["mean"]))) for s in one["segments"]]
        if one["disparity"]:
            parity += [
                (one["arm"], s["segment"], f"{_n(s['low'])} to {_n(s['high'])}", s["parity"]) for s in one["disparity"]["segments"]
            ]
    text = ["Compare segments within an arm: weights that differ by segment or over time make pooled means incomparable."]
    grids = [Grid(("arm", "segment", "outcomes", "mean", f"valid {percent}", f"naive {percent}"), rows)]
    if parity:
        caption = "Rate of each segment over the best other's; below 0.8 is flagged (four-fifths rule), at or above passes, else undecided"
        grids.append(Grid(("arm", "segment", "ratio", "parity"), parity, caption))
    return Section("Segments", text, grids=grids)


def _log_sections(source: Source, log: Mapping[str, Any], percent: str, figures: Any) -> list[Section]:
    lifts = []
    for one in log["lifts"]:
        for kind in ("ratio", "difference"):
            if one[kind] is not None:
                found = Interval(**one[kind])
                lifts.append((one["arm"], kind, _n(found.value), f"{_n(found.low)} to {_n(found.high)}"))
    ratio = [(arm, f"{p:.3g}", f"{log['joinedSampleRatio'][arm]:.3g}") for arm, p in log["sampleRatio"].items()]
    text = [
        f"The decision log has {log['decisions']:,} decisions, {log['outcomes']:,} with a reward, {log['draws']:,} of them draws: first"
        " decisions of a unit that the weights made."
    ]
    grids = [
        Grid(("arm", "lift", "estimate", f"valid {percent}"), lifts,
             f"Lift over {source.incumbent} from propensities; holds when rates drift together. The difference is asymptotic."),
        Grid(("arm", "decisions, p", "with outcome, p"), ratio, f"Sample ratio; an alarm is {SAMPLE_RATIO_ALPHA:g} or below"),
    ]  # fmt: skip
    sections = [Section("From the decision log", text, grids=grids)]
    rows, refusals = [], []
    for one in log["offPolicy"]:
        if "refused" in one:
            refusals.append(f"{one['policy']}: {one['refused']}.")
            continue
        for name, each in one["estimates"].items():
            shown = "" if each["low"] is None else f"{_n(each['low'])} to {_n(each['high'])}"
            rows.append((one["policy"], name, _n(each["value"]), shown, f"{one['effectiveRows']:,.0f}", f"{one['meanWeight']:.3g}"))
    columns = ("policy", "estimator", f"mean {source.metric}", f"valid {percent}", "effective rows", "mean weight")
    sections.append(Section("What other policies would have earned", refusals, grids=[Grid(columns, rows)] if rows else []))
    if log["calibration"]:
        rows = [
            (one["arm"], f"{one['outcomes']:,}", f"{one['pValue']:.3g}", f"{one['error']:.4f}", f"{one['errorIfCalibrated']:.4f}")
            for one in log["calibration"]
        ]
        grid = Grid(("arm", "outcomes", "p that it is calibrated", "calibration error", "of which noise makes"), rows)
        sections.append(Section("Calibration of predictions", pictures=[figures.reliability(log["calibration"])], grids=[grid]))
    return sections


def _timeline_section(source: Source, logged: decision_log.Logged | None, figures: Any) -> Section:
    rows = [(_time(event.seconds), event.actor, event.action, event.reason) for event in source.events]
    drawn = figures.timeline(source, logged)
    return Section("Timeline", pictures=[drawn] if drawn else [], grids=[Grid(("time", "who", "what", "why"), rows)])


def _shown(found: Interval) -> tuple[str, str, str]:
    return _n(found.value), f"{_n(found.low)} to {_n(found.high)}", f"{_n(found.naive_low)} to {_n(found.naive_high)}"


def _n(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.4g}"


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _time(seconds: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
