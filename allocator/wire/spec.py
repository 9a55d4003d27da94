"""Spec files: YAML or JSON text ↔ Experiment messages, with the line and column of every fault.

In: the text of a file. Out: the experiments in it and where each field stands, or InvalidArgument with every violation, each message led
by `file:line:column`. The protobuf descriptors are the schema: what they do not name is refused, with the nearest name that they do.
YAML is read as 1.2 (an arm named `on` stays text) and duplicate keys are errors; dates stay text. Going through `json_format` was
dropped: it stops at the first fault and knows no lines.
"""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.representer import SafeRepresenter

from allocator.core.experiment import Experiment
from allocator.core.experiment_rules import violations
from allocator.errors import InvalidArgument, Violation
from allocator.v1 import allocator_pb2 as pb
from allocator.wire.convert import API_VERSION, KIND, experiment_from_message
from allocator.wire.enums import prefix, short_names

MAX_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 32
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATIONS = "a duration like 30s, 15m, 1h or 7d"
SURROGATE = re.compile("[\ud800-\udfff]")
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class _Constructor(RoundTripConstructor):
    """Dates stay the text that was written: no field of a spec is a date. Text is what UTF-8 can say.

    JSON writes a character beyond U+FFFF as two escapes, a surrogate pair, which the reader leaves as two: they become one here.
    """

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if not (isinstance(value, str) and SURROGATE.search(value)):
            return value
        try:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            raise ConstructorError(None, None, "half of a surrogate pair is no character", node.start_mark) from None


class _NotAllowed(ConstructorError):
    """It is valid YAML, and no spec may have it."""


def _refuse_tag(_loader: Any, node: Any) -> None:
    tag = f"{node.ctag.handle or ''}{node.ctag.suffix}"
    raise _NotAllowed(None, None, f"got the tag {_cut(tag)}; a YAML tag is not allowed", node.start_mark)


for _kind in ("str", "timestamp"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda loader, node: loader.construct_scalar(node))
for _kind in ("binary", "omap", "pairs", "set"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _refuse_tag)
_Constructor.add_constructor(None, _refuse_tag)  # any other


class _Representer(SafeRepresenter):
    """Text with a character that is not plain stands in double quotes, where it can be escaped: the emitter escapes a few of them only."""

    plain = staticmethod(str.isprintable)

    def represent_str(self, data: str) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if self.plain(data) else '"')


class _AsciiRepresenter(_Representer):
    plain = staticmethod(lambda text: text.isascii() and text.isprintable())


_Representer.add_representer(str, _Representer.represent_str)


@dataclass(frozen=True, slots=True)
class SpecFile:
    """One experiment of a file. `message` is what was written, `experiment` its checked value.

    where: the path of a field to `source:line:column: path`, for what is found wrong with it later on.
    """

    message: pb.Experiment
    experiment: Experiment
    where: Callable[[str], str]


def load(text: str | bytes, source: str = "<input>") -> list[SpecFile]:
    """Every experiment in the text of a file, checked.

    Raises InvalidArgument with all violations of all experiments in it; each field is `source:line:column: path`.
    """
    loaded: list[SpecFile] = []
    faults: list[Violation] = []
    for tree in trees(text, source):
        reader = _Reader()
        message = pb.Experiment()
        if not isinstance(tree, CommentedMap):
            faults.append(Violation(f"{source}:1:1", f"got {kind_of(tree)}; a mapping with apiVersion, kind, metadata and spec is needed"))
            continue
        reader.fill(message, tree, "")
        if message.api_version != API_VERSION and not reader.found_under("apiVersion"):
            reader.fault("apiVersion", f"got {message.api_version!r}; {API_VERSION!r} is allowed")
        if message.kind != KIND and not reader.found_under("kind"):
            reader.fault("kind", f"got {message.kind!r}; {KIND!r} is allowed")
        message.ClearField("status")
        experiment = experiment_from_message(message)
        unread = {*(path for path, _ in reader.found), *reader.meant}
        reader.found.extend((v.field, v.message) for v in violations(experiment) if not any(_follows(v, path) for path in unread))
        where = partial(located, source, tree)
        for path, message in sorted(reader.found, key=lambda found: place_of(tree, found[0])):
            faults.append(Violation(where(path), message))
        loaded.append(SpecFile(message, experiment, where))
    if faults:
        count = f"{len(faults)} invalid field{'s' if len(faults) > 1 else ''}"
        raise InvalidArgument(f"{source} has {count}", violations=faults, reason="INVALID_SPEC", source=source)
    if not loaded:
        raise InvalidArgument.of_field(source, "got an empty file; an experiment is needed", reason="INVALID_SPEC")
    return loaded


