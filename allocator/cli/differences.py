"""How two specs differ, line by line.

In: messages. Out: a unified difference of their YAML, and its way to stdout. Both sides are written out in full first, with every default
said, so that two files that mean the same are the same.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from allocator.cli.connection import Operator
from allocator.cli.output import say
from allocator.cli.tables import full_name
from allocator.errors import NotFound

if TYPE_CHECKING:
    from allocator.v1 import allocator_pb2 as pb

COLOURS = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of a spec. before, after: what was compared. lines: the unified difference, none where there is none."""

    experiment: str
    before: str
    after: str
    lines: Sequence[str]

    def show(self) -> None:
        """Print it, coloured on a terminal."""
        for line in self.lines:
            say(line, COLOURS.get(line[:1], "") if sys.stdout.isatty() else "")

    def document(self) -> dict[str, Any]:
        """The same as JSON values."""
        told = {"experiment": self.experiment, "before": self.before, "after": self.after}
        return {**told, "differs": bool(self.lines), "difference": list(self.lines)}


def difference(name: str, old: Sequence[str], new: Sequence[str], before: str, after: str) -> Difference:
    """How the lines of two specs of an experiment differ. before, after: which two, in a word or two."""
    return Difference(name, before, after, list(difflib.unified_diff(old, new, f"{name} {before}", f"{name} {after}", lineterm="")))


def difference_from_server(operator: Operator, message: pb.Experiment) -> Difference:
    """How a spec differs from the one in force."""
    from allocator.v1 import operator_service_pb2 as service_pb

    name = full_name(message)
    try:
        old = lines_of(operator.call("GetExperiment", service_pb.GetExperimentRequest(experiment=name)).experiment)
    except NotFound:
        old = []
    return difference(name, old, lines_of(message), "(server)", "(file)")


def lines_of(message: pb.Experiment) -> list[str]:
    """The spec and its metadata as YAML."""
    from allocator.wire.convert import experiment_from_message, experiment_to_message
    from allocator.wire.spec import dump, to_document

    return dump([to_document(experiment_to_message(experiment_from_message(message)))]).splitlines()
