"""Logging of a server: one event a line on stderr, with stable event names; JSON for machines, colours for people.

What people wrote (reasons, names) and what callers sent may hold anything; none of it ends a line or steers a terminal: JSON escapes it,
and for people whatever cannot be printed becomes a space. What libraries and the client log by other means becomes an event `library` with
their sentence in it. Tracebacks show no local variables: these hold units and tokens.
"""

from __future__ import annotations

import logging
import sys

import structlog


def set_up(log_format: str) -> None:
    """Send every event to stderr. log_format: `json` or `pretty`."""
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        processors += [_printable, console]
    structlog.configure(
        processors=processors,
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Events()], level=logging.INFO, force=True)


def for_commands() -> None:
    """Keep events out of a command's stdout, which is data: a token, a log that is taken along."""
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


class _Events(logging.Handler):
    """Makes an event of each record of the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log it again."""
        log = structlog.get_logger().bind(logger=record.name, message=record.getMessage())
        log.log(max(record.levelno, logging.DEBUG), "library", exc_info=record.exc_info)


def _printable(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: _clean(value) for key, value in event.items()}


def _clean(value: object) -> object:
    if isinstance(value, str):
        return "".join(character if character.isprintable() else " " for character in value)
    return value if isinstance(value, int | float | bool | None | BaseException | tuple) else _clean(repr(value))
