"""What people see: experiments as a list, one in full, the audit log.

In: messages. Out: what `output.draw` prints. Pictures (bars of weights, intervals and evidence) stand beside the
numbers, never instead of them. Stages count from 0, as in `advance --stage` and in what the server says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allocator.cli.failures import clean
from allocator.cli.output import Column, Grid
from allocator.cli.records import annotation_lines, proposal_lines

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import RenderableType

    from allocator.v1 import allocator_pb2 as pb
    from allocator.v1 import operator_service_pb2 as service_pb

SLOTS = 65_536
BAR = 16  # characters
STREAMS = 12  # guardrails shown in a status
MORE = ("arms", "model", "policy", "labels", "uid", "created")  # what `_more` says, where one asks for it
STYLES = {
    "RUNNING": "green",
    "FROZEN": "red",
    "ROLLED_BACK": "yellow",
    "CONCLUDED": "cyan",
    "SHADOW": "yellow",
    "DRAINED": "red",
    "CLEAR": "green",
    "WARN": "yellow",
    "HOLD": "yellow",
    "BREACH": "red",
}


def experiments(found: Sequence[pb.Experiment], *, wide: bool = False) -> Grid:
    """A row for each experiment. wide: what tells it apart from others, too."""
    columns = (
        Column("name"),
        Column("state"),
        Column("stage"),
        Column("cap", right=True),
        Column("candidates", right=True),
        Column("", picture=True),
        Column("revision", right=True),
        Column("updated"),
        Column("owner"),
        Column("reason", text=True),
        *(Column(name) for name in MORE if wide),
    )
    rows = [
        (
            full_name(e),
            _styled(state(e)),
            f"{e.status.stage}/{len(e.spec.ramp) - 1}" if len(e.spec.ramp) > 1 else "-",
            percent(cap(e)),
            percent(served_share(e)),
            _bar(0, served_share(e), 1),
            str(e.metadata.revision),
            _age(e.metadata.update_time),
            e.spec.owner or "-",
            e.status.reason or "-",
            *(_more(e) if wide else ()),
        )
        for e in found
    ]
    return Grid(columns, rows)


def _more(e: pb.Experiment) -> Iterator[str]:
    yield ", ".join(f"{arm.name}*" if arm.incumbent else arm.name for arm in e.spec.arms)
    yield _name(e.spec.reward, "model")
    yield _name(e.spec.policy, "kind")
    yield _pairs(e.metadata.labels)
    yield e.metadata.uid
    yield _moment(e.metadata.create_time)


def _pairs(found: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(found.items())) or "-"


def description(d: service_pb.DescribeExperimentResponse, *, wide: bool = False) -> Iterator[RenderableType | Grid]:
    """One experiment in full. wide: also what tells it apart from others, and which models its arms are."""
    from rich.text import Text

    e = d.experiment
    yield Text.assemble((full_name(e), "bold"), "  ", _styled(state(e)), "  ", clean(e.status.reason))
    yield _facts(d, wide)
    yield ""
    yield _arms(d, wide)
    yield ""
    if d.guardrails:
        yield _guardrails(d)
        yield from _lines("", _messages(d.guardrails))
    else:
        yield "no guardrails: nothing but a person stops a candidate"
    yield from _lines("notes", d.notes)
    yield from _lines("what people wrote down", annotation_lines(d.annotations))
    if d.past_guardrails:
        yield ""
        yield "evidence of earlier activations, as it stood when they were resumed"
        yield _past(d.past_guardrails)


def status(
    d: service_pb.DescribeExperimentResponse, latest: Iterable[pb.AuditRecord] = (), *, wide: bool = False
) -> Iterator[RenderableType | Grid]:
    """What to keep an eye on: state, weights, the guardrails that say something, what the ramp waits for, the last records.

    wide: every guardrail, not only the loudest.
    """
    from rich.text import Text

    e = d.experiment
    yield Text.assemble((full_name(e), "bold"), "  ", _styled(state(e)), "  ", clean(e.status.reason))
    yield f"stage {stage_text(e)}"
    yield from _lines("", [f"waits for {missing}" for missing in d.stage.waiting_for])
    yield ""
    yield _weights(d)
    loud = sorted(d.guardrails, key=lambda g: (_name(g, "verdict") == "CLEAR", -g.log_evidence / (g.log_threshold or math.inf)))
    most = len(loud) if wide else STREAMS
    if loud:
        yield ""
        yield _streams(loud[:most])
        yield from _lines("", [f"and {len(loud) - most} more, quieter"] if len(loud) > most else [])
    yield from _lines("", _messages(d.guardrails))
    records = list(latest)
    if records:
        yield ""
        yield audit(records)


def state(e: pb.Experiment) -> str:
    """The lifecycle's word for where the experiment is."""
    return _name(e.status, "state")


