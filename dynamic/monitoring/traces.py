"""Recorded snapshots in a file: JSON lines, a header first, then one snapshot a line."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from dynamic.policies.errors import CorruptError, SchemaError
from dynamic.policies.snapshot import Snapshot
from dynamic.policies.validation.fields import MOST, flag, items, mapping, number, short, text, texts, whole
from dynamic.policies.validation.numbers import plain
from dynamic.storage.json_files import parse_json
from dynamic.storage.regular_files import read_bytes

SCHEMA = 1
_KIND = "dynamic trace"
_MOST_BYTES = 2**30  # a snapshot takes 300
_FLAGS = {"plugged", "throttled"}
_COUNTS = {"rows", "queue_length", "servers"}
_NUMBERS = {f.name for f in fields(Snapshot)} - _FLAGS - _COUNTS - {"missing"}
_SHARE, _AMOUNT = (0.0, 1.5), (0.0, MOST)  # a worn battery reports a little more than its charge
_RANGES = {
    **dict.fromkeys(("cpu_load", "cpu_pressure", "memory_pressure", "battery"), _SHARE),
    **dict.fromkeys(("cpu_cores", "frequency_ratio", "memory_available_mb", "memory_process_mb"), _AMOUNT),
    **dict.fromkeys(("battery_mwh", "waited_ms"), _AMOUNT),
    "temperature_c": (-300.0, 10_000.0),
}

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
        content = read_bytes(path, None, _MOST_BYTES).decode("utf-8")
    except ValueError as error:  # not in UTF-8 either
        raise CorruptError(f"{path} is no recorded trace: {error}") from error
    lines = content.splitlines()
    is_whole = content.endswith("\n")
    header = _header(path, lines[0] if lines else "")
    snapshots: list[Snapshot] = []
    for at, line in enumerate(lines[1:], 2):
        try:
            snapshot = _snapshot(parse_json(line))
        except ValueError as error:
            if at == len(lines) and not is_whole:
                logger.warning("%s: line %d was cut short and is left out", path, at)
                break
            raise CorruptError(f"{path}, line {at} is no snapshot: {error}") from error
        if snapshots and snapshot.time_s < snapshots[-1].time_s:
            raise CorruptError(f"{path}, line {at}: time_s falls to {snapshot.time_s}; traces cannot be joined")
        snapshots.append(snapshot)
    if not snapshots:
        raise CorruptError(f"{path} holds no snapshot: record it for longer")
    return Trace(str(header["machine"]), str(header["date"]), dict(header["sources"]), tuple(snapshots))


def _header(path: Path, line: str) -> Mapping[str, Any]:
    try:
        header = mapping(parse_json(line), "header")
        if header["kind"] != _KIND:
            raise ValueError("its first line is no header")
        schema = whole(header["schema"], "schema", 1)
        found = {
            "machine": text(header["machine"], "machine"),
            "date": text(header["date"], "date"),
            "sources": texts(header["sources"], "sources"),
        }
    except (ValueError, KeyError) as error:
        raise CorruptError(
            f"{path} is no recorded trace ({error!r}); python -m dynamic record writes one, a header first"
        ) from error
    if schema > SCHEMA:
        raise SchemaError(f"{path} has schema {schema}; this version reads up to {SCHEMA}: update dynamic-inference")
    return found


def _snapshot(data: Any) -> Snapshot:
    if not isinstance(data, dict) or "time_s" not in data:
        raise ValueError("it has no time_s")
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name in _COUNTS:
            values[name] = whole(value, name)
        elif name in _NUMBERS:
            values[name] = number(value, name, *_RANGES.get(name, (-MOST, MOST)))
        elif name in _FLAGS:
            values[name] = flag(value, name)
        elif name == "missing":
            values[name] = items(value, name, text)
        else:
            raise ValueError(f"{name:.80}={short(value)} is not of a snapshot")
    return Snapshot(**values)
