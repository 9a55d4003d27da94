"""The way to a server: its address, who it must prove to be, and who we say we are.

In: an address and an `Access`. Out: a channel for threads or for asyncio, and the metadata that each call carries. Every part of the
client and of the command line opens its channel here, so that what protects one protects all. The token goes with each call as metadata:
gRPC's own call credentials refuse plain connections, loopback included, and run a thread for each call; interceptors cost as much as a
decision.

A token is not sent unencrypted to another machine: whoever listens could use it. Insist with `insecure` where something else encrypts.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from allocator.errors import InvalidArgument

LOOK_SECONDS = 1.0  # between two looks at a token's file
Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Access:
    """What opens a server's door. All paths are of PEM files; "" is none.

    tls: encrypt, and trust what the machine trusts. tls_ca: encrypt, and trust this authority alone. tls_cert, tls_key: who we are, for
    servers that ask for a certificate. token or token_file: the bearer token, or the file that holds it, which is read again when it
    changes; while it cannot be read, the token read last is used. insecure: send a token unencrypted also to another machine.
    """

    tls: bool = False
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    insecure: bool = False
    _read: tuple[Any, Metadata] = field(default=(None, ()), repr=False, compare=False)
    _looked: float = field(default=float("-inf"), repr=False, compare=False)

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "tls-key" if self.tls_cert else "tls-cert"
            raise InvalidArgument.of_field(missing, "got nothing; a certificate and its key go together")
        if self.token and self.token_file:
            raise InvalidArgument.of_field("token-file", "got a token and a file; one of them is allowed")

    @property
    def encrypted(self) -> bool:
        """Is the connection encrypted?"""
        return self.tls or bool(self.tls_ca or self.tls_cert)

    def metadata(self) -> Metadata:
        """What each call carries: `grpc` takes it as `metadata=`. Raises InvalidArgument when the token's file cannot be read."""
        if self.token:
            return _bearer("token", self.token)
        if not self.token_file:
            return ()
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            try:
                self._look()
            except InvalidArgument:
                if not self._read[1]:  # else the one that we have may still be good, and decisions go on
                    self._looked = float("-inf")
                    raise
        return self._read[1]

    def _look(self) -> None:
        """Read the token's file if it has changed."""
        try:
            stat = os.stat(self.token_file)
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._read[0]:
                self._read = seen, _bearer("token-file", Path(self.token_file).read_text(encoding="ascii"))
        except OSError as exc:
            raise InvalidArgument.of_field("token-file", f"{self.token_file} cannot be read: {exc.strerror}", reason="CANNOT_READ") from exc
        except UnicodeDecodeError as exc:
            raise _no_token("token-file") from exc


OPEN = Access()


def channel(address: str, access: Access = OPEN, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """A channel for threads. address: host:port.

    Raises InvalidArgument for a file that cannot be read, and for a token that others could overhear.
    """
    credentials = _credentials(address, access)
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def aio_channel(address: str, access: Access = OPEN, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """As `channel`, for asyncio: call it inside a running loop."""
    credentials = _credentials(address, access)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _credentials(address: str, access: Access) -> grpc.ChannelCredentials | None:
    if not access.encrypted:
        if (access.token or access.token_file) and not access.insecure and not _is_here(address):
            raise InvalidArgument.of_field(
                "tls-ca",
                f"got nothing, and {address} is another machine: the token would travel unencrypted; name the authority of its certificate,"
                " or use --tls for those that this machine trusts",
                reason="TOKEN_UNENCRYPTED",
            )
        return None
    root, key, chain = (
        _pem(name, path) for name, path in (("tls-ca", access.tls_ca), ("tls-key", access.tls_key), ("tls-cert", access.tls_cert))
    )
    return grpc.ssl_channel_credentials(root, key, chain)


def _is_here(address: str) -> bool:
    """Does the address stay on this machine?"""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pem(name: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise InvalidArgument.of_field(name, f"{path} cannot be read: {exc.strerror}", reason="CANNOT_READ") from exc


def _bearer(name: str, token: str) -> Metadata:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise _no_token(name)
    return (("authorization", f"Bearer {token}"),)


def _no_token(name: str) -> InvalidArgument:
    return InvalidArgument.of_field(name, "holds no token: one line without spaces is allowed", reason="CANNOT_READ")
