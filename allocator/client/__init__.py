"""For serving systems: ask which arm serves a request, and report what came of it.

Light on purpose: it lives inside other people's services, so importing it loads gRPC and protobuf, and nothing else of this project's
dependencies.
"""

from allocator.client.channel import Access
from allocator.client.remote import AsyncClient, Client, Report
from allocator.core.decision import Decision, Reason

__all__ = ["Access", "AsyncClient", "Client", "Decision", "Reason", "Report"]
