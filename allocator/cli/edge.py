"""`allocator edge`: flags and environment become an EdgeConfig, and the edge starts."""

from __future__ import annotations

from typing import Annotated

import typer

from allocator.cli.serve import NO_METRICS, LogFormat
from allocator.cli.serve import Access as Callers


def edge(
    upstream: Annotated[
        str,
        typer.Option(
            "--upstream", metavar="HOST:PORT", envvar="ALLOCATOR_UPSTREAM", help="The server, or another edge, to follow."
        ),
    ],
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            envvar="ALLOCATOR_LISTEN",
            help="Where to serve gRPC; port 0 takes any free one.",
        ),
    ] = "127.0.0.1:50052",
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            metavar="HOST:PORT",
            envvar="ALLOCATOR_METRICS",
            help="Where to serve /metrics, /livez and /readyz over HTTP; `none` for nowhere.",
        ),
    ] = NO_METRICS,
    operator: Annotated[
        bool,
        typer.Option("--operator", envvar="ALLOCATOR_EDGE_OPERATOR", help="Pass operators' calls on to the upstream."),
    ] = False,
    access: Annotated[
        Callers,
        typer.Option(
            "--access",
            envvar="ALLOCATOR_ACCESS",
            help="Let everybody do everything, or ask each call for a token that the upstream knows.",
        ),
    ] = Callers.OPEN,
    upstream_tls: Annotated[
        bool,
        typer.Option("--upstream-tls", envvar="ALLOCATOR_UPSTREAM_TLS", help="Encrypt, and trust what the machine trusts."),
    ] = False,
    upstream_ca: Annotated[
        str,
        typer.Option(
            "--upstream-ca", metavar="PEM", envvar="ALLOCATOR_UPSTREAM_CA", help="Encrypt, and trust this authority alone."
        ),
    ] = "",
    upstream_cert: Annotated[
        str,
        typer.Option(
            "--upstream-cert", metavar="PEM", envvar="ALLOCATOR_UPSTREAM_CERT", help="The certificate to show upstream."
        ),
    ] = "",
    upstream_key: Annotated[
        str, typer.Option("--upstream-key", metavar="PEM", envvar="ALLOCATOR_UPSTREAM_KEY", help="Its key.")
    ] = "",
    upstream_token_file: Annotated[
        str,
        typer.Option(
            "--upstream-token-file",
            metavar="FILE",
            envvar="ALLOCATOR_UPSTREAM_TOKEN_FILE",
            help="The file that holds the token for the upstream; read again when it changes.",
        ),
    ] = "",
    tls_cert: Annotated[
        str, typer.Option("--tls-cert", metavar="PEM", envvar="ALLOCATOR_TLS_CERT", help="The certificate of this edge.")
    ] = "",
    tls_key: Annotated[
        str, typer.Option("--tls-key", metavar="PEM", envvar="ALLOCATOR_TLS_KEY", help="Its key.")
    ] = "",
    tls_client_ca: Annotated[
        str,
        typer.Option(
            "--tls-client-ca",
            metavar="PEM",
            envvar="ALLOCATOR_TLS_CLIENT_CA",
            help="Serve only callers with a certificate of this authority.",
        ),
    ] = "",
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format", envvar="ALLOCATOR_LOG_FORMAT", help="Logs on stderr: for people, or a JSON object a line."
        ),
    ] = LogFormat.PRETTY,
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
        typer.Option("--grace", metavar="SECONDS", envvar="ALLOCATOR_GRACE", help="At the end: for calls under way."),
    ] = 10.0,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="ALLOCATOR_INSECURE",
            help="Listen where other machines can reach it without TLS or tokens; send the upstream's token unencrypted.",
        ),
    ] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Serve decisions from another server's snapshots, until SIGTERM or Ctrl-C."""
    from allocator.client import Access
    from allocator.server.edge import EdgeConfig, serve
    from allocator.server.logs import set_up

    config = EdgeConfig(
        upstream=upstream,
        listen=listen,
        metrics="" if metrics == NO_METRICS else metrics,
        access=Access(
            tls=upstream_tls,
            tls_ca=upstream_ca,
            tls_cert=upstream_cert,
            tls_key=upstream_key,
            token_file=upstream_token_file,
            insecure=insecure,
        ),
        operator=operator,
        callers=access.value,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        drain_seconds=drain,
        grace_seconds=grace,
        insecure=insecure,
        worker=worker,
        log_format=log_format.value,
    )
    set_up(config.log_format)
    serve(config)
