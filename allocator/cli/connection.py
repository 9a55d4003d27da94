"""The server as operators reach it, and the options that every operator's command shares.

In: an address, a deadline, and what opens the door: TLS files and a token, which `connected` adds to a command's options. Out: replies,
or the AllocatorError that the server raised. A token is named by a file or a variable, never on the command line, where all see it. A
call is sent once: whether a second one would do harm (advance twice) only the operator can judge. Proxies that the environment names are
not used: they would stand between an operator and localhost.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Self, get_type_hints

import typer

from allocator.cli.output import Format, View
from allocator.cli.tables import full_name
from allocator.errors import AllocatorError, DeadlineExceeded, InvalidArgument, Unavailable

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

    from allocator.client.channel import Access

DEFAULT_SERVER = "127.0.0.1:50051"
PAGE = 200
COMPLETION_SECONDS = 1.0


class Operator:
    """The operator's service of one server. Use it as a context manager.

    server: host:port. timeout: seconds for each call.
    """

    def __init__(self, server: str, timeout: float) -> None:
        from allocator.client.channel import channel
        from allocator.v1 import operator_service_pb2_grpc as service

        if ":" not in server:
            raise InvalidArgument.of_field("server", f"got {server!r}; host:port is allowed, e.g. {DEFAULT_SERVER}")
        self._server = server
        self._timeout = timeout
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20))
        door = access()
        self._metadata = door.metadata()
        self._encrypted = door.encrypted
        self._channel = channel(server, door, options)
        self._stub = service.OperatorServiceStub(self._channel)

    def call(self, method: str, request: Message) -> Any:
        """One call. Raises what the server raised; Unavailable or DeadlineExceeded when it could not be asked."""
        import grpc

        try:
            return getattr(self._stub, method)(request, timeout=self._timeout, metadata=self._metadata)
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
            return self._unreached(error.message)
        return error

    def _unreached(self, told: str) -> Unavailable:
        """What gRPC told, its last words being why, as an error with something to do: where somebody listens, TLS is what often differs."""
        if "CERTIFICATE_VERIFY_FAILED" in told:
            why = told.removesuffix(": OK").rpartition(": ")[2]
            return Unavailable(f"the certificate of the server at {self._server} is not trusted: {why}", reason="NOT_TRUSTED")
        if "WRONG_VERSION_NUMBER" in told:
            return Unavailable(f"what listens at {self._server} speaks no TLS", reason="NO_TLS")
        why = told.rpartition(": ")[2].rstrip("]")
        if told.startswith("failed to connect") and ("Socket closed" in told or "Connection reset" in told):
            reason = "NO_CERTIFICATE" if self._encrypted else "NOT_ENCRYPTED"
            return Unavailable(f"what listens at {self._server} hung up: {why}", reason=reason)
        return Unavailable(f"no server answers at {self._server}: {why}", reason="NO_SERVER")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def access() -> Access:
    """What the options say, and for the token the environment where they say nothing."""
    from allocator.client.channel import Access

    options = _options or {name: os.environ.get(variable, "") for name, variable in VARIABLES.items()}
    tls = str(options["tls"]).lower() in ("true", "1", "yes")
    token = "" if options["token_file"] else os.environ.get("ALLOCATOR_TOKEN", "")
    return Access(tls=tls, token=token, **{name: options[name] for name in DOOR if name != "tls"})


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options that open a server's door: --tls, --tls-ca, --tls-cert, --tls-key, --token-file."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        _options.clear()
        _options.update({name: given.pop(name) for name in DOOR})
        command(**given)

    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    own = [parameter.replace(annotation=hints[parameter.name]) for parameter in signature.parameters.values()]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in DOOR.items()
    ]
    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, **{name: kind for name, (kind, _) in DOOR.items()}}
    return run


def reached(server: str, timeout: float, store: str) -> Any:
    """The server, or with a store's address the store itself. Use it as a context manager."""
    if not store:
        return Operator(server, timeout)
    from allocator.server import logs
    from allocator.server.offline import Offline

    logs.for_commands()
    return Offline(store)


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
StoreAddress = Annotated[
    str,
    typer.Option(
        "--store", metavar="STORE", help="Work on this store itself, without a server.", show_default=False, rich_help_panel="Connection"
    ),
]
Reason = Annotated[str, typer.Option("--reason", metavar="WHY", help="Why; goes to the audit.", show_default=False)]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]
OutputView = Annotated[View, typer.Option("--output", "-o", help="How to print it.")]


def _file(flag: str, variable: str, text: str) -> Any:
    return Annotated[
        str, typer.Option(flag, metavar="FILE", envvar=variable, help=text, show_default=False, rich_help_panel="Connection")
    ]


VARIABLES = {
    "tls": "ALLOCATOR_TLS",
    "tls_ca": "ALLOCATOR_TLS_CA",
    "tls_cert": "ALLOCATOR_CLIENT_CERT",  # ALLOCATOR_TLS_CERT and _KEY are the server's own
    "tls_key": "ALLOCATOR_CLIENT_KEY",
    "token_file": "ALLOCATOR_TOKEN_FILE",
}


DOOR: dict[str, tuple[Any, Any]] = {
    "tls": (
        Annotated[
            bool,
            typer.Option(
                "--tls", envvar=VARIABLES["tls"], help="Encrypt, and trust what this machine trusts.", rich_help_panel="Connection"
            ),
        ],
        False,
    ),
    "tls_ca": (_file("--tls-ca", VARIABLES["tls_ca"], "Encrypt, and trust this authority alone."), ""),
    "tls_cert": (_file("--tls-cert", VARIABLES["tls_cert"], "Your certificate, for servers that ask for one."), ""),
    "tls_key": (_file("--tls-key", VARIABLES["tls_key"], "Its key."), ""),
    "token_file": (
        _file("--token-file", VARIABLES["token_file"], "The file that holds your token; or put the token itself into ALLOCATOR_TOKEN."),
        "",
    ),
}
_options: dict[str, Any] = {}
