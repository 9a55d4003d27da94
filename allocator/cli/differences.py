"""How two specs differ, line by line.

In: messages. Out: a unified difference of their YAML on stdout. Both sides are written out in full first, with every default said, so that
two files that mean the same are the same.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from allocator.cli.connection import Operator
from allocator.cli.output import say
from allocator.cli.tables import full_name
from allocator.errors import NotFound

if TYPE_CHECKING:
    from allocator.v1 import allocator_pb2 as pb

COLOURS = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}


def show_difference(old: Sequence[str], new: Sequence[str], before: str, after: str) -> bool:
    """Print a unified difference of lines, coloured on a terminal. Is there one?"""
    lines = list(difflib.unified_diff(old, new, before, after, lineterm=""))
    for line in lines:
        say(line, COLOURS.get(line[:1], "") if sys.stdout.isatty() else "")
    return bool(lines)


def difference_from_server(operator: Operator, message: pb.Experiment) -> bool:
    """Print how a spec differs from the one in force. Does it?"""
    from allocator.v1 import operator_service_pb2 as service_pb

    name = full_name(message)
    try:
        old = lines_of(operator.call("GetExperiment", service_pb.GetExperimentRequest(experiment=name)).experiment)
    except NotFound:
        old = []
    return show_difference(old, lines_of(message), f"{name} (server)", f"{name} (file)")


def lines_of(message: pb.Experiment) -> list[str]:
    """The spec and its metadata as YAML."""
    from allocator.wire.convert import experiment_from_message, experiment_to_message
    from allocator.wire.spec import dump, to_document

    return dump([to_document(experiment_to_message(experiment_from_message(message)))]).splitlines()
