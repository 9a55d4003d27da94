"""What was counted, as messages."""

from __future__ import annotations

from collections.abc import Iterable

from allocator.core.experiment import Experiment
from allocator.core.summary import Row
from allocator.v1 import operator_service_pb2 as pb
from allocator.wire.scalars import duration, timestamp


def rows_to_messages(experiment: Experiment, rows: Iterable[Row], *, buckets: bool = False) -> list[pb.StatisticsRow]:
    """Rows with names for indices. buckets: say the bucket too."""
    found = []
    for row in rows:
        message = pb.StatisticsRow(
            arm=experiment.arms[row.arm].name,
            segment=experiment.segment_names[row.segment],
            statistic=pb.Statistic.Value(f"STATISTIC_{row.statistic.value}"),
            guardrail=row.guardrail,
            count=row.count,
            total=row.total,
            squares=row.squares,
        )
        if buckets:
            message.bucket_time.CopyFrom(timestamp(row.bucket))
            message.bucket_width.CopyFrom(duration(row.width))
        found.append(message)
    return found
