"""What a server asks of Python itself, so that no decision waits for what else the process does.

Decisions are made in one thread, plans and commits in others, and one at a time has the interpreter. Python's own settings favour whoever
has it: 5 ms, where a decision takes 0.01. What a commit needs of it with traffic on thousands of experiments is therefore done in the event
loop, in pieces (`intake.py`), and a plan that can wait pauses between its steps (`engine/planner.py`).
"""

from __future__ import annotations

import gc
import sys

SWITCH_SECONDS = 50e-6  # after which a thread that computes gives the interpreter to one that waits for it
COLLECTIONS = 2000, 5, 1000  # garbage: nearly all is gone in the first two; the third walks everything, 0.1 s with 10,000 experiments


def favour_decisions() -> None:
    """For this process, once it has loaded what stays."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what was loaded stays: walking it again and again would hold decisions up
    gc.set_threshold(*COLLECTIONS)
