"""The report of one experiment: what was decided and learned, how far to trust it, and what happened when.

In: a `Source` (what a server says: sums, guardrails, audit), and if there is one the decision log. Out: a `Report`: a document of plain
JSON values and the same as sections of a page, with figures. What brands every number (a sample ratio alarm, units that come back, lost log
rows, a frozen experiment) comes first.

What intervals are made of. With the log, of each unit's first decision: they hold however often units come back. Without, of the server's
sums, in which every request counts: they hold if the requests of a unit are independent of each other, which is then written over every one
of them. The server knows how many decisions were the first of their unit within a window; where there were more decisions, units came back,
and that is a warning. Lifts that hold under drift, off-policy values and calibration need the log.
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

STALE_SECONDS = 120.0  # by which a log may be behind its server: it is written every second, buckets of decisions are told by their begin


@dataclass(frozen=True, slots=True)
class Row:
    """Sums of one arm and segment. statistic: DECISIONS, UNITS (first decisions), REWARD or LOSS (of `guardrail`). bucket: of rows by
    bucket its begin, seconds.
    """

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
    """What a server says of an experiment. seconds: when. counts: are rewards counts without squares? units_told: are first decisions of a
    unit told from others (unitContribution: FIRST)? facts: state, owner, ..., as text.
    """

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
    units_told: bool = True


@dataclass(frozen=True, slots=True)
class Basis:
    """What the intervals of a report are made of.

    once: rows of the log, the first decision of each unit; None: the server's sums, in which each request counts. decisions, first: of the
    server; first: None when nobody told units apart.
    """

    once: decision_log.Logged | None
    decisions: int
    first: int | None

    @property
    def returning(self) -> float | None:
        """Decisions of a unit, at least: its first ones count again for each arm, window and activation. None when nobody knows."""
        return self.decisions / self.first if self.first else None

    @property
    def words(self) -> str:
        """When the intervals hold."""
        if self.once is not None:
            return (
                "Each unit counts once, with its first decision in the log, so units that come back make no interval too short. The means"
                " are those of first decisions; where later ones fare otherwise, the mean outcome, which stands beside them, is another."
            )
        known = (
            "it tells units apart within a window only" if self.first is not None else "nobody told units apart (unitContribution: ALL)"
        )
        return (
            f"Every request counts: the server's sums know no units, and {known}. So the intervals hold if requests of one unit are as"
            " independent of each other as those of different units. With --log each unit counts once, and they hold without that."
        )

    def heading(self, percent: str) -> str:
        """Over every interval."""
        return f"valid {percent}" if self.once is not None else f"{percent} if requests are independent"

    def warnings(self, alpha: float) -> list[str]:
        """That units came back, where each of their requests counts."""
        if self.once is not None or self.first is None or self.decisions <= self.first:
            return []
        return [
            f"Units come back: of {self.decisions:,} decisions {self.first:,} were the first of their unit within its window,"
            f" {self.returning:.3g} decisions to each. Intervals from the server's sums take all of them for independent ones. Where units"
            f" have luck of their own they are too short, and miss far more often than {100 * alpha:g} % of the time. With --log each unit"
            " counts once."
        ]


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
    matured = _matured(source, logged) if logged is not None else None
    basis = _basis(source, matured)
    sums = {arm: _sums(source, basis, arm) for arm in source.arms}
    means = {arm: inference.mean_interval(sums[arm], source.scale, alpha) for arm in source.arms}
    lifts = {arm: inference.lift(sums[arm], sums[source.incumbent], source.scale, alpha) for arm in candidates}
    decisions = {arm: _count(source.rows, "DECISIONS", arm) for arm in source.arms}
    outcomes = {arm: _server_sums(source, arm) for arm in source.arms}
    segments = _segments(source, basis, alpha)
    log = _from_log(source, logged, matured, basis, alpha, prediction) if matured is not None else None
    warnings = _warnings(source, basis, log, alpha)
    percent = f"{100 * (1 - alpha):g} %"
    total = max(sum(decisions.values()), 1)
    document = {
        "experiment": source.experiment,
        "seconds": source.seconds,
        "alpha": alpha,
        "metric": source.metric,
        "facts": dict(source.facts),
        "warnings": warnings,
        "intervals": {
            "contribution": "REQUEST" if basis.once is None else "UNIT", "hold": basis.words, "decisions": basis.decisions,
            "firstDecisions": basis.first, "decisionsPerUnit": basis.returning,
        },
        "arms": [
            {"arm": arm, "incumbent": arm == source.incumbent, "decisions": decisions[arm], "share": decisions[arm] / total,
             "outcomes": outcomes[arm].count, "meanOutcome": outcomes[arm].mean, "contributions": sums[arm].count,
             "mean": asdict(means[arm])}
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
            [figures.means(means, source.incumbent, source.metric, basis.heading(percent))],
        ),
        _arms_section(source, basis, document["arms"], lifts, alpha),
        _guardrails_section(source),
        _segments_section(segments, basis.heading(percent), percent),
    ]
    if log is not None:
        sections += _log_sections(source, log, percent, figures)
    sections.append(_timeline_section(source, logged, figures))
    sure = "each unit counted once" if basis.once is not None else "if requests are independent of each other, those of one unit too"
    lead = f"As of {_time(source.seconds)}. Intervals hold at every look ({percent} each), {sure}; naive ones stand beside them."
    return Report(f"Report of {source.experiment}", lead, plain(document), tuple(sections))


# ------------------------------------------------------------------------------------------------------- the numbers


def _matured(source: Source, logged: decision_log.Logged) -> decision_log.Logged:
    """The log with the rewards that count now; or as of its last row if the server has decided since: a copy knows of no later outcome."""
    newest = max((row.bucket for row in source.buckets if row.statistic == "DECISIONS"), default=0.0)
    now = source.seconds if newest <= logged.until + STALE_SECONDS else logged.until
    return logged.matured(source.missing, source.window_seconds, now)


def _basis(source: Source, matured: decision_log.Logged | None) -> Basis:
    first = sum(row.count for row in source.rows if row.statistic == "UNITS") if source.units_told else 0
    once = matured.keep(decision_log.firsts(matured)) if matured is not None else None
    return Basis(once, sum(_count(source.rows, "DECISIONS", arm) for arm in source.arms), int(first) or None)


def _sums(source: Source, basis: Basis, arm: str, segment: str | None = None) -> Sums:
    """What the intervals of an arm, and segment, are made of. The log's order of arms is its own."""
    if basis.once is None:
        return _server_sums(source, arm, segment)
    return inference.unit_sums(basis.once, basis.once.arms.index(arm) if arm in basis.once.arms else -1, segment)


