"""TLS of the listener: PEM files in, gRPC credentials out, read again when the files change.

A certificate that is renewed in place (a mounted secret, an ACME client) is used from the next handshake on, without a restart; files that
are being replaced, or are broken, leave the certificate that was read last in use, and say so in the log. gRPC's core speaks TLS 1.2 and
1.3 and nothing older. With a client authority, only clients with a certificate of it get as far as a call.
"""

from __future__ import annotations

import os
import ssl
import stat

import grpc
import structlog

from allocator.errors import InvalidArgument

log = structlog.get_logger()


class Certificates:
    """The files of a listener: certificate chain, its key, and the authority of clients ("" to ask clients for none)."""

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        self._paths = (cert, key, client_ca)
        self._seen: tuple[tuple[int, int, int], ...] = ()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for `add_secure_port`. Raises InvalidArgument for a file that cannot be read or a key that does not fit."""
        first = self._read()
        if os.stat(self._paths[1]).st_mode & stat.S_IROTH:
            log.warning("tls.key_readable_by_all", path=self._paths[1])
        return grpc.dynamic_ssl_server_credentials(first, self._changed, require_client_authentication=bool(self._paths[2]))

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake: what to use from now on, or None for what is in use."""
        try:
            return None if self._look() == self._seen else self._read()
        except (InvalidArgument, OSError) as error:
            log.error("tls.not_reloaded", error=str(error))
            return None

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (os.stat(path) for path in self._paths if path))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        for name, path in zip(FLAGS, self._paths, strict=True):
            _pem(name, path)  # says which cannot be read
        seen = self._look()  # before they are read: what changes meanwhile is seen at the next handshake
        cert, key, client_ca = (_pem(name, path) for name, path in zip(FLAGS, self._paths, strict=True))
        _check_pair(*self._paths[:2])
        self._seen = seen
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca or None)


FLAGS = ("tls-cert", "tls-key", "tls-client-ca")


def _pem(name: str, path: str) -> bytes:
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise InvalidArgument.of_field(name, f"{path} cannot be read: {exc.strerror}", reason="CANNOT_READ") from exc


def _check_pair(cert: str, key: str) -> None:
    """gRPC would take a key that does not fit and then fail each handshake without a word."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError as exc:
        raise InvalidArgument.of_field("tls-key", f"{key} is not the key of {cert}: {exc.reason}", reason="CANNOT_READ") from exc