def load_file(path: Path) -> list[SpecFile]:
    """Every experiment of a file. Raises InvalidArgument, also when it cannot be read."""
    try:
        return load(path.read_bytes(), str(path))
    except OSError as exc:
        raise InvalidArgument.of_field(str(path), f"cannot be read: {exc.strerror}", reason="CANNOT_READ") from exc


def to_document(message: Message, *, zeros: bool = False) -> dict[str, Any]:
    """The message as plain mappings and lists in the words of spec files: camelCase, short enum names, durations as text.

    zeros: also plain numbers and flags that are 0, for those who look a field up.
    """
    document: dict[str, Any] = {}
    said = {field.name: value for field, value in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        if field.name not in said:
            plain = not (field.is_repeated or field.has_presence or field.enum_type) and field.type != FieldDescriptor.TYPE_STRING
            if zeros and plain:
                document[field.json_name] = field.default_value
            continue
        value = said[field.name]
        if _is_map(field):
            item = field.message_type.fields_by_name["value"]
            document[field.json_name] = {key: _plain(item, value[key], zeros) for key in sorted(value)}
        elif field.is_repeated:
            document[field.json_name] = [_plain(field, item, zeros) for item in value]
        else:
            document[field.json_name] = _plain(field, value, zeros)
    return document


def dump(documents: Sequence[dict[str, Any]], *, readable: bool = True) -> str:
    """The documents as YAML text. What cannot be printed is escaped; readable: no other letter is."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer if readable else _AsciiRepresenter
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    out = io.StringIO()
    yaml.dump_all(documents, out)
    plain = yaml.Representer.plain
    lines = out.getvalue().split("\n")
    return "\n".join(line if plain(line) else "".join(each if plain(each) else _escaped(each) for each in line) for line in lines)


def trees(text: str | bytes, source: str) -> Iterator[Any]:
    """Every document of a YAML or JSON text, with the places of its fields. Raises InvalidArgument where it cannot be read."""
    if len(text) > MAX_BYTES:
        raise InvalidArgument.of_field(source, f"got {len(text)} bytes; at most {MAX_BYTES} are allowed", reason="FILE_TOO_LARGE")
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor = _Constructor
    try:
        for tree in yaml.load_all(text):
            if tree is not None:
                yield tree
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = (exc.problem or exc.context or "cannot be read").splitlines()[0]
        problem = problem if isinstance(exc, _NotAllowed) else f"not valid YAML: {problem}"
        raise InvalidArgument.of_field(where, problem, reason="INVALID_YAML") from exc
    except (YAMLError, ValueError, RecursionError) as exc:
        raise InvalidArgument.of_field(source, f"not valid YAML: {str(exc).splitlines()[0]}", reason="INVALID_YAML") from exc


class _Reader:
    """Fills a message from a tree and keeps every fault as (path, message)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self.meant: list[str] = []  # paths of fields that were written with a typing error
        self.nodes = 0

    def fault(self, path: str, message: str) -> None:
        self.found.append((path, message))

    def found_under(self, path: str) -> bool:
        return any(found.startswith(path) for found, _ in self.found)

    def fill(self, message: Message, tree: CommentedMap, path: str, depth: int = 0) -> None:
        """Set the fields of `message` that the mapping names."""
        descriptor = message.DESCRIPTOR
        fields = {name: field for field in descriptor.fields for name in (field.json_name, field.name)}
        for key, value in tree.items():
            self.nodes += 1
            where = f"{path}.{key}" if path else str(key)
            if self.nodes > MAX_NODES or depth > MAX_DEPTH:
                self.fault(path, f"is too large: more than {MAX_NODES} values or {MAX_DEPTH} levels")
                return
            field = fields.get(key) if isinstance(key, str) else None
            if field is None:
                self.fault(where, _unknown(str(key), descriptor))
                self.meant += [f"{path}.{name}" if path else name for name in _nearest(str(key), list(fields))]
            elif value is None:
                self.fault(where, "got nothing; leave the field out or give it a value")
            elif _is_map(field):
                self._map(message, field, value, where, depth)
            elif field.is_repeated:
                self._list(message, field, value, where, depth)
            elif field.message_type is not None:
                self._message(getattr(message, field.name), value, where, depth)
            else:
                scalar = self._scalar(field, value, where)
                if scalar is not None:
                    setattr(message, field.name, scalar)

    def _message(self, target: Message, value: Any, path: str, depth: int) -> None:
        full_name = target.DESCRIPTOR.full_name
        if full_name == "google.protobuf.Duration":
            nanos = self._duration(value, path)
            if nanos is not None:
                target.FromNanoseconds(nanos)  # type: ignore[attr-defined]
        elif full_name == "google.protobuf.ListValue":
            if not isinstance(value, CommentedSeq) or any(isinstance(item, dict | list) or item is None for item in value):
                self.fault(path, f"got {kind_of(value)}; a list of values is allowed")
            else:
                target.extend([item if isinstance(item, bool) else str(item) for item in value])  # type: ignore[attr-defined]
        elif full_name == "google.protobuf.Timestamp":
            target.SetInParent()
        elif not isinstance(value, CommentedMap):
            names = ", ".join(field.json_name for field in target.DESCRIPTOR.fields)
            self.fault(path, f"got {kind_of(value)}; a mapping is allowed, with {names}")
        else:
            target.SetInParent()
            self.fill(target, value, path, depth + 1)

    def _map(self, message: Message, field: FieldDescriptor, value: Any, path: str, depth: int) -> None:
        if not isinstance(value, CommentedMap):
            self.fault(path, f"got {kind_of(value)}; a mapping is allowed")
            return
        item = field.message_type.fields_by_name["value"]
        target = getattr(message, field.name)
        for key, entry in value.items():
            self.nodes += 1
            where = f"{path}[{key}]"
            if not isinstance(key, str):
                self.fault(where, f"got {kind_of(key)} as a key; text is allowed: write it in quotes")
            elif item.message_type is not None:
                self._message(target[key], entry, where, depth + 1)
            else:
                scalar = self._scalar(item, entry, where)
                if scalar is not None:
                    target[key] = scalar

    def _list(self, message: Message, field: FieldDescriptor, value: Any, path: str, depth: int) -> None:
        if not isinstance(value, CommentedSeq):
            self.fault(path, f"got {kind_of(value)}; a list is allowed")
            return
        target = getattr(message, field.name)
        for index, entry in enumerate(value):
            where = f"{path}[{index}]"
            if field.message_type is not None:
                self._message(target.add(), entry, where, depth + 1)
            else:
                scalar = self._scalar(field, entry, where)
                if scalar is not None:
                    target.append(scalar)

    def _scalar(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        if field.enum_type is not None:
            names = short_names(field.enum_type)
            name = value[len(prefix(field.enum_type)) :] if str(value).startswith(prefix(field.enum_type)) else value
            if isinstance(name, str) and name in names:
                return names[name]
            self.fault(path, f"got {shown(value)}; one of {', '.join(names)} is allowed{near(str(value).upper(), list(names))}")
            return None
        accepts, what = _SCALARS[field.cpp_type]
        if accepts(value):
            if what == WHOLE and abs(value) >= (2**31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 2**63):
                self.fault(path, f"got {value}; the number is too large")
                return None
            return float(value) if what == NUMBER else str(value) if what == TEXT else value
        hint = ": write it in quotes" if what == TEXT and isinstance(value, bool | int | float) else ""
        self.fault(path, f"got {kind_of(value)}; {what} is allowed{hint}")
        return None

    def _duration(self, value: Any, path: str) -> int | None:
        seconds = seconds_of_text(value) if isinstance(value, str) else None
        if seconds is None:
            self.fault(path, f"got {shown(value)}; {DURATIONS} is allowed")
            return None
        return round(seconds * 1e9)


def seconds_of_text(text: str) -> float | None:
    """Seconds of a duration as people write it, `30s` or `1.5h`; None for what is none, or longer than 300 years."""
    match = DURATION.fullmatch(text)
    seconds = float(match[1]) * UNITS[match[2]] if match else math.inf
    return seconds if seconds <= 1e10 else None


WHOLE, NUMBER, TEXT = "a whole number", "a number", "text"
_SCALARS: dict[int, tuple[Callable[[Any], bool], str]] = {
    FieldDescriptor.CPPTYPE_BOOL: (lambda v: isinstance(v, bool), "true or false"),
    FieldDescriptor.CPPTYPE_STRING: (lambda v: isinstance(v, str), TEXT),
    FieldDescriptor.CPPTYPE_DOUBLE: (lambda v: isinstance(v, int | float) and not isinstance(v, bool), NUMBER),
    FieldDescriptor.CPPTYPE_INT32: (lambda v: isinstance(v, int) and not isinstance(v, bool), WHOLE),
    FieldDescriptor.CPPTYPE_INT64: (lambda v: isinstance(v, int) and not isinstance(v, bool), WHOLE),
    FieldDescriptor.CPPTYPE_UINT32: (lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**32, WHOLE),
}


def _escaped(character: str) -> str:
    """As double quotes of YAML have it."""
    return f"\\u{ord(character):04X}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08X}"


def _plain(field: FieldDescriptor, value: Any, zeros: bool) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name[len(prefix(field.enum_type)) :]
    if field.message_type is None:
        return value
    full_name = field.message_type.full_name
    if full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp"):
        return value.ToJsonString()
    if full_name == "google.protobuf.ListValue":
        return list(value)
    return to_document(value, zeros=zeros)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _unknown(key: str, descriptor: Descriptor) -> str:
    names = [field.json_name for field in descriptor.fields if field.name not in ("status", "uid", "revision", "etag")]
    return f"is no field here; {', '.join(names)} are allowed{near(key, names)}"


def near(word: str, names: Sequence[str]) -> str:
    """`. Did you mean …?`, or nothing."""
    close = _nearest(word, names)
    return f". Did you mean {close[0]}?" if close else ""


def _nearest(word: str, names: Sequence[str]) -> list[str]:
    """The name that was meant, if one is near."""
    return difflib.get_close_matches(word, names, 1, 0.6)


def _follows(violation: Violation, unread: str) -> bool:
    """Does it merely follow from a field that could not be read: is it about that field, what is in it, or the lack of it around it?"""
    field = violation.field
    if field == unread or field.startswith((f"{unread}.", f"{unread}[")):
        return True
    leaf = re.sub(r"\[.*", "", unread.rpartition(".")[2])
    return unread.startswith((f"{field}.", f"{field}[")) and re.search(rf"\b{re.escape(leaf)}\b", violation.message) is not None


def kind_of(value: Any) -> str:
    """A value, in words, as an error says what it got."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    return shown(value)


def shown(value: Any) -> str:
    """A value as its writer wrote it, cut to a line."""
    text = ("true" if value else "false") if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def located(source: str, tree: Any, path: str) -> str:
    """`source:line:column: path` of the deepest part of the path that the file has."""
    line, column = place_of(tree, path)
    return f"{source}:{line}:{column}: {path}"


def place_of(tree: Any, path: str) -> tuple[int, int]:
    """Line and column of the deepest part of the path that the file has."""
    line, column, rest = tree.lc.line, tree.lc.col, path
    while step := _step(tree, rest):
        key, size = step
        try:
            line, column = tree.lc.item(key) if isinstance(tree, CommentedSeq) else tree.lc.key(key)
        except (KeyError, IndexError, AttributeError, TypeError):  # an alias merged it in
            break
        tree, rest = tree[key], rest[size:]
    return line + 1, column + 1


def _step(tree: Any, path: str) -> tuple[str | int, int] | None:
    """The key that a path begins with, and how many of its characters that is; the longest, for a key may hold what divides: `[a[b]c]`."""
    ends = (end for end in range(len(path), 0, -1) if path[end : end + 1] in ("", ".", "["))
    for end in ends if isinstance(tree, CommentedMap | CommentedSeq) else ():
        key = path[1 : end - 1] if path[0] == "[" and path[end - 1] == "]" else path[:end].removeprefix(".")
        if isinstance(tree, CommentedMap) and key in tree:
            return key, end
        if isinstance(tree, CommentedSeq) and key.isdecimal() and int(key) < len(tree):
            return int(key), end
    return None
