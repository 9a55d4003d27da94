"""What workers did and heard, one JSON object a line, for the checker to judge afterwards.

In: the beginning and the end of every call. Out: lines {t, proc, op, id, type, ...}. t: monotonic seconds; type: `invoke` when a call
begins, then `ok` (it was answered), `fail` (it was refused: it has not happened) or `info` (nobody knows; it is asked again with the
same decision ids). A line is written before its call is made, so that whatever the store holds was asked for in the history.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class History:
    """Appends to one file. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  (closed by close)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def invoke(self, proc: str, op: str, **what: Any) -> int:
        """A call begins. Returns its number, to end it with."""
        number = next(self._numbers)
        self._write({"t": time.monotonic(), "proc": proc, "op": op, "id": number, "type": "invoke", **what})
        return number

    def end(self, number: int, type_: str, **what: Any) -> None:
        """The call ended: `ok`, `fail` or `info`."""
        self._write({"t": time.monotonic(), "id": number, "type": type_, **what})

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")) + "\n"
        with self._lock:
            self._file.write(text)


def calls(*paths: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every call as (beginning, end); one that never ended ends as `info`, at no known time."""
    for path in paths:
        begun: dict[int, dict[str, Any]] = {}
        with open(path, encoding="utf-8") as lines:
            for text in lines:
                line = json.loads(text)
                if line["type"] == "invoke":
                    begun[line["id"]] = line
                else:
                    yield begun.pop(line["id"]), line
        for first in begun.values():
            yield first, {"t": float("inf"), "id": first["id"], "type": "info"}
