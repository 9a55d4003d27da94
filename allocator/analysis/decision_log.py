"""Reading the decision log: decisions with what came of them, as arrays, as one Parquet file, or as the Open Bandit Pipeline takes them.

In: the folder that `allocator serve --decision-log` writes, and the name of an experiment. Out: `Logged`. Rows are joined by decision id
and counted once: a row may stand in two files where a server was killed while it made one, and an outcome counts as the server counted it,
the first that was ACCEPTED for each metric. What lies in streams that are still open is read as well.

Decisions of in-process clients are not in the log, only their outcomes are: `strangers` says how many. They are left out, because decisions
that are known by their outcomes alone are no sample of decisions.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from allocator.analysis.off_policy import Rows
from allocator.core.decision_columns import read_claims
from allocator.errors import InvalidArgument, NotFound

Floats = NDArray[np.float64]
DRAWN = ("ALLOCATED", "DRAINED", "CAPPED")  # reasons of decisions that the weights made


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """Decisions of one experiment in the order in which they were made; arrays of shape (N,) unless said.

    arms: names by index. propensities: (N, arms), NaN where it cannot be told. reward: NaN where none came. metrics: the other values, the
    same. segment, reason: text. context: one mapping a row. strangers: outcomes of decisions that are not here.
    """

    experiment: str
    arms: tuple[str, ...]
    decision_id: NDArray[np.str_]
    seconds: Floats
    unit_hash: NDArray[np.str_]
    action: NDArray[np.int64]
    pscore: Floats
    propensities: Floats
    segment: NDArray[np.str_]
    reason: NDArray[np.str_]
    stage: NDArray[np.int64]
    snapshot_version: NDArray[np.int64]
    counted: NDArray[np.bool_]
    first_exposure: NDArray[np.bool_]
    gated: NDArray[np.bool_]
    position: Floats
    context: tuple[Mapping[str, str], ...]
    reward: Floats
    metrics: Mapping[str, Floats]
    strangers: int

    def keep(self, mask: NDArray[np.bool_]) -> Logged:
        """The rows where the mask holds."""
        arrays = {name: getattr(self, name)[mask] for name in _ARRAYS}
        context = tuple(one for one, kept in zip(self.context, mask.tolist(), strict=True) if kept)
        return replace(self, **arrays, context=context, metrics={name: value[mask] for name, value in self.metrics.items()})

    def matured(self, missing: float | None, window_seconds: float, now: float) -> Logged:
        """Rows whose reward is known, as the planner counts them: with `missing`, those whose window has passed, silence being that."""
        if missing is None:
            return self.keep(~np.isnan(self.reward))
        due = self.keep(self.seconds + window_seconds < now)
        return replace(due, reward=np.where(np.isnan(due.reward), missing, due.reward))


_ARRAYS = (
    *("decision_id", "seconds", "unit_hash", "action", "pscore", "propensities", "segment", "reason", "stage", "snapshot_version"),
    *("counted", "first_exposure", "gated", "position", "reward"),
)


def read(directory: Path, experiment: str) -> Logged:
    """All decisions of one experiment (`namespace/name`). Raises NotFound when there are none, InvalidArgument where there is no log."""
    mine = {"experiment": experiment}
    decisions = _once(_table(directory, "decisions", mine))
    if not decisions.num_rows:
        known = ", ".join(sorted(_table(directory, "decisions", {}).column("experiment").unique().to_pylist())[:10])
        raise NotFound(
            f"the decision log at {directory} has no decision of {experiment!r}; it has {known or 'none at all'}", reason="NOT_IN_THE_LOG"
        )
    number, arms = decisions.num_rows, _arms(decisions)
    reward, metrics, strangers = _outcomes(_table(directory, "outcomes", mine), decisions.column("decision_id"), number)
    vectors = np.full((number, len(arms)), np.nan)
    for row, vector in enumerate(decisions.column("propensities").to_pylist()):
        if vector is not None:
            vectors[row] = 0.0
            vectors[row, : len(vector)] = vector[: len(arms)]
    column = {name: _numpy(decisions.column(name)) for name in ("action", "pscore", "stage", "snapshot_version", "counted")}
    return Logged(
        experiment=experiment,
        arms=arms,
        decision_id=_text(decisions, "decision_id"),
        seconds=_numpy(pc.cast(decisions.column("ts"), pa.int64())) / 1e6,
        unit_hash=_text(decisions, "unit_hash"),
        action=column["action"].astype(np.int64),
        pscore=column["pscore"],
        propensities=vectors,
        segment=_text(decisions, "segment"),
        reason=_text(decisions, "reason"),
        stage=column["stage"].astype(np.int64),
        snapshot_version=column["snapshot_version"],
        counted=column["counted"],
        first_exposure=_numpy(decisions.column("first_exposure")),
        gated=_numpy(decisions.column("gated")),
        position=np.array([np.nan if value is None else float(value) for value in decisions.column("position").to_pylist()]),
        context=tuple(dict(value or ()) for value in decisions.column("context").to_pylist()),
        reward=reward,
        metrics=metrics,
        strangers=strangers,
    )


def off_policy_rows(logged: Logged, target: ArrayLike) -> Rows:
    """What `off_policy.evaluate` takes: decisions that the weights made, first exposures, whose chances and rewards are known.

    logged: with rewards, see `Logged.matured`. target: chances of each arm, (arms,), or (N, arms) for all N rows of `logged`. A unit that
    comes back keeps its arm, so only its first decision is a draw. Raises InvalidArgument when no row is left.
    """
    wanted = np.broadcast_to(np.asarray(target, dtype=np.float64), (logged.action.size, len(logged.arms)))
    use = usable(logged) & ~np.isnan(logged.reward)
    if not use.any():
        raise InvalidArgument.of_field("logged", "got no first decision that the weights made and whose chances and reward are known")
    kept = logged.keep(use)
    return Rows(kept.action, kept.reward, kept.pscore, wanted[use], kept.propensities)


def usable(logged: Logged) -> NDArray[np.bool_]:
    """Rows that are draws of known chances: counted, first of their unit, made by the weights, (N,)."""
    known = ~np.isnan(logged.propensities).any(axis=1)
    return np.asarray(logged.counted & logged.first_exposure & known & np.isin(logged.reason, DRAWN))


def bandit_feedback(logged: Logged) -> dict[str, Any]:
    """The dict that Open Bandit Pipeline's estimators take. Rows without a reward are left out: see `Logged.matured`.

    context: float64 (n_rounds, segments + values of logged attributes), one column for each value, 1 where it is the row's. position: None
    unless every row has one. The other keys are ours: propensities (n_rounds, arms), first_exposure, decision_id.
    """
    kept = logged.keep(~np.isnan(logged.reward))
    names = [("segment", value) for value in np.unique(kept.segment)]
    names += sorted({pair for row in kept.context for pair in row.items() if pair[0] != "position"})
    rows = [{("segment", segment), *context.items()} for segment, context in zip(kept.segment, kept.context, strict=True)]
    whole = kept.action.size > 0 and not np.isnan(kept.position).any()
    return {
        "n_rounds": kept.action.size,
        "n_actions": len(kept.arms),
        "action": kept.action,
        "position": kept.position.astype(np.int64) if whole else None,
        "reward": kept.reward,
        "pscore": kept.pscore,
        "context": np.array([[float(name in row) for name in names] for row in rows]).reshape(len(rows), len(names)),
        "action_context": np.eye(len(kept.arms)),
        "context_names": ["=".join(name) for name in names],
        "action_names": list(kept.arms),
        "propensities": kept.propensities,
        "first_exposure": kept.first_exposure,
        "decision_id": kept.decision_id,
    }


def export(directory: Path, experiment: str, path: Path) -> int:
    """Write decisions with their outcomes to one Parquet file, a column for each metric. Returns the number of rows. Raises as `read`."""
    logged = read(directory, experiment)
    columns: dict[str, Any] = {
        name: pa.array(getattr(logged, name)) for name in _ARRAYS if name not in ("propensities", "position", "reward", "seconds")
    }
    columns["ts"] = pa.array(np.round(logged.seconds * 1e6).astype(np.int64), pa.timestamp("us", "UTC"))
    columns["arm"] = pa.array([logged.arms[action] for action in logged.action])
    columns["propensity"] = columns["pscore"]
    columns["propensities"] = pa.array([None if np.isnan(row).any() else row.tolist() for row in logged.propensities])
    columns["context"] = pa.array([list(row.items()) for row in logged.context], pa.map_(pa.string(), pa.string()))
    metrics = {f"metric_{name}": values for name, values in logged.metrics.items()}
    for name, values in {"position": logged.position, "reward": logged.reward, **metrics}.items():
        columns[name] = pa.array(values, pa.float64(), mask=np.isnan(values))
    pq.write_table(pa.table(columns), path, compression="zstd")
    return logged.action.size


def find(directory: Path, decision_id: str) -> dict[str, Any] | None:
    """The row of one decision, or None. Raises InvalidArgument for what is no decision id."""
    day = datetime.datetime.fromtimestamp(read_claims(decision_id).seconds, datetime.UTC).date().isoformat()
    found = _table(directory, "decisions", {"decision_id": decision_id}, day=day).to_pylist()
    return found[0] if found else None


def snapshot(directory: Path, uid: str, version: int) -> str | None:
    """The logged entry of an experiment's snapshot as JSON, without salt, pinned units by their hash; None when it is not there."""
    found = _table(directory, "snapshots", {"uid": uid, "version": version}).column("document").to_pylist()
    return found[0] if found else None