def _server_sums(source: Source, arm: str, segment: str | None = None) -> Sums:
    rows = [r for r in source.rows if r.arm == arm and r.statistic == "REWARD" and segment in (None, r.segment)]
    squares = math.nan if source.counts else math.fsum(r.squares for r in rows)
    return Sums(sum(r.count for r in rows), math.fsum(r.total for r in rows), squares)


def _count(rows: Sequence[Row], statistic: str, arm: str) -> int:
    return int(sum(row.count for row in rows if row.arm == arm and row.statistic == statistic))


def _segments(source: Source, basis: Basis, alpha: float) -> list[dict[str, Any]]:
    """Means by arm and segment, and whether segments fare alike within each arm."""
    found = []
    for arm in source.arms if len(source.segments) > 1 else ():
        sums = {segment: _sums(source, basis, arm, segment) for segment in source.segments}
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


def _from_log(
    source: Source, logged: decision_log.Logged, matured: decision_log.Logged, basis: Basis, alpha: float, prediction: str
) -> dict[str, Any]:
    """What only logged propensities can tell. Order of arms: the log's, where a name stands for the same index."""
    assert basis.once is not None
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
        "units": int(basis.once.action.size),
        "everyRequestDraws": not bool(logged.sticky.all()),
        "strangers": logged.strangers,
        "lifts": lifts,
        "sampleRatio": dict(zip(logged.arms, inference.sample_ratio_p_values(logged), strict=True)),
        "joinedSampleRatio": dict(zip(logged.arms, inference.sample_ratio_p_values(matured, joined=True), strict=True)),
        "offPolicy": _off_policy(matured, source.scale, alpha),
        "calibration": _calibration(basis.once, prediction, alpha),
    }


def _off_policy(matured: decision_log.Logged, scale: Scale, alpha: float) -> list[dict[str, Any]]:
    """What every arm alone would have earned, and an even split."""
    number, found = len(matured.arms), []
    policies = [(f"{arm} alone", np.eye(number)[index]) for index, arm in enumerate(matured.arms)]
    for name, target in [*policies, ("an even split", np.full(number, 1.0 / number))]:
        one: dict[str, Any] = {"policy": name}
        try:
            one["leftOut"] = dict(decision_log.select(matured, target).left_out)
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
    """Of each arm whose decisions carry a predicted probability of the reward, in a metric or in a logged attribute.

    logged: each unit once, for the evidence and its bins take rewards for news.
    """
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