def _weights(d: service_pb.DescribeExperimentResponse) -> Grid:
    columns = (
        Column("arm"),
        Column("state"),
        Column("weight", right=True),
        Column("", picture=True),
        Column("exposure / cap", right=True),
        Column("decisions", right=True),
        Column("outcomes", right=True),
        Column("mean", right=True),
        Column("P(best)", right=True),
    )
    decimals = _decimals(arm.interval_high - arm.interval_low for arm in d.arms)
    rows = [
        (
            arm.arm,
            _styled("INCUMBENT" if arm.arm == incumbent(d.experiment) else _name(arm, "state")),
            percent(arm.weight),
            _bar(0, arm.weight, 1),
            f"{percent(arm.exposure)} / {percent(arm.exposure_cap)}",
            f"{arm.decisions:,}",
            f"{arm.outcomes:,}",
            f"{arm.mean:.{decimals}f}",
            _probability(arm.prob_best),
        )
        for arm in d.arms
    ]
    return Grid(columns, rows)


def _streams(found: Sequence[service_pb.GuardrailDescription]) -> Grid:
    columns = (
        Column("guardrail"),
        Column("arm"),
        Column("segment"),
        Column("verdict"),
        Column("evidence / breach at", right=True),
        Column("", picture=True),
        Column("exposed", right=True),
    )
    rows = [
        (
            g.guardrail,
            g.arm,
            g.segment or "all",
            _styled(_name(g, "verdict")),
            f"{g.log_evidence:.2f} / {g.log_threshold:.2f}",
            _bar(0, g.log_evidence, g.log_threshold),
            f"{g.exposed:,}",
        )
        for g in found
    ]
    return Grid(columns, rows, keys=3)


def audit(records: Iterable[pb.AuditRecord], *, wide: bool = False) -> Grid:
    """A row for each record. wide: what it changed, and its digest, too."""
    columns = (
        Column("seq", right=True),
        Column("time"),
        Column("actor"),
        Column("action"),
        Column("experiment"),
        Column("reason", text=True),
        *((Column("before", text=True), Column("after", text=True), Column("digest")) if wide else ()),
    )
    rows = [
        (
            str(r.sequence),
            _moment(r.time),
            r.actor,
            r.action,
            r.experiment,
            r.reason or "-",
            *((r.before or "-", r.after or "-", r.digest) if wide else ()),
        )
        for r in records
    ]
    return Grid(columns, rows)


def stage_text(e: pb.Experiment) -> str:
    """Where on its ramp an experiment is: `1 of 0 to 3, candidates get at most 10%`."""
    last = max(len(e.spec.ramp) - 1, 0)
    shadow = bool(e.spec.ramp) and e.spec.ramp[e.status.stage].shadow
    rights = (
        "candidates serve nobody, requests are mirrored to them"
        if shadow
        else f"candidates get at most {percent(cap(e))}"
    )
    return f"{e.status.stage} of 0 to {last}, {rights}" if last else f"0, the only one, {rights}"


def cap(e: pb.Experiment) -> float:
    """Share of decisions that all candidates together may get in the present stage."""
    total = e.spec.exposure.total if e.spec.exposure.HasField("total") else 1.0
    return min(e.spec.ramp[e.status.stage].cap, total) if e.spec.ramp else total


def served_share(e: pb.Experiment) -> float:
    """Share of units that the plan in force gives to candidates; 0 unless it runs or was concluded on one."""
    now = state(e)
    if now == "CONCLUDED":
        return float(e.status.winner != incumbent(e))
    if now != "RUNNING":
        return 0.0
    return (
        sum(arm.slots for arm in e.status.arms if arm.arm != incumbent(e) and _name(arm, "state") == "ACTIVE") / SLOTS
    )


def incumbent(e: pb.Experiment) -> str:
    """Name of the arm in production."""
    return next(arm.name for arm in e.spec.arms if arm.incumbent)


