"""A clock that tests move, entropy that tests can repeat, a small experiment, and small disks that a test fills."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from allocator.core.experiment import Arm, Experiment, Exposure, Guardrail, Reward
from allocator.core.experiment_rules import checked

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell, and what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

START = 1_800_000_000.0


class ManualClock:
    """Time that moves when a test says so. `monotonic` has another beginning than `now`, and does not see the wall clock being set."""

    def __init__(self, at: float = START) -> None:
        self.at = at
        self.ahead = 0.0  # of the time that passed: what the wall clock was set by

    def now(self) -> float:
        return self.at + self.ahead

    def monotonic(self) -> float:
        return self.at - START + 10_000.0

    def pass_(self, seconds: float) -> None:
        self.at += seconds

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock alone, so much forward or back."""
        self.ahead += seconds


class SeededEntropy:
    """The same bytes for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = 0

    def bytes(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            self._count += 1
            found += hashlib.blake2b(f"{self._seed}/{self._count}".encode()).digest()
        return found[:count]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def entropy() -> SeededEntropy:
    return SeededEntropy()


def two_arms(**changes: object) -> Experiment:
    """`old` (incumbent) and `new`, reward `click`, one guardrail on `error`."""
    values: dict[str, object] = {
        "name": "ranker",
        "arms": (Arm("old", incumbent=True, model_uri="models:/ranker/1"), Arm("new", model_uri="models:/ranker/2")),
        "reward": Reward("click"),
        "exposure": Exposure(total=0.5),
        "guardrails": (Guardrail("errors", "error", max=0.02),),
    }
    return checked(**{**values, **changes})


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs of a size; skips where that is not permitted."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        where = tmp_path / "disk"
        where.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a tmpfs is not permitted here")
        mounted.append(where)
        return where

    yield mount
    for where in mounted:
        subprocess.run(["umount", str(where)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk. Returns the file to remove for some."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return filler
