"""The demo from outside, as a newcomer's terminal or pipeline sees it, and its words and pictures as values.

Two runs are real: a server process, a store on disk, models, traffic. They are told apart by their length only.
"""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from allocator.core.audit import first_broken
from allocator.demo import story
from allocator.demo.frame import ArmRow, Event, Frame, Gauge
from allocator.demo.models import BETTER, BROKEN, INCUMBENT, Study, train
from allocator.demo.run import demo
from allocator.demo.table import arms_table
from allocator.errors import InvalidArgument
from allocator.stores.sqlite import SqliteStore

SCRIPT = "import sys; from pathlib import Path; from allocator.demo.run import demo; sys.exit(demo({}, Path(sys.argv[1]), {}, False))"
SEED = 3  # its broken candidate is caught early, so that a short run is enough
ENDLESS = 60.0


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    errors: str
    output: Path

    @property
    def traffic(self) -> list[str]:
        """The lines that begin with the time of the traffic."""
        return [
            line for line in self.out.splitlines() if re.match(r" *\d+\.\d\d s  ", line) and "server ready" not in line
        ]


def start(output: Path, seconds: float, seed: int = SEED) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(seed, seconds), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen[str], output: Path) -> Finished:
    out, errors = process.communicate(timeout=120)
    return Finished(process.returncode, out, errors, output)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Finished]:
    """Of 8 s and of 4 s, at the same time."""
    long, short = tmp_path_factory.mktemp("long") / "made" / "here", tmp_path_factory.mktemp("short")
    both = start(long, 8), start(short, 4)
    return finish(both[0], long), finish(both[1], short)


@pytest.fixture
def eight_seconds(two_runs: tuple[Finished, Finished]) -> Finished:
    return two_runs[0]


@pytest.fixture(scope="module")
def study() -> Study:
    return train(SEED)


def test_the_demo_ends_well_without_a_terminal_and_prints_plain_lines(eight_seconds: Finished) -> None:
    assert eight_seconds.code == 0, eight_seconds.errors
    assert "Traceback" not in eight_seconds.errors
    assert "\x1b" not in eight_seconds.out
    assert eight_seconds.out.isascii()
    assert "800 requests were decided, and 800 outcomes counted." in eight_seconds.out


def test_the_broken_candidate_is_drained_and_gets_nothing_from_then_on(eight_seconds: Finished) -> None:
    drained = [line for line in eight_seconds.traffic if f"{BROKEN} DRAINED by guardrail errors" in line]
    assert len(drained) == 1
    after = eight_seconds.traffic[eight_seconds.traffic.index(drained[0]) + 1 :]
    received = {
        re.search(rf"{BROKEN}: weight 0.0%, .* of (\d+), P\(best\) 0.0%, DRAINED", line)[1]
        for line in after
        if "**" not in line
    }
    assert len(received) == 1
    assert f"{BROKEN} was caught after" in " ".join(eight_seconds.out.split())


def test_the_better_candidate_rises_under_its_cap(eight_seconds: Finished) -> None:
    weights = [
        float(found[1]) for line in eight_seconds.traffic if (found := re.search(rf"{BETTER}: weight (\d+\.\d)%", line))
    ]
    assert weights[0] < weights[-1] <= 30  # per cent, the cap of the second stage: it begins in the eighth second, or just after it
    assert "together never more than the cap" in " ".join(eight_seconds.out.split())