def _warnings(source: Source, basis: Basis, log: Mapping[str, Any] | None, alpha: float) -> list[str]:
    found = basis.warnings(alpha)
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
    source: Source, basis: Basis, arms: Sequence[Mapping[str, Any]], lifts: Mapping[str, inference.Lift], alpha: float
) -> Section:
    percent = f"{100 * (1 - alpha):g} %"
    heading, naive, by_unit = basis.heading(percent), f"naive {percent}", basis.once is not None
    rows = [
        (one["arm"] + (" (incumbent)" if one["incumbent"] else ""), f"{one['decisions']:,}", f"{one['share']:.1%}",
         f"{one['outcomes']:,.0f}", *((_n(one["meanOutcome"]), f"{one['contributions']:,.0f}") if by_unit else ()),
         *_shown(Interval(**one["mean"])))
        for one in arms
    ]  # fmt: skip
    columns = ("arm", "decisions", "share", "outcomes", *(("mean outcome", "units", "mean of units") if by_unit else ("mean",)))
    grids = [Grid((*columns, heading, naive), rows, f"Mean {source.metric}")]
    for name, pick in (("Ratio to", lambda lift: lift.ratio), ("Difference from", lambda lift: lift.difference)):
        rows = [(arm, *_shown(pick(lift))) for arm, lift in lifts.items() if pick(lift) is not None]
        if rows:
            grids.append(Grid(("arm", "estimate", heading, naive), rows, f"{name} {source.incumbent}"))
    text = [
        basis.words,
        "The intervals hold at every look and under any allocation, while rates stay what they are. The naive ones are what a fixed"
        " test would print: they are wrong more often than they say as soon as weights follow results or anyone looks twice.",
    ]
    return Section("Arms and lift", text, basis.warnings(alpha), grids=grids)


def _guardrails_section(source: Source) -> Section:
    rows = [
        (g.guardrail, g.arm, g.segment or "all", g.verdict, f"{g.limit:g}", "" if g.observed is None else f"{g.observed:.4g}",
         f"{g.exposed:,}", f"{g.events:.6g}", f"{g.log_evidence:.2f} of {g.log_threshold:.2f}", "yes" if g.proven_safe else "no")
        for g in source.guardrails
    ]  # fmt: skip
    columns = ("guardrail", "arm", "segment", "verdict", "limit", "observed", "decisions", "events", "evidence", "proven safe")
    return Section("Guardrails", ["none"] if not rows else [], grids=[Grid(columns, rows)] if rows else [])


def _segments_section(segments: Sequence[Mapping[str, Any]], heading: str, percent: str) -> Section:
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
    grids = [Grid(("arm", "segment", "outcomes", "mean", heading, f"naive {percent}"), rows)]
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
        f"The decision log has {log['decisions']:,} decisions of {log['units']:,} units, {log['outcomes']:,} with a reward."
        f" {log['draws']:,} of them are draws: decisions that the weights made, of a unit that keeps its arm the first."
    ]
    if log["everyRequestDraws"] and log["units"] < log["draws"]:
        text.append(
            "Each request is a draw here, also one of a unit that came before. So what follows speaks of these requests and the units that"
            " made them, not of units that might have come."
        )
    grids = [
        Grid(("arm", "lift", "estimate", f"valid {percent}"), lifts,
             f"Lift over {source.incumbent} from propensities; holds when rates drift together. The difference is asymptotic."),
        Grid(("arm", "decisions, p", "with outcome, p"), ratio, f"Sample ratio; an alarm is {SAMPLE_RATIO_ALPHA:g} or below"),
    ]  # fmt: skip
    sections = [Section("From the decision log", text, grids=grids)]
    rows, text, warnings, left_out = [], [], [], dict[str, list[str]]()
    for one in log["offPolicy"]:
        left_out.setdefault(decision_log.left_out_words(one["leftOut"]), []).append(one["policy"])
        if "refused" in one:
            text.append(f"{one['policy']}: {one['refused']}.")
            continue
        warnings += [f"{one['policy']}: {warning}." for warning in one["warnings"]]
        for name, each in one["estimates"].items():
            shown = "" if each["low"] is None else f"{_n(each['low'])} to {_n(each['high'])}"
            sizes = f"{one['rows']:,}", f"{one['effectiveRows']:,.0f}", f"{one['meanWeight']:.3g}"
            rows.append((one["policy"], name, _n(each["value"]), shown, *sizes))
    text += [f"Decisions left out of {', '.join(policies)}: {words}." for words, policies in left_out.items() if words]
    if len(left_out) > 1:
        text.append("Policies are valued on the decisions in which their arms had a chance: values from different ones do not compare.")
    columns = ("policy", "estimator", f"mean {source.metric}", f"valid {percent}", "decisions", "effective rows", "mean weight")
    sections.append(Section("What other policies would have earned", text, warnings, grids=[Grid(columns, rows)] if rows else []))
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
