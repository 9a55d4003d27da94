"""`allocator serve`: flags and environment become a Config, and the server starts.

The server, and numba with it, is imported when it is about to serve: nobody who asks for help waits for it.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from typing import Annotated

import typer

from allocator.cli.specs import spec_files

NO_METRICS = "none"
NO_STATE = "none"


class LogFormat(StrEnum):
    PRETTY = "pretty"
    JSON = "json"


class Access(StrEnum):
    OPEN = "open"
    TOKENS = "tokens"


def serve(
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            envvar="ALLOCATOR_LISTEN",
            help="Where to serve gRPC; port 0 takes any free one.",
        ),
    ] = "127.0.0.1:50051",
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            metavar="HOST:PORT",
            envvar="ALLOCATOR_METRICS",
            help="Where to serve /metrics, /livez and /readyz over HTTP; `none` for nowhere.",
        ),
    ] = "127.0.0.1:9464",
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="STORE",
            envvar="ALLOCATOR_STORE",
            help="sqlite:PATH; redis://, redis+sentinel:// or redis+cluster:// for several servers; memory: to forget everything.",
        ),
    ] = "sqlite:allocator.db",
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec",
            metavar="FILE|DIR",
            help="Spec files to apply at the start. May be repeated; env var: ALLOCATOR_SPECS, with colons or commas"
            " between several.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format", envvar="ALLOCATOR_LOG_FORMAT", help="Logs on stderr: for people, or a JSON object a line."
        ),
    ] = LogFormat.PRETTY,
    refresh: Annotated[
        float,
        typer.Option(
            "--refresh", metavar="SECONDS", envvar="ALLOCATOR_REFRESH", help="Between two refreshes of the weights."
        ),
    ] = 1.0,
    drain: Annotated[
        float,
        typer.Option(
            "--drain",
            metavar="SECONDS",
            envvar="ALLOCATOR_DRAIN",
            help="At the end: from saying `not serving` to taking no more calls, for load balancers to notice.",
        ),
    ] = 1.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            envvar="ALLOCATOR_GRACE",
            help="At the end: for calls that are under way then.",
        ),
    ] = 10.0,
    decision_log: Annotated[
        str,
        typer.Option(
            "--decision-log",
            metavar="DIR",
            envvar="ALLOCATOR_DECISION_LOG",
            help="Log decisions and outcomes as Parquet below this folder, units as keyed hashes.",
            show_default="none",
        ),
    ] = "",
    decision_log_days: Annotated[
        int,
        typer.Option(
            "--decision-log-days", metavar="DAYS", envvar="ALLOCATOR_DECISION_LOG_DAYS", help="How long to keep it; 0 for ever."
        ),
    ] = 30,
    decision_log_context: Annotated[
        str,
        typer.Option(
            "--decision-log-context",
            metavar="NAME,...",
            envvar="ALLOCATOR_DECISION_LOG_CONTEXT",
            help="Attributes of requests to keep in it, with commas between several.",
            show_default="none",
        ),
    ] = "",
    max_concurrent: Annotated[
        int,
        typer.Option(
            "--max-concurrent",
            metavar="CALLS",
            envvar="ALLOCATOR_MAX_CONCURRENT",
            help="How many calls may wait, of decisions and of reports each; what comes beyond is refused at once.",
        ),
    ] = 512,
    tls_cert: Annotated[
        str,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            envvar="ALLOCATOR_TLS_CERT",
            help="Serve TLS with this certificate chain (PEM).",
            show_default=False,
        ),
    ] = "",
    tls_key: Annotated[
        str, typer.Option("--tls-key", metavar="FILE", envvar="ALLOCATOR_TLS_KEY", help="The key of --tls-cert.", show_default=False)
    ] = "",
    tls_client_ca: Annotated[
        str,
        typer.Option(
            "--tls-client-ca",
            metavar="FILE",
            envvar="ALLOCATOR_TLS_CLIENT_CA",
            help="Let in only clients with a certificate of this authority.",
            show_default=False,
        ),
    ] = "",
    access: Annotated[
        Access,
        typer.Option("--access", envvar="ALLOCATOR_ACCESS", help="Let everybody do everything, or ask each call for a token."),
    ] = Access.OPEN,
    reflection: Annotated[
        bool | None,
        typer.Option(
            "--reflection/--no-reflection",
            envvar="ALLOCATOR_REFLECTION",
            help="Tell callers what the services look like.",
            show_default="on loopback only",
        ),
    ] = None,
    least_approvals: Annotated[
        int,
        typer.Option(
            "--least-approvals",
            metavar="N",
            envvar="ALLOCATOR_LEAST_APPROVALS",
            help="People who must agree to what makes any experiment riskier, whatever its spec says.",
        ),
    ] = 0,
    audit_checkpoint: Annotated[
        str,
        typer.Option(
            "--audit-checkpoint",
            metavar="FILE",
            envvar="ALLOCATOR_AUDIT_CHECKPOINT",
            help="Append the head of the audit log each minute, for `audit verify`; keep it away from the store.",
            show_default=False,
        ),
    ] = "",
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="DIR|none",
            envvar="ALLOCATOR_STATE",
            help="Where this server remembers freezes, budgets and the last plans, for when its store is gone, empty or older."
            " `none` for nowhere. [default: allocator-state with Redis, none otherwise]",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="ALLOCATOR_INSECURE",
            help="Listen where other machines can reach it without TLS or tokens.",
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            metavar="N",
            min=0,
            envvar="ALLOCATOR_WORKERS",
            help="Processes that decide, beside the one that plans; 0: one process does both.",
        ),
    ] = 0,
) -> None:
    """Serve decisions, until SIGTERM or Ctrl-C."""
    from allocator.server.config import Config

    config = Config(
        listen=listen,
        metrics="" if metrics == NO_METRICS else metrics,
        store=store,
        specs=tuple(
            spec_files(spec or [path for path in re.split("[:,]", os.environ.get("ALLOCATOR_SPECS", "")) if path])
        ),
        log_format=log_format.value,
        refresh_seconds=refresh,
        drain_seconds=drain,
        grace_seconds=grace,
        max_concurrent=max_concurrent,
        insecure=insecure,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        access=access.value,
        reflection=reflection,
        audit_checkpoint=audit_checkpoint,
        least_approvals=least_approvals,
        state="" if state == NO_STATE else state,
        decision_log=decision_log,
        decision_log_days=decision_log_days,
        decision_log_context=tuple(name.strip() for name in decision_log_context.split(",") if name.strip()),
    )

    from allocator.server import logs, main

    logs.set_up(config.log_format)
    if workers:
        from allocator.server import workers as several

        several.serve(config, workers)
    else:
        main.serve(config)
