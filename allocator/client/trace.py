"""The trace that the caller is in, as metadata of a call.

Where OpenTelemetry is in use in this process, its propagators write what they write into any request (`traceparent` as a rule), so that the
server's events can be found from the caller's trace. Where it is not, nothing is loaded and nothing is sent.
"""

from __future__ import annotations

import sys

Metadata = tuple[tuple[str, str], ...]


def context() -> Metadata:
    """The present trace context; empty without one."""
    if "opentelemetry.trace" not in sys.modules:  # then nobody here can have begun a trace
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())
