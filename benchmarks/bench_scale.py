"""What do 10,000 experiments cost beside 10: a planner's pass with one change, a decision, a publication, the full snapshot, a restart?

    pytest benchmarks/bench_scale.py -s

Four arms each, running, with weights that moved 200 times (a layout of some 15 runs). The engines take turns, so that what else the machine
does hits both alike. Restarts are whole processes, `allocator serve` killed with -9 after outcomes were counted for a tenth of the
experiments; "ready" is its own line in the log. Kernels are cached: the first start of all is not counted.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from allocator.client import Client
from allocator.core.assignment import SLOTS, first_layout, move
from allocator.core.experiment import Arm, Guardrail, Reward
from allocator.core.experiment_rules import checked
from allocator.core.lifecycle import Event, Status, step
from allocator.core.outcome import Outcome, metric_names
from allocator.core.record import Record
from allocator.engine.engine import Engine
from allocator.ports import Save, SystemClock, SystemEntropy
from allocator.server.watch import changes
from allocator.stores.sqlite import SqliteStore
from tests.processes import Server, served

SIZES = (10, 10_000)
RNG = random.Random(0)
BATCH = 500
CLOCK = SystemClock()
PASSES = 40
CALLS = 1250  # of a turn
EXPOSED = 20  # decisions of each experiment
SETTLE_SECONDS = 0.3  # after a server was stopped for a turn
QUIET_SHARE = 0.15  # of a core
TURNS = 4  # starts of a server, the first not counted
TINY = {"SIZES": (10, 60), "PASSES": 2, "TURNS": 2, "CALLS": 20, "EXPOSED": 3, "SETTLE_SECONDS": 0.0, "QUIET_SHARE": 9.0}
NOT_TINY = ("test_ready_again_after_kill[1000]", "test_ready_again_after_kill[10000]")  # [10] does the same


def records(count: int) -> list[Record]:
    """Running experiments, alike but for name, uid and salt."""
    arms = (Arm("v0", incumbent=True), *(Arm(f"v{i}") for i in range(1, 4)))
    spec = checked(name="e", arms=arms, reward=Reward("click"), guardrails=(Guardrail("errors", "error", max=0.02),))
    slots, layout = (SLOTS // 4,) * 4, first_layout([SLOTS // 4] * 4)
    for _ in range(200):
        slots = tuple(np.bincount(np.array(RNG.choices(range(4), k=64)), minlength=4) * (SLOTS // 64))
        slots = tuple(int(each) for each in slots)
        layout = move(layout, slots)
    now = CLOCK.now()
    status = step(Status(), Event.STARTED, reason="bench", now=now)
    first = Record("", spec, b"", status=status, layouts=(layout,), slots=(slots,), metrics=metric_names(spec), created_seconds=now)
    return [
        replace(first, uid=RNG.randbytes(8).hex(), salt=RNG.randbytes(16), experiment=replace(spec, name=f"e{number}"))
        for number in range(count)
    ]


def filled(path: Path, count: int) -> None:
    """A store with so many."""
    store = SqliteStore(path)
    made = records(count)
    for start in range(0, count, BATCH):
        assert not any(store.save([Save(record, None) for record in made[start : start + BATCH]]))
    store.close()


def resident(process: int | str = "self") -> float:
    """MB of memory that a process has now, this one or that of the number."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def milliseconds(seconds: list[float], share: float) -> float:
    return statistics.quantiles(seconds, n=1000)[int(share * 1000) - 1] * 1e3


def decide(engine: Engine, name: str, unit: bytes):
    entry = engine.live.snapshot.entries[name]
    return engine.decider.decide(entry, unit, {}, CLOCK.now(), engine.entropy.bytes(8), stale=engine.live.stale(entry))


def test_a_pass_a_decision_and_a_publication(tmp_path):
    engines = {}
    for size in SIZES:
        filled(tmp_path / f"{size}.db", size)
        before, started = resident(), time.perf_counter()
        engine = engines[size] = Engine(SqliteStore(tmp_path / f"{size}.db"), CLOCK, SystemEntropy())
        engine.start(threads=False)
        started = time.perf_counter() - started
        passes = 1
        while engine.planner._agenda.waiting():
            engine.planner.tick()
            passes += 1
        for number in range(size):
            decide(engine, f"default/e{number}", b"first")  # a decider sets up what it keeps of each
        print(
            f"{size:6} experiments: {started:.2f} s to load and plan the first, all looked at after {passes} passes;"
            f" {resident() - before:.0f} MB"
        )
    times: dict[int, dict[str, list[float]]] = {size: {"decision": [], "pass, one change": [], "pass, none": []} for size in SIZES}
    for _ in range(PASSES):
        for size, engine in engines.items():
            names = [f"default/e{RNG.randrange(size)}" for _ in range(500)]
            for number, name in enumerate(names):
                started = time.perf_counter()
                decision = decide(engine, name, b"%d" % number)
                times[size]["decision"].append(time.perf_counter() - started)
            engine.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])
            for what in ("pass, one change", "pass, none"):
                started = time.perf_counter()
                engine.planner.tick()
                times[size][what].append(time.perf_counter() - started)
    for what in times[10]:
        small, large = ({share: milliseconds(times[size][what], share) for share in (0.5, 0.99)} for size in SIZES)
        print(
            f"{what:17} p50 {small[0.5]:.4f} and {large[0.5]:.4f} ms ({large[0.5] / small[0.5]:.2f} x),"
            f" p99 {small[0.99]:.4f} and {large[0.99]:.4f} ms ({large[0.99] / small[0.99]:.2f} x)"
        )
    for size, engine in engines.items():
        entry = engine.live.snapshot.entries["default/e7"]
        spent = []
        for number in range(200):
            started = time.perf_counter()
            engine.live.publish([replace(entry, version=entry.version + 1 + number)])
            spent.append(time.perf_counter() - started)
        started = time.perf_counter()
        snapshot, entries, removed, full = engine.live.changes_since(0)
        pieces = [message.SerializeToString() for message in changes(snapshot.sequence, "life", entries, removed, full, frozenset())]
        took = time.perf_counter() - started
        print(
            f"{size:6} experiments: publishing one {statistics.median(spent) * 1e6:.0f} us;"
            f" full snapshot {sum(map(len, pieces)) / 1e6:.2f} MB"
            f" in {len(pieces)} pieces of at most {max(map(len, pieces)) / 1e6:.2f} MB, {took:.2f} s"
        )
        engine.close()


