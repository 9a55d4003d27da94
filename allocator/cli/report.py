"""`allocator report` and `allocator export`: what an experiment has shown, and its log for other tools.

In: a running server, and where there is one its decision log. Out: a page, a document, or tables. The server gives sums, guardrails and the
audit; what holds under drift, off-policy values and calibration come from the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allocator.cli.connection import DEFAULT_SERVER, Name, Operator, Server, Timeout
from allocator.cli.failures import complain
from allocator.cli.output import Column, Form, Grid, draw, json_of, say_values, write, yaml_of
from allocator.cli.tables import full_name
from allocator.errors import AllocatorError, InvalidArgument

if TYPE_CHECKING:
    from allocator.analysis.report import Report, Source

SUFFIXES = {".html": Form.HTML, ".htm": Form.HTML, ".json": Form.JSON, ".yaml": Form.YAML, ".yml": Form.YAML}
NOTE = "experiment.note"  # its text is what changed; other records say why
MaybeLog = Annotated[
    Path | None,
    typer.Option("--log", metavar="DIR", help="The decision log.", exists=True, file_okay=False, show_default="none"),
]


def report(
    name: Name,
    log: MaybeLog = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there; .html, .json and .yaml say what to write.", show_default="stdout"),
    ] = None,
    output: Annotated[Form | None, typer.Option("--output", "-o", help="How to write it.", show_default="by --out, else table")] = None,
    alpha: Annotated[float, typer.Option("--alpha", metavar="P", help="Each interval holds with probability 1 - P.")] = 0.05,
    prediction: Annotated[
        str, typer.Option("--prediction", metavar="NAME", help="Metric or logged attribute with a model's predicted probability.")
    ] = "prediction",
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 30.0,
) -> None:
    """Say what was learned, with intervals that hold however often one looks."""
    form = output or SUFFIXES.get(out.suffix.lower() if out else "", Form.TABLE)
    if form is Form.TABLE and out is not None:
        allowed = "a file that ends in .html, .json or .yaml, or -o html, json or yaml, is allowed"
        raise InvalidArgument.of_field("--out", f"got {out}; {allowed}")
    with _packages():
        from allocator.analysis import decision_log
        from allocator.analysis.report import report as make

        source = ask(server, timeout, name)
        logged = decision_log.read(log, source.experiment) if log is not None else None
        found = make(source, logged, alpha, prediction)
        page = _page(found) if form is Form.HTML else ""
    if out is not None:
        text = page or (yaml_of if form is Form.YAML else json_of)(found.document)
        out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        complain(f"wrote {out}")
    elif form is Form.TABLE:
        _draw(found)
    elif form is Form.HTML:
        write(page)
    else:
        say_values(form, [found.document], one=True)


def export(
    name: Name,
    log: Annotated[Path, typer.Option("--log", metavar="DIR", help="The decision log.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The Parquet file to write.")],
) -> None:
    """Write an experiment's decisions and outcomes to one Parquet file."""
    with _packages():
        from allocator.analysis import decision_log

        rows = decision_log.export(log, name if "/" in name else f"default/{name}", out)
    complain(f"wrote {rows} decisions to {out}")


def ask(server: str, timeout: float, name: str) -> Source:
    """All that a report needs of a server. Raises what the server raises."""
    from allocator.v1 import operator_service_pb2 as service_pb

    with Operator(server, timeout) as operator:
        described = operator.call("DescribeExperiment", service_pb.DescribeExperimentRequest(experiment=name))
        full = full_name(described.experiment)
        counted = operator.call("GetStatistics", service_pb.GetStatisticsRequest(experiment=full, by_bucket=True))
        audit = operator.pages("ListAuditRecords", service_pb.ListAuditRecordsRequest(experiment=full), "records")
    return _source(described, counted, audit)


def _source(described: Any, counted: Any, audit: list[Any]) -> Source:
    from allocator.analysis import report as analysis
    from allocator.analysis.inference import Scale
    from allocator.v1 import allocator_pb2 as pb
    from allocator.v1 import operator_service_pb2 as service_pb
    from allocator.wire.convert import experiment_from_message
    from allocator.wire.enums import prefix

    def word(enum: Any, number: int) -> str:
        return enum.Name(number).removeprefix(prefix(enum.DESCRIPTOR))

    def row(m: Any) -> analysis.Row:
        statistic = word(service_pb.Statistic, m.statistic)
        return analysis.Row(m.arm, m.segment, statistic, m.guardrail, m.count, m.total, m.squares, m.bucket_time.ToNanoseconds() / 1e9)

    experiment, status = experiment_from_message(described.experiment), described.experiment.status
    reward = experiment.reward
    stage = described.stage
    state = word(pb.ExperimentState, status.state)
    return analysis.Source(
        experiment=experiment.full_name,
        arms=tuple(arm.name for arm in experiment.arms),
        incumbent=experiment.arms[experiment.incumbent].name,
        segments=experiment.segment_names,
        metric=reward.metric,
        scale=Scale(reward.low, reward.upper, reward.prior.mean, reward.model.value == "BERNOULLI"),
        counts=reward.model.value == "POISSON",
        maximise=reward.goal.value == "MAXIMISE",
        missing=reward.missing,
        window_seconds=reward.window_seconds,
        seconds=counted.time.ToNanoseconds() / 1e9,
        sample_ratio_p_value=described.sample_ratio_p_value,
        rows=[row(m) for m in counted.rows],
        buckets=[row(m) for m in counted.buckets],
        guardrails=[
            analysis.Guardrail(
                g.guardrail, g.arm, g.segment, word(pb.Verdict, g.verdict), g.limit, g.observed if g.HasField("observed") else None,
                g.exposed, g.events, g.log_evidence, g.log_threshold, g.proven_safe, g.message,
            )
            for g in described.guardrails
        ],
        events=[
            analysis.Event(r.time.ToNanoseconds() / 1e9, r.actor, r.action, r.after if r.action == NOTE else r.reason) for r in audit
        ],
        notes=list(described.notes),
        units_told=experiment.unit_contribution.value == "FIRST",
        facts={
            "state": f"{state}: {status.reason}" if status.reason else state,
            "stage": f"{stage.index} of {stage.count - 1}, candidates up to {stage.cap:.3g}" if stage.count > 1 else "",
            "winner": status.winner,
            "owner": experiment.owner,
            "hypothesis": experiment.hypothesis,
            "lineage": ", ".join(f"{key} {value}" for key, value in experiment.lineage.items()),
        },
    )  # fmt: skip


def _page(found: Report) -> str:
    from allocator.analysis.page import render

    return render(found.title, found.sections, found.document, found.lead)


def _draw(found: Report) -> None:
    """The sections as plain tables."""
    parts: list[Any] = [found.lead]
    for section in found.sections:
        parts += ["", section.title.upper(), *(f"WARNING: {line}" for line in section.warnings), *section.text]
        for grid in section.grids:
            parts += ["", *([grid.caption] if grid.caption else [])]
            parts.append(Grid([Column(name, text=name in ("why", "what")) for name in grid.columns], grid.rows))
    draw(parts)


@contextmanager
def _packages() -> Iterator[None]:
    """Says which package of the extra `sim` is missing."""
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in ("jinja2", "matplotlib", "pyarrow"):
            raise
        raise AllocatorError(f"reports need {package}, which is not installed", reason="MISSING_PACKAGES") from exc
