"""For serving systems: which arm serves a request, and what came of it. `LocalClient` decides in this process, `Client` asks the server.

Light on purpose: it lives inside other people's services, so importing it loads gRPC and protobuf, and nothing else of this project's
dependencies.
"""

from allocator.client.channel import Access
from allocator.client.local import LocalClient, State, Statistics
from allocator.client.local_async import AsyncLocalClient
from allocator.client.remote import AsyncClient, Client, Report
from allocator.core.decision import Decision, Reason

__all__ = ["Access", "AsyncClient", "AsyncLocalClient", "Client", "Decision", "LocalClient", "Reason", "Report", "State", "Statistics"]