def test_what_exposures_cost_with_traffic_on_all(tmp_path):
    """Nearly every decision is then alone in its experiment, and 10 s pass until it has another. The processor's time of each step."""
    count = SIZES[1]
    filled(tmp_path / "a.db", count)
    store = SqliteStore(tmp_path / "a.db")
    engine = Engine(store, CLOCK, SystemEntropy())
    engine.start(threads=False)
    entries = list(engine.live.snapshot.entries.values())
    now, flush = CLOCK.now(), count // 40
    spent: Counter[str] = Counter()
    rows = decisions = 0
    for number in range(EXPOSED * count):
        at = now + number * 10 / count
        engine.decider.decide(RNG.choice(entries), b"%d" % number, {}, at, RNG.randbytes(8))
        if number % flush == flush - 1:
            started = time.process_time()
            taken = []
            while engine.decider.waiting(at):
                taken += engine.decider.take(at)
            took = time.process_time()
            made = engine.ingest.rows(taken)
            ready = time.process_time()
            store.add([], made)
            if number >= count:  # in the first round the store gives each experiment its number
                spent.update({"take": took - started, "make ready": ready - took, "store": time.process_time() - ready})
                rows, decisions = rows + len(made), decisions + flush
    told = ", ".join(f"{what} {seconds / decisions * 1e6:.1f} us" for what, seconds in spent.items())
    print(f"exposures of {count} experiments, one decision in 10 s each: {rows / decisions:.2f} rows a decision; of each, {told}")
    engine.close()


def processor_seconds(process: int) -> float:
    """How long a process has worked."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("size", [10, 1_000, 10_000])
def test_ready_again_after_kill(tmp_path, size):
    filled(tmp_path / "a.db", size)
    seconds, processor, memory = [], [], 0.0
    for turn in range(TURNS):
        started = time.perf_counter()
        server = Server(f"sqlite:{tmp_path / 'a.db'}")
        took, worked = time.perf_counter() - started, processor_seconds(server.process.pid)
        with Client(server.address, decide_timeout=30, report_timeout=30) as client:
            for number in range(0, size, 10):
                decision = client.decide(f"e{number}", unit=f"u{turn}", fallback="v0")
                client.report(decision.id, reward=1.0, metrics={"error": 0.0})
        memory = resident(server.process.pid)
        server.kill()
        if turn:
            seconds.append(took)
            processor.append(worked)
    print(
        f"{size:6} experiments: ready {min(seconds):.2f} to {max(seconds):.2f} s after the start, of which the processor worked"
        f" {min(processor):.2f} to {max(processor):.2f} s; {memory:.0f} MB resident"
    )


def test_a_decision_over_grpc(tmp_path):
    """One client, one call at a time, another experiment each time; both servers have answered for every experiment before.

    The other server is stopped meanwhile. First while the planner still looks at each experiment once, as after every start; then when
    it has.
    """
    with contextlib.ExitStack() as stack:
        servers, clients = {}, {}
        for size in SIZES:
            filled(tmp_path / f"{size}.db", size)
            servers[size] = stack.enter_context(served(f"sqlite:{tmp_path / f'{size}.db'}"))
            clients[size] = stack.enter_context(Client(servers[size].address, decide_timeout=30, report_timeout=30))
            for number in range(size):
                clients[size].decide(f"e{number}", unit="first")
        for when in ("after the start", "later"):
            if when == "later":
                alone(servers, SIZES[1])
                calm(servers[SIZES[1]].process.pid)
            spent: dict[int, list[float]] = {size: [] for size in SIZES}
            for turn in range(4):
                for size, client in clients.items():
                    alone(servers, size)
                    for number in range(CALLS):
                        name = f"e{RNG.randrange(size)}"
                        started = time.perf_counter()
                        client.decide(name, unit=f"{when}-{turn}-{number}")
                        spent[size].append(time.perf_counter() - started)
            for share in (0.5, 0.99):
                small, large = (milliseconds(spent[size], share) for size in SIZES)
                told = f"{small:.3f} ms with {SIZES[0]}, {large:.3f} ms with {SIZES[1]} ({large / small:.2f} x)"
                print(f"Decide over gRPC {when}, p{share * 100:.0f}: {told}")


def alone(servers: dict[int, Server], size: int) -> None:
    """Let only this server go on: what the other does would be counted against it. Longer than a term, and the other plans all anew."""
    for other, server in servers.items():
        server.signal(signal.SIGCONT if other == size else signal.SIGSTOP)
    time.sleep(SETTLE_SECONDS)


def calm(process: int) -> None:
    """Wait until the server has little to do, at most three minutes."""
    for _ in range(180):
        before = processor_seconds(process)
        time.sleep(1)
        if processor_seconds(process) - before < QUIET_SHARE:
            return
    print("the server was still busy after three minutes")
