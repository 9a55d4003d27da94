"""The server as operators reach it, and the options that every operator's command shares.

In: an address, a deadline. Out: replies, or the AllocatorError that the server raised. A call is sent once: whether a
second one would do harm (advance twice) only the operator can judge. Proxies that the environment names are not used:
they would stand between an operator and localhost.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from allocator.cli.output import Format, View
from allocator.cli.tables import full_name
from allocator.errors import AllocatorError, DeadlineExceeded, InvalidArgument, Unavailable

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

DEFAULT_SERVER = "127.0.0.1:50051"
PAGE = 200
COMPLETION_SECONDS = 1.0


class Operator:
    """The operator's service of one server. Use it as a context manager.

    server: host:port. timeout: seconds for each call.
    """

    def __init__(self, server: str, timeout: float) -> None:
        import grpc

        from allocator.v1 import operator_service_pb2_grpc as service

        if ":" not in server:
            raise InvalidArgument.of_field("server", f"got {server!r}; host:port is allowed, e.g. {DEFAULT_SERVER}")
        self._server = server
        self._timeout = timeout
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20))
        self._channel = grpc.insecure_channel(server, options=options)
        self._stub = service.OperatorServiceStub(self._channel)

    def call(self, method: str, request: Message) -> Any:
        """One call. Raises what the server raised; Unavailable or DeadlineExceeded when it could not be asked."""
        import grpc

        try:
            return getattr(self._stub, method)(request, timeout=self._timeout)
        except grpc.RpcError as exc:
            raise self._error(exc) from exc

    def pages(self, method: str, request: Any, field: str) -> list[Any]:
        """Everything that a paged list holds. `request` is used up."""
        request.page_size = PAGE
        found: list[Any] = []
        while True:
            reply = self.call(method, request)
            found += getattr(reply, field)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token

    def _error(self, exc: grpc.RpcError) -> AllocatorError:
        from allocator.wire.status import from_rpc_error

        error = from_rpc_error(exc)
        trailers = exc.trailing_metadata() or ()  # type: ignore[attr-defined]
        if any(key == "grpc-status-details-bin" for key, _ in trailers):
            return error  # in the server's own words
        if isinstance(error, DeadlineExceeded):
            return DeadlineExceeded(f"no answer from {self._server} within {self._timeout:g} s", reason="NO_ANSWER")
        if isinstance(error, Unavailable):
            why = error.message.rpartition(": ")[2].rstrip("]")
            return Unavailable(f"no server answers at {self._server}: {why}", reason="NO_SERVER")
        return error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def login_name() -> str:
    """Who is at the keyboard; the number of the user where it has no name, as in many containers."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def complete_name(incomplete: str) -> list[str]:
    """Names of experiments for the shell's completion; none when no server answers at once."""
    from allocator.v1 import operator_service_pb2 as pb

    try:
        with Operator(os.environ.get("ALLOCATOR_SERVER") or DEFAULT_SERVER, COMPLETION_SECONDS) as operator:
            found = operator.pages("ListExperiments", pb.ListExperimentsRequest(), "experiments")
    except AllocatorError:
        return []
    names = [full_name(e) for e in found] if "/" in incomplete else [e.metadata.name for e in found]
    return [name for name in names if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The experiment: `name`, or `namespace/name`.",
        autocompletion=complete_name,
        show_default=False,
    ),
]
Server = Annotated[
    str,
    typer.Option(
        "--server", metavar="HOST:PORT", envvar="ALLOCATOR_SERVER", help="The server.", rich_help_panel="Connection"
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        envvar="ALLOCATOR_TIMEOUT",
        min=0.001,
        help="How long to wait for each answer.",
        rich_help_panel="Connection",
    ),
]
Actor = Annotated[
    str,
    typer.Option(
        "--actor",
        metavar="WHO",
        envvar="ALLOCATOR_ACTOR",
        callback=lambda given: given or login_name(),
        show_default="your login name",
        help="Who does this; goes to the audit.",
        rich_help_panel="Connection",
    ),
]
Reason = Annotated[str, typer.Option("--reason", metavar="WHY", help="Why; goes to the audit.", show_default=False)]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]
OutputView = Annotated[View, typer.Option("--output", "-o", help="How to print it.")]
