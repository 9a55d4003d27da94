"""Scenario files: YAML text → `Scenario`, with the line and column of every fault.

In: the text of a file, and the spec file that it names (beside it, unless its path is absolute). Out: a checked scenario, or
InvalidArgument with every violation, each led by `file:line:column`. What the schema below does not name is refused, with the nearest
name that it does. It stands here, because simulation has no door to wire; who writes Python builds a `Scenario` of plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from allocator.errors import InvalidArgument, Violation
from allocator.simulation.scenario import Scenario, violations
from allocator.simulation.world import Curve, Law, Metric, Reports, Season, Segment, Shock, Traffic, World
from allocator.wire.convert import API_VERSION
from allocator.wire.spec import DURATIONS, kind_of, load, located, near, place_of, seconds_of_text, shown, trees

KIND = "Scenario"
Schema = Mapping[str, tuple[str, Callable[[Any, str], Any]]]  # a field as written: its name in the code, and what reads it

class _Bad(Exception):
    """A value that was told as a fault already."""


class _Reader:
    """Reads values and keeps every fault as (path, message)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def fault(self, path: str, message: str) -> _Bad:
        self.found.append((path, message))
        return _Bad()

    def fields(self, tree: Any, path: str, schema: Schema, needed: tuple[str, ...] = ()) -> dict[str, Any]:
        """The fields of a mapping, under the names that the code gives them; those with faults are left out."""
        if not isinstance(tree, dict):
            raise self.fault(path, f"got {kind_of(tree)}; a mapping is allowed, with {', '.join(schema)}")
        values = {}
        for key, value in tree.items():
            where = f"{path}.{key}" if path else str(key)
            if key not in schema:
                self.fault(where, f"is no field here; {', '.join(schema)} are allowed{near(str(key), list(schema))}")
                continue
            name, read = schema[key]
            try:
                values[name] = read(value, where)
            except _Bad:
                continue
        for key in needed:
            if key not in tree:
                self.fault(f"{path}.{key}" if path else key, "got nothing; a value is needed")
        if any(schema[key][0] not in values for key in needed):
            raise _Bad
        return values

    def number(self, value: Any, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fault(path, f"got {kind_of(value)}; a number is allowed")
        return float(value)

    def whole(self, value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fault(path, f"got {kind_of(value)}; a whole number is allowed")
        return int(value)

    def flag(self, value: Any, path: str) -> bool:
        if not isinstance(value, bool):
            raise self.fault(path, f"got {kind_of(value)}; true or false is allowed")
        return value

    def text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise self.fault(path, f"got {kind_of(value)}; text is allowed")
        return str(value)

    def seconds(self, value: Any, path: str) -> float:
        found = seconds_of_text(value) if isinstance(value, str) else None
        if found is None:
            raise self.fault(path, f"got {shown(value)}; {DURATIONS} is allowed")
        return found

    def perhaps(self, value: Any, path: str) -> float | None:
        return None if value == "never" else self.seconds(value, path)

    def law(self, value: Any, path: str) -> Law:
        if value not in Law.__members__:
            laws = list(Law.__members__)
            raise self.fault(path, f"got {shown(value)}; one of {', '.join(laws)} is allowed{near(str(value), laws)}")
        return Law[value]

    def each(self, read: Callable[[Any, str], Any]) -> Callable[[Any, str], tuple]:
        """A list of what `read` reads."""

        def items(value: Any, path: str) -> tuple:
            if not isinstance(value, list):
                raise self.fault(path, f"got {kind_of(value)}; a list is allowed")
            found = []
            for place, item in enumerate(value):
                try:
                    found.append(read(item, f"{path}[{place}]"))
                except _Bad:
                    continue
            return tuple(found)

        return items

    def by_name(self, read: Callable[[Any, str], Any]) -> Callable[[Any, str], dict[str, Any]]:
        """A mapping of names to what `read` reads."""

        def items(value: Any, path: str) -> dict[str, Any]:
            if not isinstance(value, dict):
                raise self.fault(path, f"got {kind_of(value)}; a mapping is allowed")
            found = {}
            for key, item in value.items():
                try:
                    found[str(key)] = read(item, f"{path}[{key}]")
                except _Bad:
                    continue
            return found

        return items

    def curve(self, value: Any, path: str) -> Curve:
        """A level, or a mapping that says how it changes."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return Curve(float(value))
        schema: Schema = {
            "level": ("level", self.number),
            "driftPerHour": ("drift_per_hour", self.number),
            "jumps": ("jumps", self.each(self.jump)),
            "season": ("season", self.season),
        }
        return Curve(**self.fields(value, path, schema, ("level",)))

    def jump(self, value: Any, path: str) -> tuple[float, float]:
        found = self.fields(value, path, {"at": ("at", self.seconds), "level": ("level", self.number)}, ("at", "level"))
        return found["at"], found["level"]

    def season(self, value: Any, path: str) -> Season:
        schema: Schema = {
            "amplitude": ("amplitude", self.number),
            "period": ("period_seconds", self.seconds),
            "phase": ("phase_seconds", self.seconds),
        }
        return Season(**self.fields(value, path, schema, ("amplitude",)))

    def metric(self, value: Any, path: str) -> Metric:
        schema: Schema = {
            "law": ("law", self.law),
            "spread": ("spread", self.number),
            "byUnit": ("by_unit", self.flag),
            "arms": ("arms", self.by_name(self.curve)),
        }
        return Metric(**self.fields(value, path, schema, ("arms",)))

    def traffic(self, value: Any, path: str) -> Traffic:
        schema: Schema = {
            "rate": ("rate", self.curve),
            "poisson": ("poisson", self.flag),
            "population": ("population", self.whole),
            "replicas": ("replicas", self.whole),
            "lag": ("lag_seconds", self.seconds),
        }
        return Traffic(**self.fields(value, path, schema, ("rate",)))

    def reports(self, value: Any, path: str) -> Reports:
        schema: Schema = {
            "delay": ("delay_seconds", self.seconds),
            "badDelay": ("bad_delay_seconds", self.seconds),
            "steady": ("steady", self.flag),
            "missing": ("missing", self.number),
            "duplicates": ("duplicates", self.number),
            "successesOnly": ("successes_only", self.flag),
        }
        return Reports(**self.fields(value, path, schema))

    def segment(self, value: Any, path: str) -> Segment:
        schema: Schema = {"share": ("share", self.number), "factors": ("factors", self.by_name(self.number))}
        return Segment(**self.fields(value, path, schema, ("share",)))

    def shock(self, value: Any, path: str) -> Shock:
        schema: Schema = {
            "start": ("start_seconds", self.seconds),
            "duration": ("duration_seconds", self.seconds),
            "add": ("add", self.by_name(self.number)),
        }
        return Shock(**self.fields(value, path, schema, ("start", "duration", "add")))

    def world(self, value: Any, path: str) -> World:
        schema: Schema = {
            "metrics": ("metrics", self.by_name(self.metric)),
            "traffic": ("traffic", self.traffic),
            "reports": ("reports", self.reports),
            "segments": ("segments", self.by_name(self.segment)),
            "shocks": ("shocks", self.each(self.shock)),
        }
        return World(**self.fields(value, path, schema, ("metrics", "traffic")))

    def metadata(self, value: Any, path: str) -> str:
        return self.fields(value, path, {"name": ("name", self.text)}, ("name",))["name"]

    def scenario(self, tree: Any) -> dict[str, Any]:
        schema: Schema = {
            "apiVersion": ("api_version", self.text),
            "kind": ("kind", self.text),
            "metadata": ("name", self.metadata),
            "experiment": ("experiment", self.text),
            "duration": ("duration_seconds", self.seconds),
            "tick": ("tick_seconds", self.seconds),
            "replications": ("replications", self.whole),
            "seed": ("seed", self.whole),
            "policies": ("policies", self.each(self.text)),
            "approveAfter": ("approve_after_seconds", self.perhaps),
            "points": ("points", self.whole),
            "world": ("world", self.world),
        }
        return self.fields(tree, "", schema, ("apiVersion", "kind", "metadata", "experiment", "duration", "world"))


def load_scenario(path: Path) -> Scenario:
    """The scenario of a file. Raises InvalidArgument with every violation, also when a file cannot be read."""
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise InvalidArgument.of_field(str(path), f"cannot be read: {exc.strerror}", reason="CANNOT_READ") from exc
    source = str(path)
    documents = list(trees(text, source))
    if len(documents) != 1:
        many = f"got {len(documents)} documents; one scenario is needed"
        raise InvalidArgument.of_field(f"{source}:1:1", many, reason="INVALID_SCENARIO")
    tree, reader = documents[0], _Reader()
    if not isinstance(tree, dict):
        raise InvalidArgument.of_field(f"{source}:1:1", f"got {kind_of(tree)}; a mapping is needed", reason="INVALID_SCENARIO")
    scenario = None
    try:
        values = reader.scenario(tree)
        for key, name, right in (("apiVersion", "api_version", API_VERSION), ("kind", "kind", KIND)):
            if values.pop(name) != right:
                reader.fault(key, f"got {shown(tree[key])}; {right!r} is allowed")
        scenario = Scenario(**{**values, "experiment": _experiment(path, reader, values["experiment"])})
    except _Bad:
        pass
    if scenario is not None:
        known = {where for where, _ in reader.found}
        reader.found += [(v.field, v.message) for v in violations(scenario) if v.field not in known]
    if reader.found or scenario is None:
        faults = [
            Violation(located(source, tree, where), message)
            for where, message in sorted(reader.found, key=lambda found: place_of(tree, found[0]))
        ]
        count = f"{len(faults)} invalid field{'s' if len(faults) > 1 else ''}"
        raise InvalidArgument(f"{source} has {count}", violations=faults, reason="INVALID_SCENARIO", source=source)
    return scenario


def _experiment(path: Path, reader: _Reader, name: str) -> Any:
    """The one experiment of the spec file that a scenario names."""
    spec = path.parent / name
    try:
        text = spec.read_bytes()
    except OSError as exc:
        raise reader.fault("experiment", f"{spec} cannot be read: {exc.strerror}") from exc
    found = load(text, str(spec))
    if len(found) != 1:
        raise reader.fault("experiment", f"{spec} has {len(found)} experiments; one is needed")
    return found[0].experiment
