"""Reading the decision log: decisions with what came of them, as arrays, as one Parquet file, or as the Open Bandit Pipeline takes them.

In: the folder that `allocator serve --decision-log` writes, and the name of an experiment. Out: `Logged`. Rows are joined by decision id
and counted once: a row may stand in two files where a server was killed while it made one, and an outcome counts as the server counted it,
the first that was ACCEPTED for each metric. What lies in streams that are still open is read as well.

Decisions of in-process clients are not in the log, only their outcomes are: `strangers` says how many. They are left out, because decisions
that are known by their outcomes alone are no sample of decisions.

Which decisions are draws. Propensities explain who was given what only where rows are chosen by what was known before the arm was, never by
the arm. A sticky unit keeps its point, so it draws once however often it comes back, and moves only when its slot changes hands: its first
row counts, whatever it was given later. Where each request is drawn anew each is a row. Behind the closed gates of several candidates it
is the arm that says whether the chances can be told (`core/served_chances`), so none of those rows counts, and of such plans only decisions
of units that had met no arm within their window: their ids alone say that no gate was closed. Tried and dropped: each unit's first decision
of each arm (a unit that comes back counts again exactly when it has moved, always on its new arm: mean weights from 0.6 to 1.3, false
warnings), and all rows whose chances are known (behind gates those of the incumbent alone).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
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
from allocator.errors import AllocatorError, InvalidArgument, NotFound, Refused

Floats = NDArray[np.float64]
DRAWN = ("ALLOCATED", "DRAINED", "CAPPED")  # reasons of decisions that the weights made


@dataclass(frozen=True, slots=True)
class Silence:
    """What it means that no reward was reported, as the spec says it.

    missing: the reward of a decision whose window has passed, None when it then has none. window_seconds: how long a reward may take.
    """

    missing: float | None
    window_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """Decisions of one experiment in the order in which they were made; arrays of shape (N,) unless said.

    arms: names by index. propensities: (N, arms), NaN where it cannot be told. reward: NaN where none came. metrics: the other values, the
    same. segment, reason: text. context: one mapping a row. strangers: outcomes of decisions that are not here. unit: which one, by number.
    sticky: the unit is the draw, not the request. gates_known: which gates were closed is known, whichever arm served. silence: None where
    the log does not say. until: seconds, of the last row. settled: silence has been given its meaning, see `known`.
    """

    experiment: str
    arms: tuple[str, ...]
    decision_id: NDArray[np.str_]
    seconds: Floats
    unit_hash: NDArray[np.str_]
    unit: NDArray[np.int64]
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
    gates_known: NDArray[np.bool_]
    sticky: NDArray[np.bool_]
    position: Floats
    context: tuple[Mapping[str, str], ...]
    reward: Floats
    metrics: Mapping[str, Floats]
    strangers: int
    silence: Silence | None = None
    until: float = 0.0
    settled: bool = False

    def keep(self, mask: NDArray[np.bool_]) -> Logged:
        """The rows where the mask holds."""
        arrays = {name: getattr(self, name)[mask] for name in _ARRAYS}
        context = tuple(one for one, kept in zip(self.context, mask.tolist(), strict=True) if kept)
        return replace(self, **arrays, context=context, metrics={name: value[mask] for name, value in self.metrics.items()})

    def known(self, now: float | None = None) -> Logged:
        """The same decisions with the rewards that count, by what the spec says of silence. Asked again: no change.

        now: seconds; None: the log's last row, since a copy of a log knows of no later outcome. Raises Refused when the log does not say
        what silence means, as those do not that were written before it did.
        """
        if self.settled:
            return self
        if self.silence is None:
            raise Refused(
                "the log was written before it said what an unreported reward means: say it with"
                " logged.matured(missing, window_seconds, now), as the spec's `reward` does",
                reason="SILENCE_UNKNOWN",
            )
        return self.matured(self.silence.missing, self.silence.window_seconds, self.until if now is None else now)

    def matured(self, missing: float | None, window_seconds: float, now: float) -> Logged:
        """The same decisions with the rewards that count, as the planner counts them; NaN where there is none, or not yet.

        missing: what silence counts as once its window has passed; rewards that came count from then on too, or the quick ones would be
        too many. None: rewards that came count, no others. now: seconds.
        """
        reward = self.reward
        if missing is not None:
            reward = np.where(self.seconds + window_seconds < now, np.where(np.isnan(reward), missing, reward), np.nan)
        return replace(self, reward=reward, settled=True)


_ARRAYS = (
    *("decision_id", "seconds", "unit_hash", "unit", "action", "pscore", "propensities", "segment", "reason", "stage", "snapshot_version"),
    *("counted", "first_exposure", "gated", "gates_known", "sticky", "position", "reward"),
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
    outcomes = _table(directory, "outcomes", mine)
    reward, metrics, strangers = _outcomes(outcomes, decisions.column("decision_id"), number)
    vectors = np.full((number, len(arms)), np.nan)
    for row, vector in enumerate(decisions.column("propensities").to_pylist()):
        if vector is not None:
            vectors[row] = 0.0
            vectors[row, : len(vector)] = vector[: len(arms)]
    column = {name: _numpy(decisions.column(name)) for name in ("action", "pscore", "stage", "snapshot_version", "counted")}
    hashes = decisions.column("unit_hash")
    points = _numpy(pc.cast(pc.binary_join_element_wise("0x", pc.utf8_slice_codeunits(hashes, 0, 4), ""), pa.int64()))
    ends = [pc.max(table.column("ts")).cast(pa.int64()).as_py() for table in (decisions, outcomes) if table.num_rows]
    return Logged(
        experiment=experiment,
        arms=arms,
        decision_id=_text(decisions, "decision_id"),
        seconds=_numpy(pc.cast(decisions.column("ts"), pa.int64())) / 1e6,
        unit_hash=_text(decisions, "unit_hash"),
        unit=_numpy(hashes.combine_chunks().dictionary_encode().indices).astype(np.int64),
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
        gates_known=_gates_known(decisions),
        sticky=_numpy(decisions.column("slot")) == points,  # a request's own draw falls there once in 65,536 times
        position=np.array([np.nan if value is None else float(value) for value in decisions.column("position").to_pylist()]),
        context=tuple(dict(value or ()) for value in decisions.column("context").to_pylist()),
        reward=reward,
        metrics=metrics,
        strangers=strangers,
        silence=_silence(_table(directory, "snapshots", mine, columns=("ts", "version", "window_seconds", "missing"))),
        until=max(ends) / 1e6,
    )


def off_policy_rows(logged: Logged, target: ArrayLike) -> Rows:
    """What `off_policy.evaluate` takes: draws in which each arm that the target wants had a chance, and whose reward is known.

    target: chances of each arm, (arms,), or (N, arms) for all N rows of `logged`. Where each request is a draw, units that come back count
    each time: intervals then speak of these requests and their units, not of others that might have come. What silence means is applied,
    see `Logged.known`; who is left out, and why, says `select`. Raises InvalidArgument when no row is left, Refused with reason NO_SUPPORT
    when the log never could take an arm that the target wants, and as `Logged.known`.
    """
    logged = logged.known()
    wanted = np.broadcast_to(np.asarray(target, dtype=np.float64), (logged.action.size, len(logged.arms)))
    selection = select(logged, wanted)
    if not selection.rows.any():
        raise _nothing(logged, wanted, selection)
    kept = logged.keep(selection.rows)
    return Rows(kept.action, kept.reward, kept.pscore, wanted[selection.rows], kept.propensities)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """rows: those that an estimate may use, (N,). left_out: how many others there are, by why; see `REASONS`."""

    rows: NDArray[np.bool_]
    left_out: Mapping[str, int]

    @property
    def words(self) -> str:
        """Who was left out, for people; empty when nobody was."""
        return left_out_words(self.left_out)


def left_out_words(left_out: Mapping[str, int]) -> str:
    """Of `Selection.left_out`, for people."""
    return ", ".join(f"{count:,} {REASONS[why]}" for why, count in left_out.items() if count)


REASONS = {
    "notDrawn": "that no weights made",
    "gates": "perhaps behind the closed gate of one of several candidates",
    "noChance": "in which an arm that is asked for had no chance",
    "repeated": "of units that had come before",
    "noReward": "without a reward (yet)",
}


def select(logged: Logged, target: ArrayLike) -> Selection:
    """The rows that tell what `target` would have earned. logged, target: as `off_policy_rows` takes them."""
    logged = logged.known()
    wanted = np.broadcast_to(np.asarray(target, dtype=np.float64), (logged.action.size, len(logged.arms)))
    with np.errstate(invalid="ignore"):
        possible = ((logged.propensities > 0.0) | (wanted == 0.0)).all(axis=1)
    drawn, open_, silent = _drawn(logged), usable(logged), np.isnan(logged.reward)
    use = draws(logged, possible)
    hidden, again = drawn & ~open_, ~logged.first_exposure
    masks = (~drawn, hidden & ~again, open_ & ~possible, (hidden & again) | (open_ & possible & ~use), use & silent)
    return Selection(use & ~silent, {why: int(mask.sum()) for why, mask in zip(REASONS, masks, strict=True)})


def draws(logged: Logged, possible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows whose arm came from their chances and from nothing else, (N,): of a sticky unit its first, else every one.

    possible: (N,), the rows that the question is about. As everything that chooses rows it may rest on chances, time, segment and the
    unit's past, not on the arm or what came of it. So it is asked before rewards are: a unit whose first decision nobody reported is not
    given a second one.
    """
    use = usable(logged) & possible
    return use & (~logged.sticky | _first_of_unit(logged, use & logged.sticky))


