"""Rehearsal: bandit policies at kernel speed, whole experiments through the core that serves, and certificates before a launch."""

from allocator.simulation.bandit import POLICIES, Runs, simulate
from allocator.simulation.estimators import BernoulliThompson
from allocator.simulation.replay import Replayed, replay
from allocator.simulation.scenario import Scenario
from allocator.simulation.study import Study, study
from allocator.simulation.summary import Proportion, Summary, proportion, summarise

__all__ = [
    "POLICIES",
    "BernoulliThompson",
    "Proportion",
    "Replayed",
    "Runs",
    "Scenario",
    "Study",
    "Summary",
    "proportion",
    "replay",
    "simulate",
    "study",
    "summarise",
]
