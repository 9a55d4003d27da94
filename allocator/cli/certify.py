"""`allocator certify`: what a spec promises before its launch, as text, a document or one HTML page.

In: a spec file, the incumbent's reward and the traffic. Out: answers with intervals. No server is needed, and nothing is launched.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allocator.cli.extras import needs_extra
from allocator.cli.output import Column, Form, Grid, draw, say_values, write
from allocator.cli.simulate import Backend, Carrier, Scheduler, Workers, carried, duration, finite, mean_of, share_of, times_of
from allocator.errors import InvalidArgument

if TYPE_CHECKING:
    from allocator.simulation.certify import Certificate

RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/(s|m|h|d))?")
PER = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
Table = tuple[list[str], list[list[str]]]


def certify(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec file with one experiment.", show_default=False)],
    incumbent_rate: Annotated[float, typer.Option("--incumbent-rate", help="Mean reward of the incumbent.", show_default=False)],
    traffic: Annotated[
        str, typer.Option("--traffic", metavar="N/s", help="Requests: 50/s, 3000/m, 1000000/d.", show_default=False)
    ],
    metric_rates: Annotated[
        str,
        typer.Option(
            "--metric-rates",
            metavar="NAME=VALUE,...",
            help="Of the incumbent: rates; medians where a guardrail asks a quantile. Else half of what the limit allows.",
            show_default=False,
        ),
    ] = "",
    guardrail: Annotated[
        str | None, typer.Option("--guardrail", help="The one to harm; else the first that stops.", show_default=False)
    ] = None,
    improvement: Annotated[float, typer.Option("--improvement", help="Of the better candidate's reward, as a share.")] = 0.1,
    for_: Annotated[str | None, typer.Option("--for", metavar="TIME", help="How long to rehearse: 6h, 3d.", show_default=False)] = None,
    delay: Annotated[str, typer.Option("--delay", metavar="TIME", help="Mean delay of outcomes.")] = "0s",
    replications: Annotated[int, typer.Option("--replications", min=1, help="Of each question; more make intervals narrower.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is random.")] = 0,
    workers: Workers = 1,
    backend: Carrier = Backend.LOKY,
    scheduler: Scheduler = "",
    output: Annotated[Form, typer.Option("--output", "-o", help="How to write it.")] = Form.TABLE,
) -> None:
    """Before a launch: false stops, time to detect harm, time to each stage, and whether safety can be proven in time."""
    from allocator.wire.spec import load_file

    found = load_file(spec)
    if len(found) != 1:
        raise InvalidArgument.of_field(str(spec), f"got {len(found)} experiments; one is needed", reason="INVALID_SPEC")
    with needs_extra("certify"):
        from allocator.simulation import certify as certifying

        with carried(backend, scheduler, workers):
            certificate = certifying.certify(
                found[0].experiment,
                incumbent_rate,
                per_second(traffic),
                metric_rates=rates_of(metric_rates),
                improvement=improvement,
                guardrail=guardrail,
                duration_seconds=None if for_ is None else _seconds("for", for_),
                delay_seconds=_seconds("delay", delay),
                replications=replications,
                seed=seed,
                workers=workers,
                backend=backend.value,
                titles=True,
            )
        if output is Form.TABLE:
            _print(certificate)
        elif output is Form.HTML:
            write(page(certificate))
        else:
            say_values(output, [document(certificate)], one=True)


def per_second(text: str) -> float:
    """Requests a second, of `50/s`, `3000/m`, `100`. Raises InvalidArgument."""
    match = RATE.fullmatch(text)
    if match is None:
        raise InvalidArgument.of_field("traffic", f"got {text!r}; a rate like 50/s, 3000/m or 1000000/d is allowed")
    return float(match[1]) / PER[match[2]]


def rates_of(text: str) -> dict[str, float]:
    """Values by metric, of `error=0.01,latency_ms=120`. Raises InvalidArgument."""
    rates = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            rates[name.strip()] = float(value)
        except ValueError as exc:
            raise InvalidArgument.of_field("metric-rates", f"got {part!r}; NAME=NUMBER is allowed, with commas between") from exc
    return rates


def document(certificate: Certificate) -> dict[str, Any]:
    """The certificate as JSON values; what is not a number becomes null."""
    named = ("incumbent_rate", "traffic", "replications", "horizon_seconds", "tick_seconds", "promised", "harmed", "improvement")
    return finite(
        {
            "experiment": certificate.experiment.full_name,
            **{name: getattr(certificate, name) for name in named},
            "rates": dict(certificate.rates),
            "false_stop": asdict(certificate.false_stop),
            "harms": [asdict(one) for one in certificate.harms],
            "stages": [asdict(one) for one in certificate.stages],
            "waiting": dict(certificate.waiting),
            "proofs": [asdict(one) for one in certificate.proofs],
            "learned": [asdict(one) for one in certificate.learned],
            "findings": findings(certificate),
        }
    )


def findings(certificate: Certificate) -> list[str]:
    """What should be changed before the launch, or known, in sentences; the gravest first."""
    found, horizon = [], duration(certificate.horizon_seconds)
    for proof in certificate.proofs:
        if proof.possible is False:
            found.append(
                f"stage {proof.stage} cannot prove {proof.guardrail} safe by its minDuration: {proof.given} matured outcomes of one,"
                f" {proof.needed} without a single bad one are the fewest; the stage will last longer"
            )
    for stage in certificate.stages:
        if stage.entered.share < 0.5:
            reasons = "; ".join(list(certificate.waiting)[:3])
            found.append(
                f"stage {stage.number} entered in {stage.entered.events} of {stage.entered.runs} runs within {horizon}"
                + (f", because the last one waits for: {reasons}" if reasons else "")
            )
            break
    for harm in certificate.harms:
        if harm.stopped.share < 0.5:
            found.append(
                f"{harm.points:+.0%} bad outcomes on {certificate.harmed}: stopped in {harm.stopped.events} of {harm.stopped.runs} runs"
                f" within {duration(harm.horizon_seconds)}: the rate may be inside the limit still, or the first stage's traffic too thin"
            )
    if not certificate.harms:
        found.append("no guardrail stops anything: a harmful candidate is limited by caps alone")
    if certificate.false_stop.low > certificate.promised:
        found.append(f"harmless candidates are stopped more often than the {certificate.promised:.2g} that the spec promises")
    return found


def tables(certificate: Certificate) -> dict[str, Table]:
    """Each question and its answer, as columns and rows of text."""
    tick, horizon = duration(certificate.tick_seconds), duration(certificate.horizon_seconds)
    return {
        "Harmless candidates stopped": (
            ["runs", "stopped", "promised at most"],
            [[str(certificate.false_stop.runs), share_of(certificate.false_stop), f"{certificate.promised:.2g}"]],
        ),
        f"Harm on {certificate.harmed or 'nothing'}": (
            ["bad outcomes", "stopped", "after (5 / 50 / 95 %)", "mean seconds", "units served until then", "exact to"],
            [
                [
                    f"{harm.points:+.0%}", f"{share_of(harm.stopped)} in {duration(harm.horizon_seconds)}", times_of(harm.seconds),
                    mean_of(harm.seconds), mean_of(harm.units), f"{harm.tick_seconds:g}s",
                ]
                for harm in certificate.harms
            ],
        ),
        "Ramp of a harmless candidate": (
            ["stage", "cap", f"entered in {horizon}", f"after (5 / 50 / 95 %), exact to {tick}", "mean seconds"],
            [
                [str(stage.number), f"{stage.cap:.0%}", share_of(stage.entered), times_of(stage.seconds), mean_of(stage.seconds)]
                for stage in certificate.stages
            ],
        ),
        "Can safety be proven by minDuration?": (
            ["stage", "guardrail", "outcomes given", "fewest needed", "possible"],
            [
                [
                    str(proof.stage), proof.guardrail, str(proof.given), "-" if proof.needed is None else str(proof.needed),
                    "see the ramp" if proof.possible is None else "yes" if proof.possible else "no",
                ]
                for proof in certificate.proofs
            ],
        ),
        f"Learning, where a candidate is {certificate.improvement:.0%} better": (
            ["policy", "regret", "against the spec", "gain over the incumbent alone"],
            [[one.policy, mean_of(one.regret), mean_of(one.against), mean_of(one.gain)] for one in certificate.learned],
        ),
    }  # fmt: skip


def page(certificate: Certificate) -> str:
    """One HTML file with figures."""
    from allocator.analysis.page import Grid as PageGrid
    from allocator.analysis.page import Section, picture, render
    from allocator.simulation.figures import figures

    against = findings(certificate)
    sections = [Section("Findings", text=[] if against else ["Nothing stands against a launch."], warnings=against)]
    pictures = {}
    for name, study in certificate.studies.items():
        drawn = figures(study)
        for wanted in {"a/a": ("exposure",), "better": ("regret", "weights")}.get(name, ("detection",)):
            if wanted in drawn:
                pictures.setdefault(name, []).append(picture(drawn[wanted], f"{wanted} in the rehearsal {name}"))
    harms = [shown for name, found in pictures.items() if name.startswith("+") for shown in found]
    shown = ([], harms, pictures.get("a/a", []), [], pictures.get("better", []))
    for (title, (columns, rows)), images in zip(tables(certificate).items(), shown, strict=True):
        sections.append(Section(title, pictures=images, grids=[PageGrid(columns, rows)] if rows else []))
    sections.append(Section("Assumed", text=_assumed(certificate)))
    return render(f"Certificate of {certificate.experiment.full_name}", sections, document(certificate), _lead(certificate))


def _print(certificate: Certificate) -> None:
    parts: list[Any] = [f"Certificate of {certificate.experiment.full_name}", _lead(certificate), ""]
    parts += [f"! {finding}" for finding in findings(certificate)] or ["Nothing stands against a launch."]
    for title, (columns, rows) in tables(certificate).items():
        if rows:
            parts += ["", title, Grid([Column(columns[0]), *(Column(name, right=True) for name in columns[1:])], rows)]
    draw([*parts, "", *_assumed(certificate)])


def _lead(certificate: Certificate) -> str:
    return (
        f"{certificate.traffic:g} requests a second, incumbent's reward {certificate.incumbent_rate:g},"
        f" {certificate.replications} replication{'s' if certificate.replications > 1 else ''} of each question;"
        " means and shares with 95 % intervals"
    )


def _assumed(certificate: Certificate) -> list[str]:
    rates = ", ".join(f"{name} {value:.4g}" for name, value in certificate.rates.items() if math.isfinite(value))
    return [
        f"Assumed: {rates}; every request a new unit; approvals given at once.",
        f"A plan follows every {certificate.tick_seconds:g} s of requests (finer where harm is looked for); a server plans every second.",
    ]


def _seconds(flag: str, text: str) -> float:
    from allocator.wire.spec import DURATIONS, seconds_of_text

    seconds = seconds_of_text(text)
    if seconds is None:
        raise InvalidArgument.of_field(flag, f"got {text!r}; {DURATIONS} is allowed")
    return seconds