def usable(logged: Logged) -> NDArray[np.bool_]:
    """Decisions that the weights made, chosen without regard to the arm, with known chances, (N,). Units may come more than once."""
    known = ~np.isnan(logged.propensities).any(axis=1)
    return np.asarray(_drawn(logged) & known & (logged.gates_known | (logged.first_exposure & ~logged.gated)))


def firsts(logged: Logged) -> NDArray[np.bool_]:
    """The first decision of each unit that counts, whatever made it, (N,): units that come back would count their luck again."""
    return _first_of_unit(logged, logged.counted)


def bandit_feedback(logged: Logged) -> dict[str, Any]:
    """The dict that Open Bandit Pipeline's estimators take, which hold every row for a draw of its own: so of draws with a known reward.

    context: float64 (n_rounds, segments + values of logged attributes), one column for each value, 1 where it is the row's. position: None
    unless every row has one. The other keys are ours: propensities (n_rounds, arms), first_exposure, decision_id. Raises Refused as
    `Logged.known`.
    """
    logged = logged.known()
    kept = logged.keep(draws(logged, np.ones(logged.action.size, np.bool_)) & ~np.isnan(logged.reward))
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
        name: pa.array(getattr(logged, name)) for name in _ARRAYS if name not in ("propensities", "position", "reward", "seconds", "unit")
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


