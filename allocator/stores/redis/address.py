"""Where a Redis store is and how it is spoken to, from one URL.

In: `redis://`, `redis+sentinel://` or `redis+cluster://` (`rediss` instead of `redis` for TLS), with options as query parameters. Out: an
`Address`, checked. Passwords are read here and shown nowhere: neither in an error nor in the `repr` of an address.

    redis://[user[:password]@]host[:port][/db]
    redis+sentinel://[user[:password]@]host[:port],host[:port].../service[/db]
    redis+cluster://[user[:password]@]host[:port],host[:port]...
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from allocator.errors import InvalidArgument, Violation

ALONE, SENTINEL, CLUSTER = "redis", "redis+sentinel", "redis+cluster"
SCHEMES = (ALONE, SENTINEL, CLUSTER, "rediss", "rediss+sentinel", "rediss+cluster")
FORMS = "redis://host:port/db, redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port (rediss: with TLS)"
PORTS = {ALONE: 6379, SENTINEL: 26379, CLUSTER: 6379}
NUMBERS = {"wait": (0, 100), "wait_ms": (1, 60_000), "timeout_ms": (10, 60_000)}
FILES = ("password_file", "sentinel_password_file", "ca_file", "cert_file", "key_file")
TEXTS = ("prefix", "user", "sentinel_user")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@,\s]+))(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """kind: ALONE, SENTINEL or CLUSTER. hosts: of the Sentinels there, else of the servers. service: the Sentinels' name for the master.

    prefix: of every key. wait: replicas that must have a write before it is acknowledged, for at most wait_ms. timeout_ms: to connect, and
    for an answer. The files are for TLS, in PEM; "" for the system's authorities, and for no certificate of our own.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    service: str = ""
    db: int = 0
    prefix: str = "allocator"
    wait: int = 0
    wait_ms: int = 500
    timeout_ms: int = 500
    user: str = ""
    password: str = field(default="", repr=False)
    sentinel_user: str = ""
    sentinel_password: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __str__(self) -> str:
        """For people and logs."""
        scheme = self.kind.replace("redis", "rediss") if self.tls else self.kind
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        path = {ALONE: f"/{self.db}", SENTINEL: f"/{self.service}/{self.db}", CLUSTER: ""}[self.kind]
        return f"{scheme}://{hosts}{path}"


def parse(url: str) -> Address:
    """The address of a URL. Raises InvalidArgument with everything that is wrong with it."""
    faults: list[str] = []
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise _wrong([f"it is no URL: {exc}"]) from None
    if parts.scheme not in SCHEMES:
        raise _wrong([f"got the scheme {parts.scheme!r}; allowed is {FORMS}"])
    kind = parts.scheme.replace("rediss", "redis")
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    values: dict[str, object] = {
        "kind": kind,
        "tls": parts.scheme.startswith("rediss"),
        "hosts": _hosts(places, kind, faults),
        "user": unquote(user),
        "password": unquote(password),
        **_path(parts.path, kind, faults),
    }
    if parts.fragment:
        faults.append("got something behind #; a # in a password is written %23")
    _options(parts.query, values, faults)
    if faults:
        raise _wrong(faults)
    return Address(**values)  # type: ignore[arg-type]


def _hosts(places: str, kind: str, faults: list[str]) -> tuple[tuple[str, int], ...]:
    found = []
    for place in places.split(","):
        match = _HOST.fullmatch(place)
        if match is None or int(match[3] or 1) not in range(1, 65_536):
            faults.append(f"got the host {place!r}; host, host:port or [IPv6]:port is allowed, several with commas")
        else:
            found.append((match[1] or match[2], int(match[3] or PORTS[kind])))
    if kind == ALONE and len(found) > 1:
        faults.append(f"got {len(found)} hosts; one is allowed: several are for redis+sentinel:// and redis+cluster://")
    return tuple(found)


def _path(path: str, kind: str, faults: list[str]) -> dict[str, object]:
    """The service and the number of the database."""
    words = [unquote(word) for word in path.split("/")[1:] if word]
    found: dict[str, object] = {}
    if kind == SENTINEL:
        if words:
            found["service"] = words.pop(0)
        else:
            faults.append("the Sentinels' name for the master is missing: redis+sentinel://host:port/service/db")
    if kind == CLUSTER and words:
        faults.append(f"got the path {path!r}; a Cluster has one database, without a number")
    elif words and (len(words) > 1 or _number(words[0]) is None):
        faults.append(f"got the database {'/'.join(words)!r}; a number is allowed")
    elif words:
        found["db"] = _number(words[0])
    return found


def _options(query: str, values: dict[str, object], faults: list[str]) -> None:
    seen: set[str] = set()
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in seen:
            faults.append(f"got {name} twice")
        seen.add(name)
        if name in NUMBERS:
            least, most = NUMBERS[name]
            number = _number(text)
            if number is not None and least <= number <= most:
                values[name] = number
            else:
                faults.append(f"{name}: got {text!r}; a whole number from {least} to {most} is allowed")
        elif name in FILES:
            content = _read(name, text, faults)
            if name.endswith("password_file"):
                values[name.removesuffix("_file")] = content
            else:
                values[name] = text
        elif name in TEXTS:
            values[name] = text
        else:  # its value may be a secret
            faults.append(f"got the option {name!r}; allowed are {', '.join(sorted((*NUMBERS, *FILES, *TEXTS)))}")
    if not _PREFIX.fullmatch(str(values.get("prefix", "allocator"))):
        faults.append(f"prefix: got {values['prefix']!r}; 1 to 64 letters, digits, '_', '.', ':' and '-' are allowed")
    if not values["tls"] and seen & {"ca_file", "cert_file", "key_file"}:
        faults.append("a certificate needs TLS: rediss instead of redis")
    if ("cert_file" in seen) != ("key_file" in seen):
        faults.append("cert_file and key_file go together")


def _number(text: str) -> int | None:
    """Up to six digits, or None. To `int` and `isdigit`, digits are more than these: `²` is one, which then is no number."""
    return int(text) if re.fullmatch("[0-9]{1,6}", text) else None


def _read(name: str, path: str, faults: list[str]) -> str:
    try:
        return Path(path).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        faults.append(f"{name}: {path!r} cannot be read: {getattr(exc, 'strerror', None) or 'it is no text'}")
        return ""


def _wrong(faults: list[str]) -> InvalidArgument:
    return InvalidArgument(violations=[Violation("store", fault) for fault in faults], reason="INVALID_CONFIG")
