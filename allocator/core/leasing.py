"""How much of a budget a decider should hold: its spending in, the size of its next block out.

A lease follows its use: its size doubles when half of it was spent between two looks, and halves when hardly any of it was. The clock is
not asked: how often one looks sets the scale. A server keeps one for its own decider, an in-process client one for itself. Standard
library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from allocator.core.gate import Block

LEAST = 16  # exposures in a lease that is hardly used, where the limit is far
MOST = 1 << 20


@dataclass(slots=True)
class Lease:
    """What was handed over for one arm and kind, in one activation. spent_before: what its decider had spent when that began."""

    activation: int = -1
    spent_before: int = 0
    serial: int = 0
    granted: int = 0
    size: int = LEAST
    seen: int = 0  # spent at the last look

    def left(self, spent: int) -> int:
        """What the decider still holds, when it has spent so much in all."""
        return max(self.granted - (spent - self.spent_before), 0)

    def wanted(self, activation: int, spent: int) -> int:
        """How much the lease should grow by; 0 while it is more than half full. A later activation has lost what was held before."""
        if activation != self.activation:
            self.activation, self.spent_before, self.granted, self.seen = activation, spent, 0, spent
        used, self.seen = spent - self.seen, spent
        if 2 * used >= self.size:
            self.size = min(2 * self.size, MOST)
        elif 8 * used < self.size:
            self.size = max(self.size // 2, LEAST)
        left = self.left(spent)
        return self.size - left if 2 * left <= self.size else 0

    def block(self, exposures: int) -> Block:
        """The next block, of what was just granted."""
        self.serial += 1
        self.granted += exposures
        return Block(self.serial, self.activation, exposures)