def _table(directory: Path, name: str, only: Mapping[str, Any], day: str = "*", columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one table that have these values, the open streams behind the files; rows may repeat. day: of the files, all if "*".
    columns: those wanted, where they are; all if None.

    Files are read one after the other and in this thread: a short command that ends while a scanner of Arrow still reads ahead aborts.
    """
    parts = []
    for path in sorted((directory / name).glob(f"date={day}/experiment=*/*.parquet")):
        experiment = unquote(path.parent.name.removeprefix("experiment="))
        if only.get("experiment", experiment) == experiment:
            file = pq.ParquetFile(path)
            table = file.read(columns and [column for column in columns if column in file.schema_arrow.names], use_threads=False)
            for column, value in {"date": path.parent.parent.name.removeprefix("date="), "experiment": experiment}.items():
                table = table.append_column(column, pa.array([value] * table.num_rows, pa.string()))
            parts.append(_matching(table, only))
    for path in sorted((directory / ".open").glob(f"{name}-*.arrows")):
        found = _stream(path)
        if found is not None:
            found = _matching(found, only)
            parts.append(found.select([column for column in columns if column in found.column_names]) if columns else found)
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


def _nothing(logged: Logged, wanted: Floats, selection: Selection) -> AllocatorError:
    """Why no row is left."""
    without = selection.left_out["noChance"]
    if without and not selection.left_out["noReward"]:
        columns = zip(logged.arms, wanted.T > 0.0, logged.propensities.T > 0.0, strict=True)
        never = ", ".join(arm for arm, wants, could in columns if wants.any() and not (wants & could).any())
        message = f"none of the {without:,} draws in the log gave a chance to every arm that the policy in question wants"
        return Refused(f"{message}: it never could take {never}" if never else message, reason="NO_SUPPORT")
    return InvalidArgument.of_field(
        "logged",
        f"got no draw of known chances whose reward is known; decisions left out: {selection.words or 'none, there are none'}. Where the"
        " log goes on being written, logged.known(now) says how late it is",
    )


def _drawn(logged: Logged) -> NDArray[np.bool_]:
    return np.asarray(logged.counted & np.isin(logged.reason, DRAWN))


def _first_of_unit(logged: Logged, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of these rows the first of each unit, (N,)."""
    places = np.flatnonzero(among)
    found = np.zeros(among.size, np.bool_)
    found[places[np.unique(logged.unit[places], return_index=True)[1]]] = True
    return found


def _gates_known(decisions: pa.Table) -> NDArray[np.bool_]:
    """False where the log does not say."""
    if "gates_known" not in decisions.column_names:
        return np.zeros(decisions.num_rows, np.bool_)
    return _numpy(pc.fill_null(decisions.column("gates_known"), False))


def _silence(snapshots: pa.Table) -> Silence | None:
    """As the latest entry says it: that is how the planner counts all of them."""
    if "window_seconds" not in snapshots.column_names:
        return None
    said = snapshots.filter(pc.is_valid(snapshots.column("window_seconds"))).sort_by([("ts", "descending"), ("version", "descending")])
    if not said.num_rows:
        return None
    return Silence(said.column("missing")[0].as_py(), said.column("window_seconds")[0].as_py())


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(column.to_numpy())


def _text(table: pa.Table, name: str) -> NDArray[np.str_]:
    return np.array(table.column(name).to_pylist(), dtype=np.str_)
