"""Every benchmark still runs: once, on sizes that mean nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ONCE = ("--benchmark-min-rounds=1", "--benchmark-max-time=0.001", "--benchmark-min-time=0.000001", "--benchmark-warmup=off")
OPTIONAL = {"bench_update.py": ("mabwiser",), "bench_simulation.py": ("mabwiser", "river")}  # peers that come with an extra


@pytest.mark.timeout(400)
def test_every_benchmark_runs(tmp_path):
    command = [sys.executable, "-m", "pytest", "benchmarks", "--tiny", "-q", "-rA", "-p", "no:cacheprovider", *ONCE]
    found = subprocess.run([*command, f"--basetemp={tmp_path / 'own'}"], cwd=ROOT, capture_output=True, text=True, timeout=380)
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-1000:]
    for path in (ROOT / "benchmarks").glob("bench_*.py"):
        assert f"PASSED benchmarks/{path.name}::" in found.stdout
        if all(importlib.util.find_spec(peer) is not None for peer in OPTIONAL.get(path.name, ())):
            assert not any(line.startswith("SKIPPED") and path.name in line for line in found.stdout.splitlines())
