"""Every benchmark still runs: once, on sizes that mean nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ONCE = ("--benchmark-min-rounds=1", "--benchmark-max-time=0.001", "--benchmark-min-time=0.000001", "--benchmark-warmup=off")
OPTIONAL = {  # peers that come with an extra
    "bench_local.py": ("growthbook", "openfeature", "mabwiser"),
    "bench_simulation.py": ("mabwiser", "river"),
    "bench_update.py": ("mabwiser",),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "benchmarks").glob("bench_*.py")))
def test_a_benchmark_runs(name, tmp_path):
    command = [sys.executable, "-m", "pytest", f"benchmarks/{name}", "--tiny", "-q", "-rA", "-p", "no:cacheprovider", *ONCE]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}  # no worker of these tests
    found = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'own'}"], cwd=ROOT, env=alone, capture_output=True, text=True, timeout=380, check=False
    )
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-1000:]
    assert f"PASSED benchmarks/{name}::" in found.stdout
    if all(importlib.util.find_spec(peer) is not None for peer in OPTIONAL.get(name, ())):
        assert not any(line.startswith("SKIPPED") for line in found.stdout.splitlines())
