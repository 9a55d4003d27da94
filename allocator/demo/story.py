"""The end of the demo in words: who won, what the broken candidate cost, and what an operator would do next.

In: the frames and events of a run. Out: lines of ASCII. Every sentence is read off the frames, so that a run that
went otherwise (a candidate that was not caught, a run cut short) is told as it went.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allocator.demo.frame import Event, Frame, frame_at
from allocator.demo.models import BROKEN
from allocator.demo.table import percent

SURE = 0.99  # P(best) from which on a winner is called one


def summary(frames: Sequence[Frame], events: Sequence[Event]) -> list[str]:
    """What happened, a sentence or two each. Needs at least one frame."""
    last = frames[-1]
    return [_winner(last), _broken(last, events), _exposure(frames, events), _count(last)]


def caught(frames: Sequence[Frame]) -> bool:
    """Was the broken candidate stopped?"""
    return frames[-1].arm(BROKEN).drained


def title(frames: Sequence[Frame], events: Sequence[Event]) -> str:
    """The run in a line, for the figure."""
    best = max(frames[-1].arms, key=lambda row: row.prob_best)
    at = _caught_at(events)
    ending = f"{BROKEN} is not caught" if at is None else f"{BROKEN} is drained after {at:g} s"
    return f"{ending}, {best.name} ends with weight {percent(best.weight)}"


def next_steps(last: Frame, figure: Path, store: Path) -> list[str]:
    """Where the files are, and the commands that an operator would try next."""
    best = max(last.arms, key=lambda row: row.prob_best)
    return [
        f"The figure: {figure}",
        "The experiment waits as the demo left it. Serve it again, and in another terminal look and decide:",
        f"  allocator serve --store sqlite:{store}",
        f"  allocator describe {last.experiment}",
        f"  allocator audit list {last.experiment}",
        f'  allocator conclude {last.experiment} --winner {best.name} --reason "better on all counts"',
    ]


def _winner(last: Frame) -> str:
    best = max(last.arms, key=lambda row: row.prob_best)
    incumbent = next(row for row in last.arms if row.incumbent)
    if best.incumbent:
        return f"The incumbent {best.name} is still the best: P(best) = {best.prob_best:.3f}."
    mine, theirs = (
        f"{percent(row.mean)} ({row.low * 100:.1f} to {row.high * 100:.1f}, from {row.outcomes:,} requests)"
        for row in (best, incumbent)
    )
    verb = "is" if best.prob_best >= SURE else "looks"
    return (
        f"{best.name} {verb} better than the incumbent: it is right on {mine}, {incumbent.name} on {theirs}."
        f" P({best.name} is best) = {best.prob_best:.3f}, and it ends with {percent(best.weight)} of the weight."
    )


def _broken(last: Frame, events: Sequence[Event]) -> str:
    row = last.arm(BROKEN)
    gauge = row.worst
    at = _caught_at(events)
    if at is None or gauge is None:
        evidence = "no evidence" if gauge is None else f"{percent(gauge.share, 0)} of the evidence that stops it"
        told = f"{row.name} is broken and was NOT caught in this run: {row.decisions:,} requests, {evidence}."
        return f"{told} Let it run longer, with --seconds."
    return (
        f"{row.name} was caught after {at:g} s by guardrail {gauge.guardrail}: {gauge.bad:g} of its {gauge.exposed}"
        f" requests had gone bad. It got {percent(row.exposure)} of all requests, and nobody had to watch."
    )


def _caught_at(events: Sequence[Event]) -> float | None:
    """Seconds of traffic until the broken candidate was stopped."""
    return next((event.seconds for event in events if event.action == "arm.drain" and BROKEN in event.text), None)


def _exposure(frames: Sequence[Frame], events: Sequence[Event]) -> str:
    first, last = frames[0], frames[-1]
    steps = [f"{percent(first.cap, 0)} at first"]
    for event in events:
        if event.action == "experiment.advance":
            steps.append(f"{percent(frame_at(frames, event.seconds).cap, 0)} from {event.seconds:g} s on")
    candidates = [row for row in last.arms if not row.incumbent]
    got = ", ".join(f"{row.name} {percent(row.exposure)}" for row in candidates)
    kept = all(
        sum(row.decisions for row in frame.arms if not row.incumbent) <= frame.cap * frame.requests for frame in frames
    )
    return (
        f"Candidates were allowed {', '.join(steps)}, on evidence alone. Of all requests they got: {got}"
        f"{'; together never more than the cap' if kept else ''}."
    )


def _count(last: Frame) -> str:
    outcomes = sum(row.outcomes for row in last.arms)
    return f"{last.requests:,} requests were decided, and {outcomes:,} outcomes counted."
