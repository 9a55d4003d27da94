"""`allocator bench` as its user runs it."""

from __future__ import annotations

import json
import subprocess
import sys


def bench(*arguments):
    return subprocess.run([sys.executable, "-m", "allocator", "bench", *arguments], capture_output=True, text=True, timeout=120)


def test_a_server_of_its_own_is_measured_drawn_and_stopped(tmp_path):
    figure = tmp_path / "latency.png"
    found = bench("--self", "--rate", "50", "--duration", "1", "-o", "json", "--png", str(figure))
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert (document["calls"], document["errors"], document["rate"]) == (50, {}, 50)
    latency = document["latencyMilliseconds"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert figure.stat().st_size > 1000


def test_without_a_server_or_an_experiment_it_says_what_is_missing():
    found = bench("--server", "127.0.0.1:1", "--experiment", "ranker")
    assert (found.returncode, found.stdout) == (7, "")
    assert "no server answers at 127.0.0.1:1" in found.stderr
    found = bench()
    assert found.returncode == 2
    assert "--experiment: got neither it nor --self" in found.stderr
    found = bench("--self", "--rate", "0")
    assert found.returncode == 2
    assert "--rate: got 0.0" in found.stderr