# -------------------------------------------------------------------------------------------------------- helpers


def _table(directory: Path, name: str, only: Mapping[str, Any], day: str = "*") -> pa.Table:
    """The rows of one table that have these values, the open streams behind the files; rows may repeat. day: of the files, all if "*".

    Files are read one after the other and in this thread: a short command that ends while a scanner of Arrow still reads ahead aborts.
    """
    parts = []
    for path in sorted((directory / name).glob(f"date={day}/experiment=*/*.parquet")):
        experiment = unquote(path.parent.name.removeprefix("experiment="))
        if only.get("experiment", experiment) == experiment:
            table = pq.ParquetFile(path).read(use_threads=False)
            columns = {"date": path.parent.parent.name.removeprefix("date="), "experiment": experiment}
            for column, value in columns.items():
                table = table.append_column(column, pa.array([value] * table.num_rows, pa.string()))
            parts.append(_matching(table, only))
    for path in sorted((directory / ".open").glob(f"{name}-*.arrows")):
        found = _stream(path)
        if found is not None:
            parts.append(_matching(found, only))
    if not parts:
        if not (directory / ".open").is_dir():
            raise InvalidArgument.of_field("log", f"{directory} is no decision log: `allocator serve --decision-log DIR` writes one")
        return pa.table({each: pa.array([], pa.string()) for each in ("decision_id", "experiment", "document", "status")})
    return pa.concat_tables(parts, promote_options="default")