def full_name(e: pb.Experiment) -> str:
    """`namespace/name` of an experiment."""
    return f"{e.metadata.namespace or 'default'}/{e.metadata.name}"


def percent(share: float) -> str:
    """A share as a percentage with three significant digits."""
    return "<0.001%" if 0 < share < 1e-5 else f"{100 * share:.3g}%"


def _facts(d: service_pb.DescribeExperimentResponse, wide: bool) -> RenderableType:
    from rich.table import Table

    e = d.experiment
    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")

    def add(label: str, text: str) -> None:
        made.add_row(label, clean(text))

    add("revision", f"{e.metadata.revision}, activation {e.status.activation}, plan {_age(d.plan_time)} old")
    if wide:
        for label, text in zip(MORE, _more(e), strict=True):
            add(label, text)
        add("lineage", _pairs(e.spec.lineage))
    if e.spec.owner:
        add("owner", e.spec.owner)
    if e.spec.hypothesis:
        add("hypothesis", e.spec.hypothesis)
    if e.spec.ramp:
        add("ramp", _ramp(e))
    started = state(e) != "DRAFT"
    add("stage", f"{stage_text(e)}; {f'entered {_age(d.stage.entered_time)} ago' if started else 'not started'}")
    for index, missing in enumerate(d.stage.waiting_for):
        add("" if index else "waits for", missing)
    needed = e.spec.ramp[d.stage.index + 1].approvals if d.stage.index + 1 < len(e.spec.ramp) else 0
    if needed or d.stage.approvers:
        add("approvals", f"{len(d.stage.approvers)}, {needed} needed: {', '.join(d.stage.approvers) or 'nobody yet'}")
    for label, text in proposal_lines(e.status.proposal) if e.status.HasField("proposal") else ():
        add(label, text)
    if e.status.winner:
        add("winner" if state(e) == "CONCLUDED" else "recommended", e.status.winner)
    if d.guardrails:
        add(
            "alpha",
            f"{e.spec.alpha:g} for each candidate, over all activations; column alpha: each guardrail's share of it"
            " in this activation",
        )
    return made


def _arms(d: service_pb.DescribeExperimentResponse, wide: bool) -> Grid:
    columns = (
        Column("arm"),
        Column("state"),
        Column("weight", right=True),
        Column("", picture=True),
        Column("wanted", right=True),
        Column("exposure / cap", right=True),
        Column("outcomes", right=True),
        Column("mean [95% interval]", right=True),
        Column("", picture=True),
        Column("P(best)", right=True),
        Column("expected loss", right=True),
        Column("pending", right=True),
        *((Column("model uri"),) if wide else ()),
    )
    models = {arm.name: arm.model_uri for arm in d.experiment.spec.arms}
    least = min((arm.interval_low for arm in d.arms), default=0.0)
    most = max((arm.interval_high for arm in d.arms), default=0.0)
    decimals = _decimals(arm.interval_high - arm.interval_low for arm in d.arms)
    rows = [
        (
            arm.arm,
            _styled("INCUMBENT" if arm.arm == incumbent(d.experiment) else _name(arm, "state")),
            percent(arm.weight),
            _bar(0, arm.weight, 1),
            percent(arm.wanted_weight),
            f"{percent(arm.exposure)} / {percent(arm.exposure_cap)}",
            f"{arm.outcomes:,}",
            f"{arm.mean:.{decimals}f} [{arm.interval_low:.{decimals}f}, {arm.interval_high:.{decimals}f}]",
            _bar(arm.interval_low - least, arm.interval_high - least, most - least),
            _probability(arm.prob_best),
            f"{arm.expected_loss:.3g}",
            f"{arm.pending:,}",
            *((models.get(arm.arm) or "-",) if wide else ()),
        )
        for arm in d.arms
    ]
    return Grid(columns, rows)


