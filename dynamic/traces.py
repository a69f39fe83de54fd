"""Recorded snapshots in a file: JSON lines, a header first, then one snapshot a line."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from dynamic.policies.errors import CorruptError, SchemaError
from dynamic.policies.plain import plain
from dynamic.policies.snapshot import Snapshot

SCHEMA = 1
_KIND = "dynamic trace"
_NUMBERS = {f.name for f in fields(Snapshot)} - {"plugged", "throttled", "missing"}
_FLAGS = {"plugged", "throttled"}

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class Trace:
    """`machine` in words, `date` (ISO 8601, UTC) of the first snapshot, and where every source read."""

    machine: str
    date: str
    sources: Mapping[str, str]
    snapshots: tuple[Snapshot, ...]


class TraceWriter:
    """Writes a header at once, then a line for each snapshot, on the disk when `add` returns control to the system.

    Whatever ends the recording, an empty battery included, what was added stands in the file.
    """

    def __init__(self, file: TextIO, machine: str, date: str, sources: Mapping[str, str]) -> None:
        self._file = file
        header = {"kind": _KIND, "schema": SCHEMA, "machine": machine, "date": date, "sources": dict(sources)}
        self._line(header)

    def add(self, snapshot: Snapshot) -> None:
        """Append one; fields that are None are left out."""
        fields = {name: plain(value) for name, value in asdict(snapshot).items()}
        self._line({name: value for name, value in fields.items() if value is not None and value != ()})

    def _line(self, data: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(data) + "\n")
        self._file.flush()


def read_trace(path: Path) -> Trace:
    """What `TraceWriter` wrote. A last line that was cut short is left out with a warning on logger "dynamic".

    Raises CorruptError, naming the line, on anything else that is no snapshot; SchemaError where a newer version of
    this library wrote it; OSError where it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path} is no recorded trace: {error}") from error
    lines = text.splitlines()
    whole = text.endswith("\n")
    header = _header(path, lines[0] if lines else "")
    snapshots: list[Snapshot] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            snapshot = _snapshot(json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines) and not whole:
                logger.warning("%s: line %d was cut short and is left out", path, number)
                break
            raise CorruptError(f"{path}, line {number} is no snapshot: {error}") from error
        if snapshots and snapshot.time_s < snapshots[-1].time_s:
            raise CorruptError(f"{path}, line {number}: time_s falls to {snapshot.time_s}; traces cannot be joined")
        snapshots.append(snapshot)
    if not snapshots:
        raise CorruptError(f"{path} holds no snapshot: record it for longer")
    return Trace(str(header["machine"]), str(header["date"]), dict(header["sources"]), tuple(snapshots))


def _header(path: Path, line: str) -> Mapping[str, Any]:
    try:
        header = json.loads(line)
        if header["kind"] != _KIND or not isinstance(header["sources"], dict):
            raise ValueError("its first line is no header")
        schema = int(header["schema"])
        str(header["machine"]), str(header["date"])
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptError(
            f"{path} is no recorded trace ({error!r}); python -m dynamic record writes one, a header first"
        ) from error
    if schema > SCHEMA:
        raise SchemaError(f"{path} has schema {schema}; this version reads up to {SCHEMA}: update dynamic-inference")
    found: Mapping[str, Any] = header
    return found


def _snapshot(data: Any) -> Snapshot:
    if not isinstance(data, dict) or "time_s" not in data:
        raise ValueError("it has no time_s")
    for name, value in data.items():
        known = name in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool)
        known = known or (name in _FLAGS and isinstance(value, bool))
        if not known and not (name == "missing" and isinstance(value, list)):
            raise ValueError(f"{name}={value!r} is not of a snapshot")
    return Snapshot(**{**data, "missing": tuple(data.get("missing", ()))})
