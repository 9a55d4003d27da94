"""Rehearsal: bandit policies at kernel speed, whole experiments through the core that serves, and certificates before a launch."""

from allocator.simulation.bandit import POLICIES, Runs, simulate
from allocator.simulation.estimators import BernoulliThompson
from allocator.simulation.summary import Proportion, Summary, proportion, summarise

__all__ = ["POLICIES", "BernoulliThompson", "Proportion", "Runs", "Summary", "proportion", "simulate", "summarise"]