def test_the_figure_is_a_png_of_legible_size(eight_seconds: Finished) -> None:
    content = (eight_seconds.output / "demo.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
    assert (width, height) == (1235, 1170)
    assert len(content) > 50_000  # drawn on: an empty canvas of this size has about 8,000 bytes


def test_the_store_that_is_left_holds_what_was_told(eight_seconds: Finished) -> None:
    store = SqliteStore(eight_seconds.output / "demo.db")
    try:
        records = store.audit()
        [record] = store.records()
    finally:
        store.close()
    assert first_broken(records) == 0
    assert [r.entry.action for r in records][:2] == ["experiment.create", "experiment.start"]
    assert record.status.drained == (BROKEN,)
    assert record.status.recommended == BETTER


def test_a_seed_tells_the_same_story_again_as_far_as_it_goes(two_runs: tuple[Finished, Finished]) -> None:
    long, short = two_runs
    assert short.code == 0, short.errors
    assert len(short.traffic) >= 4 + 2  # a line a second, the start, the drain
    assert short.traffic == long.traffic[: len(short.traffic)]


def test_ctrl_c_stops_the_server_and_exits_130_without_a_traceback(tmp_path: Path) -> None:
    process = start(tmp_path, ENDLESS)
    for line in process.stdout:
        if line.startswith("  1.00 s"):
            break
        if "server ready" in line:
            address = re.search(r"on (\S+):(\d+),", line)
    process.send_signal(signal.SIGINT)
    stopped = finish(process, tmp_path)
    assert stopped.code == 130
    assert stopped.errors == "\nstopped, and the server with it\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address[1], int(address[2])), timeout=5).close()


def test_a_store_that_another_process_has_open_is_not_touched(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "demo.db")
    secret = store.secret()
    try:
        refused = finish(start(tmp_path, 4), tmp_path)
        assert refused.code == 1
        assert "another process" in refused.errors
    finally:
        store.close()
    store = SqliteStore(tmp_path / "demo.db")
    assert store.secret() == secret
    store.close()


@pytest.mark.parametrize(("seed", "seconds"), [(-1, 10), (2**32, 10), (0, 0.5), (0, 1e9), (0, float("nan"))])
def test_bad_arguments_are_refused_before_anything_starts(seed: int, seconds: float, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"got .* allowed"):
        demo(seed, tmp_path / "unmade", seconds, True)
    assert not (tmp_path / "unmade").exists()


def test_the_versions_are_worse_better_and_broken(study: Study) -> None:
    assert 0.80 < study.accuracy(INCUMBENT) < 0.95 < study.accuracy(BETTER)
    failed = [study.attempt(BROKEN, index)[1] for index in range(len(study.labels))]
    assert 0.3 < sum(failed) / len(failed) < 0.5
    answered = [study.attempt(BROKEN, index)[0] for index in range(len(study.labels)) if not failed[index]]
    assert sum(answered) / len(answered) > 0.95  # what it answers is as good as the better one's


def test_training_is_fixed_by_the_seed(study: Study) -> None:
    again, other = train(SEED), train(SEED + 1)
    assert (again.images == study.images).all()
    assert (other.images != study.images).any()
    assert again.accuracy(INCUMBENT) == study.accuracy(INCUMBENT)


def test_the_table_fits_into_80_columns(frame: Frame) -> None:
    console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    console.print(arms_table(frame))
    text = console.export_text()
    assert "…" not in text
    for word in (
        "digits-v1",
        "incumbent",
        "drained",
        "active",
        "47.5%",
        "cap 50%",
        "97.1-99.9",
        "100.0%",
        "118% errors",
    ):
        assert word in text


def test_the_summary_admits_that_the_broken_candidate_was_not_caught(frame: Frame) -> None:
    active = tuple(replace(row, state="ACTIVE") if row.name == BROKEN else row for row in frame.arms)
    told = " ".join(story.summary([replace(frame, arms=active)], []))
    assert f"{BROKEN} is broken and was NOT caught" in told
    assert not story.caught([replace(frame, arms=active)])


def test_the_summary_claims_no_cap_that_was_passed(frame: Frame) -> None:
    assert "never more than the cap" in " ".join(story.summary([frame], DRAINED))
    assert "never more than the cap" not in " ".join(story.summary([replace(frame, cap=0.3)], DRAINED))


def test_the_summary_does_not_praise_a_candidate_that_is_no_better(frame: Frame) -> None:
    worse = tuple(replace(row, prob_best=float(row.incumbent)) for row in frame.arms)
    unsure = tuple(replace(row, prob_best={BETTER: 0.7, INCUMBENT: 0.3}.get(row.name, 0.0)) for row in frame.arms)
    assert f"{BETTER} looks better than" in " ".join(story.summary([replace(frame, arms=unsure)], DRAINED))
    assert f"The incumbent {INCUMBENT} is still the best" in " ".join(
        story.summary([replace(frame, arms=worse)], DRAINED)
    )


DRAINED = [Event(2.0, "arm.drain", f"{BROKEN} DRAINED by guardrail errors")]


@pytest.fixture
def frame() -> Frame:
    clear = (Gauge("errors", 0.0, 480, 0.0, 0.05), Gauge("latency", 0.0, 480, 0.0, 250.0))
    breach = (Gauge("errors", 1.18, 20, 9.0, 0.05), Gauge("latency", 0.0, 20, 0.0, 250.0))
    return Frame(
        experiment="digits",
        seconds=10.0,
        requests=1000,
        cap=0.5,
        arms=(
            ArmRow(INCUMBENT, True, "ACTIVE", 0.525, 0.5, 1.0, 500, 500, 0.88, 0.85, 0.91, 0.0, ()),
            ArmRow(BETTER, False, "ACTIVE", 0.475, 0.48, 0.5, 480, 480, 0.988, 0.971, 0.999, 1.0, clear),
            ArmRow(BROKEN, False, "DRAINED", 0.0, 0.02, 0.5, 20, 20, 0.5, 0.3, 0.7, 0.0, breach),
        ),
    )