def _matching(table: pa.Table, only: Mapping[str, Any]) -> pa.Table:
    for column, value in only.items():
        table = table.filter(pc.equal(table.column(column), value))
    return table


def _stream(path: Path) -> pa.Table | None:
    """The whole batches of an open stream; its writer may be in the middle of one, or have just made Parquet of it."""
    batches: list[pa.RecordBatch] = []
    try:
        with path.open("rb") as file:
            reader = pa.ipc.open_stream(file)
            while True:
                batches.append(reader.read_next_batch())
    except (StopIteration, pa.ArrowInvalid, FileNotFoundError, EOFError, OSError):
        return pa.Table.from_batches(batches) if batches else None


def _once(table: pa.Table) -> pa.Table:
    """Each decision once, in the order of time and, within a millisecond, of the log: an order by id would be one by arm."""
    if not table.num_rows:
        return table
    numbered = table.append_column("_row", pa.array(np.arange(table.num_rows)))
    first = numbered.group_by("decision_id", use_threads=False).aggregate([("_row", "min")]).column("_row_min")
    return numbered.take(first).sort_by([("ts", "ascending"), ("_row", "ascending")])


def _arms(decisions: pa.Table) -> tuple[str, ...]:
    """Names by index; an arm that never served is known by its place alone."""
    pairs = decisions.group_by(["action", "arm"]).aggregate([]).to_pylist()
    names = {pair["action"]: pair["arm"] for pair in pairs}
    longest = pc.max(pc.list_value_length(decisions.column("propensities"))).as_py() or 0
    return tuple(names.get(index, f"arm {index}") for index in range(max(longest, max(names) + 1)))


def _outcomes(outcomes: pa.Table, ids: pa.ChunkedArray, number: int) -> tuple[Floats, dict[str, Floats], int]:
    """Reward and other metrics of each decision, NaN where none came; outcomes of decisions that are not here."""
    reward, metrics = np.full(number, np.nan), dict[str, Floats]()
    if not outcomes.num_rows:
        return reward, metrics, 0
    outcomes = _matching(outcomes, {"status": "ACCEPTED"}).sort_by("ts")
    places = pc.index_in(outcomes.column("decision_id"), value_set=ids.combine_chunks()).to_pylist()
    strangers = {one for one, place in zip(outcomes.column("decision_id").to_pylist(), places, strict=True) if place is None}
    columns = (outcomes.column(name).to_pylist() for name in ("metric", "value", "is_reward"))
    for place, metric, value, is_reward in zip(places, *columns, strict=True):
        if place is None:
            continue
        into = reward if is_reward else metrics.setdefault(metric, np.full(number, np.nan))
        if np.isnan(into[place]):
            into[place] = value
    return reward, metrics, len(strangers)


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(column.to_numpy())


def _text(table: pa.Table, name: str) -> NDArray[np.str_]:
    return np.array(table.column(name).to_pylist(), dtype=np.str_)