def _guardrails(d: service_pb.DescribeExperimentResponse) -> Grid:
    columns = (
        Column("guardrail"),
        Column("arm"),
        Column("segment"),
        Column("verdict"),
        Column("observed"),
        Column("limit"),
        Column("exposed", right=True),
        Column("bad", right=True),
        Column("evidence / breach at", right=True),
        Column("", picture=True),
        Column("alpha", right=True),
        Column("proven safe"),
    )
    written = {g.name: g for g in d.experiment.spec.guardrails}
    rows = [
        (
            g.guardrail,
            g.arm,
            g.segment or "all",
            _styled(_name(g, "verdict")),
            *_observed_and_limit(g, written[g.guardrail]),
            f"{g.exposed:,}",
            f"{g.events:,.6g}",
            f"{g.log_evidence:.2f} / {g.log_threshold:.2f}",
            _bar(0, g.log_evidence, g.log_threshold),
            f"{g.alpha:.2g}",
            "-" if g.arm == incumbent(d.experiment) else "yes" if g.proven_safe else "no",
        )
        for g in d.guardrails
    ]
    return Grid(columns, rows, keys=3)


def _observed_and_limit(g: service_pb.GuardrailDescription, written: pb.Guardrail) -> tuple[str, str]:
    """Both in words: of a quantile or ratio, what is observed is a share of bad outcomes, and the limit is not."""
    if not g.HasField("observed"):
        observed = "-"
    elif written.HasField("quantile") or written.HasField("max_ratio"):
        observed = f"{percent(g.observed)} bad"
    else:
        observed = f"{g.observed:.4g}"
    if written.HasField("quantile"):
        return observed, f"{percent(written.quantile)} below {g.limit:g}"
    if written.HasField("max_ratio"):
        return observed, f"{g.limit:g} x incumbent"
    return observed, f"{'at least' if written.HasField('min') else 'at most'} {g.limit:g}"


def _past(found: Iterable[service_pb.GuardrailDescription]) -> Grid:
    columns = (
        Column("activation", right=True),
        Column("guardrail"),
        Column("arm"),
        Column("segment"),
        Column("exposed", right=True),
        Column("bad", right=True),
        Column("evidence", right=True),
    )
    rows = [
        (
            str(g.activation),
            g.guardrail,
            g.arm,
            g.segment or "all",
            f"{g.exposed:,}",
            f"{g.events:,.6g}",
            f"{g.log_evidence:.2f}",
        )
        for g in found
    ]
    return Grid(columns, rows, keys=4)


def _ramp(e: pb.Experiment) -> str:
    """`0: shadow → [1: 1%] → 2: 10%`, the present stage in brackets."""
    names = [f"{index}: {'shadow' if stage.shadow else percent(stage.cap)}" for index, stage in enumerate(e.spec.ramp)]
    names[e.status.stage] = f"[{names[e.status.stage]}]"
    return " → ".join(names)


def _messages(found: Iterable[service_pb.GuardrailDescription]) -> list[str]:
    """What the guardrails that are not clear have to say, each sentence once, behind those that say it."""
    said: dict[str, list[str]] = {}
    for g in found:
        if g.message and _name(g, "verdict") != "CLEAR":
            said.setdefault(g.message, []).append(
                f"{g.guardrail} on {g.arm}" + (f" in {g.segment}" if g.segment else "")
            )
    return [f"{', '.join(streams)}: {message}" for message, streams in said.items()]


def _lines(title: str, texts: Sequence[str]) -> Iterator[RenderableType]:
    from rich.padding import Padding

    if texts:
        yield ""
        if title:
            yield title
        yield from (Padding(clean(text), (0, 0, 0, 2), expand=False) for text in texts)


def _decimals(widths: Iterable[float]) -> int:
    """As many decimals as the narrowest interval gives a meaning to."""
    narrowest = min((width for width in widths if 0 < width < math.inf), default=1.0)
    return min(max(1 - math.floor(math.log10(narrowest)), 0), 9)


def _probability(value: float) -> str:
    return "<0.001" if 0 < value < 0.001 else ">0.999" if 0.999 < value < 1 else f"{value:.3f}"


def _bar(begin: float, end: float, size: float) -> RenderableType:
    from rich.bar import Bar

    return Bar(size, max(begin, 0.0), min(max(end, 0.0), size), width=BAR) if size > 0 else ""


def _styled(text: str) -> Any:
    from rich.text import Text

    return Text(text, style=STYLES.get(text, ""))


def _name(message: Any, field: str) -> str:
    """The short name of an enum's value."""
    from allocator.wire.enums import prefix

    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    return enum.values_by_number[getattr(message, field)].name.removeprefix(prefix(enum))


def _age(stamp: Timestamp) -> str:
    seconds = max(time.time() - stamp.seconds, 0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _moment(stamp: Timestamp) -> str:
    return stamp.ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ")
